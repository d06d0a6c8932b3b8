"""The coding agents of the full image keep their logins: on disk in the envelope, or in the vault."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from enginelib import FULL_IMAGE, PASSPHRASE, Place, docker

import tazpod

pytestmark = pytest.mark.engine

KEY = "sk-probe-5f1c0a77d2"
SERVE = "http://127.0.0.1:4999"
# What each agent writes by a command of its own, without a network: a server, a login.
MAKE = f"""set -e; cd /tmp
claude mcp add -s user probe -- /bin/true
codex mcp add probe -- /bin/true
echo {KEY} | codex login --with-api-key
gemini mcp add -s user probe /bin/true
timeout 60 opencode serve --port 4999 & serve=$!
until curl -m 2 -so /dev/null {SERVE}/doc; do sleep 0.1; kill -0 $serve; done
login='{{"type":"api","key":"{KEY}"}}'
curl -m 20 -sf -X PUT -H 'content-type: application/json' {SERVE}/auth/openai -d "$login"
kill $serve; wait $serve || true
"""
FIND = """set -e; cd /tmp
claude mcp get probe | grep -q 'Scope: User config' && echo claude
codex mcp get probe | grep -q 'command: /bin/true'
codex login status 2>&1 | grep -q 'API key' && echo codex
gemini mcp list 2>&1 | grep -q 'probe: /bin/true' && echo gemini
opencode auth list | grep -q OpenAI && echo opencode
"""
EVERY = "claude\ncodex\ngemini\nopencode\n"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A project with the image that has the agents."""
    options = ('docker.args: ["--network=none"]',)  # else each waits for an answer of the DNS servers
    place = Place(tmp_path_factory.mktemp("agents")).init(*options, image=FULL_IMAGE)
    yield place
    place.clean_up()


def found(place: Place, passphrase: str | None = None) -> str:
    done = place.run("run", "bash", "-c", FIND, passphrase=passphrase)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def holding(folder: Path) -> list[str]:
    """The files in which the agents' key can be read."""
    grep = ["grep", "-rlF", KEY, str(folder)]
    return subprocess.run(grep, capture_output=True, text=True).stdout.split()


def test_every_agent_keeps_its_login_with_nothing_to_configure(full: Place) -> None:
    done = full.run("run", "bash", "-c", MAKE)
    assert done.returncode == 0, done.stdout + done.stderr
    full.ok("down")
    assert found(full) == EVERY
    assert full.reads("cd; ls -d .claude.json 2> /dev/null || true") == ""


def test_one_key_moves_all_of_it_into_the_vault(full: Place) -> None:
    assert holding(full.folder)
    full.configure("vault.agents: true")
    full.ok("unlock", passphrase=PASSPHRASE)
    said = full.ok("adopt", *(name for name in tazpod.AGENTS if (full.folder / ".tazpod" / name).exists()))
    assert said.count("is in the vault now") == len(tazpod.AGENTS)
    assert holding(full.folder) == []
    docker("kill", full.name)  # what left the disk is sealed
    assert found(full, PASSPHRASE) == EVERY
    assert holding(full.folder) == []
