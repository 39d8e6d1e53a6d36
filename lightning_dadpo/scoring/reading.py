"""What a model with another tokenizer reads of a pair: the same text (METHOD, consequence 6).

It is one tokenisation of the text, under that model's own chat template, so its log-prob is a lower bound on the
text's: exact only with the same tokenizer and ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lightning_dadpo.data.chat import (
    UnplacedTextError,
    is_broken,
    render_turn,
    special_token_in,
)
from lightning_dadpo.data.rows import Message, PairRow

__all__ = ["Reading", "LeftOut", "Route", "read_response", "read_pair"]

Route = Literal["ids", "text"]
"""What a model is given of a pair: the very ids, or the text, which it reads under its own tokenizer and template."""


@dataclass(frozen=True)
class Reading:
    """A prompt and a response as a model reads them, as text and as ids.

    Attributes:
        text_prompt: what the model's chat template prints up to and with its assistant header.
        text_response: the response as the template prints it; it ends with the model's own end of turn if the
            response was finished, and nothing stands behind that.
        prompt_token_ids: the ids of the first. response_token_ids: the ids of the second.
        spelled: a special token that people or models wrote out in full. The ids take it for ordinary text; a server
            that is sent the text would read the token itself (trap A13), so send nothing that has one.
    """

    text_prompt: str
    text_response: str
    prompt_token_ids: list[int]
    response_token_ids: list[int]
    spelled: str | None = None


@dataclass(frozen=True)
class LeftOut:
    """A response that this model cannot be asked about, and why, in a few words."""

    reason: str


def read_response(tokenizer: Any, messages: Sequence[Message], response_text: str, finished: bool) -> Reading | LeftOut:
    """A response to a conversation as the model with this tokenizer reads it.

    Args:
        tokenizer: the model's own, with its chat template.
        messages: the prompt.
        response_text: what was answered, without special tokens.
        finished: the answer ended its turn by itself; one that a cap cut has no end of turn here either (trap A7).

    Raises:
        DataError: the tokenizer has no chat template, or one that ends no turn with a special token.
    """
    if is_broken(response_text):
        return LeftOut("broken UTF-8 in the response")
    try:
        turn = render_turn(tokenizer, messages, response_text, finished)
    except UnplacedTextError:
        return LeftOut("no place for it in the model's chat template")
    return Reading(
        turn.prompt_text,
        turn.response_text,
        turn.prompt_token_ids,
        turn.response_token_ids,
        special_token_in(tokenizer, [*(message.content for message in messages), response_text]),
    )


def read_pair(tokenizer: Any, pair: PairRow) -> PairRow | LeftOut:
    """A pair in the ids that the model with this tokenizer reads for its text; its `pair_id` stays.

    What a sampler saw of a response stays with it only where the model reads the very ids that were sampled, so that
    no two tokenisations are compared.

    Raises:
        DataError: as `read_response`.
    """
    chosen = read_response(tokenizer, pair.messages, pair.chosen_text, pair.chosen_finish_reason == "stop")
    if isinstance(chosen, LeftOut):
        return chosen
    rejected = read_response(tokenizer, pair.messages, pair.rejected_text, pair.rejected_finish_reason == "stop")
    if isinstance(rejected, LeftOut):
        return rejected
    if not (chosen.response_token_ids and rejected.response_token_ids):
        return LeftOut("nothing to read in the response")
    same = chosen.prompt_token_ids == pair.prompt_token_ids
    return replace(
        pair,
        prompt_token_ids=chosen.prompt_token_ids,
        chosen_token_ids=chosen.response_token_ids,
        rejected_token_ids=rejected.response_token_ids,
        chosen_log_prob=pair.chosen_log_prob if same and chosen.response_token_ids == pair.chosen_token_ids else None,
        rejected_log_prob=pair.rejected_log_prob
        if same and rejected.response_token_ids == pair.rejected_token_ids
        else None,
    )
