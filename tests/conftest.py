"""What all tests share: an offline environment, a seed, tiny encoders on disk, a small cache."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import ENCODER_CONFIGS, make_cache, make_tokenizer
from transformers import AutoModel

from kdmcse_hf.teacher.cache import TeacherCache

RECORDED = Path(__file__).parent / "parity" / "references" / "published_losses.safetensors"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        default=RECORDED,
        help="losses of the published code to compare with, in the recorded file's format",
    )


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with a tiny random encoder of the given type and its tokenizer."""
    made: dict[str, Path] = {}

    def make(kind: str = "bert") -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            torch.manual_seed(1)
            AutoModel.from_config(ENCODER_CONFIGS[kind]).save_pretrained(folder)
            make_tokenizer().save_pretrained(folder)
            made[kind] = folder
        return made[kind]

    return make


@pytest.fixture
def cache(tmp_path: Path) -> TeacherCache:
    return make_cache(tmp_path / "cache")
