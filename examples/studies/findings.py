"""The finished runs of a study by row: their scores, intervals over pairs and seeds, and comparisons."""

import copy
import dataclasses
import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdmcse_hf.significance import (
    Comparison,
    Interval,
    Resampled,
    compare_over_seeds,
    interval_over_seeds,
    resample_spearman,
)
from kdmcse_hf.sts import load_sts, sts_pair_numbers, sts_subsets
from studies.grid import Study, run_name
from studies.overlap import known_sentences
from studies.results import Arrays, Results

UNSEEN = "without training captions"
"""As a measure: the mean over the sets, of their pairs that have none of the captions that rows train on."""
ELSEWHERE = "outside the captions' domain"
"""As a measure: the mean over the sets, without those and the subsets of the study's `captions_domain`."""
_OF = "digest of what was resampled, and how (3)"
"""Another number where the same cosines are drawn in another way: draws of both ways would be paired."""


class Findings:
    """The finished runs of a study, by row.

    Attributes:
        rows: of the study; one with `best_of` is the row that was chosen, under a label that says so.
        records: of each row.
        captions: that rows train on, by [`sentence_key`].
        partial_means: `UNSEEN` and `ELSEWHERE`, if the study says what is left out.
    """

    def __init__(self, study: Study, results: Results, sts_dir: str, captions: Collection[str] = ()) -> None:
        self.study, self.results, self.sts_dir, self.captions = study, results, sts_dir, captions
        known = {UNSEEN: bool(captions), ELSEWHERE: bool(study.captions_domain)}
        self.partial_means = tuple(measure for measure, is_known in known.items() if is_known)
        self._drawn: dict[str, Arrays] = {}
        self._gold: Arrays = {}
        self._kept: dict[str, dict[str, NDArray[np.int64]]] | None = None
        self._pairs: dict[str, NDArray[np.int64]] | None = None
        self.rows = dict(study.rows)
        self.records: dict[str, list[dict[str, Any]]] = {name: [] for name in study.rows}
        for (name, seed), record in sorted(results.records().items()):
            if name in study.rows and seed in study.rows[name].seeds:
                self.records[name].append(record)
        for name, row in study.rows.items():
            whole = {run: len(self.records[run]) == len(study.rows[run].seeds) for run in row.best_of}
            if done := [candidate for candidate in row.best_of if whole[candidate]]:
                best = self._best(done)
                partly = "" if len(done) == len(row.best_of) else f", of {len(done)} of {len(row.best_of)}"
                chosen = study.rows[best]
                self.rows[name] = dataclasses.replace(chosen, label=f"{row.label} ({chosen.label}{partly})")
                self.records[name] = self.records[best]

    def _best(self, rows: Sequence[str]) -> str:
        """Highest on STS-B dev over the seeds that all of these have: seeds differ by more than rows do."""
        seeds = set.intersection(*({record["seed"] for record in self.records[row]} for row in rows))

        def dev(row: str) -> float:
            records = [record for record in self.records[row] if record["seed"] in seeds]
            return float(np.mean([record["stsb"]["dev"]["spearman"] for record in records]))

        return max(rows, key=dev)

    def on_common_seeds(self, rows: Sequence[str]) -> "Findings":
        """The same, but of these rows only the seeds that all of them that are trained plan.

        A seed moves every row alike, and by more than most rows differ: means over other seeds do not compare.
        """
        planned = [set(self.rows[row].seeds) for row in rows if self.rows[row].train]
        if not planned:
            return self
        common = set.intersection(*planned)
        view = copy.copy(self)
        view.rows, view.records = dict(self.rows), dict(self.records)
        for name in rows:
            if self.rows[name].train:
                view.rows[name] = dataclasses.replace(self.rows[name], seeds=tuple(sorted(common)))
                view.records[name] = [record for record in self.records[name] if record["seed"] in common]
        return view

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
        """By seed, a row on an STS set, a subset (`STS14/images`), `avg` (the sets' mean) or a partial mean."""
        kind = "subsets" if "/" in measure else "sts"
        result = {}
        for record in self.records[row]:
            draws = self._draws(record)
            value = float(draws[_value_of(measure)]) if measure in self.partial_means else record[kind][measure]
            result[record["seed"]] = Resampled(value, draws[measure])
        return result

    def _draws(self, record: dict[str, Any]) -> Arrays:
        """The scores of one run on resampled pairs, by set and subset; kept, for they take seconds."""
        name = run_name(record["row"], record["seed"])
        if name not in self._drawn:
            cosines = self.results.cosines(name)
            if cosines is None:
                raise ValueError(f"{self.results.folder}/cosines lacks {name}.npz: without it no intervals.")
            gold = {task: self.gold(task) for task in cosines}
            pairs = self._pair_numbers(list(cosines))
            kept = {f"{task} {measure}": rows for measure, sets in self.kept().items() for task, rows in sets.items()}
            source = _digest(cosines, gold, pairs, kept)  # a run that was made again has other draws
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

    def kept(self) -> dict[str, dict[str, NDArray[np.int64]]]:
        """By partial mean, by set, the rows of the pairs that it is of; a set that has none is not there."""
        if self._kept is None:
            rows = {UNSEEN: self._unseen, ELSEWHERE: self._elsewhere}
            kept = {measure: {task: rows[measure](task) for task in self.study.tasks} for measure in self.partial_means}
            self._kept = {measure: {task: r for task, r in sets.items() if len(r)} for measure, sets in kept.items()}
            if empty := [measure for measure, sets in self._kept.items() if not sets]:
                raise ValueError(f"Of the STS sets no pairs are left {empty[0]}.")
        return self._kept

    def _unseen(self, task: str) -> NDArray[np.int64]:
        return np.flatnonzero(known_sentences(load_sts(self.sts_dir, task), self.captions) == 0)

    def _elsewhere(self, task: str) -> NDArray[np.int64]:
        domain, subsets = self.study.captions_domain, sts_subsets(self.sts_dir, task)
        places = {task, *(f"{task}/{subset}" for subset in subsets)}
        if odd := [name for name in domain if name.partition("/")[0] == task and name not in places]:
            raise ValueError(f"`captions_domain` names {odd[0]}: expected one of {', '.join(sorted(places))}.")
        outside = np.full(len(self.gold(task)), task not in domain)
        for subset, rows in subsets.items():
            outside[rows] &= f"{task}/{subset}" not in domain
        return np.flatnonzero(outside)

    def _pair_numbers(self, tasks: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        if self._pairs is None or list(self._pairs) != list(tasks):
            self._pairs = sts_pair_numbers(self.sts_dir, tasks)
        return self._pairs

    def _draw(self, cosines: Arrays, gold: Arrays, pairs: Arrays) -> Arrays:
        sets = {task: (cosines[task], gold[task]) for task in cosines}
        parts = {
            f"{task}/{subset}": (cosines[task][rows], gold[task][rows])
            for task in cosines
            for subset, rows in sts_subsets(self.sts_dir, task).items()
        }
        subsets = resample_spearman(parts) if parts else {}
        drawn = subsets | resample_spearman(sets, pairs=pairs)  # `avg` is that of the sets
        values = {}
        for measure, kept in self.kept().items():
            part = {task: (cosines[task][rows], gold[task][rows]) for task, rows in kept.items()}
            run = resample_spearman(part, pairs={task: pairs[task][rows] for task, rows in kept.items()})["avg"]
            drawn[measure], values[_value_of(measure)] = run, np.asarray(run.value)
        return {measure: run.drawn.astype(np.float32) for measure, run in drawn.items()} | values

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

    def resolved(self, pair: tuple[str, str]) -> tuple[str, str]:
        """The rows themselves where one is the best of several: two comparisons of the same rows are one."""
        first, second = (self.rows[name].name for name in pair)
        return first, second

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


def _value_of(measure: str) -> str:
    return f"{measure}: on the pairs as they are"


def _digest(*sources: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    digest = hashlib.sha256()
    for arrays in sources:
        for name, array in sorted(arrays.items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array).data)
    return np.frombuffer(digest.digest(), dtype=np.uint8)
