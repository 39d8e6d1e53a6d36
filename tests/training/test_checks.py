"""The checks before the first step, with the defects planted that they are there for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dadpo.data.pairing import read_pairs
from lightning_dadpo.data.rows import ScoreRow, read_rows
from lightning_dadpo.errors import AuditError
from lightning_dadpo.losses import DPO, IPO, DaDPO, PreferenceObjective
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.scoring.table import ScoreTable
from lightning_dadpo.training import checks
from lightning_dadpo.training.checkpoints import LastCheckpoint
from lightning_dadpo.training.checks import CheckScores
from lightning_dadpo.training.preference import AnchorSource
from lightning_dadpo.training.sources import PairSource
from tests.scoring.example import Setup, make_setup, scored, trainer, write_artifact
from tests.tiny import tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty"),
]
IMPORTED = {"chosen_from_teacher": False}


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return make_setup(tmp_path_factory.mktemp("checks"))


def start(
    setup: Setup, root: Path, check: dict[str, Any], module: dict[str, Any] | None = None, **settings: Any
) -> dict[str, float]:
    settings = {"limit_train_batches": 1, "limit_val_batches": 0} | settings
    loop = trainer(root, [CheckScores(**(IMPORTED | check))], **settings)
    loop.fit(setup.module(**(module or {})), datamodule=setup.data())
    return {name: float(value) for name, value in loop.callback_metrics.items()}


def altered(
    setup: Setup, folder: Path, anchor: str, change: Callable[[list[ScoreRow]], list[ScoreRow]]
) -> AnchorSource:
    """The anchor's scores with a defect planted."""
    source = setup.reference_scores if anchor == "reference" else setup.teacher_scores
    rows = change(list(read_rows(source / "rows.jsonl", ScoreRow)))
    made_from = json.loads((source / "manifest.json").read_text("utf-8"))["made_from"]
    return AnchorSource(scores=str(write_artifact(folder / f"altered-{anchor}", "scores", rows, made_from)))


def anchors_with(setup: Setup, **changed: AnchorSource) -> dict[str, Any]:
    return {"anchors": setup.module().anchor_sources | changed}


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_fresh_run_passes_with_cached_and_with_live_anchors(
    setup: Setup, tmp_path: Path, capsys: pytest.CaptureFixture[str], live: bool, precision: Any
) -> None:
    reference = scored(setup.student, setup.pairs, tmp_path / "reference", "reference", precision=precision)
    anchors = anchors_with(setup, reference=AnchorSource(scores=str(reference)))
    module = {"anchors": setup.module(live=True).anchor_sources} if live else anchors
    teacher = ModelSpec(str(setup.teacher))
    start(setup, tmp_path, {"teacher": teacher}, module, precision=precision)
    said = capsys.readouterr().out
    assert "step-0 oracle: student = reference on 8 pairs; largest difference in loss" in said
    assert "D_teacher - D_reference: quartiles" in said
    assert (" pairs)" in said) == live  # a live anchor is asked about some pairs only, and the report says so


def test_the_oracle_asks_a_student_that_does_not_drop_out_and_leaves_it_dropping_out(tmp_path: Path) -> None:
    setup = make_setup(tmp_path, dropout=0.5)
    modes = []

    class Modes(CheckScores):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            modes.append({part.training for part in pl_module.student.modules()})

    loop = trainer(tmp_path, [Modes(**IMPORTED)], limit_train_batches=1, limit_val_batches=0)
    loop.fit(setup.module(), datamodule=setup.data())
    assert modes == [{True}]


def test_D7_C5_scores_of_another_model_as_reference_stop_the_run_with_row_and_numbers(
    setup: Setup, tmp_path: Path
) -> None:
    other = tiny_model(tmp_path / "base", layers=2, seed=7)
    scores = scored(other, setup.pairs, tmp_path / "other", anchor="reference")
    module = anchors_with(setup, reference=AnchorSource(scores=str(scores)))
    message = (
        r"step-0 oracle: pair \w{16} \(prompt train-\d+\), chosen response: the student starts at -\d+\.\d{4} nats, "
        r"the reference has -\d+\.\d{4}; the reference's scores are not this student's"
    )
    with pytest.raises(AuditError, match=message):
        start(setup, tmp_path, {}, module)


