"""SentEval's transfer tasks: logistic regression on frozen sentence embeddings, with SentEval's folds.

Sentences are as the files have them, sorted by their number of words and then by label before folds are drawn, as
SentEval does. Folds are stratified and shuffled with seed 1111. The inverse strength C of the L2 regularisation is the
one of best mean accuracy on held-out folds or the dev set, rounded to two decimals; of equals the smallest:

MR, CR, SUBJ, MPQA    10 outer folds; in each, 10 inner folds of its training part choose C from 2^-2 ... 2^3
SST2                  the dev set chooses C from 2^-2 ... 2^3
TREC, MRPC            10 folds of the training set choose C from 2^-1 ... 2^5; MRPC's features are |u - v| and u * v

This is SentEval's scikit-learn route, as it was with the default of its day, liblinear: one class against the rest, the
intercept penalised, too. That optimum is found by Newton steps here, several times as fast. The papers' tables (SimCSE,
MCSE) come from SentEval's other route, a linear layer trained by Adam with early stopping: figures are near, not equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdmcse_hf.sts import Encoder

if TYPE_CHECKING:
    from sklearn.multiclass import OneVsRestClassifier

_POLARITY = {
    "MR": ("rt-polarity.pos", "rt-polarity.neg"),
    "CR": ("custrev.pos", "custrev.neg"),
    "SUBJ": ("subj.objective", "subj.subjective"),
    "MPQA": ("mpqa.pos", "mpqa.neg"),
}
TASKS = (*_POLARITY, "SST2", "TREC", "MRPC")
"""The seven tasks whose mean accuracy is the average of the papers' tables."""
_SPLITS = {
    "SST2": ("SST/binary/sentiment-train", "SST/binary/sentiment-dev", "SST/binary/sentiment-test"),
    "TREC": ("TREC/train_5500.label", "TREC/TREC_10.label"),
    "MRPC": ("MRPC/msr_paraphrase_train.txt", "MRPC/msr_paraphrase_test.txt"),
}
_TREC_CLASSES = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
_SEED = 1111
_WIDE, _HIGH = [2.0**power for power in range(-2, 4)], [2.0**power for power in range(-1, 6)]


@dataclass(frozen=True)
class LabelledSentences:
    """N examples of one split: one text each, or two in MRPC, and a class."""

    texts: list[tuple[str, ...]]
    labels: NDArray[np.int64]


def load_transfer(transfer_dir: str | Path, task: str) -> list[LabelledSentences]:
    """The splits of one task in SentEval's order: all of it, train and test, or train, dev and test.

    Files are UTF-8 or, where they are not valid UTF-8, Latin-1; runs of blanks become one.

    Args:
        transfer_dir: holds `MR/`, `CR/`, `SUBJ/`, `MPQA/`, `SST/binary/`, `TREC/` and `MRPC/`, as SentEval's
            `data/downstream` does.
        task: one of [`TASKS`].

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: an unknown task, or a line that is not as the layout has it, named by file and number.
    """
    root = Path(transfer_dir)
    if task in _POLARITY:
        positive, negative = (
            _examples(root / task / name, label) for label, name in zip("10", _POLARITY[task], strict=True)
        )
        return [_sorted(positive + negative)]
    if task in _SPLITS:
        return [_sorted(_examples(root / name, task)) for name in _SPLITS[task]]
    raise ValueError(f"Unknown transfer task {task!r}: expected one of {', '.join(TASKS)}.")


def evaluate_transfer(
    encode: Encoder, transfer_dir: str | Path, tasks: Sequence[str] = TASKS, *, folds: int = 10
) -> dict[str, float]:
    """Test accuracy x 100 of each task, MRPC's F1 as `MRPC_f1` where it is asked for, mean accuracy as `avg`.

    Each distinct sentence of a task is embedded once.

    Args:
        encode: sentences in, vectors out.
        transfer_dir, tasks: as in [`load_transfer`].
        folds: of every cross-validation; the papers' is 10.

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
        FileNotFoundError, ValueError: as [`load_transfer`], fewer than 2 folds, or embeddings that are not finite.
    """
    _need_sklearn()
    if folds < 2:
        raise ValueError(f"`folds` is {folds}: expected at least 2.")
    loaded = {task: load_transfer(transfer_dir, task) for task in tasks}  # a bad file shows before any encoding
    accuracies: dict[str, float] = {}
    extra: dict[str, float] = {}
    for task, splits in loaded.items():
        data = [(features, split.labels) for features, split in zip(_features(encode, splits), splits, strict=True)]
        if len(data) == 1:
            accuracies[task] = _nested(*data[0], folds)
            continue
        train, *_, test = data
        if len(data) == 3:
            scores = [[_fit(*train, strength).score(*data[1])] for strength in _WIDE]
            model = _fit(*train, _best(_WIDE, scores))
        else:
            model = _fit(*train, _cross_validated(*train, _HIGH, folds))
        accuracies[task] = 100 * float(model.score(*test))
        if task == "MRPC":
            extra["MRPC_f1"] = _f1(model.predict(test[0]), test[1])
    return accuracies | extra | {"avg": float(np.mean(list(accuracies.values())))}


