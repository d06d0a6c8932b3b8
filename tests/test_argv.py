"""Every docker call: the pure builders, and which calls are made, in which order."""

from __future__ import annotations

import ast
import calendar
import contextlib
import io
import json
import os
import re
import stat
import tarfile
from pathlib import Path

import pytest
from conftest import ROOT, approve, load_config, replace, terminal

import tazpod
from tazpod import Config

IMAGE = "tazzo/tazpod-ai:latest"
CONFIG = Config(Path("/srv/My \"blue\" 'lab' ☃"), "blue-lab")
HERE = str(CONFIG.project)
OTHER_USER = replace(CONFIG, user="dev")
AWS = "AWS_CONFIG_FILE=/workspace/.tazpod/.aws/config"

IMAGE_ID = "sha256:1"
ASKS_FOR_ALL = replace(
    CONFIG,
    proxies=("HTTPS_PROXY",),
    env=(("A", "b c"), ("FROM_HOST", None)),
    ports=("8080:80",),
    mounts=("cache:/cache:ro", "/:/host"),
    docker_args=("--gpus", "all"),
)


# -- the builders


BUILT = {
    "docker run": (
        tazpod.run_argv(CONFIG, Path("/home/me")),
        [
            *("docker", "run", "-d", "--name", "blue-lab"),
            *("--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined"),
            *("--dns", "1.1.1.1", "--dns", "1.0.0.1"),
            *("-v", f"{HERE}:/workspace", "-v", "/home/me/.ssh:/home/tazpod/.ssh:ro"),
            *("-e", f"HOST_CWD={HERE}", IMAGE, "sleep", "infinity"),
        ],
    ),
    "docker run for another user": (
        tazpod.run_argv(OTHER_USER, Path("/root")),
        [
            *("docker", "run", "-d", "--name", "blue-lab"),
            *("--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined"),
            *("--dns", "1.1.1.1", "--dns", "1.0.0.1"),
            *("-v", f"{HERE}:/workspace", "-v", "/root/.ssh:/home/dev/.ssh:ro"),
            *("-e", f"HOST_CWD={HERE}", IMAGE, "sleep", "infinity"),
        ],
    ),
    "docker run of a config that asks for all there is": (
        tazpod.run_argv(ASKS_FOR_ALL, Path("/home/me"), 1280),
        [
            *("docker", "run", "-d", "--name", "blue-lab"),
            *("--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined"),
            *("--dns", "1.1.1.1", "--dns", "1.0.0.1"),
            *("-v", f"{HERE}:/workspace", "-v", "/home/me/.ssh:/home/tazpod/.ssh:ro"),
            *("-e", f"HOST_CWD={HERE}", "--network", "tazpod-mtu-1280", "-e", "HTTPS_PROXY"),
            *("-e", "A=b c", "-e", "FROM_HOST", "-p", "8080:80", "-v", "cache:/cache:ro", "-v", "/:/host"),
            *("--gpus", "all", IMAGE, "sleep", "infinity"),
        ],
    ),
    "a network of its own": (
        tazpod.network_argv(CONFIG, 1280),
        [*("docker", "network", "create", "--opt", "com.docker.network.driver.mtu=1280"), "tazpod-mtu-1280"],
    ),
    "another shell": (
        tazpod.shell_argv(replace(CONFIG, shell="/usr/bin/my shell")),
        [
            *("docker", "exec", "-it", "-w", "/workspace", "blue-lab", "/bin/bash", "-c"),
            "TAZPOD_CLAIM=1 . /opt/tazpod/bashrc; exec '/usr/bin/my shell'",
        ],
    ),
    "docker build behind a proxy": (
        tazpod.build_argv(replace(CONFIG, proxies=("HTTPS_PROXY", "no_proxy"))),
        [
            *("docker", "build", "-t", IMAGE, "-f", "-"),
            *("--build-arg", "HTTPS_PROXY", "--build-arg", "no_proxy", "."),
        ],
    ),
    "the one look at the container": (
        tazpod.inspect_argv(CONFIG),
        ["docker", "inspect", "blue-lab", "tazzo/tazpod-ai:latest"],
    ),
    "the shell": (
        tazpod.shell_argv(CONFIG),
        ["docker", "exec", "-it", "-w", "/workspace", "blue-lab", "/bin/bash"],
    ),
    "the shell without a terminal": (
        tazpod.shell_argv(CONFIG, terminal=False),
        ["docker", "exec", "-i", "-w", "/workspace", "blue-lab", "/bin/bash"],
    ),
    "the shell of another user": (
        tazpod.shell_argv(OTHER_USER),
        ["docker", "exec", "-it", "-u", "dev", "-w", "/workspace", "blue-lab", "/bin/bash"],
    ),
    "a command inside": (
        tazpod.exec_argv(CONFIG, ["tazpod", "unlock"]),
        ["docker", "exec", "-it", "-e", AWS, "-w", "/workspace", "blue-lab", "bash", "-lc", "tazpod unlock"],
    ),
    "a command inside without a terminal": (
        tazpod.exec_argv(CONFIG, ["tazpod", "unlock"], terminal=False),
        ["docker", "exec", "-i", "-e", AWS, "-w", "/workspace", "blue-lab", "bash", "-lc", "tazpod unlock"],
    ),
    "a command inside for another user": (
        tazpod.exec_argv(OTHER_USER, ["true"], terminal=False),
        [
            "docker",
            "exec",
            "-i",
            "-u",
            "dev",
            "-e",
            AWS,
            "-w",
            "/workspace",
            "blue-lab",
            "bash",
            "-lc",
            "true",
        ],
    ),
    "is the vault open": (
        tazpod.is_open_argv(CONFIG),
        ["docker", "exec", "blue-lab", "mountpoint", "-q", "/home/tazpod/secrets"],
    ),
    "is the vault of another user open": (
        tazpod.is_open_argv(OTHER_USER),
        ["docker", "exec", "blue-lab", "mountpoint", "-q", "/home/dev/secrets"],
    ),
    "the guard": (
        tazpod.guard_argv(CONFIG),
        ["docker", "exec", "-d", "blue-lab", "/usr/local/bin/tazpod", "__internal_sync_daemon"],
    ),
    "docker build": (
        tazpod.build_argv(replace(CONFIG, dockerfile="a b/D", context="..")),
        ["docker", "build", "-t", IMAGE, "-f", "-", ".."],
    ),
}


@pytest.mark.parametrize("built, expected", BUILT.values(), ids=BUILT)
def test_the_argv_of(built, expected):
    assert built == expected


