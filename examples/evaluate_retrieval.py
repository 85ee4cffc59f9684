"""Retrieve pictures by captions, captions by pictures, and captions by other captions of the same picture.

    python examples/evaluate_retrieval.py --model_name_or_path runs/kdmcse --teacher_cache cache/flickr-test \
        --output_json retrieval.json

The cache holds held-out pictures, extracted with the teacher of the training cache (`kdmcse extract --split test`). A
model without a grounding head is scored on captions alone.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from kdmcse_hf.embedding import SentenceEncoder
from kdmcse_hf.retrieval import evaluate_retrieval
from kdmcse_hf.teacher.cache import TeacherCache


def main(argv: Sequence[str]) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="a KDMCSE model, a release, or any encoder")
    parser.add_argument("--teacher_cache", required=True, help="cache of held-out pictures and captions")
    parser.add_argument("--output_json", type=Path, help="where to write {direction: {r@1: ..., ...}, ...}")
    parser.add_argument("--pooling", choices=["cls", "mean"], help="of an encoder that does not say (default: cls)")
    parser.add_argument("--batch_size", type=int, help="sentences a forward pass (default: as many as suit)")
    parser.add_argument("--device", help="cpu, cuda:1, ... (default: an accelerator, or the CPU)")
    args = parser.parse_args(argv)
    if args.output_json and not args.output_json.parent.is_dir():
        parser.exit(2, f"{parser.prog}: the folder of --output_json does not exist: {args.output_json.parent}\n")

    cache = TeacherCache(args.teacher_cache)
    encoder = SentenceEncoder.from_pretrained(
        args.model_name_or_path,
        device=args.device,
        pooling=args.pooling,
        batch_size=args.batch_size,
    )
    print(f"{args.model_name_or_path}: sentence vector by {encoder.pooling} pooling")
    scores = evaluate_retrieval(encoder, cache)
    for direction, found in scores.items():
        print(f"{direction}: " + "  ".join(f"{name} {value:g}" for name, value in found.items()))
    if args.output_json:
        args.output_json.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    return scores


if __name__ == "__main__":
    main(sys.argv[1:])
