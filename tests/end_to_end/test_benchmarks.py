"""The promise of the memory benchmark, held at its full size."""

import re

import pytest
from benchmark_cache import main

pytestmark = pytest.mark.slow


def test_a_large_cache_costs_little_more_memory_than_the_rows_drawn(capfd: pytest.CaptureFixture[str]) -> None:
    main(["--captions", "150000", "--width", "768"])
    printed = capfd.readouterr().out
    opening, cache, whole = (float(value) for value in re.findall(r"difference +(-?[\d.]+) MB", printed))
    assert opening < 50
    assert cache < 300
    assert cache < whole / 3
