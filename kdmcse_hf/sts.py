"""Semantic textual similarity: the seven sets in SentEval's layout, and their scores for any encoder."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdmcse_hf.metrics import Alignment, Spearman, Uniformity

Encoder = Callable[[Sequence[str]], NDArray[Any]]
"""Sentences in, (N, H) vectors out: a [`SentenceEncoder`], `SentenceTransformer.encode`, or anything alike."""

_YEARS = {
    "STS12": ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    "STS13": ("FNWN", "headlines", "OnWN"),
    "STS14": ("deft-forum", "deft-news", "headlines", "images", "OnWN", "tweet-news"),
    "STS15": ("answers-forums", "answers-students", "belief", "headlines", "images"),
    "STS16": ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
}
TASKS = (*_YEARS, "STSB", "SICKR")
"""The seven sets whose mean is the average of the papers' tables, by the names that results carry."""
POSITIVE_SCORE = 4.0
"""Pairs with at least this gold score are the positives of alignment, as in SimCSE."""


@dataclass(frozen=True)
class SentencePairs:
    """N sentence pairs and their gold scores (higher is more similar)."""

    first: list[str]
    second: list[str]
    scores: list[float]

    def __len__(self) -> int:
        return len(self.scores)


def load_sts(sts_dir: str | Path, task: str, split: str = "test") -> SentencePairs:
    """The pairs of one task, all its subsets joined (SentEval's "all"), from a folder in SentEval's layout.

    Args:
        sts_dir: holds `STS/STS12-en-test/...`, `STS/STSBenchmark/sts-*.csv`, `SICK/SICK_test_annotated.txt`.
        task: one of [`TASKS`].
        split: `"test"`; STS-B also has `"dev"` and `"train"`.

    Raises:
        ValueError: an unknown task, or a line that is not as the layout has it, named by file and number.
        FileNotFoundError: a file of the layout is missing.
    """
    root = Path(sts_dir)
    if task not in TASKS:
        raise ValueError(f"Unknown STS task {task!r}: expected one of {', '.join(TASKS)}.")
    if split != "test" and task != "STSB":
        raise ValueError(f"The task {task} has no {split!r} split here: only STSB has more than 'test'.")
    if task == "STSB":
        rows = _columns(root / "STS" / "STSBenchmark" / f"sts-{split}.csv", (5, 6, 4))
    elif task == "SICKR":
        rows = _columns(root / "SICK" / "SICK_test_annotated.txt", (1, 2, 3), header=True)
    else:
        folder = root / "STS" / f"{task}-en-test"
        rows = (row for subset in _YEARS[task] for row in _year_subset(folder, subset))
    first: list[str] = []
    second: list[str] = []
    scores: list[float] = []
    for left, right, score in rows:
        if not left.strip() or not right.strip():
            raise ValueError(
                f"{task} ({split}) in {root}, pair {len(scores) + 1}: a sentence is empty ({left!r}, {right!r})."
            )
        first.append(left)
        second.append(right)
        scores.append(score)
    return SentencePairs(first, second, scores)


def sts_subsets(sts_dir: str | Path, task: str) -> dict[str, NDArray[np.int64]]:
    """Which pairs of a task's test split are of which subset: their rows, by the subset's name.

    STS12 to STS16 have a file a subset (headlines, images, forums ...), STS-B has genres, SICK-R has none.
    """
    root = Path(sts_dir)
    if task in _YEARS:
        folder = root / "STS" / f"{task}-en-test"
        names = [subset for subset in _YEARS[task] for _ in _year_subset(folder, subset)]
    elif task == "STSB":
        names = [line.split("\t")[0] for line in _lines(root / "STS" / "STSBenchmark" / "sts-test.csv")]
    else:
        names = []
    return {name: np.flatnonzero(np.asarray(names) == name) for name in dict.fromkeys(names)}


def score_pairs(encode: Encoder, pairs: SentencePairs) -> dict[str, float]:
    """`spearman` x 100 of cosine and gold, `alignment` of the pairs with gold >= 4, `uniformity` of all sentences.

    `alignment` is left out where no pair is positive.
    """
    vectors, row = _encode_once(encode, [pairs])
    first, second = ([row[s] for s in side] for side in (pairs.first, pairs.second))
    result: dict[str, float] = {"spearman": _spearman((vectors[first] * vectors[second]).sum(axis=1), pairs.scores)}
    positive = np.flatnonzero(np.asarray(pairs.scores) >= POSITIVE_SCORE)
    if len(positive):
        positives = vectors[np.asarray(first)[positive]], vectors[np.asarray(second)[positive]]
        result |= Alignment().compute(predictions=positives[0], references=positives[1])
    result |= Uniformity().compute(predictions=vectors)
    return result


