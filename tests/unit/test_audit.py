import dataclasses
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import make_cache, make_sentences

from kdmcse_hf.audit import filter as audit_filter
from kdmcse_hf.audit import page as audit_page
from kdmcse_hf.audit.chart import draw_chart
from kdmcse_hf.audit.gallery import LENGTH, LISTS, Example
from kdmcse_hf.audit.page import decimal, percent, render_page
from kdmcse_hf.audit.report import Audit, audit_pairs
from kdmcse_hf.calibration import QUANTILES, calibrate
from kdmcse_hf.cli import main
from kdmcse_hf.objective import PairEmbeddings, compute_objective
from kdmcse_hf.presets import PRESETS
from kdmcse_hf.schedule import Schedule
from kdmcse_hf.teacher.cache import MANIFEST, TeacherCache, manifest_checksum
from kdmcse_hf.teacher.cache_writer import write_cache
from kdmcse_hf.teacher.pairs import TeacherPairs
from kdmcse_hf.threshold import Threshold

BATCH, BATCHES, SEED = 12, 9, 3
KDMCSE = PRESETS["kdmcse"]
UNMASKED = dataclasses.replace(KDMCSE, mask_same_image=False)
Cell = tuple[float, bool, bool, int, int]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> TeacherPairs:
    return TeacherPairs(make_cache(tmp_path_factory.mktemp("cache"), num_images=20, captions_per_image=3))


def audit(pairs: TeacherPairs, objective: Any = KDMCSE, **options: Any) -> Audit:
    return audit_pairs(pairs, objective, **{"batch_size": BATCH, "num_batches": BATCHES, "seed": SEED, **options})


def batch_rows(pairs: TeacherPairs, batches: int = BATCHES) -> list[Any]:
    schedule = Schedule(0, len(pairs), BATCH, None, SEED)
    return [schedule.rows(step)[1] for step in range(batches)]


def slow_cells(pairs: TeacherPairs, source: str, threshold: Threshold) -> Iterator[Cell]:
    """(cosine, removed, of one image, anchor, candidate) of all different pairs of every batch, one at a time."""
    for rows in batch_rows(pairs):
        features = pairs.features(rows, frozenset({"image", "text"}))
        left, right = (features[f"teacher_{side}_embeds"].astype(np.float64) for side in source.split("_"))
        for a in range(BATCH):
            limit = threshold.value * (cosine(left[a], right[a]) if threshold.kind == "relative" else 1)
            for c in range(BATCH):
                if a != c:
                    value = cosine(left[a], right[c])
                    same = features["image_ids"][a] == features["image_ids"][c]
                    yield value, value > limit, bool(same), int(rows[a]), int(rows[c])


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    return float(left @ right / np.sqrt((left @ left) * (right @ right)))


@pytest.mark.parametrize("objective", [KDMCSE, UNMASKED], ids=["same image masked", "same image kept"])
@pytest.mark.parametrize("source", ["text_image", "image_text", "text_text", "image_image"])
@pytest.mark.parametrize("text", ["cosine:0.35", "relative:0.6"])
def test_every_figure_equals_a_slow_loop_over_the_batches_of_training(
    pairs: TeacherPairs, objective: Any, source: str, text: str
) -> None:
    cells = list(slow_cells(pairs, source, Threshold.parse(text)))
    negatives = [cell for cell in cells if not (cell[2] and objective.mask_same_image)]
    above = [cell for cell in cells if cell[1]]
    removed = [cell for cell in negatives if cell[1]]

    found = audit(pairs, objective, thresholds={source: [text]}, margin=0.2).maps[source]

    assert found.negatives_per_batch == len(negatives) / BATCHES
    assert found.same_image_share == sum(cell[2] for cell in cells) / len(cells) > 0
    cosines = [cell[0] for cell in negatives]
    nearest = np.quantile(cosines, QUANTILES, method="nearest")
    assert list(found.negatives) == list(QUANTILES)
    assert list(found.negatives.values()) == pytest.approx(nearest, abs=1e-6)
    margins = np.quantile([(1 - value) * 0.2 for value in cosines], QUANTILES, method="nearest")
    assert list(found.margin_radians.values()) == pytest.approx(margins, abs=1e-6)
    assert list(found.margin_degrees.values()) == pytest.approx(np.rad2deg(margins), abs=1e-4)
    (measured,) = found.filters
    assert measured.removed_per_batch == len(removed) / BATCHES > 0
    assert measured.filter_rate == len(removed) / len(negatives)
    assert measured.same_image_share == sum(cell[2] for cell in above) / len(above)
    assert sum(found.histogram.negatives) == len(negatives)
    assert sum(found.histogram.positives) == BATCH * BATCHES