@pytest.mark.parametrize(
    "change, image, networks, made, expected",
    [
        ({}, IMAGE_ID, ("bridge",), True, []),
        ({}, "", ("bridge",), True, []),
        ({}, "sha256:2", (), True, [f"the image: there is a newer {IMAGE}"]),
        ({"image": "other"}, "sha256:2", (), True, [f"the image: it was made from {IMAGE}"]),
        ({"ports": ("80",), "env": (("A", None),)}, IMAGE_ID, (), True, ["the config: ports, env changed"]),
        ({"ports": ("80",)}, IMAGE_ID, (), False, []),  # another tool made it: nobody knows from what
        ({"user": "x", "container_name": "y"}, IMAGE_ID, (), False, ["the config: container_name, user"]),
        ({"ghost_mode": False}, IMAGE_ID, (), True, ["the config: features.ghost_mode changed"]),
        (
            {"mtu": "1280"},
            IMAGE_ID,
            ("bridge",),
            True,
            ["the network: its MTU is 1500, the way to the internet takes 1280"],
        ),
        ({"mtu": "1280"}, IMAGE_ID, ("tazpod-mtu-1280",), True, []),
        ({"mtu": "1400"}, IMAGE_ID, ("tazpod-mtu-1280",), True, []),
        (
            {"mtu": "1280", "docker_args": ("--network", "host")},
            IMAGE_ID,
            ("host",),
            True,
            ["the config: docker"],
        ),
        ({"mtu": "1280"}, IMAGE_ID, ("tazpod-mtu-1400",), True, ["the network: its MTU is 1400, the way to"]),
        (
            {"shell": "/bin/zsh", "identity": (), "vault_size": "1g"},
            IMAGE_ID,
            (),
            True,
            [],
        ),  # not of docker run
    ],
)
def test_in_what_a_container_is_out_of_date(*, change, image, networks, made, expected, tmp_path):
    config = replace(CONFIG, project=tmp_path, mtu="off")
    facts = {"image_id": IMAGE_ID, "networks": networks, "name": "blue-lab", "user": "tazpod"}
    container = tazpod.Container("7", "running", IMAGE, str(tmp_path), **facts)
    if made:
        tazpod.remember_container(config, container, made=tazpod.made_from(config))
    found = tazpod.drift(replace(config, **change), container, image)
    assert len(found) == len(expected)
    assert all(line.startswith(start) for line, start in zip(found, expected))


@pytest.mark.parametrize(
    "word", ["two words", "a;b", "$(id)", "it's", "--x", "", "☃", "a\nb", "\udcff'\udc80$x"]
)
def test_a_word_for_the_pod_is_one_word_there(word):
    line = tazpod.exec_argv(CONFIG, ["printf", "%s", word])[-1]
    done = tazpod.capture(["bash", "-c", line])
    assert (done.code, os.fsdecode(done.out)) == (0, word)


# -- the calls, in order.  From here on docker is played by pytest-subprocess.


NAME = "project-lab"
INSPECT = ("docker", "inspect", NAME, IMAGE)
PULL = ("docker", "pull", IMAGE)
BUILD = ("docker", "build", "-t", IMAGE, "-f", "-", ".")
START = ("docker", "start", NAME)
UNPAUSE = ("docker", "unpause", NAME)
PROOF = ("docker", "exec", "-u", "0", NAME, "test", "-e", "/workspace/.tazpod/run/.<session>")
COPY = ("docker", "cp", "-", f"{NAME}:/")
SETUP = (
    *("docker", "exec", "-u", "0", NAME),
    *("python3", "-Esc", tazpod.POD_START, "__internal_setup"),
    json.dumps({"user": "tazpod", "ghost_mode": True, "vault_binds": [".aws"], "container": "7" * 64}),
    *(".pi", ".omp", ".gemini", ".claude", ".codex", ".opencode"),
    *(".local/share/opencode", ".config/opencode", ".local/state/opencode"),
)
GUARD = ("docker", "exec", "-d", NAME, "/usr/local/bin/tazpod", "__internal_sync_daemon")
LIST = ("docker", "container", "ls", "-aq")
LOOK = "cat /proc/self/mountinfo && echo && cat /proc/[0-9]*/mountinfo 2> /dev/null || :"
MEMORY = ("docker", "exec", NAME, "sh", "-c", LOOK)
NO_MEMORY = "1 0 0:1 / / rw - overlay overlay rw\n"
IS_OPEN = ("docker", "exec", NAME, "mountpoint", "-q", "/home/tazpod/secrets")
SHELL = ("docker", "exec", "-i", "-w", "/workspace", NAME, "/bin/bash")
SHELL_IT = ("docker", "exec", "-it", "-w", "/workspace", NAME, "/bin/bash")
DIFF, KILL, STOP, REMOVE = (("docker", word, NAME) for word in ("diff", "kill", "stop", "rm"))
IMAGE_FOUND = {"Id": "sha256:" + "1" * 64, "RepoTags": [IMAGE], "RootFS": {}}
NO_CONTAINER = {"code": 1, "out": json.dumps([IMAGE_FOUND]), "err": f"Error: No such object: {NAME}\n"}
NOTHING = {
    "code": 1,
    "out": "[]\n",
    "err": f"Error: No such object: {NAME}\nError: No such object: {IMAGE}\n",
}
NOT_OPEN = {"code": 32}
UNREACHABLE = "Cannot connect to the Docker daemon at unix:///run/x.sock. Is the docker daemon running?\n"
FORBIDDEN = (
    "permission denied while trying to connect to the Docker daemon socket at unix:///run/x.sock: Get "
    '"http://%2Frun%2Fx.sock/v1.50/containers/x/json": dial unix /run/x.sock: connect: permission denied\n'
)


def pod(line: str, terminal: bool = False) -> tuple[str, ...]:
    flag = "-it" if terminal else "-i"
    return ("docker", "exec", flag, "-e", AWS, "-w", "/workspace", NAME, "bash", "-lc", line)


NATIVE = b"\x8c\x0d\x04\x09\x03\x0a" + bytes(8) + b"\xff\xd2"
LEAVE = pod("tazpod lock --leaving <session>")


def answer(status: str, project: object, **more: object) -> dict[str, str]:
    """What `docker container inspect` prints of a container that belongs to `project`."""
    env = ["PATH=/bin", *([] if project is None else [f"HOST_CWD={project}"])]
    text = {
        "Id": "7" * 64,
        "Name": f"/{NAME}",
        "State": {"Status": status},
        "Config": {"Image": IMAGE, "Env": env},
        "Image": IMAGE_FOUND["Id"],
        "Mounts": [{"Destination": "/workspace", "Source": str(project)}] if project else [],
        **more,
    }
    return {"out": json.dumps([text, IMAGE_FOUND])}


