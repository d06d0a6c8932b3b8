"""Whatever goes wrong: the old or the new vault opens, nothing plain is on a disk, and nobody says it went
well.  Real programs, real signals, a real tmpfs; the long forms run with `-m long`."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import plumbum
import pytest
import vaultlib
from vaultlib import (
    CANARY,
    GO_DATA,
    GO_PASSPHRASE,
    OTHER,
    PASSPHRASE,
    REFUSALS,
    Child,
    Snapshot,
    World,
    eventually,
    gpg_seal,
    in_workers,
    kill_by_step,
    kill_by_time,
    make_tar,
    member,
    mount_points,
    program,
    run,
)

import tazpod

pytestmark = vaultlib.NEEDS_ROOT
template, worlds = vaultlib.template, vaultlib.worlds


def sealed_as(world: World, data: bytes) -> World:
    """Put a sealed file in its place."""
    tazpod.check_folder(world.vault)
    world.vault.sealed.write_bytes(data)
    return world


def assert_locked_and_clean(world: World) -> None:
    assert world.mounted() == [] and not tazpod.is_open(world.vault)
    for folder in (world.open, world.vault.transit):
        assert not folder.exists() or list(folder.iterdir()) == []
    assert world.leaks() == []


# ---- kill -9, SIGTERM, Ctrl-C at any moment ----------------------------------------------------------
WORDS = ["save", "unlock", "lock", "passwd", "restore"]


def sweep_by_time(folder: Path, word: str, number: int, count: int, seed: int) -> None:
    rng = random.Random(seed)
    moments = [(index + rng.random()) / count for index in range(count)]
    workers = min(os.cpu_count() or 1, count)
    shares = [moments[part::workers] for part in range(workers)]
    calls = [(folder / f"{n}", word, share, number) for n, share in enumerate(shares)]
    done = in_workers(kill_by_time, calls)
    killed, finished = (sum(column) for column in zip(*done))
    print(f"{word}, signal {number}: {killed} interrupted, {finished} had finished")
    assert killed + finished == count
    assert killed >= count // 8, f"only {killed} of {count} were interrupted (seed {seed})"


@pytest.mark.parametrize("word", WORDS)
def test_killed_at_forty_random_moments(word: str, tmp_path: Path) -> None:
    sweep_by_time(tmp_path, word, signal.SIGKILL, 40, seed=40)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("word", WORDS)
def test_killed_at_two_hundred_random_moments(word: str, tmp_path: Path) -> None:
    sweep_by_time(tmp_path, word, signal.SIGKILL, 200, seed=200)


def sweep_by_step(folder: Path, word: str, number: int) -> None:
    workers = os.cpu_count() or 1
    calls = [(folder / f"{n}", word, n, workers, number) for n in range(workers)]
    killed, finished = (sum(column) for column in zip(*in_workers(kill_by_step, calls)))
    print(f"{word}, signal {number}: {killed} interrupted, {finished} had finished")
    assert killed >= 6 and (finished == 0 or number != signal.SIGKILL)


@pytest.mark.parametrize("word", WORDS)
def test_killed_at_every_step(word: str, tmp_path: Path) -> None:
    sweep_by_step(tmp_path, word, signal.SIGKILL)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("word", WORDS)
def test_ended_by_a_signal_at_every_step(word: str, number: int, tmp_path: Path) -> None:
    sweep_by_step(tmp_path, word, number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("word", WORDS)
def test_ended_by_a_signal_at_eight_random_moments(word: str, number: int, tmp_path: Path) -> None:
    sweep_by_time(tmp_path, word, number, 8, seed=8)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("word", WORDS)
def test_ended_by_a_signal_at_a_hundred_random_moments(word: str, number: int, tmp_path: Path) -> None:
    sweep_by_time(tmp_path, word, number, 100, seed=100)


def test_a_tar_that_outlives_a_killed_unlock_writes_to_no_disk(
    worlds: Callable[..., World], template: tuple[bytes, Snapshot], fakes: Path
) -> None:
    """It has not even looked for its folder when tazpod dies and the next word unmounts that folder."""
    world = sealed_as(worlds(), template[0])
    (fakes / "tar").unlink()
    wait = f"until [ -e {fakes}/go ]; do sleep 0.02; done"
    program(fakes, "tar", f'echo >{fakes}/reached; {wait}; "$REAL" "$@"; echo $? >{fakes}/ended')

    def work() -> None:
        with plumbum.local.env(PATH=str(fakes)):
            world.unlock()

    child = Child(work)
    assert eventually((fakes / "reached").exists)
    child.signal(signal.SIGKILL)
    child.wait()
    assert tazpod.lock(world.vault) != [], "what still sits there is named"
    (fakes / "go").touch()
    assert eventually((fakes / "ended").exists)
    assert_locked_and_clean(world)
    world.unlock()
    assert world.tree() == template[1]


# ---- programs that misbehave -------------------------------------------------------------------------
# what a fake does when its arguments match; `$REAL` is the real program
MANNERS = {
    "fails": "echo no >&2; exit 2",
    "does nothing": "exit 0",
    "reads, does nothing": "cat >/dev/null; exit 0",
    "is killed": "kill -9 $$",
    "hangs": "exec sleep 1000",
    "is cut": '"$REAL" "$@" | { head -c 5; cat >/dev/null; }; exit 0',
    "is cut at nothing": '"$REAL" "$@" >/dev/null; exit 0',
    "works, then fails": '"$REAL" "$@"; exit 1',
    "works, then is killed": '"$REAL" "$@"; kill -9 $$',
}
SILENT = {name for name in MANNERS if "cut" not in name}  # for programs without output
STREAMS, MOUNTS = list(MANNERS), [n for n in MANNERS if n in SILENT and "reads" not in n]
PLACES = {  # (word, the program, what its arguments have)
    "unlock, gpg": ("unlock", "gpg", "--decrypt", STREAMS),
    "unlock, tar": ("unlock", "tar", "--extract", STREAMS),
    "unlock, mount tmpfs": ("unlock", "mount", "tmpfs", MOUNTS),
    "unlock, mount --move": ("unlock", "mount", "--move", MOUNTS),
    "unlock a Go vault, openssl enc": ("go", "openssl", " -aes-256-cbc ", STREAMS),
    "unlock a Go vault, openssl cms": ("go", "openssl", " -decrypt ", STREAMS),
    "unlock a Go vault, tar": ("go", "tar", "--extract", STREAMS),
    "save, tar --create": ("save", "tar", "--create", STREAMS),
    "save, gpg --symmetric": ("save", "gpg", "--symmetric", STREAMS),
    "save, gpg --decrypt": ("save", "gpg", "--decrypt", STREAMS),
    "save, tar --compare": ("save", "tar", "--compare", STREAMS),
    "restore, gpg": ("restore", "gpg", "--decrypt", STREAMS),
    "lock, umount of the bridge": ("lock", "umount", "/.aws", MOUNTS),
    "lock, mount --move": ("lock", "mount", "--move", MOUNTS),
    "lock, umount": ("lock", "umount", "transit", MOUNTS),
}
FAKES = [(place, manner) for place, (*_, manners) in PLACES.items() for manner in manners]
# All was done, and that is seen without the status or the output.
HARMLESS = {("unlock, tar", "is cut"), ("unlock a Go vault, tar", "is cut")}
MOVED = [place for place in PLACES if "mount" in place and "tmpfs" not in place]
HARMLESS |= {(place, f"works, then {end}") for place in MOVED for end in ("fails", "is killed")}
PROGRAMS = [
    "gpg",
    "tar",
    "gzip",
    "openssl",
    "mount",
    "umount",
    "find",
    "truncate",
    "sh",
    "cat",
    "head",
    "sleep",
]


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[Path]:
    """A folder that is all of PATH; it holds the programs that the vault needs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in PROGRAMS:
        (folder / name).symlink_to(str(shutil.which(name)))
    yield folder


