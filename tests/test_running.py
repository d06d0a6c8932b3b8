"""Running programs, writing files, locks; and the small parsers.  All programs here are real."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from conftest import ROOT, terminal, write_stub

import tazpod
from tazpod import Stage, State, capture, first_failure, memory_file, read_back, run_foreground, stream


def sh(script, *words):
    return ["sh", "-c", script, "sh", *words]


def children():
    """The processes of this one, zombies included."""
    found = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
    return {int(pid) for pids in found for pid in pids}


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    """Whatever happens, no process of ours stays, not even a zombie."""
    before = children()
    yield
    assert children() - before == set()


# -- capture


@pytest.mark.parametrize(
    "script, result",
    [
        ("", (0, b"", "")),
        ("exit 3", (3, b"", "")),
        ("echo out; echo err >&2; exit 255", (255, b"out\n", "err\n")),
        ("kill -9 $$", (-9, b"", "")),
        ("kill -PIPE $$", (-13, b"", "")),
        ("printf '\\377\\000x' | tee /dev/stderr", (0, b"\xff\0x", "\ufffd\0x")),
        ('printf %s "$1"; cat', (0, b"a b;$(id)fed", "")),
    ],
)
def test_capture_gives_status_and_both_outputs(script, result):
    done = capture(sh(script, "a b;$(id)"), b"fed" if "cat" in script else b"")
    assert (done.code, done.out, done.err) == result


def test_capture_without_data_gives_an_empty_standard_input():
    assert capture(["cat"]).out == b""


def test_capture_moves_a_megabyte_both_ways():
    data = os.urandom(1 << 20)
    done = capture(sh("tee /dev/stderr"), data)
    assert done.out == data and len(done.err) > 500_000


def test_capture_survives_a_program_that_does_not_read():
    assert capture(["true"], b"x" * (1 << 20)).code == 0


def test_a_program_that_hangs_is_ended_and_named():
    with pytest.raises(tazpod.TazpodError) as caught:
        capture(["sleep", "600"], limit=0.2)
    assert str(caught.value) == "sleep did not end within 0.2 seconds"


def test_a_grandchild_that_keeps_the_pipe_does_not_hold_us_up(tmp_path):
    pid = tmp_path / "pid"
    with pytest.raises(tazpod.TazpodError, match=r"^sh did not end"):
        capture(sh('sleep 600 & echo $! > "$1.new"; mv "$1.new" "$1"; wait', str(pid)), limit=0.5)
    os.kill(int(pid.read_text()), signal.SIGKILL)


def test_the_limit_without_another_is_the_constant(monkeypatch):
    monkeypatch.setattr(tazpod, "TIME_LIMIT", 0.2)
    with pytest.raises(tazpod.TazpodError, match=r"^sleep did not end within 0.2 seconds$"):
        capture(["sleep", "600"])


def test_an_interrupt_in_the_middle_reaps_the_child():
    """The child reads before it sends the signal, so that we are in the middle by then."""
    script = "head -c 1 >/dev/null; kill -INT $PPID; exec sleep 600"
    with pytest.raises(KeyboardInterrupt):
        capture(sh(script), b"data")


def test_a_process_that_is_not_ours_to_end_does_not_hold_us_up():
    """As with sudo: after changing to another user, the child is still root's."""
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); import tazpod\n"
        "child = tazpod.spawn(['sleep', '600']); os.setresuid(1234, 1234, 1234)\n"
        "tazpod._reap([child]); print(child.pid)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(f"/proc/{done.stdout.strip()}/comm").read_text() == "sleep\n"
    os.kill(int(done.stdout), signal.SIGKILL)


def test_a_missing_program_is_status_127_with_its_name():
    with pytest.raises(tazpod.MissingProgram) as caught:
        capture(["no-such-program-of-ours"])
    assert str(caught.value) == "no-such-program-of-ours is not installed, or not on PATH"
    assert caught.value.exit_code == 127


def test_a_program_that_cannot_start_is_an_error_with_its_reason(stub_path):
    path = write_stub(stub_path, "broken")
    path.write_text("#!/no/such/interpreter\n")
    with pytest.raises(tazpod.TazpodError, match=r"^broken could not be started: No such file"):
        capture(["broken"])
    with pytest.raises(tazpod.TazpodError, match=r"^docker could not be started: embedded null byte"):
        capture(["docker", "a\0b"])
    with pytest.raises(tazpod.TazpodError, match=r"^docker could not be started: Argument list too long"):
        capture(["docker", "x" * (1 << 20)])


def test_the_reason_of_a_program_that_says_nothing_is_its_status():
    assert tazpod.Result(7, b"", "").reason == "status 7"
    assert tazpod.Result(-9, b"", " \n").reason == "status -9"
    assert tazpod.Result(-9, b"", "gpg: AES256.CFB encrypted data\n").reason == "status -9"


