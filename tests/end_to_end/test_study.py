"""A study on the small world: killed, failed, changed; and what its tables say."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from run_study import main
from scipy.stats import spearmanr, ttest_1samp
from studies import findings
from studies.evaluations import evaluate_finished, evaluation_tables
from studies.findings import ELSEWHERE, UNSEEN, Findings
from studies.grid import Run, expand, load_study
from studies.material import prepare
from studies.overlap import captions_in, overlap_table
from studies.report import write_report
from studies.results import Results
from studies.runs import shares
from studies.table import Table, mean_and_deviation
from studies.tables import comparisons_table, other_measures_table, scores_table

from kdmcse_hf.embedding import SentenceEncoder
from kdmcse_hf.significance import holm
from kdmcse_hf.sts import load_sts, sts_pair_numbers
from kdmcse_hf.teacher.cache import TeacherCache

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def study_file(world: Path, tmp_path: Path) -> Path:
    content = {
        "title": "A small study",
        "common": {
            "model_name_or_path": str(world / "student"),
            "text_file": str(world / "sentences.txt"),
            "sts_dir": str(world / "sts"),
            "pooling": "mean",
            "max_steps": 6,
            "eval_steps": 2,
            "logging_steps": 1,
            "per_device_train_batch_size": 16,
            "pair_every_n_steps": 2,
            "learning_rate": "1e-3",
            "use_cpu": True,
            "disable_tqdm": True,
        },
        "tasks": ["STSB"],
        "seeds": 2,
        "rows": {
            "untrained": {"train": False, "seeds": 1},
            "broken": {"preset": "mcse", "teacher_cache": str(world / "gone"), "seeds": 1},
            "simcse": {"preset": "simcse", "label": "text only"},
            "kdmcse": {"teacher_cache": str(world / "cache"), "label": "KDMCSE"},
            "no_filter": {"like": "kdmcse", "image_threshold": "none", "caption_threshold": "none", "seeds": 1},
        },
        "comparisons": {"pictures help": ["simcse", "kdmcse"], "the filter helps": ["no_filter", "kdmcse"]},
        "subsets": ["pictures help"],
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def change(path: Path, **rows: dict) -> None:
    content = yaml.safe_load(path.read_text())
    content["rows"] |= rows
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def without_costs(folder: Path) -> list[dict]:
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert all(record.pop("cost")["starts"] for record in records)
    return records


def pretend(results: Results, study_file: Path, scores: dict[str, list[float]]) -> None:
    """Finished runs of given scores, with cosines that leave no doubt about pairs."""
    study = load_study(study_file)
    results.folder.mkdir(exist_ok=True)
    for name, values in scores.items():
        row = study.rows[name]
        for seed, value in enumerate(values):
            gold = np.asarray(load_sts(row.flags["sts_dir"], "STSB").scores)
            results.save_cosines(f"{name}-{seed}", {"STSB": gold / 10})
            cosines = results.cosines(f"{name}-{seed}")
            numbers = sts_pair_numbers(row.flags["sts_dir"], ["STSB"])
            source = findings._digest(cosines, {"STSB": gold}, numbers, {})
            draws = np.full(1000, value, dtype=np.float32)
            arrays = {"STSB": draws, "avg": draws, findings._OF: source}
            results.save_arrays("draws", f"{name}-{seed}", arrays)
            results.add(
                {"row": name, "seed": seed, "fingerprint": row.fingerprint, "flags": row.flags, "subsets": {}}
                | {"sts": {"STSB": value, "avg": value}, "stsb": {"dev": {"spearman": value + 1}}, "rates": {}}
                | {"commit": "c", "hardware": "h", "versions": {"torch": "1"}, "cost": {}}
            )


@pytest.mark.slow
def test_a_killed_study_goes_on_and_ends_as_if_it_had_not_been(study_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "run_study.py"), str(study_file), "--rows", "untrained", "kdmcse"]
    straight = subprocess.run([*command, "--output_dir", str(tmp_path / "straight")], capture_output=True, text=True)
    assert straight.returncode == 0, straight.stdout + straight.stderr

    folder = tmp_path / "killed"
    with subprocess.Popen([*command, "--output_dir", str(folder)], stdout=subprocess.DEVNULL) as killed:
        checkpoint = folder / "runs" / "kdmcse-0" / "model" / "checkpoint-2" / "trainer_state.json"
        while not checkpoint.exists():
            assert killed.poll() is None
            time.sleep(0.01)
        killed.kill()
    assert killed.returncode == -signal.SIGKILL
    assert not (folder / "runs" / "kdmcse-0" / "record.json").exists()
    done = subprocess.run([*command, "--output_dir", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 3 runs are done already" in done.stdout
    assert without_costs(folder) == without_costs(tmp_path / "straight")
    assert (folder / "logs" / "kdmcse-0.log").read_text().count("=== kdmcse-0, start") == 2
    assert not any((folder / "runs").iterdir())

    record = without_costs(folder)[-1]
    assert [point["step"] for point in record["dev"]] == [2, 4, 6]
    assert {"spearman", "alignment", "uniformity"} <= record["dev"][0].keys()
    assert {"image_filter_rate", "image_margin_rate"} <= record["rates"].keys()
    cosines, gold = Results(folder).cosines("kdmcse-1")["STSB"], load_sts(record["flags"]["sts_dir"], "STSB").scores
    assert record["sts"]["STSB"] == pytest.approx(100 * spearmanr(cosines, gold).statistic, abs=0.2)


@pytest.mark.slow
def test_a_failed_run_is_told_and_the_rest_goes_on(
    study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results"
    arguments = [str(study_file), "--output_dir", str(folder), "--seeds", "0", "--set", "max_steps=2"]
    assert main([*arguments, "--runs_at_once", "2"]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"broken-0: FAILED: .*gone is not a teacher cache", printed)
    assert "1 failed: broken-0" in printed
    done = [record["row"] for record in without_costs(folder)]
    assert sorted(done) == ["kdmcse", "no_filter", "simcse", "untrained"]
    assert "broken-0: " in (folder / "small" / "report.md").read_text()

    change(study_file, broken={"preset": "simcse", "seeds": 1})  # without a checkpoint, other flags mix nothing
    assert main(arguments) == 0
    assert "4 of 5 runs are done already" in capsys.readouterr().out
    report = (folder / "small" / "report.md").read_text()
    assert "Failed" not in report
    assert "1 of 2" in report
    assert (folder / "small" / "comparisons.tex").exists()


def test_each_of_several_runs_at_once_has_one_gpu_and_its_share_of_the_threads(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert shares(1) == [{"CUDA_VISIBLE_DEVICES": "4"}]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares(3)] == ["4", "6", "4"]
    assert [share["OMP_NUM_THREADS"] for share in shares(3)] == ["2", "2", "2"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert shares(1) == [{}]
    with pytest.raises(SystemExit):
        main([str(study_file), "--output_dir", str(tmp_path / "results"), "--runs_at_once", "0"])
    assert "--runs_at_once is 0: expected at least 1" in capsys.readouterr().err


def test_a_row_with_other_flags_than_its_finished_runs_is_refused_by_name(
    study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(Results(tmp_path / "results"), study_file, {"simcse": [50.0]})
    change(study_file, simcse={"preset": "simcse", "learning_rate": "2e-3"})
    with pytest.raises(SystemExit):
        main([str(study_file), "--output_dir", str(tmp_path / "results"), "--report_only"])
    assert "simcse (seed 0): learning_rate was '1e-3', is '2e-3'" in capsys.readouterr().err


def test_two_studies_do_not_write_to_one_folder_at_once(
    study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Results(tmp_path / "results").locked(), pytest.raises(SystemExit):
        main([str(study_file), "--output_dir", str(tmp_path / "results")])
    assert "Another study is writing to" in capsys.readouterr().err


def test_all_rows_of_a_seed_come_before_the_next_seed(study_file: Path) -> None:
    names = [run.name for run in load_study(study_file).runs()]
    assert names == ["untrained-0", "broken-0", "simcse-0", "kdmcse-0", "no_filter-0", "simcse-1", "kdmcse-1"]
    assert [run.name for run in load_study(study_file).runs(["kdmcse"], [1])] == ["kdmcse-1"]


def test_a_row_like_another_takes_its_flags_and_null_takes_one_away(study_file: Path, tmp_path: Path) -> None:
    change(study_file, captions={"like": "no_filter", "text_file": None, "learning_rate": 1e-4})
    other = tmp_path / "other.yaml"
    other.write_text("include: small.yaml\nrows:\n  more: {like: captions, max_steps: 9}\n")
    study = load_study(other, {"logging_steps": "3"})
    flags = study.rows["more"].flags
    assert "text_file" not in flags
    expected = {"max_steps": "9", "image_threshold": "none", "use_cpu": "true", "logging_steps": "3"}
    assert expected.items() <= flags.items()
    assert [run.name for run in study.runs()] == ["more-0", "more-1"]
    assert study.rows["kdmcse"].flags == {**load_study(study_file).rows["kdmcse"].flags, "logging_steps": "3"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"like": "nobody"}, "`like: nobody` names no row above it"),
        ({"seed": 3}, "seed is set by the study itself"),
        ({"sts_dir": None}, "sts_dir is missing"),
    ],
)
def test_a_row_that_makes_no_sense_is_refused_by_name(row: dict, message: str, study_file: Path) -> None:
    change(study_file, odd=row)
    with pytest.raises(ValueError, match=f"row 'odd'.*{message}"):
        load_study(study_file)


def test_means_deviations_and_intervals_of_the_tables_are_the_textbook_s(
    study_file: Path, world: Path, tmp_path: Path
) -> None:
    results = Results(tmp_path / "results")
    pretend(results, study_file, {"simcse": [50.0, 53.0], "kdmcse": [70.0]})
    study = load_study(study_file)
    found = Findings(study, results, str(world / "sts"))
    table = scores_table(found, "Scores", ["untrained", "simcse", "kdmcse"])
    untrained, simcse, kdmcse = table.rows
    assert table.head == ("", "seeds", "STSB", "avg", "avg, 95 %", "STS-B dev")
    assert untrained == ("untrained", "not run", "", "", "", "")
    deviation = np.std([50, 53], ddof=1)
    assert simcse[:4] == ("text only", "2", f"51.50 ± {deviation:.2f}", f"51.50 ± {deviation:.2f}")
    assert simcse[5] == f"52.50 ± {deviation:.2f}"
    low, high = map(float, simcse[4].split(" to "))
    expected = ttest_1samp([50, 53], 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=0.01)
    assert kdmcse == ("KDMCSE", "1 of 2", "70.00", "70.00", "", "71.00")  # one seed says nothing of seeds

    pictures, filtered = comparisons_table(found).rows
    assert pictures == ("pictures help", "KDMCSE − text only", "", "", "", "", "", "too few seeds")
    assert filtered[-1] == "not run"


def test_a_term_s_loss_is_the_last_one_that_was_logged_of_it(study_file: Path, world: Path, tmp_path: Path) -> None:
    results = Results(tmp_path / "results")
    pretend(results, study_file, {"kdmcse": [70.0, 71.0]})
    records = list(results.records().values())
    results.file.unlink()
    for record, last in zip(records, (1.0, 2.0), strict=True):
        logged = [{"step": 1, "image_loss": 9.0}, {"step": 2, "image_loss": last}, {"step": 3, "text_loss": 0.25}]
        results.add({**record, "losses": logged})
    found = Findings(load_study(study_file), results, str(world / "sts"))
    table = other_measures_table(found, "Other", ["untrained", "kdmcse"])
    columns = [table.head.index(f"{term} loss") for term in ("text", "image", "caption")]
    untrained, kdmcse = ([row[column] for column in columns] for row in table.rows)
    assert untrained == ["", "", ""]
    assert kdmcse == ["0.250 ± 0.000", f"1.500 ± {0.5**0.5:.3f}", ""]


def test_a_table_is_over_the_seeds_that_all_of_its_trained_rows_plan(
    study_file: Path, world: Path, tmp_path: Path
) -> None:
    content = yaml.safe_load(study_file.read_text())
    content["seeds"], content["rows"]["no_filter"]["seeds"] = 3, 2
    content["tables"] = {"Of two": ["untrained", "simcse", "no_filter"], "Of three": ["untrained", "simcse"]}
    study_file.write_text(yaml.safe_dump(content, sort_keys=False))
    results = Results(tmp_path / "results")
    pretend(results, study_file, {"untrained": [40.0], "simcse": [50.0, 52.0, 60.0], "no_filter": [51.0]})
    report = write_report(load_study(study_file), results, {}).read_text()
    two, three = (report.partition(f"## Of {number}\n")[2].partition("\n## ")[0] for number in ("two", "three"))
    assert "| untrained | 1 | 40.00 |" in two and "| untrained | 1 | 40.00 |" in three
    assert "| text only | 2 | 51.00 ± 1.41 |" in two  # without the seed that the other row will never have
    assert "| no_filter | 1 of 2 | 51.00 |" in two
    assert "| text only | 3 | 54.00 ± 5.29 |" in three


def test_what_is_called_shown_is_so_after_holm_s_correction(study_file: Path, world: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(study_file.read_text())
    content["rows"]["no_filter"]["seeds"] = 2
    content["comparisons"]["text alone helps"] = ["untrained", "simcse"]
    study_file.write_text(yaml.safe_dump(content, sort_keys=False))
    results = Results(tmp_path / "results")
    # By themselves the first and the last are below 0.05; of all three, only the first is.
    scores = {"untrained": [50.0], "simcse": [51.0, 51.1], "no_filter": [69.0, 70.0], "kdmcse": [70.0, 70.2]}
    pretend(results, study_file, scores)
    rows = comparisons_table(Findings(load_study(study_file), results, str(world / "sts"))).rows
    p, adjusted = ([float(row[place]) for row in rows] for place in (5, 6))
    assert [row[3] for row in rows] == ["+19.05", "+0.60", "+1.05"]
    assert adjusted == pytest.approx(holm(p), abs=2e-4)
    assert [row[-1] for row in rows] == ["yes" if value < 0.05 else "not shown" for value in adjusted]
    assert [value < 0.05 for value in p] == [True, False, True]
    assert [row[-1] for row in rows] == ["yes", "not shown", "not shown"]

    # What is asked and not done yet counts as well; the same two rows under another name are asked once.
    change(study_file, tuned={"best_of": ["no_filter"]})
    content = yaml.safe_load(study_file.read_text())
    content["comparisons"] |= {"the tuned filter helps": ["tuned", "kdmcse"], "still to come": ["broken", "kdmcse"]}
    study_file.write_text(yaml.safe_dump(content, sort_keys=False))
    *rows, again, missing = comparisons_table(Findings(load_study(study_file), results, str(world / "sts"))).rows
    assert [float(row[6]) for row in rows] == pytest.approx(holm([*p, 1.0])[:3], abs=2e-4)
    assert again[2:] == rows[1][2:]
    assert missing[-1] == "not run"


def test_the_best_of_several_rows_is_chosen_by_dev_and_takes_part_in_comparisons(
    study_file: Path, world: Path, tmp_path: Path
) -> None:
    change(study_file, best={"best_of": ["simcse", "kdmcse"], "label": "tuned"})
    content = yaml.safe_load(study_file.read_text())
    content |= {"comparisons": {"tuning helps": ["no_filter", "best"]}, "subsets": []}
    content["rows"]["no_filter"]["seeds"] = 2
    study_file.write_text(yaml.safe_dump(content, sort_keys=False))
    study, results = load_study(study_file), Results(tmp_path / "results")
    assert "best" not in {run.row.name for run in study.runs()}
    pretend(results, study_file, {"simcse": [53.0, 54.0], "no_filter": [40.0, 40.5]})
    partly = Findings(study, results, str(world / "sts"))
    assert partly.rows["best"].label == "tuned (text only, of 1 of 2)"
    pretend(results, study_file, {"kdmcse": [52.0, 53.0]})  # `pretend` makes dev a point better than test
    records = [*results.records().values()]
    results.file.unlink()
    for record in records:  # worse on test, better on dev
        dev = 99.0 if record["row"] == "kdmcse" else 1.0
        results.add({**record, "stsb": {"dev": {"spearman": dev}}})
    found = Findings(study, results, str(world / "sts"))
    assert found.rows["best"].label == "tuned (KDMCSE)"
    (row,) = comparisons_table(found).rows
    assert row[1:4] == ("tuned (KDMCSE) − no_filter", "2", "+12.25")
    for record in [*results.records().values()]:  # a seed that only one has, and that happens to be a good one
        if record["row"] == "simcse" and record["seed"] == 1:
            results.add({**record, "stsb": {"dev": {"spearman": 1000.0}}})
    assert Findings(study, results, str(world / "sts")).rows["best"].label == "tuned (text only)"
    records = [record for record in results.records().values() if (record["row"], record["seed"]) != ("kdmcse", 1)]
    results.file.unlink()
    for record in records:
        results.add(record)
    partly = Findings(study, results, str(world / "sts"))
    assert partly.rows["best"].label == "tuned (text only, of 1 of 2)"  # one that is not finished waits
    change(study_file, elsewhere={"like": "simcse", "seeds": [7]}, best={"best_of": ["kdmcse", "elsewhere"]})
    with pytest.raises(ValueError, match="row 'best': expected .* share a seed"):
        load_study(study_file)
    for wrong in ({"best_of": ["nothing"]}, {"best_of": []}, {"best_of": ["simcse"], "seeds": 2}):
        change(study_file, best=wrong)
        with pytest.raises(ValueError, match="row 'best': expected `best_of` with names of rows above it"):
            load_study(study_file)


def test_a_report_can_be_had_at_any_time(study_file: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(study_file.read_text())
    study_file.write_text(yaml.safe_dump({**content, "tables": {"Results": ["untrained", "simcse", "kdmcse"]}}))
    results = Results(tmp_path / "results")
    results.folder.mkdir()
    study = load_study(study_file)
    assert "0 of 7 runs are done" in write_report(study, results, {}).read_text()
    pretend(results, study_file, {"untrained": [40.0], "simcse": [50.0, 53.0], "kdmcse": [70.0, 71.0]})
    report = write_report(study, results, {}).read_text()
    assert "5 of 7 runs are done" in report
    assert "| KDMCSE | 2 | 70.50 ± 0.71 |" in report
    tex = (results.folder / "small" / "results.tex").read_text()
    assert r"KDMCSE & 2 & 70.50 $\pm$ 0.71 & " in tex
    assert r"avg, 95 \%" in tex


def test_without_matplotlib_the_tables_come_and_a_line_says_how_to_get_plots(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "studies.plots", raising=False)
    results = Results(tmp_path / "results")
    pretend(results, study_file, {"simcse": [50.0, 53.0]})
    report = write_report(load_study(study_file), results, {}).read_text()
    assert "| text only | 1 | 50.00 |" in report
    assert "pip install 'kdmcse_hf[viz]'" in report


def test_draws_are_those_of_the_kept_cosines(study_file: Path, world: Path, tmp_path: Path) -> None:
    results = Results(tmp_path / "results")
    pretend(results, study_file, {"simcse": [50.0]})
    gold = np.asarray(load_sts(world / "sts", "STSB").scores)
    cosine = (gold + np.random.default_rng(0).normal(size=len(gold))) / 10
    results.save_cosines("simcse-0", {"STSB": cosine})
    run = Findings(load_study(study_file), results, str(world / "sts")).resampled("simcse", "STSB")[0]
    numbers = sts_pair_numbers(world / "sts", ["STSB"])["STSB"]
    distinct = np.unique(numbers)
    drawn = distinct[np.random.default_rng((0, 5)).integers(len(distinct), size=len(distinct))]
    rows = np.concatenate([np.flatnonzero(numbers == number) for number in drawn])
    assert run.drawn[0] == pytest.approx(100 * spearmanr(cosine[rows], gold[rows]).statistic, abs=1e-4)
    assert set(results.arrays("draws", "simcse-0")) >= {"STSB", "avg"}

    results.save_cosines("simcse-0", {"STSB": -cosine})  # as a run leaves them that was made again
    again = Findings(load_study(study_file), results, str(world / "sts")).resampled("simcse", "STSB")[0]
    np.testing.assert_allclose(again.drawn, -run.drawn, atol=1e-4)


@pytest.mark.parametrize("spread", [1.0, 1e-4])
def test_kept_cosines_rank_pairs_as_the_run_did_however_alike_its_vectors_are(tmp_path: Path, spread: float) -> None:
    results = Results(tmp_path)
    drawn = np.random.default_rng(0).uniform(-1, 1, size=3000)
    cosines = {"STSB": 1 - spread * (1 - drawn) / 2, "SICKR": np.full(4, 0.5)}
    results.save_cosines("row-0", cosines)
    kept = results.cosines("row-0")
    assert kept.keys() == cosines.keys()
    np.testing.assert_allclose(kept["STSB"], cosines["STSB"], rtol=0, atol=spread / 60_000)
    assert spearmanr(kept["STSB"], cosines["STSB"]).statistic > 1 - 1e-8
    np.testing.assert_array_equal(kept["SICKR"], cosines["SICKR"])


def test_cells_are_escaped() -> None:
    table = Table("T & U", ("", "a_b"), (("x|y", "1 ± 2"),))
    assert table.markdown().splitlines()[2] == r"| x\|y | 1 ± 2 |"
    assert r"a\_b" in table.latex()
    assert table.file_name == "t_u"
    assert [mean_and_deviation(values) for values in ([], [1.0], [1.0, 3.0])] == ["", "1.00", "2.00 ± 1.41"]


def test_a_half_made_cache_is_made_again_and_a_step_that_fails_is_named(world: Path, tmp_path: Path) -> None:
    places = {"WORK": str(tmp_path / "work")}
    target = tmp_path / "work" / "cache"
    target.mkdir(parents=True)
    (target / "image_features-00000.safetensors").write_bytes(b"cut")
    np.save(tmp_path / "features.npy", np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32))
    (tmp_path / "captions.csv").write_text("image,caption\na.jpg,a cat\nb.jpg,a dog\n")
    step = {
        **{"make": "${WORK}/cache", "teacher_name": "t", "captions_file": str(tmp_path / "captions.csv")},
        "image_features_file": str(tmp_path / "features.npy"),
    }
    prepare([step], places)
    made = (target / "manifest.json").stat()
    assert len(TeacherCache(target).images) == 2
    prepare([step], places)
    assert (target / "manifest.json").stat() == made
    with pytest.raises(ValueError, match=r"Making .*clean failed: train_teacher.py ended with status 1"):
        prepare([{"make": "${WORK}/clean", "command": "train_teacher.py --output_dir ${WORK}/none"}], places)


def test_what_kdmcse_embeds_becomes_the_captions_side_of_a_cache(world: Path, tmp_path: Path) -> None:
    """Pictures of one teacher, captions of a text encoder that has seen none: each in a width of its own."""
    places = {"WORK": str(tmp_path / "a work folder"), "ENCODER": str(world / "student"), "KIT": str(tmp_path)}
    np.save(tmp_path / "pictures.npy", np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32))
    (tmp_path / "captions.csv").write_text("image,caption\na.jpg,a cat\nb.jpg,a dog\na.jpg,two cats\n")
    embed = "kdmcse embed ${KIT}/captions.csv ${WORK}/captions.npy --column caption --model ${ENCODER} --pooling mean"
    pictures = {"captions_file": "${KIT}/captions.csv", "image_features_file": "${KIT}/pictures.npy"}
    cache = {"make": "${WORK}/cache", "teacher_name": "t", **pictures}
    steps = [
        {"make": "${WORK}/captions.npy", "command": embed},
        {**cache, "caption_features_file": "${WORK}/captions.npy"},
    ]
    prepare(steps, places)
    found = TeacherCache(tmp_path / "a work folder" / "cache")
    assert found.image_features.width == 4
    assert found.caption_features is not None
    captions = found.captions["caption"][:]
    assert captions == ["a cat", "a dog", "two cats"]
    encoder = SentenceEncoder.from_pretrained(world / "student", pooling="mean")
    np.testing.assert_allclose(found.caption_features.rows([0, 1, 2]), encoder(captions), rtol=1e-3, atol=1e-3)


def test_a_kept_run_with_other_flags_is_not_filed_as_the_new_one(study_file: Path, tmp_path: Path) -> None:
    """A row with `keep` leaves its record behind; taken out of the results, it is made anew with its new flags."""
    results = Results(tmp_path / "results")
    change(study_file, untrained={"train": False, "seeds": 1, "keep": True})
    old = load_study(study_file).rows["untrained"]
    folder = results.run_folder(Run(old, 0))
    folder.mkdir(parents=True)
    record = {"row": "untrained", "seed": 0, "fingerprint": old.fingerprint, "flags": old.flags, "sts": {"avg": 6.0}}
    (folder / "record.json").write_text(json.dumps(record))
    arguments = [str(study_file), "--output_dir", str(results.folder), "--rows", "untrained"]
    change(study_file, untrained={"train": False, "seeds": 1, "keep": True, "pooling": "cls"})
    assert main(arguments) == 0
    (found,) = results.records().values()
    assert found["flags"]["pooling"] == "cls"
    assert found["sts"]["avg"] != 6.0
    content = yaml.safe_load(study_file.read_text())
    study_file.write_text(yaml.safe_dump({**content, "tasks": ["STSB", "SICKR"]}, sort_keys=False))
    with pytest.raises(SystemExit):
        main([*arguments, "--report_only"])


def test_a_kept_run_that_is_taken_out_of_the_results_is_made_again(study_file: Path, tmp_path: Path) -> None:
    results = Results(tmp_path / "results")
    change(study_file, simcse={"preset": "simcse", "seeds": 1, "keep": True, "max_steps": 2})
    arguments = [str(study_file), "--output_dir", str(results.folder), "--rows", "simcse"]
    assert main(arguments) == 0
    folder = results.folder / "runs" / "simcse-0"
    assert [path.name for path in folder.iterdir()] == ["model"]
    weights = (folder / "model" / "model.safetensors").stat()
    results.file.unlink()
    assert main(arguments) == 0
    assert len(results.records()) == 1
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns > weights.st_mtime_ns


def test_seeds_of_one_row_from_other_teachers_or_data_are_refused(
    study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Results(tmp_path / "results")
    pretend(results, study_file, {"kdmcse": [70.0, 71.0], "simcse": [50.0, 51.0]})
    records = list(results.records().values())
    results.file.unlink()
    for record in records:  # which pairs are drawn is the seed's own
        data = {"num_pairs": 100, "sha256": {"text": "t", "pairs": f"of seed {record['seed']}"}}
        digest = record["seed"] if record["row"] == "kdmcse" else 0
        results.add({**record, "data": data, "teacher": {"digest": digest, "manifest": f"of {record['seed']}"}})
    with pytest.raises(SystemExit):
        main([str(study_file), "--output_dir", str(results.folder), "--report_only"])
    error = capsys.readouterr().err
    assert "kdmcse (seed 1): another teacher than that of kdmcse-0, in the same place" in error
    assert "simcse" not in error


def test_a_seed_that_no_row_has_is_refused(study_file: Path) -> None:
    with pytest.raises(ValueError, match=r"No row has the seeds \[7\]: they have \[0, 1\]"):
        load_study(study_file).runs(seeds=[0, 7])


def test_finished_weights_are_measured_once_more_by_other_scripts(
    study_file: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Results(tmp_path / "results")
    change(study_file, kdmcse={"teacher_cache": str(world / "cache"), "label": "KDMCSE", "keep": True})
    content = yaml.safe_load(study_file.read_text())
    spaced = tmp_path / "a folder"  # what a place is called does not cut the command up
    spaced.symlink_to(world)
    command, places = "evaluate_retrieval.py --teacher_cache ${SPACED}/cache", {"SPACED": str(spaced)}
    content["evaluations"] = {"retrieval": {"label": "Found", "command": command, "rows": ["untrained", "kdmcse"]}}
    study_file.write_text(yaml.safe_dump(content, sort_keys=False))
    pretend(results, study_file, {"untrained": [40.0], "kdmcse": [70.0]})  # the second's weights are gone
    study = load_study(study_file)
    assert evaluate_finished(study, study.runs(["simcse"]), results, places, 1) == []  # none of these runs
    (failed,) = evaluate_finished(study, study.runs(), results, places, 1)
    assert failed.startswith("retrieval of kdmcse-0: ")
    assert "is gone: give the row `keep: true`" in failed
    found = json.loads(results.evaluation_file("retrieval", Run(study.rows["untrained"], 0)).read_text())["found"]
    assert not list(results.folder.glob("evaluations/**/*.log"))
    report = write_report(study, results, {}).read_text()
    assert "## Found, caption to caption" in report
    assert f"| untrained | 1 | {found['caption_to_caption']['r@1']:.2f} | " in report
    file = results.evaluation_file("retrieval", Run(study.rows["untrained"], 0))
    file.write_text(json.dumps({**json.loads(file.read_text()), "found": {"MR": 1.0}}))
    evaluate_finished(study, study.runs(), results, places, 1)  # what is done stays
    assert "| untrained | 1 | 1.00 |" in write_report(study, results, {}).read_text()
    record = results.records()["untrained", 0]
    for again in ({**record, "cost": {"finished": "later"}}, {**record, "fingerprint": "other flags"}):
        results.add(again)  # the run was made again: what was measured of the other is not of this one
        assert "## Found" not in write_report(study, results, {}).read_text()
        evaluate_finished(study, study.runs(), results, places, 1)
        assert json.loads(file.read_text())["found"] == found

    content["evaluations"]["retrieval"]["rows"] = ["simcse"]
    study_file.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(ValueError, match="evaluation 'retrieval': expected .* and simcse keep none"):
        load_study(study_file)


def test_an_evaluation_that_leaves_no_numbers_is_told_and_the_others_go_on(study_file: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing.py").write_text("")
    (tmp_path / "number.py").write_text(
        "import pathlib, sys\npathlib.Path(sys.argv[sys.argv.index('--output_json') + 1]).write_text('{\"x\": 1}')\n"
    )
    content = yaml.safe_load(study_file.read_text())
    names = ("nothing", "number")
    content["evaluations"] = {n: {"command": str(tmp_path / f"{n}.py"), "rows": ["untrained"]} for n in names}
    study_file.write_text(yaml.safe_dump(content, sort_keys=False))
    study, results = load_study(study_file), Results(tmp_path / "results")
    pretend(results, study_file, {"untrained": [40.0]})
    (failed,) = evaluate_finished(study, study.runs(), results, {}, 1)
    assert failed.startswith("nothing of untrained-0: it left no numbers in ")
    assert results.evaluation_file("number", Run(study.rows["untrained"], 0)).exists()


def test_only_what_the_chosen_rows_need_is_prepared(study_file: Path, world: Path) -> None:
    change(study_file, clean={"like": "kdmcse", "teacher_cache": "${WORK}/clean", "keep": True})
    content = yaml.safe_load(study_file.read_text())
    content["rows"]["kdmcse"]["teacher_cache"] = "${WORK}/dual"
    made = ["${WORK}/dual", "${WORK}/dual_test", "${WORK}/picture", "${WORK}/clean"]
    content["prepare"] = [{"make": name, "image_features_file": "f"} for name in made[:3]]
    content["prepare"] += [{"make": made[3], "command": "train_teacher.py --teacher_cache ${WORK}/picture"}]
    content["evaluations"] = {"m": {"command": "m.py --teacher_cache ${WORK}/dual_test", "rows": ["untrained"]}}
    study_file.write_text(yaml.safe_dump(content, sort_keys=False))
    study = load_study(study_file)

    def prepared(*rows: str) -> list[str]:
        return [step["make"] for step in study.preparation(study.runs(rows))]

    assert prepared("simcse") == []
    assert prepared("kdmcse") == made[:1]
    assert prepared("clean") == made[2:]  # what a step reads is made before
    assert prepared("untrained") == made[1:2]
    assert prepared("untrained", "no_filter") == made[:2]


def test_evaluations_are_compared_seed_by_seed(study_file: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(study_file.read_text())
    content["rows"]["simcse"]["keep"] = content["rows"]["kdmcse"]["keep"] = True
    content["seeds"] = 3
    content["evaluations"] = {"m": {"label": "Found", "command": "m.py", "rows": ["untrained", "simcse", "kdmcse"]}}
    study_file.write_text(yaml.safe_dump(content, sort_keys=False))
    study, results = load_study(study_file), Results(tmp_path / "results")
    found = {"untrained": [40.0], "simcse": [50.0, 53.0, 51.0], "kdmcse": [52.0, 56.0, 52.0]}
    pretend(results, study_file, found)
    for row, values in found.items():
        for seed, value in enumerate(values):
            file = results.evaluation_file("m", Run(study.rows[row], seed))
            file.parent.mkdir(parents=True, exist_ok=True)
            pictures = {"pictures": {"r@1": value}} if row == "kdmcse" else {}
            source = {"command": "m.py", "run": study.rows[row].fingerprint, "finished": None}
            measured = {"captions": {"r@1": value, "queries": 10}, **pictures}
            file.write_text(json.dumps({"of": source, "found": measured}))
    captions, differences, pictures = evaluation_tables(Findings(study, results, study.rows["simcse"].flags["sts_dir"]))
    assert captions.rows[2] == ("KDMCSE", "3", "53.33 ± 2.31", "10")
    assert [row[0] for row in pictures.rows] == ["KDMCSE"]
    assert (differences.title, differences.head) == ("Found, captions: differences", ("", "seeds", "r@1"))
    ((claim, seeds, cell),) = differences.rows
    assert (claim, seeds) == ("pictures help", "3")
    interval = ttest_1samp([2.0, 3.0, 1.0], 0).confidence_interval()
    value, low, high = (float(number) for number in re.findall(r"[+-][\d.]+", cell))
    assert value == 2.0
    assert (low, high) == pytest.approx((interval.low, interval.high), abs=0.1)

    content["evaluations"]["m"]["seeds"] = 2  # at most so many: the third is neither made nor in the tables
    study_file.write_text(yaml.safe_dump(content, sort_keys=False))
    study = load_study(study_file)
    results.evaluation_file("m", Run(study.rows["kdmcse"], 2)).unlink()
    assert evaluate_finished(study, study.runs(), results, {}, 1) == []
    captions = evaluation_tables(Findings(study, results, study.rows["simcse"].flags["sts_dir"]))[0]
    assert [row[1:3] for row in captions.rows[1:]] == [("2", "51.50 ± 2.12"), ("2", "54.00 ± 2.83")]


MEETING = """
import json, os, pathlib, sys, time
here = pathlib.Path(__file__).parent
(here / f"{os.getpid()}.here").touch()
end = time.monotonic() + 30
while len(list(here.glob("*.here"))) < 2 and time.monotonic() < end:
    time.sleep(0.01)
