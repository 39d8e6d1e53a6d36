"""Audits with the defects planted that they are there for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_dadpo.data.batching import collate_pairs, pair_tokens
from lightning_dadpo.data.pairing import read_pairs
from lightning_dadpo.data.rows import PairRow, ScoreRow
from lightning_dadpo.errors import AuditError
from lightning_dadpo.models.loading import load_frozen
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.scoring.audit import (
    Tolerance,
    audit_live,
    audit_own_samples,
    audit_rows,
    audit_sampler,
    measure_tolerance,
    saturation,
    scores_of,
)
from lightning_dadpo.scoring.live import AutocastScorer, LiveScorer
from lightning_dadpo.scoring.table import ScoreTable
from lightning_dadpo.types import PairBatch, PairLogProbs, SequenceLogProbs
from tests.scoring.example import CPU, make_pairs, score_row, write_artifact
from tests.tiny import tiny_model

PAIRS = make_pairs(8)
Scores = dict[str, ScoreRow]


@pytest.fixture(scope="module")
def live(tiny_folder: Path) -> LiveScorer:
    return LiveScorer(load_frozen(ModelSpec(str(tiny_folder)), "32-true"))


def table_of(scorer: LiveScorer, pairs: list[PairRow], names: list[PairRow] | None = None) -> ScoreTable:
    """What `scorer` gives to `pairs`, filed under the ids of `names`."""
    found = scorer.score(collate_pairs(pairs))
    rows = zip(names or pairs, found.chosen.total.tolist(), found.rejected.total.tolist(), strict=True)
    return ScoreTable([score_row(*row) for row in rows], "scores")


def permuted(scorer: LiveScorer) -> ScoreTable:
    return table_of(scorer, PAIRS, PAIRS[1:] + PAIRS[:1])


def other_template(scorer: LiveScorer) -> ScoreTable:
    return table_of(scorer, [replace(pair, prompt_token_ids=[9, *pair.prompt_token_ids]) for pair in PAIRS])


def swapped(scorer: LiveScorer) -> ScoreTable:
    turned = [replace(p, chosen_token_ids=p.rejected_token_ids, rejected_token_ids=p.chosen_token_ids) for p in PAIRS]
    return table_of(scorer, turned)


def test_honest_scores_pass_and_the_tolerance_is_relative_in_float32(live: LiveScorer) -> None:
    tolerance = audit_live("teacher", table_of(live, PAIRS), live, PAIRS, CPU, exact=True)
    assert tolerance == Tolerance(absolute=1e-4, relative=1e-4)


@pytest.mark.parametrize("plant", [permuted, other_template, swapped])
def test_A10_C2_C6_planted_defects_are_found_and_the_row_and_both_numbers_are_named(
    live: LiveScorer, plant: Callable[[LiveScorer], ScoreTable]
) -> None:
    with pytest.raises(
        AuditError, match=r"audit of teacher: pair \w{16} \(prompt train-\d\), .* -\d+\.\d{4} nats stored, -"
    ):
        audit_live("teacher", plant(live), live, PAIRS, CPU, exact=True)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_another_models_scores_are_found_in_any_precision(live: LiveScorer, tmp_path: Path, precision: str) -> None:
    other = LiveScorer(load_frozen(ModelSpec(str(tiny_model(tmp_path / "other", seed=1))), "32-true"))
    asked = AutocastScorer(live, precision)  # type: ignore[arg-type]
    with pytest.raises(AuditError, match="audit of teacher"):
        audit_live("teacher", table_of(other, PAIRS), asked, PAIRS, CPU, exact=precision == "32-true")


@pytest.mark.parametrize("plant", [permuted, other_template, swapped])
def test_planted_defects_are_found_in_bfloat16_too(live: LiveScorer, plant: Callable[[LiveScorer], ScoreTable]) -> None:
    with pytest.raises(AuditError):
        audit_live("teacher", plant(live), AutocastScorer(live, "bf16-mixed"), PAIRS, CPU, exact=False)


def test_one_pair_whose_score_is_no_number_is_found(live: LiveScorer) -> None:
    honest = table_of(live, PAIRS)
    honest._nats[3, 1] = torch.nan
    with pytest.raises(AuditError, match=f"pair {PAIRS[3].pair_id} .*rejected response: nan nats stored"):
        audit_live("teacher", honest, live, PAIRS, CPU, exact=True)


class _Noisy:
    """A scorer whose numbers depend on the company: `step` nats off in a batch of several pairs."""

    def __init__(self, step: float) -> None:
        self.step = step

    def score(self, batch: PairBatch) -> PairLogProbs:
        ones = torch.ones(len(batch), dtype=torch.long)
        nats = torch.full((len(batch),), -100.0 - (self.step if len(batch) > 1 else 0.0))
        return PairLogProbs(SequenceLogProbs(nats, ones), SequenceLogProbs(nats, ones))


def test_B8_the_tolerance_of_bfloat16_is_four_times_what_company_changes() -> None:
    assert measure_tolerance(_Noisy(0.25), PAIRS, CPU, exact=False).absolute == pytest.approx(1.0)
    assert measure_tolerance(_Noisy(0.25), PAIRS, CPU, exact=True).absolute == 1e-4


def test_the_audited_rows_are_the_cheapest_the_dearest_and_others_without_repetition(tmp_path: Path) -> None:
    pairs = make_pairs(40)
    costs = [pair_tokens(pair) for pair in pairs]
    rows = audit_rows(pairs)
    found = [pair_tokens(pair) for pair in rows]
    assert len({pair.pair_id for pair in rows}) == 8
    assert min(found) == min(costs)
    assert max(found) == max(costs)
    assert rows == audit_rows(read_pairs(write_artifact(tmp_path / "pairs", "pairs", pairs)))  # the same from disk
    assert len(audit_rows(PAIRS[:3])) == 3


def test_scores_come_in_the_order_of_the_pairs_from_a_table_and_from_a_model(live: LiveScorer) -> None:
    pairs = make_pairs(60)  # more than one batch of tokens
    one_by_one = [live.score(collate_pairs([pair])) for pair in pairs]
    found = scores_of(live, pairs)
    assert found.chosen.total.tolist() == pytest.approx([float(one.chosen.total) for one in one_by_one], rel=1e-4)
    assert found.rejected.total.tolist() == pytest.approx([float(one.rejected.total) for one in one_by_one], rel=1e-4)
    assert found.rejected.num_tokens.tolist() == [len(pair.rejected_token_ids) for pair in pairs]
    stored = scores_of(table_of(live, pairs), pairs)
    assert stored.chosen.total.tolist() == pytest.approx(found.chosen.total.tolist(), rel=1e-4)
    assert stored.chosen.num_tokens.tolist() == found.chosen.num_tokens.tolist()


@pytest.mark.parametrize("value", [-100.03, -99.97, math.nan, -math.inf])
def test_a_tolerance_is_exceeded_on_both_sides_and_by_what_is_no_number(value: float) -> None:
    tolerance = Tolerance(absolute=0.01, relative=1e-4)  # 0.02 nats at -100
    assert bool(tolerance.exceeded(torch.tensor(value), torch.tensor(-100.0)))
    assert not bool(tolerance.exceeded(torch.tensor(-100.015), torch.tensor(-100.0)))


def test_the_sampler_is_compared_on_every_pair_of_the_sides_that_it_sampled() -> None:
    pairs = [replace(pair, chosen_log_prob=-3.0, rejected_log_prob=-50.0) for pair in PAIRS]
    stored = ScoreTable([score_row(pair, -3.0, -5.0) for pair in pairs], "scores")
    exact = Tolerance(absolute=1e-4)
    assert audit_sampler("teacher", stored, pairs, ["chosen"], exact, exact=True) == 8
    assert audit_sampler("teacher", stored, PAIRS, ["chosen", "rejected"], exact, exact=True) == 0  # imported pairs
    with pytest.raises(AuditError, match=r"rejected response: -5.0000 nats stored, -50.0000 nats found"):
        audit_sampler("teacher", stored, pairs, ["chosen", "rejected"], exact, exact=True)


def test_B8_a_sampler_in_bfloat16_may_round_otherwise_but_not_read_other_tokens() -> None:
    length = len(PAIRS[0].chosen_token_ids)
    rounded = [replace(pair, chosen_log_prob=-3.0 - 0.1 * math.sqrt(length)) for pair in PAIRS[:1]]
    stored = ScoreTable([score_row(pair, -3.0, -5.0) for pair in rounded], "scores")
    measured = Tolerance(absolute=0.0)
    assert audit_sampler("teacher", stored, rounded, ["chosen"], measured, exact=False) == 1
    with pytest.raises(AuditError):
        audit_sampler("teacher", stored, rounded, ["chosen"], measured, exact=True)
    shifted = [replace(pair, chosen_log_prob=-3.0 - 0.5 * math.sqrt(length)) for pair in rounded]
    with pytest.raises(AuditError):
        audit_sampler("teacher", stored, shifted, ["chosen"], measured, exact=False)


def test_on_its_own_samples_the_teacher_must_beat_the_student() -> None:
    better = ScoreTable([score_row(pair, -3.0, 0.0) for pair in PAIRS], "teacher")
    worse = ScoreTable([score_row(pair, -4.0, 0.0) for pair in PAIRS], "student")
    assert audit_own_samples(better, worse, PAIRS) == (-3.0, -4.0)
    for teacher, student in ((worse, better), (better, better)):
        with pytest.raises(AuditError, match=r"its own samples get -\d\.000 nats .* -3.000"):
            audit_own_samples(teacher, student, PAIRS)


def gaps(values: list[float]) -> PairLogProbs:
    tokens = torch.ones(len(values), dtype=torch.long)
    return PairLogProbs(
        SequenceLogProbs(torch.tensor(values), tokens), SequenceLogProbs(torch.zeros(len(values)), tokens)
    )


def test_saturation_by_hand() -> None:
    # D_te - D_ref = 10, 20, 30, 60, -5; margin_0 = -0.1 times that; weight > 0.9 where it exceeds ln 9 = 2.197
    reference = [1.0, 2.0, -3.0, 0.0, 0.0]
    teacher = [11.0, 22.0, 27.0, 60.0, -5.0]
    found = saturation({"reference": gaps(reference), "teacher": gaps(teacher)}, {"reference": 0.4, "teacher": 0.1})
    assert found.quartiles == (10.0, 20.0, 30.0)
    assert found.saturated == pytest.approx(2 / 5)
    assert found.advised_beta_teacher == pytest.approx(1 / 20)
    assert found.agreement == pytest.approx(4 / 5)
    assert len(found.lines()) == 1
    assert "10.00 / 20.00 / 30.00 nats" in found.lines()[0]


def test_saturation_above_one_half_warns_with_the_beta_that_would_help() -> None:
    anchors = {"reference": gaps([0.0] * 4), "teacher": gaps([50.0, 40.0, 60.0, 50.0])}
    found = saturation(anchors, {"reference": 0.1, "teacher": 0.1})
    assert found.saturated == 1.0
    assert "beta_teacher = 0.0200" in found.lines()[1]
    assert len(saturation(anchors, {"reference": 0.1, "teacher": 0.01}).lines()) == 1


def test_a_teacher_that_prefers_the_rejected_is_given_no_advice_and_ties_count_half() -> None:
    found = saturation({"reference": gaps([0.0, 0.0]), "teacher": gaps([0.0, -1.0])}, {"teacher": 1.0})
    assert found.advised_beta_teacher is None
    assert found.agreement == 0.25
