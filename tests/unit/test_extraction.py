import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import make_teacher, write_pictures

from kdmcse_hf.teacher.cache import MANIFEST, TeacherCache
from kdmcse_hf.teacher.captioned_pictures import CaptionedPictures
from kdmcse_hf.teacher.encoder import Teacher, preprocess
from kdmcse_hf.teacher.extraction import extract_features
from kdmcse_hf.teacher.extraction_plan import PLAN, ExtractionSettings
from kdmcse_hf.teacher.pairs import TeacherPairs
from kdmcse_hf.teacher.pictures import PictureError, open_picture
from kdmcse_hf.teacher.shard import CacheError

SETTINGS = ExtractionSettings(batch_size=2, rows_per_shard=4, num_workers=0, progress=False, feature_dtype="float32")
SKIP = dataclasses.replace(SETTINGS, on_error="skip")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path)


def captioned(folder: Path) -> CaptionedPictures:
    return CaptionedPictures.from_files(folder / "captions.csv", folder / "images")


def content(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def check_every_row(cache: TeacherCache, folder: Path, teacher: Any) -> None:
    """Each row against the teacher, asked about that one picture or caption."""
    for row, name in enumerate(cache.images["image"]):
        picture = open_picture(folder / "images" / name, name)
        expected = teacher.embed_pictures(preprocess(teacher.image_processor, [picture]))[0]
        torch.testing.assert_close(torch.from_numpy(cache.image_features.rows([row])[0]), expected)
    for row, caption in enumerate(cache.captions["caption"]):
        expected = teacher.embed_captions([caption])[0]
        torch.testing.assert_close(torch.from_numpy(cache.caption_features.rows([row])[0]), expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_row_holds_what_the_teacher_says_of_it_alone(num_workers: int, folder: Path) -> None:
    teacher = make_teacher()
    settings = dataclasses.replace(SETTINGS, num_workers=num_workers)
    cache = extract_features(folder / "cache", captioned(folder), teacher, settings)
    assert len(cache.images) == 10
    assert len(cache.captions) == 20
    names = cache.images["image"][:]
    table = (folder / "captions.csv").read_text().splitlines()[1:]
    stored = [f"{names[row['image_row']]},{row['caption']}" for row in cache.captions]
    assert stored == table
    check_every_row(cache, folder, teacher)
    cache.verify()


def test_half_precision_features_are_the_same_rounded(folder: Path) -> None:
    single = extract_features(folder / "single", captioned(folder), make_teacher(), SETTINGS)
    settings = dataclasses.replace(SETTINGS, feature_dtype="float16")
    half = extract_features(folder / "half", captioned(folder), make_teacher(), settings)
    rows = list(range(10))
    np.testing.assert_array_equal(half.image_features.rows(rows), single.image_features.rows(rows).astype(np.float16))


@pytest.mark.parametrize("lost", [["image_features-00001"], ["image_features-00002", "caption_features-00003"]])
def test_an_extraction_goes_on_where_it_stopped_and_ends_with_the_same_bytes(lost: list[str], folder: Path) -> None:
    teacher = make_teacher()
    extract_features(folder / "cache", captioned(folder), teacher, SETTINGS)
    whole = content(folder / "cache")
    plan = json.loads((folder / "cache" / MANIFEST).read_text())
    (folder / "cache" / MANIFEST).unlink()
    for name in lost:
        (folder / "cache" / f"{name}.safetensors").unlink()
    (folder / "cache" / "image_features-00001.safetensors.7.tmp").write_text("half a sh")  # as a killed run leaves it
    asked = []
    teacher.model.vision_model.register_forward_hook(lambda *_: asked.append("picture batch"))
    extract_features(folder / "cache", captioned(folder), teacher, SETTINGS)
    assert content(folder / "cache") == whole
    assert len(asked) == 1 + -(-(2 if lost[0].endswith("2") else 4) // 2)  # one to know the width
    assert plan["image_features"]["shards"][0]["rows"] == 4


def test_a_finished_cache_is_opened_and_nothing_is_asked_again(folder: Path) -> None:
    teacher = make_teacher()
    extract_features(folder / "cache", captioned(folder), teacher, SETTINGS)
    before = content(folder / "cache")
    teacher.model.register_forward_pre_hook(lambda *_: pytest.fail("asked again"))
    teacher.model.vision_model.register_forward_pre_hook(lambda *_: pytest.fail("asked again"))
    extract_features(folder / "cache", captioned(folder), teacher, SETTINGS)
    assert content(folder / "cache") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("teacher", r"teacher.weights was '\w+', is '\w+'"),
        ("captions", r"source.captions.sha256 was '\w+', is '\w+'"),
        ("picture", "source.pictures.sha256_of_names_and_stamps was"),
        ("dtype", "feature_dtype was 'float32', is 'float16'"),
    ],
)
def test_a_finished_cache_of_another_input_or_teacher_is_refused_by_the_difference(
    change: str, message: str, folder: Path
) -> None:
    extract_features(folder / "cache", captioned(folder), make_teacher(), SETTINGS)
    if change == "captions":
        (folder / "captions.csv").write_text((folder / "captions.csv").read_text().replace("cat", "dog"))
    if change == "picture":
        Image.new("RGB", (9, 9)).save(folder / "images" / "odd" / "3.png")
    settings = dataclasses.replace(SETTINGS, feature_dtype="float16") if change == "dtype" else SETTINGS
    with pytest.raises(CacheError, match=message):
        extract_features(
            folder / "cache", captioned(folder), make_teacher(seed=1 if change == "teacher" else 0), settings
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("teacher", r"begun extraction of something else: teacher.weights was"),
        ("captions", r"begun extraction of something else: source.captions.sha256 was"),
    ],
)
def test_a_begun_extraction_of_another_input_or_teacher_is_refused_by_the_difference(
    change: str, message: str, folder: Path
) -> None:
    cut_short(folder)
    if change == "captions":
        (folder / "captions.csv").write_text((folder / "captions.csv").read_text().replace("cat", "dog"))
    with pytest.raises(CacheError, match=message):
        extract_features(
            folder / "cache", captioned(folder), make_teacher(seed=1 if change == "teacher" else 0), SETTINGS
        )


