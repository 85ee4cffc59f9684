"""Score an encoder on the seven STS sets by mteb: its own data from the Hub, raw text (needs `kdmcse_hf[mteb]`).

    python examples/evaluate_mteb.py --model_name_or_path runs/kdmcse --output_json mteb.json
    python examples/evaluate_mteb.py --model_name_or_path bert-base-uncased --pooling cls --tasks STS16 SICK-R

The papers' figures are of SentEval's text, for which there is `evaluate_sts.py`: do not compare the one with the other.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

try:
    from kdmcse_hf.mteb_sts import MTEB_TASKS, evaluate_mteb_sts
except ModuleNotFoundError as error:
    sys.exit(
        f"evaluate_mteb.py needs Python 3.11 or later and mteb: {error.name} is missing. pip install 'kdmcse_hf[mteb]'"
    )

from kdmcse_hf.checkpoint import check_recordable, save_mteb_results
from kdmcse_hf.embedding import SentenceEncoder


def main(argv: Sequence[str]) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="a KDMCSE model, a release, or any encoder")
    parser.add_argument("--output_json", type=Path, help="where to write {task: score, ..., avg: score}")
    parser.add_argument("--record", action="store_true", help="keep the scores in the model's folder, for its card")
    parser.add_argument("--tasks", nargs="+", default=MTEB_TASKS, choices=MTEB_TASKS)
    parser.add_argument("--pooling", choices=["cls", "mean"], help="of an encoder that does not say (default: cls)")
    parser.add_argument("--batch_size", type=int, help="sentences a forward pass (default: as many as suit)")
    parser.add_argument("--max_seq_length", type=int, help="where to cut (default: the model's own limit)")
    parser.add_argument("--device", help="cpu, cuda:1, ... (default: an accelerator, or the CPU)")
    args = parser.parse_args(argv)
    if args.output_json and not args.output_json.parent.is_dir():
        parser.exit(2, f"{parser.prog}: the folder of --output_json does not exist: {args.output_json.parent}\n")
    if args.record:
        try:
            check_recordable(args.model_name_or_path)
        except ValueError as error:
            parser.exit(2, f"{parser.prog}: --record: {error}\n")

    encoder = SentenceEncoder.from_pretrained(
        args.model_name_or_path,
        device=args.device,
        pooling=args.pooling,
        batch_size=args.batch_size,
        max_length=args.max_seq_length,
    )
    print(f"{args.model_name_or_path}: sentence vector by {encoder.pooling} pooling")
    try:
        results = evaluate_mteb_sts(encoder, args.tasks)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    scores: dict[str, float] = results["scores"]
    print("  ".join(f"{task} {score:.2f}" for task, score in scores.items()))
    if args.output_json:
        args.output_json.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    if args.record:
        protocol = {
            "split": "test",
            "code and data": f"mteb {version('mteb')}, raw text",
            "sentence vector": f"{encoder.pooling} pooling, float32",
            "cut after": f"{encoder.max_length} tokens",
        }
        results |= {"protocol": protocol, "max_length": encoder.max_length}
        save_mteb_results(args.model_name_or_path, results)
    return scores


if __name__ == "__main__":
    main(sys.argv[1:])
