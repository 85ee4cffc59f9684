"""The example scripts, run as their users run them."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from kdmcse_hf.checkpoint import load_sts_results
from kdmcse_hf.cli import main as kdmcse
from kdmcse_hf.export import export_release
from kdmcse_hf.sts import load_sts
from kdmcse_hf.teacher.cache import TeacherCache
from kdmcse_hf.teacher.shard import CacheError
from kdmcse_hf.world.teacher import TEACHER_FOLDER

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments], capture_output=True, text=True, timeout=600
    )


def test_scores_are_not_recorded_in_a_release_and_nothing_is_computed_for_it(tmp_path: Path) -> None:
    (tmp_path / "kdmcse").mkdir()
    (tmp_path / "kdmcse" / "release.json").write_text("{}")
    done = run("evaluate_sts.py", "--model_name_or_path", str(tmp_path), "--sts_dir", "gone", "--record")
    assert done.returncode == 2
    assert "is a release" in done.stderr and "in the checkpoint that it was made of, and export that" in done.stderr


@pytest.mark.skipif(find_spec("mteb") is not None, reason="mteb is installed")
def test_without_mteb_the_extra_is_named() -> None:
    done = run("evaluate_mteb.py", "--help")
    assert done.returncode == 1
    assert (
        done.stderr
        == "evaluate_mteb.py needs Python 3.11 or later and mteb: mteb is missing. pip install 'kdmcse_hf[mteb]'\n"
    )


def test_train_then_evaluate_then_embed_gives_the_vectors_that_were_scored(
    flags: list[str], world: Path, tmp_path: Path
) -> None:
    done = run("train_kdmcse.py", *flags)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run"
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["best_metric"] == max(e["eval_spearman"] for e in state["log_history"] if "eval_spearman" in e)

    scores = tmp_path / "scores.json"
    done = run(
        "evaluate_sts.py",
        *("--model_name_or_path", str(folder), "--sts_dir", str(world / "sts")),
        *("--output_json", str(scores), "--tasks", "STSB", "--device", "cpu", "--record"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(scores.read_text())
    assert set(found) == {"STSB", "avg"}
    assert found["avg"] == found["STSB"]
    recorded = load_sts_results(folder)
    assert (recorded["scores"], recorded["pairs"]) == (found, {"STSB": len(load_sts(world / "sts", "STSB"))})
    assert recorded["max_length"] == 64  # the student's tokenizer says so
    assert recorded["protocol"]["sentence vector"] == "mean pooling, float32"
    done = run(
        "evaluate_sts.py",
        *("--model_name_or_path", str(folder), "--sts_dir", str(world / "sts"), "--intervals"),
        *("--output_json", str(scores), "--tasks", "STSB", "--device", "cpu"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(scores.read_text()) == pytest.approx(found)
    value, low, high = map(float, re.search(r"STSB (\S+) \[(\S+), (\S+)\]", done.stdout).groups())
    assert low < value < high
    assert value == pytest.approx(found["STSB"], abs=0.01)

    done = run(
        "evaluate_retrieval.py",
        *("--model_name_or_path", str(folder), "--teacher_cache", str(world / "cache")),
        *("--output_json", str(scores), "--device", "cpu"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(scores.read_text())
    assert [(name, part["queries"], part["candidates"]) for name, part in found.items()] == [
        ("caption_to_image", 288, 96),
        ("image_to_caption", 96, 288),
        ("caption_to_caption", 288, 288),
    ]

    (tmp_path / "in.txt").write_text("a small red circle\nthe picture shows a blue square\n")
    arguments = [str(tmp_path / "in.txt"), str(tmp_path / "out.npy"), "--model", str(folder), "--device", "cpu"]
    assert kdmcse(["embed", *arguments]) == 0
    vectors = np.load(tmp_path / "out.npy")
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    sentences = (tmp_path / "in.txt").read_text().splitlines()
    with torch.no_grad():
        expected = model(**tokenizer(sentences, padding=True, return_tensors="pt")).pooler_output
    np.testing.assert_allclose(vectors, expected.numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["simcse", "mcse", "kdmcse_reference"])
def test_the_script_trains_every_preset(preset: str, flags: list[str]) -> None:
    done = run("train_kdmcse.py", *flags, "--preset", preset)
    assert done.returncode == 0, done.stderr
    assert ("image_loss" in done.stdout) == (preset != "simcse")
    assert ("caption_loss" in done.stdout) == (preset == "kdmcse_reference")


@pytest.mark.slow
@pytest.mark.parametrize("without", ["--text_file", "--teacher_cache"])
def test_captions_alone_and_text_alone_train(without: str, flags: list[str]) -> None:
    drop = {without, "--pair_every_n_steps"}
    kept = [flag for place, flag in enumerate(flags) if flag not in drop and flags[place - 1] not in drop]
    preset = ["--preset", "simcse"] if without == "--teacher_cache" else []
    done = run("train_kdmcse.py", *kept, *preset)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--text_file", "gone.txt"), r"gone\.txt does not exist"),
        (("--teacher_cache", "gone"), "gone is not a teacher cache: it has no manifest.json"),
        (("--sts_dir", "gone"), r"sts-dev\.csv is missing"),
        (("--preset", "clip"), "Unknown preset 'clip': expected one of simcse, mcse, kdmcse, kdmcse_plus"),
        (("--image_threshold", "0.8"), "`image_threshold` is '0.8': expected 'none'"),
        (("--image_threshold", "cosine:0.999"), "The threshold of the image term cannot work"),
        (("--pooling", "max"), "`pooling` is 'max'"),
        (("--per_device_train_batch_size", "1"), "A batch of one sentence has no negatives"),
    ],
)
def test_bad_input_ends_in_one_clear_error_before_training(
    change: tuple[str, str], message: str, flags: list[str]
) -> None:
    from train_kdmcse import main

    with pytest.raises((SystemExit, ValueError, OSError)) as caught:
        main([*flags, *change])
    text = str(caught.value)
    if isinstance(caught.value, SystemExit):
        text = run("train_kdmcse.py", *flags, *change).stderr
    assert re.search(message, text)


def test_dropout_reaches_every_layer_or_is_refused(
    flags: list[str], encoder_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    from train_kdmcse import main

    trainer = main([*flags, "--max_steps", "1", "--dropout", "0.3"])
    rates = {module.p for name, module in trainer.model.encoder.named_modules() if hasattr(module, "p")}
    assert rates == {0.3}
    other = ["--model_name_or_path", str(encoder_folder("distilbert")), "--output_dir", str(tmp_path / "other")]
    with pytest.raises(ValueError, match="has no hidden_dropout_prob and attention_probs_dropout_prob"):
        main([*flags, *other, "--dropout", "0.3"])

    # Whoever goes on from what was trained, or from its release, says the same.
    trained = Path(trainer.args.output_dir)
    export_release(trained, tmp_path / "release")
    for number, start in enumerate((trained, tmp_path / "release")):
        place = ["--model_name_or_path", str(start), "--output_dir", str(tmp_path / f"more{number}")]
        trainer = main([*flags, *place, "--max_steps", "1", "--dropout", "0.2"])
        assert {module.p for _, module in trainer.model.encoder.named_modules() if hasattr(module, "p")} == {0.2}
        assert trainer.model.config.text_config.hidden_dropout_prob == 0.2


def test_a_cache_with_a_flipped_bit_is_refused_before_training(flags: list[str], world: Path, tmp_path: Path) -> None:
    from train_kdmcse import main

    shutil.copytree(world / "cache", tmp_path / "cache")
    shard = tmp_path / "cache" / "caption_features-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-7] ^= 4
    shard.write_bytes(content)
    with pytest.raises(CacheError, match=f"{shard} has SHA-256"):
        main([*flags, "--teacher_cache", str(tmp_path / "cache")])


@pytest.mark.slow
def test_extract_features_is_the_command_as_a_script(world: Path, tmp_path: Path) -> None:
    done = run(
        "extract_features.py",
        *("--teacher", str(TEACHER_FOLDER), "--captions", str(world / "captions.csv")),
        *("--images", str(world / "images"), "--cache", str(tmp_path / "cache"), "--no_progress"),
    )
    assert done.returncode == 0, done.stderr
    assert "96 images, 288 captions" in done.stdout
    assert TeacherCache(tmp_path / "cache").manifest == TeacherCache(world / "cache").manifest


@pytest.mark.slow
def test_killing_a_run_in_mid_epoch_costs_nothing_but_time(flags: list[str], tmp_path: Path) -> None:
    settings = ["--max_steps", "16", "--eval_steps", "4", "--save_total_limit", "3"]
    done = run("train_kdmcse.py", *flags, *settings, "--output_dir", str(tmp_path / "straight"))
    assert done.returncode == 0, done.stderr

    command = [sys.executable, str(EXAMPLES / "train_kdmcse.py"), *flags, *settings]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as killed:
        for line in killed.stdout:  # one line a step: die in the middle between two checkpoints
            if "'loss'" in line and (tmp_path / "run" / "checkpoint-4" / "trainer_state.json").exists():
                killed.kill()
    assert killed.returncode == -9
    done = run("train_kdmcse.py", *flags, *settings, "--resume_from_checkpoint", "true")
    assert done.returncode == 0, done.stderr

    def history(folder: Path) -> list[tuple[int, float]]:
        log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        return [(e["step"], e[key]) for e in log for key in ("loss", "eval_spearman") if key in e]

    assert history(tmp_path / "run") == history(tmp_path / "straight")
    assert len(history(tmp_path / "run")) == 20


@pytest.mark.slow
def test_quickstart_prints_its_table_and_leaves_a_model(tmp_path: Path) -> None:
    done = run("quickstart.py", "--output_dir", str(tmp_path / "q"), "--max_steps", "8")
    assert done.returncode == 0, done.stderr
    for name in ("untrained", "simcse", "mcse", "kdmcse"):
        assert re.search(rf"^{name} +-?\d+\.\d\d ", done.stdout, re.MULTILINE)
    assert AutoModel.from_pretrained(tmp_path / "q" / "kdmcse").config.model_type == "kdmcse"
    assert not (tmp_path / "q-2").exists()
