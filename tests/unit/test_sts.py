import math
from pathlib import Path

import numpy as np
import pytest
from tiny import make_tokenizer, write_sts
from transformers import AutoModel

from kdmcse_hf.embedding import SentenceEncoder
from kdmcse_hf.metrics import Alignment, Spearman, Uniformity
from kdmcse_hf.sts import SentencePairs, evaluate_sts, load_sts, score_pairs, sts_subsets

ANGLES = {"east": 0.0, "near east": 0.1, "north": math.pi / 2, "west": math.pi}


def compass(sentences: list[str]) -> np.ndarray:
    return np.array([[math.cos(ANGLES[s]), math.sin(ANGLES[s])] for s in sentences])


def test_spearman_is_one_for_any_increasing_function_and_minus_one_for_a_decreasing_one() -> None:
    x = np.linspace(0.1, 3, 30)
    assert Spearman().compute(predictions=np.exp(x), references=x)["spearman"] == pytest.approx(100)
    assert Spearman().compute(predictions=-(x**3), references=x)["spearman"] == pytest.approx(-100)


def test_spearman_averages_the_ranks_of_ties() -> None:
    found = Spearman().compute(predictions=[1, 1, 2, 3], references=[1, 2, 3, 4])["spearman"]
    assert found == pytest.approx(100 * np.corrcoef([1.5, 1.5, 3, 4], [1, 2, 3, 4])[0, 1])


@pytest.mark.parametrize("bad", [[1.0, 1.0, 1.0], [1.0, float("nan"), 2.0]])
def test_a_correlation_that_does_not_exist_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="does not exist: the 3 predictions are constant or not finite"):
        Spearman().compute(predictions=bad, references=[1, 2, 3])


def test_alignment_of_opposite_vectors_is_four_and_ignores_length() -> None:
    x = np.random.default_rng(0).normal(size=(9, 5))
    assert Alignment().compute(predictions=x, references=-3 * x)["alignment"] == pytest.approx(4)
    assert Alignment().compute(predictions=x, references=7 * x)["alignment"] == pytest.approx(0)


def test_uniformity_equals_its_double_loop_over_more_than_one_band() -> None:
    x = np.random.default_rng(0).normal(size=(1100, 4))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    squared = ((unit[:, None] - unit[None]) ** 2).sum(-1)
    expected = np.log(np.exp(-2 * squared[np.triu_indices(1100, k=1)]).mean())
    assert Uniformity().compute(predictions=x)["uniformity"] == pytest.approx(expected)


def test_uniformity_of_collapsed_vectors_is_zero() -> None:
    assert Uniformity().compute(predictions=np.ones((10, 3)))["uniformity"] == pytest.approx(0)


def test_pairs_are_scored_by_cosine_and_alignment_by_those_with_gold_of_four() -> None:
    pairs = SentencePairs(["east", "east", "east"], ["near east", "north", "west"], [5.0, 3.9, 0.0])
    scores = score_pairs(compass, pairs)
    assert scores["spearman"] == pytest.approx(100)
    assert scores["alignment"] == pytest.approx(2 - 2 * math.cos(0.1))


def test_recurring_sentences_are_encoded_once() -> None:
    seen: list[str] = []

    def encode(sentences: list[str]) -> np.ndarray:
        seen.extend(sentences)
        return compass(sentences)

    score_pairs(encode, SentencePairs(["east", "east", "east"], ["near east", "north", "west"], [5.0, 3.0, 0.0]))
    assert sorted(seen) == sorted(ANGLES)


def test_ranks_of_nearly_equal_vectors_are_not_rounding_noise() -> None:
    angles = np.linspace(1e-5, 2e-4, 40)

    def encode(sentences: list[str]) -> np.ndarray:
        return np.array([[math.cos(float(s)), math.sin(float(s))] for s in sentences])

    pairs = SentencePairs(["0"] * 40, [repr(float(a)) for a in angles], (-angles).tolist())
    assert score_pairs(encode, pairs)["spearman"] == pytest.approx(100)


def test_nan_embeddings_are_refused() -> None:
    with pytest.raises(ValueError, match="2 of its numbers NaN"):
        score_pairs(lambda s: np.full((len(s), 1), np.nan), SentencePairs(["a"], ["b"], [1.0]))


def write_all_tasks(root: Path) -> None:
    write_sts(root, ["one", "two", "three", "four"])
    (root / "SICK").mkdir()
    (root / "SICK" / "SICK_test_annotated.txt").write_text(
        "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n1\tx y\tz\t4.5\tNEUTRAL\n"
    )
    subsets = {
        "STS12": ["MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"],
        "STS13": ["FNWN", "headlines", "OnWN"],
        "STS14": ["deft-forum", "deft-news", "headlines", "images", "OnWN", "tweet-news"],
        "STS15": ["answers-forums", "answers-students", "belief", "headlines", "images"],
        "STS16": ["answer-answer", "headlines", "plagiarism", "postediting", "question-question"],
    }
    for task, names in subsets.items():
        folder = root / "STS" / f"{task}-en-test"
        folder.mkdir()
        for number, name in enumerate(names):
            (folder / f"STS.input.{name}.txt").write_text(f"{task} {name}\tleft\textra\n{task} {name}\tunscored\n")
            (folder / f"STS.gs.{name}.txt").write_text(f"{number}\n\n")