class Script:
    """Which calls docker is to get, in order, and what it answers."""

    def __init__(self, fp):
        self.fp, self.expected = fp, []

    def call(self, argv, out="", err="", code=0, **options):
        words = [self.fp.any(min=1, max=1) if "<session>" in word else word for word in argv[1:]]
        pattern = [self.fp.program(argv[0]), *words]
        self.fp.register(pattern, stdout=out, stderr=err, returncode=code, **options)
        self.expected.append(list(argv))

    def calls(self):
        made = [[Path(argv[0]).name, *argv[1:]] for argv in self.fp.calls]
        return [
            [re.sub(r"(--leaving |--session |/run/[.]?)[0-9a-f]{16,}", r"\1<session>", word) for word in argv]
            for argv in made
        ]

    def play(self, *words):
        """Run a command line; its calls must be those of the script, in order, and no other."""
        self.fp.register([self.fp.any()], occurrences=100)  # so that a call too many is seen, too
        code = tazpod.main(list(words))
        assert self.calls() == self.expected
        return code


@pytest.fixture
def script(fp, stub_path, project, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "tcp://engine.example:2375")  # whose routes are not ours
    (project.parent / "home/.ssh").mkdir(mode=0o700)
    return Script(fp)


@pytest.fixture
def installed(project):
    """The tool is in the container already."""
    record = installed_in(project)
    with tazpod.locked_file(project / ".tazpod/run" / tazpod.GUARD_LOCK, "guarding"):
        yield record


def installed_in(project, **more):
    """The record of this host that says so."""
    config = replace(load_config(project), **more)
    container = tazpod.Container("7" * 64, "running", IMAGE, str(project), name=NAME)
    tazpod.private_folder(config.run_folder)
    tazpod.remember_container(config, container, fitted=tazpod.fitting(config))
    return tazpod.project_state(project) / "containers.json"


def run_of(project):
    return ("docker", *tazpod.run_argv(Config(project, NAME), project.parent / "home")[1:])


def errors(capfd):
    """What was complained of: exactly one error, one line, and a hint on the next at most."""
    lines = capfd.readouterr().err.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("tazpod: error: "))
    error, *rest = lines[start:]
    assert len(rest) <= 1 and all(line.startswith("hint: ") for line in rest), lines
    return error.removeprefix("tazpod: error: ")


# -- up


def test_up_makes_a_missing_container(script, project, capfd):
    script.call(INSPECT, **NO_CONTAINER)
    script.call(LIST)
    script.call(run_of(project), out="7" * 64)
    script.call(INSPECT, **answer("running", project))
    script.call(PROOF)
    script.call(COPY)
    script.call(SETUP)
    script.call(GUARD)
    assert script.play("up") == 0
    out, err = capfd.readouterr()
    assert out == "" and err.splitlines() == [
        "tazpod: starting the container project-lab",
        f"tazpod: the container project-lab is running ({IMAGE})",
    ]


@pytest.mark.parametrize("status, call", [("exited", START), ("created", START), ("paused", UNPAUSE)])
def test_up_starts_a_stopped_container_and_wakes_a_paused_one(status, call, script, project):
    script.call(INSPECT, **answer(status, project))
    script.call(call)
    script.call(INSPECT, **answer("running", project))
    script.call(PROOF)
    script.call(COPY)
    script.call(SETUP)
    script.call(GUARD)
    assert script.play("up") == 0


def test_up_leaves_a_running_container_as_it_is(script, project, installed):
    script.call(INSPECT, **answer("running", project))
    script.call(GUARD)
    assert script.play("up") == 0


def test_up_from_a_subfolder_is_the_same(script, project, installed, monkeypatch):
    (project / "a/b").mkdir(parents=True)
    monkeypatch.chdir(project / "a/b")
    script.call(INSPECT, **answer("running", project))
    script.call(GUARD)
    assert script.play("up") == 0


@pytest.mark.parametrize(
    "belongs, text",
    [
        ({"project": "/usr"}, "/usr"),
        ({"project": ""}, "no TazPod project"),
        ({"project": None}, "no TazPod project"),
        ({"project": None, "Mounts": [{"Destination": "/workspace", "Source": "/usr"}]}, "/usr"),
        ({"project": "HERE", "Mounts": [{"Destination": "/workspace", "Source": "/usr"}]}, "/usr"),
        ({"project": "HERE", "Mounts": []}, "no TazPod project"),
    ],
    ids=["both", "HOST_CWD empty", "neither", "mount", "HOST_CWD is not believed", "HOST_CWD alone"],
)
@pytest.mark.parametrize("status", ["running", "exited", "paused"])
@pytest.mark.parametrize(
    "words", [[], ["up"], ["enter"], ["down"], ["down", "--discard"], ["unlock"], ["lock"]]
)
def test_a_container_of_another_folder_is_never_touched(
    *, words, status, belongs, text, script, project, capfd
):
    if belongs["project"] == "HERE":
        belongs = {**belongs, "project": project}
    script.call(INSPECT, **answer(status, **belongs))
    script.call(LIST)
    assert script.play(*words) == 1  # looks were the only calls
    assert errors(capfd) == f"the container project-lab belongs to {text}, not to {project}"


def test_a_container_without_host_cwd_that_mounts_our_folder_is_ours(script, project, installed):
    mounts = [{"Destination": "/workspace", "Source": str(project)}]
    script.call(INSPECT, **answer("running", None, Mounts=mounts))
    script.call(GUARD)
    assert script.play("up") == 0


def test_a_container_that_names_our_folder_by_a_link_is_ours(script, project, installed):
    link = project.parent / "link"
    link.symlink_to(project)
    script.call(INSPECT, **answer("running", link))
    script.call(GUARD)
    assert script.play("up") == 0


