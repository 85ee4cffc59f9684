"""The seven STS sets as mteb scores them: its own data, raw text, and code (extra `[mteb]`).

SentEval's files hold other text, tokenised and in part lower-cased, and of SICK-R the test part only: [`evaluate_sts`]
scores those. A figure of one protocol never stands for one of the other.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import mteb
import numpy as np
from datasets.exceptions import DatasetsError
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction
from numpy.typing import NDArray

from kdmcse_hf.sts import Encoder, encode_checked

MTEB_TASKS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICK-R")
"""The seven sets by mteb's names."""


class _Model(AbsEncoder):  # type: ignore[misc]  # mteb is not among the packages that types are checked with
    """What mteb calls: any encoder."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.mteb_model_meta = ModelMeta.create_empty(
            {"name": "kdmcse_hf/encoder", "similarity_fn_name": ScoringFunction.COSINE}
        )

    def encode(self, inputs: Iterable[dict[str, list[str]]], **_: Any) -> NDArray[Any]:
        sentences = [text for batch in inputs for text in batch["text"]]
        return encode_checked(self._encoder, sentences)


def evaluate_mteb_sts(encoder: Encoder, tasks: Sequence[str] = MTEB_TASKS) -> dict[str, Any]:
    """mteb's main score of each task's test split, the Spearman correlation of cosine and gold, x 100.

    Args:
        encoder: from sentences to vectors.
        tasks: of [`MTEB_TASKS`].

    Returns:
        `scores` by task, and their mean `avg`; `pairs`, how many, by task; `datasets`, the `path` and `revision` on the
        Hub, by task.

    Raises:
        ValueError: an unknown task; vectors that are not finite, not one a sentence, or all the same.
        OSError: a dataset can be had neither from the Hub nor from the cache, or in another revision only.
    """
    if not tasks or set(tasks) - set(MTEB_TASKS):
        raise ValueError(f"The tasks are {tasks!r}: expected some of {', '.join(MTEB_TASKS)}.")
    loaded = [mteb.get_task(task) for task in tasks]
    for task in loaded:  # a missing dataset shows before any encoding
        _load(task)
    # mteb keeps results by the model's name, and a folder's name says nothing of the weights in it.
    results = mteb.evaluate(_Model(encoder), loaded, cache=None, co2_tracker=False).task_results
    scores = {result.task_name: 100 * float(result.scores["test"][0]["main_score"]) for result in results}
    if bad := [task for task, score in scores.items() if not np.isfinite(score)]:
        raise ValueError(f"{bad[0]} has the score {scores[bad[0]]}: the vectors of all its sentences are the same.")
    return {
        "scores": {**scores, "avg": float(np.mean(list(scores.values())))},
        "pairs": {task.metadata.name: len(task.dataset["test"]) for task in loaded},
        "datasets": {
            task.metadata.name: {name: task.metadata.dataset[name] for name in ("path", "revision")} for task in loaded
        },
    }


def _load(task: Any) -> None:
    name, wanted = task.metadata.name, task.metadata.dataset
    try:
        task.load_data()
    except (OSError, ValueError, DatasetsError) as error:
        raise OSError(f"mteb's {name} is {wanted['path']} on the Hub, which cannot be read: {error}") from error
    # Where the Hub cannot be reached, `datasets` takes any revision from its cache, in a folder named by it.
    for file in task.dataset["test"].cache_files:
        revision = Path(file["filename"]).parent.name
        if re.fullmatch("[0-9a-f]{40}", revision) and revision != wanted["revision"]:
            raise OSError(
                f"mteb's {name} is the revision {wanted['revision']} of {wanted['path']}, but the cache has {revision} "
                "and the Hub was not reached: try again with a connection to it."
            )
