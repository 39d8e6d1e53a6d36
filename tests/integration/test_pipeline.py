"""The whole pipeline through the real command line, on a model that the test saves itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_dadpo.cli.main import main
from tests.commands import dadpo
from tests.integration.experiment import write_experiment

ROOT = Path(__file__).parents[2]
MODELS = ["pruned", "dsft", "ddpo", "dadpo", "teacher"]
ESTIMATES = [
    "finished",
    "mean_tokens",
    "repetition",
    "distinct_1",
    "distinct_2",
    "teacher_nll",
    "forward_kl",
    "reverse_kl",
]


def environment() -> dict[str, str]:
    alone = {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **alone}


@dataclass
class Finished:
    """An experiment that was run to its end."""

    folder: Path
    experiment: Path
    said: str

    def stage(self, name: str) -> Path:
        index = json.loads((self.folder / "run" / "experiment.json").read_text())
        return Path(next(stage["folder"] for stage in index["stages"] if stage["name"] == name))

    @property
    def summary(self) -> list[dict[str, Any]]:
        return json.loads((self.folder / "run" / "summary.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("undisturbed")
    experiment = write_experiment(folder)
    command = [sys.executable, "-m", "lightning_dadpo", "run", str(experiment)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Finished(folder, experiment, done.stdout)


def test_the_summary_has_a_row_a_model_with_every_estimate_and_its_interval(finished: Finished) -> None:
    assert [row["model"] for row in finished.summary] == MODELS
    keys = {"model", "parameters", "prompts"} | {f"{x}{end}" for x in ESTIMATES for end in ("", "_low", "_high")}
    for row in finished.summary:
        assert set(row) == keys
        assert row["prompts"] == 3
        for estimate in ESTIMATES:
            assert row[f"{estimate}_low"] <= row[estimate] <= row[f"{estimate}_high"]
    teacher = finished.summary[-1]
    assert teacher["forward_kl"] == teacher["reverse_kl"] == 0
    assert finished.summary[0]["parameters"] < teacher["parameters"]


def test_the_audits_and_the_oracle_ran_before_training(finished: Finished) -> None:
    assert "audit of teacher: 8 pairs scored again alone, 11 samples against their sampler: agree" in finished.said
    assert "audit of reference" in finished.said
    assert finished.said.count("step-0 oracle: student = reference on 8 pairs") == 2
    assert "D_teacher - D_reference: quartiles" in finished.said


def test_device_and_versions_are_said_once(finished: Finished) -> None:
    assert finished.said.count("device cpu") == 1


def test_ddpo_and_dadpo_trained_on_the_same_scores_and_differ(finished: Finished) -> None:
    first = [finished.stage(name) / "curves.csv" for name in ("ddpo", "dadpo")]
    losses = [path.read_text() for path in first]
    assert "train/loss" in losses[0]
    assert "val/teacher_agreement" in losses[1]
    assert losses[0] != losses[1]


def test_every_setting_of_a_stage_stands_in_a_file_that_repeats_it(finished: Finished) -> None:
    files = sorted((finished.folder / "run" / "settings").glob("*.yaml"))
    assert len(files) == 17
    for file in files:
        text = file.read_text()
        assert text.startswith("# dadpo ")
        assert isinstance(yaml.safe_load(text), dict)


@pytest.mark.parametrize("name", ["sample-teacher", "score-teacher"])
def test_a_stage_that_was_forked_made_what_it_makes_in_a_process_of_its_own(
    finished: Finished, tmp_path: Path, name: str
) -> None:
    made = finished.stage(name)
    settings = finished.folder / "run" / "settings" / f"{made.name}.yaml"
    assert main([name.split("-")[0], "-c", str(settings), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "rows.jsonl").read_bytes() == (made / "rows.jsonl").read_bytes()


def test_transformers_pipeline_loads_the_student(finished: Finished) -> None:
    code = (
        "from transformers import pipeline; "
        f"chat = pipeline('text-generation', {str(finished.stage('model-dadpo'))!r}); "
        "print(chat([{'role': 'user', 'content': 'Why?'}], max_new_tokens=4)[0]['generated_text'][-1]['role'])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.stdout.strip() == "assistant", done.stderr


def test_the_card_says_what_was_measured(finished: Finished) -> None:
    card = (finished.stage("model-dadpo") / "README.md").read_text()
    assert all(step in card for step in ("Pruning: ", "dSFT: weights of", "DaDPO: weights of"))
    assert f"{finished.summary[3]['forward_kl']:.2f}"[:4] in card


def test_the_report_is_one_file_that_refers_to_nothing_outside(finished: Finished) -> None:
    page = (finished.folder / "run" / "report.html").read_text("utf-8")
    assert "<script" not in page
    assert 'src="http' not in page
    assert "daDPO" in page


def test_the_report_says_where_teacher_and_student_differ(finished: Finished) -> None:
    page = (finished.folder / "run" / "report.html").read_text("utf-8")
    assert "The teacher too prefers the chosen response in" in page
    assert page.count('<article class="exchange" aria-label="Token maps of prompt') == 3 * 4  # prompts x students
    rows = (finished.stage("evaluation") / "token_maps.jsonl").read_text().splitlines()
    first = json.loads(rows[0])
    assert set(first["log_probs"]) == set(MODELS)
    assert first["reference"] == "dsft"
    assert list((finished.folder / "run" / "wandb").glob("offline-run-*-analysis-*"))


def test_a_checkpoint_holds_the_student_alone(finished: Finished) -> None:
    import torch

    checkpoint = torch.load(finished.stage("dadpo") / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(key.startswith("student.") for key in checkpoint["state_dict"])
    assert checkpoint["dadpo"]["objective"]["betas"] == {"reference": 0.09, "teacher": 0.01}


def test_a_second_run_finds_everything_done(finished: Finished) -> None:
    run = finished.folder / "run"
    # what wandb's own process still writes behind a run that has ended is its affair
    files = [path for path in run.rglob("*") if path.is_file() and "wandb" not in path.relative_to(run).parts]
    before = {path: path.stat().st_mtime_ns for path in files}
    done = dadpo("run", str(finished.experiment), cwd=finished.folder)
    assert done.returncode == 0
    assert "[1/" not in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_predict_writes_a_row_a_pair_and_test_gives_every_metric(finished: Finished, tmp_path: Path) -> None:
    overlay = next((finished.folder / "run" / "settings").glob("dadpo-*.yaml"))
    settings = yaml.safe_load(overlay.read_text())
    settings["trainer"] |= {"default_root_dir": str(tmp_path), "logger": False}
    settings["trainer"].pop("callbacks+")
    data = settings["data"]["init_args"]
    data["test"] = data["train"]
    run = tmp_path / "run.yaml"
    run.write_text(yaml.safe_dump(settings))
    configs = ROOT / "configs"
    files = [configs / "trainer/default.yaml", configs / "loss/dadpo.yaml", configs / "recipes/preference.yaml", run]
    common = [part for file in files for part in ("-c", str(file))]
    checkpoint = ["--ckpt_path", str(finished.stage("dadpo") / "checkpoints" / "last.ckpt")]

    done = dadpo("predict", *common, *checkpoint, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    margins = {
        0.09 * (gap(row, "policy") - gap(row, "reference")) + 0.01 * (gap(row, "policy") - gap(row, "teacher"))
        - row["margin"]
        for row in rows
    }  # fmt: skip
    assert max(map(abs, margins)) < 1e-4

    for command, prefix in (("validate", "val"), ("test", "test")):
        done = dadpo(command, *common, *checkpoint, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert all(f"{prefix}/{name}" in done.stdout for name in ("loss", "margin", "accuracy", "chosen_reward"))


def gap(row: dict[str, Any], model: str) -> float:
    return float(row[f"chosen_log_prob/{model}"] - row[f"rejected_log_prob/{model}"])
