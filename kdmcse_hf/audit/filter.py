"""What one threshold does to the negatives of one similarity map, and which threshold does what is wanted."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdmcse_hf.audit.batches import AuditBatches
from kdmcse_hf.audit.gallery import Example, choose_examples
from kdmcse_hf.calibration import CALIBRATION_PAIRS, calibrate, quantiles, upper_quantile
from kdmcse_hf.objective import Objective
from kdmcse_hf.teacher.pairs import TeacherPairs
from kdmcse_hf.threshold import MAX_FILTER_RATE, Threshold

SENSIBLE_RATE = 0.005
"""The share of negatives that is named beside a threshold that cannot work."""


@dataclass(frozen=True)
class FilterAudit:
    """What one threshold does to the negatives of one similarity map. Shares are in [0, 1].

    Attributes:
        threshold: as it was asked for.
        applied: as training applies it: a rate has become a cosine.
        limits: quantiles of the cosine that it amounts to; they differ where it is relative.
        filter_rate: share of the negatives that it removes, the `*_filter_rate` of the training log.
        removed_per_batch: their number.
        same_image_share: of all pairs above it, the share of captions of one image; `None` where nothing is above.
        warning: why the threshold cannot work, if so.
        precision: share of the removed negatives that are truly noisy; `None` where nothing is known or removed.
        recall: share of the truly noisy negatives that are removed; `None` where nothing is known or noisy.
        examples: see [`choose_examples`].
    """

    threshold: str
    applied: str
    limits: dict[float, float]
    filter_rate: float
    removed_per_batch: float
    same_image_share: float | None
    warning: str | None
    precision: float | None
    recall: float | None
    examples: dict[str, list[Example]]


@dataclass(frozen=True)
class RateAudit:
    """Thresholds that remove a wanted share of the negatives, and what they remove when written like this.

    `relative` is `None` where no factor from 0 on removes so much.
    """

    rate: float
    cosine: str
    cosine_filter_rate: float
    relative: str | None
    relative_filter_rate: float | None


def parse_threshold(text: str, name: str) -> Threshold:
    """As [`Threshold.parse`], but there has to be one.

    Raises:
        ValueError: not a threshold, or `none`.
    """
    threshold = Threshold.parse(text, name=name)
    if threshold is None:
        raise ValueError(f"`{name}` is {text!r}, which filters nothing: give a threshold, or leave it out.")
    return threshold


def calibrated(threshold: Threshold, source: str, pairs: TeacherPairs, objective: Objective, seed: int) -> Threshold:
    """The threshold as training with this seed applies it to a similarity map: a rate becomes a cosine."""
    if threshold.kind != "rate":
        return threshold
    changes: dict[str, Any] = {"image_filter_source": source, "image_threshold": str(threshold)}
    objective = dataclasses.replace(objective, image_term=True, caption_term=False, **changes)
    sample = pairs.sample(CALIBRATION_PAIRS, frozenset(source.split("_")), seed)
    return parse_threshold(calibrate(objective, sample)[0].image_threshold, source)


def audit_filter(batches: AuditBatches, source: str, threshold: str, applied: Threshold) -> FilterAudit:
    """Applies a threshold to the batches as training does.

    Args:
        source: the similarity map.
        threshold: as it was asked for.
        applied: see [`calibrated`].
    """
    limits, above = batches.limits(source, applied), batches.above(source, applied)
    removed = above & batches.negatives
    rate = _share(removed, batches.negatives) or 0.0
    noisy = batches.truly_noisy(source)
    return FilterAudit(
        threshold=threshold,
        applied=str(applied),
        limits=quantiles(limits.flatten()),
        filter_rate=rate,
        removed_per_batch=removed.sum().item() / len(batches.pairs),
        same_image_share=_share(batches.same_image & above, above),
        warning=None if 0 < rate <= MAX_FILTER_RATE else _warning(batches, source, threshold, rate),
        precision=None if noisy is None else _share(removed & noisy, removed),
        recall=None if noisy is None else _share(removed & noisy, noisy & batches.negatives),
        examples=choose_examples(batches, source, limits, above),
    )


def audit_rate(batches: AuditBatches, source: str, rate: float) -> RateAudit:
    """Finds the thresholds that remove the share `rate` of the batches' negatives, in (0, `MAX_FILTER_RATE`]."""
    cosines = batches.similarity[source][batches.negatives]
    own = batches.positives(source).unsqueeze(2).expand_as(batches.negatives)[batches.negatives]
    low, high = 0.0, 2.0
    reachable = (cosines > low * own).double().mean().item() >= rate
    for _ in range(40):
        middle = (low + high) / 2
        if (cosines > middle * own).double().mean().item() > rate:
            low = middle
        else:
            high = middle
    # Measured as they are written: the text has fewer digits.
    cosine = parse_threshold(str(Threshold("cosine", upper_quantile(cosines, rate))), source)
    relative = parse_threshold(str(Threshold("relative", high)), source)
    return RateAudit(
        rate=rate,
        cosine=str(cosine),
        cosine_filter_rate=_share(batches.above(source, cosine) & batches.negatives, batches.negatives) or 0.0,
        relative=str(relative) if reachable else None,
        relative_filter_rate=_share(batches.above(source, relative) & batches.negatives, batches.negatives)
        if reachable
        else None,
    )


def _warning(batches: AuditBatches, source: str, threshold: str, rate: float) -> str:
    cosines = batches.similarity[source][batches.negatives]
    does = f"removes {rate:.0%} of the negatives, more than the {MAX_FILTER_RATE:.0%} that training accepts"
    return (
        f"{threshold} {does if rate else 'removes nothing'}: the negatives' {source} cosines go from "
        f"{cosines.min():.3f} to {cosines.max():.3f}. A cosine of {upper_quantile(cosines, SENSIBLE_RATE):.3f} would "
        f"remove {SENSIBLE_RATE:.1%}."
    )


def _share(part: Tensor, whole: Tensor) -> float | None:
    """How much of `whole` the `part` of it is; `None` where it is empty."""
    size = whole.sum().item()
    return part.sum().item() / size if size else None
