"""Pairs of several rounds put together: which, how many, each once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lightning_dadpo.data.artifacts import draft, read_manifest
from lightning_dadpo.data.mixing import mix, mix_pairs
from lightning_dadpo.data.pairing import read_pairs
from lightning_dadpo.data.rows import Message, PairRow, RowWriter, content_digest
from lightning_dadpo.errors import ArtifactError, ConfigError

END = 2


def pair(number: int, rejected: int, split: str = "train") -> PairRow:
    ids = [10, number], [20, END], [rejected, END]
    return PairRow(
        pair_id=content_digest(*ids),
        prompt_id=f"{split}-{number}",
        split=split,
        messages=[Message("user", str(number))],
        prompt_token_ids=ids[0],
        chosen_token_ids=ids[1],
        chosen_text="chosen",
        chosen_finish_reason="stop",
        rejected_token_ids=ids[2],
        rejected_text="rejected",
        rejected_finish_reason="stop",
    )


def of_round(number: int, prompts: int = 8) -> list[PairRow]:
    return [pair(prompt, 100 * number + prompt) for prompt in range(prompts)] + [
        pair(prompt, 100 * number + prompt, "validation") for prompt in range(20, 22)
    ]


def names(pairs: list[PairRow]) -> set[str]:
    return {row.pair_id for row in pairs}


def test_the_latest_pairs_are_all_there_and_of_each_earlier_round_its_share_of_training_pairs() -> None:
    first, second, third = of_round(1), of_round(2), of_round(3)
    found = mix(third, [first, second], 0.25, seed=0)
    assert found.pairs[:10] == third
    assert found.counts == {"pairs": 14, "latest": 10, "earlier": 4, "repeated": 0}
    assert [len(names(found.pairs) & names(earlier)) for earlier in (first, second)] == [2, 2]
    assert [row for row in found.pairs if row.split == "validation"] == third[8:]


def test_the_seed_decides_which_and_the_order_of_rows_does_not() -> None:
    drawn = [mix([], [rows], 0.5, seed).pairs for rows, seed in ((of_round(1), 0), (of_round(1)[::-1], 0))]
    assert drawn[0] == drawn[1]
    assert len({frozenset(names(mix([], [of_round(1)], 0.5, seed).pairs)) for seed in range(6)}) > 2


def test_a_larger_share_keeps_what_a_smaller_one_drew() -> None:
    less, more = (names(mix([], [of_round(1)], share, 0).pairs) for share in (0.25, 0.75))
    assert less < more


def test_a_pair_that_came_again_counts_once() -> None:
    latest = [pair(0, 100), pair(1, 201)]
    found = mix(latest, [of_round(1)], 1.0, 0)
    assert found.counts == {"pairs": 9, "latest": 2, "earlier": 7, "repeated": 1}
    assert len(names(found.pairs)) == len(found.pairs)


def kept(folder: Path, rows: list[PairRow], rejected_model: str) -> str:
    made_from = {"chosen_model": "teacher", "rejected_model": rejected_model}
    with draft(folder, "pairs", made_from) as work, RowWriter(work.path / "rows.jsonl") as writer:
        writer.write(*rows)
    return str(folder)


def test_the_artefact_names_its_parts_and_whose_samples_a_side_holds(tmp_path: Path) -> None:
    first, second = kept(tmp_path / "1", of_round(1), "dsft"), kept(tmp_path / "2", of_round(2), "student")
    out = mix_pairs(second, [first], str(tmp_path / "mix"), share=0.5)
    manifest = read_manifest(out, "pairs")
    assert manifest.counts == {"pairs": 14, "latest": 10, "earlier": 4, "repeated": 0}
    assert manifest.made_from["chosen_model"] == "teacher"
    assert "rejected_model" not in manifest.made_from  # two models': no sampler to hold one model's scores to
    assert len(read_pairs(out, "train")) == 12
    stamp = (out / "manifest.json").stat().st_mtime_ns
    assert mix_pairs(second, [first], str(out), share=0.5) == out
    assert (out / "manifest.json").stat().st_mtime_ns == stamp
    with pytest.raises(ArtifactError, match=r"share: 0\.5 there, 1\.0 now"):
        mix_pairs(second, [first], str(out))


def test_a_share_out_of_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"share 0.0: expected a number in \(0, 1\]"):
        mix_pairs("a", ["b"], str(tmp_path / "out"), share=0.0)


def test_a_pair_is_known_by_its_tokens_not_by_its_prompt() -> None:
    again = replace(pair(0, 300), prompt_id="train-0")
    assert mix([again], [[pair(0, 100)]], 1.0, 0).counts["earlier"] == 1
