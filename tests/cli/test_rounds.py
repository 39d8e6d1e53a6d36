"""Rounds, candidates and anchors as stages: what is drawn, scored and trained on, before anything is run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_dadpo.cli.experiment import Experiment, FitRecipe, Mix, read_experiment
from lightning_dadpo.cli.stages import Stage, plan_rounds, plan_stages
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models.spec import ModelSpec

LOSSES = Path("configs/loss")
OTHERS = {"teacher_a": ModelSpec("hub/a"), "teacher_b": ModelSpec("hub/b")}


def recipe(loss: str, kind: str = "preference") -> FitRecipe:
    return FitRecipe(["configs/trainer/default.yaml", str(LOSSES / f"{loss}.yaml"), f"configs/recipes/{kind}.yaml"])


DEMO = read_experiment("configs/recipes/demo.yaml")


def changed(*losses: str, **changes: Any) -> Experiment:
    if losses:
        changes["objectives"] = {loss: recipe(loss) for loss in losses}
    return replace(DEMO, **changes)


def stages(experiment: Experiment) -> dict[str, Stage]:
    found = plan_stages(experiment)
    by_name = {stage.name: stage for stage in found}
    assert len(by_name) == len(found)
    assert len({stage.folder for stage in found}) == len(found)
    made: set[str] = set()
    for stage in found:  # nothing is read before it is made
        used = {word for word in str(stage.settings).replace("'", " ").split() if word.startswith("runs/demo/")}
        assert {word.split("/checkpoints")[0] for word in used} <= made, stage.name
        made.add(str(stage.folder))
    return by_name


def folders(found: dict[str, Stage]) -> dict[str, str]:
    return {name: str(stage.folder) for name, stage in found.items()}


def checks(stage: Stage) -> dict[str, Any]:
    first = stage.settings["trainer"]["callbacks+"][0]
    assert first["class_path"] == "CheckScores"
    return {key: value for key, value in first["init_args"].items() if key != "teacher"}


def data(stage: Stage) -> dict[str, Any]:
    return dict(stage.settings["data"]["init_args"])


def test_the_recipe_with_rounds_parses_and_plans_and_opens_with_its_command() -> None:
    path = Path("configs/recipes/rounds.yaml")
    assert path.read_text("utf-8").splitlines()[0] == f"# dadpo run {path}"
    found = plan_stages(read_experiment(str(path)))
    assert sum(stage.command == "fit" for stage in found) == 3
    assert [stage.name for stage in found if stage.command in ("mix", "score")] == [
        "score-teacher", "score-reference", "mix-dadpo-round2", "teacher-scores-dadpo-round2",
        "reference-scores-dadpo-round2",
    ]  # fmt: skip


def test_the_recipes_candidates_parse_where_they_are_not_commented_out(tmp_path: Path) -> None:
    text = Path("configs/recipes/rounds.yaml").read_text("utf-8")
    for key in ("responses_per_prompt", "pairing", "chosen_from"):
        assert f"# {key}:" in text
        text = text.replace(f"# {key}:", f"{key}:")
    path = tmp_path / "rounds.yaml"
    path.write_text(text, "utf-8")
    found = {stage.name: stage for stage in plan_stages(read_experiment(str(path)))}
    assert found["pairs-dadpo-round2"].settings["chosen_scores"] == str(found["judged-dadpo-round2"].folder)


def test_one_round_is_the_paper_and_says_nothing_of_what_else_there_is() -> None:
    found = stages(DEMO)
    assert list(found) == [
        "teacher", "sample-teacher", "pruned", "dsft", "model-dsft", "sample-rejected", "pairs", "score-teacher",
        "score-reference", "ddpo", "model-ddpo", "dadpo", "model-dadpo",
        *(f"sample-heldout-{name}" for name in ("pruned", "dsft", "ddpo", "dadpo")), "evaluation",
    ]  # fmt: skip
    assert set(found["pairs"].settings) == {"chosen", "rejected", "keep_cut_chosen"}
    assert set(found["score-teacher"].settings) == {"model", "pairs", "anchor", "tokens_per_batch"}
    assert "responses_per_prompt" not in found["sample-teacher"].settings
    assert checks(found["dadpo"]) == {}
    assert set(data(found["dadpo"])["train"]) == {"folder", "split"}


def test_a_second_round_starts_from_the_current_student_and_draws_with_another_seed() -> None:
    one, two = stages(DEMO), stages(changed(rounds=2))
    assert folders(one).items() - {("evaluation", str(one["evaluation"].folder))} <= folders(two).items()
    student = str(two["model-dadpo"].folder)
    drawn = two["sample-rejected-dadpo-round2"].settings
    assert drawn["model"]["path"] == two["dadpo-round2"].settings["model"]["init_args"]["student"]["path"] == student
    assert set(drawn["prompts"]) == {"train", "validation"}
    seeds = [two[name].settings["settings"]["seed"] for name in ("sample-teacher", "sample-rejected")]
    assert [*seeds, drawn["settings"]["seed"]] == [1, 2, 3]
    pairs = two["pairs-dadpo-round2"].settings
    assert (pairs["chosen"], pairs["rejected"]) == (
        str(two["sample-teacher"].folder), str(two["sample-rejected-dadpo-round2"].folder),
    )  # fmt: skip
    assert data(two["dadpo-round2"])["train"]["folder"] == str(two["pairs-dadpo-round2"].folder)
    assert list(two["evaluation"].settings["candidates"]) == [
        "pruned", "dsft", "ddpo", "dadpo", "ddpo-round2", "dadpo-round2",
    ]  # fmt: skip
    three = stages(changed(rounds=3))
    assert three["dadpo-round3"].settings["model"]["init_args"]["student"]["path"] == str(
        two["model-dadpo-round2"].folder
    )


def test_the_teacher_scores_no_pair_twice_and_the_reference_only_where_it_moved() -> None:
    fixed = stages(changed(rounds=2))
    first, ddpo, dadpo = ("score-reference", "reference-scores-ddpo-round2", "reference-scores-dadpo-round2")
    assert "teacher-scores-ddpo-round2" not in fixed  # DPO does not ask it
    assert fixed["teacher-scores-dadpo-round2"].settings["known"] == [str(fixed["score-teacher"].folder)]
    assert fixed[ddpo].settings["known"] == [str(fixed[first].folder)]
    assert fixed[dadpo].settings["known"] == [str(fixed[first].folder), str(fixed[ddpo].folder)]
    assert {fixed[name].settings["model"]["path"] for name in (first, ddpo, dadpo)} == {str(fixed["model-dsft"].folder)}
    assert checks(fixed["dadpo-round2"]) == {"starts_at_reference": False}
    moved = stages(changed(rounds=2, reference="moved"))
    assert moved["teacher-scores-dadpo-round2"] == fixed["teacher-scores-dadpo-round2"]
    assert moved[dadpo].settings["model"]["path"] == str(moved["model-dadpo"].folder)
    assert "known" not in moved[dadpo].settings
    assert checks(moved["dadpo-round2"]) == {}
    assert moved["dadpo-round2"].folder != fixed["dadpo-round2"].folder


def test_an_objective_knows_of_no_anchor_but_its_own() -> None:
    alone, beside = (folders(stages(changed(*losses))) for losses in (["dpo"], ["dpo", "dadpo"]))
    assert all(beside[name] == folder for name, folder in alone.items() if name != "evaluation")


def test_what_is_known_saves_work_and_names_no_folder() -> None:
    alone, beside = (folders(stages(changed(*losses, rounds=2))) for losses in (["dadpo"], ["ipo", "dadpo"]))
    assert all(beside[name] == folder for name, folder in alone.items() if name != "evaluation")


def test_pairs_of_earlier_rounds_are_mixed_in_and_scored_with_the_latest() -> None:
    found = stages(changed("dadpo", rounds=3, mix=Mix(0.5)))
    mixed = found["mix-dadpo-round3"].settings
    assert mixed["latest"] == str(found["pairs-dadpo-round3"].folder)
    assert mixed["earlier"] == [str(found[name].folder) for name in ("pairs", "pairs-dadpo-round2")]
    assert (mixed["share"], mixed["seed"]) == (0.5, 1)
    folder = str(found["mix-dadpo-round3"].folder)
    assert {data(found["dadpo-round3"])[split]["folder"] for split in ("train", "validation")} == {folder}
    assert found["teacher-scores-dadpo-round3"].settings["pairs"] == folder
    assert len(found["teacher-scores-dadpo-round3"].settings["known"]) == 2
    assert "mix-dadpo-round2" in found
    assert not any(name.startswith("mix") for name in stages(changed("dadpo", rounds=3)))


@pytest.mark.parametrize(
    ("losses", "scored"),
    [
        (["dpo"], {"score-reference"}),
        (["teacher_only"], {"score-teacher"}),
        (["simpo"], set()),
        (["simpo", "dadpo"], {"score-reference", "score-teacher"}),
        (["dadpo_reverse_kl"], {"score-reference"}),  # its teacher is in memory
        (["several_teachers"], {"score-reference", "score-teacher_a", "score-teacher_b"}),
    ],
)
def test_exactly_the_anchors_that_an_objective_needs_are_scored(losses: list[str], scored: set[str]) -> None:
    found = stages(changed(*losses, anchors=OTHERS, rounds=2))
    assert {name for name in found if name.startswith("score-")} == scored
    again = {name.removesuffix(f"-{losses[-1]}-round2") for name in found if "-scores-" in name}
    assert again == {f"{name.removeprefix('score-')}-scores" for name in scored}


def test_further_anchors_read_the_text_where_their_tokenizer_differs_and_may_leave_pairs_out() -> None:
    found = stages(changed("several_teachers", "dadpo", anchors=OTHERS))
    scores = found["score-teacher_a"].settings
    assert scores["model"]["path"] == "hub/a"
    assert scores["tokenizer"]["path"] == str(found["model-dsft"].folder)
    asked = [str(found[f"score-{name}"].folder) for name in OTHERS]
    assert data(found["several_teachers"])["train"]["scored_by"] == asked
    anchors = found["several_teachers"].settings["model"]["init_args"]["anchors"]
    assert set(anchors) == {"reference", *OTHERS}
    assert "scored_by" not in data(found["dadpo"])["train"]
    assert set(found["dadpo"].settings["model"]["init_args"]["anchors"]) == {"reference", "teacher"}


def test_an_anchor_that_the_experiment_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        plan_stages(changed("dadpo", "several_teachers", anchors={"teacher_a": OTHERS["teacher_a"]}))
    assert str(refused.value) == (
        "experiment.objectives.several_teachers: its loss needs anchor 'teacher_b', and there are teacher, reference, "
        "teacher_a; add it under `anchors`: {teacher_b: {path: FOLDER}}"
    )


def test_token_level_distillation_trains_once_on_the_teachers_answers() -> None:
    objectives = {"forward_kl": recipe("forward_kl", "distillation"), "dadpo": recipe("dadpo")}
    found = stages(changed(objectives=objectives, rounds=2))
    said = found["forward_kl"].settings
    assert said["model"]["class_path"] == "DistillationModule"
    assert said["model"]["init_args"]["teacher"]["path"] == str(found["teacher"].folder)
    assert said["data"]["init_args"]["train"]["folder"] == str(found["sample-teacher"].folder)
    assert "forward_kl-round2" not in found
    assert "dadpo-round2" in found
    alone = stages(changed(objectives={"forward_kl": objectives["forward_kl"]}))
    assert not {"pairs", "sample-rejected", "score-teacher"} & set(alone)


BEST: dict[str, Any] = {"responses_per_prompt": 4, "pairing": "best_and_worst"}


def test_candidates_of_both_models_judged_by_the_teacher() -> None:
    found = stages(changed("dadpo", rounds=2, **BEST))
    for suffix in ("", "-dadpo-round2"):
        drawn, judged = found[f"sample-rejected{suffix}"], found[f"judged{suffix}"]
        assert drawn.settings["responses_per_prompt"] == 4
        assert judged.command == "score-responses"
        assert judged.settings["responses"] == str(drawn.folder)
        assert judged.settings["model"]["path"] == str(found["teacher"].folder)
        pairs = found[f"pairs{suffix}"].settings
        assert (pairs["rule"], pairs["rejected_scores"]) == ("best_and_worst", str(judged.folder))
        assert "chosen_scores" not in pairs  # the teacher's own sampler noted them
    assert found["sample-teacher"].settings["responses_per_prompt"] == 4
    assert "responses_per_prompt" not in found["sample-heldout-dadpo"].settings


def test_candidates_of_one_model() -> None:
    student = stages(changed("dadpo", chosen_from="student", **BEST))
    pairs = student["pairs"].settings
    assert pairs["chosen"] == pairs["rejected"] == str(student["sample-rejected"].folder)
    assert pairs["chosen_scores"] == str(student["judged"].folder)
    assert checks(student["dadpo"]) == {"chosen_from_teacher": False}
    teacher = stages(changed("dadpo", rejected_from="teacher", **BEST))
    pairs = teacher["pairs"].settings
    assert pairs["chosen"] == pairs["rejected"] == str(teacher["sample-teacher"].folder)
    assert not {"sample-rejected", "judged"} & set(teacher)
    watched = [found["dadpo"].settings["trainer"]["callbacks+"][1]["init_args"] for found in (student, teacher)]
    assert [one["reference_responses"] for one in watched] == [str(student["sample-rejected"].folder), None]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rounds": 0}, "experiment.rounds 0: expected at least 1"),
        ({"responses_per_prompt": 4}, "responses_per_prompt 4 and pairing first_of_each: expected"),
        ({"pairing": "best_and_worst"}, "responses_per_prompt 1 and pairing best_and_worst: expected"),
        ({"chosen_from": "student"}, "both are one model's, which wants pairing: best_and_worst"),
        ({"rejected_from": "teacher", "rounds": 2, **BEST}, "rounds 2: the teacher is not drawn from again"),
        ({"rejected_from": "teacher", "chosen_from": "student", **BEST}, "the teacher's responses would lose"),
        ({"anchors": {"teacher": ModelSpec("x")}}, "experiment.anchors: 'teacher' is there without being named"),
        ({"objectives": {"a-round2": recipe("dpo")}}, "'a-round2' is a name of the pipeline's own"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        changed(**changes)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"experiment.mix.earlier 1\.5: expected a share from 0 to 1"):
        Mix(1.5)


def test_the_rounds_say_who_drew_who_is_the_reference_and_what_was_trained_on() -> None:
    experiment = changed("dadpo", rounds=3, reference="moved", mix=Mix(0.5))
    found, rounds = stages(experiment), plan_rounds(experiment)
    said = [(one.round, one.rejected_from, one.chosen_from, one.reference, one.start, one.seed) for one in rounds]
    assert said == [
        (1, "dsft", "teacher", "dsft", "dsft", 2),
        (2, "dadpo", "teacher", "dadpo", "dadpo", 3),
        (3, "dadpo-round2", "teacher", "dadpo-round2", "dadpo-round2", 4),
    ]
    assert [one.trained_on for one in rounds] == [
        str(found[name].folder) for name in ("pairs", "mix-dadpo-round2", "mix-dadpo-round3")
    ]
    assert rounds[1].scores == {
        anchor: str(found[f"{anchor}-scores-dadpo-round2"].folder) for anchor in ("teacher", "reference")
    }


def test_choosing_settings_on_validation_prompts_trains_the_same_students_and_reads_no_held_out_answer() -> None:
    final, tuning = stages(DEMO), stages(changed(evaluate_on="validation"))
    drawn = [name for name in tuning if name.startswith("sample-validation-")]
    assert drawn == [f"sample-validation-{name}" for name in ("pruned", "dsft", "ddpo", "dadpo")]
    assert {name for name in final.keys() ^ tuning.keys() if not name.startswith("sample-")} == set()
    shared = {name for name in final.keys() & tuning.keys() if final[name].folder == tuning[name].folder}
    assert shared == set(final) - {name for name in final if "heldout" in name} - {"evaluation"}
    assert all(list(tuning[name].settings["prompts"]) == ["validation"] for name in drawn)
    assert (final["evaluation"].settings.get("split"), tuning["evaluation"].settings["split"]) == (None, "validation")
