"""A random walk over the real command line and an engine of its own, with faults at any moment.

    python tests/walk [--engine podman] [--seed N] [--steps N] [--seconds S] [--faults [SHARE]]
                      [--kinds NAME,..] [--inhabited] [--storage] [--only N,N,..] [--shorten]

Each step is drawn from a seed; with --faults some are disturbed while they run: a process of ours is killed
on either side, the container is killed, restarted, paused or stopped by somebody else, the engine is killed
and started again, or stalls, the disk is full, or read-only; with --inhabited, an open vault with a session
in it is seen to before.  The engine is a Docker, or a Podman of root's; where that has no process to kill, a
conmon takes its place, of which each container and each session has one.
After each step a model that knows nothing of the tool's insides says
what the vault must hold, stock gpg and tar open the sealed file, and the kernel says what is mounted:

- the sealed file is a whole version that was once in the open vault, never older than the last one that
  was said to be saved;
- what is locked in good order was sealed first, and nothing of it can be read any more;
- what status says of the vault is so, and nothing is called well that is not;
- after the last session has died, all is saved and locked within 20 seconds;
- after a fault a session answers or ends, and none ends by a disk that is read-only or an engine that stalls;
- no temporary file outlives a save, and no word ends in a traceback or fails for no reason.

With --storage two machines share one, which fails in ways of its own: see machines.py.  Then besides:

- what was said to be pushed is in the store, whole, and nothing is lost from it or replaced unseen;
- what was said to be pulled is here, and in sync is what is the same here and there;
- saves and locks go on while the storage fails.

A walk that finds something prints its seed and its steps and ends with status 1.  --only with the numbers
that it prints plays just those steps again, and --shorten tries to find fewer of them that do.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

sys.path[:0] = [str(Path(__file__).resolve().parents[level]) for level in (1, 2)]
os.environ.setdefault("TAZPOD_ENGINE", "docker")

from engine import ENGINES, Engine  # noqa: E402
from enginelib import IMAGE  # noqa: E402
from faults import KINDS  # noqa: E402
from machines import STORAGE_KINDS, Pair  # noqa: E402
from model import Violation  # noqa: E402
from steps import Faults, Walk  # noqa: E402
from storage import Cloud  # noqa: E402

ONE_PROJECT = 300  # steps; then the next seed begins with another
TRIES = 12  # at fewer steps


class Played(NamedTuple):
    """How a walk ended: what it found, the numbers of its steps, and what it did."""

    found: str
    numbers: list[int]
    log: list[str]
    counts: Counter[str]


class Player:
    """Plays walks in a box, each in a folder of its own."""

    def __init__(self, box: Path, engine: type[Engine], faults: Faults, storage: bool) -> None:
        self.box = box
        self.faults = faults
        (box / "engine").mkdir()
        box.chmod(0o755)
        self.engine = engine(box / "engine", IMAGE)
        self.cloud: Cloud | None = None
        if storage:
            try:
                self.cloud = Cloud(box / "cloud", self.engine.address)
            except BaseException:
                self.engine.close()
                raise

    def play(self, seed: int, steps: int, deadline: float, only: set[int] | None = None) -> Played:
        """Take the steps of a seed, until something is found."""
        folder = Path(tempfile.mkdtemp(prefix=f"{seed}-", dir=self.box))
        folder.chmod(0o755)
        walk: Walk | Pair
        if self.cloud:
            walk = Pair(seed, folder, self.engine, self.faults, self.cloud)
        else:
            walk = Walk(seed, folder, self.engine, self.faults)
        found = ""
        try:
            while walk.number < steps and time.monotonic() < deadline:
                walk.step(only)
        except Violation as violation:
            found = str(violation)
        except BaseException:
            print("\n".join(walk.log[-10:]))
            raise
        finally:
            walk.close()
        return Played(found, [int(line.split()[0]) for line in walk.log], walk.log, walk.counts)

    def close(self) -> None:
        if self.cloud:
            self.cloud.close()
        self.engine.close()

    def shorten(self, seed: int, numbers: list[int]) -> list[int]:
        """Fewer steps that find something as well: pieces are left out, ever smaller ones."""
        size = len(numbers) // 2
        tries = 0
        while size and tries < TRIES:
            for start in range(0, len(numbers) - size, size):
                fewer = numbers[:start] + numbers[start + size :]
                tries += 1
                again = self.play(seed, fewer[-1], time.monotonic() + 3600, set(fewer))
                if again.found:
                    print(f"walk: {len(again.numbers)} steps do as well: {again.found}")
                    numbers = again.numbers
                    break
            else:
                size //= 2
        return numbers


def report(seed: int, played: Played) -> None:
    """What was found, and how to see it again."""
    print("\n".join(played.log[-40:]))
    print(f"walk: seed {seed}, step {played.numbers[-1]}: {played.found}")
    print(f"walk: again: --seed {seed} --only {','.join(map(str, played.numbers))}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="walk", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=ENGINES, default="docker")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--seconds", type=float, default=600, help="after which no step begins")
    parser.add_argument("--faults", type=float, nargs="?", const=0.3, default=0.0, help="their share")
    every = ",".join((*KINDS, *STORAGE_KINDS))
    parser.add_argument("--kinds", default="", help=f"of faults: some of {every}")
    parser.add_argument("--inhabited", action="store_true", help="each fault strikes a session")
    parser.add_argument("--storage", action="store_true", help="two machines that share one")
    parser.add_argument("--only", default="", help="the steps to take, all others left out")
    parser.add_argument("--shorten", action="store_true")
    args = parser.parse_args()
    if args.storage and args.engine != "docker":
        parser.error("--storage is for Docker: it needs the walk's own bridge")
    only = {int(number) for number in args.only.split(",")} if args.only else None
    box = Path(tempfile.mkdtemp(prefix="tazpod-walk-"))
    kinds = args.kinds.split(",") if args.kinds else [*KINDS, *(STORAGE_KINDS if args.storage else ())]
    player = Player(box, ENGINES[args.engine], Faults(args.faults, kinds, args.inhabited), args.storage)
    deadline = time.monotonic() + args.seconds
    total: Counter[str] = Counter()
    seed = args.seed
    try:
        while total["steps"] < args.steps and time.monotonic() < deadline:
            steps = min(ONE_PROJECT, args.steps - total["steps"])
            played = player.play(seed, max(only) if only else steps, deadline, only)
            total += played.counts
            print(f"walk: seed {seed}: {played.counts['steps']} steps; in all {dict(total)}", flush=True)
            if played.found:
                report(seed, played)
                if args.shorten:
                    fewer = player.shorten(seed, played.numbers)
                    print(f"walk: shorter: --seed {seed} --only {','.join(map(str, fewer))}")
                return 1
            if only:
                return 0
            seed += 1
    finally:
        player.close()
        shutil.rmtree(box, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
