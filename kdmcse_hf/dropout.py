"""Dropout on a CPU at the price of a multiplication. torch draws each element's chance from a sequential generator in
double precision, which takes up to a quarter of a training step; here one draw serves four elements.
"""

from typing import Any

import torch
from torch import Tensor, nn

_STEPS = 2**16


def drop(features: Tensor, probability: float) -> Tensor:
    """`features`, each element zeroed with `probability` and scaled by `1 / (1 - probability)` otherwise.

    The probability is rounded to a multiple of 2 ** -16, and the scale is that of the rounded one.

    Args:
        features: any shape, on a CPU.
        probability: in [0, 1).
    """
    threshold = round(probability * _STEPS)
    if not threshold:
        return features
    dropped: Tensor = _Drop.apply(features, threshold)
    return dropped


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, threshold: int) -> Tensor:
        count = features.numel()
        words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.int16)[:count].view(features.shape) >= threshold - _STEPS // 2
        ctx.save_for_backward(kept)
        ctx.scale = _STEPS / (_STEPS - threshold)
        return (features * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (gradients[0] * kept).mul_(ctx.scale), None


class FastDropout(nn.Dropout):
    """`nn.Dropout` that draws as [`drop`] does where its input is on a CPU."""

    def forward(self, features: Tensor) -> Tensor:
        if features.device.type != "cpu" or self.inplace or not self.p < 1:
            return super().forward(features)
        return drop(features, self.p) if self.training else features


def speed_up_dropout(model: nn.Module) -> None:
    """Makes every `nn.Dropout` of a model a [`FastDropout`]."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = FastDropout
