"""What a container was made with counts, whatever config.yaml says by now; which project it belongs to."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import enginelib
import pytest
import yaml
from enginelib import IMAGE, PASSPHRASE, SECRETS, Place, docker, eventually

import tazpod

place = enginelib.place
pytestmark = pytest.mark.engine

EDITS = ["user: dev", "features.ghost_mode: false", "container_name: NEW"]


@pytest.fixture
def open_place(place: Place) -> Place:
    """A project with an open vault, and in it what was never saved."""
    place.init().ok("unlock", passphrase=PASSPHRASE)
    place.reads("echo precious > ~/secrets/first")
    return place


def edit(place: Place, line: str) -> str:
    """Edit config.yaml while the vault is open, and approve nothing; gives the text of before."""
    path = place.folder / tazpod.CONFIG_PATH
    before = path.read_text()
    key, _, value = line.replace("NEW", f"{place.name}-new").partition(": ")
    text = yaml.safe_load(before)
    section, _, leaf = key.rpartition(".")
    (text.setdefault(section, {}) if section else text)[leaf] = yaml.safe_load(value)
    path.write_text(yaml.safe_dump(text))
    return before


def kept(place: Place, config: str) -> dict[str, str]:
    """What the sealed vault holds, with the config as it was."""
    (place.folder / tazpod.CONFIG_PATH).write_text(config)
    place.ok("trust")
    place.ok("unlock", passphrase=PASSPHRASE)
    names = place.reads("ls ~/secrets").split()
    return {name: place.reads(f"cat ~/secrets/{name}") for name in names}


@pytest.mark.parametrize("line", EDITS)
def test_an_edit_while_the_vault_is_open_loses_nothing_and_hides_nothing(
    open_place: Place, line: str
) -> None:
    before = edit(open_place, line)
    status = json.loads(open_place.run("status", "--json").stdout)
    assert status["vault"]["open"] is True and status["container"]["name"] == open_place.name
    assert f"the config: {line.partition(':')[0]} changed" in status["container"]["drift"]
    rows = json.loads(open_place.ok("list", "--json"))
    assert [row["vault"] for row in rows if row["name"] == open_place.name] == ["open"]
    assert "saved (1 file" in open_place.ok("save")
    open_place.reads("echo more > ~/secrets/second")
    said = open_place.ok("lock")
    assert "saved (2 files" in said and "the vault is locked" in said and open_place.is_shut()
    assert "the vault is locked already" in open_place.ok("lock")
    assert kept(open_place, before) == {"first": "precious", "second": "more"}
    open_place.reads("echo last > ~/secrets/third")
    edit(open_place, line)
    assert f"the container {open_place.name} is removed" in open_place.ok("down")
    assert docker("ps", "-aq", "--filter", f"name={open_place.name}") == ""
    assert kept(open_place, before)["third"] == "last"


@pytest.mark.parametrize("line", EDITS)
def test_recreate_saves_what_the_container_of_before_holds(open_place: Place, line: str) -> None:
    before = edit(open_place, line)
    open_place.ok("trust")
    done = open_place.run("up", "--recreate")
    assert "saved (1 file" in done.stderr and "the vault is locked" in done.stderr
    names = docker("ps", "-a", "--format", "{{.Names}}", "--filter", f"name={open_place.name}").split()
    if line.startswith("user"):  # the image has no such account; the secret is safe before that is known
        assert (done.returncode, names) == (1, [open_place.name])
        assert "the image has no account named dev" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert names == [open_place.name + "-new" * line.startswith("container_name")]
    assert "the container" in open_place.ok("down", "--discard")
    assert kept(open_place, before) == {"first": "precious"}


def test_in_another_container_of_the_project_an_open_vault_is_not_said_to_be_lost_or_locked(
    open_place: Place,
) -> None:
    other = f"{open_place.name}-other"
    mounts = ("-v", f"{open_place.folder}:/workspace", "-e", f"HOST_CWD={open_place.folder}")
    docker("run", "-d", "--name", other, *mounts, IMAGE, "sleep", "infinity")
    try:
        open_place.configure(f"container_name: {other}")
        for word in ("lock", "save", "unlock"):
            refused = open_place.run(word, passphrase=PASSPHRASE if word == "unlock" else None)
            assert refused.returncode == 1 and "another container of this project" in refused.stderr
        status = json.loads(open_place.run("status", "--json").stdout)["vault"]
        assert (status["open"], status["lost_since"]) == (None, None) and open_place.is_open()
        docker("stop", "-t", "0", other)
        for word in ("lock", "save"):
            refused = open_place.run(word)
            assert refused.returncode == 1 and "may hold its open vault" in refused.stderr
        status = json.loads(open_place.run("status", "--json").stdout)["vault"]
        assert (status["open"], status["lost_since"]) == (None, None)
        docker("start", other)
        assert "saved (1 file" in open_place.ok("--pod", open_place.name, "lock")
        assert "locked already" in open_place.ok("lock")
    finally:
        docker("rm", "-f", other)


LEAVE = f"umount -l /home/tazpod/.aws {SECRETS}"
WAYS = {
    "moved": f"mount --move {SECRETS} /opt/kept",
    "moved, and read-only": f"mount --move {SECRETS} /opt/kept && mount -o remount,ro /opt/kept",
    "a part of it": f"mkdir {SECRETS}/part && mount --bind {SECRETS}/part /opt/kept && {LEAVE}",
    "where a login is": f"umount -l /home/tazpod/.aws; mount --move {SECRETS} /home/tazpod/.aws",
    "another home": f"mkdir -p /home/x/secrets && mount --move {SECRETS} /home/x/secrets",
    "a name with other ends of lines": f"x=$'/opt/a\\fb\\r'; mkdir $x; mount --move {SECRETS} $x",
    "a namespace": f"unshare -m sh -c 'while :; do sleep 1; done' & sleep 0.5; {LEAVE}",
}
BACK = {
    "moved": f"mount --move /opt/kept {SECRETS}",
    "where a login is": f"mount --move /home/tazpod/.aws {SECRETS}",
    "another home": f"mount --move /home/x/secrets {SECRETS}",
}


@pytest.mark.parametrize("way", WAYS)
def test_an_open_vault_that_was_moved_elsewhere_is_neither_locked_nor_lost(
    open_place: Place, way: str
) -> None:
    there = f"mkdir /opt/kept; rm /workspace/.tazpod/vault/.open; {WAYS[way]}"
    assert open_place.inside(there, user="0").returncode == 0
    for words in (["lock"], ["save"], ["passwd"], ["unlock"], ["down"]):
        passphrase = PASSPHRASE if words[0] in ("passwd", "unlock") else None
        refused = open_place.run(*words, passphrase=passphrase)
        told = (
            "but for a part of it: |secrets may be in"
            if way == "a part of it"
            else "was moved: |secrets may be in"
        )
        assert refused.returncode == 1 and re.search(told, refused.stderr), words
        assert "locked already" not in refused.stderr and "lost" not in refused.stderr
    status = json.loads(open_place.run("status", "--json").stdout)
    assert (status["well"], status["vault"]["open"], status["vault"]["remains"]) == (False, None, True)
    rows = {row["name"]: row["vault"] for row in json.loads(open_place.ok("list", "--json"))}
    assert rows[open_place.name] in ("moving", "open")
    if way in BACK:
        assert f"put it back (sudo {BACK[way]}" in open_place.run("lock").stderr
        assert open_place.inside(BACK[way], user="0").returncode == 0
        assert "saved (1 file" in open_place.ok("lock")
    open_place.ok("down", "--discard")


def test_a_destroyed_vault_that_a_namespace_still_shows_is_in_nobodys_way(open_place: Place) -> None:
    stay = "unshare -m sh -c 'while :; do sleep 1; done' > /dev/null 2>&1 &"
    assert open_place.inside(stay, user="0").returncode == 0
    eventually(lambda: len(shown_in(open_place)) > 1, "it has a namespace of its own")
    assert "still in the vault when it was locked: " in open_place.ok("lock")
    assert shown_in(open_place), "it still shows the vault"
    assert "the vault is locked already" in open_place.ok("lock")
    assert "locked" in open_place.run("status").stdout
    open_place.ok("unlock", passphrase=PASSPHRASE)
    assert "the vault is locked" in open_place.ok("lock")
    open_place.ok("down")


def shown_in(place: Place) -> list[str]:
    """The mounts of our memory, in all namespaces."""
    tables = place.inside("cat /proc/[0-9]*/mountinfo | sort -u", user="0").stdout
    return [m.point for m in tazpod.parse_mountinfo(tables) if m.source == name_of_ram(place)]


def name_of_ram(place: Place) -> str:
    """What a mount table calls the memory of the open vault of a container."""
    return tazpod.ram_name(docker("inspect", "-f", "{{.Id}}", place.name).strip())


PANE = """cd %s && (until [ -e /tmp/locked ]; do sleep 0.2; done
for _ in 1 2 3; do ln -s KEY link; echo KEY > token; mkdir more; sleep 0.5; done
touch /tmp/$(basename "$PWD")-ended) > /dev/null 2>&1 &"""


@pytest.mark.parametrize("other", ["", "~/secrets/github", "~/.aws"])
def test_a_destroyed_vault_takes_nothing_from_those_who_still_sit_in_it(
    open_place: Place, other: str
) -> None:
    """A folder that is held and was deleted keeps the kernel from making the memory read-only."""
    open_place.reads("mkdir -p ~/secrets/github")
    open_place.reads(PANE % "~/secrets")
    if other:
        leaves = f"cd {other} && (until [ -e /tmp/locked ]; do sleep 0.1; done) > /dev/null 2>&1 & sleep 0.2"
        open_place.reads(leaves)
    assert "still in the vault when it was locked: " in open_place.ok("lock")
    open_place.reads("touch /tmp/locked")
    look = "cd /proc/$(pgrep -of KEY)/cwd && ls -A ."
    assert open_place.inside(f"sleep 1; {look}").stdout == ""
    eventually(lambda: open_place.inside("ls /tmp/*-ended").returncode == 0, "it has tried")
    assert "the vault is locked already" in open_place.ok("lock")
    assert open_place.run("status").returncode == 0


def test_a_namespace_that_a_file_keeps_is_in_nobodys_way(open_place: Place) -> None:
    keep = (
        "mkdir -p /run/p && mount --bind /run/p /run/p && mount --make-private /run/p && touch /run/p/ns &&"
        # A namespace is kept only in an older one, and each processor has numbers of its own for them.
        " for ((i = 0; i < 300; i++)); do unshare --mount=/run/p/ns true 2> /dev/null && exit 0; done; exit 1"
    )
    assert open_place.inside(keep, user="0").returncode == 0
    assert "the vault is locked" in open_place.ok("lock")
    open_place.inside("nsenter --mount=/run/p/ns sleep 1000 > /dev/null 2>&1 &", user="0")
    eventually(lambda: shown_in(open_place), "its namespace shows the vault")
    assert "the vault is locked already" in open_place.ok("lock")
    assert open_place.run("status").returncode == 0
    open_place.ok("unlock", passphrase=PASSPHRASE)
    open_place.ok("down")


HOLD = """import ctypes, os, threading, time
def hold():
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(0x20000) == 0 and libc.mount(b"none", b"/", None, 0x44000, None) == 0
    fd = os.open("SECRETS/deleted", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"KEY" * 5000)
    os.unlink("SECRETS/deleted")
    libc.prctl(4, 0, 0, 0, 0)
    open("/tmp/held", "w").close()
    time.sleep(1000)
