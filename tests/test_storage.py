"""The vault's copies in the storage: a real store, the real aws, two machines, and all that may go wrong."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import stat
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s3lib
from conftest import replace, terminal
from pytest_subprocess import FakeProcess
from s3lib import BUCKET, GATE, HISTORY, KEYS, LATEST, STORE, Bench, Machine, md5

import tazpod
from tazpod import Config, Result, Storage

shared_bench, bench = s3lib.shared_bench, s3lib.bench
needs_engine = pytest.mark.engine

PUT_LATEST = {"method": "PUT", "path": LATEST}
QUICK = {"READ_LIMIT": 1, "ATTEMPTS": 1}


def two(bench: Bench, **settings: Any) -> tuple[Machine, Machine]:
    """Machines A and B, both with the vault that A has pushed."""
    a, b = bench.machine("a", **settings), bench.machine("b", **settings)
    a.seal("first")
    assert a.push().result is True
    assert b.pull().result is True
    return a, b


def error_text(code: str) -> str:
    """An error as S3 words it."""
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>said the store</Message></Error>'


# -- push and pull


@needs_engine
def test_first_push_is_read_back_and_remembered(bench: Bench) -> None:
    a = bench.machine("a")
    sealed = a.seal("first")
    assert a.push().result is True
    assert bench.objects() == {LATEST: sealed}
    seen = bench.aws("head-object", "--bucket", BUCKET, "--key", LATEST)
    assert set(seen["Metadata"]) == {"content-sha256", "tazpod-push", "tazpod-project"}
    assert seen["Metadata"]["tazpod-project"] == "bench-lab"
    assert seen["Metadata"]["content-sha256"] == a.base()["digest"]
    assert a.base()["etag"] == seen["ETag"]
    assert set(a.base()) == {"bucket", "etag", "digest", "time"}
    assert stat.S_IMODE((a.vault / "remote.json").stat().st_mode) == 0o600
    assert a.leftovers() == []


@needs_engine
def test_an_unchanged_vault_causes_no_upload(bench: Bench) -> None:
    a, b = two(bench)
    bench.rules()
    assert a.push().result is False
    assert b.push().result is False
    assert b.pull().result is False
    assert bench.uploads() == 0
    assert [note["method"] for note in bench.log()] == ["HEAD", "HEAD", "GET"]


@needs_engine
def test_what_a_push_replaces_is_in_the_history_with_its_metadata(bench: Bench) -> None:
    a, b = two(bench)
    second = b.seal("second")
    assert b.push().result is True
    assert a.pull().result is True
    assert a.has() == second == bench.latest()
    assert a.kept() == {second, md5(b"first")}
    (key,) = set(bench.objects()) - {LATEST}
    assert bench.objects()[key] == md5(b"first")
    metadata = bench.aws("head-object", "--bucket", BUCKET, "--key", key)["Metadata"]
    assert set(metadata) == {"content-sha256", "tazpod-push", "tazpod-project"}
    assert list(a.does("list_history").result) == [key]


@needs_engine
def test_pull_brings_a_private_file_and_no_vault_is_none(bench: Bench) -> None:
    a = bench.machine("a")
    answer = a.pull()
    assert (answer.result, answer.error) == (None, "")
    bench.put(b"of Go", metadata="content-sha256=" + "0" * 64)
    assert "came damaged" in a.pull().error
    assert a.has() == ""
    bench.put(b"of Go")
    assert a.pull().result is True
    assert stat.S_IMODE(a.sealed.stat().st_mode) == 0o600
    assert a.push().result is False or bench.uploads() == 0 or bench.latest() == md5(b"of Go")


@needs_engine
def test_what_is_damaged_in_the_storage_is_sent_again_by_force(bench: Bench) -> None:
    a, b = two(bench)
    digest = hashlib.sha256(a.sealed.read_bytes()).hexdigest()
    bench.put(b"other bytes", metadata=f"content-sha256={digest}")
    assert "tazpod push --force" in b.pull().hint
    assert a.push(force=True).result is True
    assert bench.latest() == a.has()


@needs_engine
def test_a_bucket_that_is_not_there_is_said_by_push_and_is_no_vault_for_pull(bench: Bench) -> None:
    a = bench.machine("a", config={"aws_bucket": "no-such-bucket"}, limits=QUICK)
    assert a.pull().result is None
    a.seal("first")
    absent = {"do": "answer", "status": 404, "text": error_text("NoSuchBucket")}
    bench.rules({"method": "PUT", "times": 9, **absent})  # SeaweedFS would make one
    answer = a.push()
    assert answer.code == "NoSuchBucket", answer
    assert "setup-storage" in answer.hint


@needs_engine
def test_two_at_once_on_one_machine_push_once(bench: Bench) -> None:
    a = bench.machine("a")
    a.seal("first")
    bench.rules()
    jobs = [a.start("push") for _ in range(3)]
    assert sorted(a.finish(job).result for job in jobs) == [False, False, True]
    assert bench.uploads() == 1


@needs_engine
def test_a_save_during_a_push_or_pull_takes_nothing_from_it(bench: Bench) -> None:
    a, b = two(bench)
    second = b.seal("second")
    for machine, word, operation in ((b, "push", "put-object"), (a, "pull", "get-object")):
        # `save` clears away what looks like a leftover of its own.
        flag = machine.folder / "paused"
        inside = f"/bench/machines/{machine.name}/paused"
        job = machine.start(word, {"operation": operation, "do": "pause", "path": inside})
        s3lib.eventually(flag.exists, "aws is called")
        assert not list(machine.vault.glob(".*.tmp"))
        flag.unlink()
        assert machine.finish(job).result is True
    assert a.has() == bench.latest() == second


# -- conflicts


def conflicting(bench: Bench) -> tuple[Machine, Machine]:
    """A and B have both sealed something new, and B was faster."""
    a, b = two(bench)
    b.seal("theirs")
    assert b.push().result is True
    a.seal("mine")
    return a, b


@needs_engine
def test_a_push_over_what_it_has_not_seen_overwrites_nothing_and_names_three_ways(bench: Bench) -> None:
    a, _ = conflicting(bench)
    before = bench.objects()
    bench.rules()
    answer = a.push()
    assert answer.conflict
    for way in ("pull --keep-mine", "pull --force", "push --force"):
        assert f"tazpod {way}" in answer.hint
    assert bench.uploads() == 0
    assert bench.objects() == before
    assert a.has() == md5(b"mine")
    assert a.base()["conflict"]
    assert "holds another vault" in a.does("tell_sync").said
    assert a.push().conflict


@needs_engine
def test_the_vault_of_another_project_is_neither_replaced_nor_taken(bench: Bench) -> None:
    a = bench.machine("a")
    first = a.seal("first")
    assert a.push().result is True
    other = {"container_name": "other-lab"}
    b = bench.machine("b", config=other)
    fresh = bench.machine("fresh", config=other)
    mine = b.seal("of another project")
    for word, machine in (("push", b), ("pull", b), ("pull", fresh)):
        answer = machine.does(word)
        assert "tazpod/vault holds the vault of bench-lab, and this is other-lab" in answer.error
        assert "aws_sso.prefix" in answer.hint and f"tazpod {word} --force" in answer.hint
    assert (bench.objects(), b.has(), fresh.has()) == ({LATEST: first}, mine, "")
    beside = bench.machine("beside", config={**other, "aws_prefix": "tazpod/other"})
    beside.seal("one")
    assert beside.push().result is True
    beside.seal("two")
    assert beside.push().result is True
    assert beside.base()["prefix"] == "tazpod/other"
    keys = sorted(set(bench.objects()) - {LATEST})
    assert keys[1] == "tazpod/other/vault.tar.aes" and keys[0].startswith("tazpod/other/history/vault-")
    assert b.pull(force=True).result is True
    assert b.has() == first
    renamed = bench.machine("a", config={"container_name": "new-name"})  # it was synced with this very vault
    renamed.seal("third")
    assert renamed.push().result is True


@needs_engine
def test_a_pull_does_not_bury_what_was_never_pushed(bench: Bench) -> None:
    a, _ = conflicting(bench)
    answer = a.pull()
    assert answer.conflict
    assert a.has() == md5(b"mine")


@needs_engine
@pytest.mark.parametrize(
    "word, option, on_a, latest",
    [
        ("pull", "keep_mine", b"mine", b"theirs"),
        ("pull", "force", b"theirs", b"theirs"),
        ("push", "force", b"mine", b"mine"),
    ],
)
def test_each_way_out_keeps_both_sides(
    bench: Bench, word: str, option: str, on_a: bytes, latest: bytes
) -> None:
    a, b = conflicting(bench)
    assert a.push().conflict
    assert a.does(word, **{option: True}).result is True
    assert (a.has(), bench.latest()) == (md5(on_a), md5(latest))
    assert {md5(b"mine"), md5(b"theirs")} <= a.kept() | bench.kept()
    assert {md5(b"theirs"), md5(b"first")} <= bench.kept()
    assert "conflict" not in a.base()
    assert a.push().result is (option == "keep_mine")
    assert bench.latest() == a.has()
    assert {md5(b"theirs"), md5(b"first")} <= bench.kept()
    assert b.pull().error == ""
    assert b.has() == a.has()


@needs_engine
def test_a_vault_that_vanished_from_the_storage_is_not_put_back_unasked(bench: Bench) -> None:
    a, _ = two(bench)
    bench.aws("delete-object", "--bucket", BUCKET, "--key", LATEST)
    a.seal("second")
    assert "holds none now" in a.push().error
    assert bench.objects() == {}
    assert a.push(force=True).result is True
    assert bench.latest() == md5(b"second")


@needs_engine
def test_losing_what_was_last_synced_is_harmless(bench: Bench) -> None:
    a, _ = two(bench)
    path = a.vault / "remote.json"
    for content in ("", "[", '{"etag": 1', json.dumps({**a.base(), "bucket": "other"})):
        a.seal("first")
        path.write_text(content)
        assert a.push().result is False, "the storage has this very vault"
        path.write_text(content)
        a.seal("second")
        assert a.push().conflict, "without it, a push asks"
        assert bench.latest() == md5(b"first")
    assert a.pull(keep_mine=True).result is True
    assert a.push().result is True
    assert bench.latest() == md5(b"second")


# -- races


def paused(machine: Machine, operation: str) -> tuple[int, Path]:
    """A push that waits before a call of aws; what lets it go on is to remove the file."""
    inside = f"/bench/machines/{machine.name}/paused"
    job = machine.start("push", {"operation": operation, "do": "pause", "path": inside})
    flag = machine.folder / "paused"
    s3lib.eventually(flag.exists, f"aws {operation} is called")
    return job, flag


@needs_engine
@pytest.mark.parametrize("call, force", [(1, False), (1, True), (2, False), (3, True), (4, False), (4, True)])
def test_whoever_pushes_in_between_is_never_overwritten(bench: Bench, call: int, force: bool) -> None:
    a, b = two(bench)
    mine, theirs = a.seal("mine"), b.seal("theirs")
    fault = {"call": call, "do": "pause", "path": "/bench/machines/a/paused"}
    job = a.start("push", fault, force=force)
    s3lib.eventually((a.folder / "paused").exists, "A is under way")
    assert b.push().result is True
    (a.folder / "paused").unlink()
    answer = a.finish(job)
    assert theirs in bench.kept()
    if force and call == 1:
        assert answer.result is True
        assert bench.latest() == mine
    else:
        assert answer.conflict
        assert bench.latest() == theirs
        assert a.base()["conflict"]


@needs_engine
def test_two_first_pushes_at_once_have_one_winner(bench: Bench) -> None:
    a, b = bench.machine("a"), bench.machine("b")
    a.seal("of a")
    theirs = b.seal("of b")
    job, flag = paused(a, "put-object")
    assert b.push().result is True
    flag.unlink()
    assert a.finish(job).conflict
    assert bench.objects() == {LATEST: theirs}


class Interleaving:
    """Two machines that do whatever comes to their minds."""

    def __init__(self, bench: Bench, seed: int) -> None:
        bench.clear()
        self.bench, self.random = bench, random.Random(seed)
        self.machines = [bench.machine(name) for name in "ab"]
        self.pushed: set[str] = set()
        self.sealed = 0

    def seal(self, machine: Machine) -> None:
        """A save, which keeps the version before it."""
        if machine.sealed.exists():
            (machine.vault / "history").mkdir(exist_ok=True)
            kept = machine.vault / "history" / f"vault-save-{self.sealed}.tar.aes"
            kept.write_bytes(machine.sealed.read_bytes())
        self.sealed += 1
        machine.seal(f"version {self.sealed} of {machine.name}")

    def turn(self) -> None:
        machine = self.random.choice(self.machines)
        before = machine.has()
        ways = {"seal": 4, "push": 5, "pull": 3, "race": 2, "keep": 1, "theirs": 1, "force": 1}
        way = self.random.choices(list(ways), list(ways.values()))[0]
        if way == "seal":
            return self.seal(machine)
        if way in ("pull", "keep", "theirs"):
            options = {"keep": {"keep_mine": True}, "theirs": {"force": True}}.get(way, {})
            answer = machine.pull(**options)
            assert answer.conflict or not answer.error, answer
            assert not before or before in machine.kept(), "a pull lost what was sealed here"
            return None
        if way in ("push", "force"):
            if before:
                self.pushes(machine, machine.push(force=way == "force"))
            return None
        racers = [machine for machine in self.machines if machine.has()]
        jobs = [machine.start("push") for machine in racers]
        for racer, job in zip(racers, jobs):
            self.pushes(racer, racer.finish(job))
        return None

    def pushes(self, machine: Machine, answer: s3lib.Answer) -> None:
        assert answer.conflict or not answer.error, answer
        if not answer.error:
            self.pushed.add(machine.has())

    def run(self, turns: int) -> int:
        for _ in range(turns):
            self.turn()
            lost = self.pushed - self.bench.kept()
            assert not lost, "what was pushed is neither the latest nor in the history"
        assert not any(machine.leftovers() for machine in self.machines)
        return len(self.pushed)


@needs_engine
def test_no_update_is_lost_in_six_random_interleavings(bench: Bench) -> None:
    assert sum(Interleaving(bench, seed).run(9) for seed in range(6)) >= 6


@needs_engine
@pytest.mark.long
@pytest.mark.parametrize("block", range(10))
def test_no_update_is_lost_in_two_hundred_random_interleavings(bench: Bench, block: int) -> None:
    assert sum(Interleaving(bench, 1000 * block + seed).run(12) for seed in range(20)) > 10


# -- killed


PUSH_CALLS = ["head-object", "list-objects-v2", "copy-object", "put-object", "head-object"]


@needs_engine
@pytest.mark.parametrize("call", range(1, len(PUSH_CALLS) + 1))
@pytest.mark.parametrize("moment", ["kill before", "kill after"])
def test_a_push_killed_at_any_call_loses_nothing_and_the_next_one_goes_through(
    bench: Bench, call: int, moment: str
) -> None:
    a, b = two(bench)
    second = a.seal("second")
    answer = a.push({"call": call, "do": moment})
    assert answer.signal == signal.SIGKILL
    assert [words["argv"][1] for words in a.calls()] == PUSH_CALLS[:call]
    assert bench.latest() in (md5(b"first"), second)
    assert md5(b"first") in bench.kept()
    assert a.has() == second
    third = a.seal("third") if call % 2 else second
    assert a.push().error == "", "its own unfinished push is no conflict"
    assert bench.latest() == third
    assert md5(b"first") in bench.kept()
    assert a.leftovers() == []
    assert b.pull().result is True


@needs_engine
@pytest.mark.parametrize("moment", ["kill before", "kill after"])
@pytest.mark.parametrize("word", ["first push", "pull"])
def test_a_first_push_or_a_pull_killed_at_any_call_can_be_done_again(
    bench: Bench, word: str, moment: str
) -> None:
    a, b = bench.machine("a"), bench.machine("b")
    first = a.seal("first")
    if word == "pull":
        a.push()
        assert b.pull({"call": 1, "do": moment}).signal == signal.SIGKILL
        assert b.has() == ""
    else:
        for call in (1, 2, 3):
            bench.clear()
            a = bench.machine("a")
            a.seal("first")
            assert a.push({"call": call, "do": moment}).signal == signal.SIGKILL
            assert set(bench.objects().values()) <= {first}
            assert a.push().error == ""
            assert bench.objects() == {LATEST: first}
            assert a.leftovers() == []
        b = bench.machine("b")
    assert b.pull().result is True
    assert b.has() == first
    assert b.leftovers() == []


@needs_engine
def test_a_pull_killed_at_any_step_leaves_the_old_or_the_new_and_can_be_done_again(bench: Bench) -> None:
    a, b = two(bench)
    base, second = (a.vault / "remote.json").read_bytes(), b.seal("second")
    b.push()
    killed = 0
    for step in range(100):
        shutil.rmtree(a.vault)
        a.vault.mkdir()
        a.seal("first")
        (a.vault / "remote.json").write_bytes(base)
        answer = a.pull({"step": step})
        assert a.has() in (md5(b"first"), second)
        assert a.kept() >= {md5(b"first")}
        if not answer.signal:
            break
        killed += 1
        assert a.pull().error == "", f"killed at step {step}"
        assert a.has() == second
        assert not list(a.vault.glob(".*.part"))
    assert killed > 10
    assert bench.kept() == {md5(b"first"), second}


# -- a storage that misbehaves


TROUBLE: dict[str, dict[str, Any]] = {
    "500": {"do": "answer", "status": 500, "text": error_text("InternalError")},
    "503": {"do": "answer", "status": 503, "text": error_text("SlowDown")},
    "403": {"do": "answer", "status": 403, "text": error_text("AccessDenied")},
    "400": {"do": "answer", "status": 400, "text": error_text("ExpiredToken")},
    "404 of somebody else": {"do": "answer", "status": 404, "text": "<html>no such page</html>"},
    "200 of somebody else": {"do": "answer", "status": 200, "text": "<html>please log in</html>"},
    "412": {"do": "answer", "status": 412, "text": error_text("PreconditionFailed")},
    "reset": {"do": "reset"},
    "reset in the middle": {"do": "reset in the middle"},
    "hangs": {"do": "hang"},
    "damaged": {"do": "damage"},
}
TROUBLES_OF_A_PUSH = [name for name in TROUBLE if name not in ("reset in the middle", "damaged")]


@needs_engine
@pytest.mark.parametrize("name", ["no vault here", "an older one here"])
def test_a_pull_in_trouble_is_an_error_and_changes_nothing_here(bench: Bench, name: str) -> None:
    a, b = two(bench, limits=QUICK)
    second = b.seal("second")
    b.push()
    if name == "no vault here":
        a = bench.machine("c", limits=QUICK)
    before, base = a.has(), a.base()
    for trouble, rule in TROUBLE.items():
        bench.rules({"method": "GET|HEAD", "times": 99, **rule})
        answer = a.pull()
        assert answer.kind == "StorageError", trouble
        assert ("login has expired" in answer.error) == (trouble == "400")
        assert (a.has(), a.base(), a.leftovers()) == (before, base, []), trouble
    bench.rules()
    assert bench.latest() == second
    assert a.pull().result is True
    assert a.has() == second


@needs_engine
@pytest.mark.parametrize("at", ["the look", "the copy", "the upload"])
def test_a_push_in_trouble_is_an_error_and_the_next_one_goes_through(bench: Bench, at: str) -> None:
    a, b = two(bench, limits=QUICK)
    second = a.seal("second")
    where = {"the look": {"method": "HEAD"}, "the copy": {"method": "PUT", "path": HISTORY}}
    for trouble in TROUBLES_OF_A_PUSH:
        bench.rules({"times": 99, **where.get(at, PUT_LATEST), **TROUBLE[trouble]})
        answer = a.push()
        assert answer.kind == "StorageError", trouble
        assert bench.latest() == md5(b"first"), trouble
        assert (a.has(), a.leftovers()) == (second, []), trouble
    bench.rules()
    assert a.push().error == ""
    assert bench.latest() == second
    assert md5(b"first") in bench.kept()
    assert b.pull().result is True


@needs_engine
def test_an_endpoint_where_nobody_listens_is_an_error_and_not_an_absent_vault(bench: Bench) -> None:
    a = bench.machine("a", endpoint="http://127.0.0.1:9", limits=QUICK)
    answer = a.pull()
    assert "Could not connect" in answer.error
    a.seal("first")
    assert "Could not connect" in a.push().error
    assert a.base() == {}


@needs_engine
@pytest.mark.parametrize("status", [403, 400])
def test_a_look_refused_without_a_word_is_explained_by_asking_again(bench: Bench, status: int) -> None:
    a, _ = two(bench, limits=QUICK)
    a.seal("second")
    expired = {"do": "answer", "status": status, "text": error_text("ExpiredToken")}
    bench.rules({"method": "GET|HEAD", "times": 99, **expired})
    answer = a.push()
    assert "the login has expired" in answer.error
    assert answer.hint == "tazpod login"


@needs_engine
@pytest.mark.parametrize(
    "text", ["(PreconditionFailed)", "(ConditionalRequestConflict)", "(InternalError)", "Read timeout"]
)
@pytest.mark.parametrize("first", [True, False])
def test_a_push_whose_answer_was_lost_is_recognized(bench: Bench, text: str, first: bool) -> None:
    a = bench.machine("a")
    if not first:
        a.seal("first")
        a.push()
    second = a.seal("second")
    error = f"An error occurred {text} when calling the PutObject operation: said"
    answer = a.push({"operation": "put-object", "do": "say", "text": error})
    assert bench.latest() == second
    assert not answer.conflict
    if "Conflict" in text or "Precondition" in text:
        assert answer.result is True
    else:
        assert answer.error
        third = a.seal("third")
        assert a.push().result is True
        assert bench.latest() == third
        assert second in bench.kept()
    assert a.push().result is False


@needs_engine
def test_an_answer_lost_on_the_line_and_asked_again_by_aws_itself_is_a_push(bench: Bench) -> None:
    a, _ = two(bench)
    second = a.seal("second")
    bench.rules({**PUT_LATEST, "do": "lose the answer"})
    assert a.push().result is True
    assert bench.latest() == second
    puts = [note["status"] for note in bench.log() if note["method"] == "PUT" and LATEST in note["path"]]
    assert puts == [200, 412]


@needs_engine
def test_pushed_is_said_only_of_what_is_read_back(bench: Bench) -> None:
    a = bench.machine("a", limits=QUICK)
    first = a.seal("first")
    bench.rules({"method": "HEAD", "do": "answer", "status": 404}, {"method": "HEAD", "do": "another size"})
    assert "damaged" in a.push().error
    assert a.base().get("digest") is None
    bench.rules(
        {"method": "HEAD", "do": "answer", "status": 404}, {**PUT_LATEST, "do": "answer", "status": 200}
    )
    bench.aws("delete-object", "--bucket", BUCKET, "--key", LATEST)
    assert a.push().conflict, "the store said 200 and holds nothing"
    bench.rules()
    assert a.push().result is True
    assert bench.latest() == first


@needs_engine
def test_a_push_that_came_there_cut_is_pushed_again(bench: Bench) -> None:
    a, _ = two(bench)
    a.seal("second")
    a.push()
    seen = bench.aws("head-object", "--bucket", BUCKET, "--key", LATEST)["Metadata"]
    metadata = ",".join(f"{name}={value}" for name, value in seen.items())
    bench.put(b"seco", metadata=metadata)
    assert a.push(force=True).result is True
    assert bench.latest() == md5(b"second")


# -- a sealed file that is lost, a storage that goes back


@needs_engine
def test_a_new_vault_in_the_place_of_a_lost_one_does_not_replace_the_storage_s(bench: Bench) -> None:
    a, _ = two(bench)
    a.seal("second")
    a.push()
    a.sealed.unlink()
    config, vault = Config(a.folder, "bench-lab"), tazpod.Vault(a.vault, a.folder / "home")
    assert tazpod.missing_vault(vault) == "storage"
    tazpod.agree_to_begin(config, vault, Namespace(new=True, passphrase_fd=None))
    assert tazpod.missing_vault(vault) == "storage", "until the new one is sealed"
    a.seal("new")
    assert a.push().conflict
    assert bench.latest() == md5(b"second")
    assert a.push(force=True).result is True
    assert md5(b"second") in bench.kept()


@needs_engine
def test_a_storage_that_goes_back_is_told_and_not_followed_unasked(bench: Bench) -> None:
    a = bench.machine("a")
    a.pushes(4)
    for number in range(3):
        content = f"version {number}".encode()
        bench.put(content, metadata=f"content-sha256={hashlib.sha256(content).hexdigest()}")
        answer = a.pull()
        assert "older version" in answer.error
        assert "pull --force" in answer.hint
        assert a.has() == md5(b"version 3")
    a.seal("version 4")
    answer = a.push()
    assert answer.conflict
    assert "older version" in answer.error
    assert a.pull(force=True).result is True
    assert a.has() == md5(b"version 2")
    assert a.pull().result is False
    bench.put(b"version 0")  # without a word of its digest
    assert "older version" in a.pull().error


def test_an_older_version_is_known_by_the_local_history_too(tmp_path: Path) -> None:
    vault = tazpod.Vault(tmp_path, tmp_path)
    (tmp_path / "history").mkdir()
    (tmp_path / "history/vault-20260102T030405.tar.aes").write_bytes(b"first")
    there = tazpod.Remote('"e"', 5, FIRST, "", HEAD_ANSWER["LastModified"])  # type: ignore[arg-type]
    (tmp_path / "history/vault-20260102T030404.tar.aes").touch()
    (tmp_path / "history/vault-20260102T030403.tar.aes").mkdir()
    assert "older version" in tazpod.gone_back(vault, {}, there)
    assert "older version" in tazpod.gone_back(vault, {"etag": '"e"', "digest": "0" * 64}, there)
    assert not tazpod.gone_back(vault, {"etag": '"e"', "digest": FIRST}, there)
    assert not tazpod.gone_back(vault, {}, there._replace(digest="0" * 64))


def lie(content: str, etag: str, told: str = "") -> dict[str, Any]:
    """A storage that gives this for its newest vault, under this etag, and tells the digest of another."""
    answer = {"method": "GET|HEAD", "path": "/vault.tar.aes", "do": "answer", "status": 200, "times": 99}
    headers = {"ETag": etag, "Last-Modified": "Mon, 30 Nov 2026 21:00:00 GMT"}
    if told:
        headers["x-amz-meta-content-sha256"] = hashlib.sha256(told.encode()).hexdigest()
    return {**answer, "text": content, "headers": headers}


@needs_engine
@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("content, said", [("version 0", "older version"), ("other", "other bytes")])
def test_the_etag_of_the_last_sync_hides_no_other_bytes(
    bench: Bench, content: str, said: str, told: bool
) -> None:
    a = bench.machine("a")
    a.pushes(3)
    bench.rules(lie(content, a.base()["etag"], content if told else ""))
    assert said in a.pull().error
    assert a.has() == md5(b"version 2")
    if told:
        a.seal("version 3")
        answer = a.push()
        assert answer.conflict and said in answer.error


@needs_engine
def test_no_pull_takes_a_version_from_the_local_history(bench: Bench) -> None:
    a = bench.machine("a", config={"vault_keep": 2})
    real = a.seal("the vault")
    assert a.push().result is True
    for number in range(5):
        bench.rules(lie(f"rubbish {number}", f'"e{number}"'))
        assert a.pull().result is True
        assert real in a.kept()


@needs_engine
def test_an_empty_file_in_the_history_stops_neither_push_nor_pull(bench: Bench) -> None:
    a, b = two(bench)
    for machine in (a, b):
        (machine.vault / "history").mkdir(exist_ok=True)
        (machine.vault / "history/vault-20200101T000000.tar.aes").touch()
    b.seal("second")
    assert b.push().result is True
    assert a.pull().result is True
    a.seal("third")
    assert a.push().result is True


@needs_engine
def test_names_of_times_to_come_push_no_version_out_of_the_history(bench: Bench) -> None:
    a = bench.machine("a", config={"vault_retention": 3})
    a.pushes(4)
    before = bench.kept()
    strange = [f"{HISTORY}vault-99991231T235959-{number}.tar.aes" for number in range(1, 4)]
    for key in strange:
        bench.put(b"rubbish", key=key)
    a.seal("version 4")
    answer = a.push()
    assert answer.result is True
    assert "3 in its history with a name later than the newest vault" in answer.said
    assert bench.kept() - {md5(b"rubbish")} == before - {md5(b"version 0")} | {md5(b"version 4")}
    assert set(strange) <= set(bench.objects())


@needs_engine
def test_what_a_push_has_just_put_into_the_history_stays_whatever_the_config_says(bench: Bench) -> None:
    a = bench.machine("a", config={"vault_retention": 0})
    a.pushes(3)
    assert bench.kept() == {md5(b"version 1"), md5(b"version 2")}


MISSING = {
    "nothing": ({}, ""),
    "no vault at the last pull": ({"remote.json": '{"bucket": "b", "etag": "", "digest": ""}'}, ""),
    "a sync": ({"remote.json": json.dumps({"bucket": "b", "digest": "0" * 64})}, "storage"),
    "a push that was cut off": ({"remote.json": json.dumps({"bucket": "b", "pushing": "0" * 32})}, "storage"),
    "a record that cannot be read": ({"remote.json": "["}, "storage"),
    "a history": ({"history/vault-20260102T030405.tar.aes": "x"}, "history"),
    "the file of Go": ({"vault.tar.aes.go": "x"}, "history"),
    "the sealed file": ({"vault.tar.aes": "x", "vault.tar.aes.go": "x", "remote.json": "["}, ""),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_tells_of_a_sealed_file_that_is_lost(tmp_path: Path, name: str) -> None:
    files, said = MISSING[name]
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    vault = tazpod.Vault(tmp_path, tmp_path)
    assert tazpod.missing_vault(vault) == said
    config, asked = Config(tmp_path, "lab"), Namespace(new=False, passphrase_fd=3)
    if name != "the sealed file":
        for tazpod.OPTIONS.yes in (False, True):
            with pytest.raises(tazpod.VaultError) as caught:
                tazpod.agree_to_begin(config, vault, asked)
            assert "unlock --new" in caught.value.hint
            assert ("restore VERSION" in caught.value.hint) == bool(said)


@pytest.mark.parametrize("answer", ["y", "n"])
def test_over_what_is_left_a_person_is_asked(tmp_path: Path, answer: str) -> None:
    (tmp_path / "vault.tar.aes.go").write_text("x")
    config, vault = Config(tmp_path, "lab"), tazpod.Vault(tmp_path, tmp_path)
    with terminal() as person:
        person.type(f"{answer}\n")
        with contextlib.ExitStack() as stack:
            if answer == "n":
                stack.enter_context(pytest.raises(tazpod.VaultError, match="no vault was started"))
            tazpod.agree_to_begin(config, vault, Namespace(new=False, passphrase_fd=None))
        assert "nevertheless? [y/N]" in person.shown()


# -- a storage that is not believed


SECRET = "correct horse battery"
NO_ETAGS = (
    *("file:///bench/secret", "fileb:///bench/secret", "http://127.0.0.1:8300/x", '"file:///bench/secret"'),
    *('"a" "b"', "abc", '"', "", '"\xe9"'),
)


def secret_file(bench: Bench) -> str:
    """A file that nobody is to hear of."""
    (bench.box / "bench/secret").write_text(SECRET)
    return "file:///bench/secret"


def told_nobody(bench: Bench, *answers: s3lib.Answer) -> None:
    assert not any(SECRET in note["told"] + note["path"] for note in bench.log())
    assert not any(SECRET in answer.error + answer.hint + answer.said for answer in answers)


@needs_engine
@pytest.mark.parametrize("force", [False, True])
def test_an_etag_that_names_a_file_brings_the_storage_nothing(bench: Bench, force: bool) -> None:
    a, _ = two(bench, limits=QUICK)
    a.seal("second")
    secret_file(bench)
    time, rule = {"Last-Modified": "Fri, 02 Jan 2026 03:04:05 GMT"}, {"times": 9, "do": "answer"}
    for etag in NO_ETAGS:
        headers = {**time, "ETag": etag} if etag else time
        bench.rules({"method": "HEAD", "status": 200, "headers": headers, **rule})
        answer = a.push(force=force)
        assert answer.kind == "StorageError", etag
        told_nobody(bench, answer)
    bench.rules()
    assert bench.objects() == {LATEST: md5(b"first")}


@needs_engine
def test_a_history_that_names_files_brings_the_storage_nothing(bench: Bench) -> None:
    a, _ = two(bench, limits=QUICK)
    a.seal("second")
    secret_file(bench)
    for key, etag, size, what in (
        (f"{HISTORY}vault-20200101T000000.tar.aes", "file:///bench/secret", "1", "ETag"),
        (f"{HISTORY}vault-20200101T000000.tar.aes", '"x"', "-1", "Size"),
        ("file:///bench/secret", '"x"', "1", ""),
        (f"{HISTORY}vault-20200101T000000.tar.aes/../x", '"x"', "1", ""),
    ):
        item = f"<Key>{key}</Key><ETag>{etag}</ETag><Size>{size}</Size>"
        page = f"<Contents>{item}<LastModified>2026-01-02T03:04:05Z</LastModified></Contents>"
        more = "<IsTruncated>true</IsTruncated><NextContinuationToken>file:///bench/secret</NextContinuationToken>"
        names = '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        bench.rules(
            *(
                {"method": "GET", "do": "answer", "status": 200, "text": f"{names}{text}</ListBucketResult>"}
                for text in (more, page)
            )
        )
        answer = a.does("list_history")
        assert answer.error.endswith(f"makes no sense: {what}") if what else answer.result == {}
        told_nobody(bench, answer)


@needs_engine
@pytest.mark.parametrize("setting", ["bucket", "region", "profile", "endpoint"])
def test_no_setting_names_a_file_for_aws(bench: Bench, setting: str) -> None:
    place = secret_file(bench)
    a = bench.machine(
        "a", limits=QUICK, config={f"aws_{setting}": place}, env=KEYS if setting != "profile" else {}
    )
    a.seal("first")
    for word in ("push", "pull", "make_bucket", "honours_conditions", "list_history"):
        answer = a.does(word)
        assert answer.kind == "StorageError", (setting, word)
        told_nobody(bench, answer)
    assert bench.log() == []


@needs_engine
def test_aws_gets_no_setting_that_runs_a_program_or_sends_a_file_away(bench: Bench) -> None:
    a = bench.machine("a", env={"AWS_CONFIG_FILE": "/bench/machines/a/config"}, limits=QUICK, plain=True)
    secret_file(bench)
    for text in (
        "[profile nobody]\ncredential_process = touch /bench/owned",
        "[profile nobody]\nrole_arn = arn:aws:iam::1:role/x\nweb_identity_token_file = /bench/secret",
        "[profile nobody]\nregion = x\nENDPOINT_URL: http://127.0.0.1:8300",
        "[plugins]\ncli_legacy_plugin_path = /bench\nowned = owned",
        "[services x]\ns3 =\n  endpoint_url = http://127.0.0.1:8300",
        "[profile nobody]\nca_bundle = /bench/secret",
        "no settings at all",
    ):
        (a.folder / "config").write_text(text)
        answer = a.pull()
        assert "/bench/machines/a/config: " in answer.error, text
        assert answer.hint
        told_nobody(bench, answer)
    assert not (bench.box / "bench/owned").exists()


@needs_engine
def test_an_alias_and_a_model_in_the_home_are_not_for_our_calls_of_aws(bench: Bench) -> None:
    home = "/bench/machines/a/home"
    a = bench.machine("a", env={"HOME": home, **KEYS}, plain=True)
    for name in ("cli", "models/s3/2006-03-01"):
        (a.folder / "home/.aws" / name).mkdir(parents=True)
    (a.folder / "home/.aws/cli/alias").write_text(f"[toplevel]\ns3api = !touch {home}/owned\n")
    (a.folder / "home/.aws/models/s3/2006-03-01/service-2.json").write_text("{}")
    a.seal("first")
    assert a.push().result is True
    assert not (a.folder / "home/owned").exists()
    assert list((bench.box / "bench").rglob("tazpod-aws-*")) == []


@needs_engine
def test_what_lies_in_the_history_and_is_no_version_stays(bench: Bench) -> None:
    a = bench.machine("a", config={"vault_retention": 1})
    notes = bench.put(b"of somebody", key=f"{HISTORY}vault-notes.txt")
    a.pushes(4)
    assert bench.kept() == {md5(b"version 2"), md5(b"version 3"), notes}
    assert len(a.does("list_history").result) == 1


# -- aws and stores that do not know conditions


CONDITIONS = ["--if-match", "--if-none-match"]


@needs_engine
def test_an_aws_too_old_for_conditions_looks_before_it_puts_and_says_so(bench: Bench) -> None:
    a, b = bench.machine("a"), bench.machine("b")
    old = {"refuse": CONDITIONS}
    a.seal("first")
    answer = a.push(old)
    assert answer.result is True
    assert answer.said.count("too old for conditional writes") == 1
    assert b.pull(old).result is True
    second = b.seal("second")
    assert b.push(old).result is True
    a.seal("third")
    assert a.push(old).conflict
    assert bench.latest() == second
    assert a.does("honours_conditions", old).result is True


@needs_engine
def test_an_aws_too_old_for_conditions_sees_a_push_in_between(bench: Bench) -> None:
    a, b = two(bench)
    a.seal("mine")
    theirs = b.seal("theirs")
    fault = {"operation": "put-object", "do": "pause", "path": "/bench/machines/a/paused"}
    job = a.start("push", {**fault, "refuse": CONDITIONS})
    s3lib.eventually((a.folder / "paused").exists, "A is under way")
    assert b.push().result is True
    (a.folder / "paused").unlink()
    assert a.finish(job).conflict
    assert bench.latest() == theirs


@needs_engine
def test_a_store_that_ignores_conditions_is_found_out(bench: Bench) -> None:
    a = bench.machine("a")
    assert a.does("honours_conditions").result is True
    assert bench.objects() == {}, "the probe is cleared away"
    bench.rules({"method": "PUT", "times": 99, "do": "answer", "status": 200})
    assert a.does("honours_conditions").result is False


# -- the bucket, the history


@needs_engine
def test_setting_up_twice_makes_one_bucket_versioned_and_encrypted(bench: Bench) -> None:
    a = bench.machine("a", config={"aws_bucket": "another-bucket"})
    for _ in range(2):
        assert a.does("make_bucket").result in ([], ["blocking public access"])  # SeaweedFS has none
    at = ("--bucket", "another-bucket")
    assert bench.aws("get-bucket-versioning", *at)["Status"] == "Enabled"
    rules = bench.aws("get-bucket-encryption", *at)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rules[0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    a.seal("first")
    assert a.push().result is True
    a.seal("second")
    assert a.push().result is True


@needs_engine
def test_a_bucket_name_of_somebody_else_is_an_error(bench: Bench) -> None:
    a = bench.machine("a", limits=QUICK)
    taken = {"do": "answer", "status": 409, "text": error_text("BucketAlreadyExists")}
    refused = {"do": "answer", "status": 403, "text": ""}
    bench.rules({"method": "PUT", "times": 99, **taken}, {"method": "HEAD", "times": 99, **refused})
    answer = a.does("make_bucket")
    assert "somebody else's" in answer.error
    assert answer.hint


@needs_engine
def test_what_a_store_cannot_do_is_named_and_does_not_stop_the_rest(bench: Bench) -> None:
    a = bench.machine("a", limits=QUICK, config={"aws_bucket": "third-bucket"})
    unknown = {"do": "answer", "status": 501, "text": error_text("NotImplemented")}
    bench.rules({"method": "PUT", "path": "versioning", "times": 9, **unknown})
    assert "versioning" in a.does("make_bucket").result
    assert bench.aws("get-bucket-encryption", "--bucket", "third-bucket")


@needs_engine
def test_the_history_keeps_the_newest_and_only_as_many_as_the_config_says(bench: Bench) -> None:
    a = bench.machine("a", config={"vault_retention": 1})
    a.pushes(3)
    assert bench.kept() == {md5(b"version 1"), md5(b"version 2")}
    assert list(a.does("list_history").result) == sorted(set(bench.objects()) - {LATEST})


@needs_engine
def test_one_version_of_the_history_can_be_fetched(bench: Bench) -> None:
    a, b = two(bench)
    b.seal("second")
    b.push()
    (key,) = a.does("list_history").result
    answer = a.does("download", target="/bench/machines/a/fetched", key=key)
    assert answer.result["size"] == 5
    assert (a.folder / "fetched").read_bytes() == b"first"
    nothing = a.does("download", target="/bench/machines/a/nothing", key=f"{HISTORY}vault-none.tar.aes")
    assert nothing.result is None
    assert nothing.error == ""


# -- keys


CANARY = "canary0123456789"
FILES = {
    "underscores": ("aws_access_key_id", "aws_secret_access_key", "{}"),
    "hyphens": ("aws-access-key-id", "aws-secret-access-key", "{}\n"),
    "quotes": ("aws_access_key_id", "aws-secret-access-key", '"{}"\n'),
}


def with_keys(machine: Machine, style: str = "underscores", secret: str = "SKTEST") -> Machine:
    """The keys in files of the open vault."""
    folder = machine.folder / "home/secrets"
    folder.mkdir(parents=True)
    *names, form = FILES[style]
    for name, value in zip(names, ("AKTEST", secret)):
        (folder / name).write_text(form.format(value))
    return machine


@needs_engine
@pytest.mark.parametrize("style", FILES)
def test_keys_in_the_vault_are_used_and_are_in_no_argv_environment_or_file(bench: Bench, style: str) -> None:
    a = with_keys(bench.machine("a", env={"AWS_PROFILE": "not-this"}), style)
    a.seal("first")
    assert a.push().result is True
    assert a.pull().result is False
    assert a.calls()
    for call in a.calls():
        assert not any(key in json.dumps(call) for key in KEYS.values())
    outside = [path for path in a.folder.rglob("*") if path.is_file() and "home/secrets" not in str(path)]
    assert not any(b"SKTEST" in path.read_bytes() for path in outside)


@needs_engine
def test_keys_in_the_environment_come_before_those_in_the_vault(bench: Bench) -> None:
    a = with_keys(bench.machine("a"), secret="wrong")
    a.seal("first")
    assert a.push().result is True
    assert all(call["env"]["AWS_ACCESS_KEY_ID"] == "AKTEST" for call in a.calls())
    assert not any("SKTEST" in word for call in a.calls() for word in call["argv"])


@needs_engine
def test_keys_in_the_vault_come_before_the_login_and_wrong_ones_are_refused(bench: Bench) -> None:
    a = with_keys(bench.machine("a", env={}, limits=QUICK), secret=CANARY)
    a.seal("first")
    answer = a.push()
    assert answer.kind == "StorageError"
    assert "login" not in answer.hint
    assert CANARY not in answer.error + answer.hint + answer.said


@needs_engine
def test_without_keys_and_login_the_error_names_the_login(bench: Bench) -> None:
    a = bench.machine("a", env={})
    a.seal("first")
    for answer in (a.push(), a.pull()):
        assert answer.kind == "StorageError"
        assert answer.hint == "tazpod login"
    assert bench.objects() == {}


@needs_engine
def test_a_key_of_two_lines_is_refused_by_name(bench: Bench) -> None:
    a = with_keys(bench.machine("a", env={}), secret="SK\ncredential_process=touch /bench/owned")
    a.seal("first")
    assert "aws_secret_access_key: does not hold one key" in a.push().error
    assert not (bench.box / "bench/owned").exists()


def put_link(path: Path, vault: tazpod.Vault) -> None:
    path.symlink_to(tazpod.PASSPHRASE_FILE)


def put_hard_link(path: Path, vault: tazpod.Vault) -> None:
    os.link(vault.mount / tazpod.PASSPHRASE_FILE, path)


NO_KEYS: dict[str, tuple[Callable[[Path, tazpod.Vault], object], str]] = {
    "a link to the passphrase": (put_link, "is a link"),
    "a hard link to it": (put_hard_link, "holds the passphrase"),
    "a copy of it": (lambda path, _: path.write_text("'Correct-Horse-1'\n"), "holds the passphrase"),
    "a link to a device": (lambda path, _: path.symlink_to("/dev/zero"), "is a link"),
    "a fifo": (lambda path, _: os.mkfifo(path), "is not a regular file"),
    "a folder": (lambda path, _: path.mkdir(), "is not a regular file"),
    "much": (lambda path, _: path.write_text("A" * 300), "does not hold one key"),
    "more": (lambda path, _: path.write_text("A" * (2 << 20)), "is too large"),
    "other bytes": (lambda path, _: path.write_bytes(b"\xff\xfe"), "does not hold one key"),
    "nothing": (lambda path, _: path.touch(), "does not hold one key"),
}


@pytest.mark.parametrize("what", NO_KEYS)
@pytest.mark.parametrize("name", ["aws_access_key_id", "aws-secret-access-key"])
def test_what_is_no_key_in_the_vault_is_named_and_told_nobody(tmp_path: Path, name: str, what: str) -> None:
    vault = tazpod.Vault(tmp_path, tmp_path)
    vault.mount.mkdir()
    (vault.mount / tazpod.PASSPHRASE_FILE).write_text("Correct-Horse-1\n")
    for style in ("aws_access_key_id", "aws_secret_access_key"):
        if style != name.replace("-", "_"):
            (vault.mount / style).write_text("AKTEST\n")
    put, said = NO_KEYS[what]
    put(vault.mount / name, vault)
    with pytest.raises(tazpod.StorageError, match=said) as caught:
        tazpod.storage_of(Config(tmp_path, "lab"), vault)
    assert name in str(caught.value) and "\n" not in str(caught.value) and "Horse" not in str(caught.value)
    told = tazpod.remote_facts(Config(tmp_path, "lab", aws_named=True), vault, opened=True)
    assert told["remote_state"] == "unknown" and re.search(said, told["remote_reason"])


@pytest.mark.parametrize("key", ["a=b", "a/b", "a,b", "A" * 129])
def test_a_key_that_could_end_its_header_is_none(tmp_path: Path, key: str) -> None:
    vault = tazpod.Vault(tmp_path, tmp_path)
    vault.mount.mkdir()
    for name in ("aws_access_key_id", "aws_secret_access_key"):
        (vault.mount / name).write_text(key)
    assert tazpod.key_in_vault(vault, "secret_access_key") == key
    with pytest.raises(tazpod.StorageError, match="does not hold one key"):
        tazpod.key_in_vault(vault, "access_key_id")


@needs_engine
def test_a_stranger_is_refused_and_pull_is_no_offer_of_a_new_vault(bench: Bench) -> None:
    two(bench)
    stranger = bench.machine(
        "c", env={"AWS_ACCESS_KEY_ID": "AKSTRANGER", "AWS_SECRET_ACCESS_KEY": "SKSTRANGER"}, endpoint=STORE
    )
    answer = stranger.pull()
    assert answer.kind == "StorageError"
    assert answer.code == "AccessDenied"
    stranger.seal("of a stranger")
    assert stranger.push(force=True).kind == "StorageError"
    assert bench.objects() == {LATEST: md5(b"first")}


@needs_engine
def test_the_image_s_own_aws_from_start_to_end(bench: Bench) -> None:
    a = with_keys(bench.machine("a", env={}, plain=True))
    a.seal("first")
    assert a.push().result is True
    second = a.seal("second")
    assert a.push().result is True
    b = bench.machine("b", plain=True, endpoint="", env={**KEYS, "AWS_ENDPOINT_URL": GATE})
    assert b.pull().result is True
    assert b.has() == second


# -- every call of aws, exactly


HEAD_ANSWER = {"ETag": '"e1"', "ContentLength": 5, "LastModified": "2026-01-02T03:04:05+00:00"}
KEY_OF_HEAD = f"{HISTORY}vault-20260102T030405.tar.aes"
FIRST = "a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e"  # SHA-256 of "first"


class Calls:
    """A vault folder, and an aws that answers what it was told to; what it was called with."""

    def __init__(self, fp: FakeProcess, folder: Path, **config: str) -> None:
        self.fp, self.config = fp, Config(folder, "lab", **config)  # type: ignore[arg-type]
        self.vault = tazpod.Vault(folder / "vault", folder / "home")
        self.vault.folder.mkdir()
        self.vault.sealed.write_bytes(b"first")
        self.fds: list[tuple[int, ...]] = []

    def will(self, operation: str, answer: object = None, error: str = "", **options: Any) -> None:
        out, status = json.dumps(answer or {}), 254 if error else 0
        said = f"\nAn error occurred ({error}) when calling it: said the store\n" if error else ""
        words = [self.fp.program("aws"), "s3api", operation, self.fp.any()]
        self.fp.register(words, stdout=out, stderr=said, returncode=status, **options)

    def made(self) -> list[list[str]]:
        """The calls, less what every one has in common."""
        same = [
            *("--bucket", "tazlab-storage", "--region", "eu-central-1", "--output", "json"),
            *("--cli-connect-timeout", "10", "--cli-read-timeout", "20"),
        ]
        found = []
        for call in self.fp.calls:
            words = [str(word) for word in call]
            assert Path(words[0]).name == "aws"
            assert words[3 : 3 + len(same)] == same
            found.append([words[2], *words[3 + len(same) :]])
        assert not any(self.fp.definitions.values())
        return found


@pytest.fixture
def calls(fp: FakeProcess, tmp_path: Path, stub_path: Path) -> Calls:
    return Calls(fp, tmp_path)


def test_the_calls_of_a_first_push(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tazpod, "random_hex", lambda number: "ab" * number)
    push = "ab" * 16
    metadata = {"content-sha256": FIRST, "tazpod-push": push}
    calls.will("head-object", error="404")
    calls.will("put-object", {"ETag": '"e2"'})
    calls.will("head-object", {**HEAD_ANSWER, "ETag": '"e2"', "Metadata": metadata})
    assert tazpod.push(calls.config, calls.vault) is True
    body = str(calls.vault.folder / ".vault.tar.aes.abababab.part")
    told = ["--metadata", f"content-sha256={FIRST},tazpod-push={push},tazpod-project=lab"]
    assert calls.made() == [
        ["head-object", "--key", LATEST],
        ["put-object", "--key", LATEST, "--body", body, *told, "--if-none-match", "*"],
        ["head-object", "--key", LATEST],
    ]


OLD = [f"{HISTORY}vault-2025{month:02}01T000000.tar.aes" for month in range(1, 13)]
MARKED = {"Content-Sha256": FIRST, "Tazpod-Push": "ab" * 16}  # as a proxy may write the names of headers


@pytest.fixture
def full(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """As many versions are to be kept as OLD has."""
    monkeypatch.setattr(tazpod, "random_hex", lambda number: "ab" * number)
    calls.config = replace(calls.config, vault_retention=len(OLD))
    return calls


def over_another(calls: Calls, etag: str = '"e1"') -> None:
    """Answers for a push over what was synced last, until the vault is to be sent; the history is full."""
    tazpod.write_base(calls.vault, calls.config, etag=etag, digest="0" * 64)
    calls.will("head-object", {**HEAD_ANSWER, "ETag": etag})
    there = {"ETag": '"x"', "Size": 1, "LastModified": HEAD_ANSWER["LastModified"]}
    calls.will("list-objects-v2", {"Contents": [{"Key": key, **there} for key in reversed(OLD)]})
    calls.will("copy-object", {"CopyObjectResult": {"ETag": etag}})


def sent(calls: Calls, **metadata: str) -> None:
    """Answers for a vault that is sent, and lies there with these metadata."""
    calls.will("put-object")
    calls.will("head-object", {**HEAD_ANSWER, "ETag": '"e2"', "Metadata": metadata})


def test_the_calls_of_a_push_over_another_with_a_full_history(full: Calls) -> None:
    push = "ab" * 16
    over_another(full)
    sent(full, **{"content-sha256": FIRST, "tazpod-push": push})
    full.will("delete-objects")
    assert tazpod.push(full.config, full.vault) is True
    body = str(full.vault.folder / ".vault.tar.aes.abababab.part")
    told = ["--metadata", f"content-sha256={FIRST},tazpod-push={push},tazpod-project=lab"]
    source = ["--copy-source", f"tazlab-storage/{LATEST}", "--copy-source-if-match", '"e1"']
    deleted = json.dumps({"Objects": [{"Key": OLD[0]}], "Quiet": True})
    assert full.made() == [
        ["head-object", "--key", LATEST],
        ["list-objects-v2", "--prefix", f"{HISTORY}vault-"],
        ["copy-object", *source, "--key", KEY_OF_HEAD],
        ["put-object", "--key", LATEST, "--body", body, *told, "--if-match", '"e1"'],
        ["head-object", "--key", LATEST],
        ["delete-objects", "--delete", deleted],
    ]


def test_a_push_that_fails_takes_no_version_out_of_the_history(full: Calls) -> None:
    over_another(full)
    full.will("put-object", error="AccessDenied")
    with pytest.raises(tazpod.StorageError):
        tazpod.push(full.config, full.vault)
    assert [call[0] for call in full.made()][-2:] == ["copy-object", "put-object"]


@pytest.mark.parametrize("error", ["NotImplemented", "MissingContentMD5", "AccessDenied"])
def test_a_store_that_deletes_nothing_is_pushed_to_all_the_same(
    full: Calls, error: str, capfd: pytest.CaptureFixture[str]
) -> None:
    over_another(full)
    sent(full, **MARKED)
    full.will("delete-objects", error=error)
    assert tazpod.push(full.config, full.vault) is True
    assert "could not be deleted" in capfd.readouterr().err


def test_a_weak_etag_is_compared_without_its_mark(full: Calls) -> None:
    over_another(full, 'W/"e1"')
    sent(full, **MARKED)
    full.will("delete-objects")
    assert tazpod.push(full.config, full.vault) is True
    conditions = [call[call.index(word) + 1] for call in full.made() for word in call if "-if-match" in word]
    assert conditions == ['"e1"', '"e1"']


def test_a_vault_that_lies_there_without_its_mark_is_not_called_overtaken(full: Calls) -> None:
    over_another(full)
    sent(full)
    with pytest.raises(tazpod.StorageError, match="has no mark of who sent it"):
        tazpod.push(full.config, full.vault)


def test_a_push_whose_answer_was_lost_is_ours_at_first_and_old_when_it_comes_back_later(full: Calls) -> None:
    over_another(full)
    full.will("put-object", error="InternalError")
    with pytest.raises(tazpod.StorageError):
        tazpod.push(full.config, full.vault)
    lost = tazpod.parse_remote({**HEAD_ANSWER, "ETag": '"e2"', "Metadata": MARKED})
    base = tazpod.base_of(full.vault, full.config)
    assert tazpod.gone_back(full.vault, base, lost) == ""
    assert tazpod.compare_sides(FIRST, base, lost) == "in sync"
    assert tazpod.compare_sides("1" * 64, base, lost) == "ahead"
    tazpod.synced(full.vault, full.config, '"e3"', "1" * 64)
    base = tazpod.base_of(full.vault, full.config)
    assert tazpod.gone_back(full.vault, base, lost) == "holds an older version, which was replaced before"
    assert tazpod.compare_sides("1" * 64, base, lost) == "older"


def test_the_vault_of_the_last_sync_is_that_under_any_etag(full: Calls) -> None:
    tazpod.write_base(full.vault, full.config, etag='"e1"', digest=FIRST)
    tazpod.add_version(full.vault, full.vault.sealed)
    again = tazpod.parse_remote({**HEAD_ANSWER, "ETag": '"e9"', "Metadata": MARKED})
    base = tazpod.base_of(full.vault, full.config)
    assert tazpod.gone_back(full.vault, base, again) == ""
    assert tazpod.compare_sides("1" * 64, base, again) == "ahead"


@pytest.mark.parametrize(
    "section", ["profile-old lab", "profiles lab", "sso-session2 lab", "services2 x", "'profile-old' lab"]
)
def test_a_section_that_aws_alone_takes_for_a_profile_is_refused(section: str, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(f"[profile lab]\nregion = eu-central-1\n[{section}]\nsso_account_id = 666666666666\n")
    with pytest.raises(tazpod.StorageError, match="nobody but aws reads that"):
        tazpod.checked_settings(path)


@pytest.mark.parametrize(
    "section", ["default", "profile lab", "sso-session lab", "profile-of-mine", "profile 'a b'"]
)
def test_a_section_of_the_usual_kind_is_not(section: str, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(f"[{section}]\nregion = eu-central-1\n")
    assert tazpod.checked_settings(path) == path.read_bytes()


def test_the_call_of_a_pull(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tazpod, "random_hex", lambda number: "ab" * number)
    calls.will("get-object", error="NoSuchKey")
    assert tazpod.pull(calls.config, calls.vault) is None
    target = str(calls.vault.folder / ".vault.tar.aes.abababab.part")
    assert calls.made() == [["get-object", "--key", LATEST, target]]


@pytest.mark.parametrize("region", ["eu-central-1", "us-east-1"])
def test_the_calls_that_make_a_bucket(calls: Calls, region: str) -> None:
    operations = (
        "create-bucket",
        "put-public-access-block",
        "put-bucket-versioning",
        "put-bucket-encryption",
    )
    for operation in operations:
        calls.will(operation)
    assert tazpod.make_bucket(Storage("tazlab-storage", region, "tazlab-bootstrap")) == []
    made = [
        [Path(str(word)).name if n == 0 else str(word) for n, word in enumerate(c)] for c in calls.fp.calls
    ]
    same = ["--output", "json", "--cli-connect-timeout", "10", "--cli-read-timeout", "20"]
    at = ["--bucket", "tazlab-storage", "--region", region, *same]
    place = ["--create-bucket-configuration", f"LocationConstraint={region}"]
    block = "BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true"
    rule = '{"Rules":[{"ApplyServerSideEncryptionByDefault":{"SSEAlgorithm":"AES256"}}]}'
    assert made == [
        ["aws", "s3api", "create-bucket", *at, *(place if region != "us-east-1" else [])],
        ["aws", "s3api", "put-public-access-block", *at, "--public-access-block-configuration", block],
        ["aws", "s3api", "put-bucket-versioning", *at, "--versioning-configuration", "Status=Enabled"],
        ["aws", "s3api", "put-bucket-encryption", *at, "--server-side-encryption-configuration", rule],
    ]


def test_the_endpoint_and_the_profile_of_the_config_reach_aws(
    fp: FakeProcess, tmp_path: Path, stub_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    calls = Calls(fp, tmp_path, aws_endpoint="http://127.0.0.1:1", aws_profile="mine", aws_region="r")
    seen: list[Any] = []
    calls.will("list-objects-v2", callback=lambda process: seen.append(process.kwargs))
    tazpod.list_history(tazpod.storage_of(calls.config, calls.vault))
    words = [str(word) for word in fp.calls[0]]
    assert words[words.index("--endpoint-url") + 1] == "http://127.0.0.1:1"
    assert words[words.index("--region") + 1] == "r"
    environment = seen[0]["env"]
    assert environment["AWS_PROFILE"] == "mine"
    assert (environment["AWS_PAGER"], environment["AWS_EC2_METADATA_DISABLED"]) == ("", "true")
    assert seen[0]["pass_fds"] == ()


def test_keys_of_the_vault_go_to_aws_by_a_descriptor_alone(calls: Calls) -> None:
    seen: list[bytes] = []

    def look(process: Any) -> None:
        (fd,) = process.kwargs["pass_fds"]
        environment = process.kwargs["env"]
        assert environment["AWS_SHARED_CREDENTIALS_FILE"] == f"/dev/fd/{fd}"
        assert not any("SKTEST" in text for text in (*environment.values(), *map(str, process.args)))
        seen.append(Path(f"/dev/fd/{fd}").read_bytes())

    calls.will("list-objects-v2", callback=look)
    tazpod.list_history(Storage("b", "r", "p", key_id="AKTEST", secret_key="SKTEST"))
    name = tazpod.KEYS_PROFILE
    assert seen == [f"[{name}]\naws_access_key_id=AKTEST\naws_secret_access_key=SKTEST\n".encode()]


ODD = (5, -1, True, 1.5, "x", "file:///x", None, [], [5], {}, {"ETag": 5}, '"e1"\n', "٣" * 64)


@pytest.mark.parametrize("name", ["ETag", "ContentLength", "LastModified", "Metadata"])
def test_an_answer_of_an_odd_shape_is_an_error_and_no_traceback(calls: Calls, name: str) -> None:
    for value in ODD:
        calls.will("head-object", {**HEAD_ANSWER, name: value})
        legal = name == "Metadata" or (name == "ContentLength" and value == 5 and value is not True)
        if legal:
            seen = tazpod.head(Storage("b", "r", "p"))
            assert seen is not None
            assert (seen.digest, seen.push) == ("", "")
        else:
            with pytest.raises(tazpod.StorageError, match=f"makes no sense: {name}"):
                tazpod.head(Storage("b", "r", "p"))


def test_metadata_in_no_form_of_ours_is_none(calls: Calls) -> None:
    for value in ODD:
        calls.will(
            "head-object", {**HEAD_ANSWER, "Metadata": {"content-sha256": value, "tazpod-push": value}}
        )
        seen = tazpod.head(Storage("b", "r", "p"))
        assert seen is not None
        assert (seen.digest, seen.push) == ("", "")


@pytest.mark.parametrize("answer", [[], "x", 5, {"Contents": 5}, {"Contents": [5]}, {"Contents": [{}]}])
def test_a_history_of_an_odd_shape_is_an_error_and_no_traceback(calls: Calls, answer: object) -> None:
    calls.will("list-objects-v2", answer or "[]")
    with pytest.raises(tazpod.StorageError, match="makes no sense"):
        tazpod.list_history(Storage("b", "r", "p"))


def test_remote_json_is_believed_only_in_its_own_form(tmp_path: Path) -> None:
    config, vault = Config(tmp_path, "lab"), tazpod.Vault(tmp_path, tmp_path)
    good = {"etag": '"e"', "digest": FIRST, "time": "2026-01-02 03:04:05 UTC", "pushing": "a" * 32}
    tazpod.write_base(vault, config, **good)
    assert tazpod.base_of(vault, config) == {"bucket": "tazlab-storage", **good}
    for name, value in (
        ("etag", "file:///home/tazpod/secrets/.vault_pass"),
        *(("digest", "0"), ("time", "\x1b[2J"), ("pushing", "x"), ("conflict", "x"), ("other", "x")),
        *(("etag", 5), ("digest", [FIRST])),
    ):
        text = json.dumps({"bucket": "tazlab-storage", **good, name: value})
        (tmp_path / "remote.json").write_text(text)
        assert tazpod.base_of(vault, config) == {}, name


# -- what decides


@pytest.mark.parametrize(
    "said, error, hint, code",
    [
        ("An error occurred (AccessDenied) when calling X: no", "no", "may this login", "AccessDenied"),
        ("An error occurred (403) when calling HeadObject: Forbidden", "Forbidden", "may this login", "403"),
        ("An error occurred (NoSuchBucket) when calling X: none", "none", "setup-storage", "NoSuchBucket"),
        ("An error occurred (ExpiredToken) when calling X: old", "expired", "tazpod login", "ExpiredToken"),
        ("Error loading SSO Token: Token for x does not exist", "expired", "tazpod login", ""),
        ("Error when retrieving token from sso: Token has expired", "expired", "tazpod login", ""),
        ("The SSO session associated with this profile has expired", "expired", "tazpod login", ""),
        ("Unable to locate credentials. You can configure", "expired", "tazpod login", ""),
        ("The config profile (x) could not be found", "expired", "tazpod login", ""),
        ('\nCould not connect to the endpoint URL: "http://x/"', "Could not connect", "", ""),
        ("", "aws status 254", "", ""),
        ("An error occurred (x y) when calling X: Unknown options", "Unknown options", "", "unknown"),
        (
            "An error occurred (X) when calling X: you sent FwoGZXIvYXdzEJr9q0example+/==12345Ab",
            "[...]",
            "",
            "X",
        ),
    ],
)
def test_what_aws_says_becomes_one_line_with_a_next_step(said: str, error: str, hint: str, code: str) -> None:
    found = tazpod.aws_error(Result(254, b"", said), "storage b")
    assert str(found).startswith("storage b: ")
    assert error in str(found)
    assert "\n" not in str(found)
    assert hint in found.hint
    assert bool(hint) == bool(found.hint)
    assert found.code == code


def test_no_bucket_is_used_that_nobody_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKTEST")
    config, vault = Config(tmp_path, "lab"), tazpod.Vault(tmp_path, tmp_path)
    with pytest.raises(tazpod.UsageError, match="no storage is named") as caught:
        tazpod.named_storage(config, vault)
    assert "aws_sso: {bucket: NAME}" in caught.value.hint
    assert not tazpod.uses_storage(config, vault)
    named = replace(config, aws_named=True)
    assert tazpod.uses_storage(named, vault) and tazpod.named_storage(named, vault).latest == LATEST
    tazpod.synced(vault, config, '"e"', "0" * 64)  # before there was such a rule
    assert tazpod.uses_storage(config, vault) and tazpod.named_storage(config, vault).latest == LATEST


def test_a_further_project_of_this_host_has_a_place_of_its_own_in_the_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    places = []
    for name in ("one", "two"):
        project = tmp_path / name
        project.mkdir()
        tazpod.init_project(project)
        text = (project / tazpod.CONFIG_PATH).read_text()
        block = text[text.index("# aws_sso:") :].replace("\n# ", "\n").removeprefix("# ")
        config, _ = tazpod.parse_config(block, project)
        places.append((config.aws_bucket, config.aws_prefix))
    assert places == [("tazlab-storage", "tazpod/vault"), ("tazlab-storage", "tazpod/two")]


@pytest.mark.parametrize(
    "modified, etag, taken, name",
    [
        ("2026-01-02T03:04:05+00:00", "e", {}, "20260102T030405"),
        ("2026-01-02T03:04:05.678Z", "e", {}, "20260102T030405"),
        ("2026-01-02T03:04:05Z", "e", {"20260102T030405": "e"}, "20260102T030405"),
        ("2026-01-02T03:04:05Z", "e", {"20260102T030405": "x"}, "20260102T030405-2"),
        (
            "2026-01-02T03:04:05Z",
            "e",
            {"20260102T030405": "x", "20260102T030405-2": "y"},
            "20260102T030405-3",
        ),
    ],
)
def test_the_name_of_a_version_in_the_history(
    modified: str, etag: str, taken: dict[str, str], name: str
) -> None:
    keys = {f"{HISTORY}vault-{key}.tar.aes": tag for key, tag in taken.items()}
    assert tazpod.history_key(Storage("b", "r", ""), modified, etag, keys) == f"{HISTORY}vault-{name}.tar.aes"


def test_versions_of_one_second_stand_in_the_order_in_which_they_came() -> None:
    names = ["20260102T030405", "20260102T030405-2", "20260102T030405-10", "20260102T030406"]
    keys = [f"{HISTORY}vault-{name}.tar.aes" for name in names]
    assert sorted(set(keys), key=tazpod.version_order) == keys
