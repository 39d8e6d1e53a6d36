"""dSFT: nats per response token of the optimizer step."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_dadpo.data.batching import collate_responses
from lightning_dadpo.data.rows import ResponseRow
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.training.datamodule import SupervisedData
from lightning_dadpo.training.sources import ResponseSource
from lightning_dadpo.training.supervised import SupervisedModule
from tests.scoring.example import make_response, trainer, write_artifact
from tests.tiny import tiny_model

ROWS = [make_response(number) for number in range(8)] + [make_response(number, "validation") for number in range(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("supervised")
    write_artifact(root / "responses", "responses", ROWS)
    tiny_model(root / "student", layers=2, dropout=0.0)
    return root


def data(folder: Path, **changes: Any) -> SupervisedData:
    sources = {name: ResponseSource(str(folder / "responses"), name) for name in ("train", "validation")}
    return SupervisedData(**(sources | {"responses_per_step": 5} | changes))


def module(folder: Path, rate: float = 1e-3) -> SupervisedModule:
    return SupervisedModule(ModelSpec(str(folder / "student")), partial(torch.optim.AdamW, lr=rate))


class Gradients(L.Callback):
    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.seen.append(torch.cat([p.grad.flatten().clone() for p in pl_module.student.parameters()]))


def nats_per_token(model: Any, rows: list[ResponseRow]) -> float:
    """A ratio of sums, row by row through the model's own forward."""
    nats, tokens = 0.0, 0
    for row in rows:
        ids, start = row.prompt_token_ids + row.token_ids, len(row.prompt_token_ids)
        with torch.no_grad():
            log_probs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        nats -= sum(float(log_probs[start - 1 + at, token]) for at, token in enumerate(row.token_ids))
        tokens += len(row.token_ids)
    return nats / tokens


@pytest.mark.parametrize("budget", [1, 30, 1000])
def test_E3_the_validation_loss_is_a_ratio_of_sums_whatever_the_batches(
    folder: Path, tmp_path: Path, budget: int
) -> None:
    ours = module(folder)
    (found,) = trainer(tmp_path).validate(ours, datamodule=data(folder, tokens_per_batch=budget))
    assert found["val/loss"] == pytest.approx(nats_per_token(ours.student, ROWS[8:]), rel=1e-5)


def test_the_training_loss_is_the_same_ratio_over_the_steps_since_the_last_one(folder: Path, tmp_path: Path) -> None:
    ours = module(folder, rate=0.0)
    loop = trainer(tmp_path, log_every_n_steps=2, accumulate_grad_batches=2)
    loop.fit(ours, datamodule=data(folder))
    expected = nats_per_token(ours.student, ROWS[:8])
    assert float(loop.callback_metrics["train/loss"]) == pytest.approx(expected, rel=1e-5)
    assert {"train/learning_rate", "train/gradient_norm"} <= set(loop.callback_metrics)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_D1_micro_batches_of_uneven_lengths_change_no_gradient_also_in_a_short_last_step(
    folder: Path, tmp_path: Path, accumulate: int
) -> None:
    """8 rows in steps of 5 and 3; in four pieces the last step has a filler."""
    found = []
    for pieces in (1, accumulate):
        watch = Gradients()
        trainer(tmp_path, [watch], accumulate_grad_batches=pieces).fit(module(folder), datamodule=data(folder))
        found.append(watch.seen)
    assert len(found[0]) == len(found[1]) == 2
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=2e-3, atol=1e-5)


def test_D6_the_gradient_is_that_of_nats_over_the_tokens_of_the_step(folder: Path, tmp_path: Path) -> None:
    watch, ours = Gradients(), module(folder)
    trainer(tmp_path, [watch]).fit(ours, datamodule=data(folder, responses_per_step=8))
    fresh = module(folder)
    fresh.trainer = trainer(tmp_path)  # type: ignore[assignment]
    fresh.configure_model()
    parts = [fresh._nll(collate_responses([row])) for row in ROWS[:8]]
    (sum(nats.sum() for nats, _ in parts) / sum(float(tokens.sum()) for _, tokens in parts)).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in fresh.student.parameters()])
    assert torch.allclose(gradient, watch.seen[0], rtol=2e-3, atol=1e-5)


def test_D5_a_filler_adds_nothing_and_a_response_of_no_tokens_is_refused(folder: Path, tmp_path: Path) -> None:
    ours = module(folder)
    ours.trainer = trainer(tmp_path)  # type: ignore[assignment]
    ours.configure_model()
    nats, tokens = ours._nll(collate_responses([ROWS[0], ROWS[1]], [1.0, 0.0]))
    assert nats[1:].tolist() == [0.0]
    assert tokens.tolist() == [len(ROWS[0].token_ids), 0]
    ours.evaluation_means.update({"loss": nats / tokens.clamp_min(1)}, tokens)
    assert bool(torch.isfinite(ours.evaluation_means.compute()["loss"]))
    empty = ResponseRow("e", "train", ROWS[0].messages, [5, 6], [], "", "length", 0.0)
    with pytest.raises(ValueError, match="at least one token"):
        collate_responses([ROWS[0], empty])


def test_a_checkpoint_says_what_it_is(folder: Path) -> None:
    said = module(folder).describe()
    assert said["stage"] == "sft"
    assert said["objective"] == {"name": "dSFT"}
    assert said["student"]["path"] == str(folder / "student")


def test_one_line_says_what_was_chosen_and_what_sets_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(tmp_path, max_steps=1).fit(module(folder), datamodule=data(folder, tokens_per_batch=30))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "attention sdpa" in line]
    assert line.startswith("cpu, 32-true, attention sdpa, head in chunks of 48582 predictions, ")
    assert "micro-batches a step of at most 30 tokens on each of 1 devices" in line
    for key in ("trainer.precision", "student.attention", "student.chunk_tokens", "data.tokens_per_batch"):
        assert key in line
