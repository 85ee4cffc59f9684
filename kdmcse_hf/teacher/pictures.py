"""Picture files of every kind as upright RGB pictures, and a folder in which they are found by name."""

import hashlib
import io
import os
import warnings
from pathlib import Path
from typing import Any, BinaryIO
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

# Not ImageOps.exif_transpose: it also rewrites all other tags, and fails where a camera wrote one of the wrong type.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MAX_RATIO = 100
_REMEDY = "Fetch or save the file again, or remove it with its captions."
_STAMPED = 4096
Image.init()
# Pillow hands PostScript to Ghostscript, which runs it as a program.
_FORMATS = [name for name in Image.ID if name != "EPS"]


class PictureError(ValueError):
    """A picture that is missing or cannot be read. The message names it, what was found, and what to do."""


def open_picture(file: str | Path | bytes | BinaryIO, name: str) -> Image.Image:
    """A picture as 8-bit RGB, turned upright as its EXIF orientation says, without its metadata.

    Transparency is put on white, grey of 16 or 32 bits is scaled to 8, an animation gives its first frame.

    Args:
        file: a path, the content of a file, or an open binary file.
        name: what messages call it.

    Raises:
        PictureError: the file cannot be read, is empty, is no picture, is broken or cut short, has more pixels than
            Pillow takes for safe, or sides of a ratio above 100.
    """
    try:
        if isinstance(file, str | Path):
            file = Path(file).read_bytes()
        content = file if isinstance(file, bytes) else file.read()
    except OSError as error:
        raise _unreadable(name, error) from error
    if not content:
        raise PictureError(f"{name} is empty (0 bytes). {_REMEDY}")
    try:
        with warnings.catch_warnings():
            # Pillow warns of large pictures and odd metadata; what keeps it from reading a picture, it raises.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
                _check_ratio(picture, name)
                picture.load()
                return _upright_rgb(picture)
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError(
            f"{name} is not a picture of a format that Pillow knows: it starts with {content[:16]!r}. {_REMEDY}"
        ) from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name} is too large: {error} Make it smaller, or remove it with its captions.") from error
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them stumble over
        raise PictureError(
            f"{name} ({len(content):,} bytes) cannot be read as a picture: {type(error).__name__}: {error}. {_REMEDY}"
        ) from error


def _check_ratio(picture: Image.Image, name: str) -> None:
    """Teachers bring the shortest side to some 224 pixels, which would make a line of pixels fill the memory."""
    width, height = picture.size
    if max(width, height) > _MAX_RATIO * min(width, height):
        raise PictureError(
            f"{name} is {width:,} x {height:,} pixels: expected sides of a ratio of at most {_MAX_RATIO}. Crop it, or "
            "remove it with its captions."
        )


def file_stamp(file: str | Path, name: str) -> str:
    """The size of a file and a hash of its first and last 4 KB: changes when the file does, without reading it whole.

    Raises:
        PictureError: the file cannot be read.
    """
    ends = hashlib.blake2b(digest_size=8)
    try:
        with open(file, "rb") as content:
            size = os.fstat(content.fileno()).st_size
            ends.update(content.read(_STAMPED))
            content.seek(max(size - _STAMPED, 0))
            ends.update(content.read(_STAMPED))
    except OSError as error:
        raise _unreadable(name, error) from error
    return f"{size}-{ends.hexdigest()}"


def _unreadable(name: str, error: OSError) -> PictureError:
    return PictureError(f"{name} cannot be read: {error}. Check the path and its permissions.")


def _upright_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        rgb = Image.fromarray(_to_8_bits(picture)).convert("RGB")
    elif picture.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in picture.info:
        paper = Image.new("RGBA", picture.size, "white")
        paper.alpha_composite(picture.convert("RGBA"))
        rgb = paper.convert("RGB")
    else:
        rgb = picture.convert("RGB")
    if picture.format != "TIFF":  # Pillow turns that while it loads it
        method = _UPRIGHT.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
        rgb = rgb if method is None else rgb.transpose(method)
    rgb.info.clear()  # whoever looked for an orientation there would turn the picture twice
    return rgb


