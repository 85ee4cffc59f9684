"""What the frozen teacher said, stored once: features of images and captions in a folder that opens in O(1) memory.

    manifest.json                  written last: a folder without it is not a cache
    images.arrow                   image, stamp: name of each image row, and what changes when its file does
    captions.arrow                 caption, image_row: text of each caption row and the image it belongs to
    image_features-00000.safetensors, ...     tensor "features", (rows, width), float16 or float32
    caption_features-00000.safetensors, ...   the same for captions; absent for image-only teachers

The manifest says which teacher made the features from which files, and holds the size and SHA-256 of every file and of
itself. A row whose picture or caption could not be read holds zeros and is listed under `skipped`: no other row
moves.
"""

import hashlib
import json
import mmap
import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from kdmcse_hf.teacher.shard import CacheError, read_shard_header, sha256

FORMAT = "kdmcse_hf teacher cache"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
KINDS = ("image", "caption")
_MAPPED = 128  # shards of a kind that are open at once: each takes one of the, often 1,024, files of a process


class FeatureStore:
    """(N, D) features in memory-mapped shards, none of which stays in memory."""

    def __init__(self, folder: Path, kind: str, entry: dict[str, Any], teacher: str) -> None:
        self.width: int = entry["width"]
        self.dtype = np.dtype(entry["dtype"])
        self.normalized: bool = entry["normalized"]
        self._kind, self._teacher = kind, teacher
        self._paths = [folder / shard["file"] for shard in entry["shards"]]
        self._starts = np.cumsum([0] + [shard["rows"] for shard in entry["shards"]])
        self._mapped: OrderedDict[int, tuple[mmap.mmap, NDArray[Any]]] = OrderedDict()
        self._shard(0)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def rows(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[Any]:
        """(len(indices), D), a copy in the stored dtype.

        Raises:
            IndexError: a row that is not there.
            CacheError: a shard that is not the one that the manifest describes.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"Feature rows {wanted.min()} to {wanted.max()} asked for: expected 0 to {len(self) - 1}.")
        result = np.empty((len(wanted), self.width), dtype=self.dtype)
        shard_of = np.searchsorted(self._starts, wanted, side="right") - 1
        for shard in np.unique(shard_of):
            here = shard_of == shard
            mapping, features = self._shard(shard)
            result[here] = features[wanted[here] - self._starts[shard]]
            if hasattr(mapping, "madvise"):
                # The kernel maps 16 pages around each one that is read; unmapped here, they cost no resident memory.
                mapping.madvise(mmap.MADV_DONTNEED)
        return result

    def _shard(self, number: int) -> tuple[mmap.mmap, NDArray[Any]]:
        """Mapped when it is used, until many others have been: a large cache has thousands."""
        if number not in self._mapped:
            if len(self._mapped) == _MAPPED:
                self._mapped.popitem(last=False)
            self._mapped[number] = self._map(self._paths[number], int(self._starts[number]), number)
        self._mapped.move_to_end(number)
        return self._mapped[number]

    def _map(self, path: Path, first_row: int, number: int) -> tuple[mmap.mmap, NDArray[Any]]:
        header = read_shard_header(path)
        expected = {
            "shape": (int(self._starts[number + 1]) - first_row, self.width),
            "dtype": self.dtype.name,
            "kind": self._kind,
            "first_row": first_row,
            "teacher": self._teacher,
        }
        different = [
            f"{name} {getattr(header, name)!r} where the manifest says {value!r}"
            for name, value in expected.items()
            if getattr(header, name) != value
        ]
        if different:
            raise CacheError(
                f"{path} is not the file that {path.parent / MANIFEST} describes: it has {'; '.join(different)}. Copy "
                "the whole cache again, or extract it again."
            )
        with open(path, "rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        features = np.frombuffer(mapping, self.dtype, count=header.shape[0] * self.width, offset=header.offset)
        return mapping, features.reshape(header.shape)


class TeacherCache:
    """An open teacher cache.

    Attributes:
        manifest: the content of `manifest.json`.
        images: dataset with columns `image`, the names of the image rows, and `stamp`.
        captions: dataset with columns `caption` and `image_row`.
        image_features, caption_features: a [`FeatureStore`] each; `caption_features` is `None` for image-only teachers.
        skipped_images, skipped_captions: rows that hold zeros, because their picture or caption could not be read.

    Raises:
        CacheError: no cache in the folder, an unknown format, or a file that is not as the manifest says. Files are
            compared by size here, by content in [`TeacherCache.verify`].
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        for file in cache_files(self.manifest):
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
        # What is cached of it is kept by this: by default by place and time, which another cache may have as well.
        self.captions._fingerprint = self.manifest["captions"]["sha256"][:32]
        stores = {
            kind: FeatureStore(self.folder, kind, entry, self.manifest["teacher"]["digest"])
            for kind in KINDS
            if (entry := self.manifest[f"{kind}_features"]) is not None
        }
        self.image_features = stores["image"]
        self.caption_features = stores.get("caption")
        self.skipped_images, self.skipped_captions = (
            np.array([int(row) for row in self.manifest["skipped"][kind]], dtype=np.int64) for kind in KINDS
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process opens the folder itself: mappings cannot be sent, and copies must not be.
        return TeacherCache, (self.folder,)

    def verify(self, *, progress: bool = False) -> None:
        """Reads every file and compares its SHA-256 with the manifest.

        Args:
            progress: show a bar, in bytes, on a terminal.

        Raises:
            CacheError: the first file that differs.
        """
        files = list(cache_files(self.manifest))
        total = sum(file["bytes"] for file in files)
        with tqdm(total=total, unit="B", unit_scale=True, desc="Verifying", disable=None if progress else True) as bar:
            for file in files:
                path = self.folder / file["file"]
                found = sha256(path)
                if found != file["sha256"]:
                    raise CacheError(
                        f"{path} has SHA-256 {found}, but the manifest says {file['sha256']}: its content was changed. "
                        "Copy it again or extract the cache again."
                    )
                bar.update(file["bytes"])

    def check_captions_file(self, path: str | os.PathLike[str]) -> None:
        """Compares a captions file with the one that the cache, or its newest addition, was made from.

        Raises:
            CacheError: it is another one.
        """
        newest = newest_source(self.manifest).get("captions")
        if newest is None:
            raise CacheError(
                f"{self.folder} was not made from a captions file: there is nothing to compare {path} with."
            )
        found = sha256(Path(path))
        if found != newest["sha256"]:
            raise CacheError(
                f"{path} has SHA-256 {found}, but {self.folder} was made from {newest['file']} with "
                f"{newest['sha256']}: its rows may belong to other captions. Extract the cache again, or add to it."
            )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the cache in `folder`.

    Raises:
        CacheError: there is none, it is of another format, it was changed, or it names files outside the folder.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CacheError(f"{folder} is not a teacher cache: it has no {MANIFEST}. Make one with `kdmcse extract`.")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = (manifest.get("format"), manifest.get("format_version"))
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise CacheError(f"{path} is not a manifest ({error}).") from error
    if found != (FORMAT, FORMAT_VERSION):
        raise CacheError(
            f"{path} describes {found[0]!r} version {found[1]!r}: expected {FORMAT!r} version {FORMAT_VERSION}."
        )
    if manifest.get("checksum") != manifest_checksum(manifest):
        raise CacheError(
            f"{path} was changed: its own checksum is {manifest.get('checksum')!r}, its content gives "
            f"{manifest_checksum(manifest)!r}. Copy the cache again, or extract it again."
        )
    for file in cache_files(manifest):
        # A cache may come from a stranger, whose manifest must not reach beyond its folder.
        if not re.fullmatch(r"[\w-]+\.(arrow|safetensors)", file["file"]):
            raise CacheError(f"{path} names the file {file['file']!r}: expected a plain name of a file beside it.")
    return manifest


def manifest_checksum(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest's content."""
    content = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def newest_source(manifest: dict[str, Any]) -> dict[str, Any]:
    """What the cache, or its newest addition, was made from."""
    source: dict[str, Any] = [manifest, *manifest["added"]][-1]["source"]
    return source


def cache_files(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The entries of all files: `file`, `bytes`, `sha256`, `rows`."""
    yield manifest["images"]
    yield manifest["captions"]
    for kind in KINDS:
        yield from (manifest[f"{kind}_features"] or {"shards": []})["shards"]
