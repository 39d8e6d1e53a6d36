"""The ablation ladder: from online daDPO to this project's step, a rung at a time, each against its count of FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from experiments.throughput.flops import FORWARD, RECOMPUTED, TRAINING, Cost, Shape, padded_tokens
from experiments.throughput.measure import interleaved
from experiments.throughput.ours import Ours, separate_trees, step_batches
from experiments.throughput.rivals import Online, full_logits_log_probs, padded
from experiments.throughput.setting import BETA_REFERENCE, BETA_TEACHER, Setting, chunks
from experiments.throughput.workload import Pair, pair_rows
from lightning_dadpo.logprobs import token_log_probs
from lightning_dadpo.losses import dadpo_loss
from lightning_dadpo.models.log_probs import response_logits
from lightning_dadpo.types import PackedBatch, PairLogProbs, SequenceLogProbs

__all__ = ["climb", "predictions"]

Rungs = dict[str, int]


def _all_logits(model: Any, batch: PackedBatch) -> PairLogProbs:
    """Packed log-probs with the head on every token and all logits kept: before the last rung."""
    everywhere = torch.arange(len(batch.token_ids), device=batch.token_ids.device)
    logits = response_logits(model, replace(batch, predicted_by=everywhere)).float()
    log_probs = token_log_probs(logits[batch.predicted_by], batch.targets)
    totals = log_probs.new_zeros(len(batch.num_response_tokens)).index_add(0, batch.owners, log_probs[batch.terms])
    return PairLogProbs.split(SequenceLogProbs(totals, batch.num_response_tokens))


def _parts(pairs: Sequence[Pair], budget: int) -> list[list[Pair]]:
    """The plan's micro-batches, as pairs."""
    rows = pair_rows(pairs)
    place = {row.pair_id: pair for row, pair in zip(rows, pairs, strict=True)}
    return [[place[pair_id] for pair_id in batch.pair_ids] for batch in step_batches(rows, budget)]


def climb(setting: Setting, pairs: Sequence[Pair], micro_batch: int, blocks: int) -> list[dict[str, Any]]:
    """Seconds of a step on every rung, and what its count of FLOPs predicts.

    Args:
        setting: models and machine.
        pairs: of one step.
        micro_batch: pairs of a padded forward pass.
        blocks: measured rounds.
    """
    online, ours = Online(setting, micro_batch), Ours(setting, pairs)
    model, device = ours.model, setting.device
    parts = _parts(pairs, setting.budget)

    def step(batches: Callable[[], Iterable[tuple[int, PairLogProbs]]]) -> Callable[[], None]:
        def run() -> None:
            made = iter(batches())
            while True:
                with setting.autocast():
                    policy = next(made, None)
                if policy is None:
                    break
                _loss(policy[1], len(pairs)).backward()  # type: ignore[no-untyped-call]
            ours.optimizer.step()
            ours.optimizer.zero_grad(set_to_none=True)

        return run

    def cached() -> Iterable[tuple[int, PairLogProbs]]:
        for part in chunks(pairs, micro_batch):
            yield 0, full_logits_log_probs(model, padded(part).to(device))

    def packed() -> Iterable[tuple[int, PairLogProbs]]:
        for part in parts:
            yield 0, _all_logits(model, separate_trees(pair_rows(part)).to(device))

    def shared() -> Iterable[tuple[int, PairLogProbs]]:
        for batch in step_batches(pair_rows(pairs), setting.budget):
            yield 0, _all_logits(model, batch.to(device).sequences)

    times = interleaved(
        {
            "online": lambda: online.step(pairs),
            "scores from the cache": step(cached),
            "no padding": step(packed),
            "prompts computed once": step(shared),
            "head on response positions, in chunks": lambda: ours.step(pairs),
        },
        blocks,
    )
    counted = predictions(setting.sizes.student, setting.sizes.teacher, pairs, micro_batch)
    return _table({name: median(values) for name, values in times.items()}, counted)


def _loss(policy: PairLogProbs, step_pairs: int) -> Tensor:
    """The loss on scores that cost nothing to look up."""
    anchors = {"reference": policy.detach(), "teacher": policy.detach()}
    losses = dadpo_loss(policy, **anchors, beta_reference=BETA_REFERENCE, beta_teacher=BETA_TEACHER)
    return losses.sum() / step_pairs


def predictions(student: Shape, teacher: Shape, pairs: Sequence[Pair], micro_batch: int) -> Rungs:
    """FLOPs of a step on every rung."""
    rows = pair_rows(pairs)
    wide = padded_tokens(pairs, micro_batch)
    separate = separate_trees(rows)
    shared = step_batches(rows, 10**9)[0].sequences
    trained = Cost(wide, wide, TRAINING, TRAINING).flops(student)
    frozen = sum(Cost(wide, wide, FORWARD, FORWARD).flops(shape) for shape in (student, teacher))
    return {
        "online": trained + frozen,
        "scores from the cache": trained,
        "no padding": Cost(separate.num_tokens, separate.num_tokens).flops(student),
        "prompts computed once": Cost(shared.num_tokens, shared.num_tokens).flops(student),
        "head on response positions, in chunks": Cost(
            shared.num_tokens, len(shared.targets), head_operations=RECOMPUTED
        ).flops(student),
    }


def _table(times: dict[str, float], counted: Rungs) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    before: str | None = None
    for name, taken in times.items():
        row: dict[str, Any] = {"rung": name, "seconds": taken, "gflop": counted[name] / 1e9}
        if before is not None:
            row |= {"predicted": counted[before] / counted[name], "measured": times[before] / taken}
        rows.append(row)
        before = name
    return rows
