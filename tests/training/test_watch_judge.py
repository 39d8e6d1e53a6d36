"""A judge's verdicts on a student's fresh samples while it trains."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch

from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.evaluation.judges import Comparison, Judge, LikelihoodJudge, Preference
from lightning_dadpo.models.loading import load_tokenizer
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.sampling.base import Sampled, SamplerSettings
from lightning_dadpo.sampling.transformers_sampler import TransformersSampler
from lightning_dadpo.training import watch
from lightning_dadpo.training.fresh_samples import text_values
from lightning_dadpo.training.supervised import SupervisedModule
from tests.tiny import END_OF_TURN
from tests.training.watched_runs import QUIET, Keeper, curve, fit, ids, in_float32, make_home, samples, watcher

pytestmark = QUIET
SETTINGS = SamplerSettings(max_new_tokens=6, seed=5)
SHARES = ("val/win", "val/tie", "val/lose", "val/preference_rate", "val/longer_wins")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    in_float32(monkeypatch)


def taste(text: str) -> int:
    """As good as random, and the same tomorrow; some texts are alike to it."""
    return crc32(text.encode()) % 3


class Taster(Judge):
    """Prefers by `taste`; draws random numbers, as one that samples would, and keeps what it was asked."""

    name = "taster"

    def __init__(self) -> None:
        self.calls: list[list[Comparison]] = []

    def identity(self) -> dict[str, Any]:
        return {"judge": self.name}

    def cost(self, comparisons: Sequence[Comparison]) -> str:
        return f"{len(comparisons)} sips"

    def prefer(self, comparisons: Sequence[Comparison]) -> list[Preference]:
        torch.rand(3), random.random(), np.random.rand()
        self.calls.append(list(comparisons))
        return [self.one(comparison) for comparison in comparisons]

    def one(self, comparison: Comparison) -> Preference:
        first, second = taste(comparison.first), taste(comparison.second)
        return "first" if first > second else "second" if second > first else "tie"


class Hasty(Taster):
    """Takes whichever it reads first."""

    def one(self, comparison: Comparison) -> Preference:
        return "first"


class Broken(Taster):
    def one(self, comparison: Comparison) -> Preference:
        raise DataError("server http://judge: no answer in 9 s")


def expected(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The shares, counted by hand from the texts that were kept."""
    points = []
    for row in rows:
        own, theirs = taste(row["student"]), taste(row["teacher"])
        points.append((own > theirs) - (own < theirs))
        assert row["verdict"] == {1: "win", 0: "tie", -1: "lose"}[points[-1]]
    longer = [(len(row["student"]) > len(row["teacher"])) - (len(row["student"]) < len(row["teacher"])) for row in rows]
    counts, number = Counter(points), len(rows)
    shares = (counts[1], counts[0], counts[-1], counts[1] - counts[-1], sum(longer))
    return {name: value / number for name, value in zip(SHARES, shares, strict=True)}


