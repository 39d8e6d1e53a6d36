"""Before the first step: do the scores on disk belong to this student and this teacher?"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only

from lightning_dadpo.data.batching import collate_pairs
from lightning_dadpo.data.joining import pair_of
from lightning_dadpo.data.rows import PairRow, ResponseRow
from lightning_dadpo.errors import AuditError
from lightning_dadpo.losses import AnchoredPreference
from lightning_dadpo.models.loading import load_frozen
from lightning_dadpo.models.numerics import inference_precision
from lightning_dadpo.models.spec import ModelSpec, Precision
from lightning_dadpo.scoring.audit import (
    Tolerance,
    audit_live,
    audit_own_samples,
    audit_rows,
    audit_sampler,
    measure_tolerance,
    saturation,
    scores_of,
)
from lightning_dadpo.scoring.base import Scorer
from lightning_dadpo.scoring.cached import CachedScorer
from lightning_dadpo.scoring.live import AutocastScorer, LiveScorer
from lightning_dadpo.scoring.routes import as_text
from lightning_dadpo.training.distillation import DistillationModule
from lightning_dadpo.training.preference import PreferenceModule
from lightning_dadpo.training.student import StudentModule
from lightning_dadpo.types import PairBatch, PairLogProbs

__all__ = ["CheckScores"]

SERVED = "completions server"
"""What the manifest of scores says where a server gave them."""

LIVE_PAIRS = 32
"""Pairs that the saturation report asks a live anchor about."""


class CheckScores(L.Callback):
    """Runs the step-0 oracle, the teacher's audit and the saturation report; stops a run that would train on wrong
    numbers, naming the row and both numbers (METHOD, consequences 3 and 9; traps C2, C5, C6, D7). Fresh runs only.

    Args:
        starts_at_reference: the student starts as the reference, so D_start must equal D_reference pair by pair.
        teacher: scores some rows of the teacher's cache again, each alone in its batch; leave it out where the
            teacher does not fit beside the student (`dadpo score` made the same audit when it wrote the cache).
        chosen_from_teacher: the chosen responses are the teacher's own samples.
        rows: pairs that the oracle looks at.
    """

    def __init__(
        self,
        starts_at_reference: bool = True,
        teacher: ModelSpec | None = None,
        chosen_from_teacher: bool = True,
        rows: int = 8,
    ) -> None:
        self.starts_at_reference, self.teacher = starts_at_reference, teacher
        self.chosen_from_teacher, self.rows = chosen_from_teacher, rows

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the first optimizer step of a run that is not resumed."""
        if trainer.global_step > 0:
            return
        if isinstance(pl_module, DistillationModule):
            responses: list[ResponseRow] = trainer.datamodule.rows["train"]  # type: ignore[attr-defined]
            self._audit_live_teacher(trainer, pl_module, [pair_of(row, row) for row in responses[:LIVE_PAIRS]])
        if not isinstance(pl_module, PreferenceModule):
            return
        pairs: list[PairRow] = trainer.datamodule.rows["train"]  # type: ignore[attr-defined]
        if "reference" in pl_module.scorers and self.starts_at_reference:
            self._step_zero(trainer, pl_module, pairs)
        if "teacher" in pl_module.live:
            self._audit_live_teacher(trainer, pl_module, audit_rows(pairs, LIVE_PAIRS))
        elif "teacher" in pl_module.scorers:
            # dSFT may have learnt the training answers by heart, and then finds them likelier than their author does
            unseen: list[PairRow] = trainer.datamodule.rows.get("validation") or pairs  # type: ignore[attr-defined]
            self._audit_teacher(pl_module, pairs, unseen)
        self._report(trainer, pl_module, pairs)
        for name, scorer in pl_module.scorers.items():
            if name not in pl_module.live:  # refuse a pair without scores now, not at the first validation
                for rows in trainer.datamodule.rows.values():  # type: ignore[attr-defined]
                    scores_of(scorer, rows)

    def _step_zero(self, trainer: L.Trainer, module: PreferenceModule, pairs: list[PairRow]) -> None:
        """Step-0 oracle: the student in eval mode gives each pair the loss that the anchors alone predict.

        loss_0 = softplus(sum_k b_k (D_k - D_ref)) pair by pair, and D_start = D_ref.
        """
        student = _Student(trainer, module)
        rows = audit_rows(pairs, self.rows)
        device = module.device
        tolerance = measure_tolerance(student, rows, device, exact=str(trainer.precision) == "32-true")
        worst = 0.0
        for pair in rows:
            batch = collate_pairs([pair]).to(device)
            policy = student.score(batch)
            with trainer.precision_plugin.forward_context():  # a live anchor is asked as training will ask it
                anchors = module.anchor_log_probs(batch)
            self._compare(pair, policy, anchors["reference"], tolerance)
            predicted = module.loss(anchors["reference"], anchors).loss
            found = module.loss(policy, anchors).loss
            worst = max(worst, float((predicted - found).abs().max()))
        _say(f"step-0 oracle: student = reference on {len(rows)} pairs; largest difference in loss {worst:.2e}")

    @staticmethod
    def _compare(pair: PairRow, policy: PairLogProbs, reference: PairLogProbs, tolerance: Tolerance) -> None:
        sides = (("chosen", policy.chosen, reference.chosen), ("rejected", policy.rejected, reference.rejected))
        for side, start, stored in sides:
            if bool(tolerance.exceeded(start.total, stored.total).any()):
                raise AuditError(
                    f"step-0 oracle: pair {pair.pair_id} (prompt {pair.prompt_id}), {side} response: the student "
                    f"starts at {float(start.total):.4f} nats, the reference has {float(stored.total):.4f}; "
                    "the reference's scores are not this student's"
                )

    def _audit_live_teacher(self, trainer: L.Trainer, module: StudentModule, rows: list[PairRow]) -> None:
        """A teacher in memory must give its own samples what their sampler saw, as training will ask it."""
        if not self.chosen_from_teacher:
            return
        asked = _Asked(trainer, LiveScorer(module.frozen["teacher"]), module.device)
        exact = str(trainer.precision) == "32-true"
        tolerance = measure_tolerance(asked, rows[: self.rows], module.device, exact)
        compared = audit_sampler("teacher", asked, rows, ["chosen"], tolerance, exact)
        _say(f"audit of the live teacher: {compared} samples compared with what their sampler saw")

    def _audit_teacher(self, module: PreferenceModule, pairs: list[PairRow], unseen: list[PairRow]) -> None:
        stored = module.scorers["teacher"]
        if _served(stored):
            _say("the teacher's scores are a server's, which was audited when it gave them")
        elif self.teacher is not None:
            precision = _scored_in(stored, module.device)
            model = load_frozen(self.teacher, precision, module.device)
            live = AutocastScorer(LiveScorer(model), precision)
            exact = precision == "32-true"
            by_text = isinstance(stored, CachedScorer) and stored.manifest.made_from.get("read") == "text"
            rows = as_text(self.teacher, audit_rows(pairs)) if by_text else pairs
            tolerance = audit_live("teacher", stored, live, rows, module.device, exact)
            # no sampler saw the ids that a text is read as
            sides = ["chosen"] if self.chosen_from_teacher and not by_text else []
            compared = audit_sampler("teacher", stored, pairs, sides, tolerance, exact)
            _say(f"audit of the teacher: {min(8, len(rows))} pairs scored again, {compared} samples compared")
        if self.chosen_from_teacher and "reference" in module.scorers:
            if "reference" in module.live:
                return
            own, students = audit_own_samples(stored, module.scorers["reference"], unseen)
            _say(f"its own samples get {own:.2f} nats a response from the teacher, {students:.2f} from the reference")

    @staticmethod
    def _report(trainer: L.Trainer, module: PreferenceModule, pairs: list[PairRow]) -> None:
        """Saturation, from every pair where all scores are at hand, else from some that live anchors are asked."""
        if not {"reference", "teacher"} <= set(module.scorers):
            return
        live = module.live
        rows = audit_rows(pairs, LIVE_PAIRS) if live else pairs
        scores = {}
        for name, scorer in module.scorers.items():
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                scores[name] = scores_of(scorer, rows, device=module.device if name in live else torch.device("cpu"))
        found = saturation(scores, module.loss.settings.get("betas", {}))
        log_sigmoid = type(module.loss).link is AnchoredPreference.link  # others weigh pairs in another way
        for line in found.lines() if log_sigmoid else [found.spread()]:
            _say(f"{line} (from {len(rows)} of {len(pairs)} pairs)" if live else line)


