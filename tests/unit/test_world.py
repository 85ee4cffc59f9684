"""The built-in world: what it claims about truth, similarity, files and its teacher."""

import csv
import filecmp
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdmcse_hf.world import (
    Meaning,
    Scene,
    SceneObject,
    StatedObject,
    caption,
    describes,
    draw,
    express,
    load_truth,
    sample_scene,
    sentence,
    sentence_pairs,
    similarity,
    state,
    write_student,
    write_world,
)
from kdmcse_hf.world.quality import area_under_curve, measure_quality
from kdmcse_hf.world.teacher import TEACHER_FOLDER, build_processor

RED_CIRCLE = StatedObject("circle", "red")
BLUE_SQUARE = StatedObject("square", "blue")
SMALL = {"num_images": 40, "captions_per_image": 3, "num_sentences": 60, "num_sts_pairs": 50}


def meanings(count: int, seed: int = 0) -> list[Meaning]:
    rng = random.Random(seed)
    return [state(sample_scene(rng), rng) for _ in range(count)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, **SMALL, seed=3)
    return folder


def read_sts(folder: Path, split: str) -> list[list[str]]:
    text = (folder / "sts" / "STS" / "STSBenchmark" / f"sts-{split}.csv").read_text(encoding="utf-8")
    return [line.split("\t") for line in text.splitlines()]


