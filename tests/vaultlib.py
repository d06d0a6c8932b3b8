"""A vault of its own for a test, and what must hold for it whatever happened; uses none of section 6
to judge section 6, except its words."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import io
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import pytest

import tazpod

PASSPHRASE = b"a passphrase of the tests"
CANARY = b"canary-5d2f0c7e91a84b36"
OTHER = b"another passphrase of the tests"
BINDS = (".aws", ".config/gh")
GO_PASSPHRASE = b"correct horse battery staple"
GO_DATA = Path(__file__).parent / "data" / "go-vault"
NEEDS_ROOT = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounts: needs root on Linux"
)
REFUSALS = (tazpod.TazpodError, OSError)  # `main` makes one line and status 1 of both
RESERVED = re.compile(rb"\.vault_(pass|pass\.next|state)(\.[0-9a-f]+\.tmp)?")

Snapshot = dict[bytes, tuple[Any, ...]]


def snapshot(root: Path) -> Snapshot:
    """Everything below a folder that a vault must keep: kind and mode, time, content, hard links."""
    base = os.fsencode(root)
    found: Snapshot = {}
    first: dict[int, bytes] = {}
    for folder, folders, files in os.walk(base):
        for path in sorted(os.path.join(folder, name) for name in folders + files):
            name = os.path.relpath(path, base)
            if RESERVED.fullmatch(name):
                continue
            info = os.lstat(path)
            content: object = None
            if stat.S_ISREG(info.st_mode):
                with open(path, "rb") as file:
                    content = hashlib.sha256(file.read()).hexdigest(), info.st_size
            elif stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            same = first.setdefault(info.st_ino, name) if not stat.S_ISDIR(info.st_mode) else name
            found[name] = (f"{info.st_mode:o}", info.st_mtime_ns, content, same)
    return found


def mount_points(below: Path) -> list[str]:
    """What is mounted at or below a folder, the latest first."""
    text = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    points = [
        re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), line.split(" ")[4]) for line in text.splitlines()
    ]
    return [p for p in reversed(points) if p == str(below) or p.startswith(f"{below}/")]


def hits(root: Path, token: bytes) -> list[str]:
    """The files below a folder, what is in RAM aside, with a token in their name or content."""
    device = os.stat(root).st_dev
    found = []
    for folder, folders, files in os.walk(os.fsencode(root)):
        folders[:] = [f for f in folders if os.lstat(os.path.join(folder, f)).st_dev == device]
        for name in files:
            path = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError):
                if token in name or (
                    stat.S_ISREG(os.lstat(path).st_mode) and token in Path(os.fsdecode(path)).read_bytes()
                ):
                    found.append(os.fsdecode(path))
    return found


@functools.cache
def own_mounts() -> None:
    """Take this process into a mount namespace of its own.

    Else a container that some engine starts just now shows our mounts, for a moment, in its namespace.
    """
    clone_newns = 0x20000
    assert ctypes.CDLL(None, use_errno=True).unshare(clone_newns) == 0, os.strerror(ctypes.get_errno())
    run("mount", "--make-rprivate", "/")


class World:
    """One vault, its home and a folder for temporary files, below one folder.

    The home is a private mount: a mount cannot be moved below a shared one.
    """

    def __init__(
        self, root: Path, size: str = "8m", keep: int = 5, binds: tuple[str, ...] = (".aws",)
    ) -> None:
        own_mounts()
        self.root = root
        self.temp = root / "tmp"
        for folder in (root / "home", self.temp):
            folder.mkdir(parents=True)
        self.vault = tazpod.Vault(root / "vault", root / "home", size, keep, binds)
        self.open = self.vault.mount  # where the secrets are
        run("mount", "--bind", self.vault.home, self.vault.home)
        run("mount", "--make-private", self.vault.home)

    def close(self) -> None:
        """Unmount everything, however much there is."""
        for _ in range(50):
            points = mount_points(self.root)
            if not points:
                return
            for point in points:
                subprocess.run(["umount", "-l", point], capture_output=True)
        raise AssertionError(f"still mounted: {mount_points(self.root)}")

    def mounted(self) -> list[str]:
        """The mounts below the home, by their names there."""
        home = self.vault.home
        return sorted(os.path.relpath(p, home) for p in mount_points(home) if p != str(home))

    def unlock(self, passphrase: bytes = PASSPHRASE) -> None:
        tazpod.unlock(self.vault, passphrase)

    def put(self, name: str, content: bytes | str) -> None:
        """Write a secret."""
        path = self.open / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def tree(self) -> Snapshot:
        return snapshot(self.open)

    def leaks(self, token: bytes = CANARY) -> list[str]:
        """The files on disk with a secret in them."""
        return hits(self.root, token)

    def temporaries(self) -> list[Path]:
        """Unfinished files beside the sealed one."""
        return [*self.vault.folder.glob(".*.tmp"), *self.vault.history.glob(".*.tmp")]

    def disk_state(self) -> dict[str, bytes]:
        """Every file of the vault's folder, the lock aside."""
        paths = (p for p in self.vault.folder.rglob("*") if p.is_file() and p.name != ".lock")
        return {str(p.relative_to(self.vault.folder)): p.read_bytes() for p in paths}


