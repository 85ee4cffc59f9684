"""Single parts of the work, each against its textbook form or its peer: loss, embedding, efficiency, start-up.

Contenders take turns within one process, or run in processes of their own where memory is measured.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from material import DEVICE, MAX_LENGTH, Material, forget_peak, peak_mb, synchronize

WIDTH, PROJECTION = 384, 256


@dataclass(frozen=True)
class Pair:
    """Seconds of two contenders, turn by turn."""

    theirs: list[float]
    ours: list[float]

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.theirs, self.ours, strict=True)]

    def __str__(self) -> str:
        theirs, ours = statistics.mean(self.theirs), statistics.mean(self.ours)
        return f"{theirs:.4g} s | {ours:.4g} s | {theirs / ours:.2f} ({spread(self.ratios)})"


def spread(values: Sequence[float]) -> str:
    """The quartiles of single turns; of fewer than five, the least and the greatest."""
    if len(values) == 1:
        return "1 turn"
    if len(values) < 5:
        return f"{min(values):.2f} to {max(values):.2f}, {len(values)} turns"
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{low:.2f} to {high:.2f}"


def take_turns(theirs: Callable[[], Any], ours: Callable[[], Any], rounds: int) -> Pair:
    """Seconds of each call; both are called once before the clock starts."""
    seconds: dict[Callable[[], Any], list[float]] = {theirs: [], ours: []}
    for number in range(rounds + 1):
        for contender in (theirs, ours):
            start = time.perf_counter()
            contender()
            synchronize()
            if number:
                seconds[contender].append(time.perf_counter() - start)
    return Pair(seconds[theirs], seconds[ours])


def loss_contenders(batch: int) -> dict[str, Callable[[], Any]]:
    """Forward and backward through the loss of a paired batch, from embeddings: the textbook's and ours."""
    import textbook

    from kdmcse_hf.objective import PairEmbeddings, compute_objective
    from kdmcse_hf.presets import PRESETS

    torch.manual_seed(0)
    learned = {
        "text": torch.randn(batch, 2, WIDTH, requires_grad=True, device=DEVICE),
        "grounded": torch.randn(batch, 2, PROJECTION, requires_grad=True, device=DEVICE),
        "image": torch.randn(batch, PROJECTION, requires_grad=True, device=DEVICE),
        "caption": torch.randn(batch, PROJECTION, requires_grad=True, device=DEVICE),
    }
    teacher = {name: torch.randn(batch, PROJECTION, device=DEVICE) for name in ("teacher_image", "teacher_text")}
    objective = PRESETS["kdmcse_reference"]

    def theirs() -> torch.Tensor:
        text, grounded = learned["text"], learned["grounded"]
        loss = textbook.text_loss(text[:, 0], text[:, 1], margin=True)
        loss = loss + textbook.WEIGHT * textbook.grounding_loss(grounded, learned["image"], teacher["teacher_image"])
        loss = loss + textbook.WEIGHT * textbook.grounding_loss(grounded, learned["caption"], teacher["teacher_text"])
        torch.autograd.grad(loss, list(learned.values()))
        return loss.detach()

    def ours() -> torch.Tensor:
        loss = compute_objective(objective, PairEmbeddings(**learned, **teacher)).loss
        torch.autograd.grad(loss, list(learned.values()))
        return loss.detach()

    return {"textbook": theirs, "ours": ours}


def encoding(material: Material, precision: str, sentences: int, rounds: int) -> Pair:
    """`SentenceTransformer.encode` against [`SentenceEncoder`], mean pooling, on sentences and captions at random."""
    import random

    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoTokenizer

    from kdmcse_hf import SentenceEncoder

    texts = material.sentences[: sentences // 2] + material.captions[: sentences // 2]
    random.Random(0).shuffle(texts)
    folder = material.encoder("student")
    theirs = SentenceTransformer(folder, device=DEVICE)
    theirs.max_seq_length = 128
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).to(DEVICE)
    ours = SentenceEncoder(model, AutoTokenizer.from_pretrained(folder), pooling="mean", max_length=128)

    def autocast(function: Callable[[list[str]], Any]) -> Callable[[], Any]:
        def call() -> Any:
            with torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16"):
                return function(texts)

        return call

    difference = abs(theirs.encode(texts[:64]) - ours(texts[:64])).max()
    if difference > 1e-4:
        raise RuntimeError(f"The two encoders differ by {difference}: there is nothing to compare.")
    return take_turns(autocast(lambda t: theirs.encode(t, show_progress_bar=False)), autocast(ours), rounds)


def efficiency(material: Material, encoder: str, precision: str, rounds: int) -> list[float]:
    """Share of the matrix multiplication peak that each forward and backward reaches.

    All take the same batch. Counted are the multiplications that are carried out; the peak is the best of square
    matrices over all rounds.
    """
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModel, AutoTokenizer

    from kdmcse_hf.dropout import speed_up_dropout
    from kdmcse_hf.packing import pack_rows

    model = AutoModel.from_pretrained(material.encoder(encoder), dtype=torch.float32, add_pooling_layer=False)
    pack_rows(model)
    speed_up_dropout(model)
    model.train().to(DEVICE)
    tokenizer = AutoTokenizer.from_pretrained(material.encoder(encoder))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    size = 1024 if DEVICE == "cpu" else 8192
    left, right = (torch.randn(size, size, dtype=dtype, device=DEVICE) for _ in range(2))

    texts = [text for text in material.sentences[:64] for _ in range(2)]
    batch = tokenizer(texts, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt").to(DEVICE)

    def step() -> None:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16"):
            hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        hidden[:, 0].float().pow(2).sum().backward()
        model.zero_grad()

    with FlopCounterMode(display=False) as counter:
        step()
    taken, peak = [], 0.0
    for _ in range(rounds):
        spent = 0.0
        while spent < 0.3:
            start = time.perf_counter()
            left @ right
            synchronize()
            product = time.perf_counter() - start
            spent += product
            peak = max(peak, 2 * size**3 / product)
        start = time.perf_counter()
        step()
        synchronize()
        taken.append(time.perf_counter() - start)
    return [counter.get_total_flops() / seconds / peak for seconds in taken]


def start_up(rounds: int) -> dict[str, list[float]]:
    """Seconds of fresh processes: the whole of `kdmcse --help`; of another, two imports, one after the other."""
    seconds: dict[str, list[float]] = {"help": [], "transformers": [], "kdmcse_hf": []}
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "kdmcse_cli", "--help"], check=True, capture_output=True)
        seconds["help"].append(time.perf_counter() - start)
        done = subprocess.run([sys.executable, "-c", _IMPORTS], check=True, capture_output=True, text=True)
        for name, taken in zip(("transformers", "kdmcse_hf"), done.stdout.split(), strict=True):
            seconds[name].append(float(taken))
    return seconds


_IMPORTS = """
from time import perf_counter
start = perf_counter()
from transformers import AutoModel, PreTrainedModel
between = perf_counter()
import kdmcse_hf
print(between - start, perf_counter() - between)
"""


def loss_memory(contender: str, batch: int) -> dict[str, float]:
    """One loss: growth of the peak of this process's memory in MB, and seconds."""
    call = loss_contenders(batch)[contender]
    loss_contenders(8)[contender]()
    forget_peak()
    before, start = peak_mb(), time.perf_counter()
    call()
    synchronize()
    return {"peak_mb": peak_mb() - before, "seconds": time.perf_counter() - start}
