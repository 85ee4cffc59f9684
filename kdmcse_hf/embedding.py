"""Sentences in, vectors out: the one way in which the package embeds text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdmcse_hf.configuration_kdmcse import POOLINGS


class SentenceEncoder:
    """Calls a model on sentences, in batches of similar length, without dropout.

    Args:
        model: a [`KDMCSEModel`], whose config says what the sentence vector is, or any encoder of `AutoModel`.
        tokenizer: the model's.
        pooling: `"cls"` or `"mean"`; needed for, and only for, a model whose config does not say.
        batch_size: sentences a forward pass.
        max_length: tokens after which a sentence is cut; never more than the tokenizer's own limit.
        progress: whether to show a progress bar.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        pooling: str | None = None,
        batch_size: int = 64,
        max_length: int = 128,
        progress: bool = False,
    ) -> None:
        configured = getattr(model.config, "pooling", None)
        if pooling is not None and configured is not None and pooling != configured:
            raise ValueError(
                f"`pooling={pooling!r}`, but the model's config says {configured!r}: leave `pooling` out, so that the "
                "vectors are those that the model was trained and scored with."
            )
        self.pooling = pooling or configured
        if self.pooling not in POOLINGS:
            raise ValueError(
                f"`pooling` is {self.pooling!r}: a {type(model).__name__} does not say how its sentence vector is "
                f"pooled, so choose one of {', '.join(map(repr, POOLINGS))}."
            )
        self.model, self.tokenizer = model, tokenizer
        self.batch_size, self.progress = batch_size, progress
        self.max_length = min(max_length, tokenizer.model_max_length)

    def __call__(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """(N, H) float32, row i for sentence i; not normalised.

        Raises:
            ValueError: an empty sentence, named by its index.
        """
        for index, sentence in enumerate(sentences):
            if not sentence.strip():
                raise ValueError(
                    f"Sentence {index} is empty ({sentence!r}): an empty sentence has no meaning to embed."
                )
        vectors = np.zeros((len(sentences), self.model.config.hidden_size), dtype=np.float32)
        if not len(sentences):
            return vectors
        encodings = self.tokenizer(list(sentences), truncation=True, max_length=self.max_length, padding=False)
        # Longest first: if memory runs out, it does so at once.
        order = sorted(range(len(sentences)), key=lambda row: -len(encodings["input_ids"][row]))
        was_training = self.model.training
        self.model.eval()
        try:
            starts = range(0, len(order), self.batch_size)
            for start in tqdm(starts, desc="Embedding", unit="batch", disable=not self.progress):
                chunk = order[start : start + self.batch_size]
                batch = {key: [values[row] for row in chunk] for key, values in encodings.items()}
                vectors[chunk] = self._forward(self.tokenizer.pad(batch, return_tensors="pt")).float().cpu().numpy()
        finally:
            self.model.train(was_training)
        return vectors

    @torch.inference_mode()
    def _forward(self, batch: Any) -> Tensor:
        batch = batch.to(self.model.device)
        output = self.model(**batch)
        if getattr(self.model.config, "pooling", None) is not None:
            vectors: Tensor = output.pooler_output
            return vectors
        hidden: Tensor = output.last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0]
        mask: Tensor = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)
