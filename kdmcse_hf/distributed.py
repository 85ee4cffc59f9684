"""Several processes: gathering their rows with gradients, and working on one folder together."""

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env
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
    factor of the world size belongs anywhere. Half precision becomes float32, for gradients are added up here.
    """
    if rows.is_floating_point():
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered


def processes() -> PartialState:
    """The processes that `accelerate launch` or `torchrun` started, or the only one."""
    return PartialState(
        # Without it, accelerate takes each of several processes without an accelerator for the only one.
        cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available(),
        # A process may wait for the slowest one for as long as that takes.
        timeout=datetime.timedelta(days=7),
    )


@contextmanager
def together(state: PartialState) -> Iterator[None]:
    """Waits for all processes behind the block, and raises on all what one of them raised in it."""
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    if state.num_processes > 1:
        said = gather_object([None if error is None else f"Process {state.process_index + 1} stopped: {error}"])
        error = error or next((ValueError(message) for message in said if message), None)
    if error is not None:
        raise error
