"""One pass of the frozen teacher over pictures and captions into a teacher cache, on any number of processes.

Rows are cut into shards beforehand, each process makes its share of them, and a shard is on disk whole or not at all:
whoever dies, the next run makes the shards that are missing, and the bytes are the same.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import BaseImageProcessor
from transformers.utils import logging

from kdmcse_hf.distributed import processes, together
from kdmcse_hf.teacher.cache import TeacherCache
from kdmcse_hf.teacher.captioned_pictures import CaptionedPictures
from kdmcse_hf.teacher.encoder import Teacher, preprocess
from kdmcse_hf.teacher.extraction_plan import ExtractionPlan, ExtractionSettings, Shard
from kdmcse_hf.teacher.pictures import PictureError
from kdmcse_hf.teacher.shard import CacheError, write_shard

logger = logging.get_logger(__name__)


@dataclass
class _Batch:
    """What became of some rows of one shard."""

    rows: Sequence[int]
    """Rows of the cache."""
    features: Tensor | None
    """(n, D), of the rows that did not fail, in order; `None` if all failed."""
    failed: dict[int, str]
    """Rows that could not be read, and why."""
    cut: list[int] = field(default_factory=list)
    """Rows of captions that are longer than the teacher's context."""


def extract_features(
    folder: str | os.PathLike[str],
    captioned: CaptionedPictures,
    teacher: Teacher,
    settings: ExtractionSettings | None = None,
    *,
    append: bool = False,
) -> TeacherCache:
    """Writes the teacher cache of captioned pictures and opens it; goes on where a killed extraction stopped.

    Under `accelerate launch` or `torchrun` every process calls it, on one machine or on several that share the disk.

    Args:
        folder: the cache. A finished one of the same input and teacher is opened as it is.
        captioned: pictures and captions.
        teacher: captions are stored without features if it embeds pictures only.
        settings: by default those of [`ExtractionSettings`].
        append: add the pictures and captions that the finished cache in `folder` lacks; computes only those.

    Raises:
        CacheError: the folder holds a cache, finished or not, of another input or teacher (names the difference), or
            the disk is full.
        ValueError: with `on_error="stop"`, the first picture or caption that cannot be read.
    """
    settings = settings or ExtractionSettings()
    state = processes()
    plan = ExtractionPlan(Path(folder), captioned, teacher, settings, append)
    with together(state):
        if state.is_main_process:
            plan.begin()
    if not plan.nothing_to_do:
        with together(state):  # all have looked before anyone writes
            missing = {kind: [shard for shard in plan.shards(kind) if not shard.path.exists()] for kind in plan.kinds}
        with together(state):
            _extract(plan, missing, teacher, state)
        with together(state):
            if state.is_main_process:
                plan.finish()
    return TeacherCache(folder)


def _extract(plan: ExtractionPlan, missing: dict[str, list[Shard]], teacher: Teacher, state: PartialState) -> None:
    settings = plan.settings
    teacher.model.to(state.device)
    for kind, shards in missing.items():
        if not shards:
            continue
        width = _width(kind, teacher)
        _check_room(plan, sum(shard.rows for shard in shards) * width)
        with torch.autocast(
            state.device.type,
            torch.float16 if settings.mixed_precision == "fp16" else torch.bfloat16,
            enabled=settings.mixed_precision != "no",
        ):
            _write_shards(plan, kind, shards[state.process_index :: state.num_processes], width, teacher, state)


def _write_shards(
    plan: ExtractionPlan, kind: str, shards: Sequence[Shard], width: int, teacher: Teacher, state: PartialState
) -> None:
    """Collects the batches, which fill one shard after the other, and writes each shard when it is full."""
    batches = _picture_batches(plan, shards, teacher) if kind == "image" else _caption_batches(plan, shards, teacher)
    share = f" (process {state.process_index + 1} of {state.num_processes})" if state.num_processes > 1 else ""
    with tqdm(
        total=sum(shard.rows for shard in shards),
        desc=f"{kind.capitalize()}s{share}",
        unit=f" {kind}s",
        smoothing=0.05,
        disable=None if plan.settings.progress and state.is_main_process else True,
    ) as bar:
        for shard in shards:
            features = np.zeros((shard.rows, width), dtype=plan.settings.feature_dtype)
            skipped: dict[int, str] = {}
            cut: list[int] = []
            done = 0
            while done < shard.rows:
                batch = next(batches)
                if batch.features is not None:
                    read = np.array([row for row in batch.rows if row not in batch.failed])
                    values, unfit = _stored(batch.features, features.dtype)
                    features[read - shard.first_row] = values
                    for row in read[unfit]:
                        name = plan.name(kind, row)
                        batch.failed[int(row)] = f"{name}: its features are NaN, or too large for {features.dtype}"
                _report(plan, batch)
                skipped |= batch.failed
                cut += batch.cut
                done += len(batch.rows)
                bar.update(len(batch.rows))
            write_shard(
                shard.path,
                features,
                kind=kind,
                first_row=shard.first_row,
                teacher=plan.teacher_digest,
                source=shard.source,
                skipped=skipped,
                cut=sorted(cut),
            )


