"""Meanings: what a caption states about a picture, when that is true, and how alike two meanings are."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, permutations

from kdmcse_hf.world.scenes import Axis, Background, Colour, Scene, SceneObject, Shape, Size

# similarity = objects * (1 - RELATION_SHARE * (1 - relation)) * (1 - BACKGROUND_SHARE * (1 - background))
ATTRIBUTE_WEIGHTS = {"shape": 0.4, "colour": 0.4, "size": 0.2}
RELATION_SHARE = 0.4
BACKGROUND_SHARE = 0.15
UNSTATED = 0.5  # agreement of a stated with an unstated value


@dataclass(frozen=True, slots=True)
class StatedObject:
    """One object as far as a caption states it; `None` is unstated."""

    shape: Shape | None = None
    colour: Colour | None = None
    size: Size | None = None

    def fits(self, thing: SceneObject) -> bool:
        """Whether everything stated is true of `thing`."""
        pairs = ((self.shape, thing.shape), (self.colour, thing.colour), (self.size, thing.size))
        return all(stated in (None, seen) for stated, seen in pairs)

    @property
    def key(self) -> tuple[str, str, str]:
        """Sort key of the canonical order."""
        return self.shape or "", self.colour or "", self.size or ""


@dataclass(frozen=True, slots=True)
class Meaning:
    """A partial scene: one to three objects, the axis they are ordered along if stated, the background if stated.

    With an `axis`, `objects` are in order along it. Without one their order says nothing, so they are sorted: two
    captions mean the same exactly when their meanings are equal.
    """

    objects: tuple[StatedObject, ...]
    axis: Axis | None = None
    background: Background | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.objects) <= 3:
            raise ValueError(f"A meaning states 1 to 3 objects, got {len(self.objects)}.")
        if len(self.objects) == 1 and self.axis is not None:
            raise ValueError(f"A meaning of one object has no `axis`, got {self.axis!r}.")
        if self.axis is None:
            object.__setattr__(self, "objects", tuple(sorted(self.objects, key=lambda thing: thing.key)))


def state(scene: Scene, rng: random.Random) -> Meaning:
    """Choose what a caption of `scene` says: always something true, seldom everything."""
    count = len(scene.objects)
    if count > 1 and rng.random() < 0.22:
        count -= 1
    kept = sorted(rng.sample(range(len(scene.objects)), count))
    # Size is mentioned for all objects of a caption or for none, as people do; shape or colour may be left out alone.
    sized = rng.random() < 0.4
    objects = []
    for thing in (scene.objects[index] for index in kept):
        full = StatedObject(thing.shape, thing.colour, thing.size if sized else None)
        omitted = rng.random()
        if omitted < 0.08:
            full = replace(full, shape=None)
        elif omitted < 0.2:
            full = replace(full, colour=None)
        objects.append(full)
    axis = scene.axis if count > 1 and rng.random() < 0.75 else None
    background = scene.background if rng.random() < 0.15 else None
    return Meaning(tuple(objects), axis, background)


def describes(meaning: Meaning, scene: Scene) -> bool:
    """Whether everything `meaning` states is true of `scene`: its objects are different objects of the scene that
    have the stated attributes and, where an axis is stated, lie along it in the stated order."""
    if meaning.background not in (None, scene.background) or len(meaning.objects) > len(scene.objects):
        return False
    choices: Iterable[tuple[SceneObject, ...]]
    if meaning.axis is None:
        choices = permutations(scene.objects, len(meaning.objects))
    elif meaning.axis == scene.axis:
        choices = combinations(scene.objects, len(meaning.objects))  # combinations keep the order of the scene
    else:
        return False
    return any(all(a.fits(b) for a, b in zip(meaning.objects, choice, strict=True)) for choice in choices)


def _agreement(a: str | None, b: str | None) -> float:
    if a == b:
        return 1.0
    return UNSTATED if a is None or b is None else 0.0


@cache
def _object_agreement(a: StatedObject, b: StatedObject) -> float:
    """Weighted mean agreement over the attributes that at least one of the two states."""
    pairs = zip(ATTRIBUTE_WEIGHTS.values(), zip(a.key, b.key, strict=True), strict=True)
    stated = [(weight, _agreement(x or None, y or None)) for weight, (x, y) in pairs if x or y]
    total = sum(weight for weight, _ in stated)
    return 1.0 if not stated else sum(weight * value for weight, value in stated) / total


def _relation_agreement(a: Meaning, b: Meaning, match: list[tuple[int, int]]) -> float:
    if a.axis is None or b.axis is None or a.axis != b.axis:
        return _agreement(a.axis, b.axis)
    pairs = list(combinations(match, 2))
    kept = sum((i < k) == (j < m) for (i, j), (k, m) in pairs)
    return kept / len(pairs) if pairs else 1.0


def similarity(meaning_a: Meaning, meaning_b: Meaning) -> float:
    """Gold similarity in [0, 1], symmetric, 1 exactly for equal meanings.

    The best over all one-to-one matchings of the objects of

        objects * (1 - 0.4 * (1 - relation)) * (1 - 0.15 * (1 - background))

    - `objects`: sum of the matched objects' agreements over the larger number of objects. An object's agreement is the
      mean (weights: shape 0.4, colour 0.4, size 0.2) over the attributes that at least one of the two states, of 1 if
      equal, 0.5 if only one states it, else 0.
    - `relation`: the share of matched pairs of objects in the same order along the same stated axis; 0.5 if only one
      caption states an axis, 1 if none does, 0 for different axes.
    - `background`: agrees like an attribute, 1 if none states one.
    """
    few, many = sorted((meaning_a, meaning_b), key=lambda meaning: len(meaning.objects))
    best = 0.0
    for chosen in permutations(range(len(many.objects)), len(few.objects)):
        match = list(enumerate(chosen))
        agreed = sorted(_object_agreement(few.objects[i], many.objects[j]) for i, j in match)  # sorted: exact symmetry
        relation = 1 - RELATION_SHARE * (1 - _relation_agreement(few, many, match))
        best = max(best, sum(agreed) / len(many.objects) * relation)
    return best * (1 - BACKGROUND_SHARE * (1 - _agreement(meaning_a.background, meaning_b.background)))
