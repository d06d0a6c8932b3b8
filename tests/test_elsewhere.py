"""An engine whose machine does not see the project: nothing may work on the other folder there."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import enginelib
import pytest
import s3inside
from conftest import ROOT, write_stub
from enginelib import IMAGE, PASSPHRASE, Place, Terminal, docker, eventually, unique
from s3lib import KEYS, LATEST, Cloud, md5

import tazpod

pytestmark = pytest.mark.engine
place = enginelib.place

WORDS = [(), ("up",), ("run", "id"), ("unlock",), ("save",), ("lock",), ("passwd",), ("push",)]


class Elsewhere:
    """A Docker engine that sees other folders than this machine, and has a network of its own."""

    def __init__(self, box: Path) -> None:
        self.socket, self.hidden, self.log = box / "docker.sock", box / "hidden", box / "log"
        self.hidden.mkdir()
        script = (
            'mount -t tmpfs tmpfs "$0" && exec dockerd --data-root "$1/data" --exec-root "$1/exec"'
            ' --pidfile "$1/pid" -H "unix://$1/docker.sock" --bridge=none --iptables=false'
        )
        argv = ["unshare", "--mount", "--net", "bash", "-c", script, str(self.hidden), str(box)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        """Lead the port to the engine's socket, which alone reaches out of its network."""
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(str(self.socket))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self.copy, args=(source, sink), daemon=True).start()

    @staticmethod
    def copy(source: socket.socket, sink: socket.socket) -> None:
        """Copy all that comes, to the end."""
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def docker(self, *words: str) -> str:
        """A call of docker there."""
        return docker("-H", f"unix://{self.socket}", *words)

    def end(self) -> None:
        """Stop it."""
        self.listener.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=enginelib.PATIENCE)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Elsewhere]:
    """The engine, with the image of the tests."""
    with tempfile.TemporaryDirectory(prefix="tazpod-test-", ignore_cleanup_errors=True) as box:
        engine = Elsewhere(Path(box))
        try:
            eventually(engine.socket.exists, f"the engine starts: {engine.log.read_text()}")
            saved = subprocess.Popen(["docker", "save", IMAGE], stdout=subprocess.PIPE)
            load = ["docker", "-H", f"unix://{engine.socket}", "load"]
            subprocess.run(load, stdin=saved.stdout, check=True, capture_output=True)
            yield engine
        finally:
            engine.end()


@pytest.fixture
def away(place: Place, elsewhere: Elsewhere) -> Iterator[Place]:
    """A project of this machine, in a folder that the engine sees otherwise."""
    folder = elsewhere.hidden / place.name
    folder.mkdir()
    place.folder.rmdir()
    place.folder = folder
    place.env |= {"TAZPOD_ENGINE": "docker", "DOCKER_HOST": elsewhere.address}
    yield place.init()
    left = elsewhere.docker("ps", "-aq").split()
    if left:
        elsewhere.docker("rm", "-f", *left)
    shutil.rmtree(folder)


def refused(place: Place, words: tuple[str, ...], host: str = "127.0.0.1", **env: str) -> None:
    """The word does nothing and says where to work."""
    passphrase = PASSPHRASE if words in (("unlock",), ("passwd",)) else None
    done = place.run(*words, passphrase=passphrase, **env)
    assert done.returncode == 1, (words, done)
    assert f"error: the engine's machine does not see {place.folder}:" in done.stderr
    assert f"hint: work on that machine: ssh -t {host} 'cd {place.folder} && tazpod'" in done.stderr
    assert "saved" not in done.stderr and "locked" not in done.stderr and "passphrase" not in done.stderr
    assert not list((place.folder / ".tazpod/run").glob(".*"))


def test_no_word_works_on_the_folder_of_another_machine(away: Place, elsewhere: Elsewhere) -> None:
    for words in WORDS:
        if words in (("save",), ("lock",)):
            continue  # there is no container, so they have nothing to do
        refused(away, words)
        assert elsewhere.docker("ps", "-aq") == ""
    assert not list(away.folder.rglob("vault.tar*"))


def test_a_container_that_is_there_already_is_refused_and_stays(away: Place, elsewhere: Elsewhere) -> None:
    """As version 0.5.0 has made it, perhaps with a vault in its memory."""
    mounts = ("-v", f"{away.folder}:/workspace", "-e", f"HOST_CWD={away.folder}")
    made = elsewhere.docker("run", "-d", "--name", away.name, *mounts, IMAGE, "sleep", "infinity").strip()
    for words in WORDS:
        refused(away, words)
    assert elsewhere.docker("ps", "-q", "--no-trunc").strip() == made


@pytest.mark.parametrize("by", ["variable", "config"])
def test_a_context_is_no_way_around(away: Place, elsewhere: Elsewhere, by: str) -> None:
    del away.env["DOCKER_HOST"]
    env = {"HOME": str(away.home), "PATH": os.environ["PATH"]}
    for words in (["create", "far", "--docker", f"host={elsewhere.address}"], ["use", "far"]):
        if by == "config" or words[0] == "create":
            subprocess.run(["docker", "context", *words], env=env, check=True, capture_output=True)
    refused(away, ("up",), **({"DOCKER_CONTEXT": "far"} if by == "variable" else {}))
    assert elsewhere.docker("ps", "-aq") == ""