def sts_cosines(
    encode: Encoder, sts_dir: str | Path, tasks: Sequence[str] = TASKS
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """The cosines and the gold scores, (N,) each, of each task's test split: what every score is made of."""
    loaded = {task: load_sts(sts_dir, task) for task in tasks}  # a missing file shows before any encoding
    vectors, row = _encode_once(encode, loaded.values())
    result = {}
    for task, pairs in loaded.items():
        first, second = ([row[s] for s in side] for side in (pairs.first, pairs.second))
        result[task] = (vectors[first] * vectors[second]).sum(axis=1), np.asarray(pairs.scores)
    return result


def sts_pair_numbers(sts_dir: str | Path, tasks: Sequence[str] = TASKS) -> dict[str, NDArray[np.int64]]:
    """Which pair each one of a task's test split is, (N,): the same number for the same pair in whatever task.

    Two are the same if their sentences are, in either order, by [`sentence_key`]. Of STS-B's test pairs, most stand in
    STS12 to STS16 as well.
    """
    numbers: dict[tuple[str, ...], int] = {}

    def number(*sentences: str) -> int:
        return numbers.setdefault(tuple(sorted(map(sentence_key, sentences))), len(numbers))

    loaded = {task: load_sts(sts_dir, task) for task in tasks}
    return {
        task: np.array([number(*pair) for pair in zip(pairs.first, pairs.second, strict=True)])
        for task, pairs in loaded.items()
    }


def sentence_key(sentence: str) -> str:
    """What a sentence is but for case, spaces and punctuation: the same sentence has it in every file."""
    return re.sub(r"\W+", "", sentence.casefold())


def evaluate_sts(encode: Encoder, sts_dir: str | Path, tasks: Sequence[str] = TASKS) -> dict[str, float]:
    """Spearman x 100 of each task's test split, by task, and their mean as `avg`."""
    result = {task: _spearman(*scored) for task, scored in sts_cosines(encode, sts_dir, tasks).items()}
    return result | {"avg": float(np.mean(list(result.values())))}


def _encode_once(encode: Encoder, sets: Iterable[SentencePairs]) -> tuple[NDArray[np.float64], dict[str, int]]:
    """Normalised vectors of the distinct sentences, and the row of each.

    In float64: the raw CLS vectors of an encoder that was never trained for it can differ by less than 1e-3, and
    float32 cosines then take a few dozen values, whose ranks are rounding noise.
    """
    sentences = list(dict.fromkeys(s for pairs in sets for s in (*pairs.first, *pairs.second)))
    vectors = encode_checked(encode, sentences)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
    return vectors, {sentence: index for index, sentence in enumerate(sentences)}


def encode_checked(encode: Encoder, sentences: Sequence[str]) -> NDArray[np.float64]:
    """The (N, H) vectors of N sentences; raises a `ValueError` if they are not finite, or not one a sentence."""
    vectors = np.asarray(encode(sentences), dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != len(sentences) or not np.isfinite(vectors).all():
        raise ValueError(
            f"The encoder made an array of shape {vectors.shape} for {len(sentences)} sentences, "
            f"{np.isnan(vectors).sum()} of its numbers NaN: expected one finite vector a sentence."
        )
    return vectors


def _spearman(cosine: NDArray[np.float64], scores: Sequence[float] | NDArray[np.float64]) -> float:
    return float(Spearman().compute(predictions=cosine, references=scores)["spearman"])


def _year_subset(folder: Path, subset: str) -> Iterator[tuple[str, str, float]]:
    inputs, gold = folder / f"STS.input.{subset}.txt", folder / f"STS.gs.{subset}.txt"
    lines, scores = _lines(inputs), _lines(gold)
    if len(lines) != len(scores):
        raise ValueError(f"{inputs} has {len(lines)} lines but {gold} has {len(scores)}: expected as many.")
    for number, (line, score) in enumerate(zip(lines, scores, strict=True), start=1):
        if not score.strip():  # STS15 and STS16 hold pairs that were never scored
            continue
        fields = line.split("\t")
        if len(fields) < 2:
            raise ValueError(f"{inputs}, line {number}: expected two sentences with a tab between, got {line!r}.")
        yield fields[0], fields[1], _number(score, gold, number)


def _columns(path: Path, columns: tuple[int, int, int], header: bool = False) -> Iterator[tuple[str, str, float]]:
    for number, line in enumerate(_lines(path), start=1):
        if header and number == 1:
            continue
        fields = line.split("\t")
        if len(fields) <= max(columns):
            raise ValueError(
                f"{path}, line {number}: expected at least {max(columns) + 1} tab-separated columns, got {len(fields)}."
            )
        yield fields[columns[0]], fields[columns[1]], _number(fields[columns[2]], path, number)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing. `sts_dir` must be a folder in SentEval's layout, with STS/STS12-en-test/ ... "
            "STS/STS16-en-test/, STS/STSBenchmark/ and SICK/; name fewer tasks if you have fewer."
        )
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def _number(text: str, path: Path, line: int) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{path}, line {line}: expected a score, got {text.strip()!r}.") from None
