"""daDPO training: one loss wherever the anchors come from and however a step is cut."""

from __future__ import annotations

import csv
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from lightning_dadpo.data.batching import collate_pairs
from lightning_dadpo.data.pairing import read_pairs
from lightning_dadpo.errors import ArtifactError, ConfigError
from lightning_dadpo.losses import DPO, AnchoredPreference, DaDPO
from lightning_dadpo.models.loading import load_frozen
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.training.callbacks import Throughput
from lightning_dadpo.training.metrics import pair_value_names
from lightning_dadpo.training.preference import AnchorSource, PreferenceModule
from lightning_dadpo.training.sources import PairSource
from tests.scoring.example import Setup, make_pairs, make_setup, trainer, write_artifact

pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*")  # live anchors are


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return make_setup(tmp_path_factory.mktemp("preference"))


class Watch(L.Callback):
    """The gradient that every optimizer step is given, and the losses whose sum it is the gradient of."""

    def __init__(self) -> None:
        self.gradients: list[Tensor] = []
        self.losses: list[float] = [0.0]
        self.weights: list[Tensor] = []
        self.pair_ids: list[set[str]] = [set()]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses[-1] += float(outputs["loss"])
        self.weights.append(batch.weights)
        self.pair_ids[-1] |= {name for name, weight in zip(batch.pair_ids, batch.weights, strict=True) if weight}
        if len(self.losses) == len(self.gradients):
            self.losses.append(0.0)
            self.pair_ids.append(set())

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.gradients.append(torch.cat([p.grad.flatten().clone() for p in pl_module.student.parameters()]))


def trained(setup: Setup, root: Path, module: PreferenceModule, step: int = 6, **settings: Any) -> Watch:
    watch = Watch()
    trainer(root, [watch], **settings).fit(module, datamodule=setup.data(pairs_per_step=step))
    return watch


def weights_of(module: PreferenceModule) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.student.parameters()])


@pytest.fixture(scope="module")
def whole(setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreferenceModule, Watch]:
    """16 pairs in steps of 6, 6 and 4, each step in one piece, two epochs."""
    module = setup.module()
    return module, trained(setup, tmp_path_factory.mktemp("whole"), module, max_epochs=2)


@pytest.mark.parametrize("accumulate", [2, 4, 5])
def test_D1_micro_batches_change_neither_gradients_nor_weights_also_in_a_short_last_step(
    setup: Setup, tmp_path: Path, whole: tuple[PreferenceModule, Watch], accumulate: int
) -> None:
    module = setup.module()
    watch = trained(setup, tmp_path, module, accumulate_grad_batches=accumulate, max_epochs=2)
    fillers = sum(not bool(weights.sum()) for weights in watch.weights)
    assert fillers == (2 if accumulate == 5 else 0)  # 4 pairs in 5 pieces, twice
    assert len(watch.gradients) == len(whole[1].gradients) == 6
    assert len(watch.weights) == 6 * accumulate
    for ours, theirs in zip(watch.gradients, whole[1].gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=2e-3, atol=1e-5)
    assert torch.allclose(weights_of(module), weights_of(whole[0]), atol=1e-4)


def test_D1_the_gradient_is_that_of_the_mean_over_the_pairs_of_the_step(
    setup: Setup, whole: tuple[PreferenceModule, Watch], tmp_path: Path
) -> None:
    module = setup.module()
    module.trainer = trainer(tmp_path)  # type: ignore[assignment]
    module.configure_model()
    rows = read_pairs(setup.pairs, "train")
    data = setup.data()
    data.trainer = module.trainer
    data.setup("fit")
    (first, *_) = list(data.train_dataloader())
    pairs = [row for row in rows if row.pair_id in first.pair_ids]
    assert len(pairs) == 6
    total = torch.zeros(())
    for pair in pairs:
        batch = collate_pairs([pair])
        outcome = module.loss(module.policy_log_probs(batch), module.anchor_log_probs(batch))
        total = total + outcome.loss.sum()
    (total / 6).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in module.student.parameters()])
    assert torch.allclose(gradient, whole[1].gradients[0], rtol=2e-3, atol=1e-5)


