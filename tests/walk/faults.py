"""What goes wrong while a step runs: one thing at a moment that is drawn."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
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
    "kill docker client": r"^(\S*/)?docker ",
    "kill host side": r"/tool( |$)",
    "kill bash": r"^(\S*/)?bash",
}
OTHERS = (
    *("container kill", "container restart", "container pause", "container stop"),
    *("engine kill", "engine crash", "disk full"),
)
KINDS = (*KILLS, *OTHERS)
VICTIM_LIMIT = 3.0  # seconds in which a process to kill may come


def victims(place: Place, pattern: str) -> list[int]:
    """The processes of a place, on either side, that a pattern fits; not the container's first."""
    first = sh("docker", "inspect", "-f", "{{.State.Pid}}", place.name, check=False).strip()
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink(f"/proc/{first}/ns/pid")
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or entry.name in (first, "1", str(os.getpid())):
            continue
        with contextlib.suppress(OSError):
            text = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            outside = str(place.tool.parent) in text or place.name in text
            if (outside or os.readlink(entry / "ns/pid") == space) and re.search(pattern, text):
                found.append(int(entry.name))
    return found


class Disturbance:
    """One fault, drawn, and whether it has struck."""

    def __init__(self, draw: random.Random, place: Place, engine: Engine, kinds: Sequence[str]) -> None:
        self.place = place
        self.engine = engine
        self.kind = draw.choice(kinds)
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

    def strike(self) -> None:
        self.over.wait(self.delay)
        if self.kind in KILLS:
            self.kill_one(KILLS[self.kind])
            return
        self.struck = True
        how = self.kind.split()[1]
        if self.kind.startswith("engine"):
            self.end_engine(with_containers=how == "crash")
        elif self.kind == "disk full":
            sh("dd", "if=/dev/zero", f"of={self.place.folder}/fill", "bs=1M", check=False)
            time.sleep(1.0)
            (self.place.folder / "fill").unlink(missing_ok=True)
        elif how == "pause":
            sh("docker", "pause", self.place.name, check=False)
            time.sleep(0.5)
            self.engine.unpause(self.place.name)
        else:
            options = [] if how == "kill" else ["-t", "0"]
            sh("docker", how, *options, self.place.name, check=False)

    def end_engine(self, with_containers: bool) -> None:
        """Kill the engine, and start it again; what it holds dies with it, or when the new one finds it."""
        first = sh("docker", "inspect", "-f", "{{.State.Pid}}", self.place.name, check=False).strip()
        self.engine.kill()
        if with_containers and int(first or 0):
            with contextlib.suppress(OSError):
                os.kill(int(first), signal.SIGKILL)
        self.engine.start()

    def kill_one(self, pattern: str) -> None:
        """Kill the first that comes."""
        deadline = time.monotonic() + VICTIM_LIMIT
        while not self.over.is_set() and time.monotonic() < deadline:
            for pid in victims(self.place, pattern)[:1]:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
                    self.struck = True
                return
            time.sleep(0.005)
