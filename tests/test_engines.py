"""Docker and Podman: which one it is, what each is told, and that both are read alike."""

from __future__ import annotations

import io
import json
import os
import shlex
import tarfile
from pathlib import Path

import plumbum
import pytest
from conftest import load_config, replace, write_stub

import tazpod
from tazpod import Config

DOCKER = Config(Path("/srv/blue"), "blue-lab")
PODMAN = replace(DOCKER, program="podman")
NONE = "/nonexistent/enforce"


# -- which one


@pytest.fixture
def hosts(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch):
    """Give the host some programs, each with its script; what load_config then takes for the engine."""

    def chosen(**scripts: str) -> str:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name, script in scripts.items():
            write_stub(folder, name, script)
        monkeypatch.setenv("PATH", str(folder))
        with plumbum.local.env(PATH=str(folder)):
            return load_config(project).program

    monkeypatch.delenv("TAZPOD_ENGINE")
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    return chosen


LOUD = "echo must not be run >&2; kill -9 $$"


@pytest.mark.parametrize(
    "scripts, engine",
    [
        ({}, "docker"),
        ({"docker": LOUD}, "docker"),
        ({"podman": LOUD}, "podman"),
        ({"docker": "exit 0", "podman": LOUD}, "docker"),
        ({"docker": "exit 1", "podman": LOUD}, "podman"),
        ({"docker": f"{LOUD}; exec /usr/bin/podman", "podman": LOUD}, "podman"),
    ],
    ids=["none", "docker alone", "podman alone", "both", "docker is silent", "docker is podman"],
)
def test_docker_where_it_answers_else_podman(hosts, scripts: dict[str, str], engine: str) -> None:
    assert hosts(**scripts) == engine


def test_what_is_named_is_taken_and_the_environment_comes_first(hosts, project: Path, monkeypatch) -> None:
    path = project / tazpod.CONFIG_PATH
    path.write_text(path.read_text() + "engine: podman\n")
    assert hosts(docker=LOUD, podman=LOUD) == "podman"
    monkeypatch.setenv("TAZPOD_ENGINE", "docker")
    assert hosts() == "docker"
    monkeypatch.setenv("TAZPOD_ENGINE", "dokcer")
    with pytest.raises(tazpod.UsageError, match="dokcer"):
        hosts()


def test_a_docker_host_that_is_named_is_docker(hosts, monkeypatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///somewhere.sock")
    assert hosts(docker=LOUD, podman=LOUD) == "docker"
    assert hosts(docker=LOUD) == "docker"


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_the_engine_that_made_the_container_is_not_asked_for_again(hosts, project: Path, engine: str) -> None:
    config = Config(project, "project-lab", program=engine)
    tazpod.remember_engine(config)
    assert hosts(docker=LOUD, podman=LOUD) == engine
    record = tazpod.project_state(project) / "engine"
    for text in (f"{engine}\n/another/project\n", "kubernetes\n", "", f"{engine}\n{project}\nmore\n"):
        record.write_text(text)  # not a word is believed of what is not ours
        assert hosts(docker="exit 1", podman=LOUD) == "podman"


def inspects(found: object) -> str:
    """A script that knows the container of a project, or none, as an engine does."""
    env = [f"HOST_CWD={found}"]
    mounts = [{"Destination": "/workspace", "Source": str(found)}]
    data = {"Id": "7" * 64, "Name": "/blue-lab", "State": {"Status": "running"}}
    data |= {"Config": {"Env": env}, "Mounts": mounts}
    return f"""case "$*" in
      "container ls"*) echo {"7" if found else ""} ;;
      "container inspect"*) echo '{json.dumps([data])}' ;;
      *) echo '[]'; echo 'Error: no such object: "blue-lab"' >&2; exit 125 ;;
    esac"""


@pytest.mark.parametrize("there, fault", [("this", True), ("another", False), ("", False)])
def test_a_container_on_the_other_engine_is_not_forgotten(
    stub_path: Path, project: Path, monkeypatch, there: str, fault: bool
) -> None:
    config = Config(project, "blue-lab", program="docker")
    tazpod.remember_engine(replace(config, program="podman"))
    write_stub(stub_path, "docker", inspects(""))
    write_stub(stub_path, "podman", inspects({"this": project, "another": "/b"}.get(there, "")))
    monkeypatch.setenv("PATH", str(stub_path))
    if fault:
        with pytest.raises(tazpod.TazpodError, match="is on Podman, not on the Docker engine") as error:
            tazpod.find_container(config)
        assert "TAZPOD_ENGINE=podman tazpod down" in error.value.hint
    else:
        assert tazpod.find_container(config) is None


# -- what each is told


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch):
    """Be some user of this host."""
    for name in tazpod.ELSEWHERE:
        monkeypatch.delenv(name, raising=False)
    return lambda uid: monkeypatch.setattr(os, "geteuid", lambda: uid)