@pytest.mark.parametrize("ours, theirs", [("x-lab", "ax-lab"), ("x-lab", "x-lab-2"), ("ax-lab", "x-lab")])
def test_a_name_inside_another_name_is_told_apart(ours, theirs, script, fp, project):
    approve(project, f"container_name: {ours}\n")
    made = set()

    def inspect(name):
        """As Docker does: the whole name or nothing."""
        if name in {theirs} | made:
            text = answer("running", "/srv/other" if name == theirs else project)["out"]
            return {"stdout": text, "returncode": 0}
        return {
            "stdout": json.dumps([IMAGE_FOUND]),
            "stderr": f"Error: No such object: {name}",
            "returncode": 1,
        }

    docker = fp.program("docker")
    for name in (ours, ours):
        fp.register([docker, "inspect", name, IMAGE], **inspect(name))
        made.add(ours)
    fp.register([docker, "run", fp.any()], stdout="7" * 64)
    fp.register([docker, fp.any()], occurrences=10)
    assert tazpod.main(["up"]) == 0
    made_calls = [argv[1:] for argv in fp.calls]
    assert [argv for argv in made_calls if "ps" in argv or theirs in argv] == []
    assert [argv[3] for argv in made_calls if argv[0] == "run"] == [ours]


@pytest.mark.parametrize(
    "stderr, error",
    [
        (UNREACHABLE, "the Docker engine cannot be reached"),
        ("error during connect: Get http://x/: EOF\n", "the Docker engine cannot be reached"),
        (FORBIDDEN, "the Docker engine refuses this user"),
        ("Error response from daemon: boom\nmore\n", "docker: Error response from daemon: boom"),
        ("", "docker: status 1"),
    ],
)
@pytest.mark.parametrize("words", [[], ["up"], ["down"], ["unlock"], ["lock"], ["save"]])
def test_an_engine_that_does_not_answer_is_one_line_and_status_1(words, stderr, error, script, capfd):
    script.call(INSPECT, code=1, err=stderr)
    assert script.play(*words) == 1
    assert errors(capfd) == error


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", "nonsense", '[{"Id": 1}]', '[{"Id":"7","State":[]}]']
)
def test_an_answer_that_makes_no_sense_is_an_error(text, script, capfd):
    script.call(INSPECT, out=text)
    assert script.play("up") == 1
    assert errors(capfd) == "the engine gave an answer that makes no sense to inspect"


@pytest.mark.parametrize("status", ["dead", "removing", "restarting", "newfangled"])
def test_up_says_so_when_nothing_can_be_done(status, script, project, capfd):
    script.call(INSPECT, **answer(status, project))
    assert script.play("up") == 1
    assert errors(capfd) == f"the container project-lab is {status}"


@pytest.mark.parametrize("after", [NO_CONTAINER, answer("exited", "HERE")], ids=["gone", "exited"])
def test_a_container_that_ends_at_once_is_an_error(after, script, project, capfd):
    after = {name: str(text).replace("HERE", str(project)) for name, text in after.items()}
    script.call(INSPECT, **answer("exited", project))
    script.call(START)
    script.call(INSPECT, **{**after, "code": int(after.get("code", 0))})
    if "err" in after:
        script.call(LIST)
    assert script.play("up") == 1
    assert errors(capfd) == "the container project-lab stopped as soon as it was started"


def test_docker_run_that_fails_is_told_in_dockers_words(script, project, capfd):
    script.call(INSPECT, **NO_CONTAINER)
    script.call(LIST)
    script.call(
        run_of(project), code=125, err="docker: Error response from daemon: no space left on device.\n"
    )
    script.call(INSPECT, **NO_CONTAINER)
    script.call(LIST)
    assert script.play("up") == 1
    assert errors(capfd) == "docker: Error response from daemon: no space left on device."


def test_the_ssh_folder_is_made_before_docker_would_as_root(script, project):
    folder = project.parent / "home/.ssh"
    folder.rmdir()
    os.umask(0)
    seen = []
    script.call(INSPECT, **NO_CONTAINER)
    script.call(LIST)
    script.call(run_of(project), callback=lambda process: seen.append(stat.S_IMODE(folder.stat().st_mode)))
    for argv in (INSPECT, PROOF, COPY, SETUP, GUARD):
        script.call(argv, **(answer("running", project) if argv == INSPECT else {}))
    assert script.play("up") == 0
    assert seen == [0o700]


# -- the image


def test_an_image_that_is_not_here_is_pulled(script, project):
    script.call(INSPECT, **NOTHING)
    script.call(LIST)
    script.call(PULL)
    script.call(run_of(project))
    for argv in (INSPECT, PROOF, COPY, SETUP, GUARD):
        script.call(argv, **(answer("running", project) if argv == INSPECT else {}))
    assert script.play("up") == 0


def test_an_image_that_cannot_be_pulled_is_an_error_with_the_cure(script, capfd):
    script.call(INSPECT, **NOTHING)
    script.call(LIST)
    script.call(PULL, code=1)
    assert script.play("up") == 1
    shown = capfd.readouterr().err.splitlines()
    assert shown[-2:] == [
        f"tazpod: error: the image {IMAGE} could not be pulled",
        "hint: build it here from its Dockerfile: tazpod build",
    ]


def test_an_image_that_cannot_be_pulled_is_built_when_that_is_agreed_to(script, project):
    script.call(INSPECT, **NOTHING)
    script.call(LIST)
    script.call(PULL, code=1)
    script.call(BUILD)
    script.call(run_of(project))
    for argv in (INSPECT, PROOF, COPY, SETUP, GUARD):
        script.call(argv, **(answer("running", project) if argv == INSPECT else {}))
    assert script.play("up", "--yes") == 0


def test_build_runs_in_the_project_folder_also_from_below(script, project, monkeypatch):
    (project / "a").mkdir()
    monkeypatch.chdir(project / "a")
    seen = []
    script.call(BUILD, callback=lambda process: seen.append(process.kwargs["cwd"]))
    assert script.play("build") == 0
    assert seen == [str(project)]


def test_build_that_fails_is_status_1(script, project, capfd):
    script.call(BUILD, code=17)
    assert script.play("build") == 1
    path = project / ".tazpod/Dockerfile.ai"
    assert errors(capfd) == f"the image {IMAGE} could not be built from {path}"


def test_build_without_a_dockerfile_says_so_and_calls_nothing(script, project, capfd):
    (project / ".tazpod/Dockerfile.ai").unlink()
    assert script.play("build") == 1
    assert errors(capfd) == f"{project}/.tazpod/Dockerfile.ai: there is no such Dockerfile"


@pytest.mark.parametrize("words", [["pull", "image"], ["update"]])
def test_pull_image_and_update_are_one(words, script, project, capfd):
    script.call(PULL)
    script.call(INSPECT, **answer("running", project))
    assert script.play(*words) == 0
    assert "tazpod down, then tazpod up" in capfd.readouterr().err


