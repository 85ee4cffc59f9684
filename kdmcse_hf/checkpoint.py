"""Checkpoint folders: which ones are whole, which run they belong to, and what is recorded beside the weights."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from kdmcse_hf.release import MANIFEST
from kdmcse_hf.teacher.shard import sha256

logger = logging.get_logger(__name__)

OBJECTIVE_FILE = "objective.json"
RECORD_FILE = "training_record.json"
STS_FILE = "sts_results.json"
MTEB_FILE = "mteb_results.json"
RECORDED = (OBJECTIVE_FILE, RECORD_FILE, STS_FILE, MTEB_FILE)
"""What a release keeps of what is known about a checkpoint, and tells in its card."""
_EXPECTED: dict[str, dict[str, Any]] = {
    OBJECTIVE_FILE: {},
    RECORD_FILE: {"data": dict, "settings": dict, "versions": dict},
    STS_FILE: {"scores": dict, "pairs": dict, "protocol": dict, "max_length": int},
    MTEB_FILE: {"scores": dict, "pairs": dict, "datasets": dict, "protocol": dict, "max_length": int},
}
_SAME = ("objective", "variant", "schedule", "model", "optimization", "data", "teacher")
"""What of a description and a record has to be the same for a run to be gone on with."""
_WAY_OUT = "Take that file from another copy of the checkpoint, or remove it: the card then says less."


def resume_point(wanted: str | None, output_dir: str | os.PathLike[str]) -> str | None:
    """The checkpoint that `--resume_from_checkpoint` means: `true` is the newest that is whole, if there is one.

    Raises:
        ValueError: there are checkpoints, and none is to be resumed: a new run would remove them.
    """
    newest = last_complete_checkpoint(output_dir)
    said = (wanted or "false").lower()
    if newest and said == "false":
        raise ValueError(f"{newest} exists: add `--resume_from_checkpoint true`, or choose another --output_dir.")
    return newest if said == "true" else None if said == "false" else wanted


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


def check_same_everywhere(checkpoint: str | bool | None) -> None:
    """Raises a `ValueError` if processes would go on from different checkpoints, as they do without a shared disk."""
    found = dict.fromkeys(gather_object([checkpoint or "none"]))
    if len(found) > 1:
        raise ValueError(
            f"Processes would go on from different checkpoints: {', '.join(map(str, found))}. All of them need to see "
            "the same `output_dir`, on a shared disk, or each machine needs its own whole checkpoints "
            "(`--save_on_each_node true`)."
        )


def save_description(folder: str | os.PathLike[str], description: dict[str, Any]) -> None:
    """Writes what a run minimises, and over which batches, into a folder of it."""
    _write(Path(folder) / OBJECTIVE_FILE, description)


def save_record(folder: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Writes what a run was (see [`training_record`]) into a folder of it."""
    _write(Path(folder) / RECORD_FILE, record)


def read_recorded(folder: Path, file: str) -> dict[str, Any]:
    """One of the files `RECORDED` of a folder; empty where there is none.

    Raises:
        ValueError: it is not what this package writes under that name.
    """
    path = folder / file
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON, or was cut short ({error}). {_WAY_OUT}") from error
    if content != {}:
        _check_recorded(path, content, _WAY_OUT)
    return dict(content)


def _check_recorded(path: Path, content: Any, way_out: str) -> None:
    expected = _EXPECTED[path.name]
    if not isinstance(content, dict) or any(not isinstance(content.get(name), kind) for name, kind in expected.items()):
        parts = ", ".join(f"{name} ({kind.__name__})" for name, kind in expected.items())
        found = sorted(content) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(f"{path} holds {found}: expected a JSON object{parts and f' with {parts}'}. {way_out}")
    scores: dict[str, Any] = content["scores"] if "scores" in expected else {}
    for task, score in scores.items():
        if not isinstance(score, int | float) or not math.isfinite(score):
            raise ValueError(f"{path} has the score {score!r} of {task}: expected a finite number. {way_out}")
    if "datasets" in expected and set(content["datasets"]) != set(scores) - {"avg"}:
        raise ValueError(
            f"{path} has datasets of {sorted(content['datasets'])} and scores of {sorted(scores)}: expected the same "
            f"tasks. {way_out}"
        )


