"""`dadpo plan`: the paper's sizes, counted from configs alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_dadpo.cli.experiment import read_experiment
from lightning_dadpo.cli.main import main
from lightning_dadpo.cli.plan_modes import Workload, plan_modes, recommended
from lightning_dadpo.cli.recipe import shards_the_student, strategy_of
from lightning_dadpo.cli.stages import plan_stages
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models.footprint import Footprint
from lightning_dadpo.training.memory import Layout

RECIPES = Path(__file__).parents[2] / "configs" / "recipes"
EIGHT_H100 = ["--device", "cuda", "--device_memory_gib", "80", "--teraflops", "400"]
GIGABYTE = 10**9


def planned(tmp_path: Path, recipe: str, *options: str) -> dict[str, Any]:
    out = tmp_path / "plan.json"
    assert main(["plan", str(RECIPES / f"{recipe}.yaml"), *EIGHT_H100, "--out", str(out), *options]) == 0
    found: dict[str, Any] = json.loads(out.read_text("utf-8"))
    return found


def test_the_pruned_vicuna_is_planned_from_its_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(tmp_path, "vicuna", "--pairs", "50000")
    assert found["anchors"]["teacher"]["parameters"] == 6_738_415_616
    removed = found["anchors"]["teacher"]["parameters"] - found["student"]["parameters"]
    assert removed == 7 * found["anchors"]["teacher"]["layer"]  # six of 32 layers would be 18 %
    assert found["layout"]["strategy"] == "fsdp2"
    cached = found["modes"]["cached"]
    assert cached["parts"]["optimizer"] == 8 * found["student"]["parameters"] / 8
    assert cached["fits"]
    assert found["take"] == "cached"
    assert found["modes"]["live"]["parts"]["frozen"] > cached["parts"]["frozen"] == 0
    shown = capsys.readouterr().out
    assert "take cached" in shown
    assert "50000 pairs" in shown


def test_two_qwens_are_planned_though_the_width_of_their_logits_differs(tmp_path: Path) -> None:
    found = planned(tmp_path, "qwen", "--pairs", "1000", "--prompt_tokens", "150", "--response_tokens", "300")
    assert found["anchors"]["teacher"]["parameters"] == 7_615_616_512
    assert found["student"]["parameters"] == 1_543_714_304
    # one epoch from scores, a pair: the student on prompt and both responses, the head made three times
    student, teacher = found["student"], found["anchors"]["teacher"]
    pair = 6 * student["matrices"] * 748 + 8 * student["head"] * 600
    scored = sum(2 * (model["matrices"] * 748 + model["head"] * 600) for model in (student, teacher))
    assert found["modes"]["cached"]["flop"] == pytest.approx(1000 * (pair + scored))
    assert pair == pytest.approx(6_835 * GIGABYTE, rel=0.05)  # the floor, counted elsewhere


def test_an_unknown_objective_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(RECIPES / "qwen.yaml"), *EIGHT_H100, "--objective", "ipo"]) == 2
    assert "--objective ipo" in capsys.readouterr().err


def with_adapter(tmp_path: Path, *recipes: str, **trainer: Any) -> str:
    """The Qwen recipe with further files, in a file of its own; the path without its ending."""
    said = yaml.safe_load((RECIPES / "qwen.yaml").read_text("utf-8"))
    first = next(iter(said["objectives"].values()))
    first["configs"] += [f"configs/recipes/{name}.yaml" for name in recipes]
    first.setdefault("settings", {}).setdefault("trainer", {}).update(trainer)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(said), "utf-8")
    return str(tmp_path / "mine")


def test_an_adapter_is_all_that_has_gradients_and_moments_in_a_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By hand, for a decoder layer of 1536 (key and value 256, MLP 8960), 28 of them."""
    sizes = ((1536, 1536), (1536, 256), (1536, 256), (1536, 1536), (1536, 8960), (1536, 8960), (8960, 1536))
    one = {"devices": 1, "strategy": "auto"}
    lora = planned(tmp_path, with_adapter(tmp_path, "lora", **one), "--pairs", "100")
    adapter = 28 * 16 * sum(wide + narrow for wide, narrow in sizes)
    assert lora["student"]["adapter"] == adapter == 18_464_768
    parts = lora["modes"]["cached"]["parts"]
    assert parts["optimizer"] == 8 * adapter
    assert parts["weights"] == 4 * (lora["student"]["parameters"] + adapter)
    teacher = 4 * lora["anchors"]["teacher"]["parameters"]  # the reference is the student, its adapter off
    assert lora["modes"]["live"]["parts"]["frozen"] == teacher
    assert "(an adapter of 18.5M is all that trains)" in capsys.readouterr().out

    qlora = planned(tmp_path, with_adapter(tmp_path, "lora", "qlora", **one), "--pairs", "100")
    matrices = 28 * sum(wide * narrow for wide, narrow in sizes)
    assert qlora["student"]["rounded"] == matrices
    saved = parts["weights"] - qlora["modes"]["cached"]["parts"]["weights"]
    assert saved == pytest.approx(matrices * (4 - 0.515869) - 4 * 1536 * 8960, rel=1e-5)
    path = f"{with_adapter(tmp_path, 'lora', 'qlora', devices=8, strategy='deepspeed_stage_3')}.yaml"
    assert main(["plan", path, *EIGHT_H100]) == 2
    assert "deepspeed_zero3: would spread rounded weights over ranks; expected ddp" in capsys.readouterr().err


