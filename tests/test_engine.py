"""The whole tool on a real engine, as a person uses it: see enginelib."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import enginelib
import pytest
from conftest import ROOT
from enginelib import (
    AT_ENTRY,
    ENGINE,
    FULL_IMAGE,
    IMAGE,
    PASSPHRASE,
    SECRET,
    SECRETS,
    Owned,
    Place,
    docker,
    eventually,
    unique,
)

import tazpod

place, lab, owned = enginelib.place, enginelib.lab, enginelib.owned
template, project_with_vault = enginelib.template, enginelib.project_with_vault
default_image = enginelib.default_image
pytestmark = pytest.mark.engine

# Who runs the host side, and whom the project belongs to.
PEOPLE = [(0, 0), (1000, 1000), (1001, 1001), (0, 1000)]
if ENGINE == "podman":  # another user's Podman is another engine
    PEOPLE = [person for person in {*PEOPLE, (os.geteuid(),) * 2} if person[0] == os.geteuid()]
NO_ROOT = [person for person in PEOPLE if person[1]][:1]

START_HERE = r"Start one in .*\? \[y/N\] "
START_VAULT = r"Start a new, empty one\? \[y/N\] "
ASK, ASK_NEW, ASK_AGAIN = "Passphrase: ", "New passphrase: ", "The same again: "
ASK_OLD = "Present passphrase: "


def nothing_plain(place: Place, *secrets: str) -> None:
    """No file of the project, and none on the container's disk, has a secret in it."""
    for secret in secrets:
        for path in place.folder.rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path
        # -s: unreadable and vanished files; the pattern comes by standard input, not by argv.
        words = ("exec", "-i", "-u", "0", place.name, "grep", "-rlsF", "-f", "-")
        found = docker(*words, "/home", "/tmp", "/var", "/run", "/dev/shm", data=secret.encode(), check=False)
        assert found == ""


# -- the walk


def test_from_an_empty_folder_to_a_locked_vault_and_back(place: Place, default_image: str) -> None:
    place.argv[-1] = str(place.tool)  # the copied file alone
    place.folder = place.folder.rename(place.box / unique())
    place.name = tazpod.legal_name(place.folder.name)
    first = place.terminal()
    first.answers((START_HERE, "y"), (START_VAULT, "y"), (ASK_NEW, PASSPHRASE), (ASK_AGAIN, PASSPHRASE))
    first.sees(f"the vault is open at {SECRETS}")
    assert first.sh("pwd") == "/workspace"
    first.sh(f"echo {SECRET} > ~/secrets/token")
    assert first.leaves(7) == 7
    assert "saved (1 file" in first.seen
    assert first.seen.rstrip().endswith("the vault is locked")
    assert PASSPHRASE not in first.seen
    assert place.is_shut()
    nothing_plain(place, PASSPHRASE)

    again = place.terminal()
    again.answers((AT_ENTRY, PASSPHRASE))
    assert again.sh("cat ~/secrets/token") == SECRET
    assert again.leaves() == 0
    assert "nothing changed" in again.seen
    assert place.is_shut()


def test_no_at_the_first_question_makes_nothing(place: Place) -> None:
    person = place.terminal()
    person.answers((START_HERE, "n"))
    assert person.ends() == 1
    assert list(place.folder.iterdir()) == []


def test_no_to_the_vault_still_opens_the_shell(lab: Place) -> None:
    sealed = lab.sealed.read_bytes()
    person = lab.terminal()
    person.answers((AT_ENTRY, ""))
    assert person.sh("ls -A ~/secrets") == ""
    assert person.leaves(3) == 3
    assert lab.sealed.read_bytes() == sealed
    person = lab.terminal("--no-vault")
    assert person.leaves(3) == 3
    assert "assphrase" not in person.seen


def test_from_a_subdirectory_the_project_above_is_entered(lab: Place) -> None:
    below = lab.folder / "a/b"
    below.mkdir(parents=True, exist_ok=True)
    done = lab.run(cwd=below, data="pwd; ls ../../.tazpod/config.yaml")
    assert (done.returncode, done.stdout) == (0, "/workspace/a/b\n../../.tazpod/config.yaml\n")
    assert not (below / ".tazpod").exists()


