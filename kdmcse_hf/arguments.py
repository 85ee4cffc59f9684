"""Command-line arguments of the example scripts: flags over a recipe file over a preset."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from kdmcse_hf.objective import Objective
from kdmcse_hf.presets import PRESETS

SCORED_ON_DEV: dict[str, Any] = {
    "eval_strategy": "steps",
    "eval_steps": 125,
    "save_strategy": "steps",
    "save_steps": 125,
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "spearman",
    "greater_is_better": True,
}
"""What `sts_dir` switches on: the papers score STS-B dev every 125 steps and keep the best checkpoint."""


def parse_arguments(types: Sequence[Any], argv: Sequence[str]) -> tuple[Any, ...]:
    """An instance of each dataclass in `types`, from `[RECIPE.yaml|.json ...] [--flag value ...]`.

    A flag overrules the recipes, a later recipe an earlier one, recipes the preset (`--preset`, default `kdmcse`) and
    what `--sts_dir` switches on ([`SCORED_ON_DEV`]).

    Raises:
        SystemExit: an unknown flag or recipe key, or a value that a dataclass refuses; the message says which.
    """
    arguments = list(argv)
    recipe: dict[str, Any] = {}
    all_types: list[Any] = [*types, _Preset] if Objective in types else list(types)
    parser = HfArgumentParser(all_types, allow_abbrev=False)
    try:
        while arguments and Path(arguments[0]).suffix in (".yaml", ".yml", ".json"):
            recipe |= _read_recipe(Path(arguments.pop(0)))
        known = {action.dest for action in parser._actions}
        unknown = sorted(set(recipe) - known)
        if unknown:
            raise ValueError(f"The recipes have unknown keys: {', '.join(unknown)}.")
        early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        early.add_argument("--preset", default=recipe.get("preset", "kdmcse"))
        early.add_argument("--sts_dir", "--sts-dir", default=recipe.get("sts_dir"))
        early.add_argument(
            "--eval_steps", "--eval-steps", default=recipe.get("eval_steps", SCORED_ON_DEV["eval_steps"])
        )
        chosen, _ = early.parse_known_args(arguments)
        if chosen.preset not in PRESETS:
            raise ValueError(f"Unknown preset {chosen.preset!r}: expected one of {', '.join(PRESETS)}.")
        if Objective in types:
            parser.set_defaults(**dataclasses.asdict(PRESETS[chosen.preset]))
        if chosen.sts_dir:
            parser.set_defaults(**SCORED_ON_DEV | {"save_steps": str(chosen.eval_steps)})
        # As text, so that the flag's own type reads it: YAML takes 3e-5 for a string.
        parser.set_defaults(**{k: str(v) if isinstance(v, (int, float)) else v for k, v in recipe.items()})
        for action in parser._actions:
            action.required = action.required and action.dest not in recipe
        return tuple(parser.parse_args_into_dataclasses(arguments)[: len(types)])
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")  # without the usage of a hundred flags


@dataclasses.dataclass
class _Preset:
    preset: str = dataclasses.field(
        default="kdmcse", metadata={"help": f"The named system whose switches are the defaults: {', '.join(PRESETS)}."}
    )


def _read_recipe(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"The recipe {path} does not exist.")
    text = path.read_text(encoding="utf-8")
    try:
        recipe = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"The recipe {path} cannot be read: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"The recipe {path} must map argument names to values, got {type(recipe).__name__}.")
    return recipe
