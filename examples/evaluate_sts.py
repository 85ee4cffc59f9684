"""Score an encoder on the seven STS sets (SentEval's layout and "all" Spearman x 100).

    python examples/evaluate_sts.py --model_name_or_path runs/kdmcse --sts_dir SentEval/data/downstream \
        --output_json scores.json
    python examples/evaluate_sts.py --model_name_or_path bert-base-uncased --pooling cls --intervals --sts_dir ...
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from kdmcse_hf.checkpoint import check_recordable, save_sts_results
from kdmcse_hf.embedding import SentenceEncoder
from kdmcse_hf.significance import spearman_intervals
from kdmcse_hf.sts import TASKS, evaluate_sts, load_sts, sts_cosines, sts_pair_numbers


def main(argv: Sequence[str]) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="a KDMCSE model, a release, or any encoder")
    parser.add_argument("--sts_dir", required=True, help="folder with STS/ and SICK/ in SentEval's layout")
    parser.add_argument("--output_json", type=Path, help="where to write {task: score, ..., avg: score}")
    parser.add_argument("--intervals", action="store_true", help="print 95 %% bootstrap intervals, too")
    parser.add_argument("--record", action="store_true", help="keep the scores in the model's folder, for its card")
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
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
        progress=True,
    )
    print(f"{args.model_name_or_path}: sentence vector by {encoder.pooling} pooling")
    if args.intervals:
        cosines = sts_cosines(encoder, args.sts_dir, args.tasks)
        intervals = spearman_intervals(cosines, pairs=sts_pair_numbers(args.sts_dir, args.tasks))
        scores = {task: interval.value for task, interval in intervals.items()}
        print("  ".join(f"{task} {i.value:.2f} [{i.low:.2f}, {i.high:.2f}]" for task, i in intervals.items()))
    else:
        scores = evaluate_sts(encoder, args.sts_dir, args.tasks)
        print("  ".join(f"{task} {score:.2f}" for task, score in scores.items()))
    if args.output_json:
        args.output_json.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    if args.record:
        pairs = {task: load_sts(args.sts_dir, task) for task in args.tasks}
        years = [pairs[task] for task in args.tasks if task.startswith("STS1")]
        capitals = any(sentence != sentence.lower() for year in years for sentence in year.first)
        protocol = {
            "split": "test",
            "aggregation": "all (one correlation over all pairs of a task)",
            "text": f"the files', as it is{', with capitals, which SentEval has not there' if capitals else ''}",
            "sentence vector": f"{encoder.pooling} pooling, float32",
            "cut after": f"{encoder.max_length} tokens",
        }
        results = {"scores": scores, "pairs": {task: len(pairs[task]) for task in args.tasks}, "protocol": protocol}
        save_sts_results(args.model_name_or_path, {**results, "max_length": encoder.max_length})
    return scores


if __name__ == "__main__":
    main(sys.argv[1:])
