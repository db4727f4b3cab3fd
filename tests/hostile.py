"""Files that a model must not be: each function writes one into a folder, as `in.onnx`."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
SHAPE = (1, 4, 8, 8)


def valid(shape: tuple[int | str, ...] = SHAPE, opset: int = 17, large: bool = False) -> ModelProto:
    """RepConv: 3x3 + 1x1 from `x` to `y`; the weights are `w3` and `w1`."""
    random = np.random.default_rng(0)
    channels = 64 if large else 4
    shape = (shape[0], channels, *shape[2:])
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w3"], ["a"], "conv3", pads=[1, 1, 1, 1]),
            helper.make_node("Conv", ["x", "w1"], ["b"], "conv1"),
            helper.make_node("Add", ["a", "b"], ["s"], "join"),
            helper.make_node("Sigmoid", ["s"], ["y"], "end"),
        ],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, shape)],
        [
            numpy_helper.from_array(
                random.normal(0, 0.2, (channels, channels, k, k)).astype(np.float32), f"w{k}"
            )
            for k in (3, 1)
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def edited(change: Callable[[GraphProto], object]) -> Callable[[Path], None]:
    """A file with a change of the valid model's graph."""

    def make(folder: Path) -> None:
        model = valid()
        change(model.graph)
        write(model, folder)

    return make


def of_model(make: Callable[[], ModelProto]) -> Callable[[Path], None]:
    return lambda folder: write(make(), folder)


def write(model: ModelProto, folder: Path) -> None:
    (folder / "in.onnx").write_bytes(model.SerializeToString())


def content(data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "in.onnx").write_bytes(data) and None


def external(**entries: str) -> Callable[[Path], None]:
    """A model whose weight w3 is in another file; `secret` is beside its folder, `link` leads there."""

    def make(folder: Path) -> None:
        model = valid(large=True)
        data = model.graph.initializer[0].raw_data
        (folder.parent / "secret").write_bytes(data)
        (folder / "link").symlink_to("../secret")
        (folder / "w.data").write_bytes(data)
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        described = {"location": "w.data", "offset": "0", "length": str(len(data))}
        for key, value in (described | entries).items():
            if value:
                tensor.external_data.add(
                    key=key, value=value.replace("$SECRET", str(folder.parent / "secret"))
                )
        write(model, folder)

    return make


def named(graph: GraphProto, name: str) -> NodeProto:
    return next(node for node in graph.node if node.name == name)


def doubling(steps: int) -> Callable[[], ModelProto]:
    """Functions, each of which calls the one before it twice."""

    def make() -> ModelProto:
        model = valid()
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        model.opset_import.append(imports[1])
        nodes = [helper.make_node("Relu", ["p"], ["q"])]
        for number in range(steps):
            model.functions.append(helper.make_function("own", f"f{number}", ["p"], ["q"], nodes, imports))
            call = [f"f{number}"]
            nodes = [helper.make_node(*call, [i], [o], domain="own") for i, o in (("p", "r"), ("r", "q"))]
        model.graph.node.insert(3, helper.make_node(f"f{steps - 1}", ["s"], ["t"], domain="own"))
        named(model.graph, "end").input[0] = "t"
        return model

    return make


def sparse(*dims: int, index: int = 5, name: str = "w1", keep: bool = False) -> Callable[[GraphProto], None]:
    """Weight w1 is a sparse one, beside the dense one or in its place."""

    def change(graph: GraphProto) -> None:
        if not keep:
            del graph.initializer[1]
        values = numpy_helper.from_array(np.ones(1, np.float32), name)
        indices = numpy_helper.from_array(np.array([index]))
        graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, dims))

    return change


def odd_names(graph: GraphProto, tail: str = "\x1b[31m\r\nError: none\u202e") -> None:
    for node in graph.node:
        node.name += tail


def odd_names_of_nonsense(graph: GraphProto) -> None:
    odd_names(graph)
    del graph.node[0].attribute[:]
    graph.node[0].attribute.append(helper.make_attribute("pads", [1, 1]))


def long_names(graph: GraphProto) -> None:
    for node in graph.node:
        node.name *= 100_000


def fifo(folder: Path) -> None:
    external()(folder)
    (folder / "w.data").unlink()
    os.mkfifo(folder / "w.data")


def location_twice(folder: Path) -> None:
    external()(folder)
    model = ModelProto.FromString((folder / "in.onnx").read_bytes())
    model.graph.initializer[0].external_data.add(key="location", value="../secret")
    write(model, folder)


def of_opset_twice() -> ModelProto:
    model = valid()
    model.opset_import.append(helper.make_opsetid("ai.onnx", 13))
    return model