@pytest.mark.parametrize("objective", [KDMCSE, UNMASKED, PRESETS["kdmcse_reference"]])
def test_the_share_is_the_filter_rate_that_training_logs_for_the_same_batches(
    pairs: TeacherPairs, objective: Any
) -> None:
    objective = dataclasses.replace(objective, image_threshold="relative:0.6", caption_threshold="cosine:0.3")
    logged, negatives = [], []
    for rows in batch_rows(pairs):
        heads = torch.randn(BATCH, 2, 4)
        batch = dataclasses.replace(
            pairs.embeddings(rows, objective.needs), text=heads, grounded=heads, image=heads[:, 0], caption=heads[:, 1]
        )
        rates = compute_objective(objective, batch).rates
        logged.append([rates["image_filter_rate"].item(), rates["caption_filter_rate"].item()])
        same_image = (batch.image_ids[:, None] == batch.image_ids).sum().item()
        negatives.append(BATCH**2 - (same_image if objective.mask_same_image else BATCH))
    found = audit(pairs, objective)
    sources = {objective.image_filter_source: "relative:0.6", objective.caption_filter_source: "cosine:0.3"}
    measured = [found.maps[source].filters[0] for source in sources]
    assert [one.threshold for one in measured] == list(sources.values())
    assert [one.filter_rate for one in measured] == pytest.approx(np.average(logged, axis=0, weights=negatives))
    assert np.min(logged) > 0


def test_without_thresholds_the_objectives_own_are_audited_on_the_maps_that_they_filter(pairs: TeacherPairs) -> None:
    found = audit(pairs)
    assert {name: [f.threshold for f in cosines.filters] for name, cosines in found.maps.items()} == {
        "text_image": ["relative:0.85"],
        "text_text": ["relative:0.85"],
        "image_image": [],
    }
    assert found.preset == "kdmcse"
    assert found.maps["text_image"].uses == ["filters the image term", "scales the margins of the image term"]
    swapped = dataclasses.replace(KDMCSE, caption_filter_source="image_text", caption_threshold="cosine:0.2")
    found = audit(pairs, swapped)
    assert found.preset == "custom"
    assert [f.threshold for f in found.maps["image_text"].filters] == ["cosine:0.2"]


def test_a_rate_is_audited_as_the_cosine_that_training_with_this_seed_would_calibrate(
    pairs: TeacherPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_filter, "CALIBRATION_PAIRS", 30)
    objective = dataclasses.replace(KDMCSE, image_threshold="rate:0.1", caption_threshold="rate:0.02")
    calibrated, _ = calibrate(objective, pairs.sample(30, objective.needs, SEED))
    found = audit(pairs, objective)
    assert found.maps["text_image"].filters[0].applied == calibrated.image_threshold
    assert found.maps["text_text"].filters[0].applied == calibrated.caption_threshold


@pytest.mark.parametrize("rate", [0.005, 0.1, 0.4])
@pytest.mark.parametrize("source", ["text_image", "text_text"])
def test_the_thresholds_named_for_a_wanted_rate_remove_that_share_of_the_batches(
    pairs: TeacherPairs, source: str, rate: float
) -> None:
    (wanted,) = audit(pairs, filter_rates=[rate]).maps[source].rates
    again = audit(pairs, thresholds={source: [wanted.cosine, wanted.relative]}).maps[source]
    assert [found.filter_rate for found in again.filters] == [wanted.cosine_filter_rate, wanted.relative_filter_rate]
    steps = 4 / (again.negatives_per_batch * BATCHES)  # a pair may occur in several batches
    assert [found.filter_rate for found in again.filters] == pytest.approx([rate, rate], abs=steps)


