"""The scores of sentence embeddings, as `evaluate.Metric` classes. Nothing is downloaded."""

from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr


def _normalize(vectors: Any) -> NDArray[np.float64]:
    vectors = np.asarray(vectors, dtype=np.float64)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12))


class _InMemoryMetric(evaluate.Metric):  # type: ignore[misc]
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(keep_in_memory=True, **kwargs)


class Spearman(_InMemoryMetric):
    """Spearman's rank correlation x 100 of `predictions` and `references`, N numbers each; in [-100, 100].

    Raises:
        ValueError: a correlation that does not exist (a constant side, or a NaN).
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Spearman's rank correlation x 100",
            citation="",
            inputs_description="predictions, references: N floats each",
            features=datasets.Features(predictions=datasets.Value("float64"), references=datasets.Value("float64")),
        )

    def _compute(self, *, predictions: Any, references: Any) -> dict[str, float]:
        predictions, references = np.asarray(predictions), np.asarray(references)
        for name, values in (("predictions", predictions), ("references", references)):
            if not np.isfinite(values).all() or np.ptp(values) == 0:
                raise ValueError(
                    f"Spearman's correlation does not exist: the {len(values)} {name} are constant or not finite "
                    f"(first values {values[:3].tolist()}). Look for NaN or collapsed embeddings."
                )
        return {"spearman": 100 * float(spearmanr(predictions, references).statistic)}


class Alignment(_InMemoryMetric):
    """Mean squared distance of normalised positive pairs (Wang & Isola 2020, alpha = 2); in [0, 4], lower is better.

    `predictions` and `references` are (N, D): row i of one is the positive of row i of the other.
    """

    def _info(self) -> evaluate.MetricInfo:
        vectors = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description="Alignment of positive pairs",
            citation="Wang and Isola, ICML 2020",
            inputs_description="predictions, references: N vectors each",
            features=datasets.Features(predictions=vectors, references=vectors),
        )

    def _compute(self, *, predictions: Any, references: Any) -> dict[str, float]:
        difference = _normalize(predictions) - _normalize(references)
        return {"alignment": float((difference**2).sum(axis=1).mean())}


class Uniformity(_InMemoryMetric):
    """Log of the mean Gaussian potential of all pairs of `predictions` (N, D) (Wang & Isola 2020, t = 2); in [-8, 0].

    Over the whole set at once, lower is better. The published MCSE figures average batches of 128 instead.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Uniformity of embeddings",
            citation="Wang and Isola, ICML 2020",
            inputs_description="predictions: N vectors",
            features=datasets.Features(predictions=datasets.Sequence(datasets.Value("float64"))),
        )

    def _compute(self, *, predictions: Any) -> dict[str, float]:
        vectors = _normalize(predictions)
        total = 0.0
        for start in range(0, len(vectors), 1024):  # all pairs i < j, a band of rows at a time
            cosine = vectors[start : start + 1024] @ vectors[start:].T
            # 2 * |x - y|^2 = 4 - 4 cos
            total += float(np.triu(np.exp(4 * cosine - 4), k=1).sum())
        return {"uniformity": float(np.log(total / (len(vectors) * (len(vectors) - 1) / 2)))}
