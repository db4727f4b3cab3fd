"""What looks like a block that can be merged and is none: nothing has a deploy form here, nor may it get worse.

Some gain all the same, since ops change places.
"""

# mypy: allow-subclassing-any

from __future__ import annotations

import torch
from torch import nn
from zoo_blocks import Residual, Sum, conv, conv_bn


def msca(c: int, o: int, s: int) -> nn.Module:
    """SegNeXt: biased strips, whose borders differ."""
    if s != 1:
        return conv_bn(c, o, 3, s)

    def strips(k: int) -> nn.Sequential:
        return nn.Sequential(*(conv(c, c, kernel, groups=c, bias=True) for kernel in ((1, k), (k, 1))))

    mixed = Sum([nn.Identity(), *map(strips, (7, 11, 21))])
    return nn.Sequential(conv(c, c, 5, groups=c, bias=True), mixed, conv(c, o, 1, bias=True))


def lka(c: int, o: int, s: int) -> nn.Module:
    """VAN: padded kernels in a row."""
    if s != 1:
        return conv_bn(c, o, 3, s)
    wide = conv(c, c, 7, groups=c, dilation=3, padding=9, bias=True)
    return nn.Sequential(conv(c, c, 5, groups=c, bias=True), wide, conv(c, o, 1, bias=True))


class PoolMixer(nn.Module):
    """PoolFormer: an average that divides by less at the border."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Average, less the input."""
        return self.pool(x) - x


def poolformer(c: int, o: int, s: int) -> nn.Module:
    return Residual(PoolMixer()) if s == 1 else conv_bn(c, o, 3, s)


def dpt(c: int, o: int, s: int) -> nn.Module:
    """DPT and Depth Anything: a pointwise kernel behind a Resize, before which it has a quarter of the work."""
    if s != 1:
        return conv_bn(c, o, 3, s)
    convs = (conv(c, c, 3, bias=True) for _ in range(2))
    unit = Residual(nn.Sequential(*(layer for each in convs for layer in (nn.ReLU(), each))))
    return nn.Sequential(unit, nn.Upsample(scale_factor=2, mode="bilinear"), conv(c, o, 1, bias=True))


def lightconv(c: int, o: int, s: int) -> nn.Module:
    """HGNetV2: a normalized pointwise kernel in front of a padded depthwise one."""
    return nn.Sequential(conv_bn(c, o, 1), conv_bn(o, o, 5, s, groups=o))


def bottleneck(c: int, o: int, s: int) -> nn.Module:
    """MobileNetV2: a narrow tensor between two pointwise kernels, which cost less than one wide one."""
    wide, narrow = 6 * c, max(c // 4, 1)
    layers = [conv_bn(c, wide, 1), nn.ReLU6(), conv_bn(wide, wide, 3, s, groups=wide), nn.ReLU6()]
    return nn.Sequential(*layers, conv_bn(wide, narrow, 1), conv_bn(narrow, o, 1))


def separable(c: int, o: int, s: int) -> nn.Module:
    """A depthwise kernel and a pointwise one, which cost less than a dense one."""
    return nn.Sequential(conv_bn(c, c, 3, s, groups=c), conv_bn(c, o, 1))


def short_conv(c: int, o: int, s: int) -> nn.Module:
    """GhostNetV3's second path: biased strips in a row."""
    strips = [conv_bn(o, o, kernel, groups=o) for kernel in ((1, 5), (5, 1))]
    return nn.Sequential(conv_bn(c, o, 1, s), *strips)


class Res2(nn.Module):
    """Res2Net: each part is added to what comes of the part before."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(conv_bn(c // 4, c // 4, 3) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pass it on."""
        first, *rest = torch.chunk(x, 4, 1)
        done = [first]
        for i, (part, layer) in enumerate(zip(rest, self.layers, strict=True)):
            done.append(layer(part + done[-1] if i else part))
        return torch.cat(done, 1)


def res2net(c: int, o: int, s: int) -> nn.Module:
    return Res2(c) if s == 1 else conv_bn(c, o, 3, s)


def tdnn(c: int, o: int, s: int) -> nn.Module:
    """CS-Rep: normalized behind the activation."""
    kernels = [nn.Sequential(conv(c, o, k, s), nn.ReLU(), nn.BatchNorm2d(o)) for k in (3, 1)]
    return Sum(kernels)


def csprep(c: int, o: int, s: int) -> nn.Module:
    """RT-DETR's CSPRepLayer: a sum of two activated tensors."""
    return Sum([nn.Sequential(conv_bn(c, o, k, s), nn.SiLU()) for k in (3, 1)])


def prenorm(c: int, o: int, s: int) -> nn.Module:
    """A normalization in front of a padded kernel: only its scale may be folded."""
    return nn.Sequential(nn.BatchNorm2d(c), conv(c, o, 3, s, bias=True))


def square_twice(c: int, o: int, s: int) -> nn.Module:
    """Two padded kernels in a row, without biases."""
    return nn.Sequential(conv(c, o, 3, s), conv_bn(o, o, 3))
