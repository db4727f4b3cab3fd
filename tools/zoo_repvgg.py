"""The RepVGG line: a square kernel, a pointwise one, and the input."""

# mypy: allow-subclassing-any

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from zoo_blocks import Alpha, LinearBlock, PartlyMerged, Scale, Sum, conv, conv_bn, if_same, merged


def repvgg_raw_identity(c: int, o: int, s: int) -> LinearBlock:
    identity = if_same(c, o, s, nn.Identity())
    return LinearBlock([conv_bn(c, o, 3, s), conv_bn(c, o, 1, s), *identity], **merged(c, o, 3, s))


def csla(c: int, o: int, s: int) -> LinearBlock:
    branches = [nn.Sequential(conv(c, o, k, s), Scale(o)) for k in (3, 1)]
    return LinearBlock([*branches, *if_same(c, o, s, Scale(c))], nn.BatchNorm2d(o), **merged(c, o, 3, s))


def qarepvgg(c: int, o: int, s: int) -> LinearBlock:
    branches = [conv_bn(c, o, 3, s), conv(c, o, 1, s), *if_same(c, o, s, nn.Identity())]
    return LinearBlock(branches, nn.BatchNorm2d(o), **merged(c, o, 3, s))


def qarepvgg_avg(c: int, o: int, s: int) -> LinearBlock:
    """YOLOv6's QARepVGGBlockV2."""
    extra = if_same(c, o, s, nn.Identity(), nn.AvgPool2d(3, s, 1))
    return LinearBlock(
        [conv_bn(c, o, 3, s), conv(c, o, 1, s), *extra], nn.BatchNorm2d(o), **merged(c, o, 3, s)
    )


def qarepvgg_alpha(c: int, o: int, s: int) -> LinearBlock:
    """super-gradients: the pointwise kernel has a bias and a learned factor."""
    scaled = nn.Sequential(conv(c, o, 1, s, bias=True), Alpha())
    return LinearBlock(
        [conv_bn(c, o, 3, s), scaled, *if_same(c, o, s, nn.Identity())],
        nn.BatchNorm2d(o),
        **merged(c, o, 3, s),
    )


def qarepvgg_nested(c: int, o: int, s: int) -> LinearBlock:
    """QARepVGG's scaled variant: the pointwise kernel and the identity are added, normalized, and scaled."""
    inner = Sum([conv(c, o, 1, s), *if_same(c, o, s, nn.Identity())], nn.BatchNorm2d(o))
    return LinearBlock([conv_bn(c, o, 3, s), nn.Sequential(inner, Alpha())], **merged(c, o, 3, s))


def repconv_yolov7(c: int, o: int, s: int) -> LinearBlock:
    identity = if_same(c, o, s, nn.BatchNorm2d(c))
    return LinearBlock([*identity, conv_bn(c, o, 3, s), conv_bn(c, o, 1, s)], **merged(c, o, 3, s))


class Implicit(nn.Module):
    """YOLOv7's implicit knowledge: a learned tensor that is added (A) or multiplied (M)."""

    def __init__(self, channels: int, *, multiplied: bool) -> None:
        super().__init__()
        self.implicit = nn.Parameter(torch.rand(1, channels, 1, 1) + 0.5)
        self.multiplied = multiplied

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply or add, the learned tensor first."""
        return self.implicit * x if self.multiplied else self.implicit + x


def yolov7_head(c: int, o: int, s: int) -> nn.Module:
    """A RepConv and the detection layer behind it, between ImplicitA and ImplicitM."""
    layers = [Implicit(o, multiplied=False), conv(o, o, 1, bias=True), Implicit(o, multiplied=True)]
    head = LinearBlock([nn.Sequential(*layers)], **merged(o, o, 1, 1))
    return nn.Sequential(repconv_yolov7(c, o, s), nn.SiLU(), head)


def repconv_yolov9(c: int, o: int, s: int) -> LinearBlock:
    return LinearBlock([conv_bn(c, o, 3, s), conv_bn(c, o, 1, s)], **merged(c, o, 3, s))


def conv2(c: int, o: int, s: int) -> LinearBlock:
    """Ultralytics' Conv2: both kernels are added, then normalized together."""
    return LinearBlock([conv(c, o, 3, s), conv(c, o, 1, s)], nn.BatchNorm2d(o), **merged(c, o, 3, s))


