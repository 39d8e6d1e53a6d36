"""Scores are looked up by what a pair says, never by where its row stands."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_dadpo.data.batching import collate_pairs, pair_tokens
from lightning_dadpo.data.rows import ScoreRow, read_rows
from lightning_dadpo.errors import ArtifactError
from lightning_dadpo.models.loading import load_frozen
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.scoring.cached import CachedScorer
from lightning_dadpo.scoring.live import AutocastScorer, LiveScorer
from lightning_dadpo.scoring.table import ScoreTable
from lightning_dadpo.types import PairLogProbs
from tests.scoring.example import CPU, make_pairs, score_row, scored, write_artifact
from tests.tiny import tiny_model


def equal(left: PairLogProbs, right: PairLogProbs) -> bool:
    """To the bit."""
    sides = ((left.chosen, right.chosen), (left.rejected, right.rejected))
    return all(torch.equal(a.total, b.total) and torch.equal(a.num_tokens, b.num_tokens) for a, b in sides)


def test_cached_equals_live_to_the_bit_in_float32(tiny_folder: Path, tmp_path: Path) -> None:
    pairs = make_pairs(4)
    folder = scored(tiny_folder, write_artifact(tmp_path / "pairs", "pairs", pairs), tmp_path / "scores", tokens=1000)
    batch = collate_pairs(sorted(pairs, key=pair_tokens))
    live = LiveScorer(load_frozen(ModelSpec(str(tiny_folder)), "32-true")).score(batch)
    assert equal(CachedScorer(folder).score(batch), live)
    assert live.chosen.total.dtype == torch.float32


def test_C2_the_order_of_rows_in_the_file_changes_nothing_and_repeated_prompts_stay_apart() -> None:
    pairs = make_pairs(5)
    rows = [score_row(pair, -1.0 - index, -9.0 - index) for index, pair in enumerate(pairs)]
    forward, backward = ScoreTable(rows, "a"), ScoreTable(rows[::-1], "b")
    batch = collate_pairs([pairs[3], pairs[0], pairs[3]])
    found = forward.score(batch)
    assert found.chosen.total.tolist() == [-4.0, -1.0, -4.0]
    assert found.rejected.total.tolist() == [-12.0, -9.0, -12.0]
    assert equal(found, backward.score(batch))


def test_C2_a_pair_that_was_not_scored_is_refused_by_its_id() -> None:
    pairs = make_pairs(3)
    table = ScoreTable([score_row(pair, -1.0, -2.0) for pair in pairs[:2]], "runs/scores")
    with pytest.raises(ArtifactError, match=f"runs/scores: has no scores for pair {pairs[2].pair_id}"):
        table.score(collate_pairs(pairs))


def test_large_sums_keep_the_digits_of_float32() -> None:
    (pair,) = make_pairs(1)
    found = ScoreTable([score_row(pair, -512.03125, -511.96875)], "x").score(collate_pairs([pair]))
    assert found.gap.tolist() == [-0.0625]  # bfloat16 would make it 0


def test_only_a_finished_scores_artefact_is_read(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no manifest"):
        CachedScorer(tmp_path)
    write_artifact(tmp_path / "pairs", "pairs", make_pairs(1))
    with pytest.raises(ArtifactError, match="holds pairs, expected scores"):
        CachedScorer(tmp_path / "pairs")


def test_scores_changed_behind_the_manifests_back_are_refused(tmp_path: Path) -> None:
    pairs = make_pairs(2)
    folder = write_artifact(tmp_path / "scores", "scores", [score_row(pair, -1.0, -2.0) for pair in pairs])
    rows = folder / "rows.jsonl"
    assert len(list(read_rows(rows, ScoreRow))) == 2
    rows.write_text(rows.read_text("utf-8").replace("-1.0", "-1.5"), "utf-8")
    with pytest.raises(ArtifactError, match="changed since"):
        CachedScorer(folder)


def test_B6_a_frozen_model_in_training_mode_is_refused(tmp_path: Path) -> None:
    model = load_frozen(ModelSpec(str(tiny_model(tmp_path / "m", layers=1, dropout=0.5))), "32-true")
    scorer, batch = LiveScorer(model), collate_pairs(make_pairs(2))
    assert equal(scorer.score(batch), scorer.score(batch))
    model.train()
    with pytest.raises(AssertionError, match="eval mode"):
        scorer.score(batch)


def test_a_live_score_is_outside_autograd_and_autocast_is_its_own(tiny_folder: Path) -> None:
    scorer, batch = LiveScorer(load_frozen(ModelSpec(str(tiny_folder)), "32-true")), collate_pairs(make_pairs(3))
    plain = scorer.score(batch)
    assert not plain.chosen.total.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = scorer.score(batch)
        assert equal(AutocastScorer(scorer, "32-true").score(batch), plain)
    assert not equal(rounded, plain)
    assert equal(AutocastScorer(scorer, "bf16-mixed").score(batch), rounded)
    assert rounded.chosen.total.dtype == torch.float32
    assert rounded.chosen.total.device == CPU
