import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load
from test_trainer import KDMCSE, make_trainer

from kdmcse_hf.checkpoint import load_mteb_results, load_sts_results, save_mteb_results, save_sts_results
from kdmcse_hf.export import export_release
from kdmcse_hf.presets import PRESETS
from kdmcse_hf.release_card import nearest_preset
from kdmcse_hf.training_record import dev_score, git_commit, mean_rates

PROTOCOL = {"protocol": {"split": "test", "text": "as it is"}, "max_length": 40}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, encoder_folder: object) -> Path:
    """What a Trainer left: the best checkpoint on its dev pairs, in `out`."""
    folder = tmp_path_factory.mktemp("run")
    trainer = make_trainer(
        folder, encoder_folder("bert"), dev=True, max_steps=6, logging_steps=2, save_strategy="steps", save_steps=2,
        eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, metric_for_best_model="spearman",
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    return folder / "out"


@pytest.fixture
def checkpoint(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("checkpoint-*")))


def card_of(checkpoint: Path, **settings: object) -> str:
    return (export_release(checkpoint, checkpoint.parent / "release", **settings) / "README.md").read_text()


def test_the_card_tells_what_the_run_was_and_what_its_best_weights_scored(checkpoint: Path) -> None:
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    objective = json.loads((checkpoint / "objective.json").read_text())
    teacher = json.loads((checkpoint / "training_record.json").read_text())["teacher"]
    best = max((entry for entry in state["log_history"] if "eval_spearman" in entry), key=lambda e: e["eval_spearman"])
    card = card_of(checkpoint)
    measured = f"after step {best['step']}, on 40 development pairs: Spearman x 100 = {best['eval_spearman']:.2f}."
    assert measured in card
    assert f"| step | {best['step']} |" in card
    sizes = ("| text | 200 sentences; SHA-256", "| pairs | 48 pairs", "| 24 images, 48 captions;")
    for fact in (*sizes, "| teacher | `random`;"):
        assert fact in card
    assert f"manifest {teacher['manifest']}" in card
    for report in objective["filters"]:
        assert f"above `{report['threshold']}`" in card
        assert f"{100 * report['filter_rate']:.3f} %" in card
    assert "| learning rate | " in card and "| rows per step | 8 |" in card and "| precision | float32 |" in card
    assert "| image margin rate | " in card


def test_weights_that_were_not_scored_have_no_dev_score(run: Path) -> None:
    log = [{"step": 2, "eval_spearman": 50.0}, {"step": 4, "loss": 1.0}]
    assert dev_score(log, 2, 40) == {"step": 2, "pairs": 40, "spearman": 50.0}
    assert dev_score(log, 4, 40) is None
    last = json.loads((run / "checkpoint-6" / "training_record.json").read_text())
    assert last["dev"]["step"] == last["settings"]["step"] == 6  # though another checkpoint may be the best


def test_rates_are_means_over_steps_up_to_the_weights_own() -> None:
    log = [
        {"step": 10, "loss": 1.0, "image_filter_rate": 0.1},
        {"step": 10, "eval_spearman": 1.0},
        {"step": 40, "loss": 1.0, "image_filter_rate": 0.5, "learning_rate": 3.0},
        {"step": 50, "loss": 1.0, "image_filter_rate": 0.9},
        {"step": 50, "train_loss": 1.0},
    ]
    assert mean_rates(log, 40) == {"image_filter_rate": pytest.approx((10 * 0.1 + 30 * 0.5) / 40)}
    assert mean_rates(log, 9) == {}


def test_a_card_has_no_figure_of_what_was_not_recorded(checkpoint: Path) -> None:
    for name in ("objective.json", "training_record.json"):
        (checkpoint / name).unlink()
    card = card_of(checkpoint)
    assert "does not say how it was trained, so neither does this card" in card
    assert "No test score came with the checkpoint" in card
    assert "%" not in card and "Spearman" not in card
    assert "model-index" not in card
    assert not (checkpoint.parent / "release" / ".eval_results").exists()


@pytest.mark.parametrize("name", PRESETS)
def test_the_nearest_preset_is_told_with_every_switch_that_differs(name: str) -> None:
    switches = dict(PRESETS[name].__dict__)
    assert nearest_preset(switches) == (name, [])
    changed = {**switches, "temperature": 0.07}
    assert nearest_preset(changed) == (name, [("temperature", 0.07, 0.05)])


def test_of_presets_as_near_it_is_the_one_with_the_same_terms() -> None:
    switches = {**PRESETS["mcse"].__dict__, "captions_per_image": "all"}  # one switch from `simcse` as well
    assert nearest_preset(switches) == ("mcse", [("captions_per_image", "all", "one")])


