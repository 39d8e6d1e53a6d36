"""D4: a run that was killed goes on as if it had not been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.training.checkpoints import LastCheckpoint
from lightning_dadpo.training.preference import PreferenceModule
from tests.scoring.example import Setup, make_setup, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty")


class KilledError(Exception):
    """What a kill looks like from inside."""


class Losses(L.Callback):
    """Every micro-batch's loss by its number in the run; dies before the micro-batch that it is told."""

    def __init__(self, dies_before: int | None = None) -> None:
        self.dies_before = dies_before
        self.losses: dict[int, float] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.total_batch_idx == self.dies_before:
            raise KilledError

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses[trainer.fit_loop.total_batch_idx] = float(outputs["loss"])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return make_setup(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def dropping(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return make_setup(tmp_path_factory.mktemp("dropping"), dropout=0.2)


def weights_of(module: PreferenceModule) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.student.parameters()])


def run(
    setup: Setup,
    root: Path,
    dies_before: int | None = None,
    resume: bool = False,
    every: int = 1,
    tokens: int | None = None,
    **settings: Any,
) -> tuple[dict[int, float], Tensor | None]:
    """Two epochs of three steps (6, 6 and 4 pairs), a checkpoint every so many steps."""
    L.seed_everything(0, verbose=False)
    losses, module = Losses(dies_before), setup.module()
    loop = trainer(root, [losses, LastCheckpoint(every_n_steps=every)], **({"max_epochs": 2} | settings))
    path = root / "checkpoints" / "last.ckpt" if resume else None
    if dies_before is None:
        loop.fit(module, datamodule=setup.data(tokens_per_batch=tokens), ckpt_path=path)
        return losses.losses, weights_of(module)
    with pytest.raises(KilledError):
        loop.fit(module, datamodule=setup.data(tokens_per_batch=tokens), ckpt_path=path)
    return losses.losses, None


@pytest.fixture(scope="module", params=[1, 2])
def uninterrupted(
    request: pytest.FixtureRequest, plain: Setup, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Any, Any]:
    """Micro-batches a step, then losses and weights of the whole run."""
    root = tmp_path_factory.mktemp("whole")
    return request.param, *run(plain, root, accumulate_grad_batches=request.param)


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_D4_resumed_after_any_step_the_losses_and_weights_are_bit_identical(
    plain: Setup, tmp_path: Path, steps: int, uninterrupted: tuple[int, Any, Any]
) -> None:
    accumulate, whole, weights = uninterrupted
    before, _ = run(plain, tmp_path / "killed", dies_before=steps * accumulate, accumulate_grad_batches=accumulate)
    after, resumed = run(plain, tmp_path / "killed", resume=True, accumulate_grad_batches=accumulate)
    assert len(whole) == 6 * accumulate
    assert sorted(before) == list(range(steps * accumulate))
    assert sorted(after) == list(range(steps * accumulate, 6 * accumulate))
    assert {**before, **after} == whole
    assert torch.equal(resumed, weights)


@pytest.mark.parametrize("steps", [1, 4])
def test_D4_micro_batches_by_a_budget_of_tokens_resume_bit_identical(plain: Setup, tmp_path: Path, steps: int) -> None:
    whole, weights = run(plain, tmp_path / "whole", tokens=60)
    micro_batches = len(whole) // 6
    assert micro_batches > 1
    before, _ = run(plain, tmp_path / "killed", dies_before=steps * micro_batches + 1, tokens=60)
    after, resumed = run(plain, tmp_path / "killed", resume=True, tokens=60)
    assert sorted(after) == list(range(steps * micro_batches, 6 * micro_batches))
    assert {**before, **after} == whole
    assert torch.equal(resumed, weights)


def test_D4_a_budget_that_cuts_steps_otherwise_is_refused_on_resume(plain: Setup, tmp_path: Path) -> None:
    run(plain, tmp_path / "run", dies_before=4, tokens=60)
    with pytest.raises(ConfigError, match=r"micro_batches was \d and is 1 now"):
        run(plain, tmp_path / "run", resume=True, tokens=1000)