def test_the_same_teacher_in_another_folder_is_the_same(folder: Path) -> None:
    extract_features(folder / "cache", captioned(folder), make_teacher(), SETTINGS)
    teacher = make_teacher()
    moved = Teacher(teacher.model, teacher.image_processor, teacher.tokenizer, name="moved")
    extract_features(folder / "cache", captioned(folder), moved, SETTINGS)


def cut_short(folder: Path) -> bytes:
    """Stops an extraction in its last shard of pictures, at a picture that it damages; returns the good one."""
    path = folder / "images" / "odd" / "9.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    with pytest.raises(PictureError, match=r"odd/9.png .*Finished shards are kept.*on_error=skip"):
        extract_features(folder / "cache", captioned(folder), make_teacher(), SETTINGS)
    return whole


def test_a_mended_picture_goes_on_and_computes_only_what_is_missing(folder: Path) -> None:
    extract_features(folder / "straight", captioned(folder), make_teacher(), SETTINGS)
    whole = cut_short(folder)
    (folder / "images" / "odd" / "9.png").write_bytes(whole)
    teacher, pictures = make_teacher(), []
    teacher.model.vision_model.register_forward_hook(lambda m, a, k, o: pictures.append(len(o[0])), with_kwargs=True)
    extract_features(folder / "cache", captioned(folder), teacher, SETTINGS)
    assert sum(pictures) == 1 + 2  # one to know the width
    assert content(folder / "cache") == content(folder / "straight")


