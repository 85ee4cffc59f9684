import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_cache, make_tokenizer
from transformers import AutoModel

from kdmcse_hf.embedding import SentenceEncoder
from kdmcse_hf.modeling_kdmcse import KDMCSEModel
from kdmcse_hf.retrieval import evaluate_retrieval, retrieve
from kdmcse_hf.teacher.cache import TeacherCache
from kdmcse_hf.teacher.cache_writer import write_cache


def on_circle(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def slow_retrieve(queries, candidates, query_groups, candidate_groups, own=None) -> dict[str, float]:
    """One query at a time; nothing tied."""
    ranks = []
    for row, query in enumerate(queries):
        cosines = [
            (-(query @ c) / np.linalg.norm(query) / np.linalg.norm(c), candidate_groups[n] == query_groups[row])
            for n, c in enumerate(candidates)
            if own is None or n != own[row]
        ]
        ranks.append(1 + [right for _, right in sorted(cosines)].index(True))
    recalls = {f"r@{k}": 100 * np.mean([rank <= k for rank in ranks]) for k in (1, 5, 10)}
    sizes = {"queries": len(queries), "candidates": len(candidates)}
    return recalls | {"median_rank": np.median(ranks)} | sizes


def test_ranks_are_those_of_a_sorted_list_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 3)
    images = rng.normal(size=(20, 6)).astype(np.float32)
    captions = (images[groups] + rng.normal(size=(60, 6))).astype(np.float32)
    own = np.arange(60)
    for block in (1, 130, 10**6):
        monkeypatch.setattr("kdmcse_hf.retrieval._BLOCK", block)
        there = retrieve(captions, images, groups, np.arange(20))
        assert there == pytest.approx(slow_retrieve(captions, images, groups, np.arange(20)))
        back = retrieve(images, captions, np.arange(20), groups)
        assert back == pytest.approx(slow_retrieve(images, captions, np.arange(20), groups))
        among = retrieve(captions, captions, groups, groups, own=own)
        assert among == pytest.approx(slow_retrieve(captions, captions, groups, groups, own))
    assert 10 < there["r@1"] < 90


def test_ties_count_as_the_mean_over_all_orders_of_the_tied() -> None:
    """One candidate nearer than the right ones; then 2 right and 5 wrong ones with one vector."""
    query, candidates = on_circle(0), np.concatenate([on_circle(1), np.repeat(on_circle(30), 7, axis=0), on_circle(90)])
    groups = np.array([0, 7, 7, 0, 0, 0, 0, 0, 7])
    found = retrieve(query, candidates, np.array([7]), groups)
    firsts = [2 + order.index(True) for order in itertools.permutations([True] * 2 + [False] * 5)]
    assert found["median_rank"] == pytest.approx(np.mean(firsts))
    for rank in (1, 5, 10):
        assert found[f"r@{rank}"] == pytest.approx(100 * np.mean(np.array(firsts) <= rank))


def test_collapsed_embeddings_score_as_chance_does() -> None:
    groups = np.arange(40)
    found = retrieve(np.ones((40, 3)), np.ones((40, 3)), groups, groups)
    assert (found["r@1"], found["r@5"], found["r@10"]) == pytest.approx((100 / 40, 500 / 40, 1000 / 40))
    assert found["median_rank"] == 20.5


def test_a_caption_does_not_find_itself() -> None:
    captions, groups = on_circle(0, 40, 1, 41), np.array([0, 0, 1, 1])
    assert retrieve(captions, captions, groups, groups)["r@1"] == 100
    without = retrieve(captions, captions, groups, groups, own=np.arange(4))
    assert (without["r@1"], without["median_rank"]) == (0, 2.5)  # ranks 2, 3, 3 and 2


