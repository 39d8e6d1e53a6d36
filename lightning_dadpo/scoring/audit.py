"""Do the scores on disk say what the models say? Every check here compares numbers that were made in two ways.

METHOD, consequence 3: the step-0 oracle proves that policy = reference, and nothing about the teacher, whose
scores stand on both sides of it. So the teacher is audited apart.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_dadpo.data.batching import collate_pairs, pair_tokens
from lightning_dadpo.data.plan import budgeted_batches
from lightning_dadpo.data.row_store import column
from lightning_dadpo.data.rows import PairRow
from lightning_dadpo.errors import AuditError
from lightning_dadpo.models.numerics import default_tokens_per_batch
from lightning_dadpo.scoring.base import Scorer
from lightning_dadpo.scoring.table import ScoreTable
from lightning_dadpo.types import PairLogProbs, SequenceLogProbs

__all__ = [
    "Tolerance", "measure_tolerance", "audit_rows", "audit_live", "audit_sampler", "audit_own_samples",
    "scores_of", "Saturation", "saturation",
]  # fmt: skip

RELATIVE_FLOAT32 = 1e-4
BFLOAT16_NATS_A_ROOT_TOKEN = 0.12
"""A token of a 135M chat model moves by some 0.04 nats when bfloat16 rounds elsewhere (cached keys and values against
one whole forward pass, weights rounded or not); independent over tokens, three standard deviations of their sum."""


@dataclass(frozen=True)
class Tolerance:
    """How far two honest log-probs of one response may lie apart, in nats.

    Attributes:
        absolute: in any case; relative: times |log-prob|; per_root_token: times the root of the response's tokens.
    """

    absolute: float
    relative: float = RELATIVE_FLOAT32
    per_root_token: float = 0.0

    def exceeded(self, left: Tensor, right: Tensor, num_tokens: int = 0) -> Tensor:
        """True where they differ by more, or where either is no finite number."""
        left, right = left.double().cpu(), right.double().cpu()
        allowed = self.absolute + self.relative * torch.maximum(left.abs(), right.abs())
        allowed = allowed + self.per_root_token * math.sqrt(num_tokens)
        return ~((left - right).abs() <= allowed) | ~allowed.isfinite()  # inf <= inf would pass


def _both_sides(scores: PairLogProbs) -> Tensor:
    return torch.stack([scores.chosen.total, scores.rejected.total], dim=1).double().cpu()


def audit_rows(pairs: Sequence[PairRow], count: int = 8, seed: int = 0) -> list[PairRow]:
    """The cheapest pair, the dearest one and random others: `count` in all, or all there are."""
    costs = column(pairs, pair_tokens)
    ordered = sorted(range(len(pairs)), key=lambda index: costs[index])
    if len(ordered) > count:
        ordered = [ordered[0], ordered[-1], *random.Random(seed).sample(ordered[1:-1], count - 2)]
    return [pairs[index] for index in ordered]


def _alone(scorer: Scorer, pairs: Sequence[PairRow], device: torch.device) -> Tensor:
    return torch.cat([_both_sides(scorer.score(collate_pairs([pair]).to(device))) for pair in pairs])


def measure_tolerance(
    scorer: Scorer, pairs: Sequence[PairRow], device: torch.device, exact: bool, alone: Tensor | None = None
) -> Tolerance:
    """What this machine's rounding accounts for.

    In float32 (`exact`) a relative 1e-4; in bfloat16 four times the largest difference between two batch
    compositions of the same rows, which is measured here (METHOD, consequence 3).
    """
    if exact:
        return Tolerance(absolute=1e-4)
    alone = _alone(scorer, pairs, device) if alone is None else alone
    together = _both_sides(scorer.score(collate_pairs(list(pairs)).to(device)))
    return Tolerance(absolute=4 * float((alone - together).abs().max()))


def _refuse(what: str, pair: PairRow, side: int, stored: float, found: float) -> AuditError:
    name = ("chosen", "rejected")[side]
    return AuditError(
        f"{what}: pair {pair.pair_id} (prompt {pair.prompt_id}), {name} response: "
        f"{stored:.4f} nats stored, {found:.4f} nats found"
    )


def audit_live(
    name: str, stored: Scorer, live: Scorer, pairs: Sequence[PairRow], device: torch.device, exact: bool
) -> Tolerance:
    """Score some rows again, each alone in its batch, and compare with what is stored.

    Finds rows permuted, another template, chosen and rejected swapped, a model that changed (traps A10, B4, C2, C6).

    Raises:
        AuditError: naming the row and both numbers.
    """
    rows = audit_rows(pairs)
    found = _alone(live, rows, device)
    tolerance = measure_tolerance(live, rows, device, exact, alone=found)
    kept = torch.cat([_both_sides(stored.score(collate_pairs([pair]))) for pair in rows])
    wrong = tolerance.exceeded(kept, found).nonzero()
    if len(wrong):
        row, side = (int(part) for part in wrong[0])
        raise _refuse(f"audit of {name}", rows[row], side, float(kept[row, side]), float(found[row, side]))
    return tolerance


def audit_sampler(
    name: str, stored: Scorer, pairs: Sequence[PairRow], sides: Sequence[str], tolerance: Tolerance, exact: bool
) -> int:
    """Compare stored scores with what the sampler saw of its own samples, on every pair.

    A sampler reads token after token from a cache, and may run in another format than the scorer. In float32
    (`exact`) that is no excuse; in bfloat16 it is another way to round, for which the tolerance widens a little.

    Args:
        sides: which responses this model sampled: "chosen", "rejected" or both.

    Returns:
        Responses compared.

    Raises:
        AuditError: naming the row and both numbers.
    """
    tolerance = tolerance if exact else replace(tolerance, per_root_token=BFLOAT16_NATS_A_ROOT_TOKEN)
    compared = 0
    if not sides:
        return compared
    for pair, scores in zip(pairs, _both_sides(scores_of(stored, pairs)), strict=True):
        seen_of = {
            "chosen": (0, pair.chosen_log_prob, pair.chosen_token_ids),
            "rejected": (1, pair.rejected_log_prob, pair.rejected_token_ids),
        }
        for side, seen, token_ids in (seen_of[given] for given in sides):
            if seen is None:
                continue
            compared += 1
            if bool(tolerance.exceeded(scores[side], torch.tensor(seen), len(token_ids))):
                raise _refuse(f"audit of {name} against its sampler", pair, side, float(scores[side]), seen)
    return compared


def scores_of(scorer: Scorer, pairs: Sequence[PairRow], device: torch.device | None = None) -> PairLogProbs:
    """A scorer's log-probs of any number of pairs, in their order; a batch of them is in memory at a time.

    Returns:
        Log-probs on the CPU, whatever device the scorer was asked on.
    """
    if isinstance(scorer, ScoreTable):  # which asks for ids alone
        return scorer.look_up(pair.pair_id for pair in pairs)
    device = device or torch.device("cpu")
    groups = budgeted_batches(column(pairs, pair_tokens), default_tokens_per_batch(device))
    parts = [
        scorer.score(collate_pairs([pairs[index] for index in group]).to(device)).to(torch.device("cpu"))
        for group in groups
    ]
    place = torch.tensor([index for group in groups for index in group]).argsort()
    sides = ([part.chosen for part in parts], [part.rejected for part in parts])
    chosen, rejected = (
        SequenceLogProbs(torch.cat([one.total for one in side]), torch.cat([one.num_tokens for one in side]))[place]
        for side in sides
    )
    return PairLogProbs(chosen, rejected)


def audit_own_samples(teacher: Scorer, reference: Scorer, pairs: Sequence[PairRow]) -> tuple[float, float]:
    """On the teacher's own samples (the chosen side) the teacher's mean log-prob must exceed the student's.

    That holds for samples that the student was not fine-tuned on; others it may have learnt by heart.

    Returns:
        The two means, in nats a response.

    Raises:
        AuditError: naming both.
    """
    means = [float(scores_of(scorer, pairs).chosen.total.double().mean()) for scorer in (teacher, reference)]
    if not means[0] > means[1]:
        raise AuditError(
            f"audit of the teacher: its own samples get {means[0]:.3f} nats a response from it and {means[1]:.3f} "
            "from the student; the scores are not this teacher's, or the student has learnt these samples by heart, "
            "and validation pairs would tell"
        )
    return means[0], means[1]


@dataclass(frozen=True)
class Saturation:
    """METHOD, consequence 9: is there anything left of the teacher's differences at step 0?

    Attributes:
        quartiles: of D_teacher - D_reference over pairs, in nats.
        saturated: share of pairs whose weight sigmoid(-margin) at step 0 exceeds 0.9.
        advised_beta_teacher: brings the median of b_te (D_te - D_ref) to 1; None when that median is not positive.
        agreement: share of pairs where the teacher too prefers the chosen response.
    """

    quartiles: tuple[float, float, float]
    saturated: float
    advised_beta_teacher: float | None
    agreement: float

    def spread(self) -> str:
        """What holds of the two models whatever the objective is."""
        low, median, high = self.quartiles
        return (
            f"D_teacher - D_reference: quartiles {low:.2f} / {median:.2f} / {high:.2f} nats; the teacher prefers the "
            f"chosen response in {self.agreement:.0%} of pairs"
        )

    def lines(self) -> list[str]:
        """The report, one warning included where more than half of the pairs are saturated."""
        lines = [f"{self.spread()}; {self.saturated:.0%} of pairs start with a weight > 0.9"]
        if self.saturated > 0.5 and self.advised_beta_teacher is not None:
            lines.append(
                "warning: most pairs are saturated, so the teacher's differences are lost; "
                f"beta_teacher = {self.advised_beta_teacher:.4f} would bring the median of "
                "beta_teacher (D_teacher - D_reference) to 1"
            )
        return lines


def saturation(anchors: Mapping[str, PairLogProbs], betas: Mapping[str, float]) -> Saturation:
    """From the scores of every pair, the policy starting at the reference: margin_0 = sum_k b_k (D_ref - D_k)."""
    reference, teacher = anchors["reference"].gap.double(), anchors["teacher"].gap.double()
    margin = sum((beta * (reference - anchors[name].gap.double()) for name, beta in betas.items()), torch.zeros(1))
    difference = teacher - reference
    low, median, high = torch.quantile(difference, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return Saturation(
        quartiles=(low, median, high),
        saturated=float((torch.sigmoid(-margin) > 0.9).double().mean()),
        advised_beta_teacher=1 / median if median > 0 else None,
        agreement=float(((teacher > 0) + 0.5 * (teacher == 0)).mean()),
    )
