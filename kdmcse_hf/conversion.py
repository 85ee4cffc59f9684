"""Checkpoints of the published SimCSE, MCSE and KDMCSE code, made into ours, and our weights under their names.

Their training scripts write the text model to `pytorch_model.bin` and, MCSE and KDMCSE, the other heads to `mcse.pt`.
Their conversion script then rewrites the first file, so that it opens as a plain encoder.
"""

import copy
import os
import shutil
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerBase

from kdmcse_hf.configuration_kdmcse import KDMCSEConfig
from kdmcse_hf.modeling_kdmcse import KDMCSEModel, read_settings
from kdmcse_hf.tokenizer import load_tokenizer
from kdmcse_hf.truncation import cut_tokenizer

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
HEADS_FILE = "mcse.pt"

# How names begin, theirs and ours; the first that fits holds. `{base}` is the encoder's own prefix: bert, roberta, ...
TEXT_KEYS = {
    "simcse": (("mlp.dense.", "pooler.dense."), ("{base}.", "encoder.")),
    "mcse": (("pooler.dense.", "pooler.dense."), ("{base}.", "encoder.")),
    "converted": (("pooler.dense.", "pooler.dense."), ("", "encoder.")),
}
HEAD_KEYS = {
    "none": (),
    "mcse": (("grounding.dense.", "grounding_head."), ("visn_model.mlp.dense.", "image_projection.")),
    "kdmcse": (
        ("grounding.dense.", "grounding_head."),
        ("visn_model.vmlp.dense.", "image_projection."),
        ("visn_model.tmlp.dense.", "caption_projection."),
    ),
}
# What has no place in our model, and why.
LEFT_OUT = {
    "{base}.pooler.*": "the encoder's own pooler, which that code neither trained nor used",
    "*embeddings.position_ids": "the numbers 0, 1, 2, ... that older transformers saved",
    "lm_head.*": "the masked-language head of SimCSE's auxiliary loss",
}
# The published code's whole model, saved in one piece, has the text model's names behind this one.
WHOLE_MODEL = "lang_model."

POOLER_NOTE = (
    "pooling is 'cls', the first token's last hidden state, by which MCSE, KDMCSE and unsupervised SimCSE were scored; "
    "`pooler.dense` is the trained tanh head, which the published files keep under the name of BERT's own pooler and "
    "which serves training only (supervised SimCSE was scored behind it: this model leaves it out)"
)


@dataclass(frozen=True)
class ConversionReport:
    """What became of every tensor of a published checkpoint."""

    layout: str
    used: dict[str, str]
    """Their name -> ours."""
    left_out: dict[str, str]
    """Their name -> why."""

    def lines(self) -> list[str]:
        """One line a tensor, then what is worth knowing."""
        lines = [
            f"kept      {theirs}" if theirs == ours else f"renamed   {theirs} -> {ours}"
            for theirs, ours in self.used.items()
        ]
        lines += [f"left out  {theirs}: {why}" for theirs, why in self.left_out.items()]
        return [
            *lines,
            f"layout: {self.layout}",
            f"tensors: {len(self.used)} used, {len(self.left_out)} left out",
            POOLER_NOTE,
        ]


