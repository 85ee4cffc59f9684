import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_sentences, make_tokenizer
from transformers import AutoModel, AutoTokenizer

from kdmcse_hf import KDMCSEModel, SentenceEncoder
from kdmcse_hf.export import export_release

SENTENCES = ["the cat runs", "a dog", "the man sits on the green grass", "bird", "a red house under the blue sky"]


@pytest.fixture
def checkpoint(encoder_folder, tmp_path: Path) -> Path:
    """A training checkpoint with its tokenizer, mean pooling."""
    folder = tmp_path / "checkpoint"
    KDMCSEModel.from_encoder(encoder_folder("bert"), pooling="mean", image_embed_dim=12).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_encode_is_the_model_s_own_forward_and_the_encoder_s_to_the_bit(checkpoint: Path) -> None:
    model = KDMCSEModel.from_pretrained(checkpoint)
    rows = sorted(range(5), key=lambda row: -len(SENTENCES[row].split()))
    batch = make_tokenizer()([SENTENCES[row] for row in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model.eval()(**batch).pooler_output
    vectors = model.encode(SENTENCES)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors[rows], expected.numpy())
    np.testing.assert_array_equal(SentenceEncoder(model, make_tokenizer())(SENTENCES), vectors)
    plain = SentenceEncoder(model.encoder, make_tokenizer(), pooling="mean")
    np.testing.assert_array_equal(plain(SENTENCES), vectors)


def test_encode_gives_tensors_single_vectors_and_unit_length_on_request(checkpoint: Path) -> None:
    model = KDMCSEModel.from_pretrained(checkpoint)
    vectors = model.encode(SENTENCES)
    tensor = model.encode(SENTENCES, convert_to_tensor=True, normalize=True)
    expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(tensor.numpy(), expected, atol=1e-6)
    weight = torch.ones(32, requires_grad=True)
    (tensor @ weight).sum().backward()  # not a tensor of inference mode, which autograd refuses
    assert torch.allclose(weight.grad, tensor.sum(dim=0))
    alone = model.encode(SENTENCES[0])
    assert alone.shape == (32,)
    np.testing.assert_allclose(alone, vectors[0], atol=1e-6)
    assert model.encode([]).shape == (0, 32)


def test_similarity_is_the_cosine_of_every_pair_in_the_kind_that_was_given() -> None:
    a, b = np.array([[3.0, 4.0], [0.0, 2.0]]), np.array([[4.0, 3.0]])
    np.testing.assert_allclose(KDMCSEModel.similarity(a, b), [[0.96], [0.6]])
    found = KDMCSEModel.similarity(torch.tensor(a, dtype=torch.float32), b)
    torch.testing.assert_close(found, torch.tensor([[0.96], [0.6]], dtype=torch.float64))
    assert KDMCSEModel.similarity(a[0], b[0]).item() == pytest.approx(0.96)


def test_the_tokenizer_is_loaded_once_and_from_where_the_model_was(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = export_release(checkpoint, tmp_path / "release")
    asked = []
    load = AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        AutoTokenizer, "from_pretrained", lambda *args, **kwargs: asked.append((*args, kwargs)) or load(*args, **kwargs)
    )
    model = AutoModel.from_pretrained(release, subfolder="kdmcse")
    vectors = model.encode(SENTENCES)
    model.encode(SENTENCES)
    assert [(place, where["subfolder"]) for place, where in asked] == [(release, "kdmcse")]
    np.testing.assert_array_equal(KDMCSEModel.from_pretrained(checkpoint).encode(SENTENCES), vectors)


def test_a_model_without_a_tokenizer_says_so(checkpoint: Path) -> None:
    made_here = KDMCSEModel(KDMCSEModel.from_pretrained(checkpoint).config)
    with pytest.raises(ValueError, match="not loaded from a folder or the Hub, so it has no tokenizer"):
        made_here.encode(SENTENCES)
    assert made_here.encode(SENTENCES, tokenizer=make_tokenizer()).shape == (5, 32)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (checkpoint / file).unlink()
    with pytest.raises(ValueError, match="No tokenizer could be loaded from .*checkpoint"):
        KDMCSEModel.from_pretrained(checkpoint).encode(SENTENCES)


def test_an_empty_sentence_is_refused_by_its_index(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="Sentence 2 is empty"):
        KDMCSEModel.from_pretrained(checkpoint).encode(["a cat", "a dog", " "])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sentences": ["a cat", None]}, "Sentence 1 is empty or not text \\(None\\)"),
        ({"sentences": ["a cat"], "batch_size": 0}, "`batch_size` is 0: expected at least 1"),
        ({"sentences": ["a cat"], "max_length": 2}, "`max_length` is 2: expected at least 3"),
    ],
)
def test_what_cannot_be_embedded_is_told_with_its_value(arguments: dict, message: str, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=message):
        KDMCSEModel.from_pretrained(checkpoint).encode(**arguments)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_tokenizer_that_prefers_the_left_pads_on_the_right_all_the_same(
    pooling: str, encoder_folder: Callable[[str], Path]
) -> None:
    model = KDMCSEModel.from_encoder(encoder_folder("bert"), pooling=pooling)
    left = make_tokenizer()
    left.padding_side = "left"
    expected = model.encode(SENTENCES, tokenizer=make_tokenizer())
    np.testing.assert_array_equal(model.encode(SENTENCES, tokenizer=left), expected)


