"""Whatever changes something is reached through a handful of functions that know the dry run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

import pytest
from test_structure import TREE

OS = (
    *("unlink", "remove", "rename", "renames", "replace", "mkdir", "makedirs", "rmdir", "removedirs"),
    *("chmod", "fchmod", "lchmod", "chown", "fchown", "lchown", "link", "symlink", "truncate", "utime"),
    *("mkfifo", "mknod", "setxattr", "removexattr", "kill", "killpg", "system", "popen"),
)
METHODS = (
    *("unlink", "mkdir", "rmdir", "rename", "symlink_to", "hardlink_to", "link_to", "touch", "chmod"),
    *("lchmod", "write_text", "write_bytes", "bind"),
)
WHOLE = re.compile(
    rf"os\.({'|'.join(OS)}|exec\w+|spawn\w+|posix_spawn\w*)|shutil\.(copy\w*|move|rmtree|chown)|tempfile\.\w+"
    r"|socketserver\.\w+|subprocess\.\w+|signal\.pidfd_send_signal|fcntl\.ioctl|spawn|Late|.*\.popen"
    rf"|(?!os\.|shutil\.).*\.({'|'.join(METHODS)})"
)
READING = re.compile(r"(os\.O_(RDONLY|DIRECTORY|CLOEXEC|NOFOLLOW|NONBLOCK|PATH)|_FOLDER|\||\s)+")

# The functions that change something, each of which does not in a dry run.
KNOW = {
    *("act", "launch", "stream", "run_foreground", "signal_group"),
    *("private_folder", "make_folder", "create_file", "remove_file", "remove_folder", "empty_folder"),
    *("set_mode", "set_owner", "copy_file", "copy_tree", "second_name", "write_in_place", "rename_file"),
    *("link_to", "write_whole", "locked_file", "empty_file", "relay_agent", "cmd_guard", "tell_work"),
}
# What changes something and does not ask itself: who calls it, or why it may.
WITHOUT = {
    "spawn": {"act", "launch", "stream", "run_foreground", "capture"},
    "capture": None,  # see the next test
    "_spawn_at_once": {"spawn"},
    "folder_at": None,  # makes folders for `private_folder` alone, see below
    "open_regular": None,  # opens what is there; who does so to write is below
    "nowhere": {"create_file", "open_sealed_file"},  # a device or memory
    "make_changeable": {"empty_file"},
    "remove_attributes": {"empty_file"},
    "guard": {"cmd_guard"},
    "aws_environment": None,  # a folder of its own in RAM, for a call that only looks as well
    "show_caches": {"aws_environment"},
    "build_image": None,  # a file without a name
}


def inside(kind: type[Any], tree: ast.AST = TREE) -> Iterator[tuple[str, Any]]:
    """All of a kind, each with the function or method of the module that it stands in."""
    for node in ast.iter_child_nodes(tree):
        parts = node.body if isinstance(node, ast.ClassDef) else [node]
        for part in parts:
            if isinstance(part, ast.FunctionDef):
                name = f"{node.name}.{part.name}" if isinstance(node, ast.ClassDef) else part.name
                for leaf in ast.walk(part):
                    if isinstance(leaf, kind):
                        yield name, leaf


CALLS = list(inside(ast.Call))
FUNCTIONS = {node.name: node for node in TREE.body if isinstance(node, ast.FunctionDef)}


def changes(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    words = [ast.unparse(word) for word in call.args]
    if name == "os.open":
        return words[0] != "os.devnull" and not READING.fullmatch(words[1])
    if name == "open" or name.endswith(".open"):
        mode = words[1] if len(words) > 1 else "'r'"
        return words[:1] != ["os.devnull"] and not re.fullmatch("'rb?'", mode)
    if name.endswith(".replace") and name != "os.replace":
        return len(call.args) == 1 and not call.keywords  # of a path; that of a text takes two
    return bool(WHOLE.fullmatch(name))


def test_what_changes_something_stands_in_a_function_that_knows_the_dry_run():
    found = {name for name, call in CALLS if changes(call)}
    assert found - KNOW - set(WITHOUT) == set()


@pytest.mark.parametrize("name", sorted(KNOW))
def test_such_a_function_asks_whether_this_is_a_dry_run(name):
    text = ast.unparse(FUNCTIONS[name])
    assert "OPTIONS.dry_run" in text or "would(" in text


@pytest.mark.parametrize("name", sorted(name for name, callers in WITHOUT.items() if callers))
def test_what_does_not_ask_is_called_by_those_that_do(name):
    callers = {owner for owner, call in CALLS if ast.unparse(call.func) == name}
    assert callers <= WITHOUT[name]


def test_folders_are_made_and_files_opened_for_writing_on_the_same_terms():
    makes = {owner for owner, call in CALLS for key in call.keywords if key.arg == "make"}
    assert makes == {"private_folder"}
    writes = {owner for owner, call in CALLS if ast.unparse(call.func) in ("open_shared", "open_regular")}
    writers = {owner for owner in writes if "O_RDWR" in ast.unparse(FUNCTIONS[owner])}
    assert writers <= {"_open_lock", "tell_work"}


# Who runs a program in a dry run as well: it only looks, at what stands beside it.
LOOK = {
    "look_for_container": "the container and the image",
    "places_with_secrets": "the mounts of the container",
    "sees_sign": "a file that is made for that, and taken away",
    "pods_of": "all containers",
    "replace_container": "whether the name for the one of before is free",
    "create_container": "the network",
    "chosen_engine": "the engine's version",
    "is_rootless": "the engine",
    "engine_facts": "the engine",
    "git_identity": "git's settings of this person",
    "is_there": "whether the container takes a command",
    "as_it_is": "whether Podman can run anything",
    "guard": "--version of the tool",
    "asked_if_open": "mountpoint",
    "ask_pod": "status and doctor, which change nothing",
    "rehearse_in_pod": "the pod's own dry run",
    "refuse_to_lose": "what lies on the container's disk",
    "hook_programs": "which tazpod comes first on PATH",
    "terminal_variables": "what the shell makes of a lease",
    "version_of": "--version",
    "ask_aws": "what the storage and the CLI say; what changes something says so, and goes to `act`",
}


def test_only_what_looks_is_run_by_a_dry_run():
    users = {owner for owner, name in inside(ast.Name) if name.id == "capture"} - {"act"}
    assert users == set(LOOK)
