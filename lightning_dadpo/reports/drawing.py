"""From a matplotlib figure to an SVG that lives inside the page: its colours, its fonts, its own ids.

Colours are drawn as stand-ins and written as CSS variables, so that one drawing serves light, dark and paper.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Chart", "canvas", "finish", "label", "series_style", "INK", "SOFT", "RULE", "PAPER", "SERIES"]

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
INK, SOFT, RULE, PAPER = "#010101", "#020202", "#030303", "#040404"
SERIES = ("#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (10, 3)))
MARKERS = ("o", "s", "^", "D", "v")
# The fallbacks are Okabe and Ito's colours, which people with any common colour blindness tell apart.
VARIABLES = {
    INK: "var(--ink, #1d2321)",
    SOFT: "var(--soft, #5a635f)",
    RULE: "var(--rule, #dedbd2)",
    PAPER: "var(--card, #ffffff)",
    SERIES[0]: "var(--series-1, #0072b2)",
    SERIES[1]: "var(--series-2, #c65102)",
    SERIES[2]: "var(--series-3, #00805d)",
    SERIES[3]: "var(--series-4, #b0568c)",
    SERIES[4]: "var(--series-5, #7a6a00)",
}
# Inches at 72 dots: the viewBox is as wide as a phone's column, so that text keeps its size there.
WIDTH, HEIGHT = 5.0, 3.1
SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 12,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": SOFT,
    "axes.labelsize": 12,
    "legend.fontsize": 12,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.formatter.limits": (-3, 5),
    "figure.facecolor": "none",
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "text.color": INK,
    "xtick.color": RULE,
    "xtick.labelcolor": SOFT,
    "ytick.color": RULE,
    "ytick.labelcolor": SOFT,
    "ytick.major.size": 0,
}


@dataclass(frozen=True)
class Chart:
    """One drawing.

    Attributes:
        title: what it shows.
        unit: the unit and how to read it, one line.
        svg: the drawing, ready to stand inside a page.
        notes: what was not drawn and why.
    """

    title: str
    unit: str
    svg: str
    notes: list[str] = field(default_factory=list)


def label(text: str, limit: int = 22) -> str:
    """A name that fits an axis: one line, no control characters, cut with an ellipsis."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    plain = " ".join(plain.split()) or "(no name)"
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"


def series_style(index: int) -> dict[str, Any]:
    """Colour, dash and marker of the run at this place: never colour alone."""
    return {
        "color": SERIES[index % len(SERIES)],
        "linestyle": DASHES[index % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


@contextmanager
def canvas(height: float = HEIGHT) -> Iterator[tuple[Figure, Axes]]:
    """A figure in the house's style; finish it inside the block. Global settings are put back afterwards."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        # Text is left to the reader's own fonts; matplotlib's lack of a glyph does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        figure = Figure(figsize=(WIDTH, height), dpi=72, layout="constrained")
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        yield figure, axes


def finish(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as SVG text: the same bytes for the same figure, ids of its own, a title and a description."""
    import matplotlib

    buffer = io.StringIO()
    matplotlib.rcParams["svg.hashsalt"] = name
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    return _inline(buffer.getvalue(), name, title, description)


def _inline(drawing: str, name: str, title: str, description: str) -> str:
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(drawing)
    prefix = f"c{sha256(name.encode()).hexdigest()[:8]}"
    # A style element inside an inline SVG would apply to the whole page.
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}style", f"{{{SVG}}}metadata"):
                parent.remove(child)
    for element in root.iter():
        for key, value in element.attrib.items():
            element.set(key, _attribute(key, value, prefix))
    for unwanted in ("width", "height", "version"):
        root.attrib.pop(unwanted, None)
    root.attrib.update({"role": "img", "aria-labelledby": f"{prefix}-title {prefix}-desc", "stroke-linejoin": "round"})
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        child = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{prefix}-{tag}"})
        child.text = label(text, limit=2000)
        root.insert(position, child)
    return ElementTree.tostring(root, encoding="unicode")


def _attribute(key: str, value: str, prefix: str) -> str:
    if key == "id":
        return f"{prefix}-{value}"
    if key == f"{{{XLINK}}}href":
        return re.sub(r"^#", f"#{prefix}-", value)
    value = re.sub(r"url\(#", f"url(#{prefix}-", value)
    if key == "style":
        value = re.sub(r"(font: [\d.]+px) [^;]*", r"\1 var(--sans, sans-serif)", value)
        for stand_in, variable in VARIABLES.items():
            value = value.replace(stand_in, variable)
    return value
