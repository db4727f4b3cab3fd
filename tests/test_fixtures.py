"""The models under tests/models are what expected.json says they are, and their answers follow their input."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import weights

from repfuse import fuse

MODELS = Path(__file__).parent / "models"
EXPECTED = json.loads((MODELS / "expected.json").read_text(encoding="utf-8"))
EXAMPLE = Path(__file__).parents[1] / "examples" / "mobileone.onnx"

FIXTURES = sorted(MODELS.glob("*.onnx"))


def counts(model: onnx.ModelProto) -> dict[str, int]:
    types = Counter(node.op_type for node in model.graph.node if node.op_type not in ("Constant", "Identity"))
    return {"nodes": types.total(), **{name: types[name] for name in ("Conv", "BatchNormalization", "Add")}}


def largest_movement(model: onnx.ModelProto) -> float:
    """How far apart two images' outputs are, relative to the largest output; run on ONNX Runtime."""
    session = weights.run_session(model)
    (entry,) = session.get_inputs()
    first, second = (
        session.run(None, {entry.name: image[None]})[0]
        for image in weights.images(2, entry.shape[1:], seed=11)
    )
    assert np.isfinite(first).all() and np.isfinite(second).all()
    return float(np.abs(first - second).max() / np.abs(first).max())


def test_every_model_has_its_counts_and_no_counts_lack_a_model() -> None:
    assert {path.name.removesuffix(".onnx") for path in FIXTURES} == set(EXPECTED)


@pytest.mark.parametrize("path", [*FIXTURES, EXAMPLE], ids=lambda path: path.stem)
def test_model_is_valid_and_follows_its_input(path: Path) -> None:
    model = weights.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert largest_movement(model) > 0.02


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_train_form_has_the_counts_that_were_recorded(path: Path) -> None:
    expected = EXPECTED[path.name.removesuffix(".onnx")]
    assert counts(onnx.load(path)) == expected["train"]
    assert expected["deploy"]["nodes"] < expected["train"]["nodes"]


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_no_more_nodes_are_left_than_the_source_deploys(path: Path) -> None:
    expected = EXPECTED[path.name.removesuffix(".onnx")]
    assert counts(fuse(weights.load(path)).model)["nodes"] <= expected["deploy"]["nodes"]


@pytest.mark.parametrize("path", [*FIXTURES, EXAMPLE], ids=lambda path: path.stem)
def test_no_path_of_the_exporting_machine_is_left(path: Path) -> None:
    content = path.read_bytes()
    assert not [word for word in (b"site-packages", b"/home/", b"/tmp/", b"/usr/") if word in content]


def test_weights_that_were_left_out_are_drawn_alike_each_time() -> None:
    path = MODELS / "repvgg_a0.ts.onnx"
    assert weights.STRIPPED in {entry.key for entry in onnx.load(path).metadata_props}
    first, again, other = weights.load(path), weights.load(path), weights.load(path, seed=1)
    assert first == again
    assert first != other
    assert weights.STRIPPED not in {entry.key for entry in first.metadata_props}


def test_models_together_stay_small() -> None:
    assert sum(path.stat().st_size for path in FIXTURES) < 3_200_000
