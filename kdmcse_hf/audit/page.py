"""An audit as one self-contained HTML page: histograms, tables, and the pairs that a threshold removes and keeps."""

import base64
import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from kdmcse_hf.audit.chart import FEWEST, draw_chart
from kdmcse_hf.audit.gallery import LENGTH, LISTS
from kdmcse_hf.audit.report import Audit

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_BYTES = 10_000_000
THUMBNAIL = 192
"""Longest side of a picture, pixels."""


def render_page(audit: Audit, open_picture: "Callable[[str], Image] | None" = None) -> str:
    """The page, below 10 MB: where its pictures would make it larger, it shows fewer pairs and says so.

    Args:
        audit: what to show.
        open_picture: gives an RGB picture for its name, and raises ValueError for one that cannot be read, which the
            page then says. Without it the page shows captions only.
    """
    names = {
        name
        for cosines in audit.maps.values()
        for threshold in cosines.filters
        for examples in threshold.examples.values()
        for example in examples
        for name in example.images
    }
    pictures = {} if open_picture is None else {name: _thumbnail(open_picture, name) for name in sorted(names)}
    environment = Environment(
        loader=PackageLoader("kdmcse_hf.audit"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number, "decimal": decimal}
    template = environment.get_template("audit.html.jinja")
    charts = {name: draw_chart(audit, cosines) for name, cosines in audit.maps.items()}
    page = ""
    for length in range(LENGTH, -1, -1):
        page = template.render(
            audit=audit,
            charts=charts,
            lists=LISTS,
            length=length,
            full_length=LENGTH,
            fewest=FEWEST,
            pictures=pictures,
            has_pictures=open_picture is not None,
        )
        if len(page.encode()) <= MAX_BYTES:
            break
    return page


def percent(share: float | None) -> str:
    """A share in [0, 1] with two digits that count: `0.26 %`; a dash for `None`."""
    if share is None:
        return "–"
    rounded = float(f"{100 * share:.2g}")
    digits = max(0, 1 - math.floor(math.log10(rounded))) if rounded else 0
    return f"{rounded:.{digits}f} %"


def number(count: float) -> str:
    """A mean count: `4,032`, `10.6`, `0.22`."""
    if count >= 100 or count == 0:
        return f"{count:,.0f}"
    return f"{count:.1f}" if count >= 1 else f"{count:.2g}"


def decimal(value: float, digits: int = 3) -> str:
    """With so many digits behind the point, and a true minus sign."""
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _thumbnail(open_picture: "Callable[[str], Image]", name: str) -> str | None:
    """A JPEG as a data URI; `None` for a picture that cannot be read."""
    try:
        picture = open_picture(name)
    except ValueError:
        return None
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
