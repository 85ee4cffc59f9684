from dataclasses import astuple

import numpy as np
import pytest
from scipy.stats import norm, spearmanr, t, ttest_1samp, ttest_rel

from kdmcse_hf.significance import (
    Comparison,
    Resampled,
    compare_over_seeds,
    compare_spearman,
    holm,
    interval_over_seeds,
    resample_spearman,
    spearman_intervals,
)


def correlated(count: int, seed: int = 0, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Cosines with noise, and gold scores in steps of 0.2, with ties as real gold scores have them."""
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, 26, size=count) / 5
    return gold + noise * rng.normal(size=count), gold


def slow_bootstrap(sets: dict, numbers: dict, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """Draws of distinct pairs, each of which stands for all rows with its number."""
    distinct = np.unique(np.concatenate(list(numbers.values())))
    rng = np.random.default_rng((seed, 5))
    found: dict[str, list[float]] = {name: [] for name in sets}
    for _ in range(resamples):
        drawn = distinct[rng.integers(len(distinct), size=len(distinct))]
        for name, (cosine, gold) in sets.items():
            rows = np.concatenate([np.flatnonzero(numbers[name] == number) for number in drawn])
            found[name].append(100 * spearmanr(cosine[rows], gold[rows]).statistic)
    return {name: np.array(values) for name, values in found.items()}


def test_intervals_are_the_percentiles_of_scipy_s_correlations_of_the_same_draws() -> None:
    sets = {"a": correlated(60), "b": correlated(45, seed=1)}
    sets["a"][0][:20] = sets["a"][0][20:40]  # ties among the cosines, too
    found = spearman_intervals(sets, resamples=50, confidence=0.8, seed=7)
    drawn = slow_bootstrap(sets, {"a": np.arange(60), "b": np.arange(60, 105)}, 50, 7)
    drawn["avg"] = (drawn["a"] + drawn["b"]) / 2
    assert found.keys() == drawn.keys()
    for name, expected in drawn.items():
        low, high = np.quantile(expected, [0.1, 0.9])
        assert (found[name].low, found[name].high) == pytest.approx((low, high), abs=1e-9)
    for name, scored in sets.items():
        assert found[name].value == pytest.approx(100 * spearmanr(*scored).statistic)
    assert found["avg"].value == pytest.approx((found["a"].value + found["b"].value) / 2)


def test_a_pair_that_stands_in_two_sets_is_drawn_in_both() -> None:
    sets = {"a": correlated(60), "b": correlated(45, seed=1)}
    numbers = {"a": np.arange(60) * 3, "b": np.r_[np.arange(30) * 3, 1000 + np.arange(14), 1000]}  # one twice in b
    found = spearman_intervals(sets, pairs=numbers, resamples=50, confidence=0.8, seed=7)
    for name, expected in slow_bootstrap(sets, numbers, 50, 7).items():
        low, high = np.quantile(expected, [0.1, 0.9])
        assert (found[name].low, found[name].high) == pytest.approx((low, high), abs=1e-9)
    # Two sets of the very same pairs are no surer than one.
    cosine, gold = correlated(300, noise=4)
    twice = {"a": (cosine, gold), "b": (cosine, gold)}
    one, apart = (spearman_intervals(twice, pairs=same) for same in (dict.fromkeys("ab", np.arange(300)), None))
    assert (one["avg"].low, one["avg"].high) == (one["a"].low, one["a"].high)
    width = {name: found["avg"].high - found["avg"].low for name, found in (("one", one), ("apart", apart))}
    assert width["one"] / width["apart"] == pytest.approx(2**0.5, rel=0.1)
    with pytest.raises(ValueError, match="b has 300 pairs and `pairs` no numbers for it"):
        spearman_intervals(twice, pairs={"a": np.arange(300)})


def test_holm_is_the_step_down_of_the_textbook() -> None:
    assert holm([0.04, 0.01, 0.03, 0.9]) == pytest.approx([0.09, 0.04, 0.09, 0.9])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_which_of_two_methods_is_named_first_changes_nothing() -> None:
    """Of three seeds each: the verdict turns with the order only if the quantiles of the seeds are lopsided."""
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=1000) * 0.1
    for _ in range(50):
        first, second = (dict(enumerate(Resampled(v, v + drawn) for v in rng.normal(size=3))) for _ in range(2))
        there, back = compare_over_seeds(first, second), compare_over_seeds(second, first)
        assert (there.low, there.high) == pytest.approx((-back.high, -back.low), rel=0.02, abs=0.02)
        assert there.p == pytest.approx(back.p, rel=0.02, abs=0.001)


def test_the_order_of_memory_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {"a": correlated(60)}
    whole = spearman_intervals(sets, resamples=31)
    monkeypatch.setattr("kdmcse_hf.significance._BLOCK", 200)
    assert spearman_intervals(sets, resamples=31) == whole
    assert spearman_intervals(sets, resamples=31, seed=1) != whole


def test_a_perfect_ranking_has_no_uncertainty_and_more_pairs_have_less() -> None:
    perfect = np.arange(30.0)
    found = spearman_intervals({"a": (np.exp(perfect / 9), perfect)})["a"]
    assert (found.value, found.low, found.high) == pytest.approx((100, 100, 100))
    few, many = (spearman_intervals({"a": correlated(count, noise=2)})["a"] for count in (100, 1600))
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(4, rel=0.35)


def test_the_interval_of_independent_sides_is_the_known_one() -> None:
    """Without correlation Spearman's rho is nearly normal with variance 1 / (N - 1)."""
    rng = np.random.default_rng(3)
    found = spearman_intervals({"a": (rng.normal(size=2000), rng.normal(size=2000))}, resamples=4000)["a"]
    assert found.high - found.low == pytest.approx(2 * norm.ppf(0.975) * 100 / np.sqrt(1999), rel=0.05)


def test_a_comparison_is_of_the_same_draws() -> None:
    (worse, gold), (better, _) = correlated(80, noise=3), correlated(80, noise=2)
    found = compare_spearman({"a": (worse, gold)}, {"a": (better, gold)}, resamples=60, seed=2)["a"]
    drawn = [slow_bootstrap({"a": (side, gold)}, {"a": np.arange(80)}, 60, 2)["a"] for side in (better, worse)]
    differences = drawn[0] - drawn[1]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])))
    assert found.difference == pytest.approx(
        100 * (spearmanr(better, gold).statistic - spearmanr(worse, gold).statistic)
    )
    assert found.p == pytest.approx(2 * (min((differences <= 0).sum(), (differences >= 0).sum()) + 1) / 61)


