"""The command line: exit statuses, errors, help, questions, passphrases."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pexpect
import pytest
from conftest import ROOT, run_cli, terminal

import tazpod

HOST_WORDS = [word.name for word in tazpod.all_words().values() if word.host_only]
POD_WORDS = ["unlock", "save", "lock", "passwd", "verify", "restore", "history"]
POD_WORDS += ["login", "push", "pull", "setup-storage"]
BOTH_WORDS = [
    "adopt",
    "logs",
    "config",
    "env",
    "status",
    "doctor",
    "completion",
]  # env only says on the host where it belongs


def shown(capfd):
    """Standard output, and standard error as lines."""
    out, err = capfd.readouterr()
    return out, err.splitlines()


# -- exit statuses and errors


STATUSES = [
    (["--version"], 0),
    (["-v"], 0),
    (["--help"], 0),
    (["-h"], 0),
    (["help"], 0),
    (["help", "help"], 0),
    (["help", "--help"], 0),
    (["--yes", "--version"], 0),
    (["nonsense"], 2),
    ([""], 2),
    (["--nonsense"], 2),
    (["-x"], 2),
    (["--", "up"], 2),
    (["--pod"], 2),
    (["--pod=", "up"], 2),
    (["up", "--pod", "-x"], 2),
    (["run"], 2),
    (["run", "--"], 2),
    (["run", "-la"], 2),
    (["run", "--passphrase-fd", "true"], 2),
    (["run", "true"], 1),
    (["help", "nonsense"], 2),
    (["up", "extra"], 2),
    (["up", "--discard"], 2),
    (["down", "--disc"], 2),
    (["unlock", "--pass", "3"], 2),
    (["unlock", "--passphrase-fd"], 2),
    (["unlock", "--passphrase-fd", "three"], 2),
    (["restore"], 2),
    (["restore", "a", "b"], 2),
    (["pull", "nonsense"], 2),
    (["init", "--image"], 2),
    (["env"], 2),
    *(([word.name], 2) for word in tazpod.INTERNAL),
    (["__internal_setup", "root"], 2),
    (["__internal_holders", "1", "/x"], 2),
    (["__internal_holders", "x"], 2),
    ([], 1),
    (["up"], 1),
    (["down"], 1),
    (["unlock"], 1),
    (["history"], 1),
]


@pytest.mark.parametrize(
    "words, status", STATUSES, ids=[" ".join(words) or "(none)" for words, _ in STATUSES]
)
def test_the_exit_status_of(words, status, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)  # no project here
    assert tazpod.main(words) == status
    out, err = shown(capfd)
    if status == 0:
        assert out and not err
    else:
        assert not out
        assert len(err) == 2 and err[0].startswith("tazpod: error: ") and err[1].startswith("hint: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variable", [None, "/srv/project"])
def test_the_words_of_the_container_do_nothing_outside_of_one(variable, tmp_path, monkeypatch, capfd):
    """Typed with sudo, the set-up would change this machine's accounts and the shell of all its users."""
    if variable:
        monkeypatch.setenv("HOST_CWD", variable)
    for function in ("set_up_in_pod", "scan_holders", "guard", "pod_facts", "check_pod"):
        monkeypatch.setattr(tazpod, function, lambda *_: pytest.fail("it ran"))
    monkeypatch.chdir(tmp_path)
    for words in (["setup", "root"], ["holders", "1", "/x"], ["sync_daemon"], ["status"], ["doctor"]):
        assert tazpod.main([f"__internal_{words[0]}", *words[1:]]) == 2
        assert capfd.readouterr().err.startswith(f"tazpod: error: __internal_{words[0]} is for the inside of")


@pytest.mark.parametrize(
    "typed, near",
    [
        ("unlok", "unlock"),
        ("ulock", "unlock"),
        ("loc", "lock"),
        ("entr", "enter"),
        ("shh", "ssh"),
        ("histroy", "history"),
        ("pwd", "passwd"),
        ("updat", "update"),
        ("hlep", "help"),
        ("dwon", "down"),
        ("--hlep", "help"),
        ("zzz", None),
        ("__internal_setu", None),
    ],
)
def test_an_unknown_word_is_answered_with_the_nearest(typed, near, capfd):
    assert tazpod.main([typed]) == 2
    advice = f"; did you mean {near}?" if near else ""
    assert shown(capfd)[1][0] == f"tazpod: error: there is no word {typed!r}{advice}"


