"""The audit page against a whole life of a project, recorded from outside of the tool."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import enginelib
import pytest
import s3lib
from enginelib import PASSPHRASE, Owned, docker, eventually
from recorder import FOLDER, Recorder, Started
from test_audit import PAGE_OF

import tazpod

pytestmark = pytest.mark.engine
DATA = Path(__file__).parent / "data/go-vault"
GO_VAULT = (DATA / "vault1.tar.aes").read_bytes()
GO_PASSPHRASE = json.loads((DATA / "manifest.json").read_text())["vaults"]["vault1.tar.aes"]["passphrase"]
OTHER_PASSPHRASE = "another passphrase of the tests"
UID = 1234  # neither root's nor the operator's in the image
MTU = 1301 + os.getpid() % 99  # of a network that no other run has
NARROW = tazpod.network_name(MTU)


class Life:
    """A project from `init` to `down`, with every word."""

    def __init__(self, box: Path) -> None:
        self.place = Owned(box, UID, UID)
        (self.place.home / ".gitconfig").write_text("[user]\n\tname = operator\n")
        self.recorder = Recorder(self.place)
        self.clouds: list[s3lib.Cloud] = []

    def live(self) -> None:
        for part in (self.begin, self.meet_people, self.open_one_of_go, self.keep_in_step, self.end):
            part()

    def begin(self) -> None:
        """A project and its container; nothing is known of a storage yet."""
        place = self.place
        (place.folder / "shared").mkdir()
        place.init(
            f"mounts: ['{self.recorder.folder}:{FOLDER}', './shared:/shared']",
            f"network.mtu: {MTU}",
            "hooks.post_up: 'true'",
            "hooks.pre_lock: 'true'",
            "sync.interval: 0",
            "vault.binds: [.kept]",
            image=self.recorder.image(),
        )
        docker("network", "rm", NARROW, check=False)
        place.run("--dry-run", "up", "--recreate", TAZPOD_ENGINE="auto", DOCKER_HOST="")
        place.run("--dry-run", "up", "--recreate", TAZPOD_ENGINE="podman", CONTAINER_HOST="elsewhere")
        place.ok("up")
        self.recorder.look()
        place.reads("cd; umask 077; rm .pi .omp; mkdir .pi; touch .omp .pi/a", "tazpod")
        place.ok("adopt", ".pi", ".omp")
        person = place.terminal("login")  # which asks for what the config does not tell
        person.sees("SSO")
        person.ctrl_c()
        person.ends()

    def meet_people(self) -> None:
        """Sessions that end by themselves, one that is killed, one beside which a file is held."""
        place = self.place
        place.ok("unlock", passphrase=PASSPHRASE)
        place.reads("umask 077; mkdir /workspace/.tazpod/.kept; touch /workspace/.tazpod/.kept/a", "tazpod")
        place.ok("adopt", ".kept")
        person = place.terminal()
        person.sh("echo 1 > ~/secrets/a; tazpod env > /dev/null")
        self.recorder.look()
        assert person.leaves() == 0
        person = place.terminal()
        person.answers((enginelib.AT_ENTRY, PASSPHRASE))
        person.shell()
        person.kill(signal.SIGKILL)
        eventually(place.is_shut, "the daemon locks")
        place.reads(f"pkill -f {tazpod.GUARD_WORD}")
        eventually(lambda: not place.guards(), "the daemon has gone")
        place.ok("run", "true", passphrase=PASSPHRASE)
        place.ok("unlock", passphrase=PASSPHRASE)
        assert place.run("run", "sh", "-c", "exit 137").returncode == 137
        place.ok("status")
        place.run("doctor")
        place.ok("list")
        place.ok("passwd", passphrase=OTHER_PASSPHRASE)
        place.inside("exec 9< ~/secrets/a; (sleep 300 <&9) > /dev/null 2>&1 &", "tazpod")
        place.ok("lock")

    def open_one_of_go(self) -> None:
        """An earlier version comes back, and then a vault of Go TazPod, which is saved in our format."""
        place = self.place
        version = place.ok("history").split()[0]
        place.ok("restore", version, passphrase=PASSPHRASE)
        place.ok("verify", passphrase=PASSPHRASE)
        place.sealed.write_bytes(GO_VAULT)
        place.ok("unlock", passphrase=GO_PASSPHRASE)
        place.reads("echo 2 > ~/secrets/a", "tazpod")
        place.ok("--yes", "save")
        place.ok("lock")
        self.recorder.look()

    def keep_in_step(self) -> None:
        """With a storage; the daemon saves and pushes, the third version makes it forget the first."""
        place = self.place
        for line in (*s3lib.CONFIG, "sync.interval: 2", "vault.retention: 1"):
            place.configure(line)
        place.env |= {**s3lib.KEYS, **s3lib.SSO}
        place.ok("up", "--recreate")
        cloud = s3lib.Cloud(place.name, place.box / "cloud")
        self.clouds.append(cloud)
        cloud.sign_on()
        place.ok("setup-storage")
        place.ok("unlock", passphrase=GO_PASSPHRASE)
        place.ok("push")
        for number in range(2):
            place.reads(f"echo {number} > ~/secrets/a", "tazpod")
            before = self.in_the_storage()
            eventually(lambda old=before: self.in_the_storage() not in ("", old), "the daemon pushes")
        self.recorder.look()
        place.ok("pull")
        place.ok("lock")
        for name in s3lib.KEYS:
            del place.env[name]
        person = place.terminal("login")
        person.sees("logged in as")
        assert person.ends() == 0
        self.recorder.look()

    def in_the_storage(self) -> str:
        """The digest of what this machine has brought there."""
        path = self.place.vault / "remote.json"
        return str(json.loads(path.read_text())["digest"]) if path.exists() else ""

    def end(self) -> None:
        """The container stops, is paused, and goes; an image is made and looked for."""
        place = self.place
        docker("stop", "-t", "0", place.name)
        place.ok("up")
        docker("pause", place.name)
        place.ok("down")
        self.recorder.look(pod=False)
        (place.folder / ".tazpod/Dockerfile.ai").write_text(f"FROM {enginelib.IMAGE}\n")
        place.ok("trust")
        place.ok("build")
        place.run("pull", "image")

    def clean_up(self) -> None:
        for cloud in self.clouds:
            cloud.close()
        self.place.clean_up()
        docker("network", "rm", NARROW, check=False)


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    """What was recorded in a whole life."""
    with tempfile.TemporaryDirectory(prefix="tazpod-test-") as box:
        life = Life(Path(box))
        try:
            life.live()
            yield life.recorder
        finally:
            life.clean_up()


# What stands for something else in a template, as a whole word or as a part of one.
HOLES = (
    *(
        "PROJECT",
        "HOME",
        "NAME",
        "IMAGE",
        "TEXT",
        "PLACE",
        "MODE",
        "USER",
        "FOLDER",
        "COMMAND",
        "CLAIM",
        "DIR",
    ),
    *(
        "MTU",
        "UID",
        "PYTHON",
        "SIZE",
        "KEY",
        "FILE",
        "ETAG",
        "BUCKET",
        "REGION",
        "PROFILE",
        "PROGRAM",
        "WORD",
    ),
    *("ID", "TIME", "M", "N"),
)
HOLE = re.compile(rf"(?<![A-Z_])({'|'.join(HOLES)})(?![A-Z_])")


def filled(text: str, anything: str) -> str:
    """A template as an expression, in which a hole is `anything`."""
    return "".join(anything if part in HOLES else re.escape(part) for part in HOLE.split(text))


def argv_pattern(template: str) -> re.Pattern[str]:
    """What a row's argv looks like, each word behind a NUL; `[a b]` may be missing, `...` is any words."""
    text = ""
    for word in shlex.split(template):
        if word == "...":
            text += "(?:\0[^\0]*)*"
            continue
        piece = "\0" + filled(word.strip("[]"), "[^\0]+")
        opening = "(?:" if word.startswith("[") else ""
        closing = ")?" if word.endswith("]") else ""
        text += opening + piece + closing
    return re.compile(text, re.DOTALL)


