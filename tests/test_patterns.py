"""Pattern files: those that come with repfuse, a user's own, and malformed ones."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from blocks import fold_bn, topology

from repfuse.errors import BadInputError
from repfuse.families.expression import Expression
from repfuse.families.patterns import (
    Branch,
    Example,
    Op,
    Pattern,
    Topology,
    load_patterns,
    match,
    read_pattern,
    select,
)

ROOT = Path(__file__).parents[1]
PATTERNS = load_patterns()
BY_SLUG = {pattern.slug: pattern for pattern in PATTERNS}
EXAMPLES = [
    pytest.param(pattern, example, id=f"{pattern.slug}-{index}")
    for pattern in PATTERNS
    for index, example in enumerate(pattern.examples)
]
# Folding leaves a lone Conv alone: that is nothing to fuse any more.
FOLDED = [
    pytest.param(pattern, folded, id=f"{pattern.slug}-{index}-folded")
    for pattern in PATTERNS
    for index, example in enumerate(pattern.examples)
    if (folded := fold_bn(example)) != example and folded.branches != ("conv3x3",)
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.slug)
def test_every_pattern_is_documented_and_has_examples(pattern: Pattern) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", pattern.slug)
    assert pattern.name
    assert pattern.summary.endswith(".")
    assert pattern.families
    assert pattern.source
    assert pattern.paper == "" or re.fullmatch(r"arXiv:\d{4}\.\d{5}", pattern.paper)
    assert pattern.examples


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.slug)
def test_examples_come_last_in_a_file_that_is_read_up_to_them(pattern: Pattern) -> None:
    assert read_pattern(pattern.file) == pattern


def test_names_and_ranks_are_unique() -> None:
    assert len({pattern.name for pattern in PATTERNS}) == len(PATTERNS)
    assert len({pattern.rank for pattern in PATTERNS}) == len(PATTERNS)
    assert [pattern.rank for pattern in PATTERNS] == sorted(pattern.rank for pattern in PATTERNS)


@pytest.mark.parametrize(("pattern", "example"), EXAMPLES + FOLDED)
def test_examples_are_of_their_own_pattern(pattern: Pattern, example: Example) -> None:
    assert match(PATTERNS, example.topology()) is pattern


@pytest.mark.parametrize(("pattern", "example"), EXAMPLES)
def test_shifts_anywhere_leave_an_example_in_its_family(pattern: Pattern, example: Example) -> None:
    def shifted(ops: tuple[Op, ...]) -> tuple[Op, ...]:
        return (Op("shift"), *(each for op in ops for each in (op, Op("shift"), Op("shift"))))

    group = example.topology()
    assert pattern.fits(Topology(tuple(map(shifted, group.branches)), shifted(group.tail)))


def test_the_guide_lists_the_patterns_and_its_file_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "patterns.md").read_text(encoding="utf-8")
    rows = [f"| `{p.slug}` | {p.name} | {p.summary} | {p.paper or p.source} |" for p in PATTERNS]
    assert [
        line for line in text.splitlines() if re.match(r"\| `\w+` \| [^|]+ \| [^|]+ \| [^|]+ \|$", line)
    ] == rows
    file = tmp_path / "qarepvgg.toml"
    file.write_text(text.split("```toml\n")[1].split("```")[0], encoding="utf-8")
    guide, shipped = read_pattern(file), BY_SLUG["qarepvgg"]
    assert (guide.branches, guide.tail, guide.rank) == (shipped.branches, shipped.tail, shipped.rank)


MINE = """
name = "Mine"
rank = 5
summary = "A block of my own."
branches = [{ ops = "dwconv7x7 bn?" }, { ops = "dwconv3x3 bn?" }]
"""
EXAMPLE = '[[examples]]\ntitle = "mine"\nbranches = ["dwconv7x7", "dwconv3x3"]\n'


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    file = tmp_path / "mine.toml"
    file.write_text(MINE + EXAMPLE, encoding="utf-8")
    return file


def test_a_users_file_is_tried_by_its_rank(mine: Path) -> None:
    patterns = load_patterns([mine])
    assert [pattern.slug for pattern in patterns] == ["mine", *BY_SLUG]
    found = match(patterns, topology("dwconv7x7 bn", "dwconv3x3 bn"))
    assert found is not None
    assert found.name == "Mine"
    assert found.branches[0] == Branch(Expression.parse("dwconv7x7 bn?"), 1, 1)


def test_select_takes_patterns_by_name(mine: Path) -> None:
    patterns = load_patterns([mine])
    assert [pattern.slug for pattern in select(patterns, ["repvgg", "mine"])] == ["mine", "repvgg"]
    assert match(select(patterns, ["repvgg"]), topology("conv3x3", "identity")) is None
    with pytest.raises(BadInputError, match=r"no pattern 'repvg'; did you mean 'repvgg'\?"):
        select(patterns, ["repvg"])
    with pytest.raises(BadInputError, match=r"known are mine, repmixer, acnet, .*linear"):
        select(patterns, ["?"])


def test_two_patterns_of_one_name_are_refused(mine: Path) -> None:
    twin = mine.rename(mine.with_name("repvgg.toml"))
    with pytest.raises(BadInputError, match=r"repvgg\.toml: there is a pattern 'repvgg' already; rename"):
        load_patterns([twin])


MALFORMED = [
    ("", "name: missing; it must be a string"),
    (MINE.replace("rank = 5", ""), "rank: missing; it must be a whole number"),
    (MINE.replace("5", "'5'"), "rank: must be a whole number, but is '5'"),
    (MINE.replace("5", "true"), "rank: must be a whole number, but is True"),
    (MINE.replace("5", "-5"), "rank: must be at least 0, but is -5"),
    (MINE.replace("summary", "sumary"), "summary: missing"),
    (MINE + "papre = 'arXiv:1'", "papre: unknown key"),
    (MINE + "families = [1]", "families: must be a list of strings"),
    (MINE + "tail = 'bn??'", r"tail: 'bn\?\?': two of"),
    (MINE + "tail = '(bn'", r"tail: '\(bn': missing \)"),
    (MINE + "tail = 'bn)'", r"tail: 'bn\)': missing \("),
    (MINE + f"tail = '{'(' * 9999}'", r"tail: '\(+\.\.\.': too many parentheses"),
    (MINE + "tail = '?'", r"tail: '\?': nothing to repeat"),
    (MINE.split("branches", 1)[0], "branches: missing; there must be at least one"),
    (MINE.split("branches", 1)[0] + "branches = ['conv']", "branches: must be a list of tables"),
    (MINE.replace("dwconv7x7 bn", "relu"), r"branches\[0\]: ops: 'relu' is no op; known are conv, bn, "),
    (MINE.replace("dwconv3x3 bn", "conv3"), r"branches\[1\]: ops: 'conv3' is no op"),
    (MINE.replace("dwconv3x3 bn", "conv0x0"), r"branches\[1\]: ops: 'conv0x0' is no op"),
    (MINE.replace("ops", "op"), r"branches\[0\]: ops: missing"),
    (MINE.replace("{ ops", "{ n = 1, ops"), r"branches\[0\]: n: unknown key"),
    *(
        (
            MINE.replace("{ ops", f"{{ count = '{count}', ops"),
            rf"branches\[0\]: count: '{re.escape(count)}' is no count",
        )
        for count in ("", "x", "-1", "0", "0..0", "2..1", "..2", "1...2", "1-2")
    ),
    (MINE.replace("{ ops", "{ count = 1, ops"), r"branches\[0\]: count: must be a string, but is 1"),
    (MINE + EXAMPLE.replace("title", "titel"), r"examples\[0\]: title: missing"),
    (MINE + EXAMPLE + "size = 3", r"examples\[0\]: size: unknown key"),
    (MINE + EXAMPLE + "stride = 0", r"examples\[0\]: stride: must be at least 1, but is 0"),
    (MINE + EXAMPLE + "dims = 4", r"examples\[0\]: dims: must be from 1 to 3, but is 4"),
    (MINE + EXAMPLE + "channels = [8]", r"examples\[0\]: channels: must be the two numbers C_in and C_out"),
    (
        MINE + EXAMPLE + "channels = [8, 0]",
        r"examples\[0\]: channels: must be the two numbers C_in and C_out",
    ),
    (
        MINE + EXAMPLE.replace("dwconv3x3", "dwconv"),
        r"examples\[0\]: .*'dwconv' is no op with all its numbers",
    ),
    (MINE + EXAMPLE.replace("dwconv3x3", "avgpool3x3d2"), r"examples\[0\]: .*'avgpool3x3d2' is no op"),
    (
        MINE + EXAMPLE.replace("3x3", "1x3") + "dims = 3",
        r"examples\[0\]: .*'dwconv1x3': a strip is 2-D, but dims = 3",
    ),
    (MINE + EXAMPLE.replace("3x3", "5x5"), r"examples\[0\]: .*not of the pattern 'mine'"),
    ("name = ", "not a TOML file: Invalid value"),
]


@pytest.mark.parametrize(("text", "message"), MALFORMED, ids=[message[:40] for _, message in MALFORMED])
def test_malformed_files_are_refused_with_file_and_key(mine: Path, text: str, message: str) -> None:
    mine.write_text(text, encoding="utf-8")
    with pytest.raises(BadInputError, match=f"^{re.escape(str(mine))}: {message}"):
        _ = read_pattern(mine).examples


def test_what_is_no_text_file_is_refused(mine: Path) -> None:
    mine.write_bytes(b"\xff\xfe")
    with pytest.raises(BadInputError, match=r"mine\.toml: not a TOML file"):
        read_pattern(mine)
    with pytest.raises(BadInputError, match="cannot be read"):
        read_pattern(mine.parent)


def test_an_installation_finds_module_and_files(tmp_path: Path) -> None:
    """A wheel has the files in a folder of the module's own name beside it."""
    package = tmp_path / "repfuse" / "families"
    shutil.copytree(ROOT / "repfuse" / "families", package)
    shutil.copy(ROOT / "repfuse" / "errors.py", package.parent)
    (package.parent / "__init__.py").touch()
    shutil.copytree(ROOT / "patterns", package / "patterns")
    code = (
        "from repfuse.families import patterns as p; print(p.__file__, *(x.slug for x in p.load_patterns()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ""},
    )
    assert done.stdout.split() == [str(package / "patterns.py"), *BY_SLUG]
