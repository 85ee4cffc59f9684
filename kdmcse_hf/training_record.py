"""What a run was: base model, data, teacher, settings, measures, machine. Recorded with the weights, for their card."""

import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import accelerate
import datasets
import torch
import transformers
from transformers import TrainerState

from kdmcse_hf import __version__
from kdmcse_hf.data import CaptionPairs, TrainingData
from kdmcse_hf.export import hub_name
from kdmcse_hf.golden import cpu_name
from kdmcse_hf.modeling_kdmcse import KDMCSEModel
from kdmcse_hf.training_args import KDMCSETrainingArguments

_PRECISIONS = {"bf16": "bfloat16, mixed", "fp16": "float16, mixed"}
_SETTINGS = (
    *("gradient_accumulation_steps", "mini_batch_size", "learning_rate", "warmup_steps", "weight_decay"),
    *("max_grad_norm", "gather_across_devices", "seed"),
)


def training_record(
    model: KDMCSEModel,
    args: KDMCSETrainingArguments,
    data: TrainingData,
    state: TrainerState,
    step: int,
    dev_pairs: int,
) -> dict[str, Any]:
    """All that a model card tells of a run beyond its objective and schedule. Names no place on this machine.

    Args:
        model, args, data, state: of the Trainer.
        step: after which the model had these weights.
        dev_pairs: how many scored pairs the Trainer evaluates on.
    """
    device = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else cpu_name()
    modules = (torch, transformers, accelerate, datasets)
    return {
        "base_model": hub_name(model.config._name_or_path) or hub_name(model.config.text_config._name_or_path),
        **data_record(data),
        "settings": {
            "step": step,
            "rows_per_step": args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps,
            **{name: getattr(args, name) for name in _SETTINGS},
            "lr_scheduler_type": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
            "precision": _PRECISIONS.get(args.mixed_precision, "float32"),  # a flag, or accelerate's environment
        },
        "dev": dev_score(state.log_history, step, dev_pairs),
        "rates": mean_rates(state.log_history, step),
        "hardware": f"{args.world_size} x {device}",
        "versions": {
            "kdmcse_hf": __version__,
            "python": platform.python_version(),
            **{module.__name__: str(module.__version__) for module in modules},
        },
        "commit": git_commit(Path(__file__).parent),
    }


def data_record(data: TrainingData) -> dict[str, Any]:
    """The `data`, with digests, and the `teacher` of a run; the same for it whenever it is asked."""
    return {
        "data": {"num_text": data.num_text, "num_pairs": data.num_pairs, "sha256": data.fingerprints},
        "teacher": None if data.pairs is None else _describe_teacher(data.pairs),
    }


def forward_switches(model: KDMCSEModel) -> dict[str, Any]:
    """What a flag of a run changes in a model and none of its weights say: pooling, normalisation, dropout."""
    encoder = model.config.text_config.to_dict()
    return {
        **{name: getattr(model.config, name) for name in ("pooling", "normalize_teacher_embeds")},
        **{name: value for name, value in sorted(encoder.items()) if "drop" in name},
    }


def dev_score(log_history: list[dict[str, float]], step: int, pairs: int) -> dict[str, Any] | None:
    """What the weights of that very step scored while training, if they were scored."""
    scores = (entry["eval_spearman"] for entry in log_history if entry["step"] == step and "eval_spearman" in entry)
    spearman = next(scores, None)
    return None if spearman is None else {"step": step, "pairs": pairs, "spearman": spearman}


def mean_rates(log_history: list[dict[str, float]], step: int) -> dict[str, float]:
    """Means of the filter and margin rates that were logged up to a step, each log weighing as many steps as it has."""
    sums: dict[str, float] = {}
    steps: dict[str, float] = {}
    before = 0.0
    for entry in log_history:
        if "loss" not in entry or not before < entry["step"] <= step:
            continue
        window, before = entry["step"] - before, entry["step"]
        for name in (name for name in entry if name.endswith(("_filter_rate", "_margin_rate"))):
            sums[name] = sums.get(name, 0.0) + window * entry[name]
            steps[name] = steps.get(name, 0.0) + window
    return {name: total / steps[name] for name, total in sums.items()}


@cache
def git_commit(package: Path) -> str | None:
    """The commit of the checkout that a package runs from, with `+changes` if files of it differ; `None` elsewhere."""
    if not (package.parent / ".git").exists():
        return None
    try:
        commit = _git(package, "rev-parse", "HEAD")
        return f"{commit}+changes" if _git(package, "status", "--porcelain", ".") else commit
    except (OSError, subprocess.CalledProcessError):  # no git, or it does not trust the folder
        return None


def _git(folder: Path, *command: str) -> str:
    return subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def _describe_teacher(pairs: CaptionPairs) -> dict[str, Any]:
    manifest = pairs.teacher.cache.manifest
    return {
        **{name: manifest["teacher"].get(name) for name in ("name", "revision", "digest")},
        "manifest": manifest["checksum"],
        "images": len(pairs.teacher.cache.images),
        "captions": len(pairs.teacher.cache.captions),
        "image_assignment": pairs.teacher.image_assignment,
    }
