"""What the teacher thinks of responses, for a pairing rule that asks: from its own sampler, or scored afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.rows import ResponseRow, ResponseScoreRow, read_rows, response_id
from lightning_dadpo.errors import ArtifactError, ConfigError, DataError

__all__ = ["Judged", "judge", "nats_per_token", "one_judge"]

ROWS = "rows.jsonl"


@dataclass(frozen=True)
class Judged:
    """A responses artefact with one model's scores.

    Attributes:
        model: digest of the model that judges.
        score: nats per token that it gives to a response.
        made_from: what the scores come from, for a manifest.
    """

    model: str
    score: Callable[[ResponseRow], float]
    made_from: dict[str, Any]


def nats_per_token(log_prob: float, num_tokens: int) -> float:
    """The measure that candidates are compared by: a sum falls with every token, so the best by it is the shortest."""
    return log_prob / num_tokens


def judge(responses: str, scores: str | None) -> Judged:
    """Scores of an artefact's responses.

    Args:
        responses: a responses artefact.
        scores: what `dadpo score-responses` made of it; without it the model that sampled them judges, by the raw
            log-probs that its sampler noted.

    Raises:
        ArtifactError: the scores are those of other responses.
    """
    manifest = read_manifest(responses, "responses")
    if scores is None:
        return Judged(manifest.made_from["model"], _as_sampled(responses), {})
    said = read_manifest(scores, "response_scores")
    if said.made_from["responses"] != manifest.files[ROWS]:
        raise ArtifactError(f"{scores}: scores of other responses than {responses}; score these")
    table = {
        row.response_id: nats_per_token(row.log_prob, row.num_tokens)
        for row in read_rows(Path(scores) / ROWS, ResponseScoreRow)
    }

    def looked_up(row: ResponseRow) -> float:
        try:
            return table[response_id(row)]
        except KeyError:
            raise ArtifactError(f"{scores}: has no score for a response to prompt {row.prompt_id!r}") from None

    return Judged(said.made_from["model"], looked_up, {"scores": said.files[ROWS]})


def _as_sampled(responses: str) -> Callable[[ResponseRow], float]:
    def score(row: ResponseRow) -> float:
        if row.log_prob is None:
            raise DataError(
                f"{responses}: prompt {row.prompt_id!r}: its sampler could not see the model's log-prob; expected "
                "scores of `dadpo score-responses`"
            )
        return nats_per_token(row.log_prob, len(row.token_ids))

    return score


def one_judge(chosen: Judged, rejected: Judged, rule: str) -> None:
    """Refuse two models' opinions.

    Raises:
        ConfigError: naming what is missing.
    """
    if chosen.model != rejected.model:
        raise ConfigError(
            f"rule {rule}: the chosen responses are judged by model {chosen.model}, the rejected ones by "
            f"{rejected.model}; expected one teacher: give --chosen_scores or --rejected_scores, which "
            "`dadpo score-responses` makes with it"
        )