def is_refused(world: World, work: Callable[[], object], fakes: Path) -> bool:
    """Whether the word was refused, with the fakes in force; what must hold at once, holds."""
    try:
        with plumbum.local.env(PATH=str(fakes)):
            work()
        refused = False
    except tazpod.TazpodError as error:
        assert str(error).strip() and "\n" not in str(error)
        refused = True
    assert world.leaks() == [], "a secret is on disk"
    return refused


def work_of(world: World, word: str, template: tuple[bytes, Snapshot]) -> Callable[[], object]:
    """Prepare a world for a word; the word."""
    vault = world.vault
    sealed_as(world, template[0])
    if word == "go":
        shutil.copy(GO_DATA / "vault1.tar.aes", vault.sealed)
        return lambda: tazpod.unlock(vault, GO_PASSPHRASE)
    if word in ("save", "lock"):
        world.unlock()
    if word == "save":
        world.put("new", CANARY)
        return lambda: tazpod.save(vault)
    if word == "lock":
        return lambda: tazpod.lock(vault)
    if word == "restore":
        vault.history.mkdir()
        shutil.copy(vault.sealed, vault.history / "vault-20200101T000000.tar.aes")
        return lambda: tazpod.restore(vault, vault.history / "vault-20200101T000000.tar.aes", PASSPHRASE)
    return lambda: tazpod.unlock(vault, PASSPHRASE)


def settle(world: World, word: str, before: dict[str, bytes], tree: Snapshot) -> None:
    """With the real programs back: the old vault is there, whole, and the word works."""
    vault = world.vault
    assert {n: b for n, b in world.disk_state().items() if not n.startswith(".")} == before
    if word == "save":
        assert tazpod.is_open(vault) and world.tree() == tree
        assert tazpod.save(vault) is not None
        assert world.temporaries() == []
    tazpod.lock(vault)
    assert_locked_and_clean(world)
    if word != "go":
        world.unlock()
        assert world.tree() == tree


@pytest.mark.parametrize("fake", FAKES, ids=[f"{place} {manner}" for place, manner in FAKES])
def test_a_program_that_misbehaves_costs_nothing(
    fake: tuple[str, str],
    worlds: Callable[..., World],
    template: tuple[bytes, Snapshot],
    fakes: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, manner = fake
    word, name, words, _ = PLACES[place]
    world = worlds()
    work = work_of(world, word, template)
    (fakes / name).unlink()
    program(fakes, name, f'case "$*" in *"{words.strip()}"*) {MANNERS[manner]};; esac; exec "$REAL" "$@"')
    before = {n: b for n, b in world.disk_state().items() if not n.startswith(".")}
    tree = world.tree() if word == "save" else template[1]
    with monkeypatch.context() as patch:
        patch.setattr(tazpod, "TIME_LIMIT", 1.0 if manner == "hangs" else 60.0)
        refused = is_refused(world, work, fakes)
    assert refused is (fake not in HARMLESS)
    if refused and word in ("unlock", "go", "restore"):
        assert_locked_and_clean(world)
    elif word == "unlock":
        assert world.tree() == tree and world.mounted() == [".aws", "secrets"]
    settle(world, word, before, tree)


@pytest.mark.parametrize("word", ["unlock", "go", "save", "lock", "restore"])
def test_the_fakes_that_do_as_the_real_ones_are_not_refused(
    word: str, worlds: Callable[..., World], template: tuple[bytes, Snapshot], fakes: Path
) -> None:
    world = worlds()
    work = work_of(world, word, template)
    for name in ("gpg", "tar", "openssl", "mount", "umount"):
        (fakes / name).unlink()
        program(fakes, name, 'exec "$REAL" "$@"')
    assert not is_refused(world, work, fakes)


MISSING = {"unlock": ["gpg", "tar", "mount"], "go": ["openssl", "tar"], "save": ["gpg", "tar"]}
MISSING |= {"restore": ["gpg", "tar"], "lock": ["mount", "umount"]}


@pytest.mark.parametrize(("word", "name"), [(w, n) for w, names in MISSING.items() for n in names])
def test_a_program_that_is_missing_costs_nothing(
    word: str, name: str, worlds: Callable[..., World], template: tuple[bytes, Snapshot], fakes: Path
) -> None:
    world = worlds()
    work = work_of(world, word, template)
    before = {n: b for n, b in world.disk_state().items() if not n.startswith(".")}
    tree = world.tree() if word == "save" else template[1]
    (fakes / name).unlink()
    with plumbum.local.env(PATH=str(fakes)), pytest.raises(tazpod.TazpodError, match=name):
        work()
    assert world.leaks() == []
    settle(world, word, before, tree)


def test_a_bridge_that_was_not_made_is_told(
    worlds: Callable[..., World],
    template: tuple[bytes, Snapshot],
    fakes: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for number, manner in enumerate(("fails", "does nothing", "is killed")):
        world = sealed_as(worlds(f"world-{number}"), template[0])
        (fakes / "mount").unlink()
        program(fakes, "mount", f'case "$*" in *--bind*) {MANNERS[manner]};; esac; exec "$REAL" "$@"')
        with plumbum.local.env(PATH=str(fakes)):
            world.unlock()
        assert "the vault's .aws could not be mounted there" in capfd.readouterr().err
        assert world.mounted() == ["secrets"] and world.tree() == template[1]


# ---- archives with intent ----------------------------------------------------------------------------
def reg(name: str, content: bytes = b"evil", **settings: object) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, size=len(content), **settings), content


def odd(name: str, kind: bytes, target: str = "", **settings: object) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, kind, linkname=target, **settings), b""


