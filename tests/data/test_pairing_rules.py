"""Pairing rules on worked numbers, and what a pairing does with candidates that cannot be used."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_dadpo.data.artifacts import draft, read_manifest
from lightning_dadpo.data.judged import nats_per_token
from lightning_dadpo.data.pairing import make_pairs, pair_responses, read_pairs
from lightning_dadpo.data.pairing_rules import RULES, Candidate, best_and_worst, first_of_each
from lightning_dadpo.data.rows import Message, ResponseRow, ResponseScoreRow, RowWriter, response_id
from lightning_dadpo.errors import ArtifactError, ConfigError, DataError

END = 2
CUT: dict[str, Any] = {"finish_reason": "length"}


def response(number: int, *token_ids: int, nats: float | None = None, prompt: str = "a", **changes: Any) -> ResponseRow:
    row = ResponseRow(
        prompt_id=prompt,
        split="train",
        messages=[Message("user", prompt)],
        prompt_token_ids=[10, 11, 12],
        token_ids=list(token_ids),
        text=" ".join(map(str, token_ids)),
        finish_reason="stop",
        log_prob=nats,
        candidate=number,
    )
    return replace(row, **changes)


def candidates(*scores: float, first_id: int = 20) -> list[Candidate]:
    return [Candidate(response(number, first_id + number, END), score) for number, score in enumerate(scores)]


def picked(choice: Any) -> tuple[int, int]:
    assert not isinstance(choice, str), choice
    chosen, rejected = choice
    return chosen.response.token_ids[0], rejected.response.token_ids[0]


def test_best_of_one_model_against_worst_of_another() -> None:
    chosen, rejected = candidates(-1.5, -0.5, -0.75), candidates(-2.0, -1.0, -4.0, first_id=30)
    assert picked(best_and_worst(chosen, rejected)) == (21, 32)


def test_best_and_worst_of_one_model() -> None:
    pool = candidates(-1.5, -0.5, -3.0, -0.75)
    assert picked(best_and_worst(pool, pool)) == (21, 22)


def test_of_equal_scores_the_first_counts() -> None:
    pool = candidates(-1.0, -0.5, -0.5, -1.0)
    assert picked(best_and_worst(pool, pool)) == (21, 20)


def test_a_group_in_which_the_teacher_tells_nothing_apart_is_no_pair() -> None:
    pool = candidates(-1.0, -1.0)
    assert best_and_worst(pool, pool) == "tied"


def test_D5_fewer_than_two_different_responses_are_no_pair() -> None:
    pool = [Candidate(response(number, 20, END), -1.0) for number in range(3)]
    assert best_and_worst(pool, pool) == "one_distinct"
    assert best_and_worst(candidates(-1.0, -0.5), candidates(-0.1, first_id=21)) == "identical"


def test_the_worst_is_looked_for_among_what_differs_from_the_best() -> None:
    chosen = candidates(-0.5)
    rejected = [Candidate(response(0, 20, END), -9.0), Candidate(response(1, 33, END), -1.0)]
    assert picked(best_and_worst(chosen, rejected)) == (20, 33)


def test_B1_candidates_are_compared_per_token_not_by_sums() -> None:
    """-6 nats over 12 tokens is the better answer than -4 over 2, and the shorter one has the larger sum."""
    long, short = response(0, *range(20, 31), END, nats=-6.0), response(1, 40, END, nats=-4.0)
    scores = {row.candidate: nats_per_token(float(row.log_prob or 0), len(row.token_ids)) for row in (long, short)}
    assert scores == {0: -0.5, 1: -2.0}
    pool = [Candidate(row, scores[row.candidate]) for row in (long, short)]
    assert picked(best_and_worst(pool, pool)) == (20, 40)


def test_first_of_each_asks_for_no_score() -> None:
    pool = [Candidate(response(number, 20 + number, END)) for number in range(2)]
    assert picked(first_of_each(pool, pool[::-1])) == (20, 21)
    assert {name: rule.asks_teacher for name, rule in RULES.items()} == {"first_of_each": False, "best_and_worst": True}


def joined(
    chosen: list[ResponseRow], rejected: list[ResponseRow], rule: Any = "best_and_worst", **settings: Any
) -> Any:
    def score(row: ResponseRow) -> float:
        return nats_per_token(float(row.log_prob or math.nan), len(row.token_ids))

    limits = {"max_prompt_tokens": 8, "max_response_tokens": 8} | settings
    return pair_responses(chosen, rejected, rule=rule, scores=(score, score), **limits)


def test_a_cut_an_empty_and_an_over_long_candidate_are_passed_over_as_chosen() -> None:
    chosen = [
        response(0, 20, 21, nats=-0.1, **CUT),
        response(1, END, nats=-0.1),
        response(2, *range(20, 30), nats=-0.1),
        response(3, 24, END, nats=-3.0),
    ]
    rejected = [response(0, 30, END, nats=-1.0), response(1, 31, 32, nats=-8.0, **CUT)]
    (pair,) = joined(chosen, rejected).pairs
    assert (pair.chosen_token_ids, pair.rejected_token_ids) == ([24, END], [31, 32])
    assert joined(chosen, rejected).counts == {"pairs": 1, "kept_rejected_cut": 1}
    (kept,) = joined(chosen, rejected, keep_cut_chosen=True).pairs
    assert kept.chosen_token_ids == [20, 21]


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ([response(0, 20, 21, nats=-1.0, **CUT)] * 1, [response(0, 30, END, nats=-1.0)], "chosen_cut"),
        ([response(0, 20, END, nats=-1.0)], [response(0, END, nats=-1.0)], "empty"),
        ([response(0, 20, END, nats=-1.0)], [response(0, *range(30, 40), nats=-1.0)], "over_long"),
        ([response(0, 20, END, nats=-1.0)], [response(0, 20, END, nats=-1.0)], "one_distinct"),
        ([response(0, 20, END, nats=-1.0)], [response(0, 30, END, nats=-1.0)], "tied"),
    ],
)
def test_what_no_candidate_helps_is_counted_by_its_reason(chosen: Any, rejected: Any, reason: str) -> None:
    assert joined(chosen, rejected).counts == {"pairs": 0, f"dropped_{reason}": 1}


def test_first_of_each_takes_the_first_that_can_be_used() -> None:
    chosen = [response(1, 21, END), response(0, 20, 22, **CUT), response(2, 23, END)]
    (pair,) = joined(chosen, [response(0, 30, END), response(1, 31, END)], rule="first_of_each").pairs
    assert (pair.chosen_token_ids, pair.rejected_token_ids) == ([21, END], [30, END])


def test_C2_one_candidate_twice_is_refused_not_collapsed() -> None:
    twice = [response(1, 20, END, nats=-1.0), response(1, 21, END, nats=-1.0)]
    with pytest.raises(DataError, match="rejected responses: prompt_id 'a' is answered twice as candidate 1"):
        joined([response(0, 22, END, nats=-1.0)], twice)


def test_A10_a_further_candidate_that_read_another_prompt_is_refused() -> None:
    other = replace(response(1, 31, END, nats=-1.0), prompt_token_ids=[10, 99, 12])
    with pytest.raises(DataError, match=r"prompt_id 'a': .* different tokens"):
        joined([response(0, 20, END, nats=-1.0)], [response(0, 30, END, nats=-1.0), other])


def responses_folder(folder: Path, model: str, *rows: ResponseRow) -> str:
    with draft(folder, "responses", {"model": model}) as work, RowWriter(work.path / "rows.jsonl") as writer:
        writer.write(*rows)
    return str(folder)


def scores_folder(folder: Path, model: str, responses: str, nats: dict[int, float]) -> str:
    """Scores of rows by their first token."""
    from lightning_dadpo.data.rows import read_rows

    manifest = read_manifest(responses)
    made_from = {"model": model, "responses": manifest.files["rows.jsonl"]}
    with draft(folder, "response_scores", made_from) as work, RowWriter(work.path / "rows.jsonl") as writer:
        for row in read_rows(Path(responses) / "rows.jsonl", ResponseRow):
            if row.token_ids[0] in nats:
                writer.write(ResponseScoreRow(response_id(row), nats[row.token_ids[0]], len(row.token_ids)))
    return str(folder)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str, str]:
    """The teacher's responses, the student's, and the teacher's scores of these; the student's own opinion differs."""
    teacher = responses_folder(
        tmp_path / "teacher", "teacher", response(0, 20, END, nats=-4.0), response(1, 21, END, nats=-2.0)
    )
    student = responses_folder(
        tmp_path / "student", "student", response(0, 30, END, nats=-9.0), response(1, 31, END, nats=-1.0)
    )
    return teacher, student, scores_folder(tmp_path / "scores", "teacher", student, {30: -3.0, 31: -5.0})


def test_the_teacher_judges_both_sides_its_own_by_what_its_sampler_saw(
    folders: tuple[str, str, str], tmp_path: Path
) -> None:
    teacher, student, scores = folders
    out = make_pairs(teacher, student, str(tmp_path / "pairs"), rule="best_and_worst", rejected_scores=scores)
    (pair,) = read_pairs(out)
    assert (pair.chosen_token_ids[0], pair.rejected_token_ids[0]) == (21, 31)  # by the student's own opinion: 30
    assert (pair.chosen_log_prob, pair.rejected_log_prob) == (-2.0, -1.0)  # what each sampler saw stays with the pair
    made_from = read_manifest(out).made_from
    assert (made_from["rule"], made_from["judge"]) == ("best_and_worst", "teacher")
    assert made_from["judged"] == [{}, {"scores": read_manifest(scores).files["rows.jsonl"]}]


def test_both_from_one_model_judged_by_the_teacher(folders: tuple[str, str, str], tmp_path: Path) -> None:
    teacher, student, scores = folders
    of_student = make_pairs(student, student, str(tmp_path / "one"), rule="best_and_worst", chosen_scores=scores)
    of_teacher = make_pairs(teacher, teacher, str(tmp_path / "two"), rule="best_and_worst")
    found = [
        [(pair.chosen_token_ids[0], pair.rejected_token_ids[0]) for pair in read_pairs(folder)]
        for folder in (of_student, of_teacher)
    ]
    assert found == [[(30, 31)], [(21, 20)]]


def test_two_judges_are_refused_and_so_are_scores_that_nobody_asks_for(
    folders: tuple[str, str, str], tmp_path: Path
) -> None:
    teacher, student, scores = folders
    out = str(tmp_path / "pairs")
    with pytest.raises(
        ConfigError, match="judged by model teacher, the rejected ones by student; expected one teacher"
    ):
        make_pairs(teacher, student, out, rule="best_and_worst")
    for sides in ((teacher, student, scores), (teacher, teacher, None)):
        with pytest.raises(ConfigError, match="rule first_of_each: expected two responses folders and no scores"):
            make_pairs(*sides[:2], out, rejected_scores=sides[2])
    with pytest.raises(ArtifactError, match="scores of other responses than"):
        make_pairs(teacher, student, out, rule="best_and_worst", chosen_scores=scores, rejected_scores=scores)
    with pytest.raises(ArtifactError, match="holds responses, expected response_scores"):
        make_pairs(teacher, student, out, rule="best_and_worst", rejected_scores=student)
    assert not Path(out).exists()


def test_a_response_without_a_score_is_refused(folders: tuple[str, str, str], tmp_path: Path) -> None:
    teacher, student, _ = folders
    torn = scores_folder(tmp_path / "torn", "teacher", student, {30: -3.0})
    with pytest.raises(ArtifactError, match="torn: has no score for a response to prompt 'a'"):
        make_pairs(teacher, student, str(tmp_path / "pairs"), rule="best_and_worst", rejected_scores=torn)
    blind = responses_folder(tmp_path / "blind", "teacher", response(0, 20, END), response(1, 21, END))
    with pytest.raises(DataError, match="prompt 'a': its sampler could not see the model's log-prob"):
        make_pairs(blind, blind, str(tmp_path / "pairs"), rule="best_and_worst")
