"""`dadpo sample` as several processes: the bytes of one, and nothing drawn twice when one of them is killed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_dadpo.cli.main import main
from lightning_dadpo.sampling import stage
from lightning_dadpo.sampling.transformers_sampler import TransformersSampler
from tests.ranks import ended, start_ranks
from tests.sampling.test_stage import write_prompts

SETTINGS = {"temperature": 0.8, "max_new_tokens": 8, "seed": 3}


@pytest.fixture
def config(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fifteen prompts, in windows of two."""
    monkeypatch.setattr(stage, "BATCHES_IN_WINDOW", 1)
    train = write_prompts(tmp_path / "train.jsonl", [f"train{'x' * n}" for n in range(12)])
    heldout = write_prompts(tmp_path / "heldout.jsonl", ["held", "out", "there"])
    settings = {
        "model": {"path": str(tiny_folder)},
        "prompts": {"train": {"path": train.path}, "heldout": {"path": heldout.path}},
        "settings": SETTINGS,
        "batch_size": 2,
        "precision": "32-true",
    }
    path = tmp_path / "sample.yaml"
    path.write_text(yaml.safe_dump(settings), "utf-8")
    return path


def sampling(config: Path, out: Path) -> Callable[[int], int]:
    return lambda rank: main(["sample", "-c", str(config), "--out", str(out)])


def noted(monkeypatch: pytest.MonkeyPatch, notes: Path, dies: int | None = None, at: int = 2) -> None:
    """Every prompt that is drawn leaves a line; one rank is killed when it begins its `at`th window."""
    real, calls = TransformersSampler.sample, []

    def noting(self: Any, ids: list[list[int]], keys: list[str], advance: Any) -> Any:
        calls.append(keys)
        if os.environ.get("RANK") == str(dies) and len(calls) == at:
            os.kill(os.getpid(), 9)
        drawn = real(self, ids, keys, advance)
        with notes.open("a") as file:
            file.write("".join(f"{key}\n" for key in keys))
        return drawn

    monkeypatch.setattr(TransformersSampler, "sample", noting)


@pytest.mark.parametrize(("size", "candidates"), [(2, 1), (3, 1), (2, 3)])
def test_any_number_of_processes_writes_the_bytes_of_one(
    config: Path, tmp_path: Path, size: int, candidates: int
) -> None:
    with config.open("a") as file:
        file.write(f"responses_per_prompt: {candidates}\n")
    assert sampling(config, tmp_path / "one")(0) == 0
    ranks = start_ranks(tmp_path / "logs", size, sampling(config, tmp_path / "many"))
    assert ended(ranks) == [0] * size, [rank.said for rank in ranks]
    rows = (tmp_path / "many" / "rows.jsonl").read_bytes()
    assert rows == (tmp_path / "one" / "rows.jsonl").read_bytes()
    assert len(rows.splitlines()) == 15 * candidates
    assert ranks[0].said.splitlines()[-1] == str(tmp_path / "many")
    assert not any(rank.said for rank in ranks[1:])


@pytest.mark.parametrize("again", [1, 3])
def test_C3_killed_and_started_again_on_other_ranks_it_draws_only_what_is_missing(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: int
) -> None:
    assert sampling(config, tmp_path / "one")(0) == 0
    notes, out = tmp_path / "notes", tmp_path / "many"
    with monkeypatch.context() as patch:
        noted(patch, notes, dies=1)
        ranks = start_ranks(tmp_path / "logs", 2, sampling(config, out))
        assert ended(ranks) == [2, -9]
    assert ranks[0].said.splitlines()[-1].startswith(f"error: {out}.partial: rank 1 (process {ranks[1].process} on ")
    first = notes.read_text().split()
    assert 2 < len(first) < 15
    noted(monkeypatch, notes)
    assert ended(start_ranks(tmp_path / "logs", again, sampling(config, out))) == [0] * again
    drawn = notes.read_text().split()
    assert len(drawn) == len(set(drawn)) == 15  # none twice
    assert (out / "rows.jsonl").read_bytes() == (tmp_path / "one" / "rows.jsonl").read_bytes()


def test_a_rank_that_fails_alone_says_which_it_is(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = main

    def run(rank: int) -> int:
        settings = yaml.safe_load(config.read_text("utf-8"))
        settings["batch_size"] = 2 if rank == 0 else 0
        own = tmp_path / f"{rank}.yaml"
        own.write_text(yaml.safe_dump(settings), "utf-8")
        return real(["sample", "-c", str(own), "--out", str(tmp_path / "out")])

    monkeypatch.setattr("lightning_dadpo.cli.functions.SECONDS_FOR_RANK_ZERO", 0.0)
    monkeypatch.setattr("lightning_dadpo.data.company.ARRIVAL_SECONDS", 1.0)
    ranks = start_ranks(tmp_path / "logs", 2, run)
    assert ended(ranks) == [2, 2]
    assert ranks[1].said == "error: rank 1 of 2: batch_size 0: expected at least 1\n"
    assert ranks[0].said.endswith("the same command goes on there\n")


@pytest.mark.parametrize("command", ["pair", "evaluate", "run"])
def test_what_is_one_process_is_not_started_as_two(command: str, tmp_path: Path) -> None:
    (rank,) = start_ranks(tmp_path, 2, lambda rank: main([command]), only=(0,))
    assert rank.status() == 2
    assert rank.said == (
        f"error: dadpo {command} is one process and was started as 2; sample, score and fit are split\n"
    )


def test_vllm_wants_one_gpu_a_process(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_dadpo.data.ranks import Ranks
    from lightning_dadpo.errors import ConfigError

    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ConfigError, match="backend vllm, 2 processes: each must see one GPU alone"):
        stage._refuse_shared_gpu(Ranks(1, 2, 1))
    stage._refuse_shared_gpu(Ranks())
