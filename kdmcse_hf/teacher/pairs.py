"""Which captions of a teacher cache are training pairs, and what the teacher said of them."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from kdmcse_hf.objective import PairEmbeddings
from kdmcse_hf.teacher.cache import TeacherCache

ImageAssignment = Literal["paired", "shuffled", "random"]


class TeacherPairs:
    """The captions of a teacher cache that are training pairs, each with an image row.

    Captions and images that the teacher could not read are never among them.

    Args:
        cache: an open teacher cache.
        captions_per_image: `"all"` captions, or `"one"` drawn at random (MCSE).
        max_pairs: keep that many pairs, drawn at random.
        image_assignment: `"paired"` as the cache has it; as controls, `"shuffled"` (the images change places, so the
            captions of one image still share one) or `"random"` (every caption draws its own image).
        seed: of every draw.
        images: keep only the captions of these image rows.

    Raises:
        ValueError: an unknown choice, or more pairs asked for than there are.
    """

    def __init__(
        self,
        cache: TeacherCache,
        *,
        captions_per_image: Literal["one", "all"] = "all",
        max_pairs: int | None = None,
        image_assignment: ImageAssignment = "paired",
        seed: int = 0,
        images: NDArray[np.int64] | None = None,
    ) -> None:
        for name, value, choices in (
            ("captions_per_image", captions_per_image, ("one", "all")),
            ("image_assignment", image_assignment, get_args(ImageAssignment)),
        ):
            if value not in choices:
                raise ValueError(f"`{name}` is {value!r}: expected one of {', '.join(choices)}.")
        self.cache = cache
        self.captions_per_image = captions_per_image
        self.image_assignment = image_assignment
        rng = np.random.default_rng((seed, 3))
        image_rows = cache.captions.with_format("numpy")["image_row"][:].astype(np.int64)
        unread = np.isin(image_rows, cache.skipped_images)
        unread[cache.skipped_captions] = True
        if images is not None:
            unread |= ~np.isin(image_rows, images)
        rows = np.flatnonzero(~unread)
        if captions_per_image == "one":
            shuffled = rng.permutation(rows)
            _, first = np.unique(image_rows[shuffled], return_index=True)
            rows = np.sort(shuffled[first])
        if max_pairs is not None:
            if not 1 <= max_pairs <= len(rows):
                raise ValueError(f"`max_pairs` is {max_pairs:,}: expected 1 to {len(rows):,}, the number of pairs.")
            rows = np.sort(rng.choice(rows, size=max_pairs, replace=False))
        readable = np.setdiff1d(np.arange(len(cache.images)), cache.skipped_images)
        if image_assignment == "shuffled":
            image_rows = rng.permutation(readable)[np.searchsorted(readable, image_rows[rows])]
        elif image_assignment == "random":
            image_rows = rng.choice(readable, size=len(rows))
        else:
            image_rows = image_rows[rows]
        self.caption_rows: NDArray[np.int64] = rows
        self.image_rows: NDArray[np.int64] = image_rows

    def __len__(self) -> int:
        return len(self.caption_rows)

    def features(self, pairs: Sequence[int] | NDArray[np.int64], needs: frozenset[str]) -> dict[str, NDArray[Any]]:
        """The teacher's features of the given pairs, (len(pairs), D) each, and their image ids.

        Args:
            needs: `"image"` and `"text"`, as [`Objective.needs`].
        """
        batch: dict[str, NDArray[Any]] = {"image_ids": self.image_rows[pairs]}
        if "image" in needs:
            batch["teacher_image_embeds"] = self.cache.image_features.rows(batch["image_ids"])
        if "text" in needs:
            if self.cache.caption_features is None:
                raise ValueError(
                    f"{self.cache.folder} has image features only, but the objective also needs the teacher's caption "
                    "features. Use a dual encoder's cache, or the preset `mcse`, which needs images alone."
                )
            batch["teacher_text_embeds"] = self.cache.caption_features.rows(self.caption_rows[pairs])
        return batch

    def embeddings(self, pairs: Sequence[int] | NDArray[np.int64], needs: frozenset[str]) -> PairEmbeddings:
        """The teacher's side of the given pairs, as the objective sees them."""
        batch = {name: torch.from_numpy(array) for name, array in self.features(pairs, needs).items()}
        return PairEmbeddings(
            text=torch.empty(len(pairs), 0),
            teacher_image=batch.get("teacher_image_embeds"),
            teacher_text=batch.get("teacher_text_embeds"),
            image_ids=batch["image_ids"],
        )

    def sample(self, size: int, needs: frozenset[str], seed: int = 0) -> PairEmbeddings:
        """The teacher's side of `size` random pairs (of all, if fewer), to calibrate thresholds on."""
        return self.embeddings(np.random.default_rng((seed, 4)).permutation(len(self))[:size], needs)
