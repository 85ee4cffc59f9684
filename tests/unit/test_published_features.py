"""Importers, on files that are written here in the published layouts."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kdmcse_hf.teacher.feature_file import FeatureFile
from kdmcse_hf.teacher.feature_import import import_features
from kdmcse_hf.teacher.json_import import import_json
from kdmcse_hf.teacher.shard import CacheError


def record(rng: np.random.Generator, captions: list[str], width: int = 4) -> dict[str, Any]:
    return {
        "image_feat": (7 * rng.normal(size=width)).astype(np.float16).tolist(),
        "captions": captions,
        "lang_feat": (7 * rng.normal(size=(len(captions), width))).astype(np.float16).tolist(),
    }


@pytest.fixture
def published() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"7.jpg": record(rng, ["a cat", 'said "hü"\n']), "3.jpg": record(rng, ["a dog"])}


def test_kdmcse_s_json_keeps_images_captions_and_raw_features(published: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "features.json").write_text(json.dumps(published))
    cache = import_json(tmp_path / "cache", tmp_path / "features.json", teacher_name="ViT-L/14")
    assert cache.images["image"][:] == ["7.jpg", "3.jpg"]
    assert cache.captions.to_dict() == {"caption": ["a cat", 'said "hü"\n', "a dog"], "image_row": [0, 0, 1]}
    np.testing.assert_array_equal(
        cache.image_features.rows([0, 1]), np.array([entry["image_feat"] for entry in published.values()], np.float16)
    )
    np.testing.assert_array_equal(
        cache.caption_features.rows([0, 1, 2]),
        np.array([row for entry in published.values() for row in entry["lang_feat"]], np.float16),
    )
    assert not cache.image_features.normalized
    assert cache.manifest["teacher"]["name"] == "ViT-L/14"
    cache.verify()


def test_the_json_is_never_whole_in_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "features.json"
    with open(path, "w") as file:
        file.write("{")
        for image in range(400):
            entry = json.dumps(record(rng, ["a cat"] * 5, width=256))
            file.write(f'{"," if image else ""}"{image}.jpg": {entry}')
        file.write("}")
    tracemalloc.start()
    import_json(tmp_path / "cache", path, teacher_name="t", rows_per_shard=100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 7e6
    assert peak < 3.5e6  # whatever the size of the file; parsed whole, this one takes 16 MB


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p["3.jpg"].pop("lang_feat"), r"image '3.jpg': found 'image_feat', 'captions', expected image_feat"),
        (lambda p: p["3.jpg"]["image_feat"].pop(), "image '3.jpg': its features are not one row of 4 numbers"),
        (lambda p: p["3.jpg"]["lang_feat"].append([1, 2, 3, 4]), "'3.jpg': its features are not .* 1 for its captions"),
        (lambda p: p["7.jpg"]["captions"].__setitem__(1, " "), "'7.jpg': a caption is empty"),
        (lambda p: p["7.jpg"].update(image_feat=["x"] * 4), "'7.jpg': its features are not"),
        (lambda p: p["7.jpg"].update(image_feat=[1e9] * 4), "Row 0 of the image features is NaN or infinite"),
        (lambda p: p.update({"3.jpg": [1]}), "'3.jpg': found list, expected image_feat"),
        (lambda p: p.clear(), "holds no images"),
    ],
)
def test_a_bad_entry_of_the_json_is_refused_by_its_image(
    change: Any, message: str, published: dict[str, Any], tmp_path: Path
) -> None:
    change(published)
    (tmp_path / "features.json").write_text(json.dumps(published))
    with pytest.raises(CacheError, match=message):
        import_json(tmp_path / "cache", tmp_path / "features.json", teacher_name="t")


def test_an_image_that_comes_twice_is_refused(published: dict[str, Any], tmp_path: Path) -> None:
    text = json.dumps(published)
    (tmp_path / "features.json").write_text(f"{text[:-1]}, {text[1:]}")
    with pytest.raises(CacheError, match="'7.jpg': it comes twice"):
        import_json(tmp_path / "cache", tmp_path / "features.json", teacher_name="t")


def test_a_json_that_was_cut_short_is_refused(published: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "features.json").write_text(json.dumps(published)[:-30])
    with pytest.raises(CacheError, match=r"features\.json is not valid JSON, or was cut short"):
        import_json(tmp_path / "cache", tmp_path / "features.json", teacher_name="t")


@pytest.fixture
def mcse(tmp_path: Path) -> dict[str, Any]:
    """MCSE's files: a caption a line, a feature row a line."""
    (tmp_path / "captions.txt").write_text("a cat\na dog, running\na cat\n")
    features = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    with h5py.File(tmp_path / "flickr.hdf5", "w") as file:
        file["features"] = features
    return {
        "captions_file": tmp_path / "captions.txt",
        "image_features_file": tmp_path / "flickr.hdf5",
        "teacher_name": "ResNet-50",
        "features": features,
    }