def of_ir(version: int) -> Callable[[], ModelProto]:
    def make() -> ModelProto:
        model = valid()
        model.ir_version = version
        return model

    return make


def twin_functions(domain: str) -> Callable[[], ModelProto]:
    """Two functions of one name."""

    def make() -> ModelProto:
        model = valid()
        for where, inner in (("own", "Relu"), (domain, "Neg")):
            body = [helper.make_node(inner, ["p"], ["q"])]
            opsets = [helper.make_opsetid("", 17)]
            model.functions.append(helper.make_function(where, "f", ["p"], ["q"], body, opsets))
        model.opset_import.extend(helper.make_opsetid(each, 1) for each in dict.fromkeys(("own", domain)))
        model.graph.node.insert(3, helper.make_node("f", ["s"], ["t"], domain="own"))
        named(model.graph, "end").input[0] = "t"
        return model

    return make


def shadowing(graph: GraphProto) -> None:
    """A branch of an If has a weight of its own that is called as one around it."""
    value = helper.make_tensor_value_info("z", FLOAT, SHAPE)
    own = numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "w1")
    body = helper.make_graph([helper.make_node("Conv", ["x", "w1"], ["z"])], "body", [], [value], [own])
    graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    graph.node.insert(3, helper.make_node("If", ["yes"], ["t"], then_branch=body, else_branch=body))
    graph.node.insert(4, helper.make_node("Add", ["s", "t"], ["u"]))
    named(graph, "end").input[0] = "u"


def shadowing_outputs(graph: GraphProto) -> None:
    value = helper.make_tensor_value_info("a", FLOAT, SHAPE)
    body = helper.make_graph([helper.make_node("Relu", ["s"], ["a"])], "body", [], [value])
    graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    graph.node.insert(3, helper.make_node("If", ["yes"], ["t"], then_branch=body, else_branch=body))
    named(graph, "end").input[0] = "t"


def trained(graph: GraphProto) -> ModelProto:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    step = [helper.make_node("Conv", ["x", "w3"], ["other"])]
    model.training_info.add().algorithm.CopyFrom(helper.make_graph(step, "step", [], []))
    return model


def words(*extents: int) -> Callable[[GraphProto], None]:
    def change(graph: GraphProto) -> None:
        graph.initializer.add(name="words", data_type=TensorProto.STRING, dims=extents, string_data=[b"one"])

    return change


def cyclic(graph: GraphProto) -> None:
    named(graph, "conv3").input[0] = "s"


def unsorted(graph: GraphProto) -> None:
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in reversed(graph.node)]
    del graph.node[:]
    graph.node.extend(nodes)


def two_outputs_of_one_name(graph: GraphProto) -> None:
    named(graph, "conv1").output[0] = "a"


def two_initializers_of_one_name(graph: GraphProto) -> None:
    graph.initializer.add().CopyFrom(graph.initializer[0])
    graph.initializer[-1].raw_data = bytes(len(graph.initializer[0].raw_data))


def input_and_output_of_one_name(graph: GraphProto) -> None:
    named(graph, "conv1").output[0] = "x"


def initializer_and_output_of_one_name(graph: GraphProto) -> None:
    named(graph, "conv1").output[0] = "w3"


def dims(*extents: int) -> Callable[[GraphProto], None]:
    def change(graph: GraphProto) -> None:
        graph.initializer[0].dims[:] = extents

    return change


def input_dims(*extents: int) -> Callable[[Path], None]:
    return of_model(lambda: valid(extents))


def without_data(*extents: int) -> Callable[[GraphProto], None]:
    def change(graph: GraphProto) -> None:
        dims(*extents)(graph)
        graph.initializer[0].ClearField("raw_data")

    return change


def weights(value: float) -> Callable[[GraphProto], None]:
    def change(graph: GraphProto) -> None:
        values = numpy_helper.to_array(graph.initializer[0]).copy()
        values[0] = value
        graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w3"))

    return change


def attribute(**values: object) -> Callable[[GraphProto], None]:
    def change(graph: GraphProto) -> None:
        conv = named(graph, "conv3")
        del conv.attribute[:]
        conv.attribute.extend(helper.make_attribute(name, value) for name, value in values.items())

    return change


def normalization(variance: float, size: int = 4) -> Callable[[GraphProto], None]:
    def change(graph: GraphProto) -> None:
        graph.node.insert(3, helper.make_node("BatchNormalization", ["s", "g", "g", "g", "v"], ["n"], "norm"))
        named(graph, "end").input[0] = "n"
        graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "g"))
        graph.initializer.append(numpy_helper.from_array(np.full(size, variance, np.float32), "v"))

    return change


