"""Means are means over examples, whatever the batches were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_dadpo.losses import DaDPO
from lightning_dadpo.training.metrics import ExampleMeans, pair_value_names, pair_values
from lightning_dadpo.types import PairLogProbs, SequenceLogProbs
from tests.ranks import ended, start_ranks


def log_probs(chosen: list[float], rejected: list[float], tokens: int = 4) -> PairLogProbs:
    count = torch.full((len(chosen),), tokens)
    return PairLogProbs(
        SequenceLogProbs(torch.tensor(chosen), count), SequenceLogProbs(torch.tensor(rejected), count + 1)
    )


def test_E3_uneven_batches_and_fillers_give_the_mean_over_examples() -> None:
    means = ExampleMeans(["a", "b"])
    means.update({"b": torch.tensor([10.0, 20.0, 30.0]), "a": torch.tensor([1.0, 2.0, 3.0])}, torch.ones(3))
    means.update({"a": torch.tensor([10.0]), "b": torch.tensor([100.0])}, torch.ones(1))
    means.update({"a": torch.tensor([999.0]), "b": torch.tensor([999.0])}, torch.zeros(1))
    found = means.compute()
    assert found["a"].item() == 4.0  # the mean of means would be 6
    assert found["b"].item() == 40.0
    means.reset()
    means.update({"a": torch.tensor([7.0]), "b": torch.tensor([8.0])}, torch.ones(1))
    assert means.compute()["a"].item() == 7.0


def test_means_leave_autograd_and_do_not_enter_checkpoints() -> None:
    means = ExampleMeans(["a"])
    means.update({"a": torch.ones(2, requires_grad=True)}, torch.ones(2))
    assert not means.compute()["a"].requires_grad
    assert not means.state_dict()


def test_many_small_values_do_not_drown_in_a_large_sum() -> None:
    means = ExampleMeans(["a"])
    means.update({"a": torch.tensor([2.0**26])}, torch.ones(1))
    for _ in range(64):
        means.update({"a": torch.ones(1)}, torch.ones(1))
    assert means.compute()["a"].item() == pytest.approx((2**26 + 64) / 65, rel=1e-12)


def test_values_of_a_pair_by_hand() -> None:
    policy = log_probs([-10.0, -8.0, -9.0], [-12.0, -8.0, -5.0])  # D = 2, 0, -4
    anchors = {
        "reference": log_probs([-11.0, -8.0, -9.0], [-12.0, -8.0, -6.0]),  # D = 1, 0, -3
        "teacher": log_probs([-5.0, -6.0, -7.0], [-8.0, -6.0, -6.0]),  # D = 3, 0, -1
    }
    loss = DaDPO(0.5, 0.25)
    values = pair_values(loss(policy, anchors), policy, anchors)
    assert set(values) == set(pair_value_names(loss.anchors))
    margin = [0.5 * (2 - 1) + 0.25 * (2 - 3), 0.0, 0.5 * (-4 + 3) + 0.25 * (-4 + 1)]  # 0.25, 0, -1.25
    assert values["margin"].tolist() == pytest.approx(margin)
    assert values["accuracy"].tolist() == [1.0, 0.5, 0.0]
    assert values["ties"].tolist() == [0.0, 1.0, 0.0]
    assert values["policy_preference"].tolist() == [1.0, 0.5, 0.0]
    assert values["teacher_agreement"].tolist() == [1.0, 0.5, 0.0]
    assert values["weight"].tolist() == pytest.approx([0.4378, 0.5, 0.7773], abs=1e-4)
    assert values["loss"].tolist() == pytest.approx([0.5759, 0.6931, 1.5019], abs=1e-4)
    assert values["chosen_reward"].tolist() == pytest.approx([0.5 * 1 + 0.25 * -5, 0.25 * -2, 0.25 * -2])
    assert values["chosen_nll_per_token"].tolist() == pytest.approx([2.5, 2.0, 2.25])
    assert values["chosen_tokens"].tolist() == [4.0] * 3
    assert values["rejected_tokens"].tolist() == [5.0] * 3
    assert values["rejected_log_prob/teacher"].tolist() == [-8.0, -6.0, -6.0]
    assert torch.allclose(values["chosen_reward"] - values["rejected_reward"], values["margin"])


def test_without_a_teacher_nothing_is_said_of_one() -> None:
    assert not [name for name in pair_value_names(["reference"]) if "teacher" in name]


def test_E5_both_sides_of_the_policy_and_of_each_anchor_are_charted_apart() -> None:
    names = pair_value_names(["reference", "teacher"])
    for model in ("policy", "reference", "teacher"):
        assert f"chosen_log_prob/{model}" in names
        assert f"rejected_log_prob/{model}" in names


def _mean_of_a_rank(rank: int, store: str, out: str) -> int:
    """Rank 0 has three examples, rank 1 one and a filler; every rank must compute the mean over four."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    means = ExampleMeans(["loss"])
    values, weights = ([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]) if rank == 0 else ([10.0, 99.0], [1.0, 0.0])
    means.update({"loss": torch.tensor(values)}, torch.tensor(weights))
    Path(f"{out}.{rank}").write_text(str(float(means.compute()["loss"])))
    torch.distributed.destroy_process_group()
    return 0


def test_E3_two_processes_with_uneven_batches_compute_the_mean_over_all_examples(tmp_path: Path) -> None:
    store, out = str(tmp_path / "store"), str(tmp_path / "mean")
    ranks = start_ranks(tmp_path / "logs", 2, lambda rank: _mean_of_a_rank(rank, store, out))
    assert ended(ranks) == [0, 0], [rank.said for rank in ranks]
    assert [float(Path(f"{out}.{rank}").read_text()) for rank in range(2)] == [4.0, 4.0]
