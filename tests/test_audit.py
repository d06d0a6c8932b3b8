"""The audit page: it is made from the code of today, and names every function that starts a program."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

import tazpod

PAGE = ROOT / "docs/audit.md"
TREE = ast.parse(Path(tazpod.__file__).read_text())
# The primitives of section 3, and what only hands an argv on to one: who calls them names a program.
PRIMITIVES = {"capture", "act", "launch", "stream", "run_foreground", "spawn", "succeed", "execv", "Stage"}
HANDS_ON = {"docker", "change_mounts", "ask_aws", "_spawn_at_once", *PRIMITIVES}
# Functions that pass on what they are given, or start what others have named.
NO_PROGRAM_OF_THEIR_OWN = {"change_mounts", "docker", "ask_aws", "unmount", "s3", "guard", "start"}


def load_page():
    loader = importlib.machinery.SourceFileLoader("audit", str(ROOT / "docs/audit"))
    spec = importlib.util.spec_from_loader("audit", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    sys.modules["audit"] = module
    loader.exec_module(module)
    return module


PAGE_OF = load_page()
ROWS = list(PAGE_OF.rows())


def test_the_committed_page_is_made_from_the_code_of_today():
    done = subprocess.run([sys.executable, str(ROOT / "docs/audit")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == PAGE.read_text(), "make audit"


def starters():
    """The functions outside of section 3 in which a program is started."""
    for node in ast.walk(TREE):
        if isinstance(node, ast.FunctionDef) and node.name not in HANDS_ON:
            for call in (leaf for leaf in ast.walk(node) if isinstance(leaf, ast.Call)):
                name = ast.unparse(call.func)
                if name.removeprefix("os.") in HANDS_ON:
                    yield node.name


def test_every_function_that_starts_a_program_stands_there_and_no_other():
    named = {name for row in ROWS for name in row.function.split(", ")}
    named |= {name for _, _, where in PAGE_OF.SECRETS for name in where.split(", ")}
    functions = {node.name for node in ast.walk(TREE) if isinstance(node, ast.FunctionDef)}
    assert named - functions == set(), "no such function"
    assert set(starters()) - named - NO_PROGRAM_OF_THEIR_OWN == set(), "not on the page"


def test_every_row_tells_all_there_is_to_know():
    assert len(ROWS) > 60
    for row in ROWS:
        assert all(row), row
    assert len({(row.argv, row.side) for row in ROWS}) == len(ROWS)
