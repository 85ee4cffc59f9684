import hashlib
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny import make_cache

from kdmcse_hf.teacher.cache import MANIFEST, TeacherCache, manifest_checksum, read_manifest
from kdmcse_hf.teacher.cache_writer import write_cache
from kdmcse_hf.teacher.feature_import import import_features
from kdmcse_hf.teacher.shard import CacheError


def arguments(**changes: object) -> dict:
    rng = np.random.default_rng(0)
    return {
        "images": ["a.jpg", "b.jpg"],
        "captions": ["one", "two", "three"],
        "image_rows": [0, 0, 1],
        "image_features": [rng.normal(size=(2, 4)).astype(np.float16)],
        "caption_features": [rng.normal(size=(3, 4)).astype(np.float16)],
        "teacher": {"name": "t"},
        "source": {},
        **changes,
    }


def test_rows_come_back_as_written_across_shards_in_any_order(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    cache = write_cache(
        tmp_path,
        **arguments(
            images=[f"{i}" for i in range(50)],
            image_features=[features[:7], features[7:8], features[8:]],  # chunks need not be shards
        ),
        rows_per_shard=8,
    )
    assert len(list(tmp_path.glob("image_features-*.safetensors"))) == 7
    order = np.random.default_rng(1).integers(50, size=200)
    np.testing.assert_array_equal(cache.image_features.rows(order), features[order])
    assert cache.image_features.rows([]).shape == (0, 6)


def test_a_cache_has_more_shards_than_a_process_may_open_files(tmp_path: Path) -> None:
    features = np.arange(400, dtype=np.float32).reshape(200, 2)
    cache = write_cache(
        tmp_path / "cache",
        images=[f"{row}.jpg" for row in range(200)],
        captions=["a cat"] * 200,
        image_rows=list(range(200)),
        image_features=[features],
        caption_features=None,
        teacher={"name": "random"},
        source={},
        rows_per_shard=1,
    )
    used = len(os.listdir("/proc/self/fd"))
    np.testing.assert_array_equal(cache.image_features.rows(range(200)), features)
    assert len(os.listdir("/proc/self/fd")) - used < 150
    np.testing.assert_array_equal(cache.image_features.rows([0, 199, 0]), features[[0, 199, 0]])


def test_a_pickled_cache_is_the_folder_opened_again(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, num_images=200, width=400)
    content = pickle.dumps(cache)
    assert len(content) < 1000
    again = pickle.loads(content)
    np.testing.assert_array_equal(again.image_features.rows([3, 150]), cache.image_features.rows([3, 150]))


def test_captions_keep_their_image(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, **arguments())
    assert cache.captions.to_dict() == {"caption": ["one", "two", "three"], "image_row": [0, 0, 1]}
    assert cache.images["image"][:] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_manifest_knows_whether_features_are_normalised(tmp_path: Path, scale: float) -> None:
    features = np.random.default_rng(0).normal(size=(2, 4))
    features *= scale / np.linalg.norm(features, axis=1, keepdims=True)
    cache = write_cache(tmp_path, **arguments(image_features=[features.astype(np.float16)]))
    assert cache.manifest["image_features"]["normalized"] is (scale == 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_feature_that_is_not_finite_is_refused_by_row(tmp_path: Path, bad: float) -> None:
    features = np.ones((3, 4), dtype=np.float32)
    features[1, 2] = bad
    with pytest.raises(CacheError, match="Row 1 of the caption features is NaN or infinite"):
        write_cache(tmp_path, **arguments(caption_features=[features]))
    with pytest.raises(CacheError, match=f"no {MANIFEST}"):
        TeacherCache(tmp_path)  # nothing half done passes for a cache


def test_an_empty_caption_is_refused_by_row_and_image(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"Caption 1 \(image 'a.jpg'\) is empty"):
        write_cache(tmp_path, **arguments(captions=["one", " \t", "three"]))


def test_missing_rows_are_refused_with_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="2 rows of caption features for 3 captions"):
        write_cache(tmp_path, **arguments(caption_features=[np.ones((2, 4), dtype=np.float32)]))


def test_an_image_row_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="from 0 to 7: expected one a caption, each from 0 to 1"):
        write_cache(tmp_path, **arguments(image_rows=[0, 7, 1]))


def test_a_cache_is_never_overwritten(tmp_path: Path) -> None:
    make_cache(tmp_path)
    with pytest.raises(CacheError, match="already holds a teacher cache"):
        make_cache(tmp_path)


