"""Before anything is scored, trained or measured, models are checked under the autocast that they will run in."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dadpo.evaluation import evaluate
from lightning_dadpo.losses import DaDPO
from lightning_dadpo.models.spec import ModelSpec, Precision
from lightning_dadpo.scoring import responses, stage
from lightning_dadpo.scoring.responses import score_responses
from lightning_dadpo.training import student, watch
from lightning_dadpo.training.datamodule import PreferenceData
from lightning_dadpo.training.preference import AnchorSource, PreferenceModule
from lightning_dadpo.training.sources import PairSource
from tests.evaluation.test_evaluate import World
from tests.scoring.example import make_pairs, make_response, scored, trainer, write_artifact
from tests.training.watched_runs import fit, make_home, watcher

PRECISIONS: list[Precision] = ["32-true", "bf16-mixed"]


def watched(patch: pytest.MonkeyPatch, *modules: Any) -> list[bool]:
    """Whether autocast was on, check by check; the checks themselves run."""
    seen: list[bool] = []
    for module in modules:
        check = module.check_trunk_and_head

        def watch(model: Any, name: str, check: Any = check) -> None:
            seen.append(torch.is_autocast_enabled("cpu"))
            check(model, name)

        patch.setattr(module, "check_trunk_and_head", watch)
    return seen


@pytest.mark.parametrize("precision", PRECISIONS)
def test_scored_models_are_checked_as_they_score(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    seen = watched(monkeypatch, stage, responses)
    pairs = write_artifact(tmp_path / "pairs", "pairs", make_pairs(2))
    scored(tiny_folder, pairs, tmp_path / "scores", anchor="reference", precision=precision)
    drawn = write_artifact(tmp_path / "drawn", "responses", [make_response(n) for n in range(2)], {"model": "another"})
    score_responses(ModelSpec(str(tiny_folder)), str(drawn), str(tmp_path / "more"), 70, precision)
    assert seen == [precision == "bf16-mixed"] * 2


@pytest.mark.parametrize("precision", PRECISIONS)
def test_trained_and_frozen_models_are_checked_as_they_train(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    spec, live = ModelSpec(str(tiny_folder)), AnchorSource(model=ModelSpec(str(tiny_folder)))
    pairs = write_artifact(tmp_path / "pairs", "pairs", [*make_pairs(2), *make_pairs(2, "validation")])
    module = PreferenceModule(
        spec, DaDPO(beta_reference=0.1, beta_teacher=0.05), {"reference": live, "teacher": live},
        partial(torch.optim.AdamW, lr=1e-3),
    )  # fmt: skip
    train, validation = (PairSource(str(pairs), split) for split in ("train", "validation"))
    data = PreferenceData(train=train, validation=validation, pairs_per_step=2)
    seen = watched(monkeypatch, student)
    trainer(tmp_path, precision=precision).validate(module, data, verbose=False)
    assert seen == [precision == "bf16-mixed"] * 3


@pytest.mark.parametrize("precision", PRECISIONS)
def test_measured_models_are_checked_as_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    seen = watched(monkeypatch, evaluate)
    World(tmp_path).evaluate(tmp_path / "out", precision=precision)
    assert seen == [precision == "bf16-mixed"] * 3


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_watched_teacher_is_checked_as_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    home, seen = make_home(tmp_path / "home"), watched(monkeypatch, watch)
    fit(home, tmp_path / "run", [watcher(home)], steps=1, precision=precision)
    assert seen == [precision == "bf16-mixed"]
