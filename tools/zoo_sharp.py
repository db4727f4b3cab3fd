"""Super-resolution: blocks that widen and narrow, whose padding is in front or holds a bias; and their kin."""

# mypy: allow-subclassing-any

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional
from zoo_blocks import LinearBlock, conv, conv_bn, if_same, merged


class BiasPad(nn.Module):
    """ECBSR's 1x1 convolution whose padding holds what it makes of zero: its bias."""

    def __init__(self, c: int, o: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, o, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve and pad."""
        return self.padded(self.conv(x))

    def padded(self, y: torch.Tensor) -> torch.Tensor:
        """Pad by zeros, and overwrite the border."""
        border = self.conv.bias.view(1, -1, 1, 1)
        out = functional.pad(y, [1] * 4)
        out[:, :, 0:1, :] = border
        out[:, :, -1:, :] = border
        out[:, :, :, 0:1] = border
        out[:, :, :, -1:] = border
        return out


SOBEL = ((1, 0, -1), (2, 0, -2), (1, 0, -1))
LAPLACIAN = ((0, 1, 0), (1, -4, 1), (0, 1, 0))


class Mask(nn.Module):
    """ECBSR's fixed filter on each channel by itself, times a learned scale; unpadded."""

    def __init__(self, channels: int, mask: Iterable[Iterable[int]]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(channels, 1, 1, 1))
        self.bias = nn.Parameter(torch.randn(channels))
        self.register_buffer("mask", torch.tensor(mask, dtype=torch.float32).repeat(channels, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Filter."""
        return functional.conv2d(x, self.scale * self.mask, self.bias, groups=len(self.bias))


def _ecbsr(c: int, *extra: nn.Module) -> LinearBlock:
    sobel = torch.tensor(SOBEL)
    masks = [Mask(c, mask) for mask in (SOBEL, sobel.T.tolist(), LAPLACIAN)]
    series = nn.Sequential(BiasPad(c, 2 * c), nn.Conv2d(2 * c, c, 3))
    branches = [nn.Conv2d(c, c, 3, 1, 1), series, *(nn.Sequential(BiasPad(c, c), mask) for mask in masks)]
    return LinearBlock([*branches, *extra], **merged(c, c, 3, 1))


def ecbsr(c: int, o: int, s: int) -> nn.Module:
    return _ecbsr(c, nn.Identity()) if s == 1 else conv_bn(c, o, 3, s)


def edbb(c: int, o: int, s: int) -> nn.Module:
    """EFDN's block: ECBSR's and a pointwise kernel."""
    return _ecbsr(c, nn.Conv2d(c, c, 1), nn.Identity()) if s == 1 else conv_bn(c, o, 3, s)


class Wide(nn.Module):
    """FMEN's RRRB without its skip: wide, a kernel and a skip over it, narrow."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.pad = BiasPad(channels, wide)
        self.kernel, self.narrow = nn.Conv2d(wide, wide, 3), nn.Conv2d(wide, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Widen, pad by the bias, convolve, add what is inside of the padding, narrow."""
        wide = self.pad.conv(x)
        return self.narrow(self.kernel(self.pad.padded(wide)) + wide)


def fmen(c: int, o: int, s: int) -> nn.Module:
    return LinearBlock([Wide(c), nn.Identity()], **merged(c, c, 3, 1)) if s == 1 else conv_bn(c, o, 3, s)


class Attention(nn.Module):
    """PlainUSR's channel attention at inference: computed from parameters alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Weight the channels."""
        return x * torch.sigmoid(self.weight)


def plainusr(c: int, o: int, s: int) -> nn.Module:
    if s != 1:
        return conv_bn(c, o, 3, s)
    layers = [BiasPad(c, 2 * c), nn.Conv2d(2 * c, 2 * c, 3), Attention(2 * c), nn.Conv2d(2 * c, c, 1)]
    return LinearBlock([nn.Sequential(*layers), nn.Identity()], **merged(c, c, 3, 1))


class Padded(nn.Module):
    """SPAN's branch: padded by zeros first, so that its biases do no harm."""

    def __init__(self, c: int, o: int, s: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(c, 2 * c, 1), nn.Conv2d(2 * c, 2 * o, 3, s), nn.Conv2d(2 * o, o, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pad, then convolve."""
        return self.layers(functional.pad(x, (1, 1, 1, 1), "constant", 0))


def span(c: int, o: int, s: int) -> LinearBlock:
    return LinearBlock([Padded(c, o, s), nn.Conv2d(c, o, 1, s)], **merged(c, o, 3, s))


def sesr(c: int, o: int, s: int) -> LinearBlock:
    series = nn.Sequential(conv(c, 16 * c, 3, s), nn.Conv2d(16 * c, o, 1))
    return LinearBlock([series, *if_same(c, o, s, nn.Identity())], **merged(c, o, 3, s))


def expandnet(c: int, o: int, s: int) -> LinearBlock:
    """ExpandNets: the padding is the first, pointwise convolution's."""
    layers = [
        nn.Conv2d(c, 4 * c, 1, padding=1, bias=False),
        nn.Conv2d(4 * c, 4 * o, 3, s, bias=False),
        nn.Conv2d(4 * o, o, 1),
    ]
    return LinearBlock([nn.Sequential(*layers)], **merged(c, o, 3, s))


class Weighted(nn.Module):
    """A sum of modules, each times one number of a learned vector."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.terms = nn.ModuleList(modules)
        self.alpha = nn.Parameter(torch.rand(len(modules)) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sum, each number first."""
        total = self.alpha[0] * self.terms[0](x)
        for i, term in enumerate(self.terms):
            total = total + self.alpha[i] * term(x) if i else total
        return total


def omnishift(c: int, o: int, s: int) -> nn.Module:
    if s != 1:
        return conv_bn(c, o, 3, s)
    kernels = [conv(c, c, k, groups=c) for k in (1, 3, 5)]
    shift = LinearBlock([Weighted(nn.Identity(), *kernels)], **merged(c, c, 5, 1, groups=c))
    return nn.Sequential(shift, nn.ReLU(), conv(c, c, 1))


def rtmosr(c: int, o: int, s: int) -> nn.Module:
    """RTMoSR's RepConv: a kernel behind a pointwise one, a kernel, and SPAN's block, weighted."""
    if s != 1:
        return conv_bn(c, o, 3, s)
    series = nn.Sequential(BiasPad(c, 2 * c), nn.Conv2d(2 * c, c, 3))
    return LinearBlock([Weighted(series, nn.Conv2d(c, c, 3, 1, 1), span(c, c, 1))], **merged(c, c, 3, 1))


class Stacked(nn.Module):
    """MobileIE's MBRConv5: kernels and their normalized copies, stacked, under a pointwise kernel."""

    def __init__(self, c: int, o: int, s: int) -> None:
        super().__init__()
        kernels = (5, 1, 3, (3, 1), (1, 3))
        self.kernels = nn.ModuleList(conv(c, 2 * o, k, s, bias=True) for k in kernels)
        self.copies = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(2 * o)) for _ in kernels)
        self.out = nn.Conv2d(4 * len(kernels) * o, o, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Stack, and sum up."""
        maps = [kernel(x) for kernel in self.kernels]
        copies = [copied(each) for copied, each in zip(self.copies, maps, strict=True)]
        return self.out(torch.cat([*maps, *copies], 1))


def mobileie(c: int, o: int, s: int) -> LinearBlock:
    return LinearBlock([Stacked(c, o, s)], **merged(c, o, 5, s))


def vanillanet(c: int, o: int, s: int) -> nn.Module:
    """At the end of its training the activation between two pointwise kernels is an identity."""
    layers = [conv_bn(c, c, 1), nn.LeakyReLU(1.0), conv_bn(c, o, 1)]
    pool = nn.MaxPool2d(s) if s > 1 else nn.Identity()
    pointwise = LinearBlock([nn.Sequential(*layers)], **merged(c, o, 1, 1))
    return nn.Sequential(pointwise, pool, nn.ReLU(), conv_bn(o, o, 7, groups=o))
