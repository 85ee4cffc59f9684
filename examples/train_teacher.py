"""Train a teacher whose text side learns from pictures alone, and make caches of it for `train_kdmcse.py`.

    kdmcse import-features cache/imagenet ... --split train          # or `kdmcse extract` with any image encoder
    kdmcse import-features cache/imagenet-validation ... --split validation
    python examples/train_teacher.py --teacher_cache cache/imagenet --validation_cache cache/imagenet-validation \
        --tokenizer bert-base-uncased --output_dir teacher --folds 4 --apply cache/imagenet=cache/clean
    python examples/train_teacher.py --output_dir teacher --apply cache/imagenet-test=cache/clean-test

It serves languages and domains that have no CLIP. Without `--text_model` the text tower starts from random weights: it
knows no more of language than the captions of the training pictures. Without `--teacher_cache` nothing is trained: the
teacher in `--output_dir` is applied to caches of the same image features.
"""

import copy
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedTokenizerBase, set_seed

from kdmcse_hf import KDMCSEModel, TeacherCache
from kdmcse_hf.arguments import parse_arguments
from kdmcse_hf.checkpoint import differences, resume_point
from kdmcse_hf.data import CaptionPairs, TrainingData
from kdmcse_hf.fingerprint import tokenizer_digest
from kdmcse_hf.teacher.cache import MANIFEST
from kdmcse_hf.teacher.cache_writer import versions
from kdmcse_hf.teacher.pairs import TeacherPairs
from kdmcse_hf.teacher.tower_training import (
    Contrast,
    TowerTrainer,
    TowerTrainingArguments,
    build_towers,
    forget_unseen_words,
    score_cache,
    score_towers,
)
from kdmcse_hf.teacher.towers import RECORD, Towers, fold_of_images
from kdmcse_hf.tokenizer import load_tokenizer

_OF_TOKENIZER = ("tokenizer", "max_seq_length")
_NOT_OF_THE_RESULT = {"save_total_limit", "restore_callback_states_from_checkpoint", "remove_unused_columns"}


@dataclass
class ModelArguments:
    tokenizer: str | None = field(default=None, metadata={"help": "A folder or Hub name; default: the text model's."})
    text_model: str | None = field(
        default=None, metadata={"help": "A pretrained text encoder to start from; default: a new one, without any."}
    )
    hidden_size: int = field(default=256, metadata={"help": "Width of a new text tower."})
    num_hidden_layers: int = field(
        default=0, metadata={"help": "Layers of a new text tower; without any it knows words, not their order."}
    )
    dropout: float = field(default=0.3, metadata={"help": "Dropout in a new text tower."})
    projection_dim: int = field(default=256, metadata={"help": "Width of the space that both towers share."})
    normalize_image_features: bool = field(default=False, metadata={"help": "Normalise image features first."})
    max_seq_length: int = field(default=40, metadata={"help": "Tokens after which every text is cut."})


@dataclass
class DataArguments:
    teacher_cache: str | None = field(default=None, metadata={"help": "Image features and captions to train on."})
    validation_cache: str | None = field(default=None, metadata={"help": "The same of held-out pictures."})
    folds: int = field(
        default=0,
        metadata={
            "help": "Train that many more text towers, each without a share of the pictures, and let each embed the "
            "captions that it never saw: towers know what they were trained on by heart, noise included."
        },
    )
    apply: list[str] = field(
        default_factory=list, metadata={"help": "FROM=TO: make a cache TO of the pictures and captions of cache FROM."}
    )


def main(argv: Sequence[str]) -> dict[str, dict[str, float]]:
    model_args, data_args, args = parse_arguments((ModelArguments, DataArguments, TowerTrainingArguments), argv)
    wanted = [_split(pair) for pair in data_args.apply]  # before hours of training
    if data_args.teacher_cache:
        _train(model_args, data_args, args)
    towers = Towers.from_pretrained(args.output_dir, args.device)
    found = {}
    for source, target in wanted:
        cache = towers.write_cache(target, source)
        found[target] = score_cache(cache)
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
    """Leaves the towers in `args.output_dir`, and those of the folds below it."""
    if (args.resume_from_checkpoint or "false").lower() not in ("true", "false"):
        raise ValueError(
            f"`--resume_from_checkpoint {args.resume_from_checkpoint}`: expected true or false; each tower goes on "
            "from its own newest checkpoint."
        )
    if data_args.validation_cache is None:
        raise ValueError("`--validation_cache` is missing: held-out pictures say when the teacher is good.")
    name = model_args.tokenizer or model_args.text_model
    if name is None:
        raise ValueError("`--tokenizer` is missing: the student's is a good choice.")
    cache, validation = TeacherCache(data_args.teacher_cache), TeacherCache(data_args.validation_cache)
    for used in (cache, validation):
        used.verify(progress=not args.disable_tqdm)
        if not len(TeacherPairs(used)):
            raise ValueError(f"{used.folder} has no caption whose picture could be read: there is nothing to learn.")
    ours, theirs = cache.manifest["teacher"], validation.manifest["teacher"]
    if ours["digest"] != theirs["digest"]:
        raise ValueError(
            f"{validation.folder} holds features of teacher {theirs['name']!r}, {cache.folder} of {ours['name']!r}: "
            "both must be made by the same one."
        )
    tokenizer = load_tokenizer(name)
    tokenizer.model_max_length = min(model_args.max_seq_length, tokenizer.model_max_length)
    output_dir, folds = Path(args.output_dir), data_args.folds
    fit = partial(_fit, model_args, args, cache, validation, tokenizer, folds)
    record = fit(output_dir)
    if record.get("folds_to_train"):
        joint = KDMCSEModel.from_pretrained(output_dir)
        fold, trained = fold_of_images(len(cache.images), folds), []
        for number in range(folds):
            images = np.flatnonzero(fold != number)
            found = fit(output_dir / f"fold-{number}", number, images, joint.image_projection)
            trained.append({key: found[key] for key in ("pictures", "settings", "best_step", "scores")})
        del record["folds_to_train"]
        Towers(joint, tokenizer).save(output_dir, {**record, "folds": folds, "fold_towers": trained})


