"""The truth about a written world: which caption is true of which picture, and which captions mean the same."""

import json
from collections.abc import Iterable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdmcse_hf.world.meaning import Meaning
from kdmcse_hf.world.scenes import AXES, BACKGROUNDS, COLOURS, MAX_OBJECTS, SHAPES, SIZES, Scene

TRUTH_FILE = "truth.json"
_FORMAT = 1
_VALUES: tuple[tuple[str, ...], ...] = (SHAPES, COLOURS, SIZES)
# Codes of a value: its index; of what a caption leaves unstated: -1; of an object a picture does not have: -2.
_UNSTATED, _ABSENT = -1, -2

Rows = Sequence[int] | npt.NDArray[np.integer[Any]]
Codes = npt.NDArray[np.int8]


def _code(values: Sequence[str], value: str | None) -> int:
    return _UNSTATED if value is None else values.index(value)


def _record(part: Scene | Meaning) -> list[Any]:
    """[[[shape, colour, size], ...], axis, background], with null for what is not stated."""
    return [[[thing.shape, thing.colour, thing.size] for thing in part.objects], part.axis, part.background]


def _encode(records: Sequence[list[Any]], missing: int) -> tuple[Codes, Codes, Codes, Codes]:
    """Objects (N, 3, 3) with `missing` in unused slots, axis (N,), background (N,), number of objects (N,)."""
    objects = np.full((len(records), MAX_OBJECTS, len(_VALUES)), missing, dtype=np.int8)
    for row, (things, _, _) in enumerate(records):
        for slot, thing in enumerate(things):
            objects[row, slot] = [_code(values, value) for values, value in zip(_VALUES, thing, strict=True)]
    axis = np.array([_code(AXES, record[1]) for record in records], dtype=np.int8)
    background = np.array([_code(BACKGROUNDS, record[2]) for record in records], dtype=np.int8)
    return objects, axis, background, np.array([len(record[0]) for record in records], dtype=np.int8)


class Truth:
    """Answers about the captions (rows of `captions.csv`) and images (in the order of their first caption) of a world.

    Args:
        scenes (`list`): one record per image.
        meanings (`list`): one record per different meaning.
        captions (`list`): (meaning, image) per caption row.
    """

    def __init__(self, scenes: list[Any], meanings: list[Any], captions: list[list[int]]) -> None:
        table = np.array(captions, dtype=np.int64).reshape(-1, 2)
        self._meaning_of_caption = table[:, 0]
        self.image_of_caption: npt.NDArray[np.int64] = table[:, 1]
        self._scenes = _encode(scenes, _ABSENT)
        self._meanings = _encode(meanings, _UNSTATED)

    @property
    def num_images(self) -> int:
        """Number of pictures."""
        return len(self._scenes[0])

    @property
    def num_captions(self) -> int:
        """Number of rows of `captions.csv`."""
        return len(self.image_of_caption)

    def caption_true_of_image(self, caption_rows: Rows, image_rows: Rows) -> npt.NDArray[np.bool_]:
        """Whether caption a is true of image b: (A,) and (B,) rows to an (A, B) bool array.

        A pair of a caption and an image it was not written for that is true here is a noisy negative.
        """
        meanings, images = self._meaning_of_caption[np.asarray(caption_rows)], np.asarray(image_rows)
        said, said_axis, said_ground, said_count = (codes[meanings] for codes in self._meanings)
        seen, seen_axis, seen_ground, seen_count = (codes[images] for codes in self._scenes)
        # fits[a, b, i, j]: all that caption a states of its object i holds for object j of picture b
        fits = np.ones((len(said), len(seen), MAX_OBJECTS, MAX_OBJECTS), dtype=np.bool_)
        for attribute in range(len(_VALUES)):
            stated = said[:, None, :, None, attribute]
            fits &= (stated == _UNSTATED) | (stated == seen[None, :, None, :, attribute])
        found = np.zeros(fits.shape[:2], dtype=np.bool_)
        for choice in permutations(range(MAX_OBJECTS)):
            # Unused slots of a caption fit everything, so a permutation of three stands for all choices of fewer.
            held = fits[:, :, 0, choice[0]] & fits[:, :, 1, choice[1]] & fits[:, :, 2, choice[2]]
            ordered = [all(choice[i] < choice[i + 1] for i in range(count - 1)) for count in range(MAX_OBJECTS + 1)]
            allowed = (said_axis == _UNSTATED) | np.array(ordered)[said_count]
            # An object of which nothing is stated must still be there.
            last = np.array([-1, *np.maximum.accumulate(choice)])[said_count]
            found |= held & allowed[:, None] & (last[:, None] < seen_count[None, :])
        found &= (said_axis[:, None] == _UNSTATED) | (said_axis[:, None] == seen_axis[None, :])
        found &= (said_ground[:, None] == _UNSTATED) | (said_ground[:, None] == seen_ground[None, :])
        return found

    def same_meaning(self, caption_rows_a: Rows, caption_rows_b: Rows) -> npt.NDArray[np.bool_]:
        """Whether captions a and b mean the same: (A,) and (B,) rows to an (A, B) bool array."""
        first, second = (self._meaning_of_caption[np.asarray(rows)] for rows in (caption_rows_a, caption_rows_b))
        same: npt.NDArray[np.bool_] = first[:, None] == second[None, :]
        return same


def write_truth(folder: Path, scenes: Iterable[Scene], captions: Iterable[tuple[Meaning, int]]) -> None:
    """Write `truth.json` into `folder`: the scene of every image, and (meaning, image row) of every caption row."""
    numbers: dict[Meaning, int] = {}
    table = [[numbers.setdefault(meaning, len(numbers)), image] for meaning, image in captions]
    content = {
        "format": _FORMAT,
        "scenes": [_record(scene) for scene in scenes],
        "meanings": [_record(meaning) for meaning in numbers],
        "captions": table,
    }
    (folder / TRUTH_FILE).write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def load_truth(folder: str | Path) -> Truth:
    """Load the truth of the world that `write_world` wrote into `folder`."""
    path = Path(folder) / TRUTH_FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("format") != _FORMAT:
        raise ValueError(f"`{path}` has format {content.get('format')!r}, expected {_FORMAT}: write the world again.")
    return Truth(content["scenes"], content["meanings"], content["captions"])
