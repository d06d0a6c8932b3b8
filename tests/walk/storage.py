"""The storage of a walk: a real one (SeaweedFS), the gate before it, and what must be so in it.

The machines know the gate alone; what the store holds is read past it.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

import s3inside
from model import Tree, Violation
from s3lib import BUCKET, IDENTITIES, store_argv, weed
from steps import opened_by_gpg, tree_of

if TYPE_CHECKING:
    from machines import Machine

LATEST = "vault.tar.aes"
RETENTION = 8
# The image's own aws takes more than a second to start: this one has it done by a process that has started.
QUICK_AWS = """#!/usr/bin/python3 -SI
import array, json, os, socket, sys

ADDRESS = "\\0tazpod-walk-aws"
server = socket.socket(socket.AF_UNIX)
try:
    server.connect(ADDRESS)
except OSError:
    if os.fork() == 0:
        os.setsid(), os.chdir("/")
        for fd in range(3):
            os.dup2(os.open(os.devnull, os.O_RDWR), fd)
        os.closerange(3, 256)
        code = f"import sys; sys.path.append('/quick'); import s3inside; s3inside.serve_aws({ADDRESS!r})"
        os.execve("/usr/bin/python3", ["python3", "-c", code], {"HOME": "/", "PATH": "/usr/bin:/bin"})
    os.execv("/usr/bin/aws", ["aws", *sys.argv[1:]])
