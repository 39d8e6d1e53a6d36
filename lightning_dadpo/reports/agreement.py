"""Does the teacher agree with the pairs, which ones does it dispute, and which weights drown its differences?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lightning_dadpo.data.analysis import ALL, Agreement, Analysis, Disputed, PairAnalysis, Saturated, Spread
from lightning_dadpo.data.rows import Message
from lightning_dadpo.errors import DataError
from lightning_dadpo.reports.conversations import fold
from lightning_dadpo.reports.table import display_name

__all__ = ["AgreementSection", "Dispute", "agreement_section"]

OPEN_DISPUTES = 3
WARN_ABOVE = 0.5
REFERENCE = "reference"
NOTHING = "\u2013"


@dataclass(frozen=True)
class Dispute:
    """A pair whose rejected response an anchor prefers; `gaps` are sentences on each D."""

    place: str
    messages: list[Message]
    sides: list[tuple[str, str, str, str]]
    gaps: str


@dataclass
class AgreementSection:
    """Rows and sentences of the section.

    Attributes:
        lead: what comes first. problems: what could not be read.
        agreement: anchor, pairs, share, D above the reference's, advised weight.
        saturated: objective, weights, share of saturated pairs.
        splits: the columns of `saturated`.
        warnings: objectives whose pairs are mostly saturated.
        disputes: the most disputed pairs.
    """

    lead: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    agreement: list[list[str]] = field(default_factory=list)
    saturated: list[list[str]] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    disputes: list[Dispute] = field(default_factory=list)


def agreement_section(path: Path | None, problems: list[str]) -> AgreementSection:
    """The section from `analysis.json`.

    Args:
        path: the file; None when nobody analysed the pairs.
        problems: why not.
    """
    section = AgreementSection(problems=list(problems))
    if path is None:
        return section
    try:
        analysis = Analysis.read(path)
    except (DataError, OSError) as error:
        section.problems.append(f"analysis: {error}")
        return section
    several = len(analysis.sets) > 1
    section.splits = list(
        dict.fromkeys(split for one in analysis.sets for found in one.saturated.values() for split in found.shares)
    )
    for one in analysis.sets:
        _add(section, one, f"{one.name}: " if several else "")
    if section.disputes:
        section.lead.append("A sum of log-probs falls with every token, so read the lengths beside.")
    return section


def _add(section: AgreementSection, found: PairAnalysis, named: str) -> None:
    if found.unscored:
        section.problems.append(
            f"{named}{found.unscored} of {found.pairs} pairs lack the score of an anchor; they are in no number here."
        )
    for anchor, by_split in found.agreement.items():
        name = display_name(anchor)
        if anchor != REFERENCE:
            section.lead.append(_sentence(f" ({found.name})" if named else "", name, by_split[ALL]))
        for split, one in by_split.items():
            spread = found.spread.get(anchor, {}).get(split)
            section.agreement.append([f"{named}{name}", split, *_numbers(one, spread)])
    for objective, start in found.saturated.items():
        name = named + display_name(objective)
        section.saturated.append(_saturated(name, start, section.splits))
        section.warnings += _warning(name, start, found.spread)
    for anchor, disputes in found.disputed.items():
        section.disputes += [_dispute(named, anchor, one) for one in disputes]


def percent(share: float) -> str:
    """A share as it is printed."""
    return f"{100 * share:.0f}\u00a0%"


def _sentence(of_set: str, name: str, one: Agreement) -> str:
    ties = f", {one.ties} tied and counted as half" if one.ties else ""
    said = (
        f"The {name} too prefers the chosen response in {percent(one.share)} "
        f"[{percent(one.low)}, {percent(one.high)}] of {one.pairs} pairs{of_set}{ties}."
    )
    if not one.against:
        return said
    return (
        f"{said} Of the {one.against} that it disputes, the chosen response is the longer one in {one.against_longer}."
    )


def _numbers(one: Agreement, spread: Spread | None) -> list[str]:
    share = f"{percent(one.share)} [{percent(one.low)}, {percent(one.high)}]"
    if spread is None:
        return [str(one.pairs), share, NOTHING, NOTHING]
    quartiles = " / ".join(f"{value:.1f}" for value in spread.quartiles)
    return [str(one.pairs), share, quartiles, "none" if spread.advised_beta is None else f"{spread.advised_beta:.4g}"]


def _weights(betas: Mapping[str, float]) -> str:
    return ", ".join(f"{display_name(anchor)} {beta:g}" for anchor, beta in betas.items())


def _saturated(name: str, one: Saturated, splits: list[str]) -> list[str]:
    return [
        name,
        _weights(one.betas),
        *(percent(one.shares[split]) if split in one.shares else NOTHING for split in splits),
    ]


def _warning(name: str, one: Saturated, spread: Mapping[str, Mapping[str, Spread]]) -> list[str]:
    """As `dadpo fit` says it before it trains."""
    if one.shares[ALL] <= WARN_ABOVE:
        return []
    advised = [
        f"{by_split[ALL].advised_beta:.4g} for the {display_name(anchor)}"
        for anchor, by_split in spread.items()
        if anchor in one.betas and by_split[ALL].advised_beta is not None
    ]
    better = f" A weight of {' or '.join(advised)} would leave them." if advised else ""
    return [
        f"{name}: {percent(one.shares[ALL])} of the pairs start with a weight above 0.9, so they all pull equally hard "
        f"and the differences between them are lost.{better}"
    ]


def _dispute(named: str, anchor: str, one: Disputed) -> Dispute:
    own = {anchor: one.gaps[anchor]} | one.gaps
    gaps = "; ".join(f"{display_name(name)} {value:+.1f}" for name, value in own.items()).replace("-", "\u2212")
    sides = []
    for side, text, tokens in (
        ("Chosen", one.chosen_text, one.chosen_tokens),
        ("Rejected", one.rejected_text, one.rejected_tokens),
    ):
        opening, rest = fold(text)
        sides.append((side, opening, rest, f"{tokens} token{'' if tokens == 1 else 's'}"))
    return Dispute(f"{named}{one.prompt_id}, {one.split}", one.messages, sides, f"D, nats: {gaps}")
