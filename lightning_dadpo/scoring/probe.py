"""Is it the server that it was, and do its numbers stand beside their own tokens?

A small fixed conversation is read before anything is scored. Its log-probs are the server's mark: a run that is taken
up again finds the same ones, or it would mix two models' scores in one artefact (trap B8). And at a few places of it
the server is asked in another way, as if to draw the next token: what it offers there must be what it gives to that
token when it reads it. A server whose numbers are shifted by one token passes every other check; llama-cpp-python
(0.3.36) is one wherever a prompt does not begin with its beginning-of-sequence token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning_dadpo.data.artifacts import write_atomically
from lightning_dadpo.data.rows import Message
from lightning_dadpo.errors import AuditError, DataError
from lightning_dadpo.models.completions import Answer, CompletionsServer, Question, to_read
from lightning_dadpo.scoring.reading import LeftOut, Reading, read_response
from lightning_dadpo.scoring.spans import Misread, Vocabulary, response_log_probs

__all__ = ["Probe", "take_probe", "hold_to_probe", "question_of"]

MESSAGES = [Message("user", "Which city is the capital of France?")]
RESPONSE = "The capital of France is Paris, a city on the river Seine."
PLACES = (0, 3, 6, 9)
"""Tokens of the response in front of the places where the server is asked what comes next."""
OFFERS = 5
"""Likeliest tokens asked for; OpenAI's own server gives no more."""
FEWEST_PLACES = 2
SHIFTED_NATS = 0.25
"""Between a token offered and the same token read a server in 16 bits moves by hundredths of a nat, a token that is
not the one meant by nats."""
STEADY_NATS = 0.02
"""What a token moves by on a server in 16 bits when others keep it busy, which was perhaps not so when it was measured;
other weights, or the same ones in fewer bits, move some token of the probe by more."""
CHANGED_FACTOR = 4
"""METHOD, consequence 3: four times the difference between two ways to ask the same."""


@dataclass(frozen=True)
class Probe:
    """What a server gave to the fixed text.

    Attributes:
        log_probs: of each token of the response, in nats.
        tolerance: by how much one of them may differ the next time, in nats: measured, by asking in other company.
        offered: largest difference between a token offered and the same token read, in nats.
    """

    log_probs: list[float]
    tolerance: float
    offered: float


def question_of(reading: Reading) -> Question:
    """What is sent to have a response scored."""
    return to_read(reading.text_prompt + reading.text_response)


def take_probe(server: CompletionsServer, tokenizer: Any, vocabulary: Vocabulary) -> Probe:
    """Ask for the fixed text: alone, then in the company of the questions about single places.

    Raises:
        DataError: the server gives no log-probs, or reads other tokens than its tokenizer says.
        AuditError: its numbers are not those of the tokens beside which they stand.
    """
    reading = read_response(tokenizer, MESSAGES, RESPONSE, finished=True)
    if isinstance(reading, LeftOut):
        raise DataError(f"{server.place}: the chat template of its tokenizer has no place for a plain conversation")
    alone = _read(server, server.ask_one(question_of(reading)), reading, vocabulary)
    places = _places(tokenizer, reading)
    asked: dict[int, list[Answer]] = {}
    company = [(place, [_offer(text)]) for place, (text, _) in enumerate(places)]
    server.ask([(-1, [question_of(reading)]), *company], asked.__setitem__)
    again = _read(server, asked[-1][0], reading, vocabulary)
    moved = max(abs(left - right) for left, right in zip(alone, again, strict=True))
    differences = _differences(server, tokenizer, vocabulary, places, [asked[place][0] for place in range(len(places))])
    if len(differences) < FEWEST_PLACES:
        raise AuditError(
            f"{server.place}: offers no log-probs of a token that could be read again (`top_logprobs`, at "
            f"{len(differences)} of {len(places)} places), so that a shift of its numbers could not be seen"
        )
    if not sum(differences) / len(differences) <= SHIFTED_NATS:
        raise AuditError(
            f"{server.place}: its log-probs are not those of the tokens beside which they stand: tokens that it offers "
            f"get {sum(differences) / len(differences):.2f} nats less or more when it reads them (a shift by one "
            "token; llama-cpp-python has it where a prompt does not begin with its beginning-of-sequence token); "
            "serve this model with vLLM"
        )
    tolerance = max(STEADY_NATS, CHANGED_FACTOR * moved)
    return Probe([round(value, 6) for value in alone], tolerance, max(differences))