def test_a_year_joins_its_subsets_and_skips_pairs_without_gold(tmp_path: Path) -> None:
    write_all_tasks(tmp_path)
    pairs = load_sts(tmp_path, "STS14")
    assert pairs.scores == [0, 1, 2, 3, 4, 5]
    assert pairs.first[0] == "STS14 deft-forum"
    assert set(pairs.second) == {"left"}
    assert load_sts(tmp_path, "SICKR") == SentencePairs(["x y"], ["z"], [4.5])


def test_the_pairs_of_a_subset_are_those_of_its_file_and_of_stsb_those_of_its_genre(tmp_path: Path) -> None:
    write_all_tasks(tmp_path)
    for task, subset in (("STS14", "images"), ("STS16", "answer-answer")):
        pairs = load_sts(tmp_path, task)
        rows = sts_subsets(tmp_path, task)[subset]
        assert [pairs.first[row] for row in rows] == [f"{task} {subset}"]
    file = tmp_path / "STS" / "STSBenchmark" / "sts-test.csv"
    genres = "news forums news".split()
    file.write_text("".join(f"{genre}\tf\t2026\t1\t{n}\ta\tb\n" for n, genre in enumerate(genres)))
    found = sts_subsets(tmp_path, "STSB")
    assert {name: rows.tolist() for name, rows in found.items()} == {"news": [0, 2], "forums": [1]}
    assert sts_subsets(tmp_path, "SICKR") == {}


def test_the_average_is_the_mean_of_the_tasks(tmp_path: Path) -> None:
    write_all_tasks(tmp_path)
    rng = np.random.default_rng(0)
    scores = evaluate_sts(lambda s: rng.normal(size=(len(s), 8)), tmp_path, ["STS12", "STSB"])
    assert set(scores) == {"STS12", "STSB", "avg"}
    assert scores["avg"] == pytest.approx((scores["STS12"] + scores["STSB"]) / 2)


def test_a_missing_sts_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"sts-dev\.csv is missing.*SentEval"):
        load_sts(tmp_path, "STSB", "dev")


@pytest.mark.parametrize(
    ("line", "message"),
    [("a\tb\n", "expected at least 7"), ("g\tf\ty\ti\tgood\tx\ty\n", "expected a score, got 'good'")],
)
def test_a_bad_line_is_refused_by_number(line: str, message: str, tmp_path: Path) -> None:
    write_sts(tmp_path, ["one", "two"], pairs=2)
    with open(tmp_path / "STS" / "STSBenchmark" / "sts-dev.csv", "a") as file:
        file.write(line)
    with pytest.raises(ValueError, match=f"line 3: {message}"):
        load_sts(tmp_path, "STSB", "dev")


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_batches_and_order_change_no_vector(pooling: str, encoder_folder) -> None:
    model = AutoModel.from_pretrained(encoder_folder("bert"))
    sentences = ["the cat runs", "a dog", "the man sits on the green grass", "a dog", "bird"]
    encoders = [SentenceEncoder(model, make_tokenizer(), pooling=pooling, batch_size=size) for size in (1, 2, 8)]
    alone, *others = (encode(sentences) for encode in encoders)
    for vectors in others:
        np.testing.assert_allclose(vectors, alone, atol=1e-5)
    np.testing.assert_array_equal(alone[1], alone[3])


def test_encoding_switches_dropout_off_and_the_mode_back(encoder_folder) -> None:
    model = AutoModel.from_pretrained(encoder_folder("bert")).train()
    encode = SentenceEncoder(model, make_tokenizer(), pooling="cls")
    np.testing.assert_array_equal(encode(["the cat"]), encode(["the cat"]))
    assert model.training


def test_sentences_are_cut_at_the_tokenizer_s_own_limit(encoder_folder) -> None:
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 40
    encode = SentenceEncoder(AutoModel.from_pretrained(encoder_folder("bert")), tokenizer, pooling="cls")
    assert np.isfinite(encode(["the cat " * 100])).all()


def test_a_plain_encoder_must_say_how_it_is_pooled(encoder_folder) -> None:
    model = AutoModel.from_pretrained(encoder_folder("bert"))
    with pytest.raises(ValueError, match="a BertModel does not say how its sentence vector is pooled"):
        SentenceEncoder(model, make_tokenizer())


def test_an_empty_sentence_is_refused_by_index(encoder_folder) -> None:
    encode = SentenceEncoder(AutoModel.from_pretrained(encoder_folder("bert")), make_tokenizer(), pooling="cls")
    with pytest.raises(ValueError, match="Sentence 1 is empty"):
        encode(["the cat", "  "])