def test_the_routes_of_this_machine_say_nothing_of_another(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    for name, host in (("far", "ssh://me@far.example:2222"), ("near", "unix:///run/x.sock")):
        argv = ["docker", "context", "create", name, "--docker", f"host={host}"]
        subprocess.run(argv, env=env, check=True, capture_output=True)
    here = tazpod.route_mtu()
    assert (tazpod.engine_address(), tazpod.engine_host()) == ("", "") and here
    for name, address, host, mtu in (
        ("near", "unix:///run/x.sock", "", here),
        ("far", "ssh://me@far.example:2222", "-p 2222 me@far.example", None),
        ("unknown", "unknown:", "", None),
    ):
        monkeypatch.setenv("DOCKER_CONTEXT", name)
        assert (tazpod.engine_address(), tazpod.engine_host(), tazpod.route_mtu()) == (address, host, mtu)
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/y.sock")  # which comes first, as docker has it
    assert (tazpod.engine_address(), tazpod.route_mtu()) == ("unix:///run/y.sock", here)


# -- the way to work on another machine


class Machine:
    """Another machine, as ssh(1) finds it: root has a home of its own there, and the same engine."""

    def __init__(self, box: Path) -> None:
        self.home, self.stubs = box / "other-home", box / "stubs"
        for folder in (self.home, self.home / ".ssh", self.stubs):
            folder.mkdir(mode=0o700)
        handed = {name: os.environ[name] for name in enginelib.HANDED_ON if name in os.environ} | KEYS
        lines = [f"export {name}={shlex.quote(value)}" for name, value in handed.items()]
        (self.home / ".bashrc").write_text("\n".join(lines) + "\n")
        key, host_key, passwd = box / "key", box / "host-key", box / "passwd"
        subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", key], check=True)
        subprocess.run(["dropbearkey", "-t", "ed25519", "-f", host_key], check=True, capture_output=True)
        shutil.copy(f"{key}.pub", self.home / ".ssh/authorized_keys")
        passwd.write_text(f"root:x:0:0:root:{self.home}:/bin/bash\n")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        options = f"-F none -i {key} -p {port} -o UserKnownHostsFile={box / 'known'}"
        options += " -o StrictHostKeyChecking=accept-new -o BatchMode=yes"
        write_stub(self.stubs, "ssh", f'exec {shutil.which("ssh")} {options} "$@"')
        script = 'mount --bind "$0" /etc/passwd && exec dropbear -F -r "$1" -p "127.0.0.1:$2" -P "$0.pid"'
        argv = ["unshare", "--mount", "bash", "-c", script, str(passwd), str(host_key), str(port)]
        env = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin"}
        self.process = subprocess.Popen(argv, env=env, stderr=subprocess.DEVNULL)
        self.env = {"PATH": f"{self.stubs}:{os.environ['PATH']}"}

    def answers(self) -> bool:
        """Whether it lets this user in."""
        argv = ["ssh", "root@127.0.0.1", "true"]
        env = {**os.environ, **self.env}
        return subprocess.run(argv, env=env, capture_output=True, check=False).returncode == 0


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """The other machine, which answers."""
    machine = Machine(tmp_path)
    try:
        eventually(machine.answers, "the other machine lets in who has the key")
        yield machine
    finally:
        machine.process.terminate()
        machine.process.wait(timeout=enginelib.PATIENCE)


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    """A storage that both machines reach, in a container beside theirs."""
    name = unique()
    docker("run", "-d", "--name", name, IMAGE, "sleep", "infinity")
    cloud = None
    try:
        cloud = Cloud(name, tmp_path / "cloud")
        yield cloud
    finally:
        if cloud:
            cloud.close()
        docker("rm", "-f", name)


def test_one_file_and_a_pull_are_the_way_to_another_machine(
    place: Place, machine: Machine, cloud: Cloud
) -> None:
    place.env |= {**KEYS, **machine.env}
    address = docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", cloud.pod).strip()
    place.init("network.mtu: 'off'", f"aws_sso.endpoint_url: http://{address}:{s3inside.GATE}")
    place.ok("unlock", passphrase=PASSPHRASE)
    place.reads("echo kept > ~/secrets/token")
    release, there = place.box / "tazpod.pyz", machine.home / "my project"
    subprocess.run([sys.executable, str(ROOT / "tests/release"), str(release)], check=True)
    words = [str(ROOT / "docs/elsewhere"), str(release), "root@127.0.0.1", there.name]
    person = Terminal(words, place.folder, place.env)
    place.terminals.append(person)
    person.answers((r"\[y/N\] ", "y"))  # what the config asks for is new to that machine
    person.answers((r"Passphrase[^\n]*: ", PASSPHRASE))
    person.sees("the vault is open")
    assert person.sh("cat ~/secrets/token") == "kept"
    assert docker("inspect", "-f", "{{range .Mounts}}{{.Source}} {{end}}", place.name).count(str(there)) >= 1
    person.sh("echo changed > ~/secrets/token")
    assert person.leaves() == 0
    assert place.is_shut()
    sealed = there / ".tazpod/vault/vault.tar.aes"
    assert cloud.objects()[LATEST] == md5(sealed.read_bytes()) != md5(place.sealed.read_bytes())
    assert (there / ".tazpod/Dockerfile.ai").is_file()  # `tazpod build` works there too


def test_an_engine_by_ssh_is_refused_as_well(away: Place, elsewhere: Elsewhere, machine: Machine) -> None:
    with (machine.home / ".bashrc").open("a") as file:
        file.write(f"export DOCKER_HOST=unix://{elsewhere.socket}\n")
    for words in (("up",), ("unlock",), ("run", "id")):
        refused(away, words, "root@127.0.0.1", DOCKER_HOST="ssh://root@127.0.0.1", **machine.env)
        assert elsewhere.docker("ps", "-aq") == ""