def test_a_path_with_spaces_quotes_and_unicode(tmp_path: Path) -> None:
    place = Place(tmp_path, f'it\'s "my" $HOME; `id` \\ Ünïcode ☃ {unique()}')
    try:
        place.ok("init", "--image", IMAGE)
        place.name = tazpod.legal_name(place.folder.name)
        place.ok("unlock", passphrase=PASSPHRASE)
        place.reads("touch /workspace/here; echo x > ~/secrets/x")
        assert place.reads('echo "$HOST_CWD"') == str(place.folder)
        assert (place.folder / "here").exists()
        assert "saved (1 file" in place.ok("down")
        assert "openpgp" in place.ok("history")
    finally:
        place.clean_up()


def test_off_the_terminal_the_shell_reads_standard_input(lab: Place) -> None:
    done = lab.run(data="id -un\nexit 5")
    assert (done.returncode, done.stdout) == (5, "tazpod\n")


def test_off_the_terminal_an_empty_folder_stays_empty(place: Place) -> None:
    done = place.run(data="id -un")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 2
    assert "hint: tazpod init" in done.stderr
    assert list(place.folder.iterdir()) == []


def test_a_second_shell_sees_the_open_vault_and_after_the_lock_nothing(lab: Place) -> None:
    person = lab.enter()
    assert lab.reads("cat ~/secrets/kept") == SECRET
    with pytest.raises(AssertionError):
        nothing_plain(lab, SECRET)
    assert person.leaves() == 0
    assert lab.is_shut()
    nothing_plain(lab, SECRET, PASSPHRASE)


def test_ctrl_c_in_the_shell_reaches_the_program_in_it(lab: Place) -> None:
    person = lab.enter()
    person.shell()
    person.types("echo rea''dy; sleep 1000; echo status=$?")
    person.sees("ready\r\n")
    eventually(lambda: lab.inside("pgrep -f '^sleep 1000'").stdout, "sleep runs")
    person.ctrl_c()
    person.types("echo status=$?")
    person.sees("status=130")
    assert person.leaves() == 0
    assert "the vault is locked" in person.seen


def test_the_release_file_walks_where_no_library_is(place: Place) -> None:
    release = place.box / "tazpod.pyz"
    subprocess.run([sys.executable, str(ROOT / "tests/release"), str(release)], check=True)
    place.argv = [sys.executable, "-I", "-S", str(release)]
    place.init()
    done = place.run(
        "run", "--new", "sh", "-c", f"echo kept > {SECRETS}/x; cat {SECRETS}/x", passphrase=PASSPHRASE
    )
    assert (done.returncode, done.stdout) == (0, "kept\n"), done.stderr
    assert place.is_shut() and "openpgp" in place.ok("history")
    done = place.run("login")  # which would ask
    assert done.returncode == 2 and "there is no terminal to ask on" in done.stderr


# -- wrong answers, and none


def test_three_wrong_passphrases_still_open_the_shell(lab: Place) -> None:
    before = lab.on_disk()
    person = lab.terminal()
    person.answers(*((AT_ENTRY, word) for word in ("wrong", "wrong again", "and again")))
    person.sees("the sealed vault is untouched")
    assert person.sh("ls -A ~/secrets") == ""
    assert person.leaves() == 0
    assert "saved" not in person.seen
    assert lab.on_disk() == before
    assert lab.is_shut()


def test_two_passphrases_that_differ_start_no_vault(place: Place) -> None:
    place.init()
    person = place.terminal("unlock")
    person.answers((ASK_NEW, PASSPHRASE), (ASK_AGAIN, PASSPHRASE.upper()))
    person.answers(*((ASK_NEW, PASSPHRASE), (ASK_AGAIN, "x")) * 2)
    assert person.ends() == 2 and person.seen.count("the two passphrases differ") == 3
    person = place.terminal("unlock")
    person.answers((ASK_NEW, ""))
    assert person.ends() == 2
    person = place.terminal("unlock")
    person.answers((ASK_NEW, "short"))
    person.sees("warning:.* short")
    person.answers((ASK_AGAIN, "short"))
    assert person.ends() == 0
    assert place.on_disk() == {}


