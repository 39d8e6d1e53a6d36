"""Page one, for the person who decides: what was made, what it costs, how near it comes, and what can go wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lightning_dadpo.data.analysis import Analysis
from lightning_dadpo.data.artifacts import Manifest, read_manifest
from lightning_dadpo.data.rows import ResponseRow
from lightning_dadpo.errors import DadpoError
from lightning_dadpo.reports.costs import CostSection, cost_section
from lightning_dadpo.reports.in_short import beside, made, near
from lightning_dadpo.reports.inputs import ReportInputs
from lightning_dadpo.reports.instructions import InstructionSection, instruction_section
from lightning_dadpo.reports.picked import RULE, Shown, picks, read_own_distances, short, shown
from lightning_dadpo.reports.preference import PreferenceSection, preference_section
from lightning_dadpo.reports.risks import Evidence, Risks, risks
from lightning_dadpo.reports.sources import PairFacts, read_each, read_pair_facts
from lightning_dadpo.reports.strips import StripTable, strip_table
from lightning_dadpo.reports.table import main_student, plain_name

__all__ = ["Decision", "decide"]

NOTES, NOTE_LETTERS = 2, 170


@dataclass(frozen=True)
class Decision:
    """Page one.

    Attributes:
        student: in plain words; `main` its name in the files.
        in_short: a word and a sentence each.
        costs, strips, preference, instructions: the parts.
        five: conversations. rule: how they were chosen. picked: their prompts' ids.
        risks: what to know. notes: sentences of whoever ran it, shortened.
        problems: what could not be read.
    """

    main: str | None
    student: str
    in_short: list[tuple[str, str]]
    costs: CostSection
    strips: StripTable | None
    preference: PreferenceSection
    instructions: InstructionSection
    five: list[Shown]
    picked: list[str]
    risks: Risks
    notes: list[str]
    rule: str
    problems: list[str] = field(default_factory=list)

    @property
    def dense(self) -> bool:
        """There is so much to say that one sheet of paper holds it only in smaller letters."""
        said = len(self.risks.seen) + len(self.risks.unchecked) + len(self.notes)
        return (self.strips is not None and len(self.strips.rows) > 4) or said > 10


def decide(inputs: ReportInputs, answers: Mapping[str, Mapping[str, ResponseRow]]) -> Decision:
    """Everything that page one says.

    Args:
        inputs: of the report.
        answers: model -> prompt id -> response to the prompts that students were compared on.
    """
    main = main_student([str(row.get("model")) for row in inputs.summary])
    distances, problems = read_each({"evaluation": inputs.evaluation} if inputs.evaluation else {}, read_own_distances)
    chosen = picks(distances.get("evaluation", {}).get(main or "", {}))
    costs = cost_section(inputs, main)
    preference = preference_section(inputs.verdicts, inputs.judge_validations, main, inputs.responses, inputs.scores)
    five = shown(chosen, answers, main, preference.verdicts) if main else []
    instructions = instruction_section(inputs.ifeval, main)
    return Decision(
        main=main,
        student=plain_name(main) if main else "",
        in_short=_in_short(inputs, main, costs, preference, instructions),
        costs=costs,
        strips=strip_table(inputs.summary, main),
        preference=preference,
        instructions=instructions,
        five=five,
        picked=[one.pick.prompt_id for one in five],
        risks=risks(_evidence(inputs, main)),
        rule=RULE.format(prompts=inputs.plain_prompts),
        notes=[short(note, NOTE_LETTERS) for note in inputs.notes[:NOTES]],
        problems=problems,
    )


def _in_short(
    inputs: ReportInputs,
    main: str | None,
    costs: CostSection,
    preference: PreferenceSection,
    instructions: InstructionSection,
) -> list[tuple[str, str]]:
    nearness = [one for one in inputs.nearness if one.model == main]
    said = [
        ("What", made(inputs, main, costs.rows, _train_pairs(inputs))),
        ("Nearness", near(nearness, inputs.summary)),
        ("Method", beside(nearness, inputs.summary)),
        ("Preference", preference.claim),
        ("Instructions", instructions.lead),
    ]
    return [(word, sentence) for word, sentence in said if sentence]


def _train_pairs(inputs: ReportInputs) -> int | None:
    found: dict[str, PairFacts] = read_each({"pairs": inputs.pairs} if inputs.pairs else {}, read_pair_facts)[0]
    return found["pairs"].splits.get("train") if found else None


def _evidence(inputs: ReportInputs, main: str | None) -> Evidence:
    return Evidence(
        main=main,
        summary=inputs.summary,
        evaluation=_manifest(inputs.evaluation),
        analysis=_analysis(inputs.analysis),
        prompts=inputs.plain_prompts,
    )


def _manifest(folder: Path | None) -> Manifest | None:
    """None when there is none; that it is broken is said where its rows are read."""
    try:
        return None if folder is None else read_manifest(folder, "evaluation")
    except (DadpoError, OSError):
        return None


def _analysis(path: Path | None) -> Analysis | None:
    """None when there is none; that it is broken is said in its own section."""
    try:
        return None if path is None else Analysis.read(path)
    except (DadpoError, OSError):
        return None
