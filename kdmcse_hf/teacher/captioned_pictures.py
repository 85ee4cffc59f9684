"""What a teacher is asked about: pictures, their captions, and what is wrong with either before any work begins."""

import hashlib
import os
import reprlib
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import datasets
import pyarrow.compute as pc
from PIL import Image

from kdmcse_hf.teacher.annotations import Annotation, read_annotations, read_split
from kdmcse_hf.teacher.pictures import PictureError, PictureFolder, file_stamp, open_picture
from kdmcse_hf.teacher.shard import sha256
from kdmcse_hf.teacher.text import unicode_problem


class PictureStore(Protocol):
    """Where pictures are found by name."""

    def open(self, name: str) -> Image.Image:
        """The picture in RGB, or a `PictureError` that names it."""

    def stamp(self, name: str) -> str:
        """A text that changes when the picture does, or a `PictureError` that names it."""


@dataclass
class CaptionedPictures:
    """N pictures and M captions of them, as rows that never move.

    Attributes:
        names: (N,) distinct names of pictures; `""` stands for all captions that name none.
        captions: (M,) texts.
        image_rows: (M,) the picture of each caption.
        pictures: opens them.
        source: what they were read from, for the manifest of a cache.
        image_problems, caption_problems: rows that cannot be read, and why.
        stamps: (N,) what [`PictureStore.stamp`] says of each picture, `None` where it cannot be read; empty if unknown.
    """

    names: list[str]
    captions: list[str]
    image_rows: list[int]
    pictures: PictureStore
    source: dict[str, Any]
    image_problems: dict[int, str] = field(default_factory=dict)
    caption_problems: dict[int, str] = field(default_factory=dict)
    stamps: list[str | None] = field(default_factory=list)

    @classmethod
    def from_files(
        cls,
        captions_file: str | Path,
        image_folder: str | Path,
        *,
        splits_file: str | Path | None = None,
        split: str | None = None,
    ) -> "CaptionedPictures":
        """Pictures below a folder, captions from a file of any layout that [`read_annotations`] knows.

        Args:
            captions_file: names pictures relative to the folder.
            image_folder: holds them, in sub-folders or not.
            splits_file: a table with columns `image` and `split`, where the captions file has no splits; goes with
                `split`.
            split: keep only this one.

        Raises:
            FileNotFoundError, ValueError: the file or the folder cannot be read as such.
        """
        if splits_file is not None and split is None:
            raise ValueError(f"{splits_file} has splits, but `split` is None: name the one to keep, such as 'train'.")
        folder = PictureFolder(image_folder)
        annotations: Iterable[Annotation] = read_annotations(captions_file, None if splits_file else split)
        if splits_file is not None and split is not None:
            kept = read_split(splits_file, split)
            annotations = (annotation for annotation in annotations if annotation.image in kept)
        result = cls._from_annotations(annotations, folder, str(captions_file))
        result.source["captions"] = {"file": Path(captions_file).name, "sha256": sha256(Path(captions_file))}
        if split is not None:
            result.source["split"] = split
        if splits_file is not None:
            result.source["splits"] = {"file": Path(splits_file).name, "sha256": sha256(Path(splits_file))}
        return result

    @classmethod
    def from_dataset(
        cls, dataset: datasets.Dataset, *, image_column: str = "image", caption_column: str = "caption"
    ) -> "CaptionedPictures":
        """A dataset with an `Image` column and a column of one caption, or a list of captions, a row.

        Rows of the same bytes, or of one file where the dataset holds paths only, are one picture.

        Raises:
            ValueError: no such columns, or they hold something else (names the row).
        """
        for column in (image_column, caption_column):
            if column not in dataset.column_names:
                raise ValueError(
                    f"The dataset has no column {column!r}: it has {', '.join(map(repr, dataset.column_names))}."
                )
        if not isinstance(dataset.features[image_column], datasets.Image):
            raise ValueError(
                f"The column {image_column!r} holds {dataset.features[image_column]}: expected an `Image` column "
                "(`dataset.cast_column(name, datasets.Image())`)."
            )
        store = DatasetPictures(dataset, image_column)
        texts = dataset.select_columns([caption_column]).with_format(None)[caption_column]
        annotations = (
            Annotation(f"row {row}", store.names[row], caption or "")
            for row, value in enumerate(texts)
            for caption in _captions(value, f"The dataset, row {row}: the column {caption_column!r}")
        )
        result = cls._from_annotations(annotations, store, "the dataset")
        result.source["dataset"] = {"rows": len(dataset), "fingerprint": dataset._fingerprint}
        return result

    @classmethod
    def _from_annotations(
        cls, annotations: Iterable[Annotation], pictures: PictureStore, origin: str
    ) -> "CaptionedPictures":
        row_of: dict[str, int] = {}
        captions: list[str] = []
        image_rows: list[int] = []
        image_problems: dict[int, str] = {}
        caption_problems: dict[int, str] = {}
        for annotation in annotations:
            place = f"{origin}, {annotation.place}"
            if not annotation.caption.strip():
                caption_problems[len(captions)] = f"{place}: the caption is empty"
            elif problem := unicode_problem(annotation.caption):
                caption_problems[len(captions)] = f"{place}: the caption is {problem}"
            name = _writable(annotation.image) if annotation.image.strip() else ""
            row = row_of.setdefault(name, len(row_of))
            if not name:
                image_problems.setdefault(row, f"{place}: the caption has no picture")
            elif problem := unicode_problem(annotation.image):
                image_problems.setdefault(row, f"{place}: the image name is {problem}")
            captions.append(_writable(annotation.caption))
            image_rows.append(row)
        if not captions:
            raise ValueError(f"{origin} has no captions to extract: expected at least one picture and caption.")
        digest = hashlib.sha256()
        stamps: list[str | None] = []
        for name, row in row_of.items():
            stamp: str | None = None
            if row not in image_problems:
                try:
                    stamp = pictures.stamp(name)
                except PictureError as error:
                    image_problems[row] = str(error)
            stamps.append(stamp)
            digest.update(f"{name}\0{stamp}\n".encode())
        source = {"pictures": {"count": len(row_of), "sha256_of_names_and_stamps": digest.hexdigest()}}
        return cls(list(row_of), captions, image_rows, pictures, source, image_problems, caption_problems, stamps)


