import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from repfuse.commandline import listing
from repfuse.families.patterns import load_patterns
from repfuse.measures.bench import Benchmark
from repfuse.measures.stats import Stats
from repfuse.proof.comparison import OutputCheck
from repfuse.proof.verification import BackendNote, Verification
from repfuse.remarks import Edit, Outcome, Remark
from repfuse.reporting import report
from repfuse.reporting.report import Report

WIDTHS = (80, 120)


def text(part: RenderableType, width: int = 200) -> str:
    """What a part looks like without a terminal's colours, each line without the blanks behind it."""
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=False, markup=False, emoji=False, highlight=False).print(
        part
    )
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def fused(number: int) -> Remark:
    return Remark(Outcome.FUSED, f"Add 'add{number}'", "RepVGG: 5 nodes became Conv 'c', 3x3 8->8")


def blocked(number: int) -> Remark:
    relu = f"Relu 'relu{number}'"
    return Remark(Outcome.REFUSED, f"Add 'add{number}'", f"{relu} is not linear", relu)


def edit(pattern: str) -> Edit:
    return Edit(pattern, "", "x", "y", ("Conv 'a'", "Conv 'b'"), ("Conv 'c'",), "3x3 8->8")


STATS = Stats(
    nodes=125, operators={"Conv": 44}, parameters=9_105_640, macs=1_512_581_120, bytes=36_458_102, opset=12
)
CHECK = OutputCheck("ONNX Runtime 1.2", "y", 3e-7, noise_floor=5e-7, movement=0.5, tolerance=5e-6)
VERIFICATION = Verification(("x: float32[1, 3, 8, 8]",), (CHECK,), (), ())
FASTER = Benchmark(
    "ONNX Runtime 1.2", 1, 25.0, 20.0, ratio=1.25, low=1.24, high=1.26, confidence=1.0, rounds=100
)


def test_groups_are_counted_by_family() -> None:
    edits = [edit("RepVGG"), edit("RepConv"), edit("RepVGG")]
    lines = text(report.groups(edits, [fused(1), fused(2), fused(3)], verbose=False)).splitlines()
    assert lines == ["3 groups found: 3 fused, 0 refused", "  fused  2 x RepVGG", "  fused  1 x RepConv"]


def test_the_first_few_of_refusals_that_are_alike_are_listed() -> None:
    other = Remark(Outcome.REFUSED, "Add 'z'", "its branches have strides 1 and 2")
    shown = text(report.groups([], [*map(blocked, range(14)), other], verbose=False))
    assert shown.count("is not linear") == 2
    assert "and 12 more alike (-v lists all)" in shown
    assert "Add 'z': its branches have strides 1 and 2" in shown


def test_verbose_lists_every_remark() -> None:
    shown = text(report.groups([edit("RepVGG")], [fused(7), *map(blocked, range(14))], verbose=True))
    assert shown.count("is not linear") == 14
    assert "Add 'add7': RepVGG: 5 nodes became Conv 'c'" in shown
    assert "more alike" not in shown


def test_nothing_to_fuse_reads_otherwise_than_refused() -> None:
    assert "Nothing to fuse" in text(report.groups([], [], verbose=False))
    assert "1 group found: 0 fused, 1 refused" in text(report.groups([], [blocked(0)], verbose=False))


KEPT = Remark(Outcome.KEPT, "Conv 'c2'", "follows Conv 'c1' linearly: would not pay", saving=-2.1)


def test_what_is_no_group_is_listed_only_if_asked_for() -> None:
    for remarks, head in (([], "Nothing to fuse"), ([blocked(0)], "1 group found: 0 fused, 1 refused")):
        brief = text(report.groups([], [*remarks, KEPT], verbose=False))
        assert brief.startswith(head)
        assert "Conv 'c2'" not in brief
        long = text(report.groups([], [*remarks, KEPT], verbose=True)).splitlines()
        assert long[0].startswith(head)
        row = "Conv 'c2': follows Conv 'c1' linearly: would not pay; merging would cost 3.1 times as much"
        assert long[-1].split(maxsplit=1) == ["kept", row]


def test_what_is_no_group_is_not_counted_as_one() -> None:
    found = report.as_dict(Report(Path("a"), None, remarks=[fused(0), blocked(0), KEPT, KEPT]), "1")
    assert found["groups"] == {"found": 2, "fused": 1, "refused": 1, "rewritten": 0, "kept": 2}
    assert found["remarks"][-1]["saving"] == -2.1


