"""Test prompts that also stand in the training data, word for word or nearly so (trap E1).

A conversation is the words of all its user turns, one behind another: letters and digits without regard to case,
punctuation and spacing. Where a script has no spaces, each character counts as a word.

- *Exact*: the same words in the same order.
- *Near*: at least 70 % of the test prompt's words stand in runs of three or more that one training prompt has too.
  So one word in ten may have been changed, lost or put in, wherever it stands: it takes two neighbours with it at most.
  Coverage of words by runs is the Tulu 3 report's measure (arXiv 2411.15124), 70 % PaLM's (arXiv 2204.02311). Both take
  runs of eight, for the long texts of benchmarks; prompts of a chat have about 15 words, and one changed word in the
  middle leaves no run of eight. Runs of three are common, yet 70 % of a prompt hardly ever is: of 862 prompts none
  was covered so by 116,000 words of other people's answers, taken as six texts.
- *Short* prompts: below ten words one word is often the whole question ("What is the capital of ..."), so all of their
  words must stand in such runs; below five ("Tell me a joke") only an exact match counts.

What it cannot see: a question asked in other words, in another language, or with other signs alone (2 + 2, 2 - 2).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_dadpo.data.rows import Message

__all__ = ["Overlap", "overlapping", "words_of", "RUN", "SHARE", "SHORT", "SHORTEST"]

RUN = 3
"""Words in a row that count as taken over."""
SHARE = 0.7
"""Share of a prompt's words that must be covered."""
SHORT = 10
"""Prompts of fewer words must be covered as a whole."""
SHORTEST = 5
"""Prompts of fewer words must be the same."""

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")
"""A character of Japanese kana or a Han character alone; of every other script, letters and digits in a row."""

Words = tuple[str, ...]


@dataclass(frozen=True)
class Overlap:
    """Where a test prompt stands in the training data.

    Attributes:
        reason: how it was recognised.
        with_id: the training prompt that covers most of it, the first of several.
        share: of the test prompt's words, those covered; 1 for an exact match.
    """

    reason: Literal["exact", "near"]
    with_id: str
    share: float

    def __str__(self) -> str:
        """In a few words, for manifests and messages."""
        if self.reason == "exact":
            return f"the same words as {self.with_id}"
        return f"{self.share:.0%} of its words stand in {self.with_id}"


def words_of(messages: Sequence[Message]) -> Words:
    """The words of all user turns; where there are none, as in a lone emoji, whatever stands between spaces."""
    text = " ".join(message.content for message in messages if message.role == "user")
    text = unicodedata.normalize("NFKC", text).casefold()
    return tuple(_WORD.findall(text)) or tuple(text.split())


def overlapping(
    tested: Mapping[str, Sequence[Message]], trained: Iterable[tuple[str, Sequence[Message]]]
) -> dict[str, Overlap]:
    """The test prompts that stand in the training data, in the order of the test prompts.

    The test prompts' runs of words are indexed, and the training data is read once, one conversation at a time: time
    grows with its words, memory only with the test prompts.

    Args:
        tested: conversations by prompt id.
        trained: conversations with their ids, in any number.
    """
    index = _Index({name: words_of(messages) for name, messages in tested.items()})
    found: dict[str, Overlap] = {}
    for with_id, messages in trained:
        for name, overlap in index.matches(with_id, words_of(messages)):
            best = found.get(name)
            if best is None or _rank(overlap) > _rank(best):
                found[name] = overlap
    return {name: found[name] for name in tested if name in found}


def _rank(overlap: Overlap) -> tuple[bool, float]:
    return overlap.reason == "exact", overlap.share


class _Index:
    """Where each run of words stands in the test prompts."""

    def __init__(self, tested: dict[str, Words]) -> None:
        self.tested = tested
        self.whole: dict[Words, list[str]] = {}
        self.runs: dict[Words, list[tuple[str, int]]] = {}
        for name, words in tested.items():
            self.whole.setdefault(words, []).append(name)
            for start, run in enumerate(_runs(words)):
                self.runs.setdefault(run, []).append((name, start))

    def matches(self, with_id: str, words: Words) -> list[tuple[str, Overlap]]:
        """What one training conversation has in common with the test prompts."""
        exact = self.whole.get(words, [])
        covered: dict[str, set[int]] = {}
        for run in set(_runs(words)):
            for name, start in self.runs.get(run, ()):
                covered.setdefault(name, set()).update(range(start, start + RUN))
        shares = {name: len(places) / len(self.tested[name]) for name, places in covered.items() if name not in exact}
        near = [(name, Overlap("near", with_id, share)) for name, share in shares.items() if self._counts(name, share)]
        return [*((name, Overlap("exact", with_id, 1.0)) for name in exact), *near]

    def _counts(self, name: str, share: float) -> bool:
        count = len(self.tested[name])
        return count >= SHORTEST and share >= (1.0 if count < SHORT else SHARE)


def _runs(words: Words) -> Iterable[Words]:
    return zip(*(words[start:] for start in range(RUN)), strict=False)
