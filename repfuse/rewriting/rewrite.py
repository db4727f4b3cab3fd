"""Turning a chosen candidate into nodes: an op with a weight for each merge, and Adds for what stays."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat

import numpy as np
from onnx import AttributeProto, NodeProto

from repfuse.algebra.window import Axis, Layout, Refusal, Window, emittable
from repfuse.choice import cost
from repfuse.choice.asked import ask_elsewhere
from repfuse.choice.choose import Candidate
from repfuse.choice.merges import Merge, Rewrite
from repfuse.choice.settle import Refused
from repfuse.graph.patch import Patch
from repfuse.model.nodes import Node
from repfuse.operators.carry import axis_of
from repfuse.remarks import Edit, Outcome, Remark, label
from repfuse.rewriting.derive import NOT_FINITE, UNDERFLOWS, Derived, derive
from repfuse.search.groups import Groups, Operand

FUSED_FROM = "repfuse.fused_from"
"""The metadata key under which the last new node of a group names the nodes that were replaced, as a JSON list."""

STANDS = "stays as it is: OpenVINO would be slower with this tap in the kernel that it is added to"
_GROWN = ", with floats in place of quantized weights"
_STAYS = ", behind a shift that stays, since the border is padded with zeros after it"
_APART = ", with one tap as a Conv of its own, since OpenVINO is slow without"


def rewrite(groups: Groups, candidate: Candidate, pattern: str, patch: Patch) -> Edit | Refused:
    """Derive a candidate's kernels and hand the new nodes to the patch.

    Returns:
        The record of the edit; or a refusal, and nothing is changed, where the weights do not allow it.
    """
    scope = groups.scope
    if candidate.apart and _stands(groups, candidate):
        remark = Remark(Outcome.KEPT, scope.name(candidate.root), STANDS, graph=scope.label)
        return Refused(remark)
    derived = []
    for merge in candidate.merges:
        found = derive(groups, merge, apart=candidate.apart)
        if isinstance(found, Refusal):
            blocker = _unfit_conv(groups, candidate)
            if blocker:
                found = NOT_FINITE
            message = f"{blocker or 'its merged weight'} {found.reason}"
            name = scope.name(candidate.root)
            remark = Remark(Outcome.REFUSED, name, message, blocker, scope.label, invalid=bool(blocker))
            # A part of what is too small is too small as well, and what is no number is wherever it is merged.
            final = bool(blocker) or found is UNDERFLOWS
            return Refused(remark, None if final else merge)
        derived.append(found)
    sources = [merge.source for merge in candidate.merges]
    kept = ask_elsewhere(groups, candidate.root, candidate.replaced, sources, patch)
    if kept is not None:
        remark = Remark(Outcome.REFUSED, scope.name(candidate.root), kept.reason, graph=scope.label)
        return Refused(remark, candidate.merges[0])
    nodes = _nodes(groups, candidate, derived, patch)
    replaced = [scope.nodes[position] for position in sorted(candidate.replaced)]
    take_over_metadata(nodes, replaced)
    patch.replace(scope, candidate.root, nodes)
    return Edit(
        pattern=pattern,
        graph=scope.label,
        source=", ".join(dict.fromkeys(merge.source for merge in candidate.merges)),
        output=groups.output(candidate.root),
        removed=tuple(scope.name(position) for position in sorted(candidate.replaced)),
        added=tuple(label(node.op_type, node.name, node.output) for node in nodes),
        kernel=", ".join(map(_described, repeat(groups), candidate.merges, derived)),
    )


def _stands(groups: Groups, candidate: Candidate) -> bool:
    """Whether what would be made is there already: a kernel, and a tap that stays apart from it (see `_summed`)."""
    merged = [cost.summed(emittable(merge.window)) for merge in candidate.merges]
    nodes = [groups.lifted[position] for position in candidate.replaced if position in groups.lifted]
    joins = len(candidate.replaced) - len(nodes)
    if len(merged) != 1 or not merged[0] or joins != 1 or not all(node.weight_type for node in nodes):
        return False
    return {node.window.axes for node in nodes} == {merged[0].axes, (Axis(), Axis())}


def describe(window: Window) -> str:
    """A Conv's geometry in a few words, such as `3x3 64->128, stride 2`."""
    outputs, inputs = window.channels or (1, 1)
    words = [f"{_by([axis.kernel for axis in window.axes])} {inputs}->{outputs}".strip()]
    if window.group > 1:
        words.append("depthwise" if window.depthwise else f"group {window.group}")
    for name in ("stride", "dilation"):
        values = [getattr(axis, name) for axis in window.axes]
        if set(values) - {1}:
            words.append(f"{name} {values[0] if len(set(values)) == 1 else _by(values)}")
    if window.fixed:
        words.append("for this static input extent only")
    return ", ".join(words)


