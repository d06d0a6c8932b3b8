"""Power cuts: the project lies on an ext4 of its own, whose disk is copied while a word is at work.

Each copy is what a machine finds after its power was cut: the journal is replayed when it is mounted, and a
whole vault must be there, which the next words can use."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import plumbum
import pytest
from vaultlib import CANARY, PASSPHRASE, Child, World, die_at_step, own_mounts, program, run

import tazpod

DISK_SIZE = 16 << 20
FILLING = random.Random(0).randbytes(400_000)  # what gpg cannot make smaller: its writing takes a while
# What the kernel may keep back, from the usual to the hardest.
MOUNTED = ["", "noauto_da_alloc", "data=writeback,noauto_da_alloc", "commit=1"]
WORDS = ["save", "passwd", "restore", "pull"]
AWS = """\
for target; do :; done
head -c 100000 {remote} >"$target"
tail -c +100001 {remote} >>"$target"
size=$(stat -c %s {remote})
echo '{{"ETag": "\\"any\\"", "LastModified": "2026-01-01T00:00:00+00:00", "ContentLength": '$size'}}'
"""


class Disk:
    """An ext4 in a file in RAM, and on it a project with a vault; its home is elsewhere, as a container's."""

    def __init__(self, box: Path, options: str) -> None:
        own_mounts()
        self.file = box / "disk"
        self.place = box / "mounted"
        self.place.mkdir()
        run("truncate", "-s", DISK_SIZE, self.file)
        run("mkfs.ext4", "-q", "-F", self.file)
        self.mount(self.file, self.place, options)
        (self.place / "project/.tazpod").mkdir(parents=True)
        self.world = World(box / "world", binds=())
        self.world.vault = tazpod.Vault(self.place / "project/.tazpod/vault", box / "world/home", "8m", 3, ())
        device = run("findmnt", "-n", "-o", "SOURCE", self.place).decode().strip()
        self.requests = Path("/sys/block", Path(device).name, "stat")

    @staticmethod
    def mount(file: Path, place: Path, options: str) -> None:
        run("mount", "-t", "ext4", "-o", ",".join(filter(None, ["loop", options])), file, place)

    def written(self) -> tuple[str, str]:
        """How many requests to write the disk has done, and how many are under way."""
        numbers = self.requests.read_text().split()
        return numbers[4], numbers[8]

    def cut(self, copy: Path) -> bool:
        """Copy what has reached the disk, between two of its writes; False where it never rested."""
        for _ in range(50):
            before = self.written()
            shutil.copyfile(self.file, copy)
            if before[1] == "0" and before == self.written():
                return True
        return False

    def close(self) -> None:
        self.world.close()
        run("umount", "-l", self.place)


