"""restore_pruned and what builds on it: which walks they take, and how their numbers come about."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import rankdata

from experiments import estimates, walking
from experiments.beta_plane import run as beta_plane
from experiments.more_data import run as more_data
from experiments.restore_pruned import run as restore_pruned
from experiments.teacher_confidence import collect as confidence
from lightning_dadpo.cli.experiment import read_experiment
from lightning_dadpo.cli.stages import plan_stages

RATES = {"dadpo": 2e-5, "ddpo": 5e-6, "teacher_only": 5e-6, "dadpo_sft": 2e-5, "forward_kl": 8e-5, "reverse_kl": 8e-5}


@pytest.fixture
def walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Commands that would have been run; files go to a folder of their own."""
    said: list[tuple[str, ...]] = []
    monkeypatch.setattr(walking, "ROOT", tmp_path)
    monkeypatch.setattr(walking, "dadpo", lambda *arguments: said.append(arguments))
    (tmp_path / "chosen.json").write_text(json.dumps({"rates": RATES}))
    return said


def planned(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
    return {stage.name: stage for stage in plan_stages(read_experiment(str(file)))}


def test_the_shipped_yaml_is_a_whole_experiment_of_the_size_that_the_readme_says() -> None:
    file = "experiments/restore_pruned/seed.yaml"
    experiment = read_experiment(file)
    assert list(experiment.objectives) == list(RATES)
    counts = {split: len(Path(one.path).read_text("utf-8").splitlines()) for split, one in experiment.prompts.items()}
    assert counts == {"train": 264, "validation": 32, "heldout": 64}
    assert all(one.limit is None for one in experiment.prompts.values())
    assert experiment.sampling.max_new_tokens == 128
    assert sum(stage.command == "fit" for stage in plan_stages(experiment)) == 7


def test_every_method_is_tuned_over_the_same_rates_and_only_the_rate_differs(walked: Any, tmp_path: Path) -> None:
    settings = walking.for_seed(10)
    recipe = settings["objectives"]["dadpo"]
    fits = [
        planned(settings | {"objectives": {"one": walking.at(recipe, rate)}}, tmp_path)["one"].settings
        for rate in restore_pruned.RATES
    ]
    rates = [fit["model"]["init_args"].pop("optimizer")["init_args"].pop("lr") for fit in fits]
    assert rates == [5e-6, 2e-5, 8e-5]
    assert fits[0] == fits[1] == fits[2]


def test_a_seed_decides_the_sampling_and_every_order_of_training(walked: Any, tmp_path: Path) -> None:
    found = planned(walking.for_seed(20), tmp_path)
    assert [found[name].settings["settings"]["seed"] for name in ("sample-teacher", "sample-rejected")] == [20, 21]
    seeds = {stage.settings["data"]["init_args"]["seed"] for stage in found.values() if stage.command == "fit"}
    assert seeds == {20}
    assert found["reverse_kl"].settings["model"]["init_args"]["on_policy"]["sampler"]["seed"] == 20


def test_every_part_of_a_walk_trains_under_the_folders_of_the_whole(walked: Any, tmp_path: Path) -> None:
    settings = walking.for_seed(10)
    whole = {name: stage.folder for name, stage in planned(settings, tmp_path).items()}
    for method in RATES:  # as many lanes as methods; planted: without the first method the distillations move
        shared = {"dadpo": settings["objectives"]["dadpo"], method: settings["objectives"][method]}
        part = planned(settings | {"objectives": shared}, tmp_path)
        assert part[method].folder == whole[method]


def test_seeds_walk_side_by_side_each_as_a_whole(walked: list[tuple[str, ...]], tmp_path: Path) -> None:
    walks = {f"seed{seed}": walking.for_seed(seed) for seed in (20, 30)}
    for name in walks:
        (tmp_path / name).mkdir()
        command = f"dadpo run {tmp_path / 'settings' / f'{name}.yaml'}"
        (tmp_path / name / "experiment.json").write_text(json.dumps({"command": command, "stages": []}))
        (tmp_path / name / "summary.json").write_text(json.dumps([{"model": name}]))
    walking.walk_side_by_side(walks)
    files = [str(tmp_path / "settings" / f"{name}.yaml") for name in walks]
    assert sorted(walked) == [("run", file) for file in files]
    for file, (name, settings) in zip(files, walks.items(), strict=True):
        said = yaml.safe_load(Path(file).read_text("utf-8"))
        assert list(said["objectives"]) == list(settings["objectives"])
        assert said["folder"] == str(tmp_path / name)
        kept = json.loads((tmp_path / "summaries" / f"{name}.json").read_text("utf-8"))
        assert kept["rows"] == [{"model": name}]
    other = json.dumps({"command": "dadpo run settings/beta_plane.yaml", "stages": []})
    (tmp_path / "seed20" / "experiment.json").write_text(other)
    with pytest.raises(SystemExit, match=r"dadpo run settings/beta_plane\.yaml wrote there meanwhile"):
        walking.walk_side_by_side({"seed20": walks["seed20"]})
    assert not (tmp_path / "summaries" / "seed20.json").exists()  # nobody takes an old one for it


def test_who_stops_a_walk_stops_its_trainings_and_nothing_begins_after_that(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked, ready, real = tmp_path / "asked", tmp_path / "ready", subprocess.Popen
    training = f"""if True:
        import pathlib, signal, sys, time
        def stop(number, frame):
            pathlib.Path({str(asked)!r}).touch()
            sys.exit(128 + number)
        signal.signal(signal.SIGTERM, stop)
        pathlib.Path({str(ready)!r}).touch()
        time.sleep(60)
    """
    monkeypatch.setattr(walking.subprocess, "Popen", lambda command, env: real([sys.executable, "-c", training]))
    monkeypatch.setattr(walking, "ASKED_TO_STOP", [])
    before = signal.getsignal(signal.SIGTERM)
    try:
        walking.pass_on_requests_to_stop()
        with ThreadPoolExecutor(1) as pool:
            lane = pool.submit(walking.dadpo, "run")
            while not ready.exists():
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGTERM)
            assert isinstance(lane.exception(timeout=30), SystemExit)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert asked.exists()
    asked.unlink()
    with pytest.raises(SystemExit, match="143"):
        walking.dadpo("run")
    assert not asked.exists()


def test_finished_trainings_keep_no_checkpoint_and_unfinished_ones_do(tmp_path: Path) -> None:
    for name, files in {"done": ["manifest.json"], "other.partial": []}.items():
        for file in [*files, "checkpoints/last.ckpt", "curves.csv"]:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).touch()
    walking._forget_checkpoints(tmp_path)
    left = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file())
    assert left == [
        "done/curves.csv",
        "done/manifest.json",
        "other.partial/checkpoints/last.ckpt",
        "other.partial/curves.csv",
    ]