@pytest.mark.parametrize("damage", ["flipped", "cut", "foreign", "another input"])
def test_a_finished_shard_that_is_not_this_run_s_is_made_again(damage: str, folder: Path) -> None:
    extract_features(folder / "straight", captioned(folder), make_teacher(), SETTINGS)
    whole = cut_short(folder)
    shard = folder / "cache" / "image_features-00000.safetensors"
    stored = shard.read_bytes()
    if damage == "flipped":
        shard.write_bytes(stored[:-1] + bytes([stored[-1] ^ 1]))
    elif damage == "cut":
        shard.write_bytes(stored[:-1])
    elif damage == "foreign":
        extract_features(folder / "foreign", captioned(folder), make_teacher(seed=1), SKIP)
        shard.write_bytes((folder / "foreign" / shard.name).read_bytes())
    else:
        shard.write_bytes((folder / "cache" / "image_features-00001.safetensors").read_bytes())
    (folder / "images" / "odd" / "9.png").write_bytes(whole)
    extract_features(folder / "cache", captioned(folder), make_teacher(), SETTINGS)
    assert content(folder / "cache") == content(folder / "straight")


def test_a_kill_just_before_the_clean_up_is_cleaned_up_by_the_next_run(folder: Path) -> None:
    extract_features(folder / "straight", captioned(folder), make_teacher(), SETTINGS)
    whole = cut_short(folder)
    plan = (folder / "cache" / PLAN).read_text()
    (folder / "images" / "odd" / "9.png").write_bytes(whole)
    extract_features(folder / "cache", captioned(folder), make_teacher(), SETTINGS)
    for kill in ("again", "append"):
        (folder / "cache" / PLAN).write_text(plan)
        (folder / "cache" / "captions-00007.arrow").write_text("of a manifest that was never written")
        (folder / "cache" / "manifest.json.99.tmp").write_text("{")
        extract_features(folder / "cache", captioned(folder), make_teacher(), SETTINGS, append=kill == "append")
        assert content(folder / "cache") == content(folder / "straight")


def test_a_begun_extraction_refuses_other_settings(folder: Path) -> None:
    cut_short(folder)
    with pytest.raises(CacheError, match="begun extraction of something else: settings.batch_size was 2, is 3"):
        extract_features(
            folder / "cache", captioned(folder), make_teacher(), dataclasses.replace(SETTINGS, batch_size=3)
        )


def test_added_pictures_and_captions_are_all_that_is_computed(folder: Path) -> None:
    table = (folder / "captions.csv").read_text().splitlines(keepends=True)
    grown = [*table[:5], "even/0.png,a new caption of an old picture\n", *table[5:], "more/x.png,the man sits\n"]
    cache = extract_features(folder / "cache", captioned(folder), make_teacher(), SETTINGS)
    before = content(folder / "cache")
    (folder / "images" / "more").mkdir()
    Image.new("RGB", (40, 40), "teal").save(folder / "images" / "more" / "x.png")
    (folder / "captions.csv").write_text("".join(grown))

    teacher = make_teacher()
    pictures, captions = [], []
    teacher.model.vision_model.register_forward_hook(lambda m, a, k, o: pictures.append(len(o[0])), with_kwargs=True)
    teacher.model.text_model.register_forward_hook(lambda m, a, k, o: captions.append(len(o[0])), with_kwargs=True)
    again = extract_features(folder / "cache", captioned(folder), teacher, SETTINGS, append=True)
    assert (pictures, captions) == ([1, 1], [1, 2])  # one to know the width, then the new ones
    assert again.images["image"][:] == [*cache.images["image"][:], "more/x.png"]
    assert again.captions["caption"][-2:] == ["a new caption of an old picture", "the man sits"]
    assert again.captions["image_row"][-2:] == [0, 10]
    check_every_row(again, folder, make_teacher())
    after = content(folder / "cache")
    assert {name: digest for name, digest in before.items() if "features" in name}.items() <= after.items()
    assert len(after) == len(before) + 2
    again.verify()
    assert extract_features(folder / "cache", captioned(folder), make_teacher(), SETTINGS, append=True).images
    assert content(folder / "cache") == after


