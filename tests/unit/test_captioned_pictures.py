import io
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets.table import embed_table_storage
from PIL import Image

from kdmcse_hf.teacher.captioned_pictures import CaptionedPictures


def colour(path: Path, name: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), name).save(path)
    return path


def content(name: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), name).save(file, "PNG")
    return file.getvalue()


def dataset(images: list[Any], captions: list[Any] | None = None) -> datasets.Dataset:
    rows = {"image": images, "caption": [f"row {row}" for row in range(len(images))] if captions is None else captions}
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


def embedded(plain: datasets.Dataset) -> datasets.Dataset:
    """As `push_to_hub` stores it and `load_dataset` gets it back."""
    return datasets.Dataset(embed_table_storage(plain.data.table))


def rows_of(captioned: CaptionedPictures) -> list[str]:
    return [captioned.names[row] for row in captioned.image_rows]


def corners(captioned: CaptionedPictures) -> list[tuple[int, int, int]]:
    return [captioned.pictures.open(name).getpixel((0, 0)) for name in rows_of(captioned)]


RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_embedded_pictures_of_one_base_name_stay_different_pictures(tmp_path: Path) -> None:
    paths = [colour(tmp_path / "cat" / "1.png", "red"), colour(tmp_path / "dog" / "1.png", "blue")]
    captioned = CaptionedPictures.from_dataset(embedded(dataset([str(path) for path in [*paths, paths[0]]])))
    assert corners(captioned) == [RED, BLUE, RED]
    assert captioned.image_rows == [0, 1, 0]
    assert all(name.startswith("1-") and name.endswith(".png") and len(name) == 14 for name in captioned.names)
    assert captioned.image_problems == {}


def test_embedded_pictures_of_the_same_bytes_are_one_picture(tmp_path: Path) -> None:
    paths = [colour(tmp_path / folder / name, "red") for folder, name in (("cat", "1.png"), ("dog", "2.png"))]
    captioned = CaptionedPictures.from_dataset(embedded(dataset([str(path) for path in paths])))
    assert rows_of(captioned) == ["1.png", "1.png"]
    assert captioned.stamps == [captioned.pictures.stamp("1.png")]


def test_pictures_without_a_path_are_named_by_their_content_whatever_their_row() -> None:
    images = [{"bytes": content(name), "path": None} for name in ("red", "blue", "red")]
    first, turned = (CaptionedPictures.from_dataset(dataset(rows)) for rows in (images, images[1:]))
    assert first.image_rows == [0, 1, 0]
    assert first.names == turned.names[::-1]
    assert all(name.startswith("sha-") and len(name) == 20 for name in first.names)
    assert corners(first) == [RED, BLUE, RED]


def test_pictures_in_files_are_named_relative_to_the_folder_that_they_share(tmp_path: Path) -> None:
    paths = [colour(tmp_path / folder / "1.png", name) for folder, name in (("cat", "red"), ("dog", "blue"))]
    captioned = CaptionedPictures.from_dataset(dataset([str(path) for path in paths]))
    assert captioned.names == ["cat/1.png", "dog/1.png"]
    before = captioned.stamps
    colour(paths[0], "lime")
    assert len(before) == 2 and captioned.pictures.stamp("cat/1.png") != before[0]


def test_bytes_and_files_of_one_name_stay_apart_in_one_dataset(tmp_path: Path) -> None:
    images = [
        {"bytes": None, "path": str(colour(tmp_path / "1.png", "red"))},
        {"bytes": content("blue"), "path": "1.png"},
    ]
    captioned = CaptionedPictures.from_dataset(dataset(images))
    assert corners(captioned) == [RED, BLUE]
    assert captioned.names[0] == "1.png"


def test_a_name_that_looks_like_one_with_digits_of_a_hash_takes_nobody_s_place() -> None:
    images = [{"bytes": content(name), "path": "1.png"} for name in ("red", "blue")]
    made = CaptionedPictures.from_dataset(dataset(images)).names[0]
    images.append({"bytes": content("lime"), "path": made})
    captioned = CaptionedPictures.from_dataset(dataset(images))
    assert corners(captioned) == [RED, BLUE, (0, 255, 0)]


