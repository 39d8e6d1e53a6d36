"""The drawings of the report. Non-finite numbers are marked and counted, never left out in silence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_dadpo.reports.drawing import (
    INK,
    PAPER,
    SERIES,
    SOFT,
    Chart,
    canvas,
    finish,
    label,
    series_style,
)  # fmt: skip
from lightning_dadpo.reports.sources import Rewards, Series
from lightning_dadpo.reports.table import Column, display_name, format_estimate, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curve_chart", "histogram_chart", "reward_chart", "interval_chart", "quantile", "finite"]


def finite(values: Sequence[float]) -> list[float]:
    """The values that can be drawn."""
    return [value for value in values if math.isfinite(value)]


def quantile(values: Sequence[float], share: float) -> float:
    """The quantile of finite values, linear between neighbours; nan when there are none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _not_finite(name: str, values: Sequence[float], places: Sequence[str] = ()) -> list[str]:
    """A sentence on what cannot be drawn, with the first few places."""
    bad = [index for index, value in enumerate(values) if not math.isfinite(value)]
    if not bad:
        return []
    shown = [f"{values[index]}{f' at {places[index]}' if places else ''}" for index in bad[:3]]
    more = ", …" if len(bad) > 3 else ""
    return [f"{name}: {len(bad)} of {len(values)} values are not finite and not drawn ({', '.join(shown)}{more})."]


def _legend(figure: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, names, loc="outside upper left", ncols=min(3, len(names)), handlelength=2.6, columnspacing=1.4
        )


def _say(value: float) -> str:
    return f"{value:.4g}"


def curve_chart(title: str, unit: str, column: str, runs: Mapping[str, Series], order: Sequence[str]) -> Chart:
    """One logged metric over the optimizer steps, a line a run.

    Args:
        title: what the metric is.
        unit: its unit.
        column: its name in the log; makes the ids of the drawing unique.
        runs: run name -> series.
        order: all run names of the report, so that a run keeps its colour in every drawing.
    """
    notes: list[str] = []
    said: list[str] = []
    with canvas() as (figure, axes):
        for name, series in runs.items():
            style = series_style(order.index(name))
            shown = [value if math.isfinite(value) else math.nan for value in series.values]
            few = len(shown) <= 12
            markers = {} if few else {"marker": ""}
            axes.plot(series.steps, shown, label=label(display_name(name)), markersize=4, **{**style, **markers})
            lost = [step for step, value in zip(series.steps, series.values, strict=True) if not math.isfinite(value)]
            axes.plot(
                lost, [0.02] * len(lost), "x", color=style["color"], transform=axes.get_xaxis_transform(), markersize=7
            )
            places = [f"step {step:g}" for step in series.steps]
            notes += _not_finite(display_name(name), series.values, places)
            drawn = [(s, v) for s, v in zip(series.steps, series.values, strict=True) if math.isfinite(v)]
            if drawn:
                (first, begin), (last, end) = drawn[0], drawn[-1]
                said.append(f"{display_name(name)}: {_say(begin)} at step {first:g}, {_say(end)} at step {last:g}")
        axes.set_xlabel("optimizer step")
        axes.grid(visible=False, axis="x")
        axes.margins(x=0.02, y=0.1)
        axes.locator_params(axis="x", integer=True, nbins=6)
        axes.locator_params(axis="y", nbins=5)
        _legend(figure, axes)
        svg = finish(figure, f"curve {column}", title, f"{unit}. {'; '.join(said) or 'No finite value'}.")
    return Chart(title, unit, svg, notes)