def test_almost_parallel_vectors_are_told_apart() -> None:
    groups = np.arange(30)
    vectors = on_circle(*(45 + 1e-3 * groups))
    assert retrieve(vectors, 7 * vectors, groups, groups)["r@1"] == 100


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "1 of 2 vectors are not finite"), (1, "no candidate of its own")]
)
def test_what_cannot_be_ranked_is_refused(value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retrieve(np.array([[value, 1], [1, 1]]), np.ones((2, 2)), np.array([0, 1]), np.array([0, 0]))


def grounded_model(folder: Path, cache: TeacherCache, width: int | None = None) -> KDMCSEModel:
    return KDMCSEModel.from_encoder(folder, image_embed_dim=width or cache.image_features.width, projection_dim=8)


def test_the_directions_compare_what_training_compares(encoder_folder, cache: TeacherCache) -> None:
    model = grounded_model(encoder_folder("bert"), cache)
    tokenizer = make_tokenizer()
    found = evaluate_retrieval(SentenceEncoder(model, tokenizer, batch_size=7), cache)
    sentences, rows = cache.captions["caption"][:], np.array(cache.captions["image_row"][:])
    features = torch.from_numpy(cache.image_features.rows(rows))
    with torch.no_grad():
        batch = tokenizer(sentences, padding=True, return_tensors="pt")
        out = model.eval()(**batch, teacher_image_embeds=features, num_views=1)
        pooled = model(**batch).pooler_output.numpy()
    grounded, images = out.grounded_embeds[:, 0].numpy(), out.image_embeds[::2].numpy()
    pictures = np.arange(len(images))
    assert found == {
        "caption_to_image": pytest.approx(slow_retrieve(grounded, images, rows, pictures)),
        "image_to_caption": pytest.approx(slow_retrieve(images, grounded, pictures, rows)),
        "caption_to_caption": pytest.approx(slow_retrieve(pooled, pooled, rows, rows, np.arange(len(rows)))),
    }


def test_models_without_a_grounding_head_and_pictures_with_one_caption_leave_out_what_they_lack(
    encoder_folder, cache: TeacherCache, tmp_path: Path
) -> None:
    plain = SentenceEncoder(AutoModel.from_pretrained(encoder_folder("bert")), make_tokenizer(), pooling="mean")
    assert set(evaluate_retrieval(plain, cache)) == {"caption_to_caption"}
    single = make_cache(tmp_path / "single", captions_per_image=1)
    model = grounded_model(encoder_folder("bert"), single)
    found = evaluate_retrieval(SentenceEncoder(model, make_tokenizer()), single)
    assert set(found) == {"caption_to_image", "image_to_caption"}


def test_equal_captions_of_two_pictures_are_ties(encoder_folder, tmp_path: Path) -> None:
    cache = write_cache(
        tmp_path / "cache",
        images=["a.jpg", "b.jpg"],
        captions=["the dog runs", "the cat sits on the mat", "the dog runs"],
        image_rows=[0, 0, 1],
        image_features=[np.eye(2, dtype=np.float32)],
        caption_features=None,
        teacher={"name": "none"},
        source={"captions": "none"},
    )
    encode = SentenceEncoder(grounded_model(encoder_folder("bert"), cache), make_tokenizer(), batch_size=2)
    # The dog finds the other picture's dog first; the cat finds its own dog first or second.
    assert evaluate_retrieval(encode, cache)["caption_to_caption"]["median_rank"] == (2 + 1.5) / 2


def test_features_of_another_teacher_are_refused(encoder_folder, cache: TeacherCache) -> None:
    model = grounded_model(encoder_folder("bert"), cache, width=5)
    with pytest.raises(ValueError, match="`config.image_embed_dim` is 5"):
        evaluate_retrieval(SentenceEncoder(model, make_tokenizer()), cache)


def test_vectors_of_length_one_are_refused_where_a_head_was_trained_on_others(
    encoder_folder, cache: TeacherCache
) -> None:
    model = grounded_model(encoder_folder("bert"), cache)
    with pytest.raises(ValueError, match="has `normalize=True`, but the grounding head was trained on"):
        evaluate_retrieval(SentenceEncoder(model, make_tokenizer(), normalize=True), cache)
    found = [
        evaluate_retrieval(SentenceEncoder(model.encoder, make_tokenizer(), pooling="cls", normalize=unit), cache)
        for unit in (False, True)
    ]
    assert found[0] == found[1]  # cosines alone
