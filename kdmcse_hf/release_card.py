"""The model card of a release: what is in the folder, and how each client gets sentence embeddings from it."""

from kdmcse_hf.configuration_kdmcse import KDMCSEConfig

VECTORS = {"cls": "the last hidden state of its first token", "mean": "the mean of its tokens' last hidden states"}
_POOLED = {"cls": "hidden[:, 0]", "mean": "(hidden * mask).sum(dim=1) / mask.sum(dim=1)"}
POOLER_TRAP = (
    "The plain encoder's `pooler_output` is the trained text head, which serves training only:\n"
    "the embedding of a sentence is {vector}."
)
_CARD = """\
---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags:
- sentence-transformers
- sentence-similarity
- feature-extraction
- kdmcse
{base_model}---

# Sentence embeddings, {kind}

A sentence becomes {width} numbers: {vector}.
It is cut after {max_length} tokens. Compare two by their cosine.

```python
from sentence_transformers import SentenceTransformer

name = "FOLDER_OR_HUB_NAME"
vectors = SentenceTransformer(name).encode(["a small red circle", "a tiny crimson disc"])
```

```python
import torch
from transformers import AutoModel, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name)
batch = tokenizer(["a small red circle", "a tiny crimson disc"], padding=True, truncation=True, return_tensors="pt")
with torch.inference_mode():
    hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
vectors = {pooled}
```
{pooler_trap}
The folder `kdmcse` holds the training checkpoint with all heads; its `pooler_output` is the embedding of a sentence.
Load it with `AutoModel.from_pretrained(name, subfolder="kdmcse")` after `import kdmcse_hf`, or with
`trust_remote_code=True` where that package is not installed. `kdmcse verify` compares all with what was exported.

This card states no scores: none came with the checkpoint.
"""


def release_card(config: KDMCSEConfig, max_length: int, base_model: str | None, *, pooler_trap: bool) -> str:
    """The text of README.md.

    Args:
        config: of the model.
        max_length: tokens after which clients cut a sentence.
        base_model: Hub name of the encoder that training began with, if it is known.
        pooler_trap: whether the plain encoder has a pooler, which then is the text head.
    """
    vector = VECTORS[config.pooling]
    return _CARD.format(
        base_model=f"base_model: {base_model}\n" if base_model else "",
        kind=config.text_config.model_type,
        width=config.hidden_size,
        vector=vector,
        max_length=max_length,
        pooled=_POOLED[config.pooling],
        pooler_trap=f"\n{POOLER_TRAP.format(vector=vector)}\n" if pooler_trap else "",
    )
