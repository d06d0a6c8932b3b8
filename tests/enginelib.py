"""A project on a real engine, and the person who sits in front of it.

What is driven is the command line itself, on a pseudo-terminal or off one: a copy of tazpod.py in a
folder, started as pip starts what it has installed, so that Python does not compile it at each word.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import py_compile
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Callable

import pexpect
import plumbum
import pytest
import yaml

import tazpod

ENGINE = os.environ["TAZPOD_ENGINE"]
HANDED_ON = ("PATH", "DOCKER_HOST", "TMPDIR", "TAZPOD_ENGINE", "XDG_RUNTIME_DIR")  # and CONTAINERS_*
IMAGE = os.environ.get("TAZPOD_TEST_IMAGE", "tazpod-test:slim")
FULL_IMAGE = os.environ.get("TAZPOD_TEST_FULL_IMAGE", "tazpod-test:latest")
PASSPHRASE = "correct horse battery staple"
SECRET = "the-secret-of-the-template"
SECRETS = "/home/tazpod/secrets"
AT_ENTRY = r"Passphrase \(empty: stay locked\): "
PATIENCE = 120.0  # seconds until a test gives up; how long things take is not judged

UNREACHABLE = {"DOCKER_HOST": "unix:///nowhere.sock", "CONTAINER_HOST": "unix:///nowhere.sock"}
GUARD = ("pgrep", "-f", tazpod.GUARD_WORD)


def eventually(check: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Wait until `check` is true; fail after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not check():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.05)


def docker(*words: str, data: bytes = b"", check: bool = True) -> str:
    """A call of the engine by somebody else than tazpod."""
    done = subprocess.run([ENGINE, *words], input=data, capture_output=True, timeout=300)
    assert not check or done.returncode == 0, f"docker {words}: {done.stderr.decode()}"
    return done.stdout.decode(errors="replace")


def unique() -> str:
    """A name that no other run has."""
    return f"tazpod-test-{secrets.token_hex(4)}"


class Terminal:
    """A pseudo-terminal with tazpod on it, used as a person would."""

    def __init__(self, argv: Sequence[str], cwd: Path, env: dict[str, str]) -> None:
        self.child = pexpect.spawn(
            argv[0],
            list(argv[1:]),
            cwd=str(cwd),
            env=env,  # type: ignore[arg-type]
            encoding="utf-8",
            codec_errors="replace",
            timeout=PATIENCE,
            dimensions=(50, 500),
        )
        self.child.delaybeforesend = None
        self.settings = termios.tcgetattr(self.child.child_fd)
        self.seen = ""
        self.in_shell = False

    def sees(self, pattern: str) -> None:
        """Wait for what the screen must show."""
        self.child.expect(pattern)
        self.seen += self.child.before + self.child.after

    def types(self, line: str) -> None:
        """Type a line."""
        self.child.sendline(line)

    def answers(self, *steps: tuple[str, str]) -> None:
        """Wait for each question and type its answer."""
        for question, answer in steps:
            self.sees(question)
            self.types(answer)

    def shell(self) -> None:
        """Wait for the shell: what is typed before it is there is lost, and meant to be."""
        if not self.in_shell:
            self.sees(r"/workspace\x1b\[0m[$#] ")
            self.in_shell = True

    def leaves(self, status: int = 0) -> int:
        """Leave the shell; tazpod's exit status."""
        self.shell()
        self.types(f"exit {status}")
        return self.ends()

    def sh(self, command: str) -> str:
        """What a command in the shell prints; it must succeed."""
        self.shell()
        start, end = secrets.token_hex(4), secrets.token_hex(4)
        self.types(f"echo {start[:4]}''{start[4:]}; {command}; echo $?{end[:4]}''{end[4:]}")
        self.sees(start + r"\r\n")
        self.sees(r"(\d+)" + end)
        assert self.child.match.group(1) == "0", f"{command}: {self.child.before}"
        return str(self.child.before).replace("\r\n", "\n").strip()

    def ctrl_c(self) -> None:
        """What the key Ctrl-C does."""
        self.child.sendintr()

    def ends(self) -> int:
        """Wait for the end of tazpod; its exit status.  The terminal must be as it was."""
        self.child.expect(pexpect.EOF)
        self.seen += self.child.before
        status = int(self.child.wait())
        assert termios.tcgetattr(self.child.child_fd) == self.settings, "the terminal is not as it was"
        return status if not self.child.signalstatus else -self.child.signalstatus

    def closes(self) -> int:
        """Close the terminal, as when its window is closed; tazpod's exit status."""
        process = self.child.ptyproc
        process.fileobj.close()
        process.closed = self.child.closed = True
        process.fd = self.child.child_fd = -1
        eventually(lambda: not process.isalive(), "tazpod ends when its terminal is closed")
        return int(process.exitstatus)

    def kill(self, number: int) -> None:
        """Send a signal to tazpod itself, and to nothing that it started."""
        os.kill(self.child.pid, number)

    def clean_up(self) -> None:
        """End what a failed test has left."""
        if not self.child.closed:
            self.child.close(force=True)