def pp_yoloe(c: int, o: int, s: int) -> LinearBlock:
    scaled = nn.Sequential(conv_bn(c, o, 1, s), Alpha())
    return LinearBlock([conv_bn(c, o, 3, s), scaled], **merged(c, o, 3, s))


class BottleRep(nn.Module):
    """YOLOv6's residual with a learned factor around two RepVGG blocks."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers = [layer for _ in range(2) for layer in (repconv_yolov7(channels, channels, 1), nn.ReLU())]
        self.layers, self.alpha = nn.Sequential(*layers), Alpha()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add."""
        return self.layers(x) + self.alpha(x)


def bottlerep(c: int, o: int, s: int) -> nn.Module:
    return BottleRep(c) if c == o and s == 1 else repconv_yolov7(c, o, s)


class FrozenBN(nn.Module):
    """Normalization by frozen statistics, computed in forward, as detectors have it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "mean", "var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale and shift."""
        scale = self.weight.view(1, -1, 1, 1) * (self.var.view(1, -1, 1, 1) + 1e-5).rsqrt()
        return x * scale + (self.bias.view(1, -1, 1, 1) - self.mean.view(1, -1, 1, 1) * scale)


def frozen(c: int, o: int, s: int) -> LinearBlock:
    """RT-DETR's and DAMO-YOLO's block under frozen statistics."""
    branches = [nn.Sequential(conv(c, o, k, s), FrozenBN(o)) for k in (3, 1)]
    return LinearBlock(branches, **merged(c, o, 3, s))


def katago(c: int, o: int, s: int) -> nn.Module:
    """padding="same", which exports as auto_pad; the normalization behind has no kernel of its own to go to."""
    if s != 1:
        return conv_bn(c, o, 3, s)
    branches = [conv(c, o, k, padding="same") for k in (5, 1)]
    return LinearBlock(branches, nn.BatchNorm2d(o), **merged(c, o, 5, 1))


def rsbb(c: int, o: int, s: int) -> PartlyMerged:
    """RepSPKBlock of wespeaker. One 5x5 for all, which its source deploys, has 25 taps in place of 18."""
    branches = [conv_bn(c, o, 3, s), conv_bn(c, o, 3, s, dilation=2, padding=2)]
    identity = if_same(c, o, s, nn.BatchNorm2d(c))
    dense = ((0, 2) if identity else (0,), merged(c, o, 3, s))
    return PartlyMerged([*branches, *identity], [dense, ((1,), None)])


def repvgg_1d(c: int, o: int, s: int) -> LinearBlock:
    """For sound: RepVGG's block over one axis, of kernels 7, 3 and 1."""
    branches = [
        nn.Sequential(nn.Conv1d(c, o, k, s, k // 2, bias=False), nn.BatchNorm1d(o)) for k in (7, 3, 1)
    ]
    return LinearBlock([*branches, *if_same(c, o, s, nn.BatchNorm1d(c))], **merged(c, o, (7,), s))


class Causal(nn.Module):
    """Pads the past only, then convolves."""

    def __init__(self, c: int, o: int, k: int, s: int) -> None:
        super().__init__()
        self.conv, self.past = nn.Conv1d(c, o, k, s, bias=False), k - 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pad and convolve."""
        return self.conv(functional.pad(x, (self.past, 0)))


def repvgg_causal(c: int, o: int, s: int) -> LinearBlock:
    branches = [nn.Sequential(Causal(c, o, k, s), nn.BatchNorm1d(o)) for k in (5, 3, 1)]
    geometry: dict[str, Any] = merged(c, o, (5,), s, padding=0, border=(4, 0))
    return LinearBlock([*branches, *if_same(c, o, s, nn.BatchNorm1d(c))], **geometry)


def repvgg_3d(c: int, o: int, s: int) -> LinearBlock:
    branches = [nn.Sequential(nn.Conv3d(c, o, k, s, k // 2, bias=False), nn.BatchNorm3d(o)) for k in (3, 1)]
    return LinearBlock([*branches, *if_same(c, o, s, nn.BatchNorm3d(c))], **merged(c, o, (3, 3, 3), s))
