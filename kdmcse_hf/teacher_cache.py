"""What the frozen teacher said, stored once: features of images and captions in a folder that opens in O(1) memory.

    manifest.json                  written last: a folder without it is not a cache
    images.arrow                   image: name of each image row
    captions.arrow                 caption, image_row: text of each caption row and the image it belongs to
    image_features-00000.safetensors, ...     tensor "features", (rows, width), float16 or float32
    caption_features-00000.safetensors, ...   the same for captions; absent for image-only teachers

Every file is written under a temporary name and renamed; the manifest holds its size and SHA-256.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import save_file

from kdmcse_hf import __version__

FORMAT = "kdmcse_hf teacher cache"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
ROWS_PER_SHARD = 65536
KINDS = ("image", "caption")
_DTYPES = {"F16": "float16", "F32": "float32"}


class CacheError(ValueError):
    """A teacher cache that is missing, damaged, or not what its manifest says."""


class FeatureStore:
    """(N, D) features in memory-mapped shards, none of which stays in memory."""

    def __init__(self, folder: Path, entry: dict[str, Any]) -> None:
        self.width: int = entry["width"]
        self.dtype = np.dtype(entry["dtype"])
        self.normalized: bool = entry["normalized"]
        self._starts = np.cumsum([0] + [shard["rows"] for shard in entry["shards"]])
        self._shards = [self._map(folder / shard["file"], shard["rows"]) for shard in entry["shards"]]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def rows(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[Any]:
        """(len(indices), D), a copy in the stored dtype."""
        wanted = np.asarray(indices, dtype=np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"Feature rows {wanted.min()} to {wanted.max()} asked for: expected 0 to {len(self) - 1}.")
        result = np.empty((len(wanted), self.width), dtype=self.dtype)
        shard_of = np.searchsorted(self._starts, wanted, side="right") - 1
        for shard in np.unique(shard_of):
            here = shard_of == shard
            mapping, features = self._shards[shard]
            result[here] = features[wanted[here] - self._starts[shard]]
            if hasattr(mapping, "madvise"):
                # The kernel maps 16 pages around each one that is read; unmapped here, they cost no resident memory.
                mapping.madvise(mmap.MADV_DONTNEED)
        return result

    def _map(self, path: Path, rows: int) -> tuple[mmap.mmap, NDArray[Any]]:
        offset, shape, dtype = _safetensors_layout(path)
        if shape != (rows, self.width) or dtype != self.dtype:
            raise CacheError(
                f"{path} holds features of shape {shape} in {dtype}, but the manifest says {(rows, self.width)} in "
                f"{self.dtype}: the file is not the one that the manifest describes. Extract the cache again."
            )
        with open(path, "rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        features = np.frombuffer(mapping, dtype, count=rows * self.width, offset=offset)
        return mapping, features.reshape(shape)


class TeacherCache:
    """An open teacher cache.

    Attributes:
        manifest: the content of `manifest.json`.
        images: dataset with column `image`, the names of the image rows.
        captions: dataset with columns `caption` and `image_row`.
        image_features, caption_features: a [`FeatureStore`] each; `caption_features` is `None` for image-only teachers.

    Raises:
        CacheError: no cache in the folder, an unknown format, or a file that is not as the manifest says.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.manifest = self._read_manifest()
        for file in self._files():
            path = self.folder / file["file"]
            size = path.stat().st_size if path.is_file() else None
            if size != file["bytes"]:
                found = "missing" if size is None else f"{size:,} bytes long"
                raise CacheError(
                    f"{path} is {found}, but the manifest says {file['bytes']:,} bytes: the cache is incomplete or "
                    "damaged. Copy it again or extract it again."
                )
        self.images = datasets.Dataset.from_file(str(self.folder / self.manifest["images"]["file"]))
        self.captions = datasets.Dataset.from_file(str(self.folder / self.manifest["captions"]["file"]))
        stores = {kind: self.manifest[f"{kind}_features"] for kind in KINDS}
        self.image_features = FeatureStore(self.folder, stores["image"])
        self.caption_features = FeatureStore(self.folder, stores["caption"]) if stores["caption"] else None

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process opens the folder itself: mappings cannot be sent, and copies must not be.
        return TeacherCache, (self.folder,)

    def verify(self) -> None:
        """Reads every file and compares its SHA-256 with the manifest.

        Raises:
            CacheError: the first file that differs.
        """
        for file in self._files():
            path = self.folder / file["file"]
            found = _sha256(path)
            if found != file["sha256"]:
                raise CacheError(f"{path} has SHA-256 {found}, but the manifest says {file['sha256']}: it was changed.")

    def _files(self) -> Iterator[dict[str, Any]]:
        yield self.manifest["images"]
        yield self.manifest["captions"]
        for kind in KINDS:
            yield from (self.manifest[f"{kind}_features"] or {"shards": []})["shards"]

    def _read_manifest(self) -> dict[str, Any]:
        path = self.folder / MANIFEST
        if not path.is_file():
            raise CacheError(
                f"{self.folder} is not a teacher cache: it has no {MANIFEST}. Make one with `kdmcse import-features`."
            )
        try:
            manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise CacheError(f"{path} is not valid JSON ({error}).") from error
        if (manifest.get("format"), manifest.get("format_version")) != (FORMAT, FORMAT_VERSION):
            raise CacheError(
                f"{path} describes {manifest.get('format')!r} version {manifest.get('format_version')!r}: expected "
                f"{FORMAT!r} version {FORMAT_VERSION}."
            )
        return manifest


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
    """Writes a new cache and opens it.

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
    folder = Path(folder)
    if (folder / MANIFEST).exists():
        raise CacheError(f"{folder} already holds a teacher cache: choose another folder, or remove it first.")
    if len(image_rows) != len(captions) or not all(0 <= row < len(images) for row in image_rows):
        raise CacheError(
            f"There are {len(image_rows):,} image rows for {len(captions):,} captions, from "
            f"{min(image_rows, default=None)} to {max(image_rows, default=None)}: expected one a caption, each from 0 "
            f"to {len(images) - 1}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for row, caption in enumerate(captions):
        if not caption.strip():
            raise CacheError(
                f"Caption {row} (image {images[image_rows[row]]!r}) is empty: remove it or give it a text."
            )
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "teacher": {"name": None, "revision": None, "processor": None, **teacher},
        "source": source,
        "versions": {"kdmcse_hf": __version__},
        "images": _write_table(folder / "images.arrow", {"image": pa.array(images, pa.string())}),
        "captions": _write_table(
            folder / "captions.arrow",
            {"caption": pa.array(captions, pa.string()), "image_row": pa.array(image_rows, pa.int32())},
        ),
        "image_features": _write_features(folder, "image", image_features, len(images), rows_per_shard),
        "caption_features": None,
    }
    if caption_features is not None:
        manifest["caption_features"] = _write_features(
            folder, "caption", caption_features, len(captions), rows_per_shard
        )
    temporary = folder / f"{MANIFEST}.tmp"
    temporary.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, folder / MANIFEST)
    return TeacherCache(folder)


def _write_features(
    folder: Path, kind: str, arrays: Iterable[NDArray[Any]], expected_rows: int, rows_per_shard: int
) -> dict[str, Any]:
    shards: list[dict[str, Any]] = []
    done, normalized = 0, True
    for shard in _rechunk(arrays, rows_per_shard):
        if shard.dtype not in (np.float16, np.float32):
            raise CacheError(f"The {kind} features are {shard.dtype}: expected float16 or float32.")
        bad = np.flatnonzero(~np.isfinite(shard).all(axis=1))
        if len(bad):
            raise CacheError(
                f"Row {done + bad[0]} of the {kind} features is NaN or infinite ({len(bad)} such rows in this shard): "
                "every feature must be finite. Extract that row again, or remove it."
            )
        norms = np.linalg.norm(shard.astype(np.float32), axis=1)
        normalized = normalized and bool(np.abs(norms - 1).max(initial=0) < 5e-3)
        path = folder / f"{kind}_features-{len(shards):05d}.safetensors"
        temporary = path.with_suffix(".tmp")
        save_file({"features": shard}, temporary)
        shards.append({**_publish(temporary, path), "rows": len(shard)})
        done += len(shard)
        dtype, width = shard.dtype.name, shard.shape[1]
    if done != expected_rows or not shards:
        raise CacheError(f"There are {done:,} rows of {kind} features for {expected_rows:,} {kind}s: expected as many.")
    return {"width": width, "dtype": dtype, "normalized": normalized, "shards": shards}


def _rechunk(arrays: Iterable[NDArray[Any]], rows: int) -> Iterator[NDArray[Any]]:
    """The same rows in arrays of `rows` rows, the last one shorter."""
    pending: list[NDArray[Any]] = []
    count = 0
    for array in arrays:
        while count + len(array) >= rows:
            cut = rows - count
            yield np.ascontiguousarray(np.concatenate([*pending, array[:cut]]))
            pending, count, array = [], 0, array[cut:]
        pending.append(array)
        count += len(array)
    if count:
        yield np.ascontiguousarray(np.concatenate(pending))


def _write_table(path: Path, columns: dict[str, pa.Array]) -> dict[str, Any]:
    temporary = path.with_suffix(".tmp")
    table = pa.table(columns)
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=10_000)
    return {**_publish(temporary, path), "rows": table.num_rows}


def _publish(temporary: Path, path: Path) -> dict[str, Any]:
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    entry = {"file": path.name, "bytes": temporary.stat().st_size, "sha256": _sha256(temporary)}
    os.replace(temporary, path)
    return entry


def fingerprint(path: str | os.PathLike[str]) -> dict[str, str]:
    """Name and SHA-256 of a file that a cache was made from, for its manifest."""
    return {"file": Path(path).name, "sha256": _sha256(Path(path))}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _safetensors_layout(path: Path) -> tuple[int, tuple[int, ...], np.dtype[Any]]:
    """Where the tensor "features" begins in the file, its shape and dtype.

    The safetensors library copies what it reads; mapping the file needs the offset that its header gives.
    """
    try:
        with open(path, "rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes))
        entry = header["features"]
        dtype = np.dtype(_DTYPES[entry["dtype"]])
    except (ValueError, KeyError) as error:
        raise CacheError(f"{path} is not a safetensors file with a float tensor 'features' ({error}).") from error
    return 8 + header_bytes + entry["data_offsets"][0], tuple(entry["shape"]), dtype
