"""Captions: the world's language for meanings, with many ways to say each.

Every value has several names, every relation can be told from either side, and a sentence has many frames, so that
two captions of one meaning often share hardly a word while two that share every word may mean different things.
"""

import random
from collections.abc import Callable

from kdmcse_hf.world.meaning import Meaning, StatedObject, state
from kdmcse_hf.world.scenes import Scene

# Names of a value, the commonest first. "disc" and "circle" are the same thing to everybody who looks.
NAMES: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc", "round shape", "roundel"),
    "square": ("square", "box", "tile", "block"),
    "triangle": ("triangle", "wedge", "three-sided shape"),
    "star": ("star", "pentagram", "five-pointed shape"),
    "cross": ("cross", "plus sign", "plus"),
    "diamond": ("diamond", "rhombus", "lozenge"),
    "ring": ("ring", "hoop", "hollow circle"),
    "red": ("red", "crimson", "scarlet", "ruby"),
    "blue": ("blue", "azure", "cobalt", "navy"),
    "green": ("green", "emerald", "jade"),
    "yellow": ("yellow", "golden", "lemon"),
    "purple": ("purple", "violet", "lilac"),
    "orange": ("orange", "amber", "tangerine"),
    "black": ("black", "inky", "jet"),
    "pink": ("pink", "rosy", "salmon"),
    "small": ("small", "tiny", "little", "mini"),
    "large": ("large", "big", "huge", "giant"),
    "white": ("white", "snowy", "blank"),
    "grey": ("grey", "ashen", "silvery"),
    "beige": ("beige", "sandy", "cream"),
    "anything": ("shape", "thing", "figure", "object"),
    "ground": ("background", "backdrop", "ground"),
    "picture": ("picture", "image", "drawing", "photo"),
    "verb": ("is", "sits", "lies", "can be seen", "rests"),
    "above": ("above", "over", "on top of", "higher up than"),
    "below": ("below", "under", "beneath", "underneath"),
    "left": ("left of", "to the left of", "on the left side of", "west of"),
    "right": ("right of", "to the right of", "on the right side of", "east of"),
}
# The relation of an earlier to a later object along the axis, and of the later to the earlier.
FORWARD = {"row": "left", "column": "above"}
BACKWARD = {"row": "right", "column": "below"}

Names = dict[str, str]
Frame = Callable[[Names, list[str], str, random.Random], str]


def choose_names(rng: random.Random) -> Names:
    """One name for every value, in the same draws each time: a sentence keeps its words when its meaning changes."""
    return {value: names[int(len(names) * rng.random() ** 1.3)] for value, names in NAMES.items()}


def article(phrase: str) -> str:
    """`phrase` with its indefinite article."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def noun_phrase(thing: StatedObject, names: Names, rng: random.Random) -> str:
    """ "a small crimson disc", or with the colour behind the noun."""
    noun = names[thing.shape or "anything"]
    size = [names[thing.size]] if thing.size else []
    late = rng.random() < 0.2
    if thing.colour is None:
        return article(" ".join([*size, noun]))
    colour = names[thing.colour]
    return article(" ".join([*size, noun, "in", colour] if late else [*size, colour, noun]))


def _enumeration(phrases: list[str]) -> str:
    if len(phrases) == 1:
        return phrases[0]
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _plain_frames(names: Names, phrases: list[str], _axis: str, rng: random.Random) -> str:
    """Objects without a relation: their order is free, so it is shuffled."""
    rng.shuffle(phrases)
    first, rest = phrases[0], _enumeration(phrases[1:]) if len(phrases) > 1 else ""
    picture, every = names["picture"], _enumeration(phrases)
    frames = [every, f"there is {every}", f"this {picture} shows {every}", f"{article(picture)} of {every}"]
    if rest:
        frames += [f"{first} {link} {rest}" for link in ("together with", "accompanied by", "as well as")]
    else:
        frames += [f"{first} on its own", f"we see {first}", f"one can make out {first}"]
    return rng.choice(frames)


def _pair_frames(names: Names, phrases: list[str], axis: str, rng: random.Random) -> str:
    """Two objects in order, told from either side, in active and passive style."""
    first, second = phrases
    forward, backward = names[FORWARD[axis]], names[BACKWARD[axis]]
    verb, picture = names["verb"], names["picture"]
    frames = [
        f"{first} {verb} {forward} {second}",
        f"{second} {verb} {backward} {first}",
        f"{forward} {second} {verb} {first}",
        f"{backward} {first} {verb} {second}",
        f"{article(picture)} of {first} {forward} {second}",
        f"{article(picture)} of {second} {backward} {first}",
        f"{forward} {second} there is {first}",
        f"{backward} {first} there is {second}",
    ]
    if axis == "row":
        frames += [
            f"{second} has {first} on its left",
            f"{first} is followed on the right by {second}",
            f"{second} is preceded on the left by {first}",
            f"from left to right, {first} and {second}",
        ]
    else:
        frames += [
            f"{second} is topped by {first}",
            f"{first} is supported by {second}",
            f"{second} carries {first}",
            f"from top to bottom, {first} and {second}",
        ]
    return rng.choice(frames)


def _triple_frames(names: Names, phrases: list[str], axis: str, rng: random.Random) -> str:
    """Three objects in order, from either end or from the middle."""
    first, second, third = phrases
    forward, backward, verb = names[FORWARD[axis]], names[BACKWARD[axis]], names["verb"]
    start, end = ("left", "right") if axis == "row" else ("top", "bottom")
    return rng.choice(
        [
            f"from {start} to {end}, {first}, {second} and {third}",
            f"from {end} to {start}, {third}, {second} and {first}",
            f"{second} {verb} between {first} at the {start} and {third} at the {end}",
            f"{first} {forward} {second} {forward} {third}",
            f"{third} {backward} {second} {backward} {first}",
            f"{first} at the {start}, {second} in the middle, {third} at the {end}",
        ]
    )


_FRAMES: dict[int, Frame] = {1: _plain_frames, 2: _pair_frames, 3: _triple_frames}


def express(meaning: Meaning, rng: random.Random) -> str:
    """Say `meaning` in one lower-case sentence.

    Two meanings expressed from the same state of `rng` share frame and names wherever both have the same parts: that
    is how pairs of the same words with another binding are made.
    """
    names = choose_names(rng)
    # A generator per part, so that a part more or less in one meaning does not shift the choices of the others.
    seed = rng.getrandbits(48)
    phrase_rng, frame_rng, ground_rng = (random.Random(seed + part) for part in range(3))
    phrases = [noun_phrase(thing, names, phrase_rng) for thing in meaning.objects]
    frame = _plain_frames if meaning.axis is None else _FRAMES[len(meaning.objects)]
    sentence = frame(names, phrases, meaning.axis or "row", frame_rng)
    if meaning.background is not None:
        ground = article(f"{names[meaning.background]} {names['ground']}")
        sentence = f"{sentence} {ground_rng.choice(('on', 'against'))} {ground}"
    return sentence


def caption(scene: Scene, rng: random.Random) -> tuple[str, Meaning]:
    """A caption that is true of `scene`, and what it states."""
    meaning = state(scene, rng)
    return express(meaning, rng), meaning
