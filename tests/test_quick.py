"""What makes the way to the prompt short, and that none of it ever costs a right answer."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Callable

import enginelib
import pytest
from conftest import ROOT, approve, load_config, run_cli, write_stub
from enginelib import PASSPHRASE, Place
from test_config import KEYS

import tazpod
from tazpod import Config, Container

place, lab, template = enginelib.place, enginelib.lab, enginelib.template
ID = "7" * 64

# -- which libraries are loaded when a program is started

WATCHED = """
import sys
dear = {"plumbum", "yaml", "argparse", "dataclasses", "hashlib", "shutil"}
def watch(event, args):
    if event == "import" and args[0].startswith("plumbum"):
        open("plumbum", "w").close()
    if event == "subprocess.Popen" and "docker" in args[1][0]:
        print(args[1][1], *sorted(dear & set(sys.modules)), file=sys.stderr)
sys.addaudithook(watch)
sys.path.insert(0, sys.argv.pop(1))
import tazpod
sys.exit(tazpod.main(sys.argv[1:]))
"""


def started(*words: str) -> list[list[str]]:
    """What each docker that a word starts is to do, and the dear modules that are loaded by then."""
    argv = [sys.executable, "-c", WATCHED, str(ROOT), *words]
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stderr.splitlines() if not line.startswith("tazpod:")]


@pytest.fixture
def running(project: Path, stub_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose container runs, with this tool in it and an open vault; docker is a stub."""
    approve(project)
    config = load_config(project)
    container = {"Id": ID, "State": {"Status": "running"}, "Image": "sha256:1"}
    container |= {"Name": f"/{config.container_name}"}
    container["Mounts"] = [{"Destination": "/workspace", "Source": str(project)}]
    container["Config"] = {"Image": config.image, "Env": [f"HOST_CWD={project}"]}
    image = {"Id": "sha256:1", "RepoTags": [config.image], "RootFS": {}}
    (project / "answer").write_text(json.dumps([container, image]))
    write_stub(stub_path, "docker", f'[ "$1" != inspect ] || cat "{project}/answer"')
    monkeypatch.setenv("PATH", f"{stub_path}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_HOST", "tcp://engine.example:2375")
    tazpod.private_folder(config.run_folder)
    container = Container(ID, "running", "", None, name=config.container_name)
    tazpod.remember_container(config, container, fitted=tazpod.fitting(config))
    with tazpod.locked_file(config.run_folder / tazpod.GUARD_LOCK, "guarding"):
        yield project


