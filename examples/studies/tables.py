"""Tables of a study: means and standard deviations over seeds, intervals, comparisons."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

from kdmcse_hf.significance import Comparison, holm
from studies.findings import Findings
from studies.table import Table, mean_and_deviation

_Key = TypeVar("_Key", bound=Hashable)
_TERMS = ("text", "image", "caption")


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
    """Alignment and uniformity, the step that was kept, each term's last loss, filter and margin, and what it cost."""
    lines = []
    for name in rows:
        losses = [mean_and_deviation(_last_losses(found.records[name], term), 3) for term in _TERMS]
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
                *losses,
                *rates,
                mean_and_deviation(_seconds(found.records[name]), 0),
                mean_and_deviation(found.values(name, "cost", "train_peak_mb"), 0),
            )
        )
    loss_names = [f"{term} loss" for term in _TERMS]
    rate_names = ("image filter %", "image margin %", "caption filter %", "caption margin %")
    head = ("alignment", "uniformity", "steps kept", *loss_names, *rate_names, "seconds", "peak MB")
    return Table(title, ("", "seeds", *head), tuple(lines))


def comparisons_table(found: Findings) -> Table:
    """Each comparison: the second row's average minus the first's, its interval, and p before and after Holm."""
    comparisons = {claim: found.resolved(pair) for claim, pair in found.study.comparisons.items()}
    results = {pair: found.compare(pair, "avg") for pair in comparisons.values()}
    adjusted = _after_holm(results)
    lines = []
    for claim, pair in comparisons.items():
        before, after = (found.rows[name].label for name in found.study.comparisons[claim])
        what = (claim, f"{after} − {before}")
        if (result := results[pair]) is None:
            lines.append((*what, "", "", "", "", "", _missing(found, pair), *("" for _ in found.partial_means)))
            continue
        shown = "not shown" if adjusted[pair] >= 0.05 else "yes" if result.difference > 0 else "the contrary"
        lines.append(
            (
                *what,
                str(found.seeds_in_common(pair)),
                f"{result.difference:+.2f}",
                f"{result.low:+.2f} to {result.high:+.2f}",
                f"{result.p:.4f}",
                f"{adjusted[pair]:.4f}",
                shown,
                *(_difference(found.compare(pair, measure)) for measure in found.partial_means),
            )
        )
    head = ("", "rows", "seeds", "difference", "95 %", "p", "p, Holm", "shown")
    return Table("Comparisons", (*head, *found.partial_means), tuple(lines))


def subsets_table(found: Findings, rows: Sequence[str]) -> Table:
    """Every subset's score by every row."""
    names = dict.fromkeys(name for row in rows for record in found.records[row] for name in record["subsets"])
    lines = [(name, *(mean_and_deviation(found.values(row, "subsets", name)) for row in rows)) for name in names]
    return Table("Subsets", ("", *(found.rows[row].label for row in rows)), tuple(lines))


def subset_gains_table(found: Findings, claims: Sequence[str]) -> Table:
    """Every subset's difference in every comparison, with its interval; a star where p after Holm is below 0.05."""
    pairs = [found.resolved(found.study.comparisons[claim]) for claim in claims]
    names = dict.fromkeys(
        name for pair in pairs for row in pair for record in found.records[row] for name in record["subsets"]
    )
    results = {(name, pair): found.compare(pair, name) for name in names for pair in pairs}
    adjusted = _after_holm(results)

    def cell(name: str, pair: tuple[str, str]) -> str:
        if (result := results[name, pair]) is None:
            return _missing(found, pair)
        return _difference(result) + (" *" if adjusted[name, pair] < 0.05 else "")

    lines = [(name, *(cell(name, pair) for pair in pairs)) for name in names]
    return Table("Gains by subset", ("", *claims), tuple(lines))


def _after_holm(results: Mapping[_Key, Comparison | None]) -> dict[_Key, float]:
    """What is not known yet counts as well, or what is shown of few would not be when all are done."""
    p = [1.0 if result is None else result.p for result in results.values()]
    return dict(zip(results, holm(p), strict=True))


def _difference(result: Comparison | None) -> str:
    return f"{result.difference:+.2f} ({result.low:+.2f} to {result.high:+.2f})" if result else ""


def _missing(found: Findings, pair: tuple[str, str]) -> str:
    return "too few seeds" if all(found.records[name] for name in pair) else "not run"


def _last_losses(records: Sequence[dict[str, Any]], term: str) -> list[float]:
    """Of each run that has this term: the mean since the last log but one, as trained, under dropout."""
    logged = [[log[f"{term}_loss"] for log in record.get("losses", ()) if f"{term}_loss" in log] for record in records]
    return [losses[-1] for losses in logged if losses]


def _seconds(records: Sequence[dict[str, Any]]) -> list[float]:
    """Of training; a run that was killed in between knows only those since it was started again."""
    costs = [record["cost"] for record in records if "train_seconds" in record["cost"]]
    return [cost["train_seconds"] for cost in costs if cost["starts"] == 1]
