"""Verification: is a release what was exported, and does every installed client read the same vectors from it?"""

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModel, PreTrainedTokenizerBase

from kdmcse_hf.golden import Golden
from kdmcse_hf.modeling_kdmcse import ATTENTION_NAMES, KDMCSEModel, nested_items
from kdmcse_hf.release import (
    CARD,
    CHECKPOINT,
    CODE,
    GOLDEN,
    MANIFEST,
    POOLING_FILE,
    POOLING_SWITCHES,
    files_of,
    read_manifest,
    sentence_transformers_files,
)
from kdmcse_hf.teacher.shard import sha256
from kdmcse_hf.tokenizer import load_tokenizer

_PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
# What may be added to a release without changing what clients load.
_HARMLESS = (".gitattributes", ".gitignore", "LICENSE")
# To resume from: a Trainer may push them beside a release, and no client of the release opens them.
_RESUMABLE = re.compile(r"(last-checkpoint|checkpoint-\d+)/")
# What is large in them, and may be a pickle; neither downloaded nor looked at.
_STATES = [
    f"{folder}/{state}"
    for folder in ("last-checkpoint", "checkpoint-[0-9]*")
    for state in ("*.safetensors", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state*.pth")
]
_AUTO_MAP = {"AutoConfig": "configuration_kdmcse.KDMCSEConfig", "AutoModel": "modeling_kdmcse.KDMCSEModel"}
_SOURCES = Path(__file__).parent
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str

    def __str__(self) -> str:
        return f"{self.name}: {self.found}"


def download_release(name: str, revision: str | None = None) -> Path:
    """Downloads a repository of the Hub into its cache, but for the states to resume from; runs nothing of it.

    Raises:
        ValueError: there is no such repository, or it cannot be reached; says why.
    """
    try:
        return Path(snapshot_download(name, revision=revision, ignore_patterns=_STATES))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(
            f"{name!r} is no folder here, and cannot be read from the Hub ({type(error).__name__}: {error})."
        ) from error


def verify_release(folder: str | os.PathLike[str], *, clients: Sequence[str] | None = None) -> list[Check]:
    """Checks a release; executes none of its code, and opens nothing that could hold any.

    Args:
        folder: the release.
        clients: which to compare with the golden vectors, of `CLIENTS`; by default all that are installed.

    Raises:
        ValueError: the folder is not a release.
    """
    folder = Path(folder)
    files = read_manifest(folder)["files"]
    checks = [
        _check("files", _files, folder, files),
        _check("nothing else", _nothing_else, folder, files),
        _check("code", _code, folder),
    ]
    safe = all(check.ok for check in checks[1:])
    try:
        golden = Golden.load(folder / GOLDEN)
    except ValueError as error:
        return [*checks, Check("golden vectors", False, str(error))]
    checks += [
        _check("weights", _weights, folder, golden),
        _check("pooling", _pooling, folder, golden),
        _check("max length", _max_length, folder, golden),
        _check("tokenizer", _tokenizer, folder, golden),
    ]
    for client in clients or [name for name in CLIENTS if find_spec(name)]:
        if safe:
            checks.append(_check(client, _vectors, client, folder, golden))
        else:
            checks.append(Check(client, False, "not tried, as the folder holds what is not the release's"))
    return checks


def _check(name: str, check: Callable[..., str], *arguments: Any) -> Check:
    try:
        return Check(name, True, check(*arguments))
    except Exception as error:  # whatever a damaged file makes a client raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        return Check(name, False, kind + " ".join(str(error).split()))


def _files(folder: Path, files: dict[str, Any]) -> str:
    wrong = []
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif path.stat().st_size != entry["bytes"]:
            wrong.append(f"{name} has {path.stat().st_size:,} bytes, had {entry['bytes']:,} when it was exported")
        elif sha256(path) != entry["sha256"]:
            wrong.append(f"{name} has other content than when it was exported (SHA-256)")
    if wrong:
        raise ValueError("; ".join(wrong))
    return f"{len(files)} files as they were exported"


def _nothing_else(folder: Path, files: dict[str, Any]) -> str:
    others = {name for name in files_of(folder) if not _RESUMABLE.match(name)}
    others -= {*files, MANIFEST, CARD, *_HARMLESS}
    if others:
        raise ValueError(f"not of the release: {', '.join(sorted(others))}")
    return "no file that the export did not write"


def _code(folder: Path) -> str:
    """Whatever the manifest says: a manifest can be made to say anything."""
    own = {f"{CHECKPOINT}/{name}": _SOURCES / name for name in CODE}
    paths = [path for path in folder.rglob("*") if not path.is_dir() and path.relative_to(folder).parts[0] != ".git"]
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    names = [name for name in names if not any(fnmatchcase(name, state) for state in _STATES)]
    wrong = [f"{name} is a pickle, and reading one can run code" for name in names if name.lower().endswith(_PICKLES)]
    wrong += [f"{name} is code" for name in names if name.lower().endswith(".py") and not _is_own(folder, name)]
    wrong += [problem for name in names if name.endswith(".json") for problem in _code_named_in(folder, name)]
    modules = _json(folder, "modules.json")
    if modules != sentence_transformers_files("cls", 1, 1)["modules.json"]:
        wrong.append(f"modules.json names other modules than a Transformer and a Pooling: {modules}")
    if wrong:
        raise ValueError("; ".join(wrong))
    same = all((folder / name).read_bytes() == source.read_bytes() for name, source in own.items())
    return f"only two files for `trust_remote_code=True`, {'the same as' if same else 'others than'} this package's"


def _is_own(folder: Path, name: str) -> bool:
    """Whether this is one of the two files of code, or its copy in a folder to resume from."""
    place, _, file = name.rpartition("/")
    if file not in CODE or not (place == CHECKPOINT or _RESUMABLE.fullmatch(f"{place}/")):
        return False
    return (folder / name).read_bytes() == (folder / CHECKPOINT / file).read_bytes()


def _code_named_in(folder: Path, name: str) -> Iterator[str]:
    """What is wrong with a JSON file: it names code that is not one of the two files."""
    content = _json(folder, name)
    if name == f"{CHECKPOINT}/config.json":
        found = content.pop("auto_map", None)
        if found != {kind: f"{CHECKPOINT}/{place}" for kind, place in _AUTO_MAP.items()}:
            yield f"{name} has an `auto_map` that names other code than the two files beside it: {found}"
    elif _RESUMABLE.match(name) and isinstance(content, dict) and content.get("auto_map") == _AUTO_MAP:
        del content["auto_map"]  # it leads to the repository's root, where no code may be
    for key, value in nested_items([content]):
        if key in ("auto_map", *ATTENTION_NAMES) and not isinstance(value, int):  # a number in a vocabulary
            yield f"{name} has an `{key}`, which names code to run"


def _weights(folder: Path, golden: Golden) -> str:
    tensors = 0
    for place in ("", f"{CHECKPOINT}/"):
        said = _json(folder, f"{place}config.json").get("dtype")
        if said != golden.dtype:
            raise ValueError(f"{place}config.json says dtype {said!r}, but {golden.dtype} was exported")
        for path in sorted((folder / place).glob("model*.safetensors")):
            with safe_open(path, "pt") as file:
                for name in file.keys():
                    dtype = file.get_slice(name).get_dtype()
                    if _DTYPES.get(dtype, golden.dtype) != golden.dtype:  # others are not weights
                        raise ValueError(f"{place}{path.name}: {name} is {dtype}, but {golden.dtype} was exported")
                    tensors += 1
    return f"{tensors} tensors, all {golden.dtype}"


def _pooling(folder: Path, golden: Golden) -> str:
    switches, prefix = _json(folder, POOLING_FILE), "pooling_mode_"
    names = {switch: name for name, switch in POOLING_SWITCHES.items()}
    modes = [names.get(key, key.removeprefix(prefix)) for key in switches if key.startswith(prefix) and switches[key]]
    said = {
        POOLING_FILE: " and ".join(modes),
        f"{CHECKPOINT}/config.json": _json(folder, f"{CHECKPOINT}/config.json").get("pooling"),
        GOLDEN: golden.pooling,
    }
    if len(set(said.values())) > 1:
        raise ValueError("; ".join(f"{name} says {value!r}" for name, value in said.items()))
    return f"{golden.pooling}, in all places"


def _max_length(folder: Path, golden: Golden) -> str:
    said = {"sentence_bert_config.json": _json(folder, "sentence_bert_config.json").get("max_seq_length")}
    for name in ("tokenizer_config.json", f"{CHECKPOINT}/tokenizer_config.json"):
        said[name] = _json(folder, name).get("model_max_length")
    if set(said.values()) != {golden.max_length}:
        raise ValueError(
            f"{'; '.join(f'{name} says {value}' for name, value in said.items())}; expected {golden.max_length}"
        )
    return f"{golden.max_length} tokens, in all places"


def _tokenizer(folder: Path, golden: Golden) -> str:
    with tempfile.TemporaryDirectory() as again:
        for place in (folder, folder / CHECKPOINT):
            tokenizer = load_tokenizer(place, trust_remote_code=False)
            tokenizer.save_pretrained(again)
            for source in (place, again):
                ids = _batch(load_tokenizer(source, trust_remote_code=False), golden)["input_ids"]
                if not torch.equal(ids, golden.input_ids):
                    raise ValueError(f"{place} splits the golden sentences into other tokens than when it was exported")
    return f"{golden.input_ids.shape[1]} tokens of the longest sentence, also after saving and loading"


def _transformers(folder: Path, golden: Golden) -> Tensor:
    model = _model(AutoModel, folder, trust_remote_code=False)
    batch = _batch(load_tokenizer(folder, trust_remote_code=False), golden)
    hidden: Tensor = model(**batch).last_hidden_state
    if golden.pooling == "cls":
        return hidden[:, 0]
    mask: Tensor = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1)