def test_ctrl_c_at_the_passphrase_then_unlock_again(lab: Place) -> None:
    before = lab.on_disk()
    person = lab.terminal("--no-vault")
    person.shell()
    person.types("tazpod unlock")
    person.sees(ASK)
    person.ctrl_c()
    person.sees("interrupted")
    person.types("tazpod unlock")
    person.answers((ASK, PASSPHRASE))
    person.sees("the vault is open")
    assert person.sh("cat ~/secrets/kept") == SECRET
    assert person.leaves() == 0
    assert lab.on_disk() == before
    assert lab.is_shut()


# A prompt: the words that lead to it, what is answered on the way, the question itself.
PROMPTS = {
    "start-here": ("bare", (), (), START_HERE),
    "start-vault": ("no vault", (), (), START_VAULT),
    "new-passphrase": ("no vault", ("unlock",), (), ASK_NEW),
    "again": ("no vault", ("unlock",), ((ASK_NEW, PASSPHRASE),), ASK_AGAIN),
    "at-entry": ("locked", (), (), AT_ENTRY),
    "run": ("locked", ("run", "true"), ((AT_ENTRY, "wrong"),), AT_ENTRY),
    "passphrase": ("locked", ("unlock",), (), ASK),
    "second-try": ("locked", ("unlock",), ((ASK, "wrong"),), ASK),
    "verify": ("locked", ("verify",), (), ASK),
    "restore": ("locked", ("restore", "vault-20200102T030405"), (), ASK),
    "passwd": ("open", ("passwd",), ((ASK_OLD, PASSPHRASE), (ASK_NEW, "another one")), ASK_AGAIN),
    "passwd-old": ("open", ("passwd",), ((ASK_OLD, "wrong"),), ASK_OLD),
}


@pytest.mark.parametrize(("state", "words", "steps", "question"), PROMPTS.values(), ids=PROMPTS)
def test_an_interrupted_prompt_changes_nothing(
    *,
    lab: Place,
    state: str,
    words: tuple[str, ...],
    steps: tuple[tuple[str, str], ...],
    question: str,
    tmp_path: Path,
) -> None:
    if state == "no vault":
        lab.sealed.unlink()
    if state == "open":
        lab.ok("unlock", passphrase=PASSPHRASE)
    if "restore" in words:
        (lab.vault / "history").mkdir()
        (lab.vault / f"history/{words[1]}.tar.aes").write_bytes(lab.sealed.read_bytes())
    before, opened = lab.on_disk(), lab.is_open()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, 0):
        person = lab.terminal(*words, cwd=tmp_path if state == "bare" else lab.folder)
        person.answers(*steps)
        person.sees(question)
        if number == signal.SIGINT:
            person.ctrl_c()
        elif number:
            person.kill(number)
        status = person.ends() if number else person.closes()
        assert status == 128 + (number or signal.SIGHUP), person.seen
        assert lab.on_disk() == before
        assert lab.is_open() == opened
        assert opened or lab.is_shut()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, 0], ids=["term", "hup", "closed"])
def test_an_interrupted_shell_saves_and_locks(lab: Place, number: int) -> None:
    person = lab.enter()
    person.sh("echo new > ~/secrets/new; sleep 1000 & echo $$ > /tmp/shell")
    if number:
        person.kill(number)
        assert person.ends() == 128 + number
        assert "saved (2 files" in person.seen
    else:
        assert person.closes() == 128 + signal.SIGHUP
    assert lab.is_shut()
    eventually(lambda: lab.inside("kill -0 $(cat /tmp/shell)").returncode != 0, "the shell ends")
    lab.ok("unlock", passphrase=PASSPHRASE)
    assert lab.reads("cat ~/secrets/new") == "new"


UPGRADE = r"Save in the new format\? \[y/N\] "