def path_pattern(template: str) -> re.Pattern[str]:
    """What a row's path looks like; `...` is anything."""
    return re.compile(".*".join(filled(part, "[^/@]+") for part in template.split("...")))


def is_tool(words: Sequence[str]) -> bool:
    """Whether a process is tazpod, on the host or in the container."""
    return "python" in words[0] and any("tazpod.program()" in w or w.endswith("/tool") for w in words)


# What the kernel starts for a script, and the scripts.
INTERPRETERS = ("/bin/sh", "/usr/bin/python3")
SCRIPTS = ("tazpod", "aws", "docker", "podman", "uname", "git")


def words_of(one: Started) -> list[str]:
    """An argv with the bare name of its program, as it was meant."""
    words = list(one.argv)
    if words[0] in INTERPRETERS and Path(words[1]).name in SCRIPTS:
        words = words[1:]
    name = Path(words[0]).name
    if name == "podman" and words[1] != "info":
        name = "docker"  # by which the page means either
    return [name, *words[1:]]


def is_ours(one: Started) -> bool:
    """Whether the tool has started it: itself, through sudo and its shell, or by the hook in a shell."""
    if not one.parent or set(one.argv) <= set(one.before):
        return False  # the engine did; or it is what a program was told to go on as
    by = Path(one.parent[0]).name
    if by == "bash":
        return one.argv[0] in ("infocmp", "flock")
    as_root = one.uid == 0 and (by == "sudo" or one.parent[:2] == ("sh", "-c"))
    return is_tool(one.parent) or (as_root and "unix_chkpwd" not in one.argv[0])  # sudo's own


