import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from kdmcse_hf.transfer import evaluate_transfer, load_transfer

HEADER = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"


def write(root: Path, name: str, content: str | bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_review_task(root: Path, count: int = 60) -> None:
    """CR: which of two words a sentence holds is its label, but for a fifth of them; lengths differ."""
    rng = np.random.default_rng(0)
    lines: dict[str, list[str]] = {"pos": [], "neg": []}
    for number in range(count):
        word = ["good", "bad"][(number % 2) ^ (rng.random() < 0.2)]
        lines[["pos", "neg"][number % 2]].append(f"{word} {'thing ' * rng.integers(1, 5)}{number} ")
    for name, texts in lines.items():
        write(root, f"CR/custrev.{name}", "\n".join(texts) + "\n")


def vector(sentence: str) -> np.ndarray:
    """The word, some noise that belongs to the sentence."""
    noise = np.random.default_rng(list(sentence.encode())).normal(size=5)
    return np.r_[sentence.count("good") - sentence.count("bad"), noise]


def encode(sentences: list[str]) -> np.ndarray:
    return np.array([vector(sentence) for sentence in sentences])


def test_reviews_are_scored_as_nested_loops_over_senteval_s_folds(tmp_path: Path) -> None:
    write_review_task(tmp_path)
    examples = []
    for label, name in ((1, "pos"), (0, "neg")):
        for line in (tmp_path / "CR" / f"custrev.{name}").read_text().splitlines():
            examples.append((line.split(), label))
    examples.sort(key=lambda example: (len(example[0]), example[1]))
    x, y = encode([" ".join(words) for words, _ in examples]), np.array([label for _, label in examples])

    def fitted(rows: np.ndarray, c: float) -> LogisticRegression:
        return LogisticRegression(C=c, solver="liblinear").fit(x[rows], y[rows])

    outer = []
    for train, test in StratifiedKFold(3, shuffle=True, random_state=1111).split(x, y):
        means = []
        for c in (0.25, 0.5, 1, 2, 4, 8):
            inner = StratifiedKFold(3, shuffle=True, random_state=1111).split(x[train], y[train])
            means.append(np.mean([fitted(train[a], c).score(x[train[b]], y[train[b]]) for a, b in inner]))
        best = (0.25, 0.5, 1, 2, 4, 8)[int(np.argmax(np.round(np.array(means) * 100, 2)))]
        outer.append(fitted(train, best).score(x[test], y[test]))
    scores = evaluate_transfer(encode, tmp_path, ["CR"], folds=3)
    assert scores == pytest.approx({"CR": 100 * np.mean(outer), "avg": 100 * np.mean(outer)})
    assert 60 < scores["CR"] < 95


def test_sentiment_is_chosen_on_dev_and_scored_on_test(tmp_path: Path) -> None:
    """Train and dev agree, and the test labels are turned round: all right there is none right here."""
    for name, turned in (("train", 0), ("dev", 0), ("test", 1)):
        lines = [f"{['bad', 'good'][n % 2]} film {n} \t{n % 2 ^ turned}\n" for n in range(20)]
        write(tmp_path, f"SST/binary/sentiment-{name}", "".join(lines))
    clean = lambda sentences: encode(sentences)[:, :1]  # noqa: E731
    assert evaluate_transfer(clean, tmp_path, ["SST2"]) == {"SST2": 0.0, "avg": 0.0}


def test_questions_are_read_from_latin_1_and_scored_by_their_six_classes(tmp_path: Path) -> None:
    classes = ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]
    lines = [f"{classes[n % 6]}:fine What  caf\xe9 {n} ?\n" for n in range(36)]
    write(tmp_path, "TREC/train_5500.label", "".join(lines).encode("latin-1"))
    write(tmp_path, "TREC/TREC_10.label", "".join(lines[:12]) + "NUM:date What 0 ?\n")
    train, test = load_transfer(tmp_path, "TREC")
    assert ("What caf\xe9 7 ?",) in train.texts
    assert train.labels[train.texts.index(("What caf\xe9 7 ?",))] == 1
    assert test.texts[0] == ("What 0 ?",)  # the shortest

    def one_hot(sentences: list[str]) -> np.ndarray:
        return 9 * np.eye(6)[[int(sentence.split()[-2]) % 6 for sentence in sentences]]

    assert evaluate_transfer(one_hot, tmp_path, ["TREC"], folds=2)["TREC"] == pytest.approx(100 * 12 / 13)


