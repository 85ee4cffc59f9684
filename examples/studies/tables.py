"""Tables of a study: means and standard deviations over seeds, intervals, comparisons; as Markdown and as LaTeX."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdmcse_hf.significance import Interval, Resampled, compare_over_seeds, interval_over_seeds, resample_spearman
from kdmcse_hf.sts import sts_subsets
from studies.grid import Row, Study
from studies.results import Arrays, Results


@dataclass(frozen=True)
class Table:
    """Cells of text; the first column names the row."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = [self.head, ("---",) * len(self.head), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

    def latex(self) -> str:
        """For the package booktabs."""
        lines = [" & ".join(map(_latex, line)) + r" \\" for line in (self.head, *self.rows)]
        columns = "l" + "r" * (len(self.head) - 1)
        return "\n".join(
            [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
            + [r"\end{tabular}", ""]
        )

    @property
    def file_name(self) -> str:
        return re.sub(r"\W+", "_", self.title.lower()).strip("_")


_LATEX = {"±": r"$\pm$", "−": "$-$", "<": "$<$", **{sign: f"\\{sign}" for sign in "&%$#_{}"}}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)


class Findings:
    """The finished runs of a study, by row."""

    def __init__(self, study: Study, results: Results, sts_dir: str) -> None:
        self.study, self.results, self.sts_dir = study, results, sts_dir
        self._drawn: dict[str, Arrays] = {}
        self.records: dict[str, list[dict[str, Any]]] = {name: [] for name in study.rows}
        for (name, seed), record in sorted(results.records().items()):
            if name in study.rows and seed in study.rows[name].seeds:
                self.records[name].append(record)

    def values(self, row: str, *path: str) -> list[float]:
        """A measure of each run of a row that has it, such as `values("kdmcse", "sts", "avg")`."""
        found = []
        for record in self.records[row]:
            value: Any = record
            for key in path:
                value = value.get(key) if isinstance(value, dict) else None
            if value is not None:
                found.append(value)
        return found

    def resampled(self, row: str, measure: str) -> list[Resampled]:
        """The runs of a row on an STS set, on `avg`, the sets' mean, or on a subset (`STS14/images`)."""
        kind = "subsets" if "/" in measure else "sts"
        return [Resampled(record[kind][measure], self._draws(record)[measure]) for record in self.records[row]]

    def _draws(self, record: dict[str, Any]) -> Arrays:
        """The scores of one run on resampled pairs, by set and subset; kept, for they take seconds."""
        name = f"{record['row']}-{record['seed']}"
        if name not in self._drawn:
            drawn = self.results.arrays("draws", name)
            if not drawn or set(drawn) != {*record["sts"], *record["subsets"]}:
                drawn = self._draw(name)
                self.results.save_arrays("draws", name, drawn)
            self._drawn[name] = drawn
        return self._drawn[name]

    def _draw(self, name: str) -> Arrays:
        cosines, gold = (self.results.arrays("cosines", part) for part in (name, "gold"))
        if cosines is None or gold is None:
            raise ValueError(f"{self.results.folder}/cosines lacks {name}.npz or gold.npz: without them no intervals.")
        sets = {task: (cosines[task], gold[task]) for task in cosines}
        parts = {
            f"{task}/{subset}": (cosines[task][rows], gold[task][rows])
            for task in cosines
            for subset, rows in sts_subsets(self.sts_dir, task).items()
        }
        drawn = (resample_spearman(parts) if parts else {}) | resample_spearman(sets)  # `avg` is that of the sets
        return {measure: run.drawn.astype(np.float32) for measure, run in drawn.items()}

    def interval(self, row: str) -> Interval | None:
        """Of the average over the sets."""
        runs = self.resampled(row, "avg")
        return interval_over_seeds(runs) if runs else None

    def count(self, row: Row) -> str:
        """How many seeds a figure is the mean of; says where there are fewer than planned."""
        done, planned = len(self.records[row.name]), len(row.seeds)
        return "not run" if not done else str(done) if done == planned else f"{done} of {planned}"


