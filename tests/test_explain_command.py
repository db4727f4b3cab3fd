"""`repfuse explain`: each group op by op."""

from pathlib import Path

import onnx
import pytest
from commandline import BLOCKED, PLAIN, enter_folder, model, repfuse
from nets import Net
from onnx import TensorProto

from repfuse.graph.view import scopes
from repfuse.model import model_io
from repfuse.reporting import anatomy
from repfuse.reporting.anatomy import Branch, graph_of

MODELS = Path(__file__).parent / "models"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return enter_folder(tmp_path, monkeypatch)


def explained(*arguments: str) -> list[str]:
    result = repfuse("explain", *arguments)
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def test_what_can_be_fused(folder: Path) -> None:
    assert explained("in.onnx") == [
        "in.onnx: 1 group, 1 can be fused, 0 cannot",
        "└── fused  Add 'join'",
        "    ├── RepConv: 3 nodes became Conv 'join/fused_conv', 3x3 4->4",
        "    ├── 3 nodes -> 1; multiply-adds for each position: 160 -> 144",
        "    └── Add 'join'",
        "        ├── 'x' -> Conv 'conv3' 3x3 4->4",
        "        └── 'x' -> Conv 'conv1' 1x1 4->4",
    ]


def test_what_stands_in_the_way(folder: Path) -> None:
    onnx.save(model(*BLOCKED), "in.onnx")
    assert explained("in.onnx") == [
        "in.onnx: 1 group, 0 can be fused, 1 cannot",
        "└── refused  Add 'join'",
        "    ├── Relu 'relu' is not linear; it stands between a branch and the join",
        "    └── Add 'join'",
        "        ├── 'a'",
        "        └── 'a' -> Relu 'relu' (is not linear)",
    ]


def test_what_is_no_group(folder: Path) -> None:
    net = Net(4, dtype=TensorProto.FLOAT)
    joined = net.add(net.conv(net.x), net.conv(net.x, 1))
    other = net.conv(net.input("z", 4, (7, 6)))
    onnx.save(net.model(net.add(net.node("Relu", net.conv(joined)), other)), "in.onnx")
    assert explained("in.onnx") == [
        "in.onnx: 1 group, 1 can be fused, 0 cannot; 2 other joins and sequences stay",
        "├── fused  Add 'add_3'",
        "│   ├── RepConv: 3 nodes became Conv 'add_3/fused_conv', 3x3 4->4",
        "│   ├── 3 nodes -> 1; multiply-adds for each position: 160 -> 144",
        "│   └── Add 'add_3'",
        "│       ├── 'x' -> Conv 'conv_1' 3x3 4->4",
        "│       └── 'x' -> Conv 'conv_2' 1x1 4->4",
        "├── kept  Conv 'conv_5'",
        "│   ├── follows the Conv in place of Add 'add_3' linearly: Conv 'conv_5' pads with zeros what an op "
        "before it computes from across the border; merging would cost 1.28 times as much",
        "│   └── 'x' -> Add 'add_3' (fused: 3x3 4->4) -> Conv 'conv_5' 3x3 4->4",
        "└── kept  Add 'add_7'",
        "    ├── its operands follow from different tensors, those of Relu 'relu_6', 'z'",
        "    └── Add 'add_7'",
        "        ├── 'conv_5' -> Relu 'relu_6' (is not linear)",
        "        └── 'z' -> Conv 'conv_4' 3x3 4->4",
    ]
    assert explained("in.onnx", "--node", "conv_5")[1].endswith("kept  Conv 'conv_5'")


def test_nothing_to_explain(folder: Path) -> None:
    onnx.save(model(*PLAIN), "in.onnx")
    assert explained("in.onnx") == ["in.onnx: 0 groups, 0 can be fused, 0 cannot"]


@pytest.mark.parametrize("name", sorted(path.name for path in MODELS.glob("*-narrow.*.onnx")))
def test_every_group_of_real_networks_has_its_story(name: str) -> None:
    stories = anatomy.explain(MODELS / name)
    for story in stories:
        nodes = story.whole.nodes
        assert story.remark.node.split("'")[1] in nodes
        if story.remark.blocker:
            assert story.remark.blocker in _texts(story.whole) or story.remark.blocker in story.remark.message


def _texts(branch: Branch) -> str:
    return "\n".join([branch.text, *map(_texts, branch.parts)])


def test_the_reason_stands_beside_the_node() -> None:
    stories = anatomy.explain(MODELS / "fastvit_t8-narrow.ts.onnx")
    texts = "\n".join(_texts(story.whole) for story in stories)
    assert "is part of a GELU, which runtimes run as one)" in texts


@pytest.mark.parametrize("name", ["conv1", "b", "join"])
def test_a_node_finds_its_group(folder: Path, name: str) -> None:
    assert explained("in.onnx", "--node", name)[1] == "└── fused  Add 'join'"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["in.onnx", "--node", "conv2"], "has no such node; do you mean 'conv"),
        (["in.onnx", "--node", "end"], "is in no group"),
        (["no_such.onnx"], "no such file"),
        ([], "Missing argument"),
    ],
)
def test_bad_usage(folder: Path, arguments: list[str], words: str) -> None:
    result = repfuse("explain", *arguments)
    assert (result.exit_code, "Traceback" in result.output) == (2, False)
    assert words in result.output


@pytest.mark.parametrize("file", ["repvit_m0_9-narrow.ts.onnx", "dbb-narrow.dy.onnx"])
def test_the_view_and_onnx_graphsurgeon_agree_who_makes_and_uses_a_tensor(file: str) -> None:
    (scope, *_) = scopes(model_io.read(MODELS / file))
    nodes = graph_of(scope)
    positions = {id(node): position for position, node in enumerate(nodes)}
    tensors = {tensor.name: tensor for node in nodes for tensor in (*node.inputs, *node.outputs)}
    assert len(tensors) > len(nodes)
    for name, tensor in tensors.items():
        makers = [positions[id(node)] for node in tensor.inputs]
        assert [scope.producer(name)] == (makers or [None])
        assert list(scope.consumers(name)) == [positions[id(node)] for node in tensor.outputs if name]
