"""What README.md and docs/ say is so: code runs, flags, links and names exist, tables are whole."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pages
import pytest
import weights
from commandline import repfuse as command_line
from pages import ROOT, TEXTS

import repfuse
from repfuse.commandline.cli import main
from repfuse.commandline.commands import TERMINATED
from repfuse.families.patterns import load_patterns
from repfuse.measures.stats import measure_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

README, API = TEXTS["README.md"], TEXTS["docs/api.md"]
SOURCES = sorted((ROOT / "repfuse").rglob("*.py"))

each_page = pytest.mark.parametrize("page", TEXTS)


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return [block.text for block in pages.blocks(text) if block.language == language]


def section(text: str, title: str) -> str:
    """What stands below a heading, up to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}\n", text, re.M)
    assert found, title
    rest = text[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.M)
    return rest[: end.start()] if end else rest


def rows(text: str) -> list[list[str]]:
    """The cells of the tables in a text, without their heads."""
    tables = re.findall(r"^\|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.M)
    lines = [line for table in tables for line in table.splitlines()]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def slug(heading: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# Code (tests/test_docs_run.py runs it)

INDENTED = r"^(?:    [^\n]+\n)+"


def commands(text: str) -> Iterator[str]:
    """Each command that a page shows, continued lines joined."""
    for block in pages.blocks(text):
        if block.language == "sh":
            for line in block.commands:
                yield from re.split(r"&&|; ", line)


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+|(?<![\w-])-[a-z]\b", text))


def flags_of(command: click.Command) -> set[str]:
    return {"--help"}.union(*(each.opts for each in command.params if isinstance(each, click.Option)))


FLAGS = set[str]().union(*map(flags_of, main.commands.values()))


@each_page
def test_flags_of_commands_exist(page: str) -> None:
    for command in commands(TEXTS[page]):
        tool = re.search(r"python (tools/\w+\.py)", command)
        if tool:
            source = (ROOT / tool[1]).read_text(encoding="utf-8")
            assert [flag for flag in flags_in(command) if f'"{flag}"' not in source] == [], command
        elif called := re.search(r"\brepfuse (\w*)", command):
            known = flags_of(main.commands.get(called[1], main.commands["fuse"]))
            assert flags_in(command) - {"-m"} <= known, command


@each_page
def test_flags_in_sentences_exist(page: str) -> None:
    prose = re.sub(rf"^```.*?^```$|{INDENTED}", "", TEXTS[page], flags=re.M | re.S)
    assert {flag for flag in flags_in(prose) if flag.startswith("--")} <= FLAGS


def test_the_readme_has_the_exit_codes_of_the_help() -> None:
    firsts = [row[0] for row in rows(section(README, "Using it"))]
    listed = {code for first in firsts for code in first.split(", ") if code.isdigit()}
    helps = [command_line(name, "--help").output for name in main.commands]
    documented = {
        code for text in helps for code in re.findall(r"^  (\d+) ", text.split("Exit codes")[1], re.M)
    }
    assert documented | {str(TERMINATED)} == listed


@each_page
def test_patterns_exist(page: str) -> None:
    shown = [*commands(TEXTS[page]), *re.findall(r"`[^`\n]+`", TEXTS[page])]
    named = {name for text in shown for name in re.findall(r"--pattern (\w+)\b(?!\.toml)", text)}
    for group in re.findall(r"patterns=\[([^\]]*)\]", TEXTS[page]):
        named.update(re.findall(r'"(\w+)"', group))
    assert named <= {pattern.slug for pattern in load_patterns()}


# Links and names


@each_page
def test_links_resolve(page: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", TEXTS[page])
    for link in links:
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            assert anchor in map(slug, headings), link


def test_the_readme_links_to_every_page() -> None:
    linked = set(re.findall(r"\]\((docs/\w+\.md|examples/README\.md)\)", README))
    assert linked == set(TEXTS) - {"README.md"}


@each_page
def test_files_that_are_named_exist(page: str) -> None:
    named = re.findall(r"(?<![\w/])((?:tools|tests|repfuse|examples)/[\w./-]+\.\w+)", TEXTS[page])
    assert not [name for name in named if not (ROOT / name).exists()]


# The README's figures


def test_the_output_that_the_readme_shows_is_what_the_command_prints(tmp_path: Path) -> None:
    (shown,) = (block for block in blocks(README, "text") if "groups found" in block)
    target = tmp_path / "fused.onnx"
    done = command_line(str(ROOT / "examples" / "mobileone.onnx"), str(target), "--no-verify", "--no-bench")
    assert done.exit_code == 0
    found, size, _ = done.output.split("\n\n")
    assert shown.startswith(f"{found}\n\n")
    assert f"\n\n{size}\n\n" in shown
    assert shown.rstrip().endswith("\nWrote fused.onnx")


def test_what_check_says_in_the_readme_is_what_it_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    (shown,) = (block for block in blocks(README, "text") if "are not fused" in block)
    monkeypatch.chdir(ROOT)
    assert command_line("check", "examples/mobileone.onnx").output == shown


FIGURES = {row[0]: row[1] for row in rows(README) if "->" in row[1]}


@pytest.mark.parametrize("name", FIGURES)
def test_node_counts_of_the_readme(name: str, tmp_path: Path) -> None:
    if name.startswith("examples/"):
        train = ROOT / name
        model = repfuse.fuse(train).model
    else:
        train = ROOT / "tests" / "models" / f"{name}.ts.onnx"
        model = repfuse.fuse(weights.load(train)).model
    fused = tmp_path / "fused.onnx"
    fused.write_bytes(model.SerializeToString())
    assert FIGURES[name] == f"{measure_file(train).nodes} -> {measure_file(fused).nodes}"


# Tables that must be whole


def test_modules_of_the_architecture() -> None:
    """Each package has a section, which is headed by its name and tells what each of its modules is for."""
    sections = re.split(r"^### `(\w+)`", TEXTS["docs/architecture.md"], flags=re.MULTILINE)
    listed = {
        (name, module)
        for name, section in zip(sections[1::2], sections[2::2], strict=True)
        for row in rows(section)
        for module in re.findall(r"`(\w+)`", row[0])
    }
    paths = [path.relative_to(ROOT / "repfuse") for path in SOURCES]
    inner = {(path.parent.name, path.stem) for path in paths if path.parent.name and path.stem != "__init__"}
    assert listed == inner | {("repfuse", path.stem) for path in paths if not path.parent.name}


def template(node: ast.expr) -> str:
    """A string as the table writes it, what is filled in as `...`; empty if it is none."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def sentences(path: Path) -> Iterator[str]:
    """What a module gives as reasons: to `Refusal`, and where remarks are made in a pair with the node to blame."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Refusal":
            reason = template(node.args[0])
            assert reason, f"{path.name}, line {node.lineno}: a reason that is no literal cannot be looked up"
            yield reason
        if path.stem in ("explain", "sequences") and isinstance(node, ast.Tuple):
            yield from (text for text in map(template, node.elts) if " " in text)


IN_CODE = {sentence for path in SOURCES for sentence in sentences(path)}
IN_TABLE = [row[0].strip("`") for row in rows(section(TEXTS["docs/exactness.md"], "Refusals"))]


def test_every_refusal_is_explained() -> None:
    assert IN_CODE - set(IN_TABLE) == set()


def test_every_explanation_is_of_a_refusal() -> None:
    assert set(IN_TABLE) - IN_CODE == set()
    assert len(IN_TABLE) == len(set(IN_TABLE))


def test_the_remarks_that_the_readme_shows_are_printed() -> None:
    text = section(README, "What it leaves alone, and how it says so")
    (samples,) = blocks(text, "text")
    models = [ROOT / name for name in re.findall(r"tests/models/[\w.-]+\.onnx", text)]
    remarks = [remark for model in models for remark in repfuse.fuse(model).remarks]
    printed = {f"{each.outcome.value}  {each.node}: {each.message}" for each in remarks}
    assert samples
    assert set(samples.splitlines()) <= printed


# The API


def test_the_api_page_describes_all_that_is_public() -> None:
    headings = re.findall(r"^### (.*)$", API, re.M)
    described = [name for heading in headings for name in re.findall(r"`(\w+)`", heading)]
    described += re.findall(r"^\| `(\w+Error)` \|", API, re.M)
    assert sorted(described) == sorted(repfuse.__all__)


@pytest.mark.parametrize("name", ["fuse", "verify", "benchmark", "batch"])
def test_signatures(name: str) -> None:
    signature = inspect.signature(getattr(repfuse, name))
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    (shown,) = blocks(section(API, f"`{name}`"), "text")
    plain = signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)
    assert shown.strip() == f"{name}{plain} -> {signature.return_annotation}"


@pytest.mark.parametrize("name", ["FuseResult", "Edit", "Remark", "Verification", "Benchmark", "BatchRecord"])
def test_attributes(name: str) -> None:
    kind = getattr(repfuse, name)
    heading = next(line for line in API.splitlines() if line.startswith(f"### `{name}`"))
    table = rows(section(API, heading.removeprefix("### ")))
    listed = [attribute for row in table for attribute in re.findall(r"`(\w+)`", row[0])]
    properties = [key for key, value in vars(kind).items() if isinstance(value, property)]
    assert sorted(listed) == sorted([*(field.name for field in dataclasses.fields(kind)), *properties])


@pytest.mark.parametrize("name", [name for name in repfuse.__all__ if name.endswith("Error")])
def test_errors(name: str) -> None:
    assert re.search(rf"^\| `{name}` \|.*\| {getattr(repfuse, name).exit_code} \|$", API, re.M)


def test_dependencies_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed, extras = TEXTS["docs/dependencies.md"].split("Extras:")

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[<>=; ]", each)[0] for each in requirements}

    assert {row[0].split(" ")[0] for row in rows(needed)} == names(project["dependencies"])
    listed = {row[0].strip("`"): set(row[1].split(", ")) for row in rows(extras)}
    assert listed == {extra: names(entry) for extra, entry in project["optional-dependencies"].items()}
