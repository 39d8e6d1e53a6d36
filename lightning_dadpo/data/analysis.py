"""What an analysis of an experiment holds, for those who write it and those who show it. Everything in nats.

D_k = log pi_k(chosen) - log pi_k(rejected) of a model k (METHOD: from objective to loss).
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from lightning_dadpo.data.rows import STRICT, FinishReason, Message, parse_row

__all__ = ["Agreement", "Disputed", "Spread", "Saturated", "PairAnalysis", "Analysis", "Unit", "TokenMapRow"]

ALL = "all"
"""The key under which the pairs of every split are counted together."""


@dataclass(frozen=True, config=STRICT)
class Agreement:
    """How often an anchor, the teacher above all, prefers the chosen response as the pair says.

    Attributes:
        pairs, prompts: how many pairs were asked about, and of how many prompts they are.
        ties: pairs with D = 0, which count as one half.
        share: of pairs with D > 0, ties one half; low, high: its 95 % interval, bootstrapped over prompts.
        against: pairs with D < 0; against_longer: those whose chosen response has more tokens than the rejected one. A
            sum of log-probs falls with every token, so length alone can explain them.
    """

    pairs: int
    prompts: int
    ties: int
    share: float
    low: float
    high: float
    against: int
    against_longer: int


@dataclass(frozen=True, config=STRICT)
class Disputed:
    """A pair whose rejected response the anchor finds more probable; `gaps` is D by anchor."""

    pair_id: str
    prompt_id: str
    split: str
    messages: list[Message]
    chosen_text: str
    rejected_text: str
    chosen_tokens: int
    rejected_tokens: int
    gaps: dict[str, float]


@dataclass(frozen=True, config=STRICT)
class Spread:
    """How far D of an anchor lies above D of the reference (`scoring.audit.saturation`).

    Attributes:
        quartiles: of D_k - D_reference over pairs.
        advised_beta: the weight that brings the median of weight x difference to 1; None where that is not positive.
    """

    quartiles: tuple[float, float, float]
    advised_beta: float | None


@dataclass(frozen=True, config=STRICT)
class Saturated:
    """One objective at its first step.

    Attributes:
        betas: its weights by anchor.
        shares: by split, and `all`: the share of pairs whose weight sigmoid(-margin) exceeds 0.9 at step 0.
    """

    betas: dict[str, float]
    shares: dict[str, float]


@dataclass(frozen=True, config=STRICT)
class PairAnalysis:
    """One artefact of pairs with the scores of its anchors.

    Attributes:
        name: of the stage that made the pairs.
        pairs: how many there are.
        unscored: pairs that some anchor has no score for; they are in nothing below.
        agreement: by anchor and then by split or `all`; the reference is asked too.
        disputed: by anchor, the reference left out, the most disputed pairs first.
        spread: by anchor, the reference left out, and then by split or `all`.
        saturated: by objective.
    """

    name: str
    pairs: int
    unscored: int
    agreement: dict[str, dict[str, Agreement]] = field(default_factory=dict)
    disputed: dict[str, list[Disputed]] = field(default_factory=dict)
    spread: dict[str, dict[str, Spread]] = field(default_factory=dict)
    saturated: dict[str, Saturated] = field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class Analysis:
    """`analysis.json` of an experiment."""

    sets: list[PairAnalysis]

    @staticmethod
    def read(path: Path) -> Analysis:
        """The file as it was written.

        Raises:
            DataError: it is no such file, naming the field.
        """
        return parse_row(path.read_bytes(), Analysis, str(path))


@dataclass(frozen=True, config=STRICT)
class Unit:
    """Consecutive tokens that spell whole characters: nearly always one.

    Attributes:
        text: what they spell; the token's name where it is a special one.
        tokens: how many.
        kind: broken where no whole characters come of it, as when a response is cut inside one.
    """

    text: str
    tokens: int
    kind: Literal["text", "special", "broken"]


@dataclass(frozen=True, config=STRICT)
class TokenMapRow:
    """One response, token by token, as several models see it.

    Attributes:
        prompt_id: the held-out prompt; messages: as people read it.
        sampled_by: whose response it is: `teacher`, or a student's name.
        finish_reason: how it ended.
        reference: which of the models is the reference of the preference trainings; None when nobody said.
        token_ids: the response; units: the same as text, in order.
        log_probs: by model, log pi(token | prompt and the tokens before) of each token, of the raw model; each sums to
            the model's log pi(y|x).
    """

    prompt_id: str
    messages: list[Message]
    sampled_by: str
    finish_reason: FinishReason
    reference: str | None
    token_ids: list[int]
    units: list[Unit]
    log_probs: dict[str, list[float]]

    def __post_init__(self) -> None:
        count = len(self.token_ids)
        if (spelt := sum(unit.tokens for unit in self.units)) != count:
            raise ValueError(f"units of {spelt} tokens, expected {count}")
        for model, values in self.log_probs.items():
            if len(values) != count:
                raise ValueError(f"log_probs of {model}: {len(values)}, expected {count}")
