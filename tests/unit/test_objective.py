import dataclasses

import pytest
import torch

from kdmcse_hf import objective as objective_module
from kdmcse_hf.calibration import calibrate
from kdmcse_hf.objective import Objective, PairEmbeddings, compute_objective
from kdmcse_hf.presets import PRESETS
from kdmcse_hf.threshold import Threshold


def sample(pairs: int = 200, seed: int = 0) -> PairEmbeddings:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(pairs, 16, generator=generator)
    return PairEmbeddings(
        text=torch.empty(pairs, 0),
        teacher_image=images,
        teacher_text=images + torch.randn(pairs, 16, generator=generator),
        image_ids=torch.arange(pairs),
    )


def with_thresholds(threshold: str) -> Objective:
    return dataclasses.replace(PRESETS["kdmcse"], image_threshold=threshold, caption_threshold=threshold)


@pytest.mark.parametrize("text", ["cosine:0.3", "relative:0.85", "rate:0.01"])
def test_a_threshold_reads_what_it_writes(text: str) -> None:
    assert str(Threshold.parse(text)) == text


@pytest.mark.parametrize("text", ["0.3", "cosine:", "cosine:2", "dot:70", "rate:0", "rate:0.9", "relative:nan", ""])
def test_an_unusable_threshold_is_refused_with_its_field_and_text(text: str) -> None:
    with pytest.raises(ValueError, match=f"`image_threshold` is '{text}'"):
        dataclasses.replace(PRESETS["kdmcse"], image_threshold=text)


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.2])
def test_a_rate_becomes_the_cosine_that_filters_that_share(rate: float) -> None:
    objective, reports = calibrate(with_thresholds(f"rate:{rate}"), sample())
    assert objective.image_threshold.startswith("cosine:")
    assert [report.filter_rate for report in reports] == pytest.approx([rate, rate], rel=0.06)


@pytest.mark.parametrize("threshold", ["cosine:0.999", "cosine:-1"])
def test_a_threshold_that_masks_nothing_or_nearly_all_is_refused_with_quantiles(threshold: str) -> None:
    with pytest.raises(ValueError, match=r"cannot work: image term.*quantiles 0: -0\.\d+.*image_threshold=rate"):
        calibrate(with_thresholds(threshold), sample())


def test_only_cosines_count_so_the_scale_of_features_changes_nothing() -> None:
    scaled = sample()
    scaled.teacher_image, scaled.teacher_text = scaled.teacher_image * 20, scaled.teacher_text * 3
    objective = with_thresholds("relative:0.6")
    assert [r.filter_rate for r in calibrate(objective, scaled)[1]] == [
        r.filter_rate for r in calibrate(objective, sample())[1]
    ]


def test_presets_need_only_the_features_that_they_read() -> None:
    assert PRESETS["simcse"].needs == frozenset()
    assert PRESETS["mcse"].needs == {"image"}
    assert PRESETS["kdmcse"].needs == {"image", "text"}
    assert dataclasses.replace(PRESETS["simcse"], ranking_term=True).needs == {"text"}
    assert PRESETS["kdmcse_reference"].needs == {"image", "text"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0.0),
        ("text_margin", -0.1),
        ("cross_modal_margin", 2.0),
        ("cross_modal_weight", -1.0),
        ("image_filter_source", "text"),
        ("captions_per_image", "five"),
        ("weight_schedule", "up"),
        ("temperature", float("nan")),
    ],
)
def test_a_field_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"`{field}` is {value!r}"):
        dataclasses.replace(PRESETS["kdmcse"], **{field: value})


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [0.1] * 5), ("rising", [0, 0.05, 0.1, 0.15, 0.2]), ("falling", [0.2, 0.15, 0.1, 0.05, 0])],
)
def test_the_weight_keeps_its_mean_over_a_run(schedule: str, expected: list[float]) -> None:
    objective = dataclasses.replace(PRESETS["kdmcse"], cross_modal_weight=0.1, weight_schedule=schedule)
    found = [objective.at(step, 8) for step in (0, 2, 4, 6, 8)]
    assert [one.cross_modal_weight for one in found] == pytest.approx(expected)
    assert all(dataclasses.replace(one, cross_modal_weight=0.1) == objective for one in found)
    assert objective.at(0, 0) == objective  # no run


def test_every_switch_explains_itself() -> None:
    assert all(field.metadata["help"] for field in dataclasses.fields(Objective))


@pytest.mark.parametrize("preset", ["simcse", "kdmcse_plus", "kdmcse_reference"])
def test_a_large_batch_in_blocks_has_the_loss_and_gradients_of_one_piece(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)

    def rows(count: int) -> PairEmbeddings:
        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(count, *shape, generator=generator, dtype=torch.float64)

        learned = {"text": draw(2, 8), "grounded": draw(2, 6), "image": draw(6), "caption": draw(6)}
        learned = {name: tensor.requires_grad_() for name, tensor in learned.items()}
        return PairEmbeddings(
            **learned, teacher_image=draw(5), teacher_text=draw(5), image_ids=torch.arange(count) // 2
        )

    candidates = rows(22)
    anchors = candidates.map(lambda tensor: tensor[5:18])  # as on one of several processes
    leaves = [candidates.text, candidates.grounded, candidates.image, candidates.caption]
    found = []
    for pairs_at_once in (10**6, 22 * 4):
        monkeypatch.setattr(objective_module, "_PAIRS_AT_ONCE", pairs_at_once)
        output = compute_objective(PRESETS[preset], anchors, candidates, first_positive=5)
        gradients = torch.autograd.grad(output.loss, leaves, allow_unused=True, materialize_grads=True)
        found.append((output.loss, output.terms, gradients))
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-14)