threading.Thread(target=hold).start()
"""


def test_a_deleted_file_that_a_thread_elsewhere_holds_is_not_called_locked(open_place: Place) -> None:
    script = HOLD.replace("SECRETS", SECRETS)
    open_place.inside(
        f"cat > /tmp/hold.py << 'END'\n{script}END\npython3 /tmp/hold.py > /dev/null 2>&1 &", user="0"
    )
    eventually(lambda: open_place.inside("ls /tmp/held").returncode == 0, "it holds the file")
    refused = open_place.run("lock")
    assert refused.returncode == 1 and "of deleted files are still held" in refused.stderr
    assert open_place.run("down").returncode == 1
    open_place.reads("pkill -f hold.py", user="0")
    assert "locked" in open_place.ok("lock")
    open_place.ok("down")


def test_memory_that_a_program_names_like_an_open_vault_is_told_with_that_program(open_place: Place) -> None:
    """Any program can mount some, in a namespace of users of its own; who works here must see which it is."""
    name = name_of_ram(open_place)
    for source in ("tazpod", name):
        line = f"mkdir -p /tmp/t; mount -t tmpfs {source} /tmp/t && exec sleep 1000"
        open_place.inside(f'unshare -rm sh -c "{line}" > /dev/null 2>&1 &', user="1000")
    shows = f"grep -l ' {name} .*uid=' /proc/[0-9]*/mountinfo"
    eventually(lambda: open_place.inside(shows).returncode == 0, "it is mounted")
    open_place.ok("lock")
    refused = open_place.run("lock")
    assert refused.returncode == 1
    found = re.search(r"only ([0-9]+) \(sleep\) can see it, at /tmp/t\n.* sudo kill \1\)", refused.stderr)
    assert found, refused.stderr
    open_place.reads(f"sudo kill {found[1]}")
    assert "locked already" in open_place.ok("lock")
    open_place.ok("down")


def test_an_open_vault_of_an_older_tazpod_has_one_name_for_all_and_is_found_in_another_home(
    open_place: Place,
) -> None:
    """Only at a place of secrets: a project of the host may lie on memory of any name."""
    open_place.ok("lock")
    there = "mkdir -p /home/x/secrets /opt/data && mount -t tmpfs tazpod /home/x/secrets"
    assert open_place.inside(f"{there} && mount -t tmpfs tazpod /opt/data", user="0").returncode == 0
    for word in ("lock", "unlock", "down"):
        refused = open_place.run(word, passphrase=PASSPHRASE if word == "unlock" else None)
        assert refused.returncode == 1 and "at /home/x/secrets" in refused.stderr
        assert "/opt/data" not in refused.stderr
    assert open_place.inside("umount /home/x/secrets", user="0").returncode == 0
    open_place.ok("unlock", passphrase=PASSPHRASE)
    open_place.ok("down")


def test_the_container_of_a_folder_that_was_deleted_says_so(open_place: Place) -> None:
    shutil.rmtree(open_place.folder)
    open_place.folder.mkdir()
    open_place.init().ok("trust")
    for word in ("lock", "up", "down"):
        refused = open_place.run(word)
        assert refused.returncode == 1 and "was deleted" in refused.stderr
    look = refused.stderr.partition("alone: ")[2].partition(" to copy")[0].replace(" -it ", " ")
    done = subprocess.run(
        ["bash", "-c", f"{look} -c 'cat /home/tazpod/secrets/first'"], capture_output=True, text=True
    )
    assert done.stdout == "precious\n"
    docker("rm", "-f", open_place.name)


def test_the_container_of_a_folder_that_was_moved_can_still_save(open_place: Place) -> None:
    open_place.folder.rename(open_place.folder.with_name("moved"))
    open_place.folder.mkdir()
    for words, folder in ((("--pod", open_place.name, "lock"), open_place.folder), (("lock",), None)):
        refused = open_place.run(*words, cwd=folder or open_place.folder.with_name("moved"))
        assert refused.returncode == 1 and "tazpod lock, then" in refused.stderr
    open_place.folder.rmdir()
    open_place.folder.with_name("moved").rename(open_place.folder)


STEAL = "hooks.pre_lock: cat ~/secrets/first > /workspace/stolen; cp ~/secrets/first /workspace/stolen2"


@pytest.mark.parametrize("way", ["lock", "down", "save", "leaving", "guard"])
def test_what_a_new_version_of_the_project_brings_does_not_run_with_the_vault_open(
    open_place: Place, way: str
) -> None:
    if way in ("leaving", "guard"):
        person = open_place.enter()
        person.shell()
    before = edit(open_place, STEAL)
    edit(open_place, "vault.keep: 0")
    if way == "leaving":
        assert person.leaves() == 0
    elif way == "guard":
        person.kill(signal.SIGKILL)
    else:
        open_place.ok(way)
    if way == "save":
        open_place.ok("lock")
    if way != "down":
        eventually(open_place.is_shut, "it is locked")
    assert not list(open_place.folder.glob("stolen*"))
    assert kept(open_place, before) == {"first": "precious"}


def test_what_is_approved_meanwhile_counts_from_then_on(open_place: Place) -> None:
    person = open_place.enter()
    person.shell()
    edit(open_place, "hooks.pre_lock: touch /workspace/ran")
    said = open_place.reads("TAZPOD_SESSION=x tazpod save 2>&1", "tazpod")
    assert "hooks.pre_lock: not as it was approved" in said and "saved (" in said
    open_place.ok("trust")
    assert "not as it was approved" not in open_place.reads("TAZPOD_SESSION=x tazpod save 2>&1", "tazpod")
    assert person.leaves() == 0
    assert (open_place.folder / "ran").exists()


def test_another_user_of_the_host_replaces_nothing_that_was_approved(open_place: Place) -> None:
    edit(open_place, "hooks.pre_lock: touch /workspace/ran")
    open_place.ok("trust")
    open_place.ok("save")
    open_place.env["XDG_STATE_HOME"] = str(open_place.box / "state of root's")
    open_place.ok("save")
    del open_place.env["XDG_STATE_HOME"]
    open_place.ok("lock")
    assert (open_place.folder / "ran").exists()


@pytest.mark.parametrize("told", ["", "{", "[]"])
def test_where_it_is_not_known_what_was_approved_the_defaults_count(open_place: Place, told: str) -> None:
    before = edit(open_place, STEAL)
    open_place.reads(f"echo '{told}' > {tazpod.POD_CONFIG}")
    assert "it is not known here what was approved" in open_place.ok("lock")
    assert not list(open_place.folder.glob("stolen*"))
    assert kept(open_place, before) == {"first": "precious"}


def spoil(path: Path, how: str) -> None:
    """Make something of config.yaml that nobody can read."""
    text = path.read_text()
    if how == "a typing error":
        path.write_text(f"{text}\nports: [80:80\n")
    elif how == "too large":
        path.write_text(text + "#" * (1 << 20))
    elif how == "no text":
        path.write_bytes(text.encode() + b"\xff\n")
    else:
        path.unlink()
        if how == "a folder":
            path.mkdir()
        elif how == "a link":
            path.symlink_to("/etc/passwd")


@pytest.mark.parametrize("how", ["a typing error", "a folder", "a link", "too large", "no text"])
def test_with_a_config_that_cannot_be_read_all_is_saved_and_locked(open_place: Place, how: str) -> None:
    path = open_place.folder / tazpod.CONFIG_PATH
    before = path.read_text()
    spoil(path, how)
    open_place.ok("save")
    assert json.loads(open_place.ok("list", "--json"))[0]["name"]
    open_place.ok("lock")
    open_place.ok("down")
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    assert kept(open_place, before) == {"first": "precious"}


def test_a_session_ends_well_while_somebody_types_in_the_config(open_place: Place) -> None:
    person, other = open_place.enter(), open_place.enter()
    path = open_place.folder / tazpod.CONFIG_PATH
    before = path.read_text()
    spoil(path, "a typing error")
    person.kill(signal.SIGKILL)
    assert other.leaves() == 0
    eventually(open_place.is_shut, "it is locked")
    assert kept(open_place, before) == {"first": "precious"}


def adopt_orphans(on: bool) -> None:
    """Whether the processes that lose their parent become this one's (PR_SET_CHILD_SUBREAPER, prctl(2))."""
    assert ctypes.CDLL(None).prctl(36, int(on), 0, 0, 0) == 0