@pytest.mark.parametrize("words", [["up", "--nonsense"], ["pull", "x"], ["restore"]])
def test_a_usage_error_points_to_the_help_of_the_word(words, capfd):
    tazpod.main(words)
    assert shown(capfd)[1][1] == f"hint: tazpod {words[0]} --help"


def break_by(what, project):
    """Make the project wrong in a way that a person can."""
    config, run = project / tazpod.CONFIG_PATH, project / ".tazpod/run"
    if what == "config is a folder":
        config.unlink()
        config.mkdir()
    elif what == "config is a loop":
        config.unlink()
        config.symlink_to(config.name)
    elif what == "run is a file":
        run.write_text("")
    elif what == "run is a dangling link":
        run.symlink_to("nowhere")
    elif what == "lock is a link":
        run.mkdir()
        (run / "up.lock").symlink_to("/etc/passwd")
    elif what == "home is missing":
        (project.parent / "home").rmdir()
    elif what == "the folder is gone":
        for path in (config, project / tazpod.DOCKERFILE_PATH, project / ".tazpod/.gitignore"):
            path.unlink()
        for path in (project / ".tazpod/vault", project / ".tazpod", project):
            path.rmdir()


@pytest.mark.parametrize("word", ["up", "enter", "unlock"])
@pytest.mark.parametrize(
    "what",
    [
        *("config is a folder", "config is a loop", "run is a file", "run is a dangling link"),
        *("lock is a link", "home is missing", "the folder is gone"),
    ],
)
def test_what_a_person_can_break_is_told_in_one_line(what, word, project, stub_path, capfd):
    stub = stub_path / "docker"
    stub.write_text("#!/bin/sh\ncase $1 in container) echo 'No such container' >&2; exit 1;; esac\n")
    break_by(what, project)
    assert tazpod.main([word]) == 1
    errors = [line for line in shown(capfd)[1] if line.startswith("tazpod: error: ")]
    assert len(errors) == 1 and "fault in tazpod" not in errors[0] and "Errno" not in errors[0]


def test_a_fault_of_our_own_is_owned_up_to_and_debug_shows_it(monkeypatch, capfd):
    monkeypatch.setattr(tazpod, "HELP_TAIL", None)
    assert tazpod.main(["--help"]) == 1
    assert shown(capfd) == (
        "",
        ["tazpod: error: a fault in tazpod itself: AttributeError", "hint: --debug shows it"],
    )
    assert tazpod.main(["--help", "--debug"]) == 1
    assert shown(capfd)[1][2] == "Traceback (most recent call last):"


@pytest.mark.parametrize("flags, tracebacks", [([], 0), (["--debug"], 1)])
def test_a_traceback_is_shown_with_debug_only(flags, tracebacks, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert tazpod.main([*flags, "up"]) == 1
    lines = shown(capfd)[1]
    assert lines.count("Traceback (most recent call last):") == tracebacks
    assert lines[:2] == [
        f"tazpod: error: there is no TazPod project at or above {tmp_path}",
        "hint: tazpod init",
    ]


@pytest.mark.parametrize(
    "words, yes, debug",
    [
        (["--version"], False, False),
        (["--yes", "--version"], True, False),
        (["--version", "--yes"], True, False),
        (["--debug", "--version", "--yes"], True, True),
        (["init", "--image", "--yes", "busybox"], True, False),
        (["init", "--", "--yes"], False, False),
        (["nonsense", "--debug"], False, True),
        (["run", "--yes", "x", "--debug"], True, False),
        (["--debug", "run", "--passphrase-fd", "9", "x", "--yes"], False, True),
    ],
)
def test_yes_and_debug_count_anywhere_before_a_double_dash(words, yes, debug, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tazpod.main(words)
    assert (tazpod.OPTIONS.yes, tazpod.OPTIONS.debug) == (yes, debug)


# -- help


def test_version_is_one_line(capfd):
    assert tazpod.main(["--version"]) == 0
    assert shown(capfd) == (f"tazpod {tazpod.__version__}\n", [])


def test_the_overview_names_every_word_and_fits_a_terminal(capfd):
    tazpod.main(["help"])
    text = shown(capfd)[0]
    tazpod.main(["--help"])
    assert shown(capfd)[0] == text
    listed = [line.split()[0].rstrip(",") for line in text.splitlines() if line.startswith("  ")]
    assert set(tazpod.all_words()) <= set(listed)
    for alias in tazpod.ALIASES:
        assert re.search(rf", {alias}[ ,]", text)
    assert "__internal" not in text
    assert max(map(len, text.splitlines())) <= 100 and len(text.splitlines()) <= 60


@pytest.mark.parametrize("name", [*tazpod.all_words(), *(set(tazpod.ALIASES) - {"update"})])
def test_the_help_of_a_word_is_the_same_both_ways_and_names_each_option(name):
    before, after = run_cli("help", name), run_cli(name, "--help")
    assert (before.returncode, before.stderr) == (after.returncode, after.stderr) == (0, "")
    assert before.stdout == after.stdout
    word = tazpod.find_word(tazpod.ALIASES.get(name, [name])[0])
    assert before.stdout.startswith(f"usage: tazpod {word.name} ")
    for names, settings in word.options:
        label = names[0] if names[0].startswith("-") else settings.get("metavar", names[0])
        if "choices" in settings:
            label = f"{{{','.join(settings['choices'])}}}"
        assert (label in before.stdout) == (settings.get("help") != tazpod.HIDDEN)


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["help", "unlock"], ["unlock", "--help"]])
def test_a_reader_who_leaves_is_no_reason_for_a_traceback(words):
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = run_cli(*words, capture_output=False, stdout=write_end, stderr=subprocess.PIPE)
    os.close(write_end)
    assert done.stderr == "" and done.returncode in (0, 1)


