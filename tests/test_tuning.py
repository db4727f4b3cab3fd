"""What is fused is what measures faster: each group, then the whole model; measured once, and kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from blocks import build
from commandline import enter_folder, repfuse
from nets import Net
from onnx import helper

from repfuse import BadInputError, Tuning, fuse, tune
from repfuse.choice.plan import BALANCES, SLOWER, Plan
from repfuse.families.patterns import Example, load_patterns
from repfuse.fusion import regions_of
from repfuse.measures import tuning
from repfuse.measures.extract import Source, digest, types_of
from repfuse.measures.meter import Form, Meter
from repfuse.runtimes.feeds import make_inputs
from repfuse.runtimes.ort import OnnxRuntime

REPVGG = next(pattern for pattern in load_patterns() if pattern.slug == "repvgg")
BRANCHES = Example("", ("conv3x3 bn", "conv1x1 bn", "bn"), channels=(4, 4))
STRIPS = Example("", ("dwconv1x9", "dwconv9x1", "dwconv3x3"), channels=(4, 4), groups=4)
"""Merged in part by the cost model; all of it is one 9x9 where moving is dear."""

WIDE = Example("", ("dwconv13x13", "dwconv5x5"), channels=(64, 64), groups=64)
"""Merged, it is 13 wide, and a tap stays apart for OpenVINO."""

BLOCKS = 3


def network(example: Example = BRANCHES, **options: int) -> onnx.ModelProto:
    return build(REPVGG, example, extents=(12, 12), repeat=BLOCKS, **options)


Measure = Callable[[Sequence[onnx.ModelProto], str, bool], list[float]]
"""From forms, a backend's name, and whether these are whole models: by how much each is faster than the first."""


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> Callable[[Measure], list[str]]:
    """Let a function say what is measured; gives a list to which the backend of each measurement is added."""

    def install(measure: Measure) -> list[str]:
        asked: list[str] = []

        def measured(
            _: Meter, forms: Sequence[Form], backend: OnnxRuntime, *rest: object
        ) -> list[tuple[float, float, float, float]]:
            asked.append(backend.name)
            whole = isinstance(forms[0].model, Path)
            models = [onnx.load(form.model) if whole else form.model for form in forms]  # type: ignore[arg-type]
            ratios = measure(models, backend.name, whole)  # type: ignore[arg-type]
            return [(ratio, ratio * 0.99, ratio * 1.01, 1.0) for ratio in ratios]

        monkeypatch.setattr(Meter, "_measure", measured)
        monkeypatch.setattr(Meter, "pace", lambda *_: None)
        return asked

    return install


def by_nodes(models: Sequence[onnx.ModelProto], *_: object) -> list[float]:
    """A runtime to which each node costs the same."""
    return [len(models[0].graph.node) / len(model.graph.node) for model in models[1:]]


def all_alike(value: float) -> Measure:
    return lambda models, *_: [value] * (len(models) - 1)


@pytest.mark.parametrize(
    ("measure", "fused", "verdict"),
    [
        pytest.param(by_nodes, BLOCKS, "faster", id="faster"),
        pytest.param(all_alike(0.9), 0, "slower", id="slower"),
        pytest.param(all_alike(1.001), BLOCKS, "same", id="same: the cost model decides"),
        pytest.param(
            lambda models, backend, whole: [2.0 if backend == "ort" else 0.95] * (len(models) - 1),
            0,
            "slower",
            id="slower on one backend",
        ),
        pytest.param(
            lambda models, backend, whole: [0.9 if whole else 1.2] * (len(models) - 1),
            0,
            "faster",
            id="slower as a whole",
        ),
        pytest.param(
            lambda models, backend, whole: [0.985 if whole else 1.2] * (len(models) - 1),
            0,
            "faster",
            id="hardly slower as a whole",
        ),
    ],
)
def test_what_is_fused(
    measuring: Callable[[Measure], list[str]], measure: Measure, fused: int, verdict: str
) -> None:
    measuring(measure)
    model = network()
    tuning = tune(model)
    result = fuse(model, plan=tuning.plan)
    assert len(result.edits) == fused
    assert {trial.verdict for trial in tuning.trials} == {verdict}
    assert [trial.fused for trial in tuning.trials] == [fused > 0] * BLOCKS
    assert sum(SLOWER in remark.message for remark in result.remarks) == BLOCKS - fused