def _edges(values: Sequence[float], least: int = 8, most: int = 28) -> list[float]:
    """Equal bins over all values: about the square root of their number."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    bins = max(least, min(most, math.ceil(math.sqrt(len(values)))))
    return [low + (high - low) * index / bins for index in range(bins + 1)]


def _counts(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    counts = [0] * (len(edges) - 1)
    for value in values:
        place = sum(value >= edge for edge in edges) - 1
        counts[min(max(place, 0), len(counts) - 1)] += 1
    return counts


def _bars(axes: Axes, values: Sequence[float], edges: Sequence[float], style: Mapping[str, Any], name: str) -> None:
    counts = _counts(values, edges)
    colour, dash = style["color"], style["linestyle"]
    axes.stairs(counts, edges, fill=True, color=colour, alpha=0.16, linewidth=0)
    axes.stairs(counts, edges, color=colour, linestyle=dash, linewidth=1.8, label=name)


def _tidy_histogram(axes: Axes, edges: Sequence[float]) -> None:
    axes.set_ylabel("pairs")
    axes.grid(visible=False, axis="x")
    axes.locator_params(axis="y", integer=True, nbins=4)
    axes.locator_params(axis="x", nbins=6)
    if edges[0] < 0 < edges[-1]:
        axes.axvline(0, color=SOFT, linewidth=1)


def histogram_chart(title: str, unit: str, name: str, values: Sequence[float], index: int = 0) -> Chart:
    """How one number is spread over the pairs, with its median and, where it is inside, zero.

    Args:
        title: what the number is.
        unit: its unit.
        name: makes the ids of the drawing unique.
        values: a number a pair.
        index: place of the colour.
    """
    drawn = finite(values)
    notes = _not_finite(title, values)
    if not drawn:
        return Chart(title, unit, "", [*notes, f"{title}: there is no finite value to draw."])
    median = quantile(drawn, 0.5)
    with canvas() as (figure, axes):
        edges = _edges(drawn)
        _bars(axes, drawn, edges, {**series_style(index), "linestyle": "-"}, "pairs")
        axes.axvline(median, color=INK, linewidth=1.3, linestyle=(0, (4, 3)), label=f"median {_say(median)}")
        _tidy_histogram(axes, edges)
        axes.set_xlabel("nats")
        _legend(figure, axes)
        quartiles = ", ".join(_say(quantile(drawn, share)) for share in (0.25, 0.5, 0.75))
        svg = finish(
            figure, f"histogram {name}", title, f"{unit}. {len(drawn)} pairs; quartiles {quartiles}; "
            f"least {_say(min(drawn))}, most {_say(max(drawn))}.",
        )  # fmt: skip
    return Chart(title, unit, svg, notes)


def reward_chart(run: str, rewards: Rewards, around: Sequence[float]) -> Chart:
    """Implicit rewards of the chosen and the rejected responses of one run.

    Args:
        run: the run's name.
        rewards: its predictions, in nats.
        around: finite rewards of all runs, which every drawing spans, so that they can be compared by eye.
    """
    title, unit = display_name(run), "implicit reward, nats; chosen should lie to the right of rejected"
    sides = {"chosen": rewards.chosen_reward, "rejected": rewards.rejected_reward}
    notes = [note for side, values in sides.items() for note in _not_finite(f"{title}, {side}", values)]
    drawn = {side: finite(values) for side, values in sides.items()}
    if not any(drawn.values()):
        return Chart(title, unit, "", [*notes, f"{title}: there is no finite reward to draw."])
    with canvas() as (figure, axes):
        edges = _edges(around)
        for index, (side, values) in enumerate(drawn.items()):
            _bars(axes, values, edges, series_style(index), side)
        _tidy_histogram(axes, edges)
        axes.set_xlabel("nats")
        _legend(figure, axes)
        medians = ", ".join(f"{side} median {_say(quantile(values, 0.5))}" for side, values in drawn.items())
        svg = finish(figure, f"rewards {run}", f"Implicit rewards of {title}", f"{unit}. {medians}.")
    return Chart(title, unit, svg, notes)


def interval_chart(summary: Sequence[Mapping[str, Any]], column: Column) -> Chart:
    """One estimate of every model: a dot with whiskers for the 95 % interval, a hollow dot where there is none."""
    notes: list[str] = []
    names = [display_name(str(row.get("model"))) for row in summary]
    unit = f"{column.unit}, {column.better} is better" if column.better else column.unit
    with canvas(height=0.9 + 0.36 * max(len(names), 2)) as (figure, axes):
        for place, (name, row) in enumerate(zip(names, summary, strict=True)):
            notes += _dot(axes, place, name, row, column)
        axes.set_yticks(range(len(names)), [label(name, 14) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.08)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(column.unit)
        said = "; ".join(f"{name} {format_estimate(row, column)}" for name, row in zip(names, summary, strict=True))
        svg = finish(figure, f"interval {column.key}", column.label, f"{unit}. {said}.")
    return Chart(column.label, unit, svg, notes)


def _dot(axes: Axes, place: int, name: str, row: Mapping[str, Any], column: Column) -> list[str]:
    bounds = [number(row, key) for key in (f"{column.key}_low", column.key, f"{column.key}_high")]
    low, value, high = (math.nan if bound is None else bound * column.scale for bound in bounds)
    if not math.isfinite(value):
        said = "not measured" if bounds[1] is None else str(value)
        axes.text(0.02, place, said, transform=axes.get_yaxis_transform(), va="center", color=SOFT, fontsize=10)
        return [f"{name}: {column.label} is {said}, so there is nothing to draw."]
    whole = math.isfinite(low) and math.isfinite(high)
    if whole:
        axes.plot([low, high], [place, place], color=SERIES[0], linewidth=2, solid_capstyle="butt")
        axes.plot([low, high], [place, place], "|", color=SERIES[0], markersize=9, markeredgewidth=2)
    face = SERIES[0] if whole else PAPER
    axes.plot([value], [place], "o", color=SERIES[0], markerfacecolor=face, markersize=7, markeredgewidth=1.5)
    return [] if whole else [f"{name}: {column.label} has no interval."]
