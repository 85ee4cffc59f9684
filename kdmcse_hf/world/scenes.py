"""Scenes: what a picture of the built-in world shows.

A scene is one to three coloured shapes in a row (left to right) or a column (top to bottom) on a plain background.
Scenes are drawn from a skewed distribution, as real photographs are: some shapes, colours and whole scenes are far
more common than others, so a batch of pictures holds a few that show the same thing.
"""

import random
from collections.abc import Set
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Literal, TypeAlias, get_args

Shape: TypeAlias = Literal["circle", "square", "triangle", "star", "cross", "diamond", "ring"]
Colour: TypeAlias = Literal["red", "blue", "green", "yellow", "purple", "orange", "black", "pink"]
Size: TypeAlias = Literal["small", "large"]
Axis: TypeAlias = Literal["row", "column"]
Background: TypeAlias = Literal["white", "grey", "beige"]

SHAPES: tuple[Shape, ...] = get_args(Shape)
COLOURS: tuple[Colour, ...] = get_args(Colour)
SIZES: tuple[Size, ...] = get_args(Size)
AXES: tuple[Axis, ...] = get_args(Axis)
BACKGROUNDS: tuple[Background, ...] = get_args(Background)
MAX_OBJECTS = 3

# Probability that a scene is one of the world's common scenes, and how many of those there are.
COMMON_SHARE = 0.3
NUM_COMMON = 150


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One shape of a scene; every attribute has a value."""

    shape: Shape
    colour: Colour
    size: Size


@dataclass(frozen=True, slots=True)
class Scene:
    """One to three objects in order along `axis`: left to right in a row, top to bottom in a column.

    The first object of a row is `left_of` every later one, the first of a column `above` every later one. A scene of a
    single object is stored as a row, so that equal pictures are equal scenes.
    """

    objects: tuple[SceneObject, ...]
    axis: Axis
    background: Background

    def __post_init__(self) -> None:
        if not 1 <= len(self.objects) <= MAX_OBJECTS:
            raise ValueError(f"A scene holds 1 to {MAX_OBJECTS} objects, got {len(self.objects)}.")
        if len(self.objects) == 1 and self.axis != "row":
            raise ValueError("A scene of one object has `axis='row'`: one object has no direction.")


@cache
def _zipf(count: int, exponent: float) -> tuple[float, ...]:
    """Cumulative weights of `count` ranks, rank r having weight r ** -exponent."""
    return tuple(accumulate((rank + 1) ** -exponent for rank in range(count)))


def _sample_object(rng: random.Random) -> SceneObject:
    (shape,) = rng.choices(SHAPES, cum_weights=_zipf(len(SHAPES), 0.6))
    (colour,) = rng.choices(COLOURS, cum_weights=_zipf(len(COLOURS), 0.6))
    return SceneObject(shape, colour, "large" if rng.random() < 0.55 else "small")


def _sample_rare(rng: random.Random) -> Scene:
    (count,) = rng.choices((1, 2, 3), cum_weights=(0.15, 0.75, 1.0))
    objects = tuple(_sample_object(rng) for _ in range(count))
    axis: Axis = "row" if count == 1 or rng.random() < 0.5 else "column"
    (background,) = rng.choices(BACKGROUNDS, cum_weights=(0.5, 0.8, 1.0))
    return Scene(objects, axis, background)


@cache
def _common_scenes() -> tuple[Scene, ...]:
    # A property of the world, not of a seed: what is common in the training pictures is common everywhere.
    rng = random.Random("kdmcse_hf.world/common scenes")
    return tuple(_sample_rare(rng) for _ in range(NUM_COMMON))


def sample_scene(rng: random.Random, exclude: Set[Scene] = frozenset()) -> Scene:
    """Draw one scene: with probability `COMMON_SHARE` a common one (Zipf over `NUM_COMMON`), else a fresh one.

    Args:
        rng (`random.Random`): the only source of chance.
        exclude (`Set[Scene]`, *optional*): scenes to draw again, for text and evaluation data apart from the pictures.
    """
    while True:
        if rng.random() < COMMON_SHARE:
            (scene,) = rng.choices(_common_scenes(), cum_weights=_zipf(NUM_COMMON, 0.8))
        else:
            scene = _sample_rare(rng)
        if scene not in exclude:
            return scene