def check_recordable(folder: str | os.PathLike[str]) -> None:
    """Whether scores may be recorded in a folder.

    Raises:
        ValueError: it is a release, of which no file may change, holds no weights, or cannot be written to.
    """
    folder = Path(folder)
    if any((place / MANIFEST).is_file() for place in (folder, folder.absolute().parent)):
        raise ValueError(
            f"{folder} is a release, which would not be what was exported with another file in it. Record the scores "
            "in the checkpoint that it was made of, and export that again."
        )
    if not _weights(folder):
        raise ValueError(f"{folder} holds no model.safetensors: STS results are kept beside the weights they are of.")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{folder} cannot be written to: record the scores in a copy of it that you may change.")


def save_sts_results(folder: str | os.PathLike[str], results: dict[str, Any]) -> None:
    """Writes what [`evaluate_sts`] found beside the weights that it was found for.

    Args:
        folder: a saved model, and no release.
        results: `scores` by task, `pairs` (how many) by task, the `protocol` in words, and `max_length`, the tokens
            after which sentences were cut.

    Raises:
        ValueError: the folder is a release or has no weights; something is missing in the results, or not finite.
    """
    if "datasets" in results:
        raise ValueError("These results name datasets, as mteb's do: `save_mteb_results` is for those.")
    _save_scores(folder, STS_FILE, results)


def save_mteb_results(folder: str | os.PathLike[str], results: dict[str, Any]) -> None:
    """Writes what [`evaluate_mteb_sts`] found, as [`save_sts_results`] does, but apart, and with its `datasets`."""
    _save_scores(folder, MTEB_FILE, results)


def load_sts_results(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What [`save_sts_results`] wrote, if anything.

    Raises:
        ValueError: they are of other weights than lie there now, or something else.
    """
    return _load_scores(folder, STS_FILE)


def load_mteb_results(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What [`save_mteb_results`] wrote, if anything; raises as [`load_sts_results`] does."""
    return _load_scores(folder, MTEB_FILE)


def _save_scores(folder: str | os.PathLike[str], file: str, results: dict[str, Any]) -> None:
    check_recordable(folder)
    path = Path(folder) / file
    _check_recorded(path, results, "It was not written.")
    _write(path, {**results, "weights": _weights(Path(folder))})


def _load_scores(folder: str | os.PathLike[str], file: str) -> dict[str, Any] | None:
    results = read_recorded(Path(folder), file)
    if not results:
        return None
    if results.pop("weights", None) != _weights(Path(folder)):
        path = Path(folder) / file
        raise ValueError(f"{path} holds the scores of other weights than lie beside it: evaluate again, or remove it.")
    return results


def differences(saved: dict[str, Any], now: dict[str, Any], parts: Sequence[str]) -> list[str]:
    """What `now` says otherwise than `saved`, in words."""
    found = []
    for part in parts:
        before, after = (description.get(part) or {} for description in (saved, now))
        found += [
            f"{name} was {before.get(name)!r}, is {after.get(name)!r}"
            for name in {**before, **after}
            if before.get(name) != after.get(name)
        ]
    return found


def _weights(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(folder.glob("model*.safetensors"))}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_same_run(checkpoint: str | os.PathLike[str], description: dict[str, Any]) -> None:
    """Compares what a run minimises, how, over which batches and on which data with what the checkpoint says.

    Args:
        description: as in [`save_description`] and, for `data` and `teacher`, in [`save_record`].

    Raises:
        ValueError: they differ, or the checkpoint does not say; names the differences.
    """
    saved: dict[str, Any] = {}
    for file in (OBJECTIVE_FILE, RECORD_FILE):
        if not (Path(checkpoint) / file).is_file():
            raise ValueError(f"{checkpoint} cannot be resumed: it has no {file}. Did a KDMCSETrainer save it?")
        saved |= read_recorded(Path(checkpoint), file)
    if different := differences(saved, description, _SAME):
        raise ValueError(
            f"{checkpoint} belongs to another run: {'; '.join(different)}. Resume with its settings, or start a new "
            "run from its weights (`model_name_or_path`) in another folder."
        )
