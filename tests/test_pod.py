"""Inside the pod: what of the home lives in RAM or in the project, ssh, the shell, and what it knows."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from enginelib import AT_ENTRY, ENGINE, PASSPHRASE, Place, docker, eventually

import tazpod

pytestmark = pytest.mark.engine

CANARY = "canary-7be1d6c0a3f24598"
UNLOCK, STAY = ((AT_ENTRY, PASSPHRASE),), ((AT_ENTRY, ""),)


def found_on(pod: Place, *folders: str) -> str:
    """The files of the container, below some folders, in which root finds the canary."""
    argv = ("exec", "-i", "-u", "0", pod.name, "grep", "-rlsF", "-f", "-", *folders)
    return docker(*argv, data=CANARY.encode(), check=False)


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A running container, and a vault that was sealed."""
    options = ("vault.binds: [.config/gh]", "features.ssh_agent: true")
    place = Place(tmp_path_factory.mktemp("pod")).init(*options)
    try:
        place.ok("unlock", passphrase=PASSPHRASE)
        place.ok("lock")
        yield place
    finally:
        place.clean_up()


@pytest.fixture(autouse=True)
def end_sessions(pod: Place) -> Iterator[None]:
    """Each test begins with a locked vault and nobody inside."""
    yield
    for terminal in pod.terminals:
        terminal.clean_up()
    pod.terminals.clear()
    pod.ok("lock")


# -- the home


def test_what_is_bound_into_the_vault_is_on_no_disk(pod: Place) -> None:
    pod.ok("unlock", passphrase=PASSPHRASE)
    assert [path.removeprefix("/home/tazpod/") for path in pod.ram()] == [
        *(".ssh", "secrets", ".aws", ".config/gh")
    ]
    pod.reads(f"echo {CANARY} > ~/.config/gh/token")
    assert "saved (1 file" in pod.ok("save")
    pod.reads(f"echo {CANARY} > ~/.config/gh/unsaved")
    places = {
        f"/home/tazpod/{top}/{name}"
        for top in (".config/gh", "secrets/.config/gh")
        for name in ("token", "unsaved")
    }
    disks = ("/home", "/tmp", "/var", "/workspace")
    assert set(found_on(pod, *disks).split()) == places
    docker("restart", "-t", "0", pod.name)  # as when the machine goes down
    assert found_on(pod, *disks) == ""
    assert pod.reads("ls -A ~/.config/gh; stat -c %a ~/.config ~/.config/gh") == "700\n700"
    pod.ok("unlock", passphrase=PASSPHRASE)
    assert pod.reads("cat ~/.config/gh/*") == CANARY


def test_identity_is_linked_into_the_project_and_overwrites_nothing(pod: Place) -> None:
    envelope = pod.folder / ".tazpod"
    names = [*tazpod.AGENTS]
    wanted = "".join(f"/workspace/.tazpod/{name}\n" for name in names)
    assert pod.reads(f"cd && readlink {' '.join(names)}") == wanted.strip()
    assert {(envelope / name).stat().st_mode & 0o777 for name in names} == {0o700}
    pod.reads("echo state > ~/.claude/state")
    assert (envelope / ".claude/state").read_text() == "state\n"
    pod.reads(
        "cd; rm .pi .omp .gemini .opencode; echo own > .pi; mkdir -p .omp/own;"
        "ln -s /own .gemini; ln -s /own .opencode"
    )
    told = pod.configure("identity: [.pi, .omp, .gemini, .claude, .config/tool, my tool, .config/gh, .aws]")
    said = [line for line in told.splitlines() if "warning" in line]
    assert len(said) == 1
    assert "~/.pi, ~/.omp, ~/.gemini: there already" in said[0]
    assert pod.reads("cd; cat .pi; ls .omp; readlink .gemini .opencode; ls -d .codex .aws/ || true") == (
        "own\nown\n/own\n/own\n.aws/"
    )
    assert (envelope / ".codex").is_dir()
    assert pod.reads("readlink ~/.config/tool ~/my\\ tool; stat -c %a ~/.config").split("\n") == [
        *("/workspace/.tazpod/.config/tool", "/workspace/.tazpod/my tool", "700")
    ]
    assert "warning" not in pod.ok("up")
    pod.configure("vault.binds: [.config/gh, .claude]")
    pod.ok("unlock", passphrase=PASSPHRASE)
    assert pod.reads("mountpoint ~/.claude; ls -A ~/.claude") == "/home/tazpod/.claude is a mountpoint"
    assert (envelope / ".claude/state").read_text() == "state\n"
    pod.configure("vault.binds: [.config/gh]")


