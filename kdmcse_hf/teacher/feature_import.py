"""Feature files that somebody else extracted, made into a teacher cache."""

from pathlib import Path

import numpy as np

from kdmcse_hf.teacher.annotations import read_caption_table, read_split
from kdmcse_hf.teacher.cache import TeacherCache
from kdmcse_hf.teacher.cache_writer import fingerprint, write_cache
from kdmcse_hf.teacher.feature_file import HDF5_ENDINGS, FeatureFile
from kdmcse_hf.teacher.shard import CacheError
from kdmcse_hf.teacher.text import read_lines


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
        captions_file: in any layout that [`read_annotations`] reads; or, with `.hdf5` features, MCSE's `.txt`: one
            caption a line, each of its own image.
        image_features_file: `.safetensors` with a tensor `image_features`, `.hdf5` with a dataset `features` (MCSE), or
            `.npy`: (images, D).
        image_names_file: the name of each image row, one a line; by default the images in the order in which the
            captions file first names them.
        caption_features_file: `.safetensors` with a tensor `caption_features`, or `.npy`: one row a
            caption of the captions file, (captions, D). `None` for image-only teachers.
        teacher_name: what made the features, for the manifest.
        splits_file, split: a table with columns `image` and `split`, or a captions file with splits; keep only the
            images of that split, or of several (`"train+restval"`).

    Raises:
        CacheError, ValueError, FileNotFoundError: names the file, what was found and what was expected.
    """
    if Path(image_features_file).suffix in HDF5_ENDINGS and Path(captions_file).suffix == ".txt":
        captions = read_caption_lines(captions_file)
        image_of_caption = [f"{row:08d}" for row in range(len(captions))]
    else:
        image_of_caption, captions = read_caption_table(captions_file)
    if image_names_file is None:
        names = list(dict.fromkeys(image_of_caption))
    else:
        names = read_lines(image_names_file)
    row_of = {name: row for row, name in enumerate(names)}
    if len(row_of) != len(names):
        raise CacheError(f"{image_names_file} names an image twice: {len(names):,} names, {len(row_of):,} distinct.")
    unknown = [name for name in image_of_caption if name not in row_of]
    if unknown:
        raise CacheError(
            f"{captions_file} has captions of {len(set(unknown)):,} images without features, such as "
            f"{unknown[0]!r}: add their features, or remove their captions."
        )

    image_features = FeatureFile(image_features_file, "image_features", len(names))
    caption_features = None
    if caption_features_file is not None:
        caption_features = FeatureFile(caption_features_file, "caption_features", len(captions))
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


def read_caption_lines(path: str | Path) -> list[str]:
    """A text file with one caption a line, as MCSE has them.

    Raises:
        ValueError: an empty line, or not UTF-8.
    """
    lines = read_lines(path)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise ValueError(
                f"{path}, line {number}: the caption is empty. Fill it in: every line has its feature row."
            )
    return [line.strip() for line in lines]
