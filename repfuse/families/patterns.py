"""Patterns: which families of parallel linear branches there are, and which of them a group is.

A pattern says what may be fused and what it is called; the algebra elsewhere proves that it may. Each is a
TOML file: the ones that come with repfuse, and a user's own. docs/patterns.md explains how to write one, and
`families.expression` the language in which branches are described.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from repfuse.errors import BadInputError
from repfuse.families.expression import KINDS, Expression, Op, Topology
from repfuse.families.table import Table

__all__ = [
    "Branch",
    "Example",
    "Op",
    "Pattern",
    "Topology",
    "load_patterns",
    "match",
    "read_pattern",
    "select",
]

PathLike = str | os.PathLike[str]

CATCH_ALL = "linear"
"""The slug of the pattern that takes any group."""


@dataclass(frozen=True)
class Branch:
    """Branches of one form, and how many of them a group has.

    Attributes:
        ops: The form.
        least: The fewest there may be.
        most: The most there may be; `sys.maxsize` where there is no limit.
    """

    ops: Expression
    least: int = 1
    most: int = 1

    def counted(self, count: int) -> int:
        """One more than `count`; but without an upper limit, no more than what is needed."""
        return min(count + 1, self.least) if self.most == sys.maxsize else count + 1


@dataclass(frozen=True)
class Example:
    """A block of a pattern's family with all numbers given, from which tests and docs build a graph.

    Attributes:
        title: What the block is, or where it occurs.
        branches: The ops of each branch: the letters of expressions with every extent a number, and with
            its dilation where it has one, such as `dwconv3x3d2 bn`.
        tail: The ops behind the join.
        channels: `(C_in, C_out)` of the block.
        groups: The group of its convs; depthwise ones have `C_in` of them.
        stride: On every axis.
        crop: How many rows and columns the output lacks at each border, for want of padding.
        dims: The number of spatial axes.
    """

    title: str
    branches: tuple[str, ...]
    tail: str = ""
    channels: tuple[int, int] = (8, 8)
    groups: int = 1
    stride: int = 1
    crop: int = 0
    dims: int = 2

    def topology(self) -> Topology:
        """What the example looks like to `match`.

        Raises:
            BadInputError: An op is unknown or does not exist in so many dimensions.
        """
        return Topology(tuple(self._ops(branch) for branch in self.branches), self._ops(self.tail))

    def _ops(self, text: str) -> tuple[Op, ...]:
        return tuple(self._op(word) for word in text.split() if word != "identity")

    def _op(self, word: str) -> Op:
        parts = re.fullmatch(
            r"((?:computed)?(?:dw)?conv|avgpool(?!.*d))([1-9]\d*)x([1-9]\d*)(?:d([1-9]\d*))?", word
        )
        if not parts:
            if word not in KINDS or word in ("conv", "avgpool"):  # without their extents
                raise BadInputError(f"'{word}' is no op with all its numbers, such as dwconv3x3d2, bn or pad")
            return Op(word)
        kind, rows, columns, dilation = parts.groups()
        if rows != columns and self.dims != 2:
            raise BadInputError(f"'{word}': a strip is 2-D, but dims = {self.dims}")
        kernel = (int(rows), int(columns)) if rows != columns else (int(rows),) * self.dims
        dilations = (int(dilation or 1),) * self.dims
        plain = kind.removeprefix("computed")
        return Op(
            plain.removeprefix("dw"),
            kernel,
            dilation=dilations,
            depthwise=plain == "dwconv",
            computed=plain != kind,
        )


@dataclass(frozen=True)
class Pattern:
    """A family of blocks.

    Attributes:
        slug: Its name in commands: the name of its file without `.toml`.
        name: Its name in reports.
        rank: Patterns of a lower rank are tried first: the specific before the general.
        summary: One sentence.
        branches: The forms of its branches.
        tail: The linear ops that may follow the join.
        paper: Where it was published, such as `arXiv:2101.03697`.
        source: A public implementation: repository and file.
        families: Blocks known by other names that look the same in a graph.
        file: Where it is described, with examples.
    """

    slug: str
    name: str
    rank: int
    summary: str
    branches: tuple[Branch, ...]
    tail: Expression
    paper: str = ""
    source: str = ""
    families: tuple[str, ...] = ()
    file: PathLike = ""

    @cached_property
    def examples(self) -> tuple[Example, ...]:
        """Blocks of this family.

        Raises:
            BadInputError: One of them is malformed, or does not fit the pattern.
        """
        return tuple(_example(entry, self) for entry in Table.read(self.file).tables("examples"))

    def fits(self, topology: Topology) -> bool:
        """Whether each branch can be given to one form so that every form's count is met."""
        branches, tail = topology.spelled
        least, most = sum(form.least for form in self.branches), sum(form.most for form in self.branches)
        # Counting first: an expression is compiled when it is used for the first time, which takes long.
        if not least <= len(branches) <= most or not self.tail.fits(tail):
            return False
        # The set of counts that some assignment of the branches so far gives. A form without an upper limit
        # is not counted beyond its lower one, so the set stays small however many branches there are.
        reached = {(0,) * len(self.branches)}
        for branch in branches:
            forms = [index for index, form in enumerate(self.branches) if form.ops.fits(branch)]
            reached = {
                (*counts[:index], self.branches[index].counted(counts[index]), *counts[index + 1 :])
                for counts in reached
                for index in forms
                if counts[index] < self.branches[index].most
            }
        return any(
            all(count >= form.least for count, form in zip(counts, self.branches, strict=True))
            for counts in reached
        )


