"""Tiny things made in code: tokenizers, encoder configs, sentences, teachers, pictures, caches, scored pairs."""

import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    DistilBertConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
    RobertaConfig,
)

from kdmcse_hf.teacher.cache import TeacherCache
from kdmcse_hf.teacher.cache_writer import write_cache
from kdmcse_hf.teacher.encoder import Teacher

WORDS = "a the cat dog bird man woman red blue green runs sits jumps on under over mat grass house sky".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
VOCABULARY = len(SPECIAL) + len(WORDS)

_COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
ENCODER_CONFIGS = {
    "bert": BertConfig(**_COMMON),
    "roberta": RobertaConfig(**{**_COMMON, "type_vocab_size": 1, "bos_token_id": 2, "eos_token_id": 3}),
    "distilbert": DistilBertConfig(
        dim=32, n_layers=2, n_heads=2, hidden_dim=48, vocab_size=VOCABULARY, max_position_embeddings=40
    ),
    "mpnet": MPNetConfig(**{**_COMMON, "pad_token_id": 1}),
    "modernbert": ModernBertConfig(
        **{**_COMMON, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    ),
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def make_sentences(count: int, seed: int = 0) -> list[str]:
    """Distinct sentences over the tiny vocabulary."""
    rng = np.random.default_rng(seed)
    sentences: dict[str, None] = {}
    while len(sentences) < count:
        sentences[" ".join(rng.choice(WORDS, size=rng.integers(3, 9)))] = None
    return list(sentences)


def make_cache(
    folder: Path, num_images: int = 24, captions_per_image: int = 2, width: int = 12, text: bool = True, seed: int = 0
) -> TeacherCache:
    """A cache of random features in which a caption's features are near its image's."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(num_images, width)).astype(np.float32)
    rows = np.repeat(np.arange(num_images), captions_per_image)
    captions = (images[rows] + 0.8 * rng.normal(size=(len(rows), width))).astype(np.float32)
    return write_cache(
        folder,
        images=[f"{row}.jpg" for row in range(num_images)],
        captions=make_sentences(len(rows), seed=seed + 1),
        image_rows=rows.tolist(),
        image_features=[images],
        caption_features=[captions] if text else None,
        teacher={"name": "random"},
        source={"captions": "none"},
        rows_per_shard=16,
    )


def write_sts(folder: Path, sentences: list[str], pairs: int = 40, seed: int = 0) -> Path:
    """STS-B files in SentEval's layout, with random pairs and scores."""
    rng = np.random.default_rng(seed)
    target = folder / "STS" / "STSBenchmark"
    target.mkdir(parents=True)
    for split in ("dev", "test"):
        lines = [
            "\t".join(["main", "file", "2026", f"{n:04d}", f"{rng.uniform(0, 5):.3f}", *rng.choice(sentences, size=2)])
            for n in range(pairs)
        ]
        (target / f"sts-{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def make_teacher(seed: int = 0, captions: bool = True) -> Teacher:
    """A tiny random CLIP, or a tiny random ResNet without captions."""
    torch.manual_seed(seed)
    processor = CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    if not captions:
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
        return Teacher(ResNetModel(ResNetConfig(**sizes)), processor, name="tiny-resnet")
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": VOCABULARY, "max_position_embeddings": 10, "bos_token_id": 2, "eos_token_id": 3}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    return Teacher(model, processor, make_tokenizer(), name="tiny-clip")


def write_pictures(folder: Path, num_images: int = 10, captions_per_image: int = 2, seed: int = 0) -> Path:
    """`images/*.png` of noise in two sub-folders, and `captions.csv`."""
    rng = np.random.default_rng(seed)
    names = [f"{'even' if row % 2 == 0 else 'odd'}/{row}.png" for row in range(num_images)]
    for name in names:
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(folder / "images" / name)
    sentences = make_sentences(num_images * captions_per_image, seed=seed)
    with open(folder / "captions.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "caption"))
        # The captions of an image do not stand together: rows must follow names, not places.
        writer.writerows((names[row % num_images], sentence) for row, sentence in enumerate(sentences))
    return folder