fds = [fd for fd in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{fd}")]
fds.remove(server.fileno())
words = {"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(), "fds": fds}
data = json.dumps(words).encode()
rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
server.sendmsg([len(data).to_bytes(4, "big")], rights)
server.sendall(data)
answer = server.recv(4)
sys.exit(int.from_bytes(answer, "big") if len(answer) == 4 else 255)
"""


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def age(name: str) -> tuple[str, int]:
    """What sorts the names of versions, the oldest first, also those of one second."""
    _, stamp, number = (*re.split("[-.]", name)[:3], "")[:3]
    return stamp, int(number) if number.isdigit() else 1


class Kept(NamedTuple):
    """What the store holds at one moment: the digest of the newest vault, and of the versions by name."""

    newest: str = ""
    history: dict[str, str] = {}  # noqa: RUF012

    def all(self) -> set[str]:
        return {self.newest, *self.history.values()} - {""}

    def chain(self) -> list[str]:
        """All that was the newest one after another, as far as it is kept."""
        line = [*(self.history[name] for name in sorted(self.history, key=age)), self.newest]
        return [one for one, before in zip(line, ["", *line]) if one not in ("", before)]


class Cloud:
    """The store and the gate before it, on ports and in a folder of their own."""

    def __init__(self, box: Path, address: str) -> None:
        self.box, self.address = box, address
        self.first = random.SystemRandom().randrange(11000, 22000, 10)
        self.store: subprocess.Popen[bytes] | None = None
        self.gate: subprocess.Popen[bytes] | None = None
        (box / "quick").mkdir(parents=True)
        (box / "quick/aws").write_text(QUICK_AWS)
        (box / "quick/aws").chmod(0o755)
        shutil.copy(s3inside.__file__, box / "quick")
        users = [user for user in IDENTITIES["identities"] if user["name"] != "anonymous"]
        anybody = {"name": "anonymous", "actions": ["Admin", "Read", "Write", "List"]}
        (box / "s3.json").write_text(json.dumps({"identities": [*users, anybody]}))
        try:
            self.start()
            gate = f"{address!r}, {self.first + 9}"
            serve = f"import s3inside as s; s.Gate.store = {address!r}, {self.first}; s.serve_gate({gate})"
            self.gate = self.serve(sys.executable, "-c", serve)
            while not self.answers(self.rules):
                time.sleep(0.1)
        except BaseException:
            self.close()
            raise

    def serve(self, *argv: str) -> subprocess.Popen[bytes]:
        with open(self.box / "log", "ab") as log:
            return subprocess.Popen(argv, cwd=self.box / "quick", stdout=log, stderr=log)

    def start(self) -> None:
        """Start the store, and wait until it takes something."""
        self.store = self.serve(
            *store_argv(weed(), f"{self.box}/data", f"{self.box}/s3.json", self.address, self.first),
            *(f"-{name}.localSocket={self.box}/{name}.sock" for name in ("s3", "filer")),
        )
        deadline = time.monotonic() + 60
        while not self.answers(
            lambda: [self.ask("PUT"), self.ask("PUT", "/probe"), self.ask("GET", "/probe")]
        ):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the store does not start: {self.box}/log")
            time.sleep(0.1)

    def kill(self) -> None:
        if self.store:
            self.store.kill()
            self.store.wait()

    def revive(self) -> None:
        """Start it again, where it was killed."""
        if self.store is None or self.store.poll() is not None:
            self.start()

    def close(self) -> None:
        self.kill()
        if self.gate:
            self.gate.kill()
            self.gate.wait()
        for port in range(self.first, self.first + 5):
            for path in Path("/tmp").glob(f"seaweedfs-*-grpc-{port + 10000}.sock"):
                path.unlink()

    def answers(self, ask: Callable[[], object]) -> bool:
        """Whether there is an answer."""
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            ask()
            return True
        return False

    def rules(self, *rules: dict[str, Any]) -> None:
        """What the gate does from now on; what it has noted is forgotten."""
        s3inside.control("PUT", rules, self.address, self.first + 9)

    def noted(self) -> list[dict[str, Any]]:
        """The requests that came to the gate since its rules were given."""
        return list(s3inside.control("GET", None, self.address, self.first + 9))

    def ask(self, method: str, path: str = "") -> bytes:
        """A request to the store by somebody else, past the gate."""
        connection = http.client.HTTPConnection(self.address, self.first, timeout=30)
        connection.request(method, f"/{BUCKET}{path}", b"probe" if path else None)
        reply = connection.getresponse()
        data = reply.read()
        if reply.status not in (200, 204, 404, 409):
            raise OSError(f"{method} {path}: {reply.status}")
        return data if reply.status == 200 else b""


class Shelf:
    """The place of one walk in the store, with what was seen there, and whose passphrases open it."""

    def __init__(self, cloud: Cloud, name: str) -> None:
        self.cloud, self.prefix = cloud, name
        self.digests: dict[tuple[str, str], str] = {}  # by key and etag
        self.content: dict[str, bytes] = {}
        self.opens: dict[str, tuple[str, Tree]] = {}
        self.passphrases: list[str] = []
        self.kept = Kept()

    def look(self) -> Kept:
        """What is there, at one moment."""
        while True:
            self.cloud.revive()
            with contextlib.suppress(OSError, http.client.HTTPException):  # it is killed just now
                listed = self.listed()
                self.read(item for item in listed.items() if item not in self.digests)
                if self.listed() == listed and self.digests.keys() >= set(listed.items()):
                    break
        found = {Path(key).name: self.digests[key, etag] for key, etag in listed.items()}
        return Kept(found.pop(LATEST, ""), found)

    def read(self, unknown: Iterable[tuple[str, str]]) -> None:
        """Read objects that were not seen before."""
        for key, etag in unknown:
            data = self.cloud.ask("GET", f"/{key}")
            if hashlib.md5(data).hexdigest() == etag:
                self.digests[key, etag] = digest_of(data)
                self.content[digest_of(data)] = data

    def listed(self) -> dict[str, str]:
        """The etag of each object, by its key."""
        text = self.cloud.ask("GET", f"?list-type=2&max-keys=1000&prefix={self.prefix}/").decode()
        found = re.findall(r"<Contents>.*?<Key>(.*?)</Key>.*?<ETag>(.*?)</ETag>", text, re.DOTALL)
        return {key: re.sub('&#34;|&quot;|"', "", etag) for key, etag in found}

    def opened(self, data: bytes) -> tuple[str, Tree]:
        """The passphrase of a sealed file, one that was in force somewhere, and what is in it."""
        digest = digest_of(data)
        for passphrase in reversed(self.passphrases):
            if digest in self.opens:
                break
            archive = opened_by_gpg(data, passphrase)
            if archive is not None:
                self.opens[digest] = passphrase, tree_of(archive)
        if digest not in self.opens:
            raise Violation(f"a sealed file of {len(data)} bytes does not open with gpg")
        return self.opens[digest]

    def judge(self, machines: Sequence[Machine]) -> None:
        """What must be so in the store after each step."""
        before, now = self.kept, self.look()
        for machine in machines:
            machine.look_at_files()
        for digest in now.all():
            if not any(digest in machine.had for machine in machines):
                raise Violation(f"in the store is {digest[:8]}, which no machine had")
            self.opened(self.content[digest])
        oldest = min(map(age, now.history), default=("", 0))
        for name, digest in {**before.history, LATEST: before.newest}.items():
            pruned = len(now.history) >= RETENTION and name != LATEST and age(name) < oldest
            if digest and digest not in now.all() and not pruned:
                raise Violation(f"{name}, {digest[:8]}, is lost from the store")
        chain, seen = now.chain(), before.chain()
        for old, new in zip(chain, chain[1:]):
            known = (old, new) in zip(seen, seen[1:])
            if not known and not any(machine.may_replace(old, new) for machine in machines):
                raise Violation(f"{new[:8]} has replaced {old[:8]}, which its machine had not seen")
        self.kept = now
