"""The method once more, as plain float64 loops over Python numbers: METHOD.md without tensors.

Slow and short on purpose. Nothing here imports torch or the package, so a defect cannot stand on both sides.
Log-probabilities are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

__all__ = [
    "Pair", "log_softmax", "softmax", "head_logits", "sequence_log_prob", "sequence_hidden_gradient",
    "gap", "margin", "softplus", "sigmoid", "preference_loss", "margin_weight", "gap_weight", "implicit_reward",
    "kl_divergence", "mixture_logits", "jensen_shannon",
]  # fmt: skip

Vector = Sequence[float]
Matrix = Sequence[Vector]
Pair = tuple[float, float]
"""What one model gives to the chosen and to the rejected response."""


def log_softmax(logits: Vector) -> list[float]:
    """log p of every id: logit - log sum exp, the largest logit taken out first."""
    largest = max(logits)
    log_sum = largest + math.log(math.fsum(math.exp(logit - largest) for logit in logits))
    return [logit - log_sum for logit in logits]


def softmax(logits: Vector) -> list[float]:
    """p of every id."""
    return [math.exp(value) for value in log_softmax(logits)]


def head_logits(hidden: Vector, weight: Matrix) -> list[float]:
    """One position's logits of a head without bias; `weight` has a row for each id."""
    return [math.fsum(h * w for h, w in zip(hidden, row, strict=True)) for row in weight]


def sequence_log_prob(logits: Matrix, ids: Sequence[int], prompt: int, length: int) -> tuple[float, int]:
    """Log pi(y|x) and the response's length.

    Token t is predicted by the logits at t - 1; ids[:prompt] is the prompt, ids[prompt:length] the response,
    and what stands behind is padding.
    """
    terms = [log_softmax(logits[t - 1])[ids[t]] for t in range(prompt, length)]
    return math.fsum(terms), len(terms)


def sequence_hidden_gradient(
    hidden: Matrix, weight: Matrix, ids: Sequence[int], prompt: int, length: int, coefficient: float
) -> tuple[list[list[float]], list[list[float]]]:
    """Gradients of coefficient * log pi(y|x) by the hidden states and by the head's weight.

    d log p(y) / d logit_v = [v = y] - p(v), and the logit is hidden . weight_v.
    """
    by_hidden = [[0.0] * len(row) for row in hidden]
    by_weight = [[0.0] * len(row) for row in weight]
    for t in range(prompt, length):
        state = hidden[t - 1]
        for v, probability in enumerate(softmax(head_logits(state, weight))):
            slope = coefficient * ((1.0 if v == ids[t] else 0.0) - probability)
            for d, value in enumerate(state):
                by_hidden[t - 1][d] += slope * weight[v][d]
                by_weight[v][d] += slope * value
    return by_hidden, by_weight


def gap(pair: Pair) -> float:
    """D = log pi(y_w) - log pi(y_l)."""
    return pair[0] - pair[1]


def margin(policy: Pair, anchors: Mapping[str, Pair], betas: Mapping[str, float]) -> float:
    """Sum_k b_k [log pi(y_w)/pi_k(y_w) - log pi(y_l)/pi_k(y_l)], as Eq. 10 writes it (not in the D form)."""
    return math.fsum(
        beta * ((policy[0] - anchors[name][0]) - (policy[1] - anchors[name][1]))
        for name, beta in betas.items()
        if beta > 0
    )


def softplus(x: float) -> float:
    """log(1 + e^x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x)."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def preference_loss(margin_value: float) -> float:
    """-log sigmoid(margin) = softplus(-margin)."""
    return softplus(-margin_value)


def margin_weight(margin_value: float) -> float:
    """d loss / d margin = -sigmoid(-margin)."""
    return -sigmoid(-margin_value)


def gap_weight(margin_value: float, betas: Mapping[str, float]) -> float:
    """d loss / d log pi(y_w) = -sigmoid(-margin) * sum_k b_k; by log pi(y_l) it is the negative."""
    return margin_weight(margin_value) * math.fsum(betas.values())


def implicit_reward(policy: float, anchors: Mapping[str, float], betas: Mapping[str, float]) -> float:
    """Sum_k b_k (log pi(y) - log pi_k(y)) of one response."""
    return math.fsum(beta * (policy - anchors[name]) for name, beta in betas.items() if beta > 0)


def kl_divergence(p_logits: Vector, q_logits: Vector) -> float:
    """KL(p || q) = sum_v p(v) (log p(v) - log q(v))."""
    p, q = log_softmax(p_logits), log_softmax(q_logits)
    return math.fsum(math.exp(log_p) * (log_p - log_q) for log_p, log_q in zip(p, q, strict=True))


def mixture_logits(teacher_logits: Vector, student_logits: Vector, share: float) -> list[float]:
    """Logits of share * teacher + (1 - share) * student, both as probabilities."""
    teacher, student = softmax(teacher_logits), softmax(student_logits)
    return [math.log(share * t + (1 - share) * s) for t, s in zip(teacher, student, strict=True)]


def jensen_shannon(teacher_logits: Vector, student_logits: Vector, beta: float) -> float:
    """Beta KL(te || M) + (1 - beta) KL(st || M), M = beta te + (1 - beta) st; its ends are the two KLs."""
    if beta in (0, 1):
        return kl_divergence(*((student_logits, teacher_logits) if beta else (teacher_logits, student_logits)))
    mixture = mixture_logits(teacher_logits, student_logits, beta)
    return beta * kl_divergence(teacher_logits, mixture) + (1 - beta) * kl_divergence(student_logits, mixture)
