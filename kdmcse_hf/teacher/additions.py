"""What captioned pictures add to a cache that has some of them already."""

from collections import Counter
from dataclasses import dataclass

from kdmcse_hf.teacher.cache import TeacherCache
from kdmcse_hf.teacher.captioned_pictures import CaptionedPictures
from kdmcse_hf.teacher.shard import CacheError


@dataclass
class Additions:
    """The rows of a cache, and those to be put behind them.

    Attributes:
        names, stamps, captions, image_rows: of the cache; captions of a picture that could not be read, and now can,
            refer to its new row.
        new: the pictures and captions that the cache lacks; its `image_rows` refer to old and new rows.
    """

    names: list[str]
    stamps: list[str | None]
    captions: list[str]
    image_rows: list[int]
    new: CaptionedPictures


def additions(cache: TeacherCache, captioned: CaptionedPictures) -> Additions:
    """Compares by name and stamp, captions by their picture and text.

    Raises:
        CacheError: a picture of the cache has another stamp now.
    """
    names, captions, image_rows = cache.images["image"][:], cache.captions["caption"][:], cache.captions["image_row"][:]
    stamps: list[str | None] = cache.images["stamp"][:]
    skipped = set(cache.skipped_images.tolist())
    row_of = {name: row for row, name in enumerate(names) if row not in skipped}
    stamp_of = dict(zip(captioned.names, captioned.stamps, strict=True))
    changed = [name for name, row in row_of.items() if stamp_of.get(name, stamps[row]) != stamps[row]]
    if changed:
        raise CacheError(
            f"{cache.folder} has features of {len(changed):,} pictures that have changed since, such as {changed[0]!r} "
            f"(was {stamps[row_of[changed[0]]]!r}, is {stamp_of[changed[0]]!r}). Give new pictures new names, or "
            "extract into another folder."
        )
    unread = {names[row]: stamps[row] for row in sorted(skipped)}
    new_images = [
        row
        for row, name in enumerate(captioned.names)
        if name not in row_of and (name not in unread or captioned.stamps[row] not in (None, unread[name]))
    ]
    row_of |= {captioned.names[row]: len(names) + place for place, row in enumerate(new_images)}
    row_of = {name: row for row, name in enumerate(names) if row in skipped} | row_of
    image_rows = [row_of[names[row]] for row in image_rows]

    known = Counter((names_row, caption) for names_row, caption in zip(image_rows, captions, strict=True))
    new_captions = []
    for row, caption in enumerate(captioned.captions):
        key = (row_of[captioned.names[captioned.image_rows[row]]], caption)
        known[key] -= 1
        if known[key] < 0:
            new_captions.append(row)
    new = CaptionedPictures(
        names=[captioned.names[row] for row in new_images],
        captions=[captioned.captions[row] for row in new_captions],
        image_rows=[row_of[captioned.names[captioned.image_rows[row]]] for row in new_captions],
        pictures=captioned.pictures,
        source=captioned.source,
        stamps=[captioned.stamps[row] for row in new_images],
        image_problems=_renumbered(captioned.image_problems, new_images),
        caption_problems=_renumbered(captioned.caption_problems, new_captions),
    )
    return Additions(names, stamps, captions, image_rows, new)


def _renumbered(problems: dict[int, str], kept: list[int]) -> dict[int, str]:
    return {new: problems[old] for new, old in enumerate(kept) if old in problems}
