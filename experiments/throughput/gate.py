"""Speed counts only where the numbers are right: accuracy in the timed number format, and the same loss as TRL's."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.throughput.ours import Ours, step_batches
from experiments.throughput.rivals import Trl, padded
from experiments.throughput.setting import BETA_REFERENCE, BETA_TEACHER, Setting
from experiments.throughput.workload import SHORT, Pair, pair_rows
from lightning_dadpo.data.batching import collate_pairs
from lightning_dadpo.losses import dadpo_loss
from lightning_dadpo.models.loading import load_model
from lightning_dadpo.models.log_probs import model_log_probs, plain_log_probs
from lightning_dadpo.types import PairLogProbs, SequenceLogProbs

__all__ = ["GateError", "check_accuracy", "check_same_loss"]

MOST_ERROR, MOST_RELATIVE, LEAST_COSINE, MOST_LOSS, MOST_APART = 1.5, 1e-5, 0.9999, 1e-5, 1e-4
LogProbs = Callable[[Any], PairLogProbs]


class GateError(Exception):
    """The fast path is not the same computation; times of it mean nothing."""


def _gradient(model: Any, log_probs: LogProbs, anchors: dict[str, PairLogProbs]) -> Tensor:
    """Of the daDPO loss with respect to all weights, one vector in float64."""
    losses = dadpo_loss(log_probs(model), **anchors, beta_reference=BETA_REFERENCE, beta_teacher=BETA_TEACHER)
    model.zero_grad(set_to_none=True)
    losses.mean().backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad.double().flatten() for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    return torch.cat(gradients)


def _anchors(policy: PairLogProbs) -> dict[str, PairLogProbs]:
    """Anchors away from the policy, differently for each pair, so that every pair has a coefficient of its own."""
    shift = torch.linspace(-20, 20, len(policy.gap), device=policy.gap.device, dtype=policy.chosen.total.dtype)
    chosen = SequenceLogProbs(policy.chosen.total.detach() + shift, policy.chosen.num_tokens)
    return {"reference": PairLogProbs(chosen, policy.rejected.detach()), "teacher": policy.detach()}


def _totals(scores: PairLogProbs) -> Tensor:
    return torch.cat([scores.chosen.total, scores.rejected.total]).double()


def check_accuracy(setting: Setting) -> dict[str, float]:
    """The packed path and the plain padded one against float64, in the number format that is timed.

    Raises:
        GateError: naming what is off, and by how much.
    """
    device, wide = setting.device, torch.float64
    number, with_gradient = setting.sizes.gate
    pairs = setting.pairs(SHORT, number)

    def plain(part: Sequence[Pair], exact: bool) -> LogProbs:
        def run(model: Any) -> PairLogProbs:
            with torch.autocast(device.type, enabled=False) if exact else setting.autocast():
                return PairLogProbs.split(plain_log_probs(model, padded(part).to(device)))

        return run

    def packed(part: Sequence[Pair]) -> LogProbs:
        batch = collate_pairs(pair_rows(part)).to(device)

        def run(model: Any) -> PairLogProbs:
            with setting.autocast():
                return PairLogProbs.split(model_log_probs(model, batch.sequences))

        return run

    model = load_model(setting.student).to(device).train()
    exact = copy.deepcopy(model).to(wide)
    with torch.no_grad():
        true = _totals(plain(pairs, exact=True)(exact))
        errors = [(_totals(run(model)) - true).div(true) for run in (packed(pairs), plain(pairs, exact=False))]
    few = pairs[:with_gradient]
    with torch.no_grad():
        policy = plain(few, exact=True)(exact)
    anchors = _anchors(policy)
    narrow = {name: _narrowed(scores) for name, scores in anchors.items()}
    cosine = torch.cosine_similarity(
        _gradient(exact, plain(few, exact=True), anchors), _gradient(model, packed(few), narrow), dim=0
    ).item()
    found = {
        "packed_error": errors[0].square().mean().sqrt().item(),
        "plain_error": errors[1].square().mean().sqrt().item(),
        "worst_relative_error": errors[0].abs().max().item(),
        "gradient_cosine": cosine,
    }
    if found["packed_error"] > MOST_ERROR * found["plain_error"]:
        raise GateError(
            f"log-probs: error {found['packed_error']:.2e} against the plain path's {found['plain_error']:.2e}"
        )
    if setting.precision == "32-true" and found["worst_relative_error"] > MOST_RELATIVE:
        raise GateError(f"log-probs: a sequence is off by {found['worst_relative_error']:.2e} of itself in float32")
    if setting.precision == "32-true" and cosine < LEAST_COSINE:
        raise GateError(f"gradient: its cosine with float64's is {cosine:.6f}")
    return found


def _narrowed(scores: PairLogProbs) -> PairLogProbs:
    both = (SequenceLogProbs(side.total.float(), side.num_tokens) for side in (scores.chosen, scores.rejected))
    return PairLogProbs(*both)


def check_same_loss(ours: Ours, trl: Trl | None, pairs: Sequence[Pair]) -> dict[str, float]:
    """Before any step: our loss and TRL's are ln 2 on the same pairs, and their log-probs agree pair by pair.

    Raises:
        GateError: they compute something else, so comparing their times means nothing.
    """
    rows = pair_rows(pairs)
    with torch.no_grad():
        loss = sum(ours.loss(batch).item() for batch in step_batches(rows, ours.setting.budget))
    found = {"loss": loss}
    if trl is not None:
        table = ours.scorers["reference"].score(collate_pairs(rows))
        theirs = trl.log_probs(len(pairs))
        apart = (_totals(table) - _totals(theirs)).div(_totals(theirs)).abs().max().item()
        found |= {"trl_loss": trl.loss(len(pairs)), "log_probs_apart": apart}
        most = MOST_APART if ours.setting.precision == "32-true" else 1e-2
        if apart > most:
            raise GateError(f"TRL's log-probs of the same pairs differ by {apart:.1e} of themselves")
    for name in ("loss", "trl_loss"):
        most = MOST_LOSS if ours.setting.precision == "32-true" else 1e-2
        if abs(found.get(name, math.log(2)) - math.log(2)) > most:
            raise GateError(f"step 0: {name} is {found[name]:.6f}, expected ln 2")
    return found
