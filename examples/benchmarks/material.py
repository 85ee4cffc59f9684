"""What all contenders work on: real sentences and captions where a data kit is given, the generated world's if not."""

import csv
import dataclasses
import itertools
import lzma
import random
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoTokenizer

from kdmcse_hf import PRESETS
from kdmcse_hf.sts import SentencePairs, load_sts
from kdmcse_hf.teacher.cache_writer import write_cache
from kdmcse_hf.world import write_student, write_world

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MAX_LENGTH = 32
TEACHER_WIDTH = 256
# A share to filter, whatever the features are like: those of the world are random, and no cosine is high.
KDMCSE = dataclasses.replace(PRESETS["kdmcse"], image_threshold="rate:0.005", caption_threshold="rate:0.005")


@dataclass(frozen=True)
class Material:
    """A folder with `sentences.txt`, `captions.csv`, `cache/`, `sts/` and the encoders `student/` and `base/`."""

    folder: Path

    @property
    def sentences(self) -> list[str]:
        return (self.folder / "sentences.txt").read_text(encoding="utf-8").splitlines()

    @property
    def captions(self) -> list[str]:
        with (self.folder / "captions.csv").open(encoding="utf-8", newline="") as file:
            return [row["caption"] for row in csv.DictReader(file)]

    def dev(self, pairs: int) -> SentencePairs:
        """So many pairs of STS-B dev."""
        whole = load_sts(self.folder / "sts", "STSB", "dev")
        return SentencePairs(whole.first[:pairs], whole.second[:pairs], whole.scores[:pairs])

    def encoder(self, name: str) -> str:
        return str(self.folder / name)


def synchronize() -> None:
    """Waits for a GPU, so that a clock that is read now counts what was started before."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def peak_mb() -> float:
    """The most memory that this process has held, in MB; on a GPU, of the GPU's."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if not status.exists():  # not Linux
        return float("nan")
    return int(re.search(r"VmHWM:\s+(\d+)", status.read_text()).group(1)) / 1024


def forget_peak() -> None:
    """Has [`peak_mb`] begin anew, from what the process holds now."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def prepare(folder: Path, kit: Path | None, rows: int = 10_000 if DEVICE == "cpu" else 40_000) -> Material:
    """Writes the material, of `rows` sentences and as many captions. What is there already is left alone."""
    if (folder / "base").exists():
        return Material(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if kit is None:
        write_world(folder, num_images=rows // 5, num_sentences=rows)
        with (folder / "captions.csv").open(encoding="utf-8", newline="") as file:
            captioned = list(csv.DictReader(file))
        tokenizer_folder = folder / "world_student"
        write_student(tokenizer_folder)
        student = AutoModel.from_config(_bert(AutoTokenizer.from_pretrained(tokenizer_folder), 3, 384, 12))
    else:
        with lzma.open(kit / "wiki" / "sentences_500k.txt.xz", "rt", encoding="utf-8") as file:
            (folder / "sentences.txt").write_text("".join(itertools.islice(file, rows)), encoding="utf-8")
        with (kit / "flickr8k" / "captions.csv").open(encoding="utf-8", newline="") as file:
            captioned = list(csv.DictReader(file))
        random.Random(0).shuffle(captioned)
        captioned = captioned[:rows]
        with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ("image", "caption"))
            writer.writeheader()
            writer.writerows(captioned)
        (folder / "sts").symlink_to((kit / "sts").resolve())
        tokenizer_folder = kit / "student"
        student = AutoModel.from_pretrained(tokenizer_folder, dtype=torch.float32, add_pooling_layer=False)
    _write_cache(folder / "cache", captioned, kit)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    base = AutoModel.from_config(_bert(tokenizer, 12, 768, 12), add_pooling_layer=False)
    for name, model in (("student", student), ("base", base)):
        tokenizer.save_pretrained(folder / name)
        model.save_pretrained(folder / name)
    return Material(folder)


def _bert(tokenizer: object, layers: int, width: int, heads: int) -> object:
    return AutoConfig.for_model(
        "bert",
        vocab_size=len(tokenizer),
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
    )


def _write_cache(folder: Path, captioned: list[dict[str, str]], kit: Path | None) -> None:
    """The kit's dual-encoder features; for the world random ones, for only time and memory are measured."""
    names = list(dict.fromkeys(row["image"] for row in captioned))
    if kit is None:
        images, captions = torch.randn(len(names), TEACHER_WIDTH), torch.randn(len(captioned), TEACHER_WIDTH)
    else:
        features = load_file(kit / "teacher" / "dual_encoder_256.safetensors")
        known = (kit / "teacher" / "image_names.txt").read_text(encoding="utf-8").split()
        with (kit / "flickr8k" / "captions.csv").open(encoding="utf-8", newline="") as file:
            row_of = {(row["image"], row["caption"]): number for number, row in enumerate(csv.DictReader(file))}
        number_of = {name: number for number, name in enumerate(known)}
        images = features["image_features"][[number_of[name] for name in names]]
        captions = features["caption_features"][[row_of[row["image"], row["caption"]] for row in captioned]]
    row_of_image = {name: number for number, name in enumerate(names)}
    write_cache(
        folder,
        images=names,
        captions=[row["caption"] for row in captioned],
        image_rows=[row_of_image[row["image"]] for row in captioned],
        image_features=[images.half().numpy()],
        caption_features=[captions.half().numpy()],
        teacher={"name": "benchmark"},
        source={},
    )
