"""Caption files of every common layout as one stream of annotations, every bad row named by its file and place."""

import csv
import json
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from kdmcse_hf.teacher.text import naming_bad_bytes, unicode_problem

_LAYOUTS = (
    "a table (.csv .tsv .jsonl .parquet) with columns image and caption, Flickr's token file (.token .txt), Kaggle's "
    "captions.txt or results.csv, the Hub's flickr_annotations_30k.csv, COCO's captions_*.json, Karpathy's "
    "dataset_*.json"
)
_TOKEN_ROW = re.compile(r"(.*)#\d+\t(.*)")
_KAGGLE_HEADER = ["image_name", "comment_number", "comment"]
# The published file lacks one second delimiter: "2199200615.jpg| 4   A dog runs across the grass .".
_KAGGLE_ROW = re.compile(r"([^|]*)\|\s*\d+(?:\s*\||\s)(.*)")

_shown = reprlib.Repr()
_shown.maxstring, _shown.maxlist = 100, 12


@dataclass(frozen=True)
class Annotation:
    """One caption of one picture.

    Args:
        place: where the file has it (`"line 3"`, `"annotation 12"`), for messages.
        image: the picture's name as the file gives it, `""` where it gives none.
        caption: as the file gives it, `""` where it gives none.
        split: where the file has one.
    """

    place: str
    image: str
    caption: str
    split: str | None = None


def read_annotations(path: str | Path, split: str | None = None) -> Iterator[Annotation]:
    """The annotations of a caption file in the file's order, also those with an empty image or caption.

    Args:
        path: a table (`.csv`, `.tsv`, `.jsonl`, `.parquet`) with columns `image` and `caption`, perhaps `split`;
            Flickr8k's or 30k's token file (`.txt`, `.token`); Kaggle's `captions.txt` (8k) or `results.csv` (30k); the
            Hub's `flickr_annotations_30k.csv`; COCO's `captions_*.json`; Karpathy's `dataset_*.json`.
        split: keep this split only, or several (`"train+restval"`).

    Raises:
        FileNotFoundError: no such file.
        ValueError: none of these layouts, a broken row, or, once the file is read, a split that it lacks.
    """
    return _of_split(path, _read(Path(path), "caption"), split)


def read_caption_table(path: str | Path) -> tuple[list[str], list[str]]:
    """The images and captions of a file that [`read_annotations`] reads, annotation for annotation.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as [`read_annotations`]; also an annotation without image or caption or with one that is not valid
            Unicode, or none at all.
    """
    images, captions = [], []
    for annotation in read_annotations(path):
        for column, text in (("image", annotation.image), ("caption", annotation.caption)):
            if not text.strip():
                raise ValueError(f"{path}, {annotation.place}: the {column} is empty. Fill it in, or remove the row.")
            if problem := unicode_problem(text):
                raise ValueError(f"{path}, {annotation.place}: the {column} is {problem}. Correct or remove it.")
        images.append(annotation.image)
        captions.append(annotation.caption)
    if not images:
        raise ValueError(f"{path} has no rows: expected at least one image with a caption.")
    return images, captions


def read_split(path: str | Path, split: str) -> set[str]:
    """The images of one split, or of several (`"train+restval"`).

    `path` is a table with columns `image` and `split`, or a file with splits that [`read_annotations`] reads; this
    raises what that does.
    """
    return {annotation.image for annotation in _of_split(path, _read(Path(path), "split"), split)}


def _of_split(path: str | Path, annotations: Iterator[Annotation], split: str | None) -> Iterator[Annotation]:
    if split is None:
        yield from annotations
        return
    wanted = {name.strip() for name in split.split("+")}
    found = set()
    for annotation in annotations:
        if annotation.split:
            found.add(annotation.split)
        if annotation.split in wanted:
            yield annotation
    if wanted - found:
        raise ValueError(
            f"{path} has no image in split {min(wanted - found)!r}: it has "
            f"{', '.join(map(repr, sorted(found))) or 'no splits'}."
        )


