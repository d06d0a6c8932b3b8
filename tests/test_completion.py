"""Completion: what is offered, and that real shells offer it."""

from __future__ import annotations

import re
import subprocess
import sys

import pexpect
import pytest
from conftest import ROOT, run_cli, write_stub

import tazpod

WORDS = [*tazpod.all_words(), *tazpod.ALIASES]
GLOBAL = ["--debug", "--dry-run", "--pod", "--yes"]
PODS, PAST = ["blue-lab", "green-lab"], ["vault-20240101T000000", "vault-20240102T000000"]

OFFERED = [
    ("", sorted([*WORDS, "help", "--help", "--version", *GLOBAL])),
    ("un", ["unlock"]),
    ("s", ["save", "setup-storage", "ssh", "status", "sync"]),
    ("--d", ["--debug", "--dry-run"]),
    ("--yes --debug lo", ["lock", "login", "logs"]),
    ("help ", sorted(WORDS)),
    ("help lock ", []),
    ("nonsense ", []),
    ("__i", []),
    ("lock ", ["--discard"]),
    ("lock --", sorted(["--discard", "--help", *GLOBAL])),
    ("up ", ["--force", "--recreate"]),
    ("build ", []),
    ("pull ", ["image", "vault"]),
    ("sync ", ["image", "vault"]),
    ("update ", []),
    ("pull v", ["vault"]),
    ("pull --f", ["--force"]),
    ("pull vault ", []),
    ("completion ", ["bash", "fish", "zsh"]),
    ("restore ", PAST),
    ("verify vault-20240102", PAST[1:]),
    ("verify --yes vault-2", PAST),
    ("restore --remote ", []),
    ("restore vault-20240101T000000 ", []),
    ("unlock --passphrase-fd ", []),
    ("init --image ", []),
    ("--pod ", PODS),
    ("--pod b", PODS[:1]),
    ("--pod = gr", PODS[1:]),  # as bash cuts it
    ("--pod=gr", ["--pod=green-lab"]),
    ("--pod blue-lab un", ["unlock"]),
    ("--pod blue-lab restore ", ["of-blue-lab"]),
    ("lock --pod g", PODS[1:]),
    ("run ", []),
    ("run --p", ["--passphrase-fd", "--pod"]),
    ("run ls ", []),
    ("run ls --", []),
]


@pytest.mark.parametrize("typed, offered", OFFERED, ids=[typed for typed, _ in OFFERED])
def test_what_is_offered(typed, offered):
    past = lambda pod: [f"of-{pod}"] if pod else PAST  # noqa: E731
    assert tazpod.complete(typed.split(" "), lambda: PODS, past) == offered


def test_versions_come_from_the_project_and_trouble_is_silent(project, tmp_path):
    history = project / ".tazpod/vault/history"
    history.mkdir()
    for name in (*PAST, "vault-$(true)", "vault-1;true", "vault-a b"):  # never typed for anybody
        (history / f"{name}.tar.aes").touch()
    words = (tazpod.COMPLETE_WORD, "tazpod", "restore")
    assert run_cli(*words, "", cwd=project).stdout.split() == PAST
    for more, folder in ((("",), tmp_path), (("--pod", "x-lab", ""), project), (("--pod", ""), project)):
        done = run_cli(*words, *more, cwd=folder, env={"PATH": str(tmp_path)})
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def on_path(tmp_path):
    """An environment with `tazpod` on the PATH, and a folder with the scripts of completion."""
    write_stub(tmp_path, "tazpod", f'exec {sys.executable} {ROOT / "tazpod.py"} "$@"')
    for shell in tazpod.COMPLETIONS:
        (tmp_path / shell).write_text(run_cli("completion", shell).stdout)
    path = f"{tmp_path}:/usr/local/bin:/usr/bin:/bin"
    return {"PATH": path, "HOME": str(tmp_path), "TERM": "dumb", "LANG": "C.UTF-8"}


@pytest.mark.parametrize(
    "shell, start",
    [
        (["bash", "--norc", "--noprofile", "-i"], "PS1='READY> '; . ~/bash"),
        (["zsh", "-f", "-i"], "PS1='READY> '; autoload -Uz compinit && compinit -u -D && . ~/zsh"),
    ],
    ids=["bash", "zsh"],
)
def test_bash_and_zsh_complete_on_tab(shell, start, on_path, tmp_path):
    (tmp_path / "a-file").touch()
    child = pexpect.spawn(
        shell[0],
        shell[1:],
        env=on_path,
        cwd=str(tmp_path),
        timeout=30,
        encoding="utf-8",
        dimensions=(50, 300),
    )
    child.sendline(start + "; echo READY''NOW")
    child.expect("READYNOW\r\n")
    child.expect("READY> ")
    for typed, end in (
        ("tazpod --dr\tunl\t", "tazpod --dry-run unlock "),
        ("tazpod pull i\t", "tazpod pull image "),
        ("tazpod lock --disc\t", "tazpod lock --discard "),
        ("tazpod run cat a\t", "tazpod run cat a-file "),
    ):
        child.send(typed)
        child.expect("[ \b]+".join(map(re.escape, end.split(" "))))  # zsh redraws
        child.send("\x15")  # take the line away
    child.close(force=True)


@pytest.mark.parametrize(
    "typed, offered",
    [
        ("tazpod unl", ["unlock"]),
        ("tazpod pull ", ["image", "vault"]),
        ("tazpod lock --disc", ["--discard"]),
        ("tazpod run cat a", ["a-file"]),
    ],
)
def test_fish_completes(typed, offered, on_path, tmp_path):
    (tmp_path / "a-file").touch()
    script = f"source ~/fish; complete -C '{typed}'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", script], env=on_path, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.stderr, [line.split("\t")[0] for line in done.stdout.splitlines()]) == ("", offered)
