"""Branches of several ops in a row, and kernels that are computed in forward: DBB, OREPA and what is akin."""

# mypy: allow-subclassing-any

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from zoo_blocks import LinearBlock, conv, conv_bn, if_same, merged


class BNAndPad(nn.Module):
    """DBB's BatchNormalization whose padding holds what it makes of zero."""

    def __init__(self, channels: int, pad: int) -> None:
        super().__init__()
        self.bn, self.pad = nn.BatchNorm2d(channels), pad

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize, pad by zeros, and overwrite the border."""
        bn, p = self.bn, self.pad
        border = bn.bias - bn.running_mean * bn.weight / torch.sqrt(bn.running_var + bn.eps)
        border = border.view(1, -1, 1, 1)
        out = functional.pad(bn(x), [p] * 4)
        out[:, :, :p, :] = border
        out[:, :, -p:, :] = border
        out[:, :, :, :p] = border
        out[:, :, :, -p:] = border
        return out


class IdentityBasedConv1x1(nn.Module):
    """DBB's 1x1 convolution that learns the difference from the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, 1, 1) / channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve with weight + identity."""
        return functional.conv2d(x, self.weight + torch.eye(self.weight.shape[0])[:, :, None, None].to(x))


def dbb(c: int, o: int, s: int) -> LinearBlock:
    average = [conv(c, o, 1), BNAndPad(o, 1), nn.AvgPool2d(3, s), nn.BatchNorm2d(o)]
    series = [IdentityBasedConv1x1(c), BNAndPad(c, 1), conv_bn(c, o, 3, s, padding=0)]
    branches = [conv_bn(c, o, 3, s), conv_bn(c, o, 1, s), nn.Sequential(*average), nn.Sequential(*series)]
    return LinearBlock(branches, **merged(c, o, 3, s))


def dbb_depthwise(c: int, o: int, s: int) -> nn.Module:
    """Depthwise: no pointwise branch, an average of zeros at the border, and twice the channels between."""
    average = nn.Sequential(nn.AvgPool2d(5, s, 2), nn.BatchNorm2d(c))
    wide = nn.Conv2d(c, 2 * c, 1, groups=c, bias=False)
    narrow = nn.Conv2d(2 * c, c, 5, s, groups=c, bias=False)
    series = nn.Sequential(wide, BNAndPad(2 * c, 2), narrow, nn.BatchNorm2d(c))
    branches = [conv_bn(c, c, 5, s, groups=c), average, series]
    block = LinearBlock(branches, **merged(c, c, 5, s, groups=c))
    return nn.Sequential(block, nn.ReLU(), conv_bn(c, o, 1))


