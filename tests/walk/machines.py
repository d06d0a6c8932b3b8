"""Two machines that share a storage, what goes wrong with it, and what their words must do."""

from __future__ import annotations

import compileall
import contextlib
import random
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from engine import Engine
from faults import STORAGE_KILLS, Disturbance
from model import Tree, Violation
from s3lib import BUCKET, KEYS, hasten
from steps import PATIENCE, WEIGHTS, Faults, Walk
from storage import LATEST, RETENTION, Cloud, Kept, Shelf, digest_of

# What is drawn besides the steps of a walk without a storage, and how often.
STORAGE_WEIGHTS = {
    "push": 10,
    "pull": 9,
    "pull_force": 4,
    "pull_keep_mine": 6,
    "push_force": 1,
    "remote_look": 3,
    "remote_restore": 2,
    "status": 2,
}
CHANGED = ("push", "write", "exit", "close_terminal", "kill_host_side")
TAKES = ("pull", "pull_force", "pull_keep_mine", "remote_restore")
WHY_NOT_PULLED = ("nothing was overwritten", "the vault is open", "holds no vault", "holds an older version")
ASKS_STORAGE = (*STORAGE_WEIGHTS, *CHANGED)
ANY = "GET|HEAD|PUT|POST|DELETE"
# How it goes wrong, by the rules of the gate; one of each list is drawn.
TROUBLES: dict[str, list[dict[str, Any]]] = {
    "storage stalls": [{"do": "hold", "method": ANY}, {"do": "hold", "method": "PUT"}],
    "storage cuts": [
        {"do": how, "method": ANY} for how in ("reset", "reset in the middle", "lose the answer")
    ],
    "storage refuses": [{"do": "answer", "method": ANY, "status": status} for status in (403, 500)],
    "storage down": [{}],
    "storage keeps nothing": [
        {"do": "answer", "method": "PUT", "status": 200, "headers": {"ETag": f'"{32 * "0"}"'}}
    ],
    "storage serves older": [{"do": "serve another", "method": "GET|HEAD"}],
}
STORAGE_KINDS = (*STORAGE_KILLS, *TROUBLES)


class Trouble(Disturbance):
    """The storage fails; it is well again when the step is over."""

    def __init__(self, draw: random.Random, kind: str, machine: Machine) -> None:
        super().__init__(draw, kind, machine.place, machine.engine)
        self.shelf = machine.shelf
        self.rule = dict(draw.choice(TROUBLES[kind]), times=draw.choice([1, 2, 999]))
        if kind == "storage serves older":
            names = sorted(self.shelf.kept.history) or ["none"]
            key = f"/{self.shelf.prefix}/{LATEST}"
            another = f"/{BUCKET}/{self.shelf.prefix}/history/{draw.choice(names)}"
            self.rule.update(path=key, another=another)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        cloud = self.shelf.cloud
        cloud.rules()
        try:
            with super().at_work():
                yield
        finally:
            noted = cloud.noted()
            down = self.kind == "storage down"
            self.struck = any(note["done"] or (down and note["status"] == 0) for note in noted)
            cloud.revive()
            cloud.rules()

    def strike(self) -> None:
        if self.over.wait(self.delay):
            return
        if self.kind == "storage down":
            self.shelf.cloud.kill()
        else:
            self.shelf.cloud.rules(self.rule)


