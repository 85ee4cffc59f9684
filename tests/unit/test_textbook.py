"""The benchmark's textbook contender computes the very loss that ours does: otherwise nothing would be compared."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from kdmcse_hf.presets import PRESETS

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import parts

    yield parts
    for name in ("parts", "textbook", "material"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("batch", [2, 9, 64])
def test_the_textbook_loss_is_our_reference_loss(batch: int, parts: object) -> None:
    contenders = parts.loss_contenders(batch)
    torch.testing.assert_close(contenders["textbook"](), contenders["ours"](), rtol=2e-5, atol=1e-6)


def test_its_constants_are_the_preset_s(parts: object) -> None:
    import textbook

    preset = dataclasses.asdict(PRESETS["kdmcse_reference"])
    assert textbook.TEMPERATURE == preset["temperature"] == preset["cross_modal_temperature"]
    assert textbook.MARGIN == preset["text_margin"] == preset["cross_modal_margin"]
    assert textbook.WEIGHT == preset["cross_modal_weight"]


def test_a_turn_is_timed_for_each_contender(parts: object) -> None:
    calls: list[str] = []
    pair = parts.take_turns(lambda: calls.append("theirs"), lambda: calls.append("ours"), 3)
    assert calls == ["theirs", "ours"] * 4
    assert len(pair.theirs) == len(pair.ours) == len(pair.ratios) == 3
