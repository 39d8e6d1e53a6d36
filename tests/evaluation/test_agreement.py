"""Agreement, disputes and saturation from scores on disk, against numbers worked by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dadpo.data.analysis import PairAnalysis
from lightning_dadpo.data.artifacts import draft
from lightning_dadpo.data.rows import Message, PairRow, RowWriter, ScoreRow
from lightning_dadpo.errors import ArtifactError
from lightning_dadpo.evaluation import agreement
from lightning_dadpo.evaluation.agreement import analyse_pairs
from lightning_dadpo.scoring.audit import saturation
from lightning_dadpo.types import PairLogProbs, SequenceLogProbs

# pair: prompt, split, D of the teacher, D of the reference, tokens chosen, tokens rejected
PAIRS: dict[str, tuple[str, str, float, float, int, int]] = {
    "a": ("p1", "train", 30.0, 10.0, 5, 3),
    "b": ("p1", "train", -4.0, 2.0, 7, 3),
    "c": ("p2", "train", 0.0, -5.0, 4, 4),
    "d": ("p3", "train", -9.5, 1.0, 2, 6),
    "e": ("p4", "validation", 12.0, 2.0, 4, 4),
}


def artefact(folder: Path, kind: str, rows: list[Any]) -> Path:
    with draft(folder, kind, {}) as work, RowWriter(work.path / "rows.jsonl") as writer:
        writer.write(*rows)
    return folder


def pairs(folder: Path) -> Path:
    return artefact(
        folder,
        "pairs",
        [
            PairRow(
                pair_id, prompt, split, [Message("user", f"question {prompt}")], [1], list(range(chosen)),
                f"chosen {pair_id}", "stop", list(range(rejected)), f"rejected {pair_id}", "stop",
            )
            for pair_id, (prompt, split, _, _, chosen, rejected) in PAIRS.items()
        ],
    )  # fmt: skip


def scores(folder: Path, column: int, order: str = "abcde", sign: float = 1.0) -> Path:
    rows = [
        ScoreRow(pair, -400.0 + sign * PAIRS[pair][column], PAIRS[pair][4], -400.0, PAIRS[pair][5]) for pair in order
    ]
    return artefact(folder, "scores", rows)


def analyse(tmp_path: Path, betas: dict[str, dict[str, float]] | None = None, **changes: Path) -> PairAnalysis:
    anchors = {"teacher": scores(tmp_path / "teacher", 2, "decba"), "reference": scores(tmp_path / "reference", 3)}
    return analyse_pairs("pairs", pairs(tmp_path / "pairs"), anchors | changes, betas or {})


def test_agreement_by_hand(tmp_path: Path) -> None:
    """D_teacher is above 0 for a and e, 0 for c: (1 + 1/2 + 1) / 5 in all, (1 + 1/2) / 4 of the training pairs."""
    found = analyse(tmp_path).agreement["teacher"]
    assert list(found) == ["all", "train", "validation"]
    assert (found["all"].share, found["train"].share, found["validation"].share) == (0.5, 0.375, 1.0)
    assert [(one.pairs, one.prompts, one.ties) for one in found.values()] == [(5, 4, 1), (4, 3, 1), (1, 1, 0)]
    # b and d are disputed; the chosen one of b alone is the longer
    assert (found["all"].against, found["all"].against_longer) == (2, 1)
    assert found["train"].low <= 0.375 <= found["train"].high


def test_the_interval_resamples_prompts_not_pairs(tmp_path: Path) -> None:
    """Two prompts, one with three pairs that agree, one with a pair that does not: ratios 1, 3/4 and 0 alone occur."""
    rows = [("p1", 1.0), ("p1", 1.0), ("p1", 1.0), ("p2", -1.0)]
    kept = [
        PairRow(str(at), prompt, "train", [], [1], [2], "x", "stop", [3], "y", "stop")
        for at, (prompt, _) in enumerate(rows)
    ]
    given = [ScoreRow(str(at), gap, 1, 0.0, 1) for at, (_, gap) in enumerate(rows)]
    folder = artefact(tmp_path / "pairs", "pairs", kept)
    found = analyse_pairs("pairs", folder, {"teacher": artefact(tmp_path / "teacher", "scores", given)}, {})
    (one,) = found.agreement["teacher"].values()  # a single split is not named twice
    assert (one.low, one.share, one.high) == (0.0, 0.75, 1.0)


def test_the_share_is_the_one_that_training_prints(tmp_path: Path) -> None:
    said = saturation({"reference": worked(3), "teacher": worked(2)}, {"teacher": 0.1})
    assert analyse(tmp_path).agreement["teacher"]["all"].share == said.agreement


def worked(column: int) -> PairLogProbs:
    gaps = torch.tensor([row[column] for row in PAIRS.values()], dtype=torch.float64)
    ones = torch.ones(len(gaps), dtype=torch.long)
    return PairLogProbs(SequenceLogProbs(gaps, ones), SequenceLogProbs(torch.zeros_like(gaps), ones))


def test_the_most_disputed_come_first_with_both_gaps(tmp_path: Path) -> None:
    found = analyse(tmp_path).disputed
    assert list(found) == ["teacher"]
    first, second = found["teacher"]
    assert (first.pair_id, first.prompt_id, first.split) == ("d", "p3", "train")
    assert (first.chosen_text, first.rejected_text) == ("chosen d", "rejected d")
    assert (first.chosen_tokens, first.rejected_tokens) == (2, 6)
    assert first.messages == [Message("user", "question p3")]
    assert first.gaps == {"teacher": -9.5, "reference": 1.0}
    assert second.gaps == {"teacher": -4.0, "reference": 2.0}


def test_chosen_and_rejected_swapped_turns_everything_round(tmp_path: Path) -> None:
    """METHOD, consequence 3: the planted defect that the step-0 oracle cannot see."""
    found = analyse(tmp_path, teacher=scores(tmp_path / "swapped", 2, sign=-1.0))
    assert found.agreement["teacher"]["train"].share == 1 - 0.375
    assert [one.pair_id for one in found.disputed["teacher"]] == ["a", "e"]


def test_no_more_are_listed_than_anybody_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "MOST_DISPUTED", 1)
    assert [one.pair_id for one in analyse(tmp_path).disputed["teacher"]] == ["d"]


def test_spread_and_saturation_by_hand(tmp_path: Path) -> None:
    """D_te - D_ref is 20, -6, 5, -10.5, 10; sorted -10.5, -6, 5, 10, 20.

    A weight above 0.9 means b_te (D_te - D_ref) > ln 9 = 2.197: at b_te 0.2 the differences above 10.99, one of five
    (of the four training pairs one too); at 0.5 those above 4.39, three of five, two of four.
    """
    betas = {"mild": {"reference": 0.1, "teacher": 0.2}, "strong": {"teacher": 0.5}, "ddpo": {"reference": 0.1}}
    found = analyse(tmp_path, betas)
    assert found.spread["teacher"]["all"].quartiles == (-6.0, 5.0, 10.0)
    assert found.spread["teacher"]["all"].advised_beta == 0.2
    assert found.spread["teacher"]["train"].quartiles == (-7.125, -0.5, 8.75)
    assert found.spread["teacher"]["train"].advised_beta is None
    assert found.saturated["mild"].shares == {"all": 0.2, "train": 0.25, "validation": 0.0}
    assert found.saturated["strong"].shares == {"all": 0.6, "train": 0.5, "validation": 1.0}
    assert found.saturated["ddpo"].shares == {"all": 0.0, "train": 0.0, "validation": 0.0}
    assert found.saturated["mild"].betas == {"reference": 0.1, "teacher": 0.2}


def test_saturation_against_a_float64_loop(tmp_path: Path) -> None:
    betas = {"reference": 0.3, "teacher": 0.21}
    weights = []
    for _, _, teacher, reference, _, _ in PAIRS.values():
        margin = 0.3 * (reference - reference) + 0.21 * (reference - teacher)
        weights.append(1 / (1 + math.exp(margin)))
    assert analyse(tmp_path, {"x": betas}).saturated["x"].shares["all"] == sum(w > 0.9 for w in weights) / 5


def test_several_teachers(tmp_path: Path) -> None:
    """Of margins 0.1 (D_ref - D_a) + 0.4 (D_ref - D_b), b half the first teacher's gap, the sums decide."""
    halved = artefact(
        tmp_path / "b", "scores", [ScoreRow(pair, row[2] / 2, row[4], 0.0, row[5]) for pair, row in PAIRS.items()]
    )
    found = analyse_pairs(
        "pairs",
        pairs(tmp_path / "pairs"),
        {
            "teacher_a": scores(tmp_path / "a", 2),
            "teacher_b": halved,
            "reference": scores(tmp_path / "reference", 3),
        },
        {"several": {"reference": 0.1, "teacher_a": 0.1, "teacher_b": 0.4}, "other": {"teacher_c": 0.1}},
    )
    assert list(found.disputed) == list(found.spread) == ["teacher_a", "teacher_b"]
    margins = [0.1 * (row[3] - row[2]) + 0.4 * (row[3] - row[2] / 2) for row in PAIRS.values()]
    assert found.saturated["several"].shares["all"] == sum(margin < -math.log(9) for margin in margins) / 5
    assert "other" not in found.saturated


def test_C2_a_pair_without_a_score_is_counted_and_shifts_nothing(tmp_path: Path) -> None:
    found = analyse(tmp_path, teacher=scores(tmp_path / "some", 2, "eda"))
    assert (found.pairs, found.unscored) == (5, 2)
    assert [one.pair_id for one in found.disputed["teacher"]] == ["d"]
    assert found.agreement["teacher"]["all"].share == 2 / 3
    assert found.agreement["reference"]["all"].pairs == 3


def test_scores_that_fit_no_pair_say_nothing(tmp_path: Path) -> None:
    found = analyse(tmp_path, teacher=artefact(tmp_path / "other", "scores", [ScoreRow("z", 0.0, 1, 0.0, 1)]))
    assert (found.unscored, found.agreement, found.saturated) == (5, {}, {})


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds pairs, expected scores"):
        analyse(tmp_path, teacher=pairs(tmp_path / "wrong"))
