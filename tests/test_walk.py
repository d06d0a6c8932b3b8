"""A short form of the random walk (tests/walk), with and without faults, on an engine of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(os.geteuid() != 0, reason="starts an engine, which root alone can"),
]


def test_a_short_walk_finds_nothing() -> None:
    words = ("--seed", "21", "--steps", "20", "--faults", "0.4")
    done = subprocess.run([sys.executable, ROOT / "tests/walk", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 steps" in done.stdout
