"""`dadpo score`: complete or absent, exact after a kill, quiet towards the random state, audited."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.batching import collate_pairs, pair_tokens
from lightning_dadpo.data.rows import PairRow, ScoreRow, read_rows
from lightning_dadpo.errors import ArtifactError, AuditError, ConfigError, DataError
from lightning_dadpo.models.loading import load_frozen, model_digest
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.scoring.cached import CachedScorer
from lightning_dadpo.scoring.live import LiveScorer
from lightning_dadpo.scoring.stage import score
from lightning_dadpo.types import PairBatch, PairLogProbs, SequenceLogProbs
from tests.scoring.example import LiveRows, make_pairs, scored, write_artifact
from tests.tiny import tiny_model

PAIRS = make_pairs(10)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "pairs", "pairs", PAIRS)


def rows_of(folder: Path) -> list[ScoreRow]:
    return list(read_rows(folder / "rows.jsonl", ScoreRow))


def test_every_pair_gets_the_two_sums_and_token_counts_of_an_independent_forward(
    tiny_folder: Path, pairs: Path, tmp_path: Path
) -> None:
    found = {row.pair_id: row for row in rows_of(scored(tiny_folder, pairs, tmp_path / "scores"))}
    model = load_frozen(ModelSpec(str(tiny_folder)), "32-true")

    def expected(prompt: list[int], response: list[int]) -> float:
        with torch.no_grad():
            log_probs = model(torch.tensor([prompt + response])).logits[0].double().log_softmax(-1)
        return sum(float(log_probs[len(prompt) - 1 + at, token]) for at, token in enumerate(response))

    assert len(found) == len(PAIRS)
    for pair in PAIRS:
        row = found[pair.pair_id]
        assert row.chosen_num_tokens == len(pair.chosen_token_ids)
        assert row.rejected_num_tokens == len(pair.rejected_token_ids)
        assert row.chosen_log_prob == pytest.approx(expected(pair.prompt_token_ids, pair.chosen_token_ids), rel=1e-4)
        assert row.rejected_log_prob == pytest.approx(
            expected(pair.prompt_token_ids, pair.rejected_token_ids), rel=1e-4
        )


def test_C1_the_manifest_names_model_pairs_anchor_and_backend(tiny_folder: Path, pairs: Path, tmp_path: Path) -> None:
    made_from = read_manifest(scored(tiny_folder, pairs, tmp_path / "scores"), "scores").made_from
    assert made_from["model"] == model_digest(ModelSpec(str(tiny_folder)))
    assert made_from["pairs"] == read_manifest(pairs).files["rows.jsonl"]
    assert made_from["anchor"] == "teacher"
    assert made_from["backend"] == "transformers sdpa 32-true"


def test_scoring_twice_does_nothing(
    tiny_folder: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = scored(tiny_folder, pairs, tmp_path / "scores")
    before = (folder / "manifest.json").stat().st_mtime_ns
    monkeypatch.setattr(LiveScorer, "score", lambda *_: pytest.fail("scored again"))
    assert scored(tiny_folder, pairs, tmp_path / "scores") == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == before


def test_scores_of_something_else_are_refused(tiny_folder: Path, pairs: Path, tmp_path: Path) -> None:
    scored(tiny_folder, pairs, tmp_path / "scores")
    with pytest.raises(ArtifactError, match="anchor: 'teacher' there, 'reference' now"):
        scored(tiny_folder, pairs, tmp_path / "scores", anchor="reference")


@pytest.mark.parametrize("lines", [0, 4, 6])  # nothing, one batch, a batch torn in its middle
def test_C3_killed_in_the_middle_nothing_is_there_and_the_rerun_gives_the_same_bits(
    tiny_folder: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: int
) -> None:
    whole = rows_of(scored(tiny_folder, pairs, tmp_path / "whole"))
    real, calls = LiveScorer.score, []

    def dies(self: LiveScorer, batch: PairBatch) -> PairLogProbs:
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(LiveScorer, "score", dies)
        with pytest.raises(KeyboardInterrupt):
            scored(tiny_folder, pairs, tmp_path / "killed")
    assert not (tmp_path / "killed").exists()
    rows = tmp_path / "killed.partial" / "shards" / "0.jsonl"
    written = rows.read_bytes().splitlines(keepends=True)
    assert len(written) == 7  # two batches of four and three pairs: what was under way is all that is lost
    rows.write_bytes(b"".join(written[:lines]) + written[lines][:20])
    monkeypatch.setattr(LiveScorer, "score", lambda self, batch: calls.append(batch) or real(self, batch))
    calls.clear()
    scored(tiny_folder, pairs, tmp_path / "again")
    batches = {batch.pair_ids for batch in calls}
    calls.clear()
    assert rows_of(scored(tiny_folder, pairs, tmp_path / "killed")) == whole
    audited = {batch.pair_ids for batch in calls if len(batch) in (1, 8)}
    assert {batch.pair_ids for batch in calls} - audited <= batches


def test_a_score_that_is_no_number_is_refused_by_its_pair(
    tiny_folder: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, bad = LiveScorer.score, PAIRS[4]

    def spoils(self: LiveScorer, batch: PairBatch) -> PairLogProbs:
        good = real(self, batch)
        hit = torch.tensor([pair_id == bad.pair_id for pair_id in batch.pair_ids])
        total = torch.where(hit, torch.nan, good.rejected.total)
        return PairLogProbs(good.chosen, SequenceLogProbs(total, good.rejected.num_tokens))

    monkeypatch.setattr(LiveScorer, "score", spoils)
    with pytest.raises(AuditError, match=rf"pair {bad.pair_id} \(prompt train-4\): .*not finite"):
        scored(tiny_folder, pairs, tmp_path / "scores")
    assert not (tmp_path / "scores").exists()


def test_C4_scoring_does_not_touch_the_global_random_state(tiny_folder: Path, pairs: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    scored(tiny_folder, pairs, tmp_path / "scores")
    assert torch.equal(torch.get_rng_state(), before)


def sampled_pairs(model: Path, spoil: float = 0.0) -> list[PairRow]:
    """The pairs with the log-probs that a sampler of the chosen responses would have noted."""
    scorer = LiveScorer(load_frozen(ModelSpec(str(model)), "32-true"))
    rows = [replace(pair, chosen_log_prob=float(scorer.score(collate_pairs([pair])).chosen.total)) for pair in PAIRS]
    assert rows[7].chosen_log_prob is not None
    rows[7] = replace(rows[7], chosen_log_prob=rows[7].chosen_log_prob + spoil)
    return rows


def audited(model: Path, tmp_path: Path, rows: list[PairRow], made_from: dict[str, Any]) -> Path:
    return scored(model, write_artifact(tmp_path / "sampled", "pairs", rows, made_from), tmp_path / "scores")


def test_the_model_that_sampled_is_held_to_what_its_sampler_saw(tiny_folder: Path, tmp_path: Path) -> None:
    own = {"chosen_model": model_digest(ModelSpec(str(tiny_folder))), "rejected_model": "another"}
    folder = audited(tiny_folder, tmp_path, sampled_pairs(tiny_folder), own)
    audit = json.loads((folder / "manifest.json").read_text("utf-8"))["results"]["audit"]
    assert audit["samples"] == 10
    assert audit["rows"] == 8


def test_a_sampler_that_saw_another_number_stops_the_stage_at_any_row(tiny_folder: Path, tmp_path: Path) -> None:
    own = {"chosen_model": model_digest(ModelSpec(str(tiny_folder)))}
    with pytest.raises(AuditError, match=rf"against its sampler: pair {PAIRS[7].pair_id} .*chosen response: -.* nats"):
        audited(tiny_folder, tmp_path, sampled_pairs(tiny_folder, spoil=0.5), own)
    assert not (tmp_path / "scores").exists()


def test_a_model_that_did_not_sample_is_not_held_to_the_sampler(tiny_folder: Path, tmp_path: Path) -> None:
    folder = audited(tiny_folder, tmp_path, sampled_pairs(tiny_folder, spoil=0.5), {"chosen_model": "another"})
    audit = read_manifest(folder, "scores").results["audit"]
    assert audit["samples"] == 0
    assert audit["rows"] == 8


def test_a_batch_of_no_pairs_is_refused(tiny_folder: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tokens_per_batch 0: expected at least 1"):
        scored(tiny_folder, pairs, tmp_path / "scores", tokens=0)


@pytest.mark.parametrize("budget", [1, 70, 1000])
def test_pairs_of_like_length_share_batches_within_the_budget(
    tiny_folder: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    batches: list[PairBatch] = []
    real = LiveScorer.score
    monkeypatch.setattr(LiveScorer, "score", lambda self, batch: batches.append(batch) or real(self, batch))
    folder = scored(tiny_folder, pairs, tmp_path / "scores", tokens=budget)
    scoring = batches[: {1: 10, 70: 4, 1000: 1}[budget]]  # the others are the audit's
    assert sorted(name for batch in scoring for name in batch.pair_ids) == sorted(pair.pair_id for pair in PAIRS)
    assert all(len(batch) == 1 or batch.sequences.num_tokens <= budget for batch in scoring)
    costs = {pair.pair_id: pair_tokens(pair) for pair in PAIRS}
    in_order = [costs[name] for batch in scoring for name in batch.pair_ids]
    assert in_order == sorted(in_order)
    assert read_manifest(folder, "scores").made_from["tokens_per_batch"] == budget


def test_sixteen_times_the_pairs_keep_no_more_of_them_alive(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most, held = {}, {}
    for count in (40, 640):
        folder = write_artifact(tmp_path / str(count), "pairs", make_pairs(count, seed=3))
        with monkeypatch.context() as patch:
            live = LiveRows(patch)
            scores = scored(tiny_folder, folder, tmp_path / f"scores-{count}", tokens=100)
            most[count] = live.most
            table = CachedScorer(scores)
            held[count] = live.now
        assert len(table._nats) == count
    assert most[640] <= most[40] + 4
    assert most[640] < 64
    assert held == {40: 0, 640: 0}


def test_a_model_with_another_tokenizer_is_refused_before_it_scores(tmp_path: Path, pairs: Path) -> None:
    """Every id is in its vocabulary, so nothing but the text can tell."""
    other = tiny_model(tmp_path / "other")
    file = other / "tokenizer.json"
    tokenizer = json.loads(file.read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    plain = sorted((token for token in vocabulary if not token.startswith("<|")), key=vocabulary.get)
    turned = zip(plain, plain[7:] + plain[:7], strict=True)
    tokenizer["model"]["vocab"] |= {token: vocabulary[moved] for token, moved in turned}
    file.write_text(json.dumps(tokenizer), "utf-8")
    asked = ModelSpec(str(other)), str(pairs), str(tmp_path / "scores")
    with pytest.raises(DataError, match=r"reads the ids of pair .* as other text than theirs"):
        score(*asked, read="ids")
    with pytest.raises(ConfigError, match=r"the ids of pair .* are other words to it.*--tokenizer.path FOLDER"):
        score(*asked)
    assert not (tmp_path / "scores").exists()
    assert not (tmp_path / "scores.partial").exists()