@pytest.mark.parametrize("answer", ["y", "n", "ctrl-c", "term", "closed", "killed"])
def test_nobody_is_kept_waiting_by_the_question_of_a_go_vault(lab: Place, answer: str) -> None:
    go_vault = Path(__file__).parent.joinpath("data/go-vault/vault1.tar.aes").read_bytes()
    lab.sealed.write_bytes(go_vault)
    person = lab.enter()
    person.sh("echo new > ~/secrets/new")
    person.types("exit 9")
    person.sees(UPGRADE)
    if answer in ("n", "ctrl-c"):
        person.ctrl_c() if answer == "ctrl-c" else person.types(answer)
        assert person.ends() == 9
        assert "error: the vault was not locked" in person.seen
        assert "stays open until: tazpod lock" in person.seen
        assert not tazpod.sessions(lab.folder / ".tazpod/run")  # no guard does it without a yes
        assert lab.sealed.read_bytes() == go_vault
        assert lab.is_open()
        done = lab.run("lock")  # off the terminal nobody can be asked
        assert done.returncode == 1 and "; --yes agrees" in done.stderr
        assert lab.is_open() and lab.sealed.read_bytes() == go_vault
        assert "the vault is locked" in lab.ok("--yes", "lock")
    elif answer == "killed":
        person.kill(signal.SIGKILL)
        eventually(lab.is_shut, "the guard saves and locks")
    elif answer == "closed":
        assert person.closes() == 9
    else:
        person.kill(signal.SIGTERM) if answer == "term" else person.types(answer)
        assert person.ends() == 9
        assert "saved (8 files" in person.seen
        assert "the vault is locked" in person.seen
    assert lab.is_shut()
    assert lab.on_disk()[f"{tazpod.SEALED_NAME}.go"] == go_vault
    lab.ok("unlock", passphrase=PASSPHRASE)
    assert lab.reads("cat ~/secrets/new") == "new"


# -- the container is not as it should be


def test_without_sys_admin_nothing_is_unpacked_anywhere(project_with_vault: Place) -> None:
    place = project_with_vault
    place.run_by_hand()
    done = place.run("unlock", passphrase=PASSPHRASE)
    assert done.returncode == 1
    assert "no tmpfs could be mounted for the secrets" in done.stderr
    assert "hint: the container needs SYS_ADMIN" in done.stderr
    person = place.terminal("unlock")  # refused before a passphrase is asked for
    assert person.ends() == 1
    assert ASK not in person.seen
    assert place.is_shut()
    nothing_plain(place, SECRET, PASSPHRASE)


GONE = {"stopped": ("stop", "-t", "0"), "killed": ("kill",), "removed": ("rm", "-f")}
LOST = "the vault was open, and its memory is not there any more; what changed after .* is lost"


@pytest.mark.parametrize("words", GONE.values(), ids=GONE)
def test_a_container_that_goes_away_under_the_shell(
    project_with_vault: Place, words: tuple[str, ...]
) -> None:
    place = project_with_vault
    before = place.on_disk()
    person = place.enter()
    person.sh("echo new > ~/secrets/new")
    docker(*words, place.name)
    assert person.ends() == 137
    assert f"the container {place.name} is gone; what changed in the open vault after 20" in person.seen
    assert "the vault is locked" not in person.seen
    assert place.on_disk() == before

    again = place.enter()  # and whatever state it is in, the word alone brings all back
    assert re.search(LOST, again.seen)
    assert again.sh("cat ~/secrets/kept; ls -A ~/secrets/new 2>&1 || true").startswith(f"{SECRET}\nls:")
    assert again.leaves() == 0
    assert not re.search(LOST, place.enter().seen)  # said once


def test_a_container_restarted_under_the_shell_says_what_is_lost(lab: Place) -> None:
    before = lab.on_disk()
    person = lab.enter()
    person.sh("echo new > ~/secrets/new")
    docker("restart", "-t", "0", lab.name)
    assert person.ends() == 137
    assert re.search(f"{LOST}|what changed in the open vault after", person.seen)  # as far as it is up again
    assert "the vault is locked" not in person.seen
    assert lab.is_shut()
    assert lab.on_disk() == before


def test_a_container_restarted_while_open_is_not_taken_for_an_open_vault(lab: Place) -> None:
    lab.ok("unlock", passphrase=PASSPHRASE)
    docker("restart", "-t", "0", lab.name)
    before = lab.on_disk()
    assert lab.run("save").returncode == 1
    person = lab.terminal()
    person.sees(LOST)
    person.answers((AT_ENTRY, PASSPHRASE))
    assert person.sh("cat ~/secrets/kept") == SECRET
    assert person.leaves() == 0
    assert lab.on_disk() == before