def opposed(folder: Path) -> TeacherPairs:
    """Eight captions, each opposed to all others: every cosine of two of them is -1/7."""
    features = (np.eye(8) - 1 / 8).astype(np.float32)
    return TeacherPairs(
        write_cache(
            folder,
            images=[f"{row}.jpg" for row in range(8)],
            captions=make_sentences(8),
            image_rows=list(range(8)),
            image_features=[features],
            caption_features=[features],
            teacher={"name": "opposed"},
            source={},
        )
    )


def test_where_no_factor_removes_the_wanted_share_no_relative_threshold_is_named(tmp_path: Path) -> None:
    found = audit_pairs(opposed(tmp_path), KDMCSE, filter_rates=[0.1], batch_size=4, num_batches=2)
    (rate,) = found.maps["text_image"].rates
    assert rate.relative is None and rate.relative_filter_rate is None
    assert found.maps["text_image"].negatives == pytest.approx(dict.fromkeys(QUANTILES, -1 / 7), abs=1e-6)


def test_a_threshold_that_cannot_work_is_warned_of_with_a_cosine_that_can(pairs: TeacherPairs) -> None:
    found = audit(pairs, thresholds={"text_image": ["cosine:0.99", "cosine:-1", "cosine:0.4"]}).maps["text_image"]
    nothing, everything, fine = (entry.warning for entry in found.filters)
    assert nothing.startswith("cosine:0.99 removes nothing: the negatives' text_image cosines go from -0.")
    assert everything.startswith("cosine:-1 removes 100% of the negatives, more than the 50% that training accepts")
    assert fine is None
    for warning in (nothing, everything):
        better = re.search(r"A cosine of (\S+) would", warning).group(1)
        again = audit(pairs, thresholds={"text_image": [f"cosine:{better}"]}).maps["text_image"]
        assert again.filters[0].filter_rate == pytest.approx(0.005, abs=0.003)
    assert found.filters[0].same_image_share is None
    assert found.filters[0].examples["most_similar"] == []


def test_an_image_only_cache_has_one_map_and_says_why_the_others_are_left_out(tmp_path: Path) -> None:
    found = audit(TeacherPairs(make_cache(tmp_path, text=False)))
    assert list(found.maps) == ["image_image"]
    assert found.notes == [
        f"{source} is left out: the cache has no caption features." for source in ("text_image", "text_text")
    ]


