"""What the README and the pages say holds: every word, key, status, file, link and command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import enginelib
import pytest
from conftest import ROOT, write_stub
from enginelib import PASSPHRASE, Place

import tazpod

place, template = enginelib.place, enginelib.template
project_with_vault = enginelib.project_with_vault

FILES = (ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md"))
PAGES = {page.name: page.read_text() for page in FILES}
README, KEYS = PAGES["README.md"], PAGES["config.md"]


def table(page: str, header: str) -> list[list[str]]:
    """The rows of the table with that header, as cells."""
    lines = page[page.index(f"{header}\n") :].splitlines()[2:]
    rows = lines[: next((n for n, text in enumerate(lines) if not text.startswith("|")), len(lines))]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def block(page: str, start: str) -> str:
    """The block of shell commands that begins with `start`."""
    (found,) = re.findall(rf"^```sh\n({re.escape(start)}.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return str(found)


def bash(script: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A block as a person would paste it, but for stopping at what fails."""
    argv = ["bash", "-euo", "pipefail", "-c", script]
    return subprocess.run(
        argv, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


# -- tables


def test_the_readme_names_every_word_and_no_other() -> None:
    cells = [cell for cell, _ in table(README, "| word | does |")]
    named = set(re.findall(r"`([\w-]+)", " ".join(cells)))
    known = {*tazpod.all_words(), *tazpod.ALIASES, "tazpod", "help", "--help", "--version"}
    assert named == known
    for word, name in re.findall(r"`(\w+)[^`]*? \[(--[a-z]+)", " ".join(cells)):
        assert name in str(tazpod.find_word(word).options), (word, name)


def test_the_page_of_keys_has_each_once_with_its_default() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (?:`([^`]*)`)? ?\| (.+) \|$", KEYS, re.MULTILINE)
    names = [name for name, *_ in rows]
    assert sorted(names) == sorted(tazpod.KEYS)
    config = tazpod.Config(Path("/x/<folder>"), "<folder>-lab")
    for name, default, meaning in rows:
        value = getattr(config, tazpod.KEYS[name].field)
        value = dict(value) if tazpod.KEYS[name].kind is dict else value
        assert default == (value if isinstance(value, str) else json.dumps(value)), name
        assert meaning


def test_the_example_of_the_page_of_keys_is_legal() -> None:
    examples = re.findall(r"^```yaml\n(.*?)^```$", KEYS, re.DOTALL | re.MULTILINE)
    assert len(examples) == 1
    config, warnings = tazpod.parse_config(examples[0], Path("/x/infra"))
    assert warnings == []
    assert config.env == (("KUBECONFIG", "/home/tazpod/secrets/kubeconfig"), ("GITHUB_ACTOR", None))


def test_every_key_that_a_page_names_is_one() -> None:
    sections = {name.split(".")[0] for name in tazpod.KEYS if "." in name}
    for name in ("README.md", "config.md", "storage.md"):
        for span in re.findall(r"`([a-z_]+\.[a-z_]+)`", PAGES[name]):
            if span.split(".")[0] in sections:
                assert span in tazpod.KEYS, (name, span)


def test_the_exit_statuses_are_those_of_the_module_and_its_help() -> None:
    rows = {int(status): meaning for status, meaning in table(README, "| status | meaning |")}
    own = (tazpod.OK, tazpod.FAILED, tazpod.USAGE, tazpod.ABSENT, tazpod.UNWELL, tazpod.MISSING)
    assert list(rows) == [*own, tazpod.INTERRUPTED]
    helped = re.split(r" {2,}", tazpod.HELP_TAIL.partition("Exit status\n")[2].splitlines()[0].strip())
    assert len(helped) >= 5
    for text in helped:
        number, _, meaning = text.partition(" ")
        assert rows[int(number)].startswith(meaning)
    assert f"pull gives {tazpod.ABSENT} when the storage holds no vault" in tazpod.HELP_TAIL
    assert rows[tazpod.ABSENT] == "`pull`: the storage holds no vault"
    assert f"status and doctor give {tazpod.UNWELL} when not all is well" in tazpod.HELP_TAIL
    assert rows[tazpod.UNWELL].startswith("`status`, `doctor`:")


def test_the_times_are_those_of_the_last_bench() -> None:
    page = (ROOT / "bench/README.md").read_text()
    (header,) = re.findall(r"^\| what .*$", page, re.MULTILINE)
    measured = table(page, header)
    for name, ours, ratio, beside in table(README, "| installed with pipx | takes | which is | of |"):
        (row,) = (row for row in measured if row[0] == name)
        assert (ours, ratio) == (row[2], row[3]) and row[4].endswith(beside), name


# -- links and files


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as a forge makes them."""
    heads = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", PAGES)
def test_links_and_names_lead_to_what_is_there(name: str) -> None:
    folder = next(path.parent for path in FILES if path.name == name)
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[name]):
        path, _, anchor = target.partition("#")
        assert (folder / path).exists(), target
        assert not anchor or anchor in anchors((folder / path).read_text()), target
    for span in re.findall(r"`((?:tests|docs|bench)/[^` ]+|[\w-]+\.(?:py|ai|md|toml))`", PAGES[name]):
        assert (ROOT / span).exists(), span
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"`make ([a-z]+)", PAGES[name])) <= set(targets)