def test_the_test_run_s_own_switches_are_in_its_card(checkpoint: Path) -> None:
    card = card_of(checkpoint)
    calibrated = json.loads((checkpoint / "objective.json").read_text())["objective"]
    assert KDMCSE.image_threshold != calibrated["image_threshold"] != PRESETS["kdmcse"].image_threshold
    for switch, here in calibrated.items():
        there = getattr(PRESETS["kdmcse"], switch)
        assert (f"| `{switch}` | `{here}` | `{there}` |" in card) == (here != there)


# --- scores -----------------------------------------------------------------------------------------------------------


def test_senteval_s_scores_reach_the_table_and_the_header_by_no_name_of_mteb_s_datasets(checkpoint: Path) -> None:
    scores = {"STSB": 71.234, "SICKR": 60.5, "avg": 65.867}
    save_sts_results(checkpoint, {"scores": scores, "pairs": {"STSB": 1379, "SICKR": 40}, **PROTOCOL})
    card = card_of(checkpoint)
    assert "| STSB | 1,379 | 71.23 |\n| SICKR | 40 | 60.50 |\n| avg |  | 65.87 |" in card
    assert "split: test; text: as it is." in card
    assert "Not the published test sets, as their numbers of pairs tell: SICKR." in card
    release = checkpoint.parent / "release"
    (result,) = ModelCard.load(release / "README.md").data.eval_results  # the client's own reading of a model-index
    assert (result.dataset_type, result.metric_value) == ("senteval-stsb", 71.234)
    assert not (release / ".eval_results").exists()  # which is for datasets of the Hub
    assert load_sts_results(release / "kdmcse") == load_sts_results(checkpoint)


def test_senteval_s_part_of_sick_is_told_from_the_whole_set(checkpoint: Path) -> None:
    scores, pairs = {"STSB": 70.0, "SICKR": 60.5, "avg": 65.25}, {"STSB": 1379, "SICKR": 4927}
    save_sts_results(checkpoint, {"scores": scores, "pairs": pairs, **PROTOCOL})
    card = card_of(checkpoint)
    assert "| SICKR | 4,927 | 60.50 |" in card
    assert "SICKR is SentEval's test part of SICK: not the 9,927 pairs of mteb's SICK-R" in card
    assert "Not the published test sets" not in card
    results = ModelCard.load(checkpoint.parent / "release" / "README.md").data.eval_results
    assert {r.dataset_type: r.metric_value for r in results} == {"senteval-stsb": 70.0, "senteval-sickr": 60.5}


def test_mteb_s_scores_stand_in_a_table_of_their_own_and_in_both_forms_that_the_hub_reads(checkpoint: Path) -> None:
    save_sts_results(checkpoint, {"scores": {"SICKR": 60.5}, "pairs": {"SICKR": 4927}, **PROTOCOL})
    datasets = {"SICK-R": {"path": "mteb/sickr-sts", "revision": "20a6d6f312"}}
    results = {"scores": {"SICK-R": 61.125, "avg": 61.125}, "pairs": {"SICK-R": 9927}, "datasets": datasets, **PROTOCOL}
    save_mteb_results(checkpoint, results)
    card = card_of(checkpoint)
    senteval, mteb = card.partition("by mteb. split: test; text: as it is.")[::2]
    assert "| SICKR | 4,927 | 60.50 |" in senteval and "| SICK-R | 9,927 | 61.12 |" in mteb
    assert "no figure of one stands for one of the other" in mteb
    release = checkpoint.parent / "release"
    header = {r.dataset_type: r for r in ModelCard.load(release / "README.md").data.eval_results}
    assert {name: r.metric_value for name, r in header.items()} == {"senteval-sickr": 60.5, "mteb/sickr-sts": 61.125}
    assert header["mteb/sickr-sts"].dataset_revision == "20a6d6f312"
    entries = yaml.safe_load((release / ".eval_results" / "sts.yaml").read_text())
    parse = pytest.importorskip("huggingface_hub", "1.4").parse_eval_result_entries
    (entry,) = parse(entries)
    assert (entry.dataset_id, entry.dataset_revision) == ("mteb/sickr-sts", "20a6d6f312")
    assert (entry.task_id, entry.value, entry.notes) == ("SICK-R", 61.125, "split: test; text: as it is.")
    assert load_mteb_results(release / "kdmcse") == load_mteb_results(checkpoint) != load_sts_results(checkpoint)


