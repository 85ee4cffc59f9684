"""Sentence pairs with gold similarity, in the layout of the STS Benchmark, evenly spread over its scale of 0 to 5."""

import csv
import random
from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from kdmcse_hf.world.captions import express
from kdmcse_hf.world.meaning import Meaning, StatedObject, similarity, state
from kdmcse_hf.world.scenes import COLOURS, SHAPES, SIZES, Scene, sample_scene

Kind: TypeAlias = Literal["paraphrase", "same-scene", "binding", "order", "edit", "other"]

_BINS = 5
_MAX_SCORE = 5.0
_FUNCTION_WORDS = frozenset("a an the of is to on in at and there this it".split())


@dataclass(frozen=True, slots=True)
class SentencePair:
    """Two sentences, how they were made, and their gold similarity from 0 (nothing in common) to 5 (same meaning)."""

    first: str
    second: str
    score: float
    kind: Kind


def _exchange_binding(meaning: Meaning, rng: random.Random) -> Meaning:
    """Two objects trade colours or shapes: "red circle above blue square", "blue circle above red square"."""
    objects = list(meaning.objects)
    i, j = rng.sample(range(len(objects)), 2)
    if rng.random() < 0.5:
        traded = replace(objects[i], colour=objects[j].colour), replace(objects[j], colour=objects[i].colour)
    else:
        traded = replace(objects[i], shape=objects[j].shape), replace(objects[j], shape=objects[i].shape)
    objects[i], objects[j] = traded
    return replace(meaning, objects=tuple(objects))


def _exchange_places(meaning: Meaning, rng: random.Random) -> Meaning:
    """Two objects trade places: "A above B", "B above A"."""
    objects = list(meaning.objects)
    i, j = rng.sample(range(len(objects)), 2)
    objects[i], objects[j] = objects[j], objects[i]
    return replace(meaning, objects=tuple(objects))


def _edit_object(thing: StatedObject, rng: random.Random) -> StatedObject:
    match rng.choice(("shape", "colour", "size")):
        case "shape":
            return replace(thing, shape=rng.choice(SHAPES))
        case "colour":
            return replace(thing, colour=rng.choice(COLOURS))
        case _:
            return replace(thing, size=rng.choice((*SIZES, None)))


def _edit(meaning: Meaning, rng: random.Random) -> Meaning:
    """Change one to three values, drop an object, or drop or turn the relation."""
    objects = list(meaning.objects)
    axis = meaning.axis
    for _ in range(rng.randint(1, 3)):
        what = rng.random()
        if what < 0.15 and len(objects) > 1:
            objects.pop(rng.randrange(len(objects)))
        elif what < 0.3 and len(objects) > 1:
            axis = rng.choice(("row", "column", None))
        else:
            index = rng.randrange(len(objects))
            objects[index] = _edit_object(objects[index], rng)
    return Meaning(tuple(objects), axis if len(objects) > 1 else None, meaning.background)


def _content(sentence: str) -> set[str]:
    return set(sentence.replace(",", "").split()) - _FUNCTION_WORDS


def _other_words(meaning: Meaning, sentence: str, rng: random.Random) -> str:
    """Of a few ways to say `meaning` the one that shares the fewest content words with `sentence`."""
    taken = _content(sentence)
    return min((express(meaning, rng) for _ in range(8)), key=lambda other: len(taken & _content(other)))


def _sample_pair(rng: random.Random, kind: Kind, exclude: Set[Scene]) -> SentencePair:
    scene = sample_scene(rng, exclude)
    first = state(scene, rng)
    while kind in ("binding", "order") and (len(first.objects) < 2 or first.axis is None):
        scene = sample_scene(rng, exclude)
        first = state(scene, rng)
    make: dict[Kind, Callable[[], Meaning]] = {
        "paraphrase": lambda: first,
        "same-scene": lambda: state(scene, rng),
        "binding": lambda: _exchange_binding(first, rng),
        "order": lambda: _exchange_places(first, rng),
        "edit": lambda: _edit(first, rng),
        "other": lambda: state(sample_scene(rng, exclude), rng),
    }
    second = make[kind]()
    seed = rng.getrandbits(48)
    said = express(first, random.Random(seed))
    # Hard pairs, where overlap misleads: the same words for what differs, other words for what is alike.
    if kind in ("binding", "order") or (kind == "edit" and rng.random() < 0.5):
        answer = express(second, random.Random(seed))
    elif kind == "paraphrase" and rng.random() < 0.5:
        answer = _other_words(second, said, rng)
    else:
        answer = express(second, rng)
    return SentencePair(said, answer, _MAX_SCORE * similarity(first, second), kind)


def sentence_pairs(rng: random.Random, count: int, exclude: Set[Scene] = frozenset()) -> list[SentencePair]:
    """Draw `count` pairs of different sentences, equally many (up to one) in each fifth of the scale, in random order.

    Args:
        rng (`random.Random`): the only source of chance.
        count (`int`): number of pairs.
        exclude (`Set[Scene]`, *optional*): scenes that no pair may come from, such as those with pictures.
    """
    kinds: tuple[Kind, ...] = get_args(Kind)
    room = [count // _BINS + (index < count % _BINS) for index in range(_BINS)]
    pairs: list[SentencePair] = []
    while len(pairs) < count:
        pair = _sample_pair(rng, rng.choice(kinds), exclude)
        index = min(int(pair.score / _MAX_SCORE * _BINS), _BINS - 1)
        if room[index] and pair.first != pair.second:
            room[index] -= 1
            pairs.append(pair)
    rng.shuffle(pairs)
    return pairs


def write_pairs(path: Path, pairs: list[SentencePair]) -> None:
    """Write `pairs` as the STS Benchmark does: tab separated, unquoted, without a header; `file` holds the kind."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n")
        for row, pair in enumerate(pairs):
            scene = ("main-captions", pair.kind, "world", f"{row:04d}")
            writer.writerow((*scene, f"{pair.score:.3f}", pair.first, pair.second))