# What the real programs said, and in it, marked, the line that is the reason.
SAID = {
    "one line": "> only",
    "two lines": "one\n> two\n",
    "gpg, a wrong passphrase": """\
gpg: AES256.CFB encrypted data
gpg: encrypted with 1 passphrase
> gpg: decryption failed: Bad session key""",
    "gpg, a file cut short": """\
gpg: AES256.CFB encrypted data
gpg: encrypted with 1 passphrase
> gpg: decryption failed: Invalid packet""",
    "gpg, a changed bit": """\
gpg: AES256.CFB encrypted data
gpg: encrypted with 1 passphrase
> gpg: zlib inflate problem: invalid distance code""",
    "gpg, what is none of its files": """\
> gpg: no valid OpenPGP data found.
gpg: decrypt_message failed: Unknown system error""",
    "gpg, no file": """\
> gpg: can't open 'nosuch': No such file or directory
gpg: decrypt_message failed: No such file or directory""",
    "gpg, nowhere to write to": """\
gpg: no gpg-agent running in this session
gpg: problem with the agent: No agent running
gpg: can't create '/proc/x': No such file or directory
> gpg: symmetric encryption of 'f' failed: No such file or directory""",
    "tar, no archive": """\
> tar: nosuch.tar: Cannot open: No such file or directory
tar: Error is not recoverable: exiting now""",
    "tar, what is no archive": """\
> tar: This does not look like a tar archive
tar: Exiting with failure status due to previous errors""",
    "tar, an archive cut short": """\
tar: Unexpected EOF in archive
> tar: Unexpected EOF in archive
tar: Error is not recoverable: exiting now""",
    "tar, two files that are gone": """\
tar: nosuch: Cannot stat: No such file or directory
> tar: other: Cannot stat: No such file or directory
tar: Exiting with failure status due to previous errors""",
    "openssl, a wrong key": """\
> Error decrypting CMS using password
40173C7E827F0000:error:170000B4:CMS routines:ossl_cms_RecipientInfo_pwri_crypt:unwrap failure:../crypto/x.c:9:
""",
    "openssl, a wrong word": """> Invalid command 'nosuch'; type "help" for a list.""",
    "aws, a refusal": "\n> An error occurred (403) when calling the HeadObject operation: Forbidden\n",
    "aws, a refusal with more to it": """
> aws: [ERROR]: An error occurred (NoSuchKey) when calling the GetObject operation: it does not exist.

Additional error details:
Key: x
""",
    "aws, a wrong call": """
usage: aws [options] <command> <subcommand> [<subcommand> ...] [parameters]
To see help text, you can run:

  aws help

> aws: error: the following arguments are required: --key

""",
    "aws, nobody there": """
> Could not connect to the endpoint URL: "http://127.0.0.1:9/b/k"
""",
    "docker, a name that is taken": """\
> docker: Error response from daemon: Conflict. The container name "/x" is already in use by container "8".

Run 'docker run --help' for more information
""",
    "docker, a wrong port": "> docker: invalid hostPort: 99999\n\nRun 'docker run --help' for more",
    "docker, a wrong option": """\
> unknown flag: --nosuch

Usage:  docker run [OPTIONS] IMAGE [COMMAND] [ARG...]

Run 'docker run --help' for more information
""",
    "docker, an image that is nowhere": """\
Unable to find image 'nosuch:image' locally
> docker: Error response from daemon: Get "https://registry.example/v2/": dial tcp: no such host

Run 'docker run --help' for more information
""",
    "docker, a start that failed": """\
> Error response from daemon: No such container: x
Error: failed to start containers: x
""",
    "podman, behind its noise": """\
Emulate Docker CLI using podman. Create /etc/containers/nodocker to quiet msg.
> Error: inspecting object: no such object: "nosuch"
""",
    "podman, three times": """\
Trying to pull 127.0.0.1:9/x:latest...
time="2026-11-24T11:09:23Z" level=warning msg="Failed, retrying in 1s ... (1/3). Error: initializing source"
> Error: initializing source docker://127.0.0.1:9/x:latest: connect: connection refused
""",
    "podman, a wrong option": "> Error: unknown flag: --nosuch\nSee 'podman run --help'\n",
    "sudo, no terminal": """\
sudo: a terminal is required to read the password; either use the -S option
> sudo: a password is required
""",
    "sudo, nobody": "> sudo: unknown user nosuch\nsudo: error initializing audit plugin sudoers_audit\n",
    "sudo, a wrong option": """\
> sudo: unrecognized option '--nosuch'
usage: sudo -h | -K | -k | -V
            [-u user] [command [arg ...]]
""",
    "mount behind sudo's complaint": """\
/etc/sudoers.d/bad:1:2: syntax error
x
 ^
> mount: /tmp/ro: fsconfig() failed: tmpfs: Unknown parameter 'nosuchopt'.
       dmesg(1) may have more information after failed mount system call.
""",
    "umount": "> umount: /tmp/busy: target is busy.\n",
    "find": "> find: '/nosuch': No such file or directory",
    "ourselves": """\
tazpod: waiting for another tazpod that is saving
> the sealed file is damaged
tazpod: warning: the container is older than the image
hint: tazpod up
""".replace("> ", "> tazpod: error: "),
}


@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
def test_the_reason_is_the_line_that_tells_of_the_error(said):
    lines = said.splitlines()
    (reason,) = [line[2:] for line in lines if line.startswith("> ")]
    text = "\n".join(line.removeprefix("> ") for line in lines)
    assert tazpod.Result(1, b"", text).reason == reason.removeprefix("tazpod: error: ")


def test_succeed_raises_with_the_reason_and_the_hint():
    assert tazpod.succeed(["cat"], "no", data=b"x").out == b"x"
    with pytest.raises(tazpod.TazpodError, match=r"^the thing failed: because$") as caught:
        tazpod.succeed(sh("echo because >&2; exit 1"), "the thing failed", "try harder")
    assert caught.value.hint == "try harder"


def test_debug_prints_argv_as_it_could_be_typed(capfd):
    tazpod.OPTIONS.debug = True
    capture(["true", "two words", "a'b"])
    assert capfd.readouterr().err == "+ true 'two words' 'a'\"'\"'b'\n"


@pytest.mark.parametrize("loaded", [True, False])
def test_what_debug_shows_is_what_runs(loaded, capfd, monkeypatch):
    """Through plumbum, and in a hurry without it: the line, given to a shell, runs the same once more."""
    tazpod.OPTIONS.debug, tazpod.OPTIONS.hurry = True, not loaded
    if not loaded:
        monkeypatch.delitem(sys.modules, "plumbum")
    words = ["", "a b", "it's", "$(x)", "*", "-n", "a\nb", "\udcff", "%s", "\x1b[31m", "☃"]
    first = capture(["printf", r"%s\0", *words])
    line = capfd.readouterr().err
    assert line.startswith("+ printf ") and line[:-1].isprintable()
    again = subprocess.run(["bash", "-c", line[2:]], capture_output=True)
    assert first.out == again.stdout == b"".join(os.fsencode(word) + b"\0" for word in words)


# -- secrets by descriptor


def test_a_secret_goes_through_the_pipe_and_is_in_no_argv_and_no_environment(tmp_path):
    secret = "hunter2-☃-".encode() + os.urandom(8).hex().encode()
    script = (
        'cat "/dev/fd/$1"; echo; tr "\\0" "\\n" < /proc/$$/cmdline; tr "\\0" "\\n" < /proc/$$/environ;'
        ' ls -l /proc/$$/fd/"$1"'
    )
    with tazpod.secret_fd(secret) as fd:
        done = capture(sh(script, str(fd)), pass_fds=(fd,))
    first, rest = done.out.split(b"\n", 1)
    assert (done.code, first) == (0, secret)
    assert b"PATH=" in rest and b"pipe:[" in rest  # there was something to look at
    assert secret not in rest


def test_a_secret_is_readable_once_and_only_by_whom_it_was_handed_to():
    with tazpod.secret_fd(b"secret") as fd:
        assert not os.get_inheritable(fd)
        assert capture(sh('cat "/dev/fd/$1"', str(fd))).code != 0
        assert capture(sh('cat "/dev/fd/$1"', str(fd)), pass_fds=(fd,)).out == b"secret"
        assert capture(sh('cat "/dev/fd/$1"', str(fd)), pass_fds=(fd,)).out == b""


@pytest.mark.parametrize("size", [0, 1, 4096])
def test_a_secret_of_any_legal_size_blocks_nobody(size):
    with tazpod.secret_fd(b"x" * size) as fd:
        assert os.read(fd, 9999) == b"x" * size
        assert os.read(fd, 1) == b""


