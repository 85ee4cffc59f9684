"""A teacher of our own: trained on pictures of the built-in world, applied, and used to train a student."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_cache, make_sentences, make_tokenizer
from transformers import AutoModel

from kdmcse_hf.losses import cosine_matrix
from kdmcse_hf.teacher.cache import TeacherCache
from kdmcse_hf.teacher.cache_writer import write_cache
from kdmcse_hf.teacher.captioned_pictures import CaptionedPictures
from kdmcse_hf.teacher.encoder import Teacher
from kdmcse_hf.teacher.extraction import extract_features
from kdmcse_hf.teacher.shard import CacheError
from kdmcse_hf.teacher.tower_training import Contrast, build_towers, score_cache
from kdmcse_hf.teacher.towers import Towers, fold_of_images
from kdmcse_hf.world import write_student, write_world
from kdmcse_hf.world.teacher import TEACHER_FOLDER

EXAMPLES = Path(__file__).parents[2] / "examples"
PICTURES, HELD_OUT, FOLDS = 260, 60, 2


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments], capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches with image features alone: `train`, and `validation` with 60 other pictures; and a student."""
    folder = tmp_path_factory.mktemp("pictures")
    write_world(folder, num_images=PICTURES, captions_per_image=4, num_sentences=1, num_sts_pairs=20, seed=5)
    write_student(folder / "student", seed=0)
    captioned = CaptionedPictures.from_files(folder / "captions.csv", folder / "images")
    whole = extract_features(folder / "whole", captioned, Teacher.from_pretrained(TEACHER_FOLDER))
    features = whole.image_features.rows(range(len(whole.images))).astype(np.float32)
    for name, rows in (("train", range(HELD_OUT, PICTURES)), ("validation", range(HELD_OUT))):
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


def settings(pictures: Path, output_dir: Path) -> list[str]:
    return [
        *("--teacher_cache", str(pictures / "train"), "--validation_cache", str(pictures / "validation")),
        *("--tokenizer", str(pictures / "student"), "--output_dir", str(output_dir)),
        *("--hidden_size", "64", "--num_hidden_layers", "0", "--projection_dim", "32", "--max_seq_length", "32"),
        *("--per_device_train_batch_size", "64", "--learning_rate", "1e-2", "--num_train_epochs", "6"),
        *("--use_cpu", "true", "--disable_tqdm", "true", "--logging_steps", "1", "--seed", "1"),
    ]


@pytest.fixture
def flags(pictures: Path, tmp_path: Path) -> list[str]:
    return settings(pictures, tmp_path / "teacher")


