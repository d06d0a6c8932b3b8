"""The vault's words on real programs and a real tmpfs: what goes in comes out, and what is not ours is
refused."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import mmap
import os
import random
import shutil
import socket
import stat
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import vaultlib
from vaultlib import (
    CANARY,
    GO_DATA,
    OTHER,
    PASSPHRASE,
    REFUSALS,
    Child,
    Snapshot,
    World,
    gpg_seal,
    run,
    snapshot,
    tar_of,
)

import tazpod

pytestmark = vaultlib.NEEDS_ROOT
template, worlds = vaultlib.template, vaultlib.worlds


@pytest.fixture
def fresh(worlds: Callable[..., World]) -> World:
    """An open vault that was never saved."""
    world = worlds()
    world.unlock()
    return world


@pytest.fixture
def locked(worlds: Callable[..., World], template: tuple[bytes, Snapshot]) -> World:
    """The template, locked."""
    world = worlds()
    tazpod.check_folder(world.vault)
    world.vault.sealed.write_bytes(template[0])
    return world


@pytest.fixture
def opened(locked: World) -> World:
    """The template, open."""
    locked.unlock()
    return locked


def round_trip(world: World) -> None:
    """Save, lock, unlock: equal before and after."""
    before = world.tree()
    assert tazpod.save(world.vault) is not None
    assert world.tree() == before, "the save changed the open vault"
    assert tazpod.lock(world.vault) == []
    assert world.mounted() == [] and not any(world.open.iterdir())
    world.unlock()
    after = world.tree()
    assert {n: (before.get(n), after.get(n)) for n in before | after if before.get(n) != after.get(n)} == {}


# ---- round trip --------------------------------------------------------------------------------------
AWKWARD = [
    *("-", "--", "-rf", "--checkpoint-action=exec=false", "-C", "@archive", "#comment", "~", "*", "$HOME"),
    *(" ", " lead", "trail ", "two  spaces", "a\nb", "\n", "\t", "\r\n", "\x01\x1b[31m", "back\\slash"),
    *("\\n", "\\", "\\0", "'", '"', "%s%n", "=", "ü", "u\u0308", "☃🗝", "日本語", "\u202e", "...", "..a"),
    *(b"\xff\xfe", b"\x80", b"latin\xe9", ".hidden", "PaxHeaders", "GNUSparseFile.0", "x" * 200, "y" * 255),
    *("ж" * 127, "secret.", "con", ".vault_pass.old", ".vault_passes", "vault.tar.aes", "LongLink"),
]


def test_awkward_names_come_back(fresh: World) -> None:
    for number, name in enumerate(AWKWARD):
        for folder in (fresh.open, fresh.open / "folder"):
            folder.mkdir(exist_ok=True)
            path = Path(os.fsdecode(os.path.join(os.fsencode(folder), os.fsencode(name))))
            if number % 3 == 0:
                path.mkdir()
                (path / "inside").write_bytes(b"%d" % number)
            elif number % 3 == 1:
                path.write_bytes(b"%d" % number)
            else:
                path.symlink_to(os.fsdecode(name))
    assert len(fresh.tree()) > 2 * len(AWKWARD)
    round_trip(fresh)


def test_every_mode_comes_back(fresh: World) -> None:
    modes = [0, 0o400, 0o444, 0o600, 0o640, 0o755, 0o777, 0o4711, 0o2755, 0o1644, 0o7777]
    for mode in modes:
        fresh.put(f"file-{mode:o}", f"{mode:o}")
        (fresh.open / f"file-{mode:o}").chmod(mode)
        fresh.put(f"folder-{mode:o}/file", f"{mode:o}")
        (fresh.open / f"empty-{mode:o}").mkdir()
        for kind in ("folder", "empty"):
            (fresh.open / f"{kind}-{mode:o}").chmod(mode)
    round_trip(fresh)


def test_times_come_back_to_the_nanosecond(fresh: World) -> None:
    times = [0, 1, 999_999_999, 1_234_567_890_123_456_789, -1_500_000_001, 5_000_000_000_000_000_001]
    for number, time_ns in enumerate(times):
        fresh.put(f"folder-{number}/file", "x")
        (fresh.open / f"link-{number}").symlink_to(f"folder-{number}")
        for name in (f"folder-{number}/file", f"folder-{number}", f"link-{number}"):
            os.utime(fresh.open / name, ns=(time_ns, time_ns), follow_symlinks=False)
    assert sorted({entry[1] for entry in fresh.tree().values()} & set(times)) == sorted(times)
    round_trip(fresh)


def test_links_come_back(fresh: World) -> None:
    targets = ["secret", "folder", "nowhere", "/etc/hostname", "/", "..", "../../x", "loop", "./a/../b"]
    fresh.put("secret", "one file, three names")
    (fresh.open / "folder").mkdir()
    for number, target in enumerate(targets):
        (fresh.open / f"link-{number}").symlink_to(target)
        (fresh.open / f"folder/link-{number}").symlink_to(target)
    (fresh.open / "loop").symlink_to("loop")
    (fresh.open / "long").symlink_to("x" * 3000)
    for name in ("a hard link", "folder/another"):
        os.link(fresh.open / "secret", fresh.open / name)
    for name in ("link-0", "link-3"):
        os.link(fresh.open / name, fresh.open / f"hard-{name}", follow_symlinks=False)
    assert os.stat(fresh.open / "secret").st_nlink == 3
    round_trip(fresh)
    assert os.stat(fresh.open / "secret").st_nlink == 3


def test_deep_folders_come_back(fresh: World) -> None:
    deep = "/".join(f"level-{n}-{'x' * 120}" for n in range(20))
    fresh.put(f"{deep}/{'y' * 200}", "deep")
    os.link(fresh.open / deep / ("y" * 200), fresh.open / deep / ("z" * 200))
    round_trip(fresh)


def test_sparse_files_come_back_sparse(fresh: World) -> None:
    for name, size, pieces in (
        ("hole at the end", 40 << 20, [0]),
        ("hole in front", 40 << 20, [(40 << 20) - 5]),
        ("all hole", 64 << 20, []),
        ("many holes", 30 << 20, [n << 20 for n in range(0, 30, 3)]),
    ):
        with open(fresh.open / name, "wb") as file:
            for offset in pieces:
                os.pwrite(file.fileno(), b"data!", offset)
            file.truncate(size)
    blocks = {path.name: path.stat().st_blocks for path in fresh.open.iterdir() if path.is_file()}
    round_trip(fresh)
    for name, count in blocks.items():
        if not name.startswith(".vault_"):
            assert (fresh.open / name).stat().st_blocks <= count


def test_a_vault_with_nothing_in_it_comes_back(fresh: World) -> None:
    round_trip(fresh)
    assert set(fresh.tree()) == {b".aws"}


def test_a_vault_emptied_of_everything_comes_back(fresh: World) -> None:
    run("umount", fresh.vault.home / ".aws")
    (fresh.open / ".aws").rmdir()
    tazpod.save(fresh.vault)
    tazpod.lock(fresh.vault)
    fresh.unlock()
    assert set(fresh.tree()) == {b".aws"}


# -- folders of the home that live in the vault
HIDDEN, IN_THE_WAY, NO_FOLDER = "is hidden while the vault is open", "in the way", "is not a folder"
OBSTACLES: dict[str, tuple[str, str]] = {  # what is done in the home beforehand; what is said
    "nothing": ("true", ""),
    "an empty folder": ("mkdir -p .config/gh", ""),
    "files": ("mkdir -p .config/gh/a; echo kept > .config/gh/a/b", HIDDEN),
    "a file": ("mkdir .config; echo kept > .config/gh", IN_THE_WAY),
    "a link": ("mkdir .config; ln -s ../../out .config/gh", IN_THE_WAY),
    "a dangling link": ("mkdir .config; ln -s nowhere .config/gh", IN_THE_WAY),
    "a file above": ("echo kept > .config", IN_THE_WAY),
    "a link above": ("ln -s ../out .config", IN_THE_WAY),
    "another mount": ("mkdir -p .config/gh; mount --bind ../out .config/gh", "something is mounted there"),
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_a_bind_hides_nothing_in_silence_and_overwrites_nothing(
    obstacle: str, worlds: Callable[..., World], capfd: pytest.CaptureFixture[str]
) -> None:
    script, said = OBSTACLES[obstacle]
    world = worlds(binds=(".aws", ".config/gh"))
    home, out = world.vault.home, world.root / "out"
    out.mkdir()
    (out / "kept").write_text("kept")
    run("sh", "-c", f"umask 022; cd {home} && {script}")
    before = snapshot(home / ".config") if (home / ".config").is_dir() else None
    world.unlock()
    lines = [line for line in capfd.readouterr().err.splitlines() if "~/.config/gh: " in line]
    assert len(lines) == bool(said)
    assert said in "".join(lines)
    assert stat.S_IMODE((world.open / ".config/gh").stat().st_mode) == 0o700
    if said in ("", HIDDEN):
        (home / ".config/gh/token").write_bytes(CANARY)
        assert (world.open / ".config/gh/token").read_bytes() == CANARY
    else:
        theirs = [".config/gh"] if "mounted" in said else []
        assert world.mounted() == [".aws", *theirs, "secrets"]
    tazpod.save(world.vault)
    tazpod.lock(world.vault)
    assert world.leaks() == []
    assert [path.name for path in out.iterdir()] == ["kept"]
    if before:
        assert snapshot(home / ".config") == before
    if obstacle == "nothing":
        assert [stat.S_IMODE((home / p).stat().st_mode) for p in (".config", ".config/gh")] == [0o700] * 2


@pytest.mark.parametrize(
    "script", ["ln -s {out} .config", "mkdir .config; ln -s {out} .config/gh", "touch .config"]
)
def test_a_bind_leads_out_of_no_vault(
    script: str, worlds: Callable[..., World], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    world, out = worlds(), tmp_path / "out"
    out.mkdir()
    world.unlock()
    run("sh", "-c", f"cd {world.open} && {script.format(out=out)}")
    tazpod.save(world.vault)
    tazpod.lock(world.vault)
    before = snapshot(out)
    world.vault.binds = (".aws", ".config/gh")
    world.unlock()
    assert NO_FOLDER in capfd.readouterr().err
    assert world.mounted() == [".aws", "secrets"]
    assert snapshot(out) == before


def test_what_a_person_mounts_over_aws_stays(
    worlds: Callable[..., World], capfd: pytest.CaptureFixture[str]
) -> None:
    world = worlds()
    own, place = world.root / "own", world.vault.home / ".aws"
    for folder in (own, place):
        folder.mkdir()
    (own / "config").write_text("mine")
    run("mount", "--bind", own, place)
    world.unlock()
    assert "~/.aws: something is mounted there, and stays" in capfd.readouterr().err
    tazpod.lock(world.vault)
    assert world.mounted() == [".aws"]
    assert (place / "config").read_text() == "mine"


def test_empty_and_large_files_and_two_thousand_come_back(worlds: Callable[..., World]) -> None:
    fresh, content = worlds(size="16m"), random.Random(2000)
    fresh.unlock()
    fresh.put("empty", b"")
    for size in (1, 511, 512, 513, 10_239, 10_240, 10_241, 65_536, 1 << 20):
        fresh.put(f"size-{size}", content.randbytes(size))
    for number in range(2000):
        fresh.put(f"many/{number % 50}/{number}", b"%d" % number * (number % 100))
    round_trip(fresh)


def test_sockets_fifos_and_devices_are_left_out_with_a_warning(
    fresh: World, capfd: pytest.CaptureFixture[str]
) -> None:
    fresh.put("kept", "yes")
    (fresh.open / "folder").mkdir()
    before = fresh.tree()
    os.mkfifo(fresh.open / "a fifo")
    os.mkfifo(fresh.open / "folder/a fifo")
    os.mknod(fresh.open / "a device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    with contextlib.chdir(fresh.open) if sys.version_info >= (3, 11) else in_folder(fresh.open):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("a socket")
    os.utime(fresh.open / "folder", ns=(before[b"folder"][1],) * 2)
    assert tazpod.save(fresh.vault) is not None
    told = capfd.readouterr().err
    for name in ("a fifo", "folder/a fifo", "a socket", "a device"):
        assert f"warning: {name}: is not a file, folder or link, and is left out" in told
    listener.close()
    tazpod.lock(fresh.vault)
    fresh.unlock()
    assert fresh.tree() == before


@contextlib.contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    here = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)


def as_operator(root: Path, work: Callable[[], object]) -> str:
    """What `work` raised, or `done`, as uid 1000 that owns everything below `root`."""
    run("chown", "-R", "1000:1000", root)
    ready, tell = os.pipe()

    def drop() -> None:
        os.setgroups([])
        os.setgid(1000)
        os.setuid(1000)
        try:
            work()
            os.write(tell, b"done")
        except Exception as error:
            os.write(tell, f"{type(error).__name__}: {error}".encode())

    child = Child(drop)
    os.close(tell)
    with os.fdopen(ready, "rb") as file:
        told = file.read().decode()
    assert child.wait() == 0
    return told


@pytest.fixture
def operators_world(monkeypatch: pytest.MonkeyPatch, template: tuple[bytes, Snapshot]) -> Iterator[World]:
    """The template, open, in a place that uid 1000 can reach; owned by it."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o711)
        world = World(Path(place) / "world")
        monkeypatch.setattr(tempfile, "tempdir", str(world.temp))
        try:
            tazpod.check_folder(world.vault)
            world.vault.sealed.write_bytes(template[0])
            world.unlock()
            run("chown", "-R", "1000:1000", world.root)
            yield world
        finally:
            world.close()


def test_an_operator_without_root_saves(operators_world: World) -> None:
    world = operators_world
    world.put("mine", "x")
    assert as_operator(world.root, lambda: tazpod.save(world.vault)) == "done"
    assert world.vault.sealed.stat().st_uid == 1000
    run("chown", "-R", "0:0", world.root)
    before = world.tree()
    tazpod.lock(world.vault)
    world.unlock()
    assert world.tree() == before


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_cannot_be_read_fails_the_save_and_is_named(operators_world: World, kind: str) -> None:
    world, name = operators_world, f"unreadable {kind}"
    world.put(name if kind == "file" else f"{name}/inside", "x")
    (world.open / name).chmod(0)
    before = world.disk_state()
    told = as_operator(world.root, lambda: tazpod.save(world.vault))
    assert told.startswith("VaultError: ") and name in told and "Permission denied" in told
    assert world.disk_state() == before and world.temporaries() == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_blocks_a_save_is_named_with_the_command_that_helps(operators_world: World, kind: str) -> None:
    world, name = operators_world, f"unreadable {kind}"
    world.put(name if kind == "file" else f"{name}/inside", "x")
    (world.open / name).chmod(0)
    hints: list[str] = []

    def save() -> None:
        try:
            tazpod.save(world.vault)
        except tazpod.VaultError as error:
            run("sh", "-c", error.hint)
            hints.append(error.hint)
        tazpod.save(world.vault)
        assert hints

    assert as_operator(world.root, save) == "done"
    assert world.vault.sealed.exists()