def test_each_test_that_the_threat_model_names_is_there() -> None:
    rows = table(PAGES["SECURITY.md"], "| who | what they can write | what they must not reach | held by |")
    there = {
        name
        for path in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert len(rows) >= 9
    for _, _, _, tests in rows:
        named = re.findall(r"`(\w+)`", tests)
        assert named and set(named) <= there, set(named) - there


def test_the_code_cites_no_page_that_is_not_there() -> None:
    source = (ROOT / "tazpod.py").read_text()
    cited = set(re.findall(r"[\w./-]+\.md\b", source))
    assert "docs/contract.md" in cited
    assert [name for name in cited if not (ROOT / name).is_file()] == []


def test_the_calls_of_the_contract_are_those_of_the_code() -> None:
    config = tazpod.Config(Path("PROJECT"), "NAME", image="IMAGE")
    calls = [
        tazpod.run_argv(config, Path("HOME")),
        tazpod.shell_argv(config),
        tazpod.exec_argv(config, ["tazpod", "unlock"]),
        tazpod.is_open_argv(config),
    ]
    lines = "".join(f"{tazpod.quoted(*argv)}\n" for argv in calls)
    assert f"```\n{lines}```" in PAGES["contract.md"]


# -- commands


@pytest.mark.parametrize("kept", ["", "history/vault-*"])
def test_a_vault_is_recovered_with_gpg_and_tar_alone(kept: str, tmp_path: Path) -> None:
    """As the README says it; the passphrase comes from gpg's own settings instead of a person."""
    tree, vault = tmp_path / "tree", tmp_path / ".tazpod/vault"
    (tree / "aws").mkdir(parents=True)
    (tree / "aws/config").write_text("[default]\n")
    (tree / "key").write_text("root-key\n")
    (tree / "key").chmod(0o400)
    (tree / "link").symlink_to("key")
    vault.mkdir(parents=True)
    sealed = vault / tazpod.SEALED_NAME
    with sealed.open("xb") as file:
        tazpod.seal(tazpod.survey(tree), tree, PASSPHRASE.encode(), file.fileno())
    script = block(README, "mkdir -m 700 secrets")
    if kept:
        tazpod.add_version(tazpod.Vault(vault, tmp_path), sealed)
        sealed.unlink()
        script = script.replace(f"vault/{tazpod.SEALED_NAME}", f"vault/{kept}")
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    (home / "passphrase").write_text(f"{PASSPHRASE}\n")
    (home / "gpg.conf").write_text(f"batch\npinentry-mode loopback\npassphrase-file {home}/passphrase\n")
    done = bash(script, tmp_path, GNUPGHOME=str(home))
    assert done.returncode == 0, done.stderr
    secrets = tmp_path / "secrets"
    assert tazpod.survey(secrets) == tazpod.survey(tree)
    assert (secrets / "key").read_text() == "root-key\n"
    assert secrets.stat().st_mode & 0o777 == 0o700


def test_the_way_back_to_go_tazpod_is_one_copy(tmp_path: Path) -> None:
    vault = tazpod.Vault(tmp_path / ".tazpod/vault", tmp_path)
    vault.folder.mkdir(parents=True)
    data = (ROOT / "tests/data/go-vault/vault1.tar.aes").read_bytes()
    vault.sealed.write_bytes(data)
    tazpod.keep_version(vault)
    tazpod.write_whole(vault.sealed, b"ours")
    assert bash(block(README, "cd .tazpod/vault"), tmp_path).returncode == 0
    assert vault.sealed.read_bytes() == data
    assert (vault.folder / "vault.tar.aes.new").read_bytes() == b"ours"


def test_the_lines_for_completion_load_in_their_shells(tmp_path: Path) -> None:
    write_stub(tmp_path, "tazpod", f'exec {sys.executable} {ROOT / "tazpod.py"} "$@"')
    lines = block(README, ". <(tazpod completion bash)").splitlines()
    file = tmp_path / ".config/fish/completions/tazpod.fish"  # before what fish makes of man
    file.parent.mkdir(parents=True)
    file.write_text(lines[-1])
    for line, words, shown in zip(
        lines,
        (["bash", "-c"], ["zsh", "-fc"], ["fish", "-c"]),
        (
            "{}; complete -p tazpod",
            "autoload -Uz compinit; compinit -uD; {}; echo $_comps[tazpod]",
            "complete -C 'tazpod unl'",
        ),
    ):
        env = {"PATH": f"{tmp_path}:/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
        script = shown.format(line)
        done = subprocess.run([*words, script], env=env, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), line
        assert ("unlock" if words[0] == "fish" else "_tazpod") in done.stdout, line


@pytest.mark.engine
def test_a_day_as_the_readme_has_it(tmp_path: Path) -> None:
    place = Place(tmp_path, "my-project").init()
    tools = tmp_path / "bin"
    tools.mkdir()
    write_stub(tools, "tazpod", f'exec {" ".join(place.argv)} "$@"')
    write_stub(tools, "pass", f'[ "$*" = "show tazpod" ] && echo {PASSPHRASE}')
    state = str(place.home / ".local/state")
    env = {**place.env, "PATH": f"{tools}:{os.environ['PATH']}", "XDG_STATE_HOME": state}
    try:
        place.ok("run", "git", "init", "-q")
        place.ok("unlock", "--new", passphrase=PASSPHRASE)
        place.ok("lock")
        day = bash(block(README, "cd my-project"), tmp_path, **env)
        assert day.returncode == 0, day.stderr
        assert ".tazpod" in day.stdout.splitlines()
        assert [f"docker {verb} {place.name}" for verb in ("kill", "stop", "rm")] == day.stdout.splitlines()[
            -3:
        ]
        opened = bash(block(README, "tazpod unlock"), place.folder, **env)
        assert opened.returncode == 0, opened.stderr
        assert place.is_open()
        git = place.ok("run", "git", "status", "--short", "-uall")
        assert [line for line in git.splitlines() if ".tazpod" in line] == [
            f"?? .tazpod/{name}" for name in (".gitignore", "Dockerfile.ai", "config.yaml")
        ]
    finally:
        place.clean_up()
