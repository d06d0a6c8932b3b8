"""What runs in the container of the storage tests: a quick `aws`, a gate before the store, machines.

Started by s3lib; one JSON request a line on standard input, one answer a line on standard output.  `aws`
is the image's real one, run by a process that has it imported already: a quarter of a start's time.
"""

from __future__ import annotations

import array
import http.client
import http.server
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

BENCH = Path("/bench")
STORE, GATE = 8333, 8300
KEYS = {"AWS_ACCESS_KEY_ID": "AKTEST", "AWS_SECRET_ACCESS_KEY": "SKTEST"}
FAULT = {"call": 0, "operation": "nothing", "do": "nothing"}
SOCKET = str(BENCH / "aws.sock")

# What stands on PATH as `aws`.  It counts its calls, notes each, and does what FAULT asks for at one.
AWS = r"""#!/usr/bin/python3 -SI
import array, json, os, signal, socket, sys, time

def real():
    home = json.loads(os.environ["BENCH"])
    if home["plain"]:
        return os.spawnv(os.P_WAIT, "/usr/bin/aws", ["aws", *sys.argv[1:]])
    fds = [0, 1, 2, *sorted(int(n) for n in os.listdir("/proc/self/fd") if int(n) > 2)]
    fds = [fd for fd in fds if os.path.exists(f"/proc/self/fd/{fd}")]
    with socket.socket(socket.AF_UNIX) as server:
        server.connect("/bench/aws.sock")
        words = {"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(), "fds": fds}
        data = json.dumps(words).encode()
        rights = array.array("i", fds)
        head = len(data).to_bytes(4, "big")
        server.sendmsg([head], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        server.sendall(data)
        answer = server.recv(4)
        return int.from_bytes(answer, "big") if len(answer) == 4 else 255

bench = json.loads(os.environ["BENCH"])
with open(bench["calls"], "a+") as file:
    file.seek(0)
    number = len(file.readlines()) + 1
    file.write(json.dumps({"argv": sys.argv[1:], "env": dict(os.environ)}) + "\n")
fault = bench["fault"]
here = fault.get("call") == number or fault.get("operation") in sys.argv
if here and fault["do"] == "pause":
    open(fault["path"], "w").close()
    while os.path.exists(fault["path"]):
        time.sleep(0.01)
refused = set(fault.get("refuse", ())) & set(sys.argv)
if refused:  # as 2.9.19 does
    print(f"\nUnknown options: {', '.join(sorted(refused))}, *", file=sys.stderr)
    sys.exit(252)
if here and fault["do"] == "kill before":
    os.kill(os.getppid(), signal.SIGKILL)
    sys.exit(1)
if here and fault["do"] == "say":
    out, err = os.open(os.devnull, os.O_RDWR), os.dup(2)
    os.dup2(out, 1), os.dup2(out, 2)
    real()
    os.dup2(err, 2)
    print(fault["text"], file=sys.stderr)
    sys.exit(254)
status = real()
if here and fault["do"] == "kill after":
    os.kill(os.getppid(), signal.SIGKILL)
sys.exit(status)
"""


# -- the quick aws


def serve_aws(address: str = SOCKET) -> None:
    """Fork for every call; the child becomes the caller: its words, environment, descriptors."""
    import awscli.clidriver

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen(64)
        while True:
            caller, _ = server.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                server.close()
                be_aws(caller, awscli.clidriver.main)
            caller.close()


