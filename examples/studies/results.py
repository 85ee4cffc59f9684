"""The results folder: a JSON line a finished run, and the cosines of its pairs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdmcse_hf.teacher.shard import publishing
from studies.grid import Row, Run, run_name

Arrays = dict[str, NDArray[Any]]
_STEPS = np.iinfo(np.uint16).max


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A kill leaves the file as it was, or whole."""
    with publishing(path) as file:
        file.write(json.dumps(content, ensure_ascii=False, indent=1).encode())


class Results:
    """What finished runs left in a folder.

    A report needs the results, cosines and evaluations, the STS sets and the study's `training_captions`.

    | | |
    |---|---|
    | `results.jsonl` | a line a run |
    | `cosines/ROW-SEED.npz` | of every pair of every STS set, in 65,535 steps |
    | `draws/ROW-SEED.npz` | the scores of resampled pairs, for intervals |
    | `logs/ROW-SEED.log` | what the run printed |
    | `evaluations/NAME/ROW-SEED.json` | what else was measured of the weights, and of which run they are |
    | `runs/ROW-SEED/` | runs at work, or failed; and the weights of rows with `keep` |
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "results.jsonl"

    def records(self) -> dict[tuple[str, int], dict[str, Any]]:
        """By row and seed, in the order in which they finished."""
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        records = (json.loads(line) for line in lines)
        return {(record["row"], record["seed"]): record for record in records}

    def add(self, record: dict[str, Any]) -> None:
        """Appends a line; a kill leaves the file with or without the whole of it."""
        before = self.file.read_bytes() if self.file.exists() else b""
        with publishing(self.file) as file:
            file.write(before + json.dumps(record, ensure_ascii=False).encode() + b"\n")

    def run_folder(self, run: Run) -> Path:
        return self.folder / "runs" / run.name

    def log_file(self, run: Run) -> Path:
        return self.folder / "logs" / f"{run.name}.log"

    def evaluation_file(self, name: str, run: Run) -> Path:
        return self.folder / "evaluations" / name / f"{run.name}.json"

    def failure(self, run: Run) -> str | None:
        """Why the run's last start failed."""
        path = self.run_folder(run) / "failure.txt"
        return path.read_text(encoding="utf-8") if path.exists() else None

    def save_cosines(self, run: str, cosines: Arrays) -> None:
        """By set, (N,) each; at two bytes a pair they can be published.

        In steps between a set's lowest and highest: those of many an untrained encoder all lie within 0.001 of 1.
        """
        kept: Arrays = {}
        for task, cosine in cosines.items():
            low, high = np.min(cosine), np.max(cosine)
            kept[task] = np.rint((cosine - low) / ((high - low) or 1) * _STEPS).astype(np.uint16)
            kept[f"{task} range"] = np.array([low, high], dtype=np.float64)
        self.save_arrays("cosines", run, kept)

    def cosines(self, run: str) -> Arrays | None:
        """By set, (N,) each, float64."""
        kept = self.arrays("cosines", run)
        if kept is None:
            return None
        ranges = {name.removesuffix(" range"): kept.pop(name) for name in list(kept) if name.endswith(" range")}
        return {task: low + kept[task] * ((high - low) / _STEPS) for task, (low, high) in ranges.items()}

    def save_arrays(self, kind: str, name: str, arrays: Arrays) -> None:
        folder = self.folder / kind
        folder.mkdir(exist_ok=True)
        with publishing(folder / f"{name}.npz") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    def arrays(self, kind: str, name: str) -> Arrays | None:
        path = self.folder / kind / f"{name}.npz"
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as saved:
            return {key: saved[key] for key in saved.files}

    def check_same_flags(self, rows: list[Row], tasks: Sequence[str]) -> None:
        """Refuses rows that were run with other flags, data or teachers, or scored on other sets: seeds of two kinds.

        Raises:
            ValueError: names the rows and what differs.
        """
        changed = []
        known = {row.name: row for row in rows}
        read: dict[tuple[str, str], tuple[str, Any]] = {}
        for (name, seed), record in self.records().items():
            if name in known and record["fingerprint"] != known[name].fingerprint:
                before, now = record["flags"], known[name].flags
                flags = [
                    f"{flag} was {before.get(flag)!r}, is {now.get(flag)!r}"
                    for flag in sorted({*before, *now})
                    if before.get(flag) != now.get(flag)
                ]
                changed.append(f"{name} (seed {seed}): {', '.join(flags) or 'trained or not'}")
            elif name in known and (scored := record["sts"].keys() - {"avg"}) != set(tasks):
                changed.append(f"{name} (seed {seed}): scored on {', '.join(sorted(scored))}, not {', '.join(tasks)}")
            elif name in known:
                for what, content in _read(record).items():
                    other, before = read.setdefault((name, what), (run_name(name, seed), content))
                    if content != before:
                        changed.append(f"{name} (seed {seed}): another {what} than that of {other}, in the same place")
        if changed:
            raise ValueError(
                f"{self.file} has runs of the same rows that were made in another way:\n  "
                + "\n  ".join(changed)
                + "\nGive the row another name or the study another --output_dir, or remove those lines."
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second study out of the folder; a killed one keeps nobody out.

        Raises:
            ValueError: another one is at work.
        """
        import fcntl

        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ValueError(
                    f"Another study is writing to {self.folder}: wait for it or choose another folder."
                ) from error
            yield


def _read(record: Mapping[str, Any]) -> dict[str, Any]:
    """What every seed of a row reads; which pairs it draws, how they are shuffled, and the cache's versions differ."""
    data, teacher = record.get("data") or {}, record.get("teacher") or {}
    return {
        "text": data.get("sha256", {}).get("text"),
        "number of pairs": data.get("num_pairs"),
        "teacher": {key: teacher.get(key) for key in ("digest", "images", "captions")},
    }
