"""Running a model: one small interface, and the two runtimes behind it.

A `Backend` is a runtime with its settings; `load` gives a `Session`, which turns feeds into outputs, both
dicts from the names that the ONNX graph uses to arrays. The runtimes are imported when they are first needed.

Settings that matter for measuring: a fixed number of threads, none of which spins while it waits (two
sessions in one process would measure each other), and float32 where the model says float32 (OpenVINO may
choose bf16).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from repfuse.errors import BadInputError, RepfuseError
from repfuse.model import model_io, shapes

ModelSource = onnx.ModelProto | str | os.PathLike[str]
"""A model: itself, or the path of its file. Above 2 GB only a path works."""

Loadable = ModelSource | bytes
"""What a runtime can load: a model, or its file's contents."""

Array = npt.NDArray[Any]

Feeds = Mapping[str, Array]

# What ONNX Runtime takes and gives only as a value of its own, since numpy has no such type.
_FOREIGN_TO_NUMPY = {
    "tensor(bfloat16)": TensorProto.BFLOAT16,
    "tensor(float8e4m3fn)": TensorProto.FLOAT8E4M3FN,
    "tensor(float8e4m3fnuz)": TensorProto.FLOAT8E4M3FNUZ,
    "tensor(float8e5m2)": TensorProto.FLOAT8E5M2,
    "tensor(float8e5m2fnuz)": TensorProto.FLOAT8E5M2FNUZ,
}

_DEEPEST = 10
"""Graphs inside graphs: OpenVINO takes half as long again for each."""

# What a runtime says before it comes to the reason: where in its sources it gave up, and under which number.
_PREAMBLE = re.compile(
    r"^(Exception from|Check '|FrontEnd API|Errors during|While validating|Model wasn't|Summary:"
    r"|-- .*message:).*\n|^(\[ONNXRuntimeError\] : \d+ : \w+ : |-- )",
    re.M,
)


class BackendError(RepfuseError):
    """A runtime cannot load or run a model; the text is the runtime's own reason."""


class Session(Protocol):
    """A model that is ready to run."""

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Compute every output of the model, keyed by its name in the ONNX graph, in the graph's order.

        A sequence or map gives an array for each element: `name[0]`, `name['key']`.

        Raises:
            BackendError: The runtime refuses the feeds, or fails.
        """


class Backend(Protocol):
    """A runtime with its settings."""

    name: ClassVar[str]
    """What the user calls it, as in `--backend`."""

    @property
    def title(self) -> str:
        """What to call it in a report, with its version."""

    def load(self, model: Loadable, *, threads: int) -> Session:
        """Prepare a model to run on the CPU with so many threads.

        Raises:
            BackendError: The runtime cannot load it (an operator, opset or type that it does not know).
            BadInputError: There is no such file, or the model is too large to hand over but by its path.
        """


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime on the CPU.

    Attributes:
        optimize: Whether it rewrites the graph first, as it does by default.
        profile: How the names of profiles are to begin; None to write none.
    """

    name: ClassVar[str] = "ort"
    optimize: bool = True
    profile: Path | None = None

    @property
    def title(self) -> str:
        """The name with the version of the package."""
        import onnxruntime  # noqa: PLC0415  (takes a tenth of a second)

        return f"ONNX Runtime {onnxruntime.__version__}" + ("" if self.optimize else " (not optimizing)")

    def load(self, model: Loadable, *, threads: int) -> OrtSession:
        """Prepare a model to run; see `Backend.load`."""
        import onnxruntime as ort  # noqa: PLC0415

        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if self.optimize else levels.ORT_DISABLE_ALL
        if self.profile:
            options.enable_profiling = True
            options.profile_file_prefix = str(self.profile)
        source = file_or_bytes(model)
        with _explained(self):
            session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        outputs = session.get_outputs()
        types = {entry.type for entry in (*session.get_inputs(), *outputs)}
        return OrtSession(
            self, session, [entry.name for entry in outputs], not types.isdisjoint(_FOREIGN_TO_NUMPY)
        )


@dataclass(frozen=True)
class OrtSession:
    """A model that ONNX Runtime is ready to run."""

    backend: OnnxRuntime
    session: Any
    names: list[str]
    foreign: bool

    def end_profiling(self) -> str:
        """Write the profile of all runs so far; give its path."""
        return str(self.session.end_profiling())

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Compute every output; see `Session.run`."""
        with _explained(self.backend):
            if self.foreign:
                values = _run_on_own_values(self.session, feeds)
            else:
                values = self.session.run(self.names, dict(feeds))
        return {
            name: array
            for output, value in zip(self.names, values, strict=True)
            for name, array in _arrays(output, value)
        }


def _arrays(name: str, value: Any) -> Iterator[tuple[str, Array]]:
    """The arrays in an output: a sequence's by their place, a map's by their key; an absent optional is empty."""
    if isinstance(value, np.ndarray):
        yield name, value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _arrays(f"{name}[{key!r}]", entry)
    elif isinstance(value, list | tuple) and value:
        for number, entry in enumerate(value):
            yield from _arrays(f"{name}[{number}]", entry)
    elif value is None or isinstance(value, list | tuple):
        yield name, np.zeros(0, np.float32)
    else:
        yield name, np.asarray(value)


def _run_on_own_values(session: Any, feeds: Feeds) -> list[Array]:
    """Run with ONNX Runtime's own values, which carry the types that numpy lacks."""
    from onnxruntime import OrtValue  # noqa: PLC0415

    kinds = {entry.name: entry.type for entry in session.get_inputs()}
    values = {
        name: OrtValue.ortvalue_from_numpy_with_onnx_type(array, _FOREIGN_TO_NUMPY[kinds[name]])
        if kinds.get(name) in _FOREIGN_TO_NUMPY
        else OrtValue.ortvalue_from_numpy(array)
        for name, array in feeds.items()
    }
    return [_array_of(value) for value in session.run_with_ort_values(None, values)]