def test_a_judge_is_laid_over_every_seed_and_asked_once_when_all_have_trained(
    walked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "judge.yaml"
    judge = {"class_path": "LikelihoodJudge", "init_args": {"model": {"path": "other"}}}
    file.write_text(yaml.safe_dump({"judge": judge, "people": {"pandalm": "p.json"}}))
    monkeypatch.setenv("JUDGE", str(file))
    found = planned(walking.for_seed(10), tmp_path)
    assert list(found)[-3:] == ["judge-validation", "verdicts", "evaluation"]
    assert walking._comparing(walking.for_seed(10)) == "judge-validation"
    file.write_text("judge: {}")
    with pytest.raises(SystemExit, match="expected a YAML file with `judge` and `people`"):
        walking.for_seed(10)


@pytest.mark.parametrize(("passes", "chosen"), [(True, 5e-6), (False, 8e-5), (None, 8e-5)])
def test_rates_are_chosen_by_a_judge_that_passes_and_by_the_distance_otherwise(
    walked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: bool | None, chosen: float
) -> None:
    rows, verdicts = [], []
    for method in RATES:
        for number, rate in enumerate(
            restore_pruned.RATES
        ):  # the judge likes the lowest rate, the distance the highest
            rows.append({"model": walking.named(method, rate), "reverse_kl": 1.0 - number / 10})
            verdicts.append({"model": walking.named(method, rate), "preference_rate": -number / 10})
    found: dict[str, Any] = {"rows": rows}
    if passes is not None:
        found["preference"] = {"judge": {"validations": [{"passes": passes}]}, "rows": verdicts}
    kept = tmp_path / "tuning.json"
    kept.write_text(json.dumps(found))
    monkeypatch.setattr(restore_pruned, "walk", lambda settings, name: kept)
    monkeypatch.setattr(restore_pruned, "ROOT", tmp_path)
    restore_pruned.tune()
    said = json.loads((tmp_path / "chosen.json").read_text())
    assert set(said["rates"].values()) == {chosen}
    assert said["by"] == ("preference_rate" if passes else "reverse_kl")
    assert restore_pruned.tuned()
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump({"judge": {"class_path": "X"}, "people": {}}))
    monkeypatch.setenv("JUDGE", str(tmp_path / "judge.yaml"))
    assert not restore_pruned.tuned()  # another judge may choose other rates