def test_the_descriptor_is_closed_also_after_an_error():
    with pytest.raises(ZeroDivisionError), tazpod.secret_fd(b"secret") as fd:
        raise ZeroDivisionError
    with pytest.raises(OSError):
        os.fstat(fd)


@pytest.mark.parametrize("data", [b"", b"x", b"x" * 3_000_000])
def test_a_memory_file_gives_back_what_it_was_given_and_is_on_no_disk(data):
    fd = memory_file(data)
    assert os.read(fd, 1) == data[:1]
    assert read_back(fd) == data == read_back(fd)
    assert os.readlink(f"/proc/self/fd/{fd}") == "/memfd:tazpod (deleted)"
    os.close(fd)


# -- stream


def piped(stages, data=b""):
    """Run a pipeline over bytes; what came out, and the results."""
    source, sink = memory_file(data), memory_file()
    try:
        results = stream([Stage(argv) for argv in stages], source, sink)
        return read_back(sink), results
    finally:
        os.close(source)
        os.close(sink)


def failure_of(stages, results):
    return first_failure([Stage(argv) for argv in stages], results)


@pytest.mark.parametrize(
    "stages, codes, failure",
    [
        ([["cat"]], [0], ""),
        ([["cat"], ["cat"], ["cat"]], [0, 0, 0], ""),
        ([sh("cat; echo one >&2; exit 4"), ["cat"]], [4, 0], "sh: one"),
        ([["cat"], sh("cat >/dev/null; exit 5")], [0, 5], "sh: status 5"),
        ([sh("exit 4"), sh("cat; echo two >&2; exit 5")], [4, 5], "sh: status 4"),
        ([["yes"], ["head", "-c", "9"]], [-13, 0], "yes: status -13"),
        ([["yes"], sh("echo full >&2; exit 1")], [-13, 1], "sh: full"),
        ([sh("trap '' PIPE; yes 2>/dev/null; exit 141"), sh("echo full >&2; exit 1")], [141, 1], "sh: full"),
        ([["yes"], ["cat"], sh("kill -9 $$")], [-13, -13, -9], "sh: status -9"),
        ([sh("kill -TERM $$"), ["cat"]], [-15, 0], "sh: status -15"),
    ],
)
def test_every_status_of_a_pipeline_counts_and_the_victim_is_not_blamed(stages, codes, failure):
    _, results = piped(stages)
    assert [result.code for result in results] == codes
    assert failure_of(stages, results) == failure


def test_a_pipeline_moves_bytes_as_they_are():
    data = os.urandom(3_000_001)
    out, results = piped([["cat"], ["cat"]], data)
    assert out == data and [result.code for result in results] == [0, 0]


@pytest.mark.parametrize("number", [0, 1])
def test_a_megabyte_on_standard_error_stops_no_stage(number):
    talk = sh("head -c 1048576 /dev/zero | tr '\\0' e >&2; cat")
    stages = [["cat"], ["cat"]]
    stages[number] = talk
    out, results = piped(stages, b"data")
    assert out == b"data" and len(results[number].err) == 1 << 20 and results[1 - number].err == ""


def test_each_stage_has_its_own_descriptors():
    show = sh('cat >/dev/null; cat "/dev/fd/$1" 2>/dev/null || echo none', "%")
    with tazpod.secret_fd(b"for the second") as fd:
        argv = [*show[:-1], str(fd)]
        source, sink = memory_file(), memory_file()
        stream([Stage(sh('cat "/dev/fd/$1"; exit 0', str(fd))), Stage(argv, (fd,))], source, sink)
        assert read_back(sink) == b"for the second"
        os.close(source)
        os.close(sink)


@pytest.mark.parametrize("hanging", [0, 1])
def test_a_stage_that_hangs_is_named_and_all_are_ended(hanging, monkeypatch):
    monkeypatch.setattr(tazpod, "TIME_LIMIT", 0.3)
    stages = [["cat"], ["cat"]]
    stages[hanging] = ["sleep", "600"]
    with pytest.raises(tazpod.TazpodError, match=r"^sleep did not end within 0.3 seconds$"):
        piped(stages)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_stage_ends_those_before_it(missing):
    stages = [["yes"], ["cat"], ["sleep", "600"]]
    stages[missing] = ["no-such-program-of-ours"]
    with pytest.raises(tazpod.MissingProgram, match="no-such-program-of-ours"):
        piped(stages)


# -- the foreground


@pytest.mark.parametrize(
    "script, status",
    [("exit 0", 0), ("exit 42", 42), ("exit 255", 255), ("kill -9 $$", 137), ("kill $$", 143)],
)
def test_the_foreground_gives_the_status_that_a_shell_would(script, status):
    assert run_foreground(sh(script)) == status


def test_the_foreground_program_has_our_standard_output_and_the_given_input(capfd):
    with tazpod.secret_fd(b"given") as fd:
        assert run_foreground(["cat"], stdin=fd) == 0
    assert capfd.readouterr().out == "given"


def test_the_foreground_program_starts_in_the_given_folder(tmp_path, capfd):
    run_foreground(["pwd"], cwd=tmp_path)
    assert capfd.readouterr().out == f"{tmp_path}\n"


def test_an_interrupt_belongs_to_the_program_in_the_foreground():
    """It reaches both, as on a terminal: the program decides, and we wait for its status."""
    script = "trap 'echo caught; exit 7' INT; kill -INT $PPID; kill -INT $$; sleep 600"
    previous = signal.getsignal(signal.SIGINT)
    assert run_foreground(sh(script)) == 7
    assert signal.getsignal(signal.SIGINT) is previous


@pytest.mark.parametrize("own, status", [(False, 130), (True, 0)])
def test_an_interrupted_program_that_says_0_is_not_believed(own, status):
    """`docker exec` does, off a terminal, and leaves its command behind."""
    script = "trap 'exit 0' INT; kill -INT $PPID; kill -INT $$; sleep 600"
    assert run_foreground(sh(script), own_session=own) == status


def test_the_foreground_program_can_be_interrupted_itself():
    """SIG_IGN would be inherited through exec; our handler is not."""
    assert run_foreground(sh("kill -INT $$; exit 9")) == 130


@pytest.mark.parametrize("argv", [["no-such-program-of-ours"], ["sh", "a\0b"]])
def test_a_program_that_does_not_start_leaves_interrupts_as_they_were(argv):
    previous = signal.getsignal(signal.SIGINT)
    with pytest.raises(tazpod.TazpodError):
        run_foreground(argv)
    assert signal.getsignal(signal.SIGINT) is previous