def test_models_of_equal_rank_do_not_differ_and_swapping_two_turns_the_sign() -> None:
    cosine, gold = correlated(200)
    other = correlated(200, noise=4)[0]
    same = compare_spearman({"a": (cosine, gold)}, {"a": (np.exp(cosine), gold)})["a"]
    assert same == Comparison(0.0, 0.0, 0.0, 1.0)
    there, back = (
        compare_spearman({"a": (x, gold)}, {"a": (y, gold)})["a"] for x, y in ((cosine, other), (other, cosine))
    )
    assert there.p == back.p == pytest.approx(2 / 1001)
    assert there.difference < -20
    assert (there.difference, there.low) == pytest.approx((-back.difference, -back.high))


def test_a_true_difference_of_nothing_is_called_significant_as_rarely_as_promised() -> None:
    """Two models with noise of one kind: the share of p below 0.05 is about 5 %."""
    p = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        gold = rng.normal(size=150)
        first, second = ({"a": (gold + rng.normal(size=150), gold)} for _ in range(2))
        p.append(compare_spearman(first, second, resamples=200)["avg"].p)
    assert 0.01 <= np.mean(np.array(p) < 0.05) <= 0.09


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({}, "0 sets"),
        ({"a": ([1.0, 2.0], [1.0])}, "a has 2 cosines and 1 gold scores"),
        ({"a": ([1.0, 1.0], [1.0, 2.0])}, "on a does not exist"),
        ({"a": ([1.0, float("nan")], [1.0, 2.0])}, "on a does not exist"),
        ({"a": ([], [])}, "on a does not exist"),
    ],
)
def test_what_has_no_interval_is_refused(sets: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spearman_intervals(sets)


def test_models_scored_on_other_pairs_are_not_compared() -> None:
    cosine, gold = correlated(20)
    with pytest.raises(ValueError, match="gold scores of a differ"):
        compare_spearman({"a": (cosine, gold)}, {"a": (cosine, gold[::-1])})
    with pytest.raises(ValueError, match="expected the same sets"):
        compare_spearman({"a": (cosine, gold)}, {"b": (cosine, gold)})


def certain(*values: float, draws: int = 20_000) -> list[Resampled]:
    """Runs whose pairs leave nothing open."""
    return [Resampled(value, np.full(draws, value)) for value in values]


def by_seed(*values: float, draws: int = 20_000) -> dict[int, Resampled]:
    return dict(enumerate(certain(*values, draws=draws)))


def test_where_only_seeds_differ_the_interval_is_student_s() -> None:
    values = [70.1, 69.2, 70.9, 68.8]
    found = interval_over_seeds(certain(*values))
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.value == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.1)


