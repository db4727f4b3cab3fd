"""The block families that are known, as `--list-patterns` prints them; without all that a model needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from repfuse.families.patterns import Pattern, load_patterns
from repfuse.reporting.voice import Voice


def list_patterns(names: Sequence[str]) -> None:
    """Print the patterns that come with repfuse, and those of the .toml files among `names`.

    Raises:
        BadInputError: A file is no pattern.
    """
    Voice().say(table(load_patterns([name for name in names if name.endswith(".toml")])))


def table(known: Iterable[Pattern]) -> RenderableType:
    """The block families, one after the other."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    for pattern in known:
        grid.add_row(Text(pattern.slug, "bold"), Text(f"{pattern.name}: {pattern.summary}"))
        for line in (", ".join(pattern.families), pattern.paper):
            if line:
                grid.add_row("", Text(line, "dim"))
    return grid
