"""OpenVINO as a backend."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx import TensorProto, helper

from repfuse.model import shapes
from repfuse.runtimes.backends import (
    Array,
    BackendError,
    Feeds,
    Loadable,
    Session,
    explained,
    fed_inputs,
    file_or_bytes,
    structure,
)

_DEEPEST = 10
"""Graphs inside graphs: OpenVINO takes half as long again for each."""


@functools.cache
def _core() -> Any:
    """The one Core of the process: freeing one while another lives leaves a signal handler without its stack."""
    import openvino  # noqa: PLC0415

    return openvino.Core()


@dataclass(frozen=True)
class OpenVINO:
    """OpenVINO on the CPU, for latency, in the model's own precision."""

    name: ClassVar[str] = "openvino"

    @property
    def title(self) -> str:
        """The name with the version of the package."""
        import openvino  # noqa: PLC0415  (takes two tenths of a second)

        return f"OpenVINO {openvino.__version__.split('-')[0]}"

    def load(self, model: Loadable, *, threads: int) -> Session:
        """Prepare a model to run; see `Backend.load`."""
        return self.load_as(file_or_bytes(model), structure(model).graph, threads=threads)

    def load_as(self, source: str | bytes, graph: onnx.GraphProto, *, threads: int) -> Session:
        """Prepare something that OpenVINO made of a graph, such as its own IR, to run in the graph's place.

        Args:
            source: A path, or an ONNX file's contents.
            graph: Whose inputs and outputs the session is to have.
            threads: Threads to run with.

        Raises:
            BackendError: OpenVINO cannot load it.
        """
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
        }
        _refuse_types(self, graph)
        if _depth(graph) > _DEEPEST:
            raise BackendError(
                f"{self.title}: graphs in graphs more than {_DEEPEST} deep take it minutes to read"
            )
        with explained(self):
            core = _core()
            compiled = core.compile_model(core.read_model(source), "CPU", settings)
        outputs = [entry.name for entry in graph.output]
        if len(outputs) != len(compiled.outputs):
            raise BackendError(f"{self.title}: gives {len(compiled.outputs)} of {len(outputs)} outputs")
        return _OpenVinoSession(
            self,
            compiled.create_infer_request(),
            frozenset(entry.name for entry in fed_inputs(graph)),
            _input_ports(self, graph, compiled.inputs),
            # By place: a tensor that OpenVINO makes one with another has the names of both, or one of them.
            {
                name: (port, helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type))
                for name, port, entry in zip(outputs, compiled.outputs, graph.output, strict=True)
            },
        )


@dataclass(frozen=True)
class _OpenVinoSession:
    backend: OpenVINO
    request: Any
    names: frozenset[str]
    inputs: Mapping[str, Any]
    outputs: Mapping[str, tuple[Any, np.dtype[Any]]]

    def run(self, feeds: Feeds) -> dict[str, Array]:
        if feeds.keys() != self.names:
            raise BackendError(
                f"{self.backend.title}: the model takes the inputs {sorted(self.names)}, not {sorted(feeds)}"
            )
        with explained(self.backend):
            # OpenVINO uses the memory of these as it is: they must live until the run is over.
            arrays = {name: np.asarray(feeds[name], order="C") for name in self.inputs}
            for name, port in self.inputs.items():
                self.request.set_tensor(port, _tensor(arrays[name]))
            self.request.infer()
            return {
                name: _own_copy(self.request.get_tensor(port).data, dtype)
                for name, (port, dtype) in self.outputs.items()
            }


def _input_ports(backend: OpenVINO, graph: onnx.GraphProto, ports: Any) -> dict[str, Any]:
    """Pair the inputs of a graph with those of OpenVINO.

    It drops inputs that nothing reads, and calls `x` by the name of `y` where a node such as Dropout only
    hands `x` on as `y`.
    """
    by_name = {name: port for port in ports for name in port.get_names()}
    names = [entry.name for entry in fed_inputs(graph)]
    named = {name: by_name[name] for name in names if name in by_name}
    lost = [name for name in names if name not in named]
    renamed = [port for port in ports if not any(port is taken for taken in named.values())]
    if len(renamed) not in (0, len(lost)):
        raise BackendError(f"{backend.title}: cannot tell which of its inputs are {', '.join(lost)}")
    return named | dict(zip(lost, renamed, strict=False))


def _refuse_types(backend: OpenVINO, graph: onnx.GraphProto) -> None:
    """OpenVINO's binding crashes the process on some tensors of strings; what is no tensor it cannot hand out."""
    for entry in (*fed_inputs(graph), *graph.output):
        if not entry.type.HasField("tensor_type"):
            raise BackendError(f"{backend.title}: '{entry.name}' is no tensor")
        if entry.type.tensor_type.elem_type == TensorProto.STRING:
            raise BackendError(f"{backend.title}: '{entry.name}' holds strings, which it cannot be fed with")


def _depth(graph: onnx.GraphProto) -> int:
    """How many graphs there are inside each other."""
    inner = (
        attribute for node in graph.node if node.op_type in shapes.CONTAINERS for attribute in node.attribute
    )
    return 1 + max((_depth(each.g) for each in inner if each.HasField("g")), default=0)


def _tensor(array: Array) -> Any:
    import openvino  # noqa: PLC0415

    if array.dtype.name == "bfloat16":
        return openvino.Tensor(array.view(np.uint16), list(array.shape), openvino.Type.bf16)
    return openvino.Tensor(array, shared_memory=True)


def _own_copy(data: Array, dtype: np.dtype[Any]) -> Array:
    """Copy an output before the next run overwrites it; bfloat16 comes as float16 with the wrong meaning."""
    own: Array = (data.view(dtype) if dtype.name == "bfloat16" else data).copy()
    return own