def be_aws(caller: socket.socket, main: Any) -> None:
    """One call of aws, in a process of its own."""
    code = 255
    try:
        space = socket.CMSG_SPACE(64 * array.array("i").itemsize)
        head, rights, _, _ = caller.recvmsg(4, space)
        if not head:
            return  # somebody looked whether this is ready
        got = array.array("i")
        got.frombytes(rights[0][2])
        size, data = struct.unpack(">I", head)[0], b""
        while len(data) < size:
            data += caller.recv(size - len(data))
        words = json.loads(data)
        high = [os.dup(fd) for fd in got]
        caller_fd = os.dup(caller.fileno())
        assert not set(words["fds"]) & {*high, caller_fd}, "descriptors overlap"
        threading.Thread(target=end_with, args=(caller_fd,), daemon=True).start()
        for fd, number in zip(high, words["fds"]):
            os.dup2(fd, number)
            os.set_inheritable(number, True)
        data_path = os.environ["AWS_DATA_PATH"]  # set when awscli was imported
        os.environ.clear()
        os.environ.update({**words["env"], "AWS_DATA_PATH": data_path})
        os.chdir(words["cwd"])
        sys.argv = ["aws", *words["argv"]]
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        try:
            code = main()
        except SystemExit as end:
            code = int(end.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
        caller = socket.socket(fileno=caller_fd)
        caller.sendall(int(code).to_bytes(4, "big"))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def end_with(caller: int) -> None:
    """End this call when its caller is killed, as the caller itself would have."""
    os.read(caller, 1)
    os._exit(1)


# -- the gate


class Gate(http.server.BaseHTTPRequestHandler):
    """Hands every request on to the store, unless a rule says otherwise; counts them all."""

    protocol_version = "HTTP/1.1"
    rules: ClassVar[list[dict[str, Any]]] = []
    log: ClassVar[list[dict[str, Any]]] = []
    store: ClassVar[tuple[str, int]] = ("127.0.0.1", STORE)

    def control(self) -> None:
        if self.command == "PUT":
            body = self.rfile.read(int(self.headers["Content-Length"]))
            Gate.rules, Gate.log = json.loads(body), []
        self.answer(200, json.dumps(Gate.log).encode())

    def answer(self, code: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response_only(code)
        for name, value in (headers or {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reset(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def rule(self) -> dict[str, Any]:
        for rule in Gate.rules:
            fits = self.command in rule["method"].split("|") and rule.get("path", "") in self.path
            if fits and rule.get("times", 1) > 0:
                rule["times"] = rule.get("times", 1) - 1
                return rule
        return {}

    def handle_one(self) -> None:
        if self.path == "/control":
            return self.control()
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        note = {"method": self.command, "path": self.path, "bytes": size, "status": 0}
        note["told"] = "\n".join(f"{name}: {value}" for name, value in self.headers.items())
        Gate.log.append(note)
        rule = self.rule()
        do = note["done"] = rule.get("do", "")
        if do == "hang":
            self.connection.settimeout(30)
            self.connection.recv(1)
            self.close_connection = True
            return None
        if do == "reset":
            return self.reset()
        while do == "hold" and rule in Gate.rules:
            time.sleep(0.01)
        if do == "answer":
            note["status"] = rule["status"]
            text = rule.get("text", "").encode()
            return self.answer(
                rule["status"], text, {"Content-Length": str(len(text)), **rule.get("headers", {})}
            )
        store = http.client.HTTPConnection(*Gate.store, timeout=30)
        path, hidden = self.path, ["expect"]
        if do == "serve another":  # which anybody may read: the signature is for the one that was asked for
            path = rule["another"]
            hidden += ["authorization", "x-amz-date", "x-amz-content-sha256"]
        store.putrequest(self.command, path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in hidden:
                store.putheader(name, value)
        store.endheaders(body)
        reply = store.getresponse()
        data = reply.read()
        note["status"] = reply.status
        if do == "lose the answer":
            return self.reset()
        dropped = ("transfer-encoding", "connection", "content-length")
        headers = {name: value for name, value in reply.getheaders() if name.lower() not in dropped}
        length = reply.getheader("Content-Length") if self.command == "HEAD" else None
        headers["Content-Length"] = length or str(len(data))
        if do == "damage":
            data = data[:-1] + bytes([data[-1] ^ 1])
            headers.pop("ETag", None)
        if do == "another size":
            headers["Content-Length"] = str(int(headers["Content-Length"]) + 1)
        if do == "reset in the middle":
            self.send_response_only(reply.status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            return self.reset()
        return self.answer(reply.status, data, headers)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_one  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Nothing: standard error is for what fails."""


def serve_gate(host: str = "0.0.0.0", port: int = GATE) -> None:
    http.server.ThreadingHTTPServer.request_queue_size = 64
    http.server.ThreadingHTTPServer((host, port), Gate).serve_forever()


def control(method: str, body: Any = None, host: str = "127.0.0.1", port: int = GATE) -> Any:
    connection = http.client.HTTPConnection(host, port, timeout=30)
    connection.request(method, "/control", None if body is None else json.dumps(body))
    return json.loads(connection.getresponse().read())


# -- the machines


def work(tazpod: Any, request: dict[str, Any]) -> Any:
    """One word on one machine, in a process of its own."""
    import plumbum

    home = BENCH / "machines" / request["machine"]
    bench = {"calls": str(home / "calls"), "fault": FAULT | request["fault"], "plain": request["plain"]}
    environment = {"BENCH": json.dumps(bench), **request["env"]}
    os.environ.update(environment)
    plumbum.local.env.update(environment)
    for name, value in request["limits"].items():
        setattr(tazpod, name, value)
    settings = {"aws_profile": "nobody", "vault_keep": 1000, **request["config"]}
    config = tazpod.Config(home, **{"container_name": "bench-lab", **settings})
    vault = tazpod.Vault(home / "vault", home / "home", keep=config.vault_keep)
    (home / "calls").write_text("")
    if "step" in request["fault"]:
        die_at(request["fault"]["step"])
    function = getattr(tazpod, request["word"])
    if request["word"] == "tell_sync":
        answer = function(config, vault)
    elif request["word"] in ("push", "pull"):
        answer = function(config, vault, **request["options"])
    else:
        request["options"].update({k: Path(v) for k, v in request["options"].items() if k == "target"})
        answer = function(tazpod.storage_of(config, vault), **request["options"])
    return answer._asdict() if hasattr(answer, "_asdict") else answer


STEPS = ("os.rename", "os.remove", "os.mkdir", "os.chmod", "os.link", "fcntl.flock", "subprocess.Popen")


def die_at(number: int) -> None:
    """SIGKILL before the step of this number: a call that changes a file, locks, or starts a program."""
    count = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event == "open" and isinstance(args[2], int) and args[2] & os.O_ACCMODE != os.O_RDONLY
        if event in STEPS or (writes and not str(args[0]).startswith("/dev")):
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    sys.addaudithook(hook)


def start(tazpod: Any, request: dict[str, Any]) -> tuple[int, int, int]:
    """Fork for a word; its process, its answer and what it said, in files in RAM."""
    answer, said = os.memfd_create("answer"), os.memfd_create("said")
    pid = os.fork()
    if pid == 0:
        os.umask(0o077)
        os.dup2(said, 2)
        try:
            result = {"result": work(tazpod, request)}
        except tazpod.TazpodError as error:
            result = {"error": str(error), "kind": type(error).__name__, "hint": error.hint}
            result["code"] = getattr(error, "code", "")
        except BaseException as error:
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}", "kind": "fault"}
        os.write(answer, json.dumps(result, default=str).encode())
        os._exit(0)
    return pid, answer, said


def finish(job: tuple[int, int, int]) -> dict[str, Any]:
    pid, answer, said = job
    _, status = os.waitpid(pid, 0)
    texts = []
    for fd in (answer, said):
        with os.fdopen(fd, "rb") as file:
            file.seek(0)
            texts.append(file.read())
    result = json.loads(texts[0] or b"{}")
    return {**result, "said": texts[1].decode(), "signal": os.WTERMSIG(status)}


def plain_aws(argv: list[str]) -> dict[str, Any]:
    """A call of aws by somebody else than tazpod."""
    bench = {"calls": os.devnull, "fault": FAULT, "plain": False}
    done = subprocess.run(
        [f"{BENCH}/bin/aws", *argv, "--region", "eu-central-1", "--output", "json"],
        env={**os.environ, **KEYS, "BENCH": json.dumps(bench), "AWS_PAGER": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return {"status": done.returncode, "out": done.stdout, "err": done.stderr}


def objects(bucket: str) -> dict[str, str]:
    """The etag of each object in a bucket that anybody may list."""
    connection = http.client.HTTPConnection("127.0.0.1", STORE, timeout=30)
    connection.request("GET", f"/{bucket}?list-type=2&max-keys=1000")
    reply = connection.getresponse()
    text = reply.read().decode()
    assert reply.status == 200, text
    found = re.findall(r"<Contents>.*?<Key>(.*?)</Key>.*?<ETag>(.*?)</ETag>", text, re.DOTALL)
    return {key: etag.replace("&#34;", "").replace("&quot;", "").strip('"') for key, etag in found}


def main() -> None:
    (BENCH / "bin").mkdir(exist_ok=True)
    (BENCH / "bin/aws").write_text(AWS)
    (BENCH / "bin/aws").chmod(0o755)
    for serve in (serve_aws, serve_gate):
        if os.fork() == 0:
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, 0)
            os.dup2(nothing, 1)
            serve()
    os.environ["PATH"] = f"{BENCH}/bin:{os.environ['PATH']}"
    import plumbum

    import tazpod

    plumbum.local.env["PATH"] = os.environ["PATH"]
    for path, kind in ((SOCKET, socket.AF_UNIX), (("127.0.0.1", GATE), socket.AF_INET)):
        deadline = time.monotonic() + 30
        while socket.socket(kind).connect_ex(path) != 0 and time.monotonic() < deadline:
            time.sleep(0.02)
    jobs: dict[int, tuple[int, int, int]] = {}
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        do, answer = request.pop("do"), None
        if do == "start":
            job = start(tazpod, request)
            jobs[job[0]] = job
            answer = job[0]
        elif do == "finish":
            answer = finish(jobs.pop(request["job"]))
        elif do == "aws":
            answer = plain_aws(request["argv"])
        elif do == "objects":
            answer = objects(request["bucket"])
        elif do == "rules":
            answer = control("PUT", request["rules"])
        elif do == "log":
            answer = control("GET")
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
