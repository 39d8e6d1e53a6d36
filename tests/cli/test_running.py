"""What a person's mistakes get: one line that names the place, status 2, and nothing half-written."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_dadpo.cli.experiment import read_experiment
from lightning_dadpo.cli.main import main
from lightning_dadpo.cli.stages import plan_stages
from tests.commands import dadpo
from tests.integration.experiment import write_experiment
from tests.tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]
SHARED = ["trainer/default.yaml", "loss/dadpo.yaml", "recipes/preference.yaml"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()  # what was said while the test was set up
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    return error[0]


def training(command: str, folder: Path, settings: dict[str, Any], *options: str) -> subprocess.CompletedProcess[str]:
    own = folder / "own.yaml"
    own.write_text(yaml.safe_dump(settings))
    files = [*(str(ROOT / "configs" / name) for name in SHARED), str(own)]
    arguments = [part for file in files for part in ("-c", file)]
    return dadpo(command, *arguments, *options, cwd=folder)


def preferences(folder: Path, rows: list[dict[str, str]]) -> str:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"anchor: teacher\npairs: [open\n", ":3: not YAML (expected ',' or ']'"),
        (b"- a list\n", ": expected keys with values, found list"),
        (b"anchor: \xff\n", ": not UTF-8 text"),
    ],
)
@pytest.mark.parametrize("command", ["score -c", "run"])
def test_a_yaml_that_cannot_be_read_is_named_with_its_line(
    command: str, text: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(text)
    assert refused(capsys, *command.split(), str(path)).startswith(f"error: {path}{said}")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_tokenizer(tmp_path)
    source = preferences(tmp_path, [{"prompt": "Why?", "chosen": "So.", "rejected": "No."}])
    given = ["--source.path", source, "--tokenizer.path", str(tmp_path)]
    assert refused(capsys, "import", *given, "--out", f"{source}/pairs").endswith("Not a directory")


def test_import_says_what_it_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_tokenizer(tmp_path)
    good = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}
    source = preferences(tmp_path, [good, good | {"chosen": ""}, good | {"chosen": "No."}, good | {"rejected": ""}])
    out = str(tmp_path / "pairs")
    assert main(["import", "--source.path", source, "--tokenizer.path", str(tmp_path), "--out", out]) == 0
    assert capsys.readouterr().out == f"{source}: 1 pairs; dropped: empty 2, identical 1\n{out}\n"


@pytest.mark.parametrize("fault", ["no prompts", "no prompt file", "no teacher", "share"])
def test_an_experiment_with_faulty_inputs_writes_nothing(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = write_experiment(tmp_path, prune={"share": 1.5 if fault == "share" else 0.2, "rows": 4})
    prompts = tmp_path / "heldout.jsonl"
    if fault == "no prompts":
        prompts.write_text("")
    elif fault == "no prompt file":
        prompts.unlink()
    elif fault == "no teacher":
        (tmp_path / "teacher").rename(tmp_path / "elsewhere")
    place = {"no teacher": tmp_path / "teacher", "share": "prune.share 1.5"}.get(fault, prompts)
    assert str(place) in refused(capsys, "run", str(experiment))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("watching", [False, True])
def test_a_judges_key_that_is_not_set_is_missed_before_anything_is_written(
    watching: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: with the evaluation's judge alone looked at, the other one's key is missed after half a training."""
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    server = {"url": "http://127.0.0.1:9/v1", "model": "m", "api_key_variable": "NO_SUCH_KEY"}
    judge = {"class_path": "ChatJudge", "init_args": {"server": server, "cache": str(tmp_path / "cache")}}
    path = write_experiment(tmp_path, **({} if watching else {"judge": judge}))
    if watching:
        said = yaml.safe_load(path.read_text("utf-8"))
        said["objectives"]["dadpo"]["watch"] = {"judge": judge}
        path.write_text(yaml.safe_dump(said), "utf-8")
    place = "experiment.objectives.dadpo.watch.judge" if watching else "experiment.judge"
    said_once = refused(capsys, "run", str(path))
    assert said_once == f"error: {place}: NO_SUCH_KEY is not set; expected the key of its server"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("command", "split"), [("predict", "test")])
def test_nothing_to_measure_is_a_mistake_and_not_a_success(command: str, split: str, tmp_path: Path) -> None:
    anchors = {"reference": {"scores": "a"}, "teacher": {"scores": "b"}}
    settings = {
        "model": {"init_args": {"student": {"path": "x"}, "anchors": anchors}},
        "data": {"init_args": {"train": {"folder": "z"}}},
    }
    done = training(command, tmp_path, settings)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: data.{split}: nothing to {command} on; give it a folder (--data.init_args.{split}.folder FOLDER)"
    ]


def test_C6_a_training_of_ones_own_is_held_to_the_step_zero_oracle(tmp_path: Path) -> None:
    """Trap C6, planted: the reference's scores are the teacher's. No YAML names CheckScores."""
    student, teacher = (tiny_model(tmp_path / name, layers=2, seed=seed) for name, seed in (("s", 1), ("t", 2)))
    rows = [{"prompt": f"Why {i}?", "chosen": f"So {i}.", "rejected": f"No {2 * i}."} for i in range(4)]
    pairs, scores = str(tmp_path / "pairs"), str(tmp_path / "scores")
    source = preferences(tmp_path, rows)
    assert main(["import", "--source.path", source, "--tokenizer.path", str(student), "--out", pairs]) == 0
    asked = ["--anchor", "reference", "--pairs", pairs, "--out", scores]
    assert main(["score", "--model.path", str(teacher), *asked]) == 0
    anchors = {"reference": {"scores": scores}, "teacher": {"model": {"path": str(teacher)}}}
    settings = {
        "model": {"init_args": {"student": {"path": str(student)}, "anchors": anchors}},
        "data": {"init_args": {"train": {"folder": pairs}}},
        "trainer": {"default_root_dir": str(tmp_path / "fit")},
    }
    done = training("fit", tmp_path, settings)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1
    assert "step-0 oracle: pair" in done.stderr
    assert not (tmp_path / "fit" / "checkpoints").exists()


def test_a_run_stops_before_the_stage_that_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_experiment(tmp_path)
    error = refused(capsys, "run", str(path), "--until", "evaluate")
    assert error.startswith("error: --until evaluate: no stage is called so; expected one of ")
    assert error.endswith(", evaluation")
    assert main(["run", str(path), "--until", plan_stages(read_experiment(str(path)))[0].name]) == 0
    assert not Path(read_experiment(str(path)).folder).exists()
