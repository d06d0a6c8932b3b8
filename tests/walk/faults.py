"""What goes wrong while a step runs: one thing at a moment that is drawn."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from engine import Engine, sh
from enginelib import Place

# A process of ours is killed on either side: what its command line looks like.
KILLS = {
    "kill guard": r"__internal_sync_daemon",
    "kill gpg": r"^(\S*/)?gpg ",
    "kill tar": r"^(\S*/)?tar ",
    "kill sudo": r"^(\S*/)?sudo ",
    "kill mount": r"^(\S*/)?u?mount ",
    "kill pod python": r"^python3 -Esc",
    "kill docker client": r"^(\S*/)?(docker|podman) ",
    "kill host side": r"/tool( |$)",
    "kill bash": r"^(\S*/)?bash",
}
OTHERS = (
    *("container kill", "container restart", "container pause", "container stop"),
    *("engine kill", "engine crash", "engine stall", "disk full", "disk read-only"),
)
HARMLESS = ("engine stall", "disk read-only")  # to whoever has a session
KINDS = (*KILLS, *OTHERS)
WORKSPACE = "/workspace"  # the project's folder in the container
STORAGE_KILLS = {"kill aws": r"/aws s3api"}
VICTIM_LIMIT = 3.0  # seconds in which a process to kill may come


def victims(place: Place, engine: Engine, first: int, pattern: str) -> list[int]:
    """The processes of a place, on either side, that a pattern fits; not the container's first."""
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink(f"/proc/{first}/ns/pid")
    ours = str(place.tool.parent), str(engine.box), place.name
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in (first, 1, os.getpid()):
            continue
        with contextlib.suppress(OSError):
            text = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            outside = any(word in text for word in ours)
            if (outside or os.readlink(entry / "ns/pid") == space) and re.search(pattern, text):
                found.append(int(entry.name))
    return found


def cover(folder: str, *inside: str) -> None:
    """Mount a folder over itself, read-only: of what somebody has open for writing, a remount is refused.

    It is as well of the new mount, if somebody was quick enough to open a file there.
    """
    for _ in range(20):
        sh(*inside, "mount", "--bind", folder, folder)
        with contextlib.suppress(RuntimeError):
            sh(*inside, "mount", "-o", "remount,ro,bind", folder)
            return
        sh(*inside, "umount", "-l", folder)
    raise RuntimeError(f"{folder} is always busy")


class Disturbance:
    """One fault, drawn, and whether it has struck."""

    def __init__(self, draw: random.Random, kind: str, place: Place, engine: Engine) -> None:
        self.place = place
        self.engine = engine
        self.kind = kind
        self.delay = draw.random() * draw.choice([0.1, 0.6, 1.5])
        self.struck = False
        self.over = threading.Event()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """While a step runs, let it happen."""
        thread = threading.Thread(target=self.strike)
        thread.start()
        try:
            yield
        finally:
            self.over.set()
            thread.join()
            if self.kind == "disk read-only":
                self.uncover()  # in a container that was just being made as well

    def strike(self) -> None:
        self.over.wait(self.delay)
        kills = {**KILLS, **STORAGE_KILLS}
        if self.kind in kills:
            self.kill_one(kills[self.kind])
            return
        self.struck = True
        how = self.kind.split()[1]
        if self.kind == "engine stall":
            self.engine.send(signal.SIGSTOP)
            time.sleep(2.0)
            self.engine.send(signal.SIGCONT)
        elif self.kind.startswith("engine"):
            self.end_engine(with_containers=how == "crash")
        elif self.kind == "disk full":
            sh("dd", "if=/dev/zero", f"of={self.place.folder}/fill", "bs=1M", check=False)
            time.sleep(1.0)
            (self.place.folder / "fill").unlink(missing_ok=True)
        elif self.kind == "disk read-only":
            self.make_read_only()
        elif how == "pause":
            sh(self.engine.program, "pause", self.place.name, check=False)
            time.sleep(0.5)
            self.engine.unpause(self.place.name)
        else:
            options = [] if how == "kill" else ["-t", "0"]
            sh(self.engine.program, how, *options, self.place.name, check=False)

    def first(self) -> int:
        """The container's first process; 0 for none."""
        return int(self.engine.state(self.place.name).get("Pid", 0))

    def end_engine(self, with_containers: bool) -> None:
        """Kill the engine, and start it again; what it holds dies with it, or when the new one finds it."""
        first = self.first()
        self.engine.kill()
        if with_containers and first:
            with contextlib.suppress(OSError):
                os.kill(first, signal.SIGKILL)
        self.engine.start()

    def make_read_only(self) -> None:
        """The project's disk is read-only for a moment, on both sides."""
        cover(str(self.place.folder))
        try:
            with contextlib.suppress(RuntimeError):  # there may be no container
                cover(WORKSPACE, *self.inside())
            time.sleep(1.5)
        finally:
            sh("umount", "-l", str(self.place.folder))
            self.uncover()

    def uncover(self) -> None:
        """The disk can be written to again in the container, whenever that was started."""
        with contextlib.suppress(OSError, RuntimeError):
            table = Path(f"/proc/{self.first()}/mountinfo").read_text()
            for _ in [line for line in table.splitlines() if line.split()[4] == WORKSPACE][1:]:
                sh(*self.inside(), "umount", "-l", WORKSPACE)
            sh(*self.inside(), "mount", "-o", "remount,rw,bind", WORKSPACE)

    def inside(self) -> tuple[str, ...]:
        """How a program comes to see the container's mounts."""
        return "nsenter", "-m", "-p", "-t", str(self.first())  # mount(8) reads /proc/self

    def kill_one(self, pattern: str) -> None:
        """Kill the first that comes."""
        first = 0
        deadline = time.monotonic() + VICTIM_LIMIT
        while not self.over.is_set() and time.monotonic() < deadline:
            if not Path(f"/proc/{first}").exists():
                first = self.first()
            for pid in victims(self.place, self.engine, first, pattern)[:1]:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
                    self.struck = True
                return
            time.sleep(0.005)