def test_a_set_that_is_none_of_senteval_s_is_told_and_stays_out_of_the_header(checkpoint: Path) -> None:
    save_sts_results(checkpoint, {"scores": {"mine": 80.0, "STS12": 1.0}, "pairs": {"STS12": 3107}, **PROTOCOL})
    assert "Not the published test sets, as their numbers of pairs tell: mine, STS12." in card_of(checkpoint)
    assert "model-index" not in metadata_load(checkpoint.parent / "release" / "README.md")


def test_scores_of_one_protocol_are_not_recorded_as_the_other_s_nor_any_that_are_not_finite(checkpoint: Path) -> None:
    datasets = {"STS12": {"path": "mteb/sts12-sts", "revision": "a0d554a"}}
    mteb = {"scores": {"STS12": 61.0}, "pairs": {"STS12": 3108}, "datasets": datasets, **PROTOCOL}
    with pytest.raises(ValueError, match="name datasets, as mteb's do"):
        save_sts_results(checkpoint, mteb)
    with pytest.raises(ValueError, match=r"expected a JSON object with .*datasets \(dict\)"):
        save_mteb_results(checkpoint, {name: part for name, part in mteb.items() if name != "datasets"})
    with pytest.raises(ValueError, match=r"datasets of \['STS12'\] and scores of \['STS13'\]"):
        save_mteb_results(checkpoint, {**mteb, "scores": {"STS13": 61.0}})
    for value in (float("nan"), None):
        with pytest.raises(ValueError, match=f"has the score {value} of STS12: expected a finite number"):
            save_mteb_results(checkpoint, {**mteb, "scores": {"STS12": value}})
    assert not list(checkpoint.glob("*_results.json"))


def test_a_model_of_which_no_objective_is_known_is_named_by_its_encoder_alone(checkpoint: Path) -> None:
    for name in ("objective.json", "training_record.json"):
        (checkpoint / name).unlink()
    save_sts_results(checkpoint, {"scores": {"STSB": 70.0}, "pairs": {"STSB": 1379}, **PROTOCOL})
    card_of(checkpoint)
    (model,) = metadata_load(checkpoint.parent / "release" / "README.md")["model-index"]
    assert model["name"] == "bert"


def test_scores_of_other_weights_are_refused(checkpoint: Path) -> None:
    save_sts_results(checkpoint, {"scores": {"STSB": 1.0}, "pairs": {"STSB": 1379}, **PROTOCOL})
    weights = checkpoint / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="scores of other weights than lie beside it: evaluate again"):
        export_release(checkpoint, checkpoint.parent / "release")
    assert not (checkpoint.parent / "release").exists()
    with pytest.raises(ValueError, match="holds no model.safetensors"):
        save_sts_results(checkpoint.parent, {})


# --- what it is for ---------------------------------------------------------------------------------------------------


def test_every_snippet_in_the_card_runs_and_all_give_the_same_vectors(checkpoint: Path) -> None:
    name = "alice/model"
    card = card_of(checkpoint, name=name)
    assert card.count(f'name = "{name}"') == 3
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 3
    found = []
    for block in blocks:
        if "sentence_transformers" in block and not find_spec("sentence_transformers"):
            continue
        names: dict[str, object] = {}
        exec(block.replace(name, str(checkpoint.parent / "release")), names)
        found.append(np.asarray(names["vectors"]))
    assert len(found) >= 2
    for vectors in found:
        np.testing.assert_allclose(vectors, found[0], atol=1e-6)
    assert not np.allclose(found[0][0], found[0][1])


def test_the_header_is_read_and_the_three_papers_are_cited(checkpoint: Path) -> None:
    card = card_of(checkpoint)
    header = metadata_load(checkpoint.parent / "release" / "README.md")
    assert header["library_name"] == "sentence-transformers"
    assert "base_model" not in header  # it was a folder
    keys = re.findall(r"^@inproceedings\{([\w-]+),$", card, re.MULTILINE)
    assert keys == ["gao-etal-2021-simcse", "zhang-etal-2022-mcse", "nguyen-etal-2024-kdmcse"]
    bibtex = card.partition("```bibtex")[2].partition("```")[0]
    assert bibtex.count("{") == bibtex.count("}")
    assert "Human Language Technologies (Volume 1: Long Papers)},\n    year = {2024},\n    pages = {733--749}" in bibtex
    assert "title = {{SimCSE}: Simple" in bibtex
    assert "\n\n\n" not in card


def test_the_commit_is_a_checkout_s_only(tmp_path: Path) -> None:
    (tmp_path / "kdmcse_hf").mkdir()
    assert git_commit(tmp_path / "kdmcse_hf") is None
    (tmp_path / ".git").mkdir()  # not a repository
    assert git_commit(tmp_path) is None
