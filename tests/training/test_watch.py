from __future__ import annotations

import copy
import json
import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from lightning_dadpo.errors import ArtifactError, ConfigError, DataError
from lightning_dadpo.losses import DaDPO
from lightning_dadpo.models.loading import load_frozen
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.sampling.base import SamplerSettings
from lightning_dadpo.training import watch
from lightning_dadpo.training.datamodule import PreferenceData, SupervisedData
from lightning_dadpo.training.loggers import ExperimentLogger
from lightning_dadpo.training.preference import AnchorSource, PreferenceModule
from lightning_dadpo.training.sources import PairSource
from lightning_dadpo.training.supervised import SupervisedModule
from lightning_dadpo.training.watch import WatchDistances
from tests.tiny import END_OF_TURN, tiny_tokenizer
from tests.training.watched_runs import (
    GREEDY,
    QUIET,
    Keeper,
    answer,
    curve,
    fit,
    ids,
    in_float32,
    make_home,
    samples,
    watcher,
    write_responses,
)

pytestmark = QUIET

NAMES = ("val/forward_kl", "val/reverse_kl", "val/teacher_nll")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    in_float32(monkeypatch)


@torch.no_grad()
def greedy(model: Any, prompt: list[int]) -> list[int]:
    """Token by token, without a cache."""
    drawn: list[int] = []
    while len(drawn) < GREEDY.max_new_tokens and END_OF_TURN not in drawn:
        drawn.append(int(model(input_ids=torch.tensor([prompt + drawn])).logits[0, -1].argmax()))
    return drawn


@torch.no_grad()
def kl_and_nll(p: Any, q: Any, prompt: list[int], response: list[int]) -> tuple[float, float]:
    """Sums over the response of KL(p || q) and of -log q, in float64, id by id."""
    tensor = torch.tensor([prompt + response])
    log_p, log_q = (copy.deepcopy(model).double()(input_ids=tensor).logits[0].log_softmax(-1) for model in (p, q))
    kl = nll = 0.0
    for at, token in enumerate(response):
        place = len(prompt) + at - 1
        one, other = log_p[place].tolist(), log_q[place].tolist()
        kl += math.fsum(math.exp(x) * (x - y) for x, y in zip(one, other, strict=True))
        nll -= other[token]
    return kl, nll


def expected(home: Path, student: Any, shown: list[str]) -> dict[str, float]:
    """The three distances over these prompts, computed apart; and every prompt's greedy answer."""
    teacher = load_frozen(ModelSpec(str(home / "teacher")), "32-true")
    sums = dict.fromkeys(("forward", "reverse", "nll", "teachers", "students"), 0.0)
    for prompt_id in shown:
        number = int(prompt_id[1:])
        prompt, theirs = ids(number, 3 + number), answer(home / "teacher", "teacher", number)
        drawn = greedy(student, prompt)
        reverse, nll = kl_and_nll(student, teacher, prompt, drawn)
        for name, value in (("reverse", reverse), ("nll", nll), ("students", len(drawn)), ("teachers", len(theirs))):
            sums[name] += value
        sums["forward"] += kl_and_nll(teacher, student, prompt, theirs)[0]
    values = (sums["forward"] / sums["teachers"], sums["reverse"] / sums["students"], sums["nll"] / sums["students"])
    return dict(zip(NAMES, values, strict=True))


@dataclass(frozen=True)
class Watched:
    """A training from a YAML, and what it left.

    Attributes:
        root: its folder. trainer: as it ended.
        students: by the step at which they were measured.
    """

    root: Path
    trainer: L.Trainer
    students: dict[int, Any]