@pytest.mark.parametrize("script", ["exec sleep 600", "trap '' TERM; while :; do sleep 0.05; done"])
def test_an_error_of_ours_ends_the_program_in_the_foreground(script, tmp_path):
    def fail(process):
        with (tmp_path / "ready").open() as fifo:  # opens when the program does
            fifo.read()
        raise ZeroDivisionError

    os.mkfifo(tmp_path / "ready")
    head, _, tail = script.rpartition("; while")
    script = f'{head or ":"}; : > "$1"; {"while" + tail if head else tail}'
    with pytest.raises(ZeroDivisionError):
        run_foreground(sh(script, str(tmp_path / "ready")), after_start=fail)


def test_the_terminals_settings_are_put_back():
    import termios

    with terminal():
        before = termios.tcgetattr(0)
        assert run_foreground(["stty", "raw", "-echo"]) == 0
        assert termios.tcgetattr(0) == before


@pytest.mark.parametrize("own", [True, False])
def test_a_session_of_its_own_is_out_of_reach_of_the_terminals_signals(own, capfd):
    run_foreground([sys.executable, "-c", "import os; print(os.getsid(0) == os.getpid())"], own_session=own)
    assert capfd.readouterr().out == f"{own}\n"


# -- files


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_file_is_replaced_whole_with_its_mode(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o666)
    tazpod.write_whole(path, b"new")
    assert (path.read_bytes(), mode(path)) == (b"new", 0o600)
    tazpod.write_whole(path, b"newer", 0o644)
    assert (path.read_bytes(), mode(path)) == (b"newer", 0o644)
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_is_replaced_not_followed(tmp_path):
    (tmp_path / "target").write_text("untouched")
    (tmp_path / "link").symlink_to("target")
    tazpod.write_whole(tmp_path / "link", b"new")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "untouched"


@pytest.mark.parametrize("make", ["folder", "missing parent"])
def test_a_replacement_that_fails_leaves_nothing(make, tmp_path):
    path = tmp_path / "file"
    if make == "folder":
        (path / "inside").mkdir(parents=True)
    else:
        path = tmp_path / "no/file"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError):
        tazpod.write_whole(path, b"new")
    assert sorted(tmp_path.rglob("*")) == before


def test_what_root_writes_belongs_to_the_owner_of_the_folder(tmp_path):
    os.chown(tmp_path, 1234, 4321)
    tazpod.write_whole(tmp_path / "file", b"")
    folder = tazpod.private_folder(tmp_path / "folder")
    with tazpod.locked_file(tmp_path / "lock", "testing"):
        pass
    for path in (tmp_path / "file", folder, tmp_path / "lock"):
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)


def test_the_temporary_name_is_hidden_new_each_time_and_known_as_stale(tmp_path):
    names = {tazpod.temporary_beside(tmp_path / ".vault_state").name for _ in range(50)}
    assert len(names) == 50
    assert all(name.startswith(".vault_state.") and name.endswith(".tmp") for name in names)
    assert all(re.fullmatch(tazpod.RESERVED, name.encode()) for name in names)


