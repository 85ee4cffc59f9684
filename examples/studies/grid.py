"""A study as its YAML file states it: rows of flags, how often each is run, tables and comparisons."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kdmcse_hf.sts import TASKS

_KEYS = {"title", "include", "prepare", "common", "seeds", "tasks", "rows", "tables", "comparisons"}
_KEYS |= {"subsets", "plots", "curves", "notes", "evaluations", "training_captions", "captions_domain"}
_EVALUATION_KEYS = {"command", "rows", "label", "seeds"}
_CAPTIONS_KEYS = {"captions_file", "splits_file", "split"}
_ROW_KEYS = {"like", "label", "seeds", "train", "keep", "best_of"}


@dataclass(frozen=True)
class Row:
    """One row of a table: flags of `train_kdmcse.py`, as text, with `${NAME}` not yet replaced.

    Attributes:
        name: in results and file names.
        label: in tables.
        flags: by name, without dashes.
        seeds: one run each.
        train: `False` scores the encoder as it is.
        keep: whether the weights are kept.
        best_of: names of other rows; this one is that of them whose mean on STS-B dev, over the seeds that they share,
            is highest, and is not run. Rows that are not finished do not take part.
    """

    name: str
    label: str
    flags: dict[str, str]
    seeds: tuple[int, ...]
    train: bool = True
    keep: bool = False
    best_of: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Of all that makes two rows the same run."""
        content = json.dumps([self.flags, self.train], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def run_name(row: str, seed: int) -> str:
    """Of files and folders."""
    return f"{row}-{seed}"


@dataclass(frozen=True)
class Run:
    """A row with one seed."""

    row: Row
    seed: int

    @property
    def name(self) -> str:
        return run_name(self.row.name, self.seed)


@dataclass(frozen=True)
class Evaluation:
    """What a script measures of the weights of some rows; see [`studies.evaluations`]."""

    name: str
    label: str
    command: str
    rows: tuple[str, ...]
    seeds: int | None


@dataclass(frozen=True)
class Study:
    """What a YAML file states.

    Attributes:
        name: of the file.
        title: of the report.
        rows: all that are known, those of included files first.
        own: the names of this file's rows: what it runs.
        prepare: what has to exist before; see [`studies.material`].
        tasks: STS sets to score.
        tables: names of rows by title.
        comparisons: by name, two rows: the second minus the first.
        subsets: the comparisons that are told by subset, too.
        plots: names of the rows that the plots show.
        curves: by title of a panel, by label, rows by what they differ in, a number; one name is a level line.
        notes: what a reader of the report has to know.
        evaluations: what else is measured; not those of included files.
        training_captions: `captions_file`, `splits_file` and `split`: where the captions are that rows train on. Test
            pairs that have one of them are counted, and comparisons are made without them as well.
        captions_domain: sets and subsets (`STS14/images`) of sentences like captions: comparisons are made without
            these as well.
    """

    name: str
    title: str
    rows: dict[str, Row]
    own: tuple[str, ...]
    prepare: tuple[dict[str, str], ...]
    tasks: tuple[str, ...]
    tables: dict[str, tuple[str, ...]]
    comparisons: dict[str, tuple[str, str]]
    subsets: tuple[str, ...]
    plots: tuple[str, ...]
    curves: dict[str, dict[str, dict[float, str] | str]]
    notes: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]
    training_captions: Mapping[str, str] | None
    captions_domain: tuple[str, ...]

    def runs(self, rows: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> list[Run]:
        """The runs of these rows (by default this file's own) and seeds: all rows of one seed before the next.

        Raises:
            ValueError: an unknown row, or a seed that none of the rows has.
        """
        names = self.own if rows is None else rows
        unknown = sorted(set(names) - set(self.rows))
        if unknown:
            raise ValueError(f"Unknown rows: {', '.join(unknown)}. The study has {', '.join(self.rows)}.")
        chosen = [self.rows[name] for name in self.rows if name in names]
        known = {seed for row in chosen for seed in row.seeds}
        if odd := sorted(set(seeds or ()) - known):
            raise ValueError(f"No row has the seeds {odd}: they have {sorted(known)}. `seeds` in the file says so.")
        every = sorted(seed for seed in known if seeds is None or seed in seeds)
        return [Run(row, seed) for seed in every for row in chosen if seed in row.seeds]

    def preparation(self, runs: Sequence[Run]) -> list[dict[str, str]]:
        """The steps of `prepare` whose product these runs name, their evaluations, or a later such step."""
        chosen = {run.row.name for run in runs}
        named = [value for run in runs for value in run.row.flags.values()]
        named += [evaluation.command for evaluation in self.evaluations if chosen & set(evaluation.rows)]
        steps: list[dict[str, str]] = []
        for step in reversed(self.prepare):
            # One that names no product is found everywhere, and refused when it is taken.
            product = re.compile(re.escape(str(step.get("make", ""))) + r"(?![\w.-])")
            if any(product.search(text) for text in named):
                steps.insert(0, step)
                named += map(str, step.values())
        return steps


def load_study(path: str | Path, changes: Mapping[str, str] | None = None) -> Study:
    """Reads a study.

    Args:
        path: of the YAML file.
        changes: flags that overrule those of every row.

    Raises:
        ValueError: the file cannot be read, or states something that makes no sense; says where.
    """
    path = Path(path)
    stated, included = _read(path)
    rows: dict[str, Row] = {}
    for part in (*included, stated):
        for name, row in (part.get("rows") or {}).items():
            if name in rows:
                raise ValueError(f"{path}: the row {name!r} is there twice.")
            if not re.fullmatch(r"[\w.-]+", name):
                raise ValueError(f"{path}: a row is called {name!r}: expected letters, digits, '_', '-' and '.'.")
            rows[name] = _row(path, name, row or {}, part, rows, dict(changes or {}))
    own = tuple(stated.get("rows") or {})
    merged = {key: value for part in (*included, stated) for key, value in part.items()}
    study = Study(
        name=path.stem,
        title=str(stated.get("title", path.stem)),
        rows=rows,
        own=own,
        prepare=tuple(step for part in (*included, stated) for step in part.get("prepare") or ()),
        tasks=tuple(merged.get("tasks") or TASKS),
        tables={title: tuple(names) for title, names in (stated.get("tables") or {"Results": own}).items()},
        comparisons={name: (first, second) for name, (first, second) in (stated.get("comparisons") or {}).items()},
        subsets=tuple(stated.get("subsets") or ()),
        plots=tuple(stated.get("plots") or own),
        curves=stated.get("curves") or {},
        notes=tuple(merged.get("notes") or ()),
        evaluations=tuple(_evaluation(path, *item, rows) for item in (stated.get("evaluations") or {}).items()),
        training_captions=merged.get("training_captions"),
        captions_domain=tuple(merged.get("captions_domain") or ()),
    )
    if odd := [name for name in study.captions_domain if name.partition("/")[0] not in study.tasks]:
        raise ValueError(f"{path}: `captions_domain` names {odd[0]}: expected one of {', '.join(study.tasks)}.")
    if study.training_captions is not None and set(study.training_captions) != _CAPTIONS_KEYS:
        raise ValueError(
            f"{path}: `training_captions` has {', '.join(study.training_captions)}: expected "
            f"{', '.join(sorted(_CAPTIONS_KEYS))}."
        )
    named = {*study.plots, *(n for names in (*study.tables.values(), *study.comparisons.values()) for n in names)}
    for series in (series for panel in study.curves.values() for series in panel.values()):
        points = series if isinstance(series, dict) else {0: series}
        named |= set(points.values())
        if odd := [place for place in points if not isinstance(place, int | float)]:
            raise ValueError(f"{path}: `curves` has a point at {odd[0]!r}: expected a number.")
    if unknown := sorted(named - set(rows)):
        raise ValueError(f"{path}: tables, comparisons, plots or curves name unknown rows: {', '.join(unknown)}.")
    if unknown := sorted(set(study.subsets) - set(study.comparisons)):
        raise ValueError(f"{path}: `subsets` names unknown comparisons: {', '.join(unknown)}.")
    return study


def _read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a file states, and what the file that it includes states; the common flags of that one hold for both."""
    try:
        stated = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"The study {path} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"The study {path} cannot be read: {error}") from error
    if not isinstance(stated, dict) or not set(stated) <= _KEYS:
        found = sorted(set(stated) - _KEYS) if isinstance(stated, dict) else type(stated).__name__
        raise ValueError(f"The study {path} has {found}: expected a mapping with {', '.join(sorted(_KEYS))}.")
    included: list[dict[str, Any]] = []
    if "include" in stated:
        other, before = _read(path.parent / stated["include"])
        included = [*before, other]
        stated["common"] = {**(other.get("common") or {}), **(stated.get("common") or {})}
        stated.setdefault("seeds", other.get("seeds", 1))
    return stated, included


def _row(
    path: Path, name: str, stated: dict[str, Any], part: dict[str, Any], known: dict[str, Row], changes: dict[str, str]
) -> Row:
    if "best_of" in stated:
        return _choice(path, name, stated, known)
    flags = {flag: value for flag, value in stated.items() if flag not in _ROW_KEYS}
    if forbidden := sorted({"seed", "output_dir", "resume_from_checkpoint"} & set(flags)):
        raise ValueError(f"{path}, row {name!r}: {', '.join(forbidden)} is set by the study itself.")
    like = stated.get("like")
    if like is not None and like not in known:
        raise ValueError(f"{path}, row {name!r}: `like: {like}` names no row above it.")
    base: Mapping[str, Any] = part.get("common") or {} if like is None else known[like].flags
    merged = {**base, **flags, **changes}
    if missing := [flag for flag in ("model_name_or_path", "sts_dir") if merged.get(flag) is None]:
        raise ValueError(f"{path}, row {name!r}: {' and '.join(missing)} is missing; `common` is the place for it.")
    seeds = stated.get("seeds", part.get("seeds", 1))
    return Row(
        name=name,
        label=str(stated.get("label", name)),
        # `null` takes a flag of `common` or of the row that this one is like away.
        flags={flag: _text(value) for flag, value in sorted(merged.items()) if value is not None},
        seeds=tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds),
        train=bool(stated.get("train", like is None or known[like].train)),
        keep=bool(stated.get("keep", False)),
    )


def _choice(path: Path, name: str, stated: dict[str, Any], known: dict[str, Row]) -> Row:
    candidates = tuple(stated["best_of"])
    odd = sorted({candidate for candidate in candidates if candidate not in known or known[candidate].best_of})
    seeds = [set(known[candidate].seeds) for candidate in candidates if not odd]
    if not seeds or not set.intersection(*seeds) or set(stated) - {"best_of", "label"}:
        raise ValueError(
            f"{path}, row {name!r}: expected `best_of` with names of rows above it that are run and share a seed, and "
            f"a `label` at most; it has {', '.join(stated)}" + (f", and {', '.join(odd)} is none." if odd else ".")
        )
    return Row(name, str(stated.get("label", name)), {}, (), best_of=candidates)


def _evaluation(path: Path, name: str, stated: dict[str, Any], rows: Mapping[str, Row]) -> Evaluation:
    names = tuple(stated.get("rows") or ())
    unmade = [
        row for row in names if row not in rows or rows[row].best_of or not (rows[row].keep or not rows[row].train)
    ]
    if unmade or not {"command", "rows"} <= set(stated) <= _EVALUATION_KEYS:
        raise ValueError(
            f"{path}, evaluation {name!r}: expected a `command` and `rows` whose weights are kept, and `label` and "
            f"`seeds` at most; it has {', '.join(stated)}"
            + (f", and {', '.join(unmade)} keep none." if unmade else ".")
        )
    return Evaluation(name, str(stated.get("label", name)), stated["command"], names, stated.get("seeds"))


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def expand(text: str, places: Mapping[str, str]) -> str:
    """`text` with each `${NAME}` replaced by one of `places`, or by the environment variable.

    Raises:
        ValueError: there is no such place.
    """

    def place(match: "re.Match[str]") -> str:
        value = places.get(match[1]) or os.environ.get(match[1])
        if not value:
            raise ValueError(f"{text!r} needs the environment variable {match[1]}, which is not set.")
        return value

    return re.sub(r"\$\{(\w+)\}", place, text)