def test_only_what_is_faster_is_fused_where_blocks_differ(measuring: Callable[[Measure], list[str]]) -> None:
    first = network()
    second = onnx.compose.add_prefix(network(STRIPS), "second/")
    del second.opset_import[:]
    second.opset_import.extend(first.opset_import)
    model = onnx.compose.merge_models(first, second, io_map=[("y", "second/x")])
    model = helper.make_model(model.graph, opset_imports=first.opset_import, ir_version=first.ir_version)

    def measure(models: Sequence[onnx.ModelProto], backend: str, whole: bool) -> list[float]:
        kernels = {tuple(tensor.dims[2:]) for tensor in models[0].graph.initializer if len(tensor.dims) == 4}
        return [1.5 if whole or (1, 1) in kernels else 0.8] * (len(models) - 1)

    measuring(measure)
    tuning = tune(model)
    result = fuse(model, plan=tuning.plan)
    assert len(result.edits) == BLOCKS
    assert not any(edit.output.startswith("second/") for edit in result.edits)


def test_an_alternative_is_taken_where_it_is_faster(measuring: Callable[[Measure], list[str]]) -> None:
    model = network(STRIPS)
    measuring(by_nodes)  # fewer nodes: all three become one
    result = fuse(model, plan=tune(model).plan)
    assert [edit.kernel for edit in result.edits] == ["9x9 4->4, depthwise"] * BLOCKS
    assert len(fuse(model).model.graph.node) > len(result.model.graph.node)


MERGED, APART = "13x13 64->64, depthwise", "13x13 64->64, depthwise, with one tap as a Conv of its own"

SECONDS = {
    "ort": {(13, 5): 2.0, (13, 1): 1.1, (13,): 1.0},
    "openvino": {(13, 5): 3.0, (13, 1): 1.0, (13,): 2.0},
}
"""What depthwise kernels so wide take on a backend: a tap apart pays on one of them."""


def by_widths(models: Sequence[onnx.ModelProto], backend: str, whole: bool) -> list[float]:
    widths = [{each.dims[3] for each in model.graph.initializer if len(each.dims) == 4} for model in models]
    times = [SECONDS[backend][tuple(sorted(each, reverse=True))] for each in widths]
    return [times[0] / time for time in times[1:]]


@pytest.mark.parametrize(
    ("backend", "kernel", "compared"),
    [("ort", MERGED, 2), ("openvino", APART, 2), ("all", MERGED, 4)],
)
def test_a_tap_is_apart_where_that_costs_no_backend_time(
    measuring: Callable[[Measure], list[str]], tmp_path: Path, backend: str, kernel: str, compared: int
) -> None:
    model = network(WIDE)
    asked = measuring(by_widths)
    cache = tmp_path / "measured.json"
    tuning = tune(model, backend=backend, cache=cache)
    result = fuse(model, plan=tuning.plan)
    assert [edit.kernel.partition(", since")[0] for edit in result.edits] == [kernel] * BLOCKS
    assert [trial.unsplit for trial in tuning.trials] == [kernel == MERGED] * BLOCKS
    assert len(asked) == tuning.measured == compared  # both kernels at once, and the whole
    again = tune(model, backend=backend, cache=cache)
    assert not again.measured
    assert (again.plan, again.trials) == (tuning.plan, tuning.trials)


@pytest.mark.parametrize(("backend", "kernel"), [("ort", MERGED), ("openvino", APART), ("all", MERGED)])
def test_that_holds_for_the_whole_model_where_no_region_was_measured(
    measuring: Callable[[Measure], list[str]], monkeypatch: pytest.MonkeyPatch, backend: str, kernel: str
) -> None:
    model = network(WIDE)
    measuring(by_widths)
    monkeypatch.setattr(Source, "cut", lambda *_: None)
    tuning = tune(model, backend=backend)
    assert {trial.verdict for trial in tuning.trials} == {"unmeasured"}
    edits = fuse(model, plan=tuning.plan).edits
    assert [edit.kernel.partition(", since")[0] for edit in edits] == [kernel] * BLOCKS


