"""JSON Schemas of all JSON that repfuse writes, made from the types and docstrings of what is written.

So they cannot be out of date. https://json-schema.org/draft/2020-12/schema
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from repfuse.jobs import batching, findings, versus
from repfuse.jobs.batching import BatchRecord
from repfuse.jobs.check import Finding
from repfuse.jobs.versus import Comparison
from repfuse.measures.estimate import Speedup
from repfuse.measures.stats import Stats
from repfuse.reporting import report
from repfuse.reporting.report import Report

DRAFT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]

_PLAIN: Mapping[Any, Schema] = {
    str: {"type": "string"},
    Path: {"type": "string"},
    int: {"type": "integer"},
    bool: {"type": "boolean"},
    float: {"type": ["number", "null"], "description": "null where it is not finite"},
    type(None): {"type": "null"},
    Any: {},
}

_STATUS: Mapping[str, Sequence[str]] = {
    "check": ("clean", "unfused", "error"),
    "batch": ("fused", "copied", "mismatch", "error"),
}


def of(kind: Any) -> Schema:
    """The schema of a type: of plain ones, of enumerations, dataclasses, named tuples, and collections of them.

    Properties of a dataclass may be among its keys, since some are written, too.
    """
    if kind in _PLAIN:
        return dict(_PLAIN[kind])
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [of(each) for each in arguments]}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin is tuple and arguments[-1] is not Ellipsis:
        return {"type": "array", "prefixItems": [of(each) for each in arguments], "items": False}
    if origin and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": of(arguments[1])}
    if origin and issubclass(origin, Sequence):
        return {"type": "array", "items": of(arguments[0])}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {"enum": [each.value for each in kind]}
    return _of_fields(kind)


def _of_fields(kind: type) -> Schema:
    hints = typing.get_type_hints(kind)
    known = _described(kind)
    computed = {
        name: of(typing.get_type_hints(value.fget)["return"])
        for name, value in inspect.getmembers(kind, lambda member: isinstance(member, property))
    }
    if dataclasses.is_dataclass(kind):
        hints = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    properties = {name: of(hint) | known.get(name, {}) for name, hint in hints.items()}
    return _object(computed | properties, required=list(properties))


def _described(kind: type) -> dict[str, Schema]:
    """What the docstring says of each attribute."""
    # From Python 3.13 on, docstrings are stored without their indentation.
    _, _, text = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", text, re.M)
    return {name: {"description": " ".join(words.split())} for name, words in found}


def _object(properties: Mapping[str, Schema], required: Sequence[str] | None = None) -> Schema:
    names = list(properties) if required is None else list(required)
    return {"type": "object", "properties": dict(properties), "required": names}


_COUNT = of(int)
_SIZE = _object({"before": of(Stats | None), "after": of(Stats | None)})


def _fuse() -> Schema:
    """`repfuse IN.onnx OUT.onnx --json`."""
    fields: dict[str, Schema] = _of_fields(Report)["properties"]
    for renamed in ("source", "target", "before", "after", "benchmarks"):
        del fields[renamed]
    fields |= {
        "schema": {"const": report.SCHEMA},
        "repfuse": of(str),
        "input": of(str),
        "output": of(str | None),
        "groups": _object(dict.fromkeys(("found", "fused", "refused", "rewritten", "kept"), _COUNT)),
        "size": _SIZE,
        "latency": of(typing.get_type_hints(Report)["benchmarks"]),
    }
    return _object(fields)


def _check() -> Schema:
    """`repfuse check --format json`."""
    finding = _of_fields(Finding)["properties"]
    model = {name: finding[name] for name in ("path", "message", "blocks", "edits")}
    model |= {"status": {"enum": list(_STATUS["check"])}, "size": _SIZE, "speedup": of(Speedup | None)}
    models = {"type": "array", "items": _object(model)}
    return _object(
        {"schema": {"const": findings.SCHEMA}, "repfuse": of(str), "unfused": _COUNT, "models": models}
    )


def _batch() -> Schema:
    """A line of `batch.jsonl`."""
    record = _of_fields(BatchRecord)
    record["properties"] |= {
        "schema": {"const": batching.SCHEMA},
        "status": {"enum": list(_STATUS["batch"])},
        "report": {"anyOf": [_fuse(), of(None.__class__)]},
    }
    return record


def _bench() -> Schema:
    """`repfuse bench --json`."""
    fields: dict[str, Schema] = _of_fields(Comparison)["properties"]
    fields |= {"schema": {"const": versus.SCHEMA}, "repfuse": of(str), "before": of(str), "after": of(str)}
    fields |= {"required_speedup": of(float | None), "passed": of(bool)}
    return _object(fields)


KINDS: Mapping[str, Callable[[], Schema]] = {
    "fuse": _fuse,
    "check": _check,
    "batch": _batch,
    "bench": _bench,
}


def schema(kind: str) -> Schema:
    """The JSON Schema of one of `KINDS`; keys that it does not name may come with a later version."""
    made = KINDS[kind]()
    title = (KINDS[kind].__doc__ or "").strip().rstrip(".")
    return {"$schema": DRAFT, "title": title.replace("`", ""), **made}
