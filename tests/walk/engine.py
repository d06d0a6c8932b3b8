"""A Docker engine of the walk's own, which may be killed with all that it holds."""

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


def sh(*argv: str, check: bool = True) -> str:
    """A program of somebody else's; what it prints."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=300)
    if check and done.returncode != 0:
        raise RuntimeError(f"{argv}: {done.returncode}: {done.stderr.decode(errors='replace')}")
    return done.stdout.decode(errors="replace")


class Engine:
    """The engine, on a bridge of its own, with the image of the tests from the engine that was there."""

    def __init__(self, box: Path, image: str) -> None:
        self.box = box
        self.process: subprocess.Popen[bytes] | None = None
        self.bridge = f"walk{secrets.token_hex(4)}"
        numbers = random.SystemRandom()
        sh("ip", "link", "add", "name", self.bridge, "type", "bridge")
        try:
            address = f"10.{numbers.randrange(100, 250)}.{numbers.randrange(250)}.1/24"
            sh("ip", "address", "add", address, "dev", self.bridge)
            sh("ip", "link", "set", self.bridge, "up")
            archive = subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE)
            os.environ["DOCKER_HOST"] = f"unix://{box}/docker.sock"
            self.start()
            load = ["docker", "load", "-q"]
            subprocess.run(load, stdin=archive.stdout, check=True, stdout=subprocess.DEVNULL)
            archive.wait()
        except BaseException:
            self.close()
            raise

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

    def asked(self, path: str) -> Any:
        """What it answers to a question about its containers, by its socket: docker's client costs more."""
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(300)
            channel.connect(f"{self.box}/docker.sock")
            connection = http.client.HTTPConnection("localhost")
            connection.sock = channel
            connection.request("GET", path)
            return json.load(connection.getresponse())

    def unpause(self, name: str) -> None:
        """Let a container that was paused go on.

        An engine may hang at that, when it was just starting a program in it (Docker 20.10 does): then the
        kernel is told.
        """
        found = self.asked(f"/containers/{name}/json")
        client = subprocess.Popen(["docker", "unpause", name], stdout=DEVNULL, stderr=DEVNULL)
        try:
            client.wait(timeout=10)
        except subprocess.TimeoutExpired:
            Path(f"/sys/fs/cgroup/freezer/docker/{found['Id']}/freezer.state").write_text("THAWED")
            client.wait(timeout=60)

    def kill(self) -> None:
        """As a crash does, or the kernel when memory is short: the containers live on, with nobody to ask."""
        if self.process:
            self.process.kill()
            self.process.wait()
        # Its containerd too: a new engine waits for a living one for 15 seconds.
        containerd = self.box / "exec/containerd/containerd.pid"
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(containerd.read_text()), signal.SIGKILL)
        for path in (containerd, self.box / "dockerd.pid"):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """End it, with all that it has started."""
        with contextlib.suppress(Exception):
            sh("docker", "rm", "-f", *sh("docker", "ps", "-aq").split(), check=False)
        if self.process:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=30)
        self.kill()
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            point = line.split()[4]
            if point.startswith(f"{self.box}/"):  # one that was killed leaves its own behind
                sh("umount", "-l", point, check=False)
        sh("ip", "link", "delete", self.bridge, check=False)
