"""Rows of pairs, the last checkpoint, speed and progress."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_dadpo.data.batching import collate_pairs, collate_responses
from lightning_dadpo.data.pairing import read_pairs
from lightning_dadpo.training import callbacks
from lightning_dadpo.training.callbacks import RecordPairs, StepProgress, Throughput
from lightning_dadpo.training.checkpoints import LastCheckpoint
from lightning_dadpo.training.sources import PairSource
from tests.scoring.example import Setup, make_response, make_setup, trainer


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return make_setup(tmp_path_factory.mktemp("callbacks"))


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_predictions_hold_every_pair_once_with_its_own_numbers(setup: Setup, tmp_path: Path) -> None:
    module = setup.module()
    data = setup.data(test=PairSource(str(setup.pairs), "validation"))
    trainer(tmp_path, [RecordPairs()]).predict(module, datamodule=data, return_predictions=False)
    rows = rows_of(tmp_path / "predictions.jsonl")
    pairs = {pair.pair_id: pair for pair in read_pairs(setup.pairs, "validation")}
    assert [row["pair_id"] for row in rows] == sorted(pairs)
    for row in rows:
        batch = collate_pairs([pairs[row["pair_id"]]])
        with torch.no_grad():
            policy, anchors = module.policy_log_probs(batch), module.anchor_log_probs(batch)
        outcome = module.loss(policy, anchors)
        assert row["chosen_log_prob/policy"] == pytest.approx(float(policy.chosen.total), rel=1e-4)
        assert row["rejected_log_prob/teacher"] == pytest.approx(float(anchors["teacher"].rejected.total))
        assert row["margin"] == pytest.approx(float(outcome.margin), abs=1e-3)
        assert row["chosen_reward"] - row["rejected_reward"] == pytest.approx(row["margin"], abs=1e-4)


def test_validation_pairs_are_those_of_the_latest_validation(setup: Setup, tmp_path: Path) -> None:
    module = setup.module()
    trainer(tmp_path, [RecordPairs()], max_epochs=2, num_sanity_val_steps=2).fit(module, datamodule=setup.data())
    rows = rows_of(tmp_path / "validation_pairs.jsonl")
    assert len(rows) == len({row["pair_id"] for row in rows}) == 7
    (found,) = trainer(tmp_path).validate(module, datamodule=setup.data())
    assert sum(row["loss"] for row in rows) / 7 == pytest.approx(found["val/loss"], rel=1e-5)


def test_a_filler_is_not_recorded(tmp_path: Path) -> None:
    record = RecordPairs(str(tmp_path / "deep" / "folder"))
    values = {"loss": torch.tensor([0.5, 0.25])}
    record._keep({"pair_ids": ("a", "b"), "weights": torch.tensor([1.0, 0.0]), "values": values})
    assert record._rows == [{"pair_id": "a", "loss": 0.5}]
    record._keep(None)
    assert len(record._rows) == 1


@pytest.mark.parametrize(("every", "expected"), [(2, [2, 3]), (3, [3]), (100, [3])])
def test_the_last_checkpoint_is_written_every_n_steps_and_at_the_end_under_one_name(
    setup: Setup, tmp_path: Path, every: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    real = LastCheckpoint._save_checkpoint

    def noting(self: LastCheckpoint, trainer: Any, filepath: str) -> None:
        saved.append(trainer.global_step)
        real(self, trainer, filepath)

    monkeypatch.setattr(LastCheckpoint, "_save_checkpoint", noting)
    trainer(tmp_path, [LastCheckpoint(every_n_steps=every)]).fit(setup.module(), datamodule=setup.data())
    assert saved == expected
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 3


def test_a_step_is_never_saved_in_its_middle(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    micro: list[int] = []
    real = LastCheckpoint._save_checkpoint

    def noting(self: LastCheckpoint, trainer: Any, filepath: str) -> None:
        micro.append(trainer.fit_loop.total_batch_idx + 1)
        real(self, trainer, filepath)

    monkeypatch.setattr(LastCheckpoint, "_save_checkpoint", noting)
    settings: dict[str, Any] = {"accumulate_grad_batches": 3, "limit_val_batches": 0}
    last = LastCheckpoint(every_n_steps=1)
    last._last_global_step_saved = -1  # as after a resume
    trainer(tmp_path, [last], **settings).fit(setup.module(), datamodule=setup.data())
    assert micro == [3, 6, 9]


def test_speed_counts_real_tokens_and_pairs_since_the_last_time(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: next(clock))
    loop = trainer(tmp_path, [Throughput()], log_every_n_steps=3, limit_val_batches=0)
    loop.fit(setup.module(), datamodule=setup.data())
    pairs = read_pairs(setup.pairs, "train")
    tokens = sum(2 * len(p.prompt_token_ids) + len(p.chosen_token_ids) + len(p.rejected_token_ids) for p in pairs)
    per_second = float(loop.callback_metrics["train/examples_per_second"])
    assert float(loop.callback_metrics["train/tokens_per_second"]) / per_second == pytest.approx(tokens / 16)
    assert float(loop.callback_metrics["train/peak_memory_gib"]) > 0.01


class Logged:
    """As much of a module as `Throughput` speaks to."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def log(self, name: str, value: float) -> None:
        self.values[name] = value


def test_padding_and_fillers_by_hand() -> None:
    """Trees of 2 and 8 tokens behind a stem of 2, then one of 7 and a filler of 5: 19 tokens in 2 + 2 x 8 + 7 + 5."""
    more = iter([True, True, False])
    loop: Any = SimpleNamespace(
        world_size=2,
        global_step=1,
        log_every_n_steps=1,
        fit_loop=SimpleNamespace(_should_accumulate=lambda: next(more)),
    )
    ours, module = Throughput(), Logged()
    for sizes, weights in (([4, 10], None), ([7], None), ([5], [0.0])):
        rows = [replace(make_response(0), prompt_token_ids=[5] * 3, token_ids=[6] * (size - 2)) for size in sizes]
        batch = collate_responses(rows, weights)
        ours.on_train_batch_start(loop, module, batch, 0)  # type: ignore[arg-type]
        ours.on_train_batch_end(loop, module, None, batch, 0)  # type: ignore[arg-type]
    assert module.values["train/padding_share"] == pytest.approx(1 - 19 / 30)
    tokens = module.values["train/tokens_per_second"] / module.values["train/examples_per_second"]
    assert tokens == pytest.approx((5 + 11 + 8) / 3)  # with the last token of each response, which is never an input


def test_progress_counts_optimizer_steps(setup: Setup, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(tmp_path, [StepProgress()], accumulate_grad_batches=2).fit(setup.module(), datamodule=setup.data())
    assert "training (steps): 3/3" in capsys.readouterr().out
