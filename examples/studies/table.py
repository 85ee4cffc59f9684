"""A table as Markdown and as LaTeX."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Table:
    """Cells of text; the first column names the row."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = [self.head, ("---",) * len(self.head), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

    def latex(self) -> str:
        """For the package booktabs."""
        lines = [" & ".join(map(_latex, line)) + r" \\" for line in (self.head, *self.rows)]
        columns = "l" + "r" * (len(self.head) - 1)
        return "\n".join(
            [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
            + [r"\end{tabular}", ""]
        )

    @property
    def file_name(self) -> str:
        return re.sub(r"\W+", "_", self.title.lower()).strip("_")


_LATEX = {"±": r"$\pm$", "−": "$-$", "<": "$<$", **{sign: f"\\{sign}" for sign in "&%$#_{}"}}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)


def mean_and_deviation(values: Sequence[float], digits: int = 2) -> str:
    """`mean ± standard deviation` (that of a sample); of one value the value; of none nothing."""
    if not values:
        return ""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"
