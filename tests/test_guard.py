"""What happens when the guard, a leave, an unlock or a run folder is what goes wrong; on a real engine."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import enginelib
import pexpect
import pytest
from conftest import write_stub
from enginelib import PASSPHRASE, SECRET, SECRETS, Place, docker, eventually
from test_sessions import alive, joins, session_files

import tazpod

place, lab, template = enginelib.place, enginelib.lab, enginelib.template
pytestmark = pytest.mark.engine

BROKEN, SLOW = "/tmp/gpg.broken", "/tmp/gpg.slow"
GPG = f"""#!/bin/sh
while [ -e {SLOW} ]; do touch /tmp/gpg.waits; sleep 0.1; done
[ ! -e {BROKEN} ] || {{ echo x >> {BROKEN}; exit 9; }}
exec /usr/bin/gpg "$@"
"""


@pytest.fixture
def bad(lab: Place) -> Iterator[Place]:
    """A lab whose gpg fails, or waits, for as long as a file says so."""
    lab.reads(f"echo {shlex.quote(GPG)} > /usr/local/bin/gpg; chmod 755 /usr/local/bin/gpg", user="0")
    lab.reads(f"rm -f {BROKEN} {SLOW} /tmp/gpg.waits {tazpod.LOG_PATH}")
    yield lab
    lab.inside(f"rm -f {BROKEN} {SLOW} /usr/local/bin/gpg", user="0")


def log(place: Place) -> str:
    return place.inside(f"cat {tazpod.LOG_PATH}").stdout


def status(place: Place) -> dict[str, object]:
    found = json.loads(place.run("status", "--json").stdout)
    assert isinstance(found, dict)
    return found


def kill_guard(place: Place) -> None:
    """As the kernel does when memory is short."""
    before = place.guards()
    assert before
    place.inside(f"kill -9 {' '.join(before)}")
    eventually(lambda: not set(before) & set(place.guards()), "it is dead")


def opens_with(place: Place, name: str, content: str) -> bool:
    """Whether the sealed vault opens and holds this file."""
    place.ok("unlock", passphrase=PASSPHRASE)
    return place.reads(f"cat ~/secrets/{name}") == content


def test_a_lock_of_the_guard_that_failed_is_tried_again(bad: Place) -> None:
    person = bad.enter()
    person.sh(f"echo new > ~/secrets/new; touch {BROKEN}")
    person.kill(signal.SIGKILL)
    eventually(lambda: log(bad).count("ERROR lock: status 1") >= 2, "it fails, and fails again")
    assert bad.is_open()
    assert bad.run("status").returncode == tazpod.UNWELL
    bad.reads(f"rm {BROKEN}")
    eventually(bad.is_shut, "it is locked when it can be")
    eventually(lambda: not session_files(bad), "and nothing is left to do")
    assert opens_with(bad, "new", "new")


@pytest.mark.parametrize("how", ["exit", "closed", "run"])
def test_after_a_leave_that_failed_the_guard_takes_over(bad: Place, how: str) -> None:
    if how == "run":
        script = f"echo new > ~/secrets/new; touch {BROKEN}"
        done = bad.run("run", "sh", "-c", script, passphrase=PASSPHRASE)
        assert done.returncode == tazpod.FAILED
        assert "the vault was not locked" in done.stderr
    else:
        person = bad.enter()
        person.sh(f"echo new > ~/secrets/new; touch {BROKEN}")
        if how == "exit":
            assert person.leaves() == tazpod.FAILED
            assert "the vault was not locked" in person.seen
        else:
            person.closes()
    assert bad.is_open()
    facts = status(bad)
    assert not facts["well"]
    assert facts["vault"]["left_open"] is True  # type: ignore[index]
    assert "a session has ended, and the vault is still open" in facts["troubles"]  # type: ignore[operator]
    bad.reads(f"rm {BROKEN}")
    eventually(bad.is_shut, "the guard locks")
    assert status(bad)["vault"]["left_open"] is False  # type: ignore[index]
    assert opens_with(bad, "new", "new")


def test_a_guard_that_dies_is_replaced_while_a_session_lives(lab: Place) -> None:
    person = lab.enter()
    shell = person.sh("echo new > ~/secrets/new; echo $$")
    for _ in range(2):
        kill_guard(lab)
        eventually(lab.guards, "there is another")
    person.kill(signal.SIGKILL)
    eventually(lambda: not alive(lab, shell), "it ends the shell of the dead host side")
    eventually(lab.is_shut, "and locks")
    assert opens_with(lab, "new", "new")


@pytest.mark.parametrize("words", [("unlock",), ("run", "true"), ("enter",)])
def test_a_guard_that_died_before_is_missed_by_the_next_word(lab: Place, words: tuple[str, ...]) -> None:
    lab.ok("unlock", passphrase=PASSPHRASE)
    kill_guard(lab)
    facts = status(lab)
    assert "the daemon does not run" in facts["troubles"]  # type: ignore[operator]
    if words == ("enter",):
        joins(lab)
    else:
        lab.ok(*words)
    eventually(lambda: len(lab.guards()) == 1, "there is one")


def test_a_guard_killed_while_it_locks_leaves_the_lock_to_the_next(bad: Place) -> None:
    person = bad.enter()
    person.sh(f"echo new > ~/secrets/new; touch {SLOW}")
    person.kill(signal.SIGKILL)
    eventually(lambda: bad.inside("test -e /tmp/gpg.waits").returncode == 0, "the guard locks")
    kill_guard(bad)
    bad.inside("pkill -9 -f leaving=guard; pkill -9 -f gpg.slow", user="0")
    bad.reads(f"rm -f {SLOW}")
    assert bad.is_open()
    facts = status(bad)
    assert facts["vault"]["left_open"] is True  # type: ignore[index]
    bad.ok("unlock")  # says that it is open, and sees to it that there is a guard
    eventually(bad.is_shut, "the next guard locks")
    assert opens_with(bad, "new", "new")


def test_the_guard_looks_on_while_a_child_of_its_own_hangs(bad: Place) -> None:
    bad.configure("sync.interval: 1")
    bad.ok("unlock", passphrase=PASSPHRASE)
    first, second = joins(bad), joins(bad)
    shells = [person.sh("echo $$") for person in (first, second)]
    first.sh(f"touch {SLOW}; echo new > ~/secrets/new")
    eventually(lambda: bad.inside("test -e /tmp/gpg.waits").returncode == 0, "the guard saves")
    first.kill(signal.SIGKILL)
    eventually(lambda: not alive(bad, shells[0]), "the shell of a dead host side ends")
    assert alive(bad, shells[1])
    assert bad.inside("test -e /tmp/gpg.waits").returncode == 0
    bad.reads(f"rm {SLOW}")
    assert second.leaves() == 0
    assert bad.is_shut()


# -- an unlock whose session dies


def slow_docker(place: Place, pattern: str, go: Path) -> str:
    """A PATH whose docker waits, for calls that match a pattern of sh, until a file is there."""
    stubs = place.box / f"slow-{go.name}"
    stubs.mkdir()
    real = shutil.which("docker")
    wait = f"touch {go}.waits; until [ -e {go} ]; do sleep 0.1; done"
    case = f'case "$*" in {pattern}) {wait}; {real} "$@"; code=$?; touch {go}.done; exit $code ;; esac'
    write_stub(stubs, "docker", f'{case}\nexec {real} "$@"')
    return f"{stubs}:{place.env['PATH']}"


@pytest.mark.parametrize("moment", ["before", "during"])
def test_a_run_killed_while_it_hands_over_the_passphrase_leaves_nothing_open(bad: Place, moment: str) -> None:
    """Its docker client lives on and delivers the passphrase."""
    go, waits = bad.box / f"go-{moment}", "/tmp/gpg.waits"
    env = dict(bad.env)
    if moment == "before":
        env["PATH"] = slow_docker(bad, "*tazpod\\ unlock*", go)
    else:
        bad.reads(f"touch {SLOW}")
    read_end, write_end = os.pipe()
    os.write(write_end, PASSPHRASE.encode() + b"\n")
    os.close(write_end)
    argv = [*bad.argv, "run", "--passphrase-fd", str(read_end), "sleep", "987"]
    command = subprocess.Popen(argv, cwd=bad.folder, env=env, pass_fds=(read_end,), stderr=subprocess.DEVNULL)
    os.close(read_end)
    if moment == "before":
        eventually(Path(f"{go}.waits").exists, "the unlock is to be started")
    else:
        eventually(lambda: bad.inside(f"test -e {waits}").returncode == 0, "the unlock is under way")
    command.kill()
    command.wait()
    go.touch()
    if moment == "before":
        eventually(Path(f"{go}.done").exists, "the passphrase is delivered")
    bad.inside(f"rm -f {SLOW}")
    eventually(lambda: not bad.inside("pgrep -f 'unlock .*--session'").stdout, "the unlock ends")
    eventually(bad.is_shut, "the vault is locked")
    eventually(lambda: not session_files(bad), "nothing is left to do")


def test_an_unlock_for_a_dead_session_does_not_open(lab: Place) -> None:
    done = lab.run("unlock", "--session", "0123456789abcdef", passphrase=PASSPHRASE)
    assert done.returncode == tazpod.FAILED
    assert "whoever asked for it has gone" in done.stderr
    assert lab.is_shut()


def test_an_unlock_killed_in_a_fresh_container_leaves_nothing_readable(bad: Place) -> None:
    bad.reads(f"touch {SLOW}")
    read_end, write_end = os.pipe()
    os.write(write_end, PASSPHRASE.encode() + b"\n")
    os.close(write_end)
    argv = [*bad.argv, "unlock", "--passphrase-fd", str(read_end)]
    with subprocess.Popen(
        argv, cwd=bad.folder, env=bad.env, pass_fds=(read_end,), stderr=subprocess.DEVNULL
    ) as command:
        os.close(read_end)
        eventually(lambda: bad.inside("test -e /tmp/gpg.waits").returncode == 0, "gpg runs")
        assert any(place.endswith(tazpod.TRANSIT) for place in bad.ram())
        bad.inside("pkill -9 -f 'program.. unlock'; pkill -9 -f gpg.slow; pkill -9 tar", user="0")
        bad.reads(f"rm {SLOW}")
        command.wait()
    eventually(bad.is_shut, "the guard clears up")


# -- the run folder


def test_a_run_folder_that_was_removed_comes_back_with_both_sessions(lab: Place) -> None:
    first, second = lab.enter(), joins(lab)
    shell = second.sh("echo new > ~/secrets/new; echo $$")
    first.sh("rm -r /workspace/.tazpod/run")
    eventually(lambda: lab.folder.joinpath(".tazpod/run").exists(), "it is made anew")
    assert first.leaves() == 0
    assert "the vault stays open: " in first.seen
    assert second.sh("cat ~/secrets/new") == "new"
    eventually(lambda: len(lab.guards()) == 1, "one guard is left")
    second.kill(signal.SIGKILL)
    eventually(lambda: not alive(lab, shell), "its shell is known")
    eventually(lab.is_shut, "and the vault is locked")
    assert opens_with(lab, "new", "new")


def test_a_session_whose_host_side_died_unclaimed_is_no_longer_claimed(lab: Place) -> None:
    lab.ok("unlock", passphrase=PASSPHRASE)
    lab.reads(f"pkill -STOP -f {tazpod.GUARD_WORD}")  # so that the dead lease stays
    dead = lab.folder / ".tazpod/run/0000000000000000.session"
    dead.touch(0o600)
    person = joins(lab)
    assert person.sh("echo $TAZPOD_SESSION") != dead.stem
    assert not dead.with_suffix(".shell").exists()
    lab.reads(f"pkill -CONT -f {tazpod.GUARD_WORD}")
    eventually(lambda: not dead.exists(), "the guard takes it away")
    assert person.leaves() == 0


# -- the disk of the project


@contextlib.contextmanager
def read_only(place: Place) -> Iterator[None]:
    """The project's disk has gone read-only, on both sides."""
    # A guard that holds a file open for writing keeps mount(8), not a disk in trouble, from doing this.
    guard = f"{tazpod.GUARD_WORD[:-1]}[{tazpod.GUARD_WORD[-1]}]"
    place.reads(f"until mount -o remount,ro,bind /workspace; do pkill -9 -f {guard} || true; done", user="0")
    subprocess.run(["mount", "--bind", str(place.folder), str(place.folder)], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", str(place.folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place.folder)], check=True)
        place.reads("mount -o remount,rw,bind /workspace", user="0")


def test_with_a_read_only_disk_nobody_is_killed_and_secrets_can_be_read(lab: Place) -> None:
    person = lab.enter()
    shell = person.sh("echo new > ~/secrets/new; echo $$")
    with read_only(lab):
        eventually(lab.guards, "there is another guard")
        before = log(lab)
        other = lab.terminal()
        assert other.sh("cat ~/secrets/new") == "new"
        read = lab.run("run", "cat", f"{SECRETS}/new")
        assert (read.returncode, read.stdout) == (0, "new\n")
        assert [line for line in read.stderr.splitlines() if "the disk is read-only" not in line] == []
        other.kill(signal.SIGKILL)
        lab.reads("sleep 2.5")  # the guard looks twice
        assert alive(lab, shell), log(lab)[len(before) :]
        assert lab.is_open()
    assert person.leaves() == 0
    assert lab.is_shut()
    assert opens_with(lab, "new", "new")


def test_with_a_read_only_disk_a_vault_is_opened_and_locked_again(lab: Place) -> None:
    with read_only(lab):
        lab.ok("unlock", passphrase=PASSPHRASE)
        assert lab.reads("cat ~/secrets/kept") == SECRET
        done = lab.run("save", "--force")
        assert done.returncode == tazpod.FAILED
        assert "Read-only file system" in done.stderr
        lab.ok("lock")
        assert lab.is_shut()


def test_who_leaves_last_while_the_disk_is_read_only_locks(lab: Place) -> None:
    person = lab.enter()
    assert person.sh("cat ~/secrets/kept") == SECRET
    with read_only(lab):
        assert person.leaves() == 0
        assert "more session" not in person.seen
        assert lab.is_shut()
    assert lab.is_shut()


# -- what dies under a word


@pytest.mark.parametrize("words", [("run", "sleep", "987"), ("unlock",)])
def test_a_container_that_dies_under_a_word_is_told_with_the_last_save(
    lab: Place, words: tuple[str, ...]
) -> None:
    if words[0] == "run":
        lab.ok("unlock", passphrase=PASSPHRASE)
    command = subprocess.Popen(
        [*lab.argv, *words],
        cwd=lab.folder,
        env=lab.env,
        stdin=subprocess.DEVNULL if words[0] == "run" else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if words[0] == "unlock":  # without a terminal it ends by itself, so a real one follows
        command.kill()
        command.communicate()
        person = lab.terminal("unlock")
        person.sees("Passphrase: ")
        docker("kill", lab.name)
        assert person.ends() != 0
        said = person.seen
    else:
        eventually(lambda: lab.inside("pgrep -fx 'sleep 987'").stdout, "it runs")
        docker("kill", lab.name)
        said = command.communicate()[1]
        assert command.returncode == 137
    assert f"the container {lab.name} is gone" in said
    if words[0] == "run":
        assert "what changed in the open vault after 20" in said
        facts = status(lab)
        lost = [text for text in facts["troubles"] if "what changed after 20" in text]  # type: ignore[attr-defined]
        assert lost
        assert "is lost" in lab.ok("up")
    else:
        lab.ok("up")


# -- two at once


def test_on_a_slow_engine_two_entries_do_not_swap_their_shells(lab: Place) -> None:
    lab.ok("unlock", passphrase=PASSPHRASE)
    go = lab.box / "go"
    first = lab.terminal(PATH=slow_docker(lab, "*-w\\ /workspace*/bin/bash", go))
    run = lab.folder / ".tazpod/run"
    eventually(lambda: list(run.glob("*.session")), "the first has asked for its shell")
    second = lab.terminal()
    second.sees("waiting for another tazpod that is opening a shell")
    with pytest.raises(pexpect.TIMEOUT):  # for as long as the first has none
        second.child.expect(r"\[0m[$#] ", timeout=3)
    go.touch()
    shells = [person.sh("echo $$") for person in (first, second)]
    first.kill(signal.SIGKILL)
    eventually(lambda: not alive(lab, shells[0]), "its own shell ends")
    assert alive(lab, shells[1])
    assert second.leaves() == 0
    assert lab.is_shut()


def test_who_waits_for_the_container_is_told_what_for_and_waits_as_long_as_it_takes(lab: Place) -> None:
    lab.ok("down")
    config = lab.folder / tazpod.CONFIG_PATH
    before = config.read_text()
    lab.configure("hooks.post_up: 'until [ -e /tmp/go ]; do sleep 0.1; done'")
    try:
        first = subprocess.Popen([*lab.argv, "up"], cwd=lab.folder, env=lab.env, stderr=subprocess.DEVNULL)
        eventually(lambda: lab.inside("pgrep -f tmp/go").stdout, "the hook runs")
        told = subprocess.Popen(
            [*lab.argv, "up"], cwd=lab.folder, env=lab.env, stderr=subprocess.PIPE, text=True
        )
        assert told.stderr
        assert "waiting for another tazpod that is running hooks.post_up" in told.stderr.readline()
        lab.reads("touch /tmp/go")
        assert first.wait() == 0
        assert told.communicate()[1].startswith("tazpod: the container")
        assert told.returncode == 0
    finally:
        config.write_text(before)
        lab.ok("trust")
