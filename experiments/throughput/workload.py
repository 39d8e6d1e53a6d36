"""The pairs that the benchmark runs on: token ids alone.

    python experiments/throughput/workload.py PAIRS_FOLDER      # a pairs artefact -> workload.jsonl

`workload.jsonl` was made from the teacher's and the dSFT student's samples for this project's own training prompts
(settings of configs/recipes/demo_full.yaml, cut chosen responses kept, so that lengths are as sampled).
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_dadpo.data.pairing import read_pairs
from lightning_dadpo.data.rows import PairRow, content_digest

__all__ = ["Pair", "FILE", "SHORT", "LONG", "read_workload", "behind_long_prompts", "evenly", "pair_rows", "examples"]

FILE = Path(__file__).parent / "workload.jsonl"
PAIRS = 256
SHORT, LONG = "short prompts", "512-token prompts"
LONG_PROMPT = 512


@dataclass(frozen=True)
class Pair:
    """Token ids of a prompt and of its two responses."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def tokens(self) -> int:
        """Prompt once, both responses: what the floor counts."""
        return len(self.prompt) + self.response_tokens

    @property
    def response_tokens(self) -> int:
        """Tokens of both responses: where the head is needed."""
        return len(self.chosen) + len(self.rejected)


def read_workload(vocabulary: int, file: Path = FILE) -> dict[str, list[Pair]]:
    """Both sets, the same responses in the same order: behind their own prompts, and behind 512-token ones.

    Args:
        vocabulary: ids are taken modulo this; SmolLM2's own leaves them as they are, small models need smaller ids.
        file: the pairs.
    """
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    short = [Pair(**{side: [token % vocabulary for token in ids] for side, ids in row.items()}) for row in rows]
    return {SHORT: short, LONG: behind_long_prompts(short, LONG_PROMPT)}


def behind_long_prompts(pairs: Sequence[Pair], tokens: int) -> list[Pair]:
    """Earlier turns before every prompt: the next pairs' prompts and answers, cut at the front to `tokens` in all."""
    made = []
    for index, pair in enumerate(pairs):
        ids, offset = pair.prompt, 0
        while len(ids) < tokens:
            offset += 1
            earlier = pairs[(index + offset) % len(pairs)]
            ids = earlier.prompt + earlier.chosen + ids
        made.append(Pair(ids[len(ids) - tokens :], pair.chosen, pair.rejected))
    return made


def evenly(pairs: Sequence[Pair], number: int, seed: int = 0) -> list[Pair]:
    """`number` pairs spread evenly over the lengths, in an order that does not follow the lengths."""
    ordered = sorted(pairs, key=lambda pair: pair.tokens)
    chosen = [ordered[(2 * place + 1) * len(ordered) // (2 * number)] for place in range(number)]
    random.Random(seed).shuffle(chosen)
    return chosen


def pair_rows(pairs: Sequence[Pair], split: str = "train") -> list[PairRow]:
    """As the project's stages hand pairs on."""
    return [
        PairRow(
            pair_id=content_digest(pair.prompt, pair.chosen, pair.rejected),
            prompt_id=str(index),
            split=split,
            messages=[],
            prompt_token_ids=pair.prompt,
            chosen_token_ids=pair.chosen,
            chosen_text="",
            chosen_finish_reason="stop",
            rejected_token_ids=pair.rejected,
            rejected_text="",
            rejected_finish_reason="stop",
        )
        for index, pair in enumerate(pairs)
    ]


def examples(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """As TRL's collator reads pairs."""
    return [{"prompt_ids": pair.prompt, "chosen_ids": pair.chosen, "rejected_ids": pair.rejected} for pair in pairs]


def main(arguments: list[str]) -> None:
    """See the module."""
    if len(arguments) != 1:
        sys.exit(__doc__)
    rows = [row for row in read_pairs(arguments[0]) if row.split == "train"][:PAIRS]
    lines = [
        json.dumps(
            {"prompt": row.prompt_token_ids, "chosen": row.chosen_token_ids, "rejected": row.rejected_token_ids},
            separators=(",", ":"),
        )
        for row in rows
    ]
    FILE.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