def files_of(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


# Captions


def test_a_caption_is_true_of_its_own_scene() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        scene = sample_scene(rng)
        text, meaning = caption(scene, rng)
        assert describes(meaning, scene), text


def test_a_caption_is_false_once_order_or_binding_or_background_differ() -> None:
    circle, square = SceneObject("circle", "red", "large"), SceneObject("square", "blue", "small")
    scene = Scene((circle, square), "column", "white")
    assert describes(Meaning((RED_CIRCLE, BLUE_SQUARE), "column"), scene)
    assert describes(Meaning((BLUE_SQUARE, RED_CIRCLE)), scene)
    assert not describes(Meaning((BLUE_SQUARE, RED_CIRCLE), "column"), scene)
    assert not describes(Meaning((RED_CIRCLE, BLUE_SQUARE), "row"), scene)
    assert not describes(Meaning((StatedObject("circle", "blue"),)), scene)
    assert not describes(Meaning((RED_CIRCLE, RED_CIRCLE)), scene)
    assert not describes(Meaning((RED_CIRCLE,), None, "grey"), scene)


def test_the_objects_of_a_stated_order_need_not_be_neighbours() -> None:
    things = [SceneObject("circle", "red", "large"), SceneObject("star", "pink", "small")]
    scene = Scene((*things, SceneObject("square", "blue", "small")), "row", "white")
    assert describes(Meaning((RED_CIRCLE, BLUE_SQUARE), "row"), scene)


def test_the_same_state_of_chance_gives_the_same_caption() -> None:
    scene = sample_scene(random.Random(5))
    assert caption(scene, random.Random(1)) == caption(scene, random.Random(1))


def test_one_meaning_is_said_in_many_ways() -> None:
    rng = random.Random(0)
    said = {express(Meaning((RED_CIRCLE, BLUE_SQUARE), "column"), rng) for _ in range(300)}
    assert len(said) > 200
    assert any("above" in text for text in said) and any("below" in text for text in said)


def test_swapped_objects_can_be_said_with_the_same_words() -> None:
    first = express(Meaning((RED_CIRCLE, BLUE_SQUARE), "row"), random.Random(4))
    second = express(Meaning((BLUE_SQUARE, RED_CIRCLE), "row"), random.Random(4))
    assert first != second
    assert set(first.replace(",", "").split()) == set(second.replace(",", "").split())


# Similarity


def test_similarity_is_symmetric_and_in_range() -> None:
    for a, b in zip(meanings(2000, 1), meanings(2000, 2), strict=True):
        assert similarity(a, b) == similarity(b, a)
        assert 0 <= similarity(a, b) <= 1


def test_similarity_is_one_exactly_for_equal_meanings() -> None:
    sample = list(dict.fromkeys(meanings(200)))
    for i, a in enumerate(sample):
        for b in sample[i:]:
            assert (similarity(a, b) == 1) == (a == b)


def test_a_relation_told_from_the_other_side_is_the_same_meaning() -> None:
    texts, rng = {}, random.Random(0)
    for _ in range(200):
        texts[express(Meaning((RED_CIRCLE, BLUE_SQUARE), "column"), rng)] = None
    # "A ... above B" and "B ... below A" both come from one meaning, and order without a relation says nothing.
    assert any(text.index("square") < text.index("circle") for text in texts if "square" in text and "circle" in text)
    assert Meaning((RED_CIRCLE, BLUE_SQUARE)) == Meaning((BLUE_SQUARE, RED_CIRCLE))


def test_binding_and_order_swaps_score_below_one() -> None:
    told = Meaning((RED_CIRCLE, BLUE_SQUARE), "column")
    binding = Meaning((StatedObject("circle", "blue"), StatedObject("square", "red")), "column")
    order = Meaning((BLUE_SQUARE, RED_CIRCLE), "column")
    assert similarity(told, binding) == pytest.approx(0.5)
    assert similarity(told, order) == pytest.approx(0.6)


def test_similarity_follows_its_formula_on_a_worked_case() -> None:
    full = Meaning((StatedObject("circle", "red", "small"), BLUE_SQUARE), "row", "white")
    part = Meaning((StatedObject("circle", "red"),))
    objects = (0.4 + 0.4 + 0.5 * 0.2) / 2
    assert similarity(full, part) == pytest.approx(objects * (1 - 0.4 * 0.5) * (1 - 0.15 * 0.5))


# Scenes and pictures


def test_a_few_in_a_hundred_unpaired_captions_and_pictures_are_true() -> None:
    rng = random.Random(11)
    true = pairs = equal = 0
    for _ in range(10):
        scenes = [sample_scene(rng) for _ in range(64)]
        told = [state(scene, rng) for scene in scenes]
        true += sum(describes(a, b) for i, a in enumerate(told) for j, b in enumerate(scenes) if i != j)
        pairs += 64 * 63
        equal += 64 - len(set(scenes))
    assert 0.01 <= true / pairs <= 0.03
    assert equal / 10 >= 1


def test_two_drawings_of_one_scene_differ_and_one_state_gives_one_picture() -> None:
    scene = sample_scene(random.Random(2))
    first, second = draw(scene, random.Random(0)), draw(scene, random.Random(1))
    assert first.size == (64, 64) and first.mode == "RGB"
    assert first.tobytes() != second.tobytes()
    assert first.tobytes() == draw(scene, random.Random(0)).tobytes()


def test_impossible_scenes_meanings_and_sizes_are_refused() -> None:
    thing = SceneObject("circle", "red", "large")
    with pytest.raises(ValueError, match="1 to 3 objects, got 4"):
        Scene((thing,) * 4, "row", "white")
    with pytest.raises(ValueError, match="axis='row'"):
        Scene((thing,), "column", "white")
    with pytest.raises(ValueError, match="no `axis`, got 'row'"):
        Meaning((RED_CIRCLE,), "row")
    with pytest.raises(ValueError, match="1 to 3 objects, got 0"):
        Meaning(())
    with pytest.raises(ValueError, match="at least 16 pixels"):
        draw(Scene((thing,), "row", "white"), random.Random(0), size=8)


# Files


def test_a_world_is_its_seed_to_the_byte(world: Path, tmp_path: Path) -> None:
    write_world(tmp_path / "again", **SMALL, seed=3)
    names = files_of(world)
    assert names == files_of(tmp_path / "again")
    assert filecmp.cmpfiles(world, tmp_path / "again", names, shallow=False)[0] == names
    write_world(tmp_path / "other", **SMALL, seed=4)
    assert (tmp_path / "other" / "captions.csv").read_bytes() != (world / "captions.csv").read_bytes()


def test_no_line_of_text_is_empty(world: Path) -> None:
    lines = (world / "sentences.txt").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""  # the file ends with a newline
    assert len(lines) == SMALL["num_sentences"]
    assert all(line.strip() == line != "" for line in lines)


def test_captions_name_existing_pictures_in_order(world: Path) -> None:
    with (world / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "caption"]
    assert len(rows) == SMALL["num_images"] * SMALL["captions_per_image"]
    truth = load_truth(world)
    names = list(dict.fromkeys(row["image"] for row in rows))
    assert [names.index(row["image"]) for row in rows] == truth.image_of_caption.tolist()
    assert sorted(path.name for path in (world / "images").iterdir()) == names
    assert (truth.num_images, truth.num_captions) == (len(names), len(rows))


@pytest.mark.parametrize("split", ["dev", "test"])
def test_sts_files_have_the_benchmark_layout_and_spread_scores(world: Path, split: str) -> None:
    rows = read_sts(world, split)
    assert len(rows) == SMALL["num_sts_pairs"]
    assert {len(row) for row in rows} == {7}
    scores = np.array([float(row[4]) for row in rows])
    assert scores.min() >= 0 and scores.max() <= 5
    assert np.histogram(scores, bins=[0, 1, 2, 3, 4, 5])[0].tolist() == pytest.approx([10] * 5, abs=2)
    assert all(row[5] and row[6] and row[5] != row[6] for row in rows)


def test_dev_and_test_pairs_differ(world: Path) -> None:
    assert not {tuple(row[5:]) for row in read_sts(world, "dev")} & {tuple(row[5:]) for row in read_sts(world, "test")}


def test_hard_pairs_are_there_and_word_overlap_does_not_tell() -> None:
    pairs = sentence_pairs(random.Random(0), 300)
    swaps = [pair for pair in pairs if pair.kind in ("binding", "order")]
    assert len(swaps) > 20
    assert max(pair.score for pair in swaps if sorted(pair.first.split()) == sorted(pair.second.split())) < 5
    alike = [pair for pair in pairs if pair.kind == "paraphrase"]
    assert {pair.score for pair in alike} == {5.0}
    words = [({*pair.first.split()}, {*pair.second.split()}) for pair in alike]
    assert min(len(first & second) / len(first | second) for first, second in words) < 0.2


def test_pictures_of_another_world_are_not_mixed_in(world: Path) -> None:
    with pytest.raises(FileExistsError, match="not of this world"):
        write_world(world, num_images=2, num_sentences=1, num_sts_pairs=1)
    with pytest.raises(ValueError, match="`num_images` has to be at least 1, got 0"):
        write_world(world, num_images=0)


def test_plain_text_is_not_only_captions() -> None:
    rng = random.Random(0)
    lines = [sentence(rng) for _ in range(500)]
    assert sum(line.endswith("?") for line in lines) > 30
    assert len(set(lines)) > 450


# Truth


def test_the_truth_equals_a_slow_loop(world: Path) -> None:
    rng = random.Random("kdmcse_hf.world/3/scenes")
    scenes = [sample_scene(rng) for _ in range(SMALL["num_images"])]
    rng = random.Random("kdmcse_hf.world/3/captions")
    told = [caption(scene, rng)[1] for scene in scenes for _ in range(SMALL["captions_per_image"])]
    truth = load_truth(world)
    captions, images = list(range(0, 120, 2)), np.arange(39, -1, -1)
    slow = [[describes(told[row], scenes[image]) for image in images] for row in captions]
    assert truth.caption_true_of_image(captions, images).tolist() == slow
    same = [[told[a] == told[b] for b in captions] for a in captions]
    assert truth.same_meaning(captions, captions).tolist() == same


def test_a_truth_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "truth.json").write_text('{"format": 0}')
    with pytest.raises(ValueError, match="has format 0, expected 1"):
        load_truth(tmp_path)


