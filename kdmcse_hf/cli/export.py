"""`kdmcse export`."""

import argparse
import sys


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "export",
        help="make a release of a training checkpoint, which every client opens",
        description="Write a folder that plain transformers, sentence-transformers, mteb and this package open alike: "
        "the plain encoder, and below it the training checkpoint. Optimizer state, training arguments and the places "
        "where things were made stay out. The folder is whole or not there, and nothing but a release is replaced.",
    )
    parser.add_argument("checkpoint", help="a folder that the Trainer saved")
    parser.add_argument("out", help="the folder to make")
    parser.add_argument(
        "--max_length", type=int, help="tokens after which clients cut (default: as the checkpoint, 128 or fewer)"
    )
    parser.add_argument("--name", default="FOLDER_OR_HUB_NAME", help="by which the card's examples load it: user/name")
    parser.add_argument("--replace_card", action="store_true", help="replace a README.md that was edited by hand, too")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from transformers.utils.logging import disable_progress_bar

    from kdmcse_hf.export import export_release
    from kdmcse_hf.release import CARD

    disable_progress_bar()
    options = {name: getattr(arguments, name) for name in ("max_length", "name", "replace_card")}
    out = export_release(arguments.checkpoint, arguments.out, **options)
    sys.stdout.write(
        f"{out}: opens in transformers and kdmcse_hf with the vectors of the checkpoint. Complete {CARD}, and see "
        f"`kdmcse verify {arguments.out}`.\n"
    )
