"""`kdmcse convert`."""

import argparse
import sys


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "convert",
        help="make a checkpoint from one of the published SimCSE, MCSE or KDMCSE code",
        description="Make a KDMCSE checkpoint, heads included, from one that the published code of SimCSE, MCSE or "
        "KDMCSE wrote, before or after its own conversion script, and say what became of each tensor.",
    )
    parser.add_argument("source", help="folder or Hub name: config.json, tokenizer, pytorch_model.bin and mcse.pt")
    parser.add_argument("folder", help="checkpoint to make")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub name")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from kdmcse_hf.conversion import convert_checkpoint

    report = convert_checkpoint(arguments.source, arguments.folder, revision=arguments.revision)
    sys.stdout.write("\n".join([*report.lines(), f"{arguments.folder}: a KDMCSE checkpoint"]) + "\n")
