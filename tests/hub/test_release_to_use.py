"""From training to use: a run on the built-in world, exported, pushed, deleted, and opened by what the README says."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from loopback_hub import LoopbackHub

from kdmcse_hf import SentenceEncoder
from kdmcse_hf.cli import main
from kdmcse_hf.teacher.captioned_pictures import CaptionedPictures
from kdmcse_hf.teacher.encoder import Teacher
from kdmcse_hf.teacher.extraction import extract_features
from kdmcse_hf.world import write_student, write_world
from kdmcse_hf.world.teacher import TEACHER_FOLDER

pytestmark = [
    pytest.mark.slow,
    # of the client's own code, which uploads large files through an older argument of its HTTP library
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]

ROOT = Path(__file__).parents[2]
# In the order of the README
CLIENTS = ("sentence_transformers", "mteb", "transformers", "remote_code", "kdmcse_hf")


def readme_blocks() -> list[str]:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Use a released checkpoint")[2]
    return re.findall(r"```python\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)


def test_what_the_readme_says_opens_a_pushed_run_in_every_client_with_the_same_vectors(
    api: HfApi, hub: LoopbackHub, clean_python: Callable[[str], Path], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    write_world(work, num_images=24, captions_per_image=3, num_sentences=100, num_sts_pairs=20, seed=0)
    write_student(work / "student", seed=0)
    captioned = CaptionedPictures.from_files(work / "captions.csv", work / "images")
    extract_features(work / "cache", captioned, Teacher.from_pretrained(TEACHER_FOLDER))
    flags = ["--preset", "kdmcse", "--model_name_or_path", str(work / "student"), "--output_dir", str(work / "kdmcse")]
    flags += ["--text_file", str(work / "sentences.txt"), "--teacher_cache", str(work / "cache"), "--max_steps", "2"]
    flags += [
        "--pooling",
        "mean",
        "--pair_every_n_steps",
        "2",
        "--per_device_train_batch_size",
        "8",
        "--use_cpu",
        "true",
    ]
    command = [sys.executable, str(ROOT / "examples" / "train_kdmcse.py"), *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert main(["export", str(work / "kdmcse"), str(work / "release")]) == 0
    api.create_repo("name")
    api.upload_folder(repo_id="alice/name", folder_path=work / "release")
    sentences = ["a small red circle is above a square", "a tiny crimson disc"]
    expected = SentenceEncoder.from_pretrained(work / "kdmcse", device="cpu")(sentences)
    shutil.rmtree(work)

    blocks = readme_blocks()
    assert len(blocks) == len(CLIENTS)
    for client, block in zip(CLIENTS, blocks, strict=True):
        assert str(sentences[0]) in block
        out, home = tmp_path / f"{client}.npy", tmp_path / client  # a home of its own: nothing is cached
        program = f"{block}\nimport numpy\nnumpy.save({str(out)!r}, vectors)\n"
        environment = hub.environment(home, api.token) | {"TQDM_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment.pop("PYTHONPATH", None)
        home.mkdir()
        done = subprocess.run(
            [str(clean_python(client)), "-c", program], env=environment, cwd=home, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        np.testing.assert_array_equal(np.load(out), expected, err_msg=client)
