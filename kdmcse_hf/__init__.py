"""Multimodal sentence embeddings: SimCSE, MCSE and KDMCSE on transformers' own model and Trainer classes."""

import importlib
from typing import Any

from transformers import AutoConfig, AutoModel

from kdmcse_hf.configuration_kdmcse import KDMCSEConfig
from kdmcse_hf.modeling_kdmcse import KDMCSEModel, KDMCSEOutput

__version__ = "0.1.0"

# What training and scoring need is imported on first use: embedding users do not pay for it.
_LAZY = {
    "KDMCSETrainer": "trainer",
    "KDMCSETrainingArguments": "training_args",
    "Objective": "objective",
    "PRESETS": "presets",
    "SentenceEncoder": "embedding",
    "TeacherCache": "teacher.cache",
    "TeacherPairs": "teacher.pairs",
    "audit_pairs": "audit.report",
    "compare_spearman": "significance",
    "evaluate_retrieval": "retrieval",
    "evaluate_sts": "sts",
    "evaluate_transfer": "transfer",
    "export_release": "export",
    "spearman_intervals": "significance",
    "sts_cosines": "sts",
    "verify_release": "verification",
}

__all__ = [
    "KDMCSEConfig",
    "KDMCSEModel",
    "KDMCSEOutput",
    "KDMCSETrainer",
    "KDMCSETrainingArguments",
    "Objective",
    "PRESETS",
    "SentenceEncoder",
    "TeacherCache",
    "TeacherPairs",
    "audit_pairs",
    "compare_spearman",
    "evaluate_retrieval",
    "evaluate_sts",
    "evaluate_transfer",
    "export_release",
    "spearman_intervals",
    "sts_cosines",
    "verify_release",
]

AutoConfig.register(KDMCSEConfig.model_type, KDMCSEConfig)
AutoModel.register(KDMCSEConfig, KDMCSEModel)
# Training checkpoints carry their two source files, for those who load them without this package.
KDMCSEConfig.register_for_auto_class()
KDMCSEModel.register_for_auto_class("AutoModel")


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return __all__