def hostile(out: str) -> dict[str, list[tuple[tarfile.TarInfo, bytes]]]:
    """Archives that reach for the folder `out`."""
    up = "../" * 30
    link, hard = tarfile.SYMTYPE, tarfile.LNKTYPE
    return {
        "a name that goes up": [reg(f"{up}{out}/new")],
        "a name that goes up from within": [reg(f"a/../{up}{out}/new")],
        "an absolute name": [reg(f"{out}/new")],
        "a name of dots": [reg("..")],
        "through an absolute link": [odd("l", link, out), reg("l/new")],
        "over an absolute link": [odd("l", link, f"{out}/kept"), reg("l")],
        "through a link that goes up": [odd("l", link, f"{up}{out}"), reg("l/new")],
        "through two links": [odd("a", link, "b"), odd("b", link, out), reg("a/new")],
        "through a link to a link's folder": [
            odd("d", tarfile.DIRTYPE, mode=0o755),
            odd("d/l", link, "../../../../../../../../../../../" + out),
            reg("d/l/new"),
        ],
        "through a link that becomes a folder": [
            odd("l", link, out),
            odd("l", tarfile.DIRTYPE, mode=0o777),
            reg("l/new"),
        ],
        "a hard link to outside": [odd("h", hard, f"{out}/kept"), reg("h")],
        "a hard link that goes up": [odd("h", hard, f"{up}{out}/kept"), reg("h")],
        "a hard link through a link": [odd("l", link, out), odd("h", hard, "l/kept"), reg("h")],
        "a hard link to a link, then written": [odd("l", link, f"{out}/kept"), odd("h", hard, "l"), reg("h")],
        "devices": [
            odd("null", tarfile.CHRTYPE, devmajor=1, devminor=3),
            odd("disk", tarfile.BLKTYPE, devmajor=8, devminor=0),
        ],
        "a fifo": [odd("fifo", tarfile.FIFOTYPE)],
        "a fifo, then written": [odd("fifo", tarfile.FIFOTYPE), reg("fifo")],
        "set-uid": [reg("suid", b"#!/bin/sh\n", mode=0o6755)],
        "its own passphrase file as a link": [odd(".vault_pass", link, f"{out}/kept"), reg("x")],
        "its own passphrase file as a folder": [odd(".vault_pass", tarfile.DIRTYPE), reg(".vault_pass/x")],
        "its own state file as a link": [odd(".vault_state", link, f"{out}/kept")],
        "its own next passphrase": [reg(".vault_pass.next", b"0\nevil")],
        ".aws as a link": [odd(".aws", link, out)],
        ".aws as a file": [reg(".aws")],
        "an open root": [odd("./", tarfile.DIRTYPE, mode=0o777), reg("x")],
        "a root that is a link": [odd(".", link, out), reg("new")],
        "a bomb": [reg("bomb", bytes(3 << 20))],
        "a bomb in pieces": [reg(f"bomb-{n}", bytes(100 << 10)) for n in range(30)],
        "a size that lies": [(member("x", size=1 << 30), b"")],
        "many links deep": [odd("/".join(["d"] * n), tarfile.DIRTYPE, mode=0o755) for n in range(1, 200)],
    }


HARMLESS_ARCHIVES = {"devices", "a fifo", "a fifo, then written", "set-uid", "an open root"}
HARMLESS_ARCHIVES |= {"its own passphrase file as a link", "its own state file as a link"}
HARMLESS_ARCHIVES |= {"its own next passphrase", ".aws as a link", ".aws as a file", "many links deep"}
HARMLESS_ARCHIVES |= {"over an absolute link", "a hard link to a link, then written"}
HARMLESS_ARCHIVES |= {"through a link that becomes a folder"}


@pytest.mark.parametrize("name", list(hostile("")))
@pytest.mark.parametrize(
    "form", [tarfile.PAX_FORMAT, pytest.param(tarfile.GNU_FORMAT, marks=pytest.mark.long)], ids=["pax", "gnu"]
)
def test_a_hostile_archive_changes_nothing_outside(
    name: str, form: int, worlds: Callable[..., World], tmp_path: Path
) -> None:
    out = tmp_path / "outside"
    out.mkdir()
    (out / "kept").write_bytes(b"as it was")
    (out / "kept").chmod(0o640)
    before = {p.name: (p.read_bytes(), p.stat().st_mode, p.stat().st_nlink) for p in out.iterdir()}
    world = sealed_as(worlds(size="1m"), gpg_seal(make_tar(hostile(str(out))[name], form)))
    opened = False
    try:
        world.unlock()
        opened = True
    except REFUSALS as error:
        assert name not in HARMLESS_ARCHIVES, f"harmless, yet refused: {error}"
        if "bomb" in name:
            assert "larger than the RAM" in str(error)
        assert world.mounted() == [] and not tazpod.is_open(world.vault)
    assert opened is (name in HARMLESS_ARCHIVES)
    assert {p.name: (p.read_bytes(), p.stat().st_mode, p.stat().st_nlink) for p in out.iterdir()} == before
    assert world.leaks(b"evil") == []
    if opened:
        assert stat.S_IMODE(world.open.stat().st_mode) == 0o700
        assert (world.open / ".vault_pass").read_bytes() == PASSPHRASE
        assert not (world.open / ".vault_pass").is_symlink()
        world.put("after", "x")
        assert tazpod.save(world.vault) is not None
        before_lock = {n: e for n, e in world.tree().items() if stat.S_IFMT(int(e[0], 8)) in KEPT_KINDS}
        tazpod.lock(world.vault)
        assert world.mounted() == []
        world.unlock()
        assert world.tree() == before_lock
    assert {p.name: (p.read_bytes(), p.stat().st_mode, p.stat().st_nlink) for p in out.iterdir()} == before


def odd_archives() -> dict[str, bytes]:
    """What tar makes something of, or nothing."""
    file = make_tar([reg("secret", b"x")])
    return {
        "nothing at all": b"",
        "an end and nothing before": bytes(10_240),
        "no end": file[:1024],
        "half a header": file[:300],
        "half a file": make_tar([reg("secret", bytes(5000))])[:3000],
        "garbage behind the end": file + b"garbage" * 1000,
        "garbage": b"garbage" * 1000,
        "two archives": file + file,
        "a name twice": make_tar([reg("secret", b"1"), reg("secret", b"22")]),
        "only our own names": make_tar([reg(".vault_pass", b"x"), reg(".vault_state", b"x")]),
        "a folder that nobody may enter": make_tar(
            [odd("dark", tarfile.DIRTYPE, mode=0), reg("dark/file", mode=0)]
        ),
        "a file in a file": make_tar([reg("a"), reg("a/b")]),
        "many names": make_tar([reg(f"{n}", b"") for n in range(4000)]),
        "a name with a newline": make_tar([reg("a\nb"), reg("c")]),
    }


def outcome(word: Callable[[], object]) -> bool:
    try:
        word()
        return True
    except REFUSALS:
        return False


ODD = [*odd_archives(), *hostile("")]


