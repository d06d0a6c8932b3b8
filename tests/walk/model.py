"""What the vault must hold, from what was done and said alone; it knows nothing of the tool's insides."""

from __future__ import annotations

from collections.abc import Iterable

Tree = dict[str, str]  # the digest of each file in a vault, by its name; '' stands for any content


class Violation(Exception):
    """Something that must never be so was seen."""


def same(one: Tree, other: Tree) -> bool:
    """Whether two trees hold the same."""
    return one.keys() == other.keys() and all(
        "" in (one[name], other[name]) or one[name] == other[name] for name in one
    )


def among(tree: Tree, others: Iterable[Tree]) -> bool:
    """Whether a tree is one of these."""
    return any(same(tree, other) for other in others)


def short(trees: Iterable[Tree]) -> list[dict[str, str]]:
    """Trees for a person to read."""
    return [{name: digest[:6] for name, digest in tree.items()} for tree in trees]


class Model:
    """The versions that the vault has had, oldest first, and which of them may be the sealed one."""

    def __init__(self) -> None:
        self.open = False
        self.timeline: list[Tree] = [{}]
        self.floor = 0  # what is sealed is not older than this
        self.may_be: list[Tree] = []  # what a step that failed, or was cut off, may have brought about

    @property
    def now(self) -> Tree:
        """What it holds."""
        return self.timeline[-1]

    def begins_with(self, tree: Tree) -> None:
        """From now on there is one version."""
        self.timeline = [tree]
        self.floor = 0

    def was_saved(self, number: int) -> None:
        """The tool said so; the version that was there before it began is sealed."""
        self.floor = max(self.floor, number)

    def judge(self, sealed: Tree | None, inside: Tree | None, reborn: bool, disturbed: bool) -> None:
        """Compare it with what is so: in the sealed file, and in the open vault, where there is one.

        A container that is `reborn` has lost its RAM.
        """
        if sealed is None:
            if any(self.timeline[: self.floor + 1]):
                raise Violation("the sealed file is gone")
            sealed = {}
        else:
            held = [*self.timeline[self.floor :], *self.may_be]
            if not among(sealed, held):
                raise Violation(f"sealed is {short([sealed])}, not one of {short(held[-6:])}")
        latest = [self.now, *self.may_be]
        lost = self.open and reborn
        if inside is None:
            if self.open and not lost and not among(sealed, latest):
                raise Violation(f"locked, and sealed is {short([sealed])}, not {short(latest)}")
            self.begins_with(sealed)
        else:
            # One that was locked may have been opened and written to in this step, beside sessions that live.
            expected = [sealed] if lost else latest
            if disturbed:
                expected = [*expected, sealed]
            if not among(inside, expected):
                raise Violation(f"the open vault holds {short([inside])}, not {short(expected)}")
            self.take(inside, sealed)
        self.open = inside is not None
        self.may_be = []

    def take(self, inside: Tree, sealed: Tree) -> None:
        """What is in the open vault is the newest version now."""
        if self.now == inside:
            return
        found = [number for number, tree in enumerate(self.timeline) if same(sealed, tree)]
        first = min(self.floor, max(found, default=0))
        self.timeline = [*self.timeline[first:], inside]
        self.floor = min(self.floor, len(self.timeline) - 1)
