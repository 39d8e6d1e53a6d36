"""Where teacher and student differ on a response, token by token: log-probs of a few held-out responses.

While a model is in memory for its distances, it is asked about every response that it will be shown beside: the teacher
and the reference about all of them, a student about its own and about the teacher's. No model is loaded for this.
"""

from __future__ import annotations

from typing import Any

from lightning_dadpo.data.analysis import TokenMapRow
from lightning_dadpo.data.rows import ResponseRow
from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.evaluation.distances import Sample, token_log_probs_of
from lightning_dadpo.evaluation.pieces import spell
from lightning_dadpo.evaluation.subjects import Subject
from lightning_dadpo.models.loading import load_tokenizer
from lightning_dadpo.models.spec import Precision

__all__ = ["TokenMaps"]

Model = Any
Key = tuple[str, str]
"""Who sampled a response, and to which prompt."""


class TokenMaps:
    """The responses of a few prompts, and what each model has said of them so far.

    Args:
        teacher: sampled the first response to each prompt.
        students: sampled the others.
        reference: name of the student that preference trainings start from, asked about everybody's responses.
        prompts: how many prompts, the first ones of the teacher's file; 0 makes no map.
    """

    def __init__(self, teacher: Subject, students: list[Subject], reference: str | None, prompts: int) -> None:
        names = [student.name for student in students]
        if prompts < 0:
            raise ConfigError(f"token_maps {prompts}: expected at least 0")
        if reference is not None and reference not in names:
            raise ConfigError(f"reference {reference!r}: expected one of the candidates {names}")
        self.teacher, self.reference = teacher, reference
        self.responses: dict[Key, ResponseRow] = {
            (subject.name, prompt): subject.rows[prompt]
            for prompt in list(teacher.rows)[:prompts]
            for subject in (teacher, *students)
        }
        self.log_probs: dict[Key, dict[str, list[float]]] = {key: {} for key in self.responses}

    def ask(self, name: str, model: Model, precision: Precision) -> None:
        """Keep what a model gives to each token of the responses that it is shown beside.

        Raises:
            DataError: a log-prob is not finite.
        """
        asks_all = name in (self.teacher.name, self.reference)
        known = model.get_input_embeddings().num_embeddings
        keys = [
            key
            for key, row in self.responses.items()
            if (asks_all or key[0] in (name, self.teacher.name)) and max(row.token_ids) < known
        ]
        rows = [self.responses[key] for key in keys]
        samples = [Sample(row.prompt_token_ids, row.token_ids) for row in rows]
        for key, values in zip(keys, token_log_probs_of(model, samples, precision), strict=True):
            if not values.isfinite().all():
                raise DataError(f"model {name!r}, prompt {key[1]!r}: the log-prob of a token is not finite")
            self.log_probs[key][name] = values.tolist()

    def rows(self) -> list[TokenMapRow]:
        """The maps, prompt by prompt, the teacher's response first."""
        if not self.responses:
            return []
        tokenizer = load_tokenizer(self.teacher.spec)
        return [
            TokenMapRow(
                prompt_id=row.prompt_id,
                messages=row.messages,
                sampled_by=key[0],
                finish_reason=row.finish_reason,
                reference=self.reference,
                token_ids=row.token_ids,
                units=spell(tokenizer, row.prompt_token_ids, row.token_ids),
                log_probs=self.log_probs[key],
            )
            for key, row in self.responses.items()
        ]
