"""What is measured of a finished run."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import accelerate
import datasets
import numpy as np
import torch
import transformers

import kdmcse_hf
from kdmcse_hf.golden import cpu_name
from kdmcse_hf.metrics import Spearman
from kdmcse_hf.sts import Encoder, load_sts, score_pairs, sts_cosines, sts_subsets
from kdmcse_hf.training_record import git_commit, mean_rates
from studies.results import Arrays


def measure(encoder: Encoder, sts_dir: str, tasks: Sequence[str]) -> tuple[dict[str, Any], Arrays]:
    """STS scores by task and by subset, alignment and uniformity on all of STS-B; the cosines."""
    scored = sts_cosines(encoder, sts_dir, tasks)
    parts = {
        f"{task}/{name}": (scored[task][0][rows], scored[task][1][rows])
        for task in tasks
        for name, rows in sts_subsets(sts_dir, task).items()
    }
    sts = {task: _spearman(*pair) for task, pair in scored.items()}
    measured = {
        "sts": {**sts, "avg": float(np.mean(list(sts.values())))},
        "subsets": {name: _spearman(*pair) for name, pair in parts.items()},
        "stsb": {split: score_pairs(encoder, load_sts(sts_dir, "STSB", split)) for split in ("dev", "test")},
    }
    return measured, {task: cosine for task, (cosine, _) in scored.items()}


def _spearman(cosine: Any, gold: Any) -> float:
    return float(Spearman().compute(predictions=cosine, references=gold)["spearman"])


def curves(model_folder: Path) -> dict[str, Any]:
    """What the Trainer logged and recorded: STS-B dev by step, losses by step, rates up to the step that was kept."""
    state = json.loads((model_folder / "trainer_state.json").read_text(encoding="utf-8"))
    record = json.loads((model_folder / "training_record.json").read_text(encoding="utf-8"))
    history = state["log_history"]
    rate = re.compile(r"(loss|_rate)$")
    return {
        "dev": [
            {"step": entry["step"], **{k.removeprefix("eval_"): v for k, v in entry.items() if k.startswith("eval_")}}
            for entry in history
            if "eval_spearman" in entry
        ],
        "losses": [
            {"step": entry["step"], **{k: v for k, v in entry.items() if rate.search(k) and k != "learning_rate"}}
            for entry in history
            if "loss" in entry
        ],
        "best_step": record["settings"]["step"],
        "rates": mean_rates(history, record["settings"]["step"]),
        "data": record["data"],
        "teacher": record["teacher"],
        "objective": json.loads((model_folder / "objective.json").read_text(encoding="utf-8")),
    }


def environment(flags: dict[str, str]) -> dict[str, Any]:
    """Commit, hardware and versions."""
    on_gpu = torch.cuda.is_available() and flags.get("use_cpu") != "true"
    modules = (torch, transformers, accelerate, datasets, np)
    return {
        "commit": git_commit(Path(kdmcse_hf.__file__).parent),
        "hardware": torch.cuda.get_device_name() if on_gpu else f"{cpu_name()}, {torch.get_num_threads()} threads",
        "versions": {module.__name__: str(module.__version__) for module in modules},
    }


def peak_mb() -> float | None:
    """The most memory that this process held, in MB; on a GPU, the most of its memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else None
