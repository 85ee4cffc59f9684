"""How sure a Spearman correlation is: bootstrap intervals, and paired tests between two models.

The pairs of all sets are drawn anew together, with replacement. One that stands in several sets, as most of STS-B's
test pairs do, is drawn in all of them. The same seed gives every model the same draws: two models are compared on the
same pairs. Intervals are somewhat narrow where pairs share one sentence (SICK-R), which counts for nothing here.

A method that is trained with several seeds varies with the pairs and with the seeds. Pairs are drawn as above, the same
for all runs. Seeds are not drawn: of three runs a bootstrap knows only three, and its intervals are far too narrow. To
each draw of the pairs are added 20 of what the seeds leave open: the standard error of the runs' mean times quantiles
of Student's t. Two methods are compared seed by seed: runs of one seed share batches, and more where methods are near.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

ScoredSets = Mapping[str, tuple[ArrayLike, ArrayLike]]
"""By name of the set: the model's cosines and the gold scores, N numbers each."""
PairNumbers = Mapping[str, ArrayLike]
"""By name of the set: N integers that say which pair each one is, the same for the same pair in whatever set."""
_BLOCK = 2**20  # resamples x pairs at a time
_SEED_DRAWS = 20  # a draw of the pairs


@dataclass(frozen=True)
class Interval:
    """A Spearman correlation x 100 and the percentile interval around it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Second model minus first, in points of Spearman x 100.

    Attributes:
        difference: on the pairs as they are.
        low, high: percentile interval of it.
        p: two-sided: twice the smaller share of draws at or beyond zero, each count plus one, at most 1; never below
            `2 / (draws + 1)`. There is one draw a resample; where seeds are drawn too, there are 20. Where the
            interval excludes zero it is below `1 - confidence`, but for rounding.
    """

    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Resampled:
    """A run's Spearman correlation x 100.

    Attributes:
        value: on the pairs as they are.
        drawn: (resamples,) on pairs drawn anew; NaN where a draw has none.
    """

    value: float
    drawn: NDArray[Any]