class Machine(Walk):
    """One of those that share the storage."""

    def __init__(self, seed: int, box: Path, engine: Engine, faults: Faults, shelf: Shelf) -> None:
        self.shelf = shelf
        self.had: dict[str, None] = {}  # the digests of the sealed files that were on this machine
        self.files: dict[tuple[str, int, int], str] = {}
        self.forced: set[str] = set()  # what may replace what was not seen
        self.agreed = ""  # what was last pushed or pulled by a word that succeeded
        self.asked: tuple[object, ...] = ()  # how it stood when status was last asked
        super().__init__(seed, box, engine, faults)
        self.shelf.passphrases += self.passphrases

    def settings(self) -> list[str]:
        cloud = self.shelf.cloud
        return [
            *super().settings(),
            f"aws_sso.endpoint_url: http://{cloud.address}:{cloud.first + 9}",
            f"aws_sso.bucket: {BUCKET}",
            f"aws_sso.prefix: {self.shelf.prefix}",
            f"vault.retention: {RETENTION}",
            "vault.keep: 30",
            f"mounts: ['{cloud.box}/quick:/quick:ro', '{cloud.box}/quick/aws:/usr/local/bin/aws:ro']",
        ]

    def install(self) -> None:
        """With shorter waits; and as one project, though two containers of an engine need two names."""
        hasten(self.place, READ_LIMIT=4.0, EXIT_LIMIT=8.0)
        text = self.place.tool.read_text()
        label = "project=project_label(config),"
        if text.count(label) != 1:
            raise RuntimeError(f"the tool has another {label}")
        self.place.tool.write_text(text.replace(label, "project='walk',"))
        compileall.compile_dir(self.place.tool.parent, quiet=1)
        self.place.env |= KEYS

    # -- what is so, seen from outside

    def read_sealed(self) -> Tree | None:
        if not self.place.sealed.exists():
            return None
        self.shelf.passphrases += [one for one in self.passphrases if one not in self.shelf.passphrases]
        self.sealed_under, tree = self.shelf.opened(self.place.sealed.read_bytes())
        if self.sealed_under not in self.passphrases and self.kind not in TAKES:
            raise Violation("what is sealed opens with a passphrase that is not in force here")
        return tree

    def digest(self) -> str:
        """Of the sealed file; '' where there is none."""
        return digest_of(self.place.sealed.read_bytes()) if self.place.sealed.exists() else ""

    def look_at_files(self) -> list[str]:
        """Learn what is sealed here and what is in the history; what was not seen before."""
        fresh = []
        history = (self.place.vault / "history").glob("vault-*.tar.aes")
        for path in chain([self.place.sealed], history):  # in this order: a save moves the one to the other
            with contextlib.suppress(FileNotFoundError):
                info = path.stat()
                key = (path.name, info.st_ino, info.st_mtime_ns)
                if key not in self.files:
                    self.files[key] = digest_of(path.read_bytes())
                if self.files[key] not in self.had:
                    fresh.append(self.files[key])
                    self.had[self.files[key]] = None
        return fresh

    def may_replace(self, old: str, new: str) -> bool:
        """Whether this machine may have put a sealed file in the place of another."""
        return new in self.had and (old in self.had or new in self.forced)

    def check_status(self) -> None:
        """Ask, unless this machine only stands beside, and nothing is otherwise than when it was asked."""
        state = self.digest(), self.shelf.look().newest, self.running_since(), self.mounted()
        if self.kind != "beside" or state != self.asked:
            super().check_status()
        self.asked = state

    def status(self) -> dict[str, Any]:
        before = self.digest(), self.shelf.look().newest
        told = super().status()
        same = before == (self.digest(), self.shelf.look().newest)
        if told["remote"]["state"] == "in sync" and same and before[0] != before[1]:
            raise Violation(f"status says in sync, here is {before[0][:8]}, there {before[1][:8]}")
        return told

    # -- words

    def word(self, *words: str, passphrase: str | None = None, may_fail: bool = False) -> bool:
        began = time.monotonic()
        done = super().word(*words, passphrase=passphrase, may_fail=may_fail)
        took = time.monotonic() - began
        if self.disturbed in TROUBLES and words[0] in ("save", "lock", "status") and took > PATIENCE:
            raise Violation(f"{words} took {took:.0f} s while the storage was in trouble")
        return done

    def remote_word(self, *words: str, refusals: Sequence[str], passphrase: str | None = None) -> bool:
        """A word that asks the storage; it may be refused for these reasons alone."""
        done = self.word(*words, passphrase=passphrase, may_fail=True)
        if not done and not self.disturbed and not any(reason in self.said for reason in refusals):
            raise Violation(f"{words} failed for no reason: {self.said}")
        if self.disturbed:  # what was cut off on the host may go on inside
            self.await_words()
        return done

    # -- the steps

    def prepare(self) -> None:
        """What takes another vault needs a locked one, mostly."""
        if self.kind in TAKES and self.model.open and self.draw.random() < 0.7:
            self.step_lock()
            self.check()

    def step_push(self, *options: str) -> None:
        """What it says to be pushed is there; what it has not seen is not replaced."""
        self.look_at_files()
        before, there = self.digest(), self.shelf.kept.newest
        if options:
            self.forced.add(before)
        refusals = ("nothing was overwritten", "there is no sealed vault to push")
        done = self.remote_word("push", *options, refusals=refusals)
        now = self.shelf.look()
        fresh = {before, *self.look_at_files(), self.digest()}
        if options:
            self.forced |= fresh
        fooled = self.disturbed == "storage serves older" and "pushed" not in self.said
        if done and not fresh & now.all() and not fooled:
            raise Violation(f"push gave 0, and {before[:8]} is not in the store: {self.said}")
        conflict = "nothing was overwritten" in self.said
        if conflict and not self.disturbed and there == now.newest == self.agreed:
            raise Violation(f"push sees a conflict with what this machine has put or seen there: {self.said}")
        self.agreed = before if done and not self.disturbed else ""

    def step_push_force(self) -> None:
        """Whatever is there is replaced, and kept."""
        self.step_push("--force")

    def step_pull(self, *options: str) -> None:
        """What it says to be pulled is here; what was here is in the history, unless it is in the store."""
        before, there = self.digest(), self.shelf.kept
        done = self.remote_word("pull", *options, refusals=WHY_NOT_PULLED)
        now = self.shelf.look()
        after = self.took([before], now)
        if not done:
            return
        fresh = self.look_at_files()
        here = {before, after, *fresh} if self.model.open else {after}  # a guard may have saved since
        fooled = self.disturbed == "storage serves older"
        newest = {there.newest, now.newest} if not fooled else there.all()
        newest |= now.all() - there.all()  # the other machine pushes by itself
        if options != ("--keep-mine",) and not here & newest:
            raise Violation(f"pull gave 0, and {after[:8]} is not what the store has: {self.said}")
        if not newest & set(self.had):
            raise Violation(f"pull gave 0, and what the store has is not here: {self.said}")
        kept = {self.files[key] for key in self.files if (self.place.vault / "history" / key[0]).exists()}
        if before and before not in {after, *kept, *now.all()}:
            raise Violation(f"pull has buried {before[:8]}: {self.said}")
        self.agreed = now.newest if there.newest == now.newest and not self.disturbed else ""

    def step_pull_force(self) -> None:
        """Theirs is taken."""
        self.step_pull("--force")

    def step_pull_keep_mine(self) -> None:
        """Theirs goes into the history."""
        self.step_pull("--keep-mine")

    def took(self, allowed: Sequence[str], there: Kept) -> str:
        """Learn what a word has made the sealed file: what was here, or what is in the store."""
        if self.model.open and self.mounted():
            return self.digest()
        if self.model.open:  # the container has died, and the word may have come after that
            self.model.may_be += [self.shelf.opened(self.shelf.content[one])[1] for one in there.all()]
            return self.digest()
        after = self.digest()
        if after not in (*allowed, *there.all()):
            raise Violation(f"sealed is {after[:8]}, which was neither here nor in the store")
        sealed = self.read_sealed()
        if sealed is not None:
            self.passphrases = [self.sealed_under]
            self.model.begins_with(sealed)
        return after

    def step_remote_look(self) -> None:
        """Words that only look there."""
        there = self.shelf.kept
        self.remote_word("history", "--remote", refusals=())
        listed = {f"{name}.tar.aes" for name in re.findall(r"^(vault-\S+)", self.said, re.MULTILINE)}
        if not self.disturbed and there == self.shelf.look() and listed != {*there.history}:
            raise Violation(f"history --remote lists {sorted(listed)}, there are {sorted(there.history)}")
        if there.newest:
            passphrase = self.shelf.opened(self.shelf.content[there.newest])[0]
            done = self.word("verify", "--remote", passphrase=passphrase, may_fail=True)
            if not done and not self.disturbed and there.newest == self.shelf.look().newest:
                raise Violation(f"verify --remote failed for no reason: {self.said}")

    def step_remote_restore(self) -> None:
        """A version from the store becomes the sealed one."""
        there = self.shelf.kept
        if not there.history or self.model.open:
            return
        name, digest = self.draw.choice(sorted(there.history.items()))
        before = self.digest()
        passphrase = self.shelf.opened(self.shelf.content[digest])[0]
        words = ("restore", "--remote", name[: -len(".tar.aes")])
        done = self.remote_word(*words, passphrase=passphrase, refusals=("holds no",))  # it was pruned
        after = self.took([before], there)
        if done and after != digest:
            raise Violation(f"restore --remote gave 0, and sealed is {after[:8]}, not {digest[:8]}")

    def step_status(self) -> None:
        """What it says while something goes wrong may be told it by the storage; that it says it is asked."""
        self.word("status", may_fail=True)

    # -- the walk itself

    def disturbance(self) -> Disturbance:
        """The storage fails where it is asked, mostly of what a session in an open vault has changed."""
        kinds = [kind for kind in self.faults.kinds if kind not in STORAGE_KINDS]
        troubles = [kind for kind in self.faults.kinds if kind in STORAGE_KINDS]
        if troubles and (not kinds or (self.kind in ASKS_STORAGE and self.draw.random() < 0.7)):
            kinds = troubles
            if self.kind in CHANGED and self.draw.random() < 0.7:
                self.inhabit()
        kind = self.draw.choice(kinds)
        if kind in TROUBLES:
            return Trouble(self.draw, kind, self)
        return Disturbance(self.draw, kind, self.place, self.engine)

    def meanwhile(self) -> None:
        """While the storage is in trouble, what was written is saved, and what was left is locked."""
        if self.disturbed not in TROUBLES:
            return
        if self.ended_last:
            self.word("up")
            self.eventually(lambda: not self.mounted(), "locked while the storage is in trouble")
        elif self.kind == "write" and self.model.open:
            self.word("up")
            self.eventually(
                lambda: self.read_sealed() == self.model.now, "saved while the storage is in trouble"
            )