def test_a_release_opens_as_a_model_of_its_own_checkpoint_and_a_plain_encoder_says_what_to_do(
    checkpoint: Path, encoder_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    release = export_release(checkpoint, tmp_path / "release")
    vectors = KDMCSEModel.from_pretrained(checkpoint).encode(SENTENCES)
    np.testing.assert_array_equal(KDMCSEModel.from_pretrained(release).encode(SENTENCES), vectors)
    for name in ("bert", "distilbert", "modernbert"):
        with pytest.raises(ValueError, match=f"a model of type '{name}', not a KDMCSE checkpoint.*from_encoder"):
            KDMCSEModel.from_pretrained(encoder_folder(name))


@pytest.mark.parametrize("batch_size", [None, 8])
def test_batches_are_halved_until_they_fit_and_the_vectors_are_the_same(
    batch_size: int | None, checkpoint: Path
) -> None:
    model = KDMCSEModel.from_pretrained(checkpoint)
    sentences = make_sentences(40)
    expected = model.encode(sentences)
    sizes = []

    def small_memory(module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        sizes.append(len(kwargs["input_ids"]))
        if kwargs["input_ids"].numel() > 30:
            raise torch.OutOfMemoryError("too much")

    model.register_forward_pre_hook(small_memory, with_kwargs=True)
    np.testing.assert_allclose(model.encode(sentences, batch_size=batch_size), expected, atol=1e-6)
    assert sizes[0] == (batch_size or 40)
    assert (
        sum(a < b for a, b in zip(sizes, sizes[1:], strict=False)) < len(sizes) / 2
    )  # it is not tried again and again
    model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room at all")))
    with pytest.raises(torch.OutOfMemoryError, match="no room at all"):
        model.encode(sentences)


def test_the_limit_that_an_export_recorded_holds_in_every_client(checkpoint: Path, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    long = " ".join(["the cat sits on the mat"] * 20)
    found = {}
    for limit in (7, 30):
        release = export_release(checkpoint, tmp_path / str(limit), max_length=limit)
        encoder = SentenceEncoder.from_pretrained(release, device="cpu")
        assert encoder.max_length == limit
        found[limit] = encoder([long])
        theirs = sentence_transformers.SentenceTransformer(str(release), device="cpu").encode([long])
        np.testing.assert_array_equal(found[limit], theirs)
        np.testing.assert_array_equal(AutoModel.from_pretrained(release, subfolder="kdmcse").encode([long]), theirs)
        # the plain encoder beside it, by sentence-transformers' own files
        for file in ("kdmcse/config.json", "tokenizer_config.json"):
            (release / file).unlink()
        plain = SentenceEncoder.from_pretrained(release, device="cpu")
        assert (plain.pooling, plain.max_length) == ("mean", limit)
        np.testing.assert_array_equal(plain([long]), theirs)
    assert not np.allclose(found[7], found[30])


def test_embedding_leaves_every_module_in_the_mode_that_it_was_in(checkpoint: Path) -> None:
    model = KDMCSEModel.from_pretrained(checkpoint)
    model.train()
    model.encoder.eval()
    before = [module.training for module in model.modules()]
    assert {True, False} == set(before)
    model.encode(SENTENCES)
    assert [module.training for module in model.modules()] == before


def test_an_accelerator_is_used_where_there_is_one(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert SentenceEncoder.from_pretrained(checkpoint).model.device.type == "cpu"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    assert SentenceEncoder.from_pretrained(checkpoint).model.device.type == "meta"
    assert SentenceEncoder.from_pretrained(checkpoint, device="cpu").model.device.type == "cpu"


def test_the_limit_is_at_most_what_the_encoder_has_positions_for(encoder_folder) -> None:
    for kind, positions in (("bert", 40), ("roberta", 39)):
        encode = SentenceEncoder(AutoModel.from_pretrained(encoder_folder(kind)), make_tokenizer(), pooling="cls")
        assert encode.max_length == positions
        assert np.isfinite(encode(["the cat " * 100])).all()


def test_a_release_is_opened_with_its_heads_and_its_own_pooling(checkpoint: Path, tmp_path: Path) -> None:
    release = export_release(checkpoint, tmp_path / "release")
    encoder = SentenceEncoder.from_pretrained(release)
    assert isinstance(encoder.model, KDMCSEModel)
    assert encoder.model.image_projection is not None
    assert encoder.pooling == "mean"
    with pytest.raises(ValueError, match="the model's config says 'mean'"):
        SentenceEncoder.from_pretrained(release, pooling="cls")


@pytest.mark.parametrize(
    ("content", "pooling"),
    [
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "cls", "embedding_dimension": 32}, "cls"),
        ({"pooling_mode_max_tokens": True}, None),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, None),
    ],
)
def test_other_people_s_encoders_are_pooled_as_their_files_say(
    content: dict[str, object], pooling: str | None, encoder_folder, tmp_path: Path
) -> None:
    AutoModel.from_pretrained(encoder_folder("bert")).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert SentenceEncoder.from_pretrained(tmp_path).pooling == "cls"  # nothing says
    assert SentenceEncoder.from_pretrained(tmp_path, pooling="mean").pooling == "mean"
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(content))
    if pooling is None:
        with pytest.raises(ValueError, match="in a way that is unknown here"):
            SentenceEncoder.from_pretrained(tmp_path)
        return
    assert SentenceEncoder.from_pretrained(tmp_path).pooling == pooling
    with pytest.raises(ValueError, match=f"says '{pooling}'"):
        SentenceEncoder.from_pretrained(tmp_path, pooling={"cls": "mean", "mean": "cls"}[pooling])
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(ValueError, match=r"modules\.json lists Dense"):
        SentenceEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config_sentence_transformers.json", {"prompts": {"q": ""}, "default_prompt_name": "q"}, None),
        ("config_sentence_transformers.json", {"prompts": {"q": "the red "}, "default_prompt_name": None}, None),
        ("config_sentence_transformers.json", {"prompts": {"q": "the red "}, "default_prompt_name": "q"}, "'the red '"),
        ("sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": True}, None),
    ],
)
def test_sentences_that_others_change_before_they_embed_them_are_refused(
    file: str, content: dict[str, object], says: str | None, encoder_folder, tmp_path: Path
) -> None:
    folder = shutil.copytree(encoder_folder("bert"), tmp_path / "encoder")
    plain = SentenceEncoder.from_pretrained(folder)(SENTENCES)
    (folder / file).write_text(json.dumps(content))
    if says is None:
        np.testing.assert_array_equal(SentenceEncoder.from_pretrained(folder)(SENTENCES), plain)
    else:
        with pytest.raises(ValueError, match=f"unknown here: {file} puts {says} before each sentence"):
            SentenceEncoder.from_pretrained(folder)


def test_lower_case_that_only_sentence_transformers_would_see_to_is_refused(encoder_folder, tmp_path: Path) -> None:
    folder = shutil.copytree(encoder_folder("bert"), tmp_path / "encoder")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20, "do_lower_case": True}))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="unknown here: sentence_bert_config.json has sentences in lower case"):
        SentenceEncoder.from_pretrained(folder)


def test_training_goes_on_from_a_release_with_the_heads_it_has(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers.utils import logging

    release = export_release(checkpoint, tmp_path / "release")
    logging.enable_propagation()
    try:
        model = KDMCSEModel.from_encoder(release, pooling="mean", image_embed_dim=12)
    finally:
        logging.disable_propagation()
    assert "is a release: training starts from the checkpoint in its folder 'kdmcse'" in caplog.text
    for name, value in KDMCSEModel.from_pretrained(checkpoint).state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    with pytest.raises(ValueError, match="has pooling='mean', but pooling='cls' was asked for"):
        KDMCSEModel.from_encoder(release, image_embed_dim=12)