met = {"met": len(list(here.glob("*.here"))), "threads": int(os.environ["OMP_NUM_THREADS"])}
pathlib.Path(sys.argv[sys.argv.index("--output_json") + 1]).write_text(json.dumps(met))
"""


def test_evaluations_share_the_machine_as_runs_do(study_file: Path, tmp_path: Path) -> None:
    (tmp_path / "meeting.py").write_text(MEETING)
    content = yaml.safe_load(study_file.read_text())
    content["rows"]["first_token"] = {"like": "untrained", "pooling": "cls"}
    content["evaluations"] = {"m": {"command": str(tmp_path / "meeting.py"), "rows": ["untrained", "first_token"]}}
    study_file.write_text(yaml.safe_dump(content, sort_keys=False))
    study, results = load_study(study_file), Results(tmp_path / "results")
    pretend(results, study_file, {"untrained": [40.0], "first_token": [39.0]})
    assert evaluate_finished(study, study.runs(), results, {}, 2) == []
    for row in ("untrained", "first_token"):
        found = json.loads(results.evaluation_file("m", Run(study.rows[row], 0)).read_text())["found"]
        assert found == {"met": 2, "threads": max(1, (os.cpu_count() or 1) // 2)}


ENDLESS = """
import os, pathlib, time
(pathlib.Path(__file__).parent / "pid").write_text(str(os.getpid()))
time.sleep(600)
"""
STUDY = """
import sys
from studies.evaluations import evaluate_finished
from studies.grid import load_study
from studies.results import Results
from pathlib import Path
study = load_study(sys.argv[1])
evaluate_finished(study, study.runs(), Results(Path(sys.argv[2])), {}, 1)
"""


def is_running(process: str) -> bool:
    """Not ended, nor only waiting for somebody to ask how."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_evaluation_ends_with_a_study_that_is_killed(study_file: Path, tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(ENDLESS)
    content = yaml.safe_load(study_file.read_text())
    content["evaluations"] = {"m": {"command": str(tmp_path / "endless.py"), "rows": ["untrained"]}}
    study_file.write_text(yaml.safe_dump(content, sort_keys=False))
    results = Results(tmp_path / "results")
    pretend(results, study_file, {"untrained": [40.0]})
    command = [sys.executable, "-c", STUDY, str(study_file), str(results.folder)]
    path = os.pathsep.join([str(EXAMPLES), *sys.path])
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}) as killed:
        number = tmp_path / "pid"
        while not (number.exists() and number.read_text()):
            assert killed.poll() is None
            time.sleep(0.01)
        killed.kill()
    end = time.monotonic() + 30
    while (runs := is_running(number.read_text())) and time.monotonic() < end:
        time.sleep(0.01)
    assert not runs


