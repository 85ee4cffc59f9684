"""What an extraction will write, fixed before it begins: rows, shards, and what a folder already holds of them."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kdmcse_hf.teacher.cache import KINDS, MANIFEST, TeacherCache, read_manifest
from kdmcse_hf.teacher.cache_writer import finish_cache, shard_path, teacher_digest
from kdmcse_hf.teacher.captioned_pictures import CaptionedPictures
from kdmcse_hf.teacher.encoder import Teacher
from kdmcse_hf.teacher.shard import CacheError, publishing

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
    rows_per_shard: int = _setting(4096, "rows of a file of features: a killed process loses these at most")
    feature_dtype: Literal["float16", "float32"] = _setting("float16", "of the features as stored")
    mixed_precision: Literal["no", "bf16", "fp16"] = _setting("no", "of the teacher's forward pass")
    num_workers: int = _setting(min(8, os.cpu_count() or 1), "processes that decode pictures; 0: the teacher's own")
    on_error: Literal["stop", "skip"] = _setting(
        "stop",
        "at a picture or caption that cannot be read: stop, or skip it: its row holds zeros, is listed in the manifest "
        "and never trained on",
    )
    progress: bool = _setting(True, "show a bar")

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
        CacheError: `append` without a finished cache.
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
        self.new = captioned
        self._captioned, self._append = captioned, append
        self._teacher = teacher.describe()
        self.teacher_digest = teacher_digest(self._teacher)
        self.first_rows = dict.fromkeys(KINDS, 0)
        self._previous: dict[str, Any] | None = None
        self._old: tuple[list[str], list[str], list[int]] = ([], [], [])
        if (folder / MANIFEST).exists():
            self._previous = read_manifest(folder)
        if append:
            if self._previous is None:
                raise CacheError(f"There is no finished cache in {folder} to add to: extract it first, without append.")
            cache = TeacherCache(folder)
            self._old = (cache.images["image"][:], cache.captions["caption"][:], cache.captions["image_row"][:])
            self.new = captioned.added_to(*self._old)
            self.first_rows = {"image": len(self._old[0]), "caption": len(self._old[1])}

    @property
    def nothing_to_do(self) -> bool:
        """Whether the folder holds the finished cache already."""
        return self._previous is not None and not (self._append and (self.new.names or self.new.captions))

    def shards(self, kind: str) -> list[Shard]:
        """The files of this extraction, in order of their rows."""
        rows, size = len(self.new.names if kind == "image" else self.new.captions), self.settings.rows_per_shard
        first_number = len(self._old_shards(kind))
        return [
            Shard(
                shard_path(self.folder, kind, first_number + number),
                self.first_rows[kind] + start,
                min(size, rows - start),
            )
            for number, start in enumerate(range(0, rows, size))
        ]

    def name(self, kind: str, row: int) -> str:
        """How a row of the cache is called in messages."""
        place = row - self.first_rows[kind]
        if kind == "image":
            return self.new.names[place]
        return f"caption {row} ({self.new.captions[place][:60]!r}...)"

    def begin(self) -> None:
        """Compares with what the folder holds, and writes down what this run will make.

        Raises:
            CacheError: the folder holds a cache, finished or not, that this extraction would not have made.
            ValueError: with `on_error="stop"`, a picture or caption that is known to be unreadable.
        """
        if self._previous is not None:
            self._check_finished(self._previous)
        if self.nothing_to_do:
            return
        problems = [
            why for known in (self.new.image_problems, self.new.caption_problems) for _, why in sorted(known.items())
        ]
        if problems and self.settings.on_error == "stop":
            more = f" ({len(problems) - 1:,} more such pictures and captions)" if len(problems) > 1 else ""
            raise ValueError(
                f"{problems[0]}{more}. Nothing was extracted. Mend the input, or leave them out with on_error=skip."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / PLAN
        plan = self._describe()
        if path.exists():
            different = _differences(json.loads(path.read_text(encoding="utf-8")), plan)
            if different:
                raise CacheError(
                    f"{self.folder} holds a begun extraction of something else: {'; '.join(different)}. Go on with its "
                    "input and settings, or choose another folder."
                )
        else:
            with publishing(path) as file:
                file.write((json.dumps(plan, indent=2, ensure_ascii=False) + "\n").encode())

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
        images, captions, image_rows = self._old
        finish_cache(
            self.folder,
            images=images + self.new.names,
            captions=captions + self.new.captions,
            image_rows=image_rows + self.new.image_rows,
            shards=shards,
            teacher=self._teacher,
            source=self._captioned.source,
            previous=self._previous,
            extraction=self._describe()["settings"],
        )
        (self.folder / PLAN).unlink(missing_ok=True)
        for leftover in self.folder.glob("*.tmp"):
            leftover.unlink(missing_ok=True)

    def _describe(self) -> dict[str, Any]:
        settings = ("batch_size", "rows_per_shard", "feature_dtype", "mixed_precision")
        return {
            "teacher": {**self._teacher, "digest": self.teacher_digest},
            "source": self._captioned.source,
            "first_rows": self.first_rows,
            "rows": {"image": len(self.new.names), "caption": len(self.new.captions)},
            "settings": {name: getattr(self.settings, name) for name in settings},
        }

    def _check_finished(self, manifest: dict[str, Any]) -> None:
        mine = {"teacher": {**self._teacher, "digest": self.teacher_digest}}
        different = _differences({"teacher": manifest["teacher"]}, mine)
        if self._append:
            dtype = manifest["image_features"]["dtype"]
            if dtype != self.settings.feature_dtype:
                different.append(f"features were {dtype}, are {self.settings.feature_dtype}")
            remedy = "Add to it with its own teacher, or choose another folder."
        else:
            if self._captioned.source not in (manifest["source"], *manifest["added"]):
                newest = [manifest["source"], *manifest["added"]][-1]
                different += _differences({"source": newest}, {"source": self._captioned.source})
            remedy = "Choose another folder, or add new pictures and captions to it with append."
        if different:
            raise CacheError(
                f"{self.folder} holds a finished cache of something else: {'; '.join(different)}. {remedy}"
            )

    def _old_shards(self, kind: str) -> list[Path]:
        entry = (self._previous or {}).get(f"{kind}_features") or {"shards": []}
        return [self.folder / shard["file"] for shard in entry["shards"]] if self._append else []


def _differences(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """`"teacher.name was 'a', is 'b'"` for every value that differs."""
    before, after = dict(_flatten(was)), dict(_flatten(now))
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [f"{name} was {before.get(name)!r}, is {after.get(name)!r}" for name in names]


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flatten(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
