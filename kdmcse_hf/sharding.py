"""FSDP2 and DeepSpeed: how a model is sharded, checked and saved."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def set_up_sharding(state: AcceleratorState, model: nn.Module, mini_batch_size: int | None = None) -> None:
    """Changes what accelerate's FSDP2 does by default, where it is asked for.

    Layers are sharded each by itself, unless the configuration names others. Gradients are added up and exchanged in
    float32, not in the precision of the computation, which loses the small ones among many parts of a batch.
    Checkpoints hold the whole model: of a sharded one nothing is saved that a client could open.

    Raises:
        ValueError: FSDP1, under which a model that is unwrapped to be scored has only a part of its weights; or cached
            gradients (`mini_batch_size`) under DeepSpeed.
    """
    if getattr(state, "deepspeed_plugin", None) is not None and mini_batch_size is not None:
        raise ValueError(
            f"`mini_batch_size` is {mini_batch_size} under DeepSpeed, which steps its optimizer after every backward "
            "pass, and a batch in parts has several. Leave it out, or use plain data parallelism or FSDP2."
        )
    plugin = getattr(state, "fsdp_plugin", None)
    if plugin is None:
        return
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"FSDP {plugin.fsdp_version} was asked for: expected `fsdp_version: 2` in the configuration of accelerate."
        )
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = layers_to_shard(model)
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = dataclasses.replace(plugin.mixed_precision_policy, reduce_dtype=torch.float32)
    plugin.set_state_dict_type("FULL_STATE_DICT")


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


def first_non_finite(model: nn.Module, accelerator: Accelerator) -> str | None:
    """The first parameter that is NaN or infinite, in whatever process's part of it; the same in all processes."""
    parameters = dict(model.named_parameters())
    parts = [p.to_local() if isinstance(p, DTensor) else p for p in parameters.values()]
    bad = accelerator.reduce(torch.stack([(~part.detach().isfinite()).sum() for part in parts]), "sum")
    return next((name for name, count in zip(parameters, bad.tolist(), strict=True) if count), None)