def test_what_rests_on_test_pairs_with_a_training_caption_shows_without_them(
    study_file: Path, world: Path, tmp_path: Path
) -> None:
    pairs = load_sts(world / "sts", "STSB")
    content = yaml.safe_load(study_file.read_text())
    content["training_captions"] = {"captions_file": "${HERE}/captions.csv", "splits_file": "${HERE}/splits.csv"}
    content["training_captions"]["split"] = "train"
    study_file.write_text(yaml.safe_dump(content, sort_keys=False))
    trained = list(dict.fromkeys(pairs.first))[:9]
    lines = [*(f'a.jpg,"{sentence.upper()} !"' for sentence in trained), f'b.jpg,"{pairs.second[-1]}"']
    (tmp_path / "captions.csv").write_text("image,caption\n" + "\n".join(lines) + "\n")
    (tmp_path / "splits.csv").write_text("image,split\na.jpg,train\nb.jpg,test\n")

    study, results = load_study(study_file), Results(tmp_path / "results")
    captions = captions_in(study.training_captions, {"HERE": str(tmp_path)})
    known = np.array([any(s in trained for s in pair) for pair in zip(pairs.first, pairs.second, strict=True)])
    assert 0 < known.sum() < len(known) / 2
    table = overlap_table(str(world / "sts"), ["STSB"], captions)
    assert table.rows[0][:3] == ("STSB", str(len(known)), str(known.sum()))

    # The second row is the better one by these pairs alone.
    pretend(results, study_file, {"simcse": [0.0, 0.0], "kdmcse": [0.0, 0.0]})
    gold, rng = np.asarray(pairs.scores), np.random.default_rng(0)
    for seed in (0, 1):
        noise = gold + rng.normal(size=len(gold))
        results.save_cosines(f"simcse-{seed}", {"STSB": np.where(known, -5 * gold, noise)})
        results.save_cosines(f"kdmcse-{seed}", {"STSB": noise})
    found = Findings(study, results, str(world / "sts"), captions)
    on_all, without = (found.resampled("kdmcse", measure)[0] for measure in ("STSB", UNSEEN))
    cosines = results.cosines("kdmcse-0")["STSB"]
    assert without.value == pytest.approx(100 * spearmanr(cosines[~known], gold[~known]).statistic)
    assert not np.allclose(on_all.drawn, without.drawn)
    assert found.compare(("simcse", "kdmcse"), "STSB").low > 5
    assert found.compare(("simcse", "kdmcse"), UNSEEN).difference == pytest.approx(0, abs=0.01)
    assert comparisons_table(found).rows[0][-1].startswith(("+0.00", "-0.00"))


