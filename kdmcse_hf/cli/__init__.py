"""The `kdmcse` command: the tools around training, one module each. They import torch only when they run.

Installed as the package `kdmcse_cli`: below `kdmcse_hf`, even `--help` would import torch.
"""

import argparse
import sys
from collections.abc import Sequence

from . import audit, convert, embed, export, extract, import_features, import_json, verify

_COMMANDS = (extract, audit, embed, export, verify, import_features, import_json, convert)
_EXTRAS = {"PIL": "vision", "h5py": "import", "ijson": "import"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit status."""
    parser = argparse.ArgumentParser(prog="kdmcse", description="Tools around training multimodal sentence embeddings.")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in _COMMANDS:
        command.add_command(commands)
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: run the same command again to go on\n")
        return 130  # what a shell makes of SIGINT
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        sys.stderr.write(
            f"kdmcse {arguments.command}: error: the package {package} is missing: "
            f"pip install 'kdmcse_hf[{_EXTRAS[package]}]'\n"
        )
        return 1
    except (ValueError, OSError) as error:
        sys.stderr.write(f"kdmcse {arguments.command}: error: {error}\n")
        return 1
    return 0
