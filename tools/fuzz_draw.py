"""A whole random model: inputs, blocks in a row, some of them in a subgraph or a function, and outputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from fuzz_blocks import block
from fuzz_graph import DOMAIN, Case, Graph, MisfitError
from fuzz_rows import row
from onnx import GraphProto, NodeProto, TensorProto, defs, helper

_LATEST = defs.onnx_opset_version()
_BFLOAT16_CONV = 22
"""The first opset whose Conv takes bfloat16."""


def draw(seed: int) -> Case:
    """Draw a model; the same seed gives the same one."""
    graph = _empty(np.random.default_rng(seed))
    for _ in range(graph.pick({1: 3, 2: 3, 3: 1})):
        _try_block(graph)
    outputs = [name for name in graph.pool if name not in graph.inputs and graph.chance(0.3)]
    made = [name for node in graph.nodes for name in node.output if node.op_type != "Constant"]
    outputs += [name for name in made if name not in outputs and graph.chance(0.03)]
    if graph.pool[-1] not in outputs:
        outputs.append(
            graph.pool[-1] if graph.pool[-1] not in graph.inputs else graph.add("Identity", graph.pool[-1:])
        )
    return Case(graph.model(outputs, _dims(graph, outputs)), graph.inputs, _scale(graph), graph.chance(0.5))


def _scale(graph: Graph) -> float:
    floats = [np.abs(value[np.isfinite(value)]) for value in graph.values.values() if value.dtype.kind == "f"]
    return float(max(value.max(initial=1.0) for value in floats))


def _empty(random: np.random.Generator) -> Graph:
    graph = Graph(random, TensorProto.FLOAT, 17, 8)
    graph.dtype = graph.pick(
        {TensorProto.FLOAT: 6, TensorProto.DOUBLE: 2, TensorProto.FLOAT16: 1, TensorProto.BFLOAT16: 0.5}
    )
    oldest = _BFLOAT16_CONV if graph.dtype == TensorProto.BFLOAT16 else 7
    graph.opset = graph.pick({version: 1 if version != 17 else 8 for version in range(oldest, _LATEST + 1)})
    # 3 is the last IR that lists initializers among the inputs; subgraphs may differ, so both must be seen.
    oldest_ir = helper.find_min_ir_version_for([helper.make_opsetid("", graph.opset)])
    graph.ir = max(oldest_ir, graph.pick([3, 8, 10]))
    rank = graph.pick({2: 7, 1: 2, 3: 1, 0: 1})
    low, high = {0: (1, 1), 1: (5, 9), 2: (5, 8), 3: (3, 5)}[rank]
    for _ in range(graph.pick({1: 4, 2: 1})):
        shape = (
            graph.pick([1, 2]),
            graph.pick([1, 2, 3, 4, 6]),
            *(graph.number(low, high) for _ in range(rank)),
        )
        graph.pool.append(graph.input(graph.random.normal(size=shape)))
    return graph


def _try_block(graph: Graph) -> None:
    """Add a block; if one of its nodes does not fit, what is there of it stays as dead code."""
    start, pool = len(graph.nodes), list(graph.pool)
    try:
        value = row(graph) if graph.chance(0.2) else block(graph)
        while graph.chance(0.15):
            value = graph.pick(_ENCLOSE)(graph, start, value)
        graph.pool.append(value)
    except MisfitError:
        graph.pool = pool


def _cut(graph: Graph, start: int) -> list[NodeProto]:
    nodes = graph.nodes[start:]
    del graph.nodes[start:]
    return nodes


def _in_if(graph: Graph, start: int, value: str) -> str:
    """Move a block into a branch of an If, with those of its weights that nothing else uses."""
    if graph.opset < 11:
        raise MisfitError("the branches of this version of If have the same shape")
    nodes = _cut(graph, start)
    own = [n for n in graph.captured(nodes) if n in graph.initializers and n not in graph.inputs]
    elsewhere = set(graph.captured(graph.nodes))
    weights = [graph.initializers.pop(name) for name in own if name not in elsewhere and graph.chance(0.5)]
    shape = graph.values[value].shape
    out = helper.make_tensor_value_info(value, graph.dtype, [None] * len(shape))
    other = graph.fresh("other")
    source = _start(graph, nodes)
    bodies: dict[str, GraphProto] = {
        "then_branch": helper.make_graph(nodes, "then", [], [out], weights),
        "else_branch": helper.make_graph(
            [helper.make_node("Neg", [source], [other])],
            "else",
            [],
            [helper.make_tensor_value_info(other, graph.dtype, [None] * graph.values[source].ndim)],
        ),
    }
    return graph.add("If", [_condition(graph)], **bodies)


def _in_loop(graph: Graph, start: int, value: str) -> str:
    """Move a block into the body of a Loop, over what it starts from if shapes allow that."""
    nodes = _cut(graph, start)
    source = _start(graph, nodes)
    state, keep = graph.fresh("state"), graph.fresh("keep")
    again = graph.values[source].shape == graph.values[value].shape
    if again:
        for node in nodes:
            node.input[:] = [state if name == source else name for name in node.input]
    step, going = graph.fresh("step"), graph.fresh("going")
    body = helper.make_graph(
        [*nodes, helper.make_node("Identity", [going], [keep])],
        "body",
        [
            helper.make_tensor_value_info(step, TensorProto.INT64, []),
            helper.make_tensor_value_info(going, TensorProto.BOOL, []),
            helper.make_tensor_value_info(state, graph.dtype, None),
        ],
        [
            helper.make_tensor_value_info(keep, TensorProto.BOOL, []),
            helper.make_tensor_value_info(value, graph.dtype, None),
        ],
    )
    count = graph.integers([2 if again else 1])
    return graph.add("Loop", [count, _condition(graph), source], body=body)


def _in_function(graph: Graph, start: int, value: str) -> str:
    """Move a block into a model-local function; weights become Constant nodes in it, or its inputs."""
    if graph.ir < 8:
        raise MisfitError("this version of the format has no functions")
    nodes = _cut(graph, start)
    inputs, constants = [], []
    for name in graph.captured(nodes):
        if name in graph.initializers and name not in graph.inputs and graph.chance(0.9):
            constants.append(helper.make_node("Constant", [], [name], value=graph.initializers[name]))
        else:
            inputs.append(name)
    name = graph.fresh("Block")
    opsets = [helper.make_opsetid("", graph.opset), helper.make_opsetid(DOMAIN, 1)]
    graph.functions.append(helper.make_function(DOMAIN, name, inputs, [value], [*constants, *nodes], opsets))
    return graph.add(name, inputs, domain=DOMAIN)


def _start(graph: Graph, nodes: list[NodeProto]) -> str:
    """The tensor that a block starts from, if it starts from any."""
    start = next((name for name in graph.captured(nodes) if name in graph.pool), None)
    if start is None:
        raise MisfitError("nothing to start from")
    return start


def _condition(graph: Graph) -> str:
    name = graph.fresh("condition")
    graph.inputs[name] = graph.values[name] = np.array(True)
    return name


def _dims(graph: Graph, outputs: list[str]) -> dict[str, list[int | str]]:
    """Names for the extents of the inputs, so that only what holds for all of them may be done; or none."""
    dims: dict[str, list[int | str]] = {}
    if graph.chance(0.5):
        for name in graph.inputs:
            if name in graph.pool:
                _, channels, *extents = graph.values[name].shape
                dims[name] = ["N", channels, *(f"{name}_{axis}" for axis in range(len(extents)))]
    for name in outputs:
        dims[name] = [f"{name}_{axis}" for axis in range(graph.values[name].ndim)]
    return dims


_ENCLOSE: dict[Callable[[Graph, int, str], str], float] = {_in_if: 1, _in_loop: 1, _in_function: 1}
