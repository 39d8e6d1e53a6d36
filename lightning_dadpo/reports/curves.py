"""Which logged metrics are drawn, under which titles, and which wait behind a fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lightning_dadpo.reports.charts import curve_chart
from lightning_dadpo.reports.drawing import Chart
from lightning_dadpo.reports.sources import Series
from lightning_dadpo.reports.table import display_name

__all__ = ["CurveSection", "curve_section"]

Runs = Mapping[str, Mapping[str, Series]]
LOSSES = ("train/loss", "val/loss")
KINDS = {
    "supervised": "nats a token of the teacher's answers",
    "token by token": "nats a token; each objective's own distance to the teacher",
    "preference": "each objective's own, a pair; for DPO and daDPO nats, and ln 2 = 0.693 is no preference",
}
PARTS = {"train/part/": "training", "val/part/": "validation"}
"""What the columns of a loss's weighted parts begin with."""
# Column -> title and unit. Losses stand apart: supervised and preference losses share a name, not a scale.
PANELS = {
    "val/margin": ("Validation margin", "nats; the weighted sum of anchor differences"),
    "val/accuracy": ("Validation accuracy", "share of pairs with a margin above 0"),
    "val/policy_preference": ("Validation preference of the policy", "share of pairs whose chosen answer it prefers"),
    "val/chosen_log_prob/policy": ("Log-probability of the chosen", "nats a response; a fall is normal"),
    "val/rejected_log_prob/policy": ("Log-probability of the rejected", "nats a response"),
    "val/nll_per_token": ("Validation NLL of the data's answers", "nats a token; lower is better"),
    "val/teacher_nll": ("Teacher NLL of fresh answers", "nats/token on validation prompts, lower is better"),
    "val/forward_kl": ("Forward KL to the teacher", "nats/token on validation prompts, lower is better"),
    "val/reverse_kl": ("Reverse KL to the teacher", "nats/token on validation prompts, lower is better"),
    "train/learning_rate": ("Learning rate", "per optimizer step"),
}


@dataclass(frozen=True)
class CurveSection:
    """The drawings to show at once, a sum's parts, and those to fold away."""

    main: list[Chart] = field(default_factory=list)
    parts: list[Chart] = field(default_factory=list)
    further: list[Chart] = field(default_factory=list)


def _kind(columns: Mapping[str, Series]) -> str:
    """What a run trained on, by what only such runs log."""
    if any(name.endswith("/margin") for name in columns):
        return "preference"
    return "token by token" if any(name.endswith("/nll_per_token") for name in columns) else "supervised"


def _losses(runs: Runs, order: Sequence[str]) -> list[Chart]:
    charts = []
    for kind, unit in KINDS.items():
        members = {run: columns for run, columns in runs.items() if _kind(columns) == kind}
        for column in LOSSES:
            having = {run: columns[column] for run, columns in members.items() if column in columns}
            if having:
                title = f"{'Training' if column == 'train/loss' else 'Validation'} loss, {kind}"
                charts.append(curve_chart(title, unit, f"{kind} {column}", having, order))
    return charts


def _parts(runs: Runs) -> list[Chart]:
    """Where a run's loss is a sum: a drawing a run and split, a line a part."""
    charts = []
    for run, columns in runs.items():
        for prefix, split in PARTS.items():
            found = {name.removeprefix(prefix): series for name, series in columns.items() if name.startswith(prefix)}
            if len(found) > 1:
                title = f"{display_name(run)}, {split}"
                charts.append(curve_chart(title, "nats, before its weight", f"{run} {prefix}", found, list(found)))
    return charts


def curve_section(runs: Runs, order: Sequence[str]) -> CurveSection:
    """Every logged metric of every run, the telling ones first.

    Args:
        runs: run name -> column -> series.
        order: all run names of the report; a run keeps its colour.
    """
    section = CurveSection(main=_losses(runs, order), parts=_parts(runs))
    logged = {column for columns in runs.values() for column in columns}
    rest = sorted(logged - set(PANELS) - set(LOSSES))
    for column in (*(name for name in PANELS if name in logged), *rest):
        having = {run: columns[column] for run, columns in runs.items() if column in columns}
        title, unit = PANELS.get(column, (column, "as logged"))
        chart = curve_chart(title, unit, column, having, order)
        (section.main if column in PANELS else section.further).append(chart)
    return section