def _described(groups: Groups, merge: Merge, derived: Derived) -> str:
    ops = dict.fromkeys(groups.scope.nodes[position].op_type for position in merge.path)
    passed = f", {'behind' if merge.behind else 'before'} {' and '.join(ops)}" if ops else ""
    remarks = {_STAYS: derived.shift is not None, _APART: derived.tap is not None, _GROWN: derived.grown}
    return describe(derived.window) + passed + "".join(words for words, applies in remarks.items() if applies)


def _by(values: Iterable[int]) -> str:
    return "x".join(map(str, values))


def _nodes(groups: Groups, candidate: Candidate, derived: Sequence[Derived], patch: Patch) -> list[NodeProto]:
    """The new nodes, in order; the last one computes what the candidate's root computed."""
    root = groups.scope.nodes[candidate.root]
    stem = root.name or root.output[0]
    nodes = _joined(groups, candidate.rewrite, iter(derived), stem, patch)
    nodes[-1].output[0] = groups.output(candidate.root)
    return nodes


def _joined(
    groups: Groups, rewrite: Rewrite, kernels: Iterator[Derived], stem: str, patch: Patch
) -> list[NodeProto]:
    """The nodes of a sum or Concat, in order; `kernels` gives those of its merges."""
    nodes: list[NodeProto] = []
    parts: list[Operand] = []
    for part in rewrite.parts:
        if isinstance(part, Operand):
            parts.append(part)
            continue
        if isinstance(part, Rewrite):
            nodes += _joined(groups, part, kernels, stem, patch)
        else:
            nodes += _merged(groups, part, next(kernels), stem, patch)
        parts.append(Operand(nodes[-1].output[0], 1))
    if rewrite.stack is None:
        return nodes + _sum(parts, stem, patch)
    return nodes + _concat(groups.scope.nodes[rewrite.stack], parts, stem, patch)


def _sum(parts: Sequence[Operand], stem: str, patch: Patch) -> list[NodeProto]:
    """A chain of Adds."""
    nodes = []
    total = parts[0].tensor
    for part in parts[1:]:
        name = patch.fresh(f"{stem}/fused_add")
        op_type = "Add" if part.sign > 0 else "Sub"
        nodes.append(_node(op_type, [total, part.tensor], name))
        total = name
    return nodes


def _concat(old: Node, parts: Sequence[Operand], stem: str, patch: Patch) -> list[NodeProto]:
    """The Concat that `old` is, of other tensors."""
    name = patch.fresh(f"{stem}/fused_concat")
    node = _node("Concat", [part.tensor for part in parts], name)
    node.attribute.extend(old.attribute)
    return [node]


def _merged(groups: Groups, merge: Merge, derived: Derived, stem: str, patch: Patch) -> list[NodeProto]:
    """The node with the weight, and the ops that carry channels, if there are some, on its other side."""
    if not merge.path:
        return _weighted(groups, merge.source, derived, stem, patch)
    if merge.behind:
        carries = _carries(groups, merge, merge.source, derived.window, patch)
        return carries + _weighted(groups, carries[-1].output[0], derived, stem, patch)
    nodes = _weighted(groups, merge.source, derived, stem, patch)
    return nodes + _carries(groups, merge, nodes[-1].output[0], derived.window, patch)


def _carries(groups: Groups, merge: Merge, source: str, window: Window, patch: Patch) -> list[NodeProto]:
    """Ops that carry channels, put on another tensor, which may have another number of channels."""
    scope = groups.scope
    count = window.channels[1 if merge.behind else 0] if window.channels else None
    nodes = []
    for position, axis in zip(merge.path, _axes(groups, merge, window), strict=True):
        old, carry = scope.nodes[position], groups.passed[position]
        node = NodeProto()
        node.CopyFrom(old.proto)
        node.name = patch.fresh(f"{old.name or old.output[0]}/carried")
        node.input[0], node.output[0] = source, node.name
        source = node.name
        if count and carry.extents and axis is not None and carry.extents[axis] not in (-1, 0, count):
            extents = [*carry.extents[:axis], count, *carry.extents[axis + 1 :]]
            told = patch.add_constant(scope, f"{node.name}.shape", np.array(extents, np.int64))
            node.input[carry.told] = told
        nodes.append(node)
    return nodes


def _axes(groups: Groups, merge: Merge, window: Window) -> list[int | None]:
    """Which axis holds the channels of what each op on a merge's path computes; None where it takes them apart.

    What takes channels apart is passed by a scalar only, so their number stays.
    """
    carries = [groups.passed[position] for position in merge.path]
    axes: list[int | None] = []
    if merge.behind:
        axis: int | None = axis_of(window, carries[-1].ranks[1])
        for carry in reversed(carries):
            axes.insert(0, axis)
            axis = next((at for at, to in carry.places.items() if to == axis), None)
        return axes
    axis = axis_of(window, carries[0].ranks[0])
    for carry in carries:
        axis = None if axis is None else carry.places.get(axis)
        axes.append(axis)
    return axes


