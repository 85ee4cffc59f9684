import io
import os
import pickle
import struct
import warnings
import zlib
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image, ImageFile

from kdmcse_hf.teacher.pictures import PictureError, PictureFolder, open_picture

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(picture: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    picture.save(content, file_format, **options)
    return content.getvalue()


def opened(picture: Image.Image, file_format: str = "PNG", **options: object) -> np.ndarray:
    return pixels(open_picture(encoded(picture, file_format, **options), "x"))


def pixels(picture: Image.Image) -> np.ndarray:
    assert picture.mode == "RGB"
    return np.asarray(picture)


def noise(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    values = np.random.default_rng(0).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of a kind that Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return content


def test_a_path_bytes_and_an_open_file_give_the_same_picture(tmp_path: Path) -> None:
    expected = np.asarray(noise())
    file = tmp_path / "x.png"
    file.write_bytes(encoded(noise()))
    for source in (file, str(file), file.read_bytes(), io.BytesIO(file.read_bytes())):
        np.testing.assert_array_equal(pixels(open_picture(source, "x")), expected)


@pytest.mark.parametrize(
    ("file_format", "options"),
    [("JPEG", {}), ("PNG", {}), ("WEBP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})],
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_comes_upright_and_cannot_be_turned_again(
    orientation: int, file_format: str, options: dict[str, str]
) -> None:
    # What a viewer has to do to each orientation, as EXIF defines it: (transposed, flipped left-right, top-bottom)
    turns = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a),
    }
    stored = Image.new("RGB", (64, 32), "red")
    stored.paste(GREEN, (0, 0, 32, 16))
    stored.paste(BLUE, (32, 0, 64, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = open_picture(encoded(stored, file_format, exif=exif, **options), "x")
    expected = turns[orientation](np.asarray(stored)).astype(int)
    assert np.abs(pixels(picture) - expected).mean() < 8  # JPEG and WebP are not exact
    assert picture.getexif().get(0x0112) is None
    assert "exif" not in picture.info


def test_a_tag_of_a_wrong_type_does_not_keep_a_picture_from_being_turned() -> None:
    # ImageWidth as a fraction beside an orientation: ImageOps.exif_transpose raises struct.error here.
    tags = struct.pack("<HHI4s", 0x0100, 5, 1, struct.pack("<I", 38)) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tags + struct.pack("<III", 0, 1, 2)
    assert opened(Image.new("RGB", (32, 16)), "JPEG", exif=exif).shape == (32, 16, 3)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_every_opaque_mode_keeps_its_colours(mode: str) -> None:
    picture = Image.new("RGB", (8, 8), "white")
    picture.paste((0, 0, 0), (0, 0, 4, 8))
    if mode in ("P", "CMYK"):
        picture.paste(RED, (0, 0, 8, 4))
    result = opened(picture.convert(mode), "TIFF" if mode == "CMYK" else "PNG")
    np.testing.assert_array_equal(result, np.asarray(picture))


def test_a_cmyk_jpeg_is_not_inverted() -> None:
    result = opened(Image.new("RGB", (8, 8), "yellow").convert("CMYK"), "JPEG")
    np.testing.assert_allclose(result, np.full((8, 8, 3), (255, 255, 0)), atol=4)


def test_transparency_is_white_in_every_mode() -> None:
    half = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    half.putpixel((1, 0), (255, 0, 0, 128))
    assert opened(half).tolist() == [[[255, 255, 255], [255, 127, 127]]]
    grey = Image.new("LA", (2, 1), (0, 0))
    grey.putpixel((1, 0), (10, 255))
    assert opened(grey).tolist() == [[[255] * 3, [10] * 3]]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.putpixel((1, 0), 1)
    for transparency in (0, b"\x00\xff"):  # one index; an opacity for each
        assert opened(palette, transparency=transparency).tolist() == [[[255] * 3, list(RED)]]
    key = Image.new("RGB", (2, 1), GREEN)
    key.putpixel((1, 0), BLUE)
    assert opened(key, transparency=GREEN).tolist() == [[list(WHITE), list(BLUE)]]
    bits = Image.new("1", (2, 1), 0)
    assert opened(bits, transparency=0).tolist() == [[[255] * 3] * 2]
    deep = png(2, 1, 16, 0, b"\0" + struct.pack(">HH", 0, 257), (b"tRNS", struct.pack(">H", 0)))
    assert pixels(open_picture(deep, "x")).tolist() == [[[255] * 3, [1] * 3]]


@pytest.mark.parametrize(
    ("dtype", "file_format"),
    [("<u2", "PNG"), ("<u2", "TIFF"), (">u2", "TIFF"), ("<i4", "PPM"), ("<i4", "TIFF"), ("<f4", "TIFF")],
)
def test_a_gradient_of_16_bits_stays_a_gradient(dtype: str, file_format: str) -> None:
    values = (np.arange(256) * 257).reshape(16, 16)  # 0 to 65535
    result = opened(Image.fromarray(values.astype(dtype)), file_format)
    np.testing.assert_array_equal(result, np.repeat(np.arange(256).reshape(16, 16, 1), 3, axis=2))


@pytest.mark.parametrize(("dtype", "top"), [("<i4", 255), ("<f4", 255), ("<f4", 1)])
def test_a_gradient_in_a_smaller_range_of_32_bits_stays_a_gradient(dtype: str, top: int) -> None:
    values = (np.arange(256) / 255 * top).reshape(16, 16)
    result = opened(Image.fromarray(values.astype(dtype)), "TIFF")
    np.testing.assert_array_equal(result, np.repeat(np.arange(256).reshape(16, 16, 1), 3, axis=2))


@pytest.mark.parametrize(("dtype", "file_format"), [("<u2", "PNG"), ("<i4", "PPM")])
def test_a_dark_picture_of_16_bits_stays_dark(dtype: str, file_format: str) -> None:
    dark = Image.fromarray(np.full((2, 2), 255, dtype=dtype))
    assert opened(dark, file_format).max() == 1


@pytest.mark.parametrize(
    ("values", "shown"), [([0, 7e9], "from 0.0 to 7000000000.0"), ([-1, 1], "-1.0 to 1.0"), ([np.nan, 1], "nan to nan")]
)
def test_values_without_a_known_white_are_refused(values: list[float], shown: str) -> None:
    picture = Image.fromarray(np.array([values], dtype=np.float32))
    with pytest.raises(PictureError, match=f"x .*cannot be read.*its values go .*{shown}, expected 0 to 65535"):
        opened(picture, "TIFF")


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame(file_format: str) -> None:
    first, second = (Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE))
    result = opened(first, file_format, save_all=True, append_images=[second])
    np.testing.assert_allclose(result, np.full((16, 16, 3), RED), atol=4)


def test_an_empty_file_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").touch()
    with pytest.raises(PictureError, match=r"a/x\.jpg is empty \(0 bytes\). Fetch or save the file again"):
        open_picture(tmp_path / "x.jpg", "a/x.jpg")


def test_a_file_that_is_no_picture_is_shown_by_its_first_bytes() -> None:
    with pytest.raises(PictureError, match=r"a/x\.jpg is not a picture .*starts with b'<!DOCTYPE html>.*'. Fetch"):
        open_picture(b"<!DOCTYPE html>\n<title>404</title>", "a/x.jpg")


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_a_file_that_is_cut_short_is_refused(part: float, file_format: str) -> None:
    content = encoded(noise(), file_format)
    with pytest.raises(PictureError, match=r"a/x\.jpg .*(Fetch or save the file again)"):
        open_picture(content[: int(len(content) * part)], "a/x.jpg")


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "ICO", "TGA"])
def test_whatever_is_wrong_with_a_file_is_a_picture_error(file_format: str) -> None:
    rng = np.random.default_rng(0)
    content = encoded(noise(size=(16, 16)), file_format)
    refused = 0
    for _ in range(100):
        broken = bytearray(content)
        for position in rng.integers(min(len(content), 200), size=3):
            broken[position] = rng.integers(256)
        try:
            assert open_picture(bytes(broken), "x").mode == "RGB"
        except PictureError:
            refused += 1
    assert refused


@pytest.mark.parametrize("error", [SyntaxError, EOFError, struct.error, IndexError, RuntimeError, zlib.error])
def test_a_decoder_s_own_exception_becomes_a_picture_error(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: Image.Image) -> None:
        raise error("odd")

    content = encoded(noise("L"), "BMP")
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(
        PictureError, match=rf"x \([\d,]+ bytes\) cannot be read as a picture: {error.__name__}: odd. Fe"
    ):
        open_picture(content, "x")


def test_a_picture_of_too_many_pixels_is_refused_and_one_of_half_as_many_is_not_even_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = encoded(noise())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 30 // 2 - 1)
    with pytest.raises(PictureError, match=r"x is too large: Image size \(1200 pixels\).* Make it smaller"):
        open_picture(content, "x")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 30 - 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert open_picture(content, "x").size == (40, 30)
    assert caught == []


def test_odd_metadata_is_no_reason_to_refuse_a_picture_or_to_warn() -> None:
    # An entry that points behind the end of its EXIF: Pillow warns, and pytest makes warnings errors.
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, 0x9286, 7, 100, 5000, 0)
    assert opened(Image.new("RGB", (8, 8)), "JPEG", exif=exif).shape == (8, 8, 3)


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(
        PictureError, match=r"x\.jpg cannot be read: .*No such file.*Check the path and its permissions"
    ):
        open_picture(tmp_path / "gone.jpg", "x.jpg")
    with pytest.raises(PictureError, match=r"x\.jpg cannot be read: .*[Dd]irectory"):
        open_picture(tmp_path, "x.jpg")


def test_a_file_without_permission_is_named_with_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "x.jpg"
    file.write_bytes(encoded(noise(), "JPEG"))
    file.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:  # may read everything
            os.seteuid(65534)
        with pytest.raises(
            PictureError, match=r"x\.jpg cannot be read: .*Permission denied.*Check the path and its perm"
        ):
            open_picture(file, "x.jpg")
    finally:
        os.seteuid(user)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("1.jpg", "a/2.jpg", "a/3.jpg", "b/3.jpg", "c/d/3.jpg", "c/d/1.jpg", f"a/{normalize('NFD', 'ü')}.jpg"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "pictures"


def test_a_name_is_a_path_below_the_folder_before_anything_else(folder: Path) -> None:
    pictures = PictureFolder(folder)
    assert pictures.path("1.jpg") == folder / "1.jpg"  # though there is c/d/1.jpg
    assert pictures.path("b/3.jpg") == folder / "b" / "3.jpg"


@pytest.mark.parametrize("name", ["2.jpg", "pictures/a/2.jpg", "/elsewhere/a/2.jpg", "../pictures/a/2.jpg"])
def test_a_picture_is_found_where_its_path_ends_in_the_name_or_the_name_in_its_path(name: str, folder: Path) -> None:
    assert PictureFolder(str(folder)).path(name) == folder / "a" / "2.jpg"
    assert PictureFolder(folder / "a").path(name) == folder / "a" / "2.jpg"


@pytest.mark.parametrize("name", ["b/2.jpg", "a/b/2.jpg", "/elsewhere/2.jpg", "../2.jpg", "ca/2.jpg"])
def test_a_picture_of_another_sub_folder_is_never_taken(name: str, folder: Path) -> None:
    with pytest.raises(PictureError, match=rf"{name} is missing in {folder} .*\(but there is a/2\.jpg\). Add it"):
        PictureFolder(folder).path(name)


def test_a_sub_folder_in_the_name_chooses_among_pictures_of_one_name(folder: Path) -> None:
    assert PictureFolder(folder).path("d/3.jpg") == folder / "c" / "d" / "3.jpg"
    assert PictureFolder(folder).path("val2014/1.jpg") == folder / "1.jpg"


def test_a_stamp_changes_with_either_end_of_a_file_and_with_its_size(tmp_path: Path) -> None:
    file = tmp_path / "x.jpg"
    stamps = []
    for content in (b"a" * 9000, b"b" + b"a" * 8999, b"a" * 8999 + b"b", b"a" * 9001, b"a", b"b", b""):
        file.write_bytes(content)
        stamps.append(PictureFolder(tmp_path).stamp("x.jpg"))
        assert PictureFolder(tmp_path).stamp("x.jpg") == stamps[-1]
    assert len(set(stamps)) == 7


def test_a_link_that_leads_nowhere_and_a_pipe_are_missing_pictures(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.jpg")
    pictures = PictureFolder(tmp_path)
    for name in ("gone.jpg", "pipe.jpg"):
        for method in (pictures.stamp, pictures.open):
            with pytest.raises(PictureError, match=f"{name} is missing"):
                method(name)


def test_a_file_that_is_lost_after_it_was_found_is_a_picture_error(folder: Path) -> None:
    class Lost(PictureFolder):
        def path(self, name: str) -> Path:
            return folder / "lost.jpg"

    with pytest.raises(PictureError, match=r"1\.jpg cannot be read: .*No such file"):
        Lost(folder).stamp("1.jpg")


@pytest.mark.parametrize("size", [(1, 101), (101, 1), (20_001, 200)])
def test_a_picture_with_sides_of_a_ratio_above_100_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(PictureError, match=r"^x is [\d,]+ x [\d,]+ pixels: expected .* at most 100. Crop it"):
        open_picture(encoded(Image.new("L", size)), "x")


def test_a_picture_with_sides_of_a_ratio_of_100_is_read() -> None:
    assert open_picture(encoded(Image.new("L", (200, 2))), "x").size == (200, 2)


def test_several_pictures_of_one_name_are_refused_with_their_places(folder: Path) -> None:
    pictures = PictureFolder(folder)
    with pytest.raises(
        PictureError, match=r"^3\.jpg is .*: a/3\.jpg and b/3\.jpg and 1 more: write the sub-folder into"
    ):
        pictures.path("3.jpg")
    (folder / "b" / "2.jpg").touch()
    with pytest.raises(PictureError, match=r": a/2\.jpg and b/2\.jpg: write the sub-folder into the caption file"):
        PictureFolder(folder).stamp("2.jpg")


@pytest.mark.parametrize("name", ["gone.jpg", "a", "", "x\0.jpg", "x" * 5000])
def test_a_missing_picture_is_named_with_the_folder(name: str, folder: Path) -> None:
    with pytest.raises(PictureError) as error:
        PictureFolder(folder).path(name)
    assert str(error.value).startswith(f"{name} is missing in {folder} and its sub-folders. Add it")


def test_a_picture_outside_the_folder_is_never_taken(folder: Path) -> None:
    outside = folder.parent / "outside.jpg"
    outside.touch()
    for name in ("../outside.jpg", "a/../../outside.jpg", str(outside)):
        with pytest.raises(PictureError, match=f"{name} is missing in {folder}"):
            PictureFolder(folder).path(name)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_match_in_either_unicode_form(form: str, folder: Path) -> None:
    pictures = PictureFolder(folder)
    for name in ("ü.jpg", "a/ü.jpg"):
        assert pictures.path(normalize(form, name)).read_bytes() == f"a/{normalize('NFD', 'ü')}.jpg".encode()
    (folder / "b" / f"{normalize('NFD', 'ü')}.jpg").write_bytes(b"other")
    assert PictureFolder(folder).path(normalize(form, "b/ü.jpg")).read_bytes() == b"other"


def test_the_folder_is_searched_once_and_only_if_needed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walk, walks = os.walk, []
    monkeypatch.setattr(os, "walk", lambda path: walks.append(path) or walk(path))
    pictures = PictureFolder(folder)
    pictures.path("a/2.jpg")
    assert walks == []
    pictures.path("2.jpg")
    again = pickle.loads(pickle.dumps(pictures))
    assert again.path("2.jpg") == folder / "a" / "2.jpg"
    assert len(walks) == 1


@pytest.mark.parametrize("name", ["gone", "1.jpg"])
def test_a_folder_that_is_not_there_is_refused_at_once(name: str, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{folder / name} does not exist or is not a folder"):
        PictureFolder(folder / name)


def test_postscript_is_never_run(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "x.eps")
    with pytest.raises(PictureError, match=r"x\.eps is not a picture of a format"):
        open_picture(tmp_path / "x.eps", "x.eps")
