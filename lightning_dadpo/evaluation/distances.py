"""Distances between teacher and student on sampled responses: exact KL over the whole common vocabulary, position by
position (METHOD: distances used in reports).

The forward KL is KL(teacher || student) on what the teacher sampled, the reverse KL is KL(student || teacher) on what
the student sampled. All responses to a prompt are branches of one token tree: a model reads the prompt once, and what
it made of the responses, its states, is held against the other model's. What comes out are sums a response; the ratio
of sums is taken over prompts, later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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

__all__ = [
    "BothAnswers",
    "DistanceSums",
    "Sample",
    "distance_sums",
    "read",
    "read_both",
    "token_log_probs_of",
    "MAX_POSITIONS",
]

MAX_POSITIONS = 512
"""Positions whose full-vocabulary logits are in memory at a time, of both models; and response tokens that a model
reads at a time, but for a longer response."""

Ids = list[int]


@dataclass(frozen=True)
class Sample:
    """One sampled response: the prompt's ids as the model read them, and the ids that it sampled."""

    prompt_token_ids: Ids
    token_ids: Ids


@dataclass(frozen=True)
class BothAnswers:
    """What both models sampled for one prompt, at least one token each.

    Attributes:
        prompt_token_ids: as both models read it.
        by_teacher, by_student: the ids that each sampled.
    """

    prompt_token_ids: Ids
    by_teacher: Ids
    by_student: Ids


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
def read(
    model: Any,
    prompts: Sequence[Ids],
    responses: Sequence[Sequence[Ids]],
    precision: Precision,
    max_positions: int = MAX_POSITIONS,
) -> list[Predictor]:
    """Let a model read responses; one forward pass over each prompt, but for prompts of many or long responses.

    Args:
        model: any model.
        prompts: ids of each prompt, at least one token.
        responses: for each prompt its responses, as many for every prompt, each at least one token.
        precision: the number format that it was loaded for; the model runs under its autocast.
        max_positions: response tokens at a time; a longer response is read by itself.

    Returns:
        For the first, second ... response to every prompt the model's states at all its tokens, those of one prompt
        behind those of another, and its head.
    """
    device = next(model.parameters()).device
    found: dict[tuple[int, int], Tensor] = {}
    for piece in _pieces(responses, max_positions):
        branches = [[responses[row][number] for number in numbers] for row, numbers in piece]
        batch = pack([prompts[row] for row, _ in piece], branches).to(device)
        with autocast(precision, device):
            asked = predictor(model, batch)
        for at, (row, numbers) in enumerate(piece):
            for branch, number in enumerate(numbers):
                # the terms of a sequence stand in the order of its tokens; two may share a state
                found[row, number] = asked.states[batch.terms[batch.owners == branch * len(piece) + at]]
    return [
        replace(asked, states=torch.cat([found[row, number] for row in range(len(prompts))]))
        for number in range(len(responses[0]))
    ]


def read_both(
    model: Any, answers: Sequence[BothAnswers], precision: Precision, max_positions: int = MAX_POSITIONS
) -> list[Predictor]:
    """What a model makes of the teacher's responses and of the student's, see `read`."""
    prompts = [one.prompt_token_ids for one in answers]
    return read(model, prompts, [[one.by_teacher, one.by_student] for one in answers], precision, max_positions)


@torch.no_grad()
def distance_sums(
    teacher: Sequence[Predictor],
    student: Sequence[Predictor],
    answers: Sequence[BothAnswers],
    precision: Precision,
    max_positions: int = MAX_POSITIONS,
) -> DistanceSums:
    """Sums over both responses to each prompt.

    The heads run under `precision`'s autocast; softmax and sums are float32, the sums over positions float64. At most
    `max_positions` positions have logits in memory.

    Args:
        teacher: what it made of its own responses and of the student's.
        student: what the student made of the same, see `read_both`; the very same object, where the student is the
            teacher itself, is at a distance of exactly 0.
        answers: prompts with both models' responses.
        precision: the number format that both models were loaded for.
        max_positions: bound on the positions in memory.
    """
    own, others = ([one.by_teacher for one in answers], [one.by_student for one in answers])
    forward, reverse, log_prob = (torch.zeros(len(answers), dtype=torch.float64) for _ in range(3))
    device = teacher[0].states.device
    with autocast(precision, device):
        if student is not teacher:
            for at, owners, _ in _positions(own, max_positions):
                _add(forward, owners, kl_divergence(_logits(teacher[0], at), _logits(student[0], at)))
        for at, owners, targets in _positions(others, max_positions):
            logits = _logits(teacher[1], at)
            _add(log_prob, owners, token_log_probs(logits, targets.to(device)))
            if student is not teacher:
                _add(reverse, owners, kl_divergence(_logits(student[1], at), logits))
    lengths = [torch.tensor([len(response) for response in side]) for side in (own, others)]
    return DistanceSums(forward, reverse, log_prob, *lengths)


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
        for response, asked in zip(
            responses, read(model, [prompt], [responses], precision, max_positions), strict=True
        ):
            targets = torch.tensor(response, device=device)
            with autocast(precision, device):
                values = linear_log_probs(asked.states, asked.weight, asked.bias, targets, max_positions)
            found.append(values.double().cpu())
    return found


_Piece = list[tuple[int, range]]
"""Prompts, and as many responses of each, that are read at a time."""


def _pieces(responses: Sequence[Sequence[Ids]], at_most: int) -> Iterator[_Piece]:
    """All responses to a prompt together where so many tokens allow, and as many prompts."""
    trees: _Piece = []
    for row, said in enumerate(responses):
        trees += [(row, numbers) for numbers in _groups([len(response) for response in said], at_most)]
    for _, alike in groupby(trees, key=lambda tree: len(tree[1])):
        same = list(alike)
        sizes = [sum(len(responses[row][number]) for number in numbers) for row, numbers in same]
        yield from (same[group.start : group.stop] for group in _groups(sizes, at_most))


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


def _positions(responses: Sequence[Ids], at_most: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Of responses laid end to end, so many at a time: where they stand, the response of each, and its token."""
    owners = torch.arange(len(responses)).repeat_interleave(torch.tensor([len(response) for response in responses]))
    targets = torch.tensor([token for response in responses for token in response])
    for start in range(0, len(targets), at_most):
        at = slice(start, start + at_most)
        yield at, owners[at], targets[at]


def _logits(asked: Predictor, at: slice) -> Float[Tensor, "positions vocabulary"]:
    return torch.nn.functional.linear(asked.states[at], asked.weight, asked.bias)


def _add(sums: Float[Tensor, " prompts"], owners: Int[Tensor, " positions"], nats: Float[Tensor, " positions"]) -> None:
    sums.index_add_(0, owners, nats.double().cpu())