def test_D4_work_since_the_last_checkpoint_is_done_again_and_comes_out_the_same(plain: Setup, tmp_path: Path) -> None:
    whole, weights = run(plain, tmp_path / "whole", every=2)
    before, _ = run(plain, tmp_path / "killed", dies_before=5, every=2)
    after, resumed = run(plain, tmp_path / "killed", resume=True, every=2)
    assert sorted(before) == [0, 1, 2, 3, 4]
    assert sorted(after) == [4, 5]
    assert {**before, **after} == whole
    assert torch.equal(resumed, weights)


def test_D4_killed_twice_also_between_the_micro_batches_of_a_step(plain: Setup, tmp_path: Path) -> None:
    """A checkpoint in the middle of a step would lose the gradients that its first micro-batches left."""
    settings = {"accumulate_grad_batches": 3}
    whole, weights = run(plain, tmp_path / "whole", **settings)
    run(plain, tmp_path / "killed", dies_before=6, **settings)
    run(plain, tmp_path / "killed", dies_before=8, resume=True, **settings)
    after, resumed = run(plain, tmp_path / "killed", resume=True, **settings)
    assert sorted(after) == list(range(6, 18))
    assert {name: whole[name] for name in after} == after
    assert torch.equal(resumed, weights)


@pytest.mark.parametrize("steps", [2, 3])
def test_D4_dropout_is_the_same_after_a_resume(dropping: Setup, tmp_path: Path, steps: int) -> None:
    whole, weights = run(dropping, tmp_path / "whole")
    before, _ = run(dropping, tmp_path / "killed", dies_before=steps)
    torch.manual_seed(99)
    after, resumed = run(dropping, tmp_path / "killed", resume=True)
    assert {**before, **after} == whole
    assert torch.equal(resumed, weights)


def test_D4_an_epoch_cut_short_by_the_trainer_resumes_with_the_whole_next_one(plain: Setup, tmp_path: Path) -> None:
    whole, weights = run(plain, tmp_path / "whole", limit_train_batches=2)
    run(plain, tmp_path / "killed", dies_before=2, limit_train_batches=2)
    after, resumed = run(plain, tmp_path / "killed", resume=True, limit_train_batches=2)
    assert {name: whole[name] for name in after} == after
    assert sorted(after) == [2, 3]
    assert torch.equal(resumed, weights)


def test_D4_validation_between_steps_changes_nothing_that_is_trained(dropping: Setup, tmp_path: Path) -> None:
    often, one = run(dropping, tmp_path / "often", val_check_interval=1)
    never, other = run(dropping, tmp_path / "never", limit_val_batches=0)
    assert often == never
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs_per_step": 4}, "rows_per_step was 6 and is 4 now"),
        ({"seed": 1}, "seed was 0 and is 1 now"),
    ],
)
def test_D4_another_plan_is_refused_with_both_values(
    plain: Setup, tmp_path: Path, changes: dict[str, int], message: str
) -> None:
    run(plain, tmp_path / "run", dies_before=2)
    loop = trainer(tmp_path / "run", [LastCheckpoint(every_n_steps=1)], max_epochs=2)
    with pytest.raises(ConfigError, match=message):
        loop.fit(
            plain.module(), datamodule=plain.data(**changes), ckpt_path=tmp_path / "run" / "checkpoints" / "last.ckpt"
        )


def test_D4_another_number_of_micro_batches_or_of_pairs_is_refused(plain: Setup, tmp_path: Path) -> None:
    run(plain, tmp_path / "run", dies_before=2)
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    loop = trainer(tmp_path / "run", [LastCheckpoint(every_n_steps=1)], max_epochs=2, accumulate_grad_batches=2)
    with pytest.raises(ConfigError, match="micro_batches was 1 and is 2 now"):
        loop.fit(plain.module(), datamodule=plain.data(), ckpt_path=path)
    fewer = make_setup(tmp_path / "fewer", train=15)
    with pytest.raises(ConfigError, match="rows was 16 and is 15 now"):
        trainer(tmp_path / "run", [LastCheckpoint(every_n_steps=1)], max_epochs=2).fit(
            plain.module(), datamodule=fewer.data(), ckpt_path=path
        )
