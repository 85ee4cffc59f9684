"""Loading a tokenizer, with an error that says what is missing."""

import os
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase


def load_tokenizer(model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of an encoder; runs no code of its own without `trust_remote_code=True`.

    Raises:
        ValueError: there is none, it is damaged, it needs code of its own, or it cannot pad.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            model_name_or_path, **{"trust_remote_code": False, **kwargs}
        )
        if len(tokenizer) <= len(tokenizer.all_special_tokens):
            # transformers 5 makes an empty tokenizer of the encoder's type where the folder has no files
            raise ValueError("it has no vocabulary")
    except Exception as error:  # whatever a missing or damaged file makes of it
        raise ValueError(
            f"No tokenizer could be loaded from {str(model_name_or_path)!r} ({type(error).__name__}: "
            f"{' '.join(str(error).split())}). Save the encoder's tokenizer into the same folder: "
            "`tokenizer.save_pretrained(folder)`."
        ) from error
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"The tokenizer of {str(model_name_or_path)!r} has no padding token, so sentences cannot be batched. Set "
            "one (`tokenizer.pad_token = ...`) and save it into the encoder's folder."
        )
    return tokenizer