def test_a_remark_says_in_which_graph_it_is() -> None:
    remark = replace(blocked(1), graph="If 'if' then_branch")
    assert "Add 'add1' in If 'if' then_branch:" in text(report.groups([], [remark], verbose=False))


def test_names_are_printed_as_they_are() -> None:
    remark = replace(blocked(1), node="Add '[bold]/a[0] :smile:[/]'")
    assert "Add '[bold]/a[0] :smile:[/]'" in text(report.groups([], [remark], verbose=False))


def test_sizes() -> None:
    after = Stats(nodes=47, operators={}, parameters=8_309_384, macs=1_361_000_000, bytes=972, opset=12)
    rows = [line.split() for line in text(report.sizes(STATS, after)).splitlines()]
    assert rows == [
        ["Size", "before", "after", "change"],
        ["nodes", "125", "47", "-62.4", "%"],
        ["parameters", "9.106", "M", "8.309", "M", "-8.7", "%"],
        ["multiply-adds", "1.513", "G", "1.361", "G", "-10.0", "%"],
        ["file", "36.46", "MB", "972", "B", "-100.0", "%"],
    ]


def test_unknown_multiply_adds_are_said_to_be_unknown() -> None:
    unknown = replace(STATS, macs=None)
    (row,) = (line for line in text(report.sizes(unknown, unknown)).splitlines() if "multiply" in line)
    assert row.split() == ["multiply-adds", "unknown", "unknown"]


def test_what_there_is_none_of_has_no_change_in_percent() -> None:
    none = replace(STATS, macs=0)
    (row,) = (line for line in text(report.sizes(none, none)).splitlines() if "multiply" in line)
    assert row.split() == ["multiply-adds", "0", "0"]


def test_errors_stand_beside_the_noise_floor() -> None:
    rows = [line.split() for line in text(report.errors(VERIFICATION)).splitlines()]
    assert ["ONNX", "Runtime", "1.2"] in rows
    assert ["y", "3.0e-07", "5.0e-07", "6.0e-07", "5.0e-06", "ok"] in rows


def unwritten(verification: Verification) -> Report:
    return Report(Path("in.onnx"), Path("out.onnx"), verification=verification)


def test_a_failure_is_in_the_table_and_in_words() -> None:
    failed = Verification((), (replace(CHECK, error=0.25), replace(CHECK, output="z")), (), ())
    (row,) = (line for line in text(report.errors(failed)).splitlines() if "FAILED" in line)
    assert row.split()[:2] == ["y", "2.5e-01"]
    words = report.failure(unwritten(failed))
    assert words.startswith("the fused model does not match the original, so nothing was written\n")
    for needed in ("ONNX Runtime 1.2", "'y'", "0.25", "5e-06", "--rtol"):
        assert needed in words
    assert "'z'" not in words


def test_a_backend_that_fails_or_is_skipped_is_named() -> None:
    failed = replace(VERIFICATION, failures=(BackendNote("OpenVINO 9", "no such operator"),))
    assert "OpenVINO 9: cannot run the fused model: no such operator" in report.failure(unwritten(failed))
    skipped = replace(VERIFICATION, skipped=(BackendNote("OpenVINO 9", "no such operator"),))
    assert "OpenVINO 9 cannot run the original, so it was skipped" in text(report.errors(skipped))


def test_a_vacuous_check_is_pointed_out() -> None:
    assert "a wrong model could pass" in text(
        report.errors(replace(VERIFICATION, checks=(replace(CHECK, movement=0.0),)))
    )
    assert "a wrong model could pass" not in text(report.errors(VERIFICATION))


def test_of_many_outputs_the_worst_are_listed() -> None:
    checks = tuple(replace(CHECK, output=f"out{number}", error=number * 1e-8) for number in range(20))
    bad = replace(CHECK, output="bad", error=1.0)
    shown = text(report.errors(Verification((), (bad, *checks), (), ())))
    assert "bad" in shown
    assert "out19" in shown
    assert "out3" not in shown
    assert "and 15 more, none worse" in shown


VERDICTS = {
    "faster": (FASTER, ""),
    "slower": (
        replace(FASTER, ratio=0.8, low=0.79, high=0.82),
        "Slower on ONNX Runtime 1.2: the fused model takes 1.25 times as long",
    ),
    "same": (replace(FASTER, ratio=1.0, low=0.98, high=1.02), "No measurable difference on ONNX Runtime 1.2"),
}


