"""What else is measured of finished runs: a script of `examples/` for each, and tables of what it found.

    evaluations:
      transfer:
        command: evaluate_transfer.py --transfer_dir ${KDMCSE_DATA}/transfer
        rows: [untrained, kdmcse]    # trained ones with `keep`
        seeds: 3                     # at most so many of each row; by default all

The script takes `--model_name_or_path`, `--pooling` and `--output_json`, and writes numbers by name into the latter, or
groups of such.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tqdm.auto import tqdm

from studies.grid import Evaluation, Run, Study, expand
from studies.results import Results
from studies.runs import shares
from studies.tables import Findings, Table, mean_and_deviation

EXAMPLES = Path(__file__).parents[1]


def evaluate_finished(
    study: Study, runs: Sequence[Run], results: Results, places: Mapping[str, str], at_once: int
) -> list[str]:
    """Does what is not done yet of these runs, if they are finished, `at_once` at a time; says what failed, and why."""
    chosen = {(run.row.name, run.seed) for run in runs} & results.records().keys()
    todo = [
        (evaluation, run)
        for evaluation in study.evaluations
        for run in _runs(study, evaluation)
        if (run.row.name, run.seed) in chosen and not results.evaluation_file(evaluation.name, run).exists()
    ]
    free: SimpleQueue[dict[str, str]] = SimpleQueue()
    for share in shares(at_once):
        free.put(share)

    def failure(job: tuple[Evaluation, Run]) -> str | None:
        share = free.get()
        try:
            return _evaluate(*job, results, places, share)
        finally:
            free.put(share)

    with ThreadPoolExecutor(at_once) as pool:
        reasons = list(tqdm(pool.map(failure, todo), desc="Evaluations", unit="run", total=len(todo), disable=None))
    return [
        f"{evaluation.name} of {run.name}: {why}" for (evaluation, run), why in zip(todo, reasons, strict=True) if why
    ]


def _runs(study: Study, evaluation: Evaluation) -> list[Run]:
    return [Run(study.rows[row], seed) for row in evaluation.rows for seed in study.rows[row].seeds[: evaluation.seeds]]


def _evaluate(
    evaluation: Evaluation, run: Run, results: Results, places: Mapping[str, str], share: dict[str, str]
) -> str | None:
    target = results.evaluation_file(evaluation.name, run)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, log = target.with_suffix(".tmp"), target.with_suffix(".log")
    model = str(results.run_folder(run) / "model")
    pooling = []
    if not run.row.train:
        model = expand(run.row.flags["model_name_or_path"], places)
        pooling = ["--pooling", run.row.flags.get("pooling", "cls")]
    elif not Path(model).is_dir():
        return f"{model} is gone: give the row `keep: true`, and run it again"
    script, *arguments = (expand(part, places) for part in evaluation.command.split())
    command = [sys.executable, str(EXAMPLES / script), *arguments, "--model_name_or_path", model, *pooling]
    with log.open("wb") as file:
        ended = subprocess.run(
            [*command, "--output_json", str(temporary)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **share, "TQDM_DISABLE": "1"},
        )
    if ended.returncode:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return f"{lines[-1][:300] if lines else f'status {ended.returncode}'}; see {log}"
    temporary.replace(target)
    log.unlink()
    return None


def evaluation_tables(found: Findings) -> list[Table]:
    """A table an evaluation, or one a group of its numbers: means and standard deviations over seeds."""
    tables = []
    for evaluation in found.study.evaluations:
        by_row: dict[str, list[dict[str, Any]]] = {row: [] for row in evaluation.rows}
        for run in _runs(found.study, evaluation):
            path = found.results.evaluation_file(evaluation.name, run)
            if path.exists():
                by_row[run.row.name].append(_groups(json.loads(path.read_text(encoding="utf-8"))))
        for group in dict.fromkeys(group for runs in by_row.values() for run in runs for group in run):
            names = list(dict.fromkeys(name for runs in by_row.values() for run in runs for name in run.get(group, {})))
            lines = []
            for row, runs in by_row.items():
                values = {name: [run[group][name] for run in runs if name in run.get(group, {})] for name in names}
                cells = (mean_and_deviation(values[name]) for name in names)
                lines.append((found.rows[row].label, str(len(runs)) if runs else "not run", *cells))
            title = f"{evaluation.label}{f', {group}' if group else ''}"
            tables.append(Table(title, ("", "seeds", *names), tuple(lines)))
    return tables


def _groups(content: dict[str, Any]) -> dict[str, dict[str, float]]:
    nested = {key.replace("_", " "): value for key, value in content.items() if isinstance(value, dict)}
    flat = {key: value for key, value in content.items() if not isinstance(value, dict)}
    return nested | ({"": flat} if flat else {})
