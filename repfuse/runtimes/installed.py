"""The backends that there are, by the names that users call them."""

from __future__ import annotations

import importlib.util

from repfuse.errors import BadInputError
from repfuse.runtimes.backends import Backend
from repfuse.runtimes.openvino import OpenVINO
from repfuse.runtimes.ort import OnnxRuntime

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