def test_a_killed_addition_leaves_the_old_cache_open_and_goes_on(folder: Path) -> None:
    extract_features(folder / "cache", captioned(folder), make_teacher(), SETTINGS)
    with open(folder / "captions.csv", "a") as table:
        table.write("x.png,the man sits\ny.png,the dog jumps\n")
    Image.new("RGB", (40, 40), "teal").save(folder / "images" / "x.png")
    (folder / "images" / "y.png").write_bytes(b"cut")
    with pytest.raises(PictureError, match="y.png"):
        extract_features(folder / "cache", captioned(folder), make_teacher(), SETTINGS, append=True)
    old = TeacherCache(folder / "cache")
    assert (len(old.images), len(old.captions)) == (10, 20)
    old.verify()
    again = extract_features(folder / "cache", captioned(folder), make_teacher(), SKIP, append=True)
    assert again.images["image"][-2:] == ["x.png", "y.png"]
    assert again.skipped_images.tolist() == [11]

    # The picture that could not be read is mended: its captions move to its new row, nothing else does.
    before = {name: digest for name, digest in content(folder / "cache").items() if "features" in name}
    assert extract_features(folder / "cache", captioned(folder), make_teacher(), SKIP, append=True).skipped_images.size
    Image.new("RGB", (40, 40), "olive").save(folder / "images" / "y.png")
    mended = extract_features(folder / "cache", captioned(folder), make_teacher(), SETTINGS, append=True)
    assert mended.images["image"][-2:] == ["y.png", "y.png"]
    assert len(mended.captions) == 22
    assert mended.captions["image_row"][-1] == 12
    assert before.items() <= content(folder / "cache").items()
    assert len(TeacherPairs(mended)) == 22
    picture = open_picture(folder / "images" / "y.png", "y.png")
    teacher = make_teacher()
    expected = teacher.embed_pictures(preprocess(teacher.image_processor, [picture]))[0]
    torch.testing.assert_close(torch.from_numpy(mended.image_features.rows([12])[0]), expected)


def test_adding_another_picture_of_a_known_name_is_refused(folder: Path) -> None:
    extract_features(folder / "cache", captioned(folder), make_teacher(), SETTINGS)
    Image.new("RGB", (40, 40), "olive").save(folder / "images" / "odd" / "1.png")
    with pytest.raises(CacheError, match="1 pictures that have changed since, such as 'odd/1.png'"):
        extract_features(folder / "cache", captioned(folder), make_teacher(), SETTINGS, append=True)


def test_adding_with_another_teacher_or_to_nothing_is_refused(folder: Path) -> None:
    with pytest.raises(CacheError, match="no finished cache in .* to add to"):
        extract_features(folder / "cache", captioned(folder), make_teacher(), SETTINGS, append=True)
    extract_features(folder / "cache", captioned(folder), make_teacher(), SETTINGS)
    with pytest.raises(CacheError, match=r"teacher.weights was .* Add to it with its own teacher"):
        extract_features(folder / "cache", captioned(folder), make_teacher(seed=1), SETTINGS, append=True)


def test_an_image_encoder_stores_captions_without_features(folder: Path) -> None:
    cache = extract_features(folder / "cache", captioned(folder), make_teacher(captions=False), SETTINGS)
    assert cache.caption_features is None
    assert len(cache.captions) == 20
    assert cache.image_features.width == 16