def test_D7_a_live_reference_that_is_another_model_stops_the_run(setup: Setup, tmp_path: Path) -> None:
    base = AnchorSource(model=ModelSpec(str(tiny_model(tmp_path / "base", layers=2, seed=7))))
    with pytest.raises(AuditError, match="step-0 oracle"):
        start(setup, tmp_path, {}, anchors_with(setup, reference=base) | {"loss": DPO(0.1)})


@pytest.mark.parametrize("amount", [0.5, -0.5, 0.02])
def test_one_altered_score_of_the_reference_is_found_by_its_pair(setup: Setup, tmp_path: Path, amount: float) -> None:
    victim = min(read_pairs(setup.pairs, "train"), key=lambda p: len(p.prompt_token_ids) + len(p.chosen_token_ids))

    def change(rows: list[ScoreRow]) -> list[ScoreRow]:
        return [
            replace(row, rejected_log_prob=row.rejected_log_prob + amount) if row.pair_id == victim.pair_id else row
            for row in rows
        ]

    module = anchors_with(setup, reference=altered(setup, tmp_path, "reference", change))
    with pytest.raises(AuditError, match=rf"pair {victim.pair_id} \(prompt {victim.prompt_id}\), rejected response"):
        start(setup, tmp_path, {"rows": 16}, module)


def permuted(rows: list[ScoreRow]) -> list[ScoreRow]:
    names = [row.pair_id for row in rows]
    return [replace(row, pair_id=name) for row, name in zip(rows, names[1:] + names[:1], strict=True)]


def swapped(rows: list[ScoreRow]) -> list[ScoreRow]:
    return [
        replace(
            row, chosen_log_prob=row.rejected_log_prob, rejected_log_prob=row.chosen_log_prob,
            chosen_num_tokens=row.rejected_num_tokens, rejected_num_tokens=row.chosen_num_tokens,
        )
        for row in rows
    ]  # fmt: skip


@pytest.mark.parametrize("plant", [permuted, swapped])
def test_the_oracle_proves_nothing_about_the_teacher_and_the_audit_does(
    setup: Setup, tmp_path: Path, plant: Callable[[list[ScoreRow]], list[ScoreRow]]
) -> None:
    module = anchors_with(setup, teacher=altered(setup, tmp_path, "teacher", plant))
    start(setup, tmp_path, {}, module)  # the teacher stands on both sides of the oracle
    with pytest.raises(AuditError, match=r"audit of teacher: pair \w{16} .* nats stored, .* nats found"):
        start(setup, tmp_path, {"teacher": ModelSpec(str(setup.teacher))}, module)


