"""The background daemon: saves and pushes what changed, and nothing else; gives up and comes back."""

from __future__ import annotations

import re
import shlex
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import enginelib
import pytest
import s3lib
from enginelib import AT_ENTRY, Place, eventually
from s3lib import KEYS, LATEST, Cloud, md5

import tazpod

place = enginelib.place
PASSPHRASE = enginelib.PASSPHRASE
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (DEBUG|INFO|ERROR) \S.*")
LOG = tazpod.LOG_PATH
PUT_LATEST = {"method": "PUT", "path": LATEST, "times": 99}
HOLD = {**PUT_LATEST, "do": "hold"}


@pytest.fixture
def running(place: Place) -> Iterator[tuple[Place, Cloud]]:
    """An open vault with keys from the environment, a store that has it, a daemon that hurries."""
    s3lib.hasten(place, READ_LIMIT=1, ATTEMPTS=1)
    place.init(*s3lib.CONFIG[:1], "sync.interval: 1", "features.debug: true")
    place.env |= KEYS
    place.ok("up")
    cloud = Cloud(place.name, place.box / "cloud")
    try:
        place.ok("unlock", passphrase=PASSPHRASE)
        yield place, cloud
    finally:
        cloud.close()


def log(place: Place) -> list[str]:
    return place.reads(f"cat {LOG}").splitlines()


def more_of(place: Place, pattern: str, count: int = 1) -> None:
    """Wait until the log has so many more lines of a kind."""
    before = sum(bool(re.search(pattern, line)) for line in log(place))
    eventually(
        lambda: sum(bool(re.search(pattern, line)) for line in log(place)) >= before + count,
        f"{count} more lines with {pattern}",
    )


def in_store(cloud: Cloud, place: Place) -> bool:
    """Whether the store has the sealed vault of this place."""
    return bool(cloud.objects().get(LATEST) == md5(place.sealed.read_bytes()))


@pytest.mark.engine
def test_the_daemon_syncs_rests_fails_recovers_and_leaves_a_conflict_alone(
    running: tuple[Place, Cloud],
) -> None:
    place, cloud = running

    # A change is sealed and pushed.
    place.reads("echo one > ~/secrets/token")
    eventually(lambda: place.sealed.exists() and in_store(cloud, place), "saved and pushed")
    more_of(place, "nothing to do", 2)
    assert all(LINE.fullmatch(line) for line in log(place))
    text = "\n".join(log(place))
    assert re.search(r"Z INFO save: status 0 in [\d.]+ s: .*saved \(\d+ files?, ", text)
    assert re.search(r"Z INFO push: status 0 in [\d.]+ s: .*\(\d+ bytes\)", text)
    assert all(secret not in text for secret in (*KEYS.values(), PASSPHRASE))

    # An idle time makes no seal and no request.
    cloud.rules()
    before = place.sealed.stat()
    more_of(place, "nothing to do", 5)
    assert cloud.log() == []
    after = place.sealed.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    # There is one daemon, also after another start.
    place.ok("up")
    place.ok("unlock")
    more_of(place, "nothing to do", 2)
    assert len(place.reads(f"pgrep -fc {tazpod.GUARD_WORD[2:]} || true").split()) == 1
    assert sum(line.endswith("started") for line in log(place)) == 1

    # A store in trouble: logged, tried again after a longer pause, recovered from without help.
    cloud.rules({**PUT_LATEST, "do": "answer", "status": 500})
    place.reads("echo two > ~/secrets/token")
    more_of(place, "ERROR push: status 1", 2)
    cloud.rules()
    eventually(lambda: in_store(cloud, place), "pushed when the store is well again")

    # SIGTERM during a push: it is finished first, then the daemon ends.
    cloud.rules(HOLD)
    place.reads("echo three > ~/secrets/token")
    eventually(lambda: [n for n in cloud.log() if n["method"] == "PUT"], "a push is under way")
    place.reads(f"pkill -TERM -f -o {tazpod.GUARD_WORD}")
    cloud.rules()
    eventually(lambda: log(place)[-1].endswith("ended by signal 15"), "the daemon ends")
    assert " push: status " in log(place)[-2]
    place.ok("up")
    eventually(lambda: in_store(cloud, place), "the next daemon goes on")

    # Another machine pushed: said once, not tried again, nothing overwritten, shown at entry.
    cloud.put(b"of another machine")
    place.reads("echo four > ~/secrets/token")
    more_of(place, "nothing was overwritten", 1)
    place.reads("echo five > ~/secrets/token")
    more_of(place, "nothing to do", 4)
    assert sum("nothing was overwritten" in line for line in log(place)) == 1
    assert cloud.objects()[LATEST] == md5(b"of another machine")
    person = place.terminal()
    person.sees("holds another vault than this machine")
    assert person.leaves() == 0
    assert place.is_shut()
    assert place.ok("pull", "--keep-mine")
    assert place.ok("push")
    assert in_store(cloud, place)
    assert md5(b"of another machine") in cloud.objects().values()


