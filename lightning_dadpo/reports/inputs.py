"""What a report is made from: paths of finished artefacts and the few words that no artefact holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["ReportInputs"]


@dataclass(frozen=True)
class ReportInputs:
    """Everything that `write_report` reads. Whatever is left empty is named as missing on the page.

    Attributes:
        title: the headline of the report.
        experiment: the experiment's name.
        summary: a row a model with `model`, `parameters`, `prompts`, `finished`, `mean_tokens`, `repetition`,
            `teacher_nll`, `forward_kl`, `reverse_kl` and, for each estimate X, `X_low` and `X_high` (95 %).
        curves: run name -> `metrics.csv` of Lightning's CSVLogger.
        scores: anchor name -> scores artefact; the one called `reference` is what the others are compared with.
        pairs: the pairs artefact that the runs were trained on.
        analysis: `analysis.json`: whether the teacher agrees with the pairs, and what saturates.
        analysis_problems: what kept it from being made.
        evaluation: the evaluation artefact, for where teacher and student differ token by token.
        rounds: `rounds.json` of an experiment with several.
        predictions: run name -> JSONL with `pair_id`, `margin`, `chosen_reward` and `rejected_reward` in nats.
        responses: model name -> responses artefact; its split `heldout` is shown.
        configuration: the resolved configuration, as YAML.
        stages: a row a stage with `name`, `folder`, `seconds`, `counts`, `results` and `versions`.
        notes: sentences about what the run can and cannot show.
        command: what to type to make all of it again.
    """

    title: str
    experiment: str
    summary: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[str, Path] = field(default_factory=dict)
    scores: dict[str, Path] = field(default_factory=dict)
    pairs: Path | None = None
    analysis: Path | None = None
    analysis_problems: list[str] = field(default_factory=list)
    evaluation: Path | None = None
    rounds: Path | None = None
    predictions: dict[str, Path] = field(default_factory=dict)
    responses: dict[str, Path] = field(default_factory=dict)
    configuration: str = ""
    stages: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    command: str = ""
