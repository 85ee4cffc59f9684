"""Golden vectors: what ten fixed sentences gave when a release was made, to compare every client with."""

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kdmcse_hf.modeling_kdmcse import KDMCSEModel

FORMAT = "kdmcse_hf golden vectors"
COMPUTED = (
    "all sentences in one batch, in this order, padded to the longest and cut at max_length tokens; "
    "float32 weights on the CPU, no dropout; not normalised"
)
# Longest first, as clients sort them. Another sentence, longer than any model reads, goes before them.
_SENTENCES = (
    "Although the forecast had promised rain for the whole afternoon, the children carried their kites up the hill "
    "and flew them until the first lamps were lit in the village below.",
    "Two mechanics who had never met before repaired the old tram together, one bolt at a time, for a small museum.",
    "Nobody at the station could say why the 7:45 train to the coast had been cancelled.",
    "Ünusual text: café (e\u0301), “quotes”, ﬁ, 5 µm ≠ 5 mm, zero\u200bwidth, Привет, 東京, 🚲.",
    "A grey cat is asleep on the warm bonnet of a parked car.",
    "Her answer was short, polite and completely wrong.",
    "The baker sold out of bread before nine.",
    "Water boils sooner on mountains.",
    "Snow.",
)
# Shares of the largest value. float32 sums are rounded in another order by other machines, versions and thread counts,
# and, rarely, by the same ones.
_TOLERANCE_HERE, _TOLERANCE_ELSEWHERE = 1e-5, 1e-4


@dataclass(frozen=True)
class Golden:
    """Sentences, their tokens and their vectors, and how they were made."""

    sentences: tuple[str, ...]
    input_ids: Tensor
    """(10, L)"""
    vectors: Tensor
    """(10, H) float32."""
    pooling: str
    max_length: int
    dtype: str
    """Of the released weights; the vectors are computed from their float32 values."""
    made_by: dict[str, str]
    """Versions, and the kind of machine."""

    @property
    def tolerance(self) -> float:
        """How far from these vectors others may be: 1e-5 of the largest value where versions and machine are the same,
        else 1e-4."""
        share = _TOLERANCE_HERE if self.made_by == here() else _TOLERANCE_ELSEWHERE
        return share * self.vectors.abs().max().item()

    def save(self, path: Path) -> None:
        """Writes a safetensors file."""
        fields = {name: value for name, value in asdict(self).items() if not isinstance(value, Tensor)}
        # One key only: safetensors writes several in an order that changes from run to run.
        metadata = {FORMAT: json.dumps({"computed": COMPUTED, **fields}, ensure_ascii=False)}
        save_file({"input_ids": self.input_ids, "vectors": self.vectors}, path, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Golden":
        """Reads what [`Golden.save`] wrote.

        Raises:
            ValueError: the file is something else, or damaged.
        """
        try:
            with safe_open(path, "pt") as file:
                fields: dict[str, Any] = json.loads((file.metadata() or {})[FORMAT])
                del fields["computed"]
                fields["sentences"] = tuple(fields["sentences"])
                tensors = {name: file.get_tensor(name) for name in ("input_ids", "vectors")}
            return cls(**tensors, **fields)
        except (SafetensorError, ValueError, TypeError, KeyError, OSError) as error:
            raise ValueError(f"{path} cannot be read as golden vectors ({type(error).__name__}: {error}).") from error


def golden_sentences(tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[str, ...]:
    """Ten sentences: one that has to be cut, one of odd characters, and plain ones of different lengths."""
    text = " ".join(_SENTENCES)
    longest = text
    while len(tokenizer(longest, verbose=False)["input_ids"]) <= max_length:
        longest = f"{longest} {text}"
    return longest, *_SENTENCES


@torch.inference_mode()
def make_golden(model: KDMCSEModel, tokenizer: PreTrainedTokenizerBase, *, max_length: int, dtype: str) -> Golden:
    """The golden vectors of a model in float32; how they are computed is `COMPUTED`."""
    sentences = golden_sentences(tokenizer, max_length)
    batch = tokenizer(list(sentences), padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    return Golden(
        sentences=sentences,
        input_ids=batch["input_ids"],
        vectors=model.eval()(**batch).pooler_output.contiguous(),
        pooling=model.config.pooling,
        max_length=max_length,
        dtype=dtype,
        made_by=here(),
    )


def here() -> dict[str, str]:
    """What the last bits of a vector hang on: versions, and the kind of machine."""
    return {
        **{module.__name__: str(module.__version__) for module in (torch, transformers, tokenizers)},
        "machine": platform.machine(),
        "cpu": f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
    }


def cpu_name() -> str:
    """The processor's own name, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