WRITER = """
import sys
import tarfile
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import tazpod
path = Path(sys.argv[2])
print("ready", flush=True)
while True:
    for letter in b"ab":
        tazpod.write_whole(path, bytes([letter]) * 300_000)
"""


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.long)])
def test_a_kill_in_the_middle_of_writing_leaves_the_old_or_the_new(kills, tmp_path):
    path = tmp_path / "file"
    whole = {bytes([letter]) * 300_000 for letter in b"ab"}
    tazpod.write_whole(path, b"a" * 300_000)
    seen = 0
    for number in range(kills):
        argv = [sys.executable, "-c", WRITER, str(ROOT), str(path)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as writer:
            writer.stdout.readline()
            deadline = time.monotonic() + 0.002 * (number % 10)
            while time.monotonic() < deadline:
                assert path.read_bytes() in whole  # a reader never sees half either
                seen += 1
            writer.kill()
        assert path.read_bytes() in whole
    assert seen > 0


# -- the lock


def test_a_lock_is_held_until_the_end_and_then_free(tmp_path):
    path = tmp_path / "lock"
    with tazpod.locked_file(path, "testing") as fd:
        assert mode(path) == 0o600 and not os.get_inheritable(fd)
        with path.open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with tazpod.locked_file(path, "testing", wait=0):
        pass


def test_who_waits_too_long_is_told_what_the_other_does(tmp_path):
    path = tmp_path / "lock"
    with (
        tazpod.locked_file(path, "baking"),
        pytest.raises(tazpod.TazpodError) as caught,
        tazpod.locked_file(path, "baking a cake", wait=0.1),
    ):
        raise AssertionError("two hold the lock")
    assert str(caught.value) == f"another tazpod has been baking a cake for over 0.1 seconds ({path})"


HOLDER = """
import sys
import tarfile
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import tazpod
with tazpod.locked_file(Path(sys.argv[2]), "holding"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["leaves", "is killed"])
def test_who_waits_gets_the_lock_when_the_holder(end, tmp_path, capfd):
    path = tmp_path / "lock"
    argv = [sys.executable, "-c", HOLDER, str(ROOT), str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(tazpod.TazpodError), tazpod.locked_file(path, "holding", wait=0):
            pass
        if end == "leaves":
            holder.stdin.close()
        else:
            holder.kill()
        with tazpod.locked_file(path, "holding"):
            pass


@pytest.mark.parametrize("what", ["link", "folder", "missing parent"])
def test_a_lock_file_that_is_none_is_an_error(what, tmp_path):
    path = tmp_path / "lock"
    if what == "link":
        (tmp_path / "target").write_text("")
        path.symlink_to("target")
    elif what == "folder":
        path.mkdir()
    else:
        path = tmp_path / "no/lock"
    with pytest.raises(OSError), tazpod.locked_file(path, "testing"):
        raise AssertionError("it was locked")


# -- parsers


def mounts(*lines):
    return [(m.device, m.point, m.kind) for m in tazpod.parse_mountinfo("\n".join(lines) + "\n")]


@pytest.mark.parametrize(
    "line, mount",
    [
        ("36 35 98:0 / /mnt rw,noatime - ext3 /dev/root rw", ("98:0", "/mnt", "ext3")),
        ("36 35 98:0 /sub /mnt rw master:1 shared:7 - tmpfs tmpfs rw", ("98:0", "/mnt", "tmpfs")),
        (r"36 35 0:5 / /a\040b\011c\012d\134e\043f rw - tmpfs x rw", ("0:5", "/a b\tc\nd\\e#f", "tmpfs")),
        (r"36 35 0:5 / /a\134040b rw - tmpfs x rw", ("0:5", "/a\\040b", "tmpfs")),
        ("36 35 0:5 / /☃ rw - fuse.sshfs a@b:/c rw", ("0:5", "/☃", "fuse.sshfs")),
        ("36 35 0:5 / /x rw - tmpfs - rw", ("0:5", "/x", "tmpfs")),
        ("36 35 0:5 / /a\fb\rc\u2028d\x1c rw - tmpfs x rw", ("0:5", "/a\fb\rc\u2028d\x1c", "tmpfs")),
    ],
)
def test_a_line_of_mountinfo(line, mount):
    assert mounts(line) == [mount]


@pytest.mark.parametrize("line", ["", "garbage", "1 2 3 4", " - tmpfs tmpfs rw"])
def test_a_line_that_is_no_mount_is_passed_over(line):
    assert mounts(line) == []


@pytest.mark.parametrize(
    "options, holds",
    [
        ("rw,size=65536k,nr_inodes=131072,mode=700", True),
        ("rw,size=64k,nr_inodes=1024,mode=700", True),
        ("rw,size=4k,nr_inodes=1024", True),
        ("rw,size=4k", True),
        ("rw,size=8k,nr_inodes=1", True),
        ("rw,size=64k,nr_inodes=0", True),
        ("rw,size=0k,nr_inodes=1", True),
        ("rw,mode=700,mpol=x=size=4k,nr_inodes=1x", True),
        ("ro,size=4k,nr_inodes=1,mode=700", False),
        ("rw,size=16k,nr_inodes=37", False),
        ("rw,size=64k,nr_inodes=999,mode=700,noswap", False),
    ],
)
def test_the_mark_of_a_destroyed_vault(options, holds):
    assert tazpod.may_hold_secrets(tazpod.Mount("0:5", "/x", "tmpfs", options=options)) == holds
    assert tazpod.may_hold_secrets(tazpod.Mount("0:5", "/x", "ext4", options=options)) is False


def test_the_real_table_is_read_and_the_topmost_mount_counts(tmp_path):
    points = [point for _, point, _ in mounts(*Path("/proc/self/mountinfo").read_text().splitlines())]
    assert "/" in points and "/proc" in points
    assert tazpod.mounted_at(Path("/proc")).kind == "proc"
    assert tazpod.mounted_at(tmp_path) is None
    assert "/proc" in tazpod.mounts_of(tazpod.mounted_at(Path("/proc")).device)


CONFIG = tazpod.Config(Path("/p"), "x-lab", image="img:1")
INSPECTED = {
    "Id": "abc",
    "Name": "/x-lab",
    "State": {"Status": "running"},
    "Config": {"Image": "img", "Env": ["A=1", "HOST_CWD=/a=b"]},
    "Mounts": [{"Destination": "/workspace", "Source": "/m"}],
}


@pytest.mark.parametrize(
    "change, project, ours",
    [
        ({}, "/m", True),
        ({"Config": {"Env": ["HOST_CWD=/old", "HOST_CWD=/new"]}}, "/m", True),
        ({"Config": {"Env": ["HOST_CWD="]}}, "/m", True),
        ({"Config": {"Env": ["XHOST_CWD=/x"]}}, "/m", False),
        ({"Config": {"Env": None}}, "/m", False),
        ({"Config": {}}, "/m", False),
        ({"Mounts": None}, None, False),
        ({"Mounts": [{"Destination": "/workspace/x", "Source": "/no"}]}, None, False),
        ({"Mounts": [{"Destination": "/workspace"}]}, "", False),
        ({"Mounts": [{"Destination": "/workspace", "Source": "/host_mnt/Users/me/x"}]}, "/Users/me/x", True),
    ],
)
def test_whose_a_container_is(change, project, ours):
    """What is mounted tells that, and no variable: docker.args can set one."""
    text = json.dumps([{**INSPECTED, **change}]).encode()
    container, image = tazpod.parse_inspect(CONFIG, tazpod.Result(0, text, ""))
    assert container and image == "" and container.ours is ours
    assert (container.id, container.status, container.project) == ("abc", "running", project)


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"[]", b"{}", b"null", b"3", b'"x"', b"[null]", b"[[]]", b"\xff\xfe", b"[{}]"),
        json.dumps([{**INSPECTED, "State": None}]).encode(),
        json.dumps([{**INSPECTED, "State": {}}]).encode(),
        json.dumps([{**INSPECTED, "Config": None}]).encode(),
        json.dumps([{**INSPECTED, "Config": {"Env": [1]}}]).encode(),
        json.dumps([{**INSPECTED, "Mounts": [{}]}]).encode(),
    ],
)
def test_an_inspect_that_makes_no_sense_is_an_error_not_a_fault(text):
    with pytest.raises(tazpod.TazpodError, match="makes no sense"):
        tazpod.parse_inspect(CONFIG, tazpod.Result(0, text, ""))


IMAGE_FOUND = {"Id": "sha256:1", "RootFS": {}}


@pytest.mark.parametrize(
    "found, err, container, image",
    [
        ([INSPECTED, IMAGE_FOUND], "", "abc", "sha256:1"),
        ([INSPECTED], "Error: No such object: img:1", "abc", ""),
        ([IMAGE_FOUND], "Error: No such object: x-lab", None, "sha256:1"),
        ([], "Error: No such object: x-lab\nError: No such object: img:1", None, ""),
        ([], "error: no such object: x-lab\nerror: no such object: img:1", None, ""),
        # a volume has the container's name, an image too
        (
            [{"Name": "x-lab", "Mountpoint": "/"}, IMAGE_FOUND],
            "Error: No such object: x-lab",
            None,
            "sha256:1",
        ),
        ([{"Id": "sha256:2", "RootFS": {}}, INSPECTED], "Error: No such object: img:1", "abc", ""),
        # or a volume, a network, a pod of Podman's has it, and is what the engine finds by that name
        ([{"Name": "x-lab", "Mountpoint": "/"}, IMAGE_FOUND], "", None, "sha256:1"),
        ([{"Name": "x-lab", "Driver": "bridge"}], "Error: No such object: img:1", None, ""),
        ([{"Name": "x-lab", "State": "Running"}, IMAGE_FOUND], "", None, "sha256:1"),
    ],
)
def test_one_inspect_tells_container_and_image(found, err, container, image):
    result = tazpod.Result(1 if err else 0, json.dumps(found).encode(), err)
    there, here = tazpod.parse_inspect(CONFIG, result)
    assert (there.id if there else None, here) == (container, image)


DISK, RAM, SHM, OVERLAY = "254:0", "0:22", "0:40", "0:50"
ID = "7" * 64
KEPT = f"/var/lib/docker/containers/{ID}"
HOST = [
    tazpod.Mount(DISK, "/", "ext4"),
    tazpod.Mount(RAM, "/run", "tmpfs"),
    tazpod.Mount(SHM, f"{KEPT}/mounts/shm", "tmpfs"),
    tazpod.Mount(OVERLAY, "/var/lib/docker/overlay2/x/merged", "overlay"),
]
OUTSIDE = (("/srv/cache", "/cache"), ("/run/x.sock", "/var/run/x.sock"), ("", "/memory"))
USUAL = [
    tazpod.Mount(OVERLAY, "/", "overlay"),
    tazpod.Mount("0:60", "/proc", "proc"),
    tazpod.Mount(SHM, "/dev/shm", "tmpfs"),
    tazpod.Mount(DISK, "/workspace", "ext4", "/p"),
    tazpod.Mount(DISK, "/cache", "ext4", "/srv/cache"),
    *(tazpod.Mount(DISK, f"/etc/{name}", "ext4", f"{KEPT}/{name}") for name in ("hosts", "hostname")),
    tazpod.Mount(RAM, "/run/.containerenv", "tmpfs", f"/containers/{ID}/userdata/.containerenv"),
]
BY_LINK = tazpod.Mount(RAM, "/run/x.sock", "tmpfs", "/x.sock")  # the image's /var/run


@pytest.mark.parametrize(
    "mounts, init, strange",
    [
        ([], False, False),
        ([BY_LINK], False, False),
        ([BY_LINK._replace(root="/x.sock//deleted")], False, False),
        ([BY_LINK, BY_LINK._replace(point="/copy")], False, True),
        ([BY_LINK._replace(root="/y.sock")], False, True),
        ([BY_LINK._replace(device=DISK)], False, True),
        # what a program inside has made, and a folder of the container's that it shows elsewhere
        ([tazpod.Mount("0:99", "/mnt", "overlay")], False, False),
        ([tazpod.Mount(OVERLAY, "/mnt", "overlay", "/opt")], False, False),
        ([tazpod.Mount(DISK, "/real", "ext4", "/srv/other")], False, True),
        ([tazpod.Mount(DISK, "/cache", "ext4", "/srv/cache")], False, True),  # two lie there
        # names of the engine's
        ([tazpod.Mount(DISK, "/real", "ext4", "/home/tini")], True, True),
        ([tazpod.Mount(DISK, "/real", "ext4", KEPT)], False, True),
        ([tazpod.Mount(DISK, "/real", "ext4", f"{KEPT}/userdata")], False, True),
        ([tazpod.Mount(DISK, "/real", "ext4", f"{KEPT}/hostconfig.json")], False, True),
        ([tazpod.Mount(RAM, "/etc/passwd", "tmpfs", f"/c/{ID}/userdata/passwd")], False, False),
        ([tazpod.Mount(RAM, "/run/secrets", "tmpfs", f"/c/{ID}/userdata/run/secrets")], False, False),
        ([tazpod.Mount(RAM, "/run/secrets/KEY", "tmpfs", f"/c/{ID}/userdata/secrets/KEY")], False, False),
        ([tazpod.Mount(RAM, "/etc/localtime", "tmpfs", f"/c/{ID}/userdata/localtime")], False, False),
        ([tazpod.Mount(DISK, "/real", "ext4", f"/home/x{ID}/hosts")], False, True),
        ([tazpod.Mount(DISK, "/usr/sbin/docker-init", "ext4", "/usr/bin/tini")], True, False),
        ([tazpod.Mount(DISK, "/usr/sbin/docker-init", "ext4", "/usr/bin/tini")], False, True),
        ([tazpod.Mount(DISK, "/run/podman-init", "ext4", "/usr/libexec/podman/catatonit")], True, False),
        ([tazpod.Mount(DISK, "/usr/sbin/docker-init", "ext4", "/tini")] * 2, True, True),
    ],
)
def test_which_mounts_of_a_container_show_what_it_was_not_to_have(mounts, init, strange):
    container = tazpod.Container(ID, "running", "img", "/p", binds=(*OUTSIDE, ("/p/a", "/gone")), init=init)
    found = tazpod.strange_mounts(container, OUTSIDE, [*USUAL, *mounts], HOST)
    assert bool(found) is strange


@pytest.mark.parametrize(
    "status, running, in_memory",
    [
        ("running", True, True),
        ("paused", False, True),
        ("exited", False, False),
        ("created", False, False),
        ("restarting", False, False),
        ("removing", False, False),
        ("dead", False, False),
    ],
)
def test_which_states_run_and_which_keep_what_is_in_memory(status, running, in_memory):
    container = tazpod.Container("abc", status, "img", "/p")
    assert (container.running, container.in_memory) == (running, in_memory)


PASSWD = "root:x:0:0:root:/root:/bin/bash\nubuntu:x:1001:1001::/home/ubuntu:/bin/sh\n"
TAZPOD = "tazpod:x:1000:1000:,,,:/home/tazpod:/bin/bash"
GROUP = "root:x:0:\nsudo:x:27:tazpod\ntazpod:x:1000:\n"


@pytest.mark.parametrize(
    "passwd, group, ids, new_passwd, new_group",
    [
        (
            PASSWD + TAZPOD,
            GROUP,
            (1001, 1001),
            f"tazpod:x:1001:1001:,,,:/home/tazpod:/bin/bash\n{PASSWD}",
            "root:x:0:\nsudo:x:27:tazpod\ntazpod:x:1001:\n",
        ),
        (
            f"{TAZPOD}\n{PASSWD}",
            GROUP,
            (0, 0),
            f"tazpod:x:0:0:,,,:/home/tazpod:/bin/bash\n{PASSWD}",
            "root:x:0:\nsudo:x:27:tazpod\ntazpod:x:0:\n",
        ),
        (
            "tazpod:x:1000:100::/home/tazpod:/bin/bash",
            "users:x:100:\ntazpod:x:1000:\n",
            (5, 6),
            "tazpod:x:5:6::/home/tazpod:/bin/bash\n",
            "users:x:100:\ntazpod:x:1000:\n",
        ),
        (
            "tazpod2:x:7:7::/:/bin/sh\n" + TAZPOD,
            "short:x\n",
            (1000, 1000),
            TAZPOD + "\ntazpod2:x:7:7::/:/bin/sh\n",
            "short:x\n",
        ),
    ],
    ids=["id is taken", "root's project", "group of another name", "a name inside a name"],
)
def test_the_operators_account_gets_the_ids_of_the_projects_owner(
    *, passwd, group, ids, new_passwd, new_group
):
    assert tazpod.remap_accounts(passwd, group, "tazpod", *ids) == (new_passwd, new_group)


@pytest.mark.parametrize("passwd", ["", PASSWD, "tazpod:x:1000\n", "xtazpod:x:1:1::/:/bin/sh\n"])
def test_an_image_without_the_account_is_an_error(passwd):
    with pytest.raises(tazpod.TazpodError, match=r"^the image has no account named tazpod$"):
        tazpod.remap_accounts(passwd, GROUP, "tazpod", 1, 1)


STAT = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 {start} 20 21"


@pytest.mark.parametrize(
    "text, shell",
    [
        ("77 (bash) " + STAT.format(start=555), (77, "555")),
        ("77 (a) b) " + STAT.format(start=555), (77, "555")),
        ("77 () S 9) " + STAT.format(start=555) + "\n", (77, "555")),
        ("77 (a\nb) " + STAT.format(start=555), (77, "555")),
        ("", None),
        ("77", None),
        ("77 (bash) S 1", None),
        ("x (bash) " + STAT.format(start=555), None),
        ("-7 (bash) " + STAT.format(start=555), None),
    ],
)
def test_a_shell_is_known_by_its_number_and_when_it_started(text, shell):
    parsed = tazpod.parse_shell(text)
    assert (parsed and (parsed.pid, parsed.start)) == shell


@pytest.mark.parametrize("name", ["odd) name", "(", "a b"])
def test_a_real_process_with_an_odd_name_is_told_from_its_successor(name, tmp_path):
    program = tmp_path / name
    program.write_bytes(Path("/bin/sleep").resolve().read_bytes())
    program.chmod(0o755)
    with subprocess.Popen([str(program), "600"]) as process:
        line = Path(f"/proc/{process.pid}/stat").read_text()
        shell = tazpod.parse_shell(line)
        (tmp_path / "s.shell").write_text(line)
        assert shell.pid == process.pid and tazpod.shell_of(tmp_path, "s") == shell
        (tmp_path / "s.shell").write_text(line.replace(f" {shell.start} ", f" {int(shell.start) + 1} "))
        assert tazpod.shell_of(tmp_path, "s") is None
        process.kill()


@pytest.mark.parametrize("target", ["/proc/self/stat", "/dev/zero", ""])
def test_a_claim_that_is_no_file_is_none(tmp_path, target):
    claim = tmp_path / "s.shell"
    claim.symlink_to(target) if target else os.mkfifo(claim)
    assert tazpod.shell_of(tmp_path, "s") is None


GOOD = ("BEGIN_DECRYPTION", "PLAINTEXT", "DECRYPTION_OKAY", "GOODMDC", "END_DECRYPTION")


def status_lines(*words):
    return "".join(f"[GNUPG:] {word} 62 0 x\n" for word in words)


@pytest.mark.parametrize(
    "status, accepted",
    [
        (status_lines(*GOOD), True),
        (status_lines("ENC_TO", "NEED_PASSPHRASE_SYM", *GOOD), True),
        ("gpg: noise\n" + status_lines(*GOOD) + "more noise\n", True),
        *((status_lines(*(word for word in GOOD if word != left)), False) for left in GOOD),
        *((status_lines(*GOOD, word), False) for word in ("PLAINTEXT", "BEGIN_DECRYPTION", "END_DECRYPTION")),
        (status_lines("PLAINTEXT", *GOOD), False),
        (
            status_lines("PLAINTEXT", "BEGIN_DECRYPTION", "DECRYPTION_OKAY", "GOODMDC", "END_DECRYPTION"),
            False,
        ),
        (
            status_lines("BEGIN_DECRYPTION", "DECRYPTION_OKAY", "GOODMDC", "END_DECRYPTION", "PLAINTEXT"),
            False,
        ),
        (
            status_lines("END_DECRYPTION", "PLAINTEXT", "DECRYPTION_OKAY", "GOODMDC", "BEGIN_DECRYPTION"),
            False,
        ),
        (
            status_lines("BEGIN_DECRYPTION", "PLAINTEXT", "BADMDC", "DECRYPTION_FAILED", "END_DECRYPTION"),
            False,
        ),
        (status_lines(*GOOD).replace("[GNUPG:] ", ""), False),
        (status_lines(*GOOD).replace("[GNUPG:]", " [GNUPG:]"), False),
        (status_lines(*(word + "S" for word in GOOD)), False),
        ("[GNUPG:] \n", False),
        ("", False),
    ],
)
def test_what_gpg_must_say_before_a_vault_counts_as_intact(status, accepted):
    assert tazpod.gpg_accepts(status) is accepted


PLANS = {
    (False, False, False): ("shell",),
    (False, False, True): ("shell",),
    (False, True, False): ("shell",),
    (False, True, True): ("shell",),
    (True, False, False): ("bootstrap", "shell", "leave"),
    (True, False, True): ("unlock", "shell", "leave"),
    (True, True, False): ("shell", "leave"),
    (True, True, True): ("shell", "leave"),
}


@pytest.mark.parametrize("state, steps", PLANS.items(), ids=str)
def test_the_plan_of_an_entry(state, steps):
    ghost, opened, sealed = state
    assert tazpod.plan_entry(State(ghost=ghost, open=opened, sealed=sealed)) == steps


# -- leases


LEASE = """
import sys
import tarfile
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import tazpod
session = tazpod.open_session(tazpod.Config(Path(sys.argv[2]), "x-lab"))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lease_lives_as_long_as_the_process_that_holds_it(tmp_path):
    folder = tmp_path / ".tazpod/run"
    with subprocess.Popen(
        [sys.executable, "-c", LEASE, str(ROOT), str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        ((_, path),) = tazpod.sessions(folder).items()
        assert path.suffix == ".lease" and mode(path) == 0o600 and tazpod.is_alive(path)
        assert tazpod.end_dead_sessions(folder) == ([], 1)
        holder.kill()
        holder.wait()
        assert not tazpod.is_alive(path)
        for _ in range(2):  # it stays until the vault is locked
            assert tazpod.end_dead_sessions(folder) == ([path], 0)
    tazpod.forget([path])
    assert tazpod.sessions(folder) == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="what a container was made with is believed of root alone")
def test_where_the_locks_of_host_sides_are_not_seen_a_session_lives_as_its_shell_does(tmp_path, monkeypatch):
    made = tmp_path / "made.json"
    made.write_text('{"sees_locks": false}')
    monkeypatch.setattr(tazpod, "POD_MADE", str(made))
    folder = tmp_path / ".tazpod/run"
    folder.mkdir(parents=True)
    for name in ("new", "shown"):
        (folder / f"{name}.session").touch()  # nobody seems to hold it, whether the host side lives or not
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as shell:
        (folder / "shown.shell").write_text(Path(f"/proc/{shell.pid}/stat").read_text())
        assert tazpod.end_dead_sessions(folder) == ([], 2)
        shell.kill()
    assert tazpod.end_dead_sessions(folder) == ([folder / "shown.session"], 1)
    made.write_text("{}")
    assert tazpod.end_dead_sessions(folder)[1] == 0


def test_leaving_ends_ones_own_session_and_counts_the_others(tmp_path):
    config = tazpod.Config(tmp_path, "x-lab")
    with contextlib.ExitStack() as stack:
        mine, other = (tazpod.open_session(config) for _ in range(2))
        stack.callback(other.close)
        mine.become("session")
        assert tazpod.sessions(config.run_folder)[mine.id].suffix == ".session"
        assert tazpod.end_dead_sessions(config.run_folder, mine.id) == ([], 1)
        mine.close()
        assert tazpod.sessions(config.run_folder) == {other.id: other.file("lease")}


@pytest.mark.parametrize(
    "place, reason",
    [
        (None, "SSH_AUTH_SOCK is not set"),
        ("gone", "No such file or directory"),
        ("dead", "Connection refused"),
        ("x" * 200, "AF_UNIX path too long"),
    ],
    ids=["unset", "gone", "dead", "too long"],
)
def test_without_an_agent_there_is_one_warning_and_a_session(place, reason, tmp_path, monkeypatch, capfd):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / place) if place else "")
    session = tazpod.open_session(tazpod.Config(tmp_path, "x-lab", ssh_agent=True))
    assert capfd.readouterr().err == f"tazpod: warning: no ssh agent for the container: {reason}\n"
    assert sorted(path.suffix for path in session.folder.iterdir()) == [".lease"]
    session.close()


