"""Training data: tokenised sentences and captions, and the features that belong to the captions."""

import glob
import hashlib
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import torch
from datasets.fingerprint import Hasher
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from kdmcse_hf.schedule import Schedule, derive_interval
from kdmcse_hf.teacher.pairs import TeacherPairs
from kdmcse_hf.training_args import KDMCSETrainingArguments


def read_sentences(path: str | Path) -> datasets.Dataset:
    """A text file, one sentence a line, as a memory-mapped dataset with column `text`.

    Args:
        path: a local file, or one on the Hub (`hf://datasets/user/name/file.txt`).

    Raises:
        FileNotFoundError, ValueError: no such file, or not UTF-8.
    """
    pattern = str(path)
    if not pattern.startswith("hf://"):
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist: expected a text file with one sentence a line.")
        if not Path(path).stat().st_size:
            raise ValueError(f"{path} is empty: expected a text file with one sentence a line.")
        pattern = glob.escape(pattern)  # which is what the library takes it for
    try:
        return datasets.Dataset.from_text(pattern)
    except datasets.exceptions.DatasetGenerationError as error:
        cause = error.__cause__ or error
        kind = "as UTF-8 text" if isinstance(cause, UnicodeDecodeError) else f"({type(cause).__name__})"
        raise ValueError(f"{path} cannot be read {kind}: {cause}") from error


def stream_sentences(name: str, column: str, count: int, *, config: str | None = None) -> datasets.Dataset:
    """The first `count` rows of a dataset's train split, with column `text`, without downloading the rest of it.

    They are streamed into a memory-mapped file once, for batches are drawn from all of them at random and a run that
    is resumed must find them again. Memory stays flat; a second call reads the file.

    Args:
        name: of the dataset, on the Hub or a folder.
        column: that holds the sentences.
        count: how many.
        config: where the dataset has several.

    Raises:
        ValueError: no such column, or `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"{count} sentences of {name} are wanted: expected at least 1.")
    first: dict[str, Any] = next(iter(datasets.load_dataset(name, config, split="train", streaming=True)), {})
    if column not in first:
        raise ValueError(f"There is no column {column!r}: the dataset {name} has {', '.join(map(repr, first))}.")
    source = datasets.load_dataset_builder(name, config).cache_dir  # changes with the dataset's files
    rows = {"name": name, "config": config, "column": column, "count": count, "source": source}
    return cast(datasets.Dataset, datasets.Dataset.from_generator(_stream, gen_kwargs=rows))


def _stream(name: str, config: str | None, column: str, count: int, source: str) -> Iterator[dict[str, str]]:
    rows = datasets.load_dataset(name, config, split="train", streaming=True)
    for row in rows.select_columns([column]).take(count):
        yield {"text": row[column]}


def tokenize(
    dataset: datasets.Dataset, column: str, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> datasets.Dataset:
    """`dataset` as token ids (column `input_ids`), cut at `max_length`, on all cores; the result is cached on disk.

    Raises:
        ValueError: no such column, or an empty row, named by its number.
    """
    if column not in dataset.column_names:
        raise ValueError(
            f"There is no column {column!r}: the dataset has {', '.join(map(repr, dataset.column_names))}."
        )

    def encode(batch: dict[str, list[Any]], rows: list[int]) -> dict[str, list[list[int]]]:
        for row, text in zip(rows, batch[column], strict=True):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(
                    f"Row {row + 1} of the column {column!r} is empty or not text ({text!r}). Remove such rows first "
                    "(for a text file: grep -v '^[[:space:]]*$' FILE)."
                )
        return {"input_ids": tokenizer(batch[column], truncation=True, max_length=max_length)["input_ids"]}

    # Not beside the dataset's own file, which may be somebody's teacher cache on a read-only disk.
    fingerprint = Hasher.hash((dataset._fingerprint, column, tokenizer, max_length))
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "kdmcse_hf"
    folder.mkdir(parents=True, exist_ok=True)
    processes = min(os.cpu_count() or 1, len(dataset) // 10_000)
    return dataset.map(
        encode,
        batched=True,
        with_indices=True,
        remove_columns=dataset.column_names,
        cache_file_name=str(folder / f"{fingerprint}.arrow"),
        new_fingerprint=fingerprint,
        num_proc=processes if processes > 1 else None,
        desc=f"Tokenising {column}",
    )


class CaptionPairs:
    """Training pairs with their captions tokenised.

    Args:
        teacher: which captions, and what the teacher said of them.
        tokenizer, max_length: of the student.
    """

    def __init__(self, teacher: TeacherPairs, tokenizer: PreTrainedTokenizerBase, *, max_length: int = 32) -> None:
        self.teacher = teacher
        captions = teacher.cache.captions
        if len(teacher) != len(captions):
            captions = captions.select(teacher.caption_rows)
        self.input_ids = tokenize(captions, "caption", tokenizer, max_length)

    def __len__(self) -> int:
        return len(self.teacher)


class TrainingData(Dataset[dict[str, Any]]):
    """Text rows, then pair rows, as one dataset. A batch is of one kind, as the [`ScheduledBatchSampler`] makes them.

    Args:
        text: tokenised sentences (column `input_ids`), or `None`.
        pairs: or `None`.
        needs: which teacher features a paired batch carries.
    """

    def __init__(
        self, text: datasets.Dataset | None, pairs: CaptionPairs | None, needs: frozenset[str] = frozenset()
    ) -> None:
        self.text, self.pairs, self.needs = text, pairs, needs
        self.num_text = 0 if text is None else len(text)
        self.num_pairs = 0 if pairs is None else len(pairs)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of all token ids in their order: of the `text`, and of the `pairs` with the image row of each."""
        found = {}
        if self.text is not None:
            found["text"] = _digest(self.text).hexdigest()
        if self.pairs is not None:
            digest = _digest(self.pairs.input_ids)
            digest.update(self.pairs.teacher.image_rows.tobytes())
            found["pairs"] = digest.hexdigest()
        return found

    def __len__(self) -> int:
        return self.num_text + self.num_pairs

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """The rows of one batch, read together."""
        if indices[0] < self.num_text:
            assert self.text is not None
            return [{"input_ids": ids} for ids in self.text[indices]["input_ids"]]
        assert self.pairs is not None
        pairs = np.asarray(indices) - self.num_text
        features = self.pairs.teacher.features(pairs, self.needs)
        input_ids = self.pairs.input_ids[pairs]["input_ids"]
        return [
            {"input_ids": ids, **{name: array[row] for name, array in features.items()}}
            for row, ids in enumerate(input_ids)
        ]


