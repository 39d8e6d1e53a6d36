"""Distances between two next-token distributions, exact over the vocabulary that both share.

Every function takes raw logits of the same positions, cuts both to the narrower vocabulary (some model families pad
theirs to different widths), normalises there, and gives nats at each position, computed in float32 (float64 for float64
logits). Rounding can leave -1e-8 where the truth is 0; that is clamped, since none of these is ever negative.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "kl_divergence", "jensen_shannon_divergence", "skew_kl_divergence", "skew_reverse_kl_divergence",
]  # fmt: skip


def kl_divergence(
    p_logits: Float[Tensor, "positions p_vocabulary"], q_logits: Float[Tensor, "positions q_vocabulary"]
) -> Float[Tensor, " positions"]:
    """KL(p || q) = sum_v p(v) [log p(v) - log q(v)].

    With p the teacher and q the student it is the forward KL, the other way round the reverse KL.

    Example:
        >>> import torch
        >>> kl_divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0986123]]))  # 1/2 ln 2 + 1/2 ln 2/3
        tensor([0.1438])
    """
    return _kl(*_log_softmax(p_logits, q_logits))


def jensen_shannon_divergence(
    teacher_logits: Float[Tensor, "positions teacher_vocabulary"],
    student_logits: Float[Tensor, "positions student_vocabulary"],
    beta: float,
) -> Float[Tensor, " positions"]:
    """JS(beta) = beta KL(te || M) + (1 - beta) KL(st || M), M = beta te + (1 - beta) st.

    The generalised Jensen-Shannon divergence of GKD (arXiv 2306.13649).

    Args:
        teacher_logits, student_logits: of the same positions.
        beta: in [0, 1]. The formula gives 0 at both ends; 0 and 1 mean what it becomes beside them when it is divided
            by beta or by 1 - beta: forward KL(te || st) and reverse KL(st || te).
    """
    if beta == 0:
        return kl_divergence(teacher_logits, student_logits)
    if beta == 1:
        return kl_divergence(student_logits, teacher_logits)
    teacher, student = _log_softmax(teacher_logits, student_logits)
    mixture = _mixture(teacher, student, beta)
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def skew_kl_divergence(
    teacher_logits: Float[Tensor, "positions teacher_vocabulary"],
    student_logits: Float[Tensor, "positions student_vocabulary"],
    alpha: float,
) -> Float[Tensor, " positions"]:
    """KL(te || alpha te + (1 - alpha) st): skew forward KL (alpha-SKL of DistiLLM, arXiv 2402.03898).

    Args:
        teacher_logits, student_logits: of the same positions.
        alpha: share of the teacher in the mixture, in [0, 1); 0 is the forward KL.
    """
    teacher, student = _log_softmax(teacher_logits, student_logits)
    return _kl(teacher, _mixture(teacher, student, alpha))


def skew_reverse_kl_divergence(
    teacher_logits: Float[Tensor, "positions teacher_vocabulary"],
    student_logits: Float[Tensor, "positions student_vocabulary"],
    alpha: float,
) -> Float[Tensor, " positions"]:
    """KL(st || (1 - alpha) te + alpha st): skew reverse KL (alpha-SRKL of DistiLLM, arXiv 2402.03898).

    Args:
        teacher_logits, student_logits: of the same positions.
        alpha: share of the student in the mixture, in [0, 1); 0 is the reverse KL.
    """
    teacher, student = _log_softmax(teacher_logits, student_logits)
    return _kl(student, _mixture(teacher, student, 1 - alpha))


def _log_softmax(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of both over the common ids, in float32 or wider."""
    width = min(left.shape[-1], right.shape[-1])
    dtype = torch.promote_types(torch.promote_types(left.dtype, right.dtype), torch.float32)
    return left[:, :width].to(dtype).log_softmax(dim=-1), right[:, :width].to(dtype).log_softmax(dim=-1)


def _mixture(teacher: Tensor, student: Tensor, share: float) -> Tensor:
    """Log of share teacher + (1 - share) student, without leaving logs: a probability may be below float32's least."""
    if share in (0.0, 1.0):
        return teacher if share else student
    return torch.logaddexp(teacher + math.log(share), student + math.log1p(-share))


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """From log-probabilities; an id that p rules out adds nothing."""
    ratios = torch.where(p == -torch.inf, 0.0, p - q)  # before the product: 0 times infinity has no gradient
    return (p.exp() * ratios).sum(dim=-1).clamp_min(0.0)