def test_pull_that_fails_is_status_1(script, capfd):
    script.call(PULL, code=1)
    assert script.play("pull", "image") == 1
    assert errors(capfd) == f"the image {IMAGE} could not be pulled"


# -- the tool in the container


def test_what_is_put_into_the_container_belongs_to_root_and_can_run(script, project):
    sent = []
    script.call(INSPECT, **answer("running", project))
    script.call(PROOF)
    script.call(COPY, stdin_callable=sent.append)
    script.call(SETUP)
    script.call(GUARD)
    assert script.play("up") == 0
    with tarfile.open(fileobj=io.BytesIO(sent[0])) as archive:
        members = {info.name: info for info in archive}
        launcher = archive.extractfile("usr/local/bin/tazpod").read().decode()
        tool = archive.extractfile("opt/tazpod/tazpod.py").read()
    assert tool == (ROOT / "tazpod.py").read_bytes()
    assert {(info.uid, info.gid) for info in members.values()} == {(0, 0)}
    assert members["usr/local/bin/tazpod"].mode == 0o755
    assert {info.mode for info in members.values() if info.name.endswith(".py")} == {0o644}
    assert {"opt/tazpod/plumbum/__init__.py", "opt/tazpod/yaml/__init__.py"} <= set(members)
    assert not [name for name in members if not name.startswith(("opt/tazpod", "usr/local/bin/tazpod"))]
    assert not [name for name in members if ".." in name or name.endswith((".pyc", ".so"))]
    assert launcher.startswith("#!/bin/sh\n")
    program = re.search(r"exec python3 -Esc '(.*)' \"\$@\"", launcher)
    ast.parse(program[1])


@pytest.mark.parametrize("change", ["another container", "another tool", "nonsense", "nothing"])
def test_the_tool_is_put_in_again_only_when_container_or_tool_changed(change, script, project, installed):
    text = installed.read_text()
    if change == "nothing":
        installed.unlink()
    elif change == "another container":
        installed.write_text(text.replace("7" * 64, "8" * 64))
    elif change == "another tool":
        installed.write_text(text.replace(str(tazpod.tool_stamp()[0]), "1"))
    else:
        installed.write_text(change)
    script.call(INSPECT, **answer("running", project))
    script.call(PROOF)
    script.call(COPY)
    script.call(SETUP)
    script.call(GUARD)
    assert script.play("up") == 0
    config = load_config(project)
    assert tazpod.read_records(project)["7" * 64]["fitted"] == tazpod.fitting(config)


@pytest.mark.parametrize(
    "code, stderr",
    [
        (127, 'OCI runtime exec failed: exec: "python3": executable file not found in $PATH: unknown\n'),
        (126, 'OCI runtime exec failed: exec: "python3": executable file not found in $PATH: unknown\n'),
    ],
)
def test_an_image_without_python_is_named(code, stderr, script, project, capfd):
    script.call(INSPECT, **answer("running", project))
    script.call(PROOF)
    script.call(COPY)
    script.call(SETUP, code=code, err=stderr)
    assert script.play("up") == 127
    assert errors(capfd) == f"the image {IMAGE} has no python3, so it cannot hold the vault"


def test_a_set_up_that_fails_is_not_remembered_as_done(script, project, capfd):
    script.call(INSPECT, **answer("running", project))
    script.call(PROOF)
    script.call(COPY)
    script.call(SETUP, code=1, err="tazpod: error: no account\n")
    assert script.play("up") == 1
    assert "tazpod: error: no account\n" in capfd.readouterr().err
    assert "fitted" not in json.dumps(tazpod.read_records(project))


def test_a_copy_that_fails_is_told_in_dockers_words(script, project, capfd):
    script.call(INSPECT, **answer("running", project))
    script.call(PROOF)
    script.call(COPY, code=1, err="Error response from daemon: read-only\n")
    assert script.play("up") == 1
    said = "the tool could not be put into the container project-lab: Error response from daemon: read-only"
    assert errors(capfd) == said


# -- down


def test_down_of_an_open_vault_saves_and_locks_before_its_calls(script, project, installed):
    script.call(INSPECT, **answer("running", project))
    script.call(LIST)
    script.call(IS_OPEN)
    script.call(pod("tazpod lock"))
    script.call(MEMORY, out=NO_MEMORY)
    for argv in (DIFF, KILL, STOP, REMOVE):
        script.call(argv)
    assert script.play("down") == 0


def test_down_of_a_locked_vault_is_its_calls_only(script, project, installed):
    script.call(INSPECT, **answer("running", project))
    script.call(LIST)
    script.call(IS_OPEN, **NOT_OPEN)
    script.call(MEMORY, out=NO_MEMORY)
    for argv in (DIFF, KILL, STOP, REMOVE):
        script.call(argv)
    assert script.play("down") == 0
    assert tazpod.read_records(project) == {}


def test_down_refuses_when_saving_fails(script, project, installed, capfd):
    script.call(INSPECT, **answer("running", project))
    script.call(LIST)
    script.call(IS_OPEN)
    script.call(pod("tazpod lock"), code=1)
    assert script.play("down") == 1
    assert errors(capfd) == "the vault could not be saved and locked, so the container stays"


@pytest.mark.parametrize(
    "stderr",
    [
        "Error response from daemon: Container project-lab is paused\n",
        UNREACHABLE,
        "OCI runtime exec failed: x\n",
    ],
)
def test_down_refuses_when_it_cannot_be_told_whether_the_vault_is_open(stderr, script, project):
    script.call(INSPECT, **answer("running", project))
    script.call(LIST)
    script.call(IS_OPEN, code=1, err=stderr)
    assert script.play("down") == 1


def test_down_of_an_image_without_mountpoint_goes_on(script, project):
    script.call(INSPECT, **answer("running", project))
    script.call(LIST)
    script.call(IS_OPEN, code=126, err='exec: "mountpoint": executable file not found in $PATH: unknown\n')
    script.call(MEMORY, out=NO_MEMORY)
    for argv in (DIFF, KILL, STOP, REMOVE):
        script.call(argv)
    assert script.play("down") == 0


@pytest.mark.parametrize("lock_status", [0, 1])
def test_down_discard_goes_on_whatever_the_lock_says(lock_status, script, project):
    script.call(INSPECT, **answer("running", project))
    script.call(LIST)
    script.call(IS_OPEN)
    script.call(pod("tazpod lock --discard"), code=lock_status)
    for argv in (KILL, STOP, REMOVE):
        script.call(argv)
    assert script.play("down", "--discard") == 0


