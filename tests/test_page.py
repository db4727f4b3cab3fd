"""The HTML report: what it holds, when it is written, and how it looks to a browser and to a screen reader."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import onnx
import pytest
from browser import Browser, chromium
from commandline import BLOCKED, FAST, enter_folder, files, model, quick, repfuse, wrong

import repfuse as package
from repfuse import Outcome, Remark
from repfuse.reporting.details import Details
from repfuse.reporting.page import page
from repfuse.reporting.report import Report

ROOT = Path(__file__).parents[1]
EXAMPLE = str(ROOT / "tests" / "models" / "repvgg_a0-narrow.ts.onnx")
PLAIN_TAGS = {"meta", "link", "br", "path", "rect", "use"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return enter_folder(tmp_path, monkeypatch)


class Outline(HTMLParser):
    """What matters of a page: its headings, ids, names of graphics; and that every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.levels: list[int] = []
        self.ids: list[str] = []
        self.unnamed: list[str] = []
        self.open: list[tuple[str, bool]] = []
        self.addresses: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        named = bool(given.get("aria-label")) or given.get("aria-hidden") == "true"
        if re.fullmatch(r"h\d", tag):
            self.levels.append(int(tag[1]))
        if tag in ("svg", "figure", "img") and not named:
            self.unnamed.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]
        if tag not in PLAIN_TAGS:
            self.open.append((tag, named))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        size = len(self.open)
        self.handle_starttag(tag, attrs)
        del self.open[size:]

    def handle_endtag(self, tag: str) -> None:
        if tag not in PLAIN_TAGS:
            assert self.open and self.open[-1][0] == tag, f"</{tag}> closes {self.open[-1:]}"
            self.open.pop()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a real run."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        page = str(folder / "report.html")
        done = repfuse(EXAMPLE, str(folder / "fused.onnx"), "--report", page, "--backend", "ort")
    assert done.exit_code == 0, done.output
    assert sorted(each.name for each in folder.iterdir()) == ["fused.onnx", "report.html"]
    return folder / "report.html"


# What it holds


def test_everything_is_in_it(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings == [
        "Summary",
        "Latency",
        "Outputs",
        "Blocks",
        "Activation memory",
        "Quantization",
        "Groups",
        "Remarks",
        "Provenance",
    ]
    hashed = [
        hashlib.sha256(Path(file).read_bytes()).hexdigest()
        for file in (EXAMPLE, report.parent / "fused.onnx")
    ]
    words = [
        "7 groups found: 7 fused, 0 refused",
        "RepConv: 5 groups",
        f"repfuse {EXAMPLE} ",
        "onnxruntime",
    ]
    for each in (*hashed, *words, package.__version__):
        assert each in text, each


def test_what_is_no_group_is_told_apart_from_what_was_refused() -> None:
    remarks = [
        Remark(Outcome.REFUSED, "Add 'a'", "Relu 'r' is not linear"),
        *(Remark(Outcome.KEPT, f"Conv 'c{i}'", f"follows Conv 'b{i}' linearly", saving=0.12) for i in (1, 2)),
    ]
    text = unescape(page(Report(Path("in.onnx"), None, remarks=remarks), Details(), command=""))
    assert "1 group found: 0 fused, 1 refused." in text
    refused, kept = text.split("What is no group, or cannot gain", 1)
    assert "1 group: Relu 'r' is not linear" in refused
    assert "follows" not in refused
    shown = "follows Conv 'b1' linearly; but for that, merging would save 12 %"
    assert f"2 places: {shown} (for one)" in kept
    assert "follows Conv 'b2' linearly; but for that" in kept


def test_it_is_sound_html(report: Path) -> None:
    outline = Outline(report.read_text(encoding="utf-8"))
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert {each.removeprefix("#") for each in outline.addresses if each.startswith("#")} <= set(outline.ids)
    assert [each for each in outline.addresses if not each.startswith("#")] == ["data:,"]


def test_it_can_be_read_aloud(report: Path) -> None:
    outline = Outline(report.read_text(encoding="utf-8"))
    assert outline.unnamed == []
    assert outline.levels[0] == 1 and outline.levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(outline.levels, outline.levels[1:], strict=False))


