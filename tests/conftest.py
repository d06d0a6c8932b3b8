"""What all tests share.  TazPod and plumbum are imported here, before `fp` replaces Popen."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import plumbum  # noqa: E402

import tazpod  # noqa: E402

# The engine that the tests drive: one is named, else it would depend on what this machine has.
os.environ.setdefault("TAZPOD_ENGINE", "docker")
PROGRAMS = ("docker", "aws", "gpg", "openssl", "tar", "sudo", "mount", "umount", "mountpoint", "find")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the long form of each sweep")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long") or "long" in (config.getoption("-m") or ""):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


@pytest.fixture(autouse=True)
def fresh_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """What `main` sets for a whole process is put back after each test."""
    for name in ("HOST_CWD", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / secrets.token_hex(4)))
    tazpod.OPTIONS.debug = tazpod.OPTIONS.yes = tazpod.OPTIONS.dry_run = tazpod.OPTIONS.hurry = False
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    umask = os.umask(0o022)
    yield
    os.umask(umask)
    for number, handler in zip(numbers, handlers):
        signal.signal(number, handler)
    tazpod.OPTIONS.debug = tazpod.OPTIONS.yes = tazpod.OPTIONS.dry_run = tazpod.OPTIONS.hurry = False


def replace(record: Any, **fields: Any) -> Any:
    """The record with some fields changed."""
    return record._replace(**fields)


def write_stub(folder: Path, name: str, script: str = "exit 0") -> Path:
    """An executable shell script."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def run_cli(*words: str, flags: Sequence[str] = (), **options: Any) -> subprocess.CompletedProcess[str]:
    """`python tazpod.py WORDS` in a process of its own, without a terminal."""
    argv = [sys.executable, *flags, str(ROOT / "tazpod.py"), *words]
    settings = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 60, **options}
    return subprocess.run(argv, **settings)


@pytest.fixture
def stub_path(tmp_path: Path) -> Iterator[Path]:
    """A folder that is all of plumbum's PATH, with a stub for each program: plumbum looks a
    program up before it runs it, also under `fp`.  Change one with `write_stub`, or unlink it."""
    folder = tmp_path / "stubs"
    folder.mkdir()
    for name in PROGRAMS:
        write_stub(folder, name)
    with contextlib.ExitStack() as stack:
        stack.enter_context(plumbum.local.env(PATH=str(folder)))
        yield folder


class Terminal:
    """The person's side of the terminal on which the test runs."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def shown(self) -> str:
        """What was shown since the last time, what was typed included."""
        text = b""
        while select.select([self.fd], [], [], 0)[0]:
            text += os.read(self.fd, 4096)
        return text.decode().replace("\r\n", "\n")


@contextlib.contextmanager
def terminal() -> Iterator[Terminal]:
    """A terminal as this process's standard input, output and error.

    To be entered in the test's body: pytest puts its own capture back between set-up and body."""
    leader, follower = os.openpty()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, leader)
        for number in range(3):
            saved = os.dup(number)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, number)
            os.dup2(follower, number)
        os.close(follower)
        for number, name in ((1, "stdout"), (2, "stderr")):
            file = stack.enter_context(open(os.dup(number), "w", buffering=1))
            stack.callback(setattr, sys, name, getattr(sys, name))
            setattr(sys, name, file)
        yield Terminal(leader)


def approve(project: Path, text: str | None = None) -> None:
    """Approve what the config.yaml of a project asks for, after writing it."""
    if text is not None:
        (project / tazpod.CONFIG_PATH).write_text(text)
    tazpod.keep_request(tazpod.read_request(project))


def load_config(project: Path) -> tazpod.Config:
    """The config of a project, approved or not."""
    return tazpod.take_request(tazpod.read_request(project))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Path:
    """A project fresh from `init`, as the current folder, with a home of its own beside it."""
    folder, home = tmp_path / "project", tmp_path / "home"
    for path in (folder, home):
        path.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(folder)
    tazpod.init_project(folder)
    capfd.readouterr()
    return folder
