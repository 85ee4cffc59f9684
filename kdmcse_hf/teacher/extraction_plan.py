"""What an extraction will write, fixed before it begins: rows, shards, and what a folder already holds of them."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers.utils import logging

from kdmcse_hf.teacher.additions import Additions, additions
from kdmcse_hf.teacher.cache import KINDS, MANIFEST, TeacherCache, newest_source, read_manifest
from kdmcse_hf.teacher.cache_writer import ROWS_PER_SHARD, finish_cache, remove_leftovers, shard_path, teacher_digest
from kdmcse_hf.teacher.captioned_pictures import CaptionedPictures
from kdmcse_hf.teacher.encoder import Teacher
from kdmcse_hf.teacher.shard import CacheError, publishing, read_shard_header, sha256

logger = logging.get_logger(__name__)

PLAN = "extraction.json"


def _setting(default: Any, description: str) -> Any:
    return field(default=default, metadata={"help": description})


@dataclass(frozen=True)
class ExtractionSettings:
    """How to extract; a field's meaning is its `metadata["help"]`.

    All but `num_workers`, `on_error` and `progress` show in the bytes of the cache.

    Raises:
        ValueError: a field out of its range.
    """

    batch_size: int = _setting(64, "pictures or captions a forward pass; on a CPU, 4 to 8 is often faster")
    rows_per_shard: int = _setting(ROWS_PER_SHARD, "rows of a file of features: a killed process loses these at most")
    feature_dtype: Literal["float16", "float32"] = _setting("float16", "of the features as stored")
    mixed_precision: Literal["no", "bf16", "fp16"] = _setting("no", "of the teacher's forward pass")
    num_workers: int = _setting(min(8, os.cpu_count() or 1), "processes that decode pictures; 0: the teacher's own")
    on_error: Literal["stop", "skip"] = _setting(
        "stop",
        "at a picture or caption that cannot be read: stop, or skip it: its row holds zeros, is listed in the manifest "
        "and never trained on",
    )
    progress: bool = _setting(True, "show a bar, on a terminal")

    def __post_init__(self) -> None:
        for name, low in (("batch_size", 1), ("rows_per_shard", 1), ("num_workers", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"`{name}` is {getattr(self, name)}: expected at least {low}.")
        for name, choices in (
            ("feature_dtype", ("float16", "float32")),
            ("mixed_precision", ("no", "bf16", "fp16")),
            ("on_error", ("stop", "skip")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}: expected one of {', '.join(choices)}.")


@dataclass(frozen=True)
class Shard:
    """Rows `first_row` to `first_row + rows` of the cache, as one file."""

    path: Path
    first_row: int
    rows: int
    source: str
    """Digest of these rows' pictures or captions and of the settings."""

    @property
    def all_rows(self) -> range:
        return range(self.first_row, self.first_row + self.rows)


