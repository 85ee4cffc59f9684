"""Feature files that somebody else extracted, made into a teacher cache."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from kdmcse_hf.cache_writer import fingerprint, write_cache
from kdmcse_hf.caption_table import read_caption_table, read_split
from kdmcse_hf.feature_shard import CacheError
from kdmcse_hf.teacher_cache import TeacherCache

_CHUNK = 16384


def import_features(
    folder: str | Path,
    *,
    captions_file: str | Path,
    image_features_file: str | Path,
    image_names_file: str | Path | None = None,
    caption_features_file: str | Path | None = None,
    teacher_name: str,
    splits_file: str | Path | None = None,
    split: str | None = None,
) -> TeacherCache:
    """Writes a teacher cache from arrays on disk and opens it.

    Args:
        folder: the new cache.
        captions_file: table with columns `image` and `caption`.
        image_features_file: `.safetensors` with a tensor `image_features`, or `.npy`: (images, D).
        image_names_file: the name of each image row, one a line; by default the images in the order in which the
            caption table first names them.
        caption_features_file: `.safetensors` with a tensor `caption_features`, or `.npy`: one row a row of the
            caption table, (captions, D). `None` for image-only teachers.
        teacher_name: what made the features, for the manifest.
        splits_file, split: a table with columns `image` and `split`; keep only that split's images.

    Raises:
        CacheError, ValueError, FileNotFoundError: names the file, what was found and what was expected.
    """
    image_of_caption, captions = read_caption_table(captions_file)
    if image_names_file is None:
        names = list(dict.fromkeys(image_of_caption))
    else:
        names = Path(image_names_file).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    row_of = {name: row for row, name in enumerate(names)}
    if len(row_of) != len(names):
        raise CacheError(f"{image_names_file} names an image twice: {len(names):,} names, {len(row_of):,} distinct.")
    unknown = [name for name in image_of_caption if name not in row_of]
    if unknown:
        raise CacheError(
            f"{captions_file} has captions of {len(set(unknown)):,} images without features, such as "
            f"{unknown[0]!r}: add their features, or remove their captions."
        )

    image_features = _FeatureFile(image_features_file, "image_features", len(names))
    caption_features = None
    if caption_features_file is not None:
        caption_features = _FeatureFile(caption_features_file, "caption_features", len(captions))
    kept_names = set(names)
    if splits_file is not None and split is not None:
        kept_names &= read_split(splits_file, split)
    image_rows = np.array([row for row, name in enumerate(names) if name in kept_names], dtype=np.int64)
    caption_rows = np.array([row for row, name in enumerate(image_of_caption) if name in kept_names], dtype=np.int64)
    if not len(caption_rows):
        raise CacheError(f"No caption of {captions_file} belongs to an image of split {split!r} in {splits_file}.")
    new_row = {names[row]: new for new, row in enumerate(image_rows)}
    return write_cache(
        folder,
        images=[names[row] for row in image_rows],
        captions=[captions[row] for row in caption_rows],
        image_rows=[new_row[image_of_caption[row]] for row in caption_rows],
        image_features=image_features.chunks(image_rows),
        caption_features=None if caption_features is None else caption_features.chunks(caption_rows),
        teacher={"name": teacher_name, "imported": True},
        source={
            "captions": fingerprint(captions_file),
            "image_features": fingerprint(image_features_file),
            "caption_features": fingerprint(caption_features_file) if caption_features_file else None,
            "split": split,
        },
    )


class _FeatureFile:
    def __init__(self, path: str | Path, tensor: str, expected_rows: int) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} does not exist: expected a feature file (.safetensors or .npy).")
        try:
            self.array = self._open(tensor)
        except (SafetensorError, TypeError, ValueError) as error:
            raise CacheError(f"{self.path} cannot be read as features: {error}") from error
        if self.array.ndim != 2 or len(self.array) != expected_rows:
            raise CacheError(
                f"{self.path} holds features of shape {self.array.shape}: expected {expected_rows:,} rows of one width."
            )

    def _open(self, tensor: str) -> NDArray[Any]:
        if self.path.suffix == ".npy":
            array: NDArray[Any] = np.load(self.path, mmap_mode="r", allow_pickle=False)
            return array
        with safe_open(self.path, "np") as file:
            if tensor not in file.keys():
                raise ValueError(f"it has no tensor {tensor!r}, only {', '.join(map(repr, file.keys()))}")
            loaded: NDArray[Any] = file.get_tensor(tensor)
            return loaded

    def chunks(self, rows: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
        for start in range(0, len(rows), _CHUNK):
            yield np.asarray(self.array[rows[start : start + _CHUNK]])
