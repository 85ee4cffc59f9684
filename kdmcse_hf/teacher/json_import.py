"""The published features of KDMCSE, one JSON file of several GB, made into a teacher cache."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from kdmcse_hf.teacher.cache import TeacherCache
from kdmcse_hf.teacher.cache_writer import (
    ROWS_PER_SHARD,
    FeatureWriter,
    fingerprint,
    finish_cache,
    new_folder,
    teacher_digest,
)
from kdmcse_hf.teacher.shard import CacheError


def import_json(
    folder: str | Path,
    json_file: str | Path,
    *,
    teacher_name: str,
    rows_per_shard: int = ROWS_PER_SHARD,
    progress: bool = False,
) -> TeacherCache:
    """Writes a teacher cache from `{image: {"image_feat": [D], "captions": [n], "lang_feat": [n, D]}}`.

    The file is streamed: one image, and the features of one shard, are in memory. Features stay as they are, not
    normalised, in float16, the precision that they were published in.

    Args:
        folder: the new cache.
        json_file: the published file.
        teacher_name: what made the features, for the manifest.
        rows_per_shard: rows of one feature file.
        progress: show a bar, in bytes, on a terminal.

    Raises:
        FileNotFoundError, CacheError: names the file and the image, what was found and what was expected.
    """
    if not Path(json_file).is_file():
        raise FileNotFoundError(f"{json_file} does not exist: expected the published features (.json).")
    teacher = {"name": teacher_name, "imported": True}
    path = new_folder(folder)
    writers = {
        kind: FeatureWriter(path, kind, teacher_digest(teacher), rows_per_shard) for kind in ("image", "caption")
    }
    images: dict[str, None] = {}
    captions: list[str] = []
    image_rows: list[int] = []
    width: int | None = None
    for image, record in _records(Path(json_file), progress):
        place = f"{json_file}, image {image!r}"
        if image in images:
            raise CacheError(f"{place}: it comes twice. Merge its captions into one entry.")
        features, texts, text_features = _parts(place, record, width)
        width = len(features)
        writers["image"].add(features[None])
        writers["caption"].add(text_features)
        image_rows += [len(images)] * len(texts)
        captions += texts
        images[image] = None
    if not images:
        raise CacheError(f"{json_file} holds no images: expected {{image: {{image_feat, captions, lang_feat}}}}.")
    for writer in writers.values():
        writer.close()
    return finish_cache(
        path,
        images=list(images),
        captions=captions,
        image_rows=image_rows,
        shards={kind: writer.paths for kind, writer in writers.items()},
        teacher=teacher,
        source={"features": fingerprint(json_file)},
    )


def _records(path: Path, progress: bool) -> Iterator[tuple[str, Any]]:
    try:
        import ijson
    except ImportError as error:
        raise CacheError(f"{path} needs the package ijson: pip install 'kdmcse_hf[import]'.") from error
    with open(path, "rb") as file:
        bar = tqdm(
            total=path.stat().st_size, unit="B", unit_scale=True, desc=path.name, disable=None if progress else True
        )
        try:
            with bar:
                yield from ijson.kvitems(_Watched(file, bar), "", use_float=True)
        except ijson.JSONError as error:
            raise CacheError(f"{path} is not valid JSON, or was cut short ({error}). Download it again.") from error


class _Watched:
    """A file that tells a progress bar how far it was read."""

    def __init__(self, file: IO[bytes], bar: "tqdm[Any]") -> None:
        self._file, self._bar = file, bar

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(size)
        self._bar.update(len(block))
        return block


def _parts(place: str, record: Any, width: int | None) -> tuple[NDArray[np.float16], list[str], NDArray[np.float16]]:
    """Image features (D,), captions and their features (n, D) of one image."""
    wanted = ("image_feat", "captions", "lang_feat")
    if not isinstance(record, dict) or not all(name in record for name in wanted):
        found = ", ".join(map(repr, record)) if isinstance(record, dict) else type(record).__name__
        raise CacheError(f"{place}: found {found}, expected {', '.join(wanted)}.")
    captions = record["captions"]
    if not isinstance(captions, list) or not all(isinstance(text, str) and text.strip() for text in captions):
        raise CacheError(f"{place}: a caption is empty or not text ({captions!r:.200}). Remove it and its features.")
    try:
        image = np.array(record["image_feat"], dtype=np.float32).reshape(-1)
        width = len(image) if width is None else width
        texts = np.array(record["lang_feat"], dtype=np.float32).reshape(len(captions), width)
        image = image.reshape(width)
    except (ValueError, TypeError) as error:
        raise CacheError(
            f"{place}: its features are not one row of {width} numbers for the image and {len(captions)} for its "
            f"captions ({error})."
        ) from error
    with np.errstate(over="ignore"):
        return image.astype(np.float16), captions, texts.astype(np.float16)
