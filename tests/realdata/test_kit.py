"""Against the real data kit that KDMCSE_DATA names: `KDMCSE_DATA=FOLDER python -m pytest -m realdata`."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel

from kdmcse_hf.calibration import calibrate
from kdmcse_hf.embedding import SentenceEncoder
from kdmcse_hf.presets import PRESETS
from kdmcse_hf.sts import evaluate_sts, load_sts
from kdmcse_hf.teacher.feature_import import import_features
from kdmcse_hf.teacher.pairs import TeacherPairs
from kdmcse_hf.tokenizer import load_tokenizer
from kdmcse_hf.transfer import load_transfer

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif("KDMCSE_DATA" not in os.environ, reason="KDMCSE_DATA names no data kit"),
]


@pytest.fixture(scope="module")
def kit() -> Path:
    return Path(os.environ["KDMCSE_DATA"])


def test_the_sets_have_their_known_sizes(kit: Path) -> None:
    sizes = {"STS12": 3108, "STS13": 1500, "STS14": 3750, "STS15": 3000, "STS16": 1186, "STSB": 1379, "SICKR": 4927}
    assert {task: len(load_sts(kit / "sts", task)) for task in sizes} == sizes
    assert len(load_sts(kit / "sts", "STSB", "dev")) == 1500


def test_the_student_scores_as_another_scorer_found(kit: Path) -> None:
    model = AutoModel.from_pretrained(kit / "student", dtype=torch.float32)
    encoder = SentenceEncoder(model, load_tokenizer(kit / "student"), pooling="mean")
    expected = {
        "STS12": 41.40,
        "STS13": 63.36,
        "STS14": 52.53,
        "STS15": 67.21,
        "STS16": 69.66,
        "STSB": 55.88,
        "SICKR": 60.03,
        "avg": 58.58,
    }
    assert evaluate_sts(encoder, kit / "sts") == pytest.approx(expected, abs=0.02)


def test_stored_features_import_row_for_row_and_the_filter_works_on_them(kit: Path, tmp_path: Path) -> None:
    features = kit / "teacher" / "dual_encoder_256.safetensors"
    cache = import_features(
        tmp_path / "cache",
        captions_file=kit / "flickr8k" / "captions.csv",
        image_features_file=features,
        image_names_file=kit / "teacher" / "image_names.txt",
        caption_features_file=features,
        teacher_name="dual_encoder_256",
        splits_file=kit / "flickr8k" / "splits.csv",
        split="train",
    )
    assert (len(cache.images), len(cache.captions)) == (6000, 30000)
    names = (kit / "teacher" / "image_names.txt").read_text().splitlines()
    with safe_open(features, "np") as file:
        stored = file.get_tensor("image_features")
    for row in (0, 17, 5999):
        expected = stored[names.index(cache.images[row]["image"])]
        np.testing.assert_array_equal(cache.image_features.rows([row])[0], expected)
    pairs = TeacherPairs(cache)
    _, reports = calibrate(PRESETS["kdmcse"], pairs.sample(2048, PRESETS["kdmcse"].needs))
    assert [report.term for report in reports] == ["image", "caption"]
    assert all(1e-5 < report.filter_rate < 0.05 for report in reports)


def test_the_transfer_sets_have_their_known_sizes(kit: Path) -> None:
    sizes = {
        "MR": [10662],
        "CR": [3775],
        "SUBJ": [10000],
        "MPQA": [10606],
        "SST2": [67349, 872, 1821],
        "TREC": [5452, 500],
        "MRPC": [4076, 1725],
    }
    assert {task: [len(part.labels) for part in load_transfer(kit / "transfer", task)] for task in sizes} == sizes
