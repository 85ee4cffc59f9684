"""Processes that end with the study, however that ends: nobody else would know that they still write.

    python -m studies.child SCRIPT ARGUMENT...

Standard input has to be a pipe that the study holds open.
"""

import os
import runpy
import sys
import threading
from collections.abc import Mapping

from studies import EXAMPLES


def child_environment(share: Mapping[str, str]) -> dict[str, str]:
    """That of a child with its share of the machine."""
    path = os.pathsep.join(filter(None, (str(EXAMPLES), os.environ.get("PYTHONPATH"))))
    return {**os.environ, **share, "PYTHONPATH": path, "TQDM_DISABLE": "1"}


def end_with_the_study() -> None:
    """Ends this process when its standard input does, which is when the one that started it is gone."""

    def wait() -> None:
        os.read(0, 1)  # not by sys.stdin, whose lock would keep this process from ending by itself
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    end_with_the_study()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
