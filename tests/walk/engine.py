"""An engine of the walk's own, Docker or Podman, which may be killed with all that it holds."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import time
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import enginelib

TESTS = Path(__file__).resolve().parents[1]


def sh(*argv: str, check: bool = True) -> str:
    """A program of somebody else's; what it prints."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=300)
    if check and done.returncode != 0:
        raise RuntimeError(f"{argv}: {done.returncode}: {done.stderr.decode(errors='replace')}")
    return done.stdout.decode(errors="replace")


class Engine:
    """An engine that keeps all in a box, with the image of the tests from the one that was there."""

    program = ""  # with which it is driven
    uid = 0  # of whoever drives it
    address = ""  # of this host, as its containers see it; only of the one on a bridge of its own
    ours = False  # whether it is this one that is driven, and not the one that was there

    def __init__(self, box: Path, image: str) -> None:
        self.box = box
        os.environ["TAZPOD_ENGINE"] = enginelib.ENGINE = self.program
        archive = subprocess.Popen([self.program, "save", image], stdout=subprocess.PIPE)
        try:
            self.prepare()
            self.ours = True
            self.start()
            load = [self.program, "load", "-q"]
            subprocess.run(load, stdin=archive.stdout, check=True, stdout=subprocess.DEVNULL)
            archive.wait()
        except BaseException:
            self.close()
            raise

    def prepare(self) -> None:
        """From now on, whoever drives the engine by its program drives this one."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it, or start it again."""

    def names(self) -> list[str]:
        """What its containers are called."""
        raise NotImplementedError

    def state(self, name: str) -> dict[str, Any]:
        """What it says of the state of a container; {} for none."""
        raise NotImplementedError

    def unpause(self, name: str) -> None:
        """Let a container that was paused go on."""
        sh(self.program, "unpause", name, check=False)

    def processes(self) -> list[int]:
        """Its processes, without the containers' own."""
        raise NotImplementedError

    def kill(self) -> None:
        """As a crash does, or the kernel when memory is short: the containers live on, with nobody to ask."""
        self.send(signal.SIGKILL)

    def send(self, number: int) -> None:
        """Send a signal to all its processes."""
        for pid in self.processes():
            with contextlib.suppress(OSError):
                os.kill(pid, number)

    def close(self) -> None:
        """End it, with all that it has started."""
        if self.ours:
            with contextlib.suppress(Exception):
                sh(self.program, "rm", "-f", *sh(self.program, "ps", "-aq").split(), check=False)
        self.kill()
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            point = line.split()[4]
            if point.startswith(f"{self.box}/"):  # one that was killed leaves its own behind
                sh("umount", "-l", point, check=False)


