"""The report of a study: Markdown, LaTeX tables and plots of what is done, at any time."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kdmcse_hf.teacher.shard import publishing
from studies.evaluations import evaluation_tables
from studies.findings import Findings
from studies.grid import Study, expand
from studies.overlap import captions_in, overlap_table
from studies.results import Results
from studies.table import Table
from studies.tables import (
    comparisons_table,
    other_measures_table,
    scores_table,
    subset_gains_table,
    subsets_table,
)

HOW = (
    'STS: Spearman x 100 over all pairs of a set (SentEval\'s "all", its lower-cased, tokenised text), weights in '
    "float32. Figures are means ± standard deviations over seeds: in a table, and in a panel of a plot, over those "
    "that all of its trained rows have. Intervals and p take in both the test pairs (1,000 resamples, the same for "
    "every run; a pair that stands in several sets is drawn in all of them) and the seeds (Student's t); they say "
    "nothing of other sets or other data, and there are none of a single seed. Where a sentence stands in many pairs "
    "(SICK-R, STS12's SMTeuroparl, STS15's answers of students, STS16's questions) these are drawn as if they had "
    "nothing in common, and intervals are somewhat narrow. A comparison is made seed by seed, for "
    "runs of one seed share what their rows share, batches above all; its difference is the mean over the seeds that "
    "both rows have. Intervals stand each for itself; what is called shown is so at the 5 % level after Holm's "
    "correction for all comparisons of that table, also those that are not done yet; a star says the same. "
    "Checkpoints are chosen by STS-B dev, most of whose pairs stand in the test sets of STS12 to STS16 as well, as "
    "everywhere in the field. Alignment and uniformity are over the whole of STS-B test. A loss is the last one "
    "logged, of a whole term before its weight, under dropout. Intervals of transfer and retrieval take in the seeds "
    "alone."
)


def write_report(study: Study, results: Results, places: Mapping[str, str]) -> Path:
    """Writes `report.md`, `*.tex` and plots into a folder named as the study; returns the path of `report.md`."""
    folder = results.folder / study.name
    folder.mkdir(parents=True, exist_ok=True)
    sts_dir = next(iter(study.rows.values())).flags["sts_dir"]
    captions = captions_in(study.training_captions, places) if study.training_captions else ()
    found = Findings(study, results, expand(sts_dir, places), captions)
    runs = study.runs()
    finished = {(name, record["seed"]) for name, records in found.records.items() for record in records}
    done = sum((run.row.name, run.seed) in finished for run in runs)
    tables = list(_tables(found))
    parts = [f"# {study.title}", f"{done} of {len(runs)} runs are done.", *_failures(study, results), HOW]
    parts += [f"- {note}" for note in study.notes]
    for table in tables:
        parts += [f"## {table.title}", table.markdown()]
        _write(folder / f"{table.file_name}.tex", table.latex())
    plots, remark = _plots(found, folder)
    parts += ["## Plots", remark, *(f"![{path.stem}]({path.name})" for path in plots)]
    parts += ["## Made with", *_environments(found)]
    _write(folder / "report.md", "\n\n".join(part for part in parts if part) + "\n")
    return folder / "report.md"


def _tables(found: Findings) -> Iterable[Table]:
    for title, rows in found.study.tables.items():
        common = found.on_common_seeds(rows)
        yield scores_table(common, title, rows)
        yield other_measures_table(common, f"{title}: other measures", rows)
    if found.study.comparisons:
        yield comparisons_table(found)
    if found.captions:
        yield overlap_table(found.sts_dir, found.study.tasks, found.captions)
    yield from evaluation_tables(found)
    yield subsets_table(found.on_common_seeds(found.study.plots), found.study.plots)
    if found.study.subsets:
        yield subset_gains_table(found, found.study.subsets)


def _plots(found: Findings, folder: Path) -> tuple[list[Path], str]:
    try:
        from studies.plots import draw_all
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "matplotlib":
            raise
        return [], "None: matplotlib is missing. `pip install 'kdmcse_hf[viz]'`, then run with `--report_only`."
    return draw_all(found, folder), ""


def _failures(study: Study, results: Results) -> list[str]:
    reasons = {run.name: results.failure(run) for run in study.runs()}
    lines = [f"- {name}: {reason}" for name, reason in reasons.items() if reason]
    return ["Failed, and tried again next time:\n\n" + "\n".join(lines)] if lines else []


def _environments(found: Findings) -> list[str]:
    shown = {row for rows in found.study.tables.values() for row in rows}
    shown |= {row for rows in found.study.comparisons.values() for row in rows}
    records = [record for row in found.study.rows if row in shown for record in found.records[row]]
    lines = []
    for key in ("commit", "hardware", "versions"):
        values = {_told(record[key]): None for record in records}
        lines.append(f"- {key}: {'; '.join(values) or 'nothing was run'}")
    return ["\n".join(lines)]


def _told(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _write(path: Path, text: str) -> None:
    with publishing(path) as file:
        file.write(text.encode())
