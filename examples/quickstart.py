"""The main job on the built-in world, offline and in minutes: train SimCSE, MCSE and KDMCSE with one budget, score
them on held-out sentence pairs, compare the filter with the truth, and open the result with `AutoModel`.

    python examples/quickstart.py --output_dir runs/quickstart
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from train_kdmcse import main as train
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from kdmcse_hf import KDMCSETrainer, SentenceEncoder, audit_pairs
from kdmcse_hf.sts import load_sts, score_pairs
from kdmcse_hf.teacher.captioned_pictures import CaptionedPictures
from kdmcse_hf.teacher.encoder import Teacher
from kdmcse_hf.teacher.extraction import extract_features
from kdmcse_hf.world import load_truth, write_student, write_world
from kdmcse_hf.world.teacher import TEACHER_FOLDER

PRESETS = ("simcse", "mcse", "kdmcse")
BATCH = 64


def make_world(folder: Path, seed: int) -> None:
    """Sentences, pictures with captions, sentence pairs; an untrained student; what a small CLIP says of it all."""
    write_world(folder, num_images=2000, num_sentences=20000, seed=seed)
    write_student(folder / "student", seed=seed)
    captioned = CaptionedPictures.from_files(folder / "captions.csv", folder / "images")
    extract_features(folder / "cache", captioned, Teacher.from_pretrained(TEACHER_FOLDER))


def train_preset(preset: str, world: Path, output_dir: Path, steps: int, seed: int) -> tuple[KDMCSETrainer, float]:
    """One run; everything but the preset is the same for all. Returns the trainer and the seconds it took."""
    start = time.perf_counter()
    trainer = train(
        [
            *("--preset", preset, "--model_name_or_path", str(world / "student"), "--pooling", "mean"),
            *("--text_file", str(world / "sentences.txt"), "--teacher_cache", str(world / "cache")),
            *("--output_dir", str(output_dir), "--sts_dir", str(world / "sts"), "--seed", str(seed)),
            *("--max_steps", str(steps), "--eval_steps", str(steps // 4), "--logging_steps", str(steps // 4)),
            *("--per_device_train_batch_size", str(BATCH), "--learning_rate", "1e-3", "--warmup_steps", "0.1"),
            *("--pair_every_n_steps", "2", "--cross_modal_weight", "0.3", "--captions_per_image", "all"),
            *("--disable_tqdm", "true", "--use_cpu", "true"),
        ]
    )
    return trainer, time.perf_counter() - start


def filter_quality(trainer: KDMCSETrainer, world: Path) -> tuple[float | None, float | None] | None:
    """Precision and recall of the image term's filter, over batches as training draws them."""
    if trainer.objective.threshold("image") is None:
        return None
    pairs, truth = trainer.train_dataset.pairs.teacher, load_truth(world)
    audit = audit_pairs(pairs, trainer.objective, batch_size=BATCH, truth=truth.caption_true_of_image)
    found = audit.maps[trainer.objective.image_filter_source].filters[0]
    return found.precision, found.recall


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="if it is not empty, a numbered one beside it")
    parser.add_argument("--max_steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    wanted, number = args.output_dir, 1
    while args.output_dir.exists() and any(args.output_dir.iterdir()):
        number += 1
        args.output_dir = wanted.with_name(f"{wanted.name}-{number}")
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    print("1. Drawing the world, and asking the teacher about it")
    world = args.output_dir / "world"
    make_world(world, args.seed)
    test = load_sts(world / "sts", "STSB", "test")

    print(f"2. Training {', '.join(PRESETS)}: {args.max_steps} steps each")
    untrained = SentenceEncoder(
        AutoModel.from_pretrained(world / "student"), AutoTokenizer.from_pretrained(world / "student"), pooling="mean"
    )
    rows = [("untrained", score_pairs(untrained, test), None, 0.0)]
    for preset in PRESETS:
        trainer, seconds = train_preset(preset, world, args.output_dir / preset, args.max_steps, args.seed)
        encoder = SentenceEncoder(trainer.model, trainer.processing_class)
        rows.append((preset, score_pairs(encoder, test), filter_quality(trainer, world), seconds))

    print("\n3. Held-out sentence pairs (Spearman x 100; alignment and uniformity: lower is better)")
    print(f"{'':10}{'Spearman':>10}{'alignment':>11}{'uniformity':>12}{'filter precision, recall':>27}{'seconds':>9}")
    for name, scores, quality, seconds in rows:
        found = "-" if quality is None else f"{quality[0]:.2f}, {quality[1]:.2f}"
        print(
            f"{name:10}{scores['spearman']:10.2f}{scores['alignment']:11.3f}{scores['uniformity']:12.3f}"
            f"{found:>27}{seconds:9.1f}"
        )

    print("\n4. Opening the result with AutoModel")
    folder = args.output_dir / PRESETS[-1]
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    sentences = [
        "a small red circle",
        "a tiny crimson disc",
        "a large blue triangle",
    ]
    with torch.no_grad():
        vectors = model(**tokenizer(sentences, padding=True, return_tensors="pt")).pooler_output
    cosine = torch.cosine_similarity(vectors[:1], vectors[1:])
    print(f"cosine with {sentences[0]!r}:")
    for sentence, value in zip(sentences[1:], cosine.tolist(), strict=True):
        print(f"  {value:.3f}  {sentence!r}")
    print(f"\nThe KDMCSE model is in {folder.resolve()}")


if __name__ == "__main__":
    main(sys.argv[1:])