def test_a_dataset_s_pictures_give_the_features_of_their_files(folder: Path) -> None:
    files = extract_features(folder / "files", captioned(folder), make_teacher(), SETTINGS)
    names = files.images["image"][:]
    captions: dict[int, list[str]] = {}
    for caption, row in zip(files.captions["caption"], files.captions["image_row"], strict=True):
        captions.setdefault(row, []).append(caption)
    rows = {"picture": [str(folder / "images" / name) for name in names], "text": list(captions.values())}
    by_path = datasets.Dataset.from_dict(rows).cast_column("picture", datasets.Image())
    by_path.to_parquet(folder / "embedded.parquet")
    embedded = datasets.Dataset.from_parquet(str(folder / "embedded.parquet"), cache_dir=str(folder / "hf"))
    scalar = datasets.Dataset.from_dict(
        {"picture": [path for path in rows["picture"] for _ in range(2)], "text": sum(rows["text"], [])}
    ).cast_column("picture", datasets.Image())
    for number, dataset in enumerate((by_path, embedded, scalar)):
        read = CaptionedPictures.from_dataset(dataset, image_column="picture", caption_column="text")
        cache = extract_features(folder / f"dataset{number}", read, make_teacher(), SETTINGS)
        assert [Path(name).name for name in cache.images["image"]] == [Path(name).name for name in names]
        assert cache.captions["image_row"][:] == [row for row in range(10) for _ in range(2)]
        every = list(range(10))
        np.testing.assert_array_equal(cache.image_features.rows(every), files.image_features.rows(every))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image_column": "img"}, "no column 'img': it has 'picture', 'text'"),
        ({"image_column": "text"}, "expected an `Image` column"),
    ],
)
def test_wrong_dataset_columns_are_refused(columns: dict[str, str], message: str, folder: Path) -> None:
    picture = str(folder / "images" / "odd" / "1.png")
    dataset = datasets.Dataset.from_dict({"picture": [picture], "text": ["a"]})
    dataset = dataset.cast_column("picture", datasets.Image())
    with pytest.raises(ValueError, match=message):
        CaptionedPictures.from_dataset(dataset, caption_column="text", **columns)


