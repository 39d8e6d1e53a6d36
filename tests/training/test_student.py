"""What every student's training shares: loading, an end, a strict checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.training.supervised import SupervisedModule
from tests.scoring.example import Setup, make_setup, trainer


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return make_setup(tmp_path_factory.mktemp("student"), train=6)


def test_configuring_twice_loads_once_and_the_student_is_in_training_mode(tiny_folder: Path, tmp_path: Path) -> None:
    module = SupervisedModule(ModelSpec(str(tiny_folder)))
    module.trainer = trainer(tmp_path)  # type: ignore[assignment]
    module.configure_model()
    student = module.student
    module.configure_model()
    assert module.student is student
    assert all(part.training for part in student.modules())  # from_pretrained gives eval mode
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}


def test_a_student_that_is_not_there_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    module = SupervisedModule(ModelSpec(str(tmp_path / "nowhere")))
    module.trainer = trainer(tmp_path)  # type: ignore[assignment]
    with pytest.raises((ConfigError, DataError), match="no such folder"):
        module.configure_model()


def test_a_run_without_an_end_is_refused(setup: Setup, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.max_epochs and trainer\.max_steps are both -1"):
        trainer(tmp_path, max_epochs=-1).fit(setup.module(), datamodule=setup.data())


def test_the_rate_that_a_step_was_taken_with_is_the_one_logged(setup: Setup, tmp_path: Path) -> None:
    """One step of one: the warm-up's, half way up."""
    loop = trainer(tmp_path)
    loop.fit(setup.module(), datamodule=setup.data())
    assert loop.global_step == 1
    assert float(loop.callback_metrics["train/learning_rate"]) == pytest.approx(0.5e-3)


def test_D3_a_module_beside_live_models_saves_the_students_keys_and_forgives_their_absence_alone(
    setup: Setup, tmp_path: Path
) -> None:
    module = setup.module(live=True)
    module.trainer = trainer(tmp_path)  # type: ignore[assignment]
    module.configure_model()
    said: dict[str, Any] = {}
    module.on_save_checkpoint(said)
    state = module.state_dict()
    assert state
    assert all(key.startswith("student.") for key in state)
    assert not module.load_state_dict(state, strict=False).missing_keys
    del state["student.model.norm.weight"]
    assert module.load_state_dict(state, strict=False).missing_keys == ["student.model.norm.weight"]
    with pytest.raises(ConfigError, match=r"1 keys missing, 0 unexpected, for example student\.model\.norm\.weight"):
        module.on_load_checkpoint({"state_dict": state} | said)