def _weighted(groups: Groups, source: str, derived: Derived, stem: str, patch: Patch) -> list[NodeProto]:
    """A Conv, behind an Add where a shift stays; a ConvTranspose; a Gemm; or a MatMul with the Add of its bias."""
    op_type = _operator(derived.window)
    shifts = []
    if derived.shift is not None:
        name = patch.fresh(f"{stem}/fused_shift")
        constant = patch.add_constant(groups.scope, f"{name}.value", derived.shift)
        shifts = [_node("Add", [source, constant], name)]
        source = name
    name = patch.fresh(f"{stem}/fused_{op_type.lower()}")
    inputs = [source, patch.add_constant(groups.scope, f"{name}.weight", derived.weight)]
    if derived.bias is not None:
        inputs.append(patch.add_constant(groups.scope, f"{name}.bias", derived.bias))
    if op_type in ("Conv", "ConvTranspose"):
        whole = _node(op_type, inputs, name, **_geometry(derived.window))
        return [*shifts, *_summed(groups, whole, derived, stem, patch)]
    if op_type == "Gemm":
        return [_node("Gemm", inputs, name, transB=1)]
    nodes = [_node("MatMul", inputs[:2], name)]
    if derived.bias is not None:
        shifted = patch.fresh(f"{stem}/fused_bias")
        nodes.append(_node("Add", [name, inputs[2]], shifted))
    return nodes


def _summed(groups: Groups, conv: NodeProto, derived: Derived, stem: str, patch: Patch) -> list[NodeProto]:
    """A Conv with the one that its tap apart is, if there is one."""
    if derived.tap is None:
        return [conv]
    name = patch.fresh(f"{stem}/fused_tap")
    weight = patch.add_constant(groups.scope, f"{name}.weight", derived.tap)
    # It comes first: the other one adds to what is there already.
    tap = _node("Conv", [conv.input[0], weight], name, kernel_shape=[1, 1], group=derived.window.group or 1)
    return [tap, conv, _node("Add", [conv.output[0], name], patch.fresh(f"{stem}/fused_add"))]


def _operator(window: Window) -> str:
    """The operator that computes what a window describes."""
    if window.output_padding is not None:
        return "ConvTranspose"
    return {Layout.FLAT: "Gemm", Layout.LAST: "MatMul"}.get(window.layout, "Conv")


def _node(op_type: str, inputs: Sequence[str], name: str, **attributes: int | Sequence[int]) -> NodeProto:
    """A node that is called as its output is; `onnx.helper` takes four times as long for one with attributes."""
    made = [_attribute(key, attributes[key]) for key in sorted(attributes)]
    return NodeProto(op_type=op_type, input=inputs, output=[name], name=name, attribute=made)


def _attribute(name: str, value: int | Sequence[int]) -> AttributeProto:
    if isinstance(value, int):
        return AttributeProto(name=name, type=AttributeProto.INT, i=value)
    return AttributeProto(name=name, type=AttributeProto.INTS, ints=value)


def _geometry(window: Window) -> dict[str, int | Sequence[int]]:
    """The attributes of a Conv or ConvTranspose."""
    axes = window.axes
    appended = window.output_padding or ()
    return {
        **({"output_padding": appended} if any(appended) else {}),
        "kernel_shape": [axis.kernel for axis in axes],
        "strides": [axis.stride for axis in axes],
        "dilations": [axis.dilation for axis in axes],
        "pads": [axis.begin for axis in axes] + [axis.end for axis in axes],
        "group": window.group,
    }


def take_over_metadata(nodes: Sequence[NodeProto], replaced: Sequence[Node]) -> None:
    """Give new nodes what the exporter wrote on those that they replace; the last of them has the last word.

    The last new node names all that were replaced: on each of many, the names would be longer than the model.
    """
    entries = {entry.key: entry for old in replaced for entry in old.proto.metadata_props}
    entries.pop(FUSED_FROM, None)
    for node in nodes:
        node.metadata_props.extend(entries.values())
    names = json.dumps([old.name or old.output[0] for old in replaced])
    nodes[-1].metadata_props.add(key=FUSED_FROM, value=names)


def _unfit_conv(groups: Groups, candidate: Candidate) -> str:
    """The first Conv of a candidate with a weight or bias that is not finite."""
    for position in sorted(candidate.replaced):
        lifted = groups.lifted.get(position)
        if lifted and lifted.weight_type:
            exact = lifted.kernel()
            if not (np.isfinite(exact.weight).all() and np.isfinite(exact.bias).all()):
                return groups.scope.name(position)
    return ""
