from pathlib import Path

import pytest

from kdmcse_hf.teacher.captioned_pictures import CaptionedPictures
from kdmcse_hf.teacher.encoder import Teacher
from kdmcse_hf.teacher.extraction import extract_features
from kdmcse_hf.world import write_student, write_world
from kdmcse_hf.world.teacher import TEACHER_FOLDER


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small world on disk: text, pictures, captions, scored pairs, a student, and a real CLIP's features."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, num_images=96, captions_per_image=3, num_sentences=800, num_sts_pairs=60, seed=0)
    write_student(folder / "student", seed=0)
    captioned = CaptionedPictures.from_files(folder / "captions.csv", folder / "images")
    extract_features(folder / "cache", captioned, Teacher.from_pretrained(TEACHER_FOLDER))
    return folder


@pytest.fixture
def flags(world: Path, tmp_path: Path) -> list[str]:
    """The main job on the small world, two steps of it."""
    return [
        *("--preset", "kdmcse", "--model_name_or_path", str(world / "student"), "--output_dir", str(tmp_path / "run")),
        *("--text_file", str(world / "sentences.txt"), "--teacher_cache", str(world / "cache")),
        *("--sts_dir", str(world / "sts"), "--max_steps", "2", "--eval_steps", "1", "--logging_steps", "1"),
        *("--per_device_train_batch_size", "16", "--pair_every_n_steps", "2", "--seed", "1"),
        *("--use_cpu", "true", "--disable_tqdm", "true", "--pooling", "mean"),
    ]
