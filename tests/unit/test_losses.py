import math

import pytest
import torch

from kdmcse_hf.losses import cosine_matrix, info_nce, list_mle, noisy_negatives, subtract_angle
from kdmcse_hf.objective import PairEmbeddings, compute_objective
from kdmcse_hf.presets import PRESETS

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def test_info_nce_of_equal_similarities_is_log_of_their_number() -> None:
    assert info_nce(torch.zeros(5, 5), torch.arange(5), 0.05).item() == pytest.approx(math.log(5))


def test_info_nce_with_all_negatives_masked_is_zero_with_zero_gradient() -> None:
    cosine = torch.randn(3, 4, requires_grad=True)
    loss = info_nce(cosine, torch.arange(3), 0.05, torch.ones(3, 4, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(cosine.grad, torch.zeros(3, 4))


def test_info_nce_stays_exact_where_the_loss_is_tiny() -> None:
    cosine = torch.tensor([[1.0, 0.5]])
    expected = math.log1p(math.exp(-0.5 / 0.05))
    assert info_nce(cosine, torch.tensor([0]), 0.05).item() == pytest.approx(expected, rel=1e-5)


def test_the_margin_moves_every_angle_beyond_the_gate_by_itself() -> None:
    theta = torch.linspace(0.2, 3.0, 50, dtype=torch.float64)
    moved, applied = subtract_angle(theta.cos(), 0.15, 0.15)
    assert applied.all()
    torch.testing.assert_close(moved.arccos(), theta - 0.15, rtol=0, atol=1e-7)


def test_the_published_margin_jumps_at_its_gate_and_the_continuous_one_does_not() -> None:
    around = torch.tensor([0.15 - 1e-6, 0.15 + 1e-6], dtype=torch.float64).cos()
    jump = subtract_angle(around, 0.15, 0.15)[0].diff().abs()
    smooth = subtract_angle(around, 0.15, 0.15, continuous=True)[0].diff().abs()
    assert jump > 0.01
    assert smooth < 1e-5


def test_the_continuous_margin_never_loses_order_or_gradient() -> None:
    cosine = torch.linspace(-0.999, 0.999, 400, dtype=torch.float64, requires_grad=True)
    moved, _ = subtract_angle(cosine, 0.4, 0.4, continuous=True)
    moved.sum().backward()
    assert (moved.diff() > 0).all()
    assert (cosine.grad > 0).all()


def test_gradients_of_the_margin_are_finite_at_and_beyond_the_ends() -> None:
    cosine = torch.tensor([-1.0 - 1e-7, -1.0, 1.0, 1.0 + 1e-7], requires_grad=True)
    for continuous in (False, True):
        moved, _ = subtract_angle(cosine, 0.15, 0.15, continuous=continuous)
        (gradient,) = torch.autograd.grad(moved.sum(), cosine)
        assert gradient.isfinite().all()


def test_the_filter_never_hides_the_positive() -> None:
    similarity = torch.ones(4, 6)
    positives = torch.arange(2, 6)
    masked = noisy_negatives(similarity, 0.5, positives)
    assert masked.sum() == 4 * 6 - 4
    assert not masked[torch.arange(4), positives].any()


def test_the_filter_takes_the_similar_and_leaves_the_different() -> None:
    similarity = torch.tensor([[1.0, 0.9, 0.1], [0.1, 1.0, 0.6], [0.2, 0.8, 1.0]])
    expected = torch.tensor([[False, True, False], [False, False, True], [False, True, False]])
    assert torch.equal(noisy_negatives(similarity, 0.5, torch.arange(3)), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cosines_are_float32_even_under_autocast(dtype: torch.dtype) -> None:
    rows = torch.randn(4, 8).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cosine = cosine_matrix(rows, rows)
    assert cosine.dtype == torch.float32
    torch.testing.assert_close(cosine.diagonal(), torch.ones(4), rtol=0, atol=1e-6)


def _batch(kind: str, dtype: torch.dtype) -> tuple[PairEmbeddings, list[torch.Tensor]]:
    size = {"one": 1, "two": 2}.get(kind, 6)
    views = torch.randn(size, 2, 8)
    grounded, image, caption = torch.randn(size, 2, 5), torch.randn(size, 5), torch.randn(size, 5)
    teacher_image, teacher_text = torch.randn(size, 7), torch.randn(size, 7)
    if kind == "identical views":
        views[:, 1] = views[:, 0]
        grounded[:, 1] = grounded[:, 0]
    if kind == "duplicates":
        for rows in (views, grounded, image, caption, teacher_image, teacher_text):
            rows[:] = rows[0].clone()
    if kind == "all masked":  # every other pair is as similar as the own one
        teacher_image[:] = 1.0
        teacher_text[:] = 1.0
    leaves = [tensor.to(dtype).requires_grad_() for tensor in (views, grounded, image, caption)]
    return PairEmbeddings(*leaves, teacher_image.to(dtype), teacher_text.to(dtype), torch.arange(size)), leaves


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", ["identical views", "duplicates", "all masked", "one", "two"])
def test_loss_and_gradients_are_finite(kind: str, preset: str, dtype: torch.dtype) -> None:
    embeddings, leaves = _batch(kind, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = compute_objective(PRESETS[preset], embeddings).loss
    loss.backward()
    assert loss.isfinite()
    for leaf in leaves:
        assert leaf.grad is None or leaf.grad.isfinite().all()


def test_only_the_order_that_the_teacher_gives_counts_to_the_ranking_term() -> None:
    cosine, similarity, positives = torch.rand(6, 6), torch.rand(6, 6), torch.arange(6)
    loss = list_mle(cosine, similarity, positives, 0.05)
    assert loss > 0
    torch.testing.assert_close(list_mle(cosine, similarity.exp() * 7 - 3, positives, 0.05), loss)
    assert not torch.isclose(list_mle(cosine, -similarity, positives, 0.05), loss)
    own = torch.eye(6)
    torch.testing.assert_close(list_mle(cosine + own, similarity - 9 * own, positives, 0.05), loss)


def test_ranking_is_least_where_the_student_has_the_teacher_s_order() -> None:
    similarity, positives = torch.rand(6, 6), torch.arange(6)
    right = list_mle(similarity, similarity, positives, 0.001)
    assert right < list_mle(similarity.flip(1), similarity, positives, 0.001) / 100
    assert list_mle(similarity[:1, :1], similarity[:1, :1], positives[:1], 0.05) == 0


def test_all_masked_rows_leave_the_text_term_alone() -> None:
    embeddings, _ = _batch("all masked", torch.float32)
    result = compute_objective(PRESETS["kdmcse"], embeddings)
    assert result.terms["image_loss"].item() == 0
    assert result.rates["image_filter_rate"].item() == 1
    assert result.loss.item() == result.terms["text_loss"].item()


def test_same_image_captions_are_no_negatives() -> None:
    embeddings, _ = _batch("plain", torch.float32)
    embeddings.image_ids = torch.zeros(6, dtype=torch.long)
    result = compute_objective(PRESETS["kdmcse"], embeddings)
    assert all(term.item() == 0 for term in result.terms.values())


@pytest.mark.parametrize("preset", ["kdmcse", "kdmcse_plus"])
def test_local_anchors_with_all_candidates_average_to_the_whole_batch(preset: str) -> None:
    e, _ = _batch("plain", torch.float32)
    whole = compute_objective(PRESETS[preset], e).loss
    halves = [
        compute_objective(PRESETS[preset], e.map(lambda t, first=first: t[first : first + 3]), e, first).loss
        for first in (0, 3)
    ]
    torch.testing.assert_close(whole, sum(halves) / 2)
