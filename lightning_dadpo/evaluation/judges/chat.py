"""A chat model behind a server as a judge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from lightning_dadpo.data.rows import STRICT, content_digest
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.evaluation.budget import Budget, estimated_tokens, most_drawn_tokens
from lightning_dadpo.evaluation.judges.base import Comparison, Judge, Preference
from lightning_dadpo.evaluation.judges.cache import KeptRow, keeping, kept_rows
from lightning_dadpo.evaluation.judges.chat_prompt import PROMPT_DIGEST, read_verdict, verdict_messages
from lightning_dadpo.models.chat_completions import ChatAnswer, ChatServer
from lightning_dadpo.models.openai_server import quoted
from lightning_dadpo.models.server_spec import ChatServerSpec

__all__ = ["ChatJudge"]

REQUEST: Mapping[str, Any] = {"temperature": 0, "max_tokens": 8}
OWN = ("messages", "model", "n", "stream")
"""Entries of a request that are the judge's own."""


@dataclass(frozen=True, config=STRICT)
class KeptVerdict(KeptRow):
    """A verdict in the cache.

    Attributes:
        verdict: unreadable when no reply was one of the three words.
        reply: the last one, shortened.
    """

    verdict: Literal["first", "second", "tie", "unreadable"]
    reply: str


class ChatJudge(Judge):
    """Asks a chat model which of two answers is better, in one word, at temperature 0.

    Verdicts are kept as they come, so none is paid for twice and a killed run goes on. Two answers that are the same
    text are a tie, of which nobody is asked. A reply that is none of the three words is asked for again; after the last
    try the comparison is a tie and counted as unreadable. So is one that the server declines, as too long for the model
    for example; that one is asked once.

    Where a model is served may change, what its name stands for may not: verdicts are kept by the name, not the url.

    Args:
        server: the endpoint and the model.
        cache: folder that keeps the verdicts of all judges.
        tries: how often a comparison is asked about until a reply can be read.
        input_price: of a million tokens that the model reads, in any currency.
        output_price: of a million tokens that it writes.
        max_calls: calls that one command may make, not counting those that ask again about a comparison, of which
            there are up to tries - 1; more are refused before the first one. Each command counts from 0: so does each
            stage of a run, and each restart. Verdicts that the cache holds are no calls.
        max_cost: what one command may cost, counted like max_calls but with those that ask again; more is refused
            before the first call, and where the server counts more tokens than were estimated or many replies cannot
            be read, in between.
        request: what is sent beside the messages, by default {temperature: 0, max_tokens: 8}. Reasoning models take
            other names and need more room, for example {max_completion_tokens: 2000}.

    Raises:
        ConfigError: an argument is out of range, or a price is missing.
    """

    def __init__(
        self,
        server: ChatServerSpec,
        cache: str,
        tries: int = 3,
        input_price: float | None = None,
        output_price: float | None = None,
        max_calls: int | None = None,
        max_cost: float | None = None,
        request: dict[str, Any] | None = None,
    ) -> None:
        if tries < 1:
            raise ConfigError(f"judge.tries {tries}: expected at least 1")
        self.server, self.cache, self.tries, self.name = server, cache, tries, server.model
        self.request = dict(REQUEST if request is None else request)
        if own := [name for name in OWN if name in self.request]:
            raise ConfigError(f"judge.request.{own[0]}: is the judge's own; leave it out")
        self._most_drawn = most_drawn_tokens(self.request, "judge.")
        self._budget = Budget("judge.", input_price, output_price, max_calls, max_cost)
        self._counts: dict[str, int] = {}

    def identity(self) -> dict[str, Any]:
        """See `Judge.identity`; neither the url nor the key decides a verdict."""
        return {
            "judge": "chat",
            "model": self.server.model,
            "prompt": PROMPT_DIGEST,
            "request": self.request,
            "tries": self.tries,
        }

    def cost(self, comparisons: Sequence[Comparison]) -> str:
        """See `Judge.cost`: calls, tokens and price of what is not kept already.

        Raises:
            ConfigError: that is beyond max_calls or max_cost.
        """
        known = kept_rows(self.cache, self.identity(), KeptVerdict)
        asked = _different(comparisons)
        missing = [one for key, one in asked.items() if key not in known]
        tokens_in, tokens_out = self._refuse_dear(missing)
        kept = f" ({len(asked) - len(missing)} more are in {self.cache})" if len(missing) < len(asked) else ""
        return (
            f"{len(missing)} calls{kept}, {self._budget.quote(tokens_in, tokens_out)}; "
            "replies that cannot be read are asked for again"
        )

    def prefer(self, comparisons: Sequence[Comparison]) -> list[Preference]:
        """See `Judge.prefer`.

        Raises:
            ConfigError: beyond max_calls or max_cost, or the server refuses the key.
            DataError: the server fails for good.
            ArtifactError: another process hangs while it asks the same judge.
        """
        self._counts = {}  # first of all: what refuses this call leaves nothing of an earlier one to be read
        identity, asked = self.identity(), _different(comparisons)
        known = kept_rows(self.cache, identity, KeptVerdict)
        missing = {key: one for key, one in asked.items() if key not in known}
        self._refuse_dear(list(missing.values()))
        before = (self._budget.calls, self._budget.tokens_in, self._budget.tokens_out)
        try:
            if missing:
                with keeping(self.cache, identity) as keep:
                    known = kept_rows(self.cache, identity, KeptVerdict)  # another process may have asked meanwhile
                    known |= self._ask({key: one for key, one in missing.items() if key not in known}, keep)
        finally:
            self._counts = {
                "calls": self._budget.calls - before[0],
                "tokens_in": self._budget.tokens_in - before[1],
                "tokens_out": self._budget.tokens_out - before[2],
            }
        verdicts = [known[key] if (key := _key(one)) in asked else None for one in comparisons]
        unreadable = [verdict.reply for verdict in verdicts if verdict is not None and verdict.verdict == "unreadable"]
        self._counts["unreadable"] = len(unreadable)
        if unreadable:
            said = f"{len(unreadable)} of {len(comparisons)} comparisons unreadable, as {unreadable[0]!r}"
            print(f"{self.name}: {said}; expected FIRST, SECOND or TIE, they count as ties", flush=True)
        return [_preference(verdict) for verdict in verdicts]

    def counts(self) -> dict[str, int]:
        """Of the last call: comparisons that were `unreadable`, `calls`, `tokens_in` and `tokens_out`."""
        return dict(self._counts)

    def _ask(self, missing: Mapping[str, Comparison], keep: Callable[[Any], None]) -> dict[str, KeptVerdict]:
        server, found = ChatServer(self.server), dict[str, KeptVerdict]()
        waiting = dict(missing)
        with server.connected():
            for number in range(1, self.tries + 1):
                again, last = number > 1, number == self.tries

                def tell(key: str, answers: list[ChatAnswer], again: bool = again, last: bool = last) -> None:
                    (answer,) = answers
                    verdict = read_verdict(answer.text)
                    if answer.declined is not None:  # asked again at once it would be again; another day it may not
                        found[key] = KeptVerdict(key, "unreadable", answer.declined)
                    elif verdict is not None or last:
                        found[key] = KeptVerdict(key, verdict or "unreadable", quoted(answer.text))
                        keep(found[key])
                    self._count(missing[key], answer, again)

                server.ask(((key, [self._question(one, again)]) for key, one in waiting.items()), tell)
                waiting = {key: one for key, one in waiting.items() if key not in found}
                self._refuse_dear(list(waiting.values()), again=True)
        return found

    def _question(self, one: Comparison, again: bool) -> dict[str, Any]:
        return {"messages": verdict_messages(one, again), **self.request}

    def _count(self, one: Comparison, answer: ChatAnswer, again: bool) -> None:
        """What the server counted, or an estimate where it does not say."""
        tokens_in = estimated_tokens(verdict_messages(one)) if answer.prompt_tokens is None else answer.prompt_tokens
        drawn = self._most_drawn if answer.drawn_tokens is None else answer.drawn_tokens
        self._budget.count(tokens_in, drawn, again)

    def _refuse_dear(self, missing: Sequence[Comparison], again: bool = False) -> tuple[int, int]:
        """Tokens in, estimated, and out, at most; refused beyond the budget."""
        tokens_in, tokens_out = (
            sum(estimated_tokens(verdict_messages(one)) for one in missing),
            len(missing) * self._most_drawn,
        )
        self._budget.refuse(len(missing), tokens_in, tokens_out, again)
        return tokens_in, tokens_out


def _key(one: Comparison) -> str:
    return content_digest([asdict(turn) for turn in one.messages], one.first, one.second)


def _different(comparisons: Iterable[Comparison]) -> dict[str, Comparison]:
    """What has to be asked, each once: not of two texts that are the same."""
    return {_key(one): one for one in comparisons if one.first != one.second}


def _preference(verdict: KeptVerdict | None) -> Preference:
    return "tie" if verdict is None or verdict.verdict == "unreadable" else verdict.verdict