# Student and teacher


def test_the_student_loads_offline_and_knows_every_word(world: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    write_student(tmp_path / "one", seed=1)
    write_student(tmp_path / "two", seed=1)
    names = files_of(tmp_path / "one")
    assert filecmp.cmpfiles(tmp_path / "one", tmp_path / "two", names, shallow=False)[0] == names
    model, tokenizer = AutoModel.from_pretrained(tmp_path / "one"), AutoTokenizer.from_pretrained(tmp_path / "one")
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (3, 128)
    lines = (world / "sentences.txt").read_text(encoding="utf-8").splitlines()
    pieces = [piece for line in lines for piece in tokenizer.tokenize(line.upper())]
    assert tokenizer.unk_token not in pieces
    assert sum(piece.startswith("##") for piece in pieces) < 0.01 * len(pieces)
    assert max(len(ids) for ids in tokenizer(lines).input_ids) <= tokenizer.model_max_length == 64


def test_the_shipped_teacher_is_a_clip_that_ranks_true_pictures_first() -> None:
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(TEACHER_FOLDER), CLIPProcessor.from_pretrained(TEACHER_FOLDER)
    assert model.dtype.is_floating_point and str(model.dtype) == "torch.float32"
    quality = measure_quality(model, processor, random.Random(99), num_images=200)
    assert quality.recall_at_1 > 0.3  # chance: about 0.03
    assert quality.recall_at_10 > 0.7
    assert quality.text_image_auc > 0.85


def test_the_shipped_teacher_is_small_and_its_tokenizer_is_the_one_the_command_builds() -> None:
    assert sum(path.stat().st_size for path in TEACHER_FOLDER.iterdir()) < 900_000
    from transformers import CLIPProcessor

    text = "from left to right, a crimson disc and a mini five-pointed shape"
    shipped, built = CLIPProcessor.from_pretrained(TEACHER_FOLDER), build_processor()
    assert shipped.tokenizer(text).input_ids == built.tokenizer(text).input_ids


def test_the_area_under_the_curve_counts_pairs_in_order() -> None:
    assert area_under_curve(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])) == 0.75
    with pytest.raises(ValueError, match="2 true and 0 false"):
        area_under_curve(np.zeros(2), np.ones(2, dtype=bool))


def test_the_world_imports_neither_torch_nor_transformers() -> None:
    # Loaded beside a bare parent package: what `kdmcse_hf` itself imports is not the world's doing.
    code = (
        "import sys, types; parent = types.ModuleType('kdmcse_hf'); parent.__path__ = [sys.argv[1]];"
        "sys.modules['kdmcse_hf'] = parent; import kdmcse_hf.world, kdmcse_hf.world.teacher;"
        "sys.exit(bool({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    package = str(TEACHER_FOLDER.parents[1])
    assert subprocess.run([sys.executable, "-c", code, package], check=False).returncode == 0