def luminance(colour: str) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-relative-luminance"""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_stands_out_in_both_themes() -> None:
    style = (ROOT / "repfuse" / "reporting" / "page.html").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--(\w+): (#\w{6})", part)) for part in re.findall(r":root \{(.*?)\}", style, re.S)
    )
    assert light.keys() == dark.keys()
    for theme in (light, dark):
        for name in ("ink", "muted", "before", "after", "good", "bad"):
            for ground in ("paper", "soft"):
                less, more = sorted((luminance(theme[name]), luminance(theme[ground])))
                assert (more + 0.05) / (less + 0.05) >= 4.5, (name, ground)


def test_names_are_text_and_nothing_else(folder: Path) -> None:
    hostile = "<script>alert('$x$')</script>&{{ 7 * 7 }}"
    built = model(*onnx.load("in.onnx").graph.node)
    for node in built.graph.node:
        node.name = f"{hostile}{node.name}"
        node.output[0] = node.output[0].replace("y", f"{hostile}y")
    built.graph.output[0].name = f"{hostile}y"
    onnx.save(built, "in.onnx")
    done = repfuse("in.onnx", "out.onnx", "--report", "out.html", "--no-bench")
    assert done.exit_code == 0, done.output
    text = Path("out.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "{{ 7 * 7 }}" in text
    Outline(text)


# When it is written


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--dry-run",), "1 group fused"),
        (("--no-verify",), "outputs were not compared"),
        (("-q",), "outputs match"),
    ],
)
def test_written_whatever_is_left_out(folder: Path, flags: tuple[str, ...], words: str) -> None:
    done = repfuse("in.onnx", "out.onnx", "--report", "out.html", "--no-bench", "--backend", "ort", *flags)
    assert done.exit_code == 0, done.output
    text = Path("out.html").read_text(encoding="utf-8")
    assert words in text
    assert ("(not written)" in text) == ("--dry-run" in flags)
    Outline(text)


def test_refusals_are_explained(folder: Path) -> None:
    onnx.save(model(*BLOCKED), "in.onnx")
    assert repfuse("in.onnx", "out.onnx", "--report", "out.html", *FAST).exit_code == 0
    text = Path("out.html").read_text(encoding="utf-8")
    assert "Relu &#39;relu&#39; is not linear" in text
    assert "Nothing was fused; the output is a copy of the input." in text
    Outline(text)


def test_a_mismatch_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong(monkeypatch)
    done = repfuse("in.onnx", "out.onnx", "--report", "out.html", "--no-bench")
    assert done.exit_code == 1
    assert files(folder) == ["in.onnx", "out.html"]
    text = Path("out.html").read_text(encoding="utf-8")
    assert 'class="verdict bad"' in text and "does not match" in text
    assert "<h2>Groups</h2>" in text or "<h2>Blocks</h2>" in text
    Outline(text)


# When it cannot be


def test_what_is_missing_is_told_before_the_work_begins(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [*(each for each in sys.modules if each.split(".")[0] == "jinja2"), "repfuse.reporting.page"]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    done = repfuse("missing.onnx", "out.onnx", "--report", "out.html")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "Error: --report: needs jinja2; pip install 'repfuse[report]'\n"


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("in.onnx", "the HTML report would overwrite IN.onnx"),
        ("out.onnx", "the HTML report would overwrite OUT.onnx"),
        ("there/out.html", "there is no folder 'there'; make it first"),
    ],
)
def test_a_place_where_it_cannot_be_written(folder: Path, file: str, words: str) -> None:
    done = repfuse("in.onnx", "out.onnx", "--report", file)
    assert (done.exit_code, words in done.stderr) == (2, True), done.stderr
    assert files(folder) == ["in.onnx"]


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_on_a_phone(report: Path, browser: Browser, theme: str) -> None:
    browser.open(report, width=375, theme=theme)
    assert browser.requests() == [report.as_uri()]
    assert browser.complaints() == []
    browser.ask("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.ask("document.documentElement.scrollWidth") == 375
    ground, ink = browser.ask(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert (sum(numbers(ground)) > sum(numbers(ink))) == (theme == "light")


def test_plots_take_the_colours_of_the_theme(report: Path, browser: Browser) -> None:
    stroke = "getComputedStyle(document.querySelector('figure path[style*=\"--before\"]')).stroke"
    seen = []
    for theme in ("light", "dark"):
        browser.open(report, theme=theme)
        seen.append(browser.ask(stroke))
    assert seen == ["rgb(154, 75, 0)", "rgb(240, 163, 92)"]


def test_text_in_plots_and_drawings_is_large_enough_on_a_phone(report: Path, browser: Browser) -> None:
    browser.open(report, width=375)
    heights = browser.ask(
        "[...document.querySelectorAll('svg text')].map(each => each.getBoundingClientRect().height)"
        ".filter(height => height > 0)"
    )
    assert len(heights) > 20
    assert min(heights) >= 9


def numbers(colour: str) -> list[int]:
    return [int(each) for each in re.findall(r"\d+", colour)]
