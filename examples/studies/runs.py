"""Doing the runs: one process each, one after the other, each from where it was when it was last killed."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from studies.grid import Run, expand
from studies.results import Results

EXAMPLES = Path(__file__).parents[1]


def do_runs(runs: Sequence[Run], results: Results, tasks: Sequence[str], places: Mapping[str, str]) -> list[str]:
    """Does what is not done yet.

    Returns:
        The names of the runs that failed; why, is told as it happens and by [`Results.failure`].
    """
    done = results.records()
    todo = [run for run in runs if (run.row.name, run.seed) not in done]
    print(f"{len(runs) - len(todo)} of {len(runs)} runs are done already", flush=True)
    failed = []
    start = time.monotonic()
    with tqdm(total=len(todo), desc="Study", unit="run", disable=None) as bar:
        for number, run in enumerate(todo, start=1):
            bar.set_postfix_str(run.name)
            begun = time.monotonic()
            reason = _do(run, results, tasks, places)
            now = time.monotonic()
            left = (now - start) / number * (len(todo) - number)
            if reason is None:
                avg = results.records()[run.row.name, run.seed]["sts"]["avg"]
                outcome = f"STS avg {avg:.2f}"
            else:
                failed.append(run.name)
                outcome = f"FAILED: {reason}"
            bar.write(
                f"[{number}/{len(todo)}] {run.name}: {outcome} ({_time(now - begun)}; about {_time(left)} left)",
                file=sys.stdout,
            )
            sys.stdout.flush()
            bar.update()
    return failed


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"{seconds:.0f} s"
        if minutes < 2
        else f"{minutes // 60} h {minutes % 60:02d} min"
        if minutes > 59
        else f"{minutes} min"
    )


def _do(run: Run, results: Results, tasks: Sequence[str], places: Mapping[str, str]) -> str | None:
    """Why it failed, or `None`."""
    folder, log = results.run_folder(run), results.log_file(run)
    if not (folder / "record.json").exists():
        starts = _begin(run, folder, tasks, places)
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as file:
            file.write(f"=== {run.name}, start {starts}\n".encode())
            file.flush()
            path = os.pathsep.join(filter(None, (str(EXAMPLES), os.environ.get("PYTHONPATH"))))
            # Its standard input ends when this process does, however that ends; then it stops, too.
            with subprocess.Popen(
                [sys.executable, "-m", "studies.one_run", str(folder)],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": path, "TQDM_DISABLE": "1"},
            ) as process:
                try:
                    status = process.wait()
                except BaseException:
                    process.kill()
                    raise
        if status:
            reason = _reason(status, log)
            (folder / "failure.txt").write_text(reason, encoding="utf-8")
            return reason
    results.add(json.loads((folder / "record.json").read_text(encoding="utf-8")))
    (folder / "failure.txt").unlink(missing_ok=True)
    for part in folder.glob("model/checkpoint-*") if run.row.keep else (folder,):
        shutil.rmtree(part)
    return None


def _begin(run: Run, folder: Path, tasks: Sequence[str], places: Mapping[str, str]) -> int:
    """Writes what the process has to do; says how often it has been started.

    Raises:
        ValueError: the run was begun with other flags.
    """
    job_file = folder / "job.json"
    starts = 0
    if job_file.exists():
        job = json.loads(job_file.read_text(encoding="utf-8"))
        starts = job["starts"]
        if job["fingerprint"] != run.row.fingerprint:
            if any(folder.glob("model/checkpoint-*")):
                raise ValueError(
                    f"{folder} has checkpoints of the row {run.row.name!r} with other flags. Remove it to begin anew, "
                    "or give the row another name."
                )
            shutil.rmtree(folder)
            starts = 0
    folder.mkdir(parents=True, exist_ok=True)
    job = {
        "row": run.row.name,
        "seed": run.seed,
        "fingerprint": run.row.fingerprint,
        "flags": run.row.flags,
        "arguments": {flag: expand(value, places) for flag, value in run.row.flags.items()},
        "train": run.row.train,
        "tasks": list(tasks),
        "starts": starts + 1,
    }
    temporary = folder / "job.json.tmp"
    temporary.write_text(json.dumps(job), encoding="utf-8")
    temporary.replace(job_file)
    return starts + 1


def _reason(status: int, log: Path) -> str:
    """One line: the signal, or the error."""
    if status < 0:
        killed = " (the system does so where memory is short)" if status == -9 else ""
        return f"killed by signal {-status}{killed}; see {log}"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"{lines[-1][:300]}; see {log}"