def test_down_discard_goes_on_also_when_nothing_can_be_asked(script, project):
    script.call(INSPECT, **answer("running", project))
    script.call(LIST)
    script.call(IS_OPEN, code=1, err="OCI runtime exec failed: chdir /workspace: no such file\n")
    for argv in (KILL, STOP, REMOVE):
        script.call(argv)
    assert script.play("down", "--discard") == 0


def test_down_wakes_a_paused_container_since_its_vault_may_be_open(script, project, installed):
    script.call(INSPECT, **answer("paused", project))
    script.call(LIST)
    script.call(UNPAUSE)
    script.call(IS_OPEN)
    script.call(pod("tazpod lock"))
    script.call(MEMORY, out=NO_MEMORY)
    for argv in (DIFF, KILL, STOP, REMOVE):
        script.call(argv)
    assert script.play("down") == 0


@pytest.mark.parametrize("status", ["exited", "created", "dead"])
def test_down_of_a_stopped_container_asks_nothing_inside_it(status, script, project):
    script.call(INSPECT, **answer(status, project))
    script.call(LIST)
    script.call(DIFF)
    script.call(
        KILL, code=1, err="Error response from daemon: Cannot kill container: x: Container 7 is not running\n"
    )
    script.call(STOP)
    script.call(REMOVE)
    assert script.play("down") == 0


def test_down_without_a_vault_asks_only_what_is_in_memory(script, project):
    approve(project, "features: {ghost_mode: false}\n")
    script.call(INSPECT, **answer("running", project))
    script.call(LIST)
    script.call(MEMORY, out=NO_MEMORY)
    for argv in (KILL, STOP, REMOVE):
        script.call(argv)
    assert script.play("down") == 0


@pytest.mark.parametrize("words, status", [((), 1), (("--discard",), 0)])
def test_down_keeps_what_was_written_where_the_secrets_belong(words, status, script, project, capfd):
    script.call(INSPECT, **answer("exited", project))
    script.call(LIST)
    if status:
        script.call(
            DIFF, out="C /home/tazpod\nC /home/tazpod/secrets\nA /home/tazpod/secrets/a b\nA /tmp/x\n"
        )
    else:
        for argv in (KILL, STOP, REMOVE):
            script.call(argv)
    assert script.play("down", *words) == status
    if status:
        assert errors(capfd) == (
            "/home/tazpod/secrets/a b: on the container's disk, not in the vault, so it stays"
        )


def test_down_without_a_container_is_done_already(script):
    script.call(INSPECT, **NO_CONTAINER)
    script.call(LIST)
    assert script.play("down") == 0


@pytest.mark.parametrize("failing", [KILL, STOP, REMOVE])
def test_down_stops_at_the_first_call_that_fails(failing, script, project, capfd):
    script.call(INSPECT, **answer("exited", project))
    script.call(LIST)
    script.call(DIFF)
    for argv in (KILL, STOP, REMOVE)[: (KILL, STOP, REMOVE).index(failing) + 1]:
        script.call(argv, **({"code": 1, "err": "Error: boom\n"} if argv == failing else {}))
    assert script.play("down") == 1
    assert errors(capfd) == "docker: Error: boom"


# -- enter


def warm(script, project, opened):
    script.call(INSPECT, **answer("running", project))
    script.call(IS_OPEN, **({} if opened else NOT_OPEN))


@pytest.mark.parametrize("words", [[], ["enter"], ["ssh"]])
def test_entering_an_open_vault_is_four_calls_and_gives_the_shells_status(words, script, project, installed):
    warm(script, project, opened=True)
    script.call(SHELL, code=42)
    script.call(LEAVE)
    assert script.play(*words) == 42
    kept = ["enter.lock", "guard.lock", "up.lock"]
    assert sorted(path.name for path in (project / ".tazpod/run").iterdir()) == kept


@pytest.mark.parametrize("typed, agreed", [("y\n", True), ("Yes\n", True), ("\n", False), ("n\n", False)])
def test_a_new_vault_is_offered_and_no_still_opens_the_shell(*, typed, agreed, script, project, installed):
    warm(script, project, opened=False)
    if agreed:
        script.call(pod("tazpod unlock --session <session>", terminal=True))
    script.call(SHELL_IT)
    script.call(LEAVE)
    with terminal() as person:
        person.type(typed)
        assert script.play() == 0
        assert "Start a new, empty one? [y/N]" in person.shown()


@pytest.mark.parametrize("unlock, status", [(0, 3), (1, 3), (130, 130)])
def test_the_passphrase_is_the_one_question_and_ctrl_c_there_ends_it(
    *, unlock, status, script, project, installed
):
    (project / ".tazpod/vault/vault.tar.aes").write_bytes(NATIVE)
    warm(script, project, opened=False)
    script.call(pod("tazpod unlock --session <session>", terminal=True), code=unlock)
    if unlock != 130:
        script.call(SHELL_IT, code=3)
    script.call(LEAVE)
    with terminal():
        if unlock != 130:
            assert script.play() == status
        else:
            with pytest.raises(SystemExit, match="130"):
                script.play()


def test_no_vault_asks_for_nothing(script, project, installed):
    (project / ".tazpod/vault/vault.tar.aes").write_bytes(NATIVE)
    warm(script, project, opened=False)
    script.call(SHELL_IT)
    script.call(LEAVE)
    with terminal():
        assert script.play("--no-vault") == 0


@pytest.mark.parametrize("head, terminal_for_lock", [(NATIVE, False), (bytes(16), True)], ids=["ours", "go"])
def test_leaving_a_vault_that_go_sealed_leaves_room_for_its_question(
    head, terminal_for_lock, script, project, installed
):
    (project / ".tazpod/vault/vault.tar.aes").write_bytes(head)
    warm(script, project, opened=True)
    script.call(SHELL_IT)
    script.call(pod("tazpod lock --leaving <session>", terminal=terminal_for_lock))
    with terminal():
        assert script.play() == 0


def test_without_a_terminal_the_answer_is_no_and_the_shell_opens(script, project, installed):
    warm(script, project, opened=False)
    script.call(SHELL)
    script.call(LEAVE)
    assert script.play() == 0


def test_a_failed_unlock_still_opens_the_shell(script, project, installed):
    warm(script, project, opened=False)
    script.call(pod("tazpod --yes unlock --session <session>"), code=1)
    script.call(SHELL, code=3)
    script.call(LEAVE)
    assert script.play("--yes") == 3


def test_without_ghost_mode_there_are_no_vault_steps(script, project, installed):
    approve(project, "features: {ghost_mode: false}\n")
    installed.unlink()
    installed_in(project)
    script.call(INSPECT, **answer("running", project))
    script.call(SHELL, code=5)
    assert script.play() == 5