def test_a_paused_container_goes_on(lab: Place) -> None:
    lab.ok("unlock", passphrase=PASSPHRASE)
    docker("pause", lab.name)
    assert lab.run(data="cat ~/secrets/kept").stdout == f"{SECRET}\n"


@pytest.mark.parametrize("other", ["another", ""], ids=["of-another-project", "of-nobody"])
def test_a_foreign_container_is_refused_and_left_running(place: Place, other: str) -> None:
    place.init()
    ours = ["-e", f"HOST_CWD={place.folder}"]  # which anybody can say
    if other:
        other = str(place.box / other)
        Path(other).mkdir()  # Podman makes none
        ours += ["-v", f"{other}:/workspace"]
    made = docker("run", "-d", "--name", place.name, *ours, IMAGE, "sleep", "infinity").strip()
    for words in ((), ("up",), ("down",), ("down", "--discard"), ("unlock",), ("lock",), ("save",)):
        done = place.run(*words, data="id")
        assert done.returncode == 1, words
        assert f"belongs to {other or 'no TazPod project'}, not to {place.folder}" in done.stderr
    state = docker("inspect", "-f", "{{.Id}} {{.State.Running}}", place.name).split()
    assert state == [made, "true"]
    assert place.inside("ls /opt/tazpod").returncode != 0


# -- the engine and the image are not as they should be


@pytest.mark.parametrize("words", [(), ("up",), ("unlock",), ("down",), ("lock",)], ids=" ".join)
def test_an_engine_out_of_reach_is_one_line(place: Place, words: tuple[str, ...]) -> None:
    place.init()
    done = place.run(*words, **enginelib.UNREACHABLE)
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert error == f"tazpod: error: {tazpod.ENGINES[ENGINE].title} cannot be reached"
    assert hint.startswith("hint: ")


def test_without_docker_on_the_path_it_says_so(place: Place) -> None:
    place.init()
    done = place.run(PATH=str(place.home))
    assert done.returncode == 127
    assert f"{ENGINE} is not installed, or not on PATH" in done.stderr


def test_an_image_that_cannot_be_pulled_is_offered_to_be_built(place: Place) -> None:
    image = f"localhost:1/{unique()}:none"  # nobody listens there
    place.init(image=image)
    off_terminal = place.run("up")
    assert off_terminal.returncode == 1
    assert f"the image {image} could not be pulled" in off_terminal.stderr
    assert "hint: build it here from its Dockerfile: tazpod build" in off_terminal.stderr
    (place.folder / tazpod.DOCKERFILE_PATH).write_text(f"FROM {IMAGE}\nENV MADE_HERE=yes\n")
    place.ok("trust")
    place.images.append(image)
    declined = place.terminal("up")
    declined.answers((r"could not be pulled\. Build it from .*\? \[y/N\] ", "n"))
    assert declined.ends() == 1
    interrupted = place.terminal("up")
    interrupted.sees(r"Build it from .*\? \[y/N\] ")
    interrupted.ctrl_c()
    assert interrupted.ends() == 130
    person = place.terminal()
    person.answers((r"Build it from .*\? \[y/N\] ", "y"), (START_VAULT, "n"))
    assert person.sh("echo $MADE_HERE") == "yes"
    assert person.leaves() == 0


def test_build_makes_the_image_of_the_config(place: Place) -> None:
    image = f"{unique()}:made"
    place.init("build.dockerfile: images/Small file", "build.context: images", image=image)
    missing = place.run("build")
    assert missing.returncode == 1
    assert f"{place.folder}/images/Small file: there is no such Dockerfile" in missing.stderr
    place.images.append(image)
    (place.folder / "images").mkdir()
    (place.folder / "images/own").write_text("from the context")
    (place.folder / "images/Small file").write_text(f"FROM {IMAGE}\nCOPY own /own\n")
    place.ok("trust")
    place.ok("build")
    assert place.run(data="cat /own").stdout == "from the context"
    (place.folder / "images/Small file").write_text("FROM scratch\nRUN no\n")
    place.ok("trust")
    failed = place.run("build")
    assert failed.returncode == 1
    assert f"the image {image} could not be built" in failed.stderr


