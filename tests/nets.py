"""Networks for tests, written as calls: each adds a node with random constants and gives its output's name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import (
    FunctionProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    numpy_helper,
)


class Net:
    """A graph that grows.

    Attributes:
        x: The input `(1, channels, *extents)`; `input` adds more.
    """

    def __init__(
        self,
        channels: int = 4,
        extents: Sequence[int | str] = (7, 6),
        *,
        dtype: int = TensorProto.DOUBLE,
        opset: int = 17,
        ir: int = 8,
        constants: str = "initializer",
    ) -> None:
        """`constants`: where they are held, `initializer`, `node`, or `expression`: nodes over initializers."""
        self.dtype = dtype
        self.opset = opset
        self.ir = ir
        self.constants = constants
        self.random = np.random.default_rng(0)
        self.nodes: list[NodeProto] = []
        self.inputs: dict[str, Sequence[int | str]] = {}
        self.initializers: dict[str, TensorProto] = {}
        self.overridable: list[str] = []
        self.functions: list[FunctionProto] = []
        self._made = 0
        self.x = self.input("x", channels, extents)

    @property
    def channels(self) -> int:
        return int(self.inputs["x"][1])

    @property
    def rank(self) -> int:
        return len(self.inputs["x"]) - 2

    def input(self, name: str, channels: int, extents: Sequence[int | str]) -> str:
        self.inputs[name] = (1, channels, *extents)
        return name

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """A node of `outputs` outputs, one if that is not given; the name of the first."""
        self._made += 1
        name = f"{op_type.lower()}_{self._made}"
        names = [name, *(f"{name}_{i}" for i in range(1, attributes.pop("outputs", 1)))]
        self.nodes.append(helper.make_node(op_type, inputs, names, name, **attributes))
        return name

    def constant(self, value: npt.ArrayLike) -> str:
        tensor = self.tensor(value)
        match self.constants:
            case "node":
                return self.node("Constant", value=tensor)
            case "expression":
                half, two = (self.initializer(each) for each in (np.asarray(value) / 2, np.array(2.0)))
                return self.node("Identity", self.node("Mul", half, two))
        return self.initializer(value)

    def initializer(self, value: npt.ArrayLike) -> str:
        name = f"weight_{len(self.initializers)}"
        self.initializers[name] = self.tensor(value, name)
        return name

    def integers(self, *values: int) -> str:
        name = f"integers_{len(self.initializers)}"
        self.initializers[name] = numpy_helper.from_array(np.array(values, np.int64), name)
        return name

    def true(self) -> str:
        return self.node("Constant", value=helper.make_tensor("", TensorProto.BOOL, [], [True]))

    def tensor(self, value: npt.ArrayLike, name: str = "") -> TensorProto:
        return numpy_helper.from_array(
            np.asarray(value).astype(helper.tensor_dtype_to_np_dtype(self.dtype)), name
        )

    def conv(
        self,
        x: str,
        kernel: int | Sequence[int] = 3,
        channels: tuple[int, int] | None = None,
        *,
        bias: bool = True,
        group: int = 1,
        dilation: int = 1,
        stride: int = 1,
        **attributes: Any,
    ) -> str:
        """A Conv; `pads` keep the extents if they are not given, `channels` are those of the input and output."""
        extents = [kernel] * self.rank if isinstance(kernel, int) else list(kernel)
        inputs, outputs = channels or (self.channels, self.channels)
        shape = (outputs, inputs // group, *extents)
        operands = [self.constant(self.random.normal(0, np.prod(shape[1:]) ** -0.5, shape))]
        if bias:
            operands.append(self.vector(outputs))
        if "auto_pad" not in attributes and "pads" not in attributes:
            reach = [dilation * (extent - 1) for extent in extents]
            attributes["pads"] = [each // 2 for each in reach] + [each - each // 2 for each in reach]
        return self.node(
            "Conv", x, *operands, group=group, dilations=[dilation] * len(extents),
            **{"strides": [stride] * len(extents), **attributes},
        )  # fmt: skip

    def vector(self, size: int | None = None, low: float = -0.5, high: float = 0.5) -> str:
        return self.constant(self.random.uniform(low, high, size or self.channels))

    def bn(self, x: str, channels: int | None = None, **attributes: Any) -> str:
        ranges = ((0.5, 1.5), (-0.5, 0.5), (-0.5, 0.5), (0.5, 2.0))
        return self.node(
            "BatchNormalization", x, *(self.vector(channels, *each) for each in ranges), **attributes
        )

    def conv_bn(self, x: str, kernel: int | Sequence[int] = 3, **options: Any) -> str:
        outputs = options.get("channels", (0, self.channels))[1]
        return self.bn(self.conv(x, kernel, bias=False, **options), outputs)

    def scale(self, op_type: str, x: str, *shape: int, first: bool = False) -> str:
        """Mul, Div, Add or Sub with a constant of a shape, as the second operand unless `first`."""
        constant = self.constant(self.random.uniform(0.5, 1.5, shape))
        return self.node(op_type, *([constant, x] if first else [x, constant]))

    def per_channel(self, op_type: str, x: str) -> str:
        return self.scale(op_type, x, self.channels, *[1] * self.rank)

    def average(self, x: str, kernel: int = 3, **attributes: Any) -> str:
        attributes = {"count_include_pad": 1, "pads": [kernel // 2] * (2 * self.rank), **attributes}
        return self.node("AveragePool", x, kernel_shape=[kernel] * self.rank, **attributes)

    def crop(self, x: str, begin: int, end: int, step: int = 1) -> str:
        """A Slice that takes `begin` and `end` elements off each spatial axis."""
        operands = (
            [begin] * self.rank,
            [-end or 2**63 - 1] * self.rank,
            range(2, 2 + self.rank),
            [step] * self.rank,
        )
        return self.node("Slice", x, *(self.integers(*each) for each in operands))

    def add(self, *operands: str) -> str:
        """A chain of Adds, from the left."""
        first, *others = operands
        for other in others:
            first = self.node("Add", first, other)
        return first

    def repvgg(self, x: str) -> str:
        return self.add(self.conv_bn(x), self.conv_bn(x, 1), self.bn(x))

    def info(self, name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, self.dtype, ["N", "C", *"DHW"[3 - self.rank :]])

    def model(self, *outputs: str) -> ModelProto:
        """A checked model."""
        listed = self.initializers if self.ir < 4 else self.overridable
        inputs = [
            helper.make_tensor_value_info(name, self.dtype, shape) for name, shape in self.inputs.items()
        ]
        inputs += [
            helper.make_tensor_value_info(n, self.initializers[n].data_type, self.initializers[n].dims)
            for n in listed
        ]
        graph = helper.make_graph(
            self.nodes, "net", inputs, [self.info(name) for name in outputs], list(self.initializers.values())
        )
        imports = [helper.make_opsetid("", self.opset)]
        imports += [helper.make_opsetid(domain, 1) for domain in sorted({f.domain for f in self.functions})]
        model = helper.make_model(graph, ir_version=self.ir, opset_imports=imports, functions=self.functions)
        onnx.checker.check_model(model, full_check=True)
        return model
