"""`kdmcse_reference` against recorded losses and gradients of the published code."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from kdmcse_hf.objective import Objective, PairEmbeddings, compute_objective
from kdmcse_hf.presets import PRESETS

LEAVES = ("z", "grounded", "visual", "textual")


class Recorded:
    def __init__(self, path: Path) -> None:
        self.file = safe_open(path, "pt")
        self.cases = json.loads(self.file.metadata()["cases"])

    def tensor(self, case: dict, name: str, dtype: torch.dtype) -> torch.Tensor:
        return self.file.get_tensor(f"{case['name']}/{name}").to(dtype)


def objective_of(case: dict) -> Objective:
    threshold = "none" if case["threshold"] is None else f"cosine:{case['threshold']}"
    return dataclasses.replace(
        PRESETS["kdmcse_reference"],
        temperature=case["temperature"],
        cross_modal_temperature=case["multimodal_temperature"],
        text_margin=case["text_margin"],
        cross_modal_margin=case["multimodal_margin"],
        cross_modal_weight=case["multimodal_weight"],
        image_threshold=threshold,
        caption_threshold=threshold,
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    recorded = Recorded(Path(metafunc.config.getoption("--golden")))
    metafunc.parametrize("case", recorded.cases, ids=[case["name"] for case in recorded.cases])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=["f64", "f32"])
def test_losses_and_gradients_equal_the_published_code(
    case: dict, dtype: torch.dtype, tolerance: float, request: pytest.FixtureRequest
) -> None:
    recorded = Recorded(Path(request.config.getoption("--golden")))
    leaves = {name: recorded.tensor(case, name, dtype).requires_grad_() for name in LEAVES}
    result = compute_objective(
        objective_of(case),
        PairEmbeddings(
            text=leaves["z"],
            grounded=leaves["grounded"],
            image=leaves["visual"],
            caption=leaves["textual"],
            teacher_image=recorded.tensor(case, "image_features", dtype),
            teacher_text=recorded.tensor(case, "text_features", dtype),
        ),
    )
    result.loss.backward()
    found = {
        "text_loss": result.terms["text_loss"],
        "multimodal_loss": result.terms["image_loss"] + result.terms["caption_loss"],
        **{f"grad_{name}": leaf.grad for name, leaf in leaves.items()},
    }
    for name, value in found.items():
        expected = recorded.tensor(case, name, torch.float64).reshape(value.shape)
        error = (value.double() - expected).norm() / expected.norm()
        assert error < tolerance, f"{name}: relative error {error:.2e}"