def test_a_row_without_picture_is_a_problem_of_that_row() -> None:
    captioned = CaptionedPictures.from_dataset(dataset([{"bytes": content("red"), "path": None}, None]))
    assert captioned.image_problems == {1: "the dataset, row 1: the caption has no picture"}
    assert captioned.stamps[1] is None


@pytest.mark.parametrize(("value", "shown"), [(7, "7"), ([7], r"\[7\]"), ({"en": "x"}, r"\{'en': 'x'\}")])
def test_a_caption_that_is_no_text_is_refused_by_its_row(value: Any, shown: str) -> None:
    picture = {"bytes": content("red"), "path": None}
    with pytest.raises(ValueError, match=f"The dataset, row 0: the column 'caption' is {shown}, expected text or a li"):
        CaptionedPictures.from_dataset(dataset([picture], [value]))


def test_a_dataset_that_is_set_to_another_format_is_read_all_the_same() -> None:
    plain = dataset([{"bytes": content("red"), "path": None}], [["a", "b"]])
    assert CaptionedPictures.from_dataset(plain.with_format("numpy")).captions == ["a", "b"]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        colour(tmp_path / "images" / name, "red")
    (tmp_path / "c.csv").write_text("image,caption\na.png,x\ngone.png,y\nb.png,z\n")
    (tmp_path / "splits.csv").write_text("image,split\na.png,train\nb.png,train\ngone.png,test\n")
    return tmp_path


def test_stamps_are_those_of_the_pictures_and_none_where_they_cannot_be_read(files: Path) -> None:
    captioned = CaptionedPictures.from_files(files / "c.csv", files / "images")
    stamp = captioned.pictures.stamp("a.png")
    assert captioned.names == ["a.png", "gone.png", "b.png"]
    assert captioned.stamps == [stamp, None, stamp]


def test_a_picture_that_changes_at_equal_size_changes_the_source(files: Path) -> None:
    before = CaptionedPictures.from_files(files / "c.csv", files / "images").source["pictures"]
    picture = files / "images" / "a.png"
    picture.write_bytes(picture.read_bytes()[:-1] + b"x")
    after = CaptionedPictures.from_files(files / "c.csv", files / "images").source["pictures"]
    assert before["sha256_of_names_and_stamps"] != after["sha256_of_names_and_stamps"]


def test_a_picture_that_is_a_link_to_nowhere_is_a_problem_of_its_row(files: Path) -> None:
    (files / "images" / "gone.png").symlink_to(files / "nothing")
    captioned = CaptionedPictures.from_files(files / "c.csv", files / "images")
    assert list(captioned.image_problems) == [1]
    assert "gone.png is missing" in captioned.image_problems[1]


def test_half_of_a_surrogate_pair_is_a_problem_of_its_row_that_can_be_written_down(files: Path) -> None:
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b\ud83d.png"}]
    rows = [{"image_id": 1, "caption": "x"}, {"image_id": 1, "caption": "so \ude00"}, {"image_id": 2, "caption": "y"}]
    path = files / "c.json"
    path.write_text(json.dumps({"images": images, "annotations": rows}))
    captioned = CaptionedPictures.from_files(path, files / "images")
    assert captioned.caption_problems == {
        1: f"{path}, annotation 2: the caption is not valid Unicode ('\\ude00' at character 4)"
    }
    assert captioned.image_problems == {
        1: f"{path}, annotation 3: the image name is not valid Unicode ('\\ud83d' at character 2)"
    }
    assert captioned.names == ["a.png", "b\\ud83d.png"]
    for text in (*captioned.names, *captioned.captions):
        text.encode()


def test_a_table_of_splits_without_a_split_is_refused(files: Path) -> None:
    with pytest.raises(ValueError, match=r"splits\.csv has splits, but `split` is None: name the one to keep"):
        CaptionedPictures.from_files(files / "c.csv", files / "images", splits_file=files / "splits.csv")


def test_the_table_of_splits_is_part_of_the_source(files: Path) -> None:
    sources = []
    for more in ("", "other.png,test\n"):
        with open(files / "splits.csv", "a") as file:
            file.write(more)
        captioned = CaptionedPictures.from_files(
            files / "c.csv", files / "images", splits_file=files / "splits.csv", split="train"
        )
        assert captioned.names == ["a.png", "b.png"]
        sources.append(captioned.source["splits"])
    assert sources[0]["file"] == "splits.csv"
    assert sources[0]["sha256"] != sources[1]["sha256"]
