"""One file of teacher features: a safetensors tensor, and what has to be known to trust and to resume it."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

TENSOR = "features"
_DTYPES = {"F16": "float16", "F32": "float32"}
_METADATA = "kdmcse_hf"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CacheError(ValueError):
    """A teacher cache that is missing, damaged, or not what its manifest says."""


@dataclass(frozen=True)
class ShardHeader:
    """What stands at the beginning of a shard."""

    offset: int
    """Where the tensor begins, in bytes."""
    shape: tuple[int, int]
    dtype: str
    kind: str
    """`"image"` or `"caption"`."""
    first_row: int
    """Row of the cache that the shard begins with."""
    teacher: str
    """Digest of the teacher that made the features."""
    source: str
    """Digest of what it was asked about, and how; empty where it is not known."""
    data: str
    """SHA-256 of the tensor's bytes."""
    normalized: bool
    """Whether all rows have length 1, to within 0.005."""
    skipped: dict[int, str] = field(default_factory=dict)
    """Rows of the cache that hold zeros, because their input could not be read, and why."""
    cut: list[int] = field(default_factory=list)
    """Rows of captions that are longer than the teacher's context."""


def write_shard(
    path: Path,
    features: NDArray[Any],
    *,
    kind: str,
    first_row: int,
    teacher: str,
    source: str = "",
    skipped: dict[int, str] | None = None,
    cut: Sequence[int] = (),
) -> None:
    """Writes features (N, D) of float16 or float32, whole or not at all.

    Raises:
        CacheError: another dtype, a row that is NaN or infinite, or a disk that is full.
    """
    skipped = skipped or {}
    if features.dtype not in (np.float16, np.float32) or features.ndim != 2:
        raise CacheError(
            f"The {kind} features are {features.dtype} of shape {features.shape}: expected float16 or float32, (N, D)."
        )
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise CacheError(
            f"Row {first_row + bad[0]} of the {kind} features is NaN or infinite ({len(bad)} such rows in "
            f"{path.name}): every feature must be finite in {features.dtype}. Extract that row again, or remove it."
        )
    features = np.ascontiguousarray(features)
    read = np.delete(features, [row - first_row for row in skipped], axis=0)
    norms = np.linalg.norm(read.astype(np.float32), axis=1)
    metadata = {
        "kind": kind,
        "first_row": first_row,
        "teacher": teacher,
        "source": source,
        "data": hashlib.sha256(features.data).hexdigest(),
        "normalized": bool(np.abs(norms - 1).max(initial=0) < 5e-3),
        "skipped": {str(row): reason for row, reason in sorted(skipped.items())},
        "cut": list(cut),
    }
    # One key only: safetensors writes several in an order that changes from run to run.
    content = save({TENSOR: features}, {_METADATA: json.dumps(metadata, ensure_ascii=False)})
    with publishing(path) as file:
        file.write(content)


@contextmanager
def publishing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that appears as `path` when it is whole, and never half written.

    Raises:
        CacheError: the disk is full; says what is kept.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise CacheError(
            f"{path} could not be written: {error.strerror}. Finished files are kept: make room and run the same "
            "command again to go on."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_shard_header(path: Path) -> ShardHeader:
    """The header of a shard; reads none of its features.

    Raises:
        CacheError: not a shard of a teacher cache.
    """
    # The safetensors library copies what it reads; mapping the file needs the offset that its header gives.
    try:
        with open(path, "rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(header_bytes, 1 << 26)))
        entry, metadata = header[TENSOR], json.loads(header["__metadata__"][_METADATA])
        rows, width = entry["shape"]
        begin, end = entry["data_offsets"]
        found = ShardHeader(
            offset=8 + header_bytes + begin,
            shape=(rows, width),
            dtype=_DTYPES[entry["dtype"]],
            kind=metadata["kind"],
            first_row=metadata["first_row"],
            teacher=metadata["teacher"],
            source=metadata["source"],
            data=metadata["data"],
            normalized=metadata["normalized"],
            skipped={int(row): reason for row, reason in metadata["skipped"].items()},
            cut=metadata["cut"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(
            f"{path} is not a shard of a teacher cache ({type(error).__name__}: {error}): expected a safetensors file "
            f"with a float tensor {TENSOR!r}. Remove it and extract it again."
        ) from error
    if end - begin != rows * width * np.dtype(found.dtype).itemsize or path.stat().st_size != 8 + header_bytes + end:
        raise CacheError(
            f"{path} is {path.stat().st_size:,} bytes long, but its header says {8 + header_bytes + end:,}: it is "
            "truncated. Remove it and extract it again."
        )
    return found


def sha256(path: Path, offset: int = 0) -> str:
    """SHA-256 of a file from a byte on, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(offset)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