def test_a_teacher_scored_in_another_precision_is_audited_in_that_precision(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    real = checks.load_frozen
    monkeypatch.setattr(checks, "load_frozen", lambda *given: loaded.append(given[1]) or real(*given))
    scores = scored(setup.teacher, setup.pairs, tmp_path / "bf16", precision="bf16-mixed")
    module = anchors_with(setup, teacher=AnchorSource(scores=str(scores)))
    start(setup, tmp_path, {"teacher": ModelSpec(str(setup.teacher))}, module)
    assert loaded == ["bf16-mixed"]


def test_a_servers_scores_are_not_held_to_a_copy_that_rounds_otherwise(
    setup: Setup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [replace(row, chosen_log_prob=row.chosen_log_prob - 0.3) for row in read_scores(setup)]
    served = write_artifact(tmp_path / "served", "scores", rows, {"backend": checks.SERVED})
    anchors = anchors_with(setup, teacher=AnchorSource(scores=str(served)))
    start(setup, tmp_path, {"teacher": ModelSpec(str(setup.teacher))}, anchors)
    assert "are a server's" in capsys.readouterr().out


def read_scores(setup: Setup) -> list[ScoreRow]:
    return list(read_rows(setup.teacher_scores / "rows.jsonl", ScoreRow))


def test_scores_that_the_teachers_own_sampler_contradicts_stop_the_run(setup: Setup, tmp_path: Path) -> None:
    stored = {row.pair_id: row for row in read_rows(setup.teacher_scores / "rows.jsonl", ScoreRow)}
    rows = [replace(p, chosen_log_prob=stored[p.pair_id].chosen_log_prob) for p in read_pairs(setup.pairs)]
    rows[5] = replace(rows[5], chosen_log_prob=rows[5].chosen_log_prob - 1.0)  # type: ignore[operator]
    pairs = write_artifact(tmp_path / "sampled", "pairs", rows)
    callback = CheckScores(teacher=ModelSpec(str(setup.teacher)), chosen_from_teacher=True)
    loop = trainer(tmp_path, [callback], limit_train_batches=1, limit_val_batches=0)
    with pytest.raises(AuditError, match=rf"teacher against its sampler: pair {rows[5].pair_id}"):
        loop.fit(setup.module(), datamodule=setup.data(train=PairSource(str(pairs))))


def test_own_samples_that_the_student_finds_likelier_stop_the_run(setup: Setup, tmp_path: Path) -> None:
    def worse(rows: list[ScoreRow]) -> list[ScoreRow]:
        return [replace(row, chosen_log_prob=row.chosen_log_prob - 100) for row in rows]

    module = anchors_with(setup, teacher=altered(setup, tmp_path, "teacher", worse))
    with pytest.raises(AuditError, match="its own samples get"):
        start(setup, tmp_path, {"chosen_from_teacher": True}, module)


def test_answers_that_the_student_learnt_by_heart_stop_nothing_where_unseen_ones_tell(
    setup: Setup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learnt = {pair.pair_id for pair in read_pairs(setup.pairs) if pair.split == "train"}

    def by_heart(rows: list[ScoreRow]) -> list[ScoreRow]:
        """The teacher finds what was trained on less likely than the student does, and the rest likelier."""
        return [
            replace(row, chosen_log_prob=row.chosen_log_prob + (-100 if row.pair_id in learnt else 100)) for row in rows
        ]

    scores = altered(setup, tmp_path, "teacher", by_heart)
    sources = {split: PairSource(str(setup.pairs), split) for split in ("train", "validation")}
    loop = trainer(tmp_path, [CheckScores()], limit_train_batches=1, limit_val_batches=0)
    loop.fit(setup.module(**anchors_with(setup, teacher=scores)), datamodule=setup.data(**sources))
    assert "nats a response from the teacher" in capsys.readouterr().out


def test_checks_run_on_fresh_runs_alone(setup: Setup, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for epochs, path in ((1, None), (2, tmp_path / "checkpoints" / "last.ckpt")):
        loop = trainer(tmp_path, [CheckScores(**IMPORTED), LastCheckpoint()], max_epochs=epochs, limit_val_batches=0)
        capsys.readouterr()
        loop.fit(setup.module(), datamodule=setup.data(), ckpt_path=path)
        assert ("step-0 oracle" in capsys.readouterr().out) == (path is None)
        assert loop.global_step == 3 * epochs


def test_a_student_that_starts_elsewhere_is_not_held_to_the_reference(
    setup: Setup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(setup, tmp_path, {"starts_at_reference": False}, {"student": ModelSpec(str(setup.teacher))})
    said = capsys.readouterr().out
    assert "step-0 oracle" not in said
    assert "D_teacher - D_reference" in said


@pytest.mark.parametrize(
    ("loss", "weighs"), [(DaDPO(0.1, 0.1), True), (IPO({"reference": 0.1, "teacher": 0.1}), False)]
)
def test_saturation_is_said_of_log_sigmoids_alone(
    setup: Setup, tmp_path: Path, capsys: pytest.CaptureFixture[str], loss: PreferenceObjective, weighs: bool
) -> None:
    start(setup, tmp_path, {}, {"loss": loss})
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("D_teacher - D_reference")]
    assert ("of pairs start with a weight > 0.9" in line) == weighs


def test_the_report_reads_every_pair_without_touching_the_random_state(setup: Setup, tmp_path: Path) -> None:
    asked: list[str] = []
    real = ScoreTable.look_up

    def counting(self: ScoreTable, pair_ids: Iterable[str]) -> Any:
        names = list(pair_ids)
        asked.extend(names)
        return real(self, names)

    state = []

    class Check(CheckScores):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            state.append(torch.get_rng_state())
            super().on_train_start(trainer, pl_module)
            state.append(torch.get_rng_state())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScoreTable, "look_up", counting)
        callback = Check(teacher=ModelSpec(str(setup.teacher)), **IMPORTED)
        loop = trainer(tmp_path, [callback], limit_train_batches=1, limit_val_batches=0)
        loop.fit(setup.module(), datamodule=setup.data())
    assert {pair.pair_id for pair in read_pairs(setup.pairs, "train")} <= set(asked)
    assert torch.equal(*state)
