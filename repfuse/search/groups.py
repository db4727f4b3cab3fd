"""Finding groups: from which tensors each tensor follows linearly, and which operands meet in a join.

For every tensor `t` this works out its *forms*: sources `x` and windows such that `t = kernel(x)`, one
equivalent kernel. A linear node adds itself to the forms of what it acts on; a join of branches has a form
for each source that all of its operands share. So branches, tails and nested joins need no cases of their own.
Weights are not read: whether a form exists depends on geometry (see `algebra.window`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from repfuse.algebra import window
from repfuse.algebra.window import Layout, Refusal, Window
from repfuse.graph.idioms import idiom_nodes
from repfuse.graph.view import Scope
from repfuse.operators import lift_space
from repfuse.operators.carry import CARRIERS, Carry, pooling
from repfuse.operators.lift import LIFTERS, lift
from repfuse.operators.lifted import SELECT, Lifted
from repfuse.search.carried import CARRIES, Carried
from repfuse.search.forms import ITSELF, CarriedForm, Form, kept
from repfuse.search.frames import Frames
from repfuse.search.milestones import Milestones
from repfuse.search.trips import round_trip

JOINS = frozenset({"Add", "Sub", "Sum"})
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""What a group becomes one of; there must be one in it."""


class Operand(NamedTuple):
    """A tensor that a join adds, or subtracts where `sign` is -1."""

    tensor: str
    sign: int


_RANK = {Layout.FLAT: 2, Layout.LAST: 1}
"""The least number of axes that a tensor has where it is not known from spatial axes."""

_ON_LAST_AXIS = _RANK.keys()