def test_a_full_disk_under_the_output_is_an_error():
    with open("/dev/full", "w") as full:
        done = run_cli("--help", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "tazpod: error: No space left on device"


# -- colour


@pytest.mark.parametrize(
    "on_terminal, no_color, painted",
    [(True, "", True), (True, None, True), (True, "1", False), (False, None, False), (False, "", False)],
)
def test_colour_is_for_a_terminal_that_wants_it(on_terminal, no_color, painted, monkeypatch, capfd):
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    if on_terminal:
        with terminal() as person:
            tazpod.main(["nonsense"])
            text = person.shown()
    else:
        tazpod.main(["nonsense"])
        text = capfd.readouterr().err
    assert ("\033[" in text) == painted
    assert "error:" in text and "hint:" in text


# -- where a word may be typed


@pytest.mark.parametrize("word", [*HOST_WORDS, ""])
def test_the_pod_refuses_the_words_of_the_host(word, monkeypatch, capfd):
    monkeypatch.setattr(tazpod, "in_pod", lambda: True)
    assert tazpod.main([word] if word else []) == 2
    said = f"tazpod: error: {word or 'enter'} is for the host; this is inside the container"
    assert shown(capfd)[1][0] == said


def test_the_pod_refuses_to_be_sent_to_another(monkeypatch, capfd):
    monkeypatch.setattr(tazpod, "in_pod", lambda: True)
    assert tazpod.main(["--pod", "x-lab", "history"]) == 2
    assert shown(capfd)[1][0] == "tazpod: error: --pod is for the host; this is inside the container"


def test_every_word_is_for_the_host_or_for_both():
    assert sorted([*HOST_WORDS, *POD_WORDS, *BOTH_WORDS]) == sorted(tazpod.all_words())
    assert set(HOST_WORDS) == {"enter", "run", "init", "up", "down", "build", "list", "trust"}


@pytest.mark.parametrize("host_cwd", [None, "", "/srv/x"])
def test_a_machine_without_the_mount_is_a_host(host_cwd, monkeypatch):
    if host_cwd is not None:
        monkeypatch.setenv("HOST_CWD", host_cwd)
    assert not os.path.ismount(tazpod.WORKSPACE)
    assert not tazpod.in_pod()


def test_a_mount_within_one_file_system_is_the_workspace_too(tmp_path):
    """As with the storage driver vfs, where the folder has the device number of what is around it."""
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    code = f"import tazpod; tazpod.WORKSPACE = {str(workspace)!r}; print(tazpod.in_pod())"
    script = 'mount --bind . "$0" && exec "$@"'
    bound = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(workspace)]

    def told(*words, **env):
        argv = [*words, sys.executable, "-c", code]
        done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **env})
        return done.stdout.strip() or done.stderr

    assert told(HOST_CWD="/x") == "False"
    assert told(*bound, HOST_CWD="/x") == "True"
    assert told(*bound, HOST_CWD="") == "False"


