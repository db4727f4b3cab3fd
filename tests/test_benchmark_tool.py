"""The benchmark tool: makes every form once, measures them together, writes its page, and need not do so twice."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import weights

from repfuse.fusion import fuse

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
benchmark = importlib.import_module("benchmark")
page = importlib.import_module("benchmark_page")
variants = importlib.import_module("benchmark_variants")

NARROW = ROOT / "tests" / "models" / "repvgg_a0-narrow.ts.onnx"
BROKEN = variants.Variant("broken", variants._onnxslim, "no_such_module")
CHOSEN = (variants.ORIGINAL, BROKEN, *(each for each in variants.VARIANTS if each.module == "onnxruntime"))
CHOSEN += (variants.DEPLOY, variants.REPFUSE)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the tool leaves it: one model, a page; run once."""
    folder: Path = tmp_path_factory.mktemp("benchmark")
    model = weights.load(NARROW)
    (folder / "zoo" / "deploy").mkdir(parents=True)
    onnx.save(model, folder / "zoo" / "tiny.ts.onnx")
    onnx.save(fuse(model).model, folder / "zoo" / "deploy" / "tiny.ts.onnx")
    (folder / "page.md").write_text(f"By hand.\n\n{page.BEGIN}\nmade before\n{page.END}\n\nBy hand, too.\n")
    with pytest.MonkeyPatch.context() as patch:
        run(folder, patch)
    return folder


def run(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (ort,) = benchmark.backends_named("ort")
    patch.setattr(benchmark, "backends_named", lambda _: [ort])
    patch.setattr(benchmark, "VARIANTS", CHOSEN)
    patch.setattr(page, "VARIANTS", CHOSEN)
    patch.setattr(variants, "version", lambda variant: variant.name)
    patch.setattr(benchmark, "version", lambda variant: variant.name)
    patch.setattr(page, "plot", lambda path, title, found: path.write_text("<svg/>"))
    flags = ["--model", "tiny", "--seconds", "0", "--times", "1", "--page", str(folder / "page.md")]
    benchmark.main([str(folder), *flags])


def test_the_page_keeps_what_was_written_by_hand(work: Path) -> None:
    text = (work / "page.md").read_text(encoding="utf-8")
    assert text.startswith("By hand.\n")
    assert text.endswith("By hand, too.\n")
    assert "made before" not in text


def test_the_page_has_a_row_for_each_form_and_a_reason_for_each_that_is_missing(work: Path) -> None:
    text = (work / "page.md").read_text(encoding="utf-8")
    for variant in CHOSEN:
        if variant is not BROKEN:
            assert re.search(rf"^\| {variant.name} \| \d+ \| [\d.]+ kB \|", text, re.M), variant.name
    assert "broken could not be made: No module named 'no_such_module'" in text
    assert "## repfuse beside the deploy form" in text
    for name in re.findall(r"!\[.*\]\((.*)\)", text):
        assert (work / name).exists()


def test_results_say_what_was_measured(work: Path) -> None:
    found = json.loads((work / "results" / "tiny.ort.1.json").read_text(encoding="utf-8"))["found"]
    assert found["latency"].keys() == {each.name for each in CHOSEN} - {"broken"}
    assert found["latency"]["original"]["ratio"] == 1
    assert max(found["deviation"].values()) < 1e-4
    assert found["beside_deploy"]["verdict"] in ("faster", "same", "slower")
    assert all(each["activations"] is None or each["activations"] > 0 for each in found["memory"].values())


def test_nothing_is_done_twice_but_for_a_model_that_changed(work: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    shutil.copytree(work, folder)
    note = folder / "made" / "tiny" / "repfuse.json"
    known = json.loads(note.read_text(encoding="utf-8"))
    source = folder / "zoo" / "tiny.ts.onnx"
    made: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(variants, "version", lambda variant: variant.name)
        patch.setattr(variants, "_time_alone", lambda *arguments: made.append(arguments) or 1.0)
        for _ in range(2):
            again = variants.make(variants.REPFUSE, source, note.parent, times=1)
            assert (made, again.path) == ([], known["made"]["path"])
        model = onnx.load(source)
        model.doc_string = "changed"
        onnx.save(model, source)
        assert variants.make(variants.REPFUSE, source, note.parent, times=2).seconds == 1.0
    assert len(made) == 2


def test_what_is_remembered_under_another_key_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    answers = iter("abc")
    asked = [benchmark.remembered(path, {"n": n}, lambda: next(answers)) for n in (1, 1, 2, 2)]
    assert asked == ["a", "a", "b", "b"]


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "page.md"
    target.write_text("By hand.")
    with pytest.raises(ValueError, match="has no marks"):
        page.write(target, {"models": {}, "pass": {}, "versions": {}, "threads": 1})
    assert target.read_text() == "By hand."


def test_the_plot_shows_every_form_beside_every_model(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    latency = {"ratio": 1.5, "low": 1.4, "high": 1.6}
    forms = {each.name: latency for each in page.VARIANTS}
    found = {"models": {name: {"results": {"ORT": {"latency": forms}}} for name in ("one", "two")}}
    page.plot(tmp_path / "plot.svg", "ORT", found)
    text = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert len(text) < 60_000
    for word in ("one", "two", "repfuse", "onnxslim", "speed-up over the original, ORT"):
        assert f">{word}<" in text