@pytest.mark.skipif(enginelib.ENGINE != "podman", reason="each container of Podman has a conmon of its own")
@pytest.mark.parametrize("word", [("down",), ("up", "--recreate", "--force")])
@pytest.mark.parametrize("reaped", [True, False])
def test_a_container_that_died_with_its_conmon_is_told_and_can_be_ended(
    request: pytest.FixtureRequest, word: tuple[str, ...], reaped: bool
) -> None:
    if not reaped:  # what has lost its parents comes to this process, and stays a zombie
        request.addfinalizer(lambda: adopt_orphans(False))
        adopt_orphans(True)
    open_place: Place = request.getfixturevalue("open_place")
    open_place.ok("save")
    told = docker("inspect", "-f", "{{.State.ConmonPid}} {{.State.Pid}}", open_place.name).split()
    for pid in map(int, told):
        os.kill(pid, signal.SIGKILL)
    dead = [Path(f"/proc/{pid}") for pid in told]
    if reaped:
        eventually(lambda: not any(process.exists() for process in dead), "both are dead")
    else:
        zombies = "(zombie)"
        eventually(
            lambda: all(zombies in (process / "status").read_text() for process in dead), "both are dead"
        )
    status = open_place.run("status")
    assert "the container stopped" in status.stdout or "is lost" in status.stdout, status
    if not reaped:  # Podman itself ends no container whose conmon is one
        adopt_orphans(False)
        for pid in map(int, told):
            os.waitpid(pid, 0)
    said = open_place.ok(*word)
    assert "is lost" in said
    open_place.ok("up")
    assert kept(open_place, (open_place.folder / tazpod.CONFIG_PATH).read_text()) == {"first": "precious"}