def _array_of(value: Any) -> Array:
    """Copy one of ONNX Runtime's values, whatever its type."""
    if value.data_type() not in _FOREIGN_TO_NUMPY:
        return np.asarray(value.numpy())
    dtype = helper.tensor_dtype_to_np_dtype(_FOREIGN_TO_NUMPY[value.data_type()])
    shape = value.shape()
    data = ctypes.string_at(value.data_ptr(), math.prod(shape) * dtype.itemsize)
    array: Array = np.ndarray(shape, dtype, data)
    return array


@functools.cache
def _openvino_core() -> Any:
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
        with _explained(self):
            core = _openvino_core()
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
        with _explained(self.backend):
            # OpenVINO uses the memory of these as it is: they must live until the run is over.
            arrays = {name: np.asarray(feeds[name], order="C") for name in self.inputs}
            for name, port in self.inputs.items():
                self.request.set_tensor(port, _openvino_tensor(arrays[name]))
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


def _openvino_tensor(array: Array) -> Any:
    import openvino  # noqa: PLC0415

    if array.dtype.name == "bfloat16":
        return openvino.Tensor(array.view(np.uint16), list(array.shape), openvino.Type.bf16)
    return openvino.Tensor(array, shared_memory=True)


def _own_copy(data: Array, dtype: np.dtype[Any]) -> Array:
    """Copy an output before the next run overwrites it; bfloat16 comes as float16 with the wrong meaning."""
    own: Array = (data.view(dtype) if dtype.name == "bfloat16" else data).copy()
    return own


_BACKENDS: tuple[Backend, ...] = (OnnxRuntime(), OpenVINO())


def backends_named(name: str) -> list[Backend]:
    """The backends that a user asks for: `ort`, `openvino`, or `all` that are installed.

    Raises:
        BadInputError: There is no such backend, or it is not installed.
    """
    openvino_is_here = importlib.util.find_spec("openvino") is not None
    if name == "openvino" and not openvino_is_here:
        raise BadInputError("OpenVINO is not installed: pip install 'repfuse[openvino]'")
    chosen = [backend for backend in _BACKENDS if name in (backend.name, "all")]
    if not chosen:
        names = ", ".join(backend.name for backend in _BACKENDS)
        raise BadInputError(f"there is no backend '{name}'; choose one of {names}, all")
    return [backend for backend in chosen if backend.name != "openvino" or openvino_is_here]


def structure(model: Loadable) -> onnx.ModelProto:
    """Read a model without its large weights. A ModelProto is handed back as it is, contents are read whole.

    Raises:
        BadInputError: There is no such file, or it is not an ONNX file.
    """
    if isinstance(model, onnx.ModelProto):
        return model
    return onnx.ModelProto.FromString(model) if isinstance(model, bytes) else model_io.structure(model)


def fed_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs that must be fed: those without an initializer of their name."""
    initial = {tensor.name for tensor in graph.initializer}
    initial |= {tensor.values.name for tensor in graph.sparse_initializer}
    return [entry for entry in graph.input if entry.name not in initial]


def file_or_bytes(model: Loadable) -> str | bytes:
    """A model as another process, or a runtime, can take it: the absolute path of its file, or its contents.

    Raises:
        BadInputError: There is no such file, or the model is too large to hand over but by its path.
    """
    if isinstance(model, bytes):
        return model
    if not isinstance(model, onnx.ModelProto):
        if not Path(model).is_file():
            raise BadInputError(f"{model}: no such file")
        return str(Path(model).absolute())
    try:
        return model.SerializeToString()
    except Exception as error:  # protobuf raises ValueError, EncodeError or its own Error, by version
        raise BadInputError(
            f"the model cannot be handed to a runtime in memory ({_reason(error)}); save it with "
            "external data and give its path"
        ) from error


@contextlib.contextmanager
def _explained(backend: Backend) -> Iterator[None]:
    """Turn whatever a runtime raises (they share no base class) into one line."""
    try:
        yield
    except Exception as error:
        raise BackendError(f"{backend.title}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The first line of a message that says why."""
    text = _PREAMBLE.sub("", str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__
