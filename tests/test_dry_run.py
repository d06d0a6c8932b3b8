"""What --dry-run shows is what the same word then runs, in that order; and it changes nothing."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import enginelib
import pytest
import s3lib
from enginelib import ENGINE, PASSPHRASE, Place, docker

import tazpod

place, lab = enginelib.place, enginelib.lab
template = enginelib.template
pytestmark = pytest.mark.engine

# Calls that only look.
LOOKS = re.compile(
    rf"{ENGINE} (container |network |image )?inspect |{ENGINE} exec (-e LC_ALL=C )?\S+ mountpoint "
    rf"|{ENGINE} exec \S+ bash -c|{ENGINE} container ls |{ENGINE} exec -u 0 \S+ test -e "
    rf"|{ENGINE} exec \S+ sh -c 'cat /proc/|{ENGINE} diff "
    r"|openssl enc .*--tazpod-probe|aws configure export-credentials|aws sso login .*--tazpod-probe"
)
# What differs from one run to the next: descriptors, folders made for one call, sessions.
VOLATILE = (
    (r"(--passphrase-fd|--status-fd) \w+", r"\1 N"),
    (r"--homedir \S+", "--homedir DIR"),
    (r"/dev/fd/\w+", "/dev/fd/N"),
    (r"--(leaving|session) \w+", r"--\1 SESSION"),
    (r"/run/\w+\.shell", "/run/SESSION.shell"),
    (r"\.[0-9a-f]{8}\.part", ".ID.part"),
    (r'"container": "[0-9a-f]*"', '"container": "ID"'),  # the engine gives it
    (r"--debug ", ""),
)


def plain(line: str) -> str:
    for pattern, text in VOLATILE:
        line = re.sub(pattern, text, line)
    return line


# All in a container that somebody might change, less what the guard writes (its notes, its log, what it
# remembers of the config) at a moment of its own; and what is mounted.
INSIDE = r"""
find /home/tazpod /home/tazpod/secrets /opt/tazpod /etc /tmp /dev/shm -xdev -mindepth 1 \
  ! -name 'tazpod-guard.json' ! -name tazpod-sync.log ! -path '/home/tazpod/.local*' \
  -printf '%p %T@ %s %m %U %l\n' | sort
cut -d ' ' -f 3- /proc/self/mountinfo
"""


def state(place: Place) -> dict[str, object]:
    """All that a word may change: project, home with the state folder, containers, the container's files."""
    paths = [*place.folder.rglob("*"), *place.home.rglob("*")]
    paths = [path for path in paths if path.name not in ("run", "guard.lock")]  # the guard starts
    found: dict[str, object] = {str(p): (p.lstat().st_mtime_ns, p.lstat().st_size) for p in paths}
    found["docker"] = docker("inspect", "-f", "{{.Id}} {{.State.Status}}", place.name, check=False)
    found["networks"] = docker("network", "ls", "-q", "--filter", "name=tazpod-mtu-1300")
    if found["docker"] and "running" in str(found["docker"]):
        found["inside"] = place.reads(INSIDE, user="0")
    return found


def shown(place: Place, *words: str, passphrase: str | None = None) -> list[str]:
    """What --dry-run prints, a program a line; nothing at all may have changed."""
    before = state(place)
    done = place.run("--dry-run", *words, passphrase=passphrase)
    assert done.returncode == 0, done.stderr
    assert state(place) == before
    return [plain(stage) for line in done.stdout.splitlines() for stage in line.split(" | ")]


def ran(place: Place, *words: str, passphrase: str | None = None) -> list[str]:
    """The programs that a real run says with --debug that it runs, on both sides, without those that look."""
    done = place.run("--debug", *words, passphrase=passphrase)
    assert done.returncode == 0, done.stderr
    lines = [line[2:] for line in done.stderr.splitlines() if line.startswith("+ ")]
    return [plain(line) for line in lines if not LOOKS.search(line)]


def test_the_life_of_a_project(place: Place) -> None:
    place.init("network.mtu: 1300", "hooks.post_up: 'true'", "hooks.pre_lock: 'true'")
    docker("network", "rm", tazpod.network_name(1300), check=False)
    for words, passphrase in (
        (["up"], None),
        (["unlock", "--new"], PASSPHRASE),
        (["save", "--force"], None),
        (["save"], None),
        (["run", "sh", "-c", "exit 0"], None),
        (["lock"], None),
        (["run", "true"], PASSPHRASE),
        (["verify"], PASSPHRASE),
        (["unlock"], PASSPHRASE),
        (["passwd"], "another passphrase"),
        (["up", "--recreate"], None),
        (["unlock"], "another passphrase"),
        (["lock", "--discard"], None),
        (["down"], None),
        (["unlock"], "another passphrase"),
        (["down", "--discard"], None),
    ):
        there = docker("ps", "-q", "--filter", f"name={place.name}")
        expected, real = (look(place, *words, passphrase=passphrase) for look in (shown, ran))
        if not there:  # nobody can say yet what happens in it
            real = [line for line in real if line.startswith(f"{ENGINE} ")]
        assert expected == real, words
    docker("network", "rm", tazpod.network_name(1300), check=False)


def test_a_vault_of_go_tazpod(lab: Place) -> None:
    data = Path(__file__).parent / "data/go-vault"
    passphrase = json.loads((data / "manifest.json").read_text())["vaults"]["vault1.tar.aes"]["passphrase"]
    lab.sealed.write_bytes((data / "vault1.tar.aes").read_bytes())
    expected = shown(lab, "unlock", passphrase=passphrase)
    assert [shlex.split(line)[0] for line in expected].count("openssl") == 3
    assert expected == ran(lab, "unlock", passphrase=passphrase)
    lab.ok("lock", "--discard")


