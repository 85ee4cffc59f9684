"""A release: one folder that plain transformers, sentence-transformers and this package open.

config.json, model.safetensors, tokenizer    the plain encoder, for `AutoModel` without custom code
modules.json, 1_Pooling/, sentence_bert_config.json, config_sentence_transformers.json
README.md                    the model card; the only file that may be edited
.eval_results/sts.yaml       test scores, if any were recorded, as the Hub reads them
kdmcse/                      the training checkpoint: all weights, and the code to open them with
kdmcse/*.json                what is known of the run and its scores, from which the card is written
kdmcse/golden.safetensors    what ten sentences gave
kdmcse/release.json          size and SHA-256 of all other files, but for README.md
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdmcse_hf.teacher.shard import sha256

FORMAT = "kdmcse_hf release"
FORMAT_VERSION = 1
CHECKPOINT = "kdmcse"
# In the plain encoder's config: the folder that holds the training checkpoint, so that nobody need look for it.
MARKER = "kdmcse_checkpoint"
MANIFEST = f"{CHECKPOINT}/release.json"
GOLDEN = f"{CHECKPOINT}/golden.safetensors"
CARD = "README.md"
EVAL_RESULTS = ".eval_results/sts.yaml"
CODE = ("configuration_kdmcse.py", "modeling_kdmcse.py")
# The names that sentence-transformers has read since its first release and still reads.
POOLING_FILE = "1_Pooling/config.json"
POOLING_SWITCHES = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}


def sentence_transformers_files(pooling: str, hidden_size: int, max_length: int) -> dict[str, Any]:
    """The JSON files that make a [`SentenceTransformer`] of the plain encoder, by path."""
    modules = {"": "Transformer", POOLING_FILE.partition("/")[0]: "Pooling"}
    return {
        "modules.json": [
            {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for place, (path, kind) in enumerate(modules.items())
        ],
        POOLING_FILE: {
            "word_embedding_dimension": hidden_size,
            **{switch: name == pooling for name, switch in POOLING_SWITCHES.items()},
            "include_prompt": True,
        },
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }


def files_of(folder: Path) -> list[str]:
    """Paths of all files below a folder, relative to it and with slashes; without git's and the Hub's own."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return sorted(path.as_posix() for path in paths if path.parts[0] not in (".git", ".cache"))


def write_manifest(folder: Path, version: str) -> None:
    """Writes sizes and checksums of all files that are there."""
    entries = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        for name in files_of(folder)
        if name != CARD
    }
    manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, "kdmcse_hf": version, "files": entries}
    write_json(folder / MANIFEST, manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a release.

    Raises:
        ValueError: the folder is not a release, or one of a later format.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        found = manifest["format"], manifest["format_version"]
        {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder} is not a release: {MANIFEST} cannot be read ({type(error).__name__}: {error}). "
            "`kdmcse export CHECKPOINT OUT` makes a release."
        ) from error
    if found != (FORMAT, FORMAT_VERSION):
        raise ValueError(
            f"{folder / MANIFEST} says {found[0]!r}, version {found[1]!r}: expected {FORMAT!r}, version "
            f"{FORMAT_VERSION}. A newer kdmcse_hf may read it."
        )
    return dict(manifest)


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def publishing_folder(target: Path) -> Iterator[Path]:
    """A folder to fill that appears as `target` when it is whole; until then, `target` stays as it was.

    Raises:
        ValueError: `target` holds something else than a release.
    """
    new, old = (target.with_name(f".{target.name}.{state}") for state in ("incomplete", "replaced"))
    if old.exists() and not target.exists():
        old.rename(target)  # a process was killed between the two renamings below
    _check_replaceable(target)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        if target.exists():
            target.rename(old)
        new.rename(target)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _check_replaceable(target: Path) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    try:
        own = {*read_manifest(target)["files"], MANIFEST, CARD}
    except ValueError:
        raise ValueError(
            f"{target} exists and is not a release: it is not overwritten. Choose another folder, or remove it."
        ) from None
    others = [
        path for path in target.rglob("*") if not path.is_dir() and path.relative_to(target).as_posix() not in own
    ]
    if others:
        raise ValueError(
            f"{target} is a release, but {len(others)} of its files are not the release's, such as {others[0]}: it is "
            "not overwritten. Choose another folder, or remove it."
        )
