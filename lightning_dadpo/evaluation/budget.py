"""What calls to a server may cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from lightning_dadpo.errors import ConfigError

__all__ = ["Budget", "estimated_tokens", "most_drawn_tokens"]

MILLION = 1_000_000

BYTES_A_TOKEN = 4
"""Of English text under common tokenizers: an estimate is all that can be had without the server's own."""


class Budget:
    """Counts calls and tokens of one judge or grader, and refuses what goes beyond its bounds.

    Args:
        place: where the settings stand, in front of their names in errors: `judge.` or nothing.
        input_price: of a million tokens read; output_price: of a million tokens written; both or none.
        max_calls: calls in all, those that repeat a question aside; None for any number.
        max_cost: price in all, in the currency of the prices; None for any.

    Attributes:
        calls, tokens_in, tokens_out: so far, all of them. repeats: calls that repeated a question.

    Raises:
        ConfigError: a number is out of range, or a price is missing.
    """

    def __init__(
        self,
        place: str,
        input_price: float | None,
        output_price: float | None,
        max_calls: int | None,
        max_cost: float | None,
    ) -> None:
        numbers = {
            "input_price": input_price,
            "output_price": output_price,
            "max_calls": max_calls,
            "max_cost": max_cost,
        }
        for name, value in numbers.items():
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{place}{name} {value}: expected a number >= 0")
        if (input_price is None) != (output_price is None):
            raise ConfigError(f"{place}input_price and {place}output_price: expected both or neither")
        if max_cost is not None and input_price is None:
            raise ConfigError(f"{place}max_cost {max_cost}: needs {place}input_price and {place}output_price")
        self._prices = None if input_price is None or output_price is None else (input_price, output_price)
        self._place, self._max_calls, self._max_cost = place, max_calls, max_cost
        self.calls = self.repeats = self.tokens_in = self.tokens_out = 0

    def price(self, tokens_in: int, tokens_out: int) -> float | None:
        """What tokens cost; None where no prices are known."""
        if self._prices is None:
            return None
        return (tokens_in * self._prices[0] + tokens_out * self._prices[1]) / MILLION

    def quote(self, tokens_in: int, tokens_out: int) -> str:
        """What tokens would cost, in words."""
        price = self.price(tokens_in, tokens_out)
        paid = "prices not given" if price is None else f"about {price:.4g} at the prices given"
        return f"about {tokens_in} tokens in and at most {tokens_out} out, {paid}"

    def refuse(self, calls: int, tokens_in: int, tokens_out: int, again: bool = False) -> None:
        """Refuse further calls that would go beyond a bound; `again`: they repeat questions.

        Raises:
            ConfigError: naming the bound, and what is needed.
        """
        made = self.calls - self.repeats
        if self._max_calls is not None and not again and made + calls > self._max_calls:
            raise ConfigError(
                f"{self._place}max_calls {self._max_calls}: {calls} more calls needed, {made} made; "
                "raise it or ask less"
            )
        needed = self.price(self.tokens_in + tokens_in, self.tokens_out + tokens_out)
        if self._max_cost is not None and needed is not None and needed > self._max_cost:
            raise ConfigError(
                f"{self._place}max_cost {self._max_cost}: up to {needed:.4g} may be needed for {self.calls} calls made "
                f"and {calls} more; raise it or ask less"
            )

    def count(self, tokens_in: int, tokens_out: int, again: bool = False) -> None:
        """One call was made; `again`: it repeated a question.

        Raises:
            ConfigError: it went beyond max_cost, as when a server counts more tokens than were estimated.
        """
        self.calls += 1
        self.repeats += again
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out
        self.refuse(0, 0, 0)


def most_drawn_tokens(request: Mapping[str, Any], place: str) -> int:
    """How many tokens one reply may have; `place` stands in front of `request` in an error.

    Raises:
        ConfigError: the request does not bound it.
    """
    bounds = [request[name] for name in ("max_tokens", "max_completion_tokens") if name in request]
    if len(bounds) != 1 or not isinstance(bounds[0], int) or bounds[0] < 1:
        raise ConfigError(f"{place}request: expected one of max_tokens and max_completion_tokens, a whole number >= 1")
    return bounds[0]


def estimated_tokens(messages: Iterable[Mapping[str, str]]) -> int:
    """About how many tokens a model reads of messages in the form of the chat protocol."""
    return sum(-(-len(message["content"].encode()) // BYTES_A_TOKEN) for message in messages)
