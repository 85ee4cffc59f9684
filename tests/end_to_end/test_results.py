"""RESULTS.md says what the reports of the studies say."""

import re
from pathlib import Path

import pytest
from render_results import _PLACE, REPORTS, render

RESULTS = Path(__file__).parents[2] / "RESULTS.md"
DIFFERENCE = re.compile(r"([+-]\d+\.\d\d)\s\(([+-]\d+\.\d\d\sto\s[+-]\d+\.\d\d)\)")


def test_tables_are_those_of_the_reports() -> None:
    text = RESULTS.read_text(encoding="utf-8")
    assert len(_PLACE.findall(text)) == text.count("<!-- ") > 5  # none that is not understood, and so not filled
    assert text == render(text), "run `python examples/render_results.py RESULTS.md`"


def test_every_difference_in_the_text_stands_in_a_report() -> None:
    reports = "".join(path.read_text(encoding="utf-8") for path in REPORTS.glob("*/report.md"))
    found = DIFFERENCE.findall(RESULTS.read_text(encoding="utf-8"))
    assert found
    for difference, interval in found:
        interval = re.sub(r"\s", " ", interval)
        forms = (f"| {difference} | {interval} |", f"{difference} ({interval})")
        assert any(form in reports for form in forms), f"{difference} ({interval})"


CLAIM = re.compile(r"\*\*([^*]+): (yes|no|not shown)\.\*\*(.*?)(?=\n\*\*|\n## |\n\n[A-Z])", re.DOTALL)


SHOWN = {"yes", "not shown", "the contrary"}


def test_every_claim_is_answered_as_its_comparisons_are() -> None:
    """Yes or no if all of them say so."""
    claims = CLAIM.findall(RESULTS.read_text(encoding="utf-8"))
    assert [claim for claim, _, _ in claims] == ["Pictures help", "The filter helps", "The adaptive margin helps"]
    for claim, answer, tables in claims:
        rows = [set(line.split(" | ")) for line in tables.splitlines() if re.match(r"\| (?!---| )", line)]
        assert rows and all(len(row & SHOWN) == 1 for row in rows)
        found = set.union(*rows) & SHOWN
        agreed = {frozenset({"yes"}): "yes", frozenset({"the contrary"}): "no"}
        assert answer == agreed.get(frozenset(found), "not shown"), claim


def test_a_table_is_filled_with_all_rows_or_the_chosen_ones(tmp_path: Path) -> None:
    (tmp_path / "main").mkdir()
    (tmp_path / "main" / "report.md").write_text(
        "# T\n\n## A B\n\n|  | x | y |\n| --- | --- | --- |\n| a | 1 | 3 |\n| b | 2 | 4 \\| |\n\n## C\n"
    )
    whole = "text\n\n<!-- main: A B -->\n| old |\n\nmore\n"
    assert render(whole, tmp_path) == (
        "text\n\n<!-- main: A B -->\n|  | x | y |\n| --- | --- | --- |\n| a | 1 | 3 |\n| b | 2 | 4 \\| |\n\nmore\n"
    )
    part = "<!-- main: A B [y]: b -->\n"
    assert render(part, tmp_path) == part + "|  | y |\n| --- | --- |\n| b | 4 \\| |\n"
    with pytest.raises(ValueError, match=r"'A B' of main has no \['c'\]: it has a, b"):
        render("<!-- main: A B: a; c -->\n", tmp_path)
    with pytest.raises(ValueError, match=r"'A B' of main has no \['z'\]: it has , x, y"):
        render("<!-- main: A B [z] -->\n", tmp_path)
    with pytest.raises(ValueError, match="has no table 'D'"):
        render("<!-- main: D -->\n", tmp_path)
