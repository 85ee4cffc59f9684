"""Fill the tables of RESULTS.md from the reports of the studies.

    python examples/render_results.py RESULTS.md

A table stands under a comment that names the study, the table and, if not all of its rows are wanted, these:
`<!-- main: Main table -->`, `<!-- main: Gains by subset: STS13/headlines; STS14/images -->`.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

REPORTS = Path(__file__).parent / "studies" / "results"
_PLACE = re.compile(r"(<!-- ([^:>]+): ([^:>]+?)(?:: ([^>]+))? -->\n)(?:\|.*\n)*")


def render(text: str, reports: Path = REPORTS) -> str:
    """The text with its tables as the reports have them.

    Raises:
        ValueError: a comment names a table or a row that no report has.
    """

    def filled(place: re.Match[str]) -> str:
        comment, study, title, chosen = place.groups()
        head, line, *rows = _table(reports / study / "report.md", title)
        if chosen:
            by_name = {row.split(" | ")[0].removeprefix("| "): row for row in rows}
            if unknown := [name for name in chosen.split("; ") if name not in by_name]:
                raise ValueError(f"{title!r} of {study} has no rows {unknown}: it has {', '.join(by_name)}.")
            rows = [by_name[name] for name in chosen.split("; ")]
        return comment + "\n".join([head, line, *rows]) + "\n"

    return _PLACE.sub(filled, text)


def _table(report: Path, title: str) -> list[str]:
    _, found, rest = report.read_text(encoding="utf-8").partition(f"\n## {title}\n\n")
    if not found:
        raise ValueError(f"{report} has no table {title!r}.")
    return rest.partition("\n\n")[0].splitlines()


def main(argv: Sequence[str]) -> None:
    (path,) = map(Path, argv)
    path.write_text(render(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
