"""Doing the runs: one process each, one or several at once, each from where it was when it was last killed."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm

from studies.child import child_environment
from studies.grid import Run, expand
from studies.results import Results, write_json


def do_runs(
    runs: Sequence[Run], results: Results, tasks: Sequence[str], places: Mapping[str, str], at_once: int = 1
) -> list[str]:
    """Does what is not done yet.

    Args:
        at_once: runs at work at a time. Each has one GPU, and its share of the processor's threads.

    Returns:
        The names of the runs that failed; why, is told as it happens and by [`Results.failure`].

    Raises:
        ValueError: `at_once` is below 1, or a run was begun with other flags.
    """
    done = results.records()
    todo = [run for run in runs if (run.row.name, run.seed) not in done]
    for run in runs:
        if run not in todo:  # killed between its line in the results and this
            _tidy(results.run_folder(run), run.row.keep)
    print(f"{len(runs) - len(todo)} of {len(runs)} runs are done already", flush=True)
    failed: list[str] = []
    ended_runs = 0
    start, waiting, free = time.monotonic(), todo.copy(), shares(at_once)
    at_work: list[_RunAtWork] = []
    try:
        with tqdm(total=len(todo), desc="Study", unit="run", disable=None) as bar:
            while waiting or at_work:
                while waiting and free:
                    at_work.append(_start(waiting.pop(0), results, tasks, places, free.pop()))
                for ended in [one for one in at_work if one.process is None or one.process.poll() is not None]:
                    at_work.remove(ended)
                    free.append(ended.share)
                    reason = _finish(ended, results)
                    failed += [ended.run.name] if reason else []
                    bar.update()
                    ended_runs += 1
                    left = (time.monotonic() - start) / ended_runs * (len(todo) - ended_runs)
                    outcome = f"FAILED: {reason}" if reason else f"STS avg {_average(results, ended.run):.2f}"
                    took = _time(time.monotonic() - ended.begun)
                    bar.write(
                        f"[{ended_runs}/{len(todo)}] {ended.run.name}: {outcome} ({took}; about {_time(left)} left)",
                        file=sys.stdout,
                    )
                    sys.stdout.flush()
                bar.set_postfix_str(", ".join(one.run.name for one in at_work))
                time.sleep(0.1)
    finally:
        for one in at_work:
            if one.process is not None:
                one.process.kill()
                one.process.communicate()
    return failed


def shares(at_once: int) -> list[dict[str, str]]:
    """The environment variables that give each of `at_once` runs its part of this machine.

    Raises:
        ValueError: `at_once` is below 1.
    """
    if at_once < 1:
        raise ValueError(f"--runs_at_once is {at_once}: expected at least 1.")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    threads = str(max(1, (os.cpu_count() or 1) // at_once))
    return [
        {
            # A run is one process: were it to see several GPUs, they would split its batches and their negatives.
            **({"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if devices else {}),
            **({"OMP_NUM_THREADS": threads} if at_once > 1 else {}),
        }
        for number in range(at_once)
    ]


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"{seconds:.0f} s"
        if minutes < 2
        else f"{minutes // 60} h {minutes % 60:02d} min"
        if minutes > 59
        else f"{minutes} min"
    )


@dataclass(frozen=True, eq=False)
class _RunAtWork:
    run: Run
    share: dict[str, str]
    begun: float
    process: "subprocess.Popen[bytes] | None"
    """`None` if it was killed between its last file and the study's list of results."""


def _start(
    run: Run, results: Results, tasks: Sequence[str], places: Mapping[str, str], share: dict[str, str]
) -> _RunAtWork:
    folder, log, process = results.run_folder(run), results.log_file(run), None
    record = folder / "record.json"
    if record.exists() and json.loads(record.read_text(encoding="utf-8"))["fingerprint"] != run.row.fingerprint:
        shutil.rmtree(folder)  # a row with `keep` that was taken out of the results and has other flags now
    if not record.exists():
        starts = _begin(run, folder, tasks, places)
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as file:
            file.write(f"=== {run.name}, start {starts}\n".encode())
            file.flush()
            # Its standard input ends when this process does, however that ends; then it stops, too.
            process = subprocess.Popen(
                [sys.executable, "-m", "studies.one_run", str(folder)],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=child_environment(share),
            )
    return _RunAtWork(run, share, time.monotonic(), process)


def _finish(ended: _RunAtWork, results: Results) -> str | None:
    """Why it failed, or `None`: then it is among the results."""
    folder = results.run_folder(ended.run)
    if ended.process is not None and ended.process.stdin is not None:
        ended.process.stdin.close()
    if ended.process is not None and ended.process.returncode:
        reason = reason_of(ended.process.returncode, results.log_file(ended.run))
        (folder / "failure.txt").write_text(reason, encoding="utf-8")
        return reason
    results.add(json.loads((folder / "record.json").read_text(encoding="utf-8")))
    _tidy(folder, ended.run.row.keep)
    return None


def _tidy(folder: Path, keep: bool) -> None:
    """Leaves the weights alone: whoever takes a run out of the results wants a new one, not what is said of the old."""
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for part in folder.glob("model/checkpoint-*"):
        shutil.rmtree(part)
    for file in folder.glob("*.*"):
        file.unlink()


def _average(results: Results, run: Run) -> float:
    return float(results.records()[run.row.name, run.seed]["sts"]["avg"])


def _begin(run: Run, folder: Path, tasks: Sequence[str], places: Mapping[str, str]) -> int:
    """Writes what the process has to do; says how often it has been started.

    Raises:
        ValueError: the run was begun with other flags.
    """
    job_file = folder / "job.json"
    starts = 0
    if not job_file.exists():
        shutil.rmtree(folder, ignore_errors=True)  # the weights of a run that was taken out of the results
    else:
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
    write_json(job_file, job)
    return starts + 1


def reason_of(status: int, log: Path) -> str:
    """Why a process failed, in a line: the signal, or the last that it printed."""
    if status < 0:
        killed = " (the system does so where memory is short)" if status == -9 else ""
        return f"killed by signal {-status}{killed}; see {log}"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"{lines[-1][:300] if lines else f'status {status}'}; see {log}"
