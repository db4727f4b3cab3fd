"""What `repfuse check` found, as people and as CI servers read it: one function for each format."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click

from repfuse import __version__
from repfuse.errors import BadInputError
from repfuse.jobs.check import Finding, tally
from repfuse.model.staging import staged
from repfuse.remarks import Edit
from repfuse.reporting.figures import counted, si
from repfuse.reporting.plain import as_plain

SCHEMA = 1
"""Version of the JSON; like that of `reporting.report`."""

Findings = Sequence[Finding]


def text(findings: Findings) -> str:
    """A line for each model, and one for all."""
    lines = [f"{finding.path}: {finding.message}" for finding in findings]
    return "\n".join([*lines, tally(findings)] if len(findings) > 1 else lines)


def as_json(findings: Findings) -> str:
    """Everything, for programs; `repfuse/schema/check.json` describes it."""
    return json.dumps(as_dict(findings), indent=2, allow_nan=False)


def as_dict(findings: Findings) -> dict[str, Any]:
    """The JSON before it is one."""
    models = [
        {
            "path": finding.path,
            "status": finding.status,
            "message": finding.message,
            "blocks": finding.blocks,
            "edits": finding.edits,
            "size": {"before": finding.before, "after": finding.after},
            "speedup": finding.speedup and finding.speedup._asdict(),
        }
        for finding in findings
    ]
    unfused = sum(finding.status == "unfused" for finding in findings)
    document: dict[str, Any] = as_plain(
        {"schema": SCHEMA, "repfuse": __version__, "unfused": unfused, "models": models}
    )
    return document


def github(findings: Findings) -> str:
    """Workflow commands, which GitHub shows as annotations.

    https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands
    """
    lines = []
    for finding in findings:
        if finding.status != "clean":
            level = "error" if finding.error else "warning"
            properties = f"file={_property(finding.path)},title=repfuse"
            lines.append(f"::{level} {properties}::{_data(finding.message)}")
    return "\n".join([*lines, tally(findings)])


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def junit(findings: Findings) -> str:
    """A test suite as JUnit writes it: a test case for each model."""
    counts = {
        "tests": len(findings),
        "failures": sum(finding.status == "unfused" for finding in findings),
        "errors": sum(finding.status == "error" for finding in findings),
    }
    attributes = {"name": "repfuse check", **{key: str(count) for key, count in counts.items()}}
    root = ElementTree.Element("testsuites", attributes)
    suite = ElementTree.SubElement(root, "testsuite", attributes)
    for finding in findings:
        case = ElementTree.SubElement(
            suite, "testcase", name=_legal(finding.path), classname="repfuse.jobs.check"
        )
        if finding.status != "clean":
            kind = "error" if finding.error else "failure"
            message = _legal(finding.message)
            result = ElementTree.SubElement(case, kind, type=finding.status, message=message)
            result.text = "\n".join([message, *(_legal(_edit(edit)) for edit in finding.edits)])
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode")


def _edit(edit: Edit) -> str:
    return (
        f"{edit.pattern} at '{edit.output}': {counted(len(edit.removed), 'node')} would become {edit.kernel}"
    )


def _legal(text: str) -> str:
    """A text without the characters that XML 1.0 has no way to write, such as a name's control characters."""
    return "".join(character if character.isprintable() or character in "\n\t" else "?" for character in text)


def markdown(findings: Findings) -> str:
    """A table, as the summary of a CI job shows it."""
    head = ["model", "", "not fused", "nodes", "multiply-adds", "speed-up (estimate)"]
    lines = [f"### repfuse: {tally(findings)}", "", _markdown_row(head), "|---" * len(head) + "|"]
    return "\n".join([*lines, *(_markdown_row(_cells(finding)) for finding in findings)])


def _cells(finding: Finding) -> list[str]:
    marks = {"clean": ":white_check_mark:", "unfused": ":warning:", "error": ":x:"}
    cells = [f"`{finding.path}`", marks[finding.status]]
    if finding.error:
        return [*cells, finding.error, "", "", ""]
    blocks = "; ".join(f"{number} x {family}" for family, number in finding.blocks.items())
    before, after = finding.before, finding.after
    assert before
    macs = [size.macs for size in (before, after) if size]
    return [
        *cells,
        blocks,
        " -> ".join(str(size.nodes) for size in (before, after) if size),
        " -> ".join("unknown" if number is None else si(number) for number in macs),
        f"{finding.speedup.low:.2f}x to {finding.speedup.high:.2f}x" if finding.speedup else "",
    ]


def _markdown_row(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"


FORMATS: Mapping[str, Callable[[Findings], str]] = {
    "text": text,
    "json": as_json,
    "github": github,
    "junit": junit,
    "markdown": markdown,
}


Output = tuple[str, Path | None]
"""A format, and the file to write it to; None for standard output."""


def outputs(names: Sequence[str]) -> list[Output]:
    """Read what `--format` was given: `text`, or `junit:report.xml`.

    Raises:
        BadInputError: There is no such format, or no folder for the file.
    """
    found: list[Output] = []
    for name in names:
        form, _, file = name.partition(":")
        if form not in FORMATS:
            raise BadInputError(f"--format {name}: no such format; there are {', '.join(FORMATS)}")
        if file and not Path(file).absolute().parent.is_dir():
            raise BadInputError(f"{file}: there is no folder '{Path(file).parent}'; make it first")
        found.append((form, Path(file) if file else None))
    return found


def write(findings: Findings, outputs: Sequence[Output]) -> None:
    """Print findings, or write them to files, each whole or not at all."""
    for form, file in outputs:
        text = FORMATS[form](findings)
        if file is None:
            click.echo(text)
            continue
        with staged(file) as temporary:
            temporary.write_text(f"{text}\n", encoding="utf-8")