@pytest.mark.engine
def test_the_last_push_of_a_session_is_bounded_and_missed_at_the_next_entry(
    running: tuple[Place, Cloud],
) -> None:
    place, cloud = running
    place.configure("sync.interval: 0")
    place.ok("lock")
    # The daemon that runs keeps the interval that it began with: where an exec is slow it would begin a
    # push of its own, which is held as well, and goes through as soon as it may.
    place.reads(f"pkill -TERM -f -o {tazpod.GUARD_WORD}")
    eventually(lambda: log(place)[-1].endswith("ended by signal 15"), "the daemon ends")
    place.ok("push")
    person = place.enter()
    person.sh("echo one > ~/secrets/token")
    cloud.rules(HOLD)
    assert person.leaves() == 0
    assert "saved here, but not pushed" in person.seen
    assert "the vault is locked" in person.seen
    assert place.is_shut()
    cloud.rules()
    again = place.terminal()
    again.sees(r"was not pushed since \d{4}-\d\d-\d\d")
    again.answers((AT_ENTRY, PASSPHRASE))
    again.sees("the vault is open")
    again.sh("echo two > ~/secrets/token")
    assert again.leaves() == 0
    assert re.search("pushed\\r\\n", again.seen), again.seen
    assert in_store(cloud, place)

    # Where it is not wanted there is none.
    place.configure("sync.push_on_exit: false")
    last = place.enter()
    last.sh("echo three > ~/secrets/token")
    cloud.rules()
    assert last.leaves() == 0
    assert cloud.log() == []
    assert not in_store(cloud, place)


# -- the log


def test_the_log_is_private_in_utc_and_rotated_at_one_megabyte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sync.log"
    monkeypatch.setattr(tazpod, "LOG_PATH", str(path))
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_000_000_000, raising=False)
    log = tazpod.guard_log()
    try:
        for number in range(12_000):
            log.info("%s", f"line {number} " + "x" * 80)
        log.debug("not without --debug")
        log.error("%s", "in one line\nthat is \x1b[31mobeyed by nobody")
    finally:
        for handler in log.handlers[:]:
            handler.close()
            log.removeHandler(handler)
        monkeypatch.undo()
        time.tzset()
    older = path.with_name("sync.log.1")
    assert older.stat().st_size <= 1_000_000
    assert path.stat().st_size <= 1_000_000
    lines = older.read_text().splitlines() + path.read_text().splitlines()
    assert all(LINE.fullmatch(line) for line in lines)
    assert sum("line " in line for line in lines) == 12_000
    assert lines[-1].endswith(r" ERROR in one line\nthat is \x1b[31mobeyed by nobody")
    written = time.strptime(lines[-1][:19], "%Y-%m-%dT%H:%M:%S")
    assert time.mktime(time.gmtime()) - time.mktime(written) < 3600
    assert not any("without --debug" in line for line in lines)
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 in (0, 0o044)


AWS = """#!/bin/sh
while [ -e /tmp/aws.slow ]; do touch /tmp/aws.waits; sleep 0.1; done
exec /usr/bin/aws "$@"
"""


@pytest.mark.engine
def test_a_storage_that_stalls_keeps_nobody_from_saving_and_locking(running: tuple[Place, Cloud]) -> None:
    place, cloud = running

    def seals(text: str) -> None:
        before = place.sealed.read_bytes() if place.sealed.exists() else b""
        place.reads(f"echo {text} > ~/secrets/token")
        eventually(lambda: place.sealed.exists() and place.sealed.read_bytes() != before, f"{text} is sealed")

    place.reads(f"echo {shlex.quote(AWS)} > /usr/local/bin/aws; chmod 755 /usr/local/bin/aws", user="0")
    place.reads("touch /tmp/aws.slow")
    seals("one")
    eventually(lambda: place.inside("test -e /tmp/aws.waits").returncode == 0, "a push is under way")
    seals("two")  # meanwhile
    person = place.terminal()
    shell = person.sh("echo three > ~/secrets/token; echo $$")
    person.kill(signal.SIGKILL)
    eventually(lambda: place.inside(f"kill -0 {shell}").returncode != 0, "a dead host side is noticed")
    eventually(place.is_shut, "and the vault is saved and locked")
    assert place.inside("test -e /tmp/aws.slow").returncode == 0
    place.reads("rm /tmp/aws.slow")
    place.ok("unlock", passphrase=PASSPHRASE)
    assert place.reads("cat ~/secrets/token") == "three"
    eventually(lambda: in_store(cloud, place), "pushed when the storage is well again")
