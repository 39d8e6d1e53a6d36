"""Distances between teacher and student on sampled responses: exact KL over the whole common vocabulary, position by
position (METHOD: distances used in reports).

The forward KL is KL(teacher || student) on what the teacher sampled, the reverse KL is KL(student || teacher) on what
the student sampled. Both responses to a prompt are branches of one token tree, so that each model reads the prompt
once and both directions come from one pass of each. What comes out are sums a response; the ratio of sums is taken over
prompts, later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_dadpo.data.packing import pack
from lightning_dadpo.logprobs import Predictor, linear_log_probs, token_log_probs
from lightning_dadpo.losses import kl_divergence
from lightning_dadpo.models.loading import autocast
from lightning_dadpo.models.log_probs import predictor
from lightning_dadpo.models.spec import Precision
from lightning_dadpo.types import PackedBatch

__all__ = ["Answers", "DistanceSums", "Sample", "distance_sums", "token_log_probs_of", "MAX_POSITIONS"]

MAX_POSITIONS = 512
"""Positions whose full-vocabulary logits are in memory at a time, of both models."""


@dataclass(frozen=True)
class Sample:
    """One sampled response: the prompt's ids as the model read them, and the ids that it sampled."""

    prompt_token_ids: list[int]
    token_ids: list[int]


@dataclass(frozen=True)
class Answers:
    """What both models sampled for one prompt, at least one token each.

    Attributes:
        prompt_token_ids: as both models read it.
        by_teacher, by_student: the ids that each sampled.
    """

    prompt_token_ids: list[int]
    by_teacher: list[int]
    by_student: list[int]


@dataclass(frozen=True)
class DistanceSums:
    """Sums over the positions of each response, on the CPU.

    Attributes:
        forward_kl: over the teacher's response, KL(teacher || student) in nats, never negative.
        reverse_kl: over the student's response, KL(student || teacher) in nats, never negative.
        teacher_log_prob: of the student's response in nats, of the raw teacher over its whole vocabulary.
        teacher_tokens, student_tokens: positions of either response, the emitted end-of-turn token included.
    """

    forward_kl: Float[Tensor, " prompts"]
    reverse_kl: Float[Tensor, " prompts"]
    teacher_log_prob: Float[Tensor, " prompts"]
    teacher_tokens: Int[Tensor, " prompts"]
    student_tokens: Int[Tensor, " prompts"]


@torch.no_grad()
def distance_sums(
    teacher: Any, student: Any, answers: Sequence[Answers], precision: Precision, max_positions: int = MAX_POSITIONS
) -> DistanceSums:
    """Sums over both responses to each prompt, from one forward pass of either model.

    Both models run under `precision`'s autocast; softmax and sums are float32, the sums over positions float64.
    At most `max_positions` positions have logits in memory: prompts are taken a few at a time, and of longer responses
    the states are kept and the head reads them in pieces.

    Args:
        teacher: the model that distances are measured to.
        student: the other one; the teacher itself is allowed and is at a distance of exactly 0. Both on one device.
        answers: prompts with both models' responses.
        precision: the number format that both models were loaded for.
        max_positions: bound on the positions in memory.
    """
    device = next(teacher.parameters()).device
    forward, reverse, log_prob = (torch.zeros(len(answers), dtype=torch.float64) for _ in range(3))
    prompts = [one.prompt_token_ids for one in answers]
    both = [[one.by_teacher, one.by_student] for one in answers]
    for rows in _groups([sum(map(len, responses)) for responses in both], max_positions):
        batch = pack(prompts[rows.start : rows.stop], both[rows.start : rows.stop]).to(device)
        with autocast(precision, device):
            own = predictor(teacher, batch)
            others = own if student is teacher else predictor(student, batch)
            if others is not own:
                for at, owners in _predictions(batch, 0, rows, max_positions):
                    _add(forward, owners, kl_divergence(_logits(own, at), _logits(others, at)))
            for at, owners in _predictions(batch, 1, rows, max_positions):
                logits = _logits(own, at)
                _add(log_prob, owners, token_log_probs(logits, batch.targets[at]))
                if others is not own:
                    _add(reverse, owners, kl_divergence(_logits(others, at), logits))
    by_teacher, by_student = (torch.tensor([len(responses[side]) for responses in both]) for side in (0, 1))
    return DistanceSums(forward, reverse, log_prob, by_teacher, by_student)


@torch.no_grad()
def token_log_probs_of(
    model: Any, samples: Sequence[Sample], precision: Precision, max_positions: int = MAX_POSITIONS
) -> list[Float[Tensor, " tokens"]]:
    """Log pi(token | prompt and the tokens before) of every token of each response, in nats, on the CPU.

    Of the raw model over its whole vocabulary, bounded as `distance_sums`; what a response gets sums to its log-prob.

    Args:
        model: any model. precision: the number format that it was loaded for.
        samples: prompts with responses; a prompt is read once for those that follow one another.
        max_positions: bound on the positions in memory.
    """
    device = next(model.parameters()).device
    found: list[Tensor] = []
    for prompt, same in groupby(samples, key=lambda sample: sample.prompt_token_ids):
        responses = [sample.token_ids for sample in same]
        for rows in _groups([len(response) for response in responses], max_positions):
            batch = pack([prompt], [responses[rows.start : rows.stop]]).to(device)
            with autocast(precision, device):
                asked = predictor(model, batch)
                values = linear_log_probs(asked.states, asked.weight, asked.bias, batch.targets, max_positions)
            values = values.double()
            # the terms of a sequence stand in the order of its tokens
            found.extend(values[batch.terms[batch.owners == number]].cpu() for number in range(len(rows)))
    return found


def _groups(tokens: Sequence[int], at_most: int) -> Iterator[range]:
    """Items in order, in groups of at most so many tokens together; a larger item by itself."""
    first = held = 0
    for item, size in enumerate(tokens):
        if item > first and held + size > at_most:
            yield range(first, item)
            first, held = item, 0
        held += size
    if tokens:
        yield range(first, len(tokens))


def _predictions(batch: PackedBatch, side: int, rows: range, at_most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Those of one side's responses: their numbers in the batch, and the row that each counts for.

    What both responses begin with in common the trunk reads once, and it counts for both sides.
    """
    responses, trees = batch.owners // len(rows), batch.owners % len(rows)
    chosen = responses == side
    owners = (rows.start + trees[chosen]).cpu()
    return zip(torch.split(batch.terms[chosen], at_most), torch.split(owners, at_most), strict=True)


def _logits(asked: Predictor, at: Int[Tensor, " predictions"]) -> Float[Tensor, "predictions vocabulary"]:
    return torch.nn.functional.linear(asked.states[at], asked.weight, asked.bias)


def _add(sums: Float[Tensor, " prompts"], owners: Int[Tensor, " positions"], nats: Float[Tensor, " positions"]) -> None:
    sums.index_add_(0, owners, nats.double().cpu())