@pytest.mark.parametrize(("benchmark", "words"), VERDICTS.values(), ids=VERDICTS)
def test_latency(benchmark: Benchmark, words: str) -> None:
    lines = text(report.latency([benchmark])).splitlines()
    assert lines[0].startswith("Latency, 1 thread ")
    assert lines[1].split()[3:9] == [
        "25.0",
        "ms",
        "20.0",
        "ms",
        f"{benchmark.ratio:.2f}x",
        f"{benchmark.low:.2f}",
    ]
    assert "".join(lines[2:]).startswith(words)
    assert len(lines) == (3 if words else 2)


@pytest.mark.parametrize(
    ("milliseconds", "shown"),
    [(0.02213, "0.0221 ms"), (9.999, "10.00 ms"), (25.0, "25.0 ms"), (1234.5, "1234 ms"), (0.0, "0 ms")],
)
def test_milliseconds_have_three_digits(milliseconds: float, shown: str) -> None:
    assert shown in text(report.latency([replace(FASTER, before_ms=milliseconds)]))


@pytest.mark.parametrize("width", WIDTHS)
def test_everything_fits_the_terminal(width: int) -> None:
    long = replace(blocked(1), node=f"Add '{'/very_long_name' * 12}'")
    parts = [
        report.groups([edit("RepVGG")], [fused(1), long], verbose=True),
        report.sizes(STATS, STATS),
        report.errors(replace(VERIFICATION, checks=(CHECK, replace(CHECK, output="/a/long/name" * 9)))),
        report.latency([FASTER, replace(FASTER, backend="OpenVINO 2026.4.1", high=0.9, low=0.8)]),
        listing.table(load_patterns()),
    ]
    for part in parts:
        shown = text(part, width)
        assert max(map(len, shown.splitlines())) <= width
        assert "..." not in shown
        assert "\N{HORIZONTAL ELLIPSIS}" not in shown


def test_every_pattern_is_listed() -> None:
    shown = text(listing.table(load_patterns()))
    for pattern in load_patterns():
        assert f"{pattern.slug} " in shown
        assert pattern.summary in shown


def full() -> Report:
    return Report(
        Path("in.onnx"),
        Path("out.onnx"),
        edits=[edit("RepVGG")],
        remarks=[fused(1), blocked(2)],
        before=STATS,
        after=STATS,
        verification=VERIFICATION,
        benchmarks=[FASTER],
        notes=["Run with x"],
        written=True,
    )


def test_json_has_everything_as_plain_values() -> None:
    plain = report.as_dict(full(), "1.2.3")
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert (plain["schema"], plain["repfuse"]) == (report.SCHEMA, "1.2.3")
    assert (plain["input"], plain["output"], plain["written"]) == ("in.onnx", "out.onnx", True)
    assert plain["groups"] == {"found": 2, "fused": 1, "refused": 1, "kept": 0, "rewritten": 0}
    assert plain["edits"][0]["removed"] == ["Conv 'a'", "Conv 'b'"]
    assert plain["remarks"][1]["outcome"] == "refused"
    assert plain["size"]["before"]["operators"] == {"Conv": 44}
    assert plain["verification"]["passed"] is True
    assert plain["verification"]["checks"][0]["passed"] is True
    assert plain["latency"][0]["verdict"] == "faster"
    assert plain["notes"] == ["Run with x"]


def test_json_of_an_empty_report() -> None:
    plain = report.as_dict(Report(Path("in.onnx"), None), "1.2.3")
    assert (plain["output"], plain["verification"], plain["latency"]) == (None, None, [])
    assert plain["size"] == {"before": None, "after": None}


def test_json_knows_no_infinity() -> None:
    wrong = replace(CHECK, error=math.inf, problem="has another shape")
    plain = report.as_dict(replace(full(), verification=Verification((), (wrong,), (), ())), "1")
    assert plain["verification"]["checks"][0]["error"] is None
    assert plain["verification"]["checks"][0]["passed"] is False
    assert plain["verification"]["passed"] is False
    json.dumps(plain, allow_nan=False)


ENDINGS = {
    "Wrote out.onnx": full(),
    "Wrote out.onnx, not verified": replace(full(), verification=None),
    "Wrote out.onnx, a copy of in.onnx": replace(full(), edits=[], verification=None),
    "Dry run: nothing was written": replace(full(), written=False),
}


@pytest.mark.parametrize("words", ENDINGS)
def test_the_ending_says_what_was_written(words: str) -> None:
    assert text(report.ending(ENDINGS[words])) == words
