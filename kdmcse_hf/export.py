"""Exporting: from a training checkpoint to a release that every client opens."""

import inspect
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from kdmcse_hf import __version__
from kdmcse_hf.checkpoint import (
    MTEB_FILE,
    RECORD_FILE,
    RECORDED,
    STS_FILE,
    load_mteb_results,
    load_sts_results,
    read_recorded,
    save_mteb_results,
    save_sts_results,
)
from kdmcse_hf.configuration_kdmcse import KDMCSEConfig
from kdmcse_hf.golden import make_golden
from kdmcse_hf.modeling_kdmcse import RELEASE_MARK, RELEASED_CHECKPOINT, KDMCSEModel
from kdmcse_hf.privacy import check_private, clean_configs
from kdmcse_hf.release import (
    CARD,
    CHECKPOINT,
    GOLDEN,
    edited_card,
    files_of,
    publishing_folder,
    read_manifest,
    sentence_transformers_files,
    write_json,
    write_manifest,
)
from kdmcse_hf.release_card import write_card
from kdmcse_hf.tokenizer import load_tokenizer
from kdmcse_hf.truncation import release_length
from kdmcse_hf.verification import verify_release

# BERT's pooler and ALBERT's: one dense layer and tanh, as the text head is.
_POOLER = re.compile(r"pooler\.(?:dense\.)?(weight|bias)")


def export_release(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    max_length: int | None = None,
    name: str = "FOLDER_OR_HUB_NAME",
    replace_card: bool = False,
) -> Path:
    """Writes a release (see [`kdmcse_hf.release`]), whole or not at all, and only if it can be opened.

    Where the encoder's own class has a pooler (BERT, RoBERTa, MPNet), the trained text head goes there, as SimCSE
    publishes it: the plain encoder's `pooler_output` is then that head, and not the sentence embedding.

    Args:
        checkpoint: a folder that [`KDMCSETrainer`] saved, or a [`KDMCSEModel`] with its tokenizer.
        out: the release; made, or replaced if it is a release.
        max_length: tokens after which clients cut a sentence; by default as the checkpoint's tokenizer does, which is
            128, or fewer, in what [`KDMCSETrainer`] saved and [`convert_checkpoint`] wrote.
        name: by which the card's examples load it.
        replace_card: whether to replace a card that was edited, too. Without it, such a card is kept where the new one
            would be what it was edited from, and else nothing is replaced.

    Raises:
        ValueError: the checkpoint cannot be read or fits no plain encoder; `out` holds something else, or a release
            whose card was edited; a file would give away where it was made; recorded scores are of other weights, or of
            sentences that were cut elsewhere.
        OSError: it cannot be written; nothing is left of it.
    """
    checkpoint, out = Path(checkpoint), Path(os.path.abspath(out))
    with publishing_folder(out) as folder:
        model = _load(checkpoint)
        tokenizer = load_tokenizer(checkpoint, trust_remote_code=False)
        max_length = release_length(tokenizer, model, max_length)
        for file in RECORDED:
            read_recorded(checkpoint, file)
        sts, mteb = _scores(checkpoint, max_length)
        dtype = str(model.dtype).removeprefix("torch.")
        files = sentence_transformers_files(model.config.pooling, model.config.hidden_size, max_length)
        try:
            has_pooler = _write_encoder(folder, model)
            _write_checkpoint(folder / CHECKPOINT, model)
            _write_tokenizers(folder, model, tokenizer, max_length)
            for file, content in files.items():
                (folder / file).parent.mkdir(exist_ok=True)
                write_json(folder / file, content)
            for file in RECORDED:
                if (checkpoint / file).is_file():
                    shutil.copyfile(checkpoint / file, folder / CHECKPOINT / file)
            if sts is not None:
                save_sts_results(folder / CHECKPOINT, sts)
            if mteb is not None:
                save_mteb_results(folder / CHECKPOINT, mteb)
            for place in (folder, folder / CHECKPOINT):
                clean_configs(place)
            make_golden(model.float(), load_tokenizer(folder), max_length=max_length, dtype=dtype).save(folder / GOLDEN)
        except SafetensorError as error:
            raise OSError(f"{out} could not be written, and nothing is left of it: {error}") from error
        base_model = _base_model(folder, model)
        write_card(
            folder, model.config, name=name, base_model=base_model, max_length=max_length, pooler_trap=has_pooler
        )
        check_private(folder, (checkpoint.absolute(), out))
        for file in files_of(folder):  # safetensors writes files that only their owner can read
            (folder / file).chmod((folder / CARD).stat().st_mode)
        write_manifest(folder, __version__)
        wrong = [check for check in verify_release(folder, clients=("transformers", "kdmcse_hf")) if not check.ok]
        if wrong:
            raise ValueError(
                f"{checkpoint} has no faithful export, and none was written: {'; '.join(map(str, wrong))}."
            )
        if (out / CARD).is_file() and not replace_card:
            _keep_card(out, folder)
    return out


