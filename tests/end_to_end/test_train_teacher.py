"""A teacher of our own: trained on pictures of the built-in world, applied, and used to train a student."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModel

from kdmcse_hf.teacher.cache import TeacherCache
from kdmcse_hf.teacher.cache_writer import write_cache
from kdmcse_hf.teacher.captioned_pictures import CaptionedPictures
from kdmcse_hf.teacher.encoder import Teacher
from kdmcse_hf.teacher.extraction import extract_features
from kdmcse_hf.teacher.towers import Towers
from kdmcse_hf.world import write_student, write_world
from kdmcse_hf.world.teacher import TEACHER_FOLDER

EXAMPLES = Path(__file__).parents[2] / "examples"
HELD_OUT = 60


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments], capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches with image features alone: `train`, and `validation` with 60 other pictures; and a student."""
    folder = tmp_path_factory.mktemp("pictures")
    write_world(folder, num_images=360, captions_per_image=4, num_sentences=1, num_sts_pairs=20, seed=5)
    write_student(folder / "student", seed=0)
    captioned = CaptionedPictures.from_files(folder / "captions.csv", folder / "images")
    whole = extract_features(folder / "whole", captioned, Teacher.from_pretrained(TEACHER_FOLDER))
    features = whole.image_features.rows(range(len(whole.images))).astype(np.float32)
    for name, rows in (("train", range(HELD_OUT, 360)), ("validation", range(HELD_OUT))):
        captions = whole.captions.filter(lambda row, rows=rows: row["image_row"] in rows)
        write_cache(
            folder / name,
            images=whole.images.select(rows)["image"][:],
            captions=captions["caption"][:],
            image_rows=[row - rows[0] for row in captions["image_row"]],
            image_features=[features[rows[0] : rows[-1] + 1]],
            caption_features=None,
            teacher={"name": "pictures only"},
            source={},
        )
    return folder


@pytest.fixture
def flags(pictures: Path, tmp_path: Path) -> list[str]:
    return [
        *("--teacher_cache", str(pictures / "train"), "--validation_cache", str(pictures / "validation")),
        *("--tokenizer", str(pictures / "student"), "--output_dir", str(tmp_path / "teacher")),
        *("--hidden_size", "64", "--num_hidden_layers", "0", "--projection_dim", "32", "--max_seq_length", "32"),
        *("--per_device_train_batch_size", "64", "--learning_rate", "5e-3", "--num_train_epochs", "12"),
        *("--use_cpu", "true", "--disable_tqdm", "true", "--logging_steps", "1", "--seed", "1"),
    ]


@pytest.fixture(scope="session")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`teacher` and `clean`, the cache that it made of its training pictures."""
    from train_teacher import main

    folder = tmp_path_factory.mktemp("trained")
    main(
        [
            *("--teacher_cache", str(pictures / "train"), "--validation_cache", str(pictures / "validation")),
            *("--tokenizer", str(pictures / "student"), "--output_dir", str(folder / "teacher")),
            *("--hidden_size", "64", "--num_hidden_layers", "0", "--projection_dim", "32", "--max_seq_length", "32"),
            *("--per_device_train_batch_size", "64", "--learning_rate", "5e-3", "--num_train_epochs", "12"),
            *("--use_cpu", "true", "--disable_tqdm", "true", "--seed", "1"),
            *("--apply", f"{pictures / 'train'}={folder / 'clean'}"),
        ]
    )
    return folder


def test_captions_find_pictures_that_the_teacher_never_saw(trained: Path) -> None:
    record = json.loads((trained / "teacher" / "teacher.json").read_text())
    scores = record["scores"]["validation"]
    print(record["scores"])
    assert scores["caption_to_image_r@1"] > 5 * 100 / HELD_OUT
