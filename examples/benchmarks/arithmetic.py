"""What a run costs, on paper: multiplications, bytes between devices, rows from the loader; the first one checked."""

from dataclasses import dataclass

import torch
from material import MAX_LENGTH, Material


@dataclass(frozen=True)
class Encoder:
    """The sizes that a BERT-like encoder's cost depends on, and those of the spaces it is trained in."""

    layers: int
    width: int
    inner: int
    parameters: int
    projection: int = 256
    teacher: int = 512

    def step_flops(self, lengths: list[int]) -> float:
        """Of forward and backward over rows of so many tokens (all views listed).

        A layer multiplies every token with 4 square matrices and 2 of `width x inner`, and every token with every
        token of its row, twice; a multiply-add is 2, and backward costs twice the forward.
        """
        by_token = 2 * (4 * self.width**2 + 2 * self.width * self.inner)
        forward = sum(length * by_token + 4 * length**2 * self.width for length in lengths)
        return 3.0 * self.layers * forward

    def gathered_bytes(self, rows: int) -> int:
        """What each device receives of `rows` pairs, float32: one view, both projections, the teacher's features."""
        return 4 * rows * (self.width + 2 * self.projection + 2 * self.teacher)

    @property
    def gradient_bytes(self) -> int:
        return 4 * self.parameters


BERT_BASE = Encoder(layers=12, width=768, inner=3072, parameters=110_000_000)


def counted_and_predicted(material: Material, encoder: str) -> tuple[float, float]:
    """FLOPs of forward and backward over 64 sentences, two views: as torch counts them, and by [`Encoder`]."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModel, AutoTokenizer

    from kdmcse_hf.packing import pack_rows

    model = AutoModel.from_pretrained(material.encoder(encoder), dtype=torch.float32, add_pooling_layer=False)
    pack_rows(model)
    model.train()
    tokenizer = AutoTokenizer.from_pretrained(material.encoder(encoder))
    texts = [text for text in material.sentences[:64] for _ in range(2)]
    batch = tokenizer(texts, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt")
    with FlopCounterMode(display=False) as counter:
        hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        hidden.sum().backward()
    config = model.config
    sizes = Encoder(config.num_hidden_layers, config.hidden_size, config.intermediate_size, model.num_parameters())
    return counter.get_total_flops(), sizes.step_flops(batch["attention_mask"].sum(dim=1).tolist())


def mean_tokens(material: Material) -> tuple[float, float]:
    """Tokens of a sentence and of a caption, cut as in training."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(material.encoder("student"))
    means = []
    for texts in (material.sentences[:2000], material.captions[:2000]):
        ids = tokenizer(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
        means.append(sum(map(len, ids)) / len(ids))
    return means[0], means[1]
