"""Kernels of several extents and dilations beside each other: strips, large kernels, copies of one kernel."""

# mypy: allow-subclassing-any

from __future__ import annotations

import torch
from torch import nn
from zoo_blocks import LinearBlock, PartlyMerged, Residual, conv, conv_bn, if_same, merged


class Crop(nn.Module):
    """Cuts rows and columns off both sides: what ACNet does where a padding would be negative."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Crop."""
        return x[:, :, self.rows : x.shape[2] - self.rows, self.columns : x.shape[3] - self.columns]


class Stack(nn.Module):
    """Parts of the channels (or, if `copied`, copies of them) through a module each, and stacked again."""

    def __init__(self, parts: list[nn.Module], *, copied: bool = False) -> None:
        super().__init__()
        self.parts, self.copied = nn.ModuleList(parts), copied

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Split or copy, and stack."""
        pieces = [x] * len(self.parts) if self.copied else torch.chunk(x, len(self.parts), dim=1)
        return torch.cat([part(piece) for part, piece in zip(self.parts, pieces, strict=True)], dim=1)


def acnet(c: int, o: int, s: int, k: int = 3, p: int = 1) -> LinearBlock:
    shift = p - k // 2  # the strips' padding across; where it is negative their input is cropped
    wide, crop = max(shift, 0), max(-shift, 0)
    column = conv_bn(c, o, (k, 1), s, padding=(p, wide))
    row = conv_bn(c, o, (1, k), s, padding=(wide, p))
    if crop:
        column, row = nn.Sequential(Crop(0, crop), column), nn.Sequential(Crop(crop, 0), row)
    return LinearBlock([conv_bn(c, o, k, s, padding=p), column, row], **merged(c, o, k, s, padding=p))


def acnet_crop(c: int, o: int, s: int) -> LinearBlock:
    return acnet(c, o, s, k=5, p=1)


def textnet(c: int, o: int, s: int) -> nn.Module:
    """FAST's RepConvLayer with each of its kernels: a strip has a pointwise kernel for what it has no strip of."""

    def layer(c: int, o: int, kh: int, kw: int, s: int) -> LinearBlock:
        column = [conv_bn(c, o, (kh, 1), s)] if kw != 1 else []
        row = [conv_bn(c, o, (1, kw), s)] if kh != 1 else []
        identity = if_same(c, o, s, nn.BatchNorm2d(c))
        return LinearBlock(
            [conv_bn(c, o, (kh, kw), s), *column, *row, *identity], **merged(c, o, (kh, kw), s)
        )

    return nn.Sequential(
        layer(c, o, 3, 3, s), nn.ReLU(), layer(o, o, 1, 3, 1), nn.ReLU(), layer(o, o, 3, 1, 1)
    )


def _small(c: int, s: int) -> LinearBlock:
    """RepNeXt's RepDWConvS: at stride 2 one strip comes behind the other."""
    corners = nn.Sequential(conv(c, c, 2, s, groups=c, dilation=2, padding=1), nn.BatchNorm2d(c))
    strips = [conv_bn(c, c, k, s, groups=c) for k in ((1, 3), (3, 1))]
    if s == 2:
        rows = nn.Conv2d(c, c, (1, 3), (1, 2), (0, 1), groups=c, bias=False)
        columns = nn.Conv2d(c, c, (3, 1), (2, 1), (1, 0), groups=c, bias=False)
        strips = [nn.Sequential(rows, columns, nn.BatchNorm2d(c))]
    return LinearBlock([conv_bn(c, c, 3, s, groups=c), *strips, corners], **merged(c, c, 3, s, groups=c))