def test_mcse_s_hdf5_gives_every_caption_its_own_image(mcse: dict[str, Any], tmp_path: Path) -> None:
    features = mcse.pop("features")
    cache = import_features(tmp_path / "cache", **mcse)
    assert cache.captions.to_dict() == {"caption": ["a cat", "a dog, running", "a cat"], "image_row": [0, 1, 2]}
    np.testing.assert_array_equal(cache.image_features.rows([0, 1, 2]), features)
    assert cache.caption_features is None


def test_double_precision_is_stored_as_single(mcse: dict[str, Any], tmp_path: Path) -> None:
    features = mcse.pop("features").astype(np.float64)
    np.save(tmp_path / "images.npy", features)
    (tmp_path / "captions.csv").write_text("image,caption\na.jpg,x\nb.jpg,y\nc.jpg,z\n")
    mcse |= {"captions_file": tmp_path / "captions.csv", "image_features_file": tmp_path / "images.npy"}
    cache = import_features(tmp_path / "cache", **mcse)
    assert cache.image_features.dtype == np.float32
    np.testing.assert_array_equal(cache.image_features.rows([0, 1, 2]), features.astype(np.float32))


@pytest.mark.parametrize(
    ("captions", "tensor", "message"),
    [
        ("a\nb\n", "features", r"shape \(3, 4\): expected 2 rows"),
        ("a\n\nc\n", "features", r"captions\.txt, line 2: the caption is empty"),
        ("a\nb\nc\n", "feats", "no dataset 'features', only 'feats'"),
    ],
)
def test_hdf5_files_that_do_not_fit_their_captions_are_refused(
    captions: str, tensor: str, message: str, mcse: dict[str, Any], tmp_path: Path
) -> None:
    features = mcse.pop("features")
    mcse["captions_file"].write_text(captions)
    with h5py.File(mcse["image_features_file"], "w") as file:
        file[tensor] = features
    with pytest.raises(ValueError, match=message):
        import_features(tmp_path / "cache", **mcse)


def test_a_file_that_is_no_hdf5_is_refused_by_name(mcse: dict[str, Any], tmp_path: Path) -> None:
    del mcse["features"]
    mcse["image_features_file"].write_text("no")
    with pytest.raises(CacheError, match=r"flickr\.hdf5 cannot be read as features"):
        import_features(tmp_path / "cache", **mcse)


def safetensors_file(path: Path, dtype: torch.dtype) -> Path:
    save_file({"image_features": torch.ones(3, 4, dtype=dtype)}, path)
    return path


def npy_file(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def hdf5_group(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file.create_group("features")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: safetensors_file(p / "x.safetensors", torch.bfloat16), "holds bfloat16 features: expected float16"),
        (lambda p: safetensors_file(p / "x.safetensors", torch.int32), "holds I32 features: expected float16"),
        (lambda p: npy_file(p / "x.npy", np.ones((3, 4), np.int64)), "holds int64 features: expected float16"),
        (lambda p: npy_file(p / "x.npy", np.array(1.0)), r"holds features of shape \(\): expected 3 rows"),
        (lambda p: hdf5_group(p / "x.hdf5"), "cannot be read as features: its 'features' is a group, expected a data"),
    ],
)
def test_a_file_of_something_else_than_rows_of_floats_is_refused_by_name(
    make: Any, message: str, tmp_path: Path
) -> None:
    path = make(tmp_path)
    with pytest.raises(CacheError, match=f"{path} {message}"):
        FeatureFile(path, "image_features", 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_safetensors_of_every_kind_of_float_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    file = FeatureFile(safetensors_file(tmp_path / "x.safetensors", dtype), "image_features", 3)
    np.testing.assert_array_equal(next(file.chunks(np.array([0, 2]))), np.ones((2, 4)))


@pytest.mark.parametrize("file", ["captions.txt", "names.txt"])
def test_a_list_that_is_not_utf_8_is_named_with_its_line(file: str, mcse: dict[str, Any], tmp_path: Path) -> None:
    del mcse["features"]
    (tmp_path / "names.txt").write_text("00000000\n00000001\n00000002\n")
    (tmp_path / file).write_bytes("a\nb\nCafé\n".encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{tmp_path / file}, line 3: not UTF-8 .*b'\\xe9'.*Convert the file"):
        import_features(tmp_path / "cache", image_names_file=tmp_path / "names.txt", **mcse)
