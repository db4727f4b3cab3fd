"""ONNX Runtime as a backend."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from onnx import TensorProto, helper

from repfuse.runtimes.backends import Array, Feeds, Loadable, explained, file_or_bytes

# What ONNX Runtime takes and gives only as a value of its own, since numpy has no such type.
_FOREIGN_TO_NUMPY = {
    "tensor(bfloat16)": TensorProto.BFLOAT16,
    "tensor(float8e4m3fn)": TensorProto.FLOAT8E4M3FN,
    "tensor(float8e4m3fnuz)": TensorProto.FLOAT8E4M3FNUZ,
    "tensor(float8e5m2)": TensorProto.FLOAT8E5M2,
    "tensor(float8e5m2fnuz)": TensorProto.FLOAT8E5M2FNUZ,
}


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
        with explained(self):
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
        with explained(self.backend):
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
