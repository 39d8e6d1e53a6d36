"""Where a training's rows come from: pairs folders, imported preferences, sampled responses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.batching import response_tokens
from lightning_dadpo.data.importing import PreferenceSource, import_preferences
from lightning_dadpo.data.pairing import read_pairs, says_nothing
from lightning_dadpo.data.row_store import RowStore
from lightning_dadpo.data.rows import PairRow, ResponseRow
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models.loading import load_tokenizer
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.scoring.cached import left_out_of

__all__ = ["PairSource", "ResponseSource", "answer_tokens"]


@dataclass(frozen=True)
class PairSource:
    """Where pairs come from: a pairs folder of `dadpo pair`, or preference data in TRL's format.

    Attributes:
        folder: a pairs artefact.
        split: which of its rows: train, validation or heldout.
        preferences: a file or a name for datasets.load_dataset, instead of `folder`.
        tokenizer: whose chat template renders `preferences`: the student's.
        scored_by: scores folders; what one of them left out, since its model could not be asked about the text, is left
            out here too.
    """

    folder: str | None = None
    split: str = "train"
    preferences: PreferenceSource | None = None
    tokenizer: ModelSpec | None = None
    scored_by: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if (self.folder is None) == (self.preferences is None):
            raise ConfigError(
                f"pairs: give `folder` or `preferences`, one of the two (folder: {self.folder}, "
                f"preferences: {self.preferences})"
            )
        if self.preferences is not None and self.tokenizer is None:
            raise ConfigError("pairs: `preferences` needs `tokenizer: {path: ...}`, the student's")

    def left_out(self) -> dict[str, str]:
        """Why a pair has no scores, by its id."""
        return {pair_id: why for folder in self.scored_by for pair_id, why in left_out_of(folder).items()}

    def read(self) -> Sequence[PairRow]:
        """The pairs, in the order of their file; those of a folder stay on disk."""
        left_out = self.left_out()
        reasons: Counter[str] = Counter()

        def scored(pair: PairRow) -> bool:
            if (why := left_out.get(pair.pair_id)) is not None:
                reasons[why] += 1
            return why is None

        rows = self._read(scored)
        if reasons:
            listed = ", ".join(f"{why}: {count}" for why, count in reasons.most_common())
            print(f"{len(rows)} pairs of split {self.split}; left out {reasons.total()} that have no scores ({listed})")
        return rows

    def _read(self, scored: Callable[[PairRow], bool]) -> Sequence[PairRow]:
        if self.folder is not None:
            return read_pairs(self.folder, self.split, scored)
        assert self.preferences is not None
        assert self.tokenizer is not None
        imported = import_preferences(self.preferences, load_tokenizer(self.tokenizer), self.split)
        if imported.dropped:
            print(f"{self.preferences.path}: {len(imported.pairs)} pairs; dropped {imported.dropped}")
        return list(filter(scored, imported.pairs))


@dataclass(frozen=True)
class ResponseSource:
    """Responses to learn from.

    Attributes:
        folder: a responses artefact of `dadpo sample`.
        split: which of its rows.
        keep_cut: also learn from responses that the length cap cut; they are dropped and counted otherwise.
        candidates: learn from so many responses to each prompt, the first ones; more may have been drawn for a pairing
            rule to choose among.
    """

    folder: str
    split: str = "train"
    keep_cut: bool = False
    candidates: int = 1

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ConfigError(f"responses {self.folder}: candidates {self.candidates}: expected at least 1")

    def read(self) -> Sequence[ResponseRow]:
        """The responses that say something and ended by themselves; they stay on disk, the others are counted."""
        read_manifest(self.folder, "responses")
        dropped: Counter[str] = Counter()

        def wanted(row: ResponseRow) -> bool:
            if row.split != self.split or row.candidate >= self.candidates:
                return False
            reason = "empty" if says_nothing(row) else "cut" if row.finish_reason == "length" else ""
            dropped[reason] += 1
            return reason == "" or (reason == "cut" and self.keep_cut)

        kept = RowStore(Path(self.folder) / "rows.jsonl", ResponseRow, [response_tokens, answer_tokens], wanted)
        cut = 0 if self.keep_cut else dropped["cut"]
        print(
            f"{self.folder}: {len(kept)} responses of split {self.split}; "
            f"dropped {dropped['empty']} empty and {cut} cut ones"
        )
        return kept


def answer_tokens(row: ResponseRow) -> int:
    """What a response adds to the divisor of a step that counts tokens."""
    return len(row.token_ids)
