"""The files of configs/loss/: the command that each opens with is run up to the first step, and says what it needs."""

from __future__ import annotations

import inspect
import sys
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml

from lightning_dadpo import losses
from lightning_dadpo.cli.main import main
from lightning_dadpo.losses import PreferenceObjective, TokenDivergence
from lightning_dadpo.training.preference import PreferenceModule

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # jsonargparse's, of what Lightning calls
ROOT = Path(__file__).parents[2]
FILES = sorted(path.stem for path in (ROOT / "configs" / "loss").iterdir())
ON_PAIRS = {
    "conservative": "ConservativeDPO", "dadpo": "DaDPO", "dadpo_reverse_kl": "DaDPO", "dadpo_sft": "DaDPO",
    "dpo": "DPO", "hinge": "HingePreference", "ipo": "IPO", "robust": "RobustDPO",
    "several_teachers": "AnchoredPreference", "simpo": "SimPO", "teacher_only": "AnchoredPreference",
}  # fmt: skip
ON_RESPONSES = {
    "forward_kl": "ForwardKL", "jensen_shannon": "JensenShannon", "reverse_kl": "ReverseKL",
    "skew_forward_kl": "SkewForwardKL", "skew_reverse_kl": "SkewReverseKL",
}  # fmt: skip


def text_of(name: str) -> str:
    return (ROOT / "configs" / "loss" / f"{name}.yaml").read_text("utf-8")


def command(name: str, run: Path) -> list[str]:
    """The file's first line as arguments, its YOUR_RUN.yaml being `run`."""
    first = text_of(name).splitlines()[0]
    assert first.startswith("# dadpo fit ")
    assert f"configs/loss/{name}.yaml" in first
    words = first.removeprefix("# dadpo ").split()
    return [str(run) if word == "YOUR_RUN.yaml" else str(ROOT / word) if "/" in word else word for word in words]


def your_run(tmp_path: Path, name: str, anchors: dict[str, Any] | None) -> Path:
    """What a user adds: models and data."""
    model: dict[str, Any] = {"student": {"path": "runs/student"}}
    if name in ON_RESPONSES:
        model["teacher"] = {"path": "runs/teacher"}
    if anchors is not None:
        model["anchors"] = anchors
    kind = "responses" if name in ON_RESPONSES else "pairs"
    data = {"init_args": {"train": {"folder": f"runs/{kind}"}}}
    run = {"model": {"init_args": model}, "data": data, "trainer": {"accelerator": "cpu"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run), "utf-8")
    return tmp_path / "run.yaml"


def anchors_of(name: str) -> list[str]:
    """What the file says in its line `# Anchors: ...`."""
    (line,) = (line for line in text_of(name).splitlines() if line.startswith("# Anchors: "))
    said = line.removeprefix("# Anchors: ").split(".")[0]
    return [] if said == "none" else said.split(", ")


def sources(name: str) -> dict[str, Any]:
    live = name == "dadpo_reverse_kl"  # whose term needs the teacher's logits
    return {
        anchor: {"model": {"path": "runs/m"}} if live and anchor == "teacher" else {"scores": f"runs/{anchor}"}
        for anchor in anchors_of(name)
    }


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """The modules that a command has made, whose training would begin now."""
    modules: list[Any] = []

    @wraps(L.Trainer.fit)  # the CLI reads its options off the signature
    def fit(self: L.Trainer, model: L.LightningModule, **_: Any) -> None:
        modules.append(model)

    monkeypatch.setattr(L.Trainer, "fit", fit)
    monkeypatch.setattr(sys, "argv", ["dadpo"])
    monkeypatch.chdir(tmp_path)
    return modules


def test_every_file_is_expected_here() -> None:
    assert sorted(ON_PAIRS | ON_RESPONSES) == FILES


@pytest.mark.parametrize("name", FILES)
def test_the_launch_command_builds_the_objective_with_every_number_stated(
    name: str, built: list[Any], tmp_path: Path
) -> None:
    anchors = sources(name) if name in ON_PAIRS and name != "simpo" else None
    assert main(command(name, your_run(tmp_path, name, anchors))) in (0, None)
    (module,) = built
    expected = (ON_PAIRS | ON_RESPONSES)[name]
    assert type(module.loss).__name__ == expected
    assert isinstance(module.loss, PreferenceObjective if name in ON_PAIRS else TokenDivergence)
    stated = yaml.safe_load(text_of(name))["model"]["init_args"]
    given = stated["loss"].get("init_args", {})
    assert type(getattr(losses, expected)(**given)) is type(module.loss)  # no default is leant on
    assert set(given) >= set(_arguments(expected))
    assert set(stated["terms"]) == set(module.terms)
    for name_of_term, one in module.terms.items():
        assert set(stated["terms"][name_of_term]) == {field.name for field in fields(one)}
    if name in ON_PAIRS:
        assert sorted(module.loss.anchors) == sorted(anchors_of(name)) == sorted(module.anchor_sources)
        assert module.loss.settings == getattr(losses, expected)(**given).settings


def _arguments(name: str) -> list[str]:
    return list(inspect.signature(getattr(losses, name)).parameters)


@pytest.mark.parametrize("name", [name for name in ON_PAIRS if name != "simpo"])
def test_a_run_without_an_anchor_is_refused_with_what_to_add(
    name: str, built: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left_out = anchors_of(name)[-1]
    anchors = {anchor: source for anchor, source in sources(name).items() if anchor != left_out}
    assert main(command(name, your_run(tmp_path, name, anchors))) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert f"needs {left_out!r}" in said
    assert f"add `{left_out}: {{scores: FOLDER}}` or `{left_out}: {{model: {{path: FOLDER}}}}`" in said
    assert not built


def test_simpo_has_no_anchor_and_what_is_given_is_not_asked(built: list[Any], tmp_path: Path) -> None:
    run = your_run(tmp_path, "simpo", {"reference": {"scores": "runs/reference"}})
    assert main(command("simpo", run)) in (0, None)
    (module,) = built
    assert isinstance(module, PreferenceModule)
    assert module.anchor_sources == {}


def test_a_run_may_set_its_own_weights_over_a_files(built: list[Any], tmp_path: Path) -> None:
    """Another set of anchors takes the place of the file's; none of its numbers is left over."""
    run = your_run(tmp_path, "ipo", {"teacher": {"scores": "runs/teacher"}})
    flags = ["--model.init_args.loss.init_args.betas", "{teacher: 0.2}"]
    assert main([*command("ipo", run), *flags]) in (0, None)
    assert built[0].loss.settings == {"betas": {"teacher": 0.2}}
