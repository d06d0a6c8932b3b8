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
from collections.abc import Callable, Iterator
from pathlib import Path

import enginelib
import pytest
from enginelib import AT_ENTRY, ENGINE, IMAGE, SECRETS, Place, docker, eventually

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
        layer = docker(
            "inspect", "-f", "{{.GraphDriver.Data.UpperDir}}", self.place.name, check=False
        ).strip()
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
        process = subprocess.Popen([ENGINE, "export", self.place.name], stdout=subprocess.PIPE)
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
        assert self.in_container() == set(in_ram), step
        assert self.on_host() == [], step
        assert self.in_docker() == [], step
        self.sampler.resting.clear()


TOKEN = f"{SECRETS}/token"
OPEN = (TOKEN, f"{SECRETS}/{tazpod.PASSPHRASE_FILE}")


class Walk:
    """Every word of the vault, on the terminal and off it, with a search after each."""

    def __init__(self, place: Place, search: Search, tokens: list[str]) -> None:
        self.place, self.expect, self.said = place, search.expect, [place.ok("up")]
        self.secret, self.first, self.second, self.wrong = tokens

    def word(self, *words: str, passphrase: str | None = None, status: int = 0) -> str:
        done = self.place.run(*words, passphrase=passphrase)
        self.said.append(done.stdout + done.stderr)
        assert done.returncode == status, self.said[-1]
        return self.said[-1]

    def a_first_session(self) -> None:
        person = self.place.terminal()
        person.answers(
            (r"Start a new, empty one\? \[y/N\] ", "y"),
            ("New passphrase: ", self.first),
            ("The same again: ", self.first),
        )
        person.shell()
        docker("exec", "-i", self.place.name, "sh", "-c", f"cat > {TOKEN}", data=self.secret.encode())
        self.expect("entered, a new vault", *OPEN)
        person.sh("tazpod save")
        self.expect("saved in the shell", *OPEN)
        assert person.leaves() == 0
        self.said.append(person.seen)
        self.expect("left")

    def words(self) -> None:
        self.word("unlock", passphrase=self.wrong, status=1)
        self.expect("a wrong passphrase")
        self.word("unlock", passphrase=self.first)
        self.expect("unlocked by a descriptor", *OPEN)
        self.word("save", "--force")
        self.expect("saved", *OPEN)
        self.word("passwd", passphrase=self.second)
        self.expect("another passphrase", *OPEN)
        self.word("lock")
        self.expect("locked")
        self.word("verify", passphrase=self.second)
        self.word("verify", passphrase=self.wrong, status=1)
        version = next(line.split()[0] for line in self.word("history").splitlines() if "vault-" in line)
        self.word("verify", version, passphrase=self.first)
        self.expect("verified")
        self.word("restore", version, passphrase=self.first)
        self.expect("restored")

    def interrupted(self) -> None:
        person = self.place.terminal("unlock")
        person.answers(("Passphrase: ", self.wrong), ("Passphrase: ", self.second))
        person.sees("Passphrase: ")
        person.ctrl_c()
        assert person.ends() == 130
        self.said.append(person.seen)
        self.expect("interrupted")

        person = self.place.terminal()
        person.answers((AT_ENTRY, self.first))
        person.shell()
        person.kill(signal.SIGKILL)
        eventually(self.place.is_shut, "the guard locks")
        self.said.append(person.seen)
        self.expect("killed")

    def without_a_save(self) -> None:
        person = self.place.terminal("unlock")
        person.answers(("Passphrase: ", self.first))
        assert person.ends() == 0
        self.said.append(person.seen)
        self.expect("unlocked on a terminal", *OPEN)
        self.word("lock", "--discard")
        self.expect("discarded")
        self.word("unlock", passphrase=self.first)
        docker("kill", self.place.name)
        self.word("up")
        self.expect("killed with an open vault, and started again")
        self.word("unlock", passphrase=self.first)


def test_no_token_is_found_outside_the_tmpfs_and_none_after_the_lock(
    place: Place, record_property: Callable[[str, object], None]
) -> None:
    tokens, control = [secrets.token_hex(16) for _ in range(4)], secrets.token_hex(16)
    place.init("features.debug: true")
    sampler = Sampler([*tokens, control])
    search = Search(place, tokens, sampler)
    walk = Walk(place, search, tokens)
    sampler.start()
    try:
        for part in (walk.a_first_session, walk.words, walk.interrupted, walk.without_a_save):
            part()
        # Whether the sampler sees what it should, in the container as well.
        docker("exec", "-d", "-e", f"CONTROL={control}", place.name, "sleep", "300")
        eventually(lambda: control in sampler.hits, "the sampler sees an environment in the container")
        sampler.resting.set()
        assert not search.in_export()
        sampler.resting.clear()
        walk.word("down")
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
    text = "\n".join(walk.said)
    assert f"+ {ENGINE} exec" in text  # it did talk
    assert "gpg --batch" in text
    assert not search.has_token(text.encode())
