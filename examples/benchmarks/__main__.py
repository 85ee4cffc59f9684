"""Speed and memory against the textbook step and against sentence-transformers, as a Markdown table.

python examples/benchmarks                                     # on the generated world
KDMCSE_DATA=/path/to/kit python examples/benchmarks            # on real sentences and captions
python examples/benchmarks --parts loss encoding               # some of it
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from material import Material, prepare
from parts import (
    efficiency,
    encoding,
    in_a_process,
    loss_contenders,
    loss_memory,
    start_up,
    take_turns,
    training_memory,
)
from training import compare
from transformers import logging


def environment(kit: Path | None) -> str:
    """Commit, hardware, versions and data, on one line each."""
    root = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True).stdout
    dirty = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True).stdout
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    return (
        f"- commit {commit.strip() or 'unknown'}{' with changes' if dirty else ''}\n"
        f"- {cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
        f"- {'data kit: real sentences and captions' if kit else 'the generated world'}; batch 64, length up to 32\n"
    )


def _runs(material: Material, work: str, encoder: str, steps: int, contenders: Sequence[tuple[str, str]]) -> None:
    runs = compare(material, contenders, work, encoder, steps)
    print("| contender | precision | sentences/s | times the first (quartiles of its steps) | peak memory |")
    print("|---|---|---|---|---|")
    for (name, precision), run in zip(contenders, runs, strict=True):
        ratios = [a / b for a, b in zip(runs[0].steps, run.steps, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        print(
            f"| {name} | {precision} | {run.sentences_per_second:.1f} | "
            f"{runs[0].total / run.total:.2f} ({low:.2f} to {high:.2f}) | {run.peak_mb:,.0f} MB |",
            flush=True,
        )


def mixed(material: Material) -> None:
    """Whole run, text and paired batches, STS-B dev included: 3 layers x 384"""
    _runs(material, "mixed", "student", 26, [("textbook", "fp32"), ("ours", "fp32"), ("ours", "bf16")])


def base(material: Material) -> None:
    """The same with an encoder of BERT-base's size"""
    _runs(material, "mixed", "base", 6, [("textbook", "fp32"), ("ours", "fp32"), ("ours", "bf16")])


def simcse(material: Material) -> None:
    """SimCSE against sentence-transformers' MultipleNegativesRankingLoss"""
    for precision in ("fp32", "bf16"):
        _runs(material, "simcse", "student", 16, [("sentence-transformers", precision), ("ours", precision)])
        print()


def guided(material: Material) -> None:
    """KDMCSE on captions against sentence-transformers' guided loss (its guide runs at every step)"""
    _runs(material, "guided", "student", 16, [("sentence-transformers", "bf16"), ("ours", "bf16")])


def loss(material: Material) -> None:
    """The loss of a paired batch, forward and backward, from embeddings"""
    print("| batch | textbook | ours | ratio (quartiles) | textbook's memory | ours |")
    print("|---|---|---|---|---|---|")
    for batch, rounds in ((64, 40), (512, 6)):
        contenders = loss_contenders(batch)
        pair = take_turns(contenders["textbook"], contenders["ours"], rounds)
        theirs, ours = (in_a_process(loss_memory, name, batch) for name in contenders)
        print(f"| {batch} | {pair} | {theirs:,.0f} MB | {ours:,.0f} MB |", flush=True)
    contenders = loss_contenders(4096)
    pair = take_turns(lambda: None, contenders["ours"], 2)
    needed = 4096**2 * 384 * 4 / 1e9
    ours = in_a_process(loss_memory, "ours", 4096)
    print(
        f"| 4096 | not run: one of its products takes {needed:.0f} GB | {statistics.median(pair.ours):.3g} s | | | "
        f"{ours:,.0f} MB |"
    )


def encode(material: Material) -> None:
    """Embedding 1,000 sentences and captions: SentenceTransformer.encode and SentenceEncoder"""
    print("| precision | sentence-transformers | ours | ratio (quartiles) |\n|---|---|---|---|")
    for precision in ("fp32", "bf16"):
        print(f"| {precision} | {encoding(material, precision, 1000, 5)} |", flush=True)


def matmul(material: Material) -> None:
    """Share of the matrix multiplication peak in forward and backward"""
    print("| encoder | precision | share (quartiles) |\n|---|---|---|")
    for name, precision, rounds in (("student", "fp32", 8), ("student", "bf16", 8), ("base", "fp32", 2)):
        low, middle, high = statistics.quantiles(efficiency(material, name, precision, rounds), n=4)
        print(f"| {name} | {precision} | {middle:.2f} ({low:.2f} to {high:.2f}) |", flush=True)


def startup(material: Material) -> None:
    """Start-up of a process, median of five"""
    seconds = {name: statistics.median(taken) for name, taken in start_up(5).items()}
    print("| what | seconds |\n|---|---|")
    print(f"| `kdmcse --help` | {seconds['help']:.2f} |")
    print(f"| transformers' AutoModel and PreTrainedModel | {seconds['transformers']:.2f} |")
    print(f"| the same and `import kdmcse_hf` | +{seconds['kdmcse_hf'] - seconds['transformers']:.2f} |")


def memory(material: Material) -> None:
    """One KDMCSE step over pairs, bf16: peak memory of the process"""
    print("| batch | mini batch | seconds | peak memory |\n|---|---|---|---|")
    for batch, mini_batch in ((64, 0), (512, 0), (64, 64), (512, 64), (2048, 64)):
        step = in_a_process(training_memory, material, batch, mini_batch)
        print(f"| {batch} | {mini_batch or 'all'} | {step['seconds']:.1f} | {step['peak_mb']:,.0f} MB |", flush=True)


PARTS: dict[str, Callable[[Material], None]] = {
    part.__name__: part for part in (mixed, base, simcse, guided, loss, encode, matmul, startup, memory)
}


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=os.environ.get("KDMCSE_DATA"), help="the kit; else the world")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print(environment(args.data_dir))
    with tempfile.TemporaryDirectory() as folder:
        material = prepare(Path(folder) / "material", args.data_dir)
        for name in args.parts:
            print(f"\n### {PARTS[name].__doc__}\n", flush=True)
            PARTS[name](material)


if __name__ == "__main__":
    main(sys.argv[1:])
