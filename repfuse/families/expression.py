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
from functools import cached_property
from itertools import compress

from repfuse.errors import BadInputError

_LETTERS = {
    "conv": "V",
    "bn": "B",
    "scale": "A",
    "shift": "S",
    "neg": "N",
    "avgpool": "P",
    "pad": "D",
    "slice": "L",
    "convtranspose": "Vt ",
}
"""How a kind of op is spelled for `re`, which takes long to compile an expression of whole words. A ConvTranspose
has no name of its own: it is a conv of no extents."""

_OTHER = "O"
"""Any other kind of op."""

_PREFIXES = {"computed": "c", "dilated": "d", "dw": "w"}
"""What stands before a conv's letter."""

KINDS = tuple(kind for kind in _LETTERS if kind != "convtranspose")
"""The linear ops that expressions can name."""


@dataclass(frozen=True)
class Op:
    """One linear op of a branch, as far as patterns look at it.

    Attributes:
        kind: One of `KINDS`, or another word, which only `any` matches. A bare source is no op at all.
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
    def spelled(self) -> tuple[list[str], str]:
        """The branches and the tail as text, for expressions to be matched against."""
        convs = [op for branch in self.branches for op in branch if op.kind == "conv"]
        largest = max(((math.prod(op.kernel), op.kernel, op.spread) for op in convs), default=(0, (), ()))[1:]

        def spell(op: Op) -> str:
            if op.kind != "conv":
                return _LETTERS.get(op.kind, _OTHER)
            holds = (op.computed, any(d > 1 for d in op.spread), op.depthwise)
            marks = "".join(compress(_PREFIXES.values(), holds))
            largest_or_not = "K" if (op.kernel, op.spread) == largest else ""
            return f"{marks}V{largest_or_not}{'x'.join(map(str, op.kernel))} "

        return ["".join(map(spell, branch)) for branch in self.branches], "".join(map(spell, self.tail))


@dataclass(frozen=True)
class Expression:
    """A regular expression over linear ops; see the module's docstring for its letters.

    Attributes:
        text: As the pattern's author wrote it.
    """

    text: str

    @classmethod
    def parse(cls, text: str) -> Expression:
        """Read an expression, and compile it at once: one that is merely made is compiled when it is used first.

        Raises:
            BadInputError: It names an unknown op, or is not well formed.
        """
        expression = cls(text)
        assert expression._compiled
        return expression

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        if re.search(r"[?*+]\s*[?*+]", self.text):
            raise BadInputError(f"'{self.text}': two of ? * + in a row; use one, or parentheses")
        pieces = [_regex(word) for word in re.findall(r"[()|?*+]|[^\s()|?*+]+", self.text)]
        try:
            return re.compile(f"{_SHIFTS}(?:{''.join(pieces)})")
        except re.error as error:
            raise BadInputError(f"'{self.text}': {error.msg}") from error

    def fits(self, spelled: str) -> bool:
        """Whether all ops of a branch that `Topology.spelled` wrote are as the expression wants them."""
        return self._compiled.fullmatch(spelled) is not None


_SHIFTS = "S*"
_REGEX = {
    **{operator: operator for operator in "()|?*+"},
    **{kind: f"(?:{_LETTERS[kind]}{_SHIFTS})" for kind in KINDS},
    "shift": "S",
    "bn": f"(?:(?:B|AS){_SHIFTS})",
    "any": r"(?:[a-z]*V\S* |[A-Z])",
    "identity": "(?:)",
}
_CONV = re.compile(r"(computed)?(dilated)?(dw)?conv(KxK|(?:[1-9]\d*|k)x(?:[1-9]\d*|k))?")


def _regex(word: str) -> str:
    """The `re` text for one letter of an expression."""
    if word in _REGEX and word != "conv":
        return _REGEX[word]
    conv = _CONV.fullmatch(word)
    if not conv:
        known = ", ".join([*KINDS, "any", "identity"])
        raise BadInputError(f"'{word}' is no op; known are {known}, and forms of conv such as dwconv3x3")
    *prefixes, extents = conv.groups()
    asked = [mark if given else f"{mark}?" for given, mark in zip(prefixes, _PREFIXES.values(), strict=True)]
    return f"(?:{''.join(asked)}V{_extents(extents)} {_SHIFTS})"


def _extents(text: str | None) -> str:
    """The `re` text for a kernel's extents, with the mark of the largest kernel before them."""
    if text is None:
        return r"\S*"
    if text == "KxK":
        return r"K\S*"
    if text == "kxk":
        return r"K?(?!1(?:x1)*\b)[\dx]+"
    rows, columns = text.split("x")
    if rows == columns:
        return f"K?{rows}(?:x{rows})*"
    return "K?" + "x".join(r"(?!1\D)\d+" if extent == "k" else extent for extent in (rows, columns))
