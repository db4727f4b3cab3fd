"""Values of plain types, for JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from enum import Enum
from typing import Any


def as_plain(value: Any) -> Any:
    """Reduce a value to what JSON knows; it has no infinity and no NaN, which become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: as_plain(entry) for key, entry in value.items()}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [as_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
