"""This project's side: its plan, its batches, its log-probs, its loss: its training step without the loop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.throughput.setting import BETA_REFERENCE, BETA_TEACHER, Setting, optimizer_of
from experiments.throughput.workload import Pair, pair_rows
from lightning_dadpo.data.batching import collate_pairs, pair_tokens
from lightning_dadpo.data.packing import pack
from lightning_dadpo.data.plan import MicroBatch, Plan, budgeted_batches
from lightning_dadpo.data.rows import PairRow, ScoreRow
from lightning_dadpo.losses import DaDPO
from lightning_dadpo.models.loading import load_frozen, load_model
from lightning_dadpo.models.log_probs import model_log_probs
from lightning_dadpo.models.spec import ModelSpec, Precision
from lightning_dadpo.scoring.live import AutocastScorer, LiveScorer
from lightning_dadpo.scoring.table import ScoreTable
from lightning_dadpo.training.metrics import ExampleMeans, pair_value_names, pair_values
from lightning_dadpo.types import PackedBatch, PairBatch, PairLogProbs

__all__ = ["Ours", "Scoring", "plan_of", "separate_trees", "step_batches", "epoch_batches", "collated"]


def plan_of(rows: Sequence[PairRow], pairs_per_step: int) -> Plan:
    """The project's plan of one rank over rows in memory."""
    costs = np.array([pair_tokens(row) for row in rows])
    return Plan(costs, np.ones(len(rows), dtype=np.int64), pairs_per_step, seed=0, world_size=1)


def step_batches(rows: Sequence[PairRow], budget: int) -> list[PairBatch]:
    """All rows as one optimizer step, dealt into micro-batches by a budget of tokens."""
    return epoch_batches(rows, len(rows), budget)


def epoch_batches(rows: Sequence[PairRow], pairs_per_step: int, budget: int) -> list[PairBatch]:
    """One epoch of steps, each dealt into micro-batches by a budget of tokens."""
    plan = plan_of(rows, pairs_per_step)
    return [collated(rows, part) for part in plan.epoch(0, plan.micro_batches(budget, epochs=1), rank=0)]


def collated(rows: Sequence[PairRow], part: MicroBatch) -> PairBatch:
    """One part of a plan as a batch."""
    return collate_pairs([rows[row] for row in part.rows], part.weights, pairs_in_step=part.in_step)


def separate_trees(rows: Sequence[PairRow]) -> PackedBatch:
    """The same sequences packed without sharing anything, a tree each: a rung of the ladder."""
    prompts = [row.prompt_token_ids for row in rows] * 2
    responses = [row.chosen_token_ids for row in rows] + [row.rejected_token_ids for row in rows]
    alone = [pack([prompt], [[response]]) for prompt, response in zip(prompts, responses, strict=True)]
    starts = accumulate((one.num_tokens for one in alone), initial=0)
    firsts = list(accumulate((len(one.targets) for one in alone), initial=0))
    return PackedBatch(
        token_ids=torch.cat([one.token_ids for one in alone]),
        position_ids=torch.cat([one.position_ids for one in alone]),
        stems=tuple(stem for one in alone for stem in one.stems),
        shapes=tuple(shape for one in alone for shape in one.shapes),
        predicted_by=torch.cat([one.predicted_by + start for one, start in zip(alone, starts, strict=False)]),
        targets=torch.cat([one.targets for one in alone]),
        terms=torch.cat([one.terms + first for one, first in zip(alone, firsts, strict=False)]),
        owners=torch.cat([torch.full_like(one.owners, number) for number, one in enumerate(alone)]),
        num_response_tokens=torch.cat([one.num_response_tokens for one in alone]),
    )


def table_of(rows: Iterable[PairRow], scores: Sequence[float], name: str) -> ScoreTable:
    """Scores as the stage keeps them: four numbers a pair; `scores` holds all chosen, then all rejected ones."""
    rows = list(rows)
    chosen, rejected = scores[: len(rows)], scores[len(rows) :]
    return ScoreTable(
        [
            ScoreRow(row.pair_id, better, len(row.chosen_token_ids), worse, len(row.rejected_token_ids))
            for row, better, worse in zip(rows, chosen, rejected, strict=True)
        ],
        name,
    )


class Ours:
    """A student in training with scores from a table, as `PreferenceModule.training_step` computes its loss.

    Args:
        setting: models and machine.
        pairs: everything that will be trained on. The student scores it, for both anchors: what the teacher would
            give changes the loss and not its cost.
    """

    def __init__(self, setting: Setting, pairs: Sequence[Pair]) -> None:
        self.setting = setting
        self.model = load_model(setting.student).to(setting.device).train()
        self.optimizer = optimizer_of(self.model)
        self.loss_of = DaDPO(BETA_REFERENCE, BETA_TEACHER)
        self.means = ExampleMeans(pair_value_names(self.loss_of.anchors)).to(setting.device)
        rows = pair_rows(pairs)
        scores = score_all(self.model.eval(), setting, rows)
        self.model.train()
        self.scorers = {name: table_of(rows, scores, name) for name in self.loss_of.anchors}

    def loss(self, batch: PairBatch) -> Tensor:
        """The micro-batch's part of the step's mean."""
        batch = batch.to(self.setting.device)
        with self.setting.autocast():
            policy = PairLogProbs.split(model_log_probs(self.model, batch.sequences))
            anchors = {name: scorer.score(batch) for name, scorer in self.scorers.items()}
            outcome = self.loss_of(policy, anchors)
            self.means.update(pair_values(outcome, policy, anchors), batch.weights)
            return (outcome.loss * batch.weights).sum() / batch.pairs_in_step

    def step(self, pairs: Sequence[Pair]) -> None:
        """One optimizer step, collating included."""
        for batch in step_batches(pair_rows(pairs), self.setting.budget):
            self.loss(batch).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def score_all(model: Any, setting: Setting, rows: Sequence[PairRow]) -> list[float]:
    """What a model in memory gives to every row: all chosen, then all rejected, in nats."""
    scores: dict[str, list[float]] = {}
    for batch in step_batches(rows, setting.budget):
        with setting.autocast():
            both = model_log_probs(model, batch.to(setting.device).sequences).total.tolist()
        for index, pair_id in enumerate(batch.pair_ids):
            scores[pair_id] = [both[index], both[len(batch) + index]]
    return [scores[row.pair_id][side] for side in (0, 1) for row in rows]


class Scoring:
    """The scoring stage's own batches and scorer.

    Args:
        setting: machine.
        spec: the frozen model.
        precision: number format, which the stage chooses by anchor.
    """

    def __init__(self, setting: Setting, spec: ModelSpec, precision: Precision) -> None:
        self.setting = setting
        self.scorer = AutocastScorer(LiveScorer(load_frozen(spec, precision, setting.device)), precision)

    def score(self, pairs: Sequence[Pair]) -> int:
        """Every pair once; how many there were."""
        rows, scored = pair_rows(pairs), 0
        for group in budgeted_batches([pair_tokens(row) for row in rows], self.setting.budget):
            batch = collate_pairs([rows[row] for row in group]).to(self.setting.device)
            scored += len(self.scorer.score(batch).gap.tolist())
        return scored