def options(config: Config, enforce: str = NONE) -> list[str]:
    return list(tazpod.podman_options(config, enforce))


def test_without_root_the_ids_inside_are_those_of_the_host(user) -> None:
    user(1000)
    assert options(PODMAN) == ["--userns=keep-id"]
    assert options(DOCKER) == []
    assert options(replace(PODMAN, docker_args=("--userns=host",))) == []
    user(0)
    assert options(PODMAN) == []


@pytest.mark.parametrize("enforce, words", [("1", ["--security-opt", "label=disable"]), ("0", []), ("", [])])
def test_where_selinux_enforces_the_container_has_no_label(user, tmp_path, enforce, words) -> None:
    user(0)
    (tmp_path / "enforce").write_text(enforce)
    assert options(PODMAN, str(tmp_path / "enforce")) == words
    assert options(DOCKER, str(tmp_path / "enforce")) == []


def test_an_engine_of_somebody_else_is_asked_whether_it_has_root(user, stub_path, monkeypatch) -> None:
    user(1000)
    monkeypatch.setenv("CONTAINER_HOST", "unix:///run/podman/podman.sock")
    for answer, words in (("true", ["--userns=keep-id"]), ("false", [])):
        write_stub(stub_path, "podman", f"echo {answer}")
        assert options(PODMAN) == words


def test_the_network_of_a_podman_without_root_needs_no_mtu(user, monkeypatch) -> None:
    monkeypatch.setattr(tazpod, "route_mtu", lambda: 1280)
    for uid, config, wanted in ((1000, PODMAN, None), (0, PODMAN, 1280), (1000, DOCKER, 1280)):
        user(uid)
        assert tazpod.wanted_mtu(config) == wanted
        assert tazpod.wanted_mtu(replace(config, mtu="1400")) == 1400


TOLD = {
    "network": (tazpod.network_argv(PODMAN, 1280), "podman network create --opt mtu=1280 tazpod-mtu-1280"),
    "shell": (tazpod.shell_argv(PODMAN), "podman exec -it --detach-keys= -w /workspace blue-lab /bin/bash"),
    "no terminal": (
        tazpod.shell_argv(PODMAN, terminal=False),
        "podman exec -i -w /workspace blue-lab /bin/bash",
    ),
    "open": (tazpod.is_open_argv(PODMAN), "podman exec -e LC_ALL=C blue-lab mountpoint /home/tazpod/secrets"),
    "copy": (tazpod.copy_argv(PODMAN), "podman cp -a=false - blue-lab:/"),
    "look": (tazpod.inspect_argv(PODMAN), "podman inspect blue-lab tazzo/tazpod-ai:latest"),
    "build": (tazpod.build_argv(PODMAN), "podman build -t docker.io/tazzo/tazpod-ai:latest -f - ."),
}


@pytest.mark.parametrize("argv, words", TOLD.values(), ids=TOLD)
def test_what_podman_is_told(argv: list[str], words: str) -> None:
    assert argv == words.split(" ")


@pytest.mark.parametrize(
    "image, full",
    [
        ("tazzo/tazpod-ai:latest", "docker.io/tazzo/tazpod-ai:latest"),
        ("debian", "docker.io/debian"),
        ("debian:12", "docker.io/debian:12"),
        ("localhost/mine", "localhost/mine"),
        ("ghcr.io/a/b@sha256:" + "0" * 64, "ghcr.io/a/b@sha256:" + "0" * 64),
        ("box:5000/a", "box:5000/a"),
    ],
)
def test_podman_is_told_where_an_image_comes_from(image: str, full: str) -> None:
    assert tazpod.full_name(replace(PODMAN, image=image)) == full
    assert tazpod.full_name(replace(DOCKER, image=image)) == image


