"""Export networks of Hugging Face's transformers as ONNX files, with random weights and as they were trained.

    pip install torch torchvision timm transformers
    python tools/export_transformers.py FOLDER [--model NAME ...]

transformers has no code that merges the branches of RT-DETR, D-FINE, TextNet, PP-LCNetV3 ..., so what is exported
from it has them all. Each network is of the size that its configuration has by default.
"""

# mypy: allow-subclassing-any

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
import zoo_timm  # noqa: F401  # for what torchvision lacks
from torch import nn
from zoo_weights import images, randomize


class Network(NamedTuple):
    """A class of transformers, and the height and width of the images that it is exported for."""

    kind: str
    extent: int


NETWORKS = {
    "d_fine": Network("DFineForObjectDetection", 320),
    "deimv2": Network("Deimv2ForObjectDetection", 320),
    "depth_anything": Network("DepthAnythingForDepthEstimation", 224),
    "levit": Network("LevitForImageClassification", 224),
    "poolformer": Network("PoolFormerForImageClassification", 224),
    "pp_doclayout_v3": Network("PPDocLayoutV3ForObjectDetection", 320),
    "pp_lcnet_v3": Network("PPLCNetV3Backbone", 224),
    "pp_ocrv5_mobile_det": Network("PPOCRV5MobileDetForObjectDetection", 320),
    "pp_ocrv5_mobile_rec": Network("PPOCRV5MobileRecModel", 320),
    "rt_detr": Network("RTDetrForObjectDetection", 320),
    "rt_detr_v2": Network("RTDetrV2ForObjectDetection", 320),
    "swiftformer": Network("SwiftFormerForImageClassification", 224),
    "textnet": Network("TextNetForImageClassification", 224),
}


class Tensors(nn.Module):
    """A network whose outputs are the first few tensors of floats in what it gives."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run it."""
        return tuple(_floats(self.network(pixel_values=pixel_values, return_dict=True)))[:4]


def _floats(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if value.dtype.is_floating_point:
            yield value
    elif isinstance(value, dict):
        yield from _floats(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _floats(each)


def export(name: str, path: Path) -> None:
    """Export one of the networks."""
    torch.manual_seed(0)
    kind, extent = getattr(transformers, NETWORKS[name].kind), NETWORKS[name].extent
    network = Tensors(kind(kind.config_class()))
    randomize(network, images(4, extent))
    torch.onnx.export(
        network, (images(1, extent),), path, opset_version=17, dynamo=False, input_names=["images"]
    )


def main() -> None:
    """Export them all, or those that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", nargs="+", choices=sorted(NETWORKS), default=sorted(NETWORKS))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.model:
        export(name, options.folder / f"{name}.onnx")
        print(name, flush=True)


if __name__ == "__main__":
    main()
