"""The world on disk: text, pictures with captions, sentence pairs and the truth, in the formats real data comes in."""

import csv
import random
from pathlib import Path

from kdmcse_hf.world.captions import caption
from kdmcse_hf.world.drawing import draw
from kdmcse_hf.world.scenes import sample_scene
from kdmcse_hf.world.sentences import sentence
from kdmcse_hf.world.sts import sentence_pairs, write_pairs
from kdmcse_hf.world.truth import load_truth, write_truth

__all__ = ["load_truth", "write_world"]

STS_FOLDER = Path("sts", "STS", "STSBenchmark")


def _stream(name: str, seed: int) -> random.Random:
    # One stream per part, so that more of one part changes nothing else. The teacher's streams have other names.
    return random.Random(f"kdmcse_hf.world/{seed}/{name}")


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"`{name}` has to be at least 1, got {value}.")


def _image_folder(folder: Path, names: list[str]) -> Path:
    """Make the image folder, refusing one with pictures that would not be overwritten."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    stale = {path.name for path in images.iterdir()} - set(names)
    if stale:
        raise FileExistsError(
            f"`{images}` holds {len(stale)} file(s) that are not of this world, such as {min(stale)!r}: "
            "choose an empty folder."
        )
    return images


def write_world(
    folder: str | Path,
    *,
    num_images: int = 4000,
    captions_per_image: int = 5,
    num_sentences: int = 20000,
    num_sts_pairs: int = 1000,
    image_size: int = 64,
    seed: int = 0,
) -> None:
    """Write a world into `folder`: the same bytes for the same arguments.

    | file | content |
    |---|---|
    | `sentences.txt` | plain text, a sentence a line, about scenes without pictures |
    | `images/*.png` | one drawing per scene |
    | `captions.csv` | `image,caption`; the captions of an image stand together, images in order |
    | `sts/STS/STSBenchmark/sts-dev.csv`, `sts-test.csv` | sentence pairs on scenes without pictures, scores 0 to 5 |
    | `truth.json` | what every image shows and every caption means, see [`load_truth`] |

    Args:
        folder (`str` or `Path`): where to; made if missing.
        num_images (`int`, *optional*, defaults to 4000): number of pictures.
        captions_per_image (`int`, *optional*, defaults to 5): captions of each.
        num_sentences (`int`, *optional*, defaults to 20000): lines of plain text.
        num_sts_pairs (`int`, *optional*, defaults to 1000): sentence pairs in each of the two STS files.
        image_size (`int`, *optional*, defaults to 64): side of the pictures in pixels.
        seed (`int`, *optional*, defaults to 0): seed of everything.
    """
    _check_sizes(
        num_images=num_images,
        captions_per_image=captions_per_image,
        num_sentences=num_sentences,
        num_sts_pairs=num_sts_pairs,
    )
    folder = Path(folder)
    width = max(5, len(str(num_images - 1)))
    names = [f"{row:0{width}d}.png" for row in range(num_images)]
    images = _image_folder(folder, names)

    rng = _stream("scenes", seed)
    scenes = [sample_scene(rng) for _ in names]
    rng = _stream("drawings", seed)
    for name, scene in zip(names, scenes, strict=True):
        draw(scene, rng, image_size).save(images / name, compress_level=6)

    rng = _stream("captions", seed)
    stated = [(row, *caption(scene, rng)) for row, scene in enumerate(scenes) for _ in range(captions_per_image)]
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("image", "caption"))
        writer.writerows((names[row], text) for row, text, _ in stated)
    write_truth(folder, scenes, ((meaning, row) for row, _, meaning in stated))

    pictured = frozenset(scenes)
    rng = _stream("sentences", seed)
    lines = [sentence(rng, pictured) for _ in range(num_sentences)]
    (folder / "sentences.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")

    sts = folder / STS_FOLDER
    sts.mkdir(parents=True, exist_ok=True)
    for split in ("dev", "test"):
        pairs = sentence_pairs(_stream(f"sts-{split}", seed), num_sts_pairs, pictured)
        write_pairs(sts / f"sts-{split}.csv", pairs)
