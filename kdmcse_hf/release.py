"""A release: one folder that plain transformers, sentence-transformers and this package open.

config.json, model.safetensors, tokenizer    the plain encoder, for `AutoModel` without custom code
modules.json, 1_Pooling/, sentence_bert_config.json, config_sentence_transformers.json
README.md                    the model card; the only file that may be edited
.eval_results/sts.yaml       mteb's test scores, if any were recorded, as the Hub reads them
kdmcse/                      the training checkpoint: all weights, and the code to open them with
kdmcse/*.json                what is known of the run and its scores, from which the card is written
kdmcse/golden.safetensors    what ten sentences gave
kdmcse/release.json          size and SHA-256 of all other files, and what README.md was before anybody edited it
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdmcse_hf.teacher.shard import sha256

FORMAT = "kdmcse_hf release"
FORMAT_VERSION = 1
CHECKPOINT = "kdmcse"
MANIFEST = f"{CHECKPOINT}/release.json"
GOLDEN = f"{CHECKPOINT}/golden.safetensors"
CARD = "README.md"
_OLD = "replaced"
_DAY = 24 * 60 * 60
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
    if (folder / CARD).is_file():
        manifest["card"] = {"sha256": sha256(folder / CARD)}
    write_json(folder / MANIFEST, manifest)


def edited_card(old: bytes | None, old_manifest: Any, manifest: Any) -> bytes | None:
    """The card that a release should keep when another takes its place: one that was edited, if it still holds.

    Args:
        old: the card that is there, if any.
        old_manifest, manifest: of the release that is there, and of the one that takes its place.

    Returns:
        `None` where the new card is to be taken.

    Raises:
        ValueError: the card was edited, and the new release would have another one than it was made from.
    """
    generated = [found.get("card", {}).get("sha256") for found in (old_manifest, manifest)]
    if old is None or hashlib.sha256(old).hexdigest() == generated[0]:
        return None
    if generated[0] == generated[1]:
        return old
    raise ValueError(
        f"its {CARD} was edited by hand, and tells of another export than this one. Keep what you wrote in another "
        "place, then replace the card (`--replace_card`, in Python `replace_card=True`) and write it in again."
    )


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

    A link stays one: what it points to is replaced. Of a body that fails nothing is left, of a killed process a hidden
    folder beside `target`, which a later export removes.

    Raises:
        ValueError: `target` holds something else than a release.
    """
    target = Path(os.path.realpath(target))
    prefix = f".{target.name}.incomplete-"
    _clear_up(target, prefix)
    _check_replaceable(target)
    parents = [parent for parent in target.parents if not parent.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        new, old = work / "new", work / _OLD  # `work` itself is for its owner only
        new.mkdir()
        yield new
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except BaseException:
            if old.exists() and not target.exists():
                old.rename(target)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
        for parent in parents:
            if not target.exists() and parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def _clear_up(target: Path, prefix: str) -> None:
    """After processes that were killed: another may be at work beside this one, so only what is old is removed."""
    if not target.parent.is_dir():
        return
    for work in (path for path in target.parent.iterdir() if path.name.startswith(prefix)):
        if (work / _OLD).exists() and not target.exists():
            (work / _OLD).rename(target)  # killed between the two renamings
        if time.time() - work.stat().st_mtime > _DAY:
            shutil.rmtree(work, ignore_errors=True)


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