def with_loss(tmp_path: Path, loss: str) -> str:
    """The Qwen recipe with another loss."""
    said = yaml.safe_load((RECIPES / "qwen.yaml").read_text("utf-8"))
    first = next(iter(said["objectives"].values()))
    first["configs"] = [file.replace("loss/dadpo.", f"loss/{loss}.") for file in first["configs"]]
    if loss == "forward_kl":
        first["configs"] = [file.replace("preference", "distillation") for file in first["configs"]]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(said), "utf-8")
    return str(tmp_path / "mine")


def test_a_loss_that_asks_for_logits_is_planned_with_a_live_teacher_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = planned(tmp_path, with_loss(tmp_path, "dadpo_reverse_kl"), "--pairs", "100")
    assert list(found["modes"]) == ["live"]
    assert main(["plan", f"{with_loss(tmp_path, 'forward_kl')}.yaml", *EIGHT_H100]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said == "error: --objective dadpo: trains on responses; only trainings on pairs can be planned"


def test_a_plan_refuses_an_anchor_that_a_run_would_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"{with_loss(tmp_path, 'several_teachers')}.yaml"
    assert main(["plan", path, *EIGHT_H100, "--pairs", "100"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: experiment.objectives.dadpo: its loss needs anchor 'teacher_a', and there are ")
    with pytest.raises(ConfigError) as refused:
        plan_stages(read_experiment(path))
    assert said == f"error: {refused.value}"


SMALL = Footprint(1000, 2, 300, 500, 400, 10_000, 100)
LARGE = replace(SMALL, parameters=100_000, layers=20, layer=4_900, matrices=98_000)
WORK = Workload(100, 10, 20, 1, 16, 512)


@pytest.mark.parametrize(
    ("strategy", "memory", "taken"),
    [("one", 10**9, "cached"), ("fsdp2", 200_000, "live"), ("one", 200_000, "remote"), ("one", 1000, None)],
)
def test_what_is_recommended_follows_from_what_fits(strategy: Any, memory: float, taken: str | None) -> None:
    layout = Layout(strategy, 8 if strategy != "one" else 1)
    found = recommended(plan_modes(SMALL, {"teacher": LARGE}, True, WORK, layout, memory, 1e12))
    assert (found.name if found else None) == taken


def test_each_objective_has_the_numbers_of_the_models_that_it_asks() -> None:
    """By hand: 100 pairs of 10 + 2 * 20 - 2 = 48 tokens and 40 predictions, one device, float32.

    Planted: where every objective is counted with a reference and one teacher, all five are the same.
    """
    forward = {"small": 2 * 100 * (500 * 48 + 400 * 40), "large": 2 * 100 * (98_000 * 48 + 400 * 40)}
    training = 100 * (6 * 500 * 48 + 8 * 400 * 40)
    asked = {
        "dadpo": ({"teacher": LARGE}, True), "dpo": ({}, True), "simpo": ({}, False),
        "teacher_only": ({"teacher": LARGE}, False), "several_teachers": ({"a": LARGE, "b": LARGE}, True),
    }  # fmt: skip
    for others, reference in asked.values():
        modes = {mode.name: mode for mode in plan_modes(SMALL, others, reference, WORK, Layout(), 10**9, 1e12)}
        scored = len(others) + reference
        assert list(modes) == (["live", "cached", "remote"] if others else ["live", "cached"] if scored else ["alone"])
        every = training + reference * forward["small"] + len(others) * forward["large"]
        disk = 12 * 1000 + 4 * 1000
        if not scored:
            alone = modes["alone"]
            assert (alone.flop, alone.parts.scores, alone.parts.frozen, alone.scoring_bytes) == (training, 0, 0, 0)
            assert alone.disk_bytes == disk
            continue
        live, cached = modes["live"], modes["cached"]
        assert (live.flop, live.parts.scores, live.disk_bytes, live.scoring_bytes) == (every, 0, disk, 0)
        assert live.parts.frozen == 4 * (1000 * reference + 100_000 * len(others))
        assert (cached.flop, cached.parts.frozen) == (every, 0)
        assert cached.parts.scores == 420 * 100 * scored
        assert cached.disk_bytes == disk + 190 * 100 * scored
        if others:
            remote = modes["remote"]
            assert remote.flop == training + reference * forward["small"]
            assert remote.server_tokens == len(others) * 2 * 100 * 30
            assert remote.parts.scores == cached.parts.scores
            assert (remote.scoring_bytes > 0) == reference


def test_a_plan_counts_what_the_recipes_loss_asks_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--pairs", "100"]
    simpo = planned(tmp_path, with_loss(tmp_path, "simpo"), *options)
    assert (list(simpo["modes"]), simpo["anchors"], simpo["take"]) == (["alone"], {}, "alone")
    assert "take alone: the loss asks no other model" in capsys.readouterr().out
    path = with_loss(tmp_path, "several_teachers")
    said = yaml.safe_load(Path(f"{path}.yaml").read_text("utf-8"))
    said["anchors"] = {"teacher_a": said["teacher"], "teacher_b": said["student"]}
    Path(f"{path}.yaml").write_text(yaml.safe_dump(said), "utf-8")
    several = planned(tmp_path, path, *options)
    assert {name: one["parameters"] for name, one in several["anchors"].items()} == {
        "teacher_a": 7_615_616_512, "teacher_b": 1_543_714_304,
    }  # fmt: skip


def test_several_epochs_make_live_anchors_dearer() -> None:
    once, thrice = (
        {
            mode.name: mode
            for mode in plan_modes(SMALL, {"teacher": LARGE}, True, replace(WORK, epochs=n), Layout(), 10**9, 1e12)
        }
        for n in (1, 3)
    )
    assert once["live"].flop == once["cached"].flop
    training = (thrice["cached"].flop - once["cached"].flop) / 2
    scoring = once["cached"].flop - training
    assert scoring > 0
    assert thrice["live"].flop - thrice["cached"].flop == pytest.approx(2 * scoring)


@pytest.mark.parametrize(
    ("trainer", "name", "devices"),
    [
        ({}, "one", 1),
        ({"devices": 4}, "ddp", 4),
        ({"devices": 2, "num_nodes": 3, "strategy": "ddp"}, "ddp", 6),
        ({"devices": 8, "strategy": {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}}, "fsdp2", 8),
        (
            {"devices": 2, "strategy": {"class_path": "x.DeepSpeedStrategy", "init_args": {"stage": 3}}},
            "deepspeed_zero3",
            2,
        ),
    ],
)
def test_the_strategy_is_read_from_the_recipe(trainer: dict[str, Any], name: str, devices: int) -> None:
    assert strategy_of({"trainer": trainer}) == (name, devices)
    assert shards_the_student({"trainer": trainer}) == (name in ("fsdp2", "deepspeed_zero3"))


@pytest.mark.parametrize(("trainer", "said"), [({"devices": "auto"}, "devices auto"), ({"strategy": "fsdp"}, "fsdp")])
def test_what_cannot_be_counted_is_refused(trainer: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        strategy_of({"trainer": trainer})
