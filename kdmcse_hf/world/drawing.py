"""Drawing: a picture of a scene. Two drawings of one scene differ in places, sizes, tints and grain."""

import math
import random

from PIL import Image, ImageChops, ImageDraw

from kdmcse_hf.world.scenes import Colour, Scene, SceneObject

PAINT: dict[str, tuple[int, int, int]] = {
    "red": (212, 38, 44),
    "blue": (38, 84, 212),
    "green": (44, 158, 66),
    "yellow": (242, 214, 46),
    "purple": (128, 56, 166),
    "orange": (240, 134, 32),
    "black": (28, 28, 32),
    "pink": (246, 146, 192),
}
GROUND: dict[str, tuple[int, int, int]] = {
    "white": (244, 244, 244),
    "grey": (164, 166, 170),
    "beige": (226, 206, 168),
}
# Radii as shares of the picture's side; the bands stay apart after jitter, so the size can always be told.
RADIUS = {"small": 0.085, "large": 0.13}
_SCALE = 3  # drawn larger and scaled down: Pillow's polygons are not anti-aliased
_GRAIN = 10

Point = tuple[float, float]


def _polar(x: float, y: float, radii: list[float], start: float) -> list[Point]:
    """Corners around (x, y), one per radius, at equal angles from `start` (in turns; -0.25 points up)."""
    step = 1 / len(radii)
    angles = [2 * math.pi * (start + step * index) for index in range(len(radii))]
    return [(x + r * math.cos(angle), y + r * math.sin(angle)) for r, angle in zip(radii, angles, strict=True)]


def _paint(pen: ImageDraw.ImageDraw, thing: SceneObject, centre: Point, radius: float, fill: tuple[int, ...]) -> None:
    x, y = centre
    box = (x - radius, y - radius, x + radius, y + radius)
    match thing.shape:
        case "circle":
            pen.ellipse(box, fill=fill)
        case "ring":
            pen.ellipse(box, outline=fill, width=max(1, round(radius * 0.42)))
        case "square":
            side = radius * 0.88
            pen.rectangle((x - side, y - side, x + side, y + side), fill=fill)
        case "triangle":
            pen.polygon(_polar(x, y + radius * 0.2, [radius * 1.15] * 3, -0.25), fill=fill)
        case "diamond":
            pen.polygon(_polar(x, y, [radius * 1.15, radius * 0.8] * 2, -0.25), fill=fill)
        case "star":
            pen.polygon(_polar(x, y, [radius * 1.2, radius * 0.48] * 5, -0.25), fill=fill)
        case "cross":
            bar = radius * 0.34
            pen.rectangle((x - radius, y - bar, x + radius, y + bar), fill=fill)
            pen.rectangle((x - bar, y - radius, x + bar, y + radius), fill=fill)


def _tint(rng: random.Random, colour: tuple[int, int, int], spread: int) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, value + rng.randint(-spread, spread))) for value in colour)
    return red, green, blue


def _paint_for(colour: Colour, rng: random.Random) -> tuple[int, int, int]:
    return _tint(rng, PAINT[colour], 14)


def draw(scene: Scene, rng: random.Random, size: int = 64) -> Image.Image:
    """Draw `scene` as an RGB picture of `size` x `size` pixels.

    Args:
        scene (`Scene`): what to draw.
        rng (`random.Random`): the source of the jitter; the same state gives the same pixels.
        size (`int`, *optional*, defaults to 64): side in pixels, at least 16.
    """
    if size < 16:
        raise ValueError(f"`size` has to be at least 16 pixels to tell shapes apart, got {size}.")
    side = size * _SCALE
    picture = Image.new("RGB", (side, side), _tint(rng, GROUND[scene.background], 9))
    pen = ImageDraw.Draw(picture)
    count = len(scene.objects)
    slack = 0.2 if count == 1 else 0.02  # along the axis objects keep their slots, across it they may stray
    for index, thing in enumerate(scene.objects):
        along = (index + 0.5) / count + rng.uniform(-slack, slack)
        across = 0.5 + rng.uniform(-0.14, 0.14)
        centre = (along * side, across * side) if scene.axis == "row" else (across * side, along * side)
        radius = RADIUS[thing.size] * side * rng.uniform(0.92, 1.08)
        _paint(pen, thing, centre, radius, _paint_for(thing.colour, rng))
    picture = picture.resize((size, size), Image.Resampling.BOX)
    # Coarse grey grain: enough that no two files are equal, little enough that PNG stays small.
    half = (size + 1) // 2
    grain = Image.frombytes("L", (half, half), rng.randbytes(half * half))
    grain = grain.point([value * _GRAIN // 256 for value in range(256)]).resize((size, size), Image.Resampling.NEAREST)
    return ImageChops.add(picture, Image.merge("RGB", (grain, grain, grain)), 1, -(_GRAIN // 2))
