"""What a report is made from: paths of finished artefacts and the few words that no artefact holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["ReportInputs", "Nearness"]

HELD_OUT = "heldout"


@dataclass(frozen=True)
class Nearness:
    """Two students on the teacher's answers to the same prompts; intervals (95 %) over prompts drawn together.

    Attributes:
        model: the student in question. other: what it is compared with.
        difference: its forward KL less the other's, nats/token; below 0 it is nearer. difference_low, difference_high.
        share: its forward KL over the other's, 1 where they are equal. share_low, share_high.
    """

    model: str
    other: str
    difference: float
    difference_low: float
    difference_high: float
    share: float
    share_low: float
    share_high: float


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
        nearness: students beside one another, paired by prompt; the main student beside every other.
        verdicts: the artefact of `dadpo judge`. judge_validations: those of `dadpo validate-judge`.
        ifeval: the artefact of `dadpo ifeval`.
        split: the prompts that students were compared on.
        models: model name -> its folder or its GGUF file, where they can be measured.
        teacher_name: what the teacher is called. student_origin: where the student came from, in a few words.
        rounds: `rounds.json` of an experiment with several.
        predictions: run name -> JSONL with `pair_id`, `margin`, `chosen_reward` and `rejected_reward` in nats.
        responses: model name -> responses artefact; what it said to the prompts of `split` is shown.
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
    nearness: list[Nearness] = field(default_factory=list)
    verdicts: Path | None = None
    judge_validations: list[Path] = field(default_factory=list)
    ifeval: Path | None = None
    split: str = HELD_OUT
    models: dict[str, Path] = field(default_factory=dict)
    teacher_name: str = ""
    student_origin: str = ""
    rounds: Path | None = None
    predictions: dict[str, Path] = field(default_factory=dict)
    responses: dict[str, Path] = field(default_factory=dict)
    configuration: str = ""
    stages: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    command: str = ""

    @property
    def prompts(self) -> str:
        """What sentences call the prompts of `split`."""
        return "held-out" if self.split == HELD_OUT else self.split

    @property
    def plain_prompts(self) -> str:
        """The same on page one, whose reader knows no names of splits; validation prompts are no test."""
        return "test" if self.split == HELD_OUT else self.split