def _fit(
    model_args: ModelArguments,
    args: TowerTrainingArguments,
    cache: TeacherCache,
    validation: TeacherCache,
    tokenizer: PreTrainedTokenizerBase,
    folds: int,
    folder: Path,
    number: int | None = None,
    images: NDArray[np.int64] | None = None,
    pictures: nn.Module | None = None,
) -> dict[str, Any]:
    """Trains towers into `folder`, unless they lie there from a run that was killed later; gives their record.

    Args:
        folds: how many towers there will be beside the one that sees all.
        number: of the fold.
        images: train on these pictures alone.
        pictures: use this image projection as it is, and train the text tower only.
    """
    settings = {key: value for key, value in dataclasses.asdict(model_args).items() if key not in _OF_TOKENIZER}
    text_model = settings["text_model"]
    if text_model and Path(text_model).is_dir():
        settings["text_model"] = Path(text_model).name  # records are shared
    own = sorted(TowerTrainingArguments.__annotations__.keys() - _NOT_OF_THE_RESULT)
    settings |= {name: getattr(args, name) for name in ("seed", "bf16", *own)}
    made_of = {
        "caches": {"teacher_cache": cache.manifest["checksum"], "validation_cache": validation.manifest["checksum"]},
        "text": {"tokenizer": tokenizer_digest(tokenizer), "max_seq_length": tokenizer.model_max_length},
        "fold": {"number": number, "folds": folds},
        "settings": settings,
    }
    resume = _resume(folder, args.resume_from_checkpoint, made_of)
    if (folder / RECORD).exists():
        return dict(json.loads((folder / RECORD).read_text(encoding="utf-8")))
    set_seed(args.seed)  # towers of all folds start alike
    args = copy.copy(args)
    args.output_dir = str(folder)
    pairs = CaptionPairs(TeacherPairs(cache, images=images), tokenizer, max_length=tokenizer.model_max_length)
    data = TrainingData(None, pairs, frozenset({"image"}))
    of_model = {key: value for key, value in dataclasses.asdict(model_args).items() if key not in _OF_TOKENIZER}
    towers = build_towers(tokenizer, image_embed_dim=cache.image_features.width, **of_model)
    if pictures is not None and towers.image_projection is not None:
        towers.image_projection.load_state_dict(pictures.state_dict())
        towers.image_projection.requires_grad_(False)
    contrast = Contrast(towers, tokenizer, args.image_dropout, args.word_dropout)
    trainer = TowerTrainer(contrast, args, data, validation, tokenizer)
    trainer.train(resume_from_checkpoint=resume)
    if model_args.text_model is None and args.word_dropout:
        forget_unseen_words(towers, data, tokenizer.unk_token_id)
    finished = Towers(towers, tokenizer)
    scores = {"validation": score_towers(finished, validation)}
    if images is None:
        scores["train"] = score_towers(finished, cache)
    print(folder, json.dumps(scores, indent=2))
    record = {
        "base": cache.manifest["teacher"],
        "captions": {"checksum": cache.manifest["checksum"], "source": cache.manifest["source"]},
        "folds": 0,
        **({"folds_to_train": folds} if folds and number is None else {}),
        "pictures": len(np.unique(pairs.teacher.image_rows)),
        "settings": settings,
        "best_step": trainer.state.best_global_step,
        "scores": scores,
        "versions": versions(),
    }
    finished.save(folder, record)
    return record


def _resume(folder: Path, wanted: str | None, made_of: dict[str, Any]) -> str | None:
    """The checkpoint to go on from, if any, after making sure that the folder is of the same run."""
    path = folder / "made_of.json"
    if (folder / RECORD).exists() and (wanted or "false").lower() == "false":
        raise ValueError(f"{folder} holds a run: add `--resume_from_checkpoint true`, or choose another --output_dir.")
    resume = resume_point(wanted, folder)
    if resume or (folder / RECORD).exists():
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if different := differences(before, made_of, list(made_of)):
            raise ValueError(
                f"{folder} holds another run: {'; '.join(different)}. Go on with its settings, or choose another "
                "--output_dir."
            )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made_of, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return resume


if __name__ == "__main__":
    main(sys.argv[1:])
