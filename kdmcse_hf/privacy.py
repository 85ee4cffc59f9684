"""What must not be published: where things were made, by whom, and tokens."""

import getpass
import json
import platform
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import get_token
from transformers import CONFIG_MAPPING

from kdmcse_hf.checkpoint import RECORDED
from kdmcse_hf.release import write_json

# What transformers notes about where something was loaded from.
_ORIGINS = {
    *("_name_or_path", "name_or_path", "is_local", "local_files_only", "cache_dir", "token"),
    *("tokenizer_file", "special_tokens_map_file"),
}
_PRIVATE = re.compile(
    r"""(?<![\w/.:~-])(?:
        //?[\w.-]+/                  # /home/...
        | ~(?:[A-Za-z][\w.-]*)?/     # ~/... and ~anna/...
        | (?<!\?)[A-Za-z]:[\\/]      # C:\..., but not the (?i:\p{L}) of a tokenizer's expressions
        | \\\\[\w.-]+\\              # \\server\...
        | file:/
    )
    | (?:^|[\s=,;:|'"(])/[A-Za-z][\w.-]*   # /scratch; but neither </s> nor [/INST]
    | \bhf_[A-Za-z0-9]{16,}""",
    re.VERBOSE | re.MULTILINE,
)
# Whose text is no place and no name, whatever is in it: any word may be a token.
_VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt", "added_tokens.json", ".model")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
# Accounts that many people have.
_NOBODY = {"root", "user", "admin", "ubuntu", "debian", "docker", "runner", "jovyan", "localhost"}


def clean_configs(folder: Path) -> None:
    """Takes out of the configs in a folder where transformers loaded them from."""
    for path in (folder / name for name in ("config.json", "tokenizer_config.json", *RECORDED)):
        if path.is_file():
            write_json(path, _without_origins(json.loads(path.read_text(encoding="utf-8"))))


def check_private(folder: Path, places: Sequence[Path] = ()) -> None:
    """Looks through all files of a folder but weights, vocabularies and the code that travels.

    Args:
        folder: what is to be published.
        places: that must not be named, beside all that look like a place, the user, the machine and tokens.

    Raises:
        ValueError: a file names a place on this machine, its user or itself, or holds what looks like a token.
    """
    facts = _facts(places)
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name.endswith((*_WEIGHTS, *_VOCABULARIES)):
            continue
        for text in _texts(path):
            if facts.search(text) or (path.suffix != ".py" and _PRIVATE.search(text)):
                raise ValueError(
                    f"{path.name} holds {text.strip()!r}, which names a place on this machine, its user or itself, or "
                    "looks like a token, and must not be released: take it out of the checkpoint's (or, where the card "
                    "is given a name, out of that)."
                )


def _facts(places: Sequence[Path]) -> re.Pattern[str]:
    """What is known of this machine and its user, as whole words; the user's name on the Hub (`anna/...`) may stand."""
    known = {str(place) for place in (Path.home(), *places)} | {str(place.resolve()) for place in places}
    known |= {get_token() or ""}
    words = {re.escape(fact) for fact in known if len(fact) > 3}
    # A name that is a kind of model, too, would be found in each of its configs.
    people = {name for name in (_user(), platform.node()) if name.lower() not in {*_NOBODY, *CONFIG_MAPPING}}
    words |= {f"{re.escape(name)}(?!/)" for name in people if len(name) > 3}
    return re.compile(rf"(?<![^\W_])(?:{'|'.join(sorted(words))})(?![^\W_])")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in some containers
        return ""


def _texts(path: Path) -> Iterator[str]:
    """The strings and keys of a JSON file, but for a tokenizer's vocabulary; the lines of any other."""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        content = json.loads(text) if path.suffix == ".json" else None
    except ValueError:
        content = None
    if content is None:
        yield from text.splitlines()
        return
    if path.name == "tokenizer.json" and isinstance(content, dict):
        content["added_tokens"] = []
        content["model"] = {**content.get("model", {}), "vocab": {}, "merges": []}
    yield from _strings(content)


def _without_origins(content: Any) -> Any:
    if isinstance(content, list):
        return [_without_origins(value) for value in content]
    if isinstance(content, dict):
        return {name: _without_origins(value) for name, value in content.items() if name not in _ORIGINS}
    return content


def _strings(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list | dict):
        if isinstance(content, dict):
            yield from content
        for value in content.values() if isinstance(content, dict) else content:
            yield from _strings(value)
