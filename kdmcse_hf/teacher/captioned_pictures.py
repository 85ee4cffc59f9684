"""What a teacher is asked about: pictures, their captions, and what is wrong with either before any work begins."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import datasets
import pyarrow.compute as pc
from PIL import Image

from kdmcse_hf.teacher.annotations import Annotation, read_annotations, read_split
from kdmcse_hf.teacher.pictures import PictureError, PictureFolder, open_picture
from kdmcse_hf.teacher.shard import sha256


class PictureStore(Protocol):
    """Where pictures are found by name."""

    def open(self, name: str) -> Image.Image:
        """The picture in RGB, or a `PictureError` that names it."""

    def stamp(self, name: str) -> int:
        """A number that changes when the picture's file does, or a `PictureError` that names it."""


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
    """

    names: list[str]
    captions: list[str]
    image_rows: list[int]
    pictures: PictureStore
    source: dict[str, Any]
    stamps: list[str | None] = field(default_factory=list)
    image_problems: dict[int, str] = field(default_factory=dict)
    caption_problems: dict[int, str] = field(default_factory=dict)

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
            splits_file: a table with columns `image` and `split`, where the captions file has no splits.
            split: keep only this one.

        Raises:
            FileNotFoundError, ValueError: the file or the folder cannot be read as such.
        """
        folder = PictureFolder(image_folder)
        annotations: Iterable[Annotation] = read_annotations(captions_file, None if splits_file else split)
        if splits_file is not None and split is not None:
            kept = read_split(splits_file, split)
            annotations = (annotation for annotation in annotations if annotation.image in kept)
        result = cls._from_annotations(annotations, folder, str(captions_file))
        result.source["captions"] = {"file": Path(captions_file).name, "sha256": sha256(Path(captions_file))}
        if split is not None:
            result.source["split"] = split
        return result

    @classmethod
    def from_dataset(
        cls, dataset: datasets.Dataset, *, image_column: str = "image", caption_column: str = "caption"
    ) -> "CaptionedPictures":
        """A dataset with an `Image` column and a column of one caption, or a list of captions, a row.

        Rows whose pictures come from one file are one picture.

        Raises:
            ValueError: no such columns, or they hold something else.
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
        captions = dataset.select_columns([caption_column])
        annotations = (
            Annotation(f"row {row}", store.names[row], caption or "")
            for row, value in enumerate(captions[caption_column])
            for caption in (value if isinstance(value, list) else [value])
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
            if not annotation.caption.strip():
                caption_problems[len(captions)] = f"{origin}, {annotation.place}: the caption is empty"
            name = annotation.image if annotation.image.strip() else ""
            row = row_of.setdefault(name, len(row_of))
            if not name:
                image_problems.setdefault(row, f"{origin}, {annotation.place}: the caption has no picture")
            captions.append(annotation.caption)
            image_rows.append(row)
        if not captions:
            raise ValueError(f"{origin} has no captions to extract: expected at least one picture and caption.")
        digest = hashlib.sha256()
        stamps: list[str | None] = []
        for name, row in row_of.items():
            stamp: int | None = None
            try:
                stamp = pictures.stamp(name) if name else None
            except PictureError as error:
                image_problems[row] = str(error)
            stamps.append(None if stamp is None else str(stamp))
            digest.update(f"{name}\0{stamp}\n".encode(errors="surrogateescape"))
        source = {"pictures": {"count": len(row_of), "sha256_of_names_and_stamps": digest.hexdigest()}}
        return cls(list(row_of), captions, image_rows, pictures, source, stamps, image_problems, caption_problems)


class DatasetPictures:
    """The pictures of a dataset's `Image` column, by name: that of their file, or the number of their row."""

    def __init__(self, dataset: datasets.Dataset, column: str) -> None:
        self.column = column
        self._dataset = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        paths: list[str | None] = []
        for table in self._dataset.with_format("arrow").iter(batch_size=1000):
            paths += pc.struct_field(table[column], "path").to_pylist()
        folders = {os.path.dirname(path) for path in paths if path}
        common = os.path.commonpath(folders) if folders and all(map(os.path.isabs, folders)) else None
        self.names = [
            f"{row:08d}" if not path else os.path.relpath(path, common) if common else path
            for row, path in enumerate(paths)
        ]
        """(rows,) the name of each row's picture."""
        self._row_of = {name: row for row, name in reversed(list(enumerate(self.names)))}

    def open(self, name: str) -> Image.Image:
        stored = self._dataset[self._row_of[name]][self.column]
        if stored is None or (stored["bytes"] is None and stored["path"] is None):
            raise PictureError(f"Row {self._row_of[name]} of the dataset has no picture.")
        return open_picture(stored["path"] if stored["bytes"] is None else stored["bytes"], name)

    def stamp(self, name: str) -> int:
        return self._row_of[name]  # the dataset's own fingerprint tells whether it has changed
