"""Raising the operator set version that a model is written in, where no node comes to mean anything else.

An operator that is new in a version may be what a model needs (HardSwish, version 14). Between two versions of the
operator set most operators stay or take more types, which changes no node. Of the others,

- those of `_COMPATIBLE` gained an attribute whose default is what was, or lost outputs that inference has none of;
- those of `_TO_INPUTS` read from an input what was an attribute;
- Softmax and its kin flattened all axes from `axis` on to one, which is the same for the last axis;
- Dropout lost `ratio`, which inference ignores; Resize wants an input left out that was empty.

All else is an obstacle. Source: ONNX's changelog of operators, versions 9 to 14.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, defs, helper

from repfuse.graph.patch import Patch
from repfuse.graph.ranks import rank_of
from repfuse.graph.view import Scope
from repfuse.model.model_io import FIRST_OVERRIDABLE_IR
from repfuse.model.nodes import Node

_FIRST = 9
"""The first version that is raised: changes of before are not in the tables."""

_SPACE_SETTLED = 11
"""Resize put its samples elsewhere before; ConvTranspose the larger part of a padding that it finds out itself."""

_COMPATIBLE = frozenset(
    {
        "ArgMax",
        "ArgMin",
        "AveragePool",
        "BatchNormalization",
        "Constant",
        "DepthToSpace",
        "GRU",
        "GatherND",
        "Gemm",
    }
    | {"LSTM", "MaxPool", "RNN", "Reshape"}
)
_TO_INPUTS = {
    "Clip": ("min", "max"),
    "Pad": ("pads", "value"),
    "ReduceSum": ("axes",),
    "Slice": ("starts", "ends", "axes"),
    "Split": ("split",),
    "Squeeze": ("axes",),
    "Unsqueeze": ("axes",),
}
_FLOATS = {"Clip": ("min", "max"), "Pad": ("value",)}
"""Those of them that have the type of the values, which must be known."""

_FLOAT_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_FLATTENING = frozenset({"Hardmax", "LogSoftmax", "Softmax"})
_SIZES = 3
"""The input of Resize with the extents; where it is there, the one before is empty."""


def obstacle(model: ModelProto, scopes: Sequence[Scope], version: int) -> str:
    """Why a model cannot be raised to a version of the operator set: a sentence; empty where it can.

    Args:
        model: The model.
        scopes: All its graphs.
        version: At most 14.
    """
    if all(scope.opset >= version for scope in scopes):
        return ""
    if scopes[0].opset < _FIRST or model.ir_version < FIRST_OVERRIDABLE_IR:
        return f"opset {scopes[0].opset} in IR version {model.ir_version} is too old for that"
    if model.functions or model.training_info:
        return f"the model has {'functions' if model.functions else 'training information'} of its own"
    for scope in scopes:
        for position, node in enumerate(scope.nodes):
            if not node.domain and not _can_be_raised(node, scope, version):
                return f"{scope.name(position)} is another operator there"
    return ""


def raise_to(version: int, model: ModelProto, scopes: Iterable[Scope], patch: Patch) -> None:
    """Raise a model in which there is no obstacle to a version of the operator set, before a patch is applied.

    Args:
        version: The version.
        model: The model: its imports and its IR version are changed.
        scopes: All its graphs.
        patch: Takes the nodes that are written otherwise; what it was given to add is changed, too.
    """
    for scope in scopes:
        if scope.opset >= version:
            continue
        for position, node in enumerate(scope.nodes):
            new = patch.replacement(scope, position)
            if new is None and not node.domain and _changes(node.op_type, scope.opset, version):
                copy = NodeProto()
                copy.CopyFrom(node.proto)
                if _convert(copy, scope, patch):
                    patch.replace(scope, position, [copy])
            for each in new or ():
                if _changes(each.op_type, scope.opset, version):
                    _convert(each, scope, patch)
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(entry.version, version)
    least = helper.find_min_ir_version_for([helper.make_opsetid("", version)])
    model.ir_version = max(model.ir_version, least)


def _can_be_raised(node: Node, scope: Scope, version: int) -> bool:
    op_type = node.op_type
    if op_type == "ConvTranspose" and scope.opset < _SPACE_SETTLED:
        return node.attributes.keys().isdisjoint({"auto_pad", "output_shape"})
    if not _changes(op_type, scope.opset, version):
        return _is_known(op_type, scope.opset) and _is_known(op_type, version)
    if op_type in _FLATTENING:
        return _is_last(node, scope)
    if op_type in ("BatchNormalization", "Dropout") and len(node.output) > 1:
        return False
    if op_type == "Resize":
        return scope.opset >= _SPACE_SETTLED
    if any(name in node.attributes for name in _FLOATS.get(op_type, ())):
        return scope.type_of(node.output[0]) in _FLOAT_TYPES
    return op_type in _COMPATIBLE or op_type in _TO_INPUTS or op_type == "Dropout"


def _is_last(node: Node, scope: Scope) -> bool:
    """Whether one of those that flatten does so for the last axis, whatever the others."""
    axis = node.attributes.get("axis", 1)
    names = (node.input[0], node.output[0])
    return axis == -1 or axis + 1 in (rank_of(scope, name) for name in names)


def _convert(node: NodeProto, scope: Scope, patch: Patch) -> bool:
    """Write a node as later versions want it; whether it had to be changed."""
    if node.op_type in _FLATTENING:
        _pop(node, "axis")
        node.attribute.append(helper.make_attribute("axis", -1))
        return True
    if node.op_type == "Dropout":
        return _pop(node, "ratio") is not None
    if node.op_type == "Resize" and len(node.input) > _SIZES and node.input[_SIZES]:
        node.input[_SIZES - 1] = ""
        return True
    given = len(node.input)
    for number, name in enumerate(_TO_INPUTS.get(node.op_type, ()), given):
        attribute = _pop(node, name)
        if attribute is None:
            continue
        if attribute.type == AttributeProto.FLOAT:
            kind = helper.tensor_dtype_to_np_dtype(scope.type_of(node.output[0]))
        else:
            kind = np.dtype(np.int64)
        values = np.array(helper.get_attribute_value(attribute), kind)
        node.input.extend([""] * (number - len(node.input)))
        stem = f"{node.name or node.output[0]}.{name}"
        node.input.append(patch.add_constant(scope, stem, values))
    return len(node.input) > given


def _pop(node: NodeProto, name: str) -> AttributeProto | None:
    """Take an attribute away from a node."""
    for attribute in node.attribute:
        if attribute.name == name:
            found = AttributeProto()
            found.CopyFrom(attribute)
            node.attribute.remove(attribute)
            return found
    return None


@cache
def _is_known(op_type: str, version: int) -> bool:
    return (
        defs.has(op_type, max_inclusive_version=version) and not defs.get_schema(op_type, version).deprecated
    )


@cache
def _changes(op_type: str, before: int, after: int) -> bool:
    """Whether an operator takes or gives other things in a later version of the operator set, types apart."""
    if not (_is_known(op_type, before) and _is_known(op_type, after)):
        return False
    return _signature(op_type, before) != _signature(op_type, after) or (
        op_type in _FLATTENING | set(_TO_INPUTS) | {"Dropout", "Resize"}
        and defs.get_schema(op_type, before).since_version != defs.get_schema(op_type, after).since_version
    )


def _signature(op_type: str, version: int) -> tuple[object, ...]:
    schema = defs.get_schema(op_type, version)
    return (
        [(each.name, each.option) for each in schema.inputs],
        [(each.name, each.option) for each in schema.outputs],
        {name: str(each.default_value) for name, each in schema.attributes.items()},
    )
