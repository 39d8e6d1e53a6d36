"""What the demo demands of its own table before it calls itself a success."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["check_summary"]

Row = dict[str, Any]


def check_summary(summary: list[Row]) -> list[str]:
    """One line a broken demand, with the numbers; empty when all hold.

    Demands: every value is finite; forward_kl falls from `pruned` to `dsft` with the intervals apart; the rows of
    `ddpo` and `dadpo` are not equal.
    """
    rows = {row["model"]: row for row in summary}
    missing = [f"no row for model {name!r}" for name in ("pruned", "dsft", "ddpo", "dadpo") if name not in rows]
    failures = missing + [failure for row in summary for failure in _not_finite(row)]
    if "pruned" in rows and "dsft" in rows:
        failures += _not_healed(rows["pruned"], rows["dsft"])
    if "ddpo" in rows and "dadpo" in rows:
        failures += _equal(rows["ddpo"], rows["dadpo"])
    return failures


def _not_finite(row: Row) -> list[str]:
    numbers = {key: value for key, value in row.items() if key != "model"}
    return [
        f"{row['model']}: {key} is {value}, expected a finite number"
        for key, value in numbers.items()
        if not (isinstance(value, int | float) and math.isfinite(value))
    ]


def _not_healed(pruned: Row, dsft: Row) -> list[str]:
    """Written so that a NaN fails too."""
    if dsft["forward_kl_high"] < pruned["forward_kl_low"]:
        return []
    before, after = (
        f"{row['forward_kl']:.4f} [{row['forward_kl_low']:.4f}, {row['forward_kl_high']:.4f}]" for row in (pruned, dsft)
    )
    return [f"forward_kl does not improve from pruned {before} to dsft {after}: expected the intervals apart"]


def _equal(ddpo: Row, dadpo: Row) -> list[str]:
    if any(ddpo.get(key) != dadpo.get(key) for key in (ddpo.keys() | dadpo.keys()) - {"model"}):
        return []
    return [f"the rows of ddpo and dadpo are equal (forward_kl {ddpo['forward_kl']} in both): one model twice?"]
