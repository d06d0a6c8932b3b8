"""What --dry-run shows is what the same word then runs, in that order; and it changes nothing."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import enginelib
import pytest
import s3lib
from enginelib import PASSPHRASE, Place, docker

import tazpod

place, lab = enginelib.place, enginelib.lab
template = enginelib.template
pytestmark = pytest.mark.engine

# Calls that only look.
LOOKS = re.compile(
    r"docker (container |network |image )?inspect |docker exec \S+ mountpoint |docker exec \S+ bash -c"
    r"|docker container ls |docker exec -u 0 \S+ test -e |docker exec \S+ cat /proc/self/mountinfo"
    r"|openssl enc .*--tazpod-probe|aws configure export-credentials|aws sso login .*--tazpod-probe"
)
# What differs from one run to the next: descriptors, folders made for one call, sessions.
VOLATILE = (
    (r"(--passphrase-fd|--status-fd) \w+", r"\1 N"),
    (r"--homedir \S+", "--homedir DIR"),
    (r"/dev/fd/\w+", "/dev/fd/N"),
    (r"--(leaving|session) \w+", r"--\1 SESSION"),
    (r"/run/\w+\.shell", "/run/SESSION.shell"),
    (r"--debug ", ""),
)


def plain(line: str) -> str:
    for pattern, text in VOLATILE:
        line = re.sub(pattern, text, line)
    return line


def shown(place: Place, *words: str, passphrase: str | None = None) -> list[str]:
    """What --dry-run prints, a program a line; nothing of the project may have changed."""

    def state() -> object:
        paths = [*place.folder.rglob("*"), *place.home.rglob("*")]
        paths = [p for p in paths if p.name not in ("run", "guard.lock")]  # the guard starts
        files = {str(p): (p.lstat().st_mtime_ns, p.lstat().st_size) for p in paths}
        return files, docker("ps", "-a", "--filter", f"name={place.name}", "--format", "{{.ID}} {{.State}}")

    before = state()
    done = place.run("--dry-run", *words, passphrase=passphrase)
    assert done.returncode == 0, done.stderr
    assert state() == before
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
            real = [line for line in real if line.startswith("docker ")]
        assert expected == real, words
    docker("network", "rm", tazpod.network_name(1300))


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
    assert [shlex.split(line)[-1] for line in lines if line.startswith("docker")] == [
        "tazpod --yes unlock --session SESSION",
        "/bin/bash",
        "tazpod lock --leaving SESSION",
    ]


def test_a_command_in_a_locked_vault(lab: Place) -> None:
    assert shown(lab, "run", "ls", "-la") == ran(lab, "run", "ls", "-la")


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
    assert "docker run" in place.ok("--dry-run", "history", "--remote")
    assert docker("ps", "-aq", "--filter", f"name={place.name}") == ""


def test_the_storage(place: Place) -> None:
    place.init(*s3lib.CONFIG[:1], "sync.interval: 0", "sync.push_on_exit: false")
    place.env |= s3lib.KEYS
    place.ok("up")
    cloud = s3lib.Cloud(place.name, place.box / "cloud")
    try:
        place.ok("unlock", "--new", passphrase=PASSPHRASE)
        place.ok("save", "--force")
        for words in (["setup-storage"], ["push"], ["pull"]):
            assert calls(shown(place, *words)) == calls(ran(place, *words)), words
        place.reads("echo more > ~/secrets/more")
        place.ok("save")
        expected = calls(shown(place, "push"))
        assert [call.split()[2] for call in expected] == ["copy-object", "put-object"]
        assert expected == calls(ran(place, "push"))
    finally:
        cloud.close()


def calls(lines: list[str]) -> list[str]:
    """The calls of aws that send, fetch or change, less what is made up anew each time."""
    lines = [line for line in lines if re.match(r"aws s3api (put|copy|create|delete|get)-", line)]
    lines = [re.sub(r"(--body|get-object .*) \S*(FILE|\.part)$", r"\1 FILE", line) for line in lines]
    return [re.sub(r"--body \S+|tazpod-push=\w+", "-", line) for line in lines]