# What a process reads of the vault, of a file that it has open and deleted too, when /tmp/NAME.go is there.
WATCHER = """
cd ~/secrets && exec 7< deleted-$0 && rm deleted-$0
mkfifo /tmp/$0.pause && exec 8<> /tmp/$0.pause  # to wait without a process, which would be named as well
touch /tmp/$0.ready
until [ -e /tmp/$0.go ]; do read -rt 0.05 -u 8; done
cat <&7 > /tmp/$0.read
find /home/tazpod/secrets . -type f -exec cat {} + >> /tmp/$0.read 2> /dev/null
mv /tmp/$0.read /tmp/$0.done
"""


def test_a_lock_destroys_what_other_mount_namespaces_and_open_files_show(pod: Place) -> None:
    pod.ok("unlock", passphrase=PASSPHRASE)
    kinds = {"here": "", "root": "sudo -n", "namespace": "unshare -Urm", "rootspace": "sudo -n unshare -m"}
    pod.reads("echo secret | tee ~/secrets/{plain,deleted-{here,root,namespace,rootspace}} > /dev/null")
    pod.reads("cd ~/secrets; ln plain hard; echo secret > dark; chmod 400 dark")
    for name, prefix in kinds.items():
        run = [ENGINE, "exec", "-d", pod.name, *prefix.split(), "env", "HOME=/home/tazpod"]
        subprocess.run([*run, "bash", "-c", WATCHER, name], check=True)
        eventually(lambda name=name: pod.inside(f"test -e /tmp/{name}.ready").returncode == 0, "it is ready")
    said = pod.ok("lock")
    assert "the vault is locked" in said
    assert "still in the vault when it was locked: " in said and said.count("(bash)") == len(kinds)
    for name in kinds:
        pod.reads(f"touch /tmp/{name}.go")
        eventually(lambda name=name: pod.inside(f"test -e /tmp/{name}.done").returncode == 0, "it has read")
        assert pod.reads(f"cat /tmp/{name}.done") == ""
    assert pod.is_shut()


HIDDEN = """
import ctypes, os, sys, time
file = open(os.path.expanduser("~/secrets/gone"))
os.unlink(file.name)
ctypes.CDLL(None).prctl(4, 0)  # PR_SET_DUMPABLE: nobody looks into it but who may trace everything
open("/tmp/hidden.ready", "w").close()
time.sleep(600)
"""


def test_a_vault_of_which_something_is_left_is_not_said_to_be_locked(pod: Place) -> None:
    pod.ok("unlock", passphrase=PASSPHRASE)
    pod.reads("echo secret > ~/secrets/gone; rm -f /tmp/hidden.ready")
    run = [ENGINE, "exec", "-d", pod.name, "env", "HOME=/home/tazpod", "python3", "-c", HIDDEN]
    subprocess.run(run, check=True)
    eventually(lambda: pod.inside("test -e /tmp/hidden.ready").returncode == 0, "it is ready")
    done = pod.run("lock")
    assert done.returncode == 1 and "the vault is locked" not in done.stderr
    assert "may not be looked into" in done.stderr and "tazpod down --discard" in done.stderr
    pod.reads("pkill -9 -f hidden.ready", user="0")
    eventually(lambda: pod.run("lock").returncode == 0, "it can be locked")
    assert pod.is_shut()


# -- ssh


