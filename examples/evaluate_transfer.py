"""Score frozen embeddings on SentEval's transfer tasks by logistic regression (needs `kdmcse_hf[eval]`).

    python examples/evaluate_transfer.py --model_name_or_path runs/kdmcse --transfer_dir SentEval/data/downstream \
        --output_json transfer.json
    python examples/evaluate_transfer.py --model_name_or_path bert-base-uncased --pooling cls --tasks CR TREC ...
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from kdmcse_hf.embedding import SentenceEncoder
from kdmcse_hf.transfer import TASKS, evaluate_transfer


def main(argv: Sequence[str]) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="a KDMCSE model, a release, or any encoder")
    parser.add_argument("--transfer_dir", required=True, help="folder with MR/, CR/, ... in SentEval's layout")
    parser.add_argument("--output_json", type=Path, help="where to write {task: accuracy, ..., avg: accuracy}")
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument(
        "--folds", type=int, default=10, help="of cross-validation (default: %(default)s, as published)"
    )
    parser.add_argument("--pooling", choices=["cls", "mean"], help="of an encoder that does not say (default: cls)")
    parser.add_argument("--batch_size", type=int, help="sentences a forward pass (default: as many as suit)")
    parser.add_argument("--device", help="cpu, cuda:1, ... (default: an accelerator, or the CPU)")
    args = parser.parse_args(argv)
    if args.output_json and not args.output_json.parent.is_dir():
        parser.exit(2, f"{parser.prog}: the folder of --output_json does not exist: {args.output_json.parent}\n")

    encoder = SentenceEncoder.from_pretrained(
        args.model_name_or_path,
        device=args.device,
        pooling=args.pooling,
        batch_size=args.batch_size,
    )
    print(f"{args.model_name_or_path}: sentence vector by {encoder.pooling} pooling")
    scores = evaluate_transfer(encoder, args.transfer_dir, args.tasks, folds=args.folds)
    print("  ".join(f"{task} {score:.2f}" for task, score in scores.items()))
    if args.output_json:
        args.output_json.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    return scores


if __name__ == "__main__":
    main(sys.argv[1:])