def test_the_plane_of_betas_is_scored_once_by_what_restore_pruned_has_scored(walked: Any, tmp_path: Path) -> None:
    plain, plane = planned(walking.for_seed(10), tmp_path), planned(beta_plane.plane(), tmp_path)
    scored = [name for name, stage in plane.items() if stage.command == "score"]
    assert scored == ["score-teacher", "score-reference"]
    assert all(plane[name].folder == plain[name].folder for name in [*scored, "pairs", "dsft", "sample-teacher"])
    fits = {name: stage.settings["model"]["init_args"]["loss"]["init_args"] for name, stage in plane.items()
            if stage.command == "fit" and name != "dsft"}  # fmt: skip
    assert len(fits) == 11
    assert {tuple(one.values()) for one in fits.values()} == {
        (reference, teacher) for reference in (0.0, 0.03, 0.1) for teacher in (0.0, 0.01, 0.03, 0.1)
    } - {(0.0, 0.0)}
    assert fits["reference0.1-teacher0.03"] == {"beta_reference": 0.1, "beta_teacher": 0.03}


def test_the_shipped_yaml_files_are_what_the_scripts_walk(walked: Any, tmp_path: Path) -> None:
    plane, data = (Path(module.__file__).with_name("results.json") for module in (beta_plane, more_data))
    rates = json.loads(data.read_text("utf-8"))["rates"] | {"dadpo": json.loads(plane.read_text("utf-8"))["rate"]}
    (tmp_path / "chosen.json").write_text(json.dumps({"rates": RATES | rates}))
    shipped = {
        plane.with_name("plane.yaml"): beta_plane.plane(),
        data.with_name("rounds2.yaml"): more_data.sized(264, 2),
    }
    shipped |= {data.with_name(f"prompts{prompts}.yaml"): more_data.sized(prompts) for prompts in more_data.PROMPTS}
    for file, settings in shipped.items():
        command, _, text = file.read_text("utf-8").partition("\n")
        assert command == f"# dadpo run experiments/{file.parent.name}/{file.name}"
        assert yaml.safe_load(text) == settings | {"folder": "runs/restore_pruned/seed10"}
        assert plan_stages(read_experiment(str(file)))


def test_more_data_goes_on_from_the_first_seed(walked: Any, tmp_path: Path) -> None:
    whole, rounds = (planned(more_data.sized(264, number), tmp_path) for number in (1, 2))
    plain = planned(walking.for_seed(10), tmp_path)
    shared = ["sample-teacher", "dsft", "pairs", "score-teacher", "score-reference"]
    assert all(whole[name].folder == plain[name].folder for name in shared)
    assert whole["ddpo"].folder == rounds["ddpo"].folder
    assert {"ddpo-round2", "dadpo-round2"} < set(rounds)
    few = planned(more_data.sized(64), tmp_path)
    assert few["sample-teacher"].settings["prompts"]["train"]["limit"] == 64