class Cuts:
    """Words at work, cuts among them, and what each copy must hold."""

    def __init__(self, box: Path, seed: int) -> None:
        self.draw = random.Random(seed)
        self.box = box
        self.disk = Disk(box, self.draw.choice(MOUNTED))
        self.vault = self.disk.world.vault
        self.passphrase = PASSPHRASE
        self.opened_by: dict[bytes, bytes] = {}  # of each sealed file: its passphrase
        self.duration = dict.fromkeys(WORDS, 0.3)  # of the last one, in seconds and in steps
        self.steps = dict.fromkeys(WORDS, 20)
        self.counts: Counter[str] = Counter()
        program(box / "bin", "aws", AWS.format(remote=box / "remote"))
        tazpod.check_folder(self.vault)
        for number in range(3):
            self.change(number)
            tazpod.save(self.vault)
            self.opened_by[self.sealed()] = PASSPHRASE

    def sealed(self) -> bytes:
        return self.vault.sealed.read_bytes()

    def change(self, number: int) -> None:
        """Something new in the open vault."""
        if not tazpod.is_open(self.vault):
            tazpod.unlock(self.vault, self.passphrase)
        (self.vault.mount / "secret").write_bytes(CANARY + b" %d" % number + FILLING)

    def prepared(self, word: str, number: int) -> tuple[Callable[[], object], bytes]:
        """What a word does, and the passphrase that is in force after it."""
        if word in ("save", "passwd"):
            self.change(number)
            if word == "save":
                return lambda: tazpod.save(self.vault), self.passphrase
            upcoming = b"passphrase number %d of the tests" % number
            return lambda: tazpod.save(self.vault, passphrase=upcoming), upcoming
        tazpod.lock(self.vault)
        version = self.draw.choice(tazpod.versions(self.vault))
        passphrase = self.opened_by[version.read_bytes()]
        if word == "restore":
            return lambda: tazpod.restore(self.vault, version, passphrase), passphrase
        shutil.copyfile(version, self.box / "remote")
        config = tazpod.Config(self.disk.place / "project", "lab", aws_profile="nobody")

        def pull() -> None:
            with plumbum.local.env(PATH=f"{self.box / 'bin'}:{os.environ['PATH']}"):
                tazpod.pull(config, self.vault, force=True)

        return pull, passphrase

    def turn(self, number: int) -> None:
        """One word with cuts while it works, and one just after it has said that it is done."""
        word = WORDS[number % len(WORDS)]
        before = self.sealed()
        work, passphrase = self.prepared(word, number)
        if self.draw.random() < 0.6:
            copies = self.at_a_step(word, work)
        else:
            copies = self.at_moments(word, work)
        self.passphrase = passphrase
        self.opened_by[self.sealed()] = passphrase
        for copy, said in [*copies, *self.cut("done", said=True)]:
            self.counts[f"{word}, {'done' if said else 'at work'}"] += 1
            self.judge(copy, {self.sealed()} if said else {before, self.sealed()}, before, at_work=not said)

    def cut(self, name: str, said: bool) -> list[tuple[Path, bool]]:
        """A cut, and whether the word had said before that it is done."""
        copy = self.box / f"copy-{name}"
        return [(copy, said)] if self.disk.cut(copy) else []

    def at_a_step(self, word: str, work: Callable[[], object]) -> list[tuple[Path, bool]]:
        """Stop the word before one of its steps: a cut without the last writes, and one with them."""
        step = self.draw.randrange(self.steps[word])
        ready, tell = os.pipe()

        def stepwise() -> None:
            die_at_step(step, tell, signal.SIGSTOP)
            work()

        child = Child(stepwise)
        os.close(tell)
        copies = []
        status = os.waitpid(child.pid, os.WUNTRACED)[1]
        if os.WIFSTOPPED(status):
            copies += self.cut("without", said=False)
            run("sync", "-f", self.disk.place)
            copies += self.cut("with", said=False)
            child.signal(signal.SIGCONT)
            assert child.wait() == 0
        else:
            assert os.waitstatus_to_exitcode(status) == 0
        with os.fdopen(ready, "rb") as file:
            self.steps[word] = len(file.read())
        return copies

    def at_moments(self, word: str, work: Callable[[], object]) -> list[tuple[Path, bool]]:
        """Two cuts at any moment while the word works."""
        moments = sorted(self.draw.random() * self.duration[word] for _ in range(2))
        with_last = [self.draw.random() < 0.3 for _ in moments]
        copies = []
        begun = time.monotonic()
        child = Child(work)
        for number, moment in enumerate(moments):
            time.sleep(max(0.0, begun + moment - time.monotonic()))
            if with_last[number]:
                run("sync", "-f", self.disk.place)
            ended = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            copies += self.cut(str(number), said=bool(ended))
        assert child.wait() == 0
        self.duration[word] = time.monotonic() - begun
        return copies

    def judge(self, copy: Path, held: set[bytes], before: bytes, at_work: bool) -> None:
        """After the cut: the old vault or the new one, nothing lost, nothing plain."""
        assert CANARY not in copy.read_bytes(), "a secret is on disk"
        place = self.box / "after"
        place.mkdir(exist_ok=True)
        Disk.mount(copy, place, "")
        world = World(Path(tempfile.mkdtemp(dir=self.box)), binds=())
        vault = tazpod.Vault(place / "project/.tazpod/vault", world.vault.home, "8m", 3, ())
        try:
            sealed = vault.sealed.read_bytes()
            assert sealed in held, "the sealed file is neither the old nor the new one"
            kept = [path.read_bytes() for path in vault.history.glob("vault-*.tar.aes")]
            assert before in (sealed, *kept), "the version before is lost"
            assert set(kept) <= set(self.opened_by), "a version of the history is not whole"
            passphrase = self.opened_by[sealed]
            assert gpg_opens(vault.sealed, passphrase)
            if at_work:
                self.go_on(vault, sealed, passphrase)
        finally:
            world.close()
            run("umount", "-l", place)

    @staticmethod
    def go_on(vault: tazpod.Vault, sealed: bytes, passphrase: bytes) -> None:
        """The next words do their work, and nothing unfinished is left behind."""
        tazpod.unlock(vault, passphrase)
        (vault.mount / "after").write_bytes(CANARY)
        assert tazpod.save(vault)
        tazpod.lock(vault)
        tazpod.restore(vault, tazpod.versions(vault)[-1], passphrase)
        assert vault.sealed.read_bytes() == sealed
        with tazpod.syncing(vault):
            pass  # takes away what a pull has left
        left = [path.name for path in vault.folder.rglob(".*") if path.suffix in (".tmp", ".part")]
        assert left == []


def gpg_opens(path: Path, passphrase: bytes) -> bool:
    """Whether stock gpg and tar read it."""
    with tempfile.TemporaryDirectory() as home:
        words = ["--batch", "-q", "--homedir", home, "--pinentry-mode", "loopback", "--passphrase-fd", "0"]
        plain = run("gpg", *words, "-d", path, input=passphrase)
    return b"secret" in run("tar", "-t", input=plain)


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in RAM, where the disks are; skips where there is no loop device."""
    if os.geteuid() != 0 or not shutil.which("mkfs.ext4"):
        pytest.skip("needs root and mkfs.ext4")
    if subprocess.run(["losetup", "-f"], capture_output=True).returncode != 0:
        pytest.skip("this machine has no loop devices")
    own_mounts()
    run("mount", "-t", "tmpfs", "tmpfs", tmp_path)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    yield tmp_path
    run("umount", "-l", tmp_path)


def cut_again_and_again(box: Path, seed: int, count: int) -> None:
    cuts = Cuts(box, seed)
    try:
        number = 0
        while sum(cuts.counts.values()) < count:
            cuts.turn(number)
            number += 1
    except BaseException as error:
        raise AssertionError(f"seed {seed}, word {number}: {error}") from error
    finally:
        cuts.disk.close()
    print(f"seed {seed}: {dict(cuts.counts)}, steps {cuts.steps}")


def test_ten_power_cuts(box: Path) -> None:
    cut_again_and_again(box, 19, 10)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(100, 108))
def test_twenty_five_power_cuts(seed: int, box: Path) -> None:
    cut_again_and_again(box, seed, 25)