def _medium(c: int, s: int) -> LinearBlock:
    """RepNeXt's RepDWConvM: a 7x7, and rectangles and strips within it."""

    def strips(k: int) -> nn.Sequential:
        rows = nn.Conv2d(c, c, (1, k), (1, s), (0, k // 2), groups=c, bias=False)
        columns = nn.Conv2d(c, c, (k, 1), (s, 1), (k // 2, 0), groups=c, bias=False)
        return nn.Sequential(rows, columns, nn.BatchNorm2d(c))

    branches = [conv_bn(c, c, k, s, groups=c) for k in (7, (5, 3), (3, 5))]
    return LinearBlock([*branches, strips(7), strips(5)], **merged(c, c, 7, s, groups=c))


def repnext(c: int, o: int, s: int) -> nn.Module:
    if c != o:
        return conv_bn(c, o, 3, s)
    return nn.Sequential(_small(c, s), conv(c, c, 1), nn.GELU(), conv_bn(c, c, 1))


def repnext_chunk(c: int, o: int, s: int) -> nn.Module:
    """RepNeXt's ChunkConv, whose long strips are no Conv, and its CopyConv at stride 2."""
    if s != 1:
        return nn.Sequential(Stack([_small(c, 2), _medium(c, 2)], copied=True), conv_bn(2 * c, o, 1))
    g = c // 4
    strips = [conv(g, g, k, groups=g, bias=True) for k in ((1, 11), (11, 1))]
    mixer = Stack([nn.Identity(), _small(g, 1), _medium(g, 1), nn.Sequential(*strips)])
    return nn.Sequential(mixer, conv_bn(c, c, 1), nn.GELU(), conv_bn(c, c, 1))


def yolov10(c: int, o: int, s: int) -> nn.Module:
    if c != o:
        return conv_bn(c, o, 3, s)
    branches = [conv_bn(c, c, k, s, groups=c) for k in (7, 3)]
    return nn.Sequential(LinearBlock(branches, **merged(c, c, 7, s, groups=c)), nn.SiLU(), conv_bn(c, c, 1))


def replknet(c: int, o: int, s: int) -> nn.Module:
    if s != 1:
        return nn.Sequential(conv_bn(c, o, 1), nn.ReLU(), conv_bn(o, o, 3, s, groups=o))
    large = LinearBlock([conv_bn(c, c, k, groups=c) for k in (13, 5)], **merged(c, c, 13, 1, groups=c))
    return Residual(nn.BatchNorm2d(c), conv_bn(c, c, 1), nn.ReLU(), large, nn.ReLU(), conv_bn(c, c, 1))


_DILATED = {
    5: ((5, 1), (3, 1), (3, 2)),
    7: ((7, 1), (5, 1), (3, 2), (3, 3)),
    9: ((9, 1), (5, 1), (5, 2), (3, 3), (3, 4)),
    13: ((13, 1), (5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
}
"""UniRepLKNet's kernels and their dilations for each large kernel."""


def _dilated(c: int, k: int) -> LinearBlock:
    branches = [conv_bn(c, c, each, groups=c, dilation=d, padding=each // 2 * d) for each, d in _DILATED[k]]
    return LinearBlock(branches, nn.BatchNorm2d(c), **merged(c, c, k, 1, groups=c))


def unireplknet(c: int, o: int, s: int, k: int = 7) -> nn.Module:
    if s != 1:
        return conv_bn(c, o, 3, s)
    return Residual(_dilated(c, k), conv(c, 2 * c, 1, bias=True), nn.GELU(), conv_bn(2 * c, c, 1))


def unireplknet_5(c: int, o: int, s: int) -> nn.Module:
    return unireplknet(c, o, s, 5)


def unireplknet_9(c: int, o: int, s: int) -> nn.Module:
    return unireplknet(c, o, s, 9)


def unireplknet_13(c: int, o: int, s: int) -> nn.Module:
    return unireplknet(c, o, s, 13)


class SqueezeExcite(nn.Module):
    """Weights of channels, from their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        small = max(channels // 4, 1)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, small, 1),
            nn.ReLU(),
            nn.Conv2d(small, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Weight."""
        return x * self.gate(x)


def replkfpn(c: int, o: int, s: int) -> nn.Module:
    """PP-OCRv6's neck: dilated kernels, a pointwise one, squeeze and excitation."""
    if s != 1:
        return conv_bn(c, o, 3, s)
    return nn.Sequential(_dilated(c, 7), conv(c, o, 1), Residual(SqueezeExcite(o)))


def slak(c: int, o: int, s: int) -> nn.Module:
    """One 51x51 would have five times the taps of both strips; the 5x5 goes into one of them."""
    if s != 1:
        return conv_bn(c, o, 3, s)
    branches = [conv_bn(c, c, k, groups=c) for k in ((51, 5), (5, 51), 5)]
    strip = merged(c, c, (51, 5), 1, groups=c)
    return Residual(
        PartlyMerged(branches, [((0, 2), strip), ((1,), None)]),
        nn.GELU(),
        conv_bn(c, c, 1),
    )


class Reused(nn.Module):
    """PKINet: a padded kernel, and more kernels of its output, which is added to them."""

    def __init__(self, first: nn.Module, then: nn.Module) -> None:
        super().__init__()
        self.first, self.then = first, then

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve twice."""
        return self.then(self.first(x))


def pkinet(c: int, o: int, s: int) -> nn.Module:
    if s != 1:
        return conv_bn(c, o, 3, s)
    kernels = [conv(c, c, k, groups=c, bias=True) for k in (5, 7, 9, 11)]
    inner = LinearBlock([nn.Identity(), *kernels], **merged(c, c, 11, 1, groups=c))
    return nn.Sequential(Reused(conv(c, c, 3, groups=c, bias=True), inner), conv_bn(c, o, 1))


def pkinet_v2(c: int, o: int, s: int) -> nn.Module:
    """One 19x19, which its source deploys, has 361 taps in place of 130; kernels of one dilation go together."""
    if s != 1:
        return conv_bn(c, o, 3, s)
    strips = [conv(c, c, k, groups=c) for k in ((1, 19), (19, 1))]
    dilated = [conv_bn(c, c, k, groups=c, dilation=3, padding=k // 2 * 3) for k in (7, 5, 3)]
    branches = [nn.Sequential(*strips, nn.BatchNorm2d(c)), *dilated, conv_bn(c, c, 3, groups=c)]
    spread = merged(c, c, 7, 1, groups=c, dilation=3, padding=9)
    mixer = PartlyMerged(branches, [((0,), None), ((1, 2, 3), spread), ((4,), None)])
    return nn.Sequential(conv(c, c, 5, groups=c, bias=True), mixer, conv_bn(c, o, 1))
