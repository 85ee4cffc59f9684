"""Which pairs of captions show what a threshold does: the most similar it removes, some at random, its edge."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdmcse_hf.audit.batches import AuditBatches

LISTS = ("most_similar", "at_random", "just_above", "just_below")
LENGTH = 8
_CANDIDATES = 20_000


@dataclass(frozen=True)
class Example:
    """A pair of an anchor (first) and a candidate (second).

    Attributes:
        caption_rows, captions: in the cache.
        images: names of the pictures that the captions belong to.
        scores: the teacher's cosine of the anchor with the candidate in every map that the cache can give.
        limit: the cosine above which this anchor's negatives are removed.
        noisy: whether it is truly no negative; `None` where the truth is not known.
    """

    caption_rows: tuple[int, int]
    captions: tuple[str, str]
    images: tuple[str, str]
    scores: dict[str, float]
    limit: float
    noisy: bool | None


def choose_examples(batches: AuditBatches, source: str, limits: Tensor, above: Tensor) -> dict[str, list[Example]]:
    """Up to `LENGTH` negatives for each of four lists, best first.

    `most_similar`: the highest cosines that are removed; `at_random`: a sample of all that are; `just_above`,
    `just_below`: the pairs nearest to the limit that are removed and kept. A pair of captions, whichever is the anchor,
    is in one list only; a picture is in a list once.

    Args:
        source: the similarity map that is filtered.
        limits, above: of the threshold, from [`AuditBatches`].
    """
    similarity, cache = batches.similarity[source], batches.cache
    rankings = {
        "most_similar": (similarity, above),
        "at_random": (torch.rand(similarity.shape, generator=torch.Generator().manual_seed(0)), above),
        "just_above": (limits - similarity, above),
        "just_below": (similarity - limits, ~above),
    }
    truth = batches.truly_noisy(source)
    shown: set[frozenset[int]] = set()
    lists = {}
    for name, (score, wanted) in rankings.items():
        examples: list[Example] = []
        pictures: set[int] = set()
        for batch, anchor, candidate in _best_first(score, wanted & batches.negatives):
            cell = batch, anchor, candidate
            captions = [int(batches.caption_rows[batch, column]) for column in (anchor, candidate)]
            images = [int(batches.image_rows[batch, column]) for column in (anchor, candidate)]
            if frozenset(captions) in shown or not pictures.isdisjoint(images):
                continue
            shown.add(frozenset(captions))
            pictures.update(images)
            examples.append(
                Example(
                    caption_rows=(captions[0], captions[1]),
                    captions=(cache.captions[captions[0]]["caption"], cache.captions[captions[1]]["caption"]),
                    images=(cache.images[images[0]]["image"], cache.images[images[1]]["image"]),
                    scores={name: scores[cell].item() for name, scores in batches.similarity.items()},
                    limit=limits[batch, anchor, 0].item(),
                    noisy=None if truth is None else bool(truth[cell]),
                )
            )
            if len(examples) == LENGTH:
                break
        lists[name] = examples
    return lists


def _best_first(score: Tensor, wanted: Tensor) -> list[tuple[int, int, int]]:
    """(batch, anchor, candidate) of the wanted cells with the highest scores."""
    cells = wanted.flatten().nonzero().squeeze(1)
    best = cells[score.flatten()[cells].topk(min(len(cells), _CANDIDATES)).indices]
    found = np.unravel_index(best.numpy(), tuple(score.shape))
    return list(zip(*(axis.tolist() for axis in found), strict=True))