def test_where_only_seeds_differ_the_comparison_is_the_paired_t_test_of_those_that_both_have() -> None:
    first, second = [70.1, 69.2, 70.9, 68.8, 69.9], [70.6, 69.9, 70.8]
    found = compare_over_seeds(by_seed(*first), {4: certain(99.0)[0], **by_seed(*second)} | {9: certain(0.0)[0]})
    second = [*second, 99.0]
    expected = ttest_rel(second, [70.1, 69.2, 70.9, 69.9])
    interval = expected.confidence_interval(0.95)
    assert found.difference == pytest.approx(np.mean(second) - np.mean([70.1, 69.2, 70.9, 69.9]))
    assert found.p == pytest.approx(expected.pvalue, rel=0.1)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=0.02)


def test_what_both_methods_owe_to_a_seed_is_no_uncertainty_of_their_difference() -> None:
    first = by_seed(70.0, 68.0, 72.0)
    second = {seed: Resampled(run.value + 0.3, run.drawn + 0.3) for seed, run in first.items()}
    found = compare_over_seeds(first, second)
    assert (found.difference, found.low, found.high) == pytest.approx((0.3, 0.3, 0.3))


def test_an_untrained_model_is_compared_with_every_run() -> None:
    values = [70.1, 69.2, 70.9]
    found = compare_over_seeds(by_seed(60.0), by_seed(*values))
    interval = ttest_1samp(values, 60).confidence_interval(0.95)
    assert found.difference == pytest.approx(np.mean(values) - 60)
    assert (found.low, found.high) == pytest.approx((interval.low - 60, interval.high - 60), abs=0.1)


def test_where_only_pairs_differ_the_comparison_is_the_paired_bootstrap() -> None:
    (worse, gold), (better, _) = correlated(80, noise=3), correlated(80, noise=2)
    first, second = ({"a": (cosine, gold), "b": (cosine[::-1], gold)} for cosine in (worse, better))
    runs = [resample_spearman(sets, resamples=60, seed=2) for sets in (first, second)]
    for name, expected in compare_spearman(first, second, resamples=60, seed=2).items():
        for copies in (1, 3):
            found = compare_over_seeds(dict.fromkeys(range(copies), runs[0][name]), {0: runs[1][name]})
            assert astuple(found) == pytest.approx(astuple(expected))


def test_pairs_and_seeds_add_their_variances() -> None:
    rng = np.random.default_rng(0)
    values, pairs = [60.0, 62.0, 64.0], 3 * rng.normal(size=40_000)
    found = interval_over_seeds([Resampled(value, value + pairs) for value in values])
    slow = [62 + 3 * rng.normal() + np.sqrt(4 / 3) * t.rvs(2, random_state=rng) for _ in range(4000)]
    low, high = np.quantile(slow, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.5)


def test_three_seeds_of_two_equal_methods_are_called_different_as_rarely_as_promised() -> None:
    """A bootstrap of the seeds would do so at three times the rate."""
    rng = np.random.default_rng(1)
    p = []
    for _ in range(300):
        first, second = (by_seed(*rng.normal(size=3), draws=400) for _ in range(2))
        p.append(compare_over_seeds(first, second).p)
    assert 0.01 <= np.mean(np.array(p) < 0.05) <= 0.08


def test_runs_that_were_not_drawn_alike_are_refused() -> None:
    with pytest.raises(ValueError, match="0 runs"):
        interval_over_seeds([])
    with pytest.raises(ValueError, match=r"2 runs with \[3, 4\] draws"):
        interval_over_seeds([*certain(1.0, draws=3), *certain(1.0, draws=4)])
    with pytest.raises(ValueError, match=r"2 runs with \[3, 4\] draws"):
        compare_over_seeds(by_seed(1.0, draws=3), by_seed(1.0, draws=4))
    with pytest.raises(ValueError, match=r"seeds \[0, 1\] and \[1, 2\]: expected at least two in common"):
        compare_over_seeds(by_seed(1.0, 2.0), {1: certain(1.0)[0], 2: certain(2.0)[0]})