def _keep_card(out: Path, folder: Path) -> None:
    try:
        kept = edited_card((out / CARD).read_bytes(), read_manifest(out), read_manifest(folder))
    except ValueError as error:
        raise ValueError(f"{out} is not replaced: {error}") from None
    if kept is not None:
        (folder / CARD).write_bytes(kept)


def _load(checkpoint: Path) -> Any:
    if not checkpoint.is_dir():
        raise ValueError(f"{checkpoint} is not a folder: expected one that a KDMCSETrainer saved.")
    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    if not isinstance(config, KDMCSEConfig):
        hint = f" Is {checkpoint / CHECKPOINT} meant?" if (checkpoint / CHECKPOINT).is_dir() else ""
        raise ValueError(
            f"{checkpoint} holds a model of type {config.model_type!r}: expected 'kdmcse', which a KDMCSETrainer "
            f"saves.{hint}"
        )
    load: Any = KDMCSEModel.from_pretrained  # typed as if it always returned a model alone
    try:
        model, report = load(checkpoint, output_loading_info=True, use_safetensors=True)
    except SafetensorError as error:
        raise ValueError(f"The weights in {checkpoint} cannot be read: {error}. Take an earlier checkpoint.") from error
    problems = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if problems:
        raise ValueError(f"The weights in {checkpoint} are not those of its config: {problems}.")
    bad = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    if bad:
        raise ValueError(f"{checkpoint} holds NaN or infinite weights, such as {bad[0]}: take an earlier checkpoint.")
    return model


def _write_encoder(folder: Path, model: KDMCSEModel) -> bool:
    """Writes what `AutoModel` expects; returns whether its pooler is the text head."""
    with torch.device("meta"):
        plain = AutoModel.from_config(model.config.text_config, dtype=model.dtype)
    state: dict[str, Tensor] = model.encoder.state_dict()
    expected = {name: value.shape for name, value in plain.state_dict().items()}
    head = model.pooler.dense.state_dict()
    poolers = {name: _POOLER.fullmatch(name) for name in expected.keys() - state.keys()}
    state |= {name: head[pooler[1]] for name, pooler in poolers.items() if pooler}
    if expected != {name: value.shape for name, value in state.items()}:
        raise ValueError(
            f"The encoder cannot be exported as a plain {type(plain).__name__}: they differ in "
            f"{sorted(expected.keys() ^ state.keys()) or 'the shapes of their weights'}. Of what a plain encoder has "
            "and ours has not, only a pooler like BERT's can be filled, by the text head."
        )
    plain.save_pretrained(folder, state_dict=state)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", {**config, RELEASE_MARK: RELEASED_CHECKPOINT})
    return bool(poolers)


def _write_checkpoint(folder: Path, model: KDMCSEModel) -> None:
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # transformers looks for custom code from the root on, wherever the config is.
    config["auto_map"] = {name: f"{CHECKPOINT}/{place}" for name, place in config["auto_map"].items()}
    write_json(folder / "config.json", config)


def _write_tokenizers(folder: Path, model: KDMCSEModel, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    tokenizer.model_max_length = max_length
    if isinstance(tokenizer, PreTrainedTokenizerFast):  # which keeps how it was called last
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    if "token_type_ids" not in inspect.signature(model.encoder.forward).parameters:
        # A plain encoder would be called with what it does not know.
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names
    for place in (folder, folder / CHECKPOINT):
        tokenizer.save_pretrained(place)


def _scores(checkpoint: Path, max_length: int) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """What was recorded by SentEval's files, and by mteb."""
    sts, mteb = load_sts_results(checkpoint), load_mteb_results(checkpoint)
    for file, found in ((STS_FILE, sts), (MTEB_FILE, mteb)):
        if found is not None and found["max_length"] != max_length:
            raise ValueError(
                f"{checkpoint / file} holds scores of sentences cut after {found['max_length']} tokens, but the "
                f"release cuts after {max_length}: evaluate again with `--max_seq_length {max_length}`, or export with "
                f"`--max_length {found['max_length']}`."
            )
    return sts, mteb


def _base_model(folder: Path, model: KDMCSEModel) -> str | None:
    """The Hub name of what training began with: as its record has it, or else as far as it can be told."""
    record = read_recorded(folder / CHECKPOINT, RECORD_FILE)
    name: str | None = record.get("base_model") if record else hub_name(model.config.text_config._name_or_path)
    return name


def hub_name(name: str | None) -> str | None:
    """`name` where it is known to be one on the Hub, and not a folder's."""
    try:
        if not name or Path(name).exists():
            return None
        files = ("config.json", f"{CHECKPOINT}/config.json")
        return name if any(isinstance(try_to_load_from_cache(name, file), str) for file in files) else None
    except ValueError:  # no name that the Hub could have
        return None
