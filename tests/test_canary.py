"""Random tokens as a secret and as passphrases, looked for everywhere while every word runs."""

from __future__ import annotations

import base64
import os
import secrets
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import enginelib
import pytest
from enginelib import IMAGE, SECRETS, Place, docker, eventually

import tazpod

place = enginelib.place
pytestmark = pytest.mark.engine

INSIDE = ("/home", "/workspace", "/tmp", "/var/tmp", "/var/log", "/run", "/dev/shm", "/etc", "/opt", "/root")


def shapes(token: str) -> list[bytes]:
    """A token as it is, and in the two disguises that would hide it from a plain search."""
    raw = token.encode()
    return [raw, raw.hex().encode(), base64.b64encode(raw)]


class Sampler(threading.Thread):
    """Reads the argv and the environment of every process of the machine, without a pause."""

    def __init__(self, tokens: list[str]) -> None:
        super().__init__(daemon=True)
        self.shapes = {shape: token for token in tokens for shape in shapes(token)}
        self.hits: dict[str, bytes] = {}
        self.sweeps = self.reads = 0
        self.done, self.resting = threading.Event(), threading.Event()

    def run(self) -> None:
        while not self.done.is_set():
            if self.resting.is_set():
                self.done.wait(0.02)
                continue
            for pid in os.listdir("/proc"):
                if pid.isdigit():
                    self.look(pid)
            self.sweeps += 1

    def look(self, pid: str) -> None:
        for name in ("cmdline", "environ"):
            try:
                with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
                    data = file.read()
            except OSError:  # it has ended
                continue
            self.reads += 1
            for shape, token in self.shapes.items():
                if shape in data:
                    self.hits[token] = data


class Search:
    """Looks for the tokens in all that outlives a process."""

    def __init__(self, place: Place, tokens: list[str], sampler: Sampler) -> None:
        self.place, self.sampler, self.start, self.scans = place, sampler, time.time(), 0
        self.shapes = [shape for token in tokens for shape in shapes(token)]

    def has_token(self, data: bytes) -> bool:
        return any(shape in data for shape in self.shapes)

    def in_container(self) -> set[str]:
        """The files that somebody in the container finds them in."""
        # The tokens go in by standard input: grep has none in its argv.
        command = ("exec", "-i", "-u", "0", self.place.name, "grep", "-raslF", "-f", "-", *INSIDE)
        return set(docker(*command, data=b"\n".join(self.shapes), check=False).splitlines())

    def in_folder(self, folder: Path, since: float = 0) -> Iterator[str]:
        for top, _, names in os.walk(folder):
            for name in names:
                path = os.path.join(top, name)
                try:
                    info = os.lstat(path)
                    if not os.path.isfile(path) or info.st_mtime < since or info.st_size > 1 << 26:
                        continue
                    with open(path, "rb") as file:
                        if self.has_token(file.read()):
                            yield path
                except OSError:  # somebody else's, and gone
                    continue

    def on_host(self) -> list[str]:
        """The files on this side: the project, its home, the temporary folders, the layer."""
        found = [*self.in_folder(self.place.box)]
        for folder in {tempfile.gettempdir(), "/var/tmp", "/dev/shm"}:
            found += self.in_folder(Path(folder), self.start - 1)
        layer = docker("inspect", "-f", "{{.GraphDriver.Data.UpperDir}}", self.place.name, check=False).strip()
        if os.path.isdir(layer):
            found += self.in_folder(Path(layer))
        return found

    def in_docker(self) -> list[str]:
        """What the engine tells about the container, and has told."""
        name = self.place.name
        since = f"{int(time.time() - self.start) + 60}s"
        calls = (
            ("inspect", name),
            ("logs", name),
            ("history", "--no-trunc", IMAGE),
            ("events", "--since", since, "--until", "0s"),
        )
        return [" ".join(words) for words in calls if self.has_token(docker(*words, check=False).encode())]

    def in_export(self) -> bool:
        """Whether one is in the file system of the container, read as a whole."""
        process = subprocess.Popen(["docker", "export", self.place.name], stdout=subprocess.PIPE)
        assert process.stdout
        tail, size = b"", 0
        while data := process.stdout.read(1 << 20):
            if self.has_token(tail + data):
                process.kill()
                process.wait()
                return True
            tail, size = data[-200:], size + len(data)
        assert process.wait() == 0
        assert size > 1 << 20, "docker export gave nothing"
        return False

    def expect(self, step: str, *in_ram: str) -> None:
        """Search everywhere: only these files of the tmpfs may have one."""
        self.scans += 1
        self.sampler.resting.set()  # none of the words runs now
        assert self.in_container() == {f"{SECRETS}/{name}" for name in in_ram}, step
        assert self.on_host() == [], step
        assert self.in_docker() == [], step
        self.sampler.resting.clear()