def test_holes_larger_than_anything_are_refused_at_once_by_name(opened: World) -> None:
    with open(opened.open / "disk.img", "wb") as file:
        file.truncate(200 << 30)
    before = opened.disk_state()
    with pytest.raises(tazpod.VaultError, match=r"disk\.img: seems to be 204800 MiB large"):
        tazpod.save(opened.vault)
    assert opened.disk_state() == before
    (opened.open / "disk.img").unlink()
    opened.put("new", "x")
    assert tazpod.save(opened.vault) is not None


def test_a_vault_whose_limit_was_taken_away_can_be_saved_and_locked(opened: World) -> None:
    run("mount", "-o", "remount,size=0", opened.open)
    opened.put("new", "x")
    assert tazpod.save(opened.vault) is not None
    tazpod.lock(opened.vault)
    assert opened.mounted() == []


def test_a_vault_that_nobody_holds_is_marked_and_gone_in_one_call(
    opened: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(tazpod, "destroy_held")
    tazpod.lock(opened.vault)
    assert opened.mounted() == []


def test_empty_files_are_limited_as_well(worlds: Callable[..., World]) -> None:
    world = worlds(size="1m")
    world.unlock()
    with pytest.raises(OSError, match="No space left"):
        for number in range(100_000):
            (world.open / f"file-{number}").touch()
    assert number < 3000  # one of each 512 bytes
    assert tazpod.save(world.vault) is not None


def test_attributes_that_are_not_kept_are_told(opened: World, capfd: pytest.CaptureFixture[str]) -> None:
    opened.put("marked", "x")
    os.setxattr(opened.open / "marked", "user.origin", b"here")
    tazpod.save(opened.vault)
    assert "warning: marked: its extended attributes are left out" in capfd.readouterr().err


def test_stock_tools_open_it(opened: World, tmp_path: Path) -> None:
    for name in ("-leading", "new\nline", "x" * 200):
        opened.put(name, name)
    (opened.open / "link").symlink_to("/nowhere")
    os.link(opened.open / "secret", opened.open / "hard")
    tazpod.save(opened.vault)
    plain = stock_decrypt(opened.vault.sealed)
    (tmp_path / "out").mkdir()
    run("tar", "x", "-C", tmp_path / "out", input=plain)
    assert snapshot(tmp_path / "out") == opened.tree()
    with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
        names = {m.name.encode("utf-8", "surrogateescape").removeprefix(b"./") for m in tar}
    assert names == set(opened.tree())


def stock_decrypt(path: Path, passphrase: bytes = PASSPHRASE) -> bytes:
    with tazpod.secret_fd(passphrase) as fd, tempfile.TemporaryDirectory() as home:
        quiet = ("--batch", "--quiet", "--homedir", home, "--pinentry-mode", "loopback")
        return run("gpg", *quiet, "--passphrase-fd", fd, "-d", path, pass_fds=(fd,))


def test_nothing_reserved_is_ever_sealed(opened: World) -> None:
    for name in (".vault_pass.next", ".vault_state.0123abcd.tmp", ".vault_pass.0123abcd.tmp"):
        opened.put(name, CANARY)
    opened.put("folder/.vault_pass", "only the names at the top are ours")
    tazpod.save(opened.vault)
    with tarfile.open(fileobj=io.BytesIO(stock_decrypt(opened.vault.sealed))) as tar:
        names = [m.name for m in tar]
    assert [n for n in names if "vault_" in n] == ["./folder/.vault_pass"]
    assert PASSPHRASE not in stock_decrypt(opened.vault.sealed)


def test_the_sealed_file_is_private_and_so_is_its_folder(opened: World) -> None:
    opened.vault.folder.chmod(0o755)
    opened.put("new", "x")
    tazpod.save(opened.vault)
    assert stat.S_IMODE(opened.vault.folder.stat().st_mode) == 0o700
    files = [p for p in opened.vault.folder.rglob("*") if p.is_file() and p.parent != opened.vault.history]
    assert {p.name: oct(p.stat().st_mode & 0o777) for p in files} == {
        "vault.tar.aes": "0o600",
        ".lock": "0o600",
        ".open": "0o600",
        ".order": "0o600",
    }
    assert stat.S_IMODE(opened.open.stat().st_mode) == 0o700
    assert stat.S_IMODE((opened.open / ".vault_pass").stat().st_mode) == 0o600


# ---- what counts as a change -------------------------------------------------------------------------
def identity(path: Path) -> tuple[int, int, bytes]:
    info = path.stat()
    return info.st_ino, info.st_mtime_ns, path.read_bytes()


def test_an_unchanged_vault_is_not_sealed_again(opened: World) -> None:
    before = identity(opened.vault.sealed)
    (opened.open / "secret").read_bytes()
    os.utime(opened.open / "secret", ns=(1, (opened.open / "secret").stat().st_mtime_ns))
    assert tazpod.save(opened.vault) is None
    assert identity(opened.vault.sealed) == before and not opened.vault.history.exists()
    assert tazpod.save(opened.vault, force=True) is not None
    assert identity(opened.vault.sealed)[2] != before[2]
    assert [p.read_bytes() for p in tazpod.versions(opened.vault)] == [before[2]]
    assert tazpod.save(opened.vault) is None


def mapped_write(root: Path) -> None:
    with open(root / "secret", "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        before = os.stat(root / "secret").st_mtime_ns
        view[0:3] = b"new"
    os.utime(root / "secret", ns=(before, before))


def same_time(root: Path, change: Callable[[Path], object]) -> None:
    times = [(p, os.lstat(p).st_mtime_ns) for p in (root / "folder", root / "secret")]
    change(root)
    for path, time_ns in times:
        if os.path.lexists(path):
            os.utime(path, ns=(time_ns, time_ns))


def hard_link(root: Path) -> None:
    (root / "copy").unlink()
    os.link(root / "secret", root / "copy")


def retarget(root: Path) -> None:
    time_ns = os.lstat(root / "link").st_mtime_ns
    (root / "link").unlink()
    (root / "link").symlink_to("there")
    os.utime(root / "link", ns=(time_ns, time_ns), follow_symlinks=False)


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda root: (root / "secret").write_bytes(b"other"),
    "content, size and time kept": lambda root: same_time(
        root, lambda r: (r / "secret").write_bytes(CANARY[::-1])
    ),
    "mmap": mapped_write,
    "touched": lambda root: os.utime(root / "secret"),
    "touched by a nanosecond": lambda root: os.utime(
        root / "secret", ns=(0, (root / "secret").stat().st_mtime_ns + 1)
    ),
    "mode": lambda root: (root / "secret").chmod(0o640),
    "mode of a folder": lambda root: (root / "folder").chmod(0o750),
    "renamed": lambda root: same_time(root, lambda r: (r / "secret").rename(r / "public")),
    "removed": lambda root: (root / "secret").unlink(),
    "a new empty file": lambda root: (root / "empty").touch(),
    "a new empty folder": lambda root: (root / "empty").mkdir(),
    "truncated": lambda root: same_time(root, lambda r: os.truncate(r / "secret", 3)),
    "a hard link made of a copy": hard_link,
    "a link's target": retarget,
    "a file became a link": lambda root: ((root / "secret").unlink(), (root / "secret").symlink_to("x")),
    "moved into a folder": lambda root: (root / "secret").rename(root / "folder/secret"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_is_noticed_and_sealed(
    worlds: Callable[..., World], change: Callable[[Path], object]
) -> None:
    world = worlds()
    world.unlock()
    world.put("secret", CANARY)
    world.put("folder/other", "x")
    shutil.copy2(world.open / "secret", world.open / "copy")
    (world.open / "link").symlink_to("here!")
    tazpod.save(world.vault)
    assert tazpod.save(world.vault) is None
    before = world.tree()
    change(world.open)
    changed = world.tree()
    assert changed != before
    assert tazpod.save(world.vault) is not None
    tazpod.lock(world.vault)
    world.unlock()
    assert world.tree() == changed
    assert tazpod.save(world.vault) is None


def test_a_vault_replaced_behind_our_back_is_kept_and_told(
    opened: World, capfd: pytest.CaptureFixture[str]
) -> None:
    theirs = gpg_seal(tar_of(("theirs", b"x")))
    opened.vault.sealed.write_bytes(theirs)  # and with it the only copy of what is open
    assert tazpod.save(opened.vault) is not None
    assert "it is in the history" in capfd.readouterr().err
    assert theirs in [p.read_bytes() for p in tazpod.versions(opened.vault)]
    mine = opened.vault.sealed.read_bytes()
    tazpod.add_version(opened.vault, opened.vault.sealed)
    opened.vault.sealed.unlink()
    opened.vault.sealed.write_bytes(theirs)
    assert tazpod.save(opened.vault) is None
    assert "was replaced by another" in capfd.readouterr().err
    assert opened.vault.sealed.read_bytes() == theirs
    assert mine in [p.read_bytes() for p in tazpod.versions(opened.vault)]


def test_a_second_unlock_under_another_passphrase_is_told(worlds: Callable[..., World]) -> None:
    """Two start a new vault at once: the second sees whose passphrase is in force."""
    world = worlds()
    world.unlock(PASSPHRASE)
    with pytest.raises(tazpod.VaultError, match="under another passphrase"):
        world.unlock(OTHER)
    world.unlock(PASSPHRASE)
    world.put("secret", "x")
    tazpod.save(world.vault)
    with pytest.raises(tazpod.VaultError, match="under another passphrase"):
        world.unlock(OTHER)


# ---- what a killed save leaves --------------------------------------------------------------------------
def test_a_save_killed_behind_the_replacing_is_a_save(
    opened: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    opened.put("new", "x")

    class Killed(BaseException):
        pass

    def die(folder: Path) -> None:
        if folder == opened.vault.folder:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(tazpod, "sync_folder", die)
        tazpod.save(opened.vault)
    assert tazpod.save(opened.vault) is None
    assert "another" not in capfd.readouterr().err and not tazpod.is_unsaved(opened.open)
    opened.put("newer", "x")
    assert tazpod.save(opened.vault) is not None
    assert "another" not in capfd.readouterr().err


@pytest.mark.parametrize("strange", [b"rubbish" * 100, b"", None])
def test_a_sealed_file_that_is_another_by_now_is_sealed_again(
    opened: World, strange: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    vault, log = opened.vault, logging.getLogger("test")
    opened.put("new", "x")
    tazpod.save(vault)
    for place in ("after a save", "after an unlock"):
        assert not tazpod.has_changed(vault, log), place
        if strange is None:
            vault.sealed.unlink()
        else:
            vault.sealed.write_bytes(strange)
        assert tazpod.has_changed(vault, log), place
        assert tazpod.open_facts(vault)["vault_unsaved"] is True

        def ask() -> None:
            raise AssertionError("nobody is asked of a format")

        assert tazpod.save(vault, agree=ask) is not None
        assert tazpod.open_facts(vault)["vault_unsaved"] is False
        kept = [path.read_bytes() for path in tazpod.versions(vault)]
        assert not strange or strange in kept
        assert not (vault.folder / tazpod.GO_NAME).exists()
        tazpod.lock(vault)
        opened.unlock()


def test_the_sealed_file_is_not_read_while_nothing_tells_of_a_change(
    opened: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.put("new", "x")
    tazpod.save(opened.vault)
    with monkeypatch.context() as patch:
        patch.setattr(tazpod, "digest_of_sealed", None)
        assert not tazpod.is_unsealed(opened.vault)
    os.utime(opened.vault.sealed)
    assert not tazpod.is_unsealed(opened.vault)


def test_a_vault_whose_sealed_file_is_in_the_history_is_sealed(opened: World) -> None:
    opened.put("new", "x")
    tazpod.save(opened.vault)
    tazpod.add_version(opened.vault, opened.vault.sealed)
    (opened.vault.history / "vault-20200101T000000.tar.aes").touch()
    opened.vault.sealed.unlink()
    opened.vault.sealed.write_bytes(b"rubbish")
    assert not tazpod.is_unsealed(opened.vault)
    assert tazpod.save(opened.vault) is None


@pytest.mark.parametrize("name", [".vault_pass", ".vault_pass.next", ".vault_state"])
@pytest.mark.parametrize("target", ["/dev/zero", ""])
def test_what_is_no_file_in_the_open_vault_is_not_waited_for(opened: World, name: str, target: str) -> None:
    place = opened.open / name
    place.unlink(missing_ok=True)
    place.symlink_to(target) if target else os.mkfifo(place)
    opened.put("new", "x")
    with pytest.raises((tazpod.VaultError, OSError)):
        tazpod.save(opened.vault)


@pytest.mark.parametrize("name", [".open", ".vault.tar.aes", ".order"])
def test_no_unfinished_file_outlives_the_next_word(opened: World, name: str) -> None:
    left = opened.vault.folder / f"{name}.0123abcd.tmp"
    for word in (lambda: tazpod.save(opened.vault), lambda: tazpod.lock(opened.vault), opened.unlock):
        left.touch()
        word()
        assert not left.exists()


# ---- history and restore -----------------------------------------------------------------------------
def test_history_keeps_the_last_few_by_the_time_of_sealing(worlds: Callable[..., World]) -> None:
    world = worlds(keep=2)
    world.unlock()
    sealed = []
    for number in range(4):
        world.put("secret", str(number))
        tazpod.save(world.vault)
        os.utime(world.vault.sealed, (1_600_000_000 + number // 2, 1_600_000_000 + number // 2))
        sealed.append(world.vault.sealed.read_bytes())
    names = [p.name for p in tazpod.versions(world.vault)]
    assert names == ["vault-20200913T122640-2.tar.aes", "vault-20200913T122641.tar.aes"]
    assert [p.read_bytes() for p in tazpod.versions(world.vault)] == sealed[1:3]
    assert sorted(os.listdir(world.vault.history)) == sorted(names)


def test_a_clock_that_ran_ahead_costs_no_version(worlds: Callable[..., World]) -> None:
    """What was just added is there, and the oldest go first, in the order in which they were sealed."""
    world = worlds(keep=2)
    world.unlock()
    sealed = []
    for number in range(5):
        world.put("secret", str(number))
        tazpod.save(world.vault)
        sealed.append(world.vault.sealed.read_bytes())
        assert [p.read_bytes() for p in tazpod.versions(world.vault)] == sealed[-3:-1]
        moment = 4_000_000_000 - number if number < 2 else 1_600_000_000 - number
        os.utime(world.vault.sealed, (moment, moment))


def test_a_version_that_was_put_there_by_hand_counts_as_old(worlds: Callable[..., World]) -> None:
    world = worlds(keep=2)
    world.unlock()
    for number in range(2):
        world.put("secret", str(number))
        tazpod.save(world.vault)
    (world.vault.history / "vault-20300101T000000.tar.aes").write_bytes(b"by hand")
    assert tazpod.versions(world.vault)[0].read_bytes() == b"by hand"


def test_a_version_comes_back_and_the_present_one_becomes_history(worlds: Callable[..., World]) -> None:
    world = worlds()
    world.unlock()
    trees = []
    for number in range(2):
        world.put("secret", str(number))
        tazpod.save(world.vault)
        trees.append(world.tree())
    present = world.vault.sealed.read_bytes()
    (version,) = tazpod.versions(world.vault)
    with pytest.raises(tazpod.VaultError, match="the vault is open"):
        tazpod.restore(world.vault, version, PASSPHRASE)
    tazpod.lock(world.vault)
    before = world.disk_state()
    for wrong in (OTHER, PASSPHRASE + b" "):
        with pytest.raises(tazpod.WrongPassphrase):
            tazpod.restore(world.vault, version, wrong)
    with pytest.raises(tazpod.VaultError):
        tazpod.restore(world.vault, world.vault.history / "vault-19700101T000000.tar.aes", PASSPHRASE)
    assert world.disk_state() == before
    tazpod.restore(world.vault, version, PASSPHRASE)
    assert present in [p.read_bytes() for p in tazpod.versions(world.vault)]
    world.unlock()
    assert world.tree() == trees[0]
    tazpod.lock(world.vault)
    newest = next(p for p in tazpod.versions(world.vault) if p.read_bytes() == present)
    tazpod.restore(world.vault, newest, PASSPHRASE)
    world.unlock()
    assert world.tree() == trees[1]


def test_a_damaged_version_is_not_restored(opened: World) -> None:
    opened.put("new", "x")
    tazpod.save(opened.vault)
    tazpod.lock(opened.vault)
    (version,) = tazpod.versions(opened.vault)
    data = bytearray(version.read_bytes())
    data[-1] ^= 1
    version.write_bytes(data)
    before = opened.disk_state()
    with pytest.raises(tazpod.VaultError):
        tazpod.restore(opened.vault, version, PASSPHRASE)
    assert opened.disk_state() == before


# ---- passphrases -------------------------------------------------------------------------------------
AWKWARD_PASSPHRASES = [b"x", b" ", b"-", b" two words\t", "pässwörd ☃".encode(), b"\xff\x80", b"p" * 4096]


@pytest.mark.parametrize("passphrase", AWKWARD_PASSPHRASES)
def test_a_passphrase_is_its_bytes(worlds: Callable[..., World], passphrase: bytes) -> None:
    world = worlds()
    world.unlock(passphrase)
    world.put("secret", "x")
    tazpod.save(world.vault)
    tazpod.lock(world.vault)
    for wrong in (passphrase + b" ", passphrase[:-1] or b"y"):
        with pytest.raises(tazpod.WrongPassphrase):
            tazpod.verify(world.vault, world.vault.sealed, wrong)
    world.unlock(passphrase)
    assert (world.open / "secret").read_bytes() == b"x"


def test_a_wrong_passphrase_leaves_everything_as_it_was(locked: World) -> None:
    before = locked.disk_state()
    with pytest.raises(tazpod.WrongPassphrase):
        locked.unlock(OTHER)
    assert locked.disk_state() == before and locked.mounted() == [] and locked.leaks() == []
    locked.unlock()


def test_a_new_passphrase_opens_and_the_old_one_opens_the_history(opened: World) -> None:
    before = opened.tree()
    tazpod.save(opened.vault, passphrase=OTHER)
    assert opened.tree() == before
    assert tazpod.save(opened.vault) is None
    opened.put("after", "sealed under the new passphrase too")
    tazpod.save(opened.vault)
    after = opened.tree()
    tazpod.lock(opened.vault)
    with pytest.raises(tazpod.WrongPassphrase):
        opened.unlock()
    opened.unlock(OTHER)
    assert opened.tree() == after
    assert tazpod.verify(opened.vault, tazpod.versions(opened.vault)[0], PASSPHRASE) == len(before)


@pytest.mark.parametrize("refused", ["replace", "fsync"])
def test_a_passwd_that_fails_leaves_the_old_passphrase_in_force(
    opened: World, refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = opened.vault.sealed.read_bytes()
    real = getattr(os, refused)

    def fail(*args: Any, **more: Any) -> object:
        if refused == "replace" and args[1] != opened.vault.sealed.name:
            return real(*args, **more)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, refused, fail)
        with pytest.raises(REFUSALS):
            tazpod.save(opened.vault, passphrase=OTHER)
    assert opened.vault.sealed.read_bytes() == sealed and opened.temporaries() == []
    opened.put("after", "x")
    tazpod.save(opened.vault)
    tazpod.lock(opened.vault)
    opened.unlock(PASSPHRASE)
    assert (opened.open / "after").exists()


@pytest.mark.parametrize("passphrase", [b"", b"a\nb", b"a\0b", b"x" * 4097])
def test_a_passphrase_that_gpg_would_cut_is_refused(passphrase: bytes) -> None:
    with pytest.raises(tazpod.UsageError):
        tazpod.check_passphrase(passphrase)


# ---- verify ------------------------------------------------------------------------------------------
def test_verify_counts_what_is_in_a_good_file_and_mounts_nothing(
    locked: World, template: tuple[bytes, Snapshot]
) -> None:
    before = locked.disk_state()
    assert tazpod.verify(locked.vault, locked.vault.sealed, PASSPHRASE) == len(template[1])
    assert locked.mounted() == [] and locked.disk_state() == before
    assert not locked.open.exists(), "verify needs no place for secrets"
    locked.vault.sealed.write_bytes(template[0][:-1])
    with pytest.raises(tazpod.VaultError):
        tazpod.verify(locked.vault, locked.vault.sealed, PASSPHRASE)


# ---- what Go sealed ----------------------------------------------------------------------------------
GO_MANIFEST = json.loads((GO_DATA / "manifest.json").read_text())["vaults"]["vault1.tar.aes"]


@pytest.fixture
def go_world(worlds: Callable[..., World]) -> World:
    world = worlds()
    tazpod.check_folder(world.vault)
    shutil.copy(GO_DATA / "vault1.tar.aes", world.vault.sealed)
    world.unlock(GO_MANIFEST["passphrase"].encode())
    return world


def test_a_go_vault_unlocks_to_what_its_manifest_says(go_world: World) -> None:
    told = {
        name.encode(): (entry["mode"], (entry["sha256"], entry["size"]) if entry["type"] == "file" else None)
        for name, entry in GO_MANIFEST["entries"].items()
        if name != ".vault_pass"
    }
    tree = go_world.tree()
    found = {name: (f"{int(mode, 8) & 0o7777:04o}", content) for name, (mode, _, content, _) in tree.items()}
    assert found == told
    kept = (go_world.open / ".vault_pass").read_bytes()
    assert kept == GO_MANIFEST["passphrase"].encode(), "Go's own file is replaced by ours"


def test_an_unchanged_go_vault_stays_go(go_world: World) -> None:
    before = identity(go_world.vault.sealed)
    assert tazpod.save(go_world.vault, agree=lambda: pytest.fail("asked")) is None
    assert identity(go_world.vault.sealed) == before


def test_the_first_save_keeps_the_go_vault_beside_the_new_one(go_world: World) -> None:
    go_bytes = (GO_DATA / "vault1.tar.aes").read_bytes()
    go_world.put("new", "x")
    asked: list[int] = []

    def refuse() -> None:
        raise tazpod.VaultError("not saved")

    before = go_world.disk_state()
    with pytest.raises(tazpod.VaultError, match="not saved"):
        tazpod.save(go_world.vault, agree=refuse)
    assert go_world.disk_state() == before
    assert tazpod.save(go_world.vault, agree=lambda: asked.append(1)) is not None
    assert asked == [1]
    assert (go_world.vault.folder / "vault.tar.aes.go").read_bytes() == go_bytes
    assert tazpod.is_native(go_world.vault.sealed.read_bytes()[:16])
    assert [p.read_bytes() for p in tazpod.versions(go_world.vault)] == [go_bytes]
    tree = go_world.tree()
    go_world.put("newer", "x")
    tazpod.save(go_world.vault, agree=lambda: pytest.fail("asked again"))
    (go_world.open / "newer").unlink()
    os.utime(go_world.open, ns=(1, 1))
    tazpod.save(go_world.vault)
    tazpod.lock(go_world.vault)
    go_world.unlock(GO_MANIFEST["passphrase"].encode())
    assert go_world.tree() == tree
    assert (go_world.vault.folder / "vault.tar.aes.go").read_bytes() == go_bytes


def test_a_go_version_is_restored_and_verified(go_world: World) -> None:
    passphrase = GO_MANIFEST["passphrase"].encode()
    go_world.put("new", "x")
    tazpod.save(go_world.vault)
    tazpod.lock(go_world.vault)
    (version,) = tazpod.versions(go_world.vault)
    assert tazpod.verify(go_world.vault, version, passphrase) == len(GO_MANIFEST["entries"])
    tazpod.restore(go_world.vault, version, passphrase)
    assert go_world.vault.sealed.read_bytes() == (GO_DATA / "vault1.tar.aes").read_bytes()


# ---- sealed files that must be refused ---------------------------------------------------------------
def literal_packet(content: bytes) -> bytes:
    """RFC 4880, 5.9: a literal data packet, what a message is before it is encrypted."""
    body = b"b\0" + bytes(4) + content
    return b"\xcb\xff" + len(body).to_bytes(4, "big") + body


def outcome_of(data: bytes, folder: Path, number: int) -> str:
    """What unsealing these bytes into a folder says."""
    path = folder / f"{number}.sealed"
    path.write_bytes(data)
    out = folder / f"{number}.out"
    out.mkdir()
    try:
        fd = tazpod.open_sealed_file(path)
        try:
            tazpod.unseal(fd, PASSPHRASE, tazpod.unpack_argv(out))
        finally:
            os.close(fd)
        return "opened"
    except tazpod.VaultError:
        return "refused"
    finally:
        shutil.rmtree(out)
        path.unlink()


def assert_all_refused(variants: list[bytes], folder: Path) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = list(pool.map(outcome_of, variants, itertools.repeat(folder), itertools.count()))
    accepted = [number for number, told in enumerate(outcomes) if told != "refused"]
    assert accepted == [], f"accepted of {len(variants)}: {accepted}"


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.fixture(scope="session")
def small_sealed() -> bytes:
    """A sealed archive of 1 KiB: one file, and none of the zeros that an archive ends with."""
    return gpg_seal(tar_of(("secret", CANARY))[:1024])


def test_the_small_sealed_vault_opens(small_sealed: bytes, tmp_path: Path) -> None:
    assert outcome_of(small_sealed, tmp_path, 0) == "opened"


def test_what_somebody_else_has_unmounted_meanwhile_is_gone(tmp_path: Path) -> None:
    assert tazpod.try_unmount(tmp_path) == "" and tazpod.unmount(tmp_path)


def test_a_vault_cut_short_is_refused(small_sealed: bytes, tmp_path: Path) -> None:
    """Short form: each of the first 64 lengths, every 50th, and each of the last 24; 108 in all."""
    sealed = small_sealed
    lengths = {*range(64), *range(0, len(sealed), 50), *range(len(sealed) - 24, len(sealed))}
    assert_all_refused([sealed[:length] for length in sorted(lengths)], tmp_path)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_vault_cut_to_any_length_is_refused(small_sealed: bytes, tmp_path: Path) -> None:
    assert_all_refused([small_sealed[:length] for length in range(len(small_sealed))], tmp_path)


def test_a_flipped_bit_is_refused(small_sealed: bytes, tmp_path: Path) -> None:
    """Short form: one bit of each of the first 32 bytes and the last 24, and 24 between; 80 in all."""
    rng = random.Random(24)
    size = len(small_sealed)
    places = [*range(32), *range(size - 24, size), *rng.sample(range(32, size - 24), 24)]
    assert_all_refused([flipped(small_sealed, 8 * p + rng.randrange(8)) for p in places], tmp_path)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_any_flipped_bit_is_refused(small_sealed: bytes, tmp_path: Path) -> None:
    assert_all_refused([flipped(small_sealed, bit) for bit in range(8 * len(small_sealed))], tmp_path)


def forgeries(sealed: bytes) -> dict[str, bytes]:
    """What an attacker without the passphrase can make."""
    evil = tar_of(("evil", b"x"))
    return {
        "nothing": b"",
        "a literal packet": literal_packet(evil),
        "our header, then a literal packet": sealed[:15] + literal_packet(evil),
        "our header and first tag, then a literal packet": sealed[:16] + literal_packet(evil),
        "a literal packet, then ours": literal_packet(evil) + sealed,
        "ours, then a literal packet": sealed + literal_packet(evil),
        "ours twice": sealed + sealed,
        "ours, then zeros": sealed + bytes(10_240),
        "ours, then one byte": sealed + b"\0",
        "a zero, then ours": b"\0" + sealed,
        "our header only": sealed[:15],
        "a plain tar": evil,
        "random bytes": random.Random(7).randbytes(4096),
        "our header, random bytes": sealed[:16] + random.Random(7).randbytes(4096),
        "without its integrity protection": sealed[:15] + b"\xc9" + sealed[16:],
        "armored": b"-----BEGIN PGP MESSAGE-----\n\n" + sealed,
    }


FORGERIES = list(forgeries(b""))


@pytest.mark.parametrize("name", FORGERIES)
def test_what_we_did_not_seal_is_refused_and_leaves_nothing(
    locked: World, template: tuple[bytes, Snapshot], name: str
) -> None:
    forged = forgeries(template[0])[name]
    locked.vault.sealed.write_bytes(forged)
    with pytest.raises(tazpod.VaultError):
        locked.unlock()
    assert locked.mounted() == [] and not tazpod.is_open(locked.vault)
    for folder in (locked.open, locked.vault.transit, locked.temp):
        assert list(folder.iterdir()) == []
    assert locked.disk_state() == {"vault.tar.aes": forged}
    with pytest.raises(tazpod.VaultError):
        tazpod.verify(locked.vault, locked.vault.sealed, PASSPHRASE)


def test_a_compressed_message_opens_only_when_it_is_whole(tmp_path: Path) -> None:
    archive = tar_of(("secret", CANARY), ("more", bytes(5000)))
    variants = []
    for algorithm in ("zip", "zlib"):
        sealed = gpg_seal(archive, PASSPHRASE, "--compress-algo", algorithm)
        assert outcome_of(sealed, tmp_path, 0) == "opened"
        variants += [sealed[:-1], sealed[:-30], flipped(sealed, 8 * len(sealed) - 200), sealed + sealed]
    assert_all_refused(variants, tmp_path)
