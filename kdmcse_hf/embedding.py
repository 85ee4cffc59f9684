"""Sentences in, vectors out, of any encoder: the one way in which the package embeds text."""

import json
import os
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from kdmcse_hf.configuration_kdmcse import POOLINGS
from kdmcse_hf.modeling_kdmcse import (
    RELEASED_CHECKPOINT,
    embed_sentences,
    load_pretrained,
    optional_file,
    read_settings,
    token_limit,
)
from kdmcse_hf.release import POOLING_FILE, POOLING_SWITCHES
from kdmcse_hf.tokenizer import load_tokenizer

# Parts of a sentence-transformers model that leave a vector's direction as it is.
_HARMLESS_MODULES = ("Transformer", "Pooling", "Normalize")


class SentenceEncoder:
    """Calls a model on sentences, in batches of similar length, without dropout.

    Args:
        model: a [`KDMCSEModel`], whose config says what the sentence vector is, or any encoder of `AutoModel`.
        tokenizer: the model's.
        pooling: `"cls"` or `"mean"`; needed for, and only for, a model whose config does not say.
        batch_size: sentences a forward pass; by default as many as suit their length and the device.
        max_length: tokens after which a sentence is cut; by default, and at most, what tokenizer and encoder take.
        normalize: whether to scale each vector to length 1.
        progress: whether to show a progress bar.

    Raises:
        ValueError: a size that is too small; a pooling that is unknown, or not the model's own.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        pooling: str | None = None,
        batch_size: int | None = None,
        max_length: int | None = None,
        normalize: bool = False,
        progress: bool = False,
    ) -> None:
        for name, value, least in (("batch_size", batch_size, 1), ("max_length", max_length, 3)):
            if value is not None and value < least:
                raise ValueError(f"`{name}` is {value}: expected at least {least}.")
        self._configured = getattr(model.config, "pooling", None)
        if pooling is not None and self._configured is not None and pooling != self._configured:
            raise ValueError(
                f"`pooling={pooling!r}`, but the model's config says {self._configured!r}: leave `pooling` out, so "
                "that the vectors are those that the model was trained and scored with."
            )
        self.pooling = pooling or self._configured
        if self.pooling not in POOLINGS:
            raise ValueError(
                f"`pooling` is {self.pooling!r}: a {type(model).__name__} does not say how its sentence vector is "
                f"pooled, so choose one of {', '.join(map(repr, POOLINGS))}."
            )
        self.model, self.tokenizer = model, tokenizer
        self.batch_size, self.normalize, self.progress = batch_size, normalize, progress
        limit = token_limit(model, tokenizer)
        self.max_length = limit if max_length is None else min(max_length, limit)

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        pooling: str | None = None,
        max_length: int | None = None,
        **kwargs: Any,
    ) -> "SentenceEncoder":
        """The encoder of a folder or Hub name, in float32.

        A KDMCSE checkpoint says how its vector is pooled, and a release contains one, which is taken. Of other
        encoders, sentence-transformers' files say it, and after how many tokens to cut; without such files, `pooling`
        is `"cls"`, as in the papers, unless it is given.

        Args:
            model_name_or_path: a KDMCSE model, a release of one, or any encoder of `AutoModel`.
            revision: branch, tag or commit of a Hub name.
            device: where to compute; by default on an accelerator, if there is one.
            pooling, max_length, kwargs: as of the class.

        Raises:
            ValueError: `pooling` is not the model's own, or its vectors are made in a way that is unknown here, or,
                offline, not known from the cache; it cannot be read, or needs code of its own.
            OSError: it is not there, or the Hub does not say how its vectors are made.
        """
        where = {} if revision is None else {"revision": revision}
        unknown = []

        def find(file: str) -> str | None:
            try:
                return optional_file(model_name_or_path, file, **where)
            except FileNotFoundError:
                unknown.append(file)
                return None

        place = dict(where)
        if find(f"{RELEASED_CHECKPOINT}/config.json"):
            place["subfolder"] = RELEASED_CHECKPOINT
        read_settings(model_name_or_path, **place)
        model = load_pretrained(AutoModel, model_name_or_path, dtype=torch.float32, **place)
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        model.to(device or accelerator or "cpu")
        tokenizer = load_tokenizer(model_name_or_path, **place)
        if getattr(model.config, "pooling", None) is None:
            unknown.clear()  # the files below say of a release what its checkpoint does
            own, own_length = _sentence_transformers(str(model_name_or_path), find, tokenizer)
            if None not in (own, pooling) and own != pooling:
                raise ValueError(
                    f"`pooling={pooling!r}`, but {POOLING_FILE} of {str(model_name_or_path)!r} says {own!r}: leave "
                    "`pooling` out."
                )
            if pooling is None and unknown:
                raise ValueError(
                    f"How {str(model_name_or_path)!r} makes its vectors is not known offline: the cache says nothing "
                    f"of {', '.join(unknown)}. Download all of it (`hf download {model_name_or_path}`), or, if it has "
                    "no such files, choose `pooling`."
                )
            pooling = pooling or own or "cls"
            max_length = own_length if max_length is None else max_length
        return cls(model, tokenizer, pooling=pooling, max_length=max_length, **kwargs)

    def __call__(
        self, sentences: str | Sequence[str], *, advance: Callable[[int], Any] | None = None
    ) -> NDArray[np.float32]:
        """(N, H) float32, row i for sentence i; (H,) for one text.

        Args:
            sentences: N texts, or one.
            advance: told how many sentences are done after each forward pass, in place of the progress bar.

        Raises:
            ValueError: a sentence that is empty or not text, named by its index.
        """
        texts = [sentences] if isinstance(sentences, str) else sentences
        show = self.progress and advance is None
        with tqdm(total=len(texts), desc="Embedding", unit=" sentences", disable=not show) as bar:
            vectors = embed_sentences(
                self.model,
                self.tokenizer,
                texts,
                pooling=self.pooling if self._configured is None else None,
                batch_size=self.batch_size,
                max_length=self.max_length,
                advance=advance or bar.update,
            )
        if self.normalize:
            vectors = F.normalize(vectors, dim=-1)
        found: NDArray[np.float32] = (vectors[0] if isinstance(sentences, str) else vectors).numpy()
        return found


def _sentence_transformers(
    name: str, find: Callable[[str], str | None], tokenizer: PreTrainedTokenizerBase
) -> tuple[str | None, int | None]:
    """Pooling and token limit, as far as sentence-transformers' own files say them."""

    def read(file: str) -> Any:
        path = find(file)
        return {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))

    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in read("modules.json") or []]
    odd = [f"modules.json lists {kind}" for kind in kinds if kind not in _HARMLESS_MODULES]
    said = read(POOLING_FILE)
    names = {switch: name for name, switch in POOLING_SWITCHES.items()}
    modes = [names.get(key, key) for key, on in said.items() if key.startswith("pooling_mode_") and on is True]
    modes += [said["pooling_mode"]] if "pooling_mode" in said else []  # as newer releases write it
    if said and (len(modes) != 1 or modes[0] not in POOLINGS):
        odd.append(f"{POOLING_FILE} says {modes}")
    prompts = read("config_sentence_transformers.json")
    if prompt := (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name")):
        odd.append(f"config_sentence_transformers.json puts {prompt!r} before each sentence")
    settings = read("sentence_bert_config.json")
    if settings.get("do_lower_case") and not _lowers(tokenizer):
        odd.append("sentence_bert_config.json has sentences in lower case, and the tokenizer does not see to it")
    if odd:
        raise ValueError(
            f"{name!r} makes its sentence vectors in a way that is unknown here: {'; '.join(odd)}. Known are the "
            f"poolings {', '.join(POOLINGS)} of a Transformer, of sentences as they are. Use sentence-transformers."
        )
    return modes[0] if modes else None, settings.get("max_seq_length")


def _lowers(tokenizer: PreTrainedTokenizerBase) -> bool:
    letters = " ".join(string.ascii_lowercase)
    return bool(tokenizer(letters)["input_ids"] == tokenizer(letters.upper())["input_ids"])
