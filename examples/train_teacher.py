"""Train a teacher whose text side learns from pictures alone, and make caches of it for `train_kdmcse.py`.

    kdmcse import-features cache/imagenet ... --split train          # or `kdmcse extract` with any image encoder
    kdmcse import-features cache/imagenet-validation ... --split validation
    python examples/train_teacher.py --teacher_cache cache/imagenet --validation_cache cache/imagenet-validation \
        --tokenizer bert-base-uncased --output_dir teacher --apply cache/imagenet=cache/clean
    python examples/train_teacher.py --output_dir teacher --apply cache/imagenet-test=cache/clean-test

It serves languages and domains that have no CLIP. Without `--text_model` the text tower starts from random weights: it
knows no more of language than the captions of the training pictures. Without `--teacher_cache` nothing is trained: the
teacher in `--output_dir` is applied to caches of the same image features.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import set_seed

from kdmcse_hf import TeacherCache
from kdmcse_hf.arguments import parse_arguments
from kdmcse_hf.checkpoint import last_complete_checkpoint
from kdmcse_hf.data import CaptionPairs, TrainingData
from kdmcse_hf.teacher.cache import MANIFEST
from kdmcse_hf.teacher.cache_writer import versions
from kdmcse_hf.teacher.pairs import TeacherPairs
from kdmcse_hf.teacher.tower_training import (
    Contrast,
    TowerTrainer,
    TowerTrainingArguments,
    build_towers,
    forget_unseen_words,
    score_towers,
)
from kdmcse_hf.teacher.towers import RECORD, Towers
from kdmcse_hf.tokenizer import load_tokenizer


@dataclass
class ModelArguments:
    tokenizer: str | None = field(default=None, metadata={"help": "A folder or Hub name; default: the text model's."})
    text_model: str | None = field(
        default=None, metadata={"help": "A pretrained text encoder to start from; default: a new one, without any."}
    )
    hidden_size: int = field(default=256, metadata={"help": "Width of a new text tower."})
    num_hidden_layers: int = field(default=2, metadata={"help": "Layers of a new text tower."})
    dropout: float = field(default=0.1, metadata={"help": "Dropout in a new text tower."})
    projection_dim: int = field(default=256, metadata={"help": "Width of the space that both towers share."})
    normalize_image_features: bool = field(default=False, metadata={"help": "Normalise image features first."})
    max_seq_length: int = field(default=40, metadata={"help": "Tokens after which every text is cut."})


@dataclass
class DataArguments:
    teacher_cache: str | None = field(default=None, metadata={"help": "Image features and captions to train on."})
    validation_cache: str | None = field(default=None, metadata={"help": "The same of held-out pictures."})
    apply: list[str] = field(
        default_factory=list, metadata={"help": "FROM=TO: make a cache TO of the pictures and captions of cache FROM."}
    )


def main(argv: Sequence[str]) -> dict[str, dict[str, float]]:
    model_args, data_args, args = parse_arguments((ModelArguments, DataArguments, TowerTrainingArguments), argv)
    wanted = [_split(pair) for pair in data_args.apply]  # before hours of training
    if data_args.teacher_cache:
        _train(model_args, data_args, args)
    towers = Towers.from_pretrained(args.output_dir)
    found = {}
    for source, target in wanted:
        cache = towers.write_cache(target, source)
        found[target] = score_towers(towers, source)
        print(f"{cache.folder}: {len(cache.images):,} images, {len(cache.captions):,} captions")
        print("  " + "  ".join(f"{name} {value:.4g}" for name, value in found[target].items()))
    return found


def _split(pair: str) -> tuple[TeacherCache, str]:
    source, equals, target = pair.partition("=")
    if not (source and equals and target):
        raise ValueError(f"`--apply {pair}`: expected FROM=TO, the folder of a cache and one to make.")
    if (Path(target) / MANIFEST).exists():
        raise ValueError(f"{target} already holds a teacher cache: choose another folder, or remove it first.")
    return TeacherCache(source), target


def _train(model_args: ModelArguments, data_args: DataArguments, args: TowerTrainingArguments) -> None:
    """Leaves the best epoch's towers in `args.output_dir`."""
    if data_args.validation_cache is None:
        raise ValueError("`--validation_cache` is missing: held-out pictures say when the teacher is good.")
    if (Path(args.output_dir) / RECORD).exists():
        raise ValueError(f"{args.output_dir} already holds a trained teacher: choose another --output_dir.")
    newest = last_complete_checkpoint(args.output_dir)
    if newest and args.resume_from_checkpoint is None:
        raise ValueError(f"{newest} exists: add `--resume_from_checkpoint true`, or choose another --output_dir.")
    resume = args.resume_from_checkpoint
    if resume is not None and resume.lower() == "true":
        resume = newest
    set_seed(args.seed)

    # 1. Captions and the features of their pictures
    cache, validation = TeacherCache(data_args.teacher_cache), TeacherCache(data_args.validation_cache)
    cache.verify(progress=not args.disable_tqdm)
    name = model_args.tokenizer or model_args.text_model
    if name is None:
        raise ValueError("`--tokenizer` is missing: the student's is a good choice.")
    tokenizer = load_tokenizer(name)
    tokenizer.model_max_length = min(model_args.max_seq_length, tokenizer.model_max_length)
    pairs = CaptionPairs(TeacherPairs(cache), tokenizer, max_length=tokenizer.model_max_length)
    data = TrainingData(None, pairs, frozenset({"image"}))

    # 2. Towers
    settings = {key: value for key, value in dataclasses.asdict(model_args).items() if key != "tokenizer"}
    max_length = settings.pop("max_seq_length")
    towers = build_towers(tokenizer, image_embed_dim=cache.image_features.width, **settings)

    # 3. Train, keep the epoch that retrieves best, and write down how it was made
    contrast = Contrast(towers, tokenizer, args.image_dropout, args.word_dropout)
    trainer = TowerTrainer(contrast, args, data, validation, tokenizer)
    trainer.train(resume_from_checkpoint=resume)
    if model_args.text_model is None and args.word_dropout:
        forget_unseen_words(towers, data, tokenizer.unk_token_id)
    finished = Towers(towers, tokenizer)
    scores = {"validation": score_towers(finished, validation), "train": score_towers(finished, cache)}
    finished.save(args.output_dir, _record(cache, settings, max_length, args, trainer, scores))
    print(json.dumps(scores, indent=2))


def _record(
    cache: TeacherCache,
    settings: dict[str, Any],
    max_length: int,
    args: TowerTrainingArguments,
    trainer: TowerTrainer,
    scores: dict[str, dict[str, float]],
) -> dict[str, Any]:
    """What the manifest of every cache of this teacher will say."""
    own = {f.name for f in dataclasses.fields(TowerTrainingArguments)} & TowerTrainingArguments.__annotations__.keys()
    return {
        "name": Path(args.output_dir).resolve().name,
        "base": cache.manifest["teacher"],
        "captions": {"checksum": cache.manifest["checksum"], "source": cache.manifest["source"]},
        "text": "text model" if settings["text_model"] else "from random weights, on these captions alone",
        "settings": {
            **settings,
            "bf16": args.bf16,
            "seed": args.seed,
            **{name: getattr(args, name) for name in sorted(own)},
        },
        "best_step": trainer.state.best_global_step,
        "scores": scores,
        "versions": versions(),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
