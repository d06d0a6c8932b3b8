"""The man page: the committed one is what the tables say, and it is well formed."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from conftest import ROOT

import tazpod

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGE = ROOT / "docs/tazpod.1"


def groff(*options: str) -> subprocess.CompletedProcess[str]:
    argv = ["groff", "-man", "-Tutf8", "-ww", "-P-c", *options, str(PAGE)]
    return subprocess.run(argv, capture_output=True, text=True)


def test_the_committed_page_is_made_from_the_tables_of_today():
    done = subprocess.run([sys.executable, str(ROOT / "docs/man")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == PAGE.read_text(), "make man"


def test_it_is_well_formed():
    done = groff("-z")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture(scope="module")
def text():
    """The page as it is read, every overstrike taken out."""
    return re.sub(r".\x08|\x1b\[\d*m", "", groff("-rHY=0", "-rLL=200n").stdout)


@pytest.mark.parametrize("word", tazpod.all_words().values(), ids=lambda word: word.name)
def test_it_names_each_word_with_its_options(word, text):
    commands = text.partition("COMMANDS")[2].partition("OPTIONS")[0]
    entries = re.split(r"\n(?= {7}\S)", commands)
    (entry,) = (entry for entry in entries if re.match(rf" {{7}}{word.name}[, \n]", entry))
    for names, settings in word.options:
        if settings.get("help") != tazpod.HIDDEN and names[0].startswith("-"):
            assert f" {names[0]}" in entry


def test_the_wheel_brings_it_along():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    (source,) = (path for path, to in wheel["shared-data"].items() if to == "share/man/man1/tazpod.1")
    assert (ROOT / source).samefile(PAGE)
