import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from train_variants import Variant, VariantTrainer, soft_labels

from kdmcse_hf.objective import Objective, PairEmbeddings, compute_objective
from kdmcse_hf.presets import PRESETS

KDMCSE = PRESETS["kdmcse"]


def embeddings(rows: int = 12) -> PairEmbeddings:
    torch.manual_seed(0)
    image = F.normalize(torch.randn(rows, 6), dim=-1)
    return PairEmbeddings(
        text=torch.randn(rows, 2, 16),
        grounded=torch.randn(rows, 2, 8),
        image=torch.randn(rows, 8),
        caption=torch.randn(rows, 8),
        teacher_image=image,
        teacher_text=F.normalize(image + 0.5 * torch.randn(rows, 6), dim=-1),
        image_ids=torch.arange(rows) // 2,
    )


def trainer(objective: Objective = KDMCSE, **variant: object) -> VariantTrainer:
    made = object.__new__(VariantTrainer)
    made.args, made.state = SimpleNamespace(world_size=1, seed=0), SimpleNamespace(global_step=3, max_steps=10)
    made.objective, made.variant = objective, Variant(**variant)
    return made


@pytest.mark.parametrize("objective", [KDMCSE, PRESETS["kdmcse_plus"]])
def test_without_its_flags_a_variant_is_the_method(objective: Objective) -> None:
    found, expected = trainer(objective)._score(embeddings()), compute_objective(objective.at(3, 10), embeddings())
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.terms, expected.terms)


def test_the_symmetric_term_is_infonce_from_each_target_over_the_captions() -> None:
    rows = embeddings()
    plain = dataclasses.replace(PRESETS["mcse"], temperature=1.0, cross_modal_temperature=0.1)
    expected = []
    for view in range(2):
        for target in range(12):
            cosines = [F.cosine_similarity(rows.image[target], g, dim=0) / 0.1 for g in rows.grounded[:, view]]
            expected.append(math.log(sum(math.exp(c) for c in cosines)) - cosines[target])
    terms = trainer(plain, symmetric_weight=1.0)._score(rows).terms
    assert terms["image_backward_loss"].item() == pytest.approx(float(sum(expected)) / 24, rel=1e-5)


def test_the_symmetric_term_filters_and_moves_the_same_pairs_as_the_term_itself() -> None:
    """With grounded captions equal to the targets, and a teacher that is symmetric, both directions are one."""
    rows = embeddings()
    rows = dataclasses.replace(
        rows, grounded=rows.image.unsqueeze(1).repeat(1, 2, 1), teacher_text=rows.teacher_image, caption=rows.image
    )
    terms = trainer(symmetric_weight=1.0)._score(rows).terms
    torch.testing.assert_close(terms["image_backward_loss"], terms["image_loss"])


def test_soft_labels_cost_nothing_where_student_and_teacher_agree_on_the_negatives() -> None:
    teacher = torch.randn(5, 5)
    assert soft_labels(teacher + 100 * torch.eye(5), teacher).item() == pytest.approx(0, abs=1e-6)


def test_soft_labels_are_the_divergence_from_the_teacher() -> None:
    student, teacher = torch.tensor([[9.0, 0.0, 0.0]] * 3), torch.tensor([[9.0, 0.0, math.log(3)]] * 3)
    student, teacher = student[[0, 0, 0]], teacher[[0, 0, 0]]
    # row 0: negatives 1, 2; teacher 1/4, 3/4 and student 1/2, 1/2. Rows 1, 2 hold the 9 among their negatives.
    row0 = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)

    def kl(p: list[float], q: list[float]) -> float:
        p, q = ([math.exp(x) for x in side] for side in (p, q))
        p, q = ([x / sum(side) for x in side] for side in (p, q))
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    row1, row2 = kl([9, math.log(3)], [9, 0]), kl([9, 0], [9, 0])
    assert soft_labels(student, teacher).item() == pytest.approx((row0 + row1 + row2) / 3, rel=1e-5)


def test_the_pair_that_the_teacher_finds_least_alike_is_dropped_from_the_grounding_terms_only() -> None:
    rows = embeddings()
    teacher_text = rows.teacher_text.clone()
    teacher_text[7] = -rows.teacher_image[7]
    rows = dataclasses.replace(rows, teacher_text=teacher_text)
    kept = torch.tensor([row for row in range(12) if row != 7])
    order = torch.cat([kept, torch.tensor([7])])
    found = trainer(dropped_positives=1 / 12)._score(rows)
    whole = compute_objective(KDMCSE, rows)
    expected = compute_objective(KDMCSE, rows.map(lambda t: t[kept]), rows.map(lambda t: t[order]))
    torch.testing.assert_close(found.terms["image_loss"], expected.terms["image_loss"])
    torch.testing.assert_close(found.terms["text_loss"], whole.terms["text_loss"])
    assert not torch.isclose(found.terms["image_loss"], whole.terms["image_loss"])


@pytest.mark.parametrize(("schedule", "factor"), [("rising", 0.6), ("constant", 1.0)])
def test_a_margin_s_schedule_stands_beside_the_weight_s(schedule: str, factor: float) -> None:
    falling = dataclasses.replace(KDMCSE, weight_schedule="falling")
    scheduled = trainer(falling, margin_schedule=schedule)._scheduled()
    assert scheduled.cross_modal_weight == pytest.approx(1.4 * KDMCSE.cross_modal_weight)
    assert scheduled.cross_modal_margin == pytest.approx(factor * KDMCSE.cross_modal_margin)


def test_further_negatives_stand_beside_the_batch_s_own() -> None:
    rows = embeddings()
    others = dataclasses.replace(embeddings(20), grounded=None, image_ids=torch.arange(20) + 100)
    ranked = PRESETS["kdmcse_plus"]
    made = trainer(ranked, extra_negatives=20)
    made._others = lambda anchors: others
    both = PairEmbeddings.cat([dataclasses.replace(rows, grounded=None), others])
    found = made._score(rows)
    torch.testing.assert_close(found.terms["image_loss"], compute_objective(KDMCSE, rows, both).terms["image_loss"])
    for term in ("text_loss", "ranking_loss"):
        torch.testing.assert_close(found.terms[term], compute_objective(ranked, rows).terms[term])