def test_the_report_tells_that_no_tap_is_apart(
    measuring: Callable[[Measure], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter_folder(tmp_path, monkeypatch)
    onnx.save(network(WIDE), "in.onnx")
    measuring(by_widths)
    command = ("in.onnx", "out.onnx", "--tune", "--backend", "ort", "--no-bench", "--json", "r.json")
    result = repfuse(*command)
    assert result.exit_code == 0, result.output
    assert f"unsplit  {BLOCKS} places with no tap apart" in result.output
    assert [trial["unsplit"] for trial in json.loads(Path("r.json").read_text("utf-8"))["trials"]] == [
        True
    ] * 3


SPELLED = """
    a = Conv x wide
    b = Conv x point
    s = Add a b
    c = Add s three
    d = Clip c zero six
    m = Mul s d
    y = Div m six
"""
"""Branches, and a HardSwish as it is written before opset 14."""


def spelled() -> onnx.ModelProto:
    draw = np.random.default_rng(0).standard_normal
    constants = {
        "wide": draw((4, 4, 3, 3)),
        "point": draw((4, 4, 1, 1)),
        **{"zero": np.array(0.0), "three": np.array(3.0), "six": np.array(6.0)},
    }
    nodes = []
    for line in SPELLED.strip().splitlines():
        target, _, op, *inputs = line.split()
        pads = {"pads": [1] * 4} if "wide" in inputs else {}
        nodes.append(helper.make_node(op, inputs, [target], name=target, **pads))
    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4, 9, 9]) for name in "xy"]
    weights = [
        onnx.numpy_helper.from_array(each.astype(np.float32), name) for name, each in constants.items()
    ]
    graph = helper.make_graph(nodes, "spelled", value[:1], value[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7)


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("keep", [False, True])
def test_what_is_measured_is_what_fusing_makes(measuring: Callable[[Measure], list[str]], keep: bool) -> None:
    seen: list[onnx.ModelProto] = []

    def measure(models: Sequence[onnx.ModelProto], backend: str, whole: bool) -> list[float]:
        seen.extend(models[1:] if whole else models)
        return [1.5] * (len(models) - 1)

    measuring(measure)
    model = spelled()
    tuning = tune(model, backend="ort", keep_opset=keep)
    assert seen
    assert {each.opset_import[0].version for each in seen} == {11 if keep else 14}
    assert all(("HardSwish" in ops(each)) != keep for each in seen)
    kept = fuse(model, plan=tuning.plan, keep_opset=keep).model
    assert ops(kept) == (["Conv", "Add", "Clip", "Mul", "Div"] if keep else ["Conv", "HardSwish"])


@pytest.mark.parametrize(
    ("fast", "left"),
    [
        pytest.param({"HardSwish", "Clip"}, ["Conv", "HardSwish"], id="faster"),
        pytest.param({"Clip"}, ["Conv", "Conv", "Add", "Add", "Clip", "Mul", "Div"], id="HardSwish slower"),
    ],
)
def test_a_hard_swish_is_left_spelled_out_where_the_whole_is_slower_with_it(
    measuring: Callable[[Measure], list[str]], fast: set[str], left: list[str]
) -> None:
    measuring(lambda models, *_: [1.2 if fast & set(ops(each)) else 0.5 for each in models[1:]])
    model = spelled()
    assert ops(fuse(model, plan=tune(model, backend="ort").plan).model) == left


def test_the_command_line_keeps_the_opset_while_it_measures(
    measuring: Callable[[Measure], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter_folder(tmp_path, monkeypatch)
    onnx.save(spelled(), "in.onnx")
    versions: set[int] = set()

    def measure(models: Sequence[onnx.ModelProto], *_: object) -> list[float]:
        versions.update(model.opset_import[0].version for model in models)
        return [1.5] * (len(models) - 1)

    measuring(measure)
    result = repfuse("in.onnx", "out.onnx", "--tune", "--keep-opset", "--no-bench", "--backend", "ort")
    assert result.exit_code == 0, result.output
    assert versions == {11}


def test_equal_blocks_are_measured_once(measuring: Callable[[Measure], list[str]]) -> None:
    asked = measuring(by_nodes)
    tuning = tune(network(), backend="ort")
    assert len(asked) == tuning.measured == 2  # a block, and the whole
    assert len(tuning.trials) == BLOCKS


def test_measurements_are_kept(measuring: Callable[[Measure], list[str]], tmp_path: Path) -> None:
    cache = tmp_path / "measured.json"
    asked = measuring(by_nodes)
    first = tune(network(), cache=cache)
    assert asked
    asked.clear()
    second = tune(network(seed=1), cache=cache)  # other weights
    assert not asked
    assert second.measured == 0
    assert second.plan == first.plan
    assert second.trials == first.trials
    tune(network(), cache=cache, threads=2)
    assert asked
    kept = json.loads(cache.read_text("utf-8"))["measurements"].values()
    assert {entry["threads"] for entry in kept} == {1, 2}


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"format": 2, "measurements": {}}', '{"format": 1, "measurements": {"a": 1}}'],
)
def test_a_file_without_measurements_is_refused(tmp_path: Path, content: str) -> None:
    cache = tmp_path / "measured.json"
    cache.write_text(content, "utf-8")
    with pytest.raises(BadInputError, match=r"measured\.json: holds no measurements"):
        tune(network(), cache=cache)
    assert cache.read_text("utf-8") == content


def test_without_time_the_cost_model_decides() -> None:
    tuning = tune(network(), backend="ort", budget=1e-9)
    assert {trial.verdict for trial in tuning.trials} <= {"unmeasured", "faster", "same", "slower"}
    assert any(trial.verdict == "unmeasured" for trial in tuning.trials)


def test_what_takes_longer_than_was_expected_leaves_less_time_for_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, given = 0.0, []

    def measured(_: Meter, forms: Sequence[Form], *rest: float) -> list[tuple[float, float, float, float]]:
        nonlocal now
        now += 2.0
        given.append(rest[2])
        return [(1.5, 1.4, 1.6, 1.0)] * (len(forms) - 1)

    monkeypatch.setattr(Meter, "_measure", measured)
    monkeypatch.setattr(Meter, "pace", lambda *_: None)
    monkeypatch.setattr(tuning.time, "perf_counter", lambda: now)
    tune(network(), backend="all", budget=4.0)
    first, second, *_ = given
    assert (first, second) == (pytest.approx(0.7 * 4 / 2 / 2), pytest.approx((0.7 * 4 - 2) / 2))


def test_a_real_run(tmp_path: Path) -> None:
    model = network()
    onnx.save(model, tmp_path / "model.onnx")
    told: list[str] = []
    tuning = tune(tmp_path / "model.onnx", backend="ort", budget=0.5, on_progress=told.append)
    assert isinstance(tuning, Tuning)
    assert all(ratio.value > 0.2 for trial in tuning.trials for ratio in trial.ratios.values())
    assert any("s left" in line for line in told)
    fuse(model, plan=tuning.plan)


def test_a_model_without_groups_needs_no_time() -> None:
    model = network(Example("", ("conv3x3",), channels=(4, 4)))
    assert tune(model) == Tuning(Plan(), (), {}, 0)


def test_a_plan_of_nothing_fuses_nothing() -> None:
    model = network()
    result = fuse(model, plan=Plan())
    assert not result.changed


@pytest.mark.parametrize("balance", BALANCES)
def test_a_part_runs_and_has_the_shape_of_its_place(balance: float) -> None:
    model = network(STRIPS)
    types = types_of(model, {})
    (region, *_) = regions_of(model)
    part = Source(model, types).cut(region.inputs, region.outputs)
    assert part
    onnx.checker.check_model(part)
    outputs = OnnxRuntime().load(part, threads=1).run(make_inputs(part, count=1, seed=0)[0])
    assert {name: value.shape for name, value in outputs.items()} == {
        name: types[name][1] for name in region.outputs
    }
    assert all(np.isfinite(value).all() for value in outputs.values())


def test_extents_that_the_graph_computes_are_known() -> None:
    net = Net(4, (9, 8))
    pads = net.node("Mod", net.integers(0, 0, 3, 3, 0, 0, 4, 4), net.integers(2))
    padded = net.node("Pad", net.x, pads)
    model = net.model(net.conv(padded, 3, pads=[0] * 4))
    assert types_of(model, {})[padded] == (onnx.TensorProto.DOUBLE, (1, 4, 10, 9))


def half_of_the_channels(net: Net) -> str:
    """A Slice up to half of the channels, as the graph computes that from its input's shape."""
    moved = net.node("Relu", net.conv(net.x, 3))
    extents = net.node("Gather", net.node("Shape", moved), net.integers(1))
    half = net.node("Div", extents, net.integers(2))
    return net.node("Slice", moved, net.integers(0), half, net.integers(1))


def test_extents_that_the_graph_computes_from_extents_are_known() -> None:
    net = Net(4, (9, 8))
    half = half_of_the_channels(net)
    model = net.model(net.node("Relu", net.conv(half, 3, (2, 2))))
    types = types_of(model, {})
    assert types[half] == (onnx.TensorProto.DOUBLE, (1, 2, 9, 8))
    assert types[net.nodes[-1].output[0]] == (onnx.TensorProto.DOUBLE, (1, 2, 9, 8))


def test_what_only_its_shape_is_asked_of_is_no_end_of_a_part(
    measuring: Callable[[Measure], list[str]],
) -> None:
    net = Net(4, (9, 9), dtype=onnx.TensorProto.FLOAT)
    inner = net.conv(net.node("Relu", net.x), 3)
    extents = net.node("Slice", net.node("Shape", inner), net.integers(0), net.integers(2))
    flat = net.node("Reshape", inner, net.node("Concat", extents, net.integers(-1, 9), axis=0))
    model = net.model(net.node("Relu", net.node("Mul", flat, net.constant(0.5))))
    (region,) = regions_of(model)
    assert inner in region.outputs
    measuring(by_nodes)
    assert [trial.verdict for trial in tune(model, backend="ort").trials] == ["faster"]


def test_a_digest_is_of_structure() -> None:
    def cut(model: onnx.ModelProto) -> str:
        (region, *_) = regions_of(model)
        part = Source(model, types_of(model, {})).cut(region.inputs, region.outputs)
        assert part
        return digest(part)

    assert cut(network()) == cut(network(seed=1)) == cut(onnx.compose.add_prefix(network(), "other/"))
    assert cut(network()) != cut(network(STRIPS))
    larger = build(REPVGG, BRANCHES, extents=(13, 12), repeat=BLOCKS)
    assert cut(network()) != cut(larger)


def test_a_part_that_does_not_compute_what_it_should_is_none() -> None:
    model = network()
    (region, *_) = regions_of(model)
    source = Source(model, {**types_of(model, {}), "gone": types_of(model, {})[region.outputs[0]]})
    assert source.cut(region.inputs, region.outputs)
    assert source.cut(region.inputs, [*region.outputs, "gone"]) is None


def test_a_residual_that_follows_is_fed_and_not_computed() -> None:
    net = Net(4, (9, 9), dtype=onnx.TensorProto.FLOAT)
    far = net.node("Relu", net.conv(net.node("Relu", net.conv(net.x, 3)), 3))
    near = net.node("Relu", net.add(net.conv(net.x, 3), net.conv(net.x, 1)))
    model = net.model(net.add(near, far))
    (region,) = regions_of(model)
    source = Source(model, types_of(model, {}))
    ends, beside = source.followers(region.outputs, ())
    assert (ends, beside) == ((model.graph.output[0].name,), (far,))
    part = source.cut([*region.inputs, *beside], ends)
    assert part
    assert ops(part) == ["Conv", "Conv", "Add", "Relu", "Add"]


def test_what_another_part_may_do_away_with_does_not_follow() -> None:
    net = Net(4, (9, 9))
    first = net.node("Relu", net.add(net.conv(net.x, 3), net.conv(net.x, 1)))
    last = net.conv(net.per_channel("Add", net.per_channel("Mul", first)), 1)
    model = net.model(net.node("Relu", last))
    before, behind = regions_of(model)
    assert behind.inputs == (first,)
    assert len(behind.computed) == 3
    ends, _ = Source(model, types_of(model, {})).followers(before.outputs, before.computed | behind.computed)
    assert ends == (first,)


def test_groups_that_do_away_with_a_tensor_together_are_one_region() -> None:
    net = Net(64, (9, 9))
    scaled = net.per_channel("Mul", net.node("Relu", net.x))
    ends = [net.node("Relu", net.conv(scaled, 3, group=64)) for _ in range(2)]
    model = net.model(*ends)
    assert len(fuse(model).edits) == 2
    (region,) = regions_of(model)
    assert len(region.outputs) == 2
    assert scaled in region.computed


def test_forms_of_a_part_are_fed_alike(measuring: Callable[[Measure], list[str]]) -> None:
    net = Net(4, (9, 9), dtype=onnx.TensorProto.FLOAT)
    stays = net.conv(net.node("Relu", net.x), 1, (4, 16))
    follows = net.conv(stays, 1, (16, 16))  # merged with what is before it, which its other reader keeps
    model = net.model(net.add(net.node("Relu", follows), net.node("Sin", stays)))

    def measure(models: Sequence[onnx.ModelProto], backend: str, whole: bool) -> list[float]:
        taken = [[entry.name for entry in each.graph.input] for each in models]
        assert taken.count(taken[0]) == len(taken)
        feeds = make_inputs(models[0], count=1, seed=0)[0]
        for each in models:
            OnnxRuntime().load(each, threads=1).run(feeds)
        return [1.5] * (len(models) - 1)

    measuring(measure)
    assert tune(model, backend="ort").trials


def test_what_follows_element_by_element_comes_along() -> None:
    model = network()
    regions = regions_of(model)
    source = Source(model, types_of(model, {}))
    others = {name for region in regions for name in region.outputs}
    ends, beside = source.followers(regions[0].outputs, others)
    assert not beside
    assert ends != regions[0].outputs
    assert next(node.op_type for node in model.graph.node if node.output[0] == ends[0]) == "Relu"


def test_the_command_line(
    measuring: Callable[[Measure], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter_folder(tmp_path, monkeypatch)
    onnx.save(network(), "in.onnx")
    measuring(all_alike(0.9))
    result = repfuse(
        "in.onnx", "out.onnx", "--no-bench", "--tune", "--tune-cache", "m.json", "--json", "r.json"
    )
    assert result.exit_code == 0, result.output
    assert f"Tuned: {BLOCKS} places where something may be fused: {BLOCKS} slower" in result.output
    assert "0.900x on ONNX Runtime" in result.output
    assert "original  the whole model was not measured to be as fast" in result.output
    assert f"{BLOCKS} groups found: 0 fused" in result.output
    trials = json.loads(Path("r.json").read_text("utf-8"))["trials"]
    assert [trial["verdict"] for trial in trials] == ["slower"] * BLOCKS
    assert Path("m.json").exists()
    measuring(by_nodes)
    assert repfuse("in.onnx", "out.onnx", "--no-bench", "--tune").exit_code == 0
    assert len(onnx.load("out.onnx").graph.node) < len(onnx.load("in.onnx").graph.node)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tune-cache", "m.json"), "--tune-cache is for --tune"),
        (("--tune", "--tune-cache", "in.onnx"), "would overwrite"),
        (("--tune", "--tune-cache", "none/m.json"), "there is no folder 'none'"),
    ],
)
def test_a_cache_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    enter_folder(tmp_path, monkeypatch)
    onnx.save(network(), "in.onnx")
    result = repfuse("in.onnx", "out.onnx", *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_the_mean_over_backends_decides(measuring: Callable[[Measure], list[str]]) -> None:
    measuring(lambda models, backend, whole: [1.0 if backend == "ort" else 1.1] * (len(models) - 1))
    (trial, *_) = tune(network()).trials
    assert trial.verdict == "faster"
    assert math.isclose(math.prod(ratio.value for ratio in trial.ratios.values()), 1.1)