def _captions(value: Any, place: str) -> list[str | None]:
    captions = value if isinstance(value, list) else [value]
    for caption in captions:
        if caption is not None and not isinstance(caption, str):
            raise ValueError(f"{place} is {reprlib.repr(value)}, expected text or a list of texts.")
    return captions


def _writable(text: str) -> str:
    """Half surrogate pairs as escapes: a row that cannot be read still has its place in the cache's tables."""
    return text.encode(errors="backslashreplace").decode()


class DatasetPictures:
    """The pictures of a dataset's `Image` column, by name: where it holds bytes, a picture is its content."""

    def __init__(self, dataset: datasets.Dataset, column: str) -> None:
        self.column = column
        dataset = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False)).with_format(None)
        self._dataset = dataset
        contents: list[str | None] = []  # the hash of each row's bytes
        paths: list[str] = []
        for table in dataset.with_format("arrow").iter(batch_size=100):
            for stored in pc.struct_field(table[column], "bytes"):
                contents.append(hashlib.sha256(stored.as_buffer()).hexdigest() if stored.is_valid else None)
            paths += [os.path.normpath(path) if path else "" for path in _paths(table[column])]
        file_names: dict[str, str] = {}
        for content, path in zip(contents, paths, strict=True):
            if content is not None:
                file_names[content] = file_names.get(content) or os.path.basename(path)
        name_of_path = _relative({path for content, path in zip(contents, paths, strict=True) if path and not content})
        name_of_content = _distinct(file_names, name_of_path.values())
        self.names = [
            name_of_path.get(path, "") if content is None else name_of_content[content]
            for content, path in zip(contents, paths, strict=True)
        ]
        """(rows,) the name of each row's picture, `""` where it has none."""
        self._row_of = {name: row for row, name in reversed(list(enumerate(self.names)))}
        self._content_of = {name: content for content, name in name_of_content.items()}

    def open(self, name: str) -> Image.Image:
        stored = self._dataset[self._row_of[name]][self.column]
        return open_picture(stored["path"] if stored["bytes"] is None else stored["bytes"], name)

    def stamp(self, name: str) -> str:
        content = self._content_of.get(name)
        return file_stamp(self._dataset[self._row_of[name]][self.column]["path"], name) if content is None else content


def _paths(column: Any) -> list[str | None]:
    paths: list[str | None] = pc.struct_field(column, "path").to_pylist()
    return paths


def _relative(paths: set[str]) -> dict[str, str]:
    """Each path's name: relative to the folder that they share."""
    folders = {os.path.dirname(path) for path in paths}
    common = os.path.commonpath(folders) if folders and all(map(os.path.isabs, folders)) else None
    return {path: os.path.relpath(path, common) if common else path for path in paths}


def _distinct(file_names: dict[str, str], others: Collection[str]) -> dict[str, str]:
    """A name for each content, given by its hash: that of its file, with digits of the hash where others have it, too.

    The number of a row would not do: pictures that are added later have numbers of their own.
    """
    known = Counter([*file_names.values(), *others])
    names: dict[str, str] = {}
    for digits in (8, 64):
        names = {}
        for content, file_name in file_names.items():
            stem, ending = os.path.splitext(file_name)
            if not file_name.strip():
                names[content] = f"sha-{content[: 2 * digits]}"
            else:
                names[content] = file_name if known[file_name] == 1 else f"{stem}-{content[:digits]}{ending}"
        if len({*names.values(), *others}) == len(names) + len(set(others)):
            break
    return names