class Ranks:
    """As much of a Trainer as one rank of several needs for its plan and its divisor."""

    def __init__(self, world_size: int, rank: int, accumulate: int) -> None:
        self.world_size, self.global_rank, self.is_global_zero = world_size, rank, False
        self.accumulate_grad_batches = accumulate
        self.max_epochs, self.max_steps, self.strategy = 2, -1, SimpleNamespace(root_device=torch.device("cpu"))


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(("accumulate", "budget"), [(1, None), (4, None), (1, 60), (1, 90)])
def test_D1_ranks_micro_batches_and_budgets_change_neither_loss_nor_gradient(
    setup: Setup,
    whole: tuple[PreferenceModule, Watch],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    world_size: int,
    accumulate: int,
    budget: int | None,
) -> None:
    """Every rank's part of the first step by the real plan and the real `training_step`, then what frameworks do:
    Lightning divides by the micro-batches and DDP takes the mean over ranks."""
    module = setup.module()
    module.trainer = trainer(tmp_path)  # type: ignore[assignment]
    module.configure_model()
    monkeypatch.setattr(module, "log_training_means", lambda: None)
    seen: list[str] = []
    numbers = set()
    for rank in range(world_size):
        ranks: Any = Ranks(world_size, rank, accumulate)
        data = setup.data(tokens_per_batch=budget)
        data.trainer = module.trainer = ranks
        data.setup("fit")
        numbers.add(ranks.accumulate_grad_batches)
        for batch in islice(data.train_dataloader(), ranks.accumulate_grad_batches):
            loss = module.training_step(batch, 0) / ranks.accumulate_grad_batches
            (loss / world_size).backward()
            seen += [name for name, weight in zip(batch.pair_ids, batch.weights, strict=True) if weight]
    assert len(numbers) == 1  # equally often on every rank
    assert set(seen) == whole[1].pair_ids[0]
    assert len(seen) == 6
    gradient = torch.cat([parameter.grad.flatten() for parameter in module.student.parameters()])
    assert torch.allclose(gradient, whole[1].gradients[0], rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_D1_the_losses_of_a_step_add_up_to_the_mean_over_its_pairs(
    setup: Setup, tmp_path: Path, accumulate: int
) -> None:
    """With a learning rate of 0 every epoch's losses add up to the same means."""
    module = setup.module(optimizer=partial(torch.optim.SGD, lr=0.0))
    watch = trained(setup, tmp_path, module, accumulate_grad_batches=accumulate)
    batch = collate_pairs(read_pairs(setup.pairs, "train"))
    with torch.no_grad():
        losses = module.loss(module.policy_log_probs(batch), module.anchor_log_probs(batch)).loss
    loss_of = dict(zip(batch.pair_ids, losses.tolist(), strict=True))
    assert [len(pair_ids) for pair_ids in watch.pair_ids] == [6, 6, 4, 0]
    for pair_ids, loss in zip(watch.pair_ids[:-1], watch.losses[:-1], strict=True):
        assert loss == pytest.approx(sum(loss_of[name] for name in pair_ids) / len(pair_ids), rel=1e-5)


def test_live_and_cached_anchors_give_the_same_losses_and_gradients(
    setup: Setup, tmp_path: Path, whole: tuple[PreferenceModule, Watch]
) -> None:
    live = setup.module(live=True)
    watch = trained(setup, tmp_path, live, max_epochs=2)
    assert watch.losses == pytest.approx(whole[1].losses, abs=1e-5)
    for ours, theirs in zip(watch.gradients, whole[1].gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=2e-3, atol=1e-5)


def test_D3_live_anchors_stay_outside_optimizer_autograd_and_checkpoint(setup: Setup, tmp_path: Path) -> None:
    module, checkpoint = setup.module(live=True), tmp_path / "student.ckpt"
    loop = trainer(tmp_path)
    loop.fit(module, datamodule=setup.data())
    loop.save_checkpoint(checkpoint)
    frozen = list(module.frozen.parameters())
    assert sorted(module.frozen) == ["reference", "teacher"]
    assert frozen
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)
    optimized = {id(p) for group in loop.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(parameter) for parameter in module.student.parameters()}
    for name, source in (("reference", setup.student), ("teacher", setup.teacher)):
        fresh = load_frozen(ModelSpec(str(source)), "32-true").state_dict()
        assert all(torch.equal(value, fresh[key]) for key, value in module.frozen[name].state_dict().items())
    state = torch.load(checkpoint, weights_only=True)
    assert {key.split(".")[0] for key in state["state_dict"]} == {"student"}
    assert state["dadpo"]["objective"] == {
        "name": "DaDPO", "betas": {"reference": 0.1, "teacher": 0.05}, "terms": {},
    }  # fmt: skip


