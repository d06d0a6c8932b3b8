"""What a container is made from, on a real engine, and when it is out of date."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import enginelib
import pytest
from conftest import load_config
from enginelib import ENGINE, IMAGE, PASSPHRASE, SECRET, Place, docker, unique

import tazpod

place, lab, project_with_vault = enginelib.place, enginelib.lab, enginelib.project_with_vault
template = enginelib.template
pytestmark = pytest.mark.engine


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="an engine without root has no such network")


def remove_network(mtu: int) -> None:
    docker("network", "rm", tazpod.network_name(mtu), check=False)


# -- the network


def behind(mtu: int, place: Place) -> None:
    """From now on the tazpod of `place` runs on a host whose only way out is a real interface of that MTU."""
    script = f"""
        ip link add way0 mtu {mtu} type veth peer name way1 && ip addr add 192.0.2.7/24 dev way0 &&
        ip link set way0 up && ip link set way1 up && ip route add default via 192.0.2.1 && exec "$@"
    """
    place.argv = ["unshare", "--net", "bash", "-c", script, "-", *place.argv]


def mtu_inside(place: Place) -> int:
    return int(place.reads("cat /sys/class/net/eth0/mtu"))


@as_root
def test_behind_a_narrow_route_the_container_gets_its_mtu(place: Place) -> None:
    remove_network(1280)
    place.init()
    behind(1280, place)
    place.ok("up")
    assert mtu_inside(place) == 1280
    place.ok("down")
    place.ok("up")  # the network is there now, and is used again
    assert mtu_inside(place) == 1280
    place.ok("down")
    remove_network(1280)


@as_root
def test_a_container_made_before_the_route_was_narrow_is_told(place: Place) -> None:
    remove_network(1290)
    place.init("network.mtu: off").ok("up")
    assert mtu_inside(place) == 1500
    place.configure("network.mtu: auto")
    behind(1290, place)
    said = place.ok("up")
    assert "the network: its MTU is 1500, the way to the internet takes 1290; tazpod up --recreate" in said
    place.ok("up", "--recreate")
    assert mtu_inside(place) == 1290
    assert "older than" not in place.ok("up")
    place.ok("down")
    remove_network(1290)


def test_an_mtu_may_be_given(place: Place) -> None:
    remove_network(1333)
    place.init("network.mtu: 1333").ok("up")
    assert mtu_inside(place) == 1333
    place.ok("down")
    remove_network(1333)


# -- ports, mounts, environment, arguments, hooks, shell


def test_all_that_a_config_may_ask_for(place: Place) -> None:
    (place.home / "shared dir").mkdir()
    (place.home / "shared dir/file").write_text("from home")
    with socket.create_server(("127.0.0.1", 0)) as free:  # Podman is not asked to choose one
        port = free.getsockname()[1]
    place.init(
        f"ports: ['127.0.0.1:{port}:8000']",
        "mounts: ['~/shared dir:/shared:ro', './sub:/sub']",
        "env: {PLAIN: 'a b', FROM_HOST: null, LANG: C}",
        "docker.args: [--hostname, lead, --label=some=thing]",
        "hooks.post_up: 'echo up in $PWD >> /workspace/hooked; false'",
        "shell: /bin/sh",
        "network.dns: [10.9.8.7]",
    )
    (place.folder / "sub").mkdir()
    done = place.run("up", FROM_HOST="of the host", HTTPS_PROXY="http://proxy.example:3128", no_proxy="x")
    assert done.returncode == 0 and "hooks.post_up ended with status 1" in done.stderr
    assert place.reads("echo $PLAIN-$FROM_HOST-$HTTPS_PROXY-$no_proxy") == (
        "a b-of the host-http://proxy.example:3128-x"
    )
    assert place.reads("cat /shared/file; echo; hostname") == "from home\nlead"
    assert place.inside("touch /shared/x").returncode != 0
    published = f"127.0.0.1:{port}->8000/tcp"
    (row,) = [row for row in json.loads(place.ok("list", "--json")) if row["name"] == place.name]
    assert row["ports"] == [published] and published in place.ok("list")
    assert published in place.run("status").stdout.splitlines()[0]
    assert docker("inspect", "-f", "{{.HostConfig.Dns}}", place.name) == "[10.9.8.7]\n"
    place.reads("touch /sub/made")
    assert (place.folder / "sub/made").exists()
    assert (place.folder / "hooked").read_text() == "up in /workspace\n"
    docker("exec", "-d", place.name, "python3", "-m", "http.server", "-d", "/shared", "8000")
    address = f"http://127.0.0.1:{port}/file"
    enginelib.eventually(lambda: reads(address) == b"from home", "the port answers")
    place.ok("up")
    assert (place.folder / "hooked").read_text().count("up") == 1  # it was running
    docker("stop", "-t", "0", place.name)
    done = place.run(data="echo $0 $$")
    assert done.stdout == f"/bin/sh {done.stdout.split()[1]}\n"
    assert (place.folder / "hooked").read_text().count("up") == 2


def reads(address: str) -> bytes:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=5) as page:
            return bytes(page.read())
    except OSError:
        return b""


@pytest.mark.parametrize(
    "mount, complaint",
    [
        ("./nowhere:/x", "there is no such file or folder"),
        ("/tmp:/workspace", "taken by /workspace"),
        ("/tmp:/home/tazpod/secrets/sub", "taken by /home/tazpod/secrets"),
        ("/tmp:/home", "taken by /home/tazpod/secrets"),
        ("/tmp:/home/tazpod/../tazpod/.aws", "taken by /home/tazpod/.aws"),
        ("/tmp:/opt/tazpod/plumbum", "taken by /opt/tazpod"),
        ("/tmp:/home/tazpod/.ssh", "taken by /home/tazpod/.ssh"),
    ],
)
def test_a_mount_that_would_do_harm_is_refused(mount: str, complaint: str, place: Place) -> None:
    done = place.init(f"mounts: ['{mount}']").run("up")
    assert done.returncode == 2 and complaint in done.stderr
    assert docker("ps", "-aq", "--filter", f"name={place.name}") == ""


def test_a_fifo_in_the_place_of_the_host_keys_blocks_nobody(place: Place) -> None:
    os.mkfifo(place.init().folder / tazpod.KNOWN_HOSTS)
    place.ok("up")


def test_a_run_that_fails_leaves_no_container_of_the_old_config(place: Place) -> None:
    place.init("docker.args: [--runtime=none-such]")
    assert place.run("up").returncode == 1
    place.configure("docker.args: []")
    place.ok("up")
    assert json.loads(docker("inspect", place.name))[0]["HostConfig"]["Runtime"] != "none-such"


# -- git


def test_git_inside_knows_who_this_person_is_and_believes_the_workspace(place: Place) -> None:
    text = '[user]\n\tname = "A \\"quoted\\" \\\\ Näme"\n[include]\n\tpath = more\n'
    (place.home / ".gitconfig").write_text(text)
    (place.home / "more").write_text("[user]\n\temail = a@host.example\n[credential]\n\thelper = store\n")
    (place.folder / "file").write_text("x")
    place.init().ok("up")
    script = (
        "git init -q && git add file && git commit -qm first && git log --format='%an <%ae>' && "
        "git config --list"
    )
    who, *settings = place.reads(f"cd /workspace && {script}").splitlines()
    assert who == 'A "quoted" \\ Näme <a@host.example>'
    assert "safe.directory=/workspace" in settings
    assert not [line for line in settings if line.startswith("credential")]
    assert place.reads("sudo git -C /workspace log --format=%s") == "first"
    place.reads("git config --global user.email other@host.example")  # the container's own stands above
    assert place.reads("git config user.email") == "other@host.example"


def make_worktree(place: Place, *options: str) -> Path:
    """Let the project be a git worktree of a repository beside it, whose folder is given."""
    settings = ["-c", "user.name=n", "-c", "user.email=e@host.example", *options]
    git = ["git", *settings, "-C", str(place.box / "repo")]
    subprocess.run(["git", "init", "-q", place.box / "repo"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    for folder in (place.folder, place.box / "other"):
        subprocess.run([*git, "worktree", "add", "-q", folder], check=True)
    return place.box / "repo/.git"


COMMIT = (
    "cd /workspace && git add .tazpod/config.yaml && git -c user.name=n -c user.email=e commit -qm inside"
)


def test_git_works_in_a_worktree_when_its_repository_was_approved(place: Place) -> None:
    common = make_worktree(place)
    assert f"{common} was not approved: tazpod trust" in place.init().ok("up")
    assert place.inside("git -C /workspace status").returncode != 0
    assert f'git worktree: "" -> "{common}"' in place.ok("trust", "--show")
    place.ok("trust")
    assert f"the git worktree: {common} is not mounted" in place.ok("up")
    place.ok("up", "--recreate")
    place.reads(f"{COMMIT} && git branch made && git branch -d made")
    log = ["git", "-C", place.box / "repo", "log", "--format=%s", "project"]
    assert subprocess.run(log, capture_output=True, text=True).stdout == "inside\nfirst\n"
    # What the host has of other worktrees, which are not to be seen inside, is no litter.
    place.inside("git -C /workspace worktree prune")
    for folder in (place.folder, place.box / "other"):
        assert subprocess.run(["git", "-C", folder, "status"], capture_output=True).returncode == 0
    assert place.reads("cd /workspace && git config gc.auto && git worktree list").startswith("0\n")
    docker("stop", "-t", "0", place.name)
    shutil.rmtree(place.folder / ".tazpod/run")
    assert "git" not in place.ok("up")
    assert place.reads("git -C /workspace log --format=%s") == "inside\nfirst"


def test_on_a_terminal_the_repository_of_a_worktree_is_asked_for(place: Place) -> None:
    common = make_worktree(place)
    for answer in ("n", "y"):
        person = place.init().terminal("up", "--recreate")
        person.answers((rf"Mount {common}, .* \[y/N\] ", answer))
        assert person.ends() == 0
        assert (place.inside("git -C /workspace status").returncode == 0) is (answer == "y")
        place.ok("up")


def test_a_worktree_that_a_program_inside_turns_to_another_repository_does_not_get_it(place: Place) -> None:
    common = make_worktree(place)
    place.init().ok("trust")
    place.ok("up")
    link = place.folder / ".git"
    told = link.read_text()
    outside = place.box / "outside"
    shutil.copytree(place.box / "repo", outside)
    place.reads(f"sed -i s:{common}:{outside}/.git: /workspace/.git")
    assert f"the git worktree: {outside}/.git is not mounted" in place.ok("up")
    done = place.run("up", "--recreate")
    assert f"{outside}/.git was not approved" in done.stderr and "/outside" not in docker(
        "inspect", place.name
    )
    (outside / ".git/worktrees/project/gitdir").write_text("/nowhere/.git\n")
    assert "does not name this project" in place.ok("up")
    link.write_text(told)
    assert "/repo/.git is not mounted" in place.ok("up")


# -- out of date


def test_what_the_config_changed_since_is_told_at_entry_and_mended(lab: Place) -> None:
    lab.ok("unlock", passphrase=PASSPHRASE)
    lab.reads("echo more > ~/secrets/more")
    lab.configure("env: {ADDED: yes}")
    lab.configure("ports: []")
    try:
        done = lab.run(data="true")
        assert "the container is older than the config: env changed; tazpod up --recreate" in done.stderr
        lab.ok("unlock", passphrase=PASSPHRASE)
        lab.reads("echo most > ~/secrets/most")
        said = lab.ok("up", "--recreate")
        assert "saved (" in said and "older than" not in said
        assert lab.reads("echo $ADDED") == "true"
        lab.ok("unlock", passphrase=PASSPHRASE)
        assert lab.reads("cat ~/secrets/kept ~/secrets/more ~/secrets/most").split() == [
            SECRET,
            "more",
            "most",
        ]
    finally:
        lab.configure("env: {}")
        lab.ok("up", "--recreate")


def test_a_newer_image_and_another_one_are_told(place: Place) -> None:
    tag = place.build(f"FROM {IMAGE}\nLABEL build=1\n")
    place.init()
    place.configure(f"image: {tag}")
    assert "older than" not in place.ok("up")
    docker("build", "-t", tag, "-", data=f"FROM {IMAGE}\nLABEL build=2\n".encode())
    assert f"older than the image: there is a newer {tag};" in place.ok("up")
    place.configure(f"image: {IMAGE}")
    assert re.search(rf"older than the image: it was made from \S*{tag};", place.ok("up"))
    place.ok("up", "--recreate")
    assert "older than" not in place.ok("up")
    assert docker("inspect", "-f", "{{.Config.Image}}", place.name).strip().endswith(IMAGE)


def test_recreating_refuses_when_the_vault_cannot_be_saved(lab: Place) -> None:
    lab.ok("unlock", passphrase=PASSPHRASE)
    lab.reads("rm ~/secrets/.vault_pass; echo unsaved > ~/secrets/new")
    made = docker("inspect", "-f", "{{.Id}}", lab.name)
    done = lab.run("up", "--recreate")
    assert done.returncode == 1 and "so the container stays" in done.stderr
    assert docker("inspect", "-f", "{{.Id}}", lab.name) == made
    assert lab.reads("cat ~/secrets/new") == "unsaved"


LIAR = f"""
FROM {IMAGE}
USER root
RUN printf '#!/bin/sh\\nsudo umount /home/tazpod/secrets\\n' > /usr/local/bin/tazpod \\
 && chmod 755 /usr/local/bin/tazpod