OPEN = ("token", tazpod.PASSPHRASE_FILE)


def test_no_token_is_found_outside_the_tmpfs_and_none_after_the_lock(
    place: Place, record_property: pytest.RecordProperty
) -> None:
    secret, first, second, wrong, control = (secrets.token_hex(16) for _ in range(5))
    tokens = [secret, first, second, wrong]
    place.init("features.debug: true")
    said: list[str] = []
    place.ok("up")
    sampler = Sampler([*tokens, control])
    search = Search(place, tokens, sampler)
    sampler.start()
    try:
        walk(place, search, said, secret, first, second, wrong)
        # Whether the sampler sees what it should, in the container as well.
        docker("exec", "-d", "-e", f"CONTROL={control}", place.name, "sleep", "300")
        eventually(lambda: control in sampler.hits, "the sampler sees an environment in the container")
        sampler.resting.set()
        assert not search.in_export()
        sampler.resting.clear()
        said.append(place.ok("down"))
        search.scans += 1
        assert search.on_host() == []
        assert search.in_docker() == []
    finally:
        sampler.done.set()
        sampler.join()
    record_property("scans", search.scans)
    record_property("samples", sampler.reads)
    print(f"{search.scans} scans; {sampler.sweeps} sweeps of /proc, {sampler.reads} files read")
    assert set(sampler.hits) == {control}
    assert sampler.sweeps > 100
    text = "\n".join(said)
    assert "+ docker exec" in text  # it did talk
    assert "gpg --batch" in text
    assert not search.has_token(text.encode())


def walk(
    place: Place, search: Search, said: list[str], secret: str, first: str, second: str, wrong: str
) -> None:
    """Every word of the vault, on the terminal and off it."""

    def word(*words: str, passphrase: str | None = None, status: int = 0) -> str:
        done = place.run(*words, passphrase=passphrase)
        said.append(done.stdout + done.stderr)
        assert done.returncode == status, said[-1]
        return said[-1]

    person = place.terminal()
    person.answers(
        (r"Start a new, empty one\? \[y/N\] ", "y"), ("New passphrase: ", first), ("The same again: ", first)
    )
    person.shell()
    docker("exec", "-i", place.name, "sh", "-c", f"cat > {SECRETS}/token", data=secret.encode())
    search.expect("entered, a new vault", *OPEN)
    person.sh("tazpod save")
    search.expect("saved in the shell", *OPEN)
    assert person.leaves() == 0
    said.append(person.seen)
    search.expect("left")

    word("unlock", passphrase=wrong, status=1)
    search.expect("a wrong passphrase")
    word("unlock", passphrase=first)
    search.expect("unlocked by a descriptor", *OPEN)
    word("save", "--force")
    search.expect("saved", *OPEN)
    word("passwd", passphrase=second)
    search.expect("another passphrase", *OPEN)
    word("lock")
    search.expect("locked")
    word("verify", passphrase=second)
    word("verify", passphrase=wrong, status=1)
    version = word("history").splitlines()[-2].split()[0]
    word("verify", version, passphrase=first)
    search.expect("verified")
    word("restore", version, passphrase=first)
    search.expect("restored")

    person = place.terminal("unlock")
    person.answers(("Passphrase: ", wrong), ("Passphrase: ", second))
    person.sees("Passphrase: ")
    person.ctrl_c()
    assert person.ends() == 130
    said.append(person.seen)
    search.expect("interrupted")

    person = place.terminal()
    person.answers((r"Unlock it\? \[y/N\] ", "y"), ("Passphrase: ", first))
    person.shell()
    person.kill(signal.SIGKILL)
    eventually(place.is_shut, "the guard locks")
    said.append(person.seen)
    search.expect("killed")

    person = place.terminal("unlock")
    person.answers(("Passphrase: ", first))
    assert person.ends() == 0
    said.append(person.seen)
    search.expect("unlocked on a terminal", *OPEN)
    word("lock", "--discard")
    search.expect("discarded")
    word("unlock", passphrase=first)
    docker("kill", place.name)
    word("up")
    search.expect("killed with an open vault, and started again")
    word("unlock", passphrase=first)
