"""What the estimate of a run counts: who is asked in a stage, how large they are, and about how much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_dadpo.cli import estimate
from lightning_dadpo.cli.experiment import Experiment, FitRecipe, Mix, read_experiment
from lightning_dadpo.cli.stages import plan_stages
from lightning_dadpo.models.spec import ModelSpec
from tests.reports import example

DEMO = read_experiment("configs/recipes/demo.yaml")
"""The student is four fifths of the teacher; 120, 8 and 32 prompts of 30 tokens, responses of half of 48."""
ROW, PAIR = 30 + 24, 30 + 2 * 24
BEST: dict[str, Any] = {"responses_per_prompt": 4, "pairing": "best_and_worst"}
TEACHER, STUDENT = 1e8, 0.8e8
Flops = Callable[[Experiment], dict[str, float]]


def recipe(loss: str, kind: str = "preference", *files: str, **settings: Any) -> FitRecipe:
    configs = ["configs/trainer/default.yaml", f"configs/loss/{loss}.yaml", f"configs/recipes/{kind}.yaml", *files]
    return FitRecipe(configs, settings)


@pytest.fixture
def flops(monkeypatch: pytest.MonkeyPatch) -> Flops:
    """Of every stage by its name, with a teacher of a hundred million parameters."""
    monkeypatch.setattr(estimate, "_parameters", lambda model: TEACHER)

    def counted(experiment: Experiment) -> dict[str, float]:
        planned = plan_stages(experiment)
        sizes = estimate._sizes(experiment, planned)
        assert sizes is not None
        return {stage.name: estimate._work(experiment, stage, sizes).flops for stage in planned}

    return counted


def test_an_evaluation_is_counted_as_it_reads(flops: Flops) -> None:
    """Each of four students a prompt with two answers, the teacher one with all five."""
    assert flops(DEMO)["evaluation"] == pytest.approx(2 * 32 * (4 * STUDENT * PAIR + TEACHER * (30 + 5 * 24)))


def test_every_stage_is_counted_with_the_model_that_it_asks(flops: Flops) -> None:
    """Planted: by the ends of their names, `judged` and a second round's teacher scores were a student's."""
    found = flops(replace(DEMO, rounds=2, mix=Mix(0.5), **BEST))
    answers = 4 * 128 * ROW
    for name in ("judged", "judged-dadpo-round2"):
        assert found[name] == pytest.approx(2 * TEACHER * answers), name
    assert found["sample-teacher"] == pytest.approx(2 * TEACHER * 4 * 160 * ROW)
    assert found["sample-rejected"] == found["sample-rejected-dadpo-round2"] == pytest.approx(2 * STUDENT * answers)
    assert found["score-teacher"] == found["teacher-scores-dadpo-round2"] == pytest.approx(2 * TEACHER * 128 * PAIR)
    assert found["score-reference"] == pytest.approx(2 * STUDENT * 128 * PAIR)
    assert found["reference-scores-dadpo-round2"] == pytest.approx(2 * STUDENT * 128 * PAIR)
    assert found["dadpo-round2"] == pytest.approx(6 * STUDENT * 180 * PAIR)


def test_a_teacher_that_is_a_folder_is_known_by_it(flops: Flops, tmp_path: Path) -> None:
    found = flops(replace(DEMO, teacher=ModelSpec(str(tmp_path)), **BEST))
    assert found["judged"] == pytest.approx(2 * TEACHER * 4 * 128 * ROW)


def test_distillation_reads_responses_with_both_models_and_a_live_teacher_reads_pairs_beside_the_student(
    flops: Flops,
) -> None:
    """Planted: a distillation was counted as pairs that the student reads alone."""
    objectives = {"forward_kl": recipe("forward_kl", "distillation"), "live": recipe("dadpo_reverse_kl")}
    found = flops(replace(DEMO, objectives=objectives))
    assert found["forward_kl"] == pytest.approx((6 * STUDENT + 2 * TEACHER) * 120 * ROW)
    assert found["live"] == pytest.approx((6 * STUDENT + 2 * TEACHER) * 120 * PAIR)
    assert found["dsft"] == pytest.approx(6 * STUDENT * 2 * 120 * ROW)


def test_epochs_are_the_recipes_and_its_settings_win(flops: Flops, tmp_path: Path) -> None:
    longer = tmp_path / "longer.yaml"
    longer.write_text("trainer: {max_epochs: 3}\n", "utf-8")
    objectives = {
        "files": recipe("dadpo", "preference", str(longer)),
        "settings": recipe("dadpo", "preference", str(longer), trainer={"max_epochs": 2}),
        "default": recipe("dadpo"),
    }
    found = flops(replace(DEMO, objectives=objectives))
    one = 6 * STUDENT * 120 * PAIR
    assert [found[name] / one for name in objectives] == pytest.approx([3, 2, 1])


def test_models_that_are_here_are_measured_themselves_and_of_others_nothing_is_said(tmp_path: Path) -> None:
    """The number format counts for nothing: 16 bits hold as many numbers as 32."""
    here = {name: ModelSpec(str(example.model(tmp_path / name, size, kind))) for name, size, kind in (
        ("teacher", 1000, "BF16"), ("student", 300, "F32"), ("further", 2000, "F32"),
    )}  # fmt: skip
    said = replace(
        DEMO, prune=None, teacher=here["teacher"], student=here["student"],
        objectives={"several": recipe("several_teachers")},
        anchors={"teacher_a": here["further"], "teacher_b": here["teacher"]},
    )  # fmt: skip
    planned = {stage.name: stage for stage in plan_stages(said)}
    sizes = estimate._sizes(said, list(planned.values()))
    assert sizes is not None
    found = {name: estimate._work(said, stage, sizes).flops for name, stage in planned.items()}
    assert found["sample-teacher"] == 2 * 1000 * 160 * ROW
    assert found["sample-heldout-initial"] == found["sample-heldout-dsft"] == 2 * 300 * 32 * ROW
    assert (found["score-teacher_a"], found["score-teacher_b"]) == (2 * 2000 * 128 * PAIR, 2 * 1000 * 128 * PAIR)
    assert found["several"] == 6 * 300 * 120 * PAIR
    for unknown in ({"teacher": ModelSpec("hub/x")}, {"student": ModelSpec("hub/x")}):
        changed = replace(said, **unknown)  # type: ignore[arg-type]
        assert estimate.estimate_minutes(changed, [], []) is None


def test_rounds_and_candidates_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_parameters", lambda model: TEACHER)
    monkeypatch.setattr("lightning_dadpo.models.numerics.matmul_rate", lambda precision: 1e10)

    def minutes(**changes: Any) -> float:
        experiment = replace(DEMO, **changes)
        planned = plan_stages(experiment)
        found = estimate.estimate_minutes(experiment, planned, planned)
        assert found is not None
        return found

    one = minutes()
    two, mixed = minutes(rounds=2), minutes(rounds=2, mix=Mix(1.0))
    assert one < two < mixed < 3 * one
    assert mixed < minutes(rounds=2, mix=Mix(1.0), reference="moved")
    assert minutes(**BEST) > 1.5 * one