def test_the_storage_is_told_the_project_that_the_config_names(place: Place) -> None:
    place.init("aws_sso.bucket: some-bucket").ok("up")
    script = (
        "import tazpod; config = tazpod.the_project(); print(tazpod.project_label(config), config.aws_bucket)"
    )
    python = f"cd {tazpod.WORKSPACE} && PYTHONPATH={tazpod.POD_TOOL} python3 -c '{script}'"
    assert place.reads(python).split() == [place.name, "some-bucket"]


@pytest.mark.parametrize("torn", [False, True])
def test_a_set_up_that_was_cut_off_is_done_anew_whatever_is_approved_by_then(
    open_place: Place, torn: bool
) -> None:
    """The tool was put there, or a part of it, with what was approved then; the vault is open."""
    path = open_place.folder / tazpod.CONFIG_PATH
    before = path.read_text()
    edit(open_place, STEAL)
    stand_ins = open_place.box / "cut off"
    stand_ins.mkdir()
    engine = shutil.which(enginelib.ENGINE)
    dies = f'[ "$1" != cp ] && exec {engine} "$@"; {engine} "$@"; kill -9 $PPID'
    (stand_ins / enginelib.ENGINE).write_text(f"#!/bin/sh\n{dies}\n")
    (stand_ins / enginelib.ENGINE).chmod(0o755)
    cut_off = open_place.run("trust", PATH=f"{stand_ins}:{open_place.env['PATH']}")
    assert cut_off.returncode == -signal.SIGKILL
    if torn:
        open_place.reads(f"echo 'def main(' > {tazpod.POD_TOOL}/tazpod.py", "root")
    path.write_text(before)
    open_place.ok("trust")
    open_place.ok("lock")
    assert not list(open_place.folder.glob("stolen*"))
    assert kept(open_place, before) == {"first": "precious"}


def test_a_guard_does_not_go_on_as_a_tool_that_cannot_start(open_place: Place) -> None:
    person = open_place.enter()
    (guard,) = open_place.guards()
    tool = f"{tazpod.POD_TOOL}/tazpod.py"
    broken = 'open("/tmp/tried", "w")\nraise SystemExit(1)'
    open_place.reads(f"cp {tool} /root/whole; echo '{broken}' > {tool}", "root")
    eventually(lambda: open_place.reads("ls /tmp/tried || :"), "it has been tried")
    assert open_place.guards() == [guard]
    open_place.reads(f"cp /root/whole {tool}", "root")
    person.kill(signal.SIGKILL)
    eventually(open_place.is_shut, "it is locked")
