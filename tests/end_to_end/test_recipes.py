from itertools import product
from pathlib import Path

import pytest
from datasets import Dataset
from train_kdmcse import DataArguments, ModelArguments, main

from kdmcse_hf import PRESETS, KDMCSETrainingArguments, Objective
from kdmcse_hf.arguments import parse_arguments

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"
TYPES = (ModelArguments, DataArguments, Objective, KDMCSETrainingArguments)
DATA = ("wiki_flickr30k", "wiki_coco", "flickr30k", "coco")
COMBINATIONS = [*product(PRESETS, DATA, ("bert_base", "roberta_base")), ("simcse", "wiki", "bert_base")]


@pytest.mark.parametrize(("preset", "data", "encoder"), COMBINATIONS)
def test_every_combination_has_the_papers_settings(preset: str, data: str, encoder: str, tmp_path: Path) -> None:
    files = [str(RECIPES / f"{name}.yaml") for name in (preset, data, encoder)]
    model, files_of, objective, args = parse_arguments(TYPES, [*files, "--output_dir", str(tmp_path), "--use_cpu"])
    assert (args.learning_rate, args.per_device_train_batch_size) == {
        "bert_base": (3e-5, 64),
        "roberta_base": (1e-5, 128),
    }[encoder]
    assert (objective.cross_modal_weight, args.num_train_epochs) == (
        {"flickr30k": (0.05, 6), "coco": (0.05, 3)}.get(data, (0.01, 3))
    )
    assert (objective.temperature, objective.cross_modal_temperature, model.max_seq_length) == (0.05, 0.05, 32)
    assert (model.pooling, model.projection_dim) == ("cls", 256)
    assert (args.weight_decay, args.warmup_steps, args.max_grad_norm, args.lr_scheduler_type) == (0, 0, 1, "linear")
    assert bool(files_of.text_file) == data.startswith("wiki")
    assert objective.captions_per_image == ("one" if preset == "mcse" else "all")
    margins = {"kdmcse": 0.125, "kdmcse_plus": 0.125, "kdmcse_reference": 0.15}
    assert objective.cross_modal_margin == margins.get(preset, 0)


def test_every_recipe_belongs_to_a_combination() -> None:
    used = {name for combination in COMBINATIONS for name in combination}
    assert {path.stem for path in RECIPES.glob("*.yaml")} == used


def test_a_recipe_sets_what_flags_and_later_recipes_do_not(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.json"
    first.write_text(
        f"preset: mcse\nmodel_name_or_path: x\nlearning_rate: 3e-4\noutput_dir: {tmp_path}\nmax_steps: 7\n"
    )
    second.write_text('{"cross_modal_weight": 0.5, "learning_rate": 0.1}')
    flags = ["--max_steps", "9", "--sts_dir", "somewhere", "--eval_steps", "3", "--use_cpu"]
    _, data, objective, args = parse_arguments(TYPES, [str(first), str(second), *flags])
    assert (objective.cross_modal_weight, objective.caption_term, objective.captions_per_image) == (0.5, False, "one")
    assert (args.learning_rate, args.max_steps) == (0.1, 9)
    assert (args.eval_steps, args.save_steps, args.metric_for_best_model) == (3, 3, "spearman")
    assert data.sts_dir == "somewhere"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("presett: mcse\n", "unknown keys: presett"),
        ("- mcse\n", "must map argument names to values, got list"),
        ("preset: [\n", "cannot be read"),
    ],
)
def test_a_bad_recipe_is_refused_in_one_line(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.yaml").write_text(content)
    with pytest.raises(SystemExit):
        parse_arguments(TYPES, [str(tmp_path / "r.yaml")])
    error = capsys.readouterr().err
    assert message in error
    assert len(error) < 400


def test_text_may_be_any_dataset_with_a_text_column(flags: list[str], world: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    lines = (world / "sentences.txt").read_text().splitlines()
    Dataset.from_dict({"sentence": lines}).to_parquet(tmp_path / "data" / "train.parquet")
    place = flags.index("--text_file")
    changed = [*flags[:place], *flags[place + 2 :], "--text_dataset", str(tmp_path / "data")]
    trainer = main([*changed, "--text_column", "sentence"])
    assert trainer.train_dataset.num_text == len(lines)
    with pytest.raises(ValueError, match="no column 'text': the dataset has 'sentence'"):
        main([*changed, "--output_dir", str(tmp_path / "other")])