def calls(recorder: Recorder) -> Iterator[tuple[str, list[str]]]:
    """What the tool has started, by its side; what it hands to sudo in one call, one by one."""
    for one in filter(is_ours, recorder.started()):
        words = words_of(one)
        side = "root in the pod" if one.uid == 0 else one.side
        if words[:2] == ["sudo", "-n"] and words[2] != "-u":
            side, words = "root in the pod", words[2:]
        if words[:2] == ["sh", "-c"]:
            yield from ((side, shlex.split(part)) for part in words[2].split(" && "))
        else:
            yield side, words


def test_every_program_of_a_life_is_a_row_and_every_row_was_seen(recorder: Recorder) -> None:
    rows = {(row.side, row.argv): argv_pattern(row.argv) for row in PAGE_OF.rows()}
    unknown, seen = set(), set()
    for side, words in calls(recorder):
        text = "".join(f"\0{word}" for word in words)
        found = {row for row, pattern in rows.items() if row[0] == side and pattern.fullmatch(text)}
        seen |= found
        if not found:
            unknown.add((side, shlex.join(words)))
    assert unknown == set(), "not on the page"
    assert {argv for _, argv in set(rows) - seen} - set(PAGE_OF.UNSEEN) == set(), "never seen"


def test_no_secret_is_in_any_argv(recorder: Recorder) -> None:
    words = {word for one in recorder.started() for word in one.argv}
    assert len(words) > 200
    for secret in (PASSPHRASE, OTHER_PASSPHRASE, GO_PASSPHRASE, *s3lib.KEYS.values()):
        assert [word for word in words if secret in word] == []


def test_every_file_of_a_life_is_a_row_and_every_row_was_found(recorder: Recorder) -> None:
    places = dict(zip(("project", "home", "disk", "ram"), (files for _, files in PAGE_OF.file_lines())))
    owners = {UID: PAGE_OF.YOURS, 0: PAGE_OF.ROOTS}
    wrong, seen = set(), set()
    for one in recorder.files:
        found = [row for row in places.get(one.place, ()) if path_pattern(row.path).fullmatch(one.path)]
        row = found[0] if found else None  # the first is the closest
        if row and row.mode in (f"{one.mode:04o}", "any") and row.owner == owners[one.uid]:
            seen.add(row)
        elif one.path not in ("shared/", "/shared/", f"{FOLDER}/", "/home/tazpod/.kept/"):  # the config's own
            wrong.add(one)
    assert wrong == set()
    rows = {row for files in places.values() for row in files}
    assert {row.path for row in rows - seen if not row.unseen} == set(), "never found"