def _picture_batches(plan: ExtractionPlan, shards: Sequence[Shard], teacher: Teacher) -> Iterator[_Batch]:
    batches = [rows for shard in shards for rows in _chunks(shard.all_rows, plan.settings.batch_size)]
    decoded = DataLoader(
        _DecodedPictures(plan, teacher.image_processor, batches),
        batch_size=None,
        num_workers=min(plan.settings.num_workers, len(batches)),
        pin_memory=teacher.device.type == "cuda",
    )
    for rows, (inputs, failed) in zip(batches, decoded, strict=True):
        yield _Batch(rows, None if inputs is None else teacher.embed_pictures(inputs), failed)


class _DecodedPictures(Dataset[tuple[dict[str, Tensor] | None, dict[int, str]]]):
    """Each item is a batch, decoded and preprocessed by one worker, and the reasons of the rows it lacks."""

    def __init__(
        self, plan: ExtractionPlan, image_processor: BaseImageProcessor, batches: Sequence[Sequence[int]]
    ) -> None:
        # No more than this: some systems send it to every worker.
        self.pictures, self.image_processor, self.batches = plan.new.pictures, image_processor, batches
        self.first_row, self.names, self.problems = plan.first_rows["image"], plan.new.names, plan.new.image_problems

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor] | None, dict[int, str]]:
        pictures: dict[int, Image.Image] = {}
        failed: dict[int, str] = {}
        for row in self.batches[index]:
            place = row - self.first_row
            try:
                if place in self.problems:
                    raise PictureError(self.problems[place])
                pictures[row] = self.pictures.open(self.names[place])
            except PictureError as error:
                failed[row] = str(error)
        try:
            return preprocess(self.image_processor, list(pictures.values())) if pictures else None, failed
        except Exception:  # processors stumble over odd shapes in ways of their own: find out which picture it is
            for row in list(pictures):
                try:
                    preprocess(self.image_processor, [pictures[row]])
                except Exception as error:
                    size = pictures.pop(row).size
                    name = self.names[row - self.first_row]
                    failed[row] = f"{name} ({size[0]} x {size[1]} pixels) cannot be preprocessed: {error}"
            return preprocess(self.image_processor, list(pictures.values())) if pictures else None, failed


def _caption_batches(plan: ExtractionPlan, shards: Sequence[Shard], teacher: Teacher) -> Iterator[_Batch]:
    """Sorted by length within a shard, so that little padding is computed."""
    first = plan.first_rows["caption"]
    captions, problems = plan.new.captions, plan.new.caption_problems
    for shard in shards:
        failed = {row: problems[row - first] for row in shard.all_rows if row - first in problems}
        if failed:
            yield _Batch(list(failed), None, failed)
        rows = [row for row in shard.all_rows if row not in failed]
        lengths = [len(ids) for ids in teacher.tokenize([captions[row - first] for row in rows])] if rows else []
        length_of = dict(zip(rows, lengths, strict=True))
        for chunk in _chunks(sorted(rows, key=lambda row: -length_of[row]), plan.settings.batch_size):
            features = teacher.embed_captions([captions[row - first] for row in chunk])
            cut = [row for row in chunk if length_of[row] > teacher.max_caption_tokens]
            yield _Batch(chunk, features, {}, cut)


def _chunks(rows: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _stored(features: Tensor, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """The features in the stored dtype, and the places of rows that are not finite in it, which become zero."""
    with np.errstate(over="ignore"):
        values = features.float().cpu().numpy().astype(dtype)
    unfit = np.flatnonzero(~np.isfinite(values).all(axis=1))
    values[unfit] = 0
    return values, unfit


def _report(plan: ExtractionPlan, batch: _Batch) -> None:
    if batch.failed and plan.settings.on_error == "stop":
        raise PictureError(
            f"{next(iter(batch.failed.values())).removesuffix('.')}. Finished shards are kept: mend it and run the "
            "same command again, or leave such pictures out with on_error=skip."
        )
    for reason in batch.failed.values():
        logger.warning(f"Skipped: {reason}")
    if batch.cut:
        more = f", and {len(batch.cut) - 1:,} more of this batch" if len(batch.cut) > 1 else ""
        logger.warning(f"Cut at the teacher's context: {plan.name('caption', batch.cut[0])}{more}")


def _width(kind: str, teacher: Teacher) -> int:
    if kind == "caption":
        return teacher.embed_captions(["a"]).shape[1]
    return teacher.embed_pictures(preprocess(teacher.image_processor, [Image.new("RGB", (64, 64))])).shape[1]


def _check_room(plan: ExtractionPlan, values: int) -> None:
    needed = values * np.dtype(plan.settings.feature_dtype).itemsize
    free = shutil.disk_usage(plan.folder).free
    if free < needed:
        raise CacheError(
            f"{plan.folder} needs {needed:,} bytes for the features that are missing, but its disk has {free:,} left. "
            "Make room, or choose a folder on another disk."
        )
