"""Each group op by op, what became of it, and what it costs: the tree that `repfuse explain` prints."""

from __future__ import annotations

import difflib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs
from onnx import ModelProto
from rich.text import Text
from rich.tree import Tree

from repfuse.errors import BadInputError
from repfuse.fusion import FuseResult, fuse_file
from repfuse.graph.view import Scope, scopes
from repfuse.model import model_io
from repfuse.remarks import Edit, Outcome, Remark
from repfuse.reporting.figures import counted
from repfuse.rewriting.rewrite import describe
from repfuse.search.groups import Groups


@dataclass(frozen=True)
class Op:
    """A node in words.

    Attributes:
        kind: Its operator.
        label: Its operator and name, such as `Conv '/conv1'`.
        words: Its geometry if it has one, such as `3x3 64->64`, or in brackets why it is not linear; may be empty.
    """

    kind: str
    label: str
    words: str

    def __str__(self) -> str:
        return f"{self.label} {self.words}".rstrip()


@dataclass(frozen=True)
class Branch:
    """A way to a tensor, op by op; or a join, the branches that it adds, and what comes behind it.

    Attributes:
        source: The tensor that it begins at; empty if branches meet there.
        ops: From the source on; the first one is the join, if there are parts.
        parts: The branches that meet at its beginning; none if it begins at a tensor.
        nodes: Names of all nodes on it.
    """

    source: str
    ops: tuple[Op, ...]
    parts: tuple[Branch, ...]
    nodes: frozenset[str]

    @property
    def text(self) -> str:
        """Such as `'x' -> Conv '/conv1' 3x3 64->64 -> BatchNormalization '/bn'`."""
        start = [f"'{self.source}'"] if self.source else []
        return " -> ".join([*start, *map(str, self.ops)])


@dataclass(frozen=True)
class Story:
    """A group and what became of it.

    Attributes:
        remark: Whether it was fused, into what, or why not.
        whole: Its ops, up to the node that the remark is about.
        cost: What it costs before and after, in words; empty where nothing was fused.
    """

    remark: Remark
    whole: Branch
    cost: str = ""


