"""What the DataModules read, drop, refuse and hand out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest

from lightning_dadpo.data.artifacts import draft
from lightning_dadpo.data.batching import pair_tokens
from lightning_dadpo.data.importing import PreferenceSource
from lightning_dadpo.data.plan import Plan
from lightning_dadpo.data.rows import RowWriter
from lightning_dadpo.errors import ArtifactError, ConfigError, DataError
from lightning_dadpo.scoring.cached import CachedScorer
from lightning_dadpo.training.datamodule import PreferenceData
from lightning_dadpo.training.normalisation import framework_divisor
from lightning_dadpo.training.sources import PairSource, ResponseSource
from tests.scoring.example import (
    LiveRows,
    Setup,
    make_pairs,
    make_response,
    make_setup,
    score_row,
    trainer,
    write_artifact,
)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "pairs", "pairs", make_pairs(7) + make_pairs(4, "validation"))


def test_only_the_split_that_was_asked_for_is_read(pairs: Path) -> None:
    assert [row.prompt_id for row in PairSource(str(pairs), "validation").read()] == [
        f"validation-{number}" for number in range(4)
    ]
    with pytest.raises(DataError, match=r"no pairs of split 'heldout'; it has train 7, validation 4"):
        PairSource(str(pairs), "heldout").read()


def test_a_source_is_a_folder_or_preferences_never_both_or_none(pairs: Path) -> None:
    with pytest.raises(ConfigError, match="one of the two"):
        PairSource()
    with pytest.raises(ConfigError, match="one of the two"):
        PairSource(str(pairs), preferences=PreferenceSource("x.jsonl"))
    with pytest.raises(ConfigError, match="needs `tokenizer"):
        PairSource(preferences=PreferenceSource("x.jsonl"))


def test_A7_cut_responses_are_dropped_and_counted_unless_they_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [make_response(0), make_response(1, finish="length"), make_response(2), make_response(3, "validation")]
    folder = str(write_artifact(tmp_path / "responses", "responses", rows))
    assert [row.prompt_id for row in ResponseSource(folder).read()] == ["train-0", "train-2"]
    assert "2 responses of split train; dropped 0 empty and 1 cut ones" in capsys.readouterr().out
    assert len(ResponseSource(folder, keep_cut=True).read()) == 3
    with pytest.raises(ArtifactError, match="holds responses, expected pairs"):
        PairSource(folder).read()


def test_of_several_responses_to_a_prompt_the_first_ones_are_learnt_from(tmp_path: Path) -> None:
    rows = [replace(make_response(number), candidate=candidate) for number in range(2) for candidate in range(3)]
    folder = str(write_artifact(tmp_path / "responses", "responses", rows))
    assert [(row.prompt_id, row.candidate) for row in ResponseSource(folder).read()] == [("train-0", 0), ("train-1", 0)]
    assert [row.candidate for row in ResponseSource(folder, candidates=2).read()] == [0, 1, 0, 1]
    with pytest.raises(ConfigError, match="candidates 0: expected at least 1"):
        ResponseSource(folder, candidates=0)


def test_the_loaders_hold_steps_of_the_configured_size_and_every_validation_row_once(
    pairs: Path, tmp_path: Path
) -> None:
    validation = PairSource(str(pairs), "validation")
    data = PreferenceData(PairSource(str(pairs)), validation, None, pairs_per_step=3, tokens_per_batch=40)
    data.trainer = trainer(tmp_path)
    data.setup("fit")
    batches = list(data.train_dataloader())
    micro_batches = data.trainer.accumulate_grad_batches
    assert micro_batches > 1
    assert [batch.pairs_in_step for batch in batches] == [3] * 2 * micro_batches + [1] * micro_batches
    assert sum(float(batch.weights.sum()) for batch in batches) == 7
    batches += (validated := list(data.val_dataloader()))
    assert sum(len(batch) for batch in validated) == 4
    assert all(len(batch) == 1 or batch.sequences.num_tokens <= 40 for batch in batches)
    assert data.test_dataloader() == []


class Steps(L.Callback):
    """What the trainer makes of a plan: micro-batches a step, and the rows of each optimizer step."""

    def __init__(self) -> None:
        self.accumulate: int | float = 0
        self.expected_steps: int | float = 0
        self.divisor = 0
        self.micro_batches: list[list[str]] = [[]]
        self.tokens: list[int] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.accumulate, self.expected_steps = trainer.accumulate_grad_batches, trainer.estimated_stepping_batches
        self.divisor = framework_divisor(trainer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.micro_batches[-1].append(",".join(sorted(batch.pair_ids)))
        self.tokens.append(batch.sequences.num_tokens if len(batch) > 1 else 0)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.micro_batches.append([])


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return make_setup(tmp_path_factory.mktemp("micro-batches"))


@pytest.mark.parametrize("budget", [60, 90, 100_000])
def test_the_budget_decides_how_often_a_real_trainer_accumulates(setup: Setup, tmp_path: Path, budget: int) -> None:
    steps = Steps()
    loop = trainer(tmp_path, [steps], max_epochs=2)
    data = setup.data(tokens_per_batch=budget)
    loop.fit(setup.module(), datamodule=data)
    pairs = list(PairSource(str(setup.pairs)).read())
    plan = Plan(np.array([pair_tokens(pair) for pair in pairs]), np.ones(16, dtype=np.int64), 6, 0, 1)
    expected = plan.micro_batches(budget, epochs=2)
    assert steps.accumulate == steps.divisor == expected
    assert (expected == 1) == (budget == 100_000)
    assert loop.global_step == steps.expected_steps == 6  # steps of 6, 6 and 4 pairs, twice
    assert {len(step) for step in steps.micro_batches[:-1]} == {expected}
    assert max(steps.tokens) <= budget
    assert loop.accumulate_grad_batches == 1  # as it was found


def test_a_second_training_with_the_same_trainer_is_planned_anew(setup: Setup, tmp_path: Path) -> None:
    steps = Steps()
    loop = trainer(tmp_path, [steps])
    counted = []
    for budget in (60, 90):
        loop.fit_loop.epoch_progress.reset()
        loop.fit(setup.module(), datamodule=setup.data(tokens_per_batch=budget))
        counted.append(steps.accumulate)
    assert counted[0] > counted[1] > 1


def test_steps_that_are_never_taken_ask_for_no_micro_batches(setup: Setup, tmp_path: Path) -> None:
    pairs = list(PairSource(str(setup.pairs)).read())
    plan = Plan(np.array([pair_tokens(pair) for pair in pairs]), np.ones(16, dtype=np.int64), 6, 0, 1)
    for max_epochs, max_steps, epochs in ((-1, 4, 2), (7, 2, 1), (None, 1, 1)):
        steps = Steps()
        loop = trainer(tmp_path, [steps], max_epochs=max_epochs, max_steps=max_steps, limit_val_batches=0)
        loop.fit(setup.module(), datamodule=setup.data(tokens_per_batch=60))
        assert steps.accumulate == plan.micro_batches(60, epochs, max_steps)
        assert loop.global_step == max_steps


def test_a_number_of_micro_batches_that_a_person_gave_is_obeyed_and_not_beside_a_budget(
    setup: Setup, tmp_path: Path
) -> None:
    steps = Steps()
    loop = trainer(tmp_path, [steps], accumulate_grad_batches=5)
    loop.fit(setup.module(), datamodule=setup.data())
    assert steps.accumulate == loop.accumulate_grad_batches == 5
    with pytest.raises(
        ConfigError, match=r"accumulate_grad_batches 5 and data\.tokens_per_batch 90: give one of the two"
    ):
        trainer(tmp_path, accumulate_grad_batches=5).fit(setup.module(), datamodule=setup.data(tokens_per_batch=90))
    with pytest.raises(ConfigError, match=r"data\.tokens_per_batch 0: expected at least 1"):
        setup.data(tokens_per_batch=0)


def test_the_number_of_pairs_does_not_decide_how_many_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = {}
    for count in (20, 320):
        folder = write_artifact(tmp_path / str(count), "pairs", make_pairs(20) * (count // 20))
        data = PreferenceData(PairSource(str(folder)), tokens_per_batch=100)
        data.trainer = trainer(tmp_path)
        with monkeypatch.context() as patch:
            live = LiveRows(patch)
            data.setup("fit")
            seen = sum(int(batch.weights.sum()) for batch in data.train_dataloader())
        assert seen == count
        most[count] = live.most
    assert most[320] <= most[20] + 2
    assert most[320] < 20


def test_stages_read_what_they_need_alone(pairs: Path, tmp_path: Path) -> None:
    sources = [PairSource(str(pairs)), PairSource(str(pairs), "validation"), PairSource(str(tmp_path / "none"))]
    data = PreferenceData(*sources)
    data.trainer = trainer(tmp_path)
    data.setup("fit")
    assert sorted(data.rows) == ["train", "validation"]
    with pytest.raises(ArtifactError, match="no manifest"):
        data.setup("test")
    only = PreferenceData(*sources)
    only.setup("validate")
    assert sorted(only.rows) == ["validation"]


def test_nothing_to_train_on_is_refused(pairs: Path, tmp_path: Path) -> None:
    data = PreferenceData(validation=PairSource(str(pairs), "validation"))
    data.trainer = trainer(tmp_path)
    data.setup("fit")
    with pytest.raises(ConfigError, match=r"data\.train: nothing to train on"):
        data.train_dataloader()


def test_pairs_that_a_scorer_left_out_are_left_out_of_the_data_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*make_pairs(7), *make_pairs(4, "validation")]
    folder = write_artifact(tmp_path / "pairs", "pairs", rows)
    gone = {rows[2].pair_id: "broken UTF-8 in the response", rows[8].pair_id: "broken UTF-8 in the response"}
    with draft(tmp_path / "scores", "scores", {}) as work, RowWriter(work.path / "rows.jsonl") as writer:
        writer.write(*(score_row(pair, -1.0, -2.0) for pair in rows if pair.pair_id not in gone))
        work.results["left_out"] = gone
    with pytest.raises(ArtifactError, match=rf"pair {rows[2].pair_id} was left out .*broken UTF-8.*add `scored_by: \["):
        CachedScorer(tmp_path / "scores").look_up([rows[2].pair_id])
    whole, source = PairSource(str(folder)), PairSource(str(folder), scored_by=[str(tmp_path / "scores")])
    assert [pair.pair_id for pair in source.read()] == [pair.pair_id for pair in rows[:7] if pair.pair_id not in gone]
    assert (
        capsys.readouterr().out
        == "6 pairs of split train; left out 1 that have no scores (broken UTF-8 in the response: 1)\n"
    )
    digests = {_contents_of(tmp_path, one) for one in (whole, source, PairSource(str(folder), scored_by=[]))}
    assert len(digests) == 2, "a training on other pairs is not gone on with"


def _contents_of(root: Path, source: PairSource) -> str:
    data = PreferenceData(source, pairs_per_step=3)
    data.trainer = trainer(root)
    data.setup("fit")
    return data._contents()