def test_features_of_different_widths_are_compared_within_their_kind_only(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cache = write_cache(
        tmp_path,
        images=[f"{row}.jpg" for row in range(24)],
        captions=make_sentences(24),
        image_rows=list(range(24)),
        image_features=[rng.normal(size=(24, 6)).astype(np.float32)],
        caption_features=[rng.normal(size=(24, 4)).astype(np.float32)],
        teacher={"name": "two"},
        source={},
    )
    found = audit(TeacherPairs(cache), thresholds={"text_text": ["cosine:0.5"]})
    assert list(found.maps) == ["text_text", "image_image"]
    assert found.notes == [
        "text_image is left out: caption features of width 4 and image features of width 6 are not in one space."
    ]
    with pytest.raises(ValueError, match="text_image cosines cannot be audited: caption features of width 4"):
        audit(TeacherPairs(cache), thresholds={"text_image": ["cosine:0.5"]})


def test_rows_that_the_teacher_could_not_read_are_in_no_batch_and_in_no_example(tmp_path: Path) -> None:
    make_cache(tmp_path, num_images=16, captions_per_image=2)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    manifest["skipped"] = {"image": {"0": "broken"}, "caption": {"9": "empty"}}
    manifest["checksum"] = manifest_checksum(manifest)
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    pairs = TeacherPairs(TeacherCache(tmp_path))
    found = audit(pairs, UNMASKED, thresholds={"text_image": ["cosine:0.1"]}, num_batches=20)
    assert found.num_pairs == 32 - 3
    shown = {row for example in examples(found, "text_image") for row in example.caption_rows}
    assert shown and not shown & {0, 1, 9}


def examples(found: Audit, source: str, name: str | None = None) -> list[Example]:
    lists = found.maps[source].filters[0].examples
    return [example for key in lists if name in (None, key) for example in lists[key]]


@pytest.mark.parametrize("text", ["cosine:0.3", "relative:0.6"])
@pytest.mark.parametrize("source", ["text_image", "text_text"])
def test_the_examples_are_the_best_of_their_list_each_pair_once_each_picture_once_a_list(
    pairs: TeacherPairs, source: str, text: str
) -> None:
    threshold = Threshold.parse(text)
    found = audit(pairs, thresholds={source: [text]})
    negatives = [cell for cell in slow_cells(pairs, source, threshold) if not cell[2]]

    def limit(cell: Cell) -> float:
        features = pairs.features([cell[3]], frozenset({"image", "text"}))
        left, right = (features[f"teacher_{side}_embeds"][0].astype(np.float64) for side in source.split("_"))
        return threshold.value * (cosine(left, right) if threshold.kind == "relative" else 1)

    keys = {
        "most_similar": (lambda cell: -cell[0], True),
        "just_above": (lambda cell: cell[0] - limit(cell), True),
        "just_below": (lambda cell: limit(cell) - cell[0], False),
    }
    shown: set[frozenset[int]] = set()
    for name in LISTS:
        if name == "at_random":
            drawn = [frozenset(example.caption_rows) for example in examples(found, source, name)]
            rest = {frozenset(cell[3:]) for cell in negatives if cell[1]} - shown
            assert set(drawn) <= rest
            assert len(set(drawn)) == len(drawn) > 0
            shown |= set(drawn)
            continue
        key, removed = keys[name]
        expected: list[tuple[float, set[int]]] = []
        pictures: set[int] = set()
        for cell in sorted((cell for cell in negatives if cell[1] == removed), key=key):
            pair = frozenset(cell[3:])
            both = {int(pairs.image_rows[row]) for row in pair}
            if pair not in shown and not pictures & both and len(expected) < LENGTH:
                expected.append((cell[0], both))
                shown.add(pair)
                pictures |= both
        got = examples(found, source, name)
        # By their pictures: a caption has the same cosine with a picture whichever of its captions is drawn.
        assert [{int(pairs.image_rows[row]) for row in example.caption_rows} for example in got] == [
            both for _, both in expected
        ]
        assert [example.scores[source] for example in got] == pytest.approx([value for value, _ in expected], abs=1e-6)
        assert all((example.scores[source] > example.limit) == removed for example in got)
        assert len(got) > 1
    rows = [frozenset(example.caption_rows) for example in examples(found, source)]
    assert len(rows) == len(set(rows))


def test_an_example_carries_what_the_cache_says_of_its_rows_and_all_three_scores(pairs: TeacherPairs) -> None:
    for example in examples(audit(pairs), "text_image"):
        left, right = example.caption_rows
        assert example.captions == tuple(pairs.cache.captions[row]["caption"] for row in (left, right))
        rows = [pairs.cache.captions[row]["image_row"] for row in (left, right)]
        assert example.images == tuple(pairs.cache.images[row]["image"] for row in rows)
        texts, images = pairs.cache.caption_features.rows([left, right]), pairs.cache.image_features.rows(rows)
        assert example.scores == pytest.approx(
            {
                "text_image": cosine(texts[0], images[1]),
                "text_text": cosine(texts[0], texts[1]),
                "image_image": cosine(images[0], images[1]),
            },
            abs=1e-6,
        )


def test_pairs_of_one_image_are_shown_only_where_they_are_negatives(pairs: TeacherPairs) -> None:
    thresholds = {"image_image": ["cosine:0.5"]}
    assert all(len(set(e.images)) == 2 for e in examples(audit(pairs, thresholds=thresholds), "image_image"))
    kept = examples(audit(pairs, UNMASKED, thresholds=thresholds), "image_image", "most_similar")
    assert all(len(set(e.images)) == 1 and e.scores["image_image"] > 0.999 for e in kept)


def test_precision_recall_and_verdicts_are_those_of_the_truth(pairs: TeacherPairs) -> None:
    def truth(captions: np.ndarray, images: np.ndarray) -> np.ndarray:
        return (captions[:, None] + 2 * images) % 3 == 0

    def noisy(source: str, anchor: int, candidate: int) -> bool:
        either = [(anchor, candidate), (candidate, anchor)]
        wanted = {"text_image": either[:1], "image_text": either[1:]}.get(source, either)
        return any((caption + 2 * pairs.image_rows[other]) % 3 == 0 for caption, other in wanted)

    thresholds = dict.fromkeys(("text_image", "image_text", "text_text", "image_image"), ["cosine:0.3"])
    found = audit(pairs, thresholds=thresholds, truth=truth)
    for source, cosines in found.maps.items():
        cells = [cell for cell in slow_cells(pairs, source, Threshold("cosine", 0.3)) if not cell[2]]
        removed = [noisy(source, *cell[3:]) for cell in cells if cell[1]]
        everything = [noisy(source, *cell[3:]) for cell in cells]
        assert cosines.filters[0].precision == sum(removed) / len(removed)
        assert cosines.filters[0].recall == sum(removed) / sum(everything)
        assert cosines.noisy_share == sum(everything) / len(everything)
        assert sum(cosines.histogram.noisy) == sum(everything)
        assert all(e.noisy == noisy(source, *e.caption_rows) for e in examples(found, source))


def test_a_histogram_read_from_an_edge_up_is_the_filter_at_that_edge(pairs: TeacherPairs) -> None:
    histogram = audit(pairs).maps["text_image"].histogram
    for number in (1, len(histogram.edges) // 2, len(histogram.edges) - 3):
        text = f"cosine:{histogram.edges[number]}"
        removed = audit(pairs, thresholds={"text_image": [text]}).maps["text_image"].filters[0].removed_per_batch
        assert sum(histogram.negatives[number:]) == pytest.approx(removed * BATCHES)


def test_a_threshold_is_drawn_where_its_cosine_is_on_the_axis(pairs: TeacherPairs) -> None:
    found = audit(pairs, thresholds={"text_image": ["cosine:0.2", "cosine:0.95", "relative:0.5"]})
    chart = draw_chart(found, found.maps["text_image"])
    positions = [x for x, _ in chart.x_ticks]
    values = [float(label.replace("\N{MINUS SIGN}", "-")) for _, label in chart.x_ticks]
    scale = np.polyfit(values, positions, 1)
    cosines = [0.2, 0.95, found.maps["text_image"].filters[2].limits[0.5]]
    assert [mark.x for mark in chart.marks] == pytest.approx(np.polyval(scale, cosines), abs=0.01)
    assert chart.marks[0].left == chart.marks[0].right
    assert chart.marks[2].left < chart.marks[2].x < chart.marks[2].right
    assert 0 < min(positions) < max(positions) < 100


class Page(HTMLParser):
    """Elements with their attributes, and the text of captions."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self._inside = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag == "p" and (dict(attrs).get("class") or "").startswith("said")
        if self._inside:
            self.said.append("")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.said[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


HOSTILE = [
    "<script>alert(1)</script>",
    'a "quoted" caption & more',
    "one line\nand another",
    "{{ audit }} {% raw %}",
    "</style><img src=x onerror=alert(1)>",
    "\u202eright to left \u05e9\u05dc\u05d5\u05dd",
    "it's 'single' `ticks` ${1}",
    "<!-- a comment",
]


def hostile(folder: Path) -> TeacherPairs:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(8, 3)).astype(np.float32)
    return TeacherPairs(
        write_cache(
            folder,
            images=[f"<b>\"{row}'.jpg" for row in range(8)],
            captions=HOSTILE,
            image_rows=list(range(8)),
            image_features=[features],
            caption_features=[features],
            teacher={"name": "<i>teacher</i>", "revision": "</title><script>"},
            source={},
        )
    )


def test_captions_and_names_arrive_on_the_page_as_text_and_never_as_markup(tmp_path: Path) -> None:
    found = audit_pairs(hostile(tmp_path), KDMCSE, batch_size=8, num_batches=3, thresholds={"text_text": ["cosine:0"]})
    plain = Page(render_page(found, lambda name: Image.new("RGB", (8, 8))))
    assert set(plain.said) == set(HOSTILE)
    assert plain.count("script") == plain.count("style") == plain.count("title") == 1
    assert plain.count("b") == plain.count("i") == 0
    pictures = [attributes for tag, attributes in plain.elements if tag == "img"]
    assert {attributes["alt"] for attributes in pictures} <= {f"picture <b>\"{row}'.jpg" for row in range(8)}
    assert not any(name.startswith("on") for _, attributes in plain.elements for name in attributes)


def test_the_page_refers_to_nothing_outside_of_itself(pairs: TeacherPairs) -> None:
    page = render_page(audit(pairs, filter_rates=[0.01]), lambda name: Image.new("RGB", (8, 8)))
    for tag, attributes in Page(page).elements:
        for name in ("src", "href", "srcset", "poster", "data", "action"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    assert "://" not in page and "@import" not in page
    assert "default-src 'none'" in page


def test_a_picture_that_cannot_be_read_gets_a_labelled_placeholder(pairs: TeacherPairs) -> None:
    found = audit(pairs)
    broken = examples(found, "text_image")[0].images[0]

    def open_picture(name: str) -> Image.Image:
        if name == broken:
            raise ValueError("broken")
        return Image.new("RGB", (300, 150), "red")

    page = Page(render_page(found, open_picture))
    labels = [a["aria-label"] for tag, a in page.elements if tag == "div" and a.get("role") == "img"]
    assert labels and set(labels) == {f"picture {broken} is missing or broken"}
    assert page.count("img") > 10


@pytest.mark.parametrize("source", ["text_image", "image_text", "text_text", "image_image"])
def test_every_pair_shows_the_cosine_that_it_is_listed_for(source: str, pairs: TeacherPairs) -> None:
    found = audit(pairs, thresholds={source: ["cosine:0.3"]})
    shown = re.findall(r"<strong>(\N{MINUS SIGN}?\d\.\d{3})</strong>", render_page(found))
    assert shown == [decimal(example.scores[source]) for example in examples(found, source)]


def test_without_pictures_the_page_shows_the_captions(pairs: TeacherPairs) -> None:
    page = Page(render_page(audit(pairs)))
    assert page.count("img") == 0
    assert len(page.said) == 2 * sum(len(examples(audit(pairs), source)) for source in ("text_image", "text_text"))


def test_a_page_that_would_grow_too_large_shows_fewer_pairs_and_says_so(
    pairs: TeacherPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)

    def noise(name: str) -> Image.Image:
        return Image.fromarray(rng.integers(0, 255, size=(400, 400, 3), dtype=np.uint8))

    found = audit(pairs)
    full = render_page(found, noise)
    assert len(full) < audit_page.MAX_BYTES and "instead of" not in full
    monkeypatch.setattr(audit_page, "MAX_BYTES", 700_000)
    small = render_page(found, noise)
    assert 200_000 < len(small.encode()) <= 700_000
    shown = int(re.search(r"it shows (\d) pairs a list instead of 8", small).group(1))
    assert 0 < shown < 8
    assert max(len(e) for f in found.maps["text_image"].filters for e in f.examples.values()) > shown


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (0.00264, "0.26 %"), (0.0051, "0.51 %"), (1, "100 %"), (0.1299, "13 %"), (1.2e-6, "0.00012 %")],
)
def test_a_share_is_written_with_the_two_digits_that_count(share: float, text: str) -> None:
    assert percent(share) == text


def run(pairs: TeacherPairs, *flags: str) -> int:
    return main(["audit", str(pairs.cache.folder), "--batch_size", str(BATCH), "--num_batches", "5", *flags])


def test_the_command_writes_a_table_and_json_with_documented_keys(
    pairs: TeacherPairs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--thresholds", "text_image=relative:0.85", "text_image=cosine:0.99", "--filter_rate", "0.01"]
    assert run(pairs, *flags, "--json", str(tmp_path / "audit.json")) == 0
    table = capsys.readouterr().out
    assert re.search(r"relative:0\.85 +0\.\d+ +[\d.]+ of 1\d\d", table)
    assert "warning: cosine:0.99 removes nothing" in table
    assert "to remove 1.0 %: cosine:0." in table
    content = json.loads((tmp_path / "audit.json").read_text(encoding="utf-8"))
    assert set(content) == {field.name for field in dataclasses.fields(Audit)}
    cosines = content["maps"]["text_image"]
    assert set(cosines["negatives"]) == {str(share) for share in QUANTILES}
    assert set(cosines["filters"][0]) == {
        *("threshold", "applied", "limits", "filter_rate", "removed_per_batch", "same_image_share", "warning"),
        *("precision", "recall", "examples"),
    }
    assert cosines["rates"][0]["rate"] == 0.01
    assert set(cosines["filters"][0]["examples"]) == {"most_similar", "at_random", "just_above", "just_below"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--thresholds", "text_sound=cosine:0.3"], "Unknown similarity map 'text_sound': expected one of text_image"),
        (["--thresholds", "cosine:0.3"], "--thresholds has 'cosine:0.3': expected MAP=THRESHOLD"),
        (["--thresholds", "image_image=0.3"], "`image_image` is '0.3': expected 'none', 'cosine:X'"),
        (["--thresholds", "text_text=none"], "`text_text` is 'none', which filters nothing"),
        (["--filter_rate", "0.7"], "`filter_rates` is 'rate:0.7': expected"),
        (["--batch_size", "61"], "`batch_size` is 61: expected 2 to 60, the number of pairs"),
        (["--batch_size", "1"], "`batch_size` is 1: expected 2 to 60"),
        (["--num_batches", "0"], "`num_batches` is 0: expected 1 to"),
        (["--num_batches", "99999999"], "`num_batches` is 99999999: expected 1 to 233,016, so that"),
        (["--margin", "2"], "`cross_modal_margin` is 2.0: expected radians"),
        (["--preset", "clip"], "Unknown preset 'clip': expected one of simcse, mcse"),
        (["--images", "nowhere"], "--images shows pictures on the page: add --html"),
        (["--images", "nowhere", "--html", "page.html"], "nowhere does not exist"),
        (["--world", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_that_names_it(
    pairs: TeacherPairs, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(pairs, *flags) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("kdmcse audit: error: ") and message in output.err
    assert output.err.count("\n") == 1


def test_a_map_that_the_cache_cannot_give_and_a_missing_cache_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = TeacherPairs(make_cache(tmp_path / "images", text=False))
    assert run(images, "--thresholds", "text_text=cosine:0.3") == 1
    assert "text_text cosines cannot be audited: the cache has no caption features" in capsys.readouterr().err
    assert main(["audit", str(tmp_path / "nothing")]) == 1
    assert "is not a teacher cache" in capsys.readouterr().err


def test_batches_of_one_image_have_no_negatives_and_features_that_are_not_finite_are_refused(
    tmp_path: Path, pairs: TeacherPairs
) -> None:
    single = TeacherPairs(make_cache(tmp_path, num_images=1, captions_per_image=12))
    with pytest.raises(ValueError, match="There are no negatives"):
        audit(single)

    class Damaged(TeacherPairs):
        def embeddings(self, pairs: Any, needs: frozenset[str]) -> PairEmbeddings:
            return super().embeddings(pairs, needs).map(lambda t: t / 0 if t.is_floating_point() else t)

    with pytest.raises(ValueError, match="text_image cosines that are NaN or infinite"):
        audit(Damaged(pairs.cache))