def test_entering(lab: Place) -> None:
    lines = shown(lab, "--yes")
    assert [shlex.split(line)[-1] for line in lines if line.startswith(ENGINE)] == [
        "tazpod --yes unlock --session SESSION",
        "/bin/bash",
        "tazpod lock --leaving SESSION",
    ]


def in_docker(lines: list[str]) -> list[str]:
    """The calls of docker alone: in a container that only would run, nobody can say what happens."""
    return [line for line in lines if line.startswith(f"{ENGINE} ")]


def test_the_states_of_a_container(lab: Place) -> None:
    docker("stop", "-t", "0", lab.name)
    assert shown(lab, "lock") == ran(lab, "lock") == []  # it is locked, and nothing is started for that
    assert shown(lab, "verify", passphrase=PASSPHRASE)[0] == f"{ENGINE} start {lab.name}"
    lab.ok("unlock", passphrase=PASSPHRASE)
    docker("pause", lab.name)
    assert shown(lab, "up") == ran(lab, "up")
    person = lab.enter()  # a command beside it locks nothing
    assert shown(lab, "run", "true") == ran(lab, "run", "true")
    assert person.leaves() == 0
    lab.ok("unlock", passphrase=PASSPHRASE)
    lab.reads("echo new > ~/secrets/new")
    docker("pause", lab.name)
    expected = shown(lab, "up", "--recreate")
    assert [line.split()[1] for line in expected[:5]] == ["unpause", "exec", "rename", "kill", "run"]
    assert expected == in_docker(ran(lab, "up", "--recreate"))
    lab.ok("unlock", passphrase=PASSPHRASE)
    assert lab.reads("cat ~/secrets/new") == "new"
    docker("pause", lab.name)
    assert shown(lab, "down") == in_docker(ran(lab, "down"))
    lab.ok("up")


def test_a_login_that_is_still_valid(lab: Place) -> None:
    lab.reads("printf '#!/bin/sh\\nexit 0\\n' > /usr/local/bin/aws; chmod 755 /usr/local/bin/aws", user="0")
    try:
        assert shown(lab, "login") == ran(lab, "login") != []
    finally:
        lab.reads("rm /usr/local/bin/aws", user="0")


def test_a_command_in_a_locked_vault(lab: Place) -> None:
    """While it lasts, a guard that is missed is started, as time goes by."""
    real = ran(lab, "run", "ls", "-la")
    assert shown(lab, "run", "ls", "-la") == [line for line in real if tazpod.GUARD_WORD not in line]


def test_init_says_what_it_would_write(place: Place) -> None:
    done = place.run("--dry-run", "init")
    assert (done.returncode, done.stdout, done.stderr.count(f"would write {place.folder}/.tazpod/")) == (
        0,
        "",
        3,
    )
    assert [*place.folder.iterdir(), *place.home.iterdir()] == []


def test_words_that_change_nothing_are_run(lab: Place) -> None:
    assert "openpgp" in lab.ok("--dry-run", "history")


def test_no_container_is_made_for_a_word_that_reads(place: Place) -> None:
    place.init()
    assert f"{ENGINE} run" in place.ok("--dry-run", "history", "--remote")
    assert docker("ps", "-aq", "--filter", f"name={place.name}") == ""


def test_the_storage(place: Place) -> None:
    place.init(*s3lib.CONFIG[:1], "sync.interval: 0", "sync.push_on_exit: false", "vault.retention: 1")
    place.env |= s3lib.KEYS
    place.ok("up")
    cloud = s3lib.Cloud(place.name, place.box / "cloud")
    try:
        place.ok("unlock", "--new", passphrase=PASSPHRASE)
        place.ok("save", "--force")
        for words in (["setup-storage"], ["push"], ["pull"]):
            assert calls(shown(place, *words)) == calls(ran(place, *words)), words
        for replaced in (["copy-object", "put-object"], ["copy-object", "put-object", "delete-objects"]):
            place.reads("date +%N > ~/secrets/more; sleep 1")  # a version is named by its second
            place.ok("save")
            expected = calls(shown(place, "push"))
            assert [call.split()[2] for call in expected] == replaced
            assert expected == calls(ran(place, "push"))
        place.ok("lock")
        assert shown(place, "verify", "--remote", passphrase=PASSPHRASE) == looked_through(
            ran(place, "verify", "--remote", passphrase=PASSPHRASE)
        )
        version = place.ok("history", "--remote").split()[0]
        words = ("restore", version, "--remote")
        expected = shown(place, *words, passphrase=PASSPHRASE)
        assert expected == looked_through(ran(place, *words, passphrase=PASSPHRASE))
        place.sealed.unlink()
        (place.vault / "remote.json").unlink()
        words = ("--yes",)  # no vault here, and keys: no login, but a pull
        expected = [line for line in shown(place, *words) if line.startswith(f"{ENGINE} ")]
        assert [re.search("tazpod --yes (\\w+)", line)[1] for line in expected if "--yes" in line] == [
            "pull",
            "unlock",
        ]
    finally:
        cloud.close()


def looked_through(lines: list[str]) -> list[str]:
    """Without the calls of aws that only look."""
    return [line for line in lines if "head-object" not in line]


def calls(lines: list[str]) -> list[str]:
    """The calls of aws that send, fetch or change, less what is made up anew each time."""
    lines = [line for line in lines if re.match(r"aws s3api (put|copy|create|delete|get)-", line)]
    lines = [re.sub(r"(--body|get-object .*) \S*(FILE|\.part)$", r"\1 FILE", line) for line in lines]
    return [re.sub(r"--body \S+|tazpod-push=\w+", "-", line) for line in lines]
