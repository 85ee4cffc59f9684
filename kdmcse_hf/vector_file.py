"""A file of vectors, written from parts that follow each other, whole or not at all."""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kdmcse_hf.teacher.shard import ShardHeader, publishing, read_shard_header

SUFFIXES = (".npy", ".parquet", ".jsonl")


def write_vectors(path: Path, parts: Sequence[Path], sentences: Iterable[Sequence[str]]) -> None:
    """Joins parts (see [`write_shard`]) into one file of float32 vectors, in the format that its name ends in.

    `.npy` holds the array (N, H); `.parquet` and `.jsonl` a row for each sentence, with `sentence` and `embedding`.
    All hold the same numbers.

    Args:
        path: of the file.
        parts: all parts, in order.
        sentences: those of each part.

    Raises:
        CacheError: the disk is full.
    """
    headers = [read_shard_header(part) for part in parts]
    rows, width = sum(header.shape[0] for header in headers), headers[0].shape[1]
    with publishing(path) as file:
        if path.suffix == ".npy":
            _write_array(file, parts, headers, (rows, width))
        elif path.suffix == ".parquet":
            _write_parquet(file, zip(sentences, _vectors(parts, headers), strict=True), width)
        else:
            for texts, vectors in zip(sentences, _vectors(parts, headers), strict=True):
                for text, vector in zip(texts, vectors.tolist(), strict=True):
                    row = {"sentence": text, "embedding": vector}
                    file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def _write_array(
    file: IO[bytes], parts: Sequence[Path], headers: Sequence[ShardHeader], shape: tuple[int, int]
) -> None:
    array = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, array)
    for part, header in zip(parts, headers, strict=True):
        with open(part, "rb") as source:
            source.seek(header.offset)
            shutil.copyfileobj(source, file, 1 << 20)


def _write_parquet(
    file: IO[bytes], parts: Iterator[tuple[Sequence[str], NDArray[np.float32]]] | Any, width: int
) -> None:
    schema = pa.schema([("sentence", pa.string()), ("embedding", pa.list_(pa.float32(), width))])
    with pq.ParquetWriter(file, schema) as writer:
        for texts, vectors in parts:
            numbers = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), width)
            writer.write_table(pa.table([pa.array(texts, pa.string()), numbers], schema=schema))


def _vectors(parts: Sequence[Path], headers: Sequence[ShardHeader]) -> Iterator[NDArray[np.float32]]:
    for part, header in zip(parts, headers, strict=True):
        yield np.fromfile(part, np.float32, offset=header.offset).reshape(header.shape)