@pytest.mark.parametrize("shell, status", [(0, 1), (7, 7)])
def test_a_lock_that_fails_is_told_and_is_never_status_0(*, shell, status, script, project, installed, capfd):
    warm(script, project, opened=True)
    script.call(SHELL, code=shell)
    script.call(LEAVE, code=1)
    script.call(INSPECT, **answer("running", project))
    script.call(("docker", "exec", NAME, "true"))
    script.call(IS_OPEN)
    assert script.play() == status
    assert errors(capfd) == "the vault was not locked"


def test_a_container_that_is_back_without_its_vault_is_left_again(script, project, installed):
    warm(script, project, opened=True)
    script.call(SHELL, code=137)
    script.call(LEAVE, code=1)
    script.call(INSPECT, **answer("running", project))
    script.call(("docker", "exec", NAME, "true"))
    script.call(IS_OPEN, **NOT_OPEN)
    script.call(LEAVE)
    assert script.play() == 137


LOST = "; what changed in the open vault after 2026-01-02 03:04:05 UTC is lost"


@pytest.mark.parametrize("lost", ["", LOST])
@pytest.mark.parametrize("now", [NO_CONTAINER, "exited"], ids=["removed", "stopped"])
def test_a_container_that_went_away_is_told(now, *, lost, script, project, installed, capfd):
    if lost:  # whoever takes it down in good order locks first
        marker = tazpod.host_vault(load_config(project)).marker
        marker.touch()
        os.utime(marker, (calendar.timegm((2026, 1, 2, 3, 4, 5)),) * 2)
    warm(script, project, opened=True)
    script.call(SHELL, code=137)
    guard = project / ".tazpod/run" / tazpod.GUARD_LOCK  # it ends with its container
    script.call(LEAVE, code=1, callback=lambda _: guard.unlink(missing_ok=True))
    script.call(INSPECT, **(answer(now, project) if now == "exited" else now))
    if now == NO_CONTAINER:
        script.call(LIST)
    assert script.play() == 137
    assert errors(capfd) == f"the container project-lab is gone{lost}"


# -- run


def run_in_pod(line, terminal=False, folder="/workspace"):
    claim = ("bash", "-c", tazpod.CLAIM, "/workspace/.tazpod/run/<session>.shell", line)
    return ("docker", "exec", "-it" if terminal else "-i", "-e", AWS, "-w", folder, NAME, *claim)


@pytest.mark.parametrize("words", [["ls", "-la"], ["--", "ls", "-la"]])
def test_run_in_a_vault_that_is_open_is_one_exec(words, script, project, installed, monkeypatch):
    (project / "a b").mkdir()
    monkeypatch.chdir(project / "a b")
    warm(script, project, opened=True)
    script.call(run_in_pod("ls -la", folder="/workspace/a b"), code=42)
    assert script.play("run", *words) == 42
    assert sorted(path.name for path in (project / ".tazpod/run").iterdir()) == ["guard.lock", "up.lock"]


def test_run_names_the_files_of_the_vault_and_docker_gets_no_value(script, project, installed):
    warm(script, project, opened=True)
    script.call((*run_in_pod("env"), "=keys/all", "A=keys/a", "B=b=c"))
    assert script.play("run", "--env", "A=keys/a", "--env-file", "keys/all", "--env", "B=b=c", "env") == 0


@pytest.mark.parametrize(
    "options",
    [
        *(
            ["--env", "A"],
            ["--env", "1=x"],
            ["--env", "HOST_CWD=x"],
            ["--env", "A="],
            ["--env", "A=/etc/passwd"],
        ),
        *(["--env-file", "../x"], ["--env-file", ".vault_pass"], ["--env", "A=a/../../x"], ["--env", "A=-x"]),
    ],
)
def test_run_gives_files_of_the_vault_and_no_others(options, project, capfd):
    assert tazpod.main(["run", *options, "--", "env"]) == tazpod.USAGE


@pytest.mark.parametrize("unlock, status", [(0, 5), (1, 1), (130, 130)])
def test_run_opens_a_locked_vault_first_and_leaves_it_after(*, unlock, status, script, project, installed):
    (project / ".tazpod/vault/vault.tar.aes").write_bytes(NATIVE)
    warm(script, project, opened=False)
    script.call(pod("tazpod unlock --session <session>", terminal=True), code=unlock)
    if not unlock:
        script.call(run_in_pod("true", terminal=True), code=5)
    script.call(LEAVE)
    with terminal():
        assert script.play("run", "true") == status


def test_run_beside_another_session_takes_only_its_own_lease_away(script, project, installed):
    with contextlib.closing(tazpod.open_session(load_config(project))) as other:
        warm(script, project, opened=True)
        script.call(run_in_pod("true"))
        assert script.play("run", "true") == 0
        assert tazpod.sessions(other.folder) == {other.id: other.file("lease")}


@pytest.mark.parametrize("ghost", [True, False])
def test_run_leaves_for_the_session_that_ended_before_it(ghost, script, project, installed):
    if not ghost:
        approve(project, "features: {ghost_mode: false}\n")
        installed.unlink()
    installed_in(project)
    other = tazpod.open_session(load_config(project))
    if ghost:
        warm(script, project, opened=True)
    else:
        script.call(INSPECT, **answer("running", project))
    script.call(run_in_pod("true"), callback=lambda _: other.close())
    if ghost:
        script.call(LEAVE)
    assert script.play("run", "true") == 0
    assert tazpod.sessions(other.folder) == {}


# -- words of the vault, typed on the host


SECRET = "correct horse ☃ battery"


def passphrase_pipe(text=SECRET + "\n"):
    read_end, write_end = os.pipe()
    os.write(write_end, text.encode())
    os.close(write_end)
    return read_end


FORWARDED = [
    (["unlock"], "tazpod unlock"),
    (["lock"], "tazpod lock"),
    (["lock", "--discard"], "tazpod lock --discard"),
    (["save"], "tazpod save"),
    (["save", "--force"], "tazpod save --force"),
    (["passwd"], "tazpod passwd"),
    (["verify"], "tazpod verify"),
    (["verify", "vault-20240101T000000"], "tazpod verify vault-20240101T000000"),
    (["restore", "a b; id"], "tazpod restore 'a b; id'"),
    (["--debug", "unlock"], "tazpod --debug unlock"),
    (["unlock", "--yes"], "tazpod --yes unlock"),
]


