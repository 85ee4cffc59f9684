"""Speed and memory against the textbook step and against sentence-transformers, as a Markdown table.

python examples/benchmarks                                     # on the generated world
KDMCSE_DATA=/path/to/kit python examples/benchmarks            # on real sentences and captions
python examples/benchmarks --parts loss encode                 # some of it

Where there is a GPU, all but reading and start-up runs on it.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from arithmetic import BERT_BASE, counted_and_predicted, mean_tokens
from material import DEVICE, Material, prepare
from parts import Pair, efficiency, encoding, loss_contenders, loss_memory, spread, start_up, take_turns
from processes import in_a_process
from scale import gathering_in_two, reading_a_file, training_memory
from training import Contender, compare
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
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "no GPU"
    return (
        f"- commit {commit.strip() or 'unknown'}{' with changes' if dirty else ''}\n"
        f"- {cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {device}, torch {torch.__version__}\n"
        f"- {'data kit: real sentences and captions' if kit else 'the generated world'}; batch 64, length up to 32\n"
    )


TEXTBOOK, FP32, BF16 = Contender("textbook", "fp32"), Contender("ours", "fp32"), Contender("ours", "bf16")
SENTENCES = 300_000
COMPILED = tuple(Contender("ours", "bf16", mode) for mode in ("default", "reduce-overhead"))  # the latter: CUDA graphs


def _runs(
    material: Material, work: str, encoder: str, steps: int, contenders: Sequence[Contender], **settings: int
) -> None:
    runs = compare(material, contenders, work, encoder, steps, **settings)
    print("| contender | precision | sentences/s | times the first (quartiles of its steps) | peak memory |")
    print("|---|---|---|---|---|")
    for contender, run in zip(contenders, runs, strict=True):
        ratios = [a / b for a, b in zip(runs[0].steps, run.steps, strict=True)]
        print(
            f"| {contender} | {contender.precision} | {run.sentences_per_second:.1f} | "
            f"{runs[0].total / run.total:.2f} ({spread(ratios)}) | {run.peak_mb:,.0f} MB |"
        )
    print(flush=True)


def mixed(material: Material) -> None:
    """Whole run, text and paired batches, STS-B dev included: 3 layers x 384"""
    _runs(material, "mixed", "student", 14, [TEXTBOOK, FP32, BF16])


def base(material: Material) -> None:
    """The same with an encoder of BERT-base's size"""
    if DEVICE == "cpu":
        _runs(material, "mixed", "base", 3, [TEXTBOOK, FP32, BF16], warm_up=1, dev_pairs=48)
        return
    for batch in (64, 512):
        print(f"Batch {batch}; the second table is SimCSE.\n")
        _runs(material, "mixed", "base", 60, [TEXTBOOK, FP32, BF16, *COMPILED], batch=batch)
        _runs(material, "simcse", "base", 60, [Contender("sentence-transformers", "bf16"), BF16], batch=batch)


def simcse(material: Material) -> None:
    """SimCSE against sentence-transformers' MultipleNegativesRankingLoss"""
    _runs(material, "simcse", "student", 12, [Contender("sentence-transformers", "fp32"), FP32])
    _runs(material, "simcse", "student", 12, [Contender("sentence-transformers", "bf16"), BF16])


def guided(material: Material) -> None:
    """KDMCSE on captions against sentence-transformers' guided loss (its guide runs at every step)"""
    _runs(material, "guided", "student", 12, [Contender("sentence-transformers", "bf16"), BF16])


def loss(material: Material) -> None:
    """The loss of a paired batch, forward and backward, from embeddings"""
    print("| batch | textbook | ours | ratio (quartiles) | textbook's memory | ours |")
    print("|---|---|---|---|---|---|")
    for batch in (64, 512):
        theirs, ours = (in_a_process(loss_memory, name, batch) for name in ("textbook", "ours"))
        pair = Pair([theirs["seconds"]], [ours["seconds"]])
        if batch == 64:
            pair = take_turns(*loss_contenders(batch).values(), rounds=20)
        print(f"| {batch} | {pair} | {theirs['peak_mb']:,.0f} MB | {ours['peak_mb']:,.0f} MB |", flush=True)
    needed, ours = 4096**2 * 384 * 4 / 1e9, in_a_process(loss_memory, "ours", 4096)
    print(
        f"| 4096 | not run: one of its products takes {needed:.0f} GB | {ours['seconds']:.3g} s | | | "
        f"{ours['peak_mb']:,.0f} MB |"
    )


def encode(material: Material) -> None:
    """Embedding 600 sentences and captions: SentenceTransformer.encode and SentenceEncoder"""
    print("| precision | sentence-transformers | ours | ratio (quartiles) |\n|---|---|---|---|")
    for precision in ("fp32", "bf16"):
        print(f"| {precision} | {encoding(material, precision, 600, 4)} |", flush=True)


