"""The preference losses once more, each from its paper's own words, as plain float64 loops over Python numbers.

Not the forms that the package uses: probabilities where it has log-sigmoids, a virtual reference where it divides by
the sum of the weights, a solved system where it has a quotient. Log-probabilities are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from tests.oracles import Pair, margin, sigmoid, softplus

__all__ = ["ipo", "hinge", "robust", "conservative", "simpo", "slopes"]


def ipo(policy: Pair, anchors: Mapping[str, Pair], betas: Mapping[str, float]) -> float:
    """(h - 1/(2 tau))^2, h = log [pi(y_w) v(y_l) / (pi(y_l) v(y_w))], v the anchors' weighted geometric mean."""
    tau = math.fsum(betas.values())
    virtual = [math.fsum(beta / tau * anchors[name][side] for name, beta in betas.items()) for side in (0, 1)]
    h = policy[0] + virtual[1] - policy[1] - virtual[0]
    return (h - 1 / (2 * tau)) ** 2


def hinge(policy: Pair, anchors: Mapping[str, Pair], betas: Mapping[str, float]) -> float:
    """Nothing from a margin of 1 on; below it, what is missing."""
    found = margin(policy, anchors, betas)
    return 0.0 if found >= 1 else 1 - found


def robust(policy: Pair, anchors: Mapping[str, Pair], betas: Mapping[str, float], flipped: float) -> float:
    """The loss whose mean over flipped labels is DPO's: both orders' means are two equations, solved for one of them.

    (1 - e) r(m) + e r(-m) = softplus(-m) and e r(m) + (1 - e) r(-m) = softplus(m).
    """
    found = margin(policy, anchors, betas)
    kept = 1 - flipped
    return (kept * softplus(-found) - flipped * softplus(found)) / (kept**2 - flipped**2)


def conservative(policy: Pair, anchors: Mapping[str, Pair], betas: Mapping[str, float], smoothing: float) -> float:
    """Cross-entropy of the label (1 - e, e) and the probability that the chosen response is the better one."""
    found = margin(policy, anchors, betas)
    return -(1 - smoothing) * math.log(sigmoid(found)) - smoothing * math.log(sigmoid(-found))


def simpo(policy: Pair, lengths: tuple[int, int], beta: float, gamma: float) -> float:
    """-log of e^(r_w) / (e^(r_w) + e^(r_l + gamma)), r = beta log pi(y) / |y|."""
    chosen, rejected = (beta * total / length for total, length in zip(policy, lengths, strict=True))
    return math.log(math.fsum([1.0, math.exp(rejected + gamma - chosen)]))


def slopes(loss: Callable[[Pair], float], policy: Pair, step: float = 1e-4) -> Pair:
    """d loss / d log pi of the chosen and of the rejected response, by central differences."""
    chosen, rejected = policy
    return (
        (loss((chosen + step, rejected)) - loss((chosen - step, rejected))) / (2 * step),
        (loss((chosen, rejected + step)) - loss((chosen, rejected - step))) / (2 * step),
    )