def _digest(rows: datasets.Dataset) -> Any:
    digest = hashlib.sha256()
    for batch in rows.with_format("arrow").iter(10_000):
        ids = batch["input_ids"].combine_chunks()
        for numbers in (ids.value_lengths(), ids.flatten()):
            digest.update(np.ascontiguousarray(numbers.to_numpy(zero_copy_only=False), dtype=np.int64).data)
    return digest


class ContrastiveCollator:
    """Rows of [`TrainingData`] as tensors, padded on the right to the longest of the batch."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` (B, L); for pairs also `image_ids` (B,) and `teacher_*_embeds` (B, D)."""
        # What `tokenizer.pad(..., padding_side="right")` gives, ten times as fast: a GPU waits for it. On the right
        # whatever the tokenizer prefers, for a sentence's first token stays the first.
        lengths = np.array([len(row["input_ids"]) for row in rows])
        tokens = np.arange(lengths.max()) < lengths[:, None]
        input_ids = np.full(tokens.shape, self.tokenizer.pad_token_id, dtype=np.int64)
        input_ids[tokens] = np.concatenate([row["input_ids"] for row in rows])
        batch = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(tokens.astype(np.int64))}
        for name in rows[0].keys() - {"input_ids"}:
            batch[name] = torch.from_numpy(np.stack([row[name] for row in rows]))
        return batch


def schedule_of(args: KDMCSETrainingArguments, data: TrainingData) -> Schedule:
    """The schedule that the arguments ask for, over this data."""
    batch_size = args.per_device_train_batch_size * args.world_size
    interval = args.pair_every_n_steps
    if args.schedule == "interval" and interval is None and data.num_text and data.num_pairs:
        interval = derive_interval(data.num_text, data.num_pairs, batch_size)
    return Schedule(
        data.num_text,
        data.num_pairs,
        batch_size,
        interval,
        args.seed if args.data_seed is None else args.data_seed,
        image_of_pair=data.pairs.teacher.image_rows if data.pairs and args.avoid_same_image else None,
    )