@functools.cache
def compiled_tool() -> str:
    """The tool as Python compiles it; it counts for every copy that has the tool's time and size."""
    folder = tempfile.mkdtemp(prefix="tazpod-test-")
    atexit.register(shutil.rmtree, folder)
    return py_compile.compile(tazpod.__file__, f"{folder}/tazpod.pyc", doraise=True)


class Place:
    """A project folder of its own, with a home and a copy of the tool beside it."""

    def __init__(self, box: Path, folder: str = "project") -> None:
        self.box, self.folder, self.home = box, box / folder, box / "home"
        self.tool = box / "tool" / "tazpod.py"
        self.name = unique()
        self.argv = [sys.executable, str(self.tool.parent)]
        self.env = {
            name: value
            for name, value in os.environ.items()
            if name in HANDED_ON or name.startswith("CONTAINERS_")
        }
        self.env |= {"HOME": str(self.home), "LANG": "C.UTF-8", "TERM": "xterm", "NO_COLOR": "1"}
        self.terminals: list[Terminal] = []
        self.images: list[str] = []
        for path in (self.folder, self.home, self.tool.parent):
            path.mkdir()
        shutil.copy2(tazpod.__file__, self.tool)
        compiled = Path(importlib.util.cache_from_source(str(self.tool)))
        compiled.parent.mkdir()
        shutil.copy(compiled_tool(), compiled)
        (self.tool.parent / "__main__.py").write_text("from tazpod import program\n\nprogram()\n")

    def init(self, *options: str, image: str = IMAGE) -> Place:
        """`tazpod init` with the image of the tests; each option is a line for config.yaml."""
        done = self.run("init", "--image", image, "--name", self.name)
        assert done.returncode == 0, done.stderr
        for line in options:
            self.configure(line)
        return self

    def configure(self, line: str) -> str:
        """Set `section.key: value` in config.yaml; what `trust` says, which fits a container that runs."""
        path = self.folder / tazpod.CONFIG_PATH
        key, _, value = line.partition(": ")
        section, _, leaf = key.rpartition(".")
        config = yaml.safe_load(path.read_text())
        (config.setdefault(section, {}) if section else config)[leaf] = yaml.safe_load(value)
        path.write_text(yaml.safe_dump(config))
        return self.ok("trust")

    def run(
        self,
        *words: str,
        data: str | None = None,
        passphrase: str | None = None,
        cwd: Path | None = None,
        **env: str,
    ) -> subprocess.CompletedProcess[str]:
        """A tazpod off the terminal; a passphrase goes to it through a descriptor of its own."""
        fds: tuple[int, ...] = ()
        if passphrase is not None:
            read_end, write_end = os.pipe()
            os.write(write_end, passphrase.encode() + b"\n")
            os.close(write_end)
            end = words.index("run") + 1 if "run" in words else len(words)  # the rest is the command's
            begins = (
                words[0] == "unlock" and not self.sealed.exists() and not (self.vault / "history").exists()
            )
            new = ("--new",) if begins else ()
            words, fds = (*words[:end], *new, "--passphrase-fd", str(read_end), *words[end:]), (read_end,)
        try:
            return subprocess.run(
                [*self.argv, *words],
                input=data,
                stdin=subprocess.DEVNULL if data is None else None,
                capture_output=True,
                text=True,
                timeout=300,
                cwd=cwd or self.folder,
                env={**self.env, **env},
                pass_fds=fds,
            )
        finally:
            for fd in fds:
                os.close(fd)

    def ok(self, *words: str, passphrase: str | None = None, data: str | None = None) -> str:
        """What a tazpod that must succeed says."""
        done = self.run(*words, passphrase=passphrase, data=data)
        assert done.returncode == 0, f"tazpod {words}: {done.returncode}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def terminal(self, *words: str, cwd: Path | None = None, **env: str) -> Terminal:
        """A tazpod on a terminal."""
        terminal = Terminal([*self.argv, *words], cwd or self.folder, {**self.env, **env})
        self.terminals.append(terminal)
        return terminal

    def enter(self) -> Terminal:
        """A person in the shell, with the vault open."""
        terminal = self.terminal()
        if not self.is_open():
            terminal.answers((AT_ENTRY, PASSPHRASE))
            terminal.sees("the vault is open")
        assert terminal.sh("mountpoint ~/secrets") == f"{SECRETS} is a mountpoint"
        return terminal

    def inside(self, script: str, user: str = "") -> subprocess.CompletedProcess[str]:
        """A script in the container, by somebody else's `docker exec`."""
        options = ["-u", user] if user else []
        argv = [ENGINE, "exec", *options, self.name, "bash", "-c", script]
        return subprocess.run(argv, capture_output=True, text=True, timeout=300)

    def reads(self, script: str, user: str = "") -> str:
        """What a script in the container prints; it must succeed."""
        done = self.inside(script, user)
        assert done.returncode == 0, f"{script}: {done.stderr}"
        return done.stdout.strip()

    def is_open(self) -> bool:
        """Whether the container shows a mount where the secrets belong."""
        return self.inside(f"mountpoint -q {SECRETS}").returncode == 0

    def ram(self) -> list[str]:
        """Every mount in the container that an open vault may have made."""
        table = self.inside("cat /proc/self/mountinfo").stdout
        return [line.split()[4] for line in table.splitlines() if line.split()[4].startswith("/home/tazpod/")]

    def is_shut(self) -> bool:
        """Whether nothing of an open vault is left in the container: no mount, no file."""
        own = [place for place in self.ram() if not place.endswith("/.ssh")]
        return not own and self.reads(f"ls -A {SECRETS}; ls -A ~/{tazpod.TRANSIT}") == ""

    def guards(self) -> list[str]:
        """The processes of the guard."""
        return self.inside(shlex.join(GUARD)).stdout.split()

    @property
    def vault(self) -> Path:
        """The vault's folder on the host."""
        return self.folder / ".tazpod/vault"

    @property
    def sealed(self) -> Path:
        """The sealed vault on the host."""
        return self.vault / tazpod.SEALED_NAME

    def on_disk(self) -> dict[str, bytes]:
        """All that lies in the vault's folder, less the lock and the mark of an open vault."""
        return {
            str(p.relative_to(self.vault)): p.read_bytes()
            for p in self.vault.rglob("*")
            if p.is_file() and p.name not in (".lock", ".open")
        }

    def run_by_hand(self, *options: str, image: str = IMAGE, project: str = "") -> str:
        """A container of our name that somebody else has made."""
        mounts = ("-v", f"{self.folder}:/workspace", "-e", f"HOST_CWD={project or self.folder}")
        return docker("run", "-d", "--name", self.name, *mounts, *options, image, "sleep", "infinity").strip()

    def build(self, dockerfile: str) -> str:
        """An image made for one test."""
        tag = f"{unique()}:made"
        docker("build", "-t", tag, "-", data=dockerfile.encode())
        self.images.append(tag)
        return tag

    def clean_up(self) -> None:
        """Remove the container, and the images that were made for it."""
        for terminal in self.terminals:
            terminal.clean_up()
        now = ("-t", "0") if ENGINE == "podman" else ()  # which asks first, and waits ten seconds
        docker("rm", "-f", "-v", *now, self.name, check=False)
        for tag in self.images:
            docker("rmi", "-f", tag, check=False)

    def start_afresh(self, sealed: bytes) -> None:
        """As after a restart of the machine, with `sealed` as the only version of the vault."""
        for terminal in self.terminals:
            terminal.clean_up()
        self.terminals.clear()
        docker("restart", "-t", "0", self.name)
        for path in sorted(self.vault.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        self.sealed.write_bytes(sealed)
        for path in (self.folder / ".tazpod/run").glob("*.*s*"):
            if path.suffix in (".lease", ".session", ".leaving", ".shell"):
                path.unlink()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A project folder without a `.tazpod/`; nothing is running."""
    place = Place(tmp_path)
    yield place
    place.clean_up()


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, bytes]]:
    """A running container, and a vault that tazpod sealed in it: `~/secrets/kept` holds SECRET."""
    place = Place(tmp_path_factory.mktemp("lab")).init()
    try:
        place.ok("unlock", passphrase=PASSPHRASE)
        place.reads(f"echo {SECRET} > ~/secrets/kept")
        place.ok("lock")
        yield place, place.sealed.read_bytes()
    finally:
        place.clean_up()


@pytest.fixture
def lab(template: tuple[Place, bytes]) -> Place:
    """A project with a sealed vault and a container that was just started again."""
    place, sealed = template
    place.start_afresh(sealed)
    return place


@pytest.fixture
def project_with_vault(place: Place, template: tuple[Place, bytes]) -> Place:
    """A project with a sealed vault and no container yet."""
    place.init()
    place.sealed.write_bytes(template[1])
    return place


class Owned(Place):
    """A place whose host side runs as one user, in a project that belongs to another."""

    def __init__(self, box: Path, uid: int, owner: int) -> None:
        super().__init__(box)
        self.uid, self.owner = uid, owner
        # The Python of the tests may lie where only root can read; libraries go along.
        libraries = box / "libraries"
        for module in (plumbum, yaml):
            source = Path(module.__file__).parent
            shutil.copytree(source, libraries / source.name, ignore=shutil.ignore_patterns("*.so"))
        extra = importlib.util.find_spec("typing_extensions")  # plumbum wants it on older Pythons
        if extra and extra.origin:
            shutil.copy(extra.origin, libraries)
        for path in (box, *box.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        os.chown(self.home, uid, uid)
        os.chown(self.folder, owner, owner)
        self.env["PYTHONPATH"] = str(libraries)
        self.env["PYTHONDONTWRITEBYTECODE"] = "1"
        endpoint = re.sub("^unix://", "", os.environ.get("DOCKER_HOST", "/var/run/docker.sock"))
        groups = ["--clear-groups"]
        if os.path.exists(endpoint):
            groups = [f"--groups={os.stat(endpoint).st_gid}"]
        user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", *groups]
        if uid == os.geteuid():
            user = []
        self.argv = [*user, os.path.realpath(sys.executable), str(self.tool.parent)]


@pytest.fixture
def owned(request: pytest.FixtureRequest) -> Iterator[Owned]:
    """A place for `(user of the host side, owner of the project)`."""
    with tempfile.TemporaryDirectory(prefix="tazpod-test-") as box:  # tmp_path is for one user only
        place = Owned(Path(box), *request.param)
        yield place
        place.clean_up()


@pytest.fixture
def default_image() -> Iterator[str]:
    """The image that `init` writes into a config, present without a registry."""
    image = tazpod.DEFAULT_IMAGE
    present = docker("images", "-q", image).strip()
    if not present:
        docker("tag", IMAGE, image)
    yield image
    if not present:
        docker("rmi", image)


def signal_name(number: int) -> str:
    """SIGTERM and so on."""
    return signal.Signals(number).name
