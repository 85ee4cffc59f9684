"""The seven STS sets as mteb scores them: its own data, raw text, and code (extra `[mteb]`).

SentEval's files hold other text, tokenised and lower-cased, and of SICK-R the test part only: [`evaluate_sts`] scores
those. A figure of one protocol never stands for one of the other.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import mteb
import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction
from numpy.typing import NDArray

from kdmcse_hf.sts import Encoder

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
        return self._encoder([text for batch in inputs for text in batch["text"]])


def evaluate_mteb_sts(encoder: Encoder, tasks: Sequence[str] = MTEB_TASKS) -> dict[str, Any]:
    """mteb's main score of each task's test split, the Spearman correlation of cosine and gold, x 100.

    Args:
        encoder: from sentences to vectors.
        tasks: of [`MTEB_TASKS`].

    Returns:
        `scores` by task, and their mean `avg`; `pairs`, how many, by task; `datasets`, the `path` and `revision` on the
        Hub, by task.

    Raises:
        ValueError: an unknown task.
        OSError: a dataset can be had neither from the Hub nor from the cache.
    """
    if unknown := [task for task in tasks if task not in MTEB_TASKS]:
        raise ValueError(f"Unknown task {unknown[0]!r}: expected some of {', '.join(MTEB_TASKS)}.")
    loaded = [mteb.get_task(task) for task in tasks]
    for task in loaded:  # a missing dataset shows before any encoding
        try:
            task.load_data()
        except OSError as error:
            raise OSError(
                f"mteb's {task.metadata.name} is {task.metadata.dataset['path']} on the Hub, which cannot be read: "
                f"{error}"
            ) from error
    # mteb keeps results by the model's name, and a folder's name says nothing of the weights in it.
    results = mteb.evaluate(_Model(encoder), loaded, cache=None).task_results
    scores = {result.task_name: 100 * float(result.scores["test"][0]["main_score"]) for result in results}
    return {
        "scores": {**scores, "avg": float(np.mean(list(scores.values())))},
        "pairs": {task.metadata.name: len(task.dataset["test"]) for task in loaded},
        "datasets": {
            task.metadata.name: {name: task.metadata.dataset[name] for name in ("path", "revision")} for task in loaded
        },
    }