def test_a_walk_shares_first_then_trains_side_by_side_then_evaluates(
    walked: list[tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walking, "_cores", lambda: 2)
    settings = walking.for_seed(10) | {"folder": str(tmp_path / "seed")}
    (tmp_path / "seed").mkdir()
    stages = [{"name": "evaluation", "command": "evaluate", "folder": "there"}]
    command = f"dadpo run {tmp_path / 'settings' / 'seed10.yaml'}"
    (tmp_path / "seed" / "experiment.json").write_text(json.dumps({"command": command, "stages": stages}))
    (tmp_path / "seed" / "summary.json").write_text(json.dumps([{"model": "dadpo"}]))
    kept = walking.walk(settings, "seed10")
    files = [tmp_path / "settings" / f"seed10{part}.yaml" for part in ("-part0", "-part1", "-part2", "")]
    trained = [list(yaml.safe_load(file.read_text("utf-8"))["objectives"]) for file in files]
    assert trained == [
        ["dadpo"], ["dadpo", "teacher_only", "forward_kl"], ["dadpo", "ddpo", "dadpo_sft", "reverse_kl"], list(RATES),
    ]  # fmt: skip
    assert sorted(walked[:3]) == [("run", str(file), "--until", "evaluation") for file in files[:3]]
    assert walked[0][1] == str(files[0])
    assert walked[3:] == [("run", str(files[3]))]
    found = json.loads(kept.read_text())
    assert (found["stages"], found["rows"]) == ({"evaluation": "there"}, [{"model": "dadpo"}])
    assert found["hardware"].endswith("cores")


def row(model: str, prompt: str, **changes: Any) -> dict[str, Any]:
    whole = {
        "model": model, "prompt_id": prompt, "finished": True, "tokens": 4, "repeated": 1, "ngrams": 2,
        "teacher_log_prob": -8.0, "reverse_kl": 2.0, "forward_kl": 3.0, "teacher_tokens": 6,
    }  # fmt: skip
    return whole | changes


def test_seeds_are_pooled_as_ratios_of_sums() -> None:
    seeds = [
        [row("a-1", "p", reverse_kl=2.0), row("a-1", "q", reverse_kl=6.0, tokens=12, finished=False)],
        [row("a-1", "p", reverse_kl=4.0), row("a-1", "q", reverse_kl=1.0, tokens=20)],
    ]
    sums = estimates.rows_by_method(seeds, {"a-1": "a"})
    found = estimates.pooled(sums["a"])
    assert found["reverse_kl"] == pytest.approx((2 + 6 + 4 + 1) / (4 + 12 + 4 + 20))
    assert (found["finished"], found["mean_tokens"], found["repetition"]) == (0.75, 10.0, 0.5)
    assert found["teacher_nll"] == pytest.approx(32 / 40)
    # two prompts: each draw is p twice, q twice, or both
    assert (found["reverse_kl_low"], found["reverse_kl_high"]) == pytest.approx((7 / 32, 6 / 8))
    assert found["cut_tokens"] == pytest.approx(12 / 40)
    assert found["reverse_kl_each"] == pytest.approx((2 / 4 + 6 / 12 + 4 / 4 + 1 / 20) / 4)
    assert estimates.single_seeds(seeds, "a-1", "reverse_kl") == pytest.approx([8 / 16, 5 / 24])
    assert estimates.single_seeds(seeds, "a-1", "finished") == [0.5, 1.0]


def test_a_method_that_lacks_an_answer_in_a_seed_is_not_compared() -> None:
    with pytest.raises(ValueError, match="finish every walk first"):
        estimates.rows_by_method([[row("a", "p"), row("b", "p")], [row("a", "p")]], {"a": "a", "b": "b"})
    with pytest.raises(ValueError, match="b was not evaluated"):
        estimates.rows_by_method([[row("a", "p")]], {"a": "a", "b": "b"})


def test_methods_are_compared_on_the_same_prompts() -> None:
    seeds = [
        [row("a", "p", reverse_kl=1.0), row("a", "q", reverse_kl=9.0), row("b", "p"), row("b", "q", reverse_kl=10.0)]
    ]
    sums = estimates.rows_by_method(seeds, {"a": "a", "b": "b"})
    found = estimates.compared(sums["a"], sums["b"])
    assert [found[f"reverse_kl{end}"] for end in ("", "_low", "_high")] == pytest.approx([-0.25] * 3)


def test_gains_are_parted_by_the_teachers_margin() -> None:
    rows = [
        {
            "seed": 1,
            "prompt_id": f"p{n}",
            "whole": float(n),
            "forward_kl_gain": n / 10,
            "reverse_kl_gain": -n / 10,
            "teacher_tokens": n % 7,
        }
        for n in reversed(range(40))
    ]
    parts = confidence.parted(rows, "whole")
    assert [part["answers"] for part in parts] == [4] * 10
    assert (parts[0]["margin"], parts[-1]["margin"]) == (1.5, 37.5)
    assert parts[-1]["forward_kl"] == pytest.approx(3.75)
    assert -3.9 <= parts[-1]["reverse_kl_low"] < parts[-1]["reverse_kl"] == pytest.approx(-3.75)
    assert confidence.correlation(rows, "whole", "forward_kl")["value"] == pytest.approx(1.0)
    assert confidence.correlation(rows, "whole", "reverse_kl")["high"] == pytest.approx(-1.0)


def test_what_length_alone_explains_is_no_partial_correlation() -> None:
    """Margin and gain both follow the length, with noise of their own; plain, they go together."""
    draw = np.random.default_rng(0)
    length = draw.integers(5, 60, 200)
    margin, gain = length + draw.normal(0, 4, 200), length + draw.normal(0, 4, 200)
    rows = [
        {"seed": 1, "prompt_id": f"p{n:03}", "whole": one, "forward_kl_gain": other, "teacher_tokens": int(tokens)}
        for n, (one, other, tokens) in enumerate(zip(margin, gain, length, strict=True))
    ]
    found = confidence.correlation(rows, "whole", "forward_kl")
    assert found["low"] > 0.8
    assert abs(found["partial"]) < 0.2
    assert found["partial_low"] < found["partial"] < found["partial_high"]
    residuals = [np.array(rankdata(one)) for one in (margin, gain, length)]
    on_length = [np.polyval(np.polyfit(residuals[2], one, 1), residuals[2]) for one in residuals[:2]]
    expected = np.corrcoef(residuals[0] - on_length[0], residuals[1] - on_length[1])[0, 1]
    assert found["partial"] == pytest.approx(expected)
