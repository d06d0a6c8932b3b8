"""One project, the steps that are drawn for it, and what must be so after each."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pexpect
from engine import Engine, sh
from enginelib import SECRETS, Owned, Terminal
from faults import HARMLESS, KINDS, Disturbance, victims
from model import Model, Tree, Violation

from tazpod import GUARD_WORD, dead_sessions

PATIENCE = 20.0  # seconds within which what must happen by itself has happened
UID = 1000
FIRST_PASSPHRASE = "a first passphrase of some length"
PROMPTS = [r"Passphrase( \(empty: stay locked\))?: ", r"/workspace\S*[$#] ", pexpect.EOF, r"\[y/N\] "]
WELL = (0, 4)  # what status gives: all is well, or something is to be looked at
ENDS_ALL = ("down", "recreate")  # the steps that end every session
# What is drawn, and how often.
WEIGHTS = {
    "write": 14,
    "delete": 4,
    "save": 8,
    "lock": 6,
    "unlock": 12,
    "up": 2,
    "down": 2,
    "recreate": 1,
    "passwd": 2,
    "run": 6,
    "look": 2,
    "verify": 2,
    "restore": 1,
    "enter": 9,
    "exit": 6,
    "close_terminal": 3,
    "kill_host_side": 3,
}


def digest_of(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


class Faults(NamedTuple):
    """The faults: their share of the steps, their kinds, and whether a session is always there."""

    share: float = 0.0
    kinds: Sequence[str] = KINDS
    inhabited: bool = False


class Walk:
    """A project with its model.  A step may assume nothing but what the model says."""

    def __init__(self, seed: int, box: Path, engine: Engine, faults: Faults) -> None:
        self.draw = random.Random(seed)
        self.seed = seed
        self.engine = engine
        self.faults = faults
        self.place = Owned(box, engine.uid, UID)
        self.place.env["SUDO_UID"] = str(UID)  # where root drives it
        self.install()
        self.put_on_disk()
        self.name = self.place.name  # of the container, in config.yaml
        self.place.init(*self.settings())
        self.model = Model()
        self.passphrases = [FIRST_PASSPHRASE]  # the last one is in force, or after a fault the one before
        self.shells: list[Terminal] = []
        self.sealed_seen: tuple[str, Tree] = ("", {})
        self.sealed_under = FIRST_PASSPHRASE
        self.born = ""  # when the container's first process started
        self.canary = f"canary{seed:08x}"
        self.log: list[str] = []
        self.counts: Counter[str] = Counter()
        self.number = 0
        self.begin("")

    def install(self) -> None:
        """What a walk changes of its copy of the tool: nothing."""

    def settings(self) -> list[str]:
        """What config.yaml says besides what init writes."""
        return ["network.mtu: 'off'", "sync.interval: 4"]

    def put_on_disk(self) -> None:
        """Give the project a small disk of its own, so that it can be full."""
        size = f"size=96m,uid={UID},gid={UID},mode=0755"
        sh("mount", "-t", "tmpfs", "-o", size, "tmpfs", str(self.place.folder))

    def close(self) -> None:
        for shell in self.shells:
            shell.child.close(force=True)
        self.place.clean_up()
        sh("umount", "-l", str(self.place.folder), check=False)

    # -- what is so, seen from outside

    def container(self) -> dict[str, Any]:
        """What the engine says of the container; {} for none."""
        return self.engine.state(self.place.name)

    def find_container(self) -> None:
        """Learn what the container is called: after a replacing that was cut off it has another name."""
        ours = (name for name in self.engine.names() if name.startswith(self.name))
        self.place.name = min(ours, key=len, default=self.name)

    def running_since(self) -> str:
        """When the container was started; '' for one that does not run."""
        state = self.container()
        return str(state["StartedAt"]) if state.get("Status") == "running" else ""

    def mounted(self) -> bool:
        """Whether the kernel shows a mount at the place of the secrets."""
        state = self.container()
        if state.get("Status") != "running":
            return False
        with contextlib.suppress(OSError):
            table = Path(f"/proc/{state['Pid']}/mountinfo").read_text()
            return any(line.split()[4] == SECRETS for line in table.splitlines())
        return False

    def words_inside(self) -> list[int]:
        """The words and writes at work in the container: one whose host side was killed goes on there."""
        pattern = rf"^python3 -Esc.*tazpod\.program\(\) (?!{GUARD_WORD})|^bash -c mountpoint "
        return victims(self.place, self.engine, self.engine.state(self.place.name).get("Pid", 0), pattern)

    def read_open(self) -> Tree:
        """The files of the open vault, read by root through the container's first process."""
        root = Path(f"/proc/{self.container()['Pid']}/root{SECRETS}")
        tree = {}
        for path in sorted(root.rglob("*")):
            name = str(path.relative_to(root))
            if path.is_file() and not path.is_symlink() and not name.startswith(".vault_"):
                tree[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return tree

    def read_sealed(self) -> Tree | None:
        """What stock gpg and tar find in the sealed file; None where there is none."""
        if not self.place.sealed.exists():
            return None
        data = self.place.sealed.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if digest == self.sealed_seen[0]:
            return self.sealed_seen[1]
        for passphrase in reversed(self.passphrases):
            archive = opened_by_gpg(data, passphrase)
            if archive is not None:
                self.sealed_seen = digest, tree_of(archive)
                self.sealed_under = passphrase
                return self.sealed_seen[1]
        raise Violation("the sealed file does not open with gpg")

    def await_words(self) -> None:
        """Wait for the words that go on in the container; a storage that stalls keeps some for long."""
        self.eventually(lambda: not self.words_inside(), "the words in the container ended", 3 * PATIENCE)

    def await_guard(self) -> None:
        """An entry that was killed may have come as far as a session, after which the guard locks."""
        run = self.place.folder / ".tazpod/run"
        if self.kind == "enter" and self.mounted() and dead_sessions(run):
            self.word("up")  # where the guard was killed as well
            self.eventually(lambda: not (self.mounted() and dead_sessions(run)), "the guard has seen to it")

    def eventually(self, check: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
        """Wait for what must happen by itself."""
        deadline = time.monotonic() + patience
        while not check():
            if time.monotonic() > deadline:
                raise Violation(f"after {patience:g} s still not: {what}")
            time.sleep(0.1)

    # -- words

    def word(self, *words: str, passphrase: str | None = None, may_fail: bool = False) -> bool:
        """A word that the person types; whether it succeeded.  It may fail where something was disturbed.

        What Podman cannot start again, since its conmon was killed as well, is made anew as the hint says.
        """
        done = self.place.run(*words, passphrase=passphrase)
        if self.engine.program == "podman" and "tazpod up --recreate makes it anew" in done.stderr:
            self.note("made anew")
            self.place.ok("up", "--recreate")
            done = self.place.run(*words, passphrase=passphrase)
        self.said = done.stdout + done.stderr
        self.note(f"{' '.join(words)} -> {done.returncode}")
        if done.returncode != 0:
            self.note(" / ".join(self.said.splitlines())[:300])
        if "Traceback" in self.said or "a fault in tazpod" in self.said:
            raise Violation(f"{words}: {self.said}")
        if done.returncode != 0 and not (self.disturbed or may_fail):
            raise Violation(f"{words} failed for no reason: {done.returncode}: {self.said}")
        return done.returncode == 0

    def inside(self, script: str, content: str = "") -> bool:
        """A script of the operator's in the container, where the vault is open; whether it succeeded."""
        line = f"mountpoint -q ~/secrets && {script}"
        argv = [self.engine.program, "exec", "-i", "-u", "tazpod", self.place.name, "bash", "-c", line]
        return subprocess.run(argv, input=content.encode(), capture_output=True, timeout=120).returncode == 0

    def note(self, text: str) -> None:
        self.log[-1] += f"; {text}"

    # -- the steps

    def step_write(self) -> None:
        """A file is written, or written anew, by the operator inside."""
        if not self.model.open:
            return
        name = self.draw.choice(["a", "b", "c", "d/e", "d/f", "g"])
        content = f"{self.canary} {self.draw.random()} ".ljust(self.draw.choice([10, 1000, 300_000]), "x")
        path = f"~/secrets/{name}"
        script = (
            f"umask 077; mkdir -p ~/secrets/d; cat > {path}.new && sync {path}.new && mv {path}.new {path}"
        )
        left = f"{name}.new"  # by a write that was cut off, and written over by this one
        others = {other: digest for other, digest in self.model.now.items() if other != left}
        tree = {**others, name: digest_of(content)}
        between = {**self.model.now, left: ""}  # which the guard may come across
        self.note(f"{name}, {len(content)} bytes")
        if self.inside(f"({script})", content):
            self.model.timeline += [between, tree]
        else:
            self.model.may_be += [tree, {**tree, left: ""}, between]

    def step_delete(self) -> None:
        """A file goes."""
        if not self.model.open or not self.model.now:
            return
        name = self.draw.choice(sorted(self.model.now))
        tree = {other: digest for other, digest in self.model.now.items() if other != name}
        self.note(name)
        if self.inside(f"rm ~/secrets/{name}"):
            self.model.timeline.append(tree)
        else:
            self.model.may_be.append(tree)

    def step_save(self) -> None:
        """What it says to be saved is sealed."""
        number = len(self.model.timeline) - 1
        options = self.draw.choice([[], [], ["--force"]])
        if self.word("save", *options, may_fail=not self.model.open) and self.model.open:
            self.model.was_saved(number)

    def step_lock(self) -> None:
        """It says locked only when it is."""
        if self.word("lock") and self.mounted():
            raise Violation("lock gave 0 and the vault is open")

    def step_unlock(self) -> None:
        """The vault, or a new one where there was none, is opened with the passphrase that is in force."""
        opened = self.word("unlock", passphrase=self.passphrases[-1], may_fail=len(self.passphrases) > 1)
        if not opened and len(self.passphrases) > 1:
            self.word("unlock", passphrase=self.passphrases[-2])

    def step_up(self) -> None:
        """The container runs."""
        self.word("up")

    def step_down(self) -> None:
        """The container goes; what was open is sealed first."""
        self.word("down", "--force")

    def step_recreate(self) -> None:
        """Another container takes its place."""
        self.word("up", "--recreate", "--force")

    def step_passwd(self) -> None:
        """Another passphrase; after a fault, which one is in force is known by what opens."""
        if not self.model.open:
            return
        fresh = f"passphrase number {self.draw.randrange(10**6)}"
        self.passphrases = [self.passphrases[-1], fresh]
        number = len(self.model.timeline) - 1
        if self.word("passwd", passphrase=fresh):
            self.passphrases = [fresh]
            self.model.was_saved(number)
            self.sealed_seen = "", {}

    def step_run(self) -> None:
        """A command that writes, in a vault that it may have to open."""
        content = f"{self.canary} run {self.draw.random()}"
        name = self.draw.choice(["r1", "r2"])
        line = f"mountpoint -q ~/secrets && printf %s '{content}' > ~/secrets/{name}"
        sealed = self.read_sealed()
        before = self.model.now if self.model.open else sealed or {}
        after = {**before, name: digest_of(content)}
        passphrase = self.passphrases[-1] if sealed is not None else None
        may_fail = not (self.model.open or sealed is not None) or len(self.passphrases) > 1
        done = self.word("run", "--", "bash", "-c", line, passphrase=passphrase, may_fail=may_fail)
        if not self.model.open:
            self.model.timeline.append(before)
        if done:
            self.model.timeline.append(after)
        else:
            self.model.may_be += [before, after, {**before, name: digest_of("")}]

    def step_look(self) -> None:
        """Words that only look."""
        words = [["history"], ["list"], ["config"], ["doctor"], ["--dry-run", "lock"]]
        for chosen in self.draw.sample(words, 2):
            self.word(*chosen, may_fail=True)

    def step_verify(self) -> None:
        """The sealed file opens."""
        if self.place.sealed.exists():
            self.word("verify", passphrase=self.passphrases[-1], may_fail=len(self.passphrases) > 1)

    def step_restore(self) -> None:
        """An earlier version comes back; the present one goes to the history."""
        versions = sorted((self.place.vault / "history").glob("vault-*.tar.aes"))
        if not versions or self.model.open or len(self.passphrases) > 1:
            return
        version = self.draw.choice(versions).name[: -len(".tar.aes")]
        # It may have an earlier passphrase.
        self.word("restore", version, passphrase=self.passphrases[-1], may_fail=True)
        sealed = self.read_sealed()
        if sealed is not None:
            self.model.begins_with(sealed)

    def step_enter(self) -> None:
        """A person opens a session."""
        if len(self.shells) > 2 or not self.place.sealed.exists():
            return
        shell = self.place.terminal()
        child = shell.child
        with contextlib.suppress(pexpect.TIMEOUT):
            while True:
                got = child.expect(PROMPTS, timeout=2 * PATIENCE)
                if got == 0:
                    child.sendline(self.passphrases[-1])
                elif got == 1:
                    self.shells.append(shell)
                    self.note("in")
                    return
                elif got == 2:
                    break
                else:
                    child.sendline("y")
        child.close(force=True)
        self.note(f"entry ended with {child.exitstatus}: {child.before[-300:]!r}")
        if not self.disturbed and len(self.passphrases) == 1:
            raise Violation(f"enter ended or hung for no reason: {child.before[-500:]!r}")

    def step_exit(self) -> None:
        """A session ends in good order; after the last one the vault is saved and locked."""
        shell = self.leave()
        if shell is None:
            return
        shell.child.sendline("exit")
        try:
            shell.child.expect(pexpect.EOF, timeout=60)
            if "Traceback" in shell.child.before:
                raise Violation(shell.child.before)
        except pexpect.TIMEOUT:
            if not self.disturbed:
                raise Violation(f"exit hangs: {shell.child.before[-300:]!r}") from None
        shell.child.close(force=True)

    def step_close_terminal(self) -> None:
        """A window is closed."""
        shell = self.leave()
        if shell is not None:
            process = shell.child.ptyproc
            process.fileobj.close()
            process.closed = shell.child.closed = True
            process.fd = shell.child.child_fd = -1

    def step_kill_host_side(self) -> None:
        """The host side of a session dies."""
        shell = self.leave()
        if shell is not None:
            os.kill(shell.child.pid, signal.SIGKILL)
            shell.child.wait()
            shell.child.close(force=True)

    def leave(self) -> Terminal | None:
        """The session that is to end; the terminal has it no more."""
        if not self.shells:
            return None
        shell = self.shells.pop(self.draw.randrange(len(self.shells)))
        self.ended_last = not self.shells
        if self.ended_last:
            self.note("the last")
            self.counts["ends of the last session"] += 1
        return shell

    # -- what must be so after each step

    def check(self) -> None:
        """All of it."""
        self.find_container()
        if self.container().get("Status") == "paused":
            self.engine.unpause(self.place.name)
        if self.disturbed:
            self.await_words()
            self.await_guard()
        living = [shell for shell in self.shells if self.lives(shell)]
        for shell in self.shells:
            if shell not in living:
                if shell in self.unharmed:
                    raise Violation(f"a session was ended: {shell.child.before[-300:]!r}")
                shell.child.close(force=True)
                self.ended_last = not living
        self.shells = living
        if self.ended_last:
            opened = self.opened_by_unlock()
            if self.disturbed:  # whoever was killed at the same moment, the next word makes well
                self.word("up")
            if not opened:
                self.eventually(lambda: not self.mounted(), "locked after the last session")
        born = self.running_since()
        reborn = born != self.born  # and what was in RAM is lost
        self.born = born
        sealed, inside = self.look()
        self.model.judge(sealed, inside, reborn, bool(self.disturbed))
        if sealed is not None and not self.model.open:  # whatever became of a passwd, this one is in force
            self.passphrases = [self.sealed_under]
        self.check_status()
        self.check_disk()
        if self.number % 10 == 0 and not self.model.open and self.born:
            self.check_locked()

    def opened_by_unlock(self) -> bool:
        """Whether this step is an unlock that opened it when the sessions had gone: it is of none of them."""
        opened = "is open at" in self.said or self.running_since() != self.born
        return self.kind == "unlock" and opened

    def lives(self, shell: Terminal) -> bool:
        """Whether somebody sits in a session; after a fault it answers, or it ends."""
        child = shell.child
        if self.disturbed and child.isalive():
            try:
                with contextlib.suppress(OSError):  # its terminal is closed by now
                    child.sendline("echo $((6 * 7))x")
                    child.expect(["42x", pexpect.EOF], timeout=2 * PATIENCE)
            except pexpect.TIMEOUT:
                raise Violation(f"a session hangs: {child.before[-300:]!r}") from None
        return bool(child.isalive())

    def look(self) -> tuple[Tree | None, Tree | None]:
        """What is sealed, and what is open; both as they are at one moment, while a guard may be at work."""
        while True:
            before = self.mounted(), self.read_sealed()
            inside = None
            with contextlib.suppress(OSError):
                inside = self.read_open() if before[0] else None
            if before == (self.mounted(), self.read_sealed()) and (inside is not None) == before[0]:
                return before[1], inside

    def check_status(self) -> None:
        """What it says is so, and nothing is well that is not."""
        seen = []
        for _ in range(4):
            told = self.status()
            truth = self.mounted()
            if told["vault"]["open"] in (None, truth):
                break
            seen.append((told["vault"]["open"], truth, self.container().get("Status")))
            time.sleep(1)  # the guard may be at it
        else:
            raise Violation(f"status says open, the kernel, the engine: {seen}")
        if told["well"] and truth and not told["daemon"]["running"]:
            raise Violation("status is well with an open vault that nobody guards")

    def status(self) -> dict[str, Any]:
        """What it says; a container whose set-up was disturbed may need the word that it names as a hint."""
        done = self.place.run("status", "--json")
        if done.returncode == 1 and self.disturbed and "hint: tazpod up" in done.stderr:
            self.word("up")
            done = self.place.run("status", "--json")
        if done.returncode not in WELL:
            raise Violation(f"status: {done.returncode}: {done.stderr}")
        return dict(json.loads(done.stdout))

    def check_disk(self) -> None:
        """No temporary file outlives a save, and no secret lies in the project."""
        if self.kind == "save" and not self.disturbed and self.model.open:
            left = [path.name for path in self.place.vault.rglob(".*.tmp")]
            if left and "saved" in self.said:
                raise Violation(f"left behind: {left}")
        for path in self.place.folder.rglob("*"):
            with contextlib.suppress(OSError):
                if path.is_file() and path.name != "fill" and self.canary.encode() in path.read_bytes():
                    raise Violation(f"plain text on disk: {path}")

    def check_locked(self) -> None:
        """Nothing of it can be read in the container."""
        scan = f"grep -rls {self.canary} /home /tmp /var/tmp /run /root /dev/shm"
        found = self.place.inside(scan, "0").stdout
        if found:
            raise Violation(f"readable while locked: {found}")

    # -- the walk itself

    def begin(self, kind: str) -> None:
        """Forget what is of the step before."""
        self.kind = kind
        self.disturbed = ""
        self.said = ""
        self.ended_last = False
        self.unharmed: list[Terminal] = []  # the sessions that the fault cannot have ended

    def step(self, only: set[int] | None) -> None:
        """Draw a step and take it, unless others alone are wanted: one that is left out changes none."""
        self.number += 1
        (kind,) = self.draw.choices(list(WEIGHTS), list(WEIGHTS.values()))
        faulty = self.draw.random() < self.faults.share
        own_seed = self.draw.random()
        if only is None or self.number in only:
            self.log.append(f"{self.number} {kind}")
            self.take(kind, faulty, own_seed)

    def take(self, kind: str, faulty: bool, own_seed: float) -> None:
        """Take a step, and check what must be so after it."""
        outer = self.draw
        self.draw = random.Random(own_seed)
        self.begin(kind)
        try:
            self.prepare()
            if faulty:
                self.disturb(kind)
            else:
                getattr(self, f"step_{kind}")()
            self.check()
        finally:
            self.draw = outer
        self.counts["steps"] += 1

    def prepare(self) -> None:
        """What a step needs before it."""

    def disturbance(self) -> Disturbance:
        """What is to go wrong."""
        return Disturbance(self.draw, self.draw.choice(self.faults.kinds), self.place, self.engine)

    def meanwhile(self) -> None:
        """What must be so while it still goes wrong."""

    def disturb(self, kind: str) -> None:
        """Take the step while something goes wrong."""
        if self.faults.inhabited:
            self.inhabit()
        before = self.shells[:] if self.model.open else []
        disturbance = self.disturbance()
        self.disturbed = disturbance.kind
        self.note(f"[{disturbance.kind} after {disturbance.delay:.2f} s]")
        with disturbance.at_work():
            getattr(self, f"step_{kind}")()
            self.meanwhile()
        self.counts[disturbance.kind] += disturbance.struck
        self.counts["faults"] += disturbance.struck
        if disturbance.kind in HARMLESS and kind not in ENDS_ALL:
            self.unharmed = before
            time.sleep(1)  # the guard looks once more
        if disturbance.kind in ("engine kill", "engine crash") and before:
            self.counts["engine kills under a session"] += 1
            self.eventually(lambda: not any(shell.child.isalive() for shell in before), "sessions ended")

    def inhabit(self) -> None:
        """See to an open vault that was changed, perhaps saved, and to a session in it."""
        if not self.place.sealed.exists():
            self.step_unlock()
            self.check()
            self.step_save()
            self.check()
        if not self.model.open or not self.shells:
            self.step_enter()
            self.check()
        self.step_write()
        if self.draw.random() < 0.5:
            self.step_save()
        self.check()


def opened_by_gpg(data: bytes, passphrase: str) -> bytes | None:
    """What stock gpg makes of a sealed file; None where it refuses."""
    read_end, write_end = os.pipe()
    os.write(write_end, passphrase.encode())
    os.close(write_end)
    try:
        with tempfile.TemporaryDirectory() as home:
            argv = ["gpg", "--batch", "-q", "--homedir", home, "--pinentry-mode", "loopback"]
            argv += ["--passphrase-fd", str(read_end), "-d"]
            done = subprocess.run(argv, input=data, capture_output=True, pass_fds=(read_end,))
    finally:
        os.close(read_end)
    return done.stdout if done.returncode == 0 else None


def tree_of(archive: bytes) -> Tree:
    """The files in an archive."""
    tree = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        for item in opened:
            file = opened.extractfile(item) if item.isreg() else None
            if file:
                tree[item.name.removeprefix("./")] = hashlib.sha256(file.read()).hexdigest()
    return tree
