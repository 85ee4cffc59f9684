"""Whole training runs, side by side: every contender in a process of its own, taking turns step by step.

On a machine whose speed changes from second to second, runs one after the other cannot be compared; steps that take
turns can. A turn is what lies between the ends of two steps, reading included. The last turn scores pairs of STS-B dev:
it counts at the rate of 1,500 pairs every 125 steps, and tokenising beforehand at its rate a row. Starting up and the
first steps are left out.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from material import DEVICE, KDMCSE, MAX_LENGTH, Material, peak_mb, synchronize
from processes import Process
from transformers import TrainerCallback, logging, set_seed

PAIRS_A_STEP = 1500 / 125
RATE = 3e-5


@dataclass(frozen=True)
class Contender:
    """Who trains, and how.

    Attributes:
        name: one of [`CONTENDERS`].
        precision: `"fp32"` or `"bf16"`.
        compile: a mode of `torch.compile`, or nothing.
    """

    name: str
    precision: str
    compile: str = ""

    def __str__(self) -> str:
        return f"{self.name}, compiled ({self.compile})" if self.compile else self.name


@dataclass(frozen=True)
class Work:
    """What a contender does.

    Attributes:
        kind: `"mixed"` (text and pairs), `"simcse"` (text) or `"guided"` (captions).
        encoder: `"student"` or `"base"`.
        steps: all of them.
        warm_up: how many of them are not counted.
        dev_pairs: how many are scored in the end.
    """

    kind: str
    encoder: str
    steps: int
    warm_up: int
    batch: int
    dev_pairs: int
    contender: Contender


class Turns(TrainerCallback):
    """Hands the turn back after each step and waits for the next; on the other side is [`compare`]."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.start = time.perf_counter()

    def hand_back(self, **figures: float) -> None:
        synchronize()
        self.connection.send({"seconds": time.perf_counter() - self.start, **figures})
        self.connection.recv()
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.hand_back()

    def finish(self, tokenising: float = 0.0) -> None:
        """After the last turn. `tokenising`: what it takes, in seconds a step."""
        self.hand_back(peak_mb=peak_mb(), tokenising=tokenising)


def textbook(material: Material, args: Work, connection: Connection) -> None:
    from textbook import Collator, Model, score

    from kdmcse_hf.teacher.cache import TeacherCache
    from kdmcse_hf.teacher.pairs import TeacherPairs

    mixed = args.kind == "mixed"
    collate = Collator(material.encoder(args.encoder), MAX_LENGTH)
    sentences, captions, dev = material.sentences, material.captions, material.dev(args.dev_pairs)
    cache = TeacherCache(material.folder / "cache")
    features = TeacherPairs(cache)
    widths = (cache.image_features.width, cache.caption_features.width) if mixed else (None, None)
    model = Model(material.encoder(args.encoder), *widths).train().to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=args.steps)
    turns = Turns(connection)
    for step in range(args.steps):
        rows = range(step * args.batch, (step + 1) * args.batch)
        if mixed and step % 2 == 0:
            batch = collate([captions[row] for row in rows])
            teacher = features.features(list(rows), frozenset({"image", "text"}))
            batch["image"] = torch.from_numpy(teacher["teacher_image_embeds"]).float()
            batch["caption"] = torch.from_numpy(teacher["teacher_text_embeds"]).float()
        else:
            batch = collate([sentences[row] for row in rows])
        batch = {name: tensor.to(DEVICE) for name, tensor in batch.items()}
        with torch.autocast(DEVICE, torch.bfloat16, enabled=args.contender.precision == "bf16"):
            loss = model.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        turns.hand_back()
    score(model, collate, dev)
    turns.finish()