class Docker(Engine):
    """A dockerd on a bridge of its own; whoever is in its group may drive it."""

    program = "docker"
    uid = 1000
    bridge = ""
    process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        self.bridge = f"walk{secrets.token_hex(4)}"
        numbers = random.SystemRandom()
        # A bridge with no address of its own takes one of its containers', and each that comes changes it.
        own = ":".join(("02", *(secrets.token_hex(1) for _ in range(5))))
        sh("ip", "link", "add", "name", self.bridge, "address", own, "type", "bridge")
        self.address = f"10.{numbers.randrange(100, 250)}.{numbers.randrange(250)}.1"
        sh("ip", "address", "add", f"{self.address}/24", "dev", self.bridge)
        sh("ip", "link", "set", self.bridge, "up")
        os.environ["DOCKER_HOST"] = f"unix://{self.box}/docker.sock"

    def start(self) -> None:
        """Start it, and wait until it answers; one that was killed may need a second try."""
        for attempt in range(5):
            with open(self.box / "dockerd.log", "ab") as log:
                self.process = subprocess.Popen(self.argv(), stdout=log, stderr=log, start_new_session=True)
            for _ in range(300):
                if self.process.poll() is not None:
                    break
                if subprocess.run(["docker", "version"], capture_output=True).returncode == 0:
                    return
                time.sleep(0.1)
            (self.box / "dockerd.pid").unlink(missing_ok=True)
            time.sleep(attempt)
        raise RuntimeError(f"the engine does not start: {self.box}/dockerd.log")

    def argv(self) -> list[str]:
        """dockerd with all that it keeps in the box."""
        return [
            *("dockerd", "--data-root", f"{self.box}/data", "--exec-root", f"{self.box}/exec"),
            *("--pidfile", f"{self.box}/dockerd.pid", "-H", f"unix://{self.box}/docker.sock"),
            *("--bridge", self.bridge, "--iptables=false", "--ip-masq=false"),
        ]

    def names(self) -> list[str]:
        containers = self.asked("/containers/json?all=1")
        return [name.lstrip("/") for container in containers for name in container["Names"]]

    def state(self, name: str) -> dict[str, Any]:
        return dict(self.asked(f"/containers/{name}/json").get("State", {}))

    def asked(self, path: str) -> Any:
        """What it answers to a question about its containers, by its socket: docker's client costs more.

        One that is killed while it is asked will be started again, and is asked once more.
        """
        deadline = time.monotonic() + 120
        while True:
            try:
                return self.asked_once(path)
            except (OSError, http.client.HTTPException):
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.2)

    def asked_once(self, path: str) -> Any:
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(300)
            channel.connect(f"{self.box}/docker.sock")
            connection = http.client.HTTPConnection("localhost")
            connection.sock = channel
            connection.request("GET", path)
            return json.load(connection.getresponse())

    def unpause(self, name: str) -> None:
        """It may hang at that, when it was just starting a program there (20.10 does): the kernel is told.

        What it then finds thawed already it would call paused for ever, so that is frozen for it once more.
        """
        client = subprocess.Popen(["docker", "unpause", name], stdout=DEVNULL, stderr=DEVNULL)
        try:
            client.wait(timeout=10)
        except subprocess.TimeoutExpired:
            for container in (self.box / "data/containers").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    self.freezer(container.name).write_text("THAWED")
            client.wait(timeout=60)
            told = self.asked(f"/containers/{name}/json")
            if told.get("State", {}).get("Paused"):
                self.freezer(told["Id"]).write_text("FROZEN")
                sh("docker", "unpause", name)

    def freezer(self, container: str) -> Path:
        """Where the kernel says whether a container is frozen, and is told (control groups of version 1)."""
        return Path(f"/sys/fs/cgroup/freezer/docker/{container}/freezer.state")

    def processes(self) -> list[int]:
        """It, and its containerd: a new engine waits for a living one for 15 seconds."""
        found = [self.process.pid] if self.process and self.process.poll() is None else []
        with contextlib.suppress(OSError, ValueError):
            found.append(int((self.box / "exec/containerd/containerd.pid").read_text()))
        return found

    def kill(self) -> None:
        super().kill()
        if self.process:
            self.process.wait()
        for name in ("exec/containerd/containerd.pid", "dockerd.pid"):
            (self.box / name).unlink(missing_ok=True)

    def close(self) -> None:
        super().close()
        sh("ip", "link", "delete", self.bridge, check=False)


class Podman(Engine):
    """A Podman of root's with a storage of its own.

    It has no process but a conmon for each container and each session, and whoever drives it.
    """

    program = "podman"

    def prepare(self) -> None:
        os.environ.pop("DOCKER_HOST", None)
        told = sh("env", f"TAZPOD_ENGINE_DIR={self.box}", f"{TESTS}/engine", "up", "podman")
        for line in told.splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            os.environ[name] = value
        # What it keeps of what runs, and its locks, would else be those of every Podman of root's.
        with open(os.environ["CONTAINERS_CONF"], "a") as settings:
            settings.write(f'tmp_dir = "{self.box}/tmp"\nlock_type = "file"\n')

    def names(self) -> list[str]:
        return sh("podman", "ps", "-a", "--format", "{{.Names}}").split()

    def state(self, name: str) -> dict[str, Any]:
        """What it says, but of a container without a process: that it is none it learns from conmon alone."""
        told = sh("podman", "container", "inspect", "--format", "{{json .State}}", name, check=False)
        state = dict(json.loads(told or "{}"))
        if state.get("Status") == "running" and not Path(f"/proc/{state['Pid']}").exists():
            state["Status"] = "exited"
        return state

    def kill(self) -> None:
        """Podman takes a conmon for a living one for as long as nobody has reaped it."""
        killed = self.processes()
        super().kill()
        enginelib.eventually(
            lambda: not any(Path(f"/proc/{pid}").exists() for pid in killed), "they are reaped", 60
        )

    def processes(self) -> list[int]:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
                if (entry / "comm").read_text() == "conmon\n" and str(self.box) in words:
                    found.append(int(entry.name))
        return found


ENGINES = {engine.program: engine for engine in (Docker, Podman)}