@pytest.fixture(scope="session")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`teacher`, and the caches `clean` and `validation` that it made."""
    from train_teacher import main

    folder = tmp_path_factory.mktemp("trained")
    main(
        [
            *settings(pictures, folder / "teacher"),
            *("--folds", str(FOLDS), "--apply", f"{pictures / 'train'}={folder / 'clean'}"),
            f"{pictures / 'validation'}={folder / 'validation'}",
        ]
    )
    return folder


def test_captions_find_pictures_that_the_teacher_never_saw(trained: Path) -> None:
    scores = json.loads((trained / "teacher" / "teacher.json").read_text())["scores"]
    chance = 100 / HELD_OUT
    assert scores["validation"]["caption_to_image_r@1"] > 8 * chance
    assert scores["validation"]["image_to_caption_r@1"] > 8 * chance
    assert scores["validation"]["matched"] > scores["validation"]["mismatched"] + 0.2


def test_opened_towers_give_the_bytes_that_are_in_the_cache(trained: Path, pictures: Path) -> None:
    towers, base = Towers.from_pretrained(trained / "teacher"), TeacherCache(pictures / "validation")
    cache = TeacherCache(trained / "validation")
    cache.verify()
    captions = cache.captions["caption"][:]
    assert captions == base.captions["caption"][:]
    stored = cache.caption_features.rows(range(len(captions)))
    np.testing.assert_array_equal(towers.embed_sentences(captions), stored)
    images = range(len(cache.images))
    features = base.image_features.rows(images)
    np.testing.assert_array_equal(towers.embed_features(features), cache.image_features.rows(images))
    assert cache.image_features.normalized and cache.caption_features.normalized
    with torch.no_grad():
        model = AutoModel.from_pretrained(trained / "teacher").eval()
        batch = towers.tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
        by_hand = torch.nn.functional.normalize(model.grounding_head(model(**batch).pooler_output), dim=-1)
    np.testing.assert_allclose(stored, by_hand.numpy(), atol=1e-5)


def test_each_training_caption_is_embedded_by_the_tower_that_never_saw_its_picture(
    trained: Path, pictures: Path
) -> None:
    cache, base = TeacherCache(trained / "clean"), TeacherCache(pictures / "train")
    fold = fold_of_images(len(base.images), FOLDS)
    assert sorted(np.bincount(fold)) == [100, 100]
    joint = Towers.from_pretrained(trained / "teacher")
    for number in range(FOLDS):
        towers = Towers.from_pretrained(trained / "teacher" / f"fold-{number}")
        assert towers.record["pictures"] == 100
        # One space: the picture side is that of the towers that saw all.
        for name, tensor in towers.model.image_projection.state_dict().items():
            assert torch.equal(tensor, joint.model.image_projection.state_dict()[name])
        rows = np.flatnonzero(fold[np.array(base.captions["image_row"][:])] == number)
        captions = base.captions.select(rows)["caption"][:]
        np.testing.assert_array_equal(towers.embed_sentences(captions), cache.caption_features.rows(rows))
    by_heart = joint.record["scores"]["train"]["matched"]
    assert score_cache(cache)["matched"] < by_heart - 0.02
    assert cache.manifest["source"]["captions_held_out"]
    assert cache.manifest["teacher"]["trained"]["base"] == base.manifest["teacher"]
    assert not TeacherCache(trained / "validation").manifest["source"]["captions_held_out"]
    assert TeacherCache(trained / "validation").manifest["teacher"] == cache.manifest["teacher"]


def test_words_that_no_caption_has_are_the_unknown_word(trained: Path) -> None:
    towers = Towers.from_pretrained(trained / "teacher")
    weight = towers.model.get_input_embeddings().weight
    unknown = weight[towers.tokenizer.unk_token_id]
    alike = (weight == unknown).all(dim=1)
    assert 2 < alike.sum() < len(weight) - 50
    word = towers.tokenizer("red circle", add_special_tokens=False)["input_ids"][0]
    assert not alike[word]


def test_a_student_trains_on_the_cache(trained: Path, pictures: Path, tmp_path: Path) -> None:
    from train_kdmcse import main

    trainer = main(
        [
            *("--preset", "kdmcse", "--model_name_or_path", str(pictures / "student"), "--pooling", "mean"),
            *("--teacher_cache", str(trained / "clean"), "--output_dir", str(tmp_path / "run"), "--max_steps", "1"),
            *("--per_device_train_batch_size", "16", "--use_cpu", "true", "--disable_tqdm", "true"),
            *("--logging_steps", "1"),
        ]
    )
    logged = trainer.state.log_history[0]
    assert logged["image_loss"] > 0
    assert logged["caption_loss"] > 0


def test_a_student_learns_from_the_teacher_s_opinion_of_plain_sentences(
    trained: Path, pictures: Path, tmp_path: Path
) -> None:
    from train_variants import main

    sentences = tmp_path / "sentences[1].txt"  # no pattern
    sentences.write_text("\n".join(TeacherCache(trained / "clean").captions["caption"][:64]))
    common = [
        *("--preset", "kdmcse", "--model_name_or_path", str(pictures / "student"), "--pooling", "mean"),
        *("--teacher_cache", str(trained / "clean"), "--text_file", str(sentences), "--pair_every_n_steps", "2"),
        *("--per_device_train_batch_size", "16", "--use_cpu", "true", "--disable_tqdm", "true", "--max_steps", "2"),
        *("--logging_steps", "1", "--sentence_teacher", str(trained / "teacher"), "--pseudo_pairs", "true"),
        *("--save_strategy", "steps", "--save_steps", "1", "--output_dir", str(tmp_path / "run")),
    ]
    log = main([*common, "--sentence_distillation_weight", "1"]).state.log_history
    on_text = next(entry for entry in log if "sentence_distillation_loss" in entry)
    assert on_text["sentence_distillation_loss"] > 0
    assert on_text["image_loss"] > 0  # of the pictures that the teacher found for them
    assert "caption_loss" not in on_text

    described = (tmp_path / "run" / "objective.json").read_text()
    assert json.loads(described)["variant"]["sentence_distillation_weight"] == 1
    assert str(tmp_path) not in described
    assert str(trained) not in described
    with pytest.raises(ValueError, match=r"another run: sentence_distillation_weight was 1.0, is 2.0"):
        main([*common, "--sentence_distillation_weight", "2", "--resume_from_checkpoint", "true"])
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "other")
    AutoModel.from_pretrained(pictures / "student").save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="another tokenizer than the student"):
        main([*common, "--model_name_or_path", str(tmp_path / "other"), "--output_dir", str(tmp_path / "run2")])


def test_towers_of_other_settings_are_not_taken_for_those_of_a_run_that_goes_on(
    flags: list[str], tmp_path: Path
) -> None:
    from train_teacher import main

    one = [*flags, "--num_train_epochs", "1"]
    main([*one, "--folds", "2"])
    with pytest.raises(ValueError, match=r"another run: folds was 2, is 3; learning_rate was 0.01, is 0.5"):
        main([*one, "--folds", "3", "--learning_rate", "0.5", "--resume_from_checkpoint", "true"])
    with pytest.raises(ValueError, match="holds a run: add `--resume_from_checkpoint true`"):
        main([*one, "--folds", "2", "--resume_from_checkpoint", "false"])
    main([*one, "--folds", "2", "--resume_from_checkpoint", "true"])
    with pytest.raises(ValueError, match="--resume_from_checkpoint runs/x`: expected true or false"):
        main([*one, "--resume_from_checkpoint", "runs/x"])


def test_towers_whose_folds_were_not_trained_yet_are_not_applied(flags: list[str], tmp_path: Path) -> None:
    from train_teacher import main

    main([*flags, "--num_train_epochs", "1", "--folds", "2"])
    path = tmp_path / "teacher" / "teacher.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "folds": 0, "folds_to_train": 2}))  # as the first tower leaves it
    with pytest.raises(ValueError, match="without their 2 folds"):
        Towers.from_pretrained(tmp_path / "teacher")


def test_features_of_another_teacher_and_taken_folders_are_refused(trained: Path, tmp_path: Path) -> None:
    from train_teacher import main

    apply = ["--output_dir", str(trained / "teacher"), "--use_cpu", "true", "--apply"]
    make_cache(tmp_path / "other", text=False)
    with pytest.raises(CacheError, match=r"features of teacher 'random' .* trained on 'pictures only'"):
        main([*apply, f"{tmp_path / 'other'}={tmp_path / 'new'}"])
    with pytest.raises(ValueError, match="already holds a teacher cache"):
        main([*apply, f"{tmp_path / 'other'}={trained / 'clean'}"])
    with pytest.raises(ValueError, match="expected FROM=TO"):
        main([*apply, str(tmp_path / "other")])
    assert not (tmp_path / "new").exists()
    towers = Towers.from_pretrained(trained / "teacher")
    with pytest.raises(ValueError, match="image features are 12 wide"):
        towers.embed_features(np.ones((2, 12), np.float32))
    with pytest.raises(ValueError, match="Sentence 1 is empty"):
        towers.embed_sentences(["a circle", " "])


def test_a_folder_that_is_no_teacher_or_was_changed_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no teacher\.json"):
        Towers.from_pretrained(tmp_path)
    shutil.copytree(trained / "teacher", tmp_path / "copy")
    weights = bytearray((tmp_path / "copy" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "copy" / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match="written for other files than lie beside it"):
        Towers.from_pretrained(tmp_path / "copy")


@pytest.mark.parametrize(
    ("without", "message"),
    [("--validation_cache", "`--validation_cache` is missing"), ("--tokenizer", "`--tokenizer` is missing")],
)
def test_what_is_missing_is_named(without: str, message: str, flags: list[str]) -> None:
    from train_teacher import main

    place = flags.index(without)
    with pytest.raises(ValueError, match=message):
        main([*flags[:place], *flags[place + 2 :]])


def test_validation_pictures_of_another_teacher_are_refused(flags: list[str], tmp_path: Path) -> None:
    from train_teacher import main

    make_cache(tmp_path / "other", text=False)
    with pytest.raises(ValueError, match="'random'.*'pictures only'"):
        main([*flags, "--validation_cache", str(tmp_path / "other")])


def test_captions_of_one_picture_are_no_negatives_of_each_other() -> None:
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 16
    towers = build_towers(tokenizer, image_embed_dim=6, hidden_size=16, num_hidden_layers=1, projection_dim=8)
    contrast = Contrast(towers, tokenizer, image_dropout=0.0, word_dropout=0.0).eval()
    batch = tokenizer(make_sentences(4), padding=True, return_tensors="pt")
    features, ids = torch.randn(3, 6)[[0, 1, 0, 2]], torch.tensor([0, 1, 0, 2])
    with torch.no_grad():
        loss = contrast(batch["input_ids"], batch["attention_mask"], features, ids)["loss"].item()
        output = towers(**batch, teacher_image_embeds=features, num_views=1)
        cosine = cosine_matrix(output.grounded_embeds[:, 0], output.image_embeds).double().numpy()
    scores = np.exp(cosine / 0.07)
    expected = []
    for matrix in (scores, scores.T):
        for row in range(4):
            others = [column for column in range(4) if ids[column] != ids[row]]
            expected.append(-np.log(matrix[row, row] / (matrix[row, row] + matrix[row, others].sum())))
    assert loss == pytest.approx(np.mean(expected), rel=1e-4)


def test_a_pretrained_text_encoder_can_be_the_start(encoder_folder: Callable[[str], Path]) -> None:
    towers = build_towers(make_tokenizer(), image_embed_dim=6, text_model=str(encoder_folder("bert")))
    pretrained = AutoModel.from_pretrained(encoder_folder("bert"))
    assert torch.equal(towers.get_input_embeddings().weight, pretrained.get_input_embeddings().weight)


@pytest.mark.slow
def test_a_killed_training_goes_on_and_ends_with_the_same_towers(flags: list[str], tmp_path: Path) -> None:
    few = [*flags, "--num_train_epochs", "6", "--folds", "2", "--patience", "1", "--learning_rate", "0.3"]
    done = run("train_teacher.py", *few, "--output_dir", str(tmp_path / "straight"))
    assert done.returncode == 0, done.stderr
    for moment in ("checkpoint-24/trainer_state.json", "fold-1/checkpoint-6/trainer_state.json"):
        command = [sys.executable, str(EXAMPLES / "train_teacher.py"), *few, "--resume_from_checkpoint", "true"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as killed:
            for _ in killed.stdout:
                if (tmp_path / "teacher" / moment).exists():
                    killed.kill()
        assert killed.returncode == -9
    done = run("train_teacher.py", *few)
    assert done.returncode == 1
    assert "add `--resume_from_checkpoint true`" in done.stderr
    done = run("train_teacher.py", *few, "--resume_from_checkpoint", "true")
    assert done.returncode == 0, done.stderr
    states = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("straight/**/trainer_state.json"))]
    assert min(state["global_step"] / state["max_steps"] for state in states) < 1  # patience was lost, so it counts
    for name in ("", "fold-0", "fold-1"):
        files = [(tmp_path / run_folder / name / "model.safetensors") for run_folder in ("straight", "teacher")]
        assert files[0].read_bytes() == files[1].read_bytes()
