"""What a place and its container start and write, recorded from outside the tool.

A small library (recorder.c) is preloaded into every program of both sides, of root's as well: it writes
down who was started by whom, with what words, before that runs.  Nothing is changed for the program.  Into
a program that is linked statically, as docker may be, nothing can be preloaded; so on the host PATH holds
scripts alone, each of which goes on as the program of its name, and what has none is not found.
"""

from __future__ import annotations

import base64
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from conftest import ROOT
from enginelib import ENGINE, IMAGE, Owned, docker

FOLDER = "/recorded"  # in the container: a folder of the host's
# On the host's PATH.  Podman is one that says nothing: that it is asked is all there is to see.
ON_HOST = {"podman": "", **{name: shutil.which(name) for name in (ENGINE, "uname", "git")}}


class Started(NamedTuple):
    """A program that was started: on which side, by which user, with what words, and by whom."""

    side: str
    uid: int
    argv: tuple[str, ...]
    before: tuple[str, ...]  # what this process was until then, where that was recorded
    parent: tuple[str, ...]


class Written(NamedTuple):
    """A file, a folder (with a slash behind it) or a link (with an @): its place, mode and owner."""

    place: str  # project, home or tmp, below which the path goes on; disk or ram of the container
    path: str
    mode: int
    uid: int


FIND, PRINT = "find", r"-printf '%y %F %m %U %p\0'"
MEMORY = "/dev/shm /home/tazpod/secrets /home/tazpod/.aws"
MARKS = {"d": "/", "l": "@"}


def words_of(text: str) -> tuple[str, ...]:
    """The words of a command line, which came in hex."""
    return tuple(bytes.fromhex(text).decode(errors="surrogateescape").split("\0")[:-1])


class Recorder:
    """The logs of a place, one of each side, and what was seen there of files."""

    def __init__(self, place: Owned) -> None:
        self.place = place
        self.folder = place.box / "recorded"
        self.temp = place.box / "tmp"
        self.files: set[Written] = set()
        for folder in (self.folder, self.temp):
            folder.mkdir()
            folder.chmod(0o777)
        for side in ("host", "pod"):
            log = self.folder / f"{side}.log"
            log.touch()
            log.chmod(0o666)
        programs = self.folder / "bin"
        programs.mkdir()
        for name, path in ON_HOST.items():
            script = programs / name
            script.write_text(f'#!/bin/sh\n[ -z "{path}" ] || exec {path} "$@"\n')
            script.chmod(0o755)
        place.argv[0] = shutil.which(place.argv[0])  # what comes before the tool is found as ever
        library = self.build(self.folder / "host.log", "host")
        place.env |= {"LD_PRELOAD": str(library), "PATH": str(programs), "TMPDIR": str(self.temp)}
        self.before = set(self.on_host())

    def build(self, log: Path, side: str) -> Path:
        """The library that writes to a log."""
        library = self.folder / f"{side}.so"
        flags = ("-shared", "-fPIC", "-nostdlib", "-s", "-O1", "-fno-stack-protector", f'-DLOG="{log}"')
        subprocess.run(["gcc", *flags, "-o", library, ROOT / "tests/recorder.c"], check=True)
        return library

    def image(self) -> str:
        """The image of the tests with the library in it, which no program can do without.

        Less a script that each call of aws runs, a dozen programs long, to learn the name of its system.
        """
        library = base64.b64encode(self.build(Path(FOLDER) / "pod.log", "pod").read_bytes()).decode()
        place = "/usr/local/lib/recorder.so"
        return self.place.build(
            f"FROM {IMAGE}\nUSER root\nRUN rm /usr/bin/lsb_release && echo {library} | base64 -d > {place}"
            f" && echo {place} > /etc/ld.so.preload\nUSER tazpod\n"
        )

    def started(self) -> Iterator[Started]:
        """All that was started so far, each side's in its order."""
        for side in ("host", "pod"):
            was: dict[str, tuple[str, ...]] = {}
            for line in (self.folder / f"{side}.log").read_text().splitlines():
                pid, uid, argv, by = line.split(" ")
                words = words_of(argv)
                yield Started(side, int(uid), words, was.get(pid, ()), words_of(by))
                was[pid] = words

    def on_host(self) -> Iterator[Written]:
        """The files in the place's folders."""
        folders = {"project": self.place.folder, "home": self.place.home, "tmp": self.temp}
        for name, folder in folders.items():
            for path in folder.rglob("*"):
                try:
                    info = path.lstat()
                except FileNotFoundError:  # a word at work has taken it away meanwhile
                    continue
                text = f"{path.relative_to(folder)}{MARKS.get(stat.filemode(info.st_mode)[0], '')}"
                yield Written(name, text, stat.S_IMODE(info.st_mode), info.st_uid)

    def in_pod(self) -> Iterator[Written]:
        """The files on the container's disk that its image has not, or has otherwise, and those in RAM.

        Folders of the image in which something else has changed are left out, but for the home.
        """
        changes = [line.split(" ", 1) for line in docker("diff", self.place.name).splitlines()]
        own = {path for change, path in changes if change == "A" or path.startswith("/home/tazpod/")}
        script = f"{FIND} -files0-from - -maxdepth 0 {PRINT}; {FIND} {MEMORY} -xdev -mindepth 1 {PRINT}"
        argv = [ENGINE, "exec", "-i", "-u", "0", self.place.name, "bash", "-c", script]
        text = "\0".join(path for change, path in changes if change != "D")
        said = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=60).stdout
        for line in said.split("\0")[:-1]:
            kind, system, mode, uid, path = line.split(" ", 4)
            if kind == "d" and path not in own and system != "tmpfs":
                continue
            place = "ram" if system == "tmpfs" else "disk"
            yield Written(place, path + MARKS.get(kind, ""), int(mode, 8), int(uid))

    def look(self, pod: bool = True) -> None:
        """See what is there now that was not there at the beginning."""
        self.files |= set(self.on_host()) - self.before
        if pod:
            self.files |= set(self.in_pod())