def test_what_the_lease_says_of_the_terminal(tmp_path, monkeypatch):
    for name, value in (("TERM", "xterm"), ("COLORTERM", "a b"), ("LANG", "C'.UTF-8"), ("PATH_", "x")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/user/1000/agent")  # which is none of the container's business
    session = tazpod.open_session(tazpod.Config(tmp_path, "x-lab"))
    assert session.file("lease").read_text() == "TERM=xterm\n"
    session.close()


# -- the shell's side


SIGN = "\x1b[1;33m[open] \x1b[0m"
PROMPTS = {  # where the secrets are mounted, what ~/.bashrc says, the environment; the prompt
    "locked": ("/nowhere", "", {}, "[locked] P> "),
    "open": ("/proc", "", {}, f"{SIGN}P> "),
    "no vault": ("", "", {}, "P> "),
    "no colours": ("/proc", "", {"NO_COLOR": "1"}, "[open] P> "),
    "a dumb terminal": ("/proc", "", {"TERM": "dumb"}, "[open] P> "),
    "a prompt of one's own": ("/proc", "PS1='mine> '", {}, f"{SIGN}mine> "),
    "a command": ("/proc", "PROMPT_COMMAND='echo -n ran. >&2'", {}, f"ran.{SIGN}P> "),
    "a command before": ("/proc", 'PROMPT_COMMAND="echo -n ran. >&2;$PROMPT_COMMAND"', {}, f"ran.{SIGN}P> "),
    "a command from outside": ("/proc", "", {"PROMPT_COMMAND": "echo -n ran. >&2"}, f"ran.{SIGN}P> "),
    "a prompt made each time": ("/proc", "PROMPT_COMMAND='PS1=\"new> \"'", {}, f"{SIGN}new> "),
    "the status": ("/proc", "PS1='$?> '", {}, f"{SIGN}3> "),
    "no prompt": ("/proc", "PS1=", {}, ""),
    "no variables in it": ("/proc", "shopt -u promptvars", {}, "P> "),
    "no unset variables": ("/proc", "set -u", {}, f"{SIGN}P> "),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_the_prompt_tells_of_the_vault_and_leaves_the_rest_alone(case, tmp_path):
    secrets, bashrc, env, prompt = PROMPTS[case]
    rc = tmp_path / "bashrc"
    rc.write_text(f"PS1='P> '\n__tazpod_secrets={secrets}\n{tazpod.BASH_HOOK}\n{bashrc}\n")
    env = {"PATH": os.environ["PATH"], "TERM": "xterm", "HOME": str(tmp_path), **env}
    argv = ["bash", "--noediting", "--rcfile", str(rc), "-i"]
    done = subprocess.run(argv, input="(exit 3)\n(exit 3)\n", env=env, capture_output=True, text=True)
    shown = [line for line in done.stderr.splitlines() if "job control" not in line and "ioctl" not in line]
    first = prompt.replace("3>", "0>")
    assert "".join(shown) == f"{first}{prompt}{prompt}exit"
    assert done.stdout == ""


@pytest.mark.parametrize(
    "command, said",
    [
        ("", ""),
        ("echo out; echo err >&2", "out\nerr\n"),
        ("exit 7", "tazpod: warning: hooks.pre_lock ended with status 7\n"),
        ("kill -9 $$", "tazpod: warning: hooks.pre_lock ended with status -9\n"),
        ("exec sleep 1000", "tazpod: warning: hooks.pre_lock did not end within 0.5 seconds\n"),
    ],
)
def test_the_hook_before_the_lock_stops_nothing(command, said, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tazpod, "WORKSPACE", str(tmp_path))
    monkeypatch.setattr(tazpod, "TIME_LIMIT", 0.5 if "sleep" in command else 60)
    tazpod.before_lock(command)
    assert capfd.readouterr() == ("", said)


MANY = """
import os, resource, socket, sys
from pathlib import Path
import tazpod
resource.setrlimit(resource.RLIMIT_NOFILE, (1200, 1200))
agent = socket.socket(socket.AF_UNIX)
agent.bind("agent")
agent.listen()
os.environ["SSH_AUTH_SOCK"] = "agent"
taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]  # as many connections would
tazpod.relay_agent(Path("relay.agent"))
client = socket.socket(socket.AF_UNIX)
client.connect("relay.agent")
print(client.recv(1))
"""


def test_more_connections_to_the_agent_than_select_takes_are_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MANY],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.stdout, done.stderr) == ("b''\n", "")


def test_ctrl_c_while_the_pod_still_imports_shows_no_traceback(tmp_path):
    """The launcher, with a tazpod.py that is interrupted before it is there."""
    with tarfile.open(fileobj=io.BytesIO(tazpod.pod_archive(tazpod.Config(tmp_path, "x-lab")))) as archive:
        launcher = archive.extractfile(tazpod.POD_LAUNCHER[1:]).read().decode()
    (tmp_path / "tazpod.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\ndef program(): print('went on')\n"
    )
    script = tmp_path / "launcher"
    script.write_text(launcher.replace(tazpod.POD_TOOL, str(tmp_path)))
    done = subprocess.run(["sh", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")
