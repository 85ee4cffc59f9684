"""What else is measured of finished runs: a script of `examples/` for each, and tables of what it found.

    evaluations:
      transfer:
        command: evaluate_transfer.py --transfer_dir ${KDMCSE_DATA}/transfer
        rows: [untrained, kdmcse]    # trained ones with `keep`
        seeds: 3                     # at most so many of each row; by default all

The script takes `--model_name_or_path`, `--pooling` and `--output_json`, and writes numbers by name into the latter, or
groups of such. What it found is kept with the run that it is of and the command: if one of them is another, it is
measured again.
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

import numpy as np
from tqdm.auto import tqdm

from kdmcse_hf.significance import Resampled, compare_over_seeds
from studies import EXAMPLES
from studies.child import child_environment
from studies.findings import Findings
from studies.grid import Evaluation, Run, Study, expand
from studies.results import Results, write_json
from studies.runs import reason_of, shares
from studies.table import Table, mean_and_deviation

_BySeed = dict[int, dict[str, dict[str, float]]]
"""Groups of numbers by name."""
_Source = dict[str, str | None]


def evaluate_finished(
    study: Study, runs: Sequence[Run], results: Results, places: Mapping[str, str], at_once: int
) -> list[str]:
    """Does what is not done yet of these runs, if they are finished, `at_once` at a time; says what failed, and why."""
    chosen = {run.name for run in runs}
    todo = [
        (evaluation, run, source)
        for evaluation in study.evaluations
        for run, source in _finished(study, evaluation, results)
        if run.name in chosen and _found(results.evaluation_file(evaluation.name, run), source) is None
    ]
    alive, held = os.pipe()  # children read the one, and end when this process does and the other is closed
    free: SimpleQueue[dict[str, str]] = SimpleQueue()
    for share in shares(at_once):
        free.put(share)

    def failure(job: tuple[Evaluation, Run, _Source]) -> str | None:
        share = free.get()
        try:
            return _evaluate(*job, results, places, share, alive)
        finally:
            free.put(share)

    with ThreadPoolExecutor(at_once) as pool:
        try:
            reasons = list(tqdm(pool.map(failure, todo), desc="Evaluations", unit="run", total=len(todo), disable=None))
        finally:
            os.close(held)
            os.close(alive)
    return [
        f"{evaluation.name} of {run.name}: {why}"
        for (evaluation, run, _), why in zip(todo, reasons, strict=True)
        if why
    ]


def _finished(study: Study, evaluation: Evaluation, results: Results) -> list[tuple[Run, _Source]]:
    """The runs that can be measured, and what tells a measurement of them from another."""
    records = results.records()
    runs = (Run(study.rows[row], seed) for row in evaluation.rows for seed in study.rows[row].seeds[: evaluation.seeds])
    return [
        (run, {"command": evaluation.command, "run": record["fingerprint"], "finished": record["cost"].get("finished")})
        for run in runs
        if (record := records.get((run.row.name, run.seed)))
    ]


def _found(path: Path, source: _Source) -> dict[str, Any] | None:
    """What was measured, unless it is of another run or by another command."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found: dict[str, Any] | None = content.get("found")
    return found if content.get("of") == source else None


def _evaluate(
    evaluation: Evaluation,
    run: Run,
    source: _Source,
    results: Results,
    places: Mapping[str, str],
    share: dict[str, str],
    alive: int,
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
    command = [str(EXAMPLES / script), *arguments, "--model_name_or_path", model, *pooling]
    with log.open("wb") as file:
        ended = subprocess.run(
            [sys.executable, "-m", "studies.child", *command, "--output_json", str(temporary)],
            stdin=alive,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=child_environment(share),
        )
    if ended.returncode:
        return reason_of(ended.returncode, log)
    try:
        found = json.loads(temporary.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"it left no numbers in {temporary} ({type(error).__name__}); see {log}"
    write_json(target, {"of": source, "found": found})
    temporary.unlink()
    log.unlink()
    return None


def evaluation_tables(found: Findings) -> list[Table]:
    """A table an evaluation, or one a group of its numbers: means and deviations; and one of the comparisons' seeds."""
    tables = []
    for evaluation in found.study.evaluations:
        measured: dict[str, _BySeed] = {row: {} for row in evaluation.rows}
        for run, source in _finished(found.study, evaluation, found.results):
            if (content := _found(found.results.evaluation_file(evaluation.name, run), source)) is not None:
                measured[run.row.name][run.seed] = _groups(content)
        for group in dict.fromkeys(name for runs in measured.values() for run in runs.values() for name in run):
            title = f"{evaluation.label}{f', {group}' if group else ''}"
            values = {
                row: {seed: run[group] for seed, run in runs.items() if group in run}
                for row, runs in measured.items()
                if not runs or any(group in run for run in runs.values())  # without pictures nothing finds pictures
            }
            names = list(dict.fromkeys(name for runs in values.values() for run in runs.values() for name in run))
            lines = [
                (
                    found.rows[row].label,
                    str(len(runs)) if runs else "not run",
                    *(_cell([run[name] for run in runs.values() if name in run]) for name in names),
                )
                for row, runs in values.items()
            ]
            tables.append(Table(title, ("", "seeds", *names), tuple(lines)))
            tables += _differences(found, title, values)
    return tables


def _differences(found: Findings, title: str, values: dict[str, dict[int, dict[str, float]]]) -> list[Table]:
    """The study's comparisons, seed by seed, of what is not the same in all runs."""
    every = [run for runs in values.values() for run in runs.values()]
    shared = [name for name in every[0] if all(name in run for run in every)]
    names = [name for name in shared if len({run[name] for run in every}) > 1]
    lines = []
    for claim, pair in found.study.comparisons.items():
        first, second = (values.get(row, {}) for row in pair)
        seeds = [seed for seed in first if seed in second]
        if len(seeds) < 2:
            continue
        cells = []
        for name in names:
            before, after = ({seed: _known(runs[seed][name]) for seed in seeds} for runs in (first, second))
            result = compare_over_seeds(before, after)
            cells.append(f"{result.difference:+.2f} ({result.low:+.2f} to {result.high:+.2f})")
        lines.append((claim, str(len(seeds)), *cells))
    return [Table(f"{title}: differences", ("", "seeds", *names), tuple(lines))] if lines else []


def _known(value: float) -> Resampled:
    """As if other examples would change nothing: only other seeds do."""
    return Resampled(value, np.full(1000, value))


def _cell(values: Sequence[float]) -> str:
    counts = set(values)
    return str(counts.pop()) if len(counts) == 1 and type(values[0]) is int else mean_and_deviation(values)


def _groups(content: dict[str, Any]) -> dict[str, dict[str, float]]:
    nested = {key.replace("_", " "): value for key, value in content.items() if isinstance(value, dict)}
    flat = {key: value for key, value in content.items() if not isinstance(value, dict)}
    return nested | ({"": flat} if flat else {})