@contextlib.contextmanager
def running(*argv: object) -> Iterator[None]:
    """A program in the background, ended at the end."""
    with subprocess.Popen([str(word) for word in argv], stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


def test_ssh_learns_host_keys_and_believes_those_of_the_host(pod: Place, tmp_path: Path) -> None:
    gateway = docker(
        "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}", pod.name
    ).strip()
    with socket.create_server((gateway, 0)) as free:
        port = free.getsockname()[1]
    key, server = tmp_path / "key", shutil.which("dropbear", path=f"{os.environ['PATH']}:/usr/sbin")
    made = subprocess.run(
        ["dropbearkey", "-t", "ed25519", "-f", key], capture_output=True, text=True, check=True
    )
    public = next(line for line in made.stdout.splitlines() if line.startswith("ssh-ed25519 "))
    learned, theirs = pod.folder / ".tazpod/known_hosts", pod.home / ".ssh/known_hosts"

    def ssh(check: str) -> str:
        options = f"-o BatchMode=yes -o StrictHostKeyChecking={check} -p {port}"
        return pod.inside(f"ssh {options} tazpod@{gateway} true").stderr

    with running(server, "-F", "-r", key, "-p", f"{gateway}:{port}", "-P", tmp_path / "pid"):
        eventually(lambda: "Connection refused" not in ssh("yes"), "the server listens")
        unknown, believed = "Host key verification failed", "Permission denied ("
        assert unknown in ssh("yes")
        assert believed in ssh("accept-new")
        assert public.split()[1] in learned.read_text()
        assert learned.stat().st_mode & 0o777 == 0o600
        assert believed in ssh("yes")
        learned.write_text("")
        theirs.write_text(f"[{gateway}]:{port} {public}\n")
        assert believed in ssh("yes")
        (pod.home / ".ssh/config").write_text("UserKnownHostsFile ~/mine\n")
        assert unknown in ssh("yes")


@contextlib.contextmanager
def agent(folder: Path, name: str) -> Iterator[str]:
    """A real ssh agent with one key; its socket."""
    place, key = folder / f"{name}.sock", folder / name
    with running("ssh-agent", "-D", "-a", place):
        subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-C", name, "-f", key], check=True)
        add = ["ssh-add", "-q", str(key)]
        eventually(place.exists, "the agent listens")
        subprocess.run(add, env={**os.environ, "SSH_AUTH_SOCK": str(place)}, check=True)
        yield str(place)


def test_the_agent_of_the_newest_session_is_reached_from_everywhere(pod: Place, tmp_path: Path) -> None:
    pod.ok("up")  # with a guard
    run = pod.folder / ".tazpod/run"
    with agent(tmp_path, "first") as first, agent(tmp_path, "second") as second:
        person = pod.terminal(SSH_AUTH_SOCK=first, COLORTERM="truecolor")
        person.answers(*STAY)
        assert person.sh("ssh-add -l").split()[2] == "first"
        (relay,) = run.glob("*.agent")
        assert relay.stat().st_mode & 0o077 == 0
        person.sh("tmux new-session -d -s long")
        person.kill(signal.SIGKILL)
        eventually(
            lambda: not relay.exists() and not (run / "agent.sock").is_symlink(), "the guard cleans up"
        )

        person = pod.terminal(SSH_AUTH_SOCK=second, COLORTERM="24bit", TERM="vt220")
        person.answers(*STAY)
        assert person.sh("ssh-add -l").split()[2] == "second"
        script = "tazpod env; (echo $COLORTERM $TERM; ssh-add -l) > /tmp/told"
        person.sh(f"tmux send-keys -t long '{script}' Enter")
        eventually(lambda: "ED25519" in pod.inside("cat /tmp/told").stdout, "the shell in tmux answers")
        colours, kind, *listed = pod.reads("cat /tmp/told").split()
        assert (colours, kind, listed[2]) == ("24bit", person.sh("tmux show -gv default-terminal"), "second")
        third = pod.terminal(SSH_AUTH_SOCK=first)
        third.answers(*STAY)
        assert person.sh("ssh-add -l").split()[2] == "first"
        assert third.leaves() == 0
        assert person.sh("ssh-add -l").split()[2] == "second"
        done = pod.run(
            "run", "--", "sh", "-c", "ssh-add -l; echo $COLORTERM", SSH_AUTH_SOCK=first, COLORTERM="x"
        )
        assert (done.returncode, done.stdout.split()[2::2]) == (0, ["first", "x"])
        person.sh("tmux kill-server")
        assert person.leaves() == 0
    assert [path for path in run.iterdir() if "agent" in path.name] == []


# -- what the shell knows

IMAGE_LANG, AGENT = "C.UTF-8", tazpod.POD_AGENT
LEASES = [  # what a host side says; TERM, COLORTERM, LANG, SSH_AUTH_SOCK of the shell
    ("", "xterm", "", IMAGE_LANG, ""),
    ("TERM=tmux-256color\nCOLORTERM=truecolor\nLANG=POSIX", "tmux-256color", "truecolor", "POSIX", ""),
    ("TERM=dumb", "dumb", "", IMAGE_LANG, ""),
    ("TERM=xterm-kitty", "xterm-256color", "", IMAGE_LANG, ""),
    ("TERM=-V", "xterm", "", IMAGE_LANG, ""),
    ("TERM=../../../etc/passwd", "xterm", "", IMAGE_LANG, ""),
    ("TERM=", "xterm", "", IMAGE_LANG, ""),
    ("LANG=xx_XX.UTF-8", "xterm", "", IMAGE_LANG, ""),
    ("LANG=C.utf8", "xterm", "", "C.utf8", ""),
    (f"SSH_AUTH_SOCK={AGENT}", "xterm", "", IMAGE_LANG, AGENT),
    ("COLORTERM=$(touch /tmp/broken)\nSSH_AUTH_SOCK=`touch /tmp/broken`", "xterm", "", IMAGE_LANG, ""),
    ("COLORTERM=a b", "xterm", "", IMAGE_LANG, ""),
    ("PATH=/tmp\nBASH_ENV=/tmp/x\nTERM=vt100", "vt100", "", IMAGE_LANG, ""),
    ("COLORTERM", "xterm", "", IMAGE_LANG, ""),
]


def test_a_shell_takes_over_what_the_container_knows_and_nothing_else(pod: Place) -> None:
    folder = pod.folder / "leases"
    folder.mkdir()
    for number, (text, *_) in enumerate(LEASES):
        (folder / f"{number:02}").write_text(f"{text}\n" if text else "")
    take = ". /opt/tazpod/bashrc; TERM=xterm; __tazpod_take $lease 2>&1"
    show = 'echo "$TERM|$COLORTERM|$LANG|$SSH_AUTH_SOCK|$PATH|$BASH_ENV"'
    told = pod.reads(
        f"for lease in /workspace/leases/*; do ( {take}; {show} ); done; ls /tmp/broken 2>&1 || true"
    )
    path = pod.reads("echo $PATH")
    *lines, broken = told.splitlines()
    assert lines == ["|".join((*wanted, path, "")) for _, *wanted in LEASES]
    assert "No such file" in broken


@pytest.mark.parametrize("shell", ["/bin/bash", "/bin/sh"])
def test_the_terminal_reaches_the_shell(shell: str, pod: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TERM", "screen-256color"), ("COLORTERM", "truecolor"), ("LANG", "POSIX")):
        monkeypatch.setenv(name, value)
    config = tazpod.Config(pod.folder, pod.name, shell=shell, program=ENGINE)
    session = tazpod.open_session(config)
    try:
        session.become("session")
        script = "echo $TERM $COLORTERM $LANG $TAZPOD_SESSION $TAZPOD_CLAIM; echo $$ $0; exit 5\n"
        flags = ["-i"] if shell == "/bin/bash" else []  # off a terminal, only an interactive one claims
        argv = [*tazpod.shell_argv(config, terminal=False), *flags]
        done = subprocess.run(argv, input=script, capture_output=True, text=True, timeout=60)
        told, (pid, name) = done.stdout.splitlines()[0], done.stdout.splitlines()[1].split()
        assert told == f"screen-256color truecolor POSIX {session.id}"
        assert (done.returncode, name) == (5, shell)
        claimed = tazpod.parse_shell((config.run_folder / f"{session.id}.shell").read_text())
        assert claimed and claimed.pid == int(pid)
    finally:
        session.close()


def test_env_refreshes_the_shell_and_every_other_word_goes_through(pod: Place) -> None:
    person = pod.terminal(COLORTERM="truecolor", LANG="xx_XX.UTF-8")
    person.answers(*UNLOCK)
    printed = person.sh("tazpod env | cat")
    assert printed.splitlines() == [
        "export COLORTERM=truecolor",
        "export TERM=xterm",
        "export LANG=C.UTF-8",
        f"export SSH_AUTH_SOCK={AGENT}",
        f"export HOST_CWD={pod.folder}",
        f"export AWS_CONFIG_FILE={tazpod.POD_AWS_CONFIG}",
        "export TAZPOD_VAULT=open",
    ]
    assert "SSH_AUTH_SOCK is not set" in person.seen
    assert person.sh("unset SSH_AUTH_SOCK; tazpod env; echo $TAZPOD_VAULT $SSH_AUTH_SOCK") == f"open {AGENT}"
    assert person.sh("tazpod lock 2>/dev/null; tazpod env; echo $TAZPOD_VAULT") == "locked"
    assert person.sh("tazpod nonsense 2>/dev/null; echo $?; tazpod env x 2>&1 | tail -n 1") == (
        "2\nhint: tazpod env --help"
    )
    assert person.leaves() == 0


def test_the_prompt_of_every_bash_shows_whether_the_vault_is_open(pod: Place) -> None:
    person = pod.terminal()
    person.answers(*STAY)
    person.sees(r"\[locked\] .*workspace\x1b\[0m[$#] ")
    person.in_shell = True
    pod.ok("unlock", passphrase=PASSPHRASE)
    for command in ("true", "bash", "bash -l"):
        person.types(command)
        person.sees(r"\x1b\[1;33m\[open\] \x1b\[0m.*workspace\x1b\[0m[$#] ")
    person.types("tmux -f /dev/null")
    person.sees(r"\[open\] ")
    person.types("tmux kill-server")
    person.types("exit; exit")
    pod.ok("lock")


# -- the hook before the lock


@pytest.mark.parametrize("discard", [(), ("--discard",)])
def test_the_hook_runs_before_the_lock_with_the_vault_open(discard: tuple[str, ...], pod: Place) -> None:
    script = "echo hook: $(id -un) $PWD; echo more >> ~/secrets/hooked; exec false"
    pod.configure(f"hooks.pre_lock: '{script}'")
    try:
        pod.ok("unlock", passphrase=PASSPHRASE)
        done = pod.run("lock", *discard)
        assert (done.returncode, done.stdout) == (0, "")
        lines = done.stderr.splitlines()
        assert lines[0] == "hook: tazpod /workspace"
        assert lines[1].endswith("hooks.pre_lock ended with status 1")
        assert ("saved" in done.stderr, lines[-1].endswith("the vault is locked")) == (not discard, True)
        assert pod.is_shut()
    finally:
        pod.configure("hooks.pre_lock: ")


def test_a_file_or_folder_that_is_there_is_moved_on_request_and_nothing_is_lost(pod: Place) -> None:
    envelope = pod.folder / ".tazpod"
    pod.reads("cd; echo login > .netrc; chmod 600 .netrc; mkdir -p .kept/deep; echo state > .kept/deep/state")
    (envelope / ".rc").write_text("theirs\n")
    told = pod.configure("identity: [.netrc, .kept, .rc]")
    assert "~/.netrc, ~/.kept: there already, on the container's disk; into .tazpod/ by: tazpod adopt" in told
    assert not (envelope / ".netrc").exists() and pod.reads("cat ~/.rc") == "theirs"
    (envelope / ".kept/deep").mkdir()
    refused = pod.run("adopt", ".kept")
    assert refused.returncode == 1 and "hold the same names" in refused.stderr
    assert pod.reads("cat ~/.kept/deep/state") == "state"
    (envelope / ".kept/deep").rmdir()
    assert pod.ok("adopt", str(pod.home / ".netrc"), ".kept").count("outlives the container") == 2
    assert (envelope / ".kept/deep/state").read_text() == "state\n"
    assert (envelope / ".netrc").stat().st_mode & 0o777 == 0o600
    assert pod.reads("cd; readlink .netrc .kept; cat .netrc") == (
        "/workspace/.tazpod/.netrc\n/workspace/.tazpod/.kept\nlogin"
    )
    assert "is in .tazpod/ already" in pod.reads("tazpod adopt ~/.kept 2>&1")
    for path, status, words in (
        (".never", 2, 'identity: [".netrc", ".kept", ".rc", ".never"]'),  # the whole list, as it is to be
        (".aws", 1, "is not shown by an open vault"),
        ("../x", 2, "is no file or folder of the home"),
    ):
        done = pod.run("adopt", path)
        assert (done.returncode, words in done.stderr) == (status, True), done.stderr
    docker("exec", pod.name, "rm", "/home/tazpod/.netrc")
    assert "warning" not in pod.ok("up", "--recreate")
    assert pod.reads("cat ~/.netrc ~/.kept/deep/state ~/.rc") == "login\nstate\ntheirs"


# -- histories and variables


def test_what_is_typed_leaves_no_trace_on_the_disk_of_the_container(pod: Place) -> None:
    person = pod.enter()
    person.sh(f"echo {CANARY} > ~/secrets/typed")
    pod.reads(f"script -qc 'bash -i' /dev/null <<< 'echo {CANARY}'", user="0")
    person.sh(f"echo \"x = '{CANARY}'\" | script -qc 'python3 -q' /dev/null; history -a")
    assert CANARY in pod.reads("cat ~/secrets/.vault_history/shell")
    assert CANARY in pod.reads("cat ~/secrets/.vault_history/python")
    second = pod.terminal()
    assert CANARY in second.sh("history")
    second.leaves()
    pod.ok("save")
    person.sh("history -a")
    assert "nothing changed" in pod.ok("save")  # a history is nobody's reason to save
    pod.ok("lock")
    person.leaves()  # a shell that the lock has not told: it keeps its history where root could write now
    assert pod.is_shut()
    assert found_on(pod, "/home", "/root", "/tmp", "/workspace") == ""
    pod.ok("unlock", passphrase=PASSPHRASE)
    assert pod.reads("rm ~/secrets/typed; ls -A ~/secrets | grep history; true") == ""


def test_what_root_writes_to_a_locked_vault_is_named_before_it_is_lost(pod: Place) -> None:
    pod.reads("touch ~/secrets/token ~/secrets/b")  # the project is root's, so the operator is root
    named = "on the container's disk, not in the vault, and gone with the container: b, token; move them away"
    assert named in pod.ok("lock")
    person = pod.terminal("enter", "--no-vault")
    person.leaves()
    assert named in person.seen
    done = pod.run("status", "--json")
    assert json.loads(done.stdout)["vault"]["on_disk"] is True
    for words in (("down",), ("up", "--recreate")):
        refused = pod.run(*words)
        assert refused.returncode == 1 and "/home/tazpod/secrets/token" in refused.stderr, refused.stderr
    docker("stop", "-t", "0", pod.name)
    refused = pod.run("down")
    assert refused.returncode == 1 and "--discard" in refused.stderr
    pod.ok("up")
    pod.reads("rm ~/secrets/token ~/secrets/b", user="0")
    assert "not in the vault" not in pod.ok("lock")


def test_a_project_that_go_made_gets_its_gitignore(pod: Place) -> None:
    ignored = pod.folder / ".tazpod/.gitignore"
    ignored.unlink()
    assert "git would take logins along" in pod.run("doctor").stdout
    assert "wrote .tazpod/.gitignore" in pod.ok("up", "--recreate")
    assert ignored.read_text() == tazpod.GITIGNORE
    assert "keeps logins and the vault out of git" in pod.run("doctor").stdout


def test_by_one_key_histories_are_sealed_and_outlive_the_container(pod: Place) -> None:
    pod.configure("vault.history: true")
    person = pod.enter()
    person.sh("echo remember-this")
    person.leaves()
    pod.ok("up", "--recreate")
    person = pod.enter()
    assert "echo remember-this" in person.sh("history")
    person.leaves()
    pod.configure("vault.history: false")


def test_files_of_the_vault_are_variables_while_it_is_open(pod: Place) -> None:
    pod.configure("vault.env: {FROM_VAULT: keys/token, MISSING: keys/none}")
    pod.ok("unlock", passphrase=PASSPHRASE)
    pod.reads("mkdir -p ~/secrets/keys; cd ~/secrets/keys; printf 'a b\\n\\n' > token; echo other > second")
    pod.reads(
        "cd ~/secrets/keys; printf '# of a tool\\n\\nONE=1 #\\nTWO=' > file; printf 'A=1\\n-x\\n' > bad"
    )
    show = ("bash", "-c", 'echo "$FROM_VAULT|${MISSING-none}|$X|$ONE|${TWO-none}"')
    assert pod.run("run", *show).stdout == "a b|none|||none\n"
    given = ("--env", "X=keys/second", "--env-file", "keys/file")
    assert pod.run("run", *given, "--", *show).stdout == "a b|none|other|1 #|\n"
    for words, error in (
        (("--env", "X=keys/none"), "keys/none: is no such file of the vault, or has a line"),
        (("--env-file", "keys/bad"), "keys/bad: is no such file of the vault, or has a line"),
    ):
        done = pod.run("run", *words, "--", "echo", "ran")
        assert (done.returncode, done.stdout) == (1, "") and error in done.stderr
    person = pod.enter()
    assert person.sh('echo "$FROM_VAULT"') == "a b"
    person.sh("echo fresh > ~/secrets/keys/token; echo late > ~/secrets/keys/none; tazpod env")
    assert person.sh("echo $FROM_VAULT $MISSING") == "fresh late"
    assert "fresh" not in person.sh("tazpod env | cat")
    pod.ok("lock")
    person.sh("true")  # the next prompt takes them away
    assert person.sh('echo "${FROM_VAULT-none} ${MISSING-none}"') == "none none"
    person.sh(f"tazpod unlock --passphrase-fd 0 <<< '{PASSPHRASE}'")
    assert person.sh("echo $FROM_VAULT") == "fresh"
    person.leaves()
    done = pod.run("run", *given, "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the vault is locked, so the command was not run" in done.stderr
    assert pod.run("run", *show).stdout == "|none|||none\n"
