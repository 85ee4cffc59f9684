"""The fast objective against double loops written from the equations: values and gradients, many settings."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_objective import slow_objective

from kdmcse_hf.objective import Objective, PairEmbeddings, compute_objective
from kdmcse_hf.presets import PRESETS

LEAVES = ("text", "grounded", "image", "caption")
MAPS = ("text_image", "image_text", "text_text", "image_image")


def draw(batch: int, seed: int, dtype: torch.dtype = torch.float64, same_image: bool = False) -> PairEmbeddings:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    teacher_image = normal(batch, 6)
    return PairEmbeddings(
        text=normal(batch, 2, 7).requires_grad_(),
        grounded=normal(batch, 2, 5).requires_grad_(),
        image=normal(batch, 5).requires_grad_(),
        caption=normal(batch, 5).requires_grad_(),
        teacher_image=teacher_image,
        teacher_text=teacher_image + normal(batch, 6),
        image_ids=torch.arange(batch) // 2 if same_image else torch.arange(batch),
    )


def gradients(loss: torch.Tensor, e: PairEmbeddings) -> list[torch.Tensor]:
    leaves = [getattr(e, name) for name in LEAVES]
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]


def assert_equal_to_loops(objective: Objective, e: PairEmbeddings) -> None:
    fast, slow = compute_objective(objective, e).loss, slow_objective(objective, e)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)
    for name, a, b in zip(LEAVES, gradients(fast, e), gradients(slow, e), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10, msg=lambda m, name=name: f"gradient of {name}: {m}")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("batch", [2, 3, 8])
def test_preset_equals_its_equations(preset: str, batch: int) -> None:
    assert_equal_to_loops(PRESETS[preset], draw(batch, seed=batch, same_image=True))


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(2, 7),
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.05, 1.0),
    text_margin=st.sampled_from([0.0, 0.1, 0.6]),
    margin=st.sampled_from([0.0, 0.125, 0.9]),
    sources=st.tuples(*[st.sampled_from(MAPS)] * 2, *[st.sampled_from([*MAPS, "constant"])] * 2),
    thresholds=st.tuples(*[st.sampled_from(["none", "cosine:0.2", "cosine:-0.5", "relative:0.8"])] * 2),
    switches=st.tuples(*[st.booleans()] * 5),
)
def test_any_switches_equal_their_equations(
    batch, seed, temperature, text_margin, margin, sources, thresholds, switches
) -> None:
    objective = Objective(
        temperature=temperature,
        text_margin=text_margin,
        cross_modal_weight=0.7,
        cross_modal_temperature=0.3,
        cross_modal_margin=margin,
        image_filter_source=sources[0],
        caption_filter_source=sources[1],
        image_margin_source=sources[2],
        caption_margin_source=sources[3],
        image_threshold=thresholds[0],
        caption_threshold=thresholds[1],
        image_term=switches[0],
        caption_term=switches[1],
        continuous_margin=switches[2],
        mask_same_image=switches[3],
        ranking_term=switches[4],
    )
    assert_equal_to_loops(objective, draw(batch, seed, same_image=True))


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("preset", ["kdmcse", "kdmcse_reference"])
def test_gradients_are_the_derivatives_of_the_loss(preset: str, continuous: bool) -> None:
    objective = dataclasses.replace(
        PRESETS[preset],
        continuous_margin=continuous,
        cross_modal_weight=1.0,
        temperature=0.5,
        cross_modal_temperature=0.5,
    )
    e = draw(4, seed=3)

    def loss(*leaves: torch.Tensor) -> torch.Tensor:
        return compute_objective(objective, dataclasses.replace(e, **dict(zip(LEAVES, leaves, strict=True)))).loss

    assert torch.autograd.gradcheck(loss, tuple(getattr(e, name) for name in LEAVES))


def test_a_text_batch_contributes_the_text_term_alone() -> None:
    e = draw(4, seed=1)
    paired = compute_objective(PRESETS["kdmcse"], e)
    text = compute_objective(PRESETS["kdmcse"], PairEmbeddings(text=e.text))
    assert text.loss.item() == paired.terms["text_loss"].item()
    assert set(text.terms) == {"text_loss"}


def test_simcse_ignores_everything_but_text() -> None:
    e = draw(5, seed=2)
    assert compute_objective(PRESETS["simcse"], e).loss.item() == pytest.approx(
        compute_objective(PRESETS["simcse"], PairEmbeddings(text=e.text)).loss.item(), abs=0
    )
