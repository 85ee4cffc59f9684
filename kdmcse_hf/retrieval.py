"""Retrieval: does a caption find its picture, a picture its caption, and a caption another one of its picture?"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from kdmcse_hf.embedding import SentenceEncoder
from kdmcse_hf.modeling_kdmcse import KDMCSEModel
from kdmcse_hf.teacher.cache import TeacherCache
from kdmcse_hf.teacher.pairs import TeacherPairs

RANKS = (1, 5, 10)
_BLOCK = 2**23  # queries x candidates at a time
_TIE = 1e-12  # equal vectors have equal cosines, but for rounding


def evaluate_retrieval(encode: SentenceEncoder, cache: TeacherCache) -> dict[str, dict[str, float]]:
    """What [`retrieve`] says of each direction, over all captions of a cache and the pictures they belong to.

    `caption_to_image` and `image_to_caption` compare captions after the grounding head with the teacher's image
    features after their projection: the space of the image term. They are left out for models without these heads.
    `caption_to_caption` compares sentence embeddings; only captions whose picture has another one are queries, all
    are candidates, and it is left out where no picture has two. Captions and pictures that the teacher could not read
    take no part.

    Args:
        encode: the model and its tokenizer.
        cache: of held-out pictures; its image features must be of the teacher that the model was trained with.

    Raises:
        ValueError: image features of another width than the model's, no captions, vectors that are not finite, or
            of length 1 for a model whose grounding head was trained on them as they are.
    """
    pairs = TeacherPairs(cache)
    if not len(pairs):
        raise ValueError(f"{cache.folder} has no caption whose picture could be read: nothing can be retrieved.")
    groups = pairs.image_rows
    images = np.unique(groups)
    model = encode.model
    grounded = isinstance(model, KDMCSEModel) and model.image_projection is not None
    if grounded and encode.normalize:
        raise ValueError(
            "The encoder has `normalize=True`, but the grounding head was trained on vectors of their own length: use "
            "a SentenceEncoder without it. Retrieval compares by cosine anyway."
        )
    if grounded:  # first, for the wrong teacher shows here
        projected = _through(
            lambda features: model._project(model.image_projection, features, "image"),  # type: ignore[operator]
            cache.image_features.rows(images),
            model,
        )
    texts = cache.captions.select(pairs.caption_rows)["caption"][:]
    row = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    # Once each: equal captions have equal vectors, to the bit, and are ties.
    captions = encode(list(row))[[row[text] for text in texts]]
    result = {}
    if grounded:
        shared = _through(model.grounding_head, captions, model)
        result["caption_to_image"] = retrieve(shared, projected, groups, images)
        result["image_to_caption"] = retrieve(projected, shared, images, groups)
    _, number, counts = np.unique(groups, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(counts[number] > 1)
    if len(rows):
        result["caption_to_caption"] = retrieve(captions[rows], captions, groups[rows], groups, own=rows)
    return result


def retrieve(
    queries: NDArray[np.floating[Any]],
    candidates: NDArray[np.floating[Any]],
    query_groups: NDArray[np.int64],
    candidate_groups: NDArray[np.int64],
    *,
    own: NDArray[np.int64] | None = None,
) -> dict[str, float]:
    """How early candidates are found, by cosine, that are of the query's own group.

    Candidates whose cosines differ from the best right one's by rounding only are tied with it: recalls are the mean
    over all orders of the tied, and a query's rank is its mean over them. So a model that gives all candidates one
    vector scores as chance does.

    Args:
        queries, candidates: (Q, D) and (C, D), not necessarily normalised.
        query_groups, candidate_groups: (Q,) and (C,), such as the row of a caption's picture.
        own: (Q,) the candidate that is the query itself, where there is one: it is never found.

    Returns:
        `r@1`, `r@5`, `r@10`: share of queries x 100 with a right candidate among the first 1, 5, 10. `median_rank`: of
        the first right one, from 1. `queries`, `candidates`: how many there are.

    Raises:
        ValueError: vectors that are not finite, or a query without any right candidate.
    """
    left, right = _normalized(queries), _normalized(candidates)
    step = max(1, _BLOCK // max(1, len(candidates)))
    found = [
        _positions(
            left[start : start + step] @ right.T,
            query_groups[start : start + step, None] == candidate_groups,
            None if own is None else own[start : start + step],
        )
        for start in range(0, len(queries), step)
    ]
    before, tied_wrong, tied_right = np.concatenate(found, axis=1)
    recalls = {f"r@{rank}": 100 * float(_hits(before, tied_wrong, tied_right, rank).mean()) for rank in RANKS}
    median = float(np.median(1 + before + tied_wrong / (tied_right + 1)))
    return recalls | {"median_rank": median, "queries": len(queries), "candidates": len(candidates)}


def _positions(
    cosine: NDArray[np.float64], right: NDArray[np.bool_], own: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """(3, Q): candidates before the best right one, and the wrong and the right ones that are tied with it."""
    if own is not None:
        rows = np.arange(len(own))
        cosine[rows, own], right[rows, own] = -np.inf, False
    if not right.any(axis=1).all():
        raise ValueError("A query has no candidate of its own group: expected at least one for each.")
    best = np.where(right, cosine, -np.inf).max(axis=1, keepdims=True)
    before = cosine > best + _TIE
    tied = (cosine >= best - _TIE) & ~before
    return np.array([before.sum(axis=1), (tied & ~right).sum(axis=1), (tied & right).sum(axis=1)])


def _hits(
    before: NDArray[np.int64], wrong: NDArray[np.int64], right: NDArray[np.int64], rank: int
) -> NDArray[np.float64]:
    """(Q,) share of the orders of tied candidates that put a right one among the first `rank`."""
    places = np.clip(rank - before, 0, None)
    missed = np.ones(len(before))
    for number in range(int(right.max())):  # the right ones, one after the other, fall behind those places
        tied = wrong + right - number
        chance = np.clip(tied - places, 0, None) / np.maximum(tied, 1)
        missed *= np.where(number < right, chance, 1)
    return 1 - missed


def _normalized(vectors: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """In float64: vectors of an encoder that was never trained for it are almost parallel."""
    if not np.isfinite(vectors).all():
        raise ValueError(f"{(~np.isfinite(vectors)).any(axis=1).sum()} of {len(vectors)} vectors are not finite.")
    vectors = vectors.astype(np.float64)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12))


@torch.inference_mode()
def _through(head: Any, vectors: NDArray[Any], model: PreTrainedModel) -> NDArray[np.float32]:
    result: NDArray[np.float32] = head(torch.from_numpy(vectors).to(model.device, model.dtype)).float().cpu().numpy()
    return result
