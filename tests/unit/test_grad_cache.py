import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdmcse_hf import PRESETS, KDMCSEModel, Objective
from kdmcse_hf.grad_cache import cached_backward, split_rows
from kdmcse_hf.objective import ObjectiveOutput, PairEmbeddings, compute_objective

ROWS, WIDTH = 13, 12


@pytest.fixture
def model(encoder_folder: Callable[[str], Path]) -> KDMCSEModel:
    torch.manual_seed(0)
    built = KDMCSEModel.from_encoder(
        encoder_folder("bert"), image_embed_dim=WIDTH, caption_embed_dim=WIDTH, projection_dim=8
    )
    return built.double().train()


def batch(pairs: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 11, (ROWS,), generator=generator)
    ids = torch.randint(4, 20, (ROWS, 10), generator=generator)
    mask = (torch.arange(10) < lengths.unsqueeze(1)).long()
    inputs = {"input_ids": ids * mask, "attention_mask": mask}
    if pairs:
        for name in ("teacher_image_embeds", "teacher_text_embeds"):
            inputs[name] = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
        inputs["image_ids"] = torch.arange(ROWS) // 2
    return inputs


def embedder(model: KDMCSEModel) -> Callable[[dict[str, Tensor]], PairEmbeddings]:
    def embed(inputs: dict[str, Tensor]) -> PairEmbeddings:
        given = {name: tensor for name, tensor in inputs.items() if name != "image_ids"}
        outputs = model(**given, num_views=2)
        return PairEmbeddings(
            text=outputs.text_embeds,
            grounded=outputs.grounded_embeds,
            image=outputs.image_embeds,
            caption=outputs.caption_embeds,
            teacher_image=inputs.get("teacher_image_embeds"),
            teacher_text=inputs.get("teacher_text_embeds"),
            image_ids=inputs.get("image_ids"),
        )

    return embed


def objective_of(objective: Objective) -> Callable[[PairEmbeddings], ObjectiveOutput]:
    return lambda embeddings: compute_objective(objective, embeddings)


def gradients(model: KDMCSEModel) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def check_gradients(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    whole = sum(gradient.norm() for gradient in wanted.values())
    for name, gradient in wanted.items():
        # The bias of the keys has no influence on attention: its gradient is rounding noise.
        assert (found[name] - gradient).norm() <= 1e-9 * gradient.norm() + 1e-16 * whole, name
    assert all(not gradient.any() for name, gradient in found.items() if name not in wanted)
    assert whole > 0


KDMCSE = dataclasses.replace(PRESETS["kdmcse_plus"], cross_modal_weight=0.7)
CASES = [("kdmcse", KDMCSE, True), ("mcse", PRESETS["mcse"], True), ("text", KDMCSE, False)]


@pytest.mark.parametrize("size", [1, 4, 5, 13, 50])
@pytest.mark.parametrize(("objective", "pairs"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_without_dropout_gradients_are_those_of_the_whole_batch(
    objective: Objective, pairs: bool, size: int, model: KDMCSEModel
) -> None:
    model.eval()
    inputs = batch(pairs)
    expected = compute_objective(objective, embedder(model)(inputs))
    expected.loss.backward()
    wanted = gradients(model)
    found = cached_backward(split_rows(inputs, size), embedder(model), objective_of(objective))
    torch.testing.assert_close(found.loss, expected.loss.detach(), rtol=1e-12, atol=0)
    assert found.rates.keys() == expected.rates.keys()
    check_gradients(gradients(model), wanted)


def test_with_dropout_gradients_are_those_of_one_graph_with_the_same_masks(model: KDMCSEModel) -> None:
    parts = split_rows(batch(True), 5)
    torch.manual_seed(7)
    whole = compute_objective(KDMCSE, PairEmbeddings.cat([embedder(model)(part) for part in parts]))
    after = torch.rand(1)
    whole.loss.backward()
    wanted = gradients(model)
    torch.manual_seed(7)
    found = cached_backward(parts, embedder(model), objective_of(KDMCSE))
    assert torch.equal(torch.rand(1), after)  # as many random numbers are used up as one pass needs
    torch.testing.assert_close(found.loss, whole.loss.detach(), rtol=1e-12, atol=0)
    check_gradients(gradients(model), wanted)


def test_gradients_are_exchanged_once(model: KDMCSEModel) -> None:
    from contextlib import contextmanager

    log: list[str] = []

    @contextmanager
    def no_sync():
        log.append("quiet")
        yield

    def backward(loss: Tensor) -> None:
        log.append("backward")
        loss.backward()

    cached_backward(split_rows(batch(True), 5), embedder(model), objective_of(KDMCSE), backward, no_sync)
    assert log == ["quiet", "backward", "quiet", "backward", "backward"]


def test_parts_hold_all_rows_and_no_padding_of_others() -> None:
    inputs = batch(True)
    parts = split_rows(inputs, 4)
    assert [len(part["input_ids"]) for part in parts] == [4, 4, 4, 1]
    for part in parts:
        assert part["attention_mask"].sum(dim=1).max() == part["input_ids"].shape[1]
    torch.testing.assert_close(
        torch.cat([part["teacher_image_embeds"] for part in parts]), inputs["teacher_image_embeds"]
    )
    tokens = [
        row[mask.bool()] for part in parts for row, mask in zip(part["input_ids"], part["attention_mask"], strict=True)
    ]
    for row, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True)):
        assert torch.equal(tokens[row], ids[mask.bool()])
