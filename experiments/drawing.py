"""What the experiments' figures have in common: colours that colour-blind readers tell apart, files that repeat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["COLOURS", "MARKERS", "figure"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, in an order of contrast."""
MARKERS = ("o", "s", "^", "D", "v", "P")


@contextmanager
def figure(path: Path, width: float = 7.0, height: float = 3.2, columns: int = 1) -> Iterator[tuple[Any, list[Any]]]:
    """A figure of one row of axes, written as SVG when the block ends; the same numbers give the same bytes.

    Args:
        path: where to.
        width: inches.
        height: inches.
        columns: axes beside one another.

    Yields:
        The figure and its axes.
    """
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    plain = {"svg.hashsalt": "dadpo", "svg.fonttype": "path", "font.size": 9, "axes.spines.top": False}
    with mpl.rc_context(plain | {"axes.spines.right": False}):
        made, axes = pyplot.subplots(1, columns, figsize=(width, height), squeeze=False, layout="constrained")
        yield made, list(axes[0])
        made.savefig(path, metadata={"Date": None, "Creator": None})
        pyplot.close(made)