FORWARDED = [
    ("unlock", [], ["unlock"]),
    ("unlock", ["--passphrase-fd", "5"], ["unlock"]),
    ("unlock", ["--passphrase-fd=0"], ["unlock"]),
    ("save", [], ["save"]),
    ("save", ["--force"], ["save", "--force"]),
    ("lock", [], ["lock"]),
    ("lock", ["--discard"], ["lock", "--discard"]),
    ("lock", ["--leaving", "abc"], ["lock", "--leaving", "abc"]),
    ("passwd", ["--passphrase-fd", "0"], ["passwd"]),
    ("verify", [], ["verify"]),
    ("verify", ["vault-1", "--passphrase-fd", "9"], ["verify", "vault-1"]),
    ("restore", ["vault-1"], ["restore", "vault-1"]),
    ("restore", ["vault-1", "--remote"], ["restore", "vault-1", "--remote"]),
    ("history", [], ["history"]),
    ("history", ["--remote"], ["history", "--remote"]),
    ("login", [], ["login"]),
    ("push", [], ["push", "vault"]),
    ("push", ["--force"], ["push", "vault", "--force"]),
    ("pull", [], ["pull", "vault"]),
    ("pull", ["vault", "--keep-mine"], ["pull", "vault", "--keep-mine"]),
    ("pull", ["--force"], ["pull", "vault", "--force"]),
    ("setup-storage", [], ["setup-storage"]),
]


@pytest.mark.parametrize("name, typed, forwarded", FORWARDED)
def test_what_is_forwarded_says_the_same_without_the_descriptor(name, typed, forwarded):
    word = tazpod.find_word(name)
    args = tazpod.make_parser(word).parse_args(typed)
    words = tazpod.forward_words(word, args)
    assert words == forwarded
    again = vars(tazpod.make_parser(word).parse_args(words[1:]))
    assert {**again, "passphrase_fd": None} == {**vars(args), "passphrase_fd": None}


def test_every_word_for_both_sides_is_in_the_table_above():
    assert {name for name, *_ in FORWARDED} == set(POD_WORDS)


# -- history, which runs on both sides


def test_history_lists_what_is_there_and_does_not_wait_for_a_fifo(project, capfd):
    vault = project / ".tazpod/vault"
    (vault / "history").mkdir()
    native = b"\x8c\x0d\x04\x09\x03\x0a" + bytes(8) + b"\xff\xd2"
    for name, data, when in (
        ("history/vault-20240101T000000.tar.aes", bytes(99), 1704067200),
        ("history/vault-20240102T000000.tar.aes", native, 1704153600),
        ("vault.tar.aes", None, 1704240000),
    ):
        if data is None:
            os.mkfifo(vault / name)
        else:
            (vault / name).write_bytes(data)
        os.utime(vault / name, (when, when))
    assert tazpod.main(["history"]) == 0
    rows = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert [(row[0], row[1], " ".join(row[6:])) for row in rows] == [
        ("vault-20240101T000000", "2024-01-01", "go"),
        ("vault-20240102T000000", "2024-01-02", "openpgp"),
        ("(present)", "2024-01-03", "no sealed vault"),
    ]


def test_a_name_that_is_no_text_is_shown(project):
    (project / ".tazpod/vault/history").mkdir()
    (project / ".tazpod/vault/history/vault-\udcff.tar.aes").write_text("x")
    for encoding in ("utf-8:strict", "ascii:strict"):
        done = run_cli("history", cwd=project, env={**os.environ, "PYTHONIOENCODING": encoding})
        assert (done.returncode, done.stderr) == (0, "")
        assert "vault-\\udcff" in done.stdout


def test_history_of_a_new_project_says_that_there_is_none(project, capfd):
    assert tazpod.main(["history"]) == 0
    assert shown(capfd) == ("", ["tazpod: there is no sealed vault yet"])


# -- questions


@pytest.mark.parametrize(
    "typed, agreed",
    [
        ("y\n", True),
        ("Y\n", True),
        ("yes\n", True),
        (" YES \n", True),
        ("\n", False),
        ("n\n", False),
        ("yy\n", False),
        ("ye\n", False),
        ("oui\n", False),
        ("\x04", False),
    ],
)
def test_only_yes_is_yes(typed, agreed):
    with terminal() as person:
        person.type(typed)
        assert tazpod.confirm("Sure?") is agreed
        assert "Sure? [y/N] " in person.shown()