@pytest.mark.parametrize("name", ODD)
def test_unlock_verify_and_restore_are_of_one_mind(
    name: str, worlds: Callable[..., World], tmp_path: Path
) -> None:
    out = tmp_path / "outside"
    out.mkdir()
    (out / "kept").touch()
    archive = odd_archives().get(name)
    if archive is None:
        archive = make_tar(hostile(str(out))[name])
    sealed = gpg_seal(archive)
    world = sealed_as(worlds(size="1m"), sealed)
    vault = world.vault
    vault.history.mkdir()
    version = vault.history / "vault-20200101T000000.tar.aes"
    version.write_bytes(sealed)
    verified = outcome(lambda: tazpod.verify(vault, vault.sealed, PASSPHRASE))
    assert world.mounted() == [] and world.leaks(b"evil") == []
    vault.sealed.unlink()
    restored = outcome(lambda: tazpod.restore(vault, version, PASSPHRASE))
    assert vault.sealed.exists() is restored
    vault.sealed.write_bytes(sealed)
    opened = outcome(world.unlock)
    assert (verified, restored) == (opened, opened)


KEPT_KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)


def test_the_open_vault_runs_nothing_and_obeys_no_device(worlds: Callable[..., World]) -> None:
    world = worlds()
    world.unlock()
    world.put("script", "#!/bin/sh\nexit 0\n")
    (world.open / "script").chmod(0o6755)
    os.mknod(world.open / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with pytest.raises(PermissionError):
        subprocess.run([world.open / "script"])
    with pytest.raises(PermissionError):
        (world.open / "null").read_bytes()


def test_a_hundred_thousand_entries_open(worlds: Callable[..., World]) -> None:
    world = worlds(size="64m")
    names = [f"{n % 100}/{n}" for n in range(100_000)]
    sealed_as(world, gpg_seal(make_tar([reg(name, b"") for name in names], tarfile.USTAR_FORMAT)))
    tree = tazpod.unlock(world.vault, PASSPHRASE)
    assert tree.files == 100_000
    assert sum(len(files) for _, _, files in os.walk(world.open)) == 100_002  # and two of ours
    tazpod.lock(world.vault)
    assert_locked_and_clean(world)


def test_a_hole_of_an_exbibyte_costs_no_time(worlds: Callable[..., World], tmp_path: Path) -> None:
    """It takes a kilobyte to seal; whoever read it to its end would still be at it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        with open(f"{folder}/hole", "wb") as file:
            file.write(b"data")
            file.truncate(1 << 60)
        archive = run("tar", "c", "--format=posix", "--sparse", "-C", folder, "./hole")
    world = sealed_as(worlds(size="1m"), gpg_seal(archive))
    world.unlock()
    assert (world.open / "hole").stat().st_size == 1 << 60
    assert tazpod.save(world.vault) is None


# ---- places that cannot be written or are not what they should be ------------------------------------
@pytest.fixture
def opened(worlds: Callable[..., World], template: tuple[bytes, Snapshot]) -> World:
    world = sealed_as(worlds(), template[0])
    world.unlock()
    return world


@contextlib.contextmanager
def tiny_folder(world: World, size: str) -> Iterator[None]:
    """The vault's folder on a file system of its own, almost full."""
    sealed = world.vault.sealed.read_bytes()
    run("mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", world.vault.folder)
    try:
        world.vault.sealed.write_bytes(sealed)
        yield
    finally:
        run("umount", "-l", world.vault.folder)


@pytest.mark.parametrize("size", ["16k", "20k", "24k", "28k", "32k"])
def test_no_space_for_the_sealed_vault_keeps_the_old_one(
    opened: World, size: str, template: tuple[bytes, Snapshot]
) -> None:
    with tiny_folder(opened, size):
        opened.put("new", os.urandom(20_000))
        tree = opened.tree()
        with pytest.raises(REFUSALS, match=r"(?i)no space left"):
            tazpod.save(opened.vault)
        assert opened.vault.sealed.read_bytes() == template[0] and opened.temporaries() == []
        assert opened.tree() == tree
    assert tazpod.save(opened.vault) is not None


@pytest.mark.parametrize("part", ["gpg runs out", "the history runs out"])
def test_a_size_limit_hit_while_sealing_keeps_the_old_one(
    opened: World, part: str, template: tuple[bytes, Snapshot]
) -> None:
    opened.put("new", os.urandom(40_000))
    tree = opened.tree()
    if part == "the history runs out":
        opened.vault.history.mkdir()
        run("mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", opened.vault.history)
        (opened.vault.history / "full").write_bytes(bytes(4096))
    else:
        run("mount", "--bind", opened.vault.folder, opened.vault.folder)
        run("mount", "-o", "remount,bind,ro", opened.vault.folder)
    with pytest.raises(REFUSALS):
        tazpod.save(opened.vault)
    run("umount", opened.vault.history if part == "the history runs out" else opened.vault.folder)
    assert opened.vault.sealed.read_bytes() == template[0] and opened.temporaries() == []
    assert opened.tree() == tree
    assert tazpod.save(opened.vault) is not None


def test_a_vault_larger_than_its_ram_does_not_open(
    worlds: Callable[..., World], template: tuple[bytes, Snapshot]
) -> None:
    large = sealed_as(worlds("large"), template[0])
    large.unlock()
    large.put("large", CANARY * (3 << 20 >> 4))
    tazpod.save(large.vault)
    small = sealed_as(worlds("small", size="1m"), large.vault.sealed.read_bytes())
    before = small.disk_state()
    with pytest.raises(tazpod.VaultError, match="larger than the RAM") as caught:
        small.unlock()
    assert "vault.size" in caught.value.hint
    assert_locked_and_clean(small)
    assert small.disk_state() == before


def test_a_full_open_vault_is_saved_and_locked(worlds: Callable[..., World]) -> None:
    world = worlds(size="1m")
    world.unlock()
    world.put("first", "x")
    tazpod.save(world.vault)
    with open(world.open / "filler", "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(os.urandom(4096))
    tree = world.tree()
    with pytest.raises(REFUSALS, match=r"(?i)no space left"):
        tazpod.save(world.vault, passphrase=OTHER)
    assert tazpod.save(world.vault) is not None
    assert tazpod.save(world.vault) is None
    tazpod.lock(world.vault)
    world.unlock()
    assert world.tree() == tree


@contextlib.contextmanager
def elsewhere(path: Path, kind: str) -> Iterator[None]:
    """Something else in the place of a sealed file or a folder, for a while."""
    aside = path.with_name(f"{path.name}.aside")
    path.rename(aside)
    if kind == "a folder":
        path.mkdir()
    elif kind == "a fifo":
        os.mkfifo(path)
    elif kind == "a link":
        path.symlink_to(aside)
    elif kind == "a dangling link":
        path.symlink_to("nowhere")
    elif kind == "a device":
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    else:
        path.write_bytes(b"")
    try:
        yield
    finally:
        shutil.rmtree(path) if kind == "a folder" else path.unlink()
        aside.rename(path)


@pytest.mark.parametrize("kind", ["a folder", "a fifo", "a link", "a dangling link", "a device", "0 bytes"])
def test_a_sealed_file_that_is_none_is_refused(
    opened: World, kind: str, template: tuple[bytes, Snapshot]
) -> None:
    opened.put("new", "x")
    tree = opened.tree()
    with elsewhere(opened.vault.sealed, kind):
        if kind != "0 bytes":
            with pytest.raises(tazpod.VaultError, match=r"vault\.tar\.aes"):
                tazpod.save(opened.vault)
        assert opened.tree() == tree
        tazpod.lock(opened.vault)
        for word in (opened.unlock, lambda: tazpod.verify(opened.vault, opened.vault.sealed, PASSPHRASE)):
            with pytest.raises(tazpod.VaultError, match=r"vault\.tar\.aes"):
                word()
        assert_locked_and_clean(opened)
    assert opened.vault.sealed.read_bytes() == template[0]
    opened.unlock()


def test_a_save_over_an_empty_file_makes_a_whole_one(opened: World) -> None:
    opened.vault.sealed.write_bytes(b"")
    tree = opened.tree()
    assert tazpod.save(opened.vault) is not None
    tazpod.lock(opened.vault)
    opened.unlock()
    assert opened.tree() == tree
    assert tazpod.versions(opened.vault) == []


@pytest.mark.parametrize("kind", ["a link", "somebody else's", "a file"])
def test_a_vault_folder_that_is_not_ours_is_refused(opened: World, kind: str) -> None:
    opened.put("new", "x")
    folder, tree = opened.vault.folder, opened.tree()
    before = opened.disk_state()
    with contextlib.ExitStack() as stack:
        if kind == "somebody else's":
            os.chown(folder, 1234, 1234)
            stack.callback(os.chown, folder, 0, 0)
        else:
            stack.enter_context(elsewhere(folder, kind))
        for word in (tazpod.save, tazpod.lock, lambda vault: tazpod.verify(vault, vault.sealed, PASSPHRASE)):
            with pytest.raises(REFUSALS, match="vault"):
                word(opened.vault)
        assert opened.tree() == tree
    assert opened.disk_state() == before
    assert tazpod.save(opened.vault) is not None


def test_a_save_into_a_read_only_folder_is_refused_and_the_vault_stays_open(opened: World) -> None:
    opened.put("new", "x")
    folder, tree, before = opened.vault.folder, opened.tree(), opened.disk_state()
    run("mount", "--bind", folder, folder)
    run("mount", "-o", "remount,bind,ro", folder)
    try:
        with pytest.raises(REFUSALS, match="vault"):
            tazpod.save(opened.vault)
        assert opened.tree() == tree
    finally:
        run("umount", folder)
    assert opened.disk_state() == before
    assert tazpod.save(opened.vault) is not None


@pytest.mark.parametrize("kind", ["0 bytes", "a dangling link"])
def test_a_history_that_is_no_folder_keeps_the_old_vault(
    opened: World, kind: str, template: tuple[bytes, Snapshot]
) -> None:
    opened.vault.history.mkdir()
    opened.put("new", "x")
    with elsewhere(opened.vault.history, kind):
        with pytest.raises(REFUSALS, match="history"):
            tazpod.save(opened.vault)
        assert opened.vault.sealed.read_bytes() == template[0] and opened.temporaries() == []
    assert tazpod.save(opened.vault) is not None


@pytest.mark.parametrize("name", ["secrets", ".secrets.transit"])
@pytest.mark.parametrize("kind", ["files", "a link", "a file"])
def test_secrets_never_land_on_a_disk(
    worlds: Callable[..., World], template: tuple[bytes, Snapshot], name: str, kind: str
) -> None:
    world = sealed_as(worlds(), template[0])
    place = world.vault.home / name
    if kind == "files":
        place.mkdir()
        (place / "mine").touch()
    elif kind == "a link":
        (world.root / "elsewhere").mkdir()
        place.symlink_to(world.root / "elsewhere")
    else:
        place.touch()
    with pytest.raises(tazpod.VaultError, match=name):
        world.unlock()
    assert world.mounted() == [] and world.leaks() == []
    assert kind != "files" or (place / "mine").exists()


@pytest.mark.parametrize("place", ["secrets", ".secrets.transit"])
def test_a_mount_that_is_no_tmpfs_is_no_vault(
    worlds: Callable[..., World], template: tuple[bytes, Snapshot], place: str
) -> None:
    world = sealed_as(worlds(), template[0])
    (world.root / "disk").mkdir()
    (world.vault.home / place).mkdir()
    run("mount", "--bind", world.root / "disk", world.vault.home / place)
    for word in (world.unlock, lambda: tazpod.save(world.vault), lambda: tazpod.lock(world.vault)):
        with pytest.raises(tazpod.VaultError):
            word()
    assert world.leaks() == [] and list((world.root / "disk").iterdir()) == []


def test_a_stray_tmpfs_is_no_open_vault(worlds: Callable[..., World]) -> None:
    world = worlds()
    tazpod.check_folder(world.vault)
    world.open.mkdir()
    run("mount", "-t", "tmpfs", "tmpfs", world.open)
    world.put("secret", CANARY)
    with pytest.raises(tazpod.VaultError, match="holds no finished unlock"):
        tazpod.save(world.vault)
    assert not world.vault.sealed.exists() and world.leaks() == []
    tazpod.lock(world.vault)
    assert_locked_and_clean(world)


# ---- several at once ---------------------------------------------------------------------------------
def at_once(*works: Callable[[], object]) -> None:
    """Each in a process of its own, at the same time; none may fail."""
    children = [Child(work) for work in works]
    assert [child.wait(120) for child in children] == [0] * len(works)


def saver(world: World, number: int, rounds: int) -> Callable[[], object]:
    def work() -> None:
        for turn in range(rounds):
            tazpod.write_whole(world.open / f"from-{number}", b"%d" % turn)
            tazpod.save(world.vault)

    return work


def reader(world: World, rounds: int) -> Callable[[], object]:
    """Unseals whatever lies there, without any lock, as a copy program would read it."""

    def work() -> None:
        for _ in range(rounds):
            fd = tazpod.open_sealed_file(world.vault.sealed)
            try:
                assert b"secret" in tazpod.unseal(fd, PASSPHRASE, ["tar", "--list"])
            finally:
                os.close(fd)

    return work


def puller(world: World, data: list[bytes], rounds: int) -> Callable[[], object]:
    """Replaces the sealed file, under the lock as a pull does."""

    def work() -> None:
        for turn in range(rounds):
            with tazpod.exclusive(world.vault):
                tazpod.write_whole(world.vault.sealed, data[turn % len(data)])

    return work


def crowd(world: World, rounds: int) -> None:
    """Two savers and two readers, then a saver, a puller and a reader."""
    at_once(saver(world, 1, rounds), saver(world, 2, rounds), reader(world, rounds), reader(world, rounds))
    tree = world.tree()
    assert world.temporaries() == []
    assert tazpod.save(world.vault) is None, "the last save has all that both wrote"
    tazpod.lock(world.vault)
    world.unlock()
    assert world.tree() == tree
    pulled = [p.read_bytes() for p in tazpod.versions(world.vault)]
    at_once(saver(world, 3, rounds), puller(world, pulled, 5 * rounds), reader(world, rounds))
    world.put("last", "the later content wins")
    tazpod.save(world.vault)
    tree = world.tree()
    tazpod.lock(world.vault)
    world.unlock()
    assert world.tree() == tree


def test_savers_readers_and_a_pull_at_once(opened: World) -> None:
    """Short form: 8 rounds each."""
    crowd(opened, 8)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_savers_readers_and_a_pull_at_once_two_hundred_times(opened: World) -> None:
    crowd(opened, 200)


def test_what_changes_between_save_and_lock_keeps_the_vault_open(opened: World) -> None:
    vault = opened.vault
    tazpod.save(vault, force=True)
    (vault.mount / "late").write_bytes(b"late")
    assert tazpod.lock(vault, saved=True) is None and tazpod.is_open(vault)
    tazpod.save(vault)
    assert tazpod.lock(vault, saved=True) == [] and not tazpod.is_open(vault)


def test_what_is_written_just_before_the_vault_goes_is_not_lost(
    opened: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault, real = opened.vault, tazpod.move_mount

    def write_and_move(source: Path, target: Path, *more: Sequence[str]) -> bool:
        if source == vault.mount:
            (source / "late").write_bytes(b"late")
        return bool(real(source, target, *more))

    tazpod.save(vault, force=True)
    with monkeypatch.context() as patch:
        patch.setattr(tazpod, "move_mount", write_and_move)
        assert tazpod.lock(vault, saved=True) is None
    assert tazpod.is_open(vault) and (vault.mount / "late").read_bytes() == b"late"
    assert opened.mounted() == [".aws", "secrets"]
    opened.put("later", "x")
    tazpod.save(vault)
    assert tazpod.lock(vault, saved=True) == []


def test_nothing_is_written_while_the_last_look_is_taken_and_who_comes_then_keeps_the_vault(
    opened: World,
) -> None:
    vault = opened.vault
    looks: list[str] = []

    def somebody_comes() -> bool:
        here = os.open(vault.transit, os.O_RDONLY | os.O_DIRECTORY)  # as one does who stood in the vault
        try:
            os.open("new", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=here)
        except OSError as error:
            looks.append(str(error.strerror))
        finally:
            os.close(here)
        (vault.home / ".aws").mkdir(exist_ok=True)
        return True

    tazpod.save(vault)
    assert tazpod.lock(vault, saved=True, wanted=somebody_comes) is None
    assert looks == ["Read-only file system"]
    opened.put("new", "x")
    (vault.home / ".aws/token").write_bytes(b"x")
    assert tazpod.save(vault) is not None

    def fails() -> bool:
        raise tazpod.VaultError("no")

    with pytest.raises(tazpod.VaultError):
        tazpod.lock(vault, saved=True, wanted=fails)
    opened.put("newer", "x")
    assert tazpod.lock(vault) == []
    assert_locked_and_clean(opened)


def test_a_lock_waits_for_a_save(opened: World) -> None:
    opened.put("new", os.urandom(2 << 20))
    tree = opened.tree()
    child = Child(lambda: tazpod.save(opened.vault))
    assert eventually(opened.temporaries), "the save has begun"
    tazpod.lock(opened.vault)
    assert child.wait() == 0
    opened.unlock()
    assert opened.tree() == tree


def test_a_save_while_somebody_writes_is_whole_or_refused(opened: World) -> None:
    def scribble() -> None:
        for number in range(1_000_000):
            (opened.open / "busy").write_bytes(b"%d" % number * 1000)

    opened.put("steady", CANARY)
    child = Child(scribble)
    try:
        for _ in range(3):
            with contextlib.suppress(tazpod.VaultError):
                tazpod.save(opened.vault)
    finally:
        child.signal(signal.SIGKILL)
        child.wait()
    assert opened.temporaries() == []
    assert tazpod.save(opened.vault) is not None
    tree = opened.tree()
    tazpod.lock(opened.vault)
    opened.unlock()
    assert opened.tree() == tree


# ---- a lock while something sits in the vault --------------------------------------------------------
HOLDER = """
import mmap, os, sys
how, place = sys.argv[1:]
if how in ("cwd", "folder"):
    os.chdir(place if how == "cwd" else place + "/folder")
else:
    file = open(os.path.expanduser("~/.aws/credentials") if how == "bridge" else place + "/secret", "rb")
if how == "map":
    view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    file.close()
print("ready", flush=True)
sys.stdin.readline()
def read():
    if how == "cwd":
        return os.listdir(".") + [open("secret").read()]
    if how == "folder":
        return os.listdir(".") + os.listdir("..") + [open("../secret").read()]
    return view[:] if how == "map" else file.read() + os.pread(file.fileno(), 1000, 0)
try:
    print(repr(read()))
except OSError as error:
    print(repr(error))
try:
    print(os.listdir(place))
    print(open(place + "/secret").read())
except OSError as error:
    print(repr(error))
"""


@pytest.fixture
def holders(opened: World) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(how: str) -> subprocess.Popen[str]:
        opened.put(".aws/credentials", CANARY)
        argv = [sys.executable, "-c", HOLDER, how, str(opened.open)]
        environment = {**os.environ, "HOME": str(opened.vault.home)}
        pipe = subprocess.PIPE
        process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, env=environment)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


HOWS = ["cwd", "folder", "descriptor", "map", "bridge"]


@pytest.mark.parametrize("how", HOWS)
def test_what_sits_in_the_vault_is_named_and_reads_nothing_more(
    opened: World, holders: Callable[[str], subprocess.Popen[str]], how: str
) -> None:
    process = holders(how)
    named = tazpod.lock(opened.vault)
    assert [n.split()[0] for n in named] == [str(process.pid)] and "python" in named[0]
    assert_locked_and_clean(opened)
    told = process.communicate("\n")[0]
    assert CANARY.decode() not in told
    if how == "map":
        assert process.returncode == -signal.SIGBUS  # the page it looked at is gone
    elif how in ("descriptor", "bridge"):
        assert told.splitlines()[0] == "b''"
    opened.unlock()
    assert (opened.open / "secret").read_bytes() == CANARY


def test_all_that_sit_in_the_vault_are_named(
    opened: World, holders: Callable[[str], subprocess.Popen[str]]
) -> None:
    pids = {str(holders(how).pid) for how in HOWS}
    assert {n.split()[0] for n in tazpod.lock(opened.vault)} == pids
    assert_locked_and_clean(opened)


def test_a_lock_killed_while_it_destroys_leaves_no_open_vault(
    opened: World,
    holders: Callable[[str], subprocess.Popen[str]],
    fakes: Path,
    template: tuple[bytes, Snapshot],
) -> None:
    """Killed before the first file is truncated: the worst moment."""
    process = holders("descriptor")
    (fakes / "mount").unlink()
    wait = f"*,rw*) echo >{fakes}/reached; exec sleep 1000"
    program(fakes, "mount", f'case "$*" in {wait};; esac; exec "$REAL" "$@"')

    def work() -> None:
        with plumbum.local.env(PATH=str(fakes)):
            tazpod.lock(opened.vault)

    child = Child(work)
    assert eventually((fakes / "reached").exists)
    child.signal(signal.SIGKILL, group=True)
    child.wait()
    assert not tazpod.is_open(opened.vault)
    with pytest.raises(tazpod.VaultError, match="locked"):
        tazpod.save(opened.vault)
    assert [n.split()[0] for n in tazpod.lock(opened.vault)] == [str(process.pid)]
    assert_locked_and_clean(opened)
    assert CANARY.decode() not in process.communicate("\n")[0]
    opened.unlock()
    assert opened.tree() == template[1]


def test_an_unlock_after_a_killed_lock_starts_from_the_sealed_file(
    opened: World, template: tuple[bytes, Snapshot]
) -> None:
    opened.put("unsaved", "x")
    for point in mount_points(opened.vault.home / ".aws"):
        run("umount", point)
    run("mount", "--move", opened.open, opened.vault.transit)  # as far as the killed lock came
    assert not tazpod.is_open(opened.vault)
    opened.unlock()
    assert opened.tree() == template[1]
    assert opened.mounted() == [".aws", "secrets"]


def test_every_place_that_shows_the_vault_is_emptied_by_the_lock(opened: World) -> None:
    others = [opened.root / "shown", opened.vault.home / "also"]
    for place in others:
        place.mkdir()
        run("mount", "--bind", opened.open, place)
    tazpod.lock(opened.vault)
    assert_locked_and_clean(opened)
    assert mount_points(opened.root) == [str(opened.vault.home)]
    assert [list(place.iterdir()) for place in others] == [[], []]


# ---- a lock where somebody holds the vault in another way -------------------------------------------
# Told to, it prints how many bytes it reads of all files in the vault, and of one that it has deleted.
WATCHER = """
import os, sys
place = sys.argv[1]
held = open(place + "/deleted", "rb")
os.unlink(place + "/deleted")
print("ready", flush=True)
sys.stdin.readline()
total = len(os.pread(held.fileno(), 1 << 20, 0))
for folder, folders, names in os.walk(place):
    for name in names:
        try:
            with open(os.path.join(folder, name), "rb") as file:
                total += len(file.read())
        except OSError:
            pass
print(total)
"""
HIDDEN = ["of another mount namespace", "of another user and mount namespace", "of an overlay elsewhere"]


def fill_awkwardly(world: World) -> None:
    """Files that do not like to be emptied."""
    world.put("deleted", CANARY)
    world.put("folder/deep/secret", CANARY)
    for mode in (0, 0o400, 0o444):
        world.put(f"mode-{mode:o}", CANARY)
        (world.open / f"mode-{mode:o}").chmod(mode)
    world.put("dark/inside", CANARY)
    (world.open / "dark").chmod(0)
    os.link(world.open / "secret", world.open / "folder/hard link")
    for flag in ("i", "a"):
        world.put(f"fixed-{flag}", CANARY)
        subprocess.run(["chattr", f"+{flag}", world.open / f"fixed-{flag}"], capture_output=True)


# Mounts other file systems until one gets the number that the vault had.
STRANGER = """
import os, subprocess, sys
for _ in range(500):
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", sys.argv[1]], check=True)
    if os.stat(sys.argv[1]).st_dev == int(sys.argv[2]):
        break
print("ready", flush=True)
sys.stdin.readline()
"""


def test_who_has_another_file_system_under_the_number_of_the_vault_is_not_named(
    opened: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    erase = tazpod.erase_and_unmount
    device = opened.open.stat().st_dev
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    pipe = subprocess.PIPE
    strangers = []

    def erase_and_give_the_number_away(vault: tazpod.Vault, mount: object) -> bool:
        gone = erase(vault, mount)
        argv = ["unshare", "-m", sys.executable, "-c", STRANGER, str(elsewhere), str(device)]
        stranger = subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True)
        strangers.append(stranger)
        assert stranger.stdout is not None and stranger.stdout.readline() == "ready\n"
        return gone

    monkeypatch.setattr(tazpod, "erase_and_unmount", erase_and_give_the_number_away)
    try:
        assert tazpod.lock(opened.vault) == []
        assert strangers
    finally:
        for stranger in strangers:
            stranger.communicate("\n")


@pytest.mark.parametrize("how", HIDDEN)
def test_whoever_holds_the_vault_unseen_reads_nothing_after_the_lock(
    opened: World, tmp_path: Path, how: str
) -> None:
    place = opened.open
    prefix = {HIDDEN[0]: ["unshare", "-m"], HIDDEN[1]: ["unshare", "-Urm"], HIDDEN[2]: []}[how]
    if how == HIDDEN[2]:
        (tmp_path / "upper").mkdir()
        run("mount", "-t", "tmpfs", "tmpfs", tmp_path / "upper")
        for name in ("up", "work"):
            (tmp_path / "upper" / name).mkdir()
        place = tmp_path / "overlay"
        place.mkdir()
    fill_awkwardly(opened)
    if how == HIDDEN[2]:
        parts = f"lowerdir={opened.open},upperdir={tmp_path}/upper/up,workdir={tmp_path}/upper/work"
        run("mount", "-t", "overlay", "-o", parts, "overlay", place)
    pipe = subprocess.PIPE
    argv = [*prefix, sys.executable, "-c", WATCHER, str(place)]
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as watcher:
        try:
            assert watcher.stdout is not None and watcher.stdout.readline() == "ready\n"
            named = [name.split()[0] for name in tazpod.lock(opened.vault)]
            assert_locked_and_clean(opened)
            assert watcher.communicate("\n")[0] == "0\n"
            if prefix:
                assert str(watcher.pid) in named
        finally:
            watcher.kill()
            for point in (tmp_path / "overlay", tmp_path / "upper"):
                subprocess.run(["umount", "-l", point], capture_output=True)
    opened.unlock()
    assert (opened.open / "secret").read_bytes() == CANARY


def test_what_a_mount_inside_the_vault_hides_is_emptied_too(opened: World) -> None:
    opened.put("folder/secret", CANARY)
    with open(opened.open / "folder/secret", "rb") as held:
        run("mount", "-t", "tmpfs", "tmpfs", opened.open / "folder")
        tazpod.lock(opened.vault)
        assert held.read() == b""
    assert_locked_and_clean(opened)


def test_what_is_written_by_a_path_while_it_is_locked_is_refused(
    opened: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a program writes to ~/.aws after the last look would be erased, and nobody would know."""
    for number in range(300):
        opened.put(f"many/{number}", CANARY)
    tazpod.save(opened.vault)
    device = opened.open.stat().st_dev
    destroy = tazpod.destroy_vault
    token = opened.vault.home / ".aws/token"
    kept: list[int] = []
    refused: list[int] = []

    def write() -> None:
        while token.parent.stat().st_dev == device:
            try:
                with open(token, "w") as file:
                    if os.fstat(file.fileno()).st_dev == device:
                        kept.append(device)
            except OSError as error:
                refused.append(error.errno or 0)

    def destroy_under_a_writer(vault: tazpod.Vault) -> list[str]:
        writer = threading.Thread(target=write)
        writer.start()
        try:
            return destroy(vault)
        finally:
            writer.join()

    monkeypatch.setattr(tazpod, "destroy_vault", destroy_under_a_writer)
    assert tazpod.lock(opened.vault, saved=True) == []
    assert kept == []
    assert set(refused) <= {errno.EROFS}
    assert_locked_and_clean(opened)


SHORT_WRITER = """
import sys
held = open(sys.argv[1], "w")
print("ready", flush=True)
sys.stdin.readline()
held.write("what was written late")
held.close()
print("written", flush=True)
sys.stdin.readline()
"""


def test_what_somebody_writes_who_held_a_file_is_saved_or_he_is_named(
    opened: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is open for writing keeps it from freezing; it is written after that file was compared."""
    opened.put("late", "before")
    tazpod.save(opened.vault)
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", SHORT_WRITER, str(opened.open / "late")]
    is_unsaved = tazpod.is_unsaved
    looks: list[bool] = []
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as writer:
        assert writer.stdin and writer.stdout and writer.stdout.readline() == "ready\n"
        tazpod.save(opened.vault)

        def look_and_let_it_write(root: Path) -> bool:
            looks.append(is_unsaved(root))
            if len(looks) == 1:
                assert writer.stdin and writer.stdout
                print(file=writer.stdin, flush=True)
                assert writer.stdout.readline() == "written\n"
            return looks[-1]

        monkeypatch.setattr(tazpod, "is_unsaved", look_and_let_it_write)
        assert tazpod.lock(opened.vault, saved=True) is None
        assert looks == [False, True]
        assert (opened.vault.home / ".aws").stat().st_dev == opened.open.stat().st_dev
        tazpod.save(opened.vault)
        assert tazpod.lock(opened.vault, saved=True) == []
        writer.communicate("\n")
    assert_locked_and_clean(opened)
    opened.unlock()
    assert (opened.open / "late").read_text() == "what was written late"


def test_below_a_mount_that_is_shared_the_vault_opens_and_locks(opened: World) -> None:
    """Who runs containers in the container makes its mounts shared, from where the kernel moves nothing."""
    home = str(opened.vault.home)
    run("mount", "--make-shared", home)
    opened.put("late", "written")
    tazpod.save(opened.vault)
    assert tazpod.lock(opened.vault, saved=True) == []
    assert_locked_and_clean(opened)
    opened.unlock()
    assert (opened.open / "late").read_text() == "written"
    assert tazpod.lock(opened.vault, saved=True) == []
    assert_locked_and_clean(opened)
    assert run("findmnt", "-no", "PROPAGATION", home).strip() == b"shared"


def test_attributes_of_a_destroyed_vault_are_gone_where_somebody_still_shows_it(opened: World) -> None:
    names = [f"user.key{number}" for number in range(24)]
    opened.put("held", CANARY)
    for name in names:
        os.setxattr(opened.open, name, CANARY * 500)
    os.setxattr(opened.open / "held", "user.key", CANARY)
    script = "import os, sys; sys.stdin.readline(); print(os.listxattr(sys.argv[1]), os.listxattr(3))"
    argv = ["unshare", "-m", "sh", "-c", 'exec 3<"$1/held"; echo; exec "$0" -c "$2" "$1"', sys.executable]
    pipe = subprocess.PIPE
    with subprocess.Popen([*argv, str(opened.open), script], stdin=pipe, stdout=pipe, text=True) as watcher:
        assert watcher.stdout and watcher.stdout.readline() == "\n"
        (named,) = tazpod.lock(opened.vault) or ()
        assert named.split()[0] == str(watcher.pid)
        assert watcher.communicate("\n")[0] == "[] []\n"
    assert_locked_and_clean(opened)
    opened.unlock()


def test_a_link_in_the_place_where_a_vault_is_set_aside_leads_nobody_astray(
    opened: World, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    opened.vault.transit.rmdir()
    opened.vault.transit.symlink_to(tmp_path / "elsewhere")
    assert tazpod.lock(opened.vault) == []
    assert_locked_and_clean(opened)


def test_an_open_vault_that_is_covered_is_not_called_open_nor_locked(opened: World) -> None:
    home = opened.vault.home
    run("mount", "-t", "tmpfs", "tmpfs", home)
    with pytest.raises(tazpod.VaultError, match="another mount covers"):
        tazpod.lock(opened.vault)
    run("umount", home)
    assert tazpod.lock(opened.vault) == []
    assert_locked_and_clean(opened)


def test_a_part_of_an_open_vault_is_not_taken_for_it(opened: World) -> None:
    run("umount", "-l", opened.open)
    run("mount", "--move", opened.vault.home / ".aws", opened.open)
    with pytest.raises(tazpod.VaultError, match="only a part"):
        tazpod.lock(opened.vault)


def test_who_sits_in_memory_that_was_mounted_inside_the_vault_is_named(opened: World) -> None:
    (opened.open / "inner").mkdir()
    run("mount", "-t", "tmpfs", "tmpfs", opened.open / "inner")
    with subprocess.Popen(["sleep", "60"], cwd=opened.open / "inner") as sitter:
        try:
            (named,) = tazpod.lock(opened.vault) or ()
        finally:
            sitter.kill()
    assert named.split()[0] == str(sitter.pid)
    assert_locked_and_clean(opened)


def test_on_a_read_only_disk_a_session_that_is_dead_locks_no_vault_that_is_opened_later(
    opened: World,
) -> None:
    """Its lease cannot be taken away there, so the guard finds it again at each look."""
    folder = opened.root / "run"
    folder.mkdir()
    lease = folder / f"0123456789abcdef.{tazpod.LEASE}"
    lease.touch()
    run("mount", "--bind", folder, folder)
    run("mount", "-o", "remount,ro,bind", folder)
    config = tazpod.Config(opened.root, "blue-lab", sync_interval=0)
    watch = tazpod.Watch(0)
    log = logging.getLogger("a guard of the tests")
    with pytest.raises(tazpod.MissingProgram):  # it would start a lock
        tazpod.look_after(config, opened.vault, folder, watch, log)
    tazpod.lock(opened.vault)
    tazpod.look_after(config, opened.vault, folder, watch, log)
    opened.unlock()
    tazpod.look_after(config, opened.vault, folder, watch, log)
    assert watch.lock.process is None
    assert lease.exists()