def test_nothing_dear_is_loaded_on_the_way_to_the_prompt_and_out_of_it(running: Path) -> None:
    assert started() == [["inspect"], ["exec"], ["exec"], ["exec"]]


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["help"]])
def test_help_loads_next_to_nothing(words: list[str]) -> None:
    argv = [sys.executable, "-I", "-S", "-X", "importtime", str(ROOT / "tazpod.py"), *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typing" in loaded and "tazpod" in done.stdout
    assert loaded & {"argparse", "dataclasses", "hashlib", "json", "pathlib", "shutil", "subprocess"} == set()


def test_a_config_is_parsed_once_and_again_when_it_changed(running: Path) -> None:
    text = "sync: {{interval: {}}}\nenv: {{A: b, C: 'd'}}\n"
    approve(running, text.format(6))
    for seconds, parsed in ((7, True), (7, False), (8, True)):  # which needs no approval
        (running / tazpod.CONFIG_PATH).write_text(text.format(seconds))
        assert ("yaml" in started()[0]) == parsed


def test_without_plumbum_a_program_that_is_missing_has_the_same_error(
    running: Path, stub_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stub_path / "docker").unlink()
    monkeypatch.setenv("PATH", str(stub_path))
    with pytest.raises(
        AssertionError, match=r"docker is not installed, or not on PATH\n +hint: install Docker"
    ):
        started()


@pytest.mark.parametrize("word", [*tazpod.all_words().values(), *tazpod.INTERNAL], ids=lambda word: word.name)
def test_a_word_alone_means_what_argparse_says(word: tazpod.Word) -> None:
    with contextlib.suppress(tazpod.UsageError):  # of a word that cannot stand alone
        said = vars(tazpod.make_parser(word).parse_args([]))
        assert vars(tazpod.parse_words(word, [])) == said


# -- the config that is remembered (see also test_trust.py)


@pytest.mark.parametrize("text, field, value", [("", "user", "tazpod"), *KEYS])
def test_what_is_remembered_is_what_was_parsed(text: str, field: str, value: object, tmp_path: Path) -> None:
    request = kept(tmp_path, text)
    again = tazpod.read_request(tmp_path)
    assert again == request._replace(changes=[], kept=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tazpod, "parse_config", None)
        assert tazpod.read_request(tmp_path) == again


def kept(project: Path, text: str) -> tazpod.Request:
    """What was asked for and approved."""
    (project / tazpod.ENVELOPE).mkdir(exist_ok=True)
    (project / tazpod.CONFIG_PATH).write_text(text)
    request = tazpod.read_request(project)
    tazpod.keep_request(request)
    return request


def test_a_warning_is_told_each_time_and_an_error_too(tmp_path: Path) -> None:
    for text in ("imag: x\n", "user: dev\nuser: dev\n"):
        assert [len(kept(tmp_path, text).warnings) for _ in range(2)] == [1, 1]
    for _ in range(2):
        with pytest.raises(tazpod.UsageError, match=r"config\.yaml:1: user"):
            kept(tmp_path, "user: NO")


JUNK = [b"", b"\0", b"[]", b"{}", b'{"settings": {}}', b'{"settings": 1', b'{"project": 1, "settings": []}']


@pytest.mark.parametrize("junk", JUNK)
def test_what_cannot_be_what_was_remembered_is_not_believed(junk: bytes, tmp_path: Path) -> None:
    kept(tmp_path, "user: dev")
    (tazpod.project_state(tmp_path) / tazpod.APPROVAL_RECORD).write_bytes(junk)
    assert [change.name for change in tazpod.read_request(tmp_path).changes] == ["user"]


@pytest.mark.parametrize("swapped", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), os.mkdir])
@pytest.mark.parametrize("place", [tazpod.CONFIG_PATH, ".tazpod/vault/remote.json", ".tazpod/run/made.json"])
def test_a_file_that_the_container_swapped_neither_blocks_nor_fills_the_host(
    place: str, swapped: Callable[[Path], object], running: Path
) -> None:
    (running / place).unlink(missing_ok=True)
    swapped(running / place)
    done = run_cli("status", cwd=running)
    refused = re.search("config.yaml: is (not a regular file|a link, not a file)$", done.stderr, re.MULTILINE)
    assert bool(refused) == (place == tazpod.CONFIG_PATH)
    assert "a fault in tazpod" not in done.stderr


def test_the_status_of_another_version_is_understood_as_far_as_it_goes(
    running: Path, stub_path: Path
) -> None:
    told = json.dumps({"project": "/workspace", "vault_open": True, "what_came_later": 1})
    write_stub(
        stub_path,
        "docker",
        f"""case $* in
      inspect*) cat "{running}/answer" ;;
      exec*) echo '{told}' ;;
    esac""",
    )
    done = run_cli("status", "--json", cwd=running)
    assert done.returncode == tazpod.UNWELL, done.stderr
    assert json.loads(done.stdout)["vault"]["open"] is True


def test_where_nobody_knows_the_home_nothing_is_left_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("HOME", "here"), ("XDG_STATE_HOME", "here")):
        monkeypatch.setenv(name, value)
        assert tazpod.state_folder().is_absolute()


def test_another_tool_or_project_does_not_get_what_was_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = kept(tmp_path, "user: dev")
    monkeypatch.setattr(tazpod, "__file__", sys.executable)
    again = tazpod.read_request(tmp_path)
    assert (again.kept, again.config, again.changes) == (False, request.config, [])
    path = tazpod.project_state(tmp_path) / tazpod.APPROVAL_RECORD
    path.write_bytes(path.read_bytes().replace(b'"project": "', b'"project": "/x'))
    assert tazpod.read_approval(tmp_path) is None


# -- the mount table of the container, as this machine shows it

