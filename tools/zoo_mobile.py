"""Blocks of mobile networks: copies of one kernel, depthwise kernels beside their input, linear layers."""

# mypy: allow-subclassing-any

from __future__ import annotations

import copy

import torch
from torch import nn
from zoo_blocks import LinearBlock, Residual, Scale, Sum, conv, conv_bn, merged


class Affine(nn.Module):
    """PP-LCNetV3's learnable affine block: one scale and one shift for all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.rand(1) + 0.5), nn.Parameter(torch.randn(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale and shift."""
        return self.scale * x + self.bias


def _copies(c: int, o: int, k: int, s: int | tuple[int, int], g: int) -> LinearBlock:
    """PP-LCNetV3's LearnableRepLayer."""
    small = [conv_bn(c, o, 1, s, groups=g)] if k > 1 else []
    copies = [conv_bn(c, o, k, s, groups=g) for _ in range(4)]
    identity = [nn.BatchNorm2d(c)] if c == o and s == 1 else []
    return LinearBlock([*identity, *copies, *small], Affine(), **merged(c, o, k, s, groups=g))


def lcnetv3(c: int, o: int, s: int) -> nn.Module:
    return nn.Sequential(_copies(c, c, 3, s, c), nn.Hardswish(), Affine(), _copies(c, o, 1, 1, 1))


def lcnetv3_rec(c: int, o: int, s: int) -> nn.Module:
    """As recognition has it: 5x5, and a stride in height alone."""
    stride = (2, 1) if s == 2 else 1
    return nn.Sequential(_copies(c, c, 5, stride, c), nn.Hardswish(), Affine(), _copies(c, o, 1, 1, 1))


def lcnetv2(c: int, o: int, s: int) -> nn.Module:
    """Depthwise kernels down to the pointwise one, which a stride leaves out."""
    kernels = (5, 3, 1) if s == 1 else (5, 3)
    branches = [conv_bn(c, c, k, s, groups=c) for k in kernels]
    return nn.Sequential(LinearBlock(branches, **merged(c, c, 5, s, groups=c)), nn.ReLU(), conv_bn(c, o, 1))


def lcnetv4(c: int, o: int, s: int) -> nn.Module:
    """PP-LCNetV4's RepDWConv, which is RepViT's but for the bias of its pointwise kernel."""
    if s != 1:
        return nn.Sequential(conv_bn(c, c, 3, s, groups=c), conv_bn(c, o, 1))
    branches = [conv_bn(c, c, 3, groups=c), conv(c, c, 1, groups=c), nn.Identity()]
    mixer = LinearBlock(branches, nn.BatchNorm2d(c), **merged(c, c, 3, 1, groups=c))
    return nn.Sequential(mixer, nn.Hardswish(), conv_bn(c, o, 1))


def iformer(c: int, o: int, s: int) -> nn.Module:
    if s != 1:
        return conv_bn(c, o, 3, s)
    kernels = [conv_bn(c, c, k, groups=c) for k in (7, 3)]
    branches = [*kernels, conv(c, c, 1, groups=c, bias=True), nn.Identity()]
    mixer = LinearBlock(branches, nn.BatchNorm2d(c), **merged(c, c, 7, 1, groups=c))
    return nn.Sequential(mixer, Residual(conv_bn(c, 2 * c, 1), nn.GELU(), conv_bn(2 * c, c, 1), Scale(c)))


def efficientvit(c: int, o: int, s: int) -> nn.Module:
    """Microsoft's EfficientViT and SHViT: the input plus a depthwise kernel, then a residual of its own."""
    if s != 1:
        return conv_bn(c, o, 3, s)
    mixer = LinearBlock([nn.Identity(), conv_bn(c, c, 3, groups=c)], **merged(c, c, 3, 1, groups=c))
    return nn.Sequential(mixer, Residual(conv_bn(c, 2 * c, 1), nn.ReLU(), conv_bn(2 * c, c, 1)))


