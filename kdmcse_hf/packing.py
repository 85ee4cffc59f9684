"""Rows side by side instead of padded: on a CPU, the encoder computes the tokens that there are and no others.

A padded batch (B, L) becomes one row (1, T) of all its tokens, shortest row first, with the positions they had. Only
attention has to know where a row ends: it is registered with transformers, as any attention implementation is.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.utils import logging

from kdmcse_hf.dropout import drop

logger = logging.get_logger(__name__)

ATTENTION = "kdmcse_packed"


def pack_rows(encoder: PreTrainedModel, *, first_token_only: bool = False) -> bool:
    """Has `encoder`, in training mode, pack the rows of right-padded batches; all else it does as before, by SDPA.

    Callers see no difference: they give (B, L) and get (B, L, H), in which padding is zero. In evaluation mode nothing
    changes, so that vectors stay equal to the bit to those of other programs.

    Args:
        encoder: on a CPU, with SDPA.
        first_token_only: compute no more of the last layer than each row's first vector, where the encoder is built
            like BERT; the others are zero.

    Returns:
        Whether it does. An encoder that would not give the same vectors as with padding is left as it was: a trial on
        two short rows decides, for encoders number positions in different ways, and some attend in ways of their own.
    """
    if encoder.device.type != "cpu" or encoder.config._attn_implementation != "sdpa":
        return False
    was_training = encoder.training
    encoder.eval()
    trial = {
        "input_ids": torch.tensor([[5, 6, 7, 8], [9, 4, 0, 0]]).remainder(encoder.config.vocab_size),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
    }
    # Padding by its own token, from which some encoders derive positions
    pad = encoder.config.pad_token_id or 0
    trial["input_ids"][trial["attention_mask"] == 0] = pad
    tokens = trial["attention_mask"].bool()
    try:
        with torch.inference_mode():
            expected = encoder(**trial).last_hidden_state
            encoder.set_attn_implementation(ATTENTION)
            for first_position in (0, pad + 1):
                packing = _Packing(encoder, first_position)
                encoder.training = True  # of this module alone: no dropout
                try:
                    if _close(encoder(**trial).last_hidden_state[tokens], expected[tokens]):
                        packing.first_token_only = first_token_only and packing.finds_first_tokens(trial, expected)
                        return True
                except Exception as error:  # whatever an encoder makes of it, padding still works
                    logger.debug(f"{type(encoder).__name__} does not pack rows: {error}")
                packing.remove()
        encoder.set_attn_implementation("sdpa")
        return False
    finally:
        encoder.train(was_training)


class _Packing:
    """The hooks of one encoder."""

    def __init__(self, encoder: nn.Module, first_position: int) -> None:
        self.first_position = first_position
        self.first_token_only = False
        self._encoder = encoder
        self._tokens: Tensor | None = None  # where the tokens of the packed row stand in the batch; `None`: not packed
        self._shape = torch.Size()
        self._first: Tensor | None = None  # where in the packed row rows begin; `None`: all tokens are wanted
        self._handles = [
            encoder.register_forward_pre_hook(self.pack, with_kwargs=True),
            encoder.register_forward_hook(self.unpack, with_kwargs=True),
        ]
        # Behind the last attention nothing looks at any other token.
        ends = [module for name, module in encoder.named_modules() if name.endswith("attention.output")]
        self._handles += [module.register_forward_pre_hook(self.keep_first) for module in ends[-1:]]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def finds_first_tokens(self, trial: dict[str, Tensor], expected: Tensor) -> bool:
        """Whether the first tokens' vectors (B, H) come out right without the others."""
        self.first_token_only = True
        try:
            return len(self._handles) > 2 and _close(self._encoder(**trial).last_hidden_state[:, 0], expected[:, 0])
        except Exception as error:  # its last layer is of another build
            logger.debug(f"{type(self._encoder).__name__} computes its whole last layer: {error}")
            return False

    def pack(self, encoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask, ids = kwargs.get("attention_mask"), kwargs.get("input_ids")
        self._tokens = self._first = None
        if not encoder.training or args or mask is None or ids is None or mask.dim() != 2 or _inner(kwargs):
            return args, kwargs
        if ids.device.type != "cpu" or (mask[:, 1:] > mask[:, :-1]).any() or not mask[:, 0].all():
            return args, kwargs  # padded on the left, or a row without tokens
        lengths, order = mask.sum(dim=1).sort(stable=True)
        row, column = mask[order].nonzero(as_tuple=True)
        self._tokens = order[row] * mask.shape[1] + column
        if self.first_token_only:
            self._first = lengths.cumsum(0) - lengths
        packed = {
            name: kwargs[name].reshape(1, -1)[:, self._tokens] for name in _BY_TOKEN if kwargs.get(name) is not None
        }
        self._shape = mask.shape
        length, count = lengths.unique_consecutive(return_counts=True)
        groups = list(zip(count.tolist(), length.tolist(), strict=True))
        packed["position_ids"] = column.unsqueeze(0) + self.first_position
        # Shapes that recur: kernels for bfloat16 are made anew for each. The tokens added are rows of their own.
        added = -len(self._tokens) % _MULTIPLE
        if added:
            packed = {name: F.pad(ids, (0, added), value=int(ids[0, 0])) for name, ids in packed.items()}
            groups.append((added, 1))
        return args, {**kwargs, **packed, "attention_mask": None, "row_groups": groups}

    def keep_first(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return None if self._first is None else tuple(hidden[:, self._first] for hidden in args)

    def unpack(self, encoder: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if self._tokens is None:
            return None
        tokens = self._tokens if self._first is None else self._tokens[self._first]
        rows, length = self._shape
        hidden = output.last_hidden_state.squeeze(0)[: len(tokens)]
        padded = hidden.new_zeros(rows * length, hidden.shape[-1]).index_copy(0, tokens, hidden)
        return type(output)(last_hidden_state=padded.unflatten(0, (rows, length)))


def _close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


_MULTIPLE = 128
_BY_TOKEN = ("input_ids", "token_type_ids")


def _inner(kwargs: dict[str, Any]) -> bool:
    """Whether the caller wants more than the last hidden state, or positions of its own."""
    names = ("output_hidden_states", "output_attentions", "position_ids", "inputs_embeds")
    return any(kwargs.get(name) is not None and kwargs.get(name) is not False for name in names)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    row_groups: Sequence[tuple[int, int]] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention within each row of a packed batch.

    Args:
        query, key, value: (1, heads, T, D).
        row_groups: (rows, length) of each run of rows of one length, in order; `None`: an ordinary batch, for SDPA.

    Raises:
        NotImplementedError: packed, and attention has a bias or a window.
    """
    if row_groups is None:
        output, weights = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output, weights
    for name in ("sliding_window", "position_bias", "softcap"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"Packed rows with {name}.")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    sizes = [rows * length for rows, length in row_groups]
    # float32: small bfloat16 products are slower than float32 ones on a CPU, and softmax is best taken there.
    with torch.autocast(query.device.type, enabled=False):
        # (T, heads, D), by runs. `split` rather than slices: each slice's gradient would fill all T rows.
        dtype = torch.promote_types(query.dtype, torch.float32)
        by_token = (x.squeeze(0).transpose(0, 1).to(dtype) for x in (query * scaling, key, value))
        queries, keys, values = (x.split(sizes) for x in by_token)
        outputs = []
        for (rows, length), q, k, v in zip(row_groups, queries, keys, values, strict=True):
            q, k, v = (x.unflatten(0, (rows, length)).transpose(1, 2) for x in (q, k, v))
            weights = drop((q @ k.transpose(-1, -2)).softmax(dim=-1), dropout)
            outputs.append((weights @ v).transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs).to(query.dtype).unsqueeze(0), None


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
