"""FSDP2: which parts of a model are sharded each by itself, and how a sharded model is saved."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.fsdp import FSDPModule


def layers_to_shard(model: nn.Module) -> list[str]:
    """Class names of the members of the model's longest list of modules: of an encoder, its layers.

    Left to choose, accelerate takes `_no_split_modules`: nothing of some encoders, and the embeddings, too, of BERT and
    its relatives, which it shards by itself and cannot shard twice.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    layers = max(lists, key=len, default=())
    return sorted({type(layer).__name__ for layer in layers})


@contextmanager
def own_class(model: nn.Module) -> Iterator[None]:
    """Gives a sharded model its class back inside the block.

    FSDP2 replaces it by one made on the spot, whose module `save_pretrained` would take for the model's code: the saved
    folder would have files of torch, and no client could open it.
    """
    sharded = type(model)
    if issubclass(sharded, FSDPModule):
        model.__class__ = next(kind for kind in sharded.__mro__ if not issubclass(kind, FSDPModule))  # type: ignore[assignment]
    try:
        yield
    finally:
        model.__class__ = sharded