def matmul(material: Material) -> None:
    """Share of the matrix multiplication peak in forward and backward"""
    print("| encoder | precision | best share | median share |\n|---|---|---|---|")
    for name, precision, rounds in (("student", "fp32", 6), ("student", "bf16", 6), ("base", "fp32", 2)):
        shares = efficiency(material, name, precision, rounds)
        print(f"| {name} | {precision} | {max(shares):.2f} | {statistics.median(shares):.2f} |", flush=True)


def startup(material: Material) -> None:
    """Start-up, median of three processes"""
    seconds = {name: statistics.median(taken) for name, taken in start_up(3).items()}
    print("| what | seconds |\n|---|---|")
    print(f"| `kdmcse --help` | {seconds['help']:.2f} |")
    print(f"| importing transformers' AutoModel and PreTrainedModel | {seconds['transformers']:.2f} |")
    print(f"| `import kdmcse_hf` after it | +{seconds['kdmcse_hf']:.2f} |")


def memory(material: Material) -> None:
    """One KDMCSE step over pairs, bf16: peak memory of the process"""
    print("| batch | mini batch | seconds | peak memory |\n|---|---|---|---|")
    on_gpu = () if DEVICE == "cpu" else ((16_384, 512),)
    for batch, mini_batch in ((512, 0), (64, 64), (512, 64), (8192, 64), *on_gpu):
        step = in_a_process(training_memory, material, batch, mini_batch)
        print(f"| {batch} | {mini_batch or 'all'} | {step['seconds']:.1f} | {step['peak_mb']:,.0f} MB |", flush=True)


def reading(material: Material) -> None:
    """A large file: sentences to token ids, then the loader against forward and backward in bf16"""
    print("| sentences | tokenising | growth of memory | loader | encoder | ratio |\n|---|---|---|---|---|---|")
    figures = in_a_process(reading_a_file, material, SENTENCES)
    print(
        f"| {SENTENCES:,} | {figures['seconds']:.0f} s | {figures['growth_mb']:,.0f} MB | "
        f"{figures['loader']:,.0f} rows/s | {figures['encoder']:,.0f} rows/s | "
        f"{figures['loader'] / figures['encoder']:.0f} |"
    )


def gathering(material: Material) -> None:
    """Two processes, 64 pairs each: rows gathered with their gradients"""
    figures = gathering_in_two(material)
    print("| step | gathering | share | sent by each |\n|---|---|---|---|")
    print(
        f"| {figures['step']:.3f} s | {1000 * figures['gather']:.1f} ms | {figures['gather'] / figures['step']:.1%} | "
        f"{figures['sent_mb']:.2f} MB |"
    )


def scaling(material: Material) -> None:
    """On paper: BERT-base, a million sentences and COCO's 414,113 captions"""
    for encoder in ("student", "base"):
        counted, predicted = counted_and_predicted(material, encoder)
        print(f"FLOPs of a step of `{encoder}`, predicted over counted: {predicted / counted:.3f}  ")
    by_sentence, by_caption = mean_tokens(material)
    tokens = (by_sentence + by_caption) / 2
    print(f"Tokens of a sentence {by_sentence:.1f}, of a caption {by_caption:.1f}\n")
    print(
        "| devices | rows a device | steps an epoch | FLOPs a device | at 40 % of 989 TFLOP/s | epoch | "
        "rows/s to load, a device | gathered | gradients at 50 GB/s |\n|---|---|---|---|---|---|---|---|---|"
    )
    for devices, rows_each in ((1, 64), (8, 64), (32, 64), (32, 512)):
        rows = rows_each * devices
        steps = 1_000_000 // rows + 414_113 // rows
        flops = BERT_BASE.step_flops([round(tokens)] * 2 * rows_each)
        seconds = flops / (0.4 * 989e12)
        exchange = 2 * BERT_BASE.gradient_bytes / 50e9 if devices > 1 else 0.0
        print(
            f"| {devices} | {rows_each} | {steps:,} | {flops:.2e} | {1000 * seconds:.1f} ms | "
            f"{steps * seconds:.0f} s | {rows_each / seconds:,.0f} | {BERT_BASE.gathered_bytes(rows) / 1e6:.1f} MB | "
            f"{1000 * exchange:.1f} ms |"
        )


PARTS: dict[str, Callable[[Material], None]] = {
    part.__name__: part
    for part in (mixed, base, simcse, guided, loss, encode, matmul, startup, memory, reading, gathering, scaling)
}


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data_dir", type=Path, default=os.environ.get("KDMCSE_DATA") or None, help="the kit, or the world"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print(environment(args.data_dir))
    with tempfile.TemporaryDirectory() as folder:
        material = prepare(Path(folder) / "material", args.data_dir)
        for name in args.parts:
            print(f"\n### {PARTS[name].__doc__}\n", flush=True)
            start = time.perf_counter()
            PARTS[name](material)
            print(f"\nTook {time.perf_counter() - start:.0f} s.", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
