"""The LoRA and QLoRA recipes are complete with the files that they name, for preferences and for dSFT."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_dadpo.cli.training import run_lightning

ROOT = Path(__file__).parents[2]
TRAINER, DADPO, PREFERENCE, DSFT, LORA, QLORA = (
    f"configs/{name}.yaml"
    for name in ("trainer/default", "loss/dadpo", "recipes/preference", "recipes/dsft", "recipes/lora", "recipes/qlora")
)


def resolved(
    files: list[str], run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    (tmp_path / "run.yaml").write_text(run, "utf-8")
    arguments = [part for file in (*files, str(tmp_path / "run.yaml")) for part in ("-c", file)]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["dadpo", "fit", *arguments, "--print_config"])
    with pytest.raises(SystemExit) as ended:
        run_lightning(sys.argv[1:])
    assert ended.value.code == 0
    found: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)["model"]
    return found


@pytest.mark.parametrize(("recipes", "quantize"), [([LORA], None), ([LORA, QLORA], "nf4")])
def test_the_command_on_the_first_line_comes_to_a_whole_run(
    recipes: list[str], quantize: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    files = [TRAINER, DADPO, PREFERENCE, *recipes]
    command = "# dadpo fit " + " ".join(f"-c {file}" for file in files) + " -c YOUR_RUN.yaml"
    assert (ROOT / recipes[-1]).read_text("utf-8").splitlines()[0] == command
    run = (
        "model: {init_args: {student: {path: x}, "
        "anchors: {reference: {model: {path: x}}, teacher: {scores: y}}}}\ndata: {init_args: {train: {folder: z}}}\n"
    )
    model = resolved(files, run, tmp_path, capsys, monkeypatch)
    assert model["class_path"].endswith("PreferenceModule")
    assert model["init_args"]["adapter"] == {
        "rank": 16, "alpha": 32.0, "dropout": 0.05, "targets": "all-linear", "quantize": quantize, "start": None,
    }  # fmt: skip
    assert model["init_args"]["optimizer"]["init_args"]["lr"] == 5e-5
    assert model["init_args"]["optimizer"]["init_args"]["weight_decay"] == 0.01  # the other recipe's


def test_it_lies_over_dsft_too_and_targets_may_be_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = (
        "model: {init_args: {student: {path: x}, adapter: {targets: [q_proj, v_proj]}}}\n"
        "data: {init_args: {train: {folder: z}}}\n"
    )
    model = resolved([TRAINER, DSFT, LORA], run, tmp_path, capsys, monkeypatch)
    assert model["class_path"].endswith("SupervisedModule")
    assert model["init_args"]["adapter"]["targets"] == ["q_proj", "v_proj"]
    assert model["init_args"]["adapter"]["rank"] == 16
