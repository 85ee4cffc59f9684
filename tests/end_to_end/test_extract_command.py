"""`kdmcse extract` as its users run it: as a command, killed, on several processes."""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdmcse_hf.cli import main
from kdmcse_hf.teacher.cache import TeacherCache
from kdmcse_hf.world.teacher import TEACHER_FOLDER

# One thread: two processes of one thread each must find the bits that one process finds.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}


def command(world: Path, cache: Path, *more: str) -> list[str]:
    return [
        *("extract", str(cache), "--teacher", str(TEACHER_FOLDER), "--rows_per_shard", "16", "--batch_size", "8"),
        *("--captions", str(world / "captions.csv"), "--images", str(world / "images"), "--num_workers", "1", *more),
    ]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )


def content(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def straight(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache as one undisturbed process makes it."""
    folder = tmp_path_factory.mktemp("straight") / "cache"
    done = run("-m", "kdmcse_hf.cli", *command(world, folder))
    assert done.returncode == 0, done.stderr
    assert "96 images, 288 captions; skipped 0 images and 0 captions" in done.stdout
    return folder


@pytest.mark.slow
def test_extraction_that_is_killed_again_and_again_ends_with_the_same_bytes(
    world: Path, straight: Path, tmp_path: Path
) -> None:
    folder, rng, kills, finished = tmp_path / "cache", random.Random(0), 0, False
    while not finished:
        before = content(folder) if folder.exists() else {}
        with subprocess.Popen(
            [sys.executable, "-m", "kdmcse_hf.cli", *command(world, folder)],
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            # Wait until it works, then for a random moment of that work; the last run is left alone.
            while process.poll() is None and kills < 4 and len(list(folder.glob("*"))) <= max(1, len(before)):
                time.sleep(0.005)
            if kills < 4:
                time.sleep(rng.uniform(0, 0.15))
                if process.poll() is None:
                    os.killpg(process.pid, 9)
                    kills += 1
            finished = process.wait() == 0
        # Nothing that was finished is lost.
        now = content(folder)
        assert {name: digest for name, digest in before.items() if name.endswith(".safetensors")}.items() <= now.items()
    assert kills >= 2
    assert content(folder) == content(straight)
    TeacherCache(folder).verify()


@pytest.mark.slow
def test_two_processes_make_the_cache_that_one_makes(world: Path, straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "kdmcse_hf.cli"]
    done = run(*launch, *command(world, folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("96 images, 288 captions") == 1  # they know of each other: one speaks for both
    assert content(folder) == content(straight)


def test_verify_names_the_file_and_the_difference(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cache"
    assert main(command(world, folder)) == 0
    capsys.readouterr()
    assert main(["verify", str(folder), "--captions", str(world / "captions.csv")]) == 0
    assert "is as its manifest says: 96 images, 288 captions, teacher teacher_weights" in capsys.readouterr().out

    other = tmp_path / "other.csv"
    other.write_text((world / "captions.csv").read_text() + "00000.png,one more\n")
    assert main(["verify", str(folder), "--captions", str(other)]) == 1
    assert "its rows may belong to other captions" in capsys.readouterr().err

    shard = folder / "image_features-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert main(["verify", str(folder)]) == 1
    assert f"{shard} has SHA-256" in capsys.readouterr().err
    shard.write_bytes(whole[:-1])
    assert main(["verify", str(folder)]) == 1
    assert f"{shard} is {len(whole) - 1:,} bytes long, but the manifest says {len(whole):,}" in capsys.readouterr().err


def test_a_coco_file_and_a_table_of_the_same_captions_give_the_same_features(world: Path, tmp_path: Path) -> None:
    table = TeacherCache(world / "cache")
    names = table.images["image"][:]
    coco = {
        "images": [{"id": row, "file_name": name} for row, name in enumerate(names)],
        "annotations": [{"image_id": row["image_row"], "caption": row["caption"]} for row in table.captions],
    }
    (tmp_path / "captions_train.json").write_text(json.dumps(coco))
    arguments = ["--captions", str(tmp_path / "captions_train.json"), "--images", str(world / "images")]
    assert main(["extract", str(tmp_path / "cache"), "--teacher", str(TEACHER_FOLDER), *arguments]) == 0
    cache = TeacherCache(tmp_path / "cache")
    assert cache.captions.to_dict() == table.captions.to_dict()
    for kind in ("image_features", "caption_features"):
        ours, theirs = cache.manifest[kind]["shards"], table.manifest[kind]["shards"]
        assert [shard["sha256"] for shard in ours] == [shard["sha256"] for shard in theirs]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--captions", "c.csv"], "--captions and --images go together"),
        ([], "Give either --captions and --images, or --dataset"),
        (["--captions", "gone.csv", "--images", "."], "gone.csv does not exist"),
        (["--captions", "gone.csv", "--images", "gone"], "gone does not exist or is not a folder"),
    ],
)
def test_bad_arguments_are_one_line_on_stderr(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["extract", str(tmp_path / "cache"), "--teacher", str(TEACHER_FOLDER), *arguments]) == 1
    assert message in capsys.readouterr().err
