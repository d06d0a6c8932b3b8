"""A project in which somebody else swaps names while the host side works in it, perhaps as root."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tazpod

ROUNDS = 60
SOMEBODY = 1234
LIBC = ctypes.CDLL(None, use_errno=True)
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the host side is root's here")


def lease(config: tazpod.Config) -> None:
    session = tazpod.open_session(config)
    try:
        session.become("session")
    finally:
        session.close()


def lock(path: Path) -> None:
    with tazpod.locked_file(path, "testing"):
        pass


# What the host side does below a project: by what it makes there.
WORKS: dict[str, Callable[[tazpod.Config], object]] = {
    "a folder": lambda config: tazpod.private_folder(config.run_folder / "made"),
    "a record": lambda config: tazpod.write_whole(config.run_folder / "made.json", b"{}"),
    "a lock": lambda config: lock(config.run_folder / "up.lock"),
    "a lease": lease,
    "a relay": lease,
    "a project": lambda config: tazpod.init_project(config.project),
    "a mark": lambda config: tazpod.remove_file(tazpod.host_vault(config).marker),
    "a look": lambda config: tazpod.read_shared(config.run_folder / "made.json"),
}


def snapshot(folder: Path) -> dict[str, tuple[object, ...]]:
    found = {}
    for path in (folder, *folder.rglob("*")):
        info = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(info.st_mode) else b""
        found[str(path)] = (info.st_uid, info.st_gid, info.st_mode, info.st_ino, content)
    return found


@contextlib.contextmanager
def swapping(folder: Path, name: str, other: str, user: int) -> Iterator[None]:
    """A process of another user that exchanges two names, again and again."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            while LIBC.renameat2(fd, name.encode(), fd, other.encode(), 2) == 0:  # RENAME_EXCHANGE
                pass
        os._exit(1)
    try:
        yield
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "nothing was swapped"
    finally:
        os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)
        os.close(fd)


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of root's that looks like an envelope, with what would hurt if it was changed."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    trap = tmp_path / "trap"
    for name in ("run/made", "vault"):
        (trap / name).mkdir(parents=True)
    for name in ("run/made.json", "run/up.lock", "vault/.open", "run/agent.sock", "made.json", "up.lock"):
        (trap / name).write_text("precious")
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(tmp_path / "agent"))
        agent.listen()
        yield trap


@pytest.mark.parametrize("owner", [SOMEBODY, 0], ids=["another's", "root's"])
@pytest.mark.parametrize("place", ["", "run", "vault"])
@pytest.mark.parametrize("work", WORKS)
def test_nothing_of_roots_is_touched_through_a_folder_that_is_exchanged_for_a_link(
    work: str, place: str, owner: int, tmp_path: Path, trap: Path
) -> None:
    if place == "vault" and work not in ("a project", "a mark"):
        pytest.skip("it has nothing to do with that folder")
    project = tmp_path / "project"
    config = tazpod.Config(project, "x-lab", ssh_agent=work == "a relay")
    for folder in (project, project / ".tazpod", project / ".tazpod/run", project / ".tazpod/vault"):
        folder.mkdir()
        os.chown(folder, owner, owner)
    swapped = project / ".tazpod" / place
    (swapped.parent / "link").symlink_to(trap / place)
    os.lchown(swapped.parent / "link", owner, owner)
    real = os.open(swapped, os.O_RDONLY | os.O_DIRECTORY)
    before = snapshot(trap)
    with swapping(swapped.parent, swapped.name, "link", owner):
        for _ in range(25 * ROUNDS if work == "a folder" else ROUNDS):  # which is quickly done
            with contextlib.suppress(OSError, tazpod.TazpodError):
                WORKS[work](config)
            for name in ("run/made", "made"):
                with contextlib.suppress(OSError):  # so that the next round makes it again
                    os.rmdir(name, dir_fd=real)
    os.close(real)
    assert snapshot(trap) == before
    made = [path for path in project.rglob("*") if not path.is_symlink()]
    assert {path.lstat().st_uid for path in made} <= {owner}


def test_no_file_of_roots_is_given_away_when_it_is_exchanged_for_what_was_just_made(tmp_path: Path) -> None:
    """By names in one folder: what was made is exchanged for what root had left there."""
    project = tmp_path / "project"
    run = project / ".tazpod/run"
    run.mkdir(parents=True)
    for folder in (project, project / ".tazpod", run):
        os.chown(folder, SOMEBODY, SOMEBODY)
    (run / "treasure").mkdir(mode=0o700)
    (run / "treasure/file").write_text("precious")
    before = snapshot(run / "treasure")
    (run / "made").mkdir()
    os.chown(run / "made", SOMEBODY, SOMEBODY)
    with swapping(run, "made", "treasure", SOMEBODY):
        for _ in range(ROUNDS):
            tazpod.private_folder(run / "made")
            tazpod.write_whole(run / "made.json", b"")
    treasure = run / "treasure"
    if not (treasure / "file").exists():
        treasure = run / "made"
    after = snapshot(treasure)
    assert list(after.values()) == list(before.values())


IN_OPEN = 0x20


@pytest.mark.parametrize("kind", ["fifo", "device", "link", "socket"])
@pytest.mark.parametrize(
    "reader",
    [tazpod.read_shared, tazpod.open_sealed_file, lock, tazpod.is_alive],
    ids=["a record", "a sealed file", "a lock", "a lease"],
)
def test_what_is_no_file_is_not_opened(reader: Callable[[Path], object], kind: str, tmp_path: Path) -> None:
    folder = tmp_path / ".tazpod/run"
    folder.mkdir(parents=True)
    path = target = folder / "odd"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        target = tmp_path / "target"
        target.write_text("precious")
        path.symlink_to(target)
    watch = LIBC.inotify_init1(os.O_NONBLOCK)
    assert LIBC.inotify_add_watch(watch, os.fsencode(target), IN_OPEN) > 0
    with contextlib.suppress(OSError, tazpod.TazpodError):
        assert reader(path) in (None, False)
    with pytest.raises(BlockingIOError):
        os.read(watch, 1000)  # it was not opened
    os.close(watch)
    if kind == "link":
        assert target.read_text() == "precious"


def test_what_is_told_of_a_file_is_not_told_of_one_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/vault.tar.aes").write_text("another's")
    (tmp_path / "project/.tazpod").mkdir(parents=True)
    (tmp_path / "project/.tazpod/vault").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="vault"):
        tazpod.look_at(tmp_path / "project/.tazpod/vault/vault.tar.aes")