USER tazpod
"""


@pytest.mark.parametrize("words", [["down"], ["up", "--recreate"]], ids=lambda words: words[0])
def test_a_vault_that_another_tazpod_opened_is_locked_by_ours(words: list[str], place: Place) -> None:
    image = place.build(LIAR)
    place.init().run_by_hand("--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined", image=image)
    place.reads(
        "sudo mount -t tmpfs -o mode=0700,uid=$(id -u) tmpfs ~/secrets && echo precious > ~/secrets/x"
    )
    place.reads(f"printf %s '{PASSPHRASE}' > ~/secrets/.vault_pass")
    place.ok(*words)
    place.ok("unlock", passphrase=PASSPHRASE)
    assert place.reads("cat ~/secrets/x") == "precious"


def test_recreating_with_a_config_that_cannot_be_leaves_the_container(lab: Place) -> None:
    made = docker("inspect", "-f", "{{.Id}}", lab.name)
    lab.configure("mounts: ['./nowhere:/x']")
    assert lab.run("up", "--recreate").returncode == 2
    assert docker("inspect", "-f", "{{.Id}}", lab.name) == made
    lab.configure("mounts: []")


def test_recreating_under_a_name_that_is_taken_leaves_the_vault_open(place: Place) -> None:
    place.init().ok("unlock", passphrase=PASSPHRASE)
    for name, edited in ((f"{place.name}-old", False), (f"{place.name}-new", True)):
        if edited:
            place.configure(f"container_name: {name}")
        docker("create", "--name", name, IMAGE)
        try:
            refused = place.run("up", "--recreate")
        finally:
            docker("rm", name)
        assert refused.returncode == 1 and f"there is a container {name} already" in refused.stderr
        assert place.is_open()
    place.configure(f"container_name: {place.name}")
    place.ok("down")


@pytest.mark.parametrize("fault", ["port", "image", "runtime"])
def test_recreating_keeps_the_container_until_the_engine_has_taken_the_new_one(
    fault: str, place: Place
) -> None:
    place.init().ok("up")
    made = docker("inspect", "-f", "{{.Id}}", place.name)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        faults = {
            "port": f"ports: ['127.0.0.1:{taken.getsockname()[1]}:80']",
            "image": "image: nowhere.example/none-such:1",
            "runtime": "docker.args: [--runtime=none-such]",
        }
        place.configure(faults[fault])
        done = place.run("up", "--recreate")
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert docker("inspect", "-f", "{{.Id}} {{.State.Status}}", place.name) == f"{made.strip()} running\n"
        names = docker("ps", "-a", "--filter", f"name={place.name}", "--format", "{{.Names}}")
        assert names == f"{place.name}\n"  # and nothing is left of the other
    place.configure("docker.args: []" if fault == "runtime" else "ports: []")
    place.configure(f"image: {IMAGE}")
    place.ok("up", "--recreate")
    assert docker("inspect", "-f", "{{.Id}}", place.name) != made
    assert docker("ps", "-aq", "--filter", f"name={place.name}-old") == ""


def test_of_a_project_that_was_moved_the_way_on_is_told_and_leads_on(lab: Place) -> None:
    lab.ok("unlock", passphrase=PASSPHRASE)
    lab.reads("echo more > ~/secrets/more")
    before, lab.folder = lab.folder, lab.folder.with_name("moved")
    before.rename(lab.folder)
    try:
        lab.ok("trust")  # what was approved was another folder's
        for words in (["status"], ["up"], ["--pod", lab.name, "down"]):
            done = lab.run(*words)
            assert f"the project of {lab.name}" in done.stderr and str(before) in done.stderr
            hint = done.stderr.rpartition("hint: if it was moved: ")[2]
            assert hint == f"{ENGINE} exec -u tazpod {lab.name} tazpod lock, then {ENGINE} rm -f {lab.name}\n"
        for command in hint.strip().split(", then "):
            subprocess.run(command.split(), check=True)
        lab.ok("unlock", passphrase=PASSPHRASE)
        assert lab.reads("cat ~/secrets/more") == "more"
    finally:
        docker("rm", "-f", lab.name, check=False)
        lab.folder.rename(before)
        lab.folder = before
        lab.ok("up")


# -- names


def test_projects_in_folders_of_one_name_live_side_by_side(tmp_path: Path) -> None:
    folder = unique()
    places = []
    for parent in ("one", "two"):
        (tmp_path / parent).mkdir()
        places.append(Place(tmp_path / parent, folder))
    for place in places:
        place.env["XDG_STATE_HOME"] = str(tmp_path / "state")
        place.ok("init", "--image", IMAGE)
        place.name = load_config(place.folder).container_name
    try:
        assert [place.name for place in places] == [f"{folder}-lab", f"two-{folder}-lab"]
        for place in places:
            place.ok("up")
            assert place.reads("echo $HOST_CWD") == str(place.folder)
    finally:
        for place in places:
            place.clean_up()


# -- keys


def test_ctrl_p_reaches_the_shell_at_once(lab: Place) -> None:
    person = lab.enter()
    person.sh("stty -icanon -echo min 1; true")
    person.types("od -An -tx1 -N1; echo rea''ding >/dev/null")
    person.child.send("\x10")
    person.sees("10\r\n")
    assert person.leaves() == 0


@pytest.mark.skipif(ENGINE == "podman", reason="a setting of the docker command")
def test_whoever_set_keys_to_detach_keeps_them(lab: Place) -> None:
    folder = lab.home / ".docker"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"detachKeys": "ctrl-x,x"}')
    try:
        person = lab.enter()
        person.child.send("\x18x")
        person.sees("read escape sequence")
        person.ends()
    finally:
        (folder / "config.json").unlink()
        subprocess.run([*lab.argv, "lock", "--discard"], cwd=lab.folder, env=lab.env, check=False)


# A `docker` that puts a link in the place of a folder while the engine looks, and takes it away after.
SWAPPING = """#!/bin/sh
case " $* " in *" run -d "* | *" start "*) ;; *) exec {real} "$@" ;; esac
mv {data} {data}.aside && ln -s {outside} {data}
{real} "$@"
status=$?
rm {data} && mv {data}.aside {data}
exit $status
"""
ELSE = "the container has something else than the project's"


@pytest.fixture
def outside(place: Place) -> Iterator[Path]:
    """A folder of the host with a key in it; beside it lies the project, with a folder `data`."""
    outside = place.box / "outside"
    outside.mkdir()
    (outside / "key").write_text("a key of the host")
    (place.folder / "data").mkdir()
    yield outside
    subprocess.run(["umount", "-q", place.box / "bound"])


def mounting(way: str, place: Place) -> str:
    """The setting that mounts that folder at /data."""
    if way == "another mount":
        (place.box / "bound").mkdir()
        subprocess.run(["mount", "--bind", place.folder, place.box / "bound"], check=True)
        return f'mounts: ["{place.box}/bound/data:/data"]'
    if way == "another path":
        (place.box / "alias").symlink_to(place.folder)
        return f'mounts: ["{place.box}/alias/data:/data"]'
    if way == "docker.args":
        return f'docker.args: ["-v", "{place.folder}/data:/data"]'
    return 'mounts: ["./data:/var/run/data"]'  # where the image has a link


def put_link(place: Place, outside: Path) -> None:
    (place.folder / "data").rename(place.folder / "aside")
    (place.folder / "data").symlink_to(outside)


def take_link_away(place: Place) -> None:
    (place.folder / "data").unlink()
    (place.folder / "aside").rename(place.folder / "data")


def restart_with_link(place: Place, outside: Path) -> None:
    """Let the engine start the container while a link lies in the place of the folder."""
    put_link(place, outside)
    docker("restart", "-t", "0", place.name)
    take_link_away(place)


@pytest.mark.parametrize(
    "way", ["mounts", "another path", pytest.param("another mount", marks=as_root), "docker.args"]
)
def test_a_mount_of_the_project_that_is_exchanged_for_a_link_ends_the_container(
    place: Place, way: str, outside: Path
) -> None:
    place.init(mounting(way, place))
    fakes = place.box / "fakes"
    fakes.mkdir()
    real = shutil.which(ENGINE)
    (fakes / ENGINE).write_text(SWAPPING.format(real=real, data=place.folder / "data", outside=outside))
    (fakes / ENGINE).chmod(0o755)
    swapped = {"PATH": f"{fakes}:{os.environ['PATH']}"}
    refused = place.run("up", **swapped)
    assert refused.returncode == 1 and ELSE in refused.stderr
    assert place.name not in docker("ps", "-a", "--format", "{{.Names}}").split()
    place.ok("up")
    assert "key" not in place.reads("ls /data /var/run/data 2> /dev/null || :")
    docker("stop", "-t", "0", place.name)
    refused = place.run("up", **swapped)
    assert refused.returncode == 1 and ELSE in refused.stderr
    assert place.name not in docker("ps", "--format", "{{.Names}}").split()
    place.ok("up")
    refused = place.run("up", "--recreate", **swapped)
    assert refused.returncode == 1 and ELSE in refused.stderr
    assert "key" not in place.inside("ls /data /var/run/data").stdout
    docker("stop", "-t", "0", place.name)
    put_link(place, outside)
    refused = place.run("up")  # nothing is started
    assert refused.returncode == 2 and "leads out of the project" in refused.stderr
    take_link_away(place)
    place.ok("down")


@pytest.mark.parametrize("part", [".", "worktrees/project"])
def test_a_repository_that_is_exchanged_for_a_link_ends_the_container(place: Place, part: str) -> None:
    """Be it for the moment in which the engine looks, or left so while the container stands still."""
    common = make_worktree(place)
    place.init().ok("trust")
    data, outside, fakes = common / part, place.box / "outside", place.box / "fakes"
    shutil.copytree(data, outside)
    fakes.mkdir()
    (fakes / ENGINE).write_text(SWAPPING.format(real=shutil.which(ENGINE), data=data, outside=outside))
    (fakes / ENGINE).chmod(0o755)
    refused = place.run("up", PATH=f"{fakes}:{os.environ['PATH']}")
    assert refused.returncode == 1 and ELSE in refused.stderr
    assert place.name not in docker("ps", "-a", "--format", "{{.Names}}").split()
    place.ok("up")
    docker("stop", "-t", "0", place.name)
    data.rename(place.box / "aside")
    data.symlink_to(outside)
    refused = place.run("up")
    assert refused.returncode == 1 and (ELSE if part == "." else f"leads out of {common}") in refused.stderr
    assert place.name not in docker("ps", "--format", "{{.Names}}").split()


def test_a_container_that_somebody_else_starts_with_another_mount_is_not_entered(
    place: Place, outside: Path
) -> None:
    place.init(mounting("mounts", place)).ok("up")
    restart_with_link(place, outside)
    refused = place.run("run", "true")
    assert refused.returncode == 1 and ELSE in refused.stderr
    place.ok("down")


@pytest.mark.parametrize("real", ["new", "real"])  # a place of its own, or that of another mount
def test_a_link_in_the_container_does_not_hide_an_exchanged_mount(
    place: Place, outside: Path, real: str
) -> None:
    (place.box / "cache").mkdir()
    place.init(f'mounts: ["./data:/data", "{place.box}/cache:/real"]').ok("up")
    hide = f"umount /data && rmdir /data && mkdir -p /{real} && ln -s /{real} /data"
    assert place.inside(hide, user="0").returncode == 0
    docker("stop", "-t", "0", place.name)
    if real == "new":  # an image may have such a link
        place.ok("up")
        assert "key" not in place.reads(f"ls /{real}")
    restart_with_link(place, outside)
    refused = place.run("run", "cat", f"/{real}/key")
    assert refused.returncode == 1 and ELSE in refused.stderr
    place.ok("down")


@pytest.mark.skipif(ENGINE == "podman", reason="where Docker keeps what it needs for a container")
@pytest.mark.parametrize("name", ["tini", "the container's"])
def test_no_name_of_the_engines_hides_an_exchanged_mount(place: Place, outside: Path, name: str) -> None:
    place.init('mounts: ["./data:/opt/a/data"]').ok("up")
    hide = "mv /opt/a /opt/b && mkdir -p /opt/a /real && ln -s /real /opt/a/data"
    assert place.inside(hide, user="0").returncode == 0
    target = outside.with_name(name)
    outside.rename(target)
    if name != "tini":
        root = docker("info", "--format", "{{.DockerRootDir}}").strip()
        target = Path(root, "containers", docker("inspect", "-f", "{{.Id}}", place.name).strip())
    docker("stop", "-t", "0", place.name)
    restart_with_link(place, target)
    refused = place.run("run", "true")
    assert refused.returncode == 1 and ELSE in refused.stderr
    place.ok("down")


@as_root
def test_memory_of_the_host_in_place_of_a_mount_of_the_project_is_no_memory_of_the_vault(
    place: Place, outside: Path
) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", outside], check=True)
    try:
        place.init('mounts: ["./data:/data"]').ok("up")
        restart_with_link(place, outside)
        refused = place.run("run", "true")
        assert refused.returncode == 1 and ELSE in refused.stderr
        place.ok("down")
    finally:
        subprocess.run(["umount", "-l", outside], check=True)


@as_root
def test_a_container_that_has_left_its_control_groups_is_looked_into_all_the_same(
    place: Place, outside: Path
) -> None:
    place.init('mounts: ["./data:/data"]').ok("up")
    restart_with_link(place, outside)
    pid = docker("inspect", "-f", "{{.State.Pid}}", place.name).strip()
    groups = Path(f"/proc/{pid}/cgroup").read_text()
    for tree in {Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/")}:
        with contextlib.suppress(OSError):
            (tree / "cgroup.procs").write_text(pid)
    assert Path(f"/proc/{pid}/cgroup").read_text() != groups
    refused = place.run("run", "true")
    assert refused.returncode == 1 and ELSE in refused.stderr
    place.ok("down")


def test_no_volume_of_docker_lies_in_the_project(place: Place, outside: Path) -> None:
    options = ("type=none", "o=bind", f"device={place.folder}/data")
    words = ",".join(("type=volume", "target=/data", *(f"volume-opt={option}" for option in options)))
    place.init(f'docker.args: ["--mount", "{words}"]')
    refused = place.run("up")
    assert refused.returncode == 2 and "no volume can lie in the project" in refused.stderr


def test_a_project_that_was_moved_and_another_put_in_its_place_is_told_apart(place: Place) -> None:
    place.init()
    place.ok("unlock", passphrase=PASSPHRASE)
    moved = place.folder.with_name("moved")
    place.folder.rename(moved)
    shutil.copytree(moved, place.folder)
    for word in ("save", "lock", "down", "status", "up"):
        refused = place.run(word)
        assert refused.returncode == 1 and "that one was moved" in refused.stderr, word
    shutil.rmtree(place.folder)
    moved.rename(place.folder)
    assert "saved" in place.ok("save", "--force")
    place.ok("down")


def test_a_container_whose_set_up_was_cut_off_is_not_called_another_version(place: Place) -> None:
    place.init().run_by_hand()
    done = place.run("status")
    assert done.returncode == 1
    assert "could not be asked: it was never set up to the end from here" in done.stderr
    assert "hint: tazpod up" in done.stderr


@as_root
def test_a_project_in_memory_may_mount_what_is_its_own(place: Place) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place.folder], check=True)
    try:
        (place.folder / "data").mkdir()
        (place.folder / "data/file").write_text("its own")
        place.init('mounts: ["./data:/data"]').ok("up")
        assert place.reads("cat /data/file") == "its own"
        place.ok("run", "true")
        place.ok("down")
    finally:
        subprocess.run(["umount", "-l", place.folder], check=True)


def test_a_mount_that_went_with_its_place_on_the_host_is_no_exchange(place: Place) -> None:
    for name in ("da ta/sub", "x"):
        (place.folder / name).mkdir(parents=True)
    place.init('mounts: ["./da ta:/data", "./x:/data/sub"]', 'docker.args: ["--init"]').ok("up")
    shutil.rmtree(place.folder / "da ta")
    (place.folder / "da ta").mkdir()
    place.ok("run", "true")
    place.ok("down")


def test_a_mount_from_outside_through_a_link_of_the_image_is_no_exchange(place: Place) -> None:
    for name in ("run", "da/sub", "x"):
        (place.folder / name).mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place.box / "s.sock"))
    mounts = ("./run:/var/run/app", "./da:/data", "./x:/data/sub", f"{place.box}/s.sock:/var/run/s.sock")
    place.init(f"mounts: {json.dumps(mounts)}").ok("up")
    made = "mount -t tmpfs t /mnt && cd /mnt && mkdir a b w o && mount --bind /opt /srv && "
    made += "mount -t overlay o -o lowerdir=a,upperdir=b,workdir=w o"
    assert place.inside(made, user="0").returncode == 0
    shutil.rmtree(place.folder / "da")  # and what lay in it goes with it
    (place.folder / "da").mkdir()
    place.ok("run", "true")
    place.ok("down")