def spearman_intervals(
    sets: ScoredSets,
    *,
    pairs: PairNumbers | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """An interval for each set, and for their mean as `avg`.

    The mean's interval takes the sets as given: it says how far other pairs would move it, not other sets.

    Args:
        sets: cosines and gold scores by set, as [`sts_cosines`] gives them.
        pairs: which pairs stand in several sets, as [`sts_pair_numbers`] gives them; by default none does. Leaving
            them out makes the interval of the mean too narrow (by a sixth on the seven STS sets).
        resamples: how often pairs are drawn.
        confidence: share of resamples within the interval, in (0, 1).
        seed: of the draws.

    Raises:
        ValueError: no sets, sides or `pairs` of different length, or a correlation that does not exist.
    """
    values, drawn = _bootstrap(sets, pairs, resamples, confidence, seed)
    return {name: Interval(values[name], *_percentiles(drawn[name], confidence)) for name in values}


def compare_spearman(
    first: ScoredSets,
    second: ScoredSets,
    *,
    pairs: PairNumbers | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Comparison]:
    """A paired bootstrap test of two models on each set, and on the sets' mean as `avg`.

    Args:
        first, second: cosines and gold scores of the same pairs by each model.
        pairs, resamples, confidence, seed: as in [`spearman_intervals`].

    Raises:
        ValueError: the two are not of the same pairs, or as in [`spearman_intervals`].
    """
    if list(first) != list(second):
        raise ValueError(f"The models were scored on {list(first)} and on {list(second)}: expected the same sets.")
    for name in first:
        if not np.array_equal(np.asarray(first[name][1]), np.asarray(second[name][1])):
            raise ValueError(f"The gold scores of {name} differ between the models: expected the same pairs in order.")
    values, drawn = _bootstrap(first, pairs, resamples, confidence, seed)
    other_values, other_drawn = _bootstrap(second, pairs, resamples, confidence, seed)
    return {
        name: _comparison(other_values[name] - values[name], other_drawn[name] - drawn[name], confidence)
        for name in values
    }


def resample_spearman(
    sets: ScoredSets, *, pairs: PairNumbers | None = None, resamples: int = 1000, seed: int = 0
) -> dict[str, Resampled]:
    """One run on each set and on the sets' mean as `avg`, for [`interval_over_seeds`] and [`compare_over_seeds`].

    Args:
        sets, pairs, resamples, seed: as in [`spearman_intervals`]. Runs that are compared need the same.

    Raises:
        ValueError: as in [`spearman_intervals`].
    """
    values, drawn = _bootstrap(sets, pairs, resamples, 0.95, seed)
    return {name: Resampled(values[name], drawn[name]) for name in values}


def interval_over_seeds(runs: Sequence[Resampled], *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """The mean of a method's runs, and how far other pairs and other seeds would move it.

    Args:
        runs: one a seed, on one set. A single run is taken for all that there is, which is right of a model that was
            not trained: nothing is known about seeds, and its interval is that of the pairs.
        confidence: share of draws within the interval, in (0, 1).
        seed: of the draws.

    Raises:
        ValueError: no runs, or runs with different numbers of draws.
    """
    value, drawn = _mean_run(runs)
    return Interval(value, *_percentiles(_with_seeds(drawn, runs, seed), confidence))


def compare_over_seeds(
    first: Mapping[int, Resampled], second: Mapping[int, Resampled], *, confidence: float = 0.95, seed: int = 0
) -> Comparison:
    """A paired test of two methods on one set, over pairs and seeds: the mean of the second's runs minus the first's.

    Args:
        first, second: the runs of each method by seed, all resampled with the same seed. Seeds that only one of them
            has are left out. A single run is taken for a model that was not trained, and compared with every run of the
            other (see [`interval_over_seeds`]): of a trained one, the interval is too narrow.
        confidence, seed: as in [`interval_over_seeds`].

    Raises:
        ValueError: fewer than two seeds in common, or as in [`interval_over_seeds`].
    """
    _mean_run([*first.values(), *second.values()])  # refuses runs that were not drawn alike
    untrained = 1 in (len(first), len(second))
    pairs = [(a, b) for seed_a, a in first.items() for seed_b, b in second.items() if untrained or seed_a == seed_b]
    if len(pairs) < 2 and not untrained:
        raise ValueError(
            f"The methods have the seeds {sorted(first)} and {sorted(second)}: expected at least two in common."
        )
    differences = [Resampled(b.value - a.value, np.asarray(b.drawn, np.float64) - a.drawn) for a, b in pairs]
    value, drawn = _mean_run(differences)
    return _comparison(value, _with_seeds(drawn, differences, seed), confidence)


def holm(p: Sequence[float]) -> list[float]:
    """Each p as it is where all of them are asked at once (Holm, 1979), at most 1.

    Below 0.05 it is called significant at that level whatever the others are, and among all those that are not true
    the chance of a single such call is at most 5 %.
    """
    adjusted = np.empty(len(p))
    worst = 0.0
    for place, index in enumerate(np.argsort(p, kind="stable")):
        worst = max(worst, (len(p) - place) * p[index])
        adjusted[index] = min(1.0, worst)
    return [float(value) for value in adjusted]


def _mean_run(runs: Sequence[Resampled]) -> tuple[float, NDArray[np.float64]]:
    lengths = sorted({len(run.drawn) for run in runs})
    if len(lengths) != 1 or not lengths[0]:
        raise ValueError(f"{len(runs)} runs with {lengths} draws: expected at least one run, all with as many draws.")
    drawn = np.mean([np.asarray(run.drawn, dtype=np.float64) for run in runs], axis=0)
    return float(np.mean([run.value for run in runs])), drawn


def _with_seeds(drawn: NDArray[np.float64], runs: Sequence[Resampled], seed: int) -> NDArray[np.float64]:
    """Draws of the runs' mean, and what other seeds would add to them where that is known."""
    values = [run.value for run in runs]
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    if error < 1e-9:  # equal runs, but for rounding
        return drawn
    # Quantiles, not draws: a thousand of those have tails that are neither alike nor those of Student's t.
    count = _SEED_DRAWS * len(drawn)
    quantiles = student.ppf((np.arange(count) + 0.5) / count, len(values) - 1, scale=error)
    noise = np.random.default_rng((seed, 6)).permutation(quantiles)
    with_noise: NDArray[np.float64] = np.repeat(drawn, _SEED_DRAWS) + noise
    return with_noise


def _comparison(difference: float, drawn: NDArray[np.float64], confidence: float) -> Comparison:
    known = drawn[~np.isnan(drawn)]
    tail = min((known <= 0).sum(), (known >= 0).sum()) + 1
    low, high = _percentiles(drawn, confidence)
    return Comparison(difference, low, high, p=min(1.0, 2 * float(tail) / (len(known) + 1)))


def _bootstrap(
    sets: ScoredSets, pairs: PairNumbers | None, resamples: int, confidence: float, seed: int
) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
    """The correlation of each set and of its resamples, (resamples,), and the same of the mean."""
    if not sets or resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"{len(sets)} sets, `resamples` {resamples} and `confidence` {confidence}: expected at least one set, at "
            "least one resample and a confidence between 0 and 1."
        )
    values: dict[str, float] = {}
    ranks: dict[str, tuple[_Ranks, _Ranks]] = {}
    for name, (predictions, references) in sets.items():
        left, right = (_Ranks(np.asarray(side, dtype=np.float64)) for side in (predictions, references))
        if right.count != left.count:
            raise ValueError(f"{name} has {left.count} cosines and {right.count} gold scores: expected as many.")
        values[name] = float(_spearman(left, right, np.ones((1, left.count)))[0])
        if np.isnan(values[name]):
            raise ValueError(
                f"Spearman's correlation on {name} does not exist: one of the sides is constant or not finite."
            )
        ranks[name] = left, right
    parts: dict[str, list[NDArray[np.float64]]] = {name: [] for name in sets}
    columns, distinct = _columns({name: left.count for name, (left, _) in ranks.items()}, pairs)
    for counts in _draws(np.random.default_rng((seed, 5)), distinct, resamples):
        for name, sides in ranks.items():
            parts[name].append(_spearman(*sides, counts[:, columns[name]]))
    drawn = {name: np.concatenate(blocks) for name, blocks in parts.items()}
    values["avg"] = float(np.mean(list(values.values())))
    drawn["avg"] = np.mean(list(drawn.values()), axis=0)
    return values, drawn


def _columns(counts: Mapping[str, int], pairs: PairNumbers | None) -> tuple[dict[str, NDArray[np.int64]], int]:
    """Where each set's pairs stand among the distinct ones, and how many those are."""
    if pairs is None:
        numbers = np.arange(sum(counts.values()))
    else:
        for name, count in counts.items():
            if name not in pairs or len(np.asarray(pairs[name])) != count:
                found = len(np.asarray(pairs[name])) if name in pairs else "no"
                raise ValueError(f"{name} has {count} pairs and `pairs` {found} numbers for it: expected as many.")
        numbers = np.concatenate([np.asarray(pairs[name]) for name in counts])
    distinct, places = np.unique(numbers, return_inverse=True)
    ends = np.cumsum(list(counts.values()))
    return dict(zip(counts, np.split(places, ends[:-1]), strict=True)), len(distinct)


def _draws(rng: np.random.Generator, count: int, resamples: int) -> Iterator[NDArray[np.float64]]:
    """How often each pair is drawn in each resample, (resamples, count), some resamples at a time."""
    step = max(1, _BLOCK // count)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


class _Ranks:
    """Ranks of one side's values where each counts as often as it was drawn, ties averaged."""

    def __init__(self, values: NDArray[np.float64]) -> None:
        self.count = len(values)
        self._order = np.argsort(values, kind="stable")
        ordered = values[self._order]
        self._starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]][: self.count])
        group = np.empty(self.count, dtype=np.int64)
        group[self._order] = np.repeat(np.arange(len(self._starts)), np.diff(np.r_[self._starts, self.count]))
        self._group = group
        self._finite = bool(np.isfinite(values).all())

    def centred(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """(R, N) ranks of every value among the weighted ones, less their mean; NaN for values that are not finite."""
        if not self._finite:
            return np.full_like(weights, np.nan)
        tied = np.add.reduceat(weights[:, self._order], self._starts, axis=1)
        ranks = np.cumsum(tied, axis=1) - tied / 2 - weights.sum(axis=1, keepdims=True) / 2
        centred: NDArray[np.float64] = ranks[:, self._group]
        return centred


def _spearman(first: _Ranks, second: _Ranks, weights: NDArray[np.float64]) -> NDArray[Any]:
    """(R,) correlations x 100 under (R, N) weights; NaN where a side is constant."""
    left, right = first.centred(weights), second.centred(weights)
    covariance, *variances = (
        np.einsum("rn,rn,rn->r", weights, a, b) for a, b in ((left, right), (left,) * 2, (right,) * 2)
    )
    product = np.sqrt(variances[0] * variances[1])
    result: NDArray[Any] = np.divide(100 * covariance, product, out=np.full_like(product, np.nan), where=product > 0)
    return result


def _percentiles(drawn: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    # A resample of a few pairs can have a constant side, and so no correlation.
    low, high = np.nanquantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
