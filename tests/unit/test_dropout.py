import pytest
import torch
from torch import nn

from kdmcse_hf.dropout import FastDropout, drop, speed_up_dropout


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_elements_are_zero_with_the_probability_and_the_mean_stays(probability: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    count = 200_000
    dropped = drop(torch.ones(count, dtype=dtype), probability)
    sigma = (probability * (1 - probability) / count) ** 0.5
    assert abs((dropped == 0).double().mean().item() - probability) < 5 * sigma + 2**-17
    kept = dropped[dropped != 0].double()
    assert kept.unique().numel() == 1
    assert kept[0].item() == pytest.approx(1 / (1 - probability), rel=1e-2 if dtype is torch.bfloat16 else 1e-4)


def test_neighbours_fall_independently() -> None:
    """Four elements share a draw: none may tell of another, at any of the distances within two draws."""
    torch.manual_seed(0)
    zero = (drop(torch.ones(400_000), 0.3) == 0).double() - 0.3
    for distance in range(1, 8):
        correlation = (zero[distance:] * zero[:-distance]).mean() / 0.21
        assert abs(correlation) < 5 / 400_000**0.5, distance


def test_gradients_pass_where_elements_did() -> None:
    torch.manual_seed(0)
    features = torch.randn(7, 5, dtype=torch.float64).exp().requires_grad_()
    dropped = drop(features, 0.5)
    (gradient,) = torch.autograd.grad(dropped.sum(), features)
    assert torch.equal(gradient, (dropped / features).detach())
    assert 0 < (gradient == 0).sum() < gradient.numel()


def test_a_seed_gives_the_same_elements_and_the_next_draw_others() -> None:
    torch.manual_seed(3)
    first, second = drop(torch.ones(100), 0.5), drop(torch.ones(100), 0.5)
    torch.manual_seed(3)
    assert torch.equal(first, drop(torch.ones(100), 0.5))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1023])
def test_sizes_that_are_no_multiple_of_four_work(size: int) -> None:
    assert drop(torch.ones(size), 0.5).shape == (size,)


def test_every_dropout_of_a_model_is_replaced_and_none_acts_in_evaluation() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Sequential(nn.Dropout(1.0), nn.Dropout1d(0.5)))
    names = list(model.state_dict())
    speed_up_dropout(model)
    assert [type(module) for module in model.modules() if isinstance(module, nn.Dropout)] == [FastDropout, FastDropout]
    assert list(model.state_dict()) == names
    features = torch.randn(3, 4)
    assert torch.equal(model[1].eval()(features), features)
    assert not model[2][0](features).any()  # a probability of 1 is torch's business
    assert (model[1].train()(torch.ones(1000)) == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