OPEN = "99 75 0:60 / /home/tazpod/secrets rw,nosuid - tmpfs tmpfs rw,size=65536k"
COVERED = "100 99 254:0 /x /home/tazpod/secrets rw - ext4 /dev/vda rw"
ELSEWHERE = "99 75 0:60 / /home/tazpod/.secrets.transit rw,nosuid - tmpfs tmpfs rw"
SHOWN = {
    "control groups, version 1": (f"9:pids:/docker/{ID}\n0::/docker/{ID}", OPEN, True),
    "version 2": (f"0::/docker/{ID}", OPEN, True),
    "version 2, by systemd": (f"0::/system.slice/docker-{ID}.scope", OPEN, True),
    "rootless": (
        f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{ID}.scope",
        OPEN,
        True,
    ),
    "Podman": (f"9:pids:/libpod_parent/libpod-{ID}\n0::/", OPEN, True),
    "Podman, by systemd": (f"0::/machine.slice/libpod-{ID}.scope/container", OPEN, True),
    "another container": (f"0::/docker/{'8' * 64}", OPEN, False),
    "another, whose name begins alike": (f"0::/docker/{ID}8", OPEN, False),
    "another in it": (f"0::/docker/{ID}/docker/{'8' * 64}", OPEN, False),
    "no container": ("0::/user.slice/user-1000.slice/session-1.scope", OPEN, False),
    "a group of its own": ("0::/", OPEN, False),
    "no groups": ("", OPEN, False),
    "locked": (f"0::/docker/{ID}", ELSEWHERE, False),
    "covered": (f"0::/docker/{ID}", f"{OPEN}\n{COVERED}", False),
    "not a tmpfs": (f"0::/docker/{ID}", COVERED, False),
    "no mounts": (f"0::/docker/{ID}", "", False),
}


def process(proc: Path, groups: str, mounts: str, parent: str = "") -> Path:
    """The folder of a process with that parent."""
    for name, files in {
        "4711": {"cgroup": groups, "mountinfo": mounts, "stat": "4711 (a ) S 1) S 42 4711 4711 0"},
        "42": {"cmdline": f"/usr/bin/containerd-shim-runc-v2\0-id\0{parent}\0"},
    }.items():
        (proc / name).mkdir()
        for file, text in files.items():
            (proc / name / file).write_text(f"{text}\n")
    return proc / "4711"


@pytest.mark.parametrize("groups, mounts, shown", SHOWN.values(), ids=SHOWN)
def test_only_the_containers_own_process_shows_an_open_vault(
    groups: str, mounts: str, shown: bool, tmp_path: Path
) -> None:
    folder = process(tmp_path, groups, mounts)
    container = Container(ID, "running", "", None, pid=4711)
    assert tazpod.seen_to_be_open(Config(tmp_path, "x"), container, str(tmp_path)) is shown
    for name in ("mountinfo", "cgroup"):  # neither may be missing
        (folder / name).unlink()
        assert not tazpod.seen_to_be_open(Config(tmp_path, "x"), container, str(tmp_path))


@pytest.mark.parametrize("parent, shown", [(ID, True), (f"{ID}8", False), ("8" * 64, False)])
def test_a_process_that_was_moved_to_other_groups_is_known_by_its_parent(
    parent: str, shown: bool, tmp_path: Path
) -> None:
    process(tmp_path, "0::/", OPEN, parent)
    container = Container(ID, "running", "", None, pid=4711)
    assert tazpod.seen_to_be_open(Config(tmp_path, "x"), container, str(tmp_path)) is shown


@pytest.mark.parametrize("pid", [0, -1, os.getpid(), 1 << 40])
def test_a_number_that_is_no_process_of_the_container_shows_nothing(pid: int, tmp_path: Path) -> None:
    container = Container(ID, "running", "", None, pid=pid)
    assert not tazpod.seen_to_be_open(Config(tmp_path, "x"), container)


@pytest.mark.engine
def test_a_real_container_shows_its_vault_only_while_it_is_open(lab: Place) -> None:
    config = load_config(lab.folder)

    def shown() -> bool:
        container = tazpod.find_container(config)
        assert container
        assert not tazpod.seen_to_be_open(config, container._replace(id=ID))
        return tazpod.seen_to_be_open(config, container)

    lab.ok("up")
    assert not shown()
    lab.ok("unlock", passphrase=PASSPHRASE)
    assert shown() and lab.is_open()
    lab.ok("lock")
    assert not shown()