class RepMixer(nn.Module):
    """FastViT's token mixer along a row: x + scale * (kernels(x) - norm(x))."""

    def __init__(self, c: int) -> None:
        super().__init__()
        kernels = [conv_bn(c, c, 1, groups=c), nn.BatchNorm2d(c), conv_bn(c, c, (1, 11), groups=c)]
        self.mixer, self.norm, self.scale = Sum(kernels), nn.BatchNorm2d(c), Scale(c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix."""
        return x + self.scale(self.mixer(x) - self.norm(x))


def mobileclip_text(c: int, o: int, s: int) -> nn.Module:
    if s != 1:
        return conv_bn(c, o, 1)
    mixer = LinearBlock([RepMixer(c)], **merged(c, c, (1, 11), 1, groups=c))
    return nn.Sequential(mixer, Residual(conv_bn(c, 2 * c, 1), nn.GELU(), conv_bn(2 * c, c, 1)))


def _with_norm_behind(linear: nn.Linear, norm: nn.BatchNorm1d) -> nn.Linear:
    """LeViT's Linear_BN.fuse."""
    folded = nn.Linear(linear.in_features, linear.out_features).to(linear.weight)
    scale = norm.weight / (norm.running_var + norm.eps) ** 0.5
    folded.weight.data = linear.weight.data * scale[:, None]
    folded.bias.data = norm.bias.data - norm.running_mean * scale
    return folded


def _with_norm_before(
    linear: nn.Linear, norm: nn.BatchNorm1d, extra: torch.Tensor | float = 0.0
) -> nn.Linear:
    """LeViT's BN_Linear.fuse; `extra` is what SLAB adds to the scale."""
    folded = copy.deepcopy(linear)
    scale = norm.weight / (norm.running_var + norm.eps) ** 0.5
    folded.weight.data = linear.weight.data * (scale + extra)
    folded.bias.data = linear.bias.data + linear.weight.data @ (norm.bias - norm.running_mean * scale)
    return folded


class LinearBN(nn.Module):
    """LeViT's Linear_BN on tokens: a linear layer, and a normalization of all tokens in one batch."""

    def __init__(self, c: int, o: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(c, o, bias=False), nn.BatchNorm1d(o)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply and normalize."""
        y = self.linear(x)
        return self.norm(y.flatten(0, 1)).reshape_as(y)

    def merged(self) -> nn.Module:
        """Fold the normalization."""
        return _with_norm_behind(self.linear, self.norm)


def levit(c: int, o: int, s: int) -> nn.Module:
    return LinearBN(c, o)


class Heads(nn.Module):
    """Two classifiers, each behind its own normalization, and their mean: RepViT's and LeViT's, distilled."""

    def __init__(self, c: int, o: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(c) for _ in range(2))
        self.linears = nn.ModuleList(nn.Linear(c, o) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Average both."""
        first, second = (linear(norm(x)) for norm, linear in zip(self.norms, self.linears, strict=True))
        return (first + second) / 2

    def merged(self) -> nn.Module:
        """Fold both and average them, as RepViT does."""
        first, second = map(_with_norm_before, self.linears, self.norms)
        first.weight.data = (first.weight.data + second.weight.data) / 2
        first.bias.data = (first.bias.data + second.bias.data) / 2
        return first


def heads(c: int, o: int, s: int) -> nn.Module:
    return Heads(c, o)


class RepBN(nn.Module):
    """SLAB's PRepBN in front of a linear layer: a normalization plus a multiple of its input, on tokens."""

    def __init__(self, c: int, o: int) -> None:
        super().__init__()
        self.norm, self.linear, self.alpha = (
            nn.BatchNorm1d(c),
            nn.Linear(c, o),
            nn.Parameter(torch.rand(1) + 0.5),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize along the channels, then multiply."""
        x = x.transpose(1, 2)
        return self.linear((self.norm(x) + self.alpha * x).transpose(1, 2))

    def merged(self) -> nn.Module:
        """Fold the normalization and the multiple."""
        return _with_norm_before(self.linear, self.norm, self.alpha.data)


def slab(c: int, o: int, s: int) -> nn.Module:
    return RepBN(c, o)
