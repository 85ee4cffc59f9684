"""Writing a teacher cache: features shard by shard, then the tables of names and captions, then the manifest."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import safetensors
import torch
import transformers
from numpy.typing import NDArray

from kdmcse_hf import __version__
from kdmcse_hf.teacher.cache import FORMAT, FORMAT_VERSION, KINDS, MANIFEST, TeacherCache, manifest_checksum
from kdmcse_hf.teacher.shard import CacheError, ShardHeader, publishing, read_shard_header, sha256, write_shard

ROWS_PER_SHARD = 4096


class FeatureWriter:
    """Takes the features of one kind in portions of any size and writes them as shards.

    Args:
        folder: the new cache.
        kind: `"image"` or `"caption"`.
        teacher: its [`teacher_digest`].
        rows_per_shard: rows of every shard but the last.
    """

    def __init__(self, folder: Path, kind: str, teacher: str, rows_per_shard: int = ROWS_PER_SHARD) -> None:
        self.paths: list[Path] = []
        self._folder, self._kind, self._teacher, self._rows_per_shard = folder, kind, teacher, rows_per_shard
        self._pending: list[NDArray[Any]] = []
        self._count = 0

    def add(self, features: NDArray[Any]) -> None:
        """Appends rows (n, D).

        Raises:
            CacheError: as [`write_shard`].
        """
        while self._count + len(features) >= self._rows_per_shard:
            cut = self._rows_per_shard - self._count
            self._write([*self._pending, features[:cut]])
            self._pending, self._count, features = [], 0, features[cut:]
        self._pending.append(features)
        self._count += len(features)

    def close(self) -> None:
        """Writes what is left."""
        if self._count:
            self._write(self._pending)
        self._pending, self._count = [], 0

    def _write(self, parts: list[NDArray[Any]]) -> None:
        path = shard_path(self._folder, self._kind, len(self.paths))
        first_row = len(self.paths) * self._rows_per_shard
        write_shard(path, np.concatenate(parts), kind=self._kind, first_row=first_row, teacher=self._teacher)
        self.paths.append(path)


def write_cache(
    folder: str | os.PathLike[str],
    *,
    images: Sequence[str],
    captions: Sequence[str],
    image_rows: Sequence[int],
    image_features: Iterable[NDArray[Any]],
    caption_features: Iterable[NDArray[Any]] | None,
    teacher: dict[str, Any],
    source: dict[str, Any],
    rows_per_shard: int = ROWS_PER_SHARD,
) -> TeacherCache:
    """Writes a new cache of features that are at hand, and opens it.

    Args:
        folder: made if missing; must not hold a cache.
        images: names, one an image row.
        captions: texts, one a caption row, none empty.
        image_rows: the image row of each caption.
        image_features: arrays (n, D) of float16 or float32, together one row an image.
        caption_features: the same, one row a caption, or `None`.
        teacher: what made the features, for the manifest: `name`, and as far as known `revision` and `processor`.
        source: the files that the cache was made from, for the manifest: a [`fingerprint`] each.
        rows_per_shard: rows of one feature file.

    Raises:
        CacheError: an empty caption, a row that is NaN or infinite, numbers of rows that do not fit, or a folder that
            already holds a cache.
    """
    folder = new_folder(folder)
    for row, caption in enumerate(captions):
        if not caption.strip():
            raise CacheError(
                f"Caption {row} (image {images[image_rows[row]]!r}) is empty: remove it or give it a text."
            )
    writers = {}
    for kind, arrays in (("image", image_features), ("caption", caption_features)):
        if arrays is not None:
            writers[kind] = FeatureWriter(folder, kind, teacher_digest(teacher), rows_per_shard)
            for array in arrays:
                writers[kind].add(array)
            writers[kind].close()
    return finish_cache(
        folder,
        images=images,
        captions=captions,
        image_rows=image_rows,
        shards={kind: writer.paths for kind, writer in writers.items()},
        teacher=teacher,
        source=source,
    )


def new_folder(folder: str | os.PathLike[str]) -> Path:
    """Makes a folder for a new cache.

    Raises:
        CacheError: it holds one already.
    """
    folder = Path(folder)
    if (folder / MANIFEST).exists():
        raise CacheError(f"{folder} already holds a teacher cache: choose another folder, or remove it first.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def finish_cache(
    folder: Path,
    *,
    images: Sequence[str],
    captions: Sequence[str],
    image_rows: Sequence[int],
    shards: dict[str, list[Path]],
    teacher: dict[str, Any],
    source: dict[str, Any],
    stamps: Sequence[str | None] | None = None,
    extraction: dict[str, Any] | None = None,
    previous: dict[str, Any] | None = None,
) -> TeacherCache:
    """Makes a cache of finished shards: writes the tables, then the manifest, and opens it.

    Args:
        folder: holds the shards.
        images, captions, image_rows, teacher, source: as in [`write_cache`].
        shards: the files of each kind, in order.
        stamps: of each image, what changes when its file does.
        extraction: how the features were extracted here.
        previous: the manifest of the cache that this one adds to.

    Raises:
        CacheError: the shards, names and captions do not fit together.
    """
    if len(image_rows) != len(captions) or not all(0 <= row < len(images) for row in image_rows):
        raise CacheError(
            f"There are {len(image_rows):,} image rows for {len(captions):,} captions, from "
            f"{min(image_rows, default=None)} to {max(image_rows, default=None)}: expected one a caption, each from 0 "
            f"to {len(images) - 1}."
        )
    digest = teacher_digest(teacher)
    known = {
        shard["file"]: shard
        for kind in KINDS
        for shard in ((previous or {}).get(f"{kind}_features") or {"shards": []})["shards"]
    }
    headers = {kind: [read_shard_header(path) for path in paths] for kind, paths in shards.items()}
    stores = {
        kind: _describe_shards(kind, shards[kind], headers[kind], rows, digest, known)
        for kind, rows in (("image", len(images)), ("caption", len(captions)))
        if kind in shards
    }
    made: dict[str, Any] = {"source": source, "extraction": extraction, "versions": versions()}
    added = [*previous["added"], made] if previous else []
    first = {name: previous[name] for name in made} if previous else made
    suffix = f"-{len(added):05d}" if added else ""
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "teacher": {"name": None, "revision": None, "processor": None, **teacher, "digest": digest},
        **first,
        "added": added,
        "images": _write_table(
            folder / f"images{suffix}.arrow",
            {
                "image": pa.array(images, pa.string()),
                "stamp": pa.array(stamps or [None] * len(images), pa.string()),
            },
        ),
        "captions": _write_table(
            folder / f"captions{suffix}.arrow",
            {"caption": pa.array(captions, pa.string()), "image_row": pa.array(image_rows, pa.int32())},
        ),
        "image_features": stores["image"],
        "caption_features": stores.get("caption"),
        "skipped": {
            kind: {str(row): reason for header in headers.get(kind, []) for row, reason in header.skipped.items()}
            for kind in KINDS
        },
        "cut_captions": [row for header in headers.get("caption", []) for row in header.cut],
    }
    manifest["checksum"] = manifest_checksum(manifest)
    with publishing(folder / MANIFEST) as file:
        file.write((json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())
    remove_leftovers(folder, manifest)
    return TeacherCache(folder)


def remove_leftovers(folder: Path, manifest: dict[str, Any]) -> None:
    """Removes what killed runs left beside a finished cache: half-written files, and tables of an earlier manifest."""
    named = {manifest["images"]["file"], manifest["captions"]["file"]}
    for pattern in ("*.tmp", "images*.arrow", "captions*.arrow"):
        for path in folder.glob(pattern):
            if path.name not in named:
                path.unlink(missing_ok=True)


def _describe_shards(
    kind: str,
    paths: list[Path],
    headers: list[ShardHeader],
    expected_rows: int,
    teacher: str,
    known: dict[str, Any],
) -> dict[str, Any]:
    """The manifest's entry of one kind. `known`: entries of shards that were there before, by file name."""
    rows = sum(header.shape[0] for header in headers)
    if rows != expected_rows or not headers:
        raise CacheError(f"There are {rows:,} rows of {kind} features for {expected_rows:,} {kind}s: expected as many.")
    first = headers[0]
    for path, header in zip(paths, headers, strict=True):
        if (header.shape[1], header.dtype, header.teacher) != (first.shape[1], first.dtype, teacher):
            raise CacheError(
                f"{path} has width {header.shape[1]}, {header.dtype}, from teacher {header.teacher}; expected width "
                f"{first.shape[1]}, {first.dtype}, from teacher {teacher}. Remove it and extract it again."
            )
    return {
        "width": first.shape[1],
        "dtype": first.dtype,
        "normalized": all(header.normalized for header in headers),
        "shards": [
            known.get(path.name) or {**_describe(path), "rows": header.shape[0]}
            for path, header in zip(paths, headers, strict=True)
        ],
    }