def _sentence_transformers(folder: Path, golden: Golden) -> Tensor:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(folder), device="cpu", local_files_only=True, trust_remote_code=False, model_kwargs={"dtype": torch.float32}
    )
    sentences = list(golden.sentences)
    vectors: Tensor = model.encode(
        sentences, batch_size=len(sentences), show_progress_bar=False, convert_to_tensor=True
    )
    return vectors


def _kdmcse_hf(folder: Path, golden: Golden) -> Tensor:
    model = _model(KDMCSEModel, folder, subfolder=CHECKPOINT)
    vectors: Tensor = model(
        **_batch(load_tokenizer(folder / CHECKPOINT, trust_remote_code=False), golden)
    ).pooler_output
    return vectors


CLIENTS: dict[str, Callable[[Path, Golden], Tensor]] = {
    "transformers": _transformers,
    "sentence_transformers": _sentence_transformers,
    "kdmcse_hf": _kdmcse_hf,
}


def _model(model_class: Any, folder: Path, **options: Any) -> Any:
    model, report = model_class.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, use_safetensors=True, **options
    )
    problems = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if problems:
        raise ValueError(f"the weights are not those of the config: {problems}")
    return model.eval()


def _batch(tokenizer: PreTrainedTokenizerBase, golden: Golden) -> Any:
    return tokenizer(list(golden.sentences), padding=True, truncation=True, return_tensors="pt")


@torch.no_grad()
def _vectors(client: str, folder: Path, golden: Golden) -> str:
    vectors = CLIENTS[client](folder, golden)
    release = f"version {import_module(client).__version__} gives"
    if vectors.shape != golden.vectors.shape:
        raise ValueError(f"vectors of shape {tuple(vectors.shape)}, expected {tuple(golden.vectors.shape)}")
    distance = (vectors - golden.vectors).abs().max().item()
    if distance == 0:
        return f"{release} the golden vectors, to the bit"
    allowed = f"allowed: {golden.tolerance:.1e}, made by {golden.made_by}"
    if not distance <= golden.tolerance:
        raise ValueError(f"{release} vectors that differ from the golden ones by up to {distance:.1e} ({allowed})")
    return f"{release} the golden vectors to within {distance:.1e} ({allowed})"


def _json(folder: Path, name: str) -> Any:
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{name} cannot be read as JSON ({error})") from error
