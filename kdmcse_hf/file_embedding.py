"""Embedding a file of sentences, of any length, on any number of processes.

The sentences are cut into parts beforehand, each process embeds its share of them, and a part is on disk whole or not
at all: whoever dies, the next run embeds the parts that are missing, and the bytes are the same.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers.utils import logging

from kdmcse_hf.distributed import processes, together
from kdmcse_hf.embedding import SentenceEncoder
from kdmcse_hf.fingerprint import model_digest, tokenizer_digest
from kdmcse_hf.sentence_file import SentenceFile
from kdmcse_hf.teacher.shard import CacheError, publishing, read_shard_header, sha256, write_shard
from kdmcse_hf.vector_file import SUFFIXES, write_vectors

logger = logging.get_logger(__name__)

ROWS_PER_PART = 8192
INDEX = "index.json"


def embed_file(
    sentences: SentenceFile,
    out: str | os.PathLike[str],
    load_encoder: Callable[[torch.device], SentenceEncoder],
    *,
    name: str,
    bf16: bool = False,
    device: str | None = None,
    rows_per_part: int = ROWS_PER_PART,
) -> tuple[int, int]:
    """Writes the vector of every sentence to `out`; goes on where a killed run stopped. Memory does not grow with N.

    Under `accelerate launch` or `torchrun` every process calls it, on one machine or on several that share the disk.
    Until `out` is whole, the parts lie beside it in the folder `OUT.parts`.

    Args:
        sentences: what to embed.
        out: `.npy`, `.parquet` or `.jsonl`: see [`write_vectors`]. Must not exist.
        load_encoder: the encoder on the device of this process.
        name: of the encoder, for messages.
        bf16: whether to compute in mixed precision.
        device: by default the process's own accelerator, or the CPU.
        rows_per_part: sentences of a part: a killed process loses these at most.

    Returns:
        (N, H).

    Raises:
        CacheError: parts of another model, input or setting lie there (names the difference), or the disk is full.
        ValueError, OSError: a sentence is empty; `out` exists, has another ending or cannot be written.
    """
    run = _Run(sentences, Path(out), rows_per_part)
    state = processes()
    with together(state):
        run.check_output()
        place = torch.device(device) if device else state.device
        encoder = load_encoder(place)
    with together(state):
        if state.is_main_process:
            run.begin(_describe(encoder, name, bf16))
    with together(state):
        index = run.read_index()
        missing = {number for number in range(index.parts) if not run.part(number).exists()}
    with together(state), torch.autocast(place.type, torch.bfloat16, enabled=bf16):
        _embed_parts(run, index, sorted(missing)[state.process_index :: state.num_processes], encoder, state)
    with together(state):
        if state.is_main_process:
            run.finish(index)
    return index.rows, encoder.model.config.hidden_size


@dataclass(frozen=True)
class _Index:
    rows: int
    parts: int
    digest: str
    """Of all that shows in the vectors."""


class _Run:
    """The folder of parts: what lies in it, and what has to."""

    def __init__(self, sentences: SentenceFile, out: Path, rows_per_part: int) -> None:
        self.sentences, self.out, self.rows_per_part = sentences, out, rows_per_part
        self.folder = out.with_name(f"{out.name}.parts")

    def part(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.safetensors"

    def check_output(self) -> None:
        if self.out.suffix not in SUFFIXES:
            raise ValueError(f"{self.out} should end in one of {', '.join(SUFFIXES)}, to say how it is written.")
        if not self.out.parent.is_dir():
            raise ValueError(f"The folder {self.out.parent} does not exist: make it, or choose another output.")
        if not os.access(self.out.parent, os.W_OK):
            raise ValueError(f"The folder {self.out.parent} cannot be written to: choose another output.")
        if self.out.exists() and not self.folder.exists():
            raise ValueError(f"{self.out} exists: it is not overwritten. Remove it, or choose another output.")

    def begin(self, encoder: dict[str, Any]) -> None:
        """Compares with what an earlier run left, removes its damaged parts, and writes the index."""
        path = self.folder / INDEX
        index = {"encoder": encoder, "input": self.sentences.describe(), "rows_per_part": self.rows_per_part}
        if path.exists():
            self._check_same(json.loads(path.read_text(encoding="utf-8")), index)
        self._check_room(index)
        self.folder.mkdir(exist_ok=True)
        with publishing(path) as file:
            file.write((json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode())
        begun = self.read_index()
        for number in range(begun.parts):
            if self.part(number).exists() and not self._is_good(number, begun):
                logger.warning(f"{self.part(number)} is damaged: it is made again.")
                self.part(number).unlink()

    def read_index(self) -> _Index:
        content = (self.folder / INDEX).read_bytes()
        rows = json.loads(content)["input"]["rows"]
        return _Index(rows, -(-rows // self.rows_per_part), hashlib.sha256(content).hexdigest())

    def finish(self, index: _Index) -> None:
        parts = [self.part(number) for number in range(index.parts)]
        absent = [part.name for part in parts if not part.exists()]
        if absent:
            raise CacheError(
                f"{self.folder} lacks {len(absent)} parts, such as {absent[0]}: do all processes see one folder?"
            )
        write_vectors(self.out, parts, self.sentences.parts(self.rows_per_part))
        shutil.rmtree(self.folder)

    def _is_good(self, number: int, index: _Index) -> bool:
        try:
            header = read_shard_header(self.part(number))
        except CacheError:
            return False
        rows = min(self.rows_per_part, index.rows - number * self.rows_per_part)
        same = (header.source, header.first_row, header.shape[0]) == (index.digest, number * self.rows_per_part, rows)
        return same and sha256(self.part(number), header.offset) == header.data

    def _check_same(self, begun: dict[str, Any], index: dict[str, Any]) -> None:
        before, now = (
            {**found["encoder"], **found["input"], "rows_per_part": found["rows_per_part"]} for found in (begun, index)
        )
        different = [
            f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
            for name in now | before
            if before.get(name) != now.get(name)
        ]
        if different:
            raise CacheError(
                f"{self.folder} holds vectors of something else: {'; '.join(different)}. Go on with its model, input "
                "and settings, or remove it, or choose another output."
            )

    def _check_room(self, index: dict[str, Any]) -> None:
        done = sum(path.stat().st_size for path in self.folder.glob("part-*")) if self.folder.exists() else 0
        one = 4 * index["input"]["rows"] * index["encoder"]["width"]
        # JSON takes about twenty characters a number.
        needed = one - min(one, done) + one * (5 if self.out.suffix == ".jsonl" else 1)
        free = shutil.disk_usage(self.out.parent).free
        if free < needed:
            raise CacheError(
                f"{self.out} and its parts need {needed:,} bytes more, but the disk has {free:,} left. Make room, or "
                "choose an output on another disk."
            )


def _embed_parts(run: _Run, index: _Index, numbers: list[int], encoder: SentenceEncoder, state: PartialState) -> None:
    mine, size = set(numbers), run.rows_per_part
    share = f" (process {state.process_index + 1} of {state.num_processes})" if state.num_processes > 1 else ""
    with tqdm(
        total=sum(min(size, index.rows - number * size) for number in mine),
        desc=f"Embedding{share}",
        unit=" sentences",
        disable=None if state.is_main_process else True,
    ) as bar:
        for number, texts in enumerate(run.sentences.parts(size)):
            if not mine:
                break
            if number in mine:
                mine.remove(number)
                vectors = encoder(texts, advance=bar.update)
                write_shard(
                    run.part(number), vectors, kind="sentence", first_row=number * size, teacher="", source=index.digest
                )


def _describe(encoder: SentenceEncoder, name: str, bf16: bool) -> dict[str, Any]:
    """All that has to be the same for two runs to give the same vectors."""
    return {
        # Never the path of a folder: it may have moved.
        "model": Path(name).resolve().name if Path(name).is_dir() else name,
        "weights": model_digest(encoder.model),
        "tokenizer": tokenizer_digest(encoder.tokenizer),
        "width": encoder.model.config.hidden_size,
        "pooling": encoder.pooling,
        "max_length": encoder.max_length,
        "normalize": encoder.normalize,
        "batch_size": encoder.batch_size,
        "precision": "bfloat16, mixed" if bf16 else "float32",
    }
