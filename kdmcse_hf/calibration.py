"""Thresholds against the training pairs: turn a wanted filter rate into a cosine, refuse a filter that cannot work."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdmcse_hf.losses import noisy_negatives, positive_mask
from kdmcse_hf.objective import Objective, PairEmbeddings, teacher_similarity
from kdmcse_hf.threshold import MAX_FILTER_RATE, Threshold

CALIBRATION_PAIRS = 2048
QUANTILES = (0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0)


@dataclass(frozen=True)
class FilterReport:
    """What one term's filter does to the negatives of a sample of training pairs."""

    term: str
    source: str
    threshold: str
    filter_rate: float
    """Share of negatives above the threshold, in [0, 1]."""
    positive_median: float
    """Median of the positive pairs' own cosines."""
    quantiles: dict[float, float]
    """Of the negatives' cosines."""

    def __str__(self) -> str:
        table = ", ".join(f"{share:g}: {value:.3f}" for share, value in self.quantiles.items())
        return (
            f"{self.term} term, {self.source} cosine, threshold {self.threshold}: filters {self.filter_rate:.4%} of "
            f"negatives (positive pairs' median cosine {self.positive_median:.3f}; negatives' quantiles {table})"
        )


def calibrate(objective: Objective, sample: PairEmbeddings) -> tuple[Objective, list[FilterReport]]:
    """The objective with every `rate:` threshold made a `cosine:`, and a report per filter that is on.

    Args:
        objective: its switches.
        sample: N training pairs drawn as batches draw them; every pair of two of them counts as a negative.

    Raises:
        ValueError: a threshold filters none of the sample's negatives, or more than `MAX_FILTER_RATE` of them.
    """
    reports = []
    for term in objective.terms:
        threshold = objective.threshold(term)
        if threshold is None:
            continue
        source = getattr(objective, f"{term}_filter_source")
        similarity = teacher_similarity(source, sample, sample)
        positives = torch.arange(len(similarity), device=similarity.device)
        negative = ~positive_mask(positives, len(similarity))
        if objective.mask_same_image and sample.image_ids is not None:
            # They are masked whatever the teacher says: not this filter's merit.
            negative &= sample.image_ids.unsqueeze(1) != sample.image_ids
        negatives = similarity[negative]
        if threshold.kind == "rate":
            threshold = Threshold("cosine", upper_quantile(negatives, threshold.value))
            calibrated: dict[str, Any] = {f"{term}_threshold": str(threshold)}
            objective = dataclasses.replace(objective, **calibrated)
            threshold = Threshold.parse(str(threshold)) or threshold  # as written: what is reported is what is used
        noisy = noisy_negatives(similarity, threshold.cosine(similarity, positives), positives)[negative]
        report = FilterReport(
            term=term,
            source=source,
            threshold=str(threshold),
            filter_rate=noisy.double().mean().item(),
            positive_median=similarity.diagonal().median().item(),
            quantiles=quantiles(negatives),
        )
        if not 0 < report.filter_rate <= MAX_FILTER_RATE:
            raise ValueError(
                f"The threshold of the {term} term cannot work: {report}. Expected a share above 0 and at most "
                f"{MAX_FILTER_RATE:.0%}. Choose a cosine between these quantiles, or let `{term}_threshold=rate:0.005` "
                f"find it, or switch the filter off with `{term}_threshold=none`."
            )
        reports.append(report)
    return objective, reports


def quantiles(values: Tensor) -> dict[float, float]:
    """The `QUANTILES` of (N,) values; empty where there are none."""
    if not len(values):
        return {}
    ranks = [round(share * (len(values) - 1)) for share in QUANTILES]
    ordered = np.partition(values.numpy(), ranks)  # millions of values: a full sort takes most of a second
    return {share: float(ordered[rank]) for share, rank in zip(QUANTILES, ranks, strict=True)}


def upper_quantile(values: Tensor, share: float) -> float:
    """The value that a share of `values` exceeds."""
    rank = min(len(values) - 1, max(0, round((1 - share) * len(values)) - 1))
    return float(values.kthvalue(rank + 1).values)
