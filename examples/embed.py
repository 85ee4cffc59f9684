"""Embed a file of sentences, one a line, into a `.npy` file of shape (lines, hidden size), float32.

python examples/embed.py --model_name_or_path runs/kdmcse --input_file sentences.txt --output_file vectors.npy
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel

import kdmcse_hf  # noqa: F401  (registers KDMCSEModel with AutoModel)
from kdmcse_hf.data import read_sentences
from kdmcse_hf.embedding import SentenceEncoder
from kdmcse_hf.tokenizer import load_tokenizer


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="a KDMCSE model or any AutoModel encoder")
    parser.add_argument("--input_file", required=True, help="sentences, one a line, none empty")
    parser.add_argument("--output_file", type=Path, required=True, help="the .npy file to write")
    parser.add_argument("--pooling", choices=["cls", "mean"], help="for plain encoders (default: cls, as the papers)")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    if args.output_file and not args.output_file.parent.is_dir():
        parser.exit(2, f"{parser.prog}: the folder of --output_file does not exist: {args.output_file.parent}\n")
    if args.output_file.suffix != ".npy":
        parser.exit(2, f"{parser.prog}: --output_file is {str(args.output_file)!r}: expected a name ending in .npy.\n")

    model = AutoModel.from_pretrained(args.model_name_or_path, dtype=torch.float32).to(args.device)
    encoder = SentenceEncoder(
        model,
        load_tokenizer(args.model_name_or_path),
        pooling=args.pooling or getattr(model.config, "pooling", "cls"),
        batch_size=args.batch_size,
        max_length=args.max_seq_length,
        progress=True,
    )
    vectors = encoder(read_sentences(args.input_file)["text"][:])
    np.save(args.output_file, vectors)
    print(f"{args.output_file}: {vectors.shape[0]:,} vectors of width {vectors.shape[1]}, {encoder.pooling} pooling")


if __name__ == "__main__":
    main(sys.argv[1:])