def test_what_is_typed_ahead_stays_for_the_shell():
    with terminal() as person:
        person.type("y\nls -la\n")
        assert tazpod.confirm("Sure?")
        assert os.read(0, 100) == b"ls -la\n"


@pytest.mark.parametrize("yes", [True, False])
def test_without_a_terminal_nobody_is_asked(yes, capfd):
    tazpod.OPTIONS.yes = yes
    assert tazpod.confirm("Sure?") is yes
    assert shown(capfd) == ("", [])


def test_yes_asks_nobody_on_a_terminal_either():
    tazpod.OPTIONS.yes = True
    with terminal() as person:
        assert tazpod.confirm("Sure?")
        assert person.shown() == ""


def at_the_question(tmp_path, **options):
    """A person in an empty folder who typed `tazpod` and reads the question."""
    env = {"PATH": str(tmp_path), "HOME": str(tmp_path), "TERM": "dumb", **options}
    child = pexpect.spawn(
        sys.executable, [str(ROOT / "tazpod.py")], cwd=str(tmp_path), env=env, timeout=30, encoding="utf-8"
    )
    child.expect_exact(f"There is no TazPod project here. Start one in {tmp_path}? [y/N]")
    return child


def ended(child):
    """What was shown until the end, and the exit status."""
    text = child.read()
    child.close()
    return text, child.exitstatus


def test_no_at_the_first_question_stops_and_writes_nothing(tmp_path):
    child = at_the_question(tmp_path)
    child.sendline("n")
    text, status = ended(child)
    assert status == 1 and "there is no TazPod project at or above" in text
    assert list(tmp_path.iterdir()) == []


def test_yes_at_the_first_question_makes_the_project(tmp_path):
    child = at_the_question(tmp_path)
    child.sendline("y")
    text, status = ended(child)
    assert status == 127 and "docker is not installed" in text
    assert (tmp_path / tazpod.CONFIG_PATH).is_file()


@pytest.mark.parametrize(
    "number, status",
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=lambda n: str(int(n)),
)
def test_a_signal_at_a_question_is_an_exit_status_not_a_traceback(number, status, tmp_path):
    child = at_the_question(tmp_path)
    if number == signal.SIGINT:
        child.sendintr()
    else:
        child.kill(number)
    text, code = ended(child)
    assert code == status and "Traceback" not in text
    assert ("tazpod: error:" in text) == ("interrupted" in text) == (number == signal.SIGINT)
    assert list(tmp_path.iterdir()) == []


PROBE = """
import os, resource, sys
sys.path.insert(0, sys.argv[1])
import tazpod
tazpod.main(["--version"])
print(oct(os.umask(0)), resource.getrlimit(resource.RLIMIT_CORE))
"""


def test_what_is_written_is_private_and_nothing_dumps_core():
    done = subprocess.run([sys.executable, "-c", PROBE, str(ROOT)], capture_output=True, text=True)
    assert done.stdout.splitlines()[1:] == ["0o77 (0, 0)"]


# -- passphrases


@pytest.mark.parametrize(
    "given, complaint",
    [
        (b"", "the passphrase is empty"),
        (b"a\nb", "the passphrase has a newline or NUL in it"),
        (b"a\n", "the passphrase has a newline or NUL in it"),
        (b"a\0b", "the passphrase has a newline or NUL in it"),
        (b"x" * 4097, "the passphrase is longer than 4096 bytes"),
    ],
)
def test_a_passphrase_that_gpg_would_cut_is_refused(given, complaint):
    with pytest.raises(tazpod.UsageError) as caught:
        tazpod.check_passphrase(given)
    assert str(caught.value) == complaint


@pytest.mark.parametrize("given", [b"x", b" ", b"x" * 4096, b"tab\tand \xff", "pâss☃".encode(), b"a\rb"])
def test_any_other_passphrase_is_taken_as_it_is(given):
    assert tazpod.check_passphrase(given) == given