def hold_to_probe(path: Path, probe: Probe, place: str) -> None:
    """Keep the probe of a run that begins; refuse to go on with a run that another model's numbers began.

    Raises:
        AuditError: naming both.
    """
    if not path.exists():
        write_atomically(path, json.dumps(asdict(probe)))
        return
    before = Probe(**json.loads(path.read_text("utf-8")))
    tolerance = max(before.tolerance, probe.tolerance)
    pairs = list(zip(before.log_probs, probe.log_probs, strict=False))
    if len(before.log_probs) != len(probe.log_probs) or any(abs(old - new) > tolerance for old, new in pairs):
        raise AuditError(
            f"{path.parent}: was begun with other numbers: {place} gives {sum(probe.log_probs):.4f} nats to the probe, "
            f"it was {sum(before.log_probs):.4f}; serve the model that began it, or remove the folder"
        )


def _read(server: CompletionsServer, answer: Answer, reading: Reading, vocabulary: Vocabulary) -> list[float]:
    text = reading.text_prompt + reading.text_response
    if answer.by_id is None and answer.log_probs is None:
        raise DataError(
            f"{server.place}: answers without the prompt's log-probs; start llama-cpp-python with --logits_all true, "
            "or take a server that knows `echo` with `logprobs`, or vLLM's `prompt_logprobs`"
        )
    if answer.by_id is None and answer.drawn_tokens == len(answer.tokens or []) < len(reading.response_token_ids):
        raise DataError(f"{server.place}: returns the log-probs of what it draws alone; it must know `echo`")
    expected = len(reading.prompt_token_ids) + len(reading.response_token_ids)
    if answer.prompt_tokens == expected + 1:
        raise DataError(
            f"{server.place}: counts {answer.prompt_tokens} tokens where its tokenizer counts {expected}: it adds a "
            "beginning-of-sequence token of its own (trap A1); turn that off (llama-cpp-python: --kv_overrides "
            f"tokenizer.ggml.add_bos_token=bool:false) for {text[:40]!r}"
        )
    found = response_log_probs(answer, reading, vocabulary)
    if isinstance(found, Misread):
        raise DataError(
            f"{server.place}: {found.reason}: {found.detail}; is server.tokenizer the served model's? "
            "(llama-cpp-python cannot score where a prompt does not begin with its beginning-of-sequence token: "
            "serve this one with vLLM)"
        )
    return found


def _places(tokenizer: Any, reading: Reading) -> list[tuple[str, list[int]]]:
    """Beginnings of the fixed text, as text and as ids; only those that the tokenizer reads back as they are."""
    places = []
    for count in PLACES:
        ids = [*reading.prompt_token_ids, *reading.response_token_ids[:count]]
        text = reading.text_prompt + str(tokenizer.decode(reading.response_token_ids[:count]))
        if count < len(reading.response_token_ids) and _encoded(tokenizer, text) == ids:
            places.append((text, ids))
    return places


def _encoded(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _offer(text: str) -> Question:
    """Ask for the likeliest next tokens."""
    return {**to_read(text), "echo": False, "logprobs": OFFERS, "temperature": 0.0, "extra_body": _PLAIN}


_PLAIN = {"add_special_tokens": False}


def _differences(
    server: CompletionsServer,
    tokenizer: Any,
    vocabulary: Vocabulary,
    places: Sequence[tuple[str, list[int]]],
    offers: Sequence[Answer],
) -> list[float]:
    """At each place where it is possible, |offered - read| of the likeliest token that text can say, in nats."""
    chosen: list[tuple[Reading, float]] = []
    for (text, ids), offer in zip(places, offers, strict=True):
        offered = (offer.top_log_probs or [None])[0] or {}
        for piece, log_prob in sorted(offered.items(), key=lambda item: -item[1]):
            read_as = _encoded(tokenizer, text + piece)
            if piece.strip() and read_as[:-1] == ids and not vocabulary.is_special(read_as[-1]):
                chosen.append((Reading(text, piece, ids, read_as[-1:]), log_prob))
                break
    answers: dict[int, list[Answer]] = {}
    server.ask([(at, [question_of(one)]) for at, (one, _) in enumerate(chosen)], answers.__setitem__)
    found = [_read(server, answers[at][0], one, vocabulary)[0] for at, (one, _) in enumerate(chosen)]
    return [abs(read - offered) for read, (_, offered) in zip(found, chosen, strict=True)]