def shapes(home: Path, student: Any, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Repetition, endings and lengths of what this very student draws, in eval mode, counted by hand."""
    shown = [row["prompt_id"] for row in rows]
    prompts = [ids(int(prompt[1:]), 3 + int(prompt[1:])) for prompt in shown]
    drawn = [one.token_ids for one in TransformersSampler(student, (END_OF_TURN,), SETTINGS).sample(prompts, shown)]
    tokenizer = load_tokenizer(ModelSpec(str(home / "student")))
    assert [row["student"] for row in rows] == [tokenizer.decode(one, skip_special_tokens=True) for one in drawn]
    again = total = 0
    for tokens in drawn:
        grams = [tuple(tokens[at : at + 4]) for at in range(len(tokens) - 3)]
        again, total = again + len(grams) - len(set(grams)), total + len(grams)
    return {
        "val/repetition": again / total if total else 0.0,
        "val/finished": sum(tokens[-1] == END_OF_TURN for tokens in drawn) / len(drawn),
        "val/mean_tokens": sum(map(len, drawn)) / len(drawn),
    }


def test_E2_E4_verdicts_equal_those_counted_by_hand(
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    keeper, judge = Keeper(), Taster()
    trainer = fit(home, tmp_path, [keeper, watcher(home, prompts=6, sampler=SETTINGS, judge=judge)])
    rows = samples(tmp_path)
    found = []
    for step in (0, 2, 4, 5):
        own = [row for row in rows if row["step"] == step]
        assert len(own) == 6
        by_hand = expected(own) | shapes(home, keeper.students[step], own)
        assert {name: curve(tmp_path, name)[max(0, step - 1)] for name in by_hand} == pytest.approx(by_hand)
        found.append(by_hand)
    assert len({one["val/preference_rate"] for one in found}) > 1
    assert {verdict for row in rows for verdict in [row["verdict"]]} == {"win", "tie", "lose"}
    assert set(SHARES) <= trainer.callback_metrics.keys()
    asked = judge.calls[0]
    assert [one.comparison_id.partition("/")[2] for one in asked] == ["ab", "ba"] * 6
    assert [one.first for one in asked[::2]] == [row["student"] for row in rows[:6]]
    assert [(one.first, one.second) for one in asked[1::2]] == [(one.second, one.first) for one in asked[::2]]
    assert [one.messages[0].content for one in asked[::2]] == [row["prompt"] for row in rows[:6]]
    assert capsys.readouterr().out.count("taster, each time: 12 sips\n") == 1


def test_C4_a_judge_that_draws_random_numbers_does_not_disturb_the_training(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The student drops out. Planted: without the isolation its losses are others."""

    def losses(name: str, *callbacks: Any) -> dict[int, float]:
        fit(home, tmp_path / name, list(callbacks))
        return curve(tmp_path / name, "train/loss")

    undisturbed = losses("without")
    assert losses("judged", watcher(home, sampler=SETTINGS, judge=Taster())) == undisturbed
    with monkeypatch.context() as planted:
        planted.setattr(watch, "isolate_rng", nullcontext)
        assert losses("planted", watcher(home, sampler=SETTINGS, judge=Taster())) != undisturbed


def test_E2_a_judge_that_takes_whichever_comes_first_only_ties(home: Path, tmp_path: Path) -> None:
    fit(home, tmp_path, [watcher(home, sampler=SETTINGS, judge=Hasty())], steps=2)
    assert curve(tmp_path, "val/tie") == {0: 1.0, 1: 1.0}
    assert curve(tmp_path, "val/preference_rate") == {0: 0.0, 1: 0.0}


def test_without_a_judge_the_samples_are_described_and_nobody_wins(home: Path, tmp_path: Path) -> None:
    trainer = fit(home, tmp_path, [watcher(home)], steps=2)
    assert {"val/repetition", "val/finished", "val/mean_tokens"} <= trainer.callback_metrics.keys()
    assert not set(SHARES) & trainer.callback_metrics.keys()
    assert "verdict" not in samples(tmp_path)[0]


def test_values_of_samples_worked_by_hand() -> None:
    """12 tokens and 6 4-grams, of which 1212 occurs twice; one of two ended by itself."""
    first, second = Sampled([1, 2, 1, 2, 1, 2], "length", 0.0), Sampled([3, 4, 5, 6, 7, 2], "stop", 0.0)
    assert text_values([first, second]) == {"val/repetition": 1 / 6, "val/finished": 0.5, "val/mean_tokens": 6.0}
    assert text_values([Sampled([2], "stop", 0.0)])["val/repetition"] == 0.0


class Line:
    """A strategy of two ranks, one after the other: what rank 0 broadcasts is what rank 1 gets."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.broadcasts = Counter[int]()

    def trainer(self, rank: int, root: Path) -> Any:
        def broadcast(value: Any) -> Any:
            self.broadcasts[rank] += 1
            if rank == 0:
                self.sent.append(value)
            return self.sent[self.broadcasts[rank] - 1]

        return SimpleNamespace(
            strategy=SimpleNamespace(broadcast=broadcast), is_global_zero=rank == 0, global_step=0, loggers=[],
            precision="32-true", default_root_dir=str(root), sanity_checking=False, callbacks=[],
        )  # fmt: skip


@pytest.mark.parametrize("judge", [Taster, Broken])
def test_every_rank_takes_part_once_whatever_becomes_of_rank_0(
    judge: type[Taster],
    home: Path,
    tmp_path: Path,
) -> None:
    line, judges = Line(), [judge(), judge()]
    logged: list[dict[str, float]] = []
    errors: list[str] = []
    for rank in (0, 1):
        module = SupervisedModule(ModelSpec(str(home / "student")))
        module.log_dict = lambda values, sync_dist: logged.append(values)  # type: ignore[method-assign,assignment]
        callback, trainer = watcher(home, sampler=SETTINGS, judge=judges[rank]), line.trainer(rank, tmp_path)
        if rank == 0:
            module.student = watch.load_frozen(module.student_spec, "32-true")
        callback.setup(trainer, module, "fit")
        try:
            callback.on_validation_epoch_end(trainer, module)
        except DataError as error:
            errors.append(str(error))
    assert line.broadcasts == {0: 1, 1: 1}
    assert judges[1].calls == []
    if judge is Broken:
        said = "server http://judge: no answer in 9 s"
        assert errors == [said, f"WatchDistances: rank 0 could not measure: {said}"]
        assert logged == []
        assert not (tmp_path / "samples.jsonl").exists()
    else:
        assert len(judges[0].calls) == 1
        assert errors == []
        assert logged[0] == logged[1]
        assert set(SHARES) <= logged[0].keys()


def test_texts_that_were_drawn_otherwise_and_a_judge_that_is_not_there_are_refused(home: Path) -> None:
    trainer: Any = SimpleNamespace(strategy=None, is_global_zero=True, callbacks=[])
    cooler = watcher(home, sampler=SamplerSettings(temperature=0.3), judge=Taster())
    with pytest.raises(DataError) as refused:
        cooler.setup(trainer, SupervisedModule(ModelSpec(str(home / "student"))), "fit")
    assert str(refused.value) == (
        "WatchDistances: sampler setting temperature is 0.3 for the judged student but 1.0 for teacher; "
        "expected the same"
    )
    absent = watcher(home, sampler=SETTINGS, judge=LikelihoodJudge(ModelSpec("./nowhere")))
    with pytest.raises(ConfigError, match=r"model path './nowhere': no such folder"):
        absent.setup(trainer, SupervisedModule(ModelSpec(str(home / "student"))), "fit")