@pytest.mark.parametrize("live", [True, False])
def test_a_checkpoint_of_the_student_alone_loads_back_beside_live_or_cached_anchors(
    setup: Setup, tmp_path: Path, live: bool
) -> None:
    first = setup.module(live=True)
    loop = trainer(tmp_path)
    loop.fit(first, datamodule=setup.data())
    loop.save_checkpoint(tmp_path / "student.ckpt")
    again = setup.module(live=live)
    other = trainer(tmp_path)
    (found,) = other.validate(again, datamodule=setup.data(), ckpt_path=tmp_path / "student.ckpt", weights_only=True)
    assert torch.equal(weights_of(again), weights_of(first))
    assert found["val/loss"] == pytest.approx(float(loop.callback_metrics["val/loss"]), rel=1e-6)


def test_a_checkpoint_of_another_student_is_refused(setup: Setup, tmp_path: Path) -> None:
    loop = trainer(tmp_path, limit_train_batches=1)
    loop.fit(setup.module(), datamodule=setup.data())
    loop.save_checkpoint(tmp_path / "student.ckpt")
    deeper = setup.module(student=ModelSpec(str(setup.teacher)))
    with pytest.raises(
        ConfigError, match=r"18 weights differ, for example model\.layers\.2.*missing in the checkpoint"
    ):
        trainer(tmp_path).validate(deeper, datamodule=setup.data(), ckpt_path=tmp_path / "student.ckpt")


def test_training_does_not_go_on_from_weights_alone(setup: Setup, tmp_path: Path) -> None:
    loop = trainer(tmp_path, limit_train_batches=1)
    loop.fit(setup.module(), datamodule=setup.data())
    loop.save_checkpoint(tmp_path / "best.ckpt", weights_only=True)
    with pytest.raises(ConfigError, match="cannot resume: the checkpoint holds weights alone"):
        trainer(tmp_path).fit(setup.module(), datamodule=setup.data(), ckpt_path=tmp_path / "best.ckpt")
    trainer(tmp_path).validate(setup.module(), datamodule=setup.data(), ckpt_path=tmp_path / "best.ckpt")


