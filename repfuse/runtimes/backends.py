"""Running a model: the small interface behind which runtimes are.

A `Backend` is a runtime with its settings; `load` gives a `Session`, which turns feeds into outputs, both
dicts from the names that the ONNX graph uses to arrays. The runtimes are imported when they are first needed.

Settings that matter for measuring: a fixed number of threads, none of which spins while it waits (two
sessions in one process would measure each other), and float32 where the model says float32 (OpenVINO may
choose bf16).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy.typing as npt
import onnx

from repfuse.errors import BadInputError, RepfuseError
from repfuse.model import model_io

ModelSource = onnx.ModelProto | str | os.PathLike[str]
"""A model: itself, or the path of its file. Above 2 GB only a path works."""

Loadable = ModelSource | bytes
"""What a runtime can load: a model, or its file's contents."""

Array = npt.NDArray[Any]

Feeds = Mapping[str, Array]

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
def explained(backend: Backend) -> Iterator[None]:
    """Turn whatever a runtime raises (they share no base class) into one line."""
    try:
        yield
    except Exception as error:
        raise BackendError(f"{backend.title}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The first line of a message that says why."""
    text = _PREAMBLE.sub("", str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__
