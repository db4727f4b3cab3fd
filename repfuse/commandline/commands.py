"""How the command line behaves whatever the command: the default command, its help in sections, how it ends.

Exit codes: 0 done, 1 verification failed, 2 bad usage or input, 70 an error in repfuse itself, 130 interrupted,
143 terminated.
"""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from repfuse.errors import RepfuseError

INTERNAL_ERROR = 70
"""EX_SOFTWARE of sysexits.h: not the user's fault."""

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM

_TYPED = "repfuse.typed"
"""Where a call's words are kept."""


class Commands(click.Group):
    """A group of commands of which one may go unnamed: `repfuse in out` is `repfuse fuse in out`."""

    def __init__(self, *args: Any, default: str, **kwargs: Any) -> None:
        super().__init__(*args, add_help_option=False, **kwargs)
        self.default = default

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Name the default command where the first word names none."""
        ctx.meta[_TYPED] = tuple(args)
        named = bool(args) and args[0] in self.commands
        return super().parse_args(ctx, args if named else [self.default, *args])


class Option(click.Option):
    """An option that stands in a section of the help."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class Command(click.Command):
    """A command that documents its options in sections and turns errors into exit codes.

    Args:
        synopsis: How to call it, behind the program's name.
        epilog: Shown as it is, after the options.
    """

    def __init__(self, *args: Any, synopsis: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.synopsis = synopsis

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Leave the command's own name out: the default command goes by the program's."""
        formatter.write_usage(ctx.find_root().command_path, self.synopsis)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One list for each section, all of them aligned; options of click's own go to the last section."""
        options = [option for option in self.get_params(ctx) if isinstance(option, click.Option)]
        records = [(option, *record) for option in options if (record := option.get_help_record(ctx))]
        width = max(len(names) for _, names, _ in records)
        sections: dict[str, list[tuple[str, str]]] = {}
        title = ""
        for option, names, text in records:
            title = getattr(option, "section", title)
            sections.setdefault(title, []).append((names.ljust(width), text))
        sections |= _other_commands(ctx)
        for title, entries in sections.items():
            with formatter.section(title):
                formatter.write_dl(entries)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Keep the epilog's own line breaks."""
        if self.epilog:
            formatter.write_paragraph()
            formatter.write(self.epilog.strip("\n") + "\n")

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; whatever ends it early leaves through the context managers that it is in."""
        try:
            with _terminable():
                return super().invoke(ctx)
        except RepfuseError as error:
            _end(ctx, str(error), error.exit_code)
        except KeyboardInterrupt:
            _end(ctx, "interrupted; no file was left half written", INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except OSError as error:  # the system's word: no space, no permission
            _end(ctx, str(error), RepfuseError.exit_code)
        except MemoryError as error:
            _end(ctx, f"not enough memory: {error or 'the system gives no more'}", RepfuseError.exit_code)
        except Exception as error:
            if ctx.params.get("verbose"):
                traceback.print_exc()
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            _end(ctx, f"{reason} (a bug in repfuse; please report it, with what -v shows)", INTERNAL_ERROR)


def typed(ctx: click.Context) -> str:
    """The command line, as a shell would take it."""
    return shlex.join([ctx.find_root().command_path, *ctx.meta[_TYPED]])


def first_word(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the first word of the default command, which may also name another one."""
    group = ctx.parent.command if ctx.parent else None
    names = sorted(group.commands) if isinstance(group, Commands) else []
    found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return [*found, CompletionItem(incomplete, type="file")]


def _other_commands(ctx: click.Context) -> dict[str, list[tuple[str, str]]]:
    """A section that lists the other commands, for the help of the one that goes by the program's name."""
    group = ctx.parent.command if ctx.parent else None
    if not isinstance(group, Commands) or group.default != ctx.command.name:
        return {}
    others = [each for name, each in sorted(group.commands.items()) if name != group.default]
    name = ctx.find_root().command_path
    listed = [(f"{name} {each.name}", each.get_short_help_str(limit=90)) for each in others]
    return {"Other commands (each has its own --help)": listed} if listed else {}


def _end(ctx: click.Context, message: str, exit_code: int) -> NoReturn:
    click.echo(f"Error: {message}", err=True)
    ctx.exit(exit_code)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that temporary files are removed.

    What comes while that is done is ignored. So are signals that were ignored before, as `nohup` has it.
    """
    kinds = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

    def end(number: int, _: object) -> NoReturn:
        for kind in kinds:
            signal.signal(kind, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    unheard = (signal.SIG_IGN, None)
    before = {kind: signal.signal(kind, end) for kind in kinds if signal.getsignal(kind) not in unheard}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
