"""What the teacher makes of everybody's responses, so that it reads a prompt once and not once for every student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_dadpo.evaluation.distances import read
from lightning_dadpo.evaluation.subjects import Subject
from lightning_dadpo.logprobs import Predictor
from lightning_dadpo.models.spec import Precision

__all__ = ["TeacherReadings", "KEPT_BYTES"]

KEPT_BYTES = 1 << 28
"""Of states, one a response token: a width of 576 in float32 for 116,000 tokens, one of 4,096 in bfloat16 for 32,000.
The logits that are made of them would be 85 and 8 times as much."""


class TeacherReadings:
    """The teacher's states, batch by batch.

    Which batches are kept is a matter of their sizes alone: a resumed run must come to the same passes, and so to the
    same digits. Of the others the teacher reads its own responses again for every student.

    Args:
        model: the teacher.
        teacher: it, with its responses.
        students: with theirs, to the same prompts.
        batches: prompts that are read together.
        precision: the number format that it was loaded for.
    """

    def __init__(
        self,
        model: Any,
        teacher: Subject,
        students: Sequence[Subject],
        batches: Sequence[Sequence[str]],
        precision: Precision,
    ) -> None:
        self.model, self.teacher, self.precision, self.batches = model, teacher, precision, batches
        self.everybody = [teacher, *students]
        self.kept: dict[int, dict[str, Predictor]] = {}
        head = model.get_output_embeddings().weight
        left, self.keeps = KEPT_BYTES, []
        for prompts in batches:
            tokens = sum(len(subject.rows[prompt].token_ids) for subject in self.everybody for prompt in prompts)
            left -= tokens * head.shape[1] * head.element_size()
            self.keeps.append(left >= 0)

    def of(self, batch: int, student: Subject) -> list[Predictor]:
        """The teacher's states on its own responses to a batch's prompts, and on the student's."""
        both = [self.teacher] if student is self.teacher else [self.teacher, student]
        found = self.kept.get(batch) or self._read(batch, self.everybody if self.keeps[batch] else both)
        if self.keeps[batch]:
            self.kept[batch] = found
        return [found[self.teacher.name], found[student.name]]

    def _read(self, batch: int, subjects: Sequence[Subject]) -> dict[str, Predictor]:
        prompts = self.batches[batch]
        ids = [self.teacher.rows[prompt].prompt_token_ids for prompt in prompts]
        responses = [[subject.rows[prompt].token_ids for subject in subjects] for prompt in prompts]
        found = read(self.model, ids, responses, self.precision)
        return {subject.name: states for subject, states in zip(subjects, found, strict=True)}