class Pair:
    """Two machines and their storage: each step is drawn for one of them."""

    def __init__(self, seed: int, box: Path, engine: Engine, faults: Faults, cloud: Cloud) -> None:
        self.draw = random.Random(seed)
        self.shelf = Shelf(cloud, f"walk/{secrets.token_hex(4)}")
        self.machines: list[Machine] = []
        for name in ("one", "two"):
            (box / name).mkdir()
            (box / name).chmod(0o755)
            self.machines.append(Machine(seed, box / name, engine, faults, self.shelf))
        first, second = self.machines
        self.log, self.counts = second.log, second.counts = first.log, first.counts
        self.share = faults.share
        self.number = 0

    def step(self, only: set[int] | None) -> None:
        """Draw a step and a machine, as `Walk.step` does; then look at both and at the store."""
        self.number += 1
        weights = {**WEIGHTS, **STORAGE_WEIGHTS}
        (kind,) = self.draw.choices(list(weights), list(weights.values()))
        faulty = self.draw.random() < self.share
        own_seed = self.draw.random()
        number = self.draw.randrange(2)
        if only is not None and self.number not in only:
            return
        machine, other = self.machines[number], self.machines[1 - number]
        self.log.append(f"{self.number} {'AB'[number]}: {kind}")
        inhabited = other.shells[:] if other.model.open else []
        machine.take(kind, faulty, own_seed)
        other.begin("beside")
        if machine.disturbed.startswith("engine"):
            other.disturbed = machine.disturbed
        if machine.disturbed in ("engine kill", "engine crash"):
            over = lambda: not any(shell.child.isalive() for shell in inhabited)  # noqa: E731
            other.eventually(over, "sessions ended")
        other.check()
        self.shelf.judge(self.machines)
        for one in self.machines:
            if machine.disturbed or one.agreed != self.shelf.kept.newest:
                one.agreed = ""

    def close(self) -> None:
        for machine in self.machines:
            machine.close()