def test_a_truncated_shard_is_refused_by_name_and_size(tmp_path: Path) -> None:
    make_cache(tmp_path)
    shard = tmp_path / "caption_features-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(CacheError, match=f"{shard} is .* bytes long, but the manifest says"):
        TeacherCache(tmp_path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    make_cache(tmp_path)
    (tmp_path / "captions.arrow").unlink()
    with pytest.raises(CacheError, match=r"captions\.arrow is missing"):
        TeacherCache(tmp_path)


def test_verify_finds_one_flipped_bit(tmp_path: Path) -> None:
    make_cache(tmp_path).verify()
    shard = tmp_path / "image_features-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CacheError, match=f"{shard} has SHA-256"):
        TeacherCache(tmp_path).verify()


def rewrite(folder: Path, manifest: dict) -> None:
    """Changes a manifest as somebody would who means it: with its checksum."""
    manifest["checksum"] = manifest_checksum(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    make_cache(tmp_path)
    path = tmp_path / MANIFEST
    path.write_text(path.read_text().replace('"name": "random"', '"name": "openai/clip"'))
    with pytest.raises(CacheError, match=r"manifest\.json was changed: its own checksum is '\w+', its content gives"):
        TeacherCache(tmp_path)


def test_another_cache_s_manifest_is_refused_by_the_shard_it_does_not_fit(tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        make_cache(tmp_path / name, seed=seed)
    manifest = read_manifest(tmp_path / "one")
    manifest["teacher"]["digest"] = "0" * 16
    rewrite(tmp_path / "one", manifest)
    with pytest.raises(CacheError, match=r"image_features-00000.* teacher '\w+' where the manifest says '0{16}'"):
        TeacherCache(tmp_path / "one")
    (tmp_path / "one" / MANIFEST).write_bytes((tmp_path / "two" / MANIFEST).read_bytes())
    with pytest.raises(CacheError, match=r"captions\.arrow is .* bytes long, but the manifest says"):
        TeacherCache(tmp_path / "one")


@pytest.mark.parametrize("name", ["../precious.arrow", "/tmp/precious.arrow", "a/b.arrow", "precious.txt"])
def test_a_manifest_never_reaches_beyond_its_folder(name: str, tmp_path: Path) -> None:
    make_cache(tmp_path)
    manifest = read_manifest(tmp_path)
    manifest["images"]["file"] = name
    rewrite(tmp_path, manifest)
    with pytest.raises(CacheError, match="expected a plain name of a file beside it"):
        TeacherCache(tmp_path)


@pytest.mark.parametrize("content", ["[]", "no json", '{"format": 1}'])
def test_what_is_no_manifest_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(CacheError, match="is not a manifest|expected 'kdmcse_hf teacher cache' version 1"):
        TeacherCache(tmp_path)


def test_a_shard_that_contradicts_the_manifest_is_refused(tmp_path: Path) -> None:
    make_cache(tmp_path)
    manifest = read_manifest(tmp_path)
    manifest["image_features"]["width"] = 13
    rewrite(tmp_path, manifest)
    with pytest.raises(CacheError, match=r"shape \(16, 12\) where the manifest says \(16, 13\)"):
        TeacherCache(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"format": "something else"}')
    with pytest.raises(CacheError, match="'something else' version None: expected"):
        TeacherCache(tmp_path)


@pytest.fixture
def kit(tmp_path: Path) -> dict:
    """Feature files as other projects leave them."""
    rng = np.random.default_rng(0)
    features = {
        "image_features": rng.normal(size=(3, 4)).astype(np.float16),
        "caption_features": rng.normal(size=(4, 4)).astype(np.float16),
    }
    save_file(features, tmp_path / "both.safetensors")
    (tmp_path / "names.txt").write_text("b.jpg\na.jpg\nc.jpg\n")
    (tmp_path / "captions.csv").write_text('image,caption\na.jpg,"NA"\na.jpg,"said ""hi"", left"\nb.jpg,x\nc.jpg,y\n')
    (tmp_path / "splits.csv").write_text("image,split\na.jpg,train\nb.jpg,test\nc.jpg,train\n")
    return {
        "captions_file": tmp_path / "captions.csv",
        "image_features_file": tmp_path / "both.safetensors",
        "caption_features_file": tmp_path / "both.safetensors",
        "image_names_file": tmp_path / "names.txt",
        "teacher_name": "t",
        "features": features,
    }


def test_imported_features_follow_their_names_and_rows(kit: dict, tmp_path: Path) -> None:
    features = kit.pop("features")
    cache = import_features(tmp_path / "cache", **kit, splits_file=tmp_path / "splits.csv", split="train")
    assert cache.images["image"][:] == ["a.jpg", "c.jpg"]
    assert cache.captions.to_dict() == {"caption": ["NA", 'said "hi", left', "y"], "image_row": [0, 0, 1]}
    np.testing.assert_array_equal(cache.image_features.rows([0, 1]), features["image_features"][[1, 2]])
    digest = hashlib.sha256((tmp_path / "captions.csv").read_bytes()).hexdigest()
    assert cache.manifest["source"]["captions"] == {"file": "captions.csv", "sha256": digest}
    np.testing.assert_array_equal(cache.caption_features.rows([0, 1, 2]), features["caption_features"][[0, 1, 3]])


def test_npy_features_import_without_names_in_the_order_of_the_table(kit: dict, tmp_path: Path) -> None:
    features = kit.pop("features")
    np.save(tmp_path / "images.npy", features["image_features"])
    kit |= {"image_features_file": tmp_path / "images.npy", "caption_features_file": None, "image_names_file": None}
    cache = import_features(tmp_path / "cache", **kit)
    assert cache.images["image"][:] == ["a.jpg", "b.jpg", "c.jpg"]
    assert cache.caption_features is None
    np.testing.assert_array_equal(cache.image_features.rows([0, 1, 2]), features["image_features"])


def test_captions_and_splits_import_from_the_files_that_were_published(kit: dict, tmp_path: Path) -> None:
    del kit["features"]
    kit["captions_file"] = tmp_path / "results.token"
    kit["captions_file"].write_text("a.jpg#0\tv\na.jpg#1\tw\nb.jpg#0\tx\nc.jpg#0\ty\n")
    splits = {"a.jpg": "train", "b.jpg": "val", "c.jpg": "restval"}
    images = [{"filename": name, "split": split, "sentences": [{"raw": "x"}]} for name, split in splits.items()]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": images}))
    cache = import_features(tmp_path / "cache", **kit, splits_file=tmp_path / "dataset.json", split="train+restval")
    assert cache.images["image"][:] == ["a.jpg", "c.jpg"]
    assert cache.captions["caption"][:] == ["v", "w", "y"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("captions.csv", "image,text\na.jpg,x\n", r"captions\.csv, line 1: expected one column 'caption'"),
        ("captions.csv", "image,caption\na.jpg,x\nb.jpg,\n", r"captions\.csv, line 3: the caption is empty"),
        ("captions.csv", "image,caption\nz.jpg,x\n", "1 images without features, such as 'z.jpg'"),
        ("captions.csv", "image,caption\na.jpg,x\n", "expected 1 rows"),
        ("captions.csv", "", "has no rows"),
        ("names.txt", "b.jpg\na.jpg\n", "1 images without features|expected 2 rows"),
        ("names.txt", "a.jpg\na.jpg\nc.jpg\n", "names an image twice"),
        ("splits.csv", "image,split\na.jpg,test\n", "no image in split 'train': it has 'test'"),
        ("both.safetensors", "not safetensors at all", "cannot be read as features"),
    ],
)
def test_bad_input_files_are_refused_by_name(file: str, content: str, message: str, kit: dict, tmp_path: Path) -> None:
    del kit["features"]
    (tmp_path / file).write_text(content)
    with pytest.raises((CacheError, ValueError), match=message):
        import_features(tmp_path / "cache", **kit, splits_file=tmp_path / "splits.csv", split="train")


def test_a_missing_feature_file_is_refused_by_name(kit: dict, tmp_path: Path) -> None:
    del kit["features"]
    kit["image_features_file"] = tmp_path / "gone.npy"
    with pytest.raises(FileNotFoundError, match=r"gone\.npy does not exist"):
        import_features(tmp_path / "cache", **kit)


def test_a_pickled_array_is_never_loaded(kit: dict, tmp_path: Path) -> None:
    del kit["features"]
    np.save(tmp_path / "images.npy", np.array([{"a": 1}] * 3, dtype=object), allow_pickle=True)
    kit["image_features_file"] = tmp_path / "images.npy"
    with pytest.raises(CacheError, match=r"images\.npy cannot be read as features"):
        import_features(tmp_path / "cache", **kit)
