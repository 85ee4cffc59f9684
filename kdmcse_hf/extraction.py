"""Teacher features of pictures and captions: one pass of a frozen dual encoder."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from kdmcse_hf.cache_writer import fingerprint, write_cache
from kdmcse_hf.caption_table import read_caption_table
from kdmcse_hf.teacher_cache import TeacherCache


def extract_features(
    folder: str | Path,
    *,
    image_folder: str | Path,
    captions_file: str | Path,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    batch_size: int = 256,
) -> TeacherCache:
    """Writes the teacher cache of a caption table and its pictures, and opens it.

    Args:
        folder: the new cache.
        image_folder: holds the pictures that the table names.
        captions_file: table with columns `image` and `caption`.
        model: a dual encoder with `get_image_features` and `get_text_features`, such as CLIP.
        processor: the model's.
        batch_size: pictures or captions a forward pass.

    Raises:
        FileNotFoundError: a picture that the table names is missing.
    """
    image_of_caption, captions = read_caption_table(captions_file)
    names = list(dict.fromkeys(image_of_caption))
    missing = [name for name in names if not (Path(image_folder) / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{captions_file} names {len(missing):,} pictures that {image_folder} lacks, such as {missing[0]!r}."
        )
    row_of = {name: row for row, name in enumerate(names)}

    def image_batches() -> Iterator[NDArray[Any]]:
        for chunk in _chunks(names, batch_size, "Pictures"):
            pictures = [Image.open(Path(image_folder) / name).convert("RGB") for name in chunk]
            yield _embed(model, "get_image_features", processor(images=pictures, return_tensors="pt"))

    def caption_batches() -> Iterator[NDArray[Any]]:
        for chunk in _chunks(captions, batch_size, "Captions"):
            inputs = processor(text=chunk, padding=True, truncation=True, return_tensors="pt")
            yield _embed(model, "get_text_features", inputs)

    return write_cache(
        folder,
        images=names,
        captions=captions,
        image_rows=[row_of[name] for name in image_of_caption],
        image_features=image_batches(),
        caption_features=caption_batches(),
        teacher={
            "name": model.name_or_path,
            "type": model.config.model_type,
            "revision": getattr(model.config, "_commit_hash", None),
            "processor": json.loads(processor.image_processor.to_json_string()),
        },
        source={"captions": fingerprint(captions_file)},
    )


def _chunks(items: Sequence[str], size: int, label: str) -> Iterator[list[str]]:
    for start in tqdm(range(0, len(items), size), desc=label, unit="batch"):
        yield list(items[start : start + size])


@torch.inference_mode()
def _embed(model: PreTrainedModel, method: str, inputs: Any) -> NDArray[np.float16]:
    output = getattr(model, method)(**inputs.to(model.device))
    features = output if isinstance(output, torch.Tensor) else output.pooler_output
    return np.asarray(features.float().cpu().numpy().astype(np.float16))
