"""Fill the tables of RESULTS.md from the reports of the studies.

    python examples/render_results.py RESULTS.md

A table stands under a comment that names the study, the table and, if not all are wanted, its columns and its rows:
`<!-- main: Main table [seeds; avg] -->`, `<!-- main: Gains by subset: STS13/headlines; STS14/images -->`.
"""

import argparse
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

REPORTS = Path(__file__).parent / "studies" / "results"
_PLACE = re.compile(r"(<!-- ([^:>]+): ([^:>\[]+?)(?: \[([^\]]+)\])?(?:: ([^>]+))? -->\n)(?:\|.*\n)*")


def render(text: str, reports: Path = REPORTS) -> str:
    """The text with its tables as the reports have them.

    Raises:
        ValueError: a comment names a table, a column or a row that no report has.
    """

    def filled(place: re.Match[str]) -> str:
        comment, study, title, columns, chosen = place.groups()
        head, line, *rows = _table(reports / study / "report.md", title)
        if chosen:
            by_name = {row[0]: row for row in rows}
            rows = [by_name[name] for name in _known(chosen, by_name, f"{title!r} of {study}")]
        names = ["", *_known(columns, head, f"{title!r} of {study}")] if columns else head
        kept = [head.index(name) for name in names]
        return comment + "".join(f"| {' | '.join(row[place] for place in kept)} |\n" for row in (head, line, *rows))

    return _PLACE.sub(filled, text)


def _known(chosen: str, known: Collection[str], table: str) -> list[str]:
    names = chosen.split("; ")
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{table} has no {unknown}: it has {', '.join(known)}.")
    return names


def _table(report: Path, title: str) -> list[list[str]]:
    _, found, rest = report.read_text(encoding="utf-8").partition(f"\n## {title}\n\n")
    if not found:
        raise ValueError(f"{report} has no table {title!r}.")
    lines = rest.partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="RESULTS.md")
    path = parser.parse_args(argv).file
    path.write_text(render(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