@pytest.mark.parametrize(
    "piped, passphrase",
    [
        (b"secret\n", b"secret"),
        (b"secret", b"secret"),
        (b"secret\r\n", b"secret\r"),
        (b" secret \n", b" secret "),
        (b"x" * 4096 + b"\n", b"x" * 4096),
        (b"x" * 4096, b"x" * 4096),
        (b"", None),
        (b"\n", None),
        (b"secret\n\n", None),
        (b"two\nlines\n", None),
        (b"nul\0\n", None),
        (b"x" * 4097 + b"\n", None),
        (b"x" * 60000, None),
    ],
    ids=lambda value: f"{len(value)} bytes" if value and len(value) > 20 else None,
)
def test_a_passphrase_from_a_descriptor(piped, passphrase):
    with tazpod.secret_fd(piped) as fd:
        if passphrase is not None:
            assert tazpod.read_passphrase(fd) == passphrase
        else:
            with pytest.raises(tazpod.UsageError):
                tazpod.read_passphrase(fd)


def test_a_passphrase_that_comes_in_pieces_is_read_whole():
    read_end, write_end = os.pipe2(os.O_DIRECT)  # each write is a read of its own (pipe(2))
    for piece in (b"one ", b"two ", b"three\n"):
        os.write(write_end, piece)
    os.close(write_end)
    assert tazpod.read_passphrase(read_end) == b"one two three"
    os.close(read_end)


@pytest.mark.parametrize(
    "fd, said",
    [
        ("999", "Bad file descriptor"),
        ("-1", "Bad file descriptor"),
        ("99999999999999999999", "there is no such descriptor"),
    ],
)
def test_a_descriptor_that_is_not_there_is_wrong_usage(fd, said, project, capfd):
    assert tazpod.main(["unlock", f"--passphrase-fd={fd}"]) == 2
    assert shown(capfd)[1] == [f"tazpod: error: --passphrase-fd {fd}: {said}"]