def _to_8_bits(picture: Image.Image) -> NDArray[np.uint8]:
    """Grey of 16 or 32 bits, scaled to 8. (Pillow's `convert` clips instead.)"""
    values: NDArray[Any] = np.asarray(picture)
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= 65535:
        raise ValueError(f"its values go from {low} to {high}, expected 0 to 65535")
    white = 65535
    # 32 bits have no white of their own: the smallest usual one that holds the picture. (Pillow reads 16 bits of PNG
    # and PPM as "I" too.)
    if picture.mode == "F" and high <= 1:
        white = 1
    elif high <= 255 and (picture.mode == "F" or (picture.mode == "I" and picture.format not in ("PNG", "PPM"))):
        white = 255
    scaled: NDArray[np.uint8] = (values * (255 / white)).round().astype(np.uint8)
    if "transparency" in picture.info:
        scaled[values == picture.info["transparency"]] = 255
    return scaled


class PictureFolder:
    """The pictures below a folder, found by name.

    Args:
        folder: searched with all its sub-folders, once, as soon as a picture is not where its name says.

    Raises:
        FileNotFoundError: no such folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{folder} does not exist or is not a folder: expected a folder of pictures.")
        self._found: dict[str, list[str]] | None = None

    def path(self, name: str) -> Path:
        """The file of a picture: at the path `name` below the folder, or where one of the two paths is the other's end.

        So `x.jpg` is found as `val2014/x.jpg`, and `val2014/x.jpg` as `x.jpg`, but never `a/x.jpg` as `b/x.jpg`. Names
        that differ in Unicode normal form only are the same.

        Raises:
            PictureError: no such file, or several in different sub-folders.
        """
        path = Path(name)
        if not path.is_absolute() and ".." not in path.parts and os.path.isfile(self.folder / path):
            return self.folder / path
        if self._found is None:
            self._found = self._search()
        # A pipe would make its reader wait for ever, and a link may lead nowhere.
        files = self._found.get(normalize("NFC", path.name), [])
        files = [file for file in files if os.path.isfile(self.folder / file)]
        found = [file for file in files if _is_end(file, name)]
        found = [file for file in found if normalize("NFC", file) == normalize("NFC", path.as_posix())] or found
        if not found:
            elsewhere = f" (but there is {files[0]})" if files else ""
            raise PictureError(
                f"{name} is missing in {self.folder} and its sub-folders{elsewhere}. Add it, or remove its captions."
            )
        if len(found) > 1:
            more = f" and {len(found) - 2:,} more" if len(found) > 2 else ""
            raise PictureError(
                f"{name} is ambiguous in {self.folder}: {found[0]} and {found[1]}{more}: write the sub-folder into the "
                "caption file."
            )
        return self.folder / found[0]

    def open(self, name: str) -> Image.Image:
        """The picture, upright in RGB.

        Raises:
            PictureError: as [`path`], or the file cannot be read.
        """
        return open_picture(self.path(name), name)

    def stamp(self, name: str) -> str:
        """A text that changes when the file does, from [`file_stamp`].

        Raises:
            PictureError: as [`path`], or the file cannot be read.
        """
        return file_stamp(self.path(name), name)

    def _search(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for folder, _, files in os.walk(self.folder):
            below = Path(folder).relative_to(self.folder)
            for file in files:
                found.setdefault(normalize("NFC", file), []).append((below / file).as_posix())
        return {file: sorted(paths) for file, paths in found.items()}


def _is_end(file: str, name: str) -> bool:
    """Whether one path is the end of the other."""
    one, other = (Path(normalize("NFC", path)).parts[::-1] for path in (file, name))
    return all(mine == theirs for mine, theirs in zip(one, other, strict=False))