class Groups:
    """The linear structure of one graph.

    Attributes:
        scope: The graph.
        lifted: Linear nodes by position.
        joins: The operands of each join by its position.
        stacks: The operands of each Concat of channels by its position.
        splits: The tensor that a Split of channels acts on, by its position.
        carries: Ops that carry channels and are not linear ops as well, by position.
        passed: All ops that carry channels, which kernels may pass, by position.
        blocked: Why a node is not linear, or cannot be merged with what is before it, by position.
        milestones: Kernels that were made on the way to others.
    """

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.lifted: dict[int, Lifted] = {}
        self.joins: dict[int, tuple[Operand, ...]] = {}
        self.stacks: dict[int, tuple[str, ...]] = {}
        self.splits: dict[int, str] = {}
        self.blocked: dict[int, Refusal] = {}
        self.milestones = Milestones()
        self._parts: dict[str, Lifted] = {}
        self._forms: dict[str, dict[str, Form]] = {}
        self._frames = Frames(scope)
        self._flattened: dict[int, tuple[tuple[Operand, ...], tuple[int, ...]]] = {}
        self._sums: dict[tuple[Window, ...], Window | Refusal] = {}
        self._carried = Carried(scope)
        self.carries: dict[int, Carry] = {}
        self.passed: Mapping[int, Carry] = self._carried.ops
        if scope.operators.isdisjoint(WEIGHTED):
            return
        off_limits = idiom_nodes(scope)
        for position in range(len(scope.nodes)):
            if position in off_limits:
                self.blocked[position] = Refusal(
                    f"is part of {off_limits[position]}, which runtimes run as one"
                )
            else:
                self._visit(position)
        for position, refusal in self._frames.refused.items():
            if not self.is_linear(position):
                self.blocked[position] = refusal

    def forms(self, tensor: str) -> dict[str, Form]:
        """The forms of a tensor by source, the nearest first: before all, itself as the bare source."""
        return {tensor: ITSELF, **self._forms.get(tensor, {})}

    def carried(self, tensor: str) -> Mapping[str, CarriedForm]:
        """The ways by source in which what a linear op computes follows across ops that carry channels."""
        position = self.scope.producer(tensor)
        return self._carried.forms(tensor) if position in self.lifted else {}

    def is_linear(self, position: int) -> bool:
        """Whether a node is a linear op, a join, takes channels apart or puts them together, or carries them."""
        return (
            position in self.lifted
            or position in self.joins
            or position in self.carries
            or position in self.stacks
            or position in self.splits
        )

    def op(self, tensor: str) -> Lifted | None:
        """The linear op that computes a tensor; each output of a Split has its own."""
        position = self.scope.producer(tensor)
        found = self._parts.get(tensor)
        return found if found or position is None else self.lifted.get(position)

    def output(self, position: int) -> str:
        """What a linear node computes: of a Split, the first output that something uses."""
        first, *others = self.scope.nodes[position].output
        used = (name for name in (first, *others) if name and self._is_used(name))
        return next(used, first) if position in self.splits else first

    def computes_one(self, position: int) -> bool:
        """Whether at most one output of a node is used."""
        return sum(self._is_used(name) for name in self.scope.nodes[position].output if name) < 2

    def _is_used(self, tensor: str) -> bool:
        return bool(self.scope.consumers(tensor)) or tensor in self.scope.kept

    def data_inputs(self, position: int) -> tuple[str, ...]:
        """The operands of a linear node or join that are not constant."""
        if position in self.lifted:
            return (self.lifted[position].source,)
        if position in self.carries:
            return (self.carries[position].source,)
        if position in self.splits:
            return (self.splits[position],)
        if position in self.stacks:
            return self.stacks[position]
        return tuple(operand.tensor for operand in self.joins.get(position, ()))

    def sum(self, windows: Sequence[Window], source: str) -> Window | Refusal:
        """`window.add` for branches of `source`, with its static extents where they would help."""
        key = tuple(windows)
        total = self._sums.get(key)
        if total is None:
            total = self._sums[key] = window.add(windows)
        if isinstance(total, Refusal) and total.extents_would_help:
            return window.add(windows, self._extents(source))
        return total

    def stack(self, windows: Sequence[Window], source: str) -> Window | Refusal:
        """`window.stack` likewise."""
        total = window.stack(windows)
        if isinstance(total, Refusal) and total.extents_would_help:
            return window.stack(windows, self._extents(source))
        return total

    def _extents(self, tensor: str) -> list[int | None]:
        return [n if isinstance(n, int) else None for n in (self.scope.shape_of(tensor) or ())[2:]]

    def flattened(self, position: int) -> tuple[tuple[Operand, ...], tuple[int, ...]]:
        """The operands of a tree of joins, and its joins: inner joins that nothing else uses dissolve."""
        if position not in self._flattened:
            self._flattened[position] = self._flatten(position)
        return self._flattened[position]

    def _flatten(self, position: int) -> tuple[tuple[Operand, ...], tuple[int, ...]]:
        operands: list[Operand] = []
        inside = [position]
        pending = list(reversed(self.joins[position]))
        while pending:
            operand = pending.pop()
            inner = self.inner_join(operand.tensor)
            if inner is None:
                operands.append(operand)
            else:
                inside.append(inner)
                pending += [Operand(o.tensor, o.sign * operand.sign) for o in reversed(self.joins[inner])]
        return tuple(operands), tuple(inside)

    def inner_join(self, tensor: str) -> int | None:
        """The join that computes a tensor, if it has one use only."""
        position = self.scope.producer(tensor)
        used_once = len(self.scope.consumers(tensor)) == 1 and tensor not in self.scope.kept
        return position if position in self.joins and used_once else None

    def _visit(self, position: int) -> None:
        node = self.scope.nodes[position]
        if node.op_type in JOINS and node.domain in ("", "ai.onnx"):
            operands = self._operands(position)
            if operands:
                self.joins[position] = operands
                self._keep(node.output[0], self._forms_of_join(position))
                return
        if node.op_type in ("Concat", "Split") and node.domain in ("", "ai.onnx"):
            found = self._visit_concat(position) if node.op_type == "Concat" else self._visit_split(position)
            if found:
                return
        if self._is_constant(position):
            return
        framed = self._frames.lift(position, self.lifted, self.blocked)
        if not framed and node.op_type in CARRIERS and node.input[0] in self._forms:
            framed = round_trip(self, position)
            if framed:
                self._carried.forget(framed.inside - {self.scope.producer(framed.source)})
        if framed or (node.op_type in LIFTERS and node.output):
            self._visit_linear(position, framed or lift(node, self.scope))
        elif node.op_type in CARRIERS:
            self._carried.visit(position, self._forms.get(node.input[0], {}))
            if position in self.passed:
                self.carries[position] = self.passed[position]
            self.blocked.setdefault(position, CARRIES)

    def _visit_linear(self, position: int, lifted: Lifted | Refusal) -> None:
        node = self.scope.nodes[position]
        if not isinstance(lifted, Refusal) and not self._keeps_shape(lifted):
            lifted = Refusal("has a constant that may broadcast what it meets to more channels or dimensions")
        if isinstance(lifted, Refusal):
            self.blocked[position] = lifted
            return
        self.lifted[position] = lifted
        self._keep(node.output[0], self._forms_of_linear(position, lifted))
        pool = pooling(lifted) if node.op_type == "AveragePool" else None
        if pool and not lifted.inside:
            self._carried.visit(position, self._forms.get(node.input[0], {}), pool)
        else:
            self._carried.compose(node.output[0], lifted)

    def _visit_concat(self, position: int) -> bool:
        """Add a Concat, if channels of what follows linearly from something are among those that it stacks."""
        node = self.scope.nodes[position]
        if any(self.scope.constants.follows(name) for name in node.input):
            return False
        layouts = self.layouts(position)
        columns = [self.forms(name) for name in node.input]
        known = (form.window for column in columns for form in column.values())
        if not any(each.channels and each.layout in layouts for each in known):
            return False
        self.stacks[position] = tuple(node.input)
        found: dict[str, Form] = {}
        for source in columns[0]:
            forms = [column[source] for column in columns if source in column]
            if len(forms) == len(columns):
                total = self.stack([form.window for form in forms], source)
                if isinstance(total, Refusal):
                    self.blocked.setdefault(position, total)
                elif total.layout in layouts:
                    found[source] = Form(total, any(form.is_weighted for form in forms))
        self._keep(node.output[0], found)
        return True

    def layouts(self, position: int) -> set[Layout]:
        """Where channels must be for a Concat to stack them."""
        node = self.scope.nodes[position]
        axis: int = node.attributes.get("axis", 1)
        shape = self.scope.shape_of(node.output[0])
        if shape is not None:
            axis %= len(shape)
        second = {Layout.SECOND, Layout.FLAT} if axis == 1 else set()
        is_last = axis == -1 or (shape is not None and axis == len(shape) - 1)
        return second | ({Layout.LAST, Layout.FLAT} if is_last and axis else set())

    def _visit_split(self, position: int) -> bool:
        """Add a Split of channels; each output has forms of its own."""
        node = self.scope.nodes[position]
        parts = lift_space.split(node, self.scope)
        if isinstance(parts, Refusal):
            self.blocked[position] = parts
            return False
        self.splits[position] = node.input[0]
        for name, lifted in parts.items():
            self._parts[name] = lifted
            self._keep(name, self._forms_of_linear(position, lifted))
        return True

    def _keeps_shape(self, lifted: Lifted) -> bool:
        """Whether a constant operand is known not to enlarge the tensor that it meets."""
        if lifted.broadcast is None:
            return True
        wanted, dimensions = lifted.broadcast
        last = lifted.window.layout in _ON_LAST_AXIS
        for form in self._forms.get(lifted.source, {}).values():
            known = form.window
            rank = _RANK.get(known.layout, len(known.axes) + 2)
            says = known.channels and (known.axes or known.layout in _RANK) and dimensions <= rank
            if says and (known.layout in _ON_LAST_AXIS) == last:
                return known.channels is None or wanted in (0, known.channels[0])
        shape = self.scope.shape_of(lifted.source) or ()
        return len(shape) >= max(dimensions, 1 if last else 2) and wanted in (0, shape[-1 if last else 1])

    def _is_constant(self, position: int) -> bool:
        node = self.scope.nodes[position]
        return all(self.scope.constants.follows(name) for name in node.input if name)

    def _operands(self, position: int) -> tuple[Operand, ...]:
        """The operands of a join, none if one of them is constant (then it is a shift)."""
        node = self.scope.nodes[position]
        if len(node.input) < 2 or any(self.scope.constants.follows(name) for name in node.input):
            return ()
        signs = (1, -1) if node.op_type == "Sub" else (1,) * len(node.input)
        return tuple(Operand(name, sign) for name, sign in zip(node.input, signs, strict=True))

    def _forms_of_linear(self, position: int, lifted: Lifted) -> dict[str, Form]:
        weighted = bool(lifted.weight_type)
        found: dict[str, Form] = {}
        for source, form in self.forms(lifted.source).items():
            if lifted.ops == (SELECT,) and form.window.depthwise and form.window.taps > 1:
                self.blocked[position] = Refusal(
                    "selects channels of a depthwise Conv: as one, it would be dense"
                )
                continue
            composed = window.compose(form.window, lifted.window)
            if isinstance(composed, Refusal):
                self.blocked[position] = composed
                break
            found[source] = Form(composed, form.is_weighted or weighted)
        if self._passes_through(lifted.source, found):
            del found[lifted.source]
        return found

    def _passes_through(self, tensor: str, found: Mapping[str, Form]) -> bool:
        """Whether a tensor is of no use as a source: one pointwise op makes it, one op uses it."""
        if any(form.window.shifted for form in found.values()):  # from farther away, it takes an Add
            return False
        if tensor in self.scope.kept or len(self.scope.consumers(tensor)) > 1:
            return False
        producer = self.scope.producer(tensor)
        lifted = self.lifted.get(producer) if producer is not None else None
        if lifted is None or lifted.weight_type or lifted.source not in found:
            return False
        form = found[tensor]
        if form.is_weighted and lifted.window.biased and not form.window.biased:  # padding may follow
            return False
        return lifted.window.pointwise  # a crop or a pooling makes a kernel larger

    def _forms_of_join(self, position: int) -> dict[str, Form]:
        columns = [self.forms(operand.tensor) for operand in self.joins[position]]
        found: dict[str, Form] = {}
        for source in columns[0]:
            if not all(source in column for column in columns):
                continue
            total = self.sum([column[source].window for column in columns], source)
            if isinstance(total, Refusal):
                self.blocked.setdefault(position, total)
            else:
                found[source] = Form(total, any(column[source].is_weighted for column in columns))
        return found

    def _keep(self, tensor: str, found: Mapping[str, Form]) -> None:
        if found:
            self._forms[tensor] = kept(found)
