"""What networks of training-time blocks in plain torch are made of, for families that timm does not have.

A `LinearBlock` sums branches that share one input, as a paper defines them, and knows the geometry of the
one convolution that it amounts to. That convolution is not derived from the branches' weights: it is read
off the block's Jacobian, and then compared with the block on a whole map. So the deploy forms made here owe
nothing to the algebra that they are the yardstick for.
"""

# mypy: allow-subclassing-any

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

Family = Callable[[int, int, int], nn.Module]
"""Builds a block from its channels in, channels out and stride."""

_CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_PADS = {1: nn.ConstantPad1d, 2: nn.ConstantPad2d, 3: nn.ConstantPad3d}


@runtime_checkable
class Mergeable(Protocol):
    """A module that has a deploy form."""

    def merged(self) -> nn.Module:
        """Make the deploy form."""


class Sum(nn.Module):
    """Branches of one tensor, their sum, and what follows the sum."""

    def __init__(self, branches: Iterable[nn.Module], tail: nn.Module | None = None) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.tail = tail or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sum the branches from left to right, as the sources do."""
        total = self.branches[0](x)
        for branch in self.branches[1:]:
            total = total + branch(x)
        return self.tail(total)


class LinearBlock(Sum):
    """A sum up to the activation that is one convolution."""

    def __init__(self, branches: Iterable[nn.Module], tail: nn.Module | None = None, **geometry: Any) -> None:
        """Take the branches and the geometry of the merged convolution, as `nn.Conv2d` has it.

        `border` is a padding in front of it that is not the same on both sides, as `nn.ConstantPad2d` has it.
        """
        super().__init__(branches, tail)
        self.geometry = geometry

    def merged(self) -> nn.Module:
        """Make the Conv that the block amounts to."""
        return equivalent_conv(self)


class PartlyMerged(Sum):
    """Branches of which some are best merged with each other, but one Conv for all would cost more than it saves.

    `parts` has, for each Conv of the fastest form, which branches it takes, and its geometry.
    """

    def __init__(
        self, branches: Iterable[nn.Module], parts: Sequence[tuple[Sequence[int], dict[str, Any] | None]]
    ) -> None:
        """Take the branches and the parts; a part without a geometry is one branch, which stays as it is."""
        super().__init__(branches)
        self.parts = parts

    def merged(self) -> nn.Module:
        """Make the fastest form."""
        return Sum(
            equivalent_conv(LinearBlock([self.branches[i] for i in part], **geometry))
            if geometry
            else self.branches[part[0]]
            for part, geometry in self.parts
        )


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add."""
        return x + self.layers(x)


class Scale(nn.Module):
    """A scale for each channel, as in CSLA, or for each channel of a vector."""

    def __init__(self, channels: int, dims: int = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, *[1] * dims))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale."""
        return x * self.weight


class Alpha(nn.Module):
    """One learned number that multiplies all, as in PP-YOLOE and YOLOv6's BottleRep."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.rand(1) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale."""
        return self.alpha * x


