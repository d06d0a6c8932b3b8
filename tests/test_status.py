"""What `status` makes of what it knows: golden tables, and the schema of its JSON."""

from __future__ import annotations

import json
import re
import typing

import pytest
from conftest import ROOT

import tazpod
from tazpod import Facts, Remote

NOW = 1_800_000_000
REST = Facts(
    "/srv/x", "x-lab", "absent", "img:1", vault_format="openpgp", vault_size=4300, vault_sealed_at=NOW - 7300
)
OPEN = REST._replace(
    container_state="running",
    container_image_id="b5f0bae76c51",
    vault_open=True,
    vault_open_since=NOW - 125,
    vault_sessions=1,
    vault_bytes=12288,
    vault_limit=1 << 26,
    daemon_running=True,
    daemon_success_at=NOW - 3,
)
SYNCED = OPEN._replace(
    remote_state="in sync",
    remote_bucket="b",
    remote_asked_at=NOW,
    identity_kind="login",
    identity_profile="p",
    identity_expires_at=NOW + 7300,
)
DOWN = REST._replace(
    remote_state="unknown",
    remote_bucket="b",
    remote_asked_at=NOW - 86400,
    remote_reason="the container is down",
)
ASKED = SYNCED._replace(remote_state="unknown", remote_failed=True, remote_reason="it hangs")

JUDGED = [
    (REST, ""),
    (REST._replace(container_state="exited"), ""),
    (OPEN, ""),
    (SYNCED, ""),
    (DOWN, ""),
    (Facts("/srv/x", vault_used=False), ""),
    (OPEN._replace(daemon_failed_at=NOW - 9, daemon_error="save: x"), ""),
    (OPEN._replace(vault_unsaved=None), ""),
    (SYNCED._replace(identity_expires_at=NOW - 1), ""),  # it is renewed by itself: the storage answered
    (DOWN._replace(remote_unpushed=True), "tazpod push"),
    (DOWN._replace(remote_failed=True), "tazpod push"),
    (REST._replace(vault_format=""), "tazpod"),
    (REST._replace(vault_format="unreadable"), "tazpod history"),
    (REST._replace(vault_lost_since=NOW - 9), "tazpod"),
    (REST._replace(container_state="paused", vault_open=None), "tazpod up"),
    (OPEN._replace(vault_format="", vault_unsaved=True), "tazpod save"),
    (OPEN._replace(vault_unsaved=True, daemon_running=False), "tazpod up"),
    (OPEN._replace(daemon_failed_at=NOW - 1, daemon_error="save: x"), "tazpod save"),
    (OPEN._replace(container_drift=["the image"]), "tazpod up --recreate"),
    (SYNCED._replace(remote_state="ahead", remote_unpushed=True), "tazpod push"),
    (SYNCED._replace(remote_state="ahead", remote_unpushed=True, vault_unsaved=True), "tazpod save"),
    (SYNCED._replace(remote_state="behind"), "tazpod lock, then tazpod pull"),
    (SYNCED._replace(remote_state="behind", vault_open=False), "tazpod pull"),
    (SYNCED._replace(remote_state="diverged", remote_unpushed=True), "tazpod push (it tells the ways out)"),
    (ASKED, "tazpod push"),
    (ASKED._replace(remote_hint="tazpod login"), "tazpod login"),
    (ASKED._replace(identity_expires_at=NOW - 1), "tazpod login"),
]


@pytest.mark.parametrize("facts, step", JUDGED)
def test_what_is_well_and_what_is_next_when_it_is_not(facts, step):
    wrong = tazpod.troubles(facts, NOW)
    found = tazpod.status_json(facts, wrong)
    assert (found["next"], found["well"]) == (step, not step)
    assert all(found["troubles"]) and bool(found["troubles"]) == bool(step)


def remote(etag, digest=""):
    return Remote(etag, 9, digest, "", "")


BASE = {"etag": "e1", "digest": "d1"}
PAST = {**BASE, "past": "d0 d00"}