LACKING = {
    "gpg": ("rm -f /usr/bin/gpg", "the image lacks what the vault needs: gpg"),
    "python3": ("rm -f /usr/bin/python3*", "has no python3"),
    "two": ("rm -f /usr/bin/openssl /usr/bin/sudo", "what the vault needs: sudo, openssl"),
}


@pytest.mark.parametrize(("command", "message"), LACKING.values(), ids=LACKING)
def test_an_image_without_a_program_of_the_vault_is_named(place: Place, command: str, message: str) -> None:
    place.init(image=place.build(f"FROM {IMAGE}\nUSER root\nRUN {command}\nUSER tazpod\n"))
    done = place.run()
    assert done.returncode == 127
    assert message in done.stderr
    assert place.run("up").returncode == 127  # not only the first time


@pytest.mark.parametrize("folder", [".local/bin", "bin"])
def test_ours_is_found_before_an_older_tazpod_of_the_image(place: Place, folder: str) -> None:
    home = "/home/tazpod"
    image = place.build(
        f"FROM {IMAGE}\nENV PATH={home}/{folder}:/usr/local/bin:/usr/bin:/bin\n"
        f"RUN mkdir -p {home}/{folder} && printf '#!/bin/sh\\necho tazpod 0.3.9\\n' > {home}/{folder}/tazpod"
        f" && chmod +x {home}/{folder}/tazpod\n"
    )
    assert docker("run", "--rm", image, "bash", "-lc", "tazpod").strip() == "tazpod 0.3.9"
    place.init(image=image)
    done = place.run(data="tazpod --version; bash -lc 'tazpod --version'")
    assert done.stdout == f"tazpod {tazpod.__version__}\n" * 2


def test_the_full_image_has_every_program(place: Place) -> None:
    place.init("features.ghost_mode: false", image=FULL_IMAGE)
    programs = ("claude", "gemini", "codex", "opencode", "aws", "node", "git", "rg", "tmux", "ssh", "fzf")
    done = place.run(data="".join(f"{p} {'-V' if p in ('tmux', 'ssh') else '--version'}\n" for p in programs))
    assert done.returncode == 0
    missing = place.run(data=f"for p in {' '.join(programs)}; do command -v $p >/dev/null || echo $p; done")
    assert missing.stdout == ""
    assert "not found" not in done.stderr
    assert "aws-cli/2." in done.stdout
    assert "OpenSSH" in done.stderr


# -- no vault, other words


def test_without_ghost_mode_there_is_a_plain_shell(place: Place) -> None:
    place.init("features.ghost_mode: false")
    person = place.terminal()
    assert person.sh("mountpoint -q ~/secrets || echo none") == "none"
    assert person.leaves(4) == 4
    assert "[y/N]" not in person.seen
    assert "vault" not in person.seen
    for word in ("unlock", "lock", "save"):
        assert place.run(word).returncode == 2
    place.ok("down")


def test_a_passphrase_reaches_every_word_by_a_descriptor(lab: Place) -> None:
    other = "another, with spaces 'quotes' $x and ünïcode"
    assert "is whole (2 entries)" in lab.ok("verify", passphrase=PASSPHRASE)
    assert lab.run("verify", passphrase="wrong").returncode == 1
    assert lab.run("unlock", passphrase="wrong").returncode == 1
    lab.ok("unlock", passphrase=PASSPHRASE)
    lab.ok("passwd", passphrase=other)
    lab.ok("lock")
    assert lab.run("verify", passphrase=PASSPHRASE).returncode == 1
    lab.ok("verify", passphrase=other)
    version = lab.ok("history").split()[0]
    assert lab.run("restore", version, passphrase=other).returncode == 1
    assert "is the sealed vault now" in lab.ok("restore", version, passphrase=PASSPHRASE)
    lab.ok("unlock", passphrase=PASSPHRASE)
    assert lab.reads("cat ~/secrets/kept") == SECRET


def test_without_a_terminal_or_a_descriptor_no_passphrase_is_waited_for(lab: Place) -> None:
    for word in ("unlock", "verify"):
        done = lab.run(word)
        assert done.returncode == 2
        assert "--passphrase-fd" in done.stderr


