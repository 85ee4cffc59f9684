"""Benchmarks whose figures do not hang on the machine's speed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from benchmark_cache import main

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.slow


def test_a_large_cache_costs_little_more_memory_than_the_rows_drawn(capfd: pytest.CaptureFixture[str]) -> None:
    main(["--captions", "150000", "--width", "768"])
    printed = capfd.readouterr().out
    opening, cache, whole = (float(value) for value in re.findall(r"difference +(-?[\d.]+) MB", printed))
    assert opening < 50
    assert cache < 300
    assert cache < whole / 3


def test_gathering_sends_what_was_predicted_and_a_step_takes_the_predicted_flops() -> None:
    command = [sys.executable, str(EXAMPLES / "benchmarks"), "--parts", "gathering", "scaling"]  # on the world
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "KDMCSE_DATA": ""})
    assert done.returncode == 0, done.stderr
    (sent,) = re.findall(r"([\d.]+) MB \|\n", done.stdout)
    # One view, an image and a caption projection of 64 pairs, their teacher's features and their pictures' numbers.
    assert float(sent) == pytest.approx(64 * (384 + 2 * 256 + 2 * 256) * 4 / 1e6, rel=0.02)
    predicted = [float(value) for value in re.findall(r"predicted over counted: ([\d.]+)", done.stdout)]
    # 0.95 on the world's short captions, of which what packing leaves of padding is more; 1.00 on real text.
    assert predicted == pytest.approx([1, 1], abs=0.1)
