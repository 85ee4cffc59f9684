"""The figures of an audit as shapes to draw: histograms of cosines, and precision and recall over the threshold."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from kdmcse_hf.audit.report import Audit, MapAudit

LOWEST_DECADE = -6
"""No histogram shows smaller shares than 10 to this power."""
FEWEST = 20
"""A precision is drawn where a threshold removes so many pairs or more."""


@dataclass(frozen=True)
class Mark:
    """A threshold in a chart: a line at its median cosine, and from where to where most anchors have it."""

    letter: str
    x: float
    left: float
    right: float


@dataclass(frozen=True)
class Chart:
    """The shapes of a map's figures. Positions are percentages from the left and from the top; paths are SVG's.

    The histogram shows the share of each group on a logarithmic scale.
    """

    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    negatives: str
    positives: str
    noisy: str
    precision: str
    recall: str
    marks: list[Mark]
    movable: dict[str, Any]
    """What the page's script needs to move a threshold."""


def draw_chart(audit: Audit, cosines: MapAudit) -> Chart:
    """The figures of one similarity map."""
    histogram = cosines.histogram
    medians = [histogram.edges[0], *(threshold.limits[0.5] for threshold in cosines.filters)]
    low, high = min(medians), max(histogram.edges[-1], *medians)
    low, high = low - 0.07 * (high - low), high + 0.02 * (high - low)  # room for the labels of the scale

    def x(cosine: float) -> float:
        return round(min(100, max(0, 100 * (cosine - low) / (high - low))), 3)

    negatives, positives = sum(histogram.negatives), sum(histogram.positives)
    shares = {
        "negatives": [count / negatives for count in histogram.negatives],
        "positives": [count / positives for count in histogram.positives],
        "noisy": [count / negatives for count in histogram.noisy or ()],
    }
    top = math.ceil(math.log10(max(*shares["negatives"], *shares["positives"])))
    bottom = min(top - 1, max(LOWEST_DECADE, -math.floor(math.log10(negatives)) - 1))  # a single pair has a height

    def y(share: float) -> float:
        decade = math.log10(share) if share else bottom
        return round(min(100, 100 * (top - decade) / (top - bottom)), 3)

    edges = [x(edge) for edge in histogram.edges]
    above, noisy_above = _from_above(histogram.negatives), _from_above(histogram.noisy or ())
    all_noisy = noisy_above[0] if noisy_above else 0
    known = list(zip(edges, above, noisy_above, strict=True)) if all_noisy else []
    tick = next(step for step in (0.05, 0.1, 0.2, 0.5) if (high - low) / step <= 8 or step == 0.5)
    outlines = {name: _outline(edges, [y(share) for share in group]) for name, group in shares.items()}
    return Chart(
        x_ticks=[
            (x(count * tick), f"{count * tick:.3g}".replace("-", "\N{MINUS SIGN}"))
            for count in range(math.ceil(low / tick), math.floor(high / tick) + 1)
        ],
        y_ticks=[(y(10.0**decade), f"{10.0 ** (decade + 2):g} %") for decade in range(bottom + 1, top + 1)],
        negatives=outlines["negatives"],
        positives=outlines["positives"],
        noisy=outlines["noisy"],
        precision=_curve([(left, noisy / count) for left, count, noisy in known if count >= FEWEST]),
        recall=_curve([(left, noisy / all_noisy) for left, _, noisy in known]),
        marks=[
            Mark(letter, x(threshold.limits[0.5]), x(threshold.limits[0.1]), x(threshold.limits[0.9]))
            for letter, threshold in zip(itertools.cycle(ascii_uppercase), cosines.filters, strict=False)
        ],
        movable={
            "edges": histogram.edges,
            "positions": edges,
            "above": above,
            "noisy": noisy_above or None,
            "batches": audit.num_batches,
        },
    )


def _from_above(counts: Sequence[int]) -> list[int]:
    """For every edge of a histogram, how many are above it; empty for no histogram."""
    return [*itertools.accumulate(reversed(counts), initial=0)][::-1] if counts else []


def _outline(edges: Sequence[float], heights: Sequence[float]) -> str:
    """The bars of a histogram as steps, one path for each run of bars that are not empty (100, the bottom)."""
    path = ""
    for filled, bars in itertools.groupby(enumerate(heights), key=lambda bar: bar[1] < 100):
        if filled:
            run = list(bars)
            path += (
                f"M{edges[run[0][0]]:g},100"
                + "".join(f"V{height:g}H{edges[bar + 1]:g}" for bar, height in run)
                + "V100"
            )
    return path


def _curve(points: Sequence[tuple[float, float]]) -> str:
    """Points (percentage from the left, share)."""
    return "M" + "L".join(f"{x:g},{100 - 100 * share:g}" for x, share in points) if points else ""
