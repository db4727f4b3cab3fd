"""Finding what follows linearly across ops that carry channels: the search beside `search.groups`.

Branches are not added up across such ops, so this looks at chains only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from repfuse.algebra import window
from repfuse.algebra.window import Refusal, Window
from repfuse.graph.view import Scope
from repfuse.operators.carry import GROWING, Carry, carry
from repfuse.operators.lifted import Lifted
from repfuse.search.forms import ITSELF, CarriedForm, Form, nearest

CARRIES = Refusal("moves or averages elements; branches are not merged across it")
"""Why no branch goes through such an op."""


class Carried:
    """The ops of one graph that carry channels, and what follows across them.

    Attributes:
        ops: The ops by position.
    """

    def __init__(self, scope: Scope) -> None:
        self.ops: dict[int, Carry] = {}
        self._scope = scope
        self._forms: dict[str, dict[str, CarriedForm]] = {}

    def forms(self, tensor: str) -> Mapping[str, CarriedForm]:
        """The ways by source in which a tensor follows across ops that carry channels."""
        return self._forms.get(tensor, {})

    def visit(self, position: int, forms: Mapping[str, Form], found: Carry | None = None) -> None:
        """Add a node to the ways in which what it acts on follows from sources, if it carries channels.

        Args:
            position: The node's.
            forms: The forms of what it acts on.
            found: How it carries channels, if that is known.
        """
        node = self._scope.nodes[position]
        known = node.input[0] in self._forms
        if not (forms or known or node.op_type in GROWING):
            return
        found = found or carry(node, self._scope)
        if (
            found and found.density < 1
        ):  # what comes behind it may go before it, to where there is nothing yet
            forms = {found.source: ITSELF, **forms}
        if found is None or not (forms or known):
            return
        self.ops[position] = found
        ways = {
            source: CarriedForm(form.window, form.window, (), form.is_weighted, form.is_weighted)
            for source, form in forms.items()
        }
        ways |= {source: way for source, way in self.forms(found.source).items() if source not in ways}
        carried = {}
        for source, way in nearest(ways).items():
            behind = way.behind and found.through(way.behind)
            channels = way.behind.channels if way.behind else None
            if found.rigid and channels and channels[0] != channels[1]:
                behind = None
            path = (*way.path, position)
            grows = math.prod(self.ops[each].density for each in path) < 1
            carried[source] = CarriedForm(
                way.before, behind or None, path, way.is_weighted, way.starts_weighted, grows
            )
        self._forms[node.output[0]] = carried

    def compose(self, output: str, lifted: Lifted) -> None:
        """Add a linear op to the ways in which what it acts on follows."""
        found = {}
        for source, way in self.forms(lifted.source).items():
            behind = way.behind and window.compose(way.behind, lifted.window)
            before = way.before and self._before(way.before, lifted.window, way.path)
            if behind and behind.shifted:  # an Add would have to stand between
                behind = None
            if behind or before:
                weighted = way.is_weighted or bool(lifted.weight_type)
                found[source] = replace(
                    way, before=before or None, behind=behind or None, is_weighted=weighted
                )
        if found:
            self._forms[output] = found

    def forget(self, positions: Iterable[int]) -> None:
        """Take nodes out that are part of another op, which does not stop half way."""
        for position in positions:
            self._forms.pop(self._scope.nodes[position].output[0], None)

    def _before(self, first: Window, second: Window, path: Sequence[int]) -> Window | Refusal:
        """What follows ops that carry channels, composed with what precedes them."""
        rigid = any(self.ops[position].rigid for position in path)
        if rigid and second.channels and second.channels[0] != second.channels[1]:
            return Refusal("changes the number of channels, which a Reshape before it was told")
        for position in reversed(path):
            moved = self.ops[position].back(second)
            if isinstance(moved, Refusal):
                return moved
            second = moved
        return window.compose(first, second)
