import json
import os
import re
import shutil
import subprocess
import sys
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image

from kdmcse_hf.audit.page import percent
from kdmcse_hf.cli import main
from kdmcse_hf.teacher.cache import TeacherCache
from kdmcse_hf.world import write_world

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.slow
in_a_browser = pytest.mark.skipif(BROWSER is None, reason="there is no chromium, chromium-browser or google-chrome")

# Runs before everything else on a copy of the page, in a frame as wide as the screen that is meant (windows cannot be
# so narrow), and leaves what it saw in the document around the frame.
PROBE = """<script>
const errors = [];
for (const name of ["error", "warn"]) console[name] = (...parts) => errors.push(parts.join(" "));
for (const name of ["error", "unhandledrejection", "securitypolicyviolation"])
  addEventListener(name, (event) => errors.push(`${name}: ${event.message ?? event.reason ?? event.blockedURI}`), true);
addEventListener("load", () => {
  const slider = document.querySelector("input[type=range]");
  slider.value = slider.max;
  slider.dispatchEvent(new Event("input"));
  const found = {
    errors,
    pictures: [...document.images].map((image) => [image.naturalWidth, image.getBoundingClientRect().width]),
    fetched: performance.getEntriesByType("resource").map((entry) => entry.name).filter((name) => !/^data:/.test(name)),
    width: [innerWidth, document.documentElement.scrollWidth],
    readout: document.querySelector("output").textContent,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    paper: getComputedStyle(document.body).backgroundColor,
  };
  parent.document.documentElement.dataset.found = encodeURIComponent(JSON.stringify(found));
});
</script>"""


@pytest.fixture(scope="module")
def page(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `kdmcse audit` writes for the small world, with all its pictures and its truth."""
    path = tmp_path_factory.mktemp("audit") / "audit.html"
    command = [
        *(sys.executable, "-m", "kdmcse_hf.cli", "audit", str(world / "cache"), "--world", str(world)),
        *("--images", str(world / "images"), "--html", str(path), "--json", str(path.with_suffix(".json"))),
        *("--thresholds", "text_image=relative:0.85", "text_image=rate:0.005", "text_text=cosine:0.85"),
        *("--num_batches", "20", "--filter_rate", "0.01"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"relative:0\.85 .* of 4,0\d\d .*%", done.stdout)
    return path


def browse(page: Path, tmp_path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [
        *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
        *("--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}", *flags, page.as_uri()),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    return done


def look(page: Path, tmp_path: Path, width: int, *flags: str) -> dict[str, Any]:
    """What the probe sees on a screen of that width, and what the browser itself has to say."""
    watched = page.read_text(encoding="utf-8").replace("<head>", f"<head>{PROBE}", 1)
    around = tmp_path / "around.html"
    around.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,"><meta name="color-scheme" content="light '
        f'dark"><iframe srcdoc="{escape(watched)}" style="width: {width}px; height: 900px; border: 0"></iframe>',
        encoding="utf-8",
    )
    done = browse(around, tmp_path, "--dump-dom", "--window-size=1400,1000", *flags)
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, done.stdout[:1000] + done.stderr
    return {**json.loads(unquote(found[1])), "log": re.findall(r".*CONSOLE.*", done.stderr)}


@in_a_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_opens_with_every_picture_no_error_and_nothing_fetched(page: Path, tmp_path: Path, width: int) -> None:
    found = look(page, tmp_path, width)
    assert found["errors"] == found["log"] == found["fetched"] == []
    assert len(found["pictures"]) == page.read_text(encoding="utf-8").count("<img ") > 30
    assert all(natural > 0 and shown > 40 for natural, shown in found["pictures"])
    assert found["width"] == [width, width]
    assert re.fullmatch(r"cosine 0\.\d+: removes 0 of 4,0\d\d negatives a batch \(0 %\), .*", found["readout"])


@in_a_browser
def test_the_page_is_dark_where_the_reader_prefers_it(page: Path, tmp_path: Path) -> None:
    light, dark = (look(page, tmp_path, 1280, f"--blink-settings=preferredColorScheme={number}") for number in (1, 0))
    assert (light["dark"], dark["dark"]) == (False, True)
    assert light["paper"] != dark["paper"] and dark["errors"] == []


@in_a_browser
def test_a_screenshot_shows_the_pictures_of_the_world(page: Path, world: Path, tmp_path: Path) -> None:
    browse(page, tmp_path, f"--screenshot={tmp_path / 'page.png'}", "--window-size=1280,4000")
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size == (1280, 4000)
        assert len(picture.convert("RGB").resize((320, 1000)).getcolors(1 << 20)) > 1000


def test_the_page_and_the_json_say_the_same(page: Path, world: Path) -> None:
    text, content = page.read_text(encoding="utf-8"), json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    captions = set(TeacherCache(world / content["cache"]).captions["caption"])
    assert page.stat().st_size < 2_000_000
    for source, cosines in content["maps"].items():
        for threshold in cosines["filters"]:
            assert f"({percent(threshold['filter_rate'])})" in text
            for example in threshold["examples"]["most_similar"]:
                assert f"<strong>{example['scores'][source]:.3f}</strong>" in text
                assert set(example["captions"]) <= captions and example["captions"][0] in text


def test_the_command_refuses_a_world_that_the_cache_is_not_of(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_world(tmp_path, num_images=4, num_sentences=1, num_sts_pairs=1)
    assert main(["audit", str(world / "cache"), "--world", str(tmp_path)]) == 1
    assert "is not the world that" in capsys.readouterr().err
