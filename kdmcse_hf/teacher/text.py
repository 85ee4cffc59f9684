"""Text files that have to be UTF-8, and text that has to be valid Unicode."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming_bad_bytes(path: Path) -> Iterator[None]:
    """Turns a UnicodeDecodeError while `path` is read into a ValueError that names the file and the line."""
    try:
        yield
    except UnicodeDecodeError as error:
        # The error's own position counts from wherever the reader's buffer began.
        lines = path.read_bytes().split(b"\n")
        number = next(n for n, line in enumerate(lines, start=1) if line.decode("utf-8", "ignore").encode() != line)
        raise ValueError(
            f"{path}, line {number}: not UTF-8 ({error.reason}: {error.object[error.start : error.end]!r}). Convert "
            "the file, for instance with iconv."
        ) from error


def read_lines(path: str | Path) -> list[str]:
    """The lines of a UTF-8 file without their ends.

    Raises:
        ValueError: not UTF-8.
    """
    with naming_bad_bytes(Path(path)):
        return Path(path).read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")


def unicode_problem(text: str) -> str | None:
    """What keeps a text from being written or tokenized: JSON can escape half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"not valid Unicode ({ascii(text[error.start])} at character {error.start + 1})"
    return None
