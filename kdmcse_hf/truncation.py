"""Where sentences are cut: the same in a checkpoint, in its scores and in its release."""

import copy

from transformers import PreTrainedTokenizerBase
from transformers.tokenization_utils_base import LARGE_INTEGER

from kdmcse_hf.modeling_kdmcse import KDMCSEModel, token_limit

MAX_LENGTH = 128
"""Tokens after which a checkpoint cuts, where encoder and tokenizer take more."""


def cut_tokenizer(tokenizer: PreTrainedTokenizerBase, model: KDMCSEModel) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer that cuts after what it takes itself, what the encoder takes, or 128 tokens."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = min(token_limit(model.encoder, tokenizer), MAX_LENGTH)
    return tokenizer


def release_length(tokenizer: PreTrainedTokenizerBase, model: KDMCSEModel, wanted: int | None = None) -> int:
    """Tokens after which a release cuts: those that are wanted, or else the checkpoint's own.

    Args:
        tokenizer: of the checkpoint. One that names no limit counts as one of 128 tokens.
        model: of the checkpoint.
        wanted: may be more than the checkpoint's tokenizer says, but not more than the encoder takes.

    Raises:
        ValueError: the encoder does not take what is wanted.
    """
    named, free = tokenizer.model_max_length, copy.copy(tokenizer)
    free.model_max_length = LARGE_INTEGER
    most = token_limit(model.encoder, free)
    if wanted is not None and not 2 < wanted <= most:
        raise ValueError(f"`max_length` is {wanted}: expected 3 to {most}, the most that the encoder takes.")
    own = named if named < LARGE_INTEGER else MAX_LENGTH
    return min(own, most) if wanted is None else wanted