class ExtractionPlan:
    """The shards of one extraction, and the file that lets a later run go on with them.

    Args:
        folder: of the cache.
        captioned, teacher, settings: what to extract, with what and how.
        append: keep the rows of the finished cache in `folder` and plan only what it lacks.

    Attributes:
        new: the pictures and captions to extract.
        first_rows: for each kind, the cache's row of the first of them.

    Raises:
        CacheError: `append` without a finished cache, or to one whose pictures have changed.
    """

    def __init__(
        self,
        folder: Path,
        captioned: CaptionedPictures,
        teacher: Teacher,
        settings: ExtractionSettings,
        append: bool,
    ) -> None:
        self.folder, self.settings = folder, settings
        self.kinds = KINDS if teacher.embeds_captions else KINDS[:1]
        self._source, self._append = captioned.source, append
        self._teacher = teacher.describe()
        self.teacher_digest = teacher_digest(self._teacher)
        self._previous: dict[str, Any] | None = None
        self._old = Additions([], [], [], [], captioned)
        if (folder / MANIFEST).exists():
            self._previous = read_manifest(folder)
        if append:
            if self._previous is None:
                raise CacheError(f"There is no finished cache in {folder} to add to: extract it first, without append.")
            self._old = additions(TeacherCache(folder), captioned)
        self.new = self._old.new
        self.first_rows = {"image": len(self._old.names), "caption": len(self._old.captions)}
        self.nothing_to_do = self._previous is not None and not (append and (self.new.names or self.new.captions))

    def shards(self, kind: str) -> list[Shard]:
        """The files of this extraction, in order of their rows."""
        inputs: Sequence[Any] = self.new.captions
        if kind == "image":
            inputs = list(zip(self.new.names, self.new.stamps or self.new.names, strict=True))
        size, first_number = self.settings.rows_per_shard, len(self._old_shards(kind))
        return [
            Shard(
                shard_path(self.folder, kind, first_number + number),
                self.first_rows[kind] + start,
                len(rows := inputs[start : start + size]),
                hashlib.sha256(json.dumps([self._settings(), rows]).encode()).hexdigest()[:32],
            )
            for number, start in enumerate(range(0, len(inputs), size))
        ]

    def name(self, kind: str, row: int) -> str:
        """How a row of the cache is called in messages."""
        place = row - self.first_rows[kind]
        if kind == "image":
            return self.new.names[place]
        origin = self._source.get("captions", {}).get("file", "the dataset")
        return f"{origin}, caption {row + 1} ({self.new.captions[place]:.60})"

    def begin(self) -> None:
        """Compares with what the folder holds, and writes down what this run will make.

        Shards of an earlier run that are damaged, or whose pictures have changed, are removed, to be made again.

        Raises:
            CacheError: the folder holds a cache, finished or not, that this extraction would not have made.
            ValueError: with `on_error="stop"`, a picture or caption that is known to be unreadable.
        """
        path = self.folder / PLAN
        plan = {
            "teacher": {**self._teacher, "digest": self.teacher_digest},
            "source": _without_stamps(self._source),
            "settings": self._settings(),
            "adds_to": (self._previous or {}).get("checksum"),
        }
        begun = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        if begun is not None and begun.get("adds_to") != plan["adds_to"]:
            path.unlink()  # a killed run finished the cache and left it
            begun = None
        if self._previous is not None:
            self._check_finished(self._previous)
            remove_leftovers(self.folder, self._previous)
        if self.nothing_to_do:
            return
        self._stop_at_known_problems()
        if begun is not None and (different := _differences(begun, plan)):
            raise CacheError(
                f"{self.folder} holds a begun extraction of something else: {'; '.join(different)}. Go on with its "
                "input and settings, or choose another folder."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        with publishing(path) as file:
            file.write((json.dumps(plan, indent=2, ensure_ascii=False) + "\n").encode())
        for kind in self.kinds:
            for shard in self.shards(kind):
                if shard.path.exists() and not self._is_good(kind, shard):
                    logger.warning(f"{shard.path} is damaged, or its input has changed: it is made again.")
                    shard.path.unlink()

    def finish(self) -> None:
        """Writes tables and manifest over the finished shards.

        Raises:
            CacheError: a shard is missing.
        """
        shards = {kind: [*self._old_shards(kind), *(shard.path for shard in self.shards(kind))] for kind in self.kinds}
        missing = [path.name for paths in shards.values() for path in paths if not path.exists()]
        if missing:
            raise CacheError(
                f"{self.folder} lacks {len(missing)} shards, such as {missing[0]}: do all processes see one folder?"
            )
        finish_cache(
            self.folder,
            images=self._old.names + self.new.names,
            stamps=self._old.stamps + (self.new.stamps or [None] * len(self.new.names)),
            captions=self._old.captions + self.new.captions,
            image_rows=self._old.image_rows + self.new.image_rows,
            shards=shards,
            teacher=self._teacher,
            source=self._source,
            extraction=self._settings(),
            previous=self._previous if self._append else None,
        )
        (self.folder / PLAN).unlink(missing_ok=True)

    def _settings(self) -> dict[str, Any]:
        names = ("batch_size", "rows_per_shard", "feature_dtype", "mixed_precision")
        return {name: getattr(self.settings, name) for name in names}

    def _stop_at_known_problems(self) -> None:
        known = (self.new.image_problems, self.new.caption_problems)
        problems = [why for part in known for _, why in sorted(part.items())]
        if problems and self.settings.on_error == "stop":
            more = f" There are {len(problems) - 1:,} more such pictures and captions." if len(problems) > 1 else ""
            raise ValueError(
                f"{problems[0].removesuffix('.')}.{more} Nothing was extracted: mend the input, or leave them out with "
                "on_error=skip."
            )

    def _is_good(self, kind: str, shard: Shard) -> bool:
        try:
            header = read_shard_header(shard.path)
        except CacheError:
            return False
        found = (header.kind, header.teacher, header.source, header.first_row, header.shape[0])
        wanted = (kind, self.teacher_digest, shard.source, shard.first_row, shard.rows)
        return found == wanted and sha256(shard.path, header.offset) == header.data

    def _check_finished(self, manifest: dict[str, Any]) -> None:
        different = []
        if manifest["teacher"]["digest"] != self.teacher_digest:
            different = _differences({"teacher": manifest["teacher"]}, {"teacher": self._teacher})
        made = manifest["extraction"] or {"feature_dtype": manifest["image_features"]["dtype"]}
        for name in ("feature_dtype", "mixed_precision"):
            if name in made and made[name] != getattr(self.settings, name):
                different.append(f"{name} was {made[name]!r}, is {getattr(self.settings, name)!r}")
        remedy = "Add to it with its own teacher and settings, or choose another folder."
        if not self._append:
            different += _differences({"source": newest_source(manifest)}, {"source": self._source})
            remedy = "Choose another folder, or add new pictures and captions to it with append."
        if different:
            raise CacheError(
                f"{self.folder} holds a finished cache of something else: {'; '.join(different)}. {remedy}"
            )

    def _old_shards(self, kind: str) -> list[Path]:
        entry = (self._previous or {}).get(f"{kind}_features") or {"shards": []}
        return [self.folder / shard["file"] for shard in entry["shards"]] if self._append else []


def _without_stamps(source: dict[str, Any]) -> dict[str, Any]:
    """Without what changes when a picture is mended: each shard knows its own rows' stamps."""
    pictures = {name: value for name, value in source.get("pictures", {}).items() if not name.startswith("sha256")}
    return {**source, "pictures": pictures}


def _differences(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """`"teacher.name was 'a', is 'b'"` for every value that differs."""
    before, after = dict(_flatten(was)), dict(_flatten(now))
    names = [name for name in {**before, **after} if before.get(name) != after.get(name) and name != "teacher.digest"]
    return [f"{name} was {before.get(name)!r}, is {after.get(name)!r}" for name in names]


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flatten(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
