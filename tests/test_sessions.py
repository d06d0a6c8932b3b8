"""Several people in one container: who locks the vault, and when, whatever happens to them."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import enginelib
import pytest
from enginelib import ENGINE, PASSPHRASE, SECRET, SECRETS, Place, Terminal, docker, eventually

import tazpod

place, lab = enginelib.place, enginelib.lab
template, project_with_vault = enginelib.template, enginelib.project_with_vault
pytestmark = pytest.mark.engine

ASK = "Passphrase: "


def alive(place: Place, pid: str) -> bool:
    """Whether a process of the container runs."""
    return place.inside(f"kill -0 {pid}").returncode == 0


def joins(place: Place) -> Terminal:
    """Another person, who comes while the vault is open."""
    person = place.terminal()
    person.shell()
    assert "[y/N]" not in person.seen
    assert ASK not in person.seen
    return person


def session_files(place: Place) -> list[str]:
    """What sessions leave in the run folder."""
    kinds = (".lease", ".session", ".leaving", ".shell")
    return [path.name for path in (place.folder / ".tazpod/run").iterdir() if path.suffix in kinds]


def guard_looks(place: Place) -> None:
    """Wait until the guard has looked once more: it takes the lease of a dead host side away."""
    dead = place.folder / ".tazpod/run/0123456789abcdef.lease"
    dead.touch()
    eventually(lambda: not dead.exists(), "the guard looks")


def test_the_last_to_leave_saves_and_locks(lab: Place) -> None:
    first, second = lab.enter(), joins(lab)
    assert "the vault is open already" in second.sh("tazpod unlock")
    first.sh("echo new > ~/secrets/new")
    assert first.leaves(3) == 3
    assert "the vault stays open: 1 more session" in first.seen
    assert "saved" not in first.seen
    assert second.sh("cat ~/secrets/new ~/secrets/kept") == f"new\n{SECRET}"
    assert second.leaves() == 0
    assert "saved (2 files" in second.seen
    assert "the vault is locked" in second.seen
    assert lab.is_shut()
    assert session_files(lab) == []


def test_who_comes_while_the_last_one_leaves_keeps_the_vault(project_with_vault: Place) -> None:
    """The hook holds the lock up after the sessions were counted: the worst moment."""
    place = project_with_vault
    place.configure("hooks.pre_lock: 'touch /tmp/hook; until [ -e /tmp/go ]; do sleep 0.05; done'")
    first = place.enter()
    first.shell()
    first.types("exit")
    eventually(lambda: place.inside("test -e /tmp/hook").returncode == 0, "the first one leaves")
    second = joins(place)
    second.sh("echo kept > ~/secrets/new; touch /tmp/go")
    assert first.ends() == 0
    assert "the vault stays open: a session has come" in first.seen
    assert second.sh("cat ~/secrets/new") == "kept"
    assert second.leaves() == 0
    assert "the vault is locked" in second.seen
    assert place.is_shut()


@pytest.mark.parametrize("end", ["killed", "closed"])
def test_a_dead_host_side_ends_its_own_shell_and_the_last_one_locks(lab: Place, end: str) -> None:
    first, second = lab.enter(), joins(lab)
    shells = [person.sh("echo $$") for person in (first, second)]
    first.sh("echo new > ~/secrets/new")
    for person, shell, other in ((first, *shells), (second, *reversed(shells))):
        person.kill(signal.SIGKILL) if end == "killed" else person.closes()
        eventually(lambda pid=shell: not alive(lab, pid), "the shell of the dead host side ends")
        if person is first:
            guard_looks(lab)
            assert alive(lab, other)
            assert second.sh("cat ~/secrets/new") == "new"
    eventually(lab.is_shut, "the vault is locked")
    eventually(lambda: not session_files(lab), "the files of the sessions are gone")
    lab.ok("unlock", passphrase=PASSPHRASE)
    assert lab.reads("cat ~/secrets/new") == "new"


@pytest.mark.skipif(ENGINE != "podman", reason="the rest of the tests are that")
def test_where_there_is_podman_alone_the_first_day_ends_saved_and_locked(place: Place) -> None:
    programs = place.box / "bin"
    programs.mkdir()
    for folder in ("/usr/sbin", "/usr/bin"):
        for path in Path(folder).iterdir():
            if not path.name.startswith("docker") and not (programs / path.name).exists():
                (programs / path.name).symlink_to(path)
    del place.env["TAZPOD_ENGINE"]
    place.env["PATH"] = str(programs)
    place.init()
    person = place.terminal()
    person.answers(
        (r"Start a new, empty one\? \[y/N\] ", "y"),
        ("New passphrase: ", PASSPHRASE),
        ("The same again: ", PASSPHRASE),
    )
    person.sh(f"echo {SECRET} > ~/secrets/unsaved")
    person.closes()
    eventually(place.is_shut, "the vault is locked")
    place.ok("unlock", passphrase=PASSPHRASE)
    assert place.reads("cat ~/secrets/unsaved") == SECRET
    place.ok("lock")
    if os.geteuid() != 0:  # root may write anywhere
        assert place.inside("echo x > ~/secrets/x").returncode != 0
    assert {path.lstat().st_uid for path in place.folder.rglob("*")} == {os.geteuid()}
    assert "tazpod" in place.ok("list")
    place.ok("down")


def test_when_all_are_ended_at_once_the_vault_is_saved_and_locked(lab: Place) -> None:
    people = [lab.enter(), joins(lab), joins(lab)]
    people[0].sh("echo new > ~/secrets/new")
    for person in people:
        person.kill(signal.SIGTERM)
    assert [person.ends() for person in people] == [128 + signal.SIGTERM] * 3
    assert lab.is_shut()
    assert session_files(lab) == []
    lab.ok("unlock", passphrase=PASSPHRASE)
    assert lab.reads("cat ~/secrets/new") == "new"


def test_two_that_enter_at_once_do_not_swap_their_shells(lab: Place) -> None:
    lab.ok("unlock", passphrase=PASSPHRASE)
    people = [lab.terminal() for _ in range(4)]
    shells = [person.sh("echo $$") for person in people]
    assert len(set(shells)) == len(people)
    for number, person in enumerate(people[:-1]):
        person.kill(signal.SIGKILL)
        eventually(lambda pid=shells[number]: not alive(lab, pid), "its own shell ends")
        guard_looks(lab)
        assert all(alive(lab, pid) for pid in shells[number + 1 :])
    assert people[-1].sh("cat ~/secrets/kept") == SECRET
    assert people[-1].leaves() == 0
    assert "the vault is locked" in people[-1].seen


def test_an_unlock_left_at_its_prompt_blocks_nobody(lab: Place) -> None:
    for words in ((), ("unlock",)):
        orphan = lab.terminal(*words)
        orphan.sees(r"Passphrase( \(empty: stay locked\))?: ")
        orphan.kill(signal.SIGKILL)
    assert lab.inside("pgrep -f 'program.. unlock$'").returncode == 0
    person = lab.enter()
    assert person.sh("cat ~/secrets/kept") == SECRET
    assert person.leaves() == 0
    assert "the vault is locked" in person.seen
    assert lab.is_shut()


def test_a_plain_unlock_stays_open_until_it_is_locked(lab: Place) -> None:
    lab.ok("unlock", passphrase=PASSPHRASE)
    for _ in range(2):
        guard_looks(lab)
        if not lab.is_open():  # the lease that guard_looks leaves counts as a session that died
            break
    assert "the vault is locked" in lab.ok("lock")
    assert lab.is_shut()


def test_a_session_that_died_before_the_unlock_locks_nothing(place: Place) -> None:
    place.init().ok("run", "true")  # starts no guard
    lease = place.folder / ".tazpod/run/0123456789abcdef.lease"
    lease.touch(0o600)
    place.ok("unlock", passphrase=PASSPHRASE)
    assert not lease.exists()  # so the guard that this has started never sees it
    assert place.is_open()


# -- autolock

IDLE = f"""
import sys, time; sys.path.insert(0, "{tazpod.POD_TOOL}"); import tazpod, pathlib
vault = tazpod.Vault(pathlib.Path("/workspace/.tazpod/vault"), pathlib.Path("/home/tazpod"))
print(int(time.time() - tazpod.last_sign_of_life(vault, pathlib.Path("/workspace/.tazpod/run"))))
"""


def idle(place: Place) -> int:
    """How many seconds ago somebody last did something, as the guard sees it."""
    return int(place.reads(f"python3 -c '{IDLE}'"))


def age(place: Place, minutes: int, *paths: str) -> None:
    """Make files look as if nothing had happened to them for so long."""
    place.reads(f"touch -d '-{minutes} minutes' {' '.join(paths)}", user="0")


@pytest.mark.parametrize("autolock", [0, 5])
def test_autolock_counts_minutes_without_a_keystroke(project_with_vault: Place, autolock: int) -> None:
    place = project_with_vault
    place.configure(f"vault.autolock: {autolock}")
    person = place.enter()
    terminal = person.sh("echo new > ~/secrets/new; tty")
    assert idle(place) < 60
    age(place, 8, f"{SECRETS}/{tazpod.STATE_FILE}")
    assert idle(place) < 60  # somebody typed
    age(place, 4, terminal)
    assert 200 < idle(place) < 300
    guard_looks(place)
    assert place.is_open()
    age(place, 8, terminal)
    if autolock == 0:
        assert idle(place) > 400
        guard_looks(place)
        assert place.is_open()
        return
    eventually(place.is_shut, "the vault is locked")
    assert person.sh("ls -A ~/secrets") == ""  # the shell stays
    assert person.leaves() == 0
    place.ok("unlock", passphrase=PASSPHRASE)
    assert place.reads("cat ~/secrets/new") == "new"


# -- what is left inside

READER = """
exec 3< ~/secrets/kept 4< ~/secrets/kept; cd ~/secrets; touch /tmp/inside
until [ -e /tmp/go ]; do read -t 0.1 < /dev/zero; done
exec > /tmp/found 2> /dev/null
cat kept ~/secrets/kept; cat <&3; cat /proc/self/fd/4; ls -A; ls -A ~/secrets
touch /tmp/done
"""


def test_who_is_left_inside_is_named_and_reads_nothing_more(lab: Place) -> None:
    person = lab.enter()
    docker("exec", "-d", lab.name, "bash", "-c", READER)
    eventually(lambda: lab.inside("test -e /tmp/inside").returncode == 0, "somebody is inside")
    pid = lab.reads("pgrep -f 'exec 3<' | head -n 1")
    lab.reads(": > /tmp/mapped; cp ~/secrets/kept ~/secrets/other")
    follower = subprocess.Popen(
        [ENGINE, "exec", lab.name, "tail", "-f", f"{SECRETS}/other"], stdout=subprocess.DEVNULL
    )
    eventually(lambda: lab.inside("pgrep -x tail").stdout, "another follows a file")
    docker("exec", "-d", "-u", "0", "-w", SECRETS, lab.name, "sleep", "300")  # only root sees what root holds
    eventually(lambda: lab.inside("pgrep -u root -x sleep -a | grep 300").stdout, "root stands in it")
    assert person.leaves() == 0
    assert "saved (2 files" in person.seen
    warning = next(line for line in person.seen.splitlines() if "still in the vault" in line)
    assert f"{pid} (bash)" in warning
    assert "(tail)" in warning and "(sleep)" in warning
    assert lab.is_shut()
    lab.reads("touch /tmp/go")
    eventually(lambda: lab.inside("test -e /tmp/done").returncode == 0, "it has tried to read")
    assert lab.reads("cat /tmp/found") == ""
    follower.kill()
    follower.wait()
    lab.ok("unlock", passphrase=PASSPHRASE)
    assert lab.reads("cat ~/secrets/kept ~/secrets/other") == f"{SECRET}\n{SECRET}"


def test_a_lock_typed_inside_the_vault_locks_it(lab: Place) -> None:
    person = lab.enter()
    shell = person.sh("cd ~/secrets; echo $$")
    said = person.sh("tazpod lock; cat kept ./kept ~/secrets/kept 2>/dev/null; true")
    assert f"still in the vault when it was locked: {shell} (bash)" in said
    assert SECRET not in said
    assert lab.is_shut()


# -- the guard


def test_there_is_one_guard(lab: Place) -> None:
    lab.ok("unlock", passphrase=PASSPHRASE)
    eventually(lambda: len(lab.guards()) == 1, "one guard runs")
    (guard,) = lab.guards()
    assert lab.inside(f"timeout 30 tazpod {tazpod.GUARD_WORD}").returncode == 0
    for _ in range(2):
        lab.ok("up")
        eventually(lambda: lab.guards() == [guard], "the first guard alone goes on")
    lab.reads(f"kill {guard}")
    eventually(lambda: lab.guards() == [], "it ends on SIGTERM")
    lab.ok("up")
    eventually(lambda: len(lab.guards()) == 1, "up starts another")


def test_a_newer_tool_takes_the_guard_over(project_with_vault: Place) -> None:
    place = project_with_vault
    person = place.enter()
    shell = person.sh("echo new > ~/secrets/new; echo $$")
    eventually(lambda: len(place.guards()) == 1, "one guard runs")
    with place.tool.open("a") as file:
        file.write('\nif GUARD_WORD in sys.argv: Path("/tmp/newer").write_text("a newer tool guards")\n')
    place.ok("up")
    read = "cat /tmp/newer"
    eventually(lambda: "a newer tool" in place.inside(read).stdout, "the guard is the newer one")
    eventually(lambda: len(place.guards()) == 1, "there is one")
    person.kill(signal.SIGKILL)
    eventually(lambda: not alive(place, shell), "its shell ends")
    eventually(place.is_shut, "and the vault is locked")


def test_only_the_owner_reads_what_sessions_leave(lab: Place) -> None:
    person = lab.enter()
    run = lab.folder / ".tazpod/run"
    assert run.stat().st_mode & 0o777 == 0o700
    for path in (*run.iterdir(), *lab.vault.rglob("*")):
        wanted = 0o700 if path.is_dir() else 0o600
        assert path.stat().st_mode & 0o777 == wanted or path == lab.sealed, path
    assert os.listdir(run)
    assert person.leaves() == 0


def test_down_asks_before_it_ends_the_sessions_of_others(lab: Place) -> None:
    person = lab.enter()
    person.sh("echo new > ~/secrets/new")
    for words in (["down"], ["up", "--recreate"], ["down", "--discard"]):
        done = lab.run(*words)  # off a terminal nobody can be asked
        assert done.returncode == 1
        assert "error: this ends 1 session in the container\nhint: end them first, or again" in done.stderr
    other = lab.terminal("down")
    other.answers((r"This ends 1 session in the container. Go on\? \[y/N\] ", "n"))
    assert other.ends() == 1 and "nothing was ended" in other.seen
    assert person.sh("cat ~/secrets/new") == "new"
    assert "saved (" in lab.ok("down", "--force")
    assert person.ends() == 137
    lab.ok("up")
    assert "this ends" not in lab.ok("down")
    lab.ok("up")


def test_who_enters_from_a_folder_below_stands_there(lab: Place) -> None:
    below = lab.folder / "a/b c"
    below.mkdir(parents=True, exist_ok=True)
    done = lab.run(data="pwd", cwd=below)
    assert done.stdout == "/workspace/a/b c\n"