def explain(
    path: str | os.PathLike[str],
    *,
    patterns: Sequence[str] | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> list[Story]:
    """The story of each group of a model, in the order of the graph.

    Raises:
        BadInputError: As for `repfuse.fuse`.
    """
    return stories(path, fuse_file(path, None, patterns=patterns, on_progress=on_progress))


def stories(path: str | os.PathLike[str], result: FuseResult) -> list[Story]:
    """The same of a model that was fused already.

    Args:
        path: The original.
        result: What fusing gave; of the weights of its model, dims are enough.
    """
    elements = _elements_of_weights(result.model)
    return [
        story
        for scope in scopes(model_io.read(path))
        for story in _Teller(Groups(scope), result, elements).stories()
    ]


def replacements(model: ModelProto, edits: Sequence[Edit]) -> list[Branch]:
    """What took the place of each group, op by op; nodes between the new ones and their sources stay outside.

    Args:
        model: The fused model; of its weights, dims are enough.
        edits: What was changed in it.
    """
    known = {scope.label: Walker(Groups(scope)) for scope in scopes(model)}
    return [known[edit.graph].new(edit) for edit in edits]


def about(stories: Sequence[Story], name: str, path: str | os.PathLike[str]) -> list[Story]:
    """Those of the stories in which a node occurs.

    Args:
        stories: All stories of the model.
        name: The node's name, or the name of a tensor that it computes.
        path: The model.

    Raises:
        BadInputError: There is no such node, or it is in no group.
    """
    nodes = {
        alias: node.name or node.output[0]
        for scope in scopes(model_io.structure(path))
        for node in scope.nodes
        for alias in (node.name, *node.output)
        if alias
    }
    if name not in nodes:
        alike = "".join(f"; do you mean '{each}'?" for each in difflib.get_close_matches(name, nodes, 1))
        raise BadInputError(f"--node {name}: the model has no such node{alike}")
    found = [story for story in stories if nodes[name] in story.whole.nodes]
    if not found:
        raise BadInputError(f"--node {name}: is in no group: no linear branches with a weight meet behind it")
    return found


_COLOURS = {
    Outcome.FUSED: "green",
    Outcome.REFUSED: "yellow",
    Outcome.REWRITTEN: "green",
    Outcome.KEPT: "cyan",
}


def tree(path: str | os.PathLike[str], stories: Sequence[Story]) -> Tree:
    """The stories as a tree to print."""
    counts = Counter(story.remark.outcome for story in stories)
    fused, refused, rewritten, kept = (counts[outcome] for outcome in Outcome)
    head = f"{path}: {counted(fused + refused, 'group')}, {fused} can be fused, {refused} cannot"
    if rewritten:
        head += f"; {counted(rewritten, 'operator')} in several nodes can be one"
    if kept:
        head += f"; {kept} other {'join or sequence stays' if kept == 1 else 'joins and sequences stay'}"
    root = Tree(Text(head, "bold"), guide_style="dim")
    for story in stories:
        remark = story.remark
        place = f" in {remark.graph}" if remark.graph else ""
        group = root.add(Text(f"{remark.outcome.value}  {remark.node}{place}", _COLOURS[remark.outcome]))
        group.add(Text(remark.sentence))
        if story.cost:
            group.add(Text(story.cost))
        _grow(group, story.whole)
    return root


def graph_of(scope: Scope) -> Sequence[gs.Node]:
    """A graph's nodes as onnx-graphsurgeon has them, with names and operators only, and tensors between them.

    To be looked at: saving through onnx-graphsurgeon 0.6 drops metadata and encodes tensors anew. And to be used
    where time does not matter: to make its objects takes longer than all that the pass asks of a graph.
    """
    names = {name for node in scope.nodes for name in (*node.input, *node.output)}
    tensors = {name: gs.Variable(name) for name in names}
    return [
        gs.Node(
            op=node.op_type,
            name=node.name,
            inputs=[tensors[name] for name in node.input],
            outputs=[tensors[name] for name in node.output if name],
        )
        for node in scope.nodes
    ]


def _grow(stem: Tree, branch: Branch) -> None:
    node = stem.add(Text(branch.text))
    for part in branch.parts:
        _grow(node, part)


class Walker:
    """Walks through one graph, from a tensor back to where it comes from."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._scope = groups.scope

    def new(self, edit: Edit) -> Branch:
        """What an edit added to this graph."""
        added = frozenset(edit.added)
        return self.branch(edit.output, lambda position: self._scope.name(position) in added)

    def branch(self, tensor: str, inside: Callable[[int], bool]) -> Branch:
        """What computes a tensor, back to the first node that is not `inside`, or is not linear."""
        ops: list[Op] = []
        names: set[str] = set()
        parts: tuple[Branch, ...] = ()
        while (position := self._scope.producer(tensor)) is not None and inside(position):
            node = self._scope.nodes[position]
            names.add(node.name or node.output[0])
            ops.insert(0, self.op(position))
            inputs = self._groups.data_inputs(position)
            if len(inputs) > 1:
                parts = tuple(self.branch(name, inside) for name in inputs)
                break
            if not inputs:  # not linear: here the group ends
                tensor = next(iter(node.input), "")
                break
            (tensor,) = inputs
        nodes = frozenset(names).union(*(part.nodes for part in parts))
        return Branch("" if parts else tensor, tuple(ops), parts, nodes)

    def op(self, position: int) -> Op:
        """A node in words."""
        kind, name = self._scope.nodes[position].op_type, self._scope.name(position)
        lifted = self._groups.lifted.get(position)
        if lifted is None:
            groups = self._groups
            if any(position in each for each in (groups.joins, groups.stacks, groups.splits)):
                return Op(kind, name, "")
            blocked = self._groups.blocked.get(position)
            return Op(kind, name, f"({blocked.reason if blocked is not None else 'is not linear'})")
        shown = bool(lifted.weight_type) or lifted.window.taps > 1
        return Op(kind, name, describe(lifted.window) if shown else "")


class _Teller:
    """Tells the stories of one graph."""

    def __init__(self, groups: Groups, result: FuseResult, elements: Mapping[str, int]) -> None:
        self._groups = groups
        self._scope = groups.scope
        self._nodes = graph_of(groups.scope)
        self._walker = Walker(groups)
        self._branch = self._walker.branch
        self._result = result
        self._elements = elements
        self._edits = {edit.removed[-1]: edit for edit in result.edits if edit.graph == groups.scope.label}

    def stories(self) -> Iterator[Story]:
        positions = {self._scope.name(position): position for position in range(len(self._scope.nodes))}
        mine = (remark for remark in self._result.remarks if remark.graph == self._scope.label)
        for remark in sorted(mine, key=lambda remark: positions[remark.node]):
            root = positions[remark.node]
            edit = (
                self._edits.get(remark.node) if remark.outcome in (Outcome.FUSED, Outcome.REWRITTEN) else None
            )
            if edit:
                gone = {positions[name] for name in edit.removed}
                yield Story(remark, self._branch(edit.output, gone.__contains__), self._cost(gone, edit))
            elif remark.nodes:
                yield Story(remark, self._row([positions[label] for label in remark.nodes]))
            else:
                yield Story(remark, self._branch(self._scope.nodes[root].output[0], self._is_before(root)))

    def _row(self, row: Sequence[int]) -> Branch:
        """A sequence that stays, a group in it that is fused as one op."""
        ops = []
        for position in row:
            op = self._walker.op(position)
            edit = self._edits.get(op.label)
            ops.append(Op(op.kind, op.label, f"(fused: {edit.kernel})") if edit else op)
        first = self._edits.get(ops[0].label)
        source = first.source if first else next(iter(self._groups.data_inputs(row[0])), "")
        nodes = (self._scope.nodes[position] for position in row)
        return Branch(source, tuple(ops), (), frozenset(node.name or node.output[0] for node in nodes))

    def _is_before(self, root: int) -> Callable[[int], bool]:
        """Whether a node belongs to the group of a join that stays: up to where a tensor has several users."""

        def inside(position: int) -> bool:
            outputs = self._nodes[position].outputs
            users = sum(len(tensor.outputs) for tensor in outputs)
            kept = self._scope.kept.intersection(tensor.name for tensor in outputs)
            return position == root or (users < 2 and not kept)

        return inside

    def _cost(self, gone: set[int], edit: Edit) -> str:
        """The multiply-adds of its Convs before and after."""
        lifted = (self._groups.lifted.get(position) for position in gone)
        before = sum(each.window.elements for each in lifted if each and each.weight_type)
        after = sum(self._elements.get(name, 0) for name in edit.added)
        removed, added = counted(len(edit.removed), "node"), len(edit.added)
        if not before or not after:
            return f"{removed} -> {added}"
        return f"{removed} -> {added}; multiply-adds for each position: {before} -> {after}"


def _elements_of_weights(model: ModelProto) -> dict[str, int]:
    """How many elements the weight of each Conv, Gemm or MatMul has, by the node's label; main graph only."""
    dims = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return {
        f"{node.op_type} '{node.name}'": math.prod(dims[node.input[1]])
        for node in model.graph.node
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and node.input[1] in dims
    }