@rank_zero_only
def _say(line: str) -> None:
    print(line)


def _served(stored: Scorer) -> bool:
    return isinstance(stored, CachedScorer) and stored.manifest.made_from.get("backend") == SERVED


def _scored_in(stored: Scorer, device: torch.device) -> Precision:
    """The number format of a cache: asked in another one, honest scores differ by more than the noise (trap B8)."""
    if isinstance(stored, CachedScorer) and "backend" in stored.manifest.made_from:
        precision: Precision = stored.manifest.made_from["backend"].split()[-1]
        return precision
    return inference_precision(device)


class _Asked:
    """A live scorer on its own device, under the trainer's autocast, whatever device the pairs are on."""

    def __init__(self, trainer: L.Trainer, scorer: LiveScorer, device: torch.device) -> None:
        self.trainer, self.scorer, self.device = trainer, scorer, device

    def score(self, batch: PairBatch) -> PairLogProbs:
        """See `Scorer.score`."""
        with self.trainer.precision_plugin.forward_context():
            return self.scorer.score(batch.to(self.device))


class _Student:
    """The student as a scorer: eval mode and no gradients while it is asked, under the trainer's autocast."""

    def __init__(self, trainer: L.Trainer, module: PreferenceModule) -> None:
        self.trainer, self.module = trainer, module

    @torch.no_grad()
    def score(self, batch: PairBatch) -> PairLogProbs:
        student: Any = self.module.student
        student.eval()
        try:
            with self.trainer.precision_plugin.forward_context():
                return self.module.policy_log_probs(batch)
        finally:
            student.train()
