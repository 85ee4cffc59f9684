"""Write the model card of each checkpoint that the recipes would make, with the command that makes it.

    python examples/render_model_cards.py model_cards

No figure is in them: a card of a run that has been made is written by `kdmcse export` from what the run recorded.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

import yaml

from kdmcse_hf.presets import PRESETS
from kdmcse_hf.release_card import POOLER_TRAP, VECTORS, render_card

RECIPES = Path(__file__).parent / "recipes"
DATA = ("wiki_flickr30k", "wiki_coco", "flickr30k", "coco")
ENCODERS = {"bert_base": "bert", "roberta_base": "roberta"}
RUNS = [*product(PRESETS, DATA, ENCODERS), ("simcse", "wiki", "bert_base")]


def render(preset: str, data: str, encoder: str) -> str:
    """The card of one run that has not been made."""
    base_model = yaml.safe_load((RECIPES / f"{encoder}.yaml").read_text(encoding="utf-8"))["model_name_or_path"]
    weight = yaml.safe_load((RECIPES / f"{data}.yaml").read_text(encoding="utf-8")).get("cross_modal_weight")
    command = (
        f"cd examples/recipes\npython ../train_kdmcse.py {preset}.yaml {data}.yaml {encoder}.yaml \\\n"
        f"    --sts_dir SentEval/data/downstream --output_dir runs/{preset}-{data}-{encoder} --seed 0\n"
        f"kdmcse export runs/{preset}-{data}-{encoder} release"
    )
    return render_card(
        name="FOLDER_OR_HUB_NAME",
        base_model=base_model,
        kind=ENCODERS[encoder],
        description={"objective": asdict(PRESETS[preset]) | ({} if weight is None else {"cross_modal_weight": weight})},
        record={},
        sts={},
        mteb={},
        command=command,
        width=768,
        vector=VECTORS["cls"],
        max_length=128,
        pooled="hidden[:, 0]",
        pooler_trap=POOLER_TRAP.format(vector=VECTORS["cls"]),
    )


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the cards are")
    folder = parser.parse_args(argv).folder
    for run in RUNS:
        (folder / f"{'-'.join(run)}.md").write_text(render(*run), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