def mean_and_deviation(values: Sequence[float], digits: int = 2) -> str:
    """`mean ± standard deviation` (that of a sample); of one value the value; of none nothing."""
    if not values:
        return ""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def scores_table(found: Findings, title: str, rows: Sequence[str]) -> Table:
    """STS by set, their mean with its interval, and STS-B dev, by which checkpoints are chosen."""
    tasks = found.study.tasks
    lines = []
    for name in rows:
        row, interval = found.study.rows[name], found.interval(name)
        lines.append(
            (
                row.label,
                found.count(row),
                *(mean_and_deviation(found.values(name, "sts", task)) for task in tasks),
                mean_and_deviation(found.values(name, "sts", "avg")),
                f"{interval.low:.2f} to {interval.high:.2f}" if interval else "",
                mean_and_deviation(found.values(name, "stsb", "dev", "spearman")),
            )
        )
    return Table(title, ("", "seeds", *tasks, "avg", "avg, 95 %", "STS-B dev"), tuple(lines))


def other_measures_table(found: Findings, title: str, rows: Sequence[str]) -> Table:
    """Alignment and uniformity, the step that was kept, what filter and margin did, and what it cost."""
    lines = []
    for name in rows:
        rates = [
            mean_and_deviation([100 * rate for rate in found.values(name, "rates", f"{term}_{kind}_rate")], 3)
            for term in ("image", "caption")
            for kind in ("filter", "margin")
        ]
        lines.append(
            (
                found.study.rows[name].label,
                found.count(found.study.rows[name]),
                mean_and_deviation(found.values(name, "stsb", "test", "alignment"), 3),
                mean_and_deviation(found.values(name, "stsb", "test", "uniformity"), 3),
                ", ".join(f"{step:.0f}" for step in sorted(set(found.values(name, "best_step")))),
                *rates,
                mean_and_deviation(found.values(name, "cost", "train_seconds"), 0),
                mean_and_deviation(found.values(name, "cost", "train_peak_mb"), 0),
            )
        )
    head = ("alignment", "uniformity", "steps kept", "image filter %", "image margin %", "caption filter %")
    return Table(title, ("", "seeds", *head, "caption margin %", "seconds", "peak MB"), tuple(lines))


def comparisons_table(found: Findings) -> Table:
    """Each comparison: the second row's average minus the first's, with its interval and p."""
    lines = []
    for claim, (first, second) in found.study.comparisons.items():
        rows = [found.study.rows[name] for name in (first, second)]
        runs = [found.resampled(name, "avg") for name in (first, second)]
        what = (claim, f"{rows[1].label} − {rows[0].label}", " / ".join(found.count(row) for row in reversed(rows)))
        if not all(runs):
            lines.append((*what, "", "", "", "not run"))
            continue
        result = compare_over_seeds(*runs)
        shown = "yes" if result.low > 0 else "the contrary" if result.high < 0 else "not shown"
        lines.append(
            (*what, f"{result.difference:+.2f}", f"{result.low:+.2f} to {result.high:+.2f}", f"{result.p:.3f}", shown)
        )
    return Table("Comparisons", ("", "rows", "seeds", "difference", "95 %", "p", "shown"), tuple(lines))


def subsets_table(found: Findings, rows: Sequence[str]) -> Table:
    """Every subset's score by every row."""
    names = dict.fromkeys(name for row in rows for record in found.records[row] for name in record["subsets"])
    lines = [(name, *(mean_and_deviation(found.values(row, "subsets", name)) for row in rows)) for name in names]
    return Table("Subsets", ("", *(found.study.rows[row].label for row in rows)), tuple(lines))


def subset_gains_table(found: Findings, claims: Sequence[str]) -> Table:
    """Every subset's difference in every comparison, with its interval; a star where it excludes zero."""
    pairs = [found.study.comparisons[claim] for claim in claims]
    names = dict.fromkeys(
        name for pair in pairs for row in pair for record in found.records[row] for name in record["subsets"]
    )
    lines = []
    for name in names:
        cells = []
        for first, second in pairs:
            runs = [found.resampled(row, name) for row in (first, second)]
            result = compare_over_seeds(*runs) if all(runs) else None
            star = " *" if result and not result.low <= 0 <= result.high else ""
            cells.append(
                f"{result.difference:+.2f} ({result.low:+.2f} to {result.high:+.2f}){star}" if result else "not run"
            )
        lines.append((name, *cells))
    return Table("Gains by subset", ("", *claims), tuple(lines))