def configuration(home: Path, root: Path) -> dict[str, Any]:
    """Five steps of two responses, validated every two, watched on three prompts; best and early stop by a distance."""
    answers = str(home / "answers")
    watching = {
        "teacher": {"path": str(home / "teacher")},
        "teacher_responses": answers,
        "reference_responses": str(home / "references"),
        "prompts": 3,
        "sampler": {"temperature": 0, "max_new_tokens": 6, "seed": 5},
    }
    curves = {"save_dir": str(root), "name": "", "version": "curves"}
    monitor = {"monitor": "val/reverse_kl", "mode": "min", "dirpath": str(root / "best")}
    trainer = {
        "default_root_dir": str(root),
        "accelerator": "cpu",
        "precision": "32-true",
        "max_steps": 5,
        "val_check_interval": 2,
        "check_val_every_n_epoch": None,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": curves},
        "callbacks": [
            {"class_path": "lightning_dadpo.training.watch.WatchDistances", "init_args": watching},
            {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": monitor},
            {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": NAMES[0]}},
        ],
    }
    data = {"train": {"folder": answers}, "validation": {"folder": answers, "split": "validation"}}
    return {
        "trainer": trainer,
        "model": {"student": {"path": str(home / "student")}},
        "data": data | {"responses_per_step": 2},
    }


@pytest.fixture(scope="module")
def watched(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """End to end through the command line's parser."""
    keeper, root = Keeper(), tmp_path_factory.mktemp("watched")
    (root / "config.yaml").write_text(json.dumps(configuration(home, root)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "inference_precision", lambda device: "32-true")
        patch.setattr(sys, "argv", ["dadpo", "fit", "-c", str(root / "config.yaml")])
        trainer = LightningCLI(
            SupervisedModule, SupervisedData, save_config_callback=None, seed_everything_default=False,
            auto_configure_optimizers=False, trainer_defaults={"callbacks": [keeper]},
        ).trainer  # fmt: skip
    return Watched(root, trainer, keeper.students)


def test_numbers_equal_an_independent_computation_from_a_yaml(home: Path, watched: Watched) -> None:
    rows = samples(watched.root)
    assert [row["step"] for row in rows] == [0] * 3 + [2] * 3 + [4] * 3 + [5] * 3
    shown = [row["prompt_id"] for row in rows[:3]]
    assert len(set(shown)) == 3
    assert [row["prompt_id"] for row in rows] == shown * 4
    for step in (0, 2, 4, 5):
        found = {name: curve(watched.root, name)[max(0, step - 1)] for name in NAMES}
        assert found == pytest.approx(expected(home, watched.students[step], shown), rel=1e-4)
    assert len(set(curve(watched.root, NAMES[1]).values())) == 4


def test_every_text_is_the_one_that_was_measured(watched: Watched, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    for row in samples(watched.root):
        number = int(row["prompt_id"][1:])
        assert number % 2
        assert (row["prompt"], row["teacher"]) == (f"question {number}", f"teacher says {number} \u2028 <b>")
        assert row["reference"] == f"reference says {number} \u2028 <b>"
        drawn = greedy(watched.students[row["step"]], ids(number, 3 + number))
        assert row["student"] == tokenizer.decode(drawn, skip_special_tokens=True)


def test_a_distance_can_be_monitored(watched: Watched) -> None:
    validated = {step: curve(watched.root, "val/reverse_kl")[step - 1] for step in (2, 4)}
    best = min(validated, key=lambda step: validated[step])
    checkpoint = watched.trainer.checkpoint_callback
    assert isinstance(checkpoint, ModelCheckpoint)
    assert float(checkpoint.best_model_score) == pytest.approx(validated[best])
    assert f"step={best}" in checkpoint.best_model_path
    assert any(isinstance(callback, EarlyStopping) for callback in watched.trainer.callbacks)


def test_C4_training_is_the_same_with_and_without_the_callback(home: Path, tmp_path: Path) -> None:
    """The student drops out, so a disturbed random state or mode shows in its loss."""
    fit(home, tmp_path / "with", [watcher(home, sampler=SamplerSettings(max_new_tokens=6))])
    fit(home, tmp_path / "without", [])
    losses = curve(tmp_path / "with", "train/loss")
    assert len(losses) == 5
    assert losses == curve(tmp_path / "without", "train/loss")
    assert curve(tmp_path / "with", "val/loss") == curve(tmp_path / "without", "val/loss")

    class Careless(L.Callback):
        def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            torch.rand(3)

    fit(home, tmp_path / "careless", [Careless()])
    assert losses != curve(tmp_path / "careless", "train/loss")


def test_C4_modes_and_random_states_are_put_back(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = Keeper(), Keeper()
    plain = watch.load_frozen

    def greedy_for_randomness(*arguments: Any) -> Any:
        torch.rand(7), random.random()
        return plain(*arguments)

    monkeypatch.setattr(watch, "load_frozen", greedy_for_randomness)
    fit(home, tmp_path, [before, watcher(home), after])
    assert len(before.states) == 4
    for one, other in zip(before.states, after.states, strict=True):
        assert one == other
    assert {True, False} == set(before.states[0][3])


def test_not_at_the_start_and_not_twice_at_the_end(home: Path, tmp_path: Path) -> None:
    fit(home, tmp_path, [watcher(home, at_start=False)], steps=4)
    assert list(curve(tmp_path, "val/reverse_kl")) == [1, 3]
    assert [row["step"] for row in samples(tmp_path)] == [2] * 3 + [4] * 3


def test_a_resumed_run_goes_on_and_a_fresh_one_begins_anew(home: Path, tmp_path: Path) -> None:
    def callbacks() -> list[L.Callback]:
        return [watcher(home), ModelCheckpoint(tmp_path / "kept", every_n_train_steps=3, save_top_k=-1)]

    fit(home, tmp_path, callbacks())
    whole = samples(tmp_path)
    (checkpoint,) = (tmp_path / "kept").glob("*.ckpt")
    fit(home, tmp_path, callbacks(), ckpt_path=str(checkpoint))
    again = samples(tmp_path)
    assert again[:6] == whole[:6]  # the rest differs: the student drops out anew
    assert [(row["step"], row["prompt_id"]) for row in again] == [(row["step"], row["prompt_id"]) for row in whole]
    fit(home, tmp_path, [watcher(home, at_start=False, prompts=99)], steps=2)
    assert [row["step"] for row in samples(tmp_path)] == [2] * 6


def test_a_live_teacher_is_used_as_it_is(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = ModelSpec(str(home / "teacher")), ModelSpec(str(home / "student"))
    module = PreferenceModule(
        student, DaDPO(0.1, 0.1), {"teacher": AnchorSource(model=teacher), "reference": AnchorSource(model=student)}
    )
    pairs = str(home / "pairs")
    data = PreferenceData(PairSource(pairs), PairSource(pairs, "validation"), pairs_per_step=2)
    trainer = L.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", precision="32-true", max_steps=2, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        enable_checkpointing=False, log_every_n_steps=1, callbacks=[watcher(home)], check_val_every_n_epoch=2,
        logger=CSVLogger(tmp_path, name="", version="curves"),
    )  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(watch, "load_frozen", lambda *_: pytest.fail("the teacher is in memory already"))
        trainer.fit(module, data)
    shown = [row["prompt_id"] for row in samples(tmp_path)[:3]]
    start = expected(home, load_frozen(student, "32-true"), shown)
    assert {name: curve(tmp_path, name)[0] for name in NAMES} == pytest.approx(start, rel=1e-4)
    assert set(NAMES) <= trainer.callback_metrics.keys()


def test_texts_are_a_table_in_wandb(home: Path, tmp_path: Path) -> None:
    logger = ExperimentLogger("trial", "dsft", "dsft-1", str(tmp_path / "runs"))
    curves = CSVLogger(tmp_path, name="", version="curves")
    fit(home, tmp_path, [watcher(home)], steps=2, logger=[curves, logger])
    last = logger.experiment.summary["val/reverse_kl"]
    logger.experiment.finish()
    (folder,) = (tmp_path / "runs" / "wandb").glob("offline-run-*-dsft-1")
    tables = [json.loads(path.read_text("utf-8")) for path in folder.glob("files/media/table/samples*.table.json")]
    cells = sorted(row for table in tables for row in table["data"])
    assert cells == sorted(list(row.values()) for row in samples(tmp_path))
    assert tables[0]["columns"] == ["step", "prompt_id", "prompt", "teacher", "reference", "student"]
    assert last == pytest.approx(curve(tmp_path, "val/reverse_kl")[1])


def test_mistakes_show_before_anything_trains(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="prompts 0, expected at least 1"):
        watcher(home, prompts=0)
    answers, references = str(home / "answers"), str(home / "references")
    with pytest.raises(ArtifactError, match="was sampled by model"):
        fit(home, tmp_path, [WatchDistances(ModelSpec(str(home / "student")), answers)])
    write_responses(tmp_path / "few", home / "student", "reference", [1, 3])
    with pytest.raises(DataError, match=r"few/rows.jsonl: no response to prompt 'p\d+', which the teacher answers"):
        fit(home, tmp_path, [WatchDistances(ModelSpec(str(home / "teacher")), answers, str(tmp_path / "few"))])
    with pytest.raises(ConfigError, match="WatchDistances twice; `dadpo run` brings its own, expected one"):
        fit(home, tmp_path, [watcher(home), watcher(home)])
    unasked = WatchDistances(ModelSpec(str(home / "teacher")), answers, references)
    trainer: Any = SimpleNamespace(strategy=None, is_global_zero=True, callbacks=[])
    with pytest.raises(ConfigError, match="LightningModule trains no student"):
        unasked.setup(trainer, L.LightningModule(), "fit")


@pytest.mark.parametrize("name", ["ModelParallelStrategy", "FSDPStrategy", "stage 3", "stage 2"])
def test_sharded_students_are_refused(name: str, home: Path) -> None:
    if name.startswith("stage"):
        strategy: Any = DeepSpeedStrategy.__new__(DeepSpeedStrategy)
        strategy.config = {"zero_optimization": {"stage": int(name[-1])}}
    else:
        kind = {"ModelParallelStrategy": ModelParallelStrategy, "FSDPStrategy": FSDPStrategy}[name]
        strategy = kind.__new__(kind)
    trainer: Any = SimpleNamespace(strategy=strategy, is_global_zero=False, callbacks=[])
    module = SupervisedModule(ModelSpec(str(home / "student")))
    if name == "stage 2":
        watcher(home).setup(trainer, module, "fit")
        return
    with pytest.raises(ConfigError, match="synced generation on every rank"):
        watcher(home).setup(trainer, module, "fit")
