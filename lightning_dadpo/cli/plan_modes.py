"""The ways to have the anchors' log-probs, what each takes, and which to take."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_dadpo.cli.recipe import SHARDED
from lightning_dadpo.models.footprint import Footprint
from lightning_dadpo.training.memory import Layout, Parts, scoring_memory, training_memory

__all__ = ["Mode", "Workload", "plan_modes", "recommended"]

SHARE_OF_MATMUL_RATE = {"training": 0.65, "scoring": 0.55}
"""Of the rate of large products, measured on a CPU (experiments/throughput, row F, and the scoring stage)."""
SCORE_DISK_BYTES = 190
"""Of one pair's row in a scores artefact."""


@dataclass(frozen=True)
class Workload:
    """What will be trained on.

    Attributes:
        pairs: of the training split.
        prompt_tokens, response_tokens: of one prompt and of one response.
        epochs: of the preference training.
        pairs_per_step: over all devices.
        tokens_per_batch: of a forward pass on one device.
    """

    pairs: int
    prompt_tokens: int
    response_tokens: int
    epochs: int
    pairs_per_step: int
    tokens_per_batch: int

    @property
    def pair_tokens(self) -> int:
        """Tokens that are computed for a pair: the prompt once, and of each response all but its last."""
        return self.prompt_tokens + 2 * self.response_tokens - 2

    def micro_batches(self, devices: int) -> int:
        """Of one step on one device."""
        return max(1, math.ceil(self.pairs_per_step * self.pair_tokens / (self.tokens_per_batch * devices)))


@dataclass(frozen=True)
class Mode:
    """One way to have the anchors' log-probs.

    Attributes:
        name: live, cached or remote; alone where the loss asks no other model.
        parts: bytes of the training on one device.
        scoring_bytes: of the larger model that is scored with, on one device; 0 where nothing is.
        disk_bytes: of checkpoints, the exported model and scores.
        flop: of scoring and training together, linear layers alone.
        hours: of scoring and training.
        server_tokens: that a server has to score.
        fits: whether training and scoring fit on the device.
    """

    name: str
    parts: Parts
    scoring_bytes: float
    disk_bytes: float
    flop: float
    hours: float
    server_tokens: int
    fits: bool


def plan_modes(
    student: Footprint,
    others: dict[str, Footprint],
    reference: bool,
    workload: Workload,
    layout: Layout,
    memory: float,
    rate: float,
) -> list[Mode]:
    """What there is to choose from: a server where there are further models, scores where any model is asked.

    Args:
        student: counted with the workload's micro-batch.
        others: the further models that the objective asks, by name, counted in the same way.
        reference: whether it asks the student before training too.
        workload: the pairs.
        layout: of the training.
        memory: bytes of one device.
        rate: FLOP/s of one device in large products.
    """
    names = ("live", "cached", "remote") if others else ("live", "cached") if reference else ("alone",)
    return [_mode(name, student, others, reference, workload, layout, memory, rate) for name in names]


def _mode(
    name: str,
    student: Footprint,
    others: dict[str, Footprint],
    reference: bool,
    workload: Workload,
    layout: Layout,
    memory: float,
    rate: float,
) -> Mode:
    live, further = name == "live", list(others.values())
    # a live reference of an adapter is the student itself, and the only one of a student in 4 bits
    frozen = [*([student] if reference and not student.adapter else []), *further] if live else []
    tables = 0 if live else len(further) + reference
    parts = training_memory(student, frozen, layout, workload.pairs, tables)
    asked_here = [] if name == "remote" else further
    scoring_bytes = 0.0
    if not live:
        asked = [scoring_memory(model, 1, layout.mixed) for model in asked_here]
        scoring_bytes = max([scoring_memory(student, 1, False)] * reference + asked, default=0.0)
    flop = float(_training_flop(student, workload))
    scoring = reference * (workload.epochs if live or student.rounded else 1) * _forward_flop(student, workload)
    scoring += (workload.epochs if live else 1) * sum(_forward_flop(model, workload) for model in asked_here)
    seconds = flop / (SHARE_OF_MATMUL_RATE["training"] * rate * layout.devices)
    seconds += scoring / (SHARE_OF_MATMUL_RATE["scoring"] * rate * layout.devices)
    checkpoint = (4 + 8) * student.trained * (2 if layout.strategy != "one" else 1) + 4 * student.parameters
    # rounded weights are not spread (training/sharding.py)
    spread = live and any(model.rounded for model in further) and layout.strategy in SHARDED
    # a server is sent whole texts: prompt and response, twice
    sent = len(further) * 2 * workload.pairs * (workload.prompt_tokens + workload.response_tokens)
    return Mode(
        name=name,
        parts=parts,
        scoring_bytes=scoring_bytes,
        disk_bytes=checkpoint + tables * SCORE_DISK_BYTES * workload.pairs,
        flop=flop + scoring,
        hours=seconds / 3600,
        server_tokens=sent if name == "remote" else 0,
        fits=max(parts.total, scoring_bytes) <= memory and not spread,
    )


def _forward_flop(model: Footprint, workload: Workload) -> int:
    """Of all pairs once."""
    return 2 * workload.pairs * (model.matrices * workload.pair_tokens + 2 * model.head * workload.response_tokens)


def _training_flop(student: Footprint, workload: Workload) -> int:
    """Of all epochs.

    The head's logits are made once more in the backward pass: 2 + 2 + 4 operations a weight instead of 6. Under an
    adapter the model's own weights have no gradients, which are 2 of them.
    """
    own, tokens = 2 if student.adapter else 0, workload.pairs * workload.pair_tokens
    once = (6 - own) * student.matrices * tokens + (
        8 - own
    ) * student.head * 2 * workload.pairs * workload.response_tokens
    return workload.epochs * (once + 6 * student.adapter * tokens)


def recommended(modes: list[Mode]) -> Mode | None:
    """Cached where it fits, since its scores outlive the run and it is never slower; then live; a server last."""
    order = {"alone": 0, "cached": 0, "live": 1, "remote": 2}
    return min((mode for mode in modes if mode.fits), key=lambda mode: order[mode.name], default=None)