def computed_weight(*nodes: NodeProto, **constants: object) -> Callable[[GraphProto], None]:
    """Weight w1 is multiplied by what these nodes make of constants, `k`."""

    def change(graph: GraphProto) -> None:
        conv = named(graph, "conv1")
        position = list(graph.node).index(conv)
        conv.input[1] = "scaled"
        for node in (*nodes, helper.make_node("Mul", ["w1", "k"], ["scaled"], "scale")):
            graph.node.insert(position, node)
            position += 1
        graph.initializer.extend(
            numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()
        )

    return change


def opset(version: int, domain: str = "") -> Callable[[], ModelProto]:
    def make() -> ModelProto:
        model = valid()
        model.opset_import[0].CopyFrom(helper.make_opsetid(domain, version))
        return model

    return make


def recursive_function() -> ModelProto:
    model = valid()
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model.functions.append(
        helper.make_function(
            "own", "f", ["p"], ["q"], [helper.make_node("f", ["p"], ["q"], domain="own")], imports
        )
    )
    model.opset_import.append(imports[1])
    model.graph.node.insert(3, helper.make_node("f", ["s"], ["t"], "call", domain="own"))
    named(model.graph, "end").input[0] = "t"
    return model


def functions_that_call_each_other() -> ModelProto:
    model = recursive_function()
    model.functions[0].node[0].op_type = "g"
    model.functions.add().CopyFrom(model.functions[0])
    model.functions[1].name = "g"
    model.functions[1].node[0].op_type = "f"
    return model


def nested(depth: int) -> ModelProto:
    """An If in an If in an If."""
    model = valid()
    value = helper.make_tensor_value_info("z", FLOAT, SHAPE)
    body = helper.make_graph([helper.make_node("Identity", ["s"], ["z"])], "body", [], [value])
    shallow = body
    for _ in range(depth):
        choice = helper.make_node("If", ["yes"], ["z"], then_branch=body, else_branch=shallow)
        body = helper.make_graph([choice], "body", [], [value])
    model.graph.node.insert(3, body.node[0])
    model.graph.node[3].output[0] = "t"
    named(model.graph, "end").input[0] = "t"
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    return model


def nested_in_bytes(folder: Path) -> None:
    """The same, a thousand deep; no library would write that."""
    message = b""
    for _ in range(1000):
        for field in (6, 5, 1):  # attribute, node, graph
            message = bytes([field << 3 | 2]) + varint(len(message)) + message
    (folder / "in.onnx").write_bytes(bytes([7 << 3 | 2]) + varint(len(message)) + message)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def zipped(folder: Path) -> None:
    with zipfile.ZipFile(folder / "in.onnx", "w") as archive:
        archive.writestr("model.onnx", valid().SerializeToString())


def unknown_domain() -> ModelProto:
    model = valid()
    model.opset_import.append(helper.make_opsetid("nobody.knows", 3))
    model.graph.node.insert(3, helper.make_node("Blur", ["s"], ["t"], "blur", domain="nobody.knows"))
    named(model.graph, "end").input[0] = "t"
    return model


OUTER = helper.make_node("MatMul", ["u", "v"], ["z"])
RANGE = helper.make_node("Range", ["o", "n", "st"], ["z"])
TOTAL = helper.make_node("ReduceSum", ["z"], ["k"])

HUGE = 2**40
int64 = np.int64