def damage(folder: Path) -> None:
    """A missing, an empty and a truncated picture, an empty caption and one without a picture."""
    (folder / "images" / "odd" / "1.png").unlink()
    (folder / "images" / "odd" / "5.png").write_bytes(b"")
    whole = (folder / "images" / "even" / "8.png").read_bytes()
    (folder / "images" / "even" / "8.png").write_bytes(whole[: len(whole) // 2])
    with open(folder / "captions.csv", "a") as table:
        table.write("even/2.png,  \n,nobody knows where\n")


def test_what_cannot_be_read_is_listed_and_moves_no_other_row(folder: Path) -> None:
    whole = extract_features(folder / "whole", captioned(folder), make_teacher(), SETTINGS)
    damage(folder)
    cache = extract_features(folder / "cache", captioned(folder), make_teacher(), SKIP)
    skipped = cache.manifest["skipped"]
    names = cache.images["image"][:]
    assert [names[row] for row in cache.skipped_images] == ["odd/1.png", "odd/5.png", "even/8.png", ""]
    reasons = " ".join(skipped["image"].values())
    for part in ("odd/1.png is missing", "odd/5.png", "even/8.png", "line 23: the caption has no picture"):
        assert part in reasons
    assert list(skipped["caption"].items()) == [("20", f"{folder / 'captions.csv'}, line 22: the caption is empty")]
    good = np.setdiff1d(np.arange(10), cache.skipped_images)
    np.testing.assert_allclose(cache.image_features.rows(good), whole.image_features.rows(good), atol=1e-5)
    np.testing.assert_array_equal(cache.image_features.rows(cache.skipped_images), 0)
    np.testing.assert_allclose(
        cache.caption_features.rows(range(20)), whole.caption_features.rows(range(20)), atol=1e-5
    )
    cache.verify()

    pairs = TeacherPairs(cache)
    assert set(pairs.image_rows).isdisjoint(cache.skipped_images)
    assert len(pairs) == 20 - 2 * 3
    for assignment in ("shuffled", "random"):
        drawn = TeacherPairs(cache, image_assignment=assignment).image_rows
        assert set(drawn).isdisjoint(cache.skipped_images)


def test_what_is_known_to_be_unreadable_stops_before_any_work(folder: Path) -> None:
    damage(folder)
    with pytest.raises(
        ValueError, match=r"odd/1.png is missing .* There are 2 more such .*Nothing was extracted.*on_error=skip"
    ):
        extract_features(folder / "cache", captioned(folder), make_teacher(), SETTINGS)
    assert not (folder / "cache").exists()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_picture_stops_by_name_and_finished_shards_are_kept(num_workers: int, folder: Path) -> None:
    whole = (folder / "images" / "even" / "8.png").read_bytes()
    (folder / "images" / "even" / "8.png").write_bytes(whole[:-200])
    settings = dataclasses.replace(SETTINGS, num_workers=num_workers)
    with pytest.raises(PictureError, match=r"even/8.png .*Finished shards are kept.*on_error=skip"):
        extract_features(folder / "cache", captioned(folder), make_teacher(), settings)
    kept = sorted(path.name for path in (folder / "cache").iterdir())
    assert kept == [PLAN, "image_features-00000.safetensors", "image_features-00001.safetensors"]
    cache = extract_features(folder / "cache", captioned(folder), make_teacher(), SKIP)
    assert cache.skipped_images.tolist() == [8]


def test_captions_longer_than_the_context_are_cut_and_listed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open(folder / "captions.csv", "a") as table:
        table.write(f"even/2.png,{'the cat sits on green grass ' * 5}\n")
    teacher = make_teacher()
    cache = extract_features(folder / "cache", captioned(folder), teacher, SETTINGS)
    assert cache.manifest["cut_captions"] == [20]
    expected = teacher.embed_captions(["the cat sits on green grass the cat"])[0]
    torch.testing.assert_close(torch.from_numpy(cache.caption_features.rows([20])[0]), expected)


def test_features_that_overflow_are_a_failure_of_that_picture(folder: Path) -> None:
    teacher = make_teacher()
    with torch.no_grad():
        teacher.model.visual_projection.weight *= 1e5
    settings = dataclasses.replace(SETTINGS, feature_dtype="float16")
    with pytest.raises(PictureError, match=r"even/0.png: its features are NaN, or too large for float16"):
        extract_features(folder / "cache", captioned(folder), teacher, settings)


def test_a_full_disk_is_one_clear_error_and_loses_nothing_that_was_done(folder: Path) -> None:
    settings = dataclasses.replace(SETTINGS, rows_per_shard=64)
    whole = extract_features(folder / "whole", captioned(folder), make_teacher(), settings)
    resource = pytest.importorskip("resource", reason="limits the size of files, which only Unix can")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        too_large = whole.folder / "caption_features-00000.safetensors"
        resource.setrlimit(resource.RLIMIT_FSIZE, (too_large.stat().st_size - 1, hard))
        with pytest.raises(CacheError, match=r"could not be written: File too large. Finished files are kept"):
            extract_features(folder / "cache", captioned(folder), make_teacher(), settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    kept = sorted(path.name for path in (folder / "cache").iterdir())
    assert kept == [PLAN, "image_features-00000.safetensors"]
    extract_features(folder / "cache", captioned(folder), make_teacher(), settings)
    assert content(folder / "cache") == content(folder / "whole")


def test_a_disk_that_is_too_small_is_found_before_the_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 900})())
    with pytest.raises(CacheError, match="needs 960 bytes .* has 900 left"):
        extract_features(folder / "cache", captioned(folder), make_teacher(), SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "`batch_size` is 0: expected at least 1"),
        ({"feature_dtype": "int8"}, "`feature_dtype` is 'int8': expected one of float16, float32"),
        ({"on_error": "ignore"}, "`on_error` is 'ignore'"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SETTINGS, **change)
