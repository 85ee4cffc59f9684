from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import ENCODER_CONFIGS, VOCABULARY
from torch import Tensor, nn
from transformers import PreTrainedModel

from kdmcse_hf import KDMCSEModel
from kdmcse_hf.dropout import speed_up_dropout
from kdmcse_hf.packing import pack_rows

ROWS, LENGTH = 9, 12
PACKS = {"bert": True, "roberta": True, "distilbert": True, "mpnet": False, "modernbert": False}


def make_model(folder: Path, pooling: str = "cls", dropout: float = 0.0) -> KDMCSEModel:
    torch.manual_seed(0)
    model = KDMCSEModel.from_encoder(folder, image_embed_dim=6, caption_embed_dim=6, projection_dim=8, pooling=pooling)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return model.double()


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, LENGTH, (ROWS,), generator=generator)
    mask = (torch.arange(LENGTH) < lengths.unsqueeze(1)).long()
    ids = torch.randint(4, VOCABULARY, (ROWS, LENGTH), generator=generator)
    features = {
        f"teacher_{kind}_embeds": torch.randn(ROWS, 6, generator=generator, dtype=torch.float64)
        for kind in ("image", "text")
    }
    return {"input_ids": ids, "attention_mask": mask, **features}


def outputs_and_gradients(model: KDMCSEModel, inputs: dict[str, Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    model.zero_grad()
    given = dict(inputs)
    given["input_ids"] = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], _pad(model))
    output = model(**given, num_views=2)
    tensors = [output.text_embeds, output.grounded_embeds, output.image_embeds, output.caption_embeds]
    sum((tensor**2 * torch.arange(1.0, 1 + tensor.shape[-1])).sum() for tensor in tensors).backward()
    return tensors, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _pad(model: KDMCSEModel) -> int:
    return int(model.config.text_config.pad_token_id or 0)


def pack(model: KDMCSEModel) -> bool:
    return pack_rows(model.encoder, first_token_only=model.config.pooling == "cls")


@pytest.mark.parametrize("kind", ENCODER_CONFIGS)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_packed_rows_give_the_embeddings_and_gradients_of_padded_ones(
    kind: str, pooling: str, encoder_folder: Callable[[str], Path]
) -> None:
    model = make_model(encoder_folder(kind), pooling).train()
    wanted, wanted_gradients = outputs_and_gradients(model, batch())
    assert pack(model) is PACKS[kind]
    assert model.training and model.encoder.training
    found, gradients = outputs_and_gradients(model, batch())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    assert gradients.keys() == wanted_gradients.keys()
    whole = sum(gradient.norm() for gradient in wanted_gradients.values())
    for name, gradient in wanted_gradients.items():
        assert (gradients[name] - gradient).norm() <= 1e-9 * gradient.norm() + 1e-14 * whole, name


class CountTokens:
    """How many token vectors go through the last layer's feed-forward part."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        self.seen: list[int] = []
        encoder.encoder.layer[-1].intermediate.register_forward_pre_hook(
            lambda module, args: self.seen.append(args[0].shape[:-1].numel())
        )


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_no_padding_is_computed_nor_what_the_first_token_has_no_use_for(
    pooling: str, encoder_folder: Callable[[str], Path]
) -> None:
    model = make_model(encoder_folder("bert"), pooling).train()
    counter = CountTokens(model.encoder)
    inputs = batch()
    outputs_and_gradients(model, inputs)
    assert pack(model)
    outputs_and_gradients(model, inputs)
    outputs_and_gradients(model.eval(), inputs)
    tokens = 2 * int(inputs["attention_mask"].sum())
    packed = 2 * ROWS if pooling == "cls" else tokens + -tokens % 128
    before, after, in_evaluation = counter.seen[0], counter.seen[-2], counter.seen[-1]
    assert (before, after, in_evaluation) == (2 * ROWS * LENGTH, packed, 2 * ROWS * LENGTH)


@pytest.mark.parametrize("kind", [kind for kind, packs in PACKS.items() if packs])
def test_the_hidden_states_are_those_of_a_padded_batch_and_zero_in_its_padding(
    kind: str, encoder_folder: Callable[[str], Path]
) -> None:
    model = make_model(encoder_folder(kind), "mean").train()
    inputs = {name: tensor for name, tensor in batch().items() if not name.startswith("teacher")}
    tokens = inputs["attention_mask"].bool()
    inputs["input_ids"][~tokens] = _pad(model)
    wanted = model(**inputs)
    assert pack(model)
    found = model(**inputs)
    torch.testing.assert_close(found.pooler_output, wanted.pooler_output, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found.last_hidden_state[tokens], wanted.last_hidden_state[tokens], rtol=1e-9, atol=1e-11)
    assert not found.last_hidden_state[~tokens].any()


@pytest.mark.parametrize("case", ["left padding", "no mask", "hidden states", "float mask of the caller"])
def test_what_cannot_be_packed_goes_the_usual_way(case: str, encoder_folder: Callable[[str], Path]) -> None:
    model = make_model(encoder_folder("bert")).train()
    inputs: dict[str, object] = {name: batch()[name] for name in ("input_ids", "attention_mask")}
    if case == "left padding":
        inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    elif case == "no mask":
        del inputs["attention_mask"]
    elif case == "hidden states":
        inputs["output_hidden_states"] = True
    else:
        inputs["attention_mask"] = torch.zeros(ROWS, 1, LENGTH, LENGTH, dtype=torch.float64)
    wanted = model(**inputs)
    assert pack(model)
    found = model(**inputs)
    torch.testing.assert_close(found.last_hidden_state, wanted.last_hidden_state, rtol=1e-9, atol=1e-11)
    if case == "hidden states":
        assert len(found.hidden_states) == len(wanted.hidden_states)


def test_layers_that_are_computed_again_in_the_backward_pass_are_packed_again(
    encoder_folder: Callable[[str], Path],
) -> None:
    model = make_model(encoder_folder("bert"), dropout=0.1).train()
    assert pack(model)
    speed_up_dropout(model)
    torch.manual_seed(5)
    wanted, wanted_gradients = outputs_and_gradients(model, batch())
    # Under its newer name where there is one: the other warns
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    torch.manual_seed(5)
    found, gradients = outputs_and_gradients(model, batch())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    for name, gradient in wanted_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-9, atol=1e-12)


def test_a_chosen_attention_implementation_stays(encoder_folder: Callable[[str], Path]) -> None:
    model = KDMCSEModel.from_encoder(encoder_folder("bert"), attn_implementation="eager")
    assert not pack(model)
    assert model.encoder.config._attn_implementation == "eager"


def test_a_saved_model_knows_nothing_of_packing(encoder_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = make_model(encoder_folder("bert"))
    assert pack(model)
    model.save_pretrained(tmp_path)
    assert "kdmcse_packed" not in (tmp_path / "config.json").read_text()
    assert KDMCSEModel.from_pretrained(tmp_path).encoder.config._attn_implementation == "sdpa"


def test_dropout_is_drawn_for_each_view_and_row(encoder_folder: Callable[[str], Path]) -> None:
    model = make_model(encoder_folder("bert"), dropout=0.1).train()
    assert pack(model)
    inputs = batch()
    inputs["input_ids"][:], inputs["attention_mask"][:] = inputs["input_ids"][:1], 1
    views = model(**inputs, num_views=2).text_embeds.flatten(0, 1)
    distance = torch.cdist(views, views) + torch.eye(len(views))
    assert distance.min() > 1e-3