class Modes(L.Callback):
    """Whether student and frozen models are in training mode, and whether the student drops out."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bool, bool]] = []

    def _note(self, when: str, module: Any) -> None:
        frozen = any(part.training for model in module.frozen.values() for part in model.modules())
        student = {part.training for part in module.student.modules()}
        assert len(student) == 1, "the student is in two modes at once"
        self.seen.append((when, student.pop(), frozen))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._note("train", pl_module)
        with torch.no_grad():
            one, two = (pl_module.policy_log_probs(batch).chosen.total for _ in range(2))
            teacher = [pl_module.scorers["teacher"].score(batch).chosen.total for _ in range(2)]
        assert not torch.equal(one, two), "dropout does not act in the student"
        assert torch.equal(*teacher), "dropout acts in the teacher"

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self._note("validation", pl_module)


def test_B6_the_student_drops_out_in_training_and_frozen_models_never_do(tmp_path: Path) -> None:
    setup = make_setup(tmp_path, dropout=0.3)
    module = setup.module(live=True, anchors={
        "reference": AnchorSource(model=ModelSpec(str(setup.student))),
        "teacher": AnchorSource(model=ModelSpec(str(setup.student))),
    })  # fmt: skip
    modes = Modes()
    trainer(tmp_path, [modes], max_epochs=2, val_check_interval=2).fit(module, datamodule=setup.data())
    assert {when for when, *_ in modes.seen} == {"train", "validation"}
    order = [when for when, *_ in modes.seen]
    assert "train" in order[order.index("validation") :]  # the mode after a validation is seen too
    assert all(student == (when == "train") and not frozen for when, student, frozen in modes.seen)
    module.eval()
    module.train()
    assert module.student.training
    assert not any(part.training for model in module.frozen.values() for part in model.modules())


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_D8_parameters_that_round_updates_away_are_refused(setup: Setup, tmp_path: Path, precision: str) -> None:
    with pytest.raises(ConfigError, match=f"trainer.precision {precision}: expected 32-true or bf16-mixed"):
        trainer(tmp_path, precision=precision).fit(setup.module(), datamodule=setup.data())


def test_bf16_mixed_keeps_float32_weights_and_stays_near_float32(
    setup: Setup, tmp_path: Path, whole: tuple[PreferenceModule, Watch]
) -> None:
    module = setup.module(live=True)
    watch = trained(setup, tmp_path, module, precision="bf16-mixed", max_epochs=2)
    assert {parameter.dtype for parameter in module.student.parameters()} == {torch.float32}
    assert watch.losses == pytest.approx(whole[1].losses, abs=0.05)
    assert watch.losses != whole[1].losses
    cosine = torch.cosine_similarity(watch.gradients[0], whole[1].gradients[0], dim=0)
    assert float(cosine) > 0.99


def test_B3_at_step_zero_a_live_reference_equals_the_policy_to_the_bit_also_in_bf16_mixed(
    setup: Setup, tmp_path: Path
) -> None:
    module = setup.module(live=True, loss=DPO(0.1), optimizer=partial(torch.optim.SGD, lr=0.0))
    loop = trainer(tmp_path, precision="bf16-mixed", limit_train_batches=1, limit_val_batches=0)
    loop.fit(module, datamodule=setup.data())
    assert float(loop.callback_metrics["train/margin"]) == 0.0
    assert float(loop.callback_metrics["train/ties"]) == 1.0
    assert float(loop.callback_metrics["train/accuracy"]) == 0.5


def test_E3_validation_means_are_over_pairs_whatever_the_batches(setup: Setup, tmp_path: Path) -> None:
    found = []
    for budget in (1, 90, 1000):  # 7 pairs: each alone, uneven batches, all together
        data = setup.data(tokens_per_batch=budget)
        found.append(trainer(tmp_path).validate(setup.module(), datamodule=data)[0])
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
        assert found[2][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_validation_values_can_be_monitored_by_name(setup: Setup, tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path / "best", monitor="val/loss", filename="{step}", auto_insert_metric_name=False)
    early = EarlyStopping(monitor="val/chosen_log_prob/policy", mode="max", patience=3)
    trainer(tmp_path, [best, early], max_epochs=2).fit(setup.module(), datamodule=setup.data())
    assert best.best_model_score is not None
    assert Path(best.best_model_path).is_file()
    assert early.stopped_epoch == 0


def test_every_training_value_is_logged(setup: Setup, tmp_path: Path) -> None:
    loop = trainer(tmp_path, [Throughput()])
    loop.fit(setup.module(), datamodule=setup.data())
    wanted = [
        f"train/{name}" for name in (*pair_value_names(["reference", "teacher"]), "learning_rate", "gradient_norm")
    ]
    wanted += [f"val/{name}" for name in pair_value_names(["reference", "teacher"])]
    wanted += ["train/tokens_per_second", "train/examples_per_second", "train/peak_memory_gib"]
    wanted += ["train/padding_share"]
    assert sorted(loop.callback_metrics) == sorted(wanted)
    assert all(bool(torch.isfinite(value)) for value in loop.callback_metrics.values())


def test_the_gradient_norm_is_logged_before_clipping(setup: Setup, tmp_path: Path) -> None:
    module, watch = setup.module(), Watch()
    loop = trainer(tmp_path, [watch], gradient_clip_val=1e-3, limit_train_batches=1)
    loop.fit(module, datamodule=setup.data())
    assert float(loop.callback_metrics["train/gradient_norm"]) == pytest.approx(
        float(watch.gradients[0].norm()), rel=1e-5
    )
    assert float(watch.gradients[0].norm()) > 0.01


def test_logged_training_means_cover_all_steps_since_the_last_ones(setup: Setup, tmp_path: Path) -> None:
    module = setup.module(optimizer=partial(torch.optim.SGD, lr=0.0))
    logger = CSVLogger(tmp_path, name="", version="")
    settings = {"logger": logger, "log_every_n_steps": 3, "accumulate_grad_batches": 2, "limit_val_batches": 0}
    trainer(tmp_path, **settings).fit(module, datamodule=setup.data())
    batch = collate_pairs(read_pairs(setup.pairs, "train"))
    with torch.no_grad():
        outcome = module.loss(module.policy_log_probs(batch), module.anchor_log_probs(batch))
    lines = (tmp_path / "metrics.csv").read_text("utf-8").splitlines()
    (row,) = csv.DictReader(lines)
    assert float(row["train/loss"]) == pytest.approx(float(outcome.loss.mean()), rel=1e-5)  # over 6 + 6 + 4 pairs
    assert row["step"] == "2"


def test_D2_a_small_weight_is_a_weight_and_an_anchor_without_weight_needs_no_scores(
    setup: Setup, tmp_path: Path
) -> None:
    module = setup.module(
        loss=DaDPO(1e-4, 0.0), anchors={"reference": AnchorSource(scores=str(setup.reference_scores))}
    )
    assert module.loss.anchors == ("reference",)
    (found,) = trainer(tmp_path).validate(module, datamodule=setup.data())
    assert "val/teacher_agreement" not in found


def test_an_anchor_without_a_source_is_refused_with_what_to_write(setup: Setup) -> None:
    with pytest.raises(ConfigError, match=r"model.anchors: DaDPO needs 'teacher', .*add `teacher: {scores: FOLDER}`"):
        setup.module(anchors={"reference": AnchorSource(scores="x")})
    with pytest.raises(ConfigError, match="one of the two"):
        AnchorSource()
    with pytest.raises(ConfigError, match="one of the two"):
        AnchorSource(scores="x", model=ModelSpec("y"))


def test_several_teachers_are_anchors_like_any_other(setup: Setup, tmp_path: Path) -> None:
    anchors = {
        "reference": AnchorSource(scores=str(setup.reference_scores)),
        "a": AnchorSource(scores=str(setup.teacher_scores)),
        "b": AnchorSource(model=ModelSpec(str(setup.teacher))),
    }
    split = setup.module(loss=AnchoredPreference({"reference": 0.1, "a": 0.02, "b": 0.03}), anchors=anchors)
    (found,) = trainer(tmp_path).validate(split, datamodule=setup.data())
    (whole,) = trainer(tmp_path).validate(setup.module(), datamodule=setup.data())
    assert found["val/loss"] == pytest.approx(whole["val/loss"], rel=1e-5)


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")  # no validation split
def test_pairs_that_were_not_scored_stop_the_run(setup: Setup, tmp_path: Path) -> None:
    others = write_artifact(tmp_path / "others", "pairs", make_pairs(4, seed=9))
    data = setup.data(train=PairSource(str(others)), validation=None)
    with pytest.raises(ArtifactError, match="has no scores for pair"):
        trainer(tmp_path).fit(setup.module(), datamodule=data)