def takes_any(known: Iterable[Pattern]) -> bool:
    """Whether all is to be fused, of a family or not."""
    return any(pattern.slug == CATCH_ALL for pattern in known)


def match(patterns: Iterable[Pattern], topology: Topology) -> Pattern | None:
    """The first of the patterns that a group fits, in the order given; None where it fits none."""
    return next((pattern for pattern in patterns if pattern.fits(topology)), None)


def load_patterns(extra: Iterable[PathLike] = ()) -> tuple[Pattern, ...]:
    """Read the patterns that come with repfuse and those in the files `extra`, ordered by rank.

    Raises:
        BadInputError: A file cannot be read or is no pattern, or two have the same slug.
    """
    patterns = {pattern.slug: pattern for pattern in _shipped()}
    for file in map(Path, extra):
        pattern = read_pattern(file)
        if pattern.slug in patterns:
            raise BadInputError(f"{file}: there is a pattern '{pattern.slug}' already; rename the file")
        assert pattern.examples is not None  # reads them, so that a mistake in a user's file is told
        patterns[pattern.slug] = pattern
    return tuple(sorted(patterns.values(), key=lambda pattern: (pattern.rank, pattern.slug)))


@cache
def _shipped() -> tuple[Pattern, ...]:
    # An installation has the files in a folder beside this module, a checkout at its top level.
    installed = Path(__file__).with_suffix("")
    folder = installed if installed.is_dir() else Path(__file__).parents[2] / "patterns"
    # Few of them are used in one run, and their examples in none: tests compile and read all.
    return tuple(
        _pattern(file, Table.read(file, until="[[examples]]"), Expression)
        for file in sorted(folder.glob("*.toml"))
    )


def select(patterns: Sequence[Pattern], slugs: Sequence[str]) -> tuple[Pattern, ...]:
    """The patterns of these slugs, in the order of `patterns`.

    Raises:
        BadInputError: There is no pattern of that slug.
    """
    known = [pattern.slug for pattern in patterns]
    for slug in slugs:
        if slug not in known:
            near = difflib.get_close_matches(slug, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
            raise BadInputError(f"there is no pattern '{slug}'; {hint} (a file of your own ends in .toml)")
    return tuple(pattern for pattern in patterns if pattern.slug in slugs)


def read_pattern(path: PathLike) -> Pattern:
    """Read one pattern; its examples are read when they are asked for.

    Raises:
        BadInputError: The file cannot be read, or is no pattern: the message names the file and the key.
    """
    table = Table.read(path)
    table.tables("examples")
    return _pattern(path, table, Expression.parse)


def _pattern(path: PathLike, table: Table, expression: Callable[[str], Expression]) -> Pattern:
    """Make a pattern of all that a table says; `expression` makes expressions of texts."""
    pattern = Pattern(
        slug=Path(path).stem,
        name=table.take("name", str),
        rank=table.number("rank", least=0),
        summary=table.take("summary", str),
        branches=tuple(_branch(entry, expression) for entry in table.tables("branches")),
        tail=_expression(table, expression, "tail", ""),
        paper=table.take("paper", str, ""),
        source=table.take("source", str, ""),
        families=table.texts("families", []),
        file=path,
    )
    if not pattern.branches:
        raise table.error("branches", "missing; there must be at least one")
    table.close()
    return pattern


def _branch(table: Table, expression: Callable[[str], Expression]) -> Branch:
    ops = _expression(table, expression, "ops")
    count = table.take("count", str, "1")
    table.close()
    bounds = re.fullmatch(r"(\d{1,9})(?:\.\.(\d{0,9}))?", count)
    if bounds:
        least = int(bounds[1])
        most = least if bounds[2] is None else int(bounds[2] or sys.maxsize)
        if max(least, 1) <= most:
            return Branch(ops, least, most)
    raise table.error("count", f"'{count}' is no count; write '1', '0..1' or '2..'")


def _expression(
    table: Table, expression: Callable[[str], Expression], key: str, default: str | None = None
) -> Expression:
    text = table.take(key, str, default)
    try:
        return expression(text)
    except BadInputError as error:
        raise table.error(key, error) from error


def _example(table: Table, pattern: Pattern) -> Example:
    example = Example(
        title=table.take("title", str),
        branches=table.texts("branches"),
        tail=table.take("tail", str, Example.tail),
        channels=_channels(table),
        groups=table.number("groups", Example.groups, least=1),
        stride=table.number("stride", Example.stride, least=1),
        crop=table.number("crop", Example.crop, least=0),
        dims=table.number("dims", Example.dims, least=1, most=3),
    )
    table.close()
    try:
        if pattern.fits(example.topology()):
            return example
    except BadInputError as error:
        raise table.error("branches, tail", error) from error
    raise table.error(
        "branches, tail", f"not of the pattern '{pattern.slug}'; correct the example or the pattern"
    )


def _channels(table: Table) -> tuple[int, int]:
    value = table.take("channels", list, list(Example.channels))
    if len(value) != 2 or any(type(count) is not int or count < 1 for count in value):
        raise table.error("channels", f"must be the two numbers C_in and C_out, but is {value!r}")
    return value[0], value[1]