# What each is, and what the one line says with which it is refused; None where it does no harm, so that the model
# is fused, or copied as it is.
CASES: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "an empty file": (content(b""), "holds no graph"),
    "a text": (content(b"a readme\n" * 99), "not an ONNX"),
    "a zip archive": (zipped, "not an ONNX file"),
    "a cut file": (content(valid(large=True).SerializeToString()[:-999]), "not an ONNX file"),
    "a folder": (lambda folder: (folder / "in.onnx").mkdir(), "is a folder; name an .onnx file"),
    "a device": (lambda folder: (folder / "in.onnx").symlink_to("/dev/zero"), "is no regular file"),
    "data above the folder": (external(location="../secret"), "outside the model's folder"),
    "data at an absolute path": (external(location="$SECRET"), "outside the model's folder"),
    "data behind a link": (external(location="link"), "outside the model's folder"),
    "data in a folder": (external(location="."), "'.' is no file"),
    "data nowhere": (external(location=""), "in a file that was not loaded"),
    "data in a missing file": (external(location="none"), "'none': No such file"),
    "offset behind the end": (external(offset="999999999"), "ends behind the end"),
    "offset below zero": (external(offset="-4"), "no offset or length"),
    "offset overflowing": (external(offset=str(2**64 - 4)), "ends behind the end"),
    "offset of many digits": (external(offset="9" * 5000), "no offset or length"),
    "length behind the end": (external(length="999999999"), "needs 147456"),
    "length below zero": (external(length="-1"), "no offset or length"),
    "length too small": (external(length="4"), "needs 147456"),
    "weight dims overflowing": (edited(dims(2**32, 2**32, 2**32, 3)), "do not fit its shape"),
    "weight dims of terabytes": (edited(dims(HUGE, 4, 3, 3)), "do not fit its shape"),
    "weight dims of terabytes, no data": (edited(without_data(HUGE, 4, 3, 3)), "do not fit its shape"),
    "weight dims of 16 GB, no data": (edited(without_data(2**26, 16, 2, 2)), "do not fit its shape"),
    "weight dims below zero": (edited(dims(-4, 4, 3, 3)), "negative extent"),
    "weight dims zero": (edited(dims(0, 4, 3, 3)), "do not fit its shape"),
    "input of terabytes": (input_dims(1, 4, HUGE, 8), "too large to be drawn"),
    "input of 16 GB": (input_dims(1, 4, 2**15, 2**15), "too large to be drawn"),
    "input overflowing": (input_dims(1, 4, 2**62, 2**62), "too large to be drawn"),
    "input below zero": (input_dims(1, 4, -8, 8), None),
    "input of extent 0": (input_dims(0, 4, 8, 8), None),
    "a cycle": (edited(cyclic), "topologically sorted"),
    "an unsorted graph": (edited(unsorted), "topologically sorted"),
    "two outputs of one name": (edited(two_outputs_of_one_name), "single static assignment"),
    "two initializers of one name": (edited(two_initializers_of_one_name), "not unique"),
    "an input and an output of one name": (edited(input_and_output_of_one_name), "single static assignment"),
    "an initializer and an output of one name": (edited(initializer_and_output_of_one_name), "static assignment"),
    "a function that calls itself": (of_model(recursive_function), "must not be recursive"),
    "functions that call each other": (of_model(functions_that_call_each_other), "must not be recursive"),
    "subgraphs 20 deep": (of_model(lambda: nested(20)), None),
    "subgraphs 32 deep": (of_model(lambda: nested(31)), None),
    "subgraphs 1000 deep": (nested_in_bytes, "not an ONNX file"),
    "a NaN": (edited(weights(np.nan)), "Conv 'conv3' has a weight that is infinite or not a number"),
    "infinity": (edited(weights(np.inf)), "Conv 'conv3' has a weight that is infinite or not a number"),
    "a negative variance": (edited(normalization(-1)), "BatchNormalization 'norm' has a negative variance"),
    "variance that is a NaN": (edited(normalization(np.nan)), "BatchNormalization 'norm' has a constant that is"),
    "variance of another size": (edited(normalization(1, 3)), "BatchNormalization 'norm' has statistics"),
    "a weight of rank 2": (edited(dims(4, 36)), "Conv 'conv3' has strides, dilations, pads"),
    "an input of rank 2": (input_dims(1, 4), "no backend can run the model"),
    "pads of another rank": (edited(attribute(pads=[1, 1])), "Conv 'conv3' has strides, dilations, pads"),
    "huge pads": (edited(attribute(pads=[HUGE] * 4)), None),
    "pads that overflow": (edited(attribute(pads=[2**63 - 1] * 4)), None),
    "huge strides": (edited(attribute(strides=[HUGE] * 2, pads=[1] * 4)), None),
    "huge dilations": (edited(attribute(dilations=[HUGE] * 2, pads=[1] * 4)), None),
    "huge dilations and pads": (edited(attribute(dilations=[HUGE] * 2, pads=[HUGE] * 4)), None),
    "group 0": (edited(attribute(group=0, pads=[1] * 4)), "Conv 'conv3' has a weight, bias and group"),
    "group below zero": (edited(attribute(group=-1, pads=[1] * 4)), "Conv 'conv3' has a weight, bias and group"),
    "an attribute of another type": (edited(attribute(pads="all around")), "Mismatched attribute type"),
    "a constant of terabytes": (
        edited(computed_weight(helper.make_node("Expand", ["o", "sh"], ["k"], "expand"),
                               o=np.ones(1, np.float32), sh=np.array([HUGE], int64))), None),
    "a constant of 32 GB": (
        edited(computed_weight(helper.make_node("Expand", ["o", "sh"], ["k"], "expand"),
                               o=np.ones(1, np.float32), sh=np.array([2**33], int64))), None),
    "a constant of 32 GB on the way": (
        edited(computed_weight(helper.make_node("ConstantOfShape", ["sh"], ["z"]),
                               helper.make_node("ReduceSum", ["z"], ["k"]), sh=np.array([2**33], int64))), None),
    "an outer product of terabytes": (
        edited(computed_weight(OUTER, TOTAL,
                               u=np.ones((2**18, 1), np.float32), v=np.ones((1, 2**18), np.float32))), None),
    "a range of terabytes": (
        edited(computed_weight(RANGE, TOTAL,
                               o=np.float32(0), n=np.float32(2.0**40), st=np.float32(1))), None),
    "no opset": (of_model(opset(0)), "opset 0 is not supported"),
    "opset 6": (of_model(opset(6)), "opset 6 is not supported"),
    "opset of the future": (of_model(opset(10_000)), "opset 10000 is not supported"),
    "opset below zero": (of_model(opset(-1)), "opset -1 is not supported"),
    "only an unknown domain": (of_model(opset(17, "nobody.knows")), "not a valid ONNX model"),
    "an operator of an unknown domain": (of_model(unknown_domain), "no backend can run the model"),
    "functions that double 9 times": (of_model(doubling(10)), None),
    "functions that double 39 times": (of_model(doubling(40)), "would be more than 262144 nodes"),
    "functions that double 5000 times": (of_model(doubling(5000)), "would be more than 262144 nodes"),
    "functions of one name": (of_model(twin_functions("own")), "multiple local functions"),
    "functions of one name in two domains": (of_model(twin_functions("other")), None),
    "a sparse weight": (edited(sparse(4, 4, 1, 1)), None),
    "a sparse weight beside a dense one of its name": (edited(sparse(4, 4, 1, 1, keep=True)), "'w1' is two init"),
    "a sparse weight with an index behind its end": (edited(sparse(4, 4, 1, 1, index=500)), None),
    "a sparse weight of terabytes": (edited(sparse(HUGE, 4, 1, 1)), None),
    "names with escape sequences and line breaks": (edited(odd_names), None),
    "names with escape sequences in what is refused": (
        edited(odd_names_of_nonsense), r"Conv 'conv3\x1b[31m\r\nError: none\u202e' has strides"),
    "names of megabytes": (edited(long_names), None),
    "data in a pipe": (fifo, "'w.data' is no file"),
    "data of a long name": (external(location="w" * 100_000), "www ... www"),
    "data of a name with a line break": (external(location="w\n.data"), r"'w\n.data': No such file"),
    "data of a name with a zero": (external(location="w\0.data"), "does not name a file"),
    "data in two places": (location_twice, "outside the model's folder"),
    "data with a checksum": (external(checksum="00" * 20), None),
    "opset twice": (of_model(of_opset_twice), "at several versions"),
    "IR version 0": (of_model(of_ir(0)), "ir_version"),
    "IR version of the future": (of_model(of_ir(2**40)), "ir_version"),
    "an input of 70 axes": (input_dims(*SHAPE, *[1] * 66), "has more than 64 axes"),
    "no outputs": (edited(lambda graph: graph.ClearField("output")), "no backend can run the model"),
    "an operator without a name": (
        edited(lambda graph: setattr(named(graph, "end"), "op_type", "")), "'op_type' of 'node' is required"),
    "an attribute twice": (
        edited(lambda graph: named(graph, "conv3").attribute.add(name="pads", type=7, ints=[0] * 4)),
        "appeared multiple times"),
    "an output that nothing computes": (
        edited(lambda graph: graph.output.add(name="none").type.CopyFrom(graph.output[0].type)),
        "is not an output of any node"),
    "an output that is the input": (
        edited(lambda graph: graph.output.append(graph.input[0])), None),
    "strings of another number": (edited(words(7)), "string_data size (1) is too small"),
    "strings of terabytes": (edited(words(HUGE)), "do not fit its shape"),
    "a weight of unknown type": (
        edited(lambda graph: setattr(graph.initializer[0], "data_type", 99)), "type 99 have no size"),
    "a weight in two fields": (
        edited(lambda graph: graph.initializer[0].float_data.extend([1.0] * 144)), "one and only one value field"),
    "a weight of an inner graph that hides one around it": (edited(shadowing), None),
    "an output of an inner graph that hides one around it": (
        edited(shadowing_outputs), "single static assignment"),
    "a training step": (of_model(lambda: trained(valid().graph)), None),
}  # fmt: skip
