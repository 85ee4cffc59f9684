"""Reading tables of image names and captions, every bad row named by its file and number."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


def read_caption_table(path: str | Path) -> tuple[list[str], list[str]]:
    """The `image` and `caption` columns of a `.csv`, `.tsv`, `.jsonl` or `.parquet` file, row for row.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown ending, a missing column, or a row without image or caption.
    """
    images, captions = [], []
    for place, row in read_table(path, ("image", "caption")):
        for column in ("image", "caption"):
            if not row[column].strip():
                raise ValueError(f"{path}, {place}: the {column} is empty. Fill it in, or remove the row.")
        images.append(row["image"])
        captions.append(row["caption"])
    if not images:
        raise ValueError(f"{path} has no rows: expected columns 'image' and 'caption' and at least one row.")
    return images, captions


def read_split(path: str | Path, split: str) -> set[str]:
    """The images of one split, from a table with columns `image` and `split`.

    Raises:
        ValueError: no image in that split.
    """
    splits: dict[str, set[str]] = {}
    for _, row in read_table(path, ("image", "split")):
        splits.setdefault(row["split"], set()).add(row["image"])
    if split not in splits:
        raise ValueError(f"{path} has no image in split {split!r}: it has {', '.join(map(repr, sorted(splits)))}.")
    return splits[split]


def read_table(path: str | Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows with at least `columns`, as text, each with its place (`"line 3"`) for error messages."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected a table with columns {', '.join(columns)}.")
    if path.suffix not in _READERS:
        raise ValueError(f"{path} ends in {path.suffix!r}: expected one of {', '.join(_READERS)}.")
    try:
        for place, row in _READERS[path.suffix](path):
            for column in columns:
                if column not in row:
                    raise ValueError(
                        f"{path}, {place}: no column {column!r}. Expected {', '.join(columns)}, found "
                        f"{', '.join(map(repr, row)) or 'none'}."
                    )
                if row[column] is None:
                    raise ValueError(f"{path}, {place}: the {column} is missing. Fill it in, or remove the row.")
            yield place, {column: str(row[column]) for column in columns}
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}). Convert it, for instance with iconv.") from error
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as a table: {error}.") from error


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    # Not pandas: it takes captions such as "NA" or "null" for missing values.
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        for row in reader:
            yield f"line {reader.line_num}", row


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not valid JSON ({error}).") from error
            yield f"line {number}", row if isinstance(row, dict) else {}


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    for batch in pq.ParquetFile(path).iter_batches():
        for row in batch.to_pylist():
            number += 1
            yield f"row {number}", row


_READERS = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