class OnlineConv(nn.Module):
    """OREPA: branches that are summed as weights, in forward, each scaled for each output channel."""

    def __init__(self, c: int, o: int, s: int, expansion: int = 8) -> None:
        super().__init__()
        self.shape, self.stride = (o, c, 3, 3), s

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape) / (9 * c) ** 0.5)

        self.origin, self.average, self.frequency = weight(o, c, 3, 3), weight(o, c), weight(o, c)
        self.first, self.second = weight(c, c), weight(o, c, 3, 3)
        self.pointwise, self.depthwise = weight(o, c, 1, 1), weight(c, expansion, 3, 3)
        self.separable = weight(o, c, expansion)
        self.vectors = nn.Parameter(torch.rand(6, o) + 0.5)
        self.register_buffer("mean", torch.full((3, 3), 1 / 9))
        turns = torch.arange(o).view(-1, 1) * (torch.arange(3) + 0.5) * torch.pi / 3
        self.register_buffer("prior", turns.cos()[:, :, None] * turns.cos().flip(0)[:, None, :])
        self.register_buffer("eye", torch.eye(c))

    def kernel(self) -> torch.Tensor:
        """Sum the weights."""
        terms = [
            self.origin,
            torch.einsum("oi,hw->oihw", self.average, self.mean),
            torch.einsum("oi,ohw->oihw", self.frequency, self.prior),
            torch.einsum("ti,othw->oihw", self.first + self.eye, self.second),
            functional.pad(self.pointwise, [1] * 4),
            torch.einsum("oit,ithw->oihw", self.separable, self.depthwise),
        ]
        scaled = [torch.einsum("oihw,o->oihw", term, self.vectors[i]) for i, term in enumerate(terms)]
        total = scaled[0]
        for term in scaled[1:]:
            total = total + term
        return total.reshape(self.shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve once."""
        return functional.conv2d(x, self.kernel(), stride=self.stride, padding=1)


def orepa(c: int, o: int, s: int) -> LinearBlock:
    return LinearBlock([OnlineConv(c, o, s)], nn.BatchNorm2d(o), **merged(c, o, 3, s))


class OnlinePointwise(nn.Module):
    """OREPA_1x1: a pointwise kernel and the product of two, each scaled for each output channel."""

    def __init__(self, c: int, o: int, s: int) -> None:
        super().__init__()
        self.stride = s
        self.origin = nn.Parameter(torch.randn(o, c, 1, 1))
        self.first, self.second = nn.Parameter(torch.randn(c, c, 1, 1)), nn.Parameter(torch.randn(o, c, 1, 1))
        self.vector = nn.Parameter(torch.rand(2, o) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply and sum the weights, convolve once."""
        product = torch.einsum("tihw,othw->oihw", self.first, self.second)
        first, second = (
            torch.einsum("oihw,o->oihw", weight, self.vector[i])
            for i, weight in enumerate((self.origin, product))
        )
        return functional.conv2d(x, first + second, stride=self.stride)


def orepa_1x1(c: int, o: int, s: int) -> LinearBlock:
    return LinearBlock([OnlinePointwise(c, o, s)], nn.BatchNorm2d(o), **merged(c, o, 1, s))


def orepa_repvgg(c: int, o: int, s: int) -> LinearBlock:
    """RepVGGBlock_OREPA: RepVGG's block, each of whose kernels is OREPA's."""
    large = nn.Sequential(OnlineConv(c, o, s), nn.BatchNorm2d(o))
    small = nn.Sequential(OnlinePointwise(c, o, s), nn.BatchNorm2d(o))
    return LinearBlock([*if_same(c, o, s, nn.BatchNorm2d(c)), large, small], **merged(c, o, 3, s))


class OnlineStack(nn.Module):
    """OREPA_LargeConv: kernels of 3x3 that are convolved with each other, as weights."""

    def __init__(self, c: int, o: int, s: int, layers: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(OnlineConv(o if i else c, o, 1, expansion=2) for i in range(layers))
        self.stride = s

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve the kernels, then the map, once."""
        total = self.layers[0].kernel().transpose(0, 1)
        for layer in self.layers[1:]:
            total = functional.conv2d(total, layer.kernel().flip(2, 3), padding=2)
        return functional.conv2d(x, total.transpose(0, 1), stride=self.stride, padding=len(self.layers))


def orepa_large(c: int, o: int, s: int) -> LinearBlock:
    return LinearBlock([OnlineStack(c, o, s)], nn.BatchNorm2d(o), **merged(c, o, 7, s))


class Dirac(nn.Module):
    """DiracNet's kernel: an identity and a normalized kernel, each scaled for each output channel."""

    def __init__(self, c: int, o: int, s: int) -> None:
        super().__init__()
        self.weight, self.stride = nn.Parameter(torch.randn(o, c, 3, 3)), s
        self.alpha, self.beta = nn.Parameter(torch.rand(o) + 0.5), nn.Parameter(torch.rand(o) + 0.5)
        self.register_buffer("delta", nn.init.dirac_(torch.empty(o, c, 3, 3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the kernel, and convolve."""
        norm = self.weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        kernel = self.alpha.view(-1, 1, 1, 1) * self.delta + self.beta.view(-1, 1, 1, 1) * self.weight / norm
        return functional.conv2d(x, kernel, stride=self.stride, padding=1)


def diracnet(c: int, o: int, s: int) -> LinearBlock:
    return LinearBlock([Dirac(c, o, s)], nn.BatchNorm2d(o), **merged(c, o, 3, s))


class WeightNormalized(nn.Module):
    """A kernel that is divided by its norm in forward, which keeps its own normalization."""

    def __init__(self, c: int, o: int, s: int) -> None:
        super().__init__()
        self.conv = parametrizations.weight_norm(nn.Conv2d(c, o, 3, s, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve."""
        return self.conv(x)


def weight_norm(c: int, o: int, s: int) -> LinearBlock:
    return LinearBlock([WeightNormalized(c, o, s)], nn.BatchNorm2d(o), **merged(c, o, 3, s))


def deep_stem(c: int, o: int, s: int) -> nn.Module:
    """Three square kernels without activations in place of a 7x7; padded in front, so that it is exact.

    At stride 1 there are fewer multiply-adds in the stack (27 taps) than in the 7x7 (49).
    """
    if s == 1:
        return conv_bn(c, o, 3)
    stack = [conv(c, o, 3, padding=3), conv(o, o, 3, padding=0), conv(o, o, 3, s, padding=0)]
    return LinearBlock([nn.Sequential(*stack, nn.BatchNorm2d(o))], **merged(c, o, 7, s))
