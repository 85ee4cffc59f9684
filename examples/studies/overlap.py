"""Test pairs that have a sentence of the captions that rows train on."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from kdmcse_hf.sts import SentencePairs, load_sts, sentence_key, sts_subsets
from kdmcse_hf.teacher.annotations import read_annotations, read_split
from studies.grid import expand
from studies.table import Table


def captions_in(training_captions: Mapping[str, str], places: Mapping[str, str]) -> set[str]:
    """The captions of a study's `training_captions`, as [`sentence_key`] has them."""
    captions, splits, split = (
        expand(training_captions[key], places) for key in ("captions_file", "splits_file", "split")
    )
    images = read_split(splits, split)
    return {sentence_key(row.caption) for row in read_annotations(captions) if row.image in images}


def known_sentences(pairs: SentencePairs, captions: Collection[str]) -> NDArray[np.int64]:
    """How many sentences of each pair, (N,), are among the captions: 0, 1 or 2."""
    sides = ([sentence_key(sentence) in captions for sentence in side] for side in (pairs.first, pairs.second))
    return np.sum(list(sides), axis=0, dtype=np.int64)


def overlap_table(sts_dir: str, tasks: Sequence[str], captions: Collection[str]) -> Table:
    """Of each set, of STS-B dev, and of each subset that has any: the pairs with a training caption."""
    lines = []
    for task in tasks:
        known = known_sentences(load_sts(sts_dir, task), captions)
        lines.append(_line(task, known))
        subsets = sts_subsets(sts_dir, task).items()
        lines += [_line(f"{task}/{name}", known[rows]) for name, rows in subsets if known[rows].any()]
    lines.append(_line("STS-B dev", known_sentences(load_sts(sts_dir, "STSB", "dev"), captions)))
    head = ("", "pairs", "with a training caption", "of two training captions")
    return Table("Test pairs with a training caption", head, tuple(lines))


def _line(name: str, known: NDArray[np.int64]) -> tuple[str, ...]:
    return name, str(len(known)), str((known > 0).sum()), str((known > 1).sum())