def conv(c: int, o: int, k: int | tuple[int, int], s: int | tuple[int, int] = 1, **options: Any) -> nn.Conv2d:
    """A Conv without bias whose padding keeps the extent at stride 1."""
    kh, kw = (k, k) if isinstance(k, int) else k
    d = options.get("dilation", 1)
    return nn.Conv2d(c, o, (kh, kw), s, **{"padding": (kh // 2 * d, kw // 2 * d), "bias": False, **options})


def conv_bn(
    c: int, o: int, k: int | tuple[int, int], s: int | tuple[int, int] = 1, **options: Any
) -> nn.Sequential:
    return nn.Sequential(conv(c, o, k, s, **options), nn.BatchNorm2d(o))


def merged(
    c: int, o: int, k: int | tuple[int, ...], s: int | tuple[int, ...], **options: Any
) -> dict[str, Any]:
    """The geometry of a Conv whose padding keeps the extent at stride 1."""
    padding = k // 2 if isinstance(k, int) else tuple(each // 2 for each in k)
    return {"in_channels": c, "out_channels": o, "kernel_size": k, "stride": s, "padding": padding, **options}


def if_same(c: int, o: int, s: int, *branches: nn.Module) -> list[nn.Module]:
    """The branches that a block has only where its output can be its input."""
    return list(branches) if c == o and s == 1 else []


class Mean(nn.Module):
    """The mean over all axes behind the channels; for tokens, over the axis before them."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Average."""
        return x.mean(self.axes)


class Transpose(nn.Module):
    """Exchanges channels and the axis behind them: tokens of a sequence."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transpose."""
        return x.transpose(1, 2)


ENTRIES: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "image": (nn.Identity, lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())),
    "sequence": (lambda: nn.Flatten(2), lambda: Mean(2)),
    "volume": (lambda: nn.Unflatten(2, (4, -1)), lambda: Mean(2, 3, 4)),
    "row": (lambda: nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (1, -1))), lambda: Mean(2, 3)),
    "tokens": (lambda: nn.Sequential(nn.Flatten(2), Transpose()), lambda: Mean(1)),
    "vector": (lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Identity),
}
"""What blocks see, and how a map becomes that and that becomes a vector."""


def network(family: Family, activation: Callable[[], nn.Module], sees: str, channels: int) -> nn.Module:
    """A classifier of images: a stem, blocks at stride 1, at stride 2 and at stride 1 again, a head."""
    c, o = channels, 2 * channels
    enter, leave = ENTRIES[sees]
    blocks = [family(c, c, 1), family(c, o, 2), family(o, o, 1)]
    body = [layer for block in blocks for layer in (block, activation())]
    return nn.Sequential(conv_bn(3, c, 3, 2), activation(), enter(), *body, leave(), nn.Linear(o, 10))


def equivalent_conv(block: LinearBlock) -> nn.Module:
    """Read the Conv that a block amounts to off its Jacobian at the middle of a map, in float64.

    Raises:
        ValueError: The Conv does not compute what the block computes, borders included.
    """
    geometry = dict(block.geometry)
    border = geometry.pop("border", None)
    kernel = geometry["kernel_size"]
    dims = 2 if isinstance(kernel, int) else len(kernel)
    conv = _CONVS[dims](**geometry).double()
    begins = border[-2::-2] if border else conv.padding
    probe = copy.deepcopy(block).double().eval()
    spread = [(k - 1) * d + 1 for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
    zeros = torch.zeros(1, conv.in_channels, *(2 * extent + 4 for extent in spread), dtype=torch.float64)
    with torch.no_grad():
        at_zero = probe(zeros)[0]
    middle = (slice(None), *(extent // 2 for extent in at_zero.shape[1:]))
    jacobian = torch.autograd.functional.jacobian(lambda x: probe(x)[0][middle], zeros)[:, 0]
    window = zip(spread, conv.dilation, conv.stride, begins, middle[1:], strict=True)
    taps = (..., *(slice(s * i - p, s * i - p + e, d) for e, d, s, p, i in window))
    per_group = jacobian[taps].reshape(conv.groups, -1, conv.groups, *conv.weight.shape[1:])
    image = torch.randn_like(zeros)
    with torch.no_grad():
        conv.weight.copy_(torch.cat([per_group[g, :, g] for g in range(conv.groups)]))
        conv.bias.copy_(at_zero[middle])
        whole = nn.Sequential(_PADS[dims](border, 0.0), conv) if border else conv
        if not torch.allclose(whole(image), probe(image), rtol=1e-9, atol=1e-9):
            raise ValueError(f"a block is not the Conv that it declares: {block.geometry}")
    return whole.float()


def deployed(model: nn.Module) -> nn.Module:
    """Copy a network with each block that has a deploy form in that form."""
    return _deploy(copy.deepcopy(model))


def _deploy(module: nn.Module) -> nn.Module:
    if isinstance(module, Mergeable):
        return module.merged()
    for name, child in module.named_children():
        setattr(module, name, _deploy(child))
    return module
