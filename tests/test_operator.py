"""What an operator does every day beside entering: run, list, status, doctor; on a real engine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from functools import partial
from typing import Any

import enginelib
import pytest
import s3lib
import test_status
from enginelib import AT_ENTRY, PASSPHRASE, SECRET, Place, Terminal, docker, eventually, unique

import tazpod

place, lab, template = enginelib.place, enginelib.lab, enginelib.template
project_with_vault = enginelib.project_with_vault
pytestmark = pytest.mark.engine


def lines_of(place: Place, pattern: str) -> int:
    """How many processes in the container have such a command line."""
    return len(place.inside(f"pgrep -fx '{pattern}'").stdout.split())


def leases(place: Place) -> list[str]:
    """What sessions have left in the run folder."""
    kinds = (".lease", ".session", ".leaving", ".visit", ".shell")
    return [path.name for path in (place.folder / ".tazpod/run").iterdir() if path.suffix in kinds]


# -- run


@pytest.fixture
def opened(lab: Place) -> Place:
    """A vault that was opened explicitly, so that a run only visits it."""
    lab.ok("unlock", passphrase=PASSPHRASE)
    return lab


def test_run_is_the_command_its_bytes_its_folder_and_its_status(opened: Place) -> None:
    place = opened
    data = bytes(range(256)) * 4096 + os.urandom(1 << 20)
    argv = [*place.argv, "run", "cat"]
    done = subprocess.run(argv, input=data, capture_output=True, cwd=place.folder, env=place.env)
    assert (done.returncode, done.stdout == data, done.stderr) == (0, True, b"")

    below = place.folder / "a/b c"
    below.mkdir(parents=True)
    for words, cwd, out, status in (
        (["pwd"], below, "/workspace/a/b c\n", 0),
        (["pwd"], place.folder, "/workspace\n", 0),
        (
            ["--", "printf", "%s|", "a b", "", "*", "$HOME", "it's", "--", "--yes"],
            None,
            "a b||*|$HOME|it's|--|--yes|",
            0,
        ),
        (["printf", "%s ", "--yes", "--debug", "--help"], None, "--yes --debug --help ", 0),
        (["cat", "../secrets/kept"], None, "", 1),
        (["sh", "-c", "cat ~/secrets/kept; exit 7"], None, f"{SECRET}\n", 7),
        (["sh", "-c", "kill -TERM $$"], None, "", 143),
        (["no-such-command"], None, "", 127),
        (["/workspace"], None, "", 126),
        (["type", "cd"], None, "cd is a shell builtin\n", 0),
    ):
        done = place.run("run", *words, cwd=cwd)
        assert (done.stdout, done.returncode) == (out, status), (words, done.stderr)
    assert place.run("run").returncode == 2
    assert place.run("run", "-la").returncode == 2
    assert place.is_open()
    eventually(lambda: leases(place) == [], "the guard takes away what the killed one left")


def test_run_on_a_terminal_is_on_a_terminal_and_ctrl_c_is_the_commands(opened: Place) -> None:
    person = opened.terminal("run", "--", "sh", "-c", "tty && stty size; sleep 1234; echo never")
    person.sees(r"/dev/pts/\d+\r\n")
    eventually(lambda: lines_of(opened, "sleep 1234"), "the command sleeps")
    person.ctrl_c()
    assert person.ends() == 130
    assert "never" not in person.seen
    eventually(lambda: lines_of(opened, "sleep 1234") == 0, "it was interrupted")
    assert opened.is_open()


def test_run_opens_a_locked_vault_and_locks_it_again_whatever_the_status(lab: Place) -> None:
    script = "echo new > ~/secrets/new; cat ~/secrets/kept; exit 5"
    done = lab.run("run", "sh", "-c", script, passphrase=PASSPHRASE)
    assert (done.returncode, done.stdout) == (5, f"{SECRET}\n")
    assert "saved (2 files" in done.stderr
    assert "the vault is locked" in done.stderr
    assert lab.is_shut()

    person = lab.terminal("run", "cat", "secrets/new", cwd=lab.folder)
    person.answers((AT_ENTRY, PASSPHRASE))
    assert person.ends() == 1  # ~ is not /workspace
    assert "nothing changed" in person.seen
    assert lab.is_shut()

    # Its standard output is not for the questions.
    output = lab.box / "output"
    shell = ["sh", "-c", f'"$@" > {output}', "sh", *lab.argv, "run", "sh", "-c", "cat ~/secrets/new"]
    person = Terminal(shell, lab.folder, lab.env)
    lab.terminals.append(person)
    person.answers((AT_ENTRY, PASSPHRASE))
    assert person.ends() == 0
    assert output.read_text() == "new\n"
    assert lab.is_shut()
    assert leases(lab) == []


def test_run_goes_on_without_the_vault_when_nobody_can_open_it_and_not_when_opening_failed(
    lab: Place,
) -> None:
    done = lab.run("run", "ls", "-A", "/home/tazpod/secrets")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = lab.run("run", "--require-vault", "echo", "never")
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: the vault is locked, so the command was not run\nhint: tazpod unlock first" in done.stderr
    done = lab.run("run", "--require-vault", "cat", f"{enginelib.SECRETS}/kept", passphrase=PASSPHRASE)
    assert (done.returncode, done.stdout) == (0, f"{SECRET}\n")
    person = lab.terminal("run", "echo", "without")
    person.answers((AT_ENTRY, ""))
    person.sees("without\r\n")
    assert person.ends() == 0
    person = lab.terminal("run", "--require-vault", "echo", "never")
    person.answers((AT_ENTRY, ""))
    assert person.ends() == 1 and "the vault stays locked" in person.seen
    done = lab.run("run", "echo", "never", passphrase="wrong")
    assert (done.returncode, done.stdout) == (1, "")
    assert "wrong passphrase" in done.stderr
    assert lab.is_shut()


@pytest.mark.parametrize("how", ["its own", "explicit", "shared"])
def test_a_dead_host_side_ends_the_command_and_locks_only_what_was_its_own(lab: Place, how: str) -> None:
    other = None
    if how == "explicit":
        lab.ok("unlock", passphrase=PASSPHRASE)
    elif how == "shared":
        other = lab.enter()
    script = "echo new > ~/secrets/new; sleep 4321 & sleep 4321"
    person = lab.terminal("run", "sh", "-c", script)
    if how == "its own":
        person.answers((AT_ENTRY, PASSPHRASE))
    eventually(lambda: lines_of(lab, "sleep 4321") == 2, "the command runs")
    person.kill(signal.SIGKILL)
    eventually(lambda: lines_of(lab, "sleep 4321") == 0, "the command is ended, with what it started")
    if how == "its own":
        eventually(lab.is_shut, "the vault is locked")
        lab.ok("unlock", passphrase=PASSPHRASE)
    eventually(lambda: leases(lab) == [] or other, "its files are gone")
    assert lab.reads("cat ~/secrets/new") == "new"
    assert lab.is_open()
    if other:
        assert other.leaves() == 0
        assert lab.is_shut()


def test_a_command_that_cleans_up_the_leases_is_left_as_any_other(lab: Place) -> None:
    done = lab.run("run", "sh", "-c", "rm /workspace/.tazpod/run/*.lease; exit 7", passphrase=PASSPHRASE)
    assert done.returncode == 7
    assert lab.is_shut()


def test_a_command_is_ended_also_where_no_guard_was(place: Place) -> None:
    place.init()
    command = subprocess.Popen([*place.argv, "run", "sleep", "3456"], cwd=place.folder, env=place.env)
    eventually(lambda: lines_of(place, "sleep 3456"), "the command runs")
    command.terminate()
    assert command.wait() == 143
    eventually(lambda: not lines_of(place, "sleep 3456"), "the command is ended")


def test_the_last_of_sessions_and_runs_locks(lab: Place) -> None:
    person = lab.enter()
    argv = [*lab.argv, "run", "sh", "-c", "echo ready; read line; cat ~/secrets/kept"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    start = partial(subprocess.Popen, argv, cwd=lab.folder, env=lab.env, text=True, **pipes)
    first, second = start(), start()
    for command in (first, second):
        assert command.stdout.readline() == "ready\n"
    out, err = first.communicate("go\n")
    assert (first.returncode, out, err) == (0, f"{SECRET}\n", "")  # others are there: not a word
    assert person.leaves() == 0
    assert "the vault stays open: 1 more session" in person.seen
    out, err = second.communicate("go\n")
    assert (second.returncode, out) == (0, f"{SECRET}\n")
    assert "the vault is locked" in err
    assert lab.is_shut()
    assert leases(lab) == []


def test_ctrl_c_without_a_terminal_of_its_own_ends_the_command(opened: Place) -> None:
    argv = [*opened.argv, "run", "sleep", "2345"]
    command = subprocess.Popen(argv, cwd=opened.folder, env=opened.env, start_new_session=True)
    eventually(lambda: lines_of(opened, "sleep 2345"), "the command runs")
    os.killpg(command.pid, signal.SIGINT)  # as a terminal does to all that was started from it
    assert command.wait() == 130
    eventually(lambda: lines_of(opened, "sleep 2345") == 0, "the command is ended")
    assert opened.is_open()


def test_logs_are_those_of_the_daemon_and_start_no_container(lab: Place) -> None:
    lab.ok("unlock", passphrase=PASSPHRASE)
    eventually(lambda: "INFO started" in lab.ok("logs"), "the daemon says that it has started")
    docker("stop", "-t", "0", lab.name)
    done = lab.run("logs")
    assert done.returncode == 1 and "error: the container does not run" in done.stderr
    assert lab.run("status").stdout.startswith("container  exited")


# -- list, and --pod


def test_list_names_every_pod_and_what_became_of_it(
    lab: Place, place: Place, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def rows() -> dict[str, dict[str, object]]:
        answer = json.loads(lab.ok("list", "--json"))
        assert all(set(row) == {"name", "state", "vault", "ports", "project", "gone"} for row in answer)
        assert [row["name"] for row in answer] == sorted(row["name"] for row in answer)
        ours = {str(row.pop("name")): row for row in answer}
        return {name: row for name, row in ours.items() if name in (lab.name, place.name, stranger)}

    stranger = unique()  # its HOST_CWD alone makes no pod
    docker("create", "--name", stranger, "-e", "HOST_CWD=/srv", enginelib.IMAGE, "true")
    docker("stop", "-t", "0", lab.name)
    here = {"project": str(lab.folder), "gone": False, "ports": []}
    try:
        assert rows() == {lab.name: {**here, "state": "exited", "vault": "locked"}}
        lab.ok("unlock", passphrase=PASSPHRASE)
        assert rows() == {lab.name: {**here, "state": "running", "vault": "open"}}
        docker("pause", lab.name)
        place.init("features.ghost_mode: false")
        place.ok("up")
        there = {"project": str(place.folder), "gone": False, "state": "running", "vault": "-", "ports": []}
        assert rows() == {lab.name: {**here, "state": "paused", "vault": "-"}, place.name: there}
        docker("unpause", lab.name)
        shutil.rmtree(place.folder)
        lines = lab.ok("list").splitlines()
        starts = [lines[0].index(title) for title in ("NAME", "STATE", "VAULT", "PORTS", "PROJECT")]
        (row,) = (line for line in lines if line.startswith(f"{place.name} "))
        assert [row[start:].split()[0] for start in starts] == [
            *(place.name, "running", "-", "-", str(place.folder))
        ]
        assert row.endswith("  (this folder is gone)")

        # --pod: from anywhere.
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        lab.ok("lock")
        done = lab.run("--pod", lab.name, "run", "pwd", cwd=elsewhere)
        assert (done.returncode, done.stdout) == (0, "/workspace\n")
        done = lab.run("history", f"--pod={lab.name}", cwd=elsewhere)
        assert "openpgp" in done.stdout
        docker("rm", "-f", place.name)
        shutil.copytree(lab.folder / ".tazpod", place.folder / ".tazpod")  # which names the lab's container
        place.run_by_hand()  # whoever makes a container can mount any folder, and say anything in HOST_CWD
        done = lab.run("--pod", place.name, "history", cwd=elsewhere)
        assert done.returncode == 1 and f"knows nothing of {place.name}" in done.stderr
        shutil.rmtree(place.folder)
        for name, said in (
            (place.name, f"the project of {place.name} is gone: {place.folder}"),
            (stranger, f"--pod: there is no pod named '{stranger}'"),
            ("no-such-pod", "--pod: there is no pod named 'no-such-pod'"),
        ):
            done = lab.run("--pod", name, "history", cwd=elsewhere)
            assert (done.returncode, done.stdout) == (1 if "gone" in said else 2, "")
            assert done.stderr.splitlines()[0] == f"tazpod: error: {said}"
    finally:
        docker("rm", "-f", stranger)


# -- status


def status(place: Place) -> dict[str, Any]:
    """The JSON of status, on the host; its exit status says the same."""
    done = place.run("status", "--json")
    assert done.returncode in (0, tazpod.UNWELL), done.stderr
    found = json.loads(done.stdout)
    assert test_status.matches_the_schema(found)
    assert found["well"] == (done.returncode == 0) == (not found["next"])
    return dict(found)


def test_status_through_the_life_of_a_vault(place: Place) -> None:
    place.init()
    found = status(place)
    assert (found["container"]["state"], found["next"]) == ("absent", "tazpod")
    assert not (place.folder / ".tazpod/run").exists()

    place.ok("up")
    place.ok("unlock", passphrase=PASSPHRASE)
    found = status(place)
    assert found["next"] == "tazpod save"  # it was never sealed
    assert found["vault"]["open"] is True
    assert abs(found["vault"]["open_since"] - time.time()) < 600
    image = docker("image", "inspect", "-f", "{{.Id}}", enginelib.IMAGE).strip()
    assert image.removeprefix("sha256:").startswith(found["container"]["image_id"])
    place.ok("save")
    eventually(lambda: status(place)["well"], "all is well")
    place.reads("head -c 300000 /dev/zero > ~/secrets/big")
    found = status(place)
    assert found["vault"]["unsaved"] is True
    assert 300_000 < found["vault"]["bytes"] < found["vault"]["limit"] == 64 << 20
    assert found["remote"]["state"] == "not used"
    lines = place.run("status").stdout.splitlines()
    titles = ["container", "vault", "remote", "identity", "daemon", "next:"]
    assert [line.split()[0] for line in lines] == titles
    assert "unsaved changes" in lines[1]
    assert lines[-1] == "next: tazpod save  (there are unsaved changes)"
    person = place.terminal()
    inside = person.sh("tazpod status; [ $? = 4 ]").splitlines()
    assert [line.split()[0] for line in inside] == titles[1:]
    assert "1 session" in inside[0]
    assert person.leaves() == 0
    found = status(place)
    assert (found["well"], found["vault"]["open"], found["vault"]["format"]) == (True, False, "openpgp")

    place.configure("ports: ['127.0.0.1:18080:80']")
    found = status(place)
    assert (found["next"], len(found["container"]["drift"])) == ("tazpod up --recreate", 1)
    place.ok("unlock", passphrase=PASSPHRASE)
    docker("restart", "-t", "0", place.name)
    found = status(place)
    assert found["next"] == "tazpod"
    assert found["vault"]["lost_since"] is not None
    docker("pause", place.name)
    found = status(place)
    assert (found["vault"]["open"], found["next"]) == (None, "tazpod up")
    docker("unpause", place.name)
    place.reads("rm /usr/local/bin/tazpod", user="0")
    done = place.run("status")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == "hint: tazpod up, then again"
    done = place.run("status", **enginelib.UNREACHABLE)
    assert (done.returncode, done.stdout) == (1, "")


def test_status_asks_the_storage(place: Place) -> None:
    s3lib.hasten(place, ASK_LIMIT=20, ATTEMPTS=1)
    place.init(*s3lib.CONFIG[:1], "sync.interval: 0")
    place.env |= s3lib.KEYS
    place.ok("up")
    cloud = s3lib.Cloud(place.name, place.box / "cloud")
    try:
        place.ok("unlock", passphrase=PASSPHRASE)
        place.ok("save")
        found = status(place)
        assert (found["remote"]["state"], found["next"]) == ("ahead", "tazpod push")
        assert found["identity"]["kind"] == "environment"
        place.ok("push")
        found = status(place)
        assert (found["remote"]["state"], found["well"]) == ("in sync", True)
        asked = found["remote"]["asked_at"]
        cloud.put(b"of another machine")
        found = status(place)
        assert (found["remote"]["state"], found["next"]) == ("behind", "tazpod lock, then tazpod pull")
        for side in (cloud.gate, cloud.store.name):
            docker("rm", "-f", side)
        found = status(place)
        assert (found["remote"]["state"], found["remote"]["failed"]) == ("unknown", True)
        assert found["remote"]["asked_at"] <= asked
        place.reads("echo new > ~/secrets/new")
        place.ok("down")
        found = status(place)  # what is known without asking: it was not pushed
        assert (found["remote"]["unpushed"], found["next"]) == (True, "tazpod push")
    finally:
        cloud.close()


# -- doctor


def doctor(place: Place, *words: str, **env: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """The exit status of doctor, and its checks by level."""
    done = place.run("doctor", "--json", *words, **env)
    assert done.stderr == ""
    checks = json.loads(done.stdout)
    assert all(set(item) == {"level", "name", "what", "fix"} and item["what"] for item in checks)
    assert all(bool(item["fix"]) == (item["level"] != "ok") for item in checks)
    by_level = {level: [i for i in checks if i["level"] == level] for level in ("ok", "advice", "failure")}
    assert done.returncode == (tazpod.UNWELL if by_level["failure"] else 0)
    return done.returncode, by_level


def test_doctor_of_what_is_well_and_of_what_is_not(place: Place) -> None:
    place.init()
    _, found = doctor(place)
    assert "nothing in it was checked" in found["advice"][-1]["what"]
    sealed, config = place.sealed, place.folder / tazpod.CONFIG_PATH
    sealed.write_bytes(b"x")
    sealed.chmod(0o644)
    os.chown(config, 4242, 4242)
    _, found = doctor(place)
    fixes = [item["fix"] for item in found["failure"]]
    assert sorted(fixes) == sorted([f"chmod 600 {sealed}", f"sudo chown -hR 0:0 {config.parent}"])
    for fix in fixes:
        subprocess.run(["sh", "-c", fix.replace("sudo ", "")], check=True)
    assert doctor(place)[0] == 0

    place.ok("up")
    status, found = doctor(place)
    assert (status, found["failure"]) == (0, [])
    names = {item["name"] for item in found["ok"]}
    for name in (
        *tazpod.PROGRAMS,
        "engine",
        "clock",
        "image",
        "MTU",
        "files",
        "config",
        "disk",
        "tmpfs",
        "aws",
    ):
        assert name in names
    assert place.reads("findmnt -no TARGET -t tmpfs | grep tazpod- || true") == ""
    inside = place.run("run", "tazpod", "doctor")
    assert "can be mounted" in inside.stdout

    config.write_text(config.read_text() + "features: {ghost_mode: perhaps}\nimagee: x\n")
    _, found = doctor(place, **enginelib.UNREACHABLE)
    assert [item["name"] for item in found["failure"]] == ["config", "engine"]
    assert f"{config}:" in found["failure"][0]["what"]
    engine = tazpod.ENGINES[enginelib.ENGINE]
    lines = place.run("doctor", **enginelib.UNREACHABLE).stdout.splitlines()
    assert f"{'':<21}fix: start it, or check {engine.address}; `{enginelib.ENGINE} info` shows more" in lines
    assert {item["name"] for item in found["ok"]} >= {"files", "disk"}


def test_doctor_of_an_image_that_lacks_a_program(place: Place) -> None:
    image = place.build(
        f"FROM {enginelib.IMAGE}\nUSER root\nRUN rm /usr/bin/openssl /usr/bin/aws\nUSER tazpod\n"
    )
    place.init(image=image)
    assert "lacks what the vault needs: openssl" in place.run("up").stderr
    status, found = doctor(place)
    assert status == tazpod.UNWELL
    assert [item["name"] for item in found["failure"]] == ["openssl"], found["failure"]
    assert [item["name"] for item in found["advice"]] == ["aws"]
