"""Export the model zoo: real training-time models, from timm and in plain torch, as ONNX files.

Each model is exported in train form (un-fused, eval mode, weights and BatchNormalization statistics drawn at
random and conditioned so that the answer follows the input). The deploy form, as the model's own source makes
it, is exported alike, and its node counts go beside those of the train form into OUT_DIR/expected.json. The
tool stops if the two forms do not compute the same.

    pip install torch torchvision timm onnxscript    # the CPU build of torch will do
    python tools/export_zoo.py OUT_DIR --model mobileone_s0 --flavour ts

Nothing is downloaded: all weights are random. repfuse itself never needs torch.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import zoo_blocks as blocks
import zoo_onnx
import zoo_timm
from torch import nn
from zoo_families import FAMILIES, Row
from zoo_weights import images, randomize

FLAVOURS: dict[str, dict[str, Any]] = {
    "ts": {"dynamo": False},
    "dy": {"dynamo": True, "external_data": False, "verbose": False},
    "raw": {
        "dynamo": False,
        "training": torch.onnx.TrainingMode.PRESERVE,
        "do_constant_folding": False,
    },
    "dyraw": {"dynamo": True, "optimize": False, "external_data": False, "verbose": False},
}
"""Arguments of `torch.onnx.export`: the legacy exporter, the dynamo exporter, and each without optimization."""


@dataclass(frozen=True)
class Model:
    """A row of the zoo.

    Attributes:
        name: What `--model` calls it.
        width: What `--width` calls it.
        extent: The height and width of the input, whose shape is (1, 3, extent, extent).
        build: Makes the model in train form.
        deploy: Makes the deploy form of a model in train form.
    """

    name: str
    width: str
    extent: int
    build: Callable[[], nn.Module]
    deploy: Callable[[nn.Module], nn.Module]

    @property
    def file(self) -> str:
        """The file's name without flavour."""
        return self.name if self.width == "full" else f"{self.name}-{self.width}"


def _timm(name: str, width: str, extent: int, build: Callable[..., nn.Module], **options: Any) -> Model:
    return Model(name, width, extent, partial(build, name, **options), zoo_timm.deployed)


def _torch(row: Row) -> list[Model]:
    return [
        Model(row.family.__name__, width, extent, partial(blocks.network, *row, c), blocks.deployed)
        for width, extent, c in (("narrow", 32, 8), ("full", 112, 64))
    ]


_BYOB = ("repvgg_a0", "repvgg_b1g4", "mobileone_s0", "mobileone_s4")
_FULL = (*_BYOB, "repvit_m0_9", "fastvit_t8", "repghostnet_100", "densenet121")
_REPVGG: dict[str, Any] = {"depths": (1, 2, 2, 1), "widths": (1 / 8, 1 / 8, 1 / 16, 1 / 16)}
_SLIM = (1 / 8, 1 / 16, 1 / 16, 1 / 32)
_QUARTER = (1 / 4, 1 / 4, 1 / 4, 1 / 2)
_REPVIT: dict[str, Any] = {"embed_dim": (8, 8, 16, 16), "depth": (1, 1, 2, 1), "num_classes": 10}
_DENSENET: dict[str, Any] = {"growth_rate": 8, "block_config": (1, 2, 1, 1)}
_FASTVIT: dict[str, Any] = {"embed_dims": (8, 8, 16, 16), "layers": (1, 1, 1, 1), "num_classes": 10}

ZOO: list[Model] = [
    *(_timm(name, "full", 224, zoo_timm.timm_model) for name in _FULL),
    _timm("repvgg_a0", "narrow", 32, zoo_timm.repvgg, **_REPVGG),
    _timm("repvgg_b1g4", "narrow", 32, zoo_timm.repvgg, **_REPVGG, groups=4),
    _timm("mobileone_s0", "narrow", 32, zoo_timm.mobileone, widths=_SLIM, depths=(1, 2, 1, 1), copies=4),
    _timm("mobileone_s0", "quarter", 224, zoo_timm.mobileone, widths=_QUARTER, copies=4),
    _timm(
        "mobileone_s4", "narrow", 32, zoo_timm.mobileone, widths=_SLIM, depths=(1, 1, 2, 1), se=(0, 0, 1, 1)
    ),
    _timm("repvit_m0_9", "narrow", 64, zoo_timm.timm_model, **_REPVIT),
    _timm("fastvit_t8", "narrow", 64, zoo_timm.timm_model, **_FASTVIT),
    _timm("densenet121", "narrow", 64, zoo_timm.timm_model, **_DENSENET, num_classes=10),
    Model("repghostnet_100", "narrow", 32, zoo_timm.repghost_narrow, zoo_timm.deployed),
    Model("ghostnetv3", "narrow", 64, zoo_timm.ghostnetv3_narrow, zoo_timm.deployed),
    *(model for row in FAMILIES for model in _torch(row)),
]