def shard_path(folder: Path, kind: str, number: int) -> Path:
    """Where the shard of that number stands."""
    return folder / f"{kind}_features-{number:05d}.safetensors"


def teacher_digest(teacher: dict[str, Any]) -> str:
    """16 hexadecimal digits that stand for all that a teacher's features hang on.

    That is not its name, where its weights are known: the same teacher may lie in another folder.
    """
    ignored = {"digest"} | ({"name", "revision"} if teacher.get("weights") else set())
    known = {name: value for name, value in teacher.items() if name not in ignored and value is not None}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def fingerprint(path: str | os.PathLike[str]) -> dict[str, str]:
    """Name and SHA-256 of a file that a cache was made from, for its manifest."""
    return {"file": Path(path).name, "sha256": sha256(Path(path))}


def versions() -> dict[str, str]:
    """Versions of what makes a cache, for its manifest."""
    modules = (datasets, safetensors, torch, transformers)
    return {"kdmcse_hf": __version__, **{module.__name__: module.__version__ for module in modules}}


def _write_table(path: Path, columns: dict[str, pa.Array]) -> dict[str, Any]:
    table = pa.table(columns)
    with publishing(path) as file, pa.ipc.new_stream(file, table.schema) as writer:
        # Every chunk has a header, which opening the table reads.
        writer.write_table(table, max_chunksize=1_000_000)
    return {**_describe(path), "rows": table.num_rows}


def _describe(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
