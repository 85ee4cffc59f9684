"""What large runs rest on: reading a million sentences, rows gathered from other processes, GradCache's memory.

Each function runs in a process of its own, `gathering` in two.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from material import DEVICE, KDMCSE, MAX_LENGTH, Material, forget_peak, peak_mb

from kdmcse_hf import KDMCSEModel, KDMCSETrainer, KDMCSETrainingArguments, TeacherCache, TeacherPairs
from kdmcse_hf.data import CaptionPairs, TrainingData, read_sentences, tokenize
from kdmcse_hf.distributed import gather_rows
from kdmcse_hf.tokenizer import load_tokenizer


def _trainer(material: Material, folder: str, text: Any = None, **settings: Any) -> KDMCSETrainer:
    """A KDMCSE run over pairs, and over `text` where there is some, in bf16."""
    objective = KDMCSE
    cache = TeacherCache(material.folder / "cache")
    tokenizer = load_tokenizer(material.encoder("student"))
    pairs = CaptionPairs(TeacherPairs(cache), tokenizer, max_length=MAX_LENGTH)
    model = KDMCSEModel.from_encoder(
        material.encoder("student"),
        image_embed_dim=cache.image_features.width,
        caption_embed_dim=cache.caption_features.width,
    )
    arguments = {"save_strategy": "no", "disable_tqdm": True, "use_cpu": DEVICE == "cpu", "bf16": True, "max_steps": 1}
    return KDMCSETrainer(
        model,
        KDMCSETrainingArguments(folder, **arguments | settings),
        objective,
        train_dataset=TrainingData(text, pairs, objective.needs),
        processing_class=tokenizer,
    )


def _forward_backward(trainer: KDMCSETrainer, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> None:
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(model, batch)
    trainer.accelerator.backward(loss)


def training_memory(material: Material, batch: int, mini_batch: int) -> dict[str, float]:
    """One step over pairs: seconds, and peak of the process's memory in MB."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(material, folder, per_device_train_batch_size=batch, mini_batch_size=mini_batch or None)
        start = time.perf_counter()
        trainer.train()
    return {"seconds": time.perf_counter() - start, "peak_mb": peak_mb()}


def reading_a_file(material: Material, sentences: int) -> dict[str, float]:
    """From a file of so many sentences to batches: what it takes in seconds and memory, and what the encoder needs.

    Returns:
        `seconds` that opening and tokenising the file takes, and `growth_mb` of this process's memory; `loader` and
        `encoder`, rows a second that the one gives and the other takes (forward and backward, no optimizer), measured
        in turns, text and pairs alternating.
    """
    import datasets

    datasets.disable_progress_bars()
    some = material.sentences
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder)
        file = Path(folder) / "sentences.txt"
        with file.open("w", encoding="utf-8") as out:
            out.writelines(f"{number} {some[number % len(some)]}\n" for number in range(sentences))
        tokenizer = load_tokenizer(material.encoder("student"))
        tokenizer(some[:100])
        forget_peak()
        before, start = peak_mb(), time.perf_counter()
        text = tokenize(read_sentences(file), "text", tokenizer, MAX_LENGTH)
        seconds, growth = time.perf_counter() - start, peak_mb() - before
        trainer = _trainer(material, folder, text, per_device_train_batch_size=64, pair_every_n_steps=2, max_steps=500)
        batches = iter(trainer.get_train_dataloader())
        model = trainer._wrap_model(trainer.model)
        loaded, embedded = [], []
        for number in range(10):
            start = time.perf_counter()
            taken = list(itertools.islice(batches, 20))
            loaded.append(time.perf_counter() - start)
            start = time.perf_counter()
            for batch in taken[:2]:
                _forward_backward(trainer, model, batch)
            embedded.append(time.perf_counter() - start)
            model.zero_grad()
            if not number:  # warm by now
                loaded.clear()
                embedded.clear()
    return {
        "seconds": seconds,
        "growth_mb": growth,
        "loader": 20 * 64 / statistics.median(loaded),
        "encoder": 2 * 64 / statistics.median(embedded),
    }


def gathering(material: Material) -> dict[str, float]:
    """On each of several processes: seconds of a step over 64 pairs, and of gathering its rows and their gradients."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(material, folder, per_device_train_batch_size=64, max_steps=100, ddp_backend="gloo")
        model = trainer.accelerator.prepare(trainer.model)
        trainer.model_wrapped = model
        batches: Iterator[Any] = iter(trainer.get_train_dataloader())
        # As the objective gathers them: a view of the text, two projections; the teacher's features need no gradient.
        widths = {"text": 384, "image": 256, "caption": 256, "teacher_image": 256, "teacher_text": 256}
        rows = {name: torch.randn(64, width) for name, width in widths.items()}
        steps, gathers = [], []
        for _ in range(8):
            start = time.perf_counter()
            _forward_backward(trainer, model, next(batches))
            steps.append(time.perf_counter() - start)
            model.zero_grad()
            start = time.perf_counter()
            learned = [rows[name].requires_grad_() for name in ("text", "image", "caption")]
            gathered = [gather_rows(features) for features in learned]
            for name in ("teacher_image", "teacher_text"):
                gather_rows(rows[name])
            sum(features.sum() for features in gathered).backward()
            gathers.append(time.perf_counter() - start)
        torch.distributed.destroy_process_group()
    return {
        "step": statistics.median(steps[2:]),
        "gather": statistics.median(gathers[2:]),
        "sent_mb": sum(features.numel() * 4 for features in rows.values()) / 1e6,
    }


def gathering_in_two(material: Material) -> dict[str, float]:
    """[`gathering`] as the first of two processes sees it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    hidden = {"CUDA_VISIBLE_DEVICES": ""}  # a single GPU cannot hold two ranks
    command.append(str(material.folder))
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **hidden})
    if done.returncode:
        raise RuntimeError(f"Two processes failed:\n{done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    found = gathering(Material(Path(sys.argv[1])))
    if os.environ["RANK"] == "0":
        print(json.dumps(found))