def test_down_saves_locks_and_removes(project_with_vault: Place) -> None:
    place = project_with_vault
    place.ok("unlock", passphrase=PASSPHRASE)
    place.reads("echo new > ~/secrets/new")
    said = place.ok("down")
    assert said.index("saved (2 files") < said.index("the vault is locked") < said.index("is removed")
    assert docker("ps", "-aq", "--filter", f"name=^{place.name}$") == ""
    assert f"there is no container {place.name}" in place.ok("down")
    place.ok("unlock", passphrase=PASSPHRASE)
    assert place.reads("cat ~/secrets/new") == "new"


@pytest.mark.parametrize("owned", NO_ROOT, indirect=True)
def test_down_refuses_what_cannot_be_saved_unless_told_to_discard(owned: Owned) -> None:
    owned.init().ok("unlock", passphrase=PASSPHRASE)
    owned.reads("echo new > ~/secrets/new; chmod 000 ~/secrets/new")
    done = owned.run("down")
    assert done.returncode == 1
    assert f"{SECRETS}/new: Permission denied" in done.stderr
    assert "hint: tazpod down --discard" in done.stderr
    assert owned.is_open()
    assert "is removed" in owned.ok("down", "--discard")
    assert owned.on_disk() == {}


# -- who runs it


@pytest.mark.parametrize("owned", PEOPLE, indirect=True)
def test_all_that_is_made_belongs_to_the_owner_of_the_project(owned: Owned) -> None:
    owned.init().ok("unlock", passphrase=PASSPHRASE)
    who = f"{owned.owner}:{owned.owner}"
    person = owned.terminal()
    assert person.sh("id -u; id -un").split() == [str(owned.owner), "tazpod"]
    person.sh("echo here > /workspace/written; echo x > ~/secrets/x; touch ~/mine ~/.ssh/no || true")
    assert person.sh("stat -c %u:%g ~ ~/mine ~/secrets/x").split() == [who] * 3
    assert person.sh("sudo -n id -u") == "0"
    assert person.leaves() == 0
    assert "saved (1 file" in person.seen
    owned.ok("unlock", passphrase=PASSPHRASE)
    assert owned.reads("cat ~/secrets/x") == "x"
    owned.reads("echo y > ~/secrets/x")
    owned.ok("lock")
    if owned.owner:  # root may write anywhere
        assert owned.inside("echo z > ~/secrets/z").returncode != 0
    owned.ok("down")
    made = [owned.folder, *owned.folder.rglob("*")]
    assert len(made) > 8
    owners = {str(path): (path.lstat().st_uid, path.lstat().st_gid) for path in made}
    assert set(owners.values()) == {(owned.owner, owned.owner)}, owners
    home = owned.home / ".ssh"
    assert (home.stat().st_uid, home.stat().st_mode & 0o777) == (owned.uid, 0o700)


# -- the file alone


def test_one_copied_file_without_its_libraries_says_what_to_type(place: Place) -> None:
    (place.folder / ".tazpod").mkdir()
    words = [os.path.realpath(sys.executable), "-ISB", str(place.tool)]
    done = subprocess.run(words, cwd=place.folder, env=place.env, capture_output=True, text=True)
    assert done.returncode == 127
    assert len(done.stderr.splitlines()) == 2
    assert "-m pip install plumbum PyYAML" in done.stderr


@pytest.mark.engine
def test_a_lost_sealed_file_is_no_new_beginning(place: Place) -> None:
    place.init().ok("unlock", passphrase=PASSPHRASE)
    for content in ("one", "two"):
        assert place.inside(f"echo {content} > {SECRETS}/file").returncode == 0
        place.ok("save")
    place.ok("lock")
    place.sealed.unlink()
    for words in (("unlock", "--yes"), ("run", "true")):
        done = place.run(*words, passphrase="another")
        assert done.returncode != 0
        assert "is missing" in done.stderr
    assert not place.is_open()
    done = place.run("status")
    assert "its file is missing" in done.stdout
    assert "restore VERSION" in done.stdout
    version = place.ok("history").split()[0]
    place.ok("restore", version, passphrase=PASSPHRASE)
    place.ok("unlock", passphrase=PASSPHRASE)
    assert place.reads(f"cat {SECRETS}/file") == "one"