def test_paraphrases_are_told_by_difference_and_product_with_their_f1(tmp_path: Path) -> None:
    """Equal sides are paraphrases; one of the test's 3 paraphrases is written differently, and so is missed."""
    train = [f"{n % 2}\t1\t2\tgood {n}\t{'good' if n % 2 else 'bad'} {n}\n" for n in range(40)]
    test = [
        "1\t1\t2\tgood a\tgood a\n",
        "1\t1\t2\tbad b\tbad b\n",
        "1\t1\t2\tgood c\tbad c\n",
        "0\t1\t2\tgood d\tbad d\n",
    ]
    write(tmp_path, "MRPC/msr_paraphrase_train.txt", HEADER + "".join(train))
    write(tmp_path, "MRPC/msr_paraphrase_test.txt", HEADER + "".join(test))
    scores = evaluate_transfer(lambda s: 3 * encode(s)[:, :1], tmp_path, ["MRPC"], folds=2)
    assert scores == pytest.approx({"MRPC": 75, "MRPC_f1": 80, "avg": 75})  # precision 1, recall 2/3


def test_recurring_sentences_are_embedded_once(tmp_path: Path) -> None:
    write(tmp_path, "CR/custrev.pos", "good a\n" * 4 + "good  b \n")
    write(tmp_path, "CR/custrev.neg", "bad c\n" * 4)
    seen: list[str] = []

    def count(sentences: list[str]) -> np.ndarray:
        seen.extend(sentences)
        return encode(sentences)

    evaluate_transfer(count, tmp_path, ["CR"], folds=2)
    assert sorted(seen) == ["bad c", "good a", "good b"]


def test_an_empty_review_counts_and_is_embedded_as_a_full_stop(tmp_path: Path) -> None:
    write(tmp_path, "CR/custrev.pos", "good a\n\ngood b\n")
    write(tmp_path, "CR/custrev.neg", "bad a\nbad b\nbad c\n")
    (reviews,) = load_transfer(tmp_path, "CR")
    assert (reviews.texts[0], len(reviews.texts)) == (("",), 6)  # SentEval's order: it has no word
    with pytest.raises(ValueError, match=r"^\.$"):
        evaluate_transfer(refuse_all_but_words, tmp_path, ["CR"])


def refuse_all_but_words(sentences: list[str]) -> np.ndarray:
    raise ValueError("".join(sentence for sentence in sentences if " " not in sentence))


@pytest.mark.parametrize(
    ("task", "name", "content", "message"),
    [
        ("SST2", "SST/binary/sentiment-train", "a film\t1\na film 1\n", "sentiment-train, line 2: .* 0 or 1"),
        ("SST2", "SST/binary/sentiment-train", "a film\t2\n", "sentiment-train, line 1: .* 0 or 1"),
        ("TREC", "TREC/train_5500.label", "NUM:x How ?\nNUMB:x How ?\n", "train_5500.label, line 2: .*ABBR"),
        ("TREC", "TREC/train_5500.label", "NUM:x\n", "train_5500.label, line 1: expected a sentence"),
        ("MRPC", "MRPC/msr_paraphrase_train.txt", HEADER + "1\t1\t2\ta\n", "train.txt, line 2: .*two sentences"),
    ],
)
def test_a_bad_line_is_refused_by_file_and_number(
    task: str, name: str, content: str, message: str, tmp_path: Path
) -> None:
    write(tmp_path, "CR/custrev.neg", "bad\n")
    write(tmp_path, name, content)
    with pytest.raises(ValueError, match=message):
        load_transfer(tmp_path, task)


def test_what_cannot_be_scored_is_refused_before_any_encoding(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"custrev\.pos is missing.*SentEval"):
        evaluate_transfer(pytest.fail, tmp_path, ["CR"])
    with pytest.raises(ValueError, match="Unknown transfer task 'SST5': expected one of MR, CR"):
        evaluate_transfer(pytest.fail, tmp_path, ["SST5"])
    with pytest.raises(ValueError, match="`folds` is 1"):
        evaluate_transfer(pytest.fail, tmp_path, ["CR"], folds=1)


def test_nan_embeddings_are_refused(tmp_path: Path) -> None:
    write_review_task(tmp_path)
    with pytest.raises(ValueError, match="60 of its numbers NaN"):
        evaluate_transfer(lambda s: np.full((len(s), 1), np.nan), tmp_path, ["CR"])


def test_a_missing_scikit_learn_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'kdmcse_hf\[eval\]'"):
        evaluate_transfer(encode, tmp_path, ["CR"])