def _read(path: Path, column: str) -> Iterator[Annotation]:
    """All annotations. `column` is what a table must have beside the image: `"caption"` or `"split"`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is a folder: expected a file with captions.")
    suffix = path.suffix.lower()
    with naming_bad_bytes(path):
        if suffix in (".csv", ".tsv", ".txt", ".token"):
            yield from _read_text(path, column)
        elif suffix == ".jsonl":
            yield from _read_jsonl(path, column)
        elif suffix == ".json":
            yield from _read_json(path)
        elif suffix == ".parquet":
            yield from _read_parquet(path, column)
        else:
            raise ValueError(f"{path} ends in {path.suffix!r}: expected {_LAYOUTS}.")


def _read_text(path: Path, column: str) -> Iterator[Annotation]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        first = file.readline().rstrip("\r\n")
        if [name.strip() for name in first.split("|")] == _KAGGLE_HEADER:
            yield from _read_lines(path, file, _KAGGLE_ROW, "NAME| NUMBER| CAPTION", first_line=2)
            return
        file.seek(0)
        if path.suffix.lower() in (".txt", ".token") and _TOKEN_ROW.fullmatch(first):
            yield from _read_lines(path, file, _TOKEN_ROW, "NAME#NUMBER<TAB>CAPTION", first_line=1)
        else:
            yield from _read_csv(path, file, column)


def _read_lines(
    path: Path, file: TextIO, pattern: re.Pattern[str], layout: str, first_line: int
) -> Iterator[Annotation]:
    for number, line in enumerate(file, start=first_line):
        if not line.strip():
            continue
        match = pattern.fullmatch(line.rstrip("\r\n"))
        if match is None:
            raise ValueError(f"{path}, line {number}: {_shown.repr(line)}, expected {layout}. Correct or remove it.")
        yield Annotation(f"line {number}", match[1].strip(), match[2].strip())


def _read_csv(path: Path, file: TextIO, column: str) -> Iterator[Annotation]:
    # Not pandas: it takes captions such as "NA" or "null" for missing values.
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    rows = _csv_rows(path, file, delimiter)
    place, header = next(rows, ("", []))
    if not header:
        return
    header = [name.strip() for name in header]
    hub = "image" not in header and {"filename", "raw"} <= set(header)
    if hub:
        header = [{"filename": "image", "raw": "caption"}.get(name, name) for name in header]
    _require(path, place, header, "image", column)
    # Kaggle's captions.txt goes around in copies that do not quote a caption with commas.
    comma_is_text = path.suffix.lower() == ".txt" and header == ["image", "caption"]
    for place, fields in rows:
        if comma_is_text and len(fields) > 2:
            fields = [fields[0], ",".join(fields[1:])]
        if len(fields) != len(header):
            raise ValueError(
                f"{path}, {place}: {len(fields)} fields where the header has {len(header)}, {_shown.repr(fields)}. "
                f"Write one field a column, in double quotes where it contains {delimiter!r}."
            )
        annotation = _annotation(path, place, dict(zip(header, fields, strict=True)))
        if hub:
            for number, caption in enumerate(_hub_captions(path, annotation), start=1):
                yield replace(annotation, place=f"{place}, caption {number}", caption=caption)
        else:
            yield annotation


def _csv_rows(path: Path, file: TextIO, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    place = "line 1"  # where the row starts, however many lines its fields span
    try:
        for row in reader:
            if row:
                yield place, row
            place = f"line {reader.line_num + 1}"
    except csv.Error as error:
        raise ValueError(
            f"{path}, {place}: {error}. Put a field with quotes into double quotes, and double those inside."
        ) from error


def _hub_captions(path: Path, row: Annotation) -> list[str]:
    try:
        captions = json.loads(row.caption)
    except json.JSONDecodeError:
        captions = None
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"{path}, {row.place}: 'raw' is {_shown.repr(row.caption)}, expected a JSON list of captions.")
    return captions


def _read_jsonl(path: Path, column: str) -> Iterator[Annotation]:
    with open(path, encoding="utf-8-sig") as file:
        first = True
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, {place}: not valid JSON ({error}). Write one object a line.") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, {place}: {_shown.repr(row)}, expected an object with image and {column}.")
            if first:
                _require(path, place, row, "image", column)
                first = False
            yield _annotation(path, place, row)


def _read_parquet(path: Path, column: str) -> Iterator[Annotation]:
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        _require(path, "the schema", names, "image", column)
        # A table may hold the pictures themselves as well, which nobody needs here.
        columns = [name for name in ("image", "caption", "split") if name in names]
        number = 0
        for batch in file.iter_batches(columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield _annotation(path, f"row {number}", row)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from error


def _read_json(path: Path) -> Iterator[Annotation]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}). JSON lines belong in a .jsonl file.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is {_shown.repr(content)}: expected {_LAYOUTS}.")
    if "images" in content and "annotations" in content:
        yield from _read_coco(path, content)
    elif "images" in content:
        yield from _read_karpathy(path, content)
    else:
        raise ValueError(f"{path} has the keys {_shown.repr(list(content))}: expected {_LAYOUTS}.")


def _read_coco(path: Path, content: dict[str, Any]) -> Iterator[Annotation]:
    names = {}
    for place, image in _objects(path, "", content, "images"):
        names[_text(path, place, image, "id")] = _text(path, place, image, "file_name")
    for place, row in _objects(path, "", content, "annotations"):
        if place == "annotation 1":  # COCO's other files, such as instances_*.json, have no captions
            _require(path, place, row, "image_id", "caption")
        image_id = _text(path, place, row, "image_id")
        if image_id not in names:
            raise ValueError(
                f"{path}, {place}: image_id {image_id!r} is not in 'images'. Add the image, or remove the annotation."
            )
        yield Annotation(place, names[image_id], _text(path, place, row, "caption"))


def _read_karpathy(path: Path, content: dict[str, Any]) -> Iterator[Annotation]:
    for place, image in _objects(path, "", content, "images"):
        name, folder, split = (_text(path, place, image, key) for key in ("filename", "filepath", "split"))
        if name and folder:
            name = f"{folder}/{name}"
        for where, sentence in _objects(path, f"{place}, ", image, "sentences"):
            yield Annotation(where, name, _text(path, where, sentence, "raw"), split or None)


def _objects(path: Path, prefix: str, holder: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of the list `holder[key]`, each with its place: `"image 3"`, `"image 3, sentence 1"`."""
    if not isinstance(holder.get(key), list):
        raise ValueError(f"{path}, {prefix}'{key}' is {_shown.repr(holder.get(key))}, expected a list of objects.")
    for number, item in enumerate(holder[key], start=1):
        place = f"{prefix}{key.removesuffix('s')} {number}"
        if not isinstance(item, dict):
            raise ValueError(f"{path}, {place}: {_shown.repr(item)}, expected an object.")
        yield place, item


def _annotation(path: Path, place: str, row: Mapping[str, Any]) -> Annotation:
    image, caption, split = (_text(path, place, row, column) for column in ("image", "caption", "split"))
    return Annotation(place, image, caption, split or None)


def _text(path: Path, place: str, row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str | int):
        raise ValueError(f"{path}, {place}: {key!r} is {_shown.repr(value)}, expected text.")
    return str(value)


def _require(path: Path, place: str, found: Iterable[str], *columns: str) -> None:
    for column in columns:
        if list(found).count(column) != 1:
            raise ValueError(
                f"{path}, {place}: expected one column {column!r}, found {_shown.repr(list(found))}. Known layouts: "
                f"{_LAYOUTS}."
            )
