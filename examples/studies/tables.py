"""Tables of a study: means and standard deviations over seeds, intervals, comparisons; as Markdown and as LaTeX."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdmcse_hf.significance import (
    Comparison,
    Interval,
    Resampled,
    compare_over_seeds,
    holm,
    interval_over_seeds,
    resample_spearman,
)
from kdmcse_hf.sts import load_sts, sts_pair_numbers, sts_subsets
from studies.grid import Study
from studies.results import Arrays, Results

_OF = "digest of what was resampled"


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
    """The finished runs of a study, by row.

    Attributes:
        rows: of the study; one with `best_of` is the row that was chosen, under a label that says so.
        records: of each row.
    """

    def __init__(self, study: Study, results: Results, sts_dir: str) -> None:
        self.study, self.results, self.sts_dir = study, results, sts_dir
        self._drawn: dict[str, Arrays] = {}
        self._gold: Arrays = {}
        self._pairs: dict[str, NDArray[np.int64]] | None = None
        self.rows = dict(study.rows)
        self.records: dict[str, list[dict[str, Any]]] = {name: [] for name in study.rows}
        for (name, seed), record in sorted(results.records().items()):
            if name in study.rows and seed in study.rows[name].seeds:
                self.records[name].append(record)
        for name, row in study.rows.items():
            if done := [candidate for candidate in row.best_of if self.records[candidate]]:
                best = self._best(done)
                partly = "" if len(done) == len(row.best_of) else f", of {len(done)} of {len(row.best_of)}"
                chosen = study.rows[best]
                self.rows[name] = dataclasses.replace(chosen, label=f"{row.label} ({chosen.label}{partly})")
                self.records[name] = self.records[best]

    def _best(self, rows: Sequence[str]) -> str:
        """Highest on STS-B dev over the seeds that all of these have: seeds differ by more than rows do."""
        seeds = set.intersection(*({record["seed"] for record in self.records[row]} for row in rows))

        def dev(row: str) -> float:
            records = [record for record in self.records[row] if record["seed"] in seeds] or self.records[row]
            return float(np.mean([record["stsb"]["dev"]["spearman"] for record in records]))

        return max(rows, key=dev)

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

    def resampled(self, row: str, measure: str) -> dict[int, Resampled]:
        """By seed, a row on an STS set, on `avg`, the sets' mean, or on a subset (`STS14/images`)."""
        kind = "subsets" if "/" in measure else "sts"
        return {
            record["seed"]: Resampled(record[kind][measure], self._draws(record)[measure])
            for record in self.records[row]
        }

    def _draws(self, record: dict[str, Any]) -> Arrays:
        """The scores of one run on resampled pairs, by set and subset; kept, for they take seconds."""
        name = f"{record['row']}-{record['seed']}"
        if name not in self._drawn:
            cosines = self.results.cosines(name)
            if cosines is None:
                raise ValueError(f"{self.results.folder}/cosines lacks {name}.npz: without it no intervals.")
            gold = {task: self.gold(task) for task in cosines}
            pairs = self._pair_numbers(list(cosines))
            source = _digest(cosines, gold, pairs)  # a run that was made again has other draws
            drawn = self.results.arrays("draws", name) or {}
            if not np.array_equal(drawn.pop(_OF, None), source):
                drawn = self._draw(cosines, gold, pairs)
                self.results.save_arrays("draws", name, {**drawn, _OF: source})
            self._drawn[name] = drawn
        return self._drawn[name]

    def gold(self, task: str) -> NDArray[np.float64]:
        """The gold scores of a set's pairs, (N,)."""
        if task not in self._gold:
            self._gold[task] = np.asarray(load_sts(self.sts_dir, task).scores)
        return self._gold[task]

    def _pair_numbers(self, tasks: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        if self._pairs is None or list(self._pairs) != list(tasks):
            self._pairs = sts_pair_numbers(self.sts_dir, tasks)
        return self._pairs

    def _draw(self, cosines: Arrays, gold: Arrays, pairs: dict[str, NDArray[np.int64]]) -> Arrays:
        sets = {task: (cosines[task], gold[task]) for task in cosines}
        parts = {
            f"{task}/{subset}": (cosines[task][rows], gold[task][rows])
            for task in cosines
            for subset, rows in sts_subsets(self.sts_dir, task).items()
        }
        subsets = resample_spearman(parts) if parts else {}
        drawn = subsets | resample_spearman(sets, pairs=pairs)  # `avg` is that of the sets
        return {measure: run.drawn.astype(np.float32) for measure, run in drawn.items()}

    def interval(self, row: str) -> Interval | None:
        """Of the average over the sets; `None` where nothing is known of the seeds."""
        return interval_over_seeds(list(self.resampled(row, "avg").values())) if self._enough(row) else None

    def compare(self, pair: tuple[str, str], measure: str) -> Comparison | None:
        """The second row minus the first, seed by seed; `None` where nothing is known of the seeds."""
        trained = any(self.rows[row].train for row in pair)
        if not all(map(self._enough, pair)) or (trained and self.seeds_in_common(pair) < 2):
            return None
        first, second = (self.resampled(row, measure) for row in pair)
        return compare_over_seeds(first, second)

    def seeds_in_common(self, pair: tuple[str, str]) -> int:
        """How many differences a comparison is the mean of; a row that was not trained has no seeds of its own."""
        seeds = [{record["seed"] for record in self.records[row]} for row in pair if self.rows[row].train]
        return len(set.intersection(*seeds)) if seeds else 1

    def _enough(self, row: str) -> bool:
        """Whether the row's runs say how far seeds matter: two do, or one that was not trained."""
        return len(self.records[row]) > (1 if self.rows[row].train else 0)

    def count(self, row: str) -> str:
        """How many seeds a figure is the mean of; says where there are fewer than planned."""
        done, planned = len(self.records[row]), len(self.rows[row].seeds)
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
        row, interval = found.rows[name], found.interval(name)
        lines.append(
            (
                row.label,
                found.count(name),
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
                found.rows[name].label,
                found.count(name),
                mean_and_deviation(found.values(name, "stsb", "test", "alignment"), 3),
                mean_and_deviation(found.values(name, "stsb", "test", "uniformity"), 3),
                ", ".join(f"{step:.0f}" for step in sorted(set(found.values(name, "best_step")))),
                *rates,
                mean_and_deviation(_seconds(found.records[name]), 0),
                mean_and_deviation(found.values(name, "cost", "train_peak_mb"), 0),
            )
        )
    head = ("alignment", "uniformity", "steps kept", "image filter %", "image margin %", "caption filter %")
    return Table(title, ("", "seeds", *head, "caption margin %", "seconds", "peak MB"), tuple(lines))


def comparisons_table(found: Findings) -> Table:
    """Each comparison: the second row's average minus the first's, its interval, and p before and after Holm."""
    comparisons = found.study.comparisons
    results = {
        claim: result for claim, pair in comparisons.items() if (result := found.compare(pair, "avg")) is not None
    }
    adjusted = dict(zip(results, holm([result.p for result in results.values()]), strict=True))
    lines = []
    for claim, pair in comparisons.items():
        before, after = (found.rows[name].label for name in pair)
        what = (claim, f"{after} − {before}")
        if (result := results.get(claim)) is None:
            missing = "too few seeds" if all(found.records[name] for name in pair) else "not run"
            lines.append((*what, "", "", "", "", "", missing))
            continue
        shown = "not shown" if adjusted[claim] >= 0.05 else "yes" if result.difference > 0 else "the contrary"
        lines.append(
            (
                *what,
                str(found.seeds_in_common(pair)),
                f"{result.difference:+.2f}",
                f"{result.low:+.2f} to {result.high:+.2f}",
                f"{result.p:.4f}",
                f"{adjusted[claim]:.4f}",
                shown,
            )
        )
    return Table("Comparisons", ("", "rows", "seeds", "difference", "95 %", "p", "p, Holm", "shown"), tuple(lines))


def subsets_table(found: Findings, rows: Sequence[str]) -> Table:
    """Every subset's score by every row."""
    names = dict.fromkeys(name for row in rows for record in found.records[row] for name in record["subsets"])
    lines = [(name, *(mean_and_deviation(found.values(row, "subsets", name)) for row in rows)) for name in names]
    return Table("Subsets", ("", *(found.rows[row].label for row in rows)), tuple(lines))


def subset_gains_table(found: Findings, claims: Sequence[str]) -> Table:
    """Every subset's difference in every comparison, with its interval; a star where p after Holm is below 0.05."""
    pairs = [found.study.comparisons[claim] for claim in claims]
    names = dict.fromkeys(
        name for pair in pairs for row in pair for record in found.records[row] for name in record["subsets"]
    )
    results = {
        (name, pair): result for name in names for pair in pairs if (result := found.compare(pair, name)) is not None
    }
    adjusted = dict(zip(results, holm([result.p for result in results.values()]), strict=True))

    def cell(place: tuple[str, tuple[str, str]]) -> str:
        if (result := results.get(place)) is None:
            return "not run"
        star = " *" if adjusted[place] < 0.05 else ""
        return f"{result.difference:+.2f} ({result.low:+.2f} to {result.high:+.2f}){star}"

    lines = [(name, *(cell((name, pair)) for pair in pairs)) for name in names]
    return Table("Gains by subset", ("", *claims), tuple(lines))


def _seconds(records: Sequence[dict[str, Any]]) -> list[float]:
    """Of training; a run that was killed in between knows only those since it was started again."""
    costs = [record["cost"] for record in records if "train_seconds" in record["cost"]]
    return [cost["train_seconds"] for cost in costs if cost["starts"] == 1]


def _digest(*sources: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    digest = hashlib.sha256()
    for arrays in sources:
        for name, array in sorted(arrays.items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array).data)
    return np.frombuffer(digest.digest(), dtype=np.uint8)
