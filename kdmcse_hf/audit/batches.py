"""The pairs that an audit looks at: batches as training draws them, with every similarity the teacher can give."""

from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdmcse_hf.losses import noisy_negatives, positive_mask
from kdmcse_hf.objective import SimilarityMap, teacher_similarity
from kdmcse_hf.schedule import Schedule
from kdmcse_hf.teacher.cache import TeacherCache
from kdmcse_hf.teacher.pairs import TeacherPairs
from kdmcse_hf.threshold import Threshold

MAPS = ("text_image", "text_text", "image_image")
MAX_CELLS = 2**25
"""Pairs of an anchor and a candidate that are held in memory at once, 4 bytes a map."""

Truth = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]
"""(A,) caption rows and (B,) image rows to (A, B): whether caption a is true of image b."""


def why_missing(cache: TeacherCache, source: str) -> str | None:
    """Why the cache cannot give a similarity map, in words; `None` where it can.

    Raises:
        ValueError: there is no such map.
    """
    if source not in get_args(SimilarityMap):
        raise ValueError(f"Unknown similarity map {source!r}: expected one of {', '.join(get_args(SimilarityMap))}.")
    if source == "image_image":
        return None
    if cache.caption_features is None:
        return "the cache has no caption features"
    if source != "text_text" and cache.caption_features.width != cache.image_features.width:
        return (
            f"caption features of width {cache.caption_features.width} and image features of width "
            f"{cache.image_features.width} are not in one space"
        )
    return None


class AuditBatches:
    """N batches of B pairs. Anchors are rows, candidates columns; an anchor's own candidate is on the diagonal.

    Args:
        pairs: the training pairs.
        maps: the similarity maps to compute.
        batch_size, num_batches, seed: the first paired batches of a training run with this seed.
        mask_same_image: other captions of the anchor's image are no negatives.
        truth: if it is known.

    Attributes:
        cache: of the pairs.
        pairs: (N, B) pair numbers.
        caption_rows, image_rows: (N, B) rows of the cache.
        similarity: the teacher's cosines of each map, (N, B, B).
        same_image: (N, B, B) bool, two captions of one image; never the diagonal.
        negatives: (N, B, B) bool.

    Raises:
        ValueError: sizes out of range, or features that are not finite.
    """

    def __init__(
        self,
        pairs: TeacherPairs,
        maps: Sequence[str],
        *,
        batch_size: int,
        num_batches: int,
        seed: int,
        mask_same_image: bool,
        truth: Truth | None = None,
    ) -> None:
        if not 2 <= batch_size <= len(pairs):
            raise ValueError(f"`batch_size` is {batch_size}: expected 2 to {len(pairs):,}, the number of pairs.")
        most = MAX_CELLS // batch_size**2
        if not 1 <= num_batches <= most:
            raise ValueError(
                f"`num_batches` is {num_batches}: expected 1 to {most:,}, so that batches of {batch_size} fit into "
                "memory. Use fewer or smaller batches."
            )
        self.cache = pairs.cache
        schedule = Schedule(num_text=0, num_pairs=len(pairs), batch_size=batch_size, pair_every_n_steps=None, seed=seed)
        self.pairs: NDArray[np.int64] = np.stack([schedule.rows(step)[1] for step in range(num_batches)])
        self.caption_rows, self.image_rows = pairs.caption_rows[self.pairs], pairs.image_rows[self.pairs]
        needs = frozenset(side for source in maps for side in source.split("_"))
        self.similarity = {source: torch.empty(num_batches, batch_size, batch_size) for source in maps}
        for number, rows in enumerate(self.pairs):
            batch = pairs.embeddings(rows, needs)
            for source, similarity in self.similarity.items():
                similarity[number] = teacher_similarity(source, batch, batch)
        for source, similarity in self.similarity.items():
            if not similarity.isfinite().all():
                raise ValueError(
                    f"{pairs.cache.folder} has {source} cosines that are NaN or infinite: its features were changed. "
                    "`TeacherCache(folder).verify()` names the file; extract them again."
                )
        images = torch.from_numpy(self.image_rows)
        self._positives = torch.arange(batch_size)
        own = positive_mask(self._positives, batch_size)
        self.same_image = (images.unsqueeze(2) == images.unsqueeze(1)) & ~own
        self.negatives = ~(self.same_image | own) if mask_same_image else (~own).expand_as(self.same_image)
        if not self.negatives.any():
            raise ValueError("There are no negatives: all captions of these batches belong to one image.")
        self._caption_true: Tensor | None = None
        if truth is not None:
            batches = zip(self.caption_rows, self.image_rows, strict=True)
            self._caption_true = torch.from_numpy(np.stack([truth(captions, images) for captions, images in batches]))

    def positives(self, source: str) -> Tensor:
        """(N, B): each anchor's cosine with its own candidate."""
        return self.similarity[source].diagonal(dim1=1, dim2=2)

    def limits(self, source: str, threshold: Threshold) -> Tensor:
        """(N, B, 1): the cosine above which an anchor's negatives are noisy."""
        limits = [threshold.cosine(similarity, self._positives) for similarity in self.similarity[source]]
        return torch.stack([torch.as_tensor(limit).expand(len(self._positives), 1) for limit in limits])

    def above(self, source: str, threshold: Threshold) -> Tensor:
        """(N, B, B) bool: what the filter masks in training, captions of the same image included."""
        limits = self.limits(source, threshold)
        noisy: Any = map(noisy_negatives, self.similarity[source], limits, [self._positives] * len(limits))
        return torch.stack(list(noisy))

    def truly_noisy(self, source: str) -> Tensor | None:
        """(N, B, B) bool: pairs that are no negatives by the truth, if it is known.

        Caption and picture: the caption is true of the picture. Two captions, two pictures: either caption is true of
        the other's picture.
        """
        if self._caption_true is None or source == "text_image":
            return self._caption_true
        swapped = self._caption_true.transpose(1, 2)
        return swapped if source == "image_text" else self._caption_true | swapped
