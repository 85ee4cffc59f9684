"""Gathering rows from all processes, with gradients."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _GatherRows(torch.autograd.Function):
    # Written out because torch deprecates `distributed.nn.functional.all_gather` and its successor is too young.
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.num_rows = len(rows)
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Every process's loss reads these rows, so their gradient is the sum over processes.
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        first = dist.get_rank() * ctx.num_rows
        return gradient[first : first + ctx.num_rows]


def gather_rows(rows: Tensor) -> Tensor:
    """(B, ...) of each of W processes as (W * B, ...) on all of them, in rank order.

    Gradients flow back to the process a row came from. With every process's loss the mean over its own anchors and
    gradients averaged over processes (DDP), the result is the gradient of one process with the whole batch: no
    factor of the world size belongs anywhere.
    """
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered
