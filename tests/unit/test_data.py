import json
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from tiny import make_cache, make_sentences, make_tokenizer

from kdmcse_hf.data import CaptionPairs, ContrastiveCollator, TrainingData, read_sentences, stream_sentences, tokenize
from kdmcse_hf.teacher.cache import TeacherCache
from kdmcse_hf.teacher.pairs import TeacherPairs

BOTH = frozenset({"image", "text"})


def text_dataset(count: int = 30) -> datasets.Dataset:
    return tokenize(datasets.Dataset.from_dict({"text": make_sentences(count)}), "text", make_tokenizer(), 32)


def test_a_sentence_file_is_one_row_a_line(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("the cat runs\nNA\n  spaced  \n", encoding="utf-8")
    assert [row.strip() for row in read_sentences(tmp_path / "s.txt")["text"]] == ["the cat runs", "NA", "spaced"]


def test_tokens_are_the_tokenizer_s_cut_at_the_length() -> None:
    sentences = make_sentences(20)
    tokenizer = make_tokenizer()
    dataset = tokenize(datasets.Dataset.from_dict({"text": sentences}), "text", tokenizer, 6)
    assert dataset["input_ids"][:] == tokenizer(sentences, truncation=True, max_length=6)["input_ids"]
    assert max(map(len, dataset["input_ids"])) == 6


def test_a_missing_text_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.txt does not exist"):
        read_sentences(tmp_path / "gone.txt")


def test_text_that_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("caf\xe9\n".encode("latin-1") * 3)
    with pytest.raises(ValueError, match=r"latin\.txt cannot be read as UTF-8"):
        read_sentences(tmp_path / "latin.txt")


def test_an_empty_line_is_refused_by_number_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("the cat\n\nthe dog\n")
    with pytest.raises(ValueError, match=r"Row 2 of the column 'text' is empty.*grep -v"):
        tokenize(read_sentences(tmp_path / "s.txt"), "text", make_tokenizer(), 32)


def test_a_wrong_column_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="no column 'sentence': the dataset has 'text'"):
        tokenize(datasets.Dataset.from_dict({"text": ["a"]}), "sentence", make_tokenizer(), 32)


def sharded(folder: Path, *shards: list[str]) -> str:
    folder.mkdir(exist_ok=True)
    for number, rows in enumerate(shards):
        lines = [json.dumps({"id": i, "sentence": row}) + "\n" for i, row in enumerate(rows)]
        (folder / f"train-{number}.jsonl").write_text("".join(lines), encoding="utf-8")
    return str(folder)


def test_a_stream_gives_the_first_sentences_and_leaves_the_rest_unread(tmp_path: Path) -> None:
    name = sharded(tmp_path / "corpus", ["one cat", "two cats"], ["three dogs", "four dogs"], ["five"], ["six"])
    (tmp_path / "corpus" / "train-3.jsonl").write_bytes(b"\x00 not json")
    sentences = stream_sentences(name, "sentence", 3)
    assert sentences.column_names == ["text"]
    assert sentences["text"][:] == ["one cat", "two cats", "three dogs"]
    assert sentences.cache_files, "held in memory instead of mapped from a file"


def test_a_stream_is_of_the_config_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for config, rows in (("en", ["one cat", "two cats"]), ("fr", ["un chat", "deux chats"])):
        sharded(tmp_path / "corpus" / config, rows)
    places = [{"config_name": name, "data_files": f"{name}/*.jsonl"} for name in ("en", "fr")]
    (tmp_path / "corpus" / "README.md").write_text(f"---\nconfigs: {json.dumps(places)}\n---\n")
    name = str(tmp_path / "corpus")
    assert stream_sentences(name, "sentence", 1, config="fr")["text"][:] == ["un chat"]
    assert stream_sentences(name, "sentence", 1, config="en")["text"][:] == ["one cat"]


def test_a_stream_follows_its_dataset_and_its_count(tmp_path: Path) -> None:
    name = sharded(tmp_path / "corpus", ["one cat", "two cats", "three cats"])
    assert stream_sentences(name, "sentence", 2)["text"][:] == ["one cat", "two cats"]
    assert len(stream_sentences(name, "sentence", 3)) == 3
    sharded(tmp_path / "corpus", ["one dog and more", "two cats"])
    assert stream_sentences(name, "sentence", 2)["text"][:] == ["one dog and more", "two cats"]


@pytest.mark.parametrize(
    ("column", "count", "message"),
    [("text", 3, "no column 'text': the dataset .* has 'id', 'sentence'"), ("sentence", 0, "expected at least 1")],
)
def test_a_stream_of_nothing_is_refused(column: str, count: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        stream_sentences(sharded(tmp_path / "corpus", ["one cat"]), column, count)


def test_one_caption_an_image_is_one_and_differs_by_seed(cache: TeacherCache) -> None:
    picks = [TeacherPairs(cache, captions_per_image="one", seed=seed) for seed in (0, 1)]
    for pairs in picks:
        assert sorted(pairs.image_rows.tolist()) == list(range(24))
        np.testing.assert_array_equal(pairs.image_rows, pairs.caption_rows // 2)
    assert picks[0].caption_rows.tolist() != picks[1].caption_rows.tolist()


def test_a_number_of_pairs_is_that_number_drawn_from_all(cache: TeacherCache) -> None:
    pairs = TeacherPairs(cache, max_pairs=10, seed=0)
    assert len(set(pairs.caption_rows.tolist())) == 10
    assert max(pairs.caption_rows) > 20
    with pytest.raises(ValueError, match="`max_pairs` is 100: expected 1 to 48"):
        TeacherPairs(cache, max_pairs=100)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"image_assignment": "shuffle"}, "`image_assignment` is 'shuffle': expected one of paired, shuffled, random"),
        ({"captions_per_image": "five"}, "`captions_per_image` is 'five'"),
        ({"max_pairs": 0}, "`max_pairs` is 0"),
    ],
)
def test_an_unknown_choice_is_refused_rather_than_ignored(choice: dict, message: str, cache: TeacherCache) -> None:
    with pytest.raises(ValueError, match=message):
        TeacherPairs(cache, **choice)


def test_tokenising_writes_nothing_into_the_teacher_cache(cache: TeacherCache) -> None:
    before = sorted(cache.folder.iterdir())
    CaptionPairs(TeacherPairs(cache, captions_per_image="one"), make_tokenizer())
    assert sorted(cache.folder.iterdir()) == before


def test_tokens_of_captions_are_those_of_the_cache_that_lies_there(tmp_path: Path) -> None:
    """Two caches of one place and one time, as they are copied to the disks of a cluster."""
    tokens = []
    for seed in (0, 1):
        captions = list(make_cache(tmp_path / "here", seed=seed).captions["caption"])
        for path in (tmp_path / "here").iterdir():
            os.utime(path, (0, 0))
        cache = TeacherCache(tmp_path / "here")
        made = CaptionPairs(TeacherPairs(cache), make_tokenizer()).input_ids["input_ids"]
        assert list(made) == make_tokenizer()(captions, truncation=True, max_length=32)["input_ids"]
        tokens.append(list(made))
        shutil.rmtree(tmp_path / "here")
    assert tokens[0] != tokens[1]