def _deploy_form(row: Model, train: nn.Module, shown: torch.Tensor) -> nn.Module:
    """Make the deploy form; stop if it is no yardstick, or if the answer does not follow the input.

    In float64, since a deep network makes rounding errors of float32 grow a thousandfold.
    """
    exact = copy.deepcopy(train).double()
    deploy = row.deploy(exact).double().eval()
    with torch.no_grad():
        expected, actual = exact(shown.double()), deploy(shown.double())
    error, movement = (expected - actual).abs().max(), (expected - expected.flip(0)).abs().max()
    if not error < 1e-4 * movement:  # timm rounds some to float32 on the way
        raise SystemExit(
            f"{row.name}: train and deploy form differ by {error:.2g}, while inputs move the output by "
            f"{movement:.2g}; this model is no yardstick"
        )
    return deploy.float()


def export(model: nn.Module, extent: int, flavour: str, opset: int) -> onnx.ModelProto:
    """Export a model for inputs (1, 3, extent, extent) without a trace of this machine in it.

    The opset is the legacy exporter's: dynamo's writes the one that it is made for, and has others converted.
    """
    arguments = FLAVOURS[flavour]
    if not arguments["dynamo"]:
        arguments = {**arguments, "opset_version": opset}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target = Path(folder, "model.onnx")
        image = torch.zeros(1, 3, extent, extent)
        torch.onnx.export(model.eval(), (image,), target, **arguments)
        exported = onnx.load(target)
    zoo_onnx.anonymize(exported)
    return exported


def _runs(model: onnx.ModelProto, extent: int) -> bool:
    """Whether ONNX Runtime runs an export: the dynamo exporter's of 3-D convolutions with folded biases is none."""
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString())
        session.run(None, {model.graph.input[0].name: np.zeros((1, 3, extent, extent), np.float32)})
    except Exception as error:  # of kinds that ONNX Runtime does not make public
        print(str(error).splitlines()[0])
        return False
    return True


def _write(model: onnx.ModelProto, target: Path, *, strip: bool) -> None:
    if strip:
        zoo_onnx.strip(model)
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, target)


def add_to_zoo(row: Model, options: argparse.Namespace) -> None:
    """Export one row of the zoo in each flavour asked for, and record its counts."""
    torch.manual_seed(options.seed)
    train = row.build()
    shown = images(16, row.extent)
    randomize(train, shown)
    deploy = _deploy_form(row, train, shown)
    record = options.out_dir / "expected.json"
    for flavour in options.flavour:
        key = f"{row.file}.{flavour}"
        forms = {
            form: export(module, row.extent, flavour, options.opset)
            for form, module in (("train", train), ("deploy", deploy))
        }
        if not _runs(forms["train"], row.extent):
            print(f"{key}: left out, since what the exporter writes does not run")
            continue
        counts = {form: zoo_onnx.count(model) for form, model in forms.items()}
        _write(forms["train"], options.out_dir / f"{key}.onnx", strip=options.strip)
        if options.deploy:
            _write(forms["deploy"], options.out_dir / "deploy" / f"{key}.onnx", strip=options.strip)
        known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        known = dict(sorted({**known, key: counts}.items()))
        record.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        print(f"{key}: {counts['train']['nodes']} nodes, {counts['deploy']['nodes']} in deploy form")


def _arguments() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    names = list(dict.fromkeys(row.name for row in ZOO))
    widths = list(dict.fromkeys(row.width for row in ZOO))
    add = parser.add_argument
    add("out_dir", type=Path, metavar="OUT_DIR", help="where to write; expected.json there is added to")
    add("--model", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {', '.join(names)}")
    add(
        "--flavour",
        nargs="+",
        choices=FLAVOURS,
        default=list(FLAVOURS),
        help="exporters to use (default: all)",
    )
    add("--width", choices=widths, default="full", help="how wide and deep (default: full)")
    add("--opset", type=int, default=17, help="of the flavours ts and raw (default: 17)")
    add("--seed", type=int, default=0, help="of the random weights (default: 0)")
    add("--strip", action="store_true", help="leave out the weights (tests/weights.py draws them again)")
    add("--deploy", action="store_true", help="write the deploy forms too, to OUT_DIR/deploy")
    return parser.parse_args()


def main() -> None:
    """Run the command line."""
    options = _arguments()
    rows = [row for row in ZOO if row.name in options.model and row.width == options.width]
    if not rows:
        raise SystemExit(f"no model of {', '.join(options.model)} comes in width {options.width}")
    for row in rows:
        add_to_zoo(row, options)


if __name__ == "__main__":
    main()
