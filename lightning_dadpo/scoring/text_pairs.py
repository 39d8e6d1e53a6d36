"""The pairs of an artefact as a model with another tokenizer reads them, and which of them it cannot."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.batching import pair_tokens
from lightning_dadpo.data.row_store import RowStore
from lightning_dadpo.data.rows import PairRow
from lightning_dadpo.errors import DataError
from lightning_dadpo.scoring.reading import LeftOut, Reading, read_pair, read_response

__all__ = ["TextPairs"]


class TextPairs(RowStore[PairRow]):
    """Pairs in another model's ids; each is read anew when it is asked for, so none is held.

    Args:
        folder: a pairs artefact.
        tokenizer: of the model that reads their text.
        own: whose ids the pairs hold.
        name: the model, for messages.

    Attributes:
        left_out: why a pair is left out, by its id.
        changed_ids: how many ids do not survive decoding and encoding under the pairs' own tokenizer and template:
            `pairs`, with either side, `chosen` and `rejected` responses. Their text may be read, but it is not what
            was sampled token for token.
        read: pairs looked at, those left out with them.

    Raises:
        ArtifactError: the folder is no complete pairs artefact.
        DataError: fewer than half of the pairs can be read; a template is missing or cannot be used.
    """

    def __init__(self, folder: str | Path, tokenizer: Any, own: Any, name: str) -> None:
        read_manifest(folder, "pairs")
        self.left_out: dict[str, str] = {}
        self.changed_ids: Counter[str] = Counter(pairs=0, chosen=0, rejected=0)
        self.read = 0
        self._tokenizer, self._own = tokenizer, own
        self._last: tuple[PairRow, PairRow] | None = None
        super().__init__(Path(folder) / "rows.jsonl", PairRow, [pair_tokens], self._readable, self._as_read)
        left_out = self.read - len(self)
        if 2 * left_out > self.read or not len(self):
            raise DataError(
                f"model {name!r}: only {len(self)} of {self.read} pairs of {folder} can be read as its text, expected "
                f"at least half of them ({self.reasons()})"
            )

    def reasons(self) -> str:
        """The reasons with their numbers, most frequent first."""
        counts = Counter(self.left_out.values()).most_common()
        return ", ".join(f"{reason}: {count}" for reason, count in counts)

    def _readable(self, pair: PairRow) -> bool:
        """The first look at a pair: counts it."""
        self.read += 1
        changed = [side for side in ("chosen", "rejected") if not _survives(self._own, pair, side)]
        self.changed_ids.update([*changed, *(["pairs"] if changed else [])])
        found = read_pair(self._tokenizer, pair)
        if isinstance(found, LeftOut):
            self.left_out[pair.pair_id] = found.reason
            return False
        self._last = pair, found
        return True

    def _as_read(self, pair: PairRow) -> PairRow:
        if self._last is not None and self._last[0] is pair:
            return self._last[1]
        self._last = None
        found = read_pair(self._tokenizer, pair)
        assert isinstance(found, PairRow), "a pair that was left out is asked for"
        return found


def _survives(own: Any, pair: PairRow, side: str) -> bool:
    """Whether a response's text, encoded again, gives the ids that it has."""
    text, finish, ids = (getattr(pair, f"{side}_{what}") for what in ("text", "finish_reason", "token_ids"))
    found = read_response(own, pair.messages, text, finish == "stop")
    return isinstance(found, Reading) and found.response_token_ids == ids