def convert_checkpoint(
    source: str | os.PathLike[str], folder: str | os.PathLike[str], *, revision: str | None = None
) -> ConversionReport:
    """Writes a published checkpoint as a KDMCSE checkpoint with its tokenizer: whole, or not at all.

    Its tokenizer cuts where that of a trained one does (see [`cut_tokenizer`]).

    Args:
        source: a folder or Hub name.
        folder: the new checkpoint; must not exist.
        revision: branch, tag or commit of a Hub name.

    Raises:
        ValueError, OSError: as [`load_published`]; there is no tokenizer; the folder exists, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists already: choose another folder, or remove it first.")
    model, tokenizer, report = load_published(source, revision=revision)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial)
        cut_tokenizer(tokenizer, model).save_pretrained(partial)
        partial.rename(folder)
    except SafetensorError as error:  # of safetensors' own writing, as on a full disk
        raise OSError(f"{folder} could not be written, and nothing is left of it: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def load_published(
    source: str | os.PathLike[str], *, revision: str | None = None
) -> tuple[KDMCSEModel, PreTrainedTokenizerBase, ConversionReport]:
    """Reads a published checkpoint in any of its layouts, into float32.

    Args:
        source: a folder or Hub name.
        revision: branch, tag or commit of a Hub name.

    Raises:
        ValueError: a file holds something else than tensors, and is not executed; the config names code; a tensor is
            unknown, missing, there twice, or of another shape than the rest; there is no tokenizer.
        OSError: there are no such files.
    """
    folder = _local_folder(source, revision)
    read_settings(folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.model_type == KDMCSEConfig.model_type:
        raise ValueError(f"{source} is a KDMCSE checkpoint already: load it with `KDMCSEModel.from_pretrained`.")
    tensors = _read_tensors(folder)
    try:
        model, report = from_published(tensors, config)
    except ValueError as error:
        raise ValueError(f"{source} cannot be converted: {error}") from error
    return model, load_tokenizer(folder, trust_remote_code=False), report


def from_published(tensors: dict[str, Tensor], config: Any) -> tuple[KDMCSEModel, ConversionReport]:
    """The model of published tensors.

    Args:
        tensors: those of `pytorch_model.bin`, and of `mcse.pt` under joined names (`grounding.dense.weight`).
        config: the text encoder's.

    Raises:
        ValueError: a tensor is unknown, missing, there twice, or of another shape than the rest; names it.
    """
    base = config.model_type
    short = {name: name.removeprefix(WHOLE_MODEL) for name in tensors}
    text, heads = _layout(set(short.values()), base)
    table = _table(text, heads, base)
    left_out: dict[str, str] = {}
    origin: dict[str, str] = {}  # our name -> theirs
    for name, inner in short.items():
        reasons = [why for pattern, why in LEFT_OUT.items() if fnmatchcase(inner, pattern.format(base=base))]
        if reasons:
            left_out[name] = reasons[0]
            continue
        ours = _rename(inner, table)
        if ours in origin:
            raise ValueError(f"both {origin[ours]!r} and {name!r} would become {ours!r}.")
        origin[ours] = name
    model = _new_model({ours: tensors[name] for ours, name in origin.items()}, config)
    _check(origin, tensors, model, text)
    model.load_state_dict({ours: tensors[name] for ours, name in origin.items()})
    used = {name: ours for ours, name in origin.items()}
    return model, ConversionReport(f"text model as in {text!r}, heads as in {heads!r}", used, left_out)


def to_published(model: KDMCSEModel, text_layout: str) -> dict[str, dict[str, Any]]:
    """The tensors of a model by the names that [`from_published`] reads, as its files nest them.

    Args:
        model: any.
        text_layout: `"simcse"`, `"mcse"` or `"converted"`; the layout of the other heads follows from the model.

    Returns:
        The content of `pytorch_model.bin` and, where the model has more than a text head, of `mcse.pt`.
    """
    heads = "none" if model.grounding_head is None else "mcse" if model.caption_projection is None else "kdmcse"
    table = _table(text_layout, heads, model.config.text_config.model_type)
    files: dict[str, dict[str, Any]] = {WEIGHT_FILES[-1]: {}}
    for ours, tensor in model.state_dict().items():
        name = _rename(ours, tuple((b, a) for a, b in table))
        part, _, rest = name.partition(".")
        if part in ("grounding", "visn_model"):
            files.setdefault(HEADS_FILE, {}).setdefault(part, {})[rest] = tensor
        else:
            files[WEIGHT_FILES[-1]][name] = tensor
    return files


def _layout(names: set[str], base: str) -> tuple[str, str]:
    def has(*beginnings: str) -> bool:
        return any(name.startswith(beginnings) for name in names)

    text = "converted" if not has(f"{base}.") else "simcse" if has("mlp.") else "mcse"
    heads = "kdmcse" if has("visn_model.vmlp.", "visn_model.tmlp.") else "mcse" if has("visn_model.") else "none"
    return text, heads


def _table(text: str, heads: str, base: str) -> tuple[tuple[str, str], ...]:
    # the text model's last entry may be the empty one, which fits all
    return (*HEAD_KEYS[heads], *((theirs.format(base=base), ours) for theirs, ours in TEXT_KEYS[text]))


def _rename(name: str, table: tuple[tuple[str, str], ...]) -> str:
    """A name that nothing in the table fits becomes one that nobody has."""
    return next((new + name.removeprefix(old) for old, new in table if name.startswith(old)), f"? {name}")


def _new_model(tensors: dict[str, Tensor], config: Any) -> KDMCSEModel:
    """A model in float32 with the heads that the tensors are for, as wide as they are."""

    def width(name: str, dim: int) -> int | None:
        return tensors[name].shape[dim] if name in tensors and tensors[name].dim() == 2 else None

    config = copy.deepcopy(config)
    config.dtype = torch.float32
    config.name_or_path = ""  # a place on this machine
    model = KDMCSEModel(
        KDMCSEConfig(
            text_config=config,
            projection_dim=width("grounding_head.weight", 0) or 256,
            image_embed_dim=width("image_projection.weight", 1),
            caption_embed_dim=width("caption_projection.weight", 1),
        )
    )
    config.architectures = [type(model.encoder).__name__]
    return model


def _check(origin: dict[str, str], tensors: dict[str, Tensor], model: KDMCSEModel, text: str) -> None:
    """Compares what was found (our name -> theirs) with what the model has."""
    expected = model.state_dict()
    unknown = [name for ours, name in origin.items() if ours not in expected]
    if unknown:
        raise ValueError(
            f"{len(unknown)} tensors have unknown names, such as {unknown[0]!r}. Known are those of SimCSE, MCSE and "
            f"KDMCSE (text model read as in {text!r}); a plain encoder needs no conversion: `KDMCSEModel.from_encoder`."
        )
    missing = [ours for ours in expected if ours not in origin]
    if missing:
        raise ValueError(
            f"{len(missing)} tensors are missing, such as the one for {missing[0]!r}. Without a text head "
            "(`pooler.dense`) it is a plain encoder, which needs no conversion: `KDMCSEModel.from_encoder`."
        )
    for ours, name in origin.items():
        found, wanted = tuple(tensors[name].shape), tuple(expected[ours].shape)
        if found != wanted:
            raise ValueError(
                f"{name!r} has the shape {found}, but by config.json and the other tensors {wanted} is expected. Are "
                "all files of one checkpoint?"
            )


def _local_folder(source: str | os.PathLike[str], revision: str | None) -> Path:
    if os.path.isdir(source):
        return Path(source)
    patterns = ["*.json", "*.txt", "*.model", *WEIGHT_FILES, HEADS_FILE]
    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"{source} is no folder, nor a model that can be had from the Hub ({type(error).__name__}: {reason})"
        ) from error


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} has no weights: expected {' or '.join(WEIGHT_FILES)}.")
    tensors = _read_file(path)
    if (folder / HEADS_FILE).is_file():
        heads = _read_file(folder / HEADS_FILE)
        if twice := sorted(tensors.keys() & heads.keys()):
            raise ValueError(
                f"{path} and {folder / HEADS_FILE} both hold {len(twice)} tensors, such as {twice[0]!r}: which are "
                "meant? Keep the files of one run, and each tensor in one of them."
            )
        tensors |= heads
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    """Its tensors by joined names; nothing in the file is executed."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever a reader makes of bytes that it does not understand
        raise ValueError(
            f"{path} is refused: it is damaged, or holds more than tensors, which would run code when read "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0]}). Nothing in it was executed. Get it "
            "whole, or as safetensors, or as a plain state dict."
        ) from error
    return _flatten(content, path, ())


def _flatten(content: Any, path: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    if isinstance(content, Tensor) and names:
        return {".".join(names): content}
    if not isinstance(content, dict):
        where = f"under {'.'.join(names)!r}" if names else "as a whole"
        raise ValueError(f"{path} holds a {type(content).__name__} {where}: expected a state dict, tensors by name.")
    return {k: v for name, part in content.items() for k, v in _flatten(part, path, (*names, str(name))).items()}
