"""What a pattern can say about linear ops: a small regular language over the ops of a branch.

An expression is a regular expression whose letters are linear ops:

    bn scale shift neg avgpool pad slice   the op of this name; `bn` is also a Mul and an Add (FrozenBN)
    conv                                   a convolution; `dwconv` is depthwise, `dilatedconv` dilated, and the
                                           kernel of a `computedconv` is computed in the graph from constants
    conv1x1 conv3x3                        all its extents are this number, in 1-D, 2-D and 3-D alike
    convkxk                                some extent is above 1
    conv1xk convkx1 conv51x5               a strip: 2-D, k is any number above 1
    convKxK                                extents and dilations of the largest kernel of the group
    any identity                           whatever op there is; no op at all (the source itself)
    a b   (a | b)   a?   a*   a+           one after the other, either, optional, any number, at least one

A shift moves nothing but the bias, and exporters leave some that add zero. So any number of them may stand
anywhere; a `shift` in an expression says that there must be one.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import NamedTuple

from repfuse.errors import BadInputError

KINDS = ("conv", "bn", "scale", "shift", "neg", "avgpool", "pad", "slice")
"""The linear ops that expressions can name."""


@dataclass(frozen=True)
class Op:
    """One linear op of a branch, as far as patterns look at it.

    Attributes:
        kind: One of `KINDS`; `convtranspose`, which is a conv of no extents; or another word, which only `any`
            matches. A bare source is no op at all.
        kernel: The spatial extents of a conv or avgpool.
        stride: The strides of a conv or avgpool.
        dilation: The dilations of a conv; empty where all are 1.
        depthwise: Whether a conv has a group for each of its several input channels.
        computed: Whether the graph computes a conv's kernel from constants.
    """

    kind: str
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    depthwise: bool = False
    computed: bool = False

    @property
    def spread(self) -> tuple[int, ...]:
        """The dilations that matter: 1 on an axis of extent 1, whatever the model says there."""
        dilation = self.dilation or (1,) * len(self.kernel)
        return tuple(d if k > 1 else 1 for k, d in zip(self.kernel, dilation, strict=True))


class Letter(NamedTuple):
    """What expressions look at in an op: of a conv its extents too, and whether no other is larger."""

    kind: str
    computed: bool = False
    dilated: bool = False
    depthwise: bool = False
    extents: tuple[int, ...] = ()
    largest: bool = False


Spelled = tuple[tuple[tuple[Letter, ...], ...], tuple[Letter, ...]]
"""The letters of each branch, and of the tail."""


@dataclass(frozen=True)
class Topology:
    """The ops of one branch group, without channels and weights.

    Attributes:
        branches: The ops of each branch from the source to the outermost join, in order of flow. Nested joins
            are flattened: ops behind an inner join appear in each of its branches. What a Sub subtracts ends
            in `neg` there.
        tail: The linear ops behind the join.
    """

    branches: tuple[tuple[Op, ...], ...]
    tail: tuple[Op, ...] = ()

    @cached_property
    def spelled(self) -> Spelled:
        """The branches and the tail as letters, for expressions to be matched against."""
        convs = [op for branch in self.branches for op in branch if op.kind == "conv"]
        largest = max(((math.prod(op.kernel), op.kernel, op.spread) for op in convs), default=(0, (), ()))[1:]

        def spell(op: Op) -> Letter:
            if op.kind != "conv":
                return Letter("conv" if op.kind == "convtranspose" else op.kind)
            spread = op.spread
            dilated = any(d > 1 for d in spread)
            return Letter(
                "conv", op.computed, dilated, op.depthwise, op.kernel, (op.kernel, spread) == largest
            )

        return tuple(tuple(map(spell, branch)) for branch in self.branches), tuple(map(spell, self.tail))


@dataclass(frozen=True)
class Expression:
    """A regular expression over linear ops; see the module's docstring for its letters.

    Attributes:
        text: As the pattern's author wrote it.
    """

    text: str

    @classmethod
    def parse(cls, text: str) -> Expression:
        """Read an expression at once: one that is merely made is read when it is used first.

        Raises:
            BadInputError: It names an unknown op, or is not well formed.
        """
        expression = cls(text)
        assert expression._tree
        return expression

    @cached_property
    def _tree(self) -> _Tree:
        return _parsed(self.text)

    def fits(self, spelled: tuple[Letter, ...]) -> bool:
        """Whether all ops of a branch that `Topology.spelled` wrote are as the expression wants them."""
        shifts = _places("shift", spelled)
        return bool(_ends(self._tree, spelled, shifts, _behind_shifts(1, shifts)) >> len(spelled))


_Tree = str | tuple[str, "tuple[_Tree, ...]"]
"""A word; or an operator (` ` for one after the other) and what it is applied to."""

_MEANS: dict[str, _Tree] = {
    "identity": (" ", ()),
    "bn": ("|", ("bn", (" ", ("scale", "shift")))),
}
"""Words that stand for more than one op, or for none."""

_CONV = re.compile(r"(computed)?(dilated)?(dw)?conv(?:(KxK)|([1-9]\d*|k)x([1-9]\d*|k))?")


def _ends(tree: _Tree, branch: tuple[Letter, ...], shifts: int, starts: int) -> int:
    """Where an expression may end in a branch, if it begins at one of several places.

    Sets of places are numbers: bit `n` is the place before op `n`. So no way is followed twice, however many
    there are.

    Args:
        tree: The expression.
        branch: The ops.
        shifts: Which of them are shifts.
        starts: Where it may begin.
    """
    if not starts:
        return 0
    if isinstance(tree, str):
        return _behind_shifts((starts & _places(tree, branch)) << 1, shifts)
    operator, parts = tree
    if operator == "|":
        ends = 0
        for part in parts:
            ends |= _ends(part, branch, shifts, starts)
        return ends
    if operator == " ":
        for part in parts:
            starts = _ends(part, branch, shifts, starts)
        return starts
    once = _ends(parts[0], branch, shifts, starts)
    if operator == "?":
        return starts | once
    ends = starts | once if operator == "*" else once
    while once := _ends(parts[0], branch, shifts, once) & ~ends:
        ends |= once
    return ends


@lru_cache(1024)
def _places(word: str, branch: tuple[Letter, ...]) -> int:
    """The ops that a word names: patterns ask the same of a branch."""
    return sum(1 << place for place, letter in enumerate(branch) if _names(word, letter))


def _behind_shifts(places: int, shifts: int) -> int:
    """Places, and those that only shifts part from them."""
    while more := shifts and (places & shifts) << 1 & ~places:
        places |= more
    return places


@cache
def _names(word: str, letter: Letter) -> bool:
    """Whether a word of an expression names an op."""
    conv = _CONV.fullmatch(word)
    if not conv:
        return word in ("any", letter.kind)
    computed, dilated, depthwise, largest, rows, columns = conv.groups()
    return (
        letter.kind == "conv"
        and letter.computed >= bool(computed)
        and letter.dilated >= bool(dilated)
        and letter.depthwise >= bool(depthwise)
        and letter.largest >= bool(largest)
        and (rows is None or _has_extents(letter.extents, rows, columns))
    )


def _has_extents(extents: tuple[int, ...], rows: str, columns: str) -> bool:
    if rows != columns:
        asked = zip(extents, (rows, columns), strict=False)
        return len(extents) == 2 and all(
            each > 1 if text == "k" else each == int(text) for each, text in asked
        )
    if rows == "k":
        return any(each > 1 for each in extents)
    return bool(extents) and set(extents) == {int(rows)}


@cache
def _parsed(text: str) -> _Tree:
    """Read an expression.

    Raises:
        BadInputError: As for `Expression.parse`.
    """
    if re.search(r"[?*+]\s*[?*+]", text):
        raise BadInputError(f"'{text}': two of ? * + in a row; use one, or parentheses")
    tokens = re.findall(r"[()|?*+]|[^\s()|?*+]+", text)
    try:
        tree = _either(tokens, text)
    except RecursionError as error:
        raise BadInputError(f"'{text[:40]}...': too many parentheses in each other") from error
    if tokens:
        raise BadInputError(f"'{text}': missing ( before )")
    return tree


def _either(tokens: list[str], text: str) -> _Tree:
    """Take from the front of `tokens` what stands up to the end, or up to a `)` whose `(` was before."""
    choices: list[_Tree] = []
    parts: list[_Tree] = []
    while tokens and tokens[0] != ")":
        token = tokens.pop(0)
        if token == "|":
            choices.append((" ", tuple(parts)))
            parts = []
        elif token == "(":
            parts.append(_either(tokens, text))
            if not tokens:
                raise BadInputError(f"'{text}': missing ) after (")
            tokens.pop(0)
        elif token in "?*+":
            if not parts:
                raise BadInputError(f"'{text}': nothing to repeat before {token}")
            parts[-1] = (token, (parts[-1],))
        else:
            parts.append(_word(token))
    last = (" ", tuple(parts))
    return ("|", (*choices, last)) if choices else last


def _word(token: str) -> _Tree:
    if token not in (*KINDS, *_MEANS, "any") and not _CONV.fullmatch(token):
        known = ", ".join([*KINDS, "any", "identity"])
        raise BadInputError(f"'{token}' is no op; known are {known}, and forms of conv such as dwconv3x3")
    return _MEANS.get(token, token)
