"""A study's plots, as PNG and SVG: readable in print without colour, by markers and line styles."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studies.findings import Findings
from studies.grid import run_name

_MARKERS = "osD^vPX*<>"
_LINES = ("-", "--", "-.", ":")
_SHADES = ("black", "#b0420f", "#2f6fa7", "#6a6a6a", "#2e7d4f", "#8a4f9e")
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "study",
    "svg.fonttype": "none",
}
GOLD = ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5))


def draw_all(found: Findings, folder: Path) -> list[Path]:
    """Draws what there is something to draw of.

    Returns:
        The paths of the PNG files; each has an SVG beside it.
    """
    rows = [name for name in found.study.plots if found.records[name]]
    shown = found.on_common_seeds(rows)
    written = []
    with matplotlib.rc_context(_STYLE):
        for draw in (scores, dev_curves, alignment_and_uniformity, cosines_by_gold, curves):
            figure = draw(shown if draw is not curves else found, rows) if rows else None
            if figure is None:
                continue
            path = folder / f"{draw.__name__}.png"
            figure.savefig(path, dpi=200, metadata={"Software": None})
            figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
            written.append(path)
    return written


def _style(number: int) -> dict[str, Any]:
    return {
        "color": _SHADES[number % len(_SHADES)],
        "linestyle": _LINES[number % len(_LINES)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "markerfacecolor": "white" if number % 2 else None,
        "markersize": 5,
        "linewidth": 1.2,
    }


def _by_step(found: Findings, row: str, measure: str) -> tuple[list[int], list[list[float]]]:
    """The steps at which all runs of a row were scored on STS-B dev, and their values at each."""
    curves = [
        {point["step"]: point[measure] for point in record.get("dev", ()) if measure in point}
        for record in found.records[row]
    ]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    return steps, [[curve[step] for curve in curves] for step in steps]


def scores(found: Findings, rows: Sequence[str]) -> Figure | None:
    """The average over the STS sets: mean, interval, and every seed as a tick."""
    figure = Figure(figsize=(6, 0.35 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(reversed(rows)):
        interval, values = found.interval(row), found.values(row, "sts", "avg")
        if interval:
            axes.plot([interval.low, interval.high], [place, place], "-", color="black", linewidth=1.2)
        axes.plot(values, [place - 0.22] * len(values), "|", color="#6a6a6a", markersize=6)
        axes.plot([np.mean(values)], [place], "o", color="black", markersize=5)
    axes.set_yticks(range(len(rows)), [found.rows[row].label for row in reversed(rows)])
    axes.set_xlabel("mean of the STS sets (Spearman x 100)\nlines: 95 % intervals; ticks: seeds")
    axes.grid(axis="x", color="#dddddd")
    return figure


def dev_curves(found: Findings, rows: Sequence[str]) -> Figure | None:
    """STS-B dev by step: means over seeds, bars of one standard deviation; untrained rows as level lines."""
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    for number, row in enumerate(rows):
        label = found.rows[row].label
        if not found.rows[row].train:
            level = float(np.mean(found.values(row, "stsb", "dev", "spearman")))
            axes.axhline(level, color="#6a6a6a", linestyle=":", linewidth=1, label=label)
            continue
        steps, values = _by_step(found, row, "spearman")
        if not steps:
            continue
        means = [float(np.mean(v)) for v in values]
        spread = [float(np.std(v, ddof=1)) if len(v) > 1 else 0.0 for v in values]
        axes.errorbar(steps, means, yerr=spread, capsize=2, label=label, **_style(number))
    axes.set_xlabel("step")
    axes.set_ylabel("STS-B dev (Spearman x 100)")
    _legend(figure, axes)
    return figure


def alignment_and_uniformity(found: Findings, rows: Sequence[str]) -> Figure | None:
    """On STS-B dev along training, a point a checkpoint, means over seeds."""
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    drawn = False
    for number, row in enumerate(rows):
        style = _style(number)
        if found.rows[row].train:
            steps, down = _by_step(found, row, "alignment")
            _, across = _by_step(found, row, "uniformity")
        else:
            steps = [0]
            down, across = ([found.values(row, "stsb", "dev", name)] for name in ("alignment", "uniformity"))
        if not steps or not down[0]:
            continue
        drawn = True
        x, y = [np.mean(v) for v in across], [np.mean(v) for v in down]
        axes.plot(x, y, label=found.rows[row].label, **style)
        axes.plot(x[-1:], y[-1:], **{**style, "markersize": 8})
    axes.set_title("a point a checkpoint, the last one large", fontsize=8)
    axes.set_xlabel("uniformity (lower is better)")
    axes.set_ylabel("alignment (lower is better)")
    _legend(figure, axes)
    return figure if drawn else None


def cosines_by_gold(found: Findings, rows: Sequence[str]) -> Figure | None:
    """How the cosines of STS-B test are spread among pairs of each gold score, the runs of a row taken together."""
    if "STSB" not in found.study.tasks:
        return None
    gold = found.gold("STSB")
    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(2.3 * columns + 0.5, 2 * lines + 0.8), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    kept = {
        row: [a["STSB"] for record in found.records[row] if (a := found.results.cosines(_name(record)))] for row in rows
    }
    lowest = min((float(np.quantile(run, 0.005)) for runs in kept.values() for run in runs), default=0.0)
    edges = np.linspace(lowest, 1, 26)
    for panel in panels.ravel()[len(rows) :]:
        panel.set_visible(False)
    for panel, row in zip(panels.ravel(), rows, strict=False):
        runs = kept[row]
        for number, (low, high) in enumerate(GOLD):
            chosen = (gold >= low) & ((gold < high) | (high == GOLD[-1][1]))
            if not runs or not chosen.any():
                continue
            density, _ = np.histogram(np.concatenate([run[chosen] for run in runs]), bins=edges, density=True)
            shade = str(0.65 - 0.65 * number / (len(GOLD) - 1))
            style = {"color": shade, "linestyle": (_LINES * 2)[number], "linewidth": 0.8 + 0.25 * number}
            panel.stairs(density, edges, label=f"{low} to {high}", **style)
        panel.set_title(found.rows[row].label, fontsize=8)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, title="gold score", loc="outside lower center", ncols=len(GOLD), fontsize=8)
    for panel in panels[:, 0]:
        panel.set_ylabel("density")
    for panel in panels.ravel()[max(0, len(rows) - columns) : len(rows)]:
        panel.set_xlabel("cosine")
        panel.tick_params(labelbottom=True)
    return figure


def curves(found: Findings, rows: Sequence[str]) -> Figure | None:
    """The average over the STS sets by what a series of rows differs in, with 95 % intervals; a panel for each."""
    panels = {
        title: {label: done for label, series in panel.items() if (done := _points(found, series))}
        for title, panel in found.study.curves.items()
    }
    panels = {
        title: series for title, series in panels.items() if any(None not in points for points in series.values())
    }
    if not panels:
        return None
    labels = list(dict.fromkeys(label for series in panels.values() for label, at in series.items() if None not in at))
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.4 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes, (title, series) in zip(grid, panels.items(), strict=False):
        shown = found.on_common_seeds([row for points in series.values() for row in points.values()])
        for label, points in series.items():
            means = [float(np.mean(shown.values(row, "sts", "avg"))) for row in points.values()]
            if None in points:
                axes.axhline(means[0], color="#6a6a6a", linestyle=":", linewidth=1, label=label)
                continue
            intervals = [shown.interval(row) for row in points.values()]
            ends = [(m - i.low, i.high - m) if i else (0.0, 0.0) for m, i in zip(means, intervals, strict=True)]
            style = _style(labels.index(label))
            axes.errorbar(list(points), means, yerr=np.transpose(ends), capsize=2, label=label, **style)
        places = sorted({place for points in series.values() for place in points if place is not None})
        if places[0] > 0 and places[-1] >= 20 * places[0]:
            axes.set_xscale("log")
        axes.set_xticks(places, [f"{place:g}" for place in places], minor=False)
        axes.set_xticks([], minor=True)
        axes.tick_params(labelsize=8)
        axes.set_xlabel(title, fontsize=8)
        axes.grid(axis="y", color="#eeeeee")
    handles = {label: handle for axes in grid for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.supylabel("mean of the STS sets (Spearman x 100)", fontsize=8)
    return figure


def _points(found: Findings, series: Mapping[float, str] | str) -> dict[float | None, str]:
    """The rows that something is known of, by place; `None` is all along the panel."""
    places = series.items() if isinstance(series, Mapping) else [(None, series)]
    return {place: row for place, row in places if found.records[row]}


def _name(record: dict[str, Any]) -> str:
    return run_name(record["row"], record["seed"])


def _legend(figure: Figure, axes: Axes) -> None:
    axes.grid(color="#eeeeee")
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right center", frameon=False, fontsize=8)
