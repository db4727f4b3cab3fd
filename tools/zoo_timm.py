"""timm's models, whole and narrow, with random weights, also where torch lacks torchvision's operators."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

_declared: list[Any] = []  # a torch.library is undone when it is collected


def _declare_torchvision_operators() -> None:
    """Declare the operators that torchvision describes on import but a CPU-only torch may lack."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("timm needs torchvision: pip install torchvision")
    source = Path(spec.origin).with_name("_meta_registrations.py").read_text(encoding="utf-8")
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in re.findall(r'register_fake\("torchvision::(\w+)"\)', source):
        library.define(f"{name}(Tensor x) -> Tensor")
    _declared.append(library)


try:
    import torchvision  # noqa: F401  # timm imports it
except RuntimeError:  # operator torchvision::nms does not exist
    _declare_torchvision_operators()

import timm  # noqa: E402  # after what it needs
from timm.models import byobnet, ghostnet, repghost  # noqa: E402


def timm_model(name: str, **options: Any) -> nn.Module:
    """One of timm's models; `options` are its own, and the smaller they are the narrower it is."""
    return timm.create_model(name, pretrained=False, **options)


def repvgg(name: str, *, depths: tuple[int, ...], widths: tuple[float, ...], groups: int = 0) -> nn.Module:
    """A RepVGG of the given depths; stage i has 64 * 2**i * widths[i] channels."""
    blocks = byobnet._rep_vgg_bcfg(d=depths, wf=widths, groups=groups)
    return timm_model(name, num_classes=10, blocks=blocks, stem_chs=int(64 * widths[0]))


def mobileone(
    name: str,
    *,
    depths: tuple[int, ...] = (2, 8, 10, 1),
    widths: tuple[float, ...],
    se: tuple[int, ...] = (0, 0, 0, 0),
    copies: int = 1,
) -> nn.Module:
    """A MobileOne of the given depths; the last se[i] blocks of stage i have squeeze and excitation."""
    blocks = byobnet._mobileone_bcfg(d=depths, wf=widths, se_blocks=se, num_conv_branches=copies)
    return timm_model(name, num_classes=10, blocks=blocks, stem_chs=int(64 * widths[0]))


def repghost_narrow() -> nn.Module:
    """A RepGhostNet of six blocks of all kinds (5x5, stride 2, squeeze and excitation), with a small head."""
    cfgs = [
        [[3, 8, 16, 0, 1]],
        [[3, 24, 24, 0, 2]],
        [[3, 36, 24, 0, 1]],
        [[5, 36, 40, 0.25, 2]],
        [[5, 60, 40, 0.25, 1]],
        [[3, 60, 40, 0, 1]],
    ]
    model = repghost.RepGhostNet(cfgs, num_classes=10, width=0.5)
    model.conv_head = nn.Conv2d(model.num_features, 32, 1)
    model.classifier = nn.Linear(32, 10)
    return model


def ghostnetv3_narrow() -> nn.Module:
    """A GhostNetV3 of six blocks of all kinds."""
    cfgs = [
        [[3, 16, 16, 0, 1]],
        [[3, 24, 24, 0, 2]],
        [[3, 36, 24, 0, 1]],
        [[5, 36, 40, 0.25, 2]],
        [[5, 60, 40, 0.25, 1]],
    ]
    return ghostnet.GhostNet(cfgs, num_classes=10, width=0.5, version="v3")


def deployed(model: nn.Module) -> nn.Module:
    """Copy a model in its deploy form, as timm makes it."""
    return timm.utils.model.reparameterize_model(model)
