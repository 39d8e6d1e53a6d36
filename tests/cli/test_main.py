"""The command as a person meets it: help, mistakes, and files that open with the command that runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_dadpo.cli.main import FUNCTIONS, LIGHTNING, main
from tests.commands import dadpo

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from lightning_dadpo.cli.main import main; status = main(['--help']); "
        "heavy = {'torch', 'transformers', 'lightning', 'wandb', 'jsonargparse', 'pydantic'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in (*LIGHTNING, *FUNCTIONS))


def test_an_unknown_command_is_one_line_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["smaple"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "did you mean sample?" in error


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_function_has_help_that_describes_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"dadpo {name}" in shown
    assert "-c" in shown


def test_a_misspelt_option_is_one_line_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["sample", "--settings.temperatur", "1"])
    assert ended.value.code == 2
    error, hint = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("error:")
    assert "temperatur" in error
    assert "--help" in hint


def test_a_missing_model_folder_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt_id": "a", "messages": [{"role": "user", "content": "Hello?"}]}\n')
    out = tmp_path / "answers"
    given = f"{{train: {{path: {prompts}}}}}"
    done = dadpo("sample", "--model.path", "./nowhere", "--prompts", given, "--out", str(out))
    assert done.returncode == 2
    assert done.stderr.strip() == "error: model path './nowhere': no such folder"
    assert not out.exists()
    assert not out.with_name("answers.partial").exists()


def test_a_broken_prompt_line_is_named_by_file_and_line(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt_id": "a", "messages": []}\n')
    given = f"{{train: {{path: {prompts}}}}}"
    done = dadpo("sample", "--model.path", str(tmp_path), "--prompts", given, "--out", str(tmp_path / "x"))
    assert done.returncode == 2
    assert f"{prompts}:1" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_wrong_training_config_is_one_line_and_a_hint(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("model: {class_path: PreferenceModule, init_args: {studnt: {path: x}}}\n")
    done = dadpo("fit", "-c", str(config))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith(("error:", "hint:"))]
    assert len(lines) == 2
    assert "studnt" in lines[0]


def test_an_objective_without_its_anchor_says_what_to_add(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        "model: {class_path: PreferenceModule, init_args: {student: {path: x}, anchors: {reference: {scores: y}}}}\n"
        "data: {class_path: PreferenceData, init_args: {train: {folder: z}}}\n"
    )
    done = dadpo("fit", "-c", "configs/trainer/default.yaml", "-c", "configs/loss/dadpo.yaml", "-c", str(config))
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: model.anchors: DaDPO needs 'teacher'")


def test_a_missing_checkpoint_is_refused_before_anything_loads(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        "model: {class_path: SupervisedModule, init_args: {student: {path: x}}}\n"
        "data: {class_path: SupervisedData, init_args: {train: {folder: z}}}\n"
    )
    done = dadpo("fit", "-c", str(config), "--ckpt_path", str(tmp_path / "none.ckpt"))
    assert done.returncode == 2
    assert "no such checkpoint" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_yaml_parses_and_opens_with_its_launch_command(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.startswith(("# dadpo ", "# wandb sweep "))  # what only its server can run
    assert isinstance(yaml.safe_load(text), dict)


@pytest.mark.parametrize("name", ["demo", "demo_full"])
def test_the_demo_recipes_plan_without_touching_a_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_dadpo.cli.experiment import read_experiment
    from lightning_dadpo.cli.stages import plan_stages

    monkeypatch.chdir(ROOT)
    stages = plan_stages(read_experiment(f"configs/recipes/{name}.yaml"))
    names = [stage.name for stage in stages]
    assert names[0] == "teacher"
    assert names[-1] == "evaluation"
    assert {"pruned", "dsft", "ddpo", "dadpo", "score-teacher", "score-reference"} <= set(names)
    assert len({stage.folder for stage in stages}) == len(stages)


def test_a_changed_setting_renames_what_depends_on_it_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_dadpo.cli.experiment import read_experiment
    from lightning_dadpo.cli.stages import plan_stages

    monkeypatch.chdir(ROOT)
    demo = Path("configs/recipes/demo.yaml").read_text("utf-8")
    changed = tmp_path / "changed.yaml"
    changed.write_text(demo.replace("loss/dadpo.yaml", "loss/dpo.yaml"), "utf-8")
    before = {stage.name: stage.folder for stage in plan_stages(read_experiment("configs/recipes/demo.yaml"))}
    after = {stage.name: stage.folder for stage in plan_stages(read_experiment(str(changed)))}
    moved = {name for name in before if before[name] != after.get(name)}
    gone = {"score-teacher"}  # nobody asks the teacher any more
    assert moved == {"dadpo", "model-dadpo", "sample-heldout-dadpo", "evaluation"} | gone
    assert before.keys() - after.keys() == gone
