"""A file of sentences, of any length, read from its beginning to its end and never held in memory."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kdmcse_hf.teacher.shard import sha256
from kdmcse_hf.teacher.text import naming_bad_bytes, unicode_problem

SUFFIXES = (".txt", ".jsonl", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class SentenceFile:
    """One sentence a line (`.txt`), or one column of a table (`.jsonl`, `.csv`, `.tsv`, `.parquet`).

    Raises:
        FileNotFoundError, ValueError: there is no such file, or its name has another ending.
    """

    path: Path
    column: str = "sentence"

    def __post_init__(self) -> None:
        if self.path.suffix not in SUFFIXES:
            raise ValueError(f"{self.path} should end in one of {', '.join(SUFFIXES)}, to say how it is read.")
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} does not exist: expected a file of sentences.")

    def __iter__(self) -> Iterator[str]:
        """The sentences, in order.

        Raises:
            ValueError: one that is empty or no text, by its line or row; a column that is missing; a damaged file.
        """
        unit = "row" if self.path.suffix == ".parquet" else "line"
        with naming_bad_bytes(self.path):
            for number, sentence in self._numbered():
                problem = None
                if not isinstance(sentence, str) or not sentence.strip():
                    problem = f"expected a sentence, got {sentence!r}. Remove such {unit}s first"
                elif wrong := unicode_problem(sentence):
                    problem = wrong
                if problem:
                    raise ValueError(f"{self.path}, {unit} {number}: {problem}.")
                yield sentence

    def parts(self, size: int) -> Iterator[list[str]]:
        """The sentences in lists of `size`; the last may be shorter."""
        sentences = iter(self)
        while part := list(islice(sentences, size)):
            yield part

    def describe(self) -> dict[str, Any]:
        """Name, number of sentences and checksum; reads the whole file.

        Raises:
            ValueError: as [`__iter__`]; there is no sentence.
        """
        rows = sum(1 for _ in self)
        if not rows:
            raise ValueError(f"{self.path} holds no sentence.")
        column = {} if self.path.suffix == ".txt" else {"column": self.column}
        return {"file": self.path.name, **column, "rows": rows, "sha256": sha256(self.path)}

    def _numbered(self) -> Iterator[tuple[int, Any]]:
        if self.path.suffix == ".parquet":
            yield from self._parquet_rows()
            return
        # Lines end where an editor says they do, and not at characters like U+2028.
        with open(self.path, encoding="utf-8-sig", newline="\n") as file:
            if self.path.suffix == ".txt":
                for number, line in enumerate(file, start=1):
                    yield number, line.rstrip("\r\n")
            elif self.path.suffix == ".jsonl":
                for number, line in enumerate(file, start=1):
                    try:
                        row = json.loads(line)
                        if not isinstance(row, dict):
                            raise ValueError(f"expected an object, got {line.strip()[:40]!r}")
                    except ValueError as error:
                        raise ValueError(f"{self.path}, line {number}: not JSON ({error}).") from error
                    self._check_column(row, number)
                    yield number, row[self.column]
            else:
                table = csv.DictReader(file, delimiter="\t" if self.path.suffix == ".tsv" else ",", strict=True)
                try:
                    self._check_column(table.fieldnames or (), 1)
                    for row in table:
                        yield table.line_num, row[self.column]
                except csv.Error as error:
                    raise ValueError(f"{self.path}, line {table.reader.line_num}: not a table ({error}).") from error

    def _parquet_rows(self) -> Iterator[tuple[int, Any]]:
        try:
            with pq.ParquetFile(self.path) as file:
                self._check_column(file.schema_arrow.names, 1)
                number = 0
                for batch in file.iter_batches(batch_size=4096, columns=[self.column]):
                    for value in batch.column(0).to_pylist():
                        number += 1
                        yield number, value
        except pa.ArrowException as error:
            raise ValueError(f"{self.path} cannot be read as Parquet: {error}") from error

    def _check_column(self, names: Any, line: int) -> None:
        if self.column not in names:
            raise ValueError(
                f"{self.path}, line {line}: there is no column {self.column!r}, only {', '.join(map(repr, names))}. "
                "Name the column of the sentences (`--column`)."
            )