def run(*argv: object, **options: Any) -> bytes:
    """A program of the system that must succeed; what it printed."""
    return subprocess.run([str(a) for a in argv], check=True, stdout=subprocess.PIPE, **options).stdout


def gpg_seal(archive: bytes, passphrase: bytes = PASSPHRASE, *more: str) -> bytes:
    """Bytes sealed by gpg as ours are; `more` overrides its options."""
    with tazpod.empty_folder("tazpod-gpg-") as homedir, tazpod.secret_fd(passphrase) as fd:
        argv = tazpod.encrypt_argv(homedir, fd)
        argv.remove("--symmetric")
        return run(*argv, *more, "--symmetric", input=archive, pass_fds=(fd,))


def tar_of(*files: tuple[str, bytes]) -> bytes:
    """An archive of regular files."""
    return make_tar([(member(name, size=len(content)), content) for name, content in files])


def make_tar(members: list[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for info, content in members:
            if info.size > len(content):  # a header that lies
                buffer.write(info.tobuf(form))
            else:
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, **settings: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in settings.items():
        setattr(info, key, value)
    return info


def program(folder: Path, name: str, script: str) -> None:
    """A fake program; `$REAL` is the real one."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\nREAL={shutil.which(name)}\n{script}\n")
    (folder / name).chmod(0o755)


# ---- children that are killed ------------------------------------------------------------------------
class Child:
    """`work` in a process of its own with the signal handlers of `main`; it leads its process group."""

    def __init__(self, work: Callable[[], object]) -> None:
        ready, tell = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                os.setsid()
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                self.working = True
                for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                    signal.signal(number, self._end)
                os.write(tell, b"!")
                work()
                self.working = False  # from here on a signal comes too late
                code = 0
            except REFUSALS:
                code = 1
            except (KeyboardInterrupt, SystemExit):
                code = 130
            finally:
                os._exit(code)
        os.close(tell)
        os.read(ready, 1)
        os.close(ready)

    def _end(self, number: int, _: object) -> None:
        if self.working:
            self.working = False  # once: a second one would come while it cleans up
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    def signal(self, number: int, group: bool = False) -> None:
        (os.killpg if group else os.kill)(self.pid, number)

    def wait(self, limit: float = 60) -> int:
        """Its status as `waitstatus_to_exitcode` gives it."""
        for _ in polls(limit):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
        self.signal(signal.SIGKILL, group=True)
        os.waitpid(self.pid, 0)
        raise AssertionError("the child hangs")


def polls(limit: float = 20, pause: float = 0.005) -> Iterator[None]:
    """Turns of a polling loop until the time is over."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        yield
        time.sleep(pause)


def eventually(what: Callable[[], object], limit: float = 20) -> bool:
    """Whether something becomes true in time."""
    return any(what() for _ in polls(limit))


STEPS = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate"}
STEPS |= {"subprocess.Popen", "fcntl.flock"}


def die_at_step(number: int, tell: int, how: int = signal.SIGKILL) -> None:
    """From now on: a signal to this process before its step `number` (-1: never); each is told by a byte.

    A step is a call that changes a file, opens one for writing, locks, or starts a program.
    """
    count = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in STEPS:
            if event != "open" or not isinstance(args[2], int):
                return
            if args[2] & os.O_ACCMODE == os.O_RDONLY or str(args[0]).startswith(("/dev/null", "/proc")):
                return
        if count == number:
            os.kill(os.getpid(), how)
        count += 1
        os.write(tell, b".")

    sys.addaudithook(hook)


def count_steps(work: Callable[[], object]) -> int:
    """How many steps `work` takes, in a child."""
    ready, tell = os.pipe()

    def watched() -> None:
        die_at_step(-1, tell)
        work()

    child = Child(watched)
    os.close(tell)
    with os.fdopen(ready, "rb") as file:
        count = len(file.read())
    assert child.wait() == 0
    return count


@dataclass
class Sweep:
    """One word of the vault, killed again and again; afterwards all must be well without help."""

    world: World
    word: str
    child: int = 0
    turns: int = 0
    killed: int = 0
    finished: int = 0
    passphrase: bytes = PASSPHRASE
    allowed: list[Snapshot] = field(default_factory=list)
    candidates: list[bytes] = field(default_factory=list)
    pair: list[bytes] = field(default_factory=list)

    def begin(self) -> None:
        """A sealed vault with two versions."""
        self.world.unlock()
        self.world.put("secret", CANARY)
        self.world.put("more/secrets", CANARY * 2000)
        (self.world.vault.home / BINDS[-1] / "token").write_bytes(CANARY)
        tazpod.save(self.world.vault)
        first = self.world.vault.sealed.read_bytes()
        self.world.put("secret", CANARY + b" second")
        tazpod.save(self.world.vault)
        self.pair = [first, self.world.vault.sealed.read_bytes()]
        self.allowed = [self.world.tree()]

    def prepare(self) -> Callable[[], object]:
        """Bring about the state before the word; the word's work."""
        world, vault = self.world, self.world.vault
        self.turns += 1
        self.candidates = [self.passphrase]
        if self.word in ("unlock", "restore"):
            tazpod.lock(vault)
        elif not tazpod.is_open(vault):
            world.unlock(self.passphrase)
        if self.word == "unlock":
            return lambda: tazpod.unlock(vault, self.passphrase)
        if self.word == "lock":
            return lambda: tazpod.lock(vault)
        if self.word == "restore":
            for path in vault.history.glob("*"):
                path.unlink()
            version = vault.history / "vault-20200101T000000.tar.aes"
            version.write_bytes(self.pair[vault.sealed.read_bytes() == self.pair[0]])
            return lambda: tazpod.restore(vault, version, self.passphrase)
        self.allowed = [world.tree()]
        world.put("secret", CANARY + b" %d" % self.turns)
        self.allowed.append(world.tree())
        if self.word == "save":
            return lambda: tazpod.save(vault)
        upcoming = b"passphrase number %d" % self.turns
        self.candidates.append(upcoming)
        return lambda: tazpod.save(vault, passphrase=upcoming)

    def settle(self, code: int) -> None:
        """What must hold now, whatever happened to the word."""
        world, vault = self.world, self.world.vault
        self.killed += code != 0
        self.finished += code == 0
        assert world.leaks() == [], "a secret is on disk"
        is_open = tazpod.is_open(vault)
        if is_open:
            assert self.word != "restore"
            assert world.tree() == self.allowed[-1], "an unfinished unlock is taken for an open vault"
        if self.word == "save" and self.turns % 4 == 0:
            tazpod.save(vault)
            self.allowed = self.allowed[-1:]
            assert world.temporaries() == [], "a temporary file outlived the next save"
        if self.word == "passwd" and self.turns % 2 == 0:
            # An operator who goes on and saves must end with a vault that one known passphrase opens.
            world.put("more/after", str(self.turns))
            self.allowed = [world.tree()]
            tazpod.save(vault)
        if self.word == "restore":
            assert vault.sealed.read_bytes() in self.pair, "the sealed vault is neither old nor new"
            kept = {p.read_bytes() for p in vault.history.glob("vault-*")} | {vault.sealed.read_bytes()}
            assert kept == set(self.pair), "a version is lost"
            tazpod.lock(vault)  # what a killed proof left in RAM
            assert world.mounted() == []
            return
        tazpod.lock(vault)
        try:
            self.passphrase = self._reopen()
        except tazpod.VaultError:
            if not self.child:
                raise
            # A mount(8) that outlived the killed one came between, within milliseconds: refused, no more.
            assert world.leaks() == [] and not tazpod.is_open(vault)
            assert eventually(lambda: not self.outlived())
            self.passphrase = self._reopen()
        assert world.tree() in self.allowed, "the sealed vault is neither old nor new"
        self.allowed = [world.tree()]
        assert world.leaks() == [], "a secret is on disk"

    def check_cleaned_up(self, number: int) -> None:
        """Who was told to end took away first what it had mounted."""
        if number != signal.SIGKILL and self.word != "lock":
            assert self.world.mounted() in ([], [*BINDS, "secrets"]), f"left behind: {self.world.mounted()}"

    def outlived(self) -> bool:
        """Whether a program that the killed one had started still runs."""
        with contextlib.suppress(ProcessLookupError):
            if self.child:
                os.killpg(self.child, 0)
                return True
        return False

    def _reopen(self) -> bytes:
        for passphrase in self.candidates:
            with contextlib.suppress(tazpod.WrongPassphrase):
                self.world.unlock(passphrase)
                return passphrase
        raise AssertionError("no passphrase opens the sealed vault")


def kill_by_time(root: Path, word: str, moments: Sequence[float], number: int) -> tuple[int, int]:
    """A word, killed once at each of the moments (parts of its duration): (killed, finished)."""
    with sweeping(root, word) as sweep:
        work = sweep.prepare()
        start = time.monotonic()
        code = Child(work).wait()
        duration = time.monotonic() - start
        assert code == 0
        sweep.settle(code)
        for moment in moments:
            work = sweep.prepare()
            child = Child(work)
            sweep.child = child.pid
            time.sleep(moment * duration)
            # Every other time with the programs that it runs: as a power cut does, or Ctrl-C on a terminal.
            child.signal(number, group=number != signal.SIGTERM and sweep.turns % 2 == 0)
            code = child.wait()
            sweep.check_cleaned_up(number)
            try:
                sweep.settle(code)
            except BaseException as error:
                raise AssertionError(
                    f"{word} after signal {number} at {moment} of {duration}: {error}"
                ) from error
        return sweep.killed, sweep.finished - 1


def kill_by_step(root: Path, word: str, part: int, parts: int, number: int) -> tuple[int, int]:
    """A word, killed before each of its steps that is this part's: (killed, finished)."""
    with sweeping(root, word) as sweep:
        count = count_steps(sweep.prepare())
        sweep.settle(0)
        for step in range(part, count, parts):
            # What the one killed before it had done already takes no step again: then it ends, once.
            if kill_before_step(sweep, step, number) == 0:
                sweep.finished -= 1
                kill_before_step(sweep, step, number)
        return sweep.killed, sweep.finished - 1


def kill_before_step(sweep: Sweep, step: int, number: int) -> int:
    """The word, killed before one step; its status, after all was looked at."""
    work = sweep.prepare()
    ready, tell = os.pipe()

    def stepwise() -> None:
        die_at_step(step, tell, number)
        work()

    child = Child(stepwise)
    sweep.child = child.pid
    code = child.wait()
    os.close(ready)
    os.close(tell)
    sweep.check_cleaned_up(number)
    try:
        sweep.settle(code)
    except BaseException as error:
        raise AssertionError(f"{sweep.word} killed at step {step}: {error}") from error
    return code


@contextlib.contextmanager
def sweeping(root: Path, word: str) -> Iterator[Sweep]:
    world = World(root, binds=BINDS)
    tempfile.tempdir = str(world.temp)
    try:
        sweep = Sweep(world, word)
        sweep.begin()
        yield sweep
        assert eventually(lambda: not sweep.outlived())
        tazpod.lock(world.vault)
        assert world.mounted() == [], f"still mounted: {world.mounted()}"
    finally:
        tempfile.tempdir = None
        world.close()


def in_workers(function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> list[Any]:
    """The calls, spread over as many fresh processes as there are processors."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        return [job.result() for job in [pool.submit(function, *call) for call in calls]]


# ---- fixtures, for the modules that import them --------------------------------------------------------
@pytest.fixture
def worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., World]]:
    """Makes worlds, and unmounts all of them at the end."""
    made: list[World] = []

    def make(name: str = "world", **options: object) -> World:
        made.append(World(tmp_path / name, **options))
        monkeypatch.setattr(tempfile, "tempdir", str(made[-1].temp))
        return made[-1]

    try:
        yield make
    finally:
        for world in made:
            world.close()


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Snapshot]:
    """A small sealed vault, and what is in it."""
    world = World(tmp_path_factory.mktemp("template") / "world")
    try:
        world.unlock()
        world.put("secret", CANARY)
        world.put("folder/other", CANARY * 100)
        tazpod.save(world.vault)
        return world.vault.sealed.read_bytes(), world.tree()
    finally:
        world.close()