def _need_sklearn() -> None:
    try:
        import sklearn  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Transfer tasks need scikit-learn, which is missing: pip install 'kdmcse_hf[eval]'", name="sklearn"
        ) from error


def _nested(features: NDArray[Any], labels: NDArray[np.int64], folds: int) -> float:
    scores = []
    for train, test in _folds(features, labels, folds):
        strength = _cross_validated(features[train], labels[train], _WIDE, folds)
        scores.append(_fit(features[train], labels[train], strength).score(features[test], labels[test]))
    return 100 * float(np.mean(scores))


def _cross_validated(features: NDArray[Any], labels: NDArray[np.int64], strengths: list[float], folds: int) -> float:
    splits = _folds(features, labels, folds)
    scores = [
        [_fit(features[train], labels[train], strength).score(features[test], labels[test]) for train, test in splits]
        for strength in strengths
    ]
    return _best(strengths, scores)


def _best(strengths: list[float], scores: list[list[float]]) -> float:
    return strengths[int(np.argmax(np.round(100 * np.mean(scores, axis=1), 2)))]


def _folds(features: NDArray[Any], labels: NDArray[np.int64], folds: int) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    from sklearn.model_selection import StratifiedKFold

    return list(StratifiedKFold(folds, shuffle=True, random_state=_SEED).split(features, labels))


def _fit(features: NDArray[Any], labels: NDArray[np.int64], strength: float) -> "OneVsRestClassifier":
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    classifier = LogisticRegression(C=strength, solver="newton-cholesky", fit_intercept=False, max_iter=1000)
    return OneVsRestClassifier(classifier).fit(features, labels)


def _f1(predicted: NDArray[Any], labels: NDArray[np.int64]) -> float:
    from sklearn.metrics import f1_score

    return 100 * float(f1_score(labels, predicted))


def _features(encode: Encoder, splits: list[LabelledSentences]) -> list[NDArray[Any]]:
    """A row an example; the last column is 1, whose weight is the intercept."""
    # CR has an empty line, which counts: published batchers make it a full stop.
    sentences = list(dict.fromkeys(text or "." for split in splits for texts in split.texts for text in texts))
    vectors = np.asarray(encode(sentences), dtype=np.float64)  # float32 is too coarse for Newton's Hessians
    if len(vectors) != len(sentences) or not np.isfinite(vectors).all():
        raise ValueError(
            f"The encoder made an array of shape {vectors.shape} for {len(sentences)} sentences, "
            f"{np.isnan(vectors).sum()} of its numbers NaN: expected one finite vector a sentence."
        )
    row = {sentence: index for index, sentence in enumerate(sentences)}
    result = []
    for split in splits:
        sides = [vectors[[row[text or "."] for text in side]] for side in zip(*split.texts, strict=True)]
        parts = sides if len(sides) == 1 else [abs(sides[0] - sides[1]), sides[0] * sides[1]]
        result.append(np.hstack([*parts, np.ones((len(split.texts), 1))]))
    return result


def _sorted(examples: list[tuple[tuple[str, ...], int]]) -> LabelledSentences:
    """In SentEval's order: folds are drawn by place."""
    examples = sorted(examples, key=lambda example: (*(len(text.split()) for text in example[0]), example[1]))
    return LabelledSentences([texts for texts, _ in examples], np.array([label for _, label in examples]))


def _examples(path: Path, kind: str) -> list[tuple[tuple[str, ...], int]]:
    """Texts and label of each line; `kind` is the task, or the label of a file that has but one."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing. `transfer_dir` must be a folder in SentEval's layout, with MR/, CR/, SUBJ/, MPQA/, "
            "SST/binary/, TREC/ and MRPC/; name fewer tasks if you have fewer."
        )
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    lines = text.removesuffix("\n").split("\n")
    examples = []
    for number, line in enumerate(lines, start=1):
        if kind == "MRPC" and number == 1:  # the header
            continue
        try:
            fields, label = _fields(line, kind)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}, got {line!r}.") from None
        texts = tuple(" ".join(field.split()) for field in fields)
        if not all(texts) and kind not in ("0", "1"):
            raise ValueError(f"{path}, line {number}: expected a sentence, got {line!r}.")
        examples.append((texts, label))
    return examples


def _fields(line: str, kind: str) -> tuple[list[str], int]:
    if kind in ("0", "1"):
        return [line], int(kind)
    if kind == "TREC":
        label, _, question = line.partition(" ")
        coarse = label.partition(":")[0]
        if coarse not in _TREC_CLASSES:
            raise ValueError(f"expected a class of {', '.join(_TREC_CLASSES)} with a colon")
        return [question], _TREC_CLASSES.index(coarse)
    fields = line.rstrip("\r").split("\t")
    texts, label = ([fields[0]], fields[-1]) if kind == "SST2" else (fields[3:5], fields[0])
    if len(fields) != (2 if kind == "SST2" else 5) or label not in ("0", "1"):
        raise ValueError(
            "expected a sentence and 0 or 1" if kind == "SST2" else "expected 0 or 1, two ids, two sentences"
        )
    return texts, int(label)