def ours(material: Material, args: Work, connection: Connection) -> None:
    import datasets

    from kdmcse_hf import PRESETS, KDMCSEModel, KDMCSETrainer, KDMCSETrainingArguments, TeacherCache, TeacherPairs
    from kdmcse_hf.data import CaptionPairs, TrainingData, tokenize
    from kdmcse_hf.tokenizer import load_tokenizer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    mixed, captions_only = args.kind == "mixed", args.kind == "guided"
    objective = PRESETS["kdmcse_reference"] if mixed else KDMCSE if captions_only else PRESETS["simcse"]
    tokenizer = load_tokenizer(material.encoder(args.encoder))
    cache = TeacherCache(material.folder / "cache")
    text = pairs = None
    start = time.perf_counter()
    if not captions_only:
        text = tokenize(datasets.Dataset.from_dict({"text": material.sentences}), "text", tokenizer, MAX_LENGTH)
    if mixed or captions_only:
        pairs = CaptionPairs(TeacherPairs(cache), tokenizer, max_length=MAX_LENGTH)
    # Of all rows there are; what is trained on are no more than the other contenders have.
    tokenising = (time.perf_counter() - start) / len(material.sentences) * args.batch / (1 + mixed)
    rows = args.steps * args.batch // (1 + mixed)
    if text is not None:
        text = text.select(range(min(rows, len(text))))
    if pairs is not None:
        pairs = CaptionPairs(TeacherPairs(cache, max_pairs=rows), tokenizer, max_length=MAX_LENGTH)
    grounded = pairs is not None
    model = KDMCSEModel.from_encoder(
        material.encoder(args.encoder),
        image_embed_dim=cache.image_features.width if grounded else None,
        caption_embed_dim=cache.caption_features.width if grounded else None,
    )
    turns = Turns(connection)
    with tempfile.TemporaryDirectory() as folder:
        trainer = KDMCSETrainer(
            model,
            KDMCSETrainingArguments(
                folder,
                max_steps=args.steps,
                per_device_train_batch_size=args.batch,
                pair_every_n_steps=2 if mixed else None,
                learning_rate=RATE,
                bf16=args.contender.precision == "bf16",
                eval_strategy="steps",
                eval_steps=args.steps,
                logging_steps=125,
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=DEVICE == "cpu",
                **_compile(args),
            ),
            objective,
            train_dataset=TrainingData(text, pairs, objective.needs),
            eval_dataset=material.dev(args.dev_pairs),
            processing_class=tokenizer,
            callbacks=[turns],
        )
        trainer.train()
    turns.finish(tokenising)


def sentence_transformers(material: Material, args: Work, connection: Connection) -> None:
    import datasets
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
    from sentence_transformers.sentence_transformer.losses import GISTEmbedLoss, MultipleNegativesRankingLoss

    def load() -> Any:
        model = SentenceTransformer(material.encoder(args.encoder), device=DEVICE)
        model.max_seq_length = MAX_LENGTH
        return model

    model = load()
    texts = (material.captions if args.kind == "guided" else material.sentences)[: args.steps * args.batch]
    if args.kind == "guided":
        loss = GISTEmbedLoss(model, guide=load(), temperature=0.05)
    else:
        loss = MultipleNegativesRankingLoss(model, scale=20)
    dev = material.dev(args.dev_pairs)
    turns = Turns(connection)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SentenceTransformerTrainer(
            model,
            SentenceTransformerTrainingArguments(
                folder,
                max_steps=args.steps,
                per_device_train_batch_size=args.batch,
                learning_rate=RATE,
                bf16=args.contender.precision == "bf16",
                eval_strategy="steps",
                eval_steps=args.steps,
                logging_steps=125,
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=DEVICE == "cpu",
                **_compile(args),
            ),
            train_dataset=datasets.Dataset.from_dict({"anchor": texts, "positive": texts}),
            loss=loss,
            evaluator=EmbeddingSimilarityEvaluator(dev.first, dev.second, dev.scores, batch_size=64),
            callbacks=[turns],
        )
        trainer.train()
    turns.finish()


CONTENDERS: dict[str, Callable[[Material, Work, Connection], None]] = {
    "textbook": textbook,
    "sentence-transformers": sentence_transformers,
    "ours": ours,
}


def _compile(args: Work) -> dict[str, Any]:
    mode = args.contender.compile
    return {"torch_compile": True, "torch_compile_mode": mode} if mode else {}


@dataclass(frozen=True)
class Run:
    """What one contender took: seconds of the counted steps, those with their share of the rest, and peak memory."""

    batch: int
    steps: list[float]
    total: float
    peak_mb: float

    @property
    def sentences_per_second(self) -> float:
        return len(self.steps) * self.batch / self.total


def compare(
    material: Material,
    contenders: Sequence[Contender],
    work: str,
    encoder: str,
    steps: int,
    *,
    warm_up: int = 2,
    batch: int = 64,
    dev_pairs: int = 600,
) -> list[Run]:
    """Runs contenders side by side.

    Raises:
        RuntimeError: a contender failed; ends with what it said.
    """
    children = []
    try:
        for contender in contenders:
            children.append(
                Process(contend, material.folder, Work(work, encoder, steps, warm_up, batch, dev_pairs, contender))
            )
            children[-1].receive()  # its first step, so that no two start up at once
        turns: list[list[dict[str, float]]] = [[] for _ in contenders]
        for _ in range(steps):
            for taken, child in zip(turns, children, strict=True):
                child.send("your turn")
                taken.append(child.receive())
    finally:
        for child in children:
            child.end()
    runs = []
    for taken in turns:
        counted, last = [turn["seconds"] for turn in taken[warm_up - 1 : -1]], taken[-1]
        beside = last["tokenising"] + last["seconds"] * PAIRS_A_STEP / dev_pairs
        runs.append(Run(batch, counted, sum(counted) + len(counted) * beside, last["peak_mb"]))
    return runs


def contend(connection: Connection, folder: Path, work: Work) -> None:
    """One contender, in its process."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    set_seed(0)
    CONTENDERS[work.contender.name](Material(folder), work, connection)
