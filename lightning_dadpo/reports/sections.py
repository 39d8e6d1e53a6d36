"""The two sections on distributions: scores of the frozen models, implicit rewards of the trained ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_dadpo.reports.charts import finite, histogram_chart, quantile, reward_chart
from lightning_dadpo.reports.drawing import Chart
from lightning_dadpo.reports.inputs import ReportInputs
from lightning_dadpo.reports.sources import PairFacts, Rewards, read_each, read_gaps, read_pair_facts, read_rewards
from lightning_dadpo.reports.table import display_name

__all__ = ["Section", "score_section", "reward_section", "one_line"]


@dataclass
class Section:
    """Drawings with sentences: what they say in numbers, and what is missing."""

    charts: list[Chart] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, chart: Chart) -> None:
        """A drawing; one that could not be drawn leaves its reasons."""
        if chart.svg:
            self.charts.append(chart)
        else:
            self.problems += chart.notes


def score_section(inputs: ReportInputs) -> Section:
    """D of every anchor and how far each lies above the reference's, joined by pair id."""
    gaps, problems = read_each(inputs.scores, read_gaps)
    pairs, pair_problems = read_each({} if inputs.pairs is None else {"pairs": inputs.pairs}, read_pair_facts)
    section = Section(problems=[*problems, *pair_problems])
    if "pairs" in pairs:
        section.facts += _pair_sentences(pairs["pairs"], gaps)
    elif inputs.pairs is None:
        section.problems.append("No pairs artefact was given.")
    for index, (anchor, rows) in enumerate(gaps.items()):
        name = display_name(anchor)
        unit = f"log p(chosen) minus log p(rejected) by the {name}, nats"
        section.add(histogram_chart(f"D of the {name}", unit, f"D {anchor}", list(rows.values()), index))
    for anchor in gaps:
        if anchor != "reference" and "reference" in gaps:
            _add_difference(section, anchor, gaps[anchor], gaps["reference"])
    if gaps and "reference" not in gaps:
        section.problems.append("There are no reference scores, so no anchor can be compared with the reference.")
    return section


def _add_difference(section: Section, anchor: str, gaps: Mapping[str, float], reference: Mapping[str, float]) -> None:
    shared = [pair for pair in gaps if pair in reference]
    values = [gaps[pair] - reference[pair] for pair in shared]
    name = display_name(anchor)
    title = f"D of the {name} minus D of the reference"
    section.add(histogram_chart(title, "what the anchor adds, pair by pair, nats", f"D {anchor} difference", values, 2))
    drawn = finite(values)
    if drawn:
        low, middle, high = (quantile(drawn, share) for share in (0.25, 0.5, 0.75))
        section.facts.append(
            f"D of the {name} exceeds D of the reference by {middle:.1f} nats at the median "
            f"(quartiles {low:.1f} and {high:.1f}). Where its weight times this is above 3 for most pairs, "
            "every pair pulls equally hard and the anchor's differences are lost."
        )
    alone = len(gaps) + len(reference) - 2 * len(shared)
    if alone:
        section.problems.append(f"{alone} pairs are scored by only one of {name} and reference; they are left out.")


def _pair_sentences(pairs: PairFacts, gaps: Mapping[str, Mapping[str, float]]) -> list[str]:
    splits = ", ".join(f"{count} {split}" for split, count in pairs.splits.items()) or "none"
    said = [
        f"{len(pairs.ids)} pairs ({splits}); mean length {pairs.chosen_tokens:.1f} tokens chosen, "
        f"{pairs.rejected_tokens:.1f} rejected; cut at the length cap: {pairs.chosen_cut} chosen, "
        f"{pairs.rejected_cut} rejected."
    ]
    if "rejected_from" in pairs.manifest.made_from:
        said.append(f"Rejected responses were sampled from: {pairs.manifest.made_from['rejected_from']}.")
    if pairs.manifest.counts:
        said.append(f"Counted when they were made: {one_line(pairs.manifest.counts)}.")
    said += [
        f"The {display_name(anchor)} has no score for {len(pairs.ids - set(rows))} of them."
        for anchor, rows in gaps.items()
        if pairs.ids - set(rows)
    ]
    return said


def reward_section(inputs: ReportInputs) -> Section:
    """Implicit rewards and margins of every run."""
    runs, problems = read_each(inputs.predictions, read_rewards)
    section = Section(problems=problems)
    around = finite([value for run in runs.values() for value in (*run.chosen_reward, *run.rejected_reward)])
    for name, rewards in runs.items():
        section.add(reward_chart(name, rewards, around))
        section.facts.append(_margin_sentence(display_name(name), rewards))
    return section


def _margin_sentence(name: str, rewards: Rewards) -> str:
    margins = finite(rewards.margin)
    lost = len(rewards.margin) - len(margins)
    if not margins:
        return f"{name}: no finite margin."
    ties = sum(margin == 0 for margin in margins)
    accuracy = (sum(margin > 0 for margin in margins) + ties / 2) / len(margins)
    tied = f", {ties} tied and counted as half" if ties else ""
    broken = f" Margins that are not finite and not counted: {lost}." if lost else ""
    return (
        f"{name}: margin above 0 in {100 * accuracy:.0f} % of {len(margins)} pairs{tied}; "
        f"median margin {quantile(margins, 0.5):.3f} nats.{broken}"
    )


def one_line(counts: Any, name: str = "") -> str:
    """Nested counts on one line: `kept 96, dropped identical 2`."""
    if isinstance(counts, Mapping):
        return ", ".join(one_line(value, f"{name} {key}".strip()) for key, value in counts.items()) or f"{name} none"
    shown = f"{counts:.5g}" if isinstance(counts, float) else str(counts)
    return f"{name} {shown}".strip()
