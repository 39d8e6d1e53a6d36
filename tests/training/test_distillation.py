"""Token-level distillation: one loss whatever the batches, the student's own samples, a teacher that stands still."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_dadpo.data.batching import collate_responses
from lightning_dadpo.errors import AuditError, ConfigError
from lightning_dadpo.losses import ForwardKL, JensenShannon, ResponseNLL, ReverseKL, TokenDivergence, WeightedTerm
from lightning_dadpo.models.loading import load_model, load_tokenizer
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.sampling.base import SamplerSettings
from lightning_dadpo.sampling.transformers_sampler import TransformersSampler
from lightning_dadpo.training.checks import CheckScores
from lightning_dadpo.training.datamodule import PreferenceData, SupervisedData
from lightning_dadpo.training.distillation import DistillationModule, OnPolicy
from lightning_dadpo.training.sources import PairSource, ResponseSource
from tests import oracles
from tests.scoring.example import make_response, trainer, write_artifact
from tests.tiny import END_OF_TURN, VOCABULARY, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*")  # the teacher is

SFT = {"sft": WeightedTerm(0.5, ResponseNLL())}
ROWS = [make_response(number) for number in range(8)] + [make_response(number, "validation") for number in range(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("distillation")
    write_artifact(root / "responses", "responses", ROWS)
    tiny_model(root / "student", layers=2, seed=1, dropout=0.3)
    tiny_model(root / "teacher", layers=3, seed=2)
    return root


def data(folder: Path, **changes: Any) -> SupervisedData:
    sources = {name: ResponseSource(str(folder / "responses"), name) for name in ("train", "validation")}
    return SupervisedData(**(sources | {"responses_per_step": 5} | changes))


def module(folder: Path, loss: TokenDivergence | None = None, rate: float = 1e-3, **changes: Any) -> DistillationModule:
    student, teacher = ModelSpec(str(folder / "student")), ModelSpec(str(folder / "teacher"))
    return DistillationModule(student, teacher, loss or ForwardKL(), partial(torch.optim.SGD, lr=rate), **changes)


def expected_values(folder: Path, rows: list[Any], value: Any) -> float:
    """The mean over responses of the mean over their positions, by float64 loops."""
    student, teacher = (load_model(ModelSpec(str(folder / name))) for name in ("student", "teacher"))
    means = []
    for row in rows:
        ids, start = torch.tensor([row.prompt_token_ids + row.token_ids]), len(row.prompt_token_ids) - 1
        with torch.no_grad():
            own, others = (m(ids).logits[0, start:-1].tolist() for m in (student, teacher))
        values = [value(te, st) for te, st in zip(others, own, strict=True)]
        means.append(sum(values) / len(values))
    return sum(means) / len(means)


@pytest.mark.parametrize("budget", [1, 30, 1000])
def test_E3_the_validation_loss_is_the_mean_over_responses_of_their_means_over_tokens(
    folder: Path, tmp_path: Path, budget: int
) -> None:
    ours = module(folder, JensenShannon(0.3), terms=SFT)
    (found,) = trainer(tmp_path).validate(ours, datamodule=data(folder, tokens_per_batch=budget))
    expected = expected_values(folder, ROWS[8:], partial(oracles.jensen_shannon, beta=0.3))
    assert found["val/part/divergence"] == pytest.approx(expected, rel=1e-4)
    assert found["val/part/sft"] == pytest.approx(found["val/nll_per_token"], rel=1e-6)
    assert found["val/loss"] == pytest.approx(expected + 0.5 * found["val/nll_per_token"], rel=1e-4)


class Gradients(L.Callback):
    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.seen.append(torch.cat([p.grad.flatten().clone() for p in pl_module.student.parameters()]))


@pytest.mark.parametrize("on_policy", [None, OnPolicy(0.5, SamplerSettings(max_new_tokens=6))])
def test_D1_micro_batches_change_no_gradient_also_in_a_short_last_step(
    tmp_path: Path, on_policy: OnPolicy | None
) -> None:
    """8 rows in steps of 5 and 3; in four pieces the last step has a filler. Without dropout, whose draws differ."""
    folder = tmp_path
    write_artifact(folder / "responses", "responses", ROWS)
    tiny_model(folder / "student", layers=2, seed=1)
    tiny_model(folder / "teacher", layers=3, seed=2)
    found = []
    for pieces in (1, 4):
        watch, ours = Gradients(), module(folder, on_policy=on_policy)
        trainer(tmp_path, [watch], accumulate_grad_batches=pieces).fit(ours, datamodule=data(folder))
        found.append(watch.seen)
    assert len(found[0]) == len(found[1]) == 2
    for ours_, theirs in zip(*found, strict=True):
        assert torch.allclose(ours_, theirs, rtol=2e-3, atol=1e-5)


def test_the_gradient_is_that_of_the_plain_mean(tmp_path: Path) -> None:
    write_artifact(tmp_path / "responses", "responses", ROWS)
    tiny_model(tmp_path / "student", layers=2, seed=1)
    tiny_model(tmp_path / "teacher", layers=3, seed=2)
    watch = Gradients()
    ours = module(tmp_path, ReverseKL())
    trainer(tmp_path, [watch]).fit(ours, datamodule=data(tmp_path, responses_per_step=8))
    student, teacher = (load_model(ModelSpec(str(tmp_path / name))) for name in ("student", "teacher"))
    total = torch.zeros(())
    for row in ROWS[:8]:
        ids, start = torch.tensor([row.prompt_token_ids + row.token_ids]), len(row.prompt_token_ids) - 1
        with torch.no_grad():
            others = teacher(ids).logits[0, start:-1].log_softmax(-1)
        own = student(ids).logits[0, start:-1].log_softmax(-1)
        total = total + (own.exp() * (own - others)).sum(-1).mean() / 8
    total.backward()  # type: ignore[no-untyped-call]
    wanted = torch.cat([p.grad.flatten() for p in student.parameters()])
    assert torch.allclose(watch.seen[0], wanted, rtol=2e-3, atol=1e-5 * float(wanted.abs().max()))


def test_the_student_answers_prompts_itself_and_nothing_is_disturbed(folder: Path, tmp_path: Path) -> None:
    settings = SamplerSettings(max_new_tokens=5, seed=3)
    ours = module(folder, on_policy=OnPolicy(1.0, settings))
    ours.trainer = trainer(tmp_path)  # type: ignore[assignment]
    ours.configure_model()
    batch = collate_responses(ROWS[:4])
    before = torch.get_rng_state()
    found, own = ours._with_own_samples(batch)
    assert torch.equal(torch.get_rng_state(), before)
    assert ours.student.training
    assert own.tolist() == [1.0] * 4
    with torch.no_grad():
        ours.student.eval()
        sampler = TransformersSampler(ours.student, (END_OF_TURN,), settings, 4)
        keys = [f"step 0, {name}" for name in batch.response_ids]
        drawn = sampler.sample([row.prompt_token_ids for row in ROWS[:4]], keys)
    expected = collate_responses(
        [replace(row, token_ids=one.token_ids) for row, one in zip(ROWS[:4], drawn, strict=True)]
    )
    assert torch.equal(found.sequences.token_ids, expected.sequences.token_ids)
    assert torch.equal(found.sequences.targets, expected.sequences.targets)
    assert found.responses_in_step == 4


def test_the_share_of_own_samples_is_drawn_anew_each_step_and_can_be_repeated(folder: Path, tmp_path: Path) -> None:
    def shares() -> list[list[float]]:
        ours = module(folder, on_policy=OnPolicy(0.4, SamplerSettings(max_new_tokens=2)))
        loop: Any = trainer(tmp_path)
        ours.trainer = loop
        ours.configure_model()
        found = []
        for step in range(12):
            loop.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total.completed = 0
            loop.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = step
            assert ours.trainer.global_step == step
            found.append(ours._with_own_samples(collate_responses(ROWS[:8]))[1].tolist())
        return found

    first = shares()
    assert first == shares()
    assert len({tuple(row) for row in first}) > 6
    assert sum(map(sum, first)) / (12 * 8) == pytest.approx(0.4, abs=0.15)


def test_training_brings_the_student_nearer_and_logs_what_it_did(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)  # of the dropout
    ours = module(folder, rate=0.2, on_policy=OnPolicy(0.5, SamplerSettings(max_new_tokens=4)))
    loop = trainer(tmp_path, max_epochs=12, log_every_n_steps=24)
    (before,) = trainer(tmp_path).validate(ours, datamodule=data(folder))
    loop.fit(ours, datamodule=data(folder))
    assert float(loop.callback_metrics["val/loss"]) < 0.9 * before["val/loss"]
    assert float(loop.callback_metrics["train/own_samples"]) == pytest.approx(0.5, abs=0.2)
    assert "train/response_tokens" in loop.callback_metrics


def test_D3_the_teacher_is_in_no_optimizer_and_no_checkpoint(folder: Path, tmp_path: Path) -> None:
    ours = module(folder)
    loop = trainer(tmp_path)
    loop.fit(ours, datamodule=data(folder))
    loop.save_checkpoint(tmp_path / "student.ckpt")
    state = torch.load(tmp_path / "student.ckpt", weights_only=True)
    assert {key.split(".")[0] for key in state["state_dict"]} == {"student"}
    assert state["dadpo"]["stage"] == "distillation"
    assert state["dadpo"]["objective"] == {"name": "ForwardKL", "terms": {}}
    for other in (module(folder, ReverseKL()), module(folder, on_policy=OnPolicy(0.5)), module(folder, terms=SFT)):
        with pytest.raises(ConfigError, match=r"cannot resume: (objective|on_policy|terms) was"):
            trainer(tmp_path, max_epochs=2).fit(other, datamodule=data(folder), ckpt_path=tmp_path / "student.ckpt")
    assert all(p.grad is None and not p.requires_grad for p in ours.frozen.parameters())
    assert not ours.frozen["teacher"].training


def test_a_run_that_cannot_supply_what_is_needed_is_refused(folder: Path, tmp_path: Path) -> None:
    pairs = PreferenceData(train=PairSource(str(folder / "nothing")))
    with pytest.raises(
        ConfigError, match="PreferenceData gives pairs, and model DistillationModule trains on responses"
    ):
        trainer(tmp_path).fit(module(folder), datamodule=pairs)
    with pytest.raises(ConfigError, match=r"on_policy.fraction 0: expected a number in \(0, 1\]"):
        OnPolicy(0)
    with pytest.raises(ConfigError, match=r"model.terms.divergence: that is what the loss itself is called"):
        module(folder, terms={"divergence": WeightedTerm(1.0, ResponseNLL())})


def test_sft_beside_own_samples_counts_on_the_data_alone(folder: Path, tmp_path: Path) -> None:
    """Planted: without the mask every response adds its nats."""
    ours = module(folder, on_policy=OnPolicy(0.5, SamplerSettings(max_new_tokens=4)), terms=SFT)
    ours.trainer = trainer(tmp_path)  # type: ignore[assignment]
    ours.configure_model()
    batch, own = ours._with_own_samples(collate_responses(ROWS[:8]))
    values = ours._evaluate(batch, own)
    assert 0 < own.sum() < 8
    assert values["part/sft"].tolist() == pytest.approx((values["nll_per_token"] * (1 - own)).tolist())
    assert torch.allclose(values["loss"], values["part/divergence"] + 0.5 * values["part/sft"])
    with pytest.raises(ConfigError, match=r"model.terms.sft: ResponseNLL learns from the data's responses"):
        module(folder, on_policy=OnPolicy(1.0), terms=SFT)


def test_a_budget_of_tokens_holds_for_own_samples_and_throughput_counts_them(folder: Path, tmp_path: Path) -> None:
    computed, counted = [], []

    class Computed(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch.real_tokens:
                computed.append(batch.sequences.num_tokens)
                counted.append(batch.real_tokens - len(batch))  # the last token of each is never an input

    ours = module(folder, on_policy=OnPolicy(1.0, SamplerSettings(max_new_tokens=30)))
    trainer(tmp_path, [Computed()]).fit(ours, datamodule=data(folder, tokens_per_batch=50))
    assert computed == counted
    assert max(computed) <= 50
    assert sum(computed) > sum(len(row.prompt_token_ids) + len(row.token_ids) for row in ROWS[:8])


def test_a_student_that_can_say_more_ids_than_the_teacher_reads_does_not_answer_itself(
    folder: Path, tmp_path: Path
) -> None:
    wide = load_model(ModelSpec(str(folder / "student")))
    wide.resize_token_embeddings(VOCABULARY + 5, mean_resizing=False)
    shutil.copytree(folder / "student", tmp_path / "wide")
    wide.save_pretrained(tmp_path / "wide")
    arguments = ModelSpec(str(tmp_path / "wide")), ModelSpec(str(folder / "teacher")), ForwardKL()
    (found,) = trainer(tmp_path).validate(DistillationModule(*arguments), datamodule=data(folder))
    assert found["val/loss"] > 0  # on the common ids
    with pytest.raises(
        ConfigError, match=f"the student can say {VOCABULARY + 5} ids and the teacher reads {VOCABULARY}"
    ):
        trainer(tmp_path).fit(DistillationModule(*arguments, on_policy=OnPolicy(0.5)), datamodule=data(folder))


def test_C6_a_live_teacher_that_did_not_sample_the_responses_stops_the_run(folder: Path, tmp_path: Path) -> None:
    prompts = [row.prompt_token_ids for row in ROWS[:8]]
    teacher = load_model(ModelSpec(str(folder / "teacher"))).eval()
    sampler = TransformersSampler(teacher, (END_OF_TURN,), SamplerSettings(max_new_tokens=6), 8)
    drawn = sampler.sample(prompts, [row.prompt_id for row in ROWS[:8]])
    tokenizer = load_tokenizer(ModelSpec(str(folder / "student")))
    rows = [
        replace(
            row,
            token_ids=one.token_ids,
            text=tokenizer.decode(one.token_ids, skip_special_tokens=True),
            log_prob=one.log_prob,
        )
        for row, one in zip(ROWS[:8], drawn, strict=True)
    ]
    write_artifact(tmp_path / "responses", "responses", rows)
    source = SupervisedData(train=ResponseSource(str(tmp_path / "responses")), responses_per_step=4)
    for name in ("teacher", "student"):
        models = ModelSpec(str(folder / "student")), ModelSpec(str(folder / name))
        loop = trainer(tmp_path, [CheckScores()], max_steps=1, limit_val_batches=0)
        if name == "teacher":
            loop.fit(DistillationModule(*models, ForwardKL()), datamodule=source)
            continue
        with pytest.raises(AuditError, match=r"audit of teacher against its sampler: .*\(prompt train-\d\)"):
            loop.fit(DistillationModule(*models, ForwardKL()), datamodule=source)
