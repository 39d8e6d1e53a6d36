"""Token-level distances between two models straight from their hidden states and heads, a chunk at a time.

The logits of both models over a whole micro-batch would be its two largest tensors. Here a chunk's logits live while
the chunk is worked on; for the backward pass they are made again, the teacher's too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_dadpo.logprobs.linear import default_chunk_tokens, product_dtype

__all__ = ["Predictor", "Divergence", "linear_divergences"]

Divergence = Callable[[Tensor, Tensor], Tensor]
"""From the teacher's and the student's logits [positions, vocabulary] to nats at each position."""


@dataclass(frozen=True)
class Predictor:
    """A model at its predictions: the states that make one each, and the head that reads them.

    Attributes:
        states: the trunk's.
        weight, bias: the head's.
    """

    states: Float[Tensor, "predictions width"]
    weight: Float[Tensor, "vocabulary width"]
    bias: Float[Tensor, " vocabulary"] | None


def linear_divergences(
    student: Predictor, teacher: Predictor, divergences: Sequence[Divergence], chunk_tokens: int | None = None
) -> Float[Tensor, "divergences predictions"]:
    """Each divergence at each prediction, in nats; gradients reach the student alone.

    Under autocast the matrix products run in the autocast dtype, each chunk's with a cast of its own: autocast would
    keep one for all chunks, in whose 16 bits their gradients of the weight would be added up.

    Args:
        student, teacher: of the same predictions; widths of states and of vocabularies may differ.
        divergences: what to compute of each chunk's two sets of logits.
        chunk_tokens: predictions whose logits are in memory at a time; None: by the device, for both together.
    """
    assert len(student.states) == len(teacher.states), "teacher and student predict different numbers of tokens"
    widths = student.weight.shape[0] + teacher.weight.shape[0]
    chunk = chunk_tokens or default_chunk_tokens(widths, student.states.device)
    dtype, teacher_dtype = product_dtype(student.states), product_dtype(teacher.states)
    teacher_weight = teacher.weight.detach().to(teacher_dtype)
    teacher_bias = None if teacher.bias is None else teacher.bias.detach().to(teacher_dtype)

    def at(own: Tensor, others: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        with torch.autocast(own.device.type, enabled=False):
            with torch.no_grad():
                teacher_logits = torch.nn.functional.linear(others.to(teacher_dtype), teacher_weight, teacher_bias)
            cast_bias = None if bias is None else bias.to(dtype)
            student_logits = torch.nn.functional.linear(own.to(dtype), weight.to(dtype), cast_bias)
        return torch.stack([divergence(teacher_logits, student_logits) for divergence in divergences])

    pieces = zip(torch.split(student.states, chunk), torch.split(teacher.states.detach(), chunk), strict=True)
    parts: list[Tensor] = [
        checkpoint(at, own, others, student.weight, student.bias, use_reentrant=False, preserve_rng_state=False)
        for own, others in pieces
    ]
    return torch.cat(parts, dim=1)