@pytest.mark.parametrize(
    "sealed, base, there, state",
    [
        ("d1", BASE, remote("e1", "d1"), "in sync"),
        ("d1", BASE, remote("e1"), "in sync"),
        ("d1", BASE, remote("e2", "d1"), "in sync"),  # the same bytes, pushed again
        ("d1", {}, remote("e2", "d1"), "in sync"),
        ("", {}, None, "empty"),
        ("", BASE, None, "empty"),
        ("", BASE, remote("e1", "d1"), "behind"),  # the file here is lost
        ("d1", PAST, remote("e2", "d0"), "older"),
        ("d3", PAST, remote("e2", "d00"), "older"),
        ("d3", PAST, remote("e1", "d1"), "ahead"),  # the one that was last seen there
        ("d1", PAST, remote("e1", "d0"), "older"),  # under the name of that one
        ("d3", PAST, remote("e1", "d0"), "older"),
        ("d1", PAST, remote("e1", "d2"), "behind"),
        ("d1", PAST, remote("e2", "d"), "behind"),
        ("d2", BASE, remote("e1", "d1"), "ahead"),
        ("d2", {}, None, "ahead"),
        ("d1", BASE, None, "ahead"),
        ("d1", BASE, remote("e2", "d2"), "behind"),
        ("d1", BASE, remote("e2"), "behind"),
        ("", {}, remote("e2", "d2"), "behind"),
        ("d3", BASE, remote("e2", "d2"), "diverged"),
        ("d3", {}, remote("e2", "d2"), "diverged"),
        ("d3", BASE, remote("e2"), "diverged"),
    ],
)
def test_how_the_two_sides_stand(sealed, base, there, state):
    assert tazpod.compare_sides(sealed, base, there) == state


SHOWN = {
    "rest": (
        REST,
        """\
container  absent       x-lab, img:1
vault      locked       sealed 2 hours ago, openpgp, 4.2 KiB
remote     not used     this project keeps no copy in a storage
identity   none         no login, and no keys for a storage
daemon     not running  starts with the container""",
    ),
    "open": (
        SYNCED._replace(vault_unsaved=True),
        """\
container  running  x-lab, img:1 (b5f0bae76c51)
vault      open     for 2 minutes, 1 session, unsaved changes, 12.0 KiB of 64.0 MiB, \
sealed 2 hours ago, openpgp, 4.2 KiB
remote     in sync  b, asked 0 seconds ago
identity   login    p, expires in 2 hours
daemon     running  saves, pushes and locks by itself, last success 3 seconds ago""",
    ),
    "trouble": (
        ASKED._replace(
            container_state="",
            vault_format="",
            vault_sessions=2,
            vault_unsaved=None,
            identity_expires_at=NOW - 86400,
            daemon_running=False,
            daemon_error="save: it is full",
            daemon_failed_at=NOW - 1,
        ),
        """\
vault      open         for 2 minutes, 2 sessions, changes unknown, 12.0 KiB of 64.0 MiB, never sealed
remote     unknown      b, it hangs, asked 0 seconds ago
identity   login        p, expired 1 day ago
daemon     not running  starts with the container, last success 3 seconds ago, \
last error (save: it is full) 1 second ago""",
    ),
    "keys": (
        Facts("/srv/x", "x-lab", "", "", vault_used=True, identity_kind="environment"),
        """\
vault      locked       never sealed
remote     not used     this project keeps no copy in a storage
identity   environment  its keys are used
daemon     not running  starts with the container""",
    ),
    "no vault": (
        Facts("/srv/x", "x-lab", "exited", "img:1", vault_used=False),
        "container  exited  x-lab, img:1",
    ),
}


@pytest.mark.parametrize("facts, text", SHOWN.values(), ids=SHOWN)
def test_what_a_person_sees(facts, text):
    assert tazpod.status_lines(facts, NOW) == text.splitlines()


def test_inside_the_container_no_word_of_the_host_is_advised():
    host = {word.name for word in tazpod.all_words().values() if word.host_only}
    for facts, _ in JUDGED:
        for _, step in tazpod.troubles(facts._replace(container_state="", container_drift=()), NOW):
            words = re.findall(r"tazpod(?: ([a-z]+))?", step)
            assert facts.config_unapproved or facts.container_others or not {*words} & {"", *host}, step


TYPES = {
    "boolean": bool,
    "boolean or null": typing.Optional[bool],
    "text": str,
    "number": int,
    "number or null": typing.Optional[int],
    "list": list,
}


def documented():
    rows = re.findall(r"^\| `([\w.]+)` \| ([\w ]+) \| \S", (ROOT / "docs/status.md").read_text(), re.M)
    assert len(rows) == len(dict(rows))
    return dict(rows)


def flat(found):
    for key, value in found.items():
        yield from (
            ((f"{key}.{leaf}", item) for leaf, item in value.items())
            if isinstance(value, dict)
            else [(key, value)]
        )


def matches_the_schema(found):
    """Whether the keys and the types of an answer are those of docs/status.md; used on real answers too."""
    types = documented()
    values = dict(flat(found))
    assert list(values) == list(types)
    for key, value in values.items():
        allowed = typing.get_args(TYPES[types[key]]) or (TYPES[types[key]],)
        assert type(value) in allowed, (key, value)
    return True


@pytest.mark.parametrize("facts", [facts for facts, _ in JUDGED])
def test_the_json_is_as_documented(facts):
    found = tazpod.status_json(facts, tazpod.troubles(facts, NOW))
    assert matches_the_schema(json.loads(json.dumps(found)))