# -- what they answer

NOISE = (
    "Emulate Docker CLI using podman. Create /etc/containers/nodocker to quiet msg.\n"
    'time="2026-01-02T03:04:05Z" level=warning msg="Using cgroups-v1 which is deprecated"\n'
    "[conmon:e]: failed to connect to syslog: permission denied\n"
)


@pytest.mark.parametrize(
    "err",
    [
        'Error: no such object: "blue-lab"\nError: no such object: "img:1"\n',
        'error inspecting object: no such object: "img:1"\n'
        'Error: inspecting object: no such object: "blue-lab"\n',
        NOISE + 'Error: no such object: "blue-lab"\n',
    ],
)
def test_podman_says_that_there_is_no_container(err: str) -> None:
    config = replace(PODMAN, image="img:1")
    assert tazpod.parse_inspect(config, tazpod.Result(125, b"[]\n", err, "podman")) == (None, "")


@pytest.mark.parametrize(
    "said, code, opened",
    [
        (f"{NOISE}", 0, True),
        (f"{NOISE}/home/tazpod/secrets is not a mountpoint", 32, False),
        ("mountpoint: /home/tazpod/secrets: No such file or directory", 1, False),
        ("Error: executable file `mountpoint` not found in $PATH", 127, False),
        (f"{NOISE}Error: can only create exec sessions on running containers", 255, None),
    ],
)
def test_an_exec_of_podman_that_failed_is_no_answer(stub_path, said: str, code: int, opened: object) -> None:
    write_stub(stub_path, "podman", f"echo {shlex.quote(said)} >&2; exit {code}")
    if opened is None:
        with pytest.raises(tazpod.TazpodError, match="podman: Error: can only create"):
            tazpod.asked_if_open(PODMAN)
    else:
        assert tazpod.asked_if_open(PODMAN) is opened


@pytest.mark.parametrize(
    "err, message",
    [
        (NOISE + "Error: cannot do it\n", "podman: Error: cannot do it"),
        (NOISE + "Cannot connect to Podman.\n", "Podman cannot be reached"),
        ("dial unix: connect: permission denied\n", "Podman refuses this user"),
        ("permission denied\nError: then connect\n", "podman: Error: then connect"),
    ],
)
def test_the_error_is_the_line_that_says_so(err: str, message: str) -> None:
    assert str(tazpod.engine_error(tazpod.Result(125, b"", err, "podman"))) == message


@pytest.mark.parametrize(
    "there, wanted, same",
    [
        ("docker.io/tazzo/tazpod-ai:latest", "tazzo/tazpod-ai:latest", True),
        ("localhost/mine:1", "mine:1", True),
        ("docker.io/library/debian:latest", "debian", True),
        ("docker.io/library/debian:12", "debian", False),
        ("ghcr.io/mine:1", "mine:1", False),
        ("localhost:5000/a", "a", False),
    ],
)
def test_an_image_is_known_by_either_name(there: str, wanted: str, same: bool) -> None:
    assert (tazpod.plain_image(there) == tazpod.plain_image(wanted)) is same


def test_the_archive_ends_where_podman_stops_reading() -> None:
    data = tazpod.pod_archive(PODMAN)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        last = archive.getmembers()[-1]
    size = -(-last.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    assert len(data) == last.offset_data + size + 2 * tarfile.BLOCKSIZE
    assert not any(data[-2 * tarfile.BLOCKSIZE :])


def test_noswap_is_refused_by_the_kernel_or_by_the_engine(monkeypatch) -> None:
    for text, said in (
        ("0 0 4294967295", "does not know noswap"),
        ("0 1000 1\n 1 100000 65536", "without root"),
    ):
        monkeypatch.setattr(Path, "read_text", lambda _, text=text: text)
        assert said in tazpod.noswap_refused()
