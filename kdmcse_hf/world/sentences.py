"""Sentences: plain text without pictures in the captions' language: descriptions, questions, comparisons, counts."""

import random
from collections.abc import Set

from kdmcse_hf.world.captions import BACKWARD, FORWARD, Names, article, caption, choose_names, noun_phrase
from kdmcse_hf.world.meaning import state
from kdmcse_hf.world.scenes import Scene, sample_scene

_NUMBERS = ("two", "three", "four", "five", "several", "many", "no")
_RANK = {"small": ("smaller than", "not as big as"), "large": ("larger than", "bigger than")}


def _plural(noun: str) -> str:
    return f"{noun}es" if noun.endswith(("x", "s")) else f"{noun}s"


def _definite(phrase: str) -> str:
    return "the " + phrase.split(" ", 1)[1]


def _counts(names: Names, things: list[str], rng: random.Random) -> str:
    number, thing = rng.choice(_NUMBERS), things[0].split(" ", 1)[1]
    head, _, tail = thing.partition(" in ")
    plural = f"{_plural(head)} in {tail}" if tail else _plural(head)
    frames = (
        f"there are {number} {plural} in the {names['picture']}",
        f"{number} {plural} are missing",
        f"i counted {number} {plural} yesterday",
        f"this {names['picture']} has {number} {plural} in it",
    )
    return rng.choice(frames)


def _questions(names: Names, things: list[str], rng: random.Random) -> str:
    axis = rng.choice(("row", "column"))
    relation = names[rng.choice((FORWARD, BACKWARD))[axis]]
    first, second = things[0], things[-1]
    frames = (
        f"is {_definite(first)} {relation} {_definite(second)}?",
        f"what do you see {relation} {_definite(first)}?",
        f"where did {_definite(first)} go?",
        f"which {names['picture']} shows {first}?",
        f"can you find {first} {relation} {second}?",
    )
    return rng.choice(frames)


def _comparisons(names: Names, things: list[str], rng: random.Random) -> str:
    first, second = _definite(things[0]), _definite(things[-1])
    frames = (
        f"{first} is {rng.choice(_RANK[rng.choice(('small', 'large'))])} {second}",
        f"{first} looks just like {second}",
        f"i like {first} better than {second}",
        f"{first} and {second} do not touch",
        f"unlike {second}, {first} has {article(names['ground'])} of its own",
    )
    return rng.choice(frames)


def _requests(names: Names, things: list[str], rng: random.Random) -> str:
    axis = rng.choice(("row", "column"))
    relation = names[rng.choice((FORWARD, BACKWARD))[axis]]
    first, second = things[0], _definite(things[-1])
    frames = (
        f"please draw {first} {relation} {second}",
        f"move {_definite(first)} so that it {names['verb']} {relation} {second}",
        f"do not paint {first} on this {names['picture']}",
        f"she put {first} {relation} {second}",
        f"paint {_definite(first)} {names[rng.choice(('red', 'blue', 'green', 'yellow', 'purple', 'orange'))]} again",
    )
    return rng.choice(frames)


def sentence(rng: random.Random, exclude: Set[Scene] = frozenset()) -> str:
    """One plain sentence: 2 in 5 describe a scene as a caption would, the rest are of other kinds.

    Args:
        rng (`random.Random`): the only source of chance.
        exclude (`Set[Scene]`, *optional*): scenes not to talk about, such as those that have pictures.
    """
    scene = sample_scene(rng, exclude)
    if rng.random() < 0.4:
        return caption(scene, rng)[0]
    names = choose_names(rng)
    things = [noun_phrase(thing, names, rng) for thing in state(scene, rng).objects]
    if len(things) == 1:
        things.append(noun_phrase(state(sample_scene(rng), rng).objects[0], names, rng))
    return rng.choice((_counts, _questions, _comparisons, _requests))(names, things, rng)