def test_tokens_are_cached_and_follow_every_change_of_their_source(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, sentences = make_tokenizer(), make_sentences(20)
    first = datasets.Dataset.from_dict({"text": sentences})
    expected = tokenize(first, "text", tokenizer, 32)["input_ids"][:]
    again = make_tokenizer()
    with monkeypatch.context() as patch:
        patch.setattr(type(again), "__call__", lambda *args, **kwargs: pytest.fail("tokenised a second time"))
        assert tokenize(first, "text", again, 32)["input_ids"][:] == expected
    assert (
        tokenize(first, "text", tokenizer, 32)["input_ids"][:] != tokenize(first, "text", tokenizer, 4)["input_ids"][:]
    )
    other = datasets.Dataset.from_dict({"text": sentences[::-1]})
    assert tokenize(other, "text", tokenizer, 32)["input_ids"][0] == tokenizer(sentences[-1])["input_ids"]


def test_several_processes_tokenise_as_one() -> None:
    tokenizer, sentences = make_tokenizer(), make_sentences(300) * 70
    dataset = datasets.Dataset.from_dict({"text": sentences})
    assert tokenize(dataset, "text", tokenizer, 32)["input_ids"][:] == tokenizer(sentences)["input_ids"]


def test_shuffled_images_stay_with_their_captions_and_random_ones_do_not(cache: TeacherCache) -> None:
    shuffled = TeacherPairs(cache, image_assignment="shuffled").image_rows.reshape(24, 2)
    np.testing.assert_array_equal(shuffled[:, 0], shuffled[:, 1])
    assert sorted(shuffled[:, 0].tolist()) == list(range(24))
    assert (shuffled[:, 0] != np.arange(24)).mean() > 0.5
    random = TeacherPairs(cache, image_assignment="random").image_rows.reshape(24, 2)
    assert (random[:, 0] != random[:, 1]).mean() > 0.5


@pytest.mark.parametrize("captions_per_image", ["one", "all"])
def test_a_paired_batch_carries_each_caption_s_own_tokens_and_features(
    captions_per_image: str, cache: TeacherCache
) -> None:
    tokenizer = make_tokenizer()
    pairs = CaptionPairs(TeacherPairs(cache, captions_per_image=captions_per_image), tokenizer)
    data = TrainingData(text_dataset(), pairs, BOTH)
    indices = [30 + 5, 30 + 0, 30 + 11]
    batch = ContrastiveCollator(tokenizer)(data.__getitems__(indices))
    for place, index in enumerate(indices):
        caption_row = pairs.teacher.caption_rows[index - 30]
        caption = cache.captions[int(caption_row)]
        tokens = batch["input_ids"][place][batch["attention_mask"][place].bool()]
        assert tokens.tolist() == tokenizer(caption["caption"])["input_ids"]
        assert batch["image_ids"][place] == caption["image_row"]
        image = cache.image_features.rows([caption["image_row"]])[0]
        assert torch.equal(batch["teacher_image_embeds"][place], torch.from_numpy(image))
        text = cache.caption_features.rows([caption_row])[0]
        assert torch.equal(batch["teacher_text_embeds"][place], torch.from_numpy(text))


def test_a_batch_is_padded_to_its_own_longest() -> None:
    data = TrainingData(text_dataset(), None)
    rows = data.__getitems__([0, 1, 2])
    batch = ContrastiveCollator(make_tokenizer())(rows)
    assert batch["input_ids"].shape[1] == max(len(row["input_ids"]) for row in rows)
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(row["input_ids"]) for row in rows]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_on_the_right_whatever_the_tokenizer_prefers(side: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.padding_side = side
    rows = [{"input_ids": ids} for ids in text_dataset(9)["input_ids"]]
    expected = tokenizer.pad(rows, return_tensors="pt", padding_side="right")
    batch = ContrastiveCollator(tokenizer)(rows)
    assert batch.keys() == expected.keys() == {"input_ids", "attention_mask"}
    for name, tensor in batch.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])
        assert 0 in expected["attention_mask"]


def test_only_needed_features_are_read(cache: TeacherCache) -> None:
    pairs = CaptionPairs(TeacherPairs(cache), make_tokenizer())
    assert set(TrainingData(None, pairs, frozenset({"image"}))[0]) == {
        "input_ids",
        "image_ids",
        "teacher_image_embeds",
    }
    assert set(TrainingData(None, pairs)[0]) == {"input_ids", "image_ids"}


def test_an_image_only_cache_is_refused_for_kdmcse_with_the_way_out(tmp_path: Path) -> None:
    pairs = TeacherPairs(make_cache(tmp_path, text=False))
    with pytest.raises(ValueError, match="image features only.*preset `mcse`"):
        pairs.sample(10, BOTH)