def test_a_descriptor_that_cannot_be_read_is_wrong_usage(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(tazpod.UsageError, match="Is a directory"):
        tazpod.read_passphrase(fd)
    os.close(fd)


def test_without_a_terminal_a_passphrase_is_not_asked_for():
    with pytest.raises(tazpod.UsageError) as caught:
        tazpod.ask_passphrase()
    assert str(caught.value) == "there is no terminal to ask for the passphrase on"
    assert caught.value.hint == "give it by a descriptor: --passphrase-fd N"


ASKING = """
import os, sys
sys.path.insert(0, sys.argv[1])
import tazpod
os.write(1, b"ready\\n")
os.read(0, 100)
try:
    print("GOT", getattr(tazpod, sys.argv[2])())
except tazpod.TazpodError as error:
    print("ERROR", error)
except KeyboardInterrupt:
    print("INTERRUPTED")
"""


def asked(function, ahead=""):
    """A person who is asked for a passphrase, and may have typed something before."""
    child = pexpect.spawn(
        sys.executable,
        ["-c", ASKING, str(ROOT), function],
        timeout=30,
        encoding="utf-8",
        env={"LANG": "C.UTF-8"},
    )
    child.expect_exact("ready\r\n")
    child.sendline("go" + ahead)
    return child


NEW, AGAIN = "New passphrase: ", "The same again: "


@pytest.mark.parametrize(
    "function, talk, result",
    [
        ("ask_passphrase", [("Passphrase: ", "pâss ☃")], "pâss ☃"),
        (
            "ask_new_passphrase",
            [(NEW, "long enough for all"), (AGAIN, "long enough for all")],
            "long enough for all",
        ),
        (
            "ask_new_passphrase",
            [(NEW, "mistyped"), (AGAIN, "typed"), (NEW, "short"), (AGAIN, "short")],
            "short",
        ),
        ("ask_new_passphrase", [(NEW, "short"), ("resist guessing", None), (AGAIN, "short")], "short"),
    ],
)
def test_a_passphrase_is_asked_for_without_echo(function, talk, result):
    child = asked(function)
    for prompt, typed in talk:
        child.expect_exact(prompt)
        if typed is not None:
            child.sendline(typed)
    text, status = ended(child)
    assert status == 0
    assert text.strip().splitlines()[-1] == f"GOT {result.encode()!r}"
    assert result not in text.replace(f"GOT {result.encode()!r}", "")


@pytest.mark.parametrize(
    "function, talk, said",
    [
        ("ask_passphrase", [("Passphrase: ", "\n")], "the passphrase is empty"),
        ("ask_passphrase", [("Passphrase: ", "\x04")], "no passphrase was given"),
        ("ask_new_passphrase", [(NEW, "\n")], "the passphrase is empty"),
        (
            "ask_new_passphrase",
            [(NEW, "one long passphrase\n"), (AGAIN, "another\n")] * 3,
            "no passphrase was chosen",
        ),
        ("ask_new_passphrase", [(NEW, "one long passphrase\n"), (AGAIN, "\n")], "the passphrase is empty"),
    ],
)
def test_a_passphrase_that_is_not_one_is_refused(function, talk, said):
    child = asked(function)
    for prompt, typed in talk:
        child.expect_exact(prompt)
        child.send(typed)
    text, _ = ended(child)
    assert text.strip().splitlines()[-1] == f"ERROR {said}"


def test_ctrl_c_at_the_prompt_gives_the_echo_back():
    child = asked("ask_passphrase")
    child.expect_exact("Passphrase: ")
    assert child.waitnoecho(30)
    child.sendintr()
    child.expect_exact("INTERRUPTED")
    child.close()


def test_what_was_typed_before_the_prompt_is_no_passphrase():
    child = asked("ask_passphrase", ahead="\nstray keys")
    child.expect_exact("Passphrase: ")
    child.sendline("the real one")
    assert ended(child)[0].strip().splitlines()[-1] == "GOT b'the real one'"


@pytest.mark.parametrize("short, whole", [("update", "pull image"), ("ssh", "enter"), ("sync", "pull")])
def test_the_help_of_a_short_word_says_what_it_is_short_for(short, whole):
    text = " ".join(run_cli("help", short).stdout.split())
    assert f"`tazpod {short}` is short for `tazpod {whole}`" in text


WAITING = """
import sys
sys.path.insert(0, sys.argv[1])
import tazpod
tazpod.SLOW = 0.01
with tazpod.waiting(lambda: "sending 3.0 MiB"):
    sys.stdin.readline()
    tazpod.say("by the way")
    sys.stdin.readline()
tazpod.say("sent")
"""


def test_what_takes_long_is_told_in_a_line_that_is_taken_away_again():
    argv = ["-c", WAITING, str(ROOT)]
    env = {"LANG": "C.UTF-8", "NO_COLOR": "1"}
    child = pexpect.spawn(sys.executable, argv, timeout=30, encoding="utf-8", env=env, echo=False)
    child.expect_exact("\rtazpod: sending 3.0 MiB, 0 s\x1b[K")
    child.sendline("")
    child.expect_exact("\r\x1b[Ktazpod: by the way\r\n")
    child.expect_exact("\rtazpod: sending 3.0 MiB, ")
    child.sendline("")
    child.expect_exact("\r\x1b[Ktazpod: sent\r\n")
    child.expect(pexpect.EOF)
    done = subprocess.run([sys.executable, *argv], input="\n\n", capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "tazpod: by the way\ntazpod: sent\n")


def test_a_transfer_is_told_with_its_bytes(tmp_path):
    path = tmp_path / "part"
    path.write_bytes(bytes(3 << 20))
    storage = tazpod.Storage("b", "r", "p")
    for operation, words, text in (
        ("put-object", ("--key", "k", "--body", str(path), "--if-none-match", "*"), "sending 3.0 MiB to b"),
        ("get-object", ("--key", "k", str(path)), "fetching the vault from b, 3.0 MiB so far"),
        ("get-object", ("--key", "k", str(tmp_path / "no")), "fetching the vault from b, 0 bytes so far"),
        ("head-object", ("--key", "k"), "asking b"),
    ):
        assert tazpod.transfer_text(storage, operation, words) == text


@pytest.mark.parametrize("words", [("help", "update"), ("update", "--help")])
def test_the_help_of_update_speaks_of_the_image_alone(words):
    done = run_cli(*words)
    assert done.returncode == 0 and "Pull the image." in done.stdout and "storage" not in done.stdout


def test_config_names_the_line_of_an_older_ghost_mode(project):
    (project / ".tazpod/config.yaml").write_text("image: x\nghost_mode: false\n")
    (line,) = [text for text in run_cli("config").stdout.splitlines() if "ghost_mode" in text]
    assert line.split() == ["features.ghost_mode", ".tazpod/config.yaml:2", "false"]


def test_a_word_that_go_tazpod_only_announced_is_told_as_such():
    done = run_cli("vpn")
    assert (done.returncode, done.stdout) == (tazpod.USAGE, "")
    assert "placeholder in Go TazPod" in done.stderr and "hint: hooks.post_up" in done.stderr
