"""Random weights for torch models under which the answer follows the input.

Fresh BatchNormalization statistics (mean 0, variance 1, scale 1, shift 0) hide mistakes in folding them, and
a deep network with random weights tends to give one answer whatever it is shown. So everything is drawn at
random, and then, on image-like inputs, the statistics are set to what the data has and each Conv and Linear
is scaled to a deviation of 1 in each channel (and, where it has a bias, shifted to a mean of 0).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd


def images(count: int, extent: int) -> torch.Tensor:
    """Draw image-like inputs (count, 3, extent, extent): blobs of several sizes, contrast, colour cast."""
    total = 0.3 * torch.randn(count, 3, extent, extent)
    for cells in (2, 4, 8, 16):
        blobs = torch.randn(count, 3, cells, cells) * torch.empty(count, 1, 1, 1).uniform_(0.2, 0.8)
        total += functional.interpolate(blobs, (extent, extent), mode="bilinear", align_corners=True)
    contrast = torch.empty(count, 1, 1, 1).uniform_(0.5, 1.5)
    return total * contrast + 0.5 * torch.randn(count, 3, 1, 1)


def _statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each channel, jittered; a channel that hardly varies counts as one that does."""
    axes = [0, *range(2, x.ndim)]
    mean, std = x.mean(axes), x.std(axes)
    std = torch.maximum(std, 0.3 * std.mean() + 1e-6) * torch.empty_like(std).uniform_(0.8, 1.25)
    return mean + 0.1 * std * torch.randn_like(std), std


def _set_statistics(module: nn.Module, inputs: Any) -> None:
    mean, std = _statistics(inputs[0])
    module.running_mean.copy_(mean)
    module.running_var.copy_(std**2)


def _set_deviation(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    last = isinstance(module, nn.Linear)  # of tokens, whose channels are behind
    mean, std = _statistics(output.flatten(0, -2) if last else output)
    module.weight.div_(std.view(-1, *[1] * (module.weight.ndim - 1)))
    if module.bias is None:
        mean = torch.zeros_like(mean)
    else:
        module.bias.sub_(mean).div_(std)
    channels = [-1] if last else [-1, *[1] * (output.ndim - 2)]
    return (output - mean.view(channels)) / std.view(channels)


def _draw(module: nn.Module) -> None:
    """Draw the parameters that this module owns itself; those of Conv and Linear torch has drawn."""
    if isinstance(module, _BatchNorm):
        # Half a deviation above zero: under ReLU, centred normalization makes rounding errors grow by a fifth
        # with each layer, and float32 is not enough for fifty.
        nn.init.uniform_(module.weight, 0.5, 1.5)
        nn.init.normal_(module.bias, 0.5, 0.3)
    elif not isinstance(module, (_ConvNd, nn.Linear)):
        # The scales of FastViT's LayerScale and of CSLA start out as constants.
        for parameter in module.parameters(recurse=False):
            if parameter.numel() > 1 and parameter.std() == 0:
                nn.init.uniform_(parameter, 0.2, 1.0)


def randomize(model: nn.Module, shown: torch.Tensor) -> None:
    """Draw a model's weights, in place, and condition them on images (count, 3, extent, extent)."""
    hooks = []
    for module in model.modules():
        _draw(module)
        if isinstance(module, _BatchNorm):
            hooks.append(module.register_forward_pre_hook(_set_statistics))
        elif isinstance(module, (_ConvNd, nn.Linear)):
            hooks.append(module.register_forward_hook(_set_deviation))
    with torch.no_grad():
        model.eval()(shown)
    for hook in hooks:
        hook.remove()