@pytest.mark.parametrize("words, line", FORWARDED, ids=[" ".join(words) for words, _ in FORWARDED])
@pytest.mark.parametrize("tty", [True, False], ids=["terminal", "no terminal"])
def test_a_word_of_the_vault_runs_in_the_pod_and_its_status_comes_back(
    *, tty, words, line, script, project, installed
):
    script.call(INSPECT, **answer("running", project))
    script.call(pod(line, terminal=tty), code=9)
    with terminal() if tty else contextlib.nullcontext():
        assert script.play(*words) == 9


@pytest.mark.parametrize(
    "words", [["unlock"], ["passwd"], ["verify"], ["restore", "x"]], ids=lambda words: words[0]
)
def test_the_passphrase_goes_through_standard_input_and_nowhere_else(words, script, project, installed):
    seen = {}

    def look(process):
        seen["stdin"] = os.read(process.kwargs["stdin"], 9999)
        seen["more"] = os.read(process.kwargs["stdin"], 1)
        seen["env"] = dict(process.kwargs["env"])
        seen["fds"] = process.kwargs.get("pass_fds", ())

    script.call(INSPECT, **answer("running", project))
    script.call(pod(f"tazpod {' '.join(words)} --passphrase-fd 0"), callback=look)
    fd = passphrase_pipe()
    assert script.play(*words, "--passphrase-fd", str(fd)) == 0
    os.close(fd)
    assert (seen["stdin"].decode(), seen["more"], seen["fds"]) == (SECRET, b"", ())
    assert SECRET not in repr(script.fp.calls) and SECRET not in repr(seen["env"])


def test_debug_shows_every_call_and_no_secret(script, project, installed, capfd):
    script.call(INSPECT, **answer("running", project))
    script.call(pod("tazpod --debug unlock --passphrase-fd 0"))
    fd = passphrase_pipe()
    assert script.play("unlock", "--debug", "--passphrase-fd", str(fd)) == 0
    os.close(fd)
    shown = capfd.readouterr().err
    assert "+ docker inspect project-lab " in shown and "+ docker exec -i " in shown
    assert SECRET not in shown


def test_a_bad_passphrase_is_refused_before_anything_is_started(script, capfd):
    fd = passphrase_pipe("two\nlines\n")
    assert script.play("unlock", "--passphrase-fd", str(fd)) == 2
    os.close(fd)
    assert errors(capfd) == "the passphrase has a newline or NUL in it"


@pytest.mark.parametrize("container", [NO_CONTAINER, "exited", "created"])
def test_locking_what_does_not_run_starts_nothing(container, script, project, capfd):
    script.call(INSPECT, **(container if isinstance(container, dict) else answer(container, project)))
    script.call(LIST)
    assert script.play("lock") == 0
    assert "the vault is locked already" in capfd.readouterr().err


def test_saving_what_does_not_run_is_an_error_and_starts_nothing(script, capfd):
    script.call(INSPECT, **NO_CONTAINER)
    script.call(LIST)
    assert script.play("save") == 1
    assert errors(capfd) == "the vault is locked: there is nothing to save"


@pytest.mark.parametrize("word", ["lock", "save"])
def test_a_paused_container_may_hold_an_open_vault(word, script, project, installed):
    script.call(INSPECT, **answer("paused", project))
    script.call(INSPECT, **answer("paused", project))
    script.call(UNPAUSE)
    script.call(INSPECT, **answer("running", project))
    script.call(pod(f"tazpod {word}"))
    assert script.play(word) == 0


@pytest.mark.parametrize("word", ["unlock", "lock", "save", "passwd", "verify"])
def test_without_ghost_mode_a_word_of_the_vault_is_wrong_usage(word, script, project, capfd):
    approve(project, "features: {ghost_mode: false}\n")
    script.call(INSPECT, **NO_CONTAINER)
    script.call(LIST)
    assert script.play(word) == 2
    assert errors(capfd) == "features.ghost_mode is false: this project has no vault"


def test_another_user_is_passed_to_every_exec(script, project):
    approve(project, "user: dev\n")
    script.call(INSPECT, **answer("running", project))
    script.call(PROOF)
    script.call(COPY)
    script.call([word.replace('"user": "tazpod"', '"user": "dev"') for word in SETUP])
    script.call(("docker", "exec", NAME, "mountpoint", "-q", "/home/dev/secrets"))
    script.call((*GUARD[:3], "-u", "dev", *GUARD[3:]))  # none holds its lock
    script.call(("docker", "exec", "-i", "-u", "dev", "-w", "/workspace", NAME, "/bin/bash"))
    script.call((*("docker", "exec", "-i", "-u", "dev"), *LEAVE[3:]))
    assert script.play() == 0


@pytest.mark.parametrize("name", ["a:b", "a\udcffb"])
def test_a_folder_that_docker_cannot_mount_is_wrong_usage(name, script, tmp_path, monkeypatch, capfd):
    folder = tmp_path / name
    folder.mkdir()
    tazpod.init_project(folder)
    monkeypatch.chdir(folder)
    assert script.play("up") == 2
    said = "no engine can mount a folder with a colon, or what is not UTF-8, in its name"
    assert errors(capfd).endswith(f": {said}")


@pytest.mark.parametrize("place", ["", "vault", "run"])
def test_no_link_leads_the_host_elsewhere(place, script, project, tmp_path, capfd):
    """Everything in the project is the container's to swap."""
    other, link = tmp_path / "other", project / tazpod.ENVELOPE / place
    if link.exists():
        link.rename(other)
    link.symlink_to(other, target_is_directory=True)
    other.mkdir(exist_ok=True)
    before = sorted(other.rglob("*"))
    for word in ("up", "down"):
        assert script.play(word) == 1
        assert errors(capfd) == f"{link}: is a link, not a folder"
    with pytest.raises(
        (tazpod.TazpodError, OSError), match="is a link"
    ):  # no advice to chown what lies behind it
        list(tazpod.check_files(load_config(project)))
    assert sorted(other.rglob("*")) == before


@pytest.mark.parametrize("words", [["lock"], ["down"], ["status"], ["up"]])
def test_a_container_that_this_engine_does_not_show_is_not_said_to_be_gone(words, script, project, capfd):
    lock = tazpod.private_folder(project / ".tazpod/run") / tazpod.GUARD_LOCK
    with tazpod.locked_file(lock, "guarding"):
        script.call(INSPECT, **NO_CONTAINER)
        script.call(LIST)
        assert script.play(*words) == 1
    assert "is at work in" in capfd.readouterr().err
