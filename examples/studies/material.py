"""What a study's runs read and a data kit holds in another form: unpacked text, teacher caches.

A step of `prepare` names what it makes and how: a file, or a teacher cache. It is taken where a run, its evaluations or
a later such step name what it makes. What exists already is left alone; a cache without its manifest was left half
made, and is made again.

    - {make: "${WORK}/sentences.txt", unpack: "${KDMCSE_DATA}/sentences.txt.xz"}
    - {make: "${WORK}/cache", teacher_name: clip, captions_file: ..., image_features_file: ...}
    - {make: "${WORK}/clean", command: "train_teacher.py --output_dir ${WORK}/teacher ..."}
    - {make: "${WORK}/captions.npy", command: "kdmcse embed captions.csv ${WORK}/captions.npy ..."}

The second takes the arguments of [`import_features`], as `kdmcse import-features` does; a command is a script of
`examples/`, or `kdmcse`, with its arguments.
"""

import lzma
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdmcse_hf.teacher.cache import MANIFEST
from studies import EXAMPLES
from studies.grid import expand


def prepare(steps: Sequence[Mapping[str, str]], places: Mapping[str, str]) -> None:
    """Makes what is missing; waits while another study makes it in the same `${WORK}`.

    Raises:
        ValueError: a step that names nothing to make, one that failed, or an input that cannot be used.
    """
    import fcntl

    work = Path(places["WORK"])
    work.mkdir(parents=True, exist_ok=True)
    with (work / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _prepare(steps, places, lock.fileno())


def _prepare(steps: Sequence[Mapping[str, str]], places: Mapping[str, str], lock: int) -> None:
    for step in steps:
        known = {key: expand(str(value), places) for key, value in step.items() if key != "command"}
        if "make" not in step or len(step) < 2:
            raise ValueError(f"A step of `prepare` is {dict(step)}: expected `make` and what to make it from.")
        target = Path(known.pop("make"))
        if target.is_file() or (target / MANIFEST).is_file():
            continue
        print(f"making {target}", flush=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        if "unpack" in known:
            temporary = target.with_name(f"{target.name}.tmp")
            with lzma.open(known["unpack"]) as packed, temporary.open("wb") as file:
                shutil.copyfileobj(packed, file)
            temporary.replace(target)
        elif "command" in step:
            script, *arguments = (expand(part, places) for part in step["command"].split())
            program = ["-m", "kdmcse_cli"] if script == "kdmcse" else [str(EXAMPLES / script)]
            # It holds the lock as well: if this process is killed, nobody begins it a second time beside it.
            ended = subprocess.run([sys.executable, *program, *arguments], pass_fds=[lock])
            if ended.returncode:
                raise ValueError(f"Making {target} failed: {script} ended with status {ended.returncode}; see above.")
        else:
            from kdmcse_hf.teacher.feature_import import import_features

            shutil.rmtree(target, ignore_errors=True)
            import_features(target, **known)
