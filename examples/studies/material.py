"""What a study's runs read and a data kit holds in another form: unpacked text, teacher caches.

A step of `prepare` names what it makes and how; what exists already is left alone.

    - {make: "${WORK}/sentences.txt", unpack: "${KDMCSE_DATA}/sentences.txt.xz"}
    - {make: "${WORK}/cache", teacher_name: clip, captions_file: ..., image_features_file: ...}
    - {make: "${WORK}/clean", command: "train_teacher.py --output_dir ${WORK}/teacher ..."}

The second takes the arguments of [`import_features`], as `kdmcse import-features` does; the third is a script of
`examples/` with its arguments.
"""

import lzma
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from studies.grid import expand

EXAMPLES = Path(__file__).parents[1]


def prepare(steps: Sequence[Mapping[str, str]], places: Mapping[str, str]) -> None:
    """Makes what is missing.

    Raises:
        ValueError: a step that names nothing to make, or an input that cannot be used.
    """
    for step in steps:
        known = {key: expand(str(value), places) for key, value in step.items()}
        if "make" not in known or len(known) < 2:
            raise ValueError(f"A step of `prepare` is {dict(step)}: expected `make` and what to make it from.")
        target = Path(known.pop("make"))
        if target.exists():
            continue
        print(f"making {target}", flush=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        if "unpack" in known:
            temporary = target.with_name(f"{target.name}.tmp")
            with lzma.open(known["unpack"]) as packed, temporary.open("wb") as file:
                shutil.copyfileobj(packed, file)
            temporary.replace(target)
        elif "command" in known:
            script, *arguments = known["command"].split()
            subprocess.run([sys.executable, str(EXAMPLES / script), *arguments], check=True)
        else:
            from kdmcse_hf.teacher.feature_import import import_features

            import_features(target, **known)
