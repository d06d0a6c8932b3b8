"""A short form of the random walk (tests/walk), with and without a storage, on an engine of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
from conftest import ROOT

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(os.geteuid() != 0, reason="starts an engine, which root alone can"),
]


@pytest.mark.parametrize(
    "words", [("--seed", "21", "--faults", "0.4"), ("--seed", "33", "--faults", "0.5", "--storage")]
)
def test_a_short_walk_finds_nothing(words: Sequence[str]) -> None:
    walk = [sys.executable, ROOT / "tests/walk", "--steps", "12", *words]
    done = subprocess.run(walk, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 steps" in done.stdout
