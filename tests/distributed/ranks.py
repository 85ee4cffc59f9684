"""Running a function in several real processes that form one process group on loopback."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing


def _enter(rank: int, function: Callable[..., Any], world_size: int, port: int, folder: str, arguments: tuple) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    torch.set_num_threads(1)
    torch.save(function(*arguments), Path(folder) / f"rank{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def run_ranks(function: Callable[..., Any], world_size: int, folder: Path, *arguments: Any) -> list[Any]:
    """What `function(*arguments)` returns on each rank; a failure on any rank is raised here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(
        _enter, args=(function, world_size, port, str(folder), arguments), nprocs=world_size, join=True
    )
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(world_size)]
