"""The audit of a teacher cache: its cosines, the margins they become, and what the noisy-negative filter removes."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from kdmcse_hf import __version__
from kdmcse_hf.audit.batches import MAPS, AuditBatches, Truth, why_missing
from kdmcse_hf.audit.filter import FilterAudit, RateAudit, audit_filter, audit_rate, calibrated, parse_threshold
from kdmcse_hf.calibration import quantiles
from kdmcse_hf.objective import Objective
from kdmcse_hf.presets import PRESETS
from kdmcse_hf.teacher.pairs import TeacherPairs
from kdmcse_hf.threshold import Threshold

_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02)
_MOST_BINS = 100


@dataclass(frozen=True)
class Histogram:
    """Counts of cosines above one edge and up to the next, over all batches.

    Attributes:
        edges: E + 1 cosines.
        negatives, positives: E counts.
        noisy: E counts of truly noisy negatives; `None` where they are not known.
    """

    edges: list[float]
    negatives: list[int]
    positives: list[int]
    noisy: list[int] | None


@dataclass(frozen=True)
class MapAudit:
    """One similarity map. Shares are in [0, 1]; quantiles map a share to a value.

    Attributes:
        uses: what the objective uses it for.
        negatives_per_batch: mean number.
        same_image_share: of the pairs of two captions in a batch, the share of captions of one image.
        noisy_share: share of the negatives that are truly noisy; `None` where that is not known.
        negatives, positives: quantiles of the cosines.
        margin_radians, margin_degrees: quantiles of the negatives' angular margin, `(1 - cosine) * margin`.
        histogram: of the cosines.
        filters: one a threshold.
        rates: one a wanted filter rate.
    """

    uses: list[str]
    negatives_per_batch: float
    same_image_share: float
    noisy_share: float | None
    negatives: dict[float, float]
    positives: dict[float, float]
    margin_radians: dict[float, float]
    margin_degrees: dict[float, float]
    histogram: Histogram
    filters: list[FilterAudit]
    rates: list[RateAudit]


@dataclass(frozen=True)
class Audit:
    """What [`audit_pairs`] found. As JSON: an object of these fields, and so on inward.

    Attributes:
        library_version: of `kdmcse_hf`.
        cache: the name of its folder; not its path, for pages are shared.
        teacher: from the cache's manifest.
        num_images, num_captions, num_pairs: of the cache; pairs are the captions that training takes.
        preset: the objective's name, or `custom`.
        captions_per_image, mask_same_image: of the objective.
        margin: the largest angular margin, radians.
        batch_size, num_batches, seed: which batches were looked at.
        notes: what could not be looked at, and why.
        maps: by their names.
    """

    library_version: str
    cache: str
    teacher: dict[str, Any]
    num_images: int
    num_captions: int
    num_pairs: int
    preset: str
    captions_per_image: str
    mask_same_image: bool
    margin: float
    batch_size: int
    num_batches: int
    seed: int
    notes: list[str]
    maps: dict[str, MapAudit]


def audit_pairs(
    pairs: TeacherPairs,
    objective: Objective,
    *,
    thresholds: Mapping[str, Sequence[str]] | None = None,
    filter_rates: Sequence[float] = (),
    margin: float | None = None,
    batch_size: int = 64,
    num_batches: int = 200,
    seed: int = 0,
    truth: Truth | None = None,
) -> Audit:
    """Draws batches as training does, and measures what filters and margins do to their negatives.

    Args:
        pairs: the training pairs.
        objective: its switches.
        thresholds: by map, such as `{"text_image": ["cosine:0.3"]}`; defaults to the objective's own.
        filter_rates: shares of the negatives, to find thresholds for.
        margin: radians; defaults to the objective's `cross_modal_margin`.
        batch_size, num_batches, seed: the first paired batches of a run with this seed.
        truth: a [`Truth`], where it is known: filters get a precision and a recall, examples a verdict.

    Raises:
        ValueError: a number out of its range, not a threshold, or a map that the cache cannot give.
    """
    preset = next((name for name, known in PRESETS.items() if known == objective), "custom")
    if margin is not None:
        objective = dataclasses.replace(objective, cross_modal_margin=margin)
    wanted = _own_thresholds(objective) if thresholds is None else thresholds
    reasons = {source: why_missing(pairs.cache, source) for source in (*MAPS, *wanted)}
    for source in thresholds or ():
        if reasons[source]:
            raise ValueError(
                f"{source} cosines cannot be audited: {reasons[source]}. Use a dual encoder's cache, or other maps."
            )
    rates = [parse_threshold(f"rate:{rate}", "filter_rates").value for rate in filter_rates]
    maps = [source for source, reason in reasons.items() if not reason]
    parsed = {source: {text: parse_threshold(text, source) for text in wanted.get(source, ())} for source in maps}
    batches = AuditBatches(
        pairs,
        maps,
        batch_size=batch_size,
        num_batches=num_batches,
        seed=seed,
        mask_same_image=objective.mask_same_image,
        truth=truth,
    )
    return Audit(
        library_version=__version__,
        cache=pairs.cache.folder.resolve().name,
        teacher=pairs.cache.manifest["teacher"],
        num_images=len(pairs.cache.images),
        num_captions=len(pairs.cache.captions),
        num_pairs=len(pairs),
        preset=preset,
        captions_per_image=pairs.captions_per_image,
        mask_same_image=objective.mask_same_image,
        margin=objective.cross_modal_margin,
        batch_size=batch_size,
        num_batches=num_batches,
        seed=seed,
        notes=[f"{source} is left out: {reason}." for source, reason in reasons.items() if reason],
        maps={
            source: _audit_map(
                batches,
                source,
                objective,
                {text: calibrated(one, source, pairs, objective, seed) for text, one in parsed[source].items()},
                rates,
            )
            for source in maps
        },
    )


def _own_thresholds(objective: Objective) -> dict[str, list[str]]:
    own: dict[str, list[str]] = {}
    for term in objective.terms:
        if objective.threshold(term) is not None:
            source = getattr(objective, f"{term}_filter_source")
            own.setdefault(source, []).append(getattr(objective, f"{term}_threshold"))
    return own


def _uses(objective: Objective, source: str) -> list[str]:
    uses = []
    for term in objective.terms:
        if objective.threshold(term) is not None and getattr(objective, f"{term}_filter_source") == source:
            uses.append(f"filters the {term} term")
        if objective.cross_modal_margin and getattr(objective, f"{term}_margin_source") == source:
            uses.append(f"scales the margins of the {term} term")
    return uses


def _audit_map(
    batches: AuditBatches,
    source: str,
    objective: Objective,
    thresholds: Mapping[str, Threshold],
    rates: Sequence[float],
) -> MapAudit:
    negatives = batches.similarity[source][batches.negatives]
    positives = batches.positives(source).flatten()
    noisy = batches.truly_noisy(source)
    known = None if noisy is None else noisy[batches.negatives]
    margins = (1 - negatives).clamp(min=0) * objective.cross_modal_margin
    num_batches, batch_size = batches.pairs.shape
    return MapAudit(
        uses=_uses(objective, source),
        negatives_per_batch=len(negatives) / num_batches,
        same_image_share=batches.same_image.sum().item() / (num_batches * batch_size * (batch_size - 1)),
        noisy_share=None if known is None else known.double().mean().item(),
        negatives=quantiles(negatives),
        positives=quantiles(positives),
        margin_radians=quantiles(margins),
        margin_degrees=quantiles(margins.rad2deg()),
        histogram=_histogram(negatives, positives, known),
        filters=[audit_filter(batches, source, text, threshold) for text, threshold in thresholds.items()],
        rates=[audit_rate(batches, source, rate) for rate in rates],
    )


def _histogram(negatives: Tensor, positives: Tensor, noisy: Tensor | None) -> Histogram:
    negatives, positives = negatives.clamp(-1, 1), positives.clamp(-1, 1)
    low = min(negatives.min().item(), positives.min().item())
    high = max(negatives.max().item(), positives.max().item())
    step = next(step for step in _STEPS if high - low <= step * _MOST_BINS or step == _STEPS[-1])
    edges = np.arange(math.ceil(low / step) - 1, math.ceil(high / step) + 1) * step

    def counts(values: Tensor) -> list[int]:
        at_most = np.searchsorted(np.sort(values.numpy()), edges.astype(np.float32), side="right")
        found: list[int] = np.diff(at_most).tolist()
        return found

    return Histogram(
        edges=edges.round(3).tolist(),
        negatives=counts(negatives),
        positives=counts(positives),
        noisy=None if noisy is None else counts(negatives[noisy]),
    )
