"""Speaking to people: results on standard output, and what is being done right now on a terminal."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from repfuse.errors import printable

Tell = Callable[[str], None]
"""Says what is being done right now."""


class _Printable:
    """Something to print in which a model's names hold no escape sequences."""

    def __init__(self, part: RenderableType) -> None:
        self._part = part

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for text, style, control in console.render(self._part, options):
            yield Segment("\n".join(map(printable, text.split("\n"))), style, control)


class Voice:
    """Prints results to standard output, and what is being done right now to a terminal on standard error."""

    def __init__(self, *, quiet: bool = False) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a model's names may be beyond the terminal's charset
        # Names may also look like rich's markup or emoji codes. A pipe has no width: no line is broken there.
        settings: dict[str, Any] = {"quiet": quiet, "markup": False, "emoji": False, "highlight": False}
        self._out = Console(width=None if sys.stdout.isatty() else 10_000, **settings)
        self._progress = Console(stderr=True, **settings)

    def say(self, *parts: RenderableType) -> None:
        """Print results, one below the other."""
        with self._out.capture() as captured:
            self._out.print(*map(_Printable, parts), sep="\n")
        for line in captured.get().splitlines():
            click.echo(line.rstrip())

    @contextlib.contextmanager
    def doing(self, title: str) -> Iterator[Tell]:
        """Show a title, and behind it what the function given is called with; it is gone afterwards."""
        if self._progress.quiet or not sys.stderr.isatty():  # even if colours are forced
            yield lambda _: None
            return
        with self._progress.status(Text(title)) as status:
            yield lambda step: status.update(Text(f"{title}: {step}"))
