import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from render_model_cards import RUNS, render
from render_results import REPORTS
from test_recipes import COMBINATIONS, TYPES

from kdmcse_hf.arguments import parse_arguments
from kdmcse_hf.release_card import nearest_preset

CARDS = Path(__file__).parents[2] / "model_cards"


def test_there_is_a_card_for_every_combination_of_recipes_and_no_other() -> None:
    assert sorted(RUNS) == sorted(COMBINATIONS)
    assert {path.stem for path in CARDS.glob("*.md")} == {"README"} | {"-".join(run) for run in RUNS}


@pytest.mark.parametrize("run", RUNS, ids="-".join)
def test_the_committed_card_is_up_to_date_and_says_that_the_run_was_not_made(run: tuple[str, str, str]) -> None:
    path = CARDS / f"{'-'.join(run)}.md"
    text = path.read_text(encoding="utf-8")
    assert text == render(*run), "run `python examples/render_model_cards.py model_cards`"
    assert "**This run has not been made.**" in text and "None: the run has not been made." in text
    assert " %" not in text and "Spearman" not in text
    data = ModelCard.load(path).data
    assert data.eval_results is None
    assert data.base_model.endswith(("/bert-base-uncased", "/roberta-base"))


@pytest.mark.parametrize("run", RUNS, ids="-".join)
def test_the_command_in_a_card_is_taken_and_its_switches_are_the_card_s(
    run: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = render(*run)
    (command,) = re.findall(r"python \.\./train_kdmcse\.py (.*?)\nkdmcse export", text, re.DOTALL)
    monkeypatch.chdir(CARDS.parent / "examples" / "recipes")
    model, _, objective, _ = parse_arguments(TYPES, [*command.replace("\\\n", " ").split(), "--use_cpu"])
    assert model.pooling == "cls" and f"base_model: {model.model_name_or_path}\n" in text
    preset, changes = nearest_preset(objective.__dict__)
    assert f"preset `{preset}`" in text
    assert text.count("\n| `") == len(changes)
    for name, here, there in changes:
        assert f"| `{name}` | `{here}` | `{there}` |" in text


def test_the_cards_of_runs_that_were_made_have_the_scores_of_the_studies() -> None:
    lines = (REPORTS / "results.jsonl").read_text(encoding="utf-8").splitlines()
    scores = {record["row"]: record["sts"] for record in map(json.loads, lines) if record["seed"] == 0}
    cards = list((CARDS / "studies").glob("*.md"))
    assert cards
    for card in cards:
        text = card.read_text(encoding="utf-8")
        assert "\n| seed | 0 |\n" in text
        assert "type: mteb/" not in text  # they are of SentEval's text
        for name, score in scores[card.stem].items():  # encoded in other batches
            (stated,) = re.findall(rf"\n\| {name} \| [\d,]* ?\| (\d+\.\d\d) \|\n", text)
            assert float(stated) == pytest.approx(score, abs=0.02), f"{card.name}: {name}"