def test_what_rests_on_the_captions_domain_shows_without_it(
    study_file: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sts = tmp_path / "sts"
    shutil.copytree(world / "sts", sts)
    test_file = sts / "STS" / "STSBenchmark" / "sts-test.csv"
    lines = test_file.read_text().splitlines(keepends=True)
    captions = np.arange(len(lines)) % 2 == 0
    marked = zip(lines, captions, strict=True)
    test_file.write_text("".join(line if own else line.replace("main-captions", "main-news") for line, own in marked))
    content = yaml.safe_load(study_file.read_text())
    content["common"]["sts_dir"], content["captions_domain"] = str(sts), ["STSB/main-captions"]
    study_file.write_text(yaml.safe_dump(content, sort_keys=False))

    # The second row is the better one by these pairs alone.
    results = Results(tmp_path / "results")
    pretend(results, study_file, {"simcse": [0.0, 0.0], "kdmcse": [0.0, 0.0]})
    gold, rng = np.asarray(load_sts(sts, "STSB").scores), np.random.default_rng(0)
    for seed in (0, 1):
        noise = gold + rng.normal(size=len(gold))
        results.save_cosines(f"simcse-{seed}", {"STSB": np.where(captions, -5 * gold, noise)})
        results.save_cosines(f"kdmcse-{seed}", {"STSB": noise})
    found = Findings(load_study(study_file), results, str(sts))
    cosines = results.cosines("kdmcse-0")["STSB"]
    expected = 100 * spearmanr(cosines[~captions], gold[~captions]).statistic
    assert found.resampled("kdmcse", ELSEWHERE)[0].value == pytest.approx(expected)
    assert found.compare(("simcse", "kdmcse"), "STSB").low > 5
    assert found.compare(("simcse", "kdmcse"), ELSEWHERE).difference == pytest.approx(0, abs=0.05)  # two-byte cosines
    table = comparisons_table(found)
    assert table.head[-1] == ELSEWHERE and re.match(r"[+-]0\.0", table.rows[0][-1])

    # Draws of the same pairs under another name are no draws of this measure.
    monkeypatch.setattr(findings, "known_sentences", lambda *_: captions.astype(int))
    content["captions_domain"] = []
    study_file.write_text(yaml.safe_dump(content, sort_keys=False))
    unseen = Findings(load_study(study_file), results, str(sts), ["any"])
    assert unseen.resampled("kdmcse", UNSEEN)[0].value == pytest.approx(expected)

    for domain, message in (
        (["STSB/main"], "names STSB/main: expected one of STSB, STSB/main-captions, STSB/main-news"),
        (["STSB"], "no pairs are left"),
        (["STS9"], "names STS9: expected one of STSB"),
    ):
        content["captions_domain"] = domain
        study_file.write_text(yaml.safe_dump(content, sort_keys=False))
        with pytest.raises(ValueError, match=message):
            Findings(load_study(study_file), results, str(sts)).kept()


def test_a_missing_place_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(ValueError, match="environment variable NOWHERE"):
        expand("${WORK}/${NOWHERE}/x", {"WORK": "w"})


@pytest.mark.parametrize("name", ["main", "ablations", "clean", "improvements"])
def test_every_row_of_the_shipped_studies_has_flags_that_the_script_takes(name: str, tmp_path: Path) -> None:
    from train_kdmcse import DataArguments, ModelArguments
    from train_variants import split_flags

    from kdmcse_hf import KDMCSETrainingArguments, Objective
    from kdmcse_hf.arguments import parse_arguments

    study = load_study(EXAMPLES / "studies" / f"{name}.yaml")
    shown = {row for rows in study.tables.values() for row in rows}
    assert {row for row in study.own if not study.rows[row].best_of} <= shown
    types = (ModelArguments, DataArguments, Objective, KDMCSETrainingArguments)
    for row in (study.rows[row] for row in study.own if not study.rows[row].best_of):
        flags = [text for flag, value in row.flags.items() for text in (f"--{flag}", value)]
        parse_arguments(types, [*split_flags(flags)[1], "--output_dir", str(tmp_path), "--bf16", "false"])


def test_curves_stand_where_their_rows_differ_and_name_rows_that_there_are(
    study_file: Path, world: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    from studies.plots import curves

    content = yaml.safe_load(study_file.read_text())
    content["curves"] = {
        "Pairs": {"KDMCSE": {100: "no_filter", 30000: "kdmcse"}, "no pictures": "simcse"},
        "Nothing yet": {"broken": {1: "broken"}, "no pictures": "simcse"},
    }
    study_file.write_text(yaml.safe_dump(content, sort_keys=False))
    results = Results(tmp_path / "results")
    assert curves(Findings(load_study(study_file), results, str(world / "sts")), []) is None
    pretend(results, study_file, {"simcse": [50.0, 53.0], "kdmcse": [70.0, 71.0], "no_filter": [60.0]})
    figure = curves(Findings(load_study(study_file), results, str(world / "sts")), [])
    assert figure is not None
    (panel,) = figure.axes
    drawn = dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    # of the one seed that all three rows have
    np.testing.assert_allclose(drawn["KDMCSE"].lines[0].get_xydata(), [[100, 60.0], [30000, 70.0]])
    assert set(drawn["no pictures"].get_ydata()) == {50.0}
    assert panel.get_xscale() == "log"
    for place, row, message in ((10, "gone", "curves name unknown rows: gone"), ("all", "kdmcse", "a point at 'all'")):
        content["curves"]["Pairs"]["KDMCSE"] = {place: row}
        study_file.write_text(yaml.safe_dump(content, sort_keys=False))
        with pytest.raises(ValueError, match=message):
            load_study(study_file)


def test_plots_are_drawn_of_what_is_there(study_file: Path, world: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from studies.plots import draw_all

    results = Results(tmp_path / "results")
    assert draw_all(Findings(load_study(study_file), results, str(world / "sts")), tmp_path) == []
    pretend(results, study_file, {"simcse": [50.0, 53.0], "kdmcse": [70.0]})
    records = list(results.records().values())
    results.file.unlink()
    for record in records:
        points = [{"step": s, "spearman": 50.0 + s, "alignment": 0.2, "uniformity": -2.0 - s} for s in (1, 2)]
        results.add({**record, "dev": points})
    found = Findings(load_study(study_file), results, str(world / "sts"))
    drawn = draw_all(found, tmp_path)
    assert [path.stem for path in drawn] == ["scores", "dev_curves", "alignment_and_uniformity", "cosines_by_gold"]
    for path in drawn:
        assert path.read_bytes().startswith(b"\x89PNG")
    texts = (tmp_path / "dev_curves.svg").read_text()
    before = [path.with_suffix(".svg").read_bytes() for path in drawn]
    assert "text only" in texts
    draw_all(found, tmp_path)
    assert before == [path.with_suffix(".svg").read_bytes() for path in drawn]  # so that a repository shows no change
