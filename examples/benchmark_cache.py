"""Memory and time of a large teacher cache: open it, and draw 100 batches, against loading its features whole.

    python examples/benchmark_cache.py
    python examples/benchmark_cache.py --captions 10000000 --width 16 --rows_per_shard 4096    # opening ten million

Each contender runs in a process of its own, on the same cache and the same rows; what it prints is the growth of that
process's resident memory.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from safetensors.numpy import load_file

from kdmcse_hf.teacher.cache import TeacherCache
from kdmcse_hf.teacher.cache_writer import ROWS_PER_SHARD, write_cache
from kdmcse_hf.teacher.pairs import TeacherPairs

BATCHES, BATCH = 100, 64


def write(folder: Path, captions: int, width: int, rows_per_shard: int) -> None:
    rng = np.random.default_rng(0)

    def rows(count: int) -> Iterator[np.ndarray[Any, Any]]:
        for start in range(0, count, 10_000):
            yield rng.standard_normal((min(10_000, count - start), width), dtype=np.float32).astype(np.float16)

    images = captions // 5
    write_cache(
        folder,
        images=[f"{row:08d}.jpg" for row in range(images)],
        captions=[f"caption number {row} of a picture with something in it" for row in range(captions)],
        image_rows=[row // 5 for row in range(captions)],
        image_features=rows(images),
        caption_features=rows(captions),
        teacher={"name": "random"},
        source={},
        rows_per_shard=rows_per_shard,
    )


def open_only(folder: Path, order: np.ndarray[Any, Any]) -> tuple[int, Any]:
    return 0, TeacherCache(folder)


def draw_from_cache(folder: Path, order: np.ndarray[Any, Any]) -> tuple[int, Any]:
    """Bytes of the rows drawn, and what has to stay open to draw more."""
    pairs = TeacherPairs(TeacherCache(folder))
    touched = 0
    for batch in order:
        features = pairs.features(batch, frozenset({"image", "text"}))
        touched += features["teacher_image_embeds"].nbytes + features["teacher_text_embeds"].nbytes
    return touched, pairs


def draw_from_memory(folder: Path, order: np.ndarray[Any, Any]) -> tuple[int, Any]:
    image_rows = np.array(TeacherCache(folder).captions["image_row"][:])
    images, captions = (
        np.concatenate([load_file(path)["features"] for path in sorted(folder.glob(f"{kind}_features-*"))])
        for kind in ("image", "caption")
    )
    touched = sum(images[image_rows[batch]].nbytes + captions[batch].nbytes for batch in order)
    return touched, (images, captions)


def measure(draw: Callable[[Path, Any], tuple[int, Any]], folder: Path, order: Any, results: Any) -> None:
    process = psutil.Process()
    before, start = process.memory_info().rss, time.perf_counter()
    touched, _held = draw(folder, order)
    results.put((process.memory_info().rss - before, touched, time.perf_counter() - start))


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=150_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rows_per_shard", type=int, default=ROWS_PER_SHARD)
    args = parser.parse_args(argv)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kdmcse_hf.teacher.pairs"])  # imported once for all
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "cache"
        write(folder, args.captions, args.width, args.rows_per_shard)
        order = np.random.default_rng(1).choice(args.captions, size=(BATCHES, BATCH), replace=False)
        growth = {}
        contenders = {
            "opening": open_only,
            "teacher cache": draw_from_cache,
            "features in memory": draw_from_memory,
        }
        for name, draw in contenders.items():
            results: Any = context.Queue()
            child = context.Process(target=measure, args=(draw, folder, order, results))
            child.start()
            grown, touched, seconds = results.get()
            child.join()
            growth[name] = grown
            print(
                f"{name:20} resident memory +{grown / 1e6:7.1f} MB, rows touched {touched / 1e6:6.1f} MB, "
                f"difference {(grown - touched) / 1e6:7.1f} MB, {seconds:.2f} s"
            )
    print(f"{args.captions:,} captions x {args.width} float16, {BATCHES} batches of {BATCH}")
    print(f"ratio {growth['features in memory'] / growth['teacher cache']:.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
