"""A TOML table that a person wrote: asked for by key and type, it says which file and key are wrong."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, TypeVar

from repfuse.errors import BadInputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_T = TypeVar("_T", str, int, list[Any])
_WORDS = {str: "a string", int: "a whole number", list: "a list"}


class Table:
    """The keys of a table that nobody has asked for yet, and the place of the table for messages."""

    def __init__(self, place: str, values: dict[str, Any]) -> None:
        self._place = place
        self._values = dict(values)

    @classmethod
    def read(cls, path: str | os.PathLike[str], *, until: str = "") -> Table:
        """Read a file; where `until` is given, what stands before the first line that begins with that.

        Raises:
            BadInputError: It cannot be read or is not TOML.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
            return cls(str(path), tomllib.loads(text.partition(f"\n{until}")[0] if until else text))
        except OSError as error:
            raise BadInputError(f"{path}: cannot be read: {error.strerror}") from error
        except ValueError as error:  # not UTF-8, or not TOML
            raise BadInputError(f"{path}: not a TOML file: {error}") from error

    def error(self, key: str, message: object) -> BadInputError:
        """What to raise about the value of a key."""
        return BadInputError(f"{self._place}: {key}: {message}")

    def take(self, key: str, kind: type[_T], default: _T | None = None) -> _T:
        """The value of a key, which must be there unless there is a default.

        Raises:
            BadInputError: The key is missing, or its value is of another type.
        """
        value = self._values.pop(key, default)
        if value is None:
            raise self.error(key, f"missing; it must be {_WORDS[kind]}")
        if type(value) is not kind:
            raise self.error(key, f"must be {_WORDS[kind]}, but is {value!r}")
        return value

    def number(self, key: str, default: int | None = None, *, least: int, most: int = sys.maxsize) -> int:
        """A whole number within bounds.

        Raises:
            BadInputError: As `take`, or it is out of bounds.
        """
        value = self.take(key, int, default)
        if not least <= value <= most:
            bounds = f"at least {least}" if most == sys.maxsize else f"from {least} to {most}"
            raise self.error(key, f"must be {bounds}, but is {value}")
        return value

    def texts(self, key: str, default: list[str] | None = None) -> tuple[str, ...]:
        """A list of strings.

        Raises:
            BadInputError: As `take`, or something in the list is no string.
        """
        values = self.take(key, list, default)
        if not all(isinstance(value, str) for value in values):
            raise self.error(key, f"must be a list of strings, but is {values!r}")
        return tuple(values)

    def tables(self, key: str) -> list[Table]:
        """A list of tables, empty where the key is missing.

        Raises:
            BadInputError: It is something else.
        """
        values = self.take(key, list, [])
        if not all(isinstance(value, dict) for value in values):
            raise self.error(key, f"must be a list of tables, but is {values!r}")
        return [Table(f"{self._place}: {key}[{index}]", value) for index, value in enumerate(values)]

    def close(self) -> None:
        """Say that all keys there may be have been asked for.

        Raises:
            BadInputError: There is one more.
        """
        for key in self._values:
            raise self.error(key, "unknown key; is it misspelt?")
