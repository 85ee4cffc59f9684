"""A student for the world: a small BERT with random weights and a lower-casing WordPiece over the world's words."""

import random
import re
import string
from pathlib import Path

from kdmcse_hf.world.captions import NAMES
from kdmcse_hf.world.sentences import sentence

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def vocabulary() -> list[str]:
    """The WordPiece vocabulary: special tokens, characters and their continuations (any text can be spelt), words.

    The words are those of the grammar, read off a fixed sample of its sentences: the same for every seed.
    """
    rng = random.Random("kdmcse_hf.world.student/vocabulary")
    text = [name for names in NAMES.values() for name in names] + [sentence(rng) for _ in range(4000)]
    words = {word for line in text for word in re.findall(r"[a-z]+", line) if len(word) > 1}
    letters = string.ascii_lowercase + string.digits
    pieces = [*letters, *string.punctuation, *(f"##{letter}" for letter in letters)]
    return [*_SPECIAL, *pieces, *sorted(words)]


def write_student(folder: str | Path, seed: int = 0) -> None:
    """Write a randomly initialised BERT (3 layers, 128 wide) and its tokenizer for `AutoModel` and `AutoTokenizer`.

    Args:
        folder (`str` or `Path`): where to; made if missing.
        seed (`int`, *optional*, defaults to 0): seed of the weights; the tokenizer is the same for all.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    pieces = vocabulary()
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=64,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):  # the caller's generator stays where it was
        torch.manual_seed(seed)
        model = BertModel(config)
    ids = {piece: index for index, piece in enumerate(pieces)}
    backend = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    backend.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=64,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
