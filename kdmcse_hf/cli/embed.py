"""`kdmcse embed`."""

import argparse
import sys


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "embed",
        help="embed a file of sentences",
        description="Write the vector of each sentence of a file, of any length. The same command goes on where a "
        "killed one stopped; `accelerate launch -m kdmcse_cli embed ...` shares the work among processes and machines.",
    )
    parser.add_argument("file", help="sentences, one a line (.txt), or a table (.jsonl, .csv, .tsv, .parquet)")
    parser.add_argument("out", help="file to make: .npy, or with the sentences .parquet or .jsonl")
    parser.add_argument("--model", required=True, help="KDMCSE model, a release of one, or any encoder: folder or name")
    parser.add_argument("--revision", help="of the model on the Hub: branch, tag or commit")
    parser.add_argument("--column", default="sentence", help="of a table (default: %(default)s)")
    parser.add_argument("--normalize", action="store_true", help="scale each vector to length 1")
    parser.add_argument("--pooling", choices=("cls", "mean"), help="of an encoder that does not say (default: cls)")
    parser.add_argument("--max_length", type=int, help="tokens after which to cut (default: the model's own limit)")
    parser.add_argument("--bf16", action="store_true", help="compute in mixed precision")
    parser.add_argument("--batch_size", type=int, help="sentences a forward pass (default: as many as suit)")
    parser.add_argument("--device", help="cpu, cuda:1, ... (default: an accelerator for each process, or the CPU)")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from accelerate import PartialState
    from transformers.utils.logging import disable_progress_bar

    import kdmcse_hf  # noqa: F401  (registers KDMCSEModel with AutoModel)
    from kdmcse_hf.embedding import SentenceEncoder
    from kdmcse_hf.file_embedding import embed_file
    from kdmcse_hf.sentence_file import SentenceFile

    if arguments.revision and Path(arguments.model).exists():
        raise ValueError(f"{arguments.model} is a folder here: leave out --revision, of a model on the Hub.")
    disable_progress_bar()
    options = {
        name: getattr(arguments, name) for name in ("revision", "pooling", "max_length", "normalize", "batch_size")
    }
    rows, width = embed_file(
        SentenceFile(Path(arguments.file), arguments.column),
        arguments.out,
        lambda device: SentenceEncoder.from_pretrained(arguments.model, device=device, **options),
        name=arguments.model,
        bf16=arguments.bf16,
        device=arguments.device,
    )
    if PartialState().is_main_process:
        sys.stdout.write(f"{arguments.out}: {rows:,} vectors of width {width}\n")
