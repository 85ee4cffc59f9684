"""Checkpoint folders: which ones are whole, and which run they belong to."""

import json
import os
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

logger = logging.get_logger(__name__)

OBJECTIVE_FILE = "objective.json"


def last_complete_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """The newest checkpoint that was written to its end; one that a killed run left half written is passed over."""
    steps = {folder: folder.name.rsplit("-", 1)[-1] for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")}
    for folder in sorted((f for f, step in steps.items() if step.isdigit()), key=lambda f: -int(steps[f])):
        try:
            json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))  # written last
        except (OSError, json.JSONDecodeError):
            logger.warning(f"{folder} is incomplete (a run was killed while it saved?): ignored.")
            continue
        return str(folder)
    return None


def save_description(folder: str | os.PathLike[str], description: dict[str, Any]) -> None:
    """Writes what a run minimises, and over which batches, into a folder of it."""
    (Path(folder) / OBJECTIVE_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def check_same_run(checkpoint: str | os.PathLike[str], description: dict[str, Any]) -> None:
    """Compares the `objective` and `schedule` of a description with the checkpoint's.

    Raises:
        ValueError: they differ, or the checkpoint has none; names the differences.
    """
    path = Path(checkpoint) / OBJECTIVE_FILE
    if not path.is_file():
        raise ValueError(f"{checkpoint} cannot be resumed: it has no {OBJECTIVE_FILE}. Did a KDMCSETrainer save it?")
    saved = json.loads(path.read_text(encoding="utf-8"))
    different = [
        f"{name} was {saved[part].get(name)!r}, is {value!r}"
        for part in ("objective", "schedule")
        for name, value in description[part].items()
        if saved[part].get(name) != value
    ]
    if different:
        raise ValueError(
            f"{checkpoint} belongs to another run: {'; '.join(different)}. Resume with its settings, or start a new "
            "run from its weights (`model_name_or_path`) in another folder."
        )
