"""`dadpo sample`: an artefact that is whole, resumes with the same rows, and keeps splits apart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_dadpo.data import shards
from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.chat import render_prompt
from lightning_dadpo.data.prompts import PromptFile
from lightning_dadpo.data.rows import ResponseRow, read_rows
from lightning_dadpo.errors import ArtifactError, ConfigError, DataError
from lightning_dadpo.models.loading import load_tokenizer
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.sampling import stage
from lightning_dadpo.sampling.base import SamplerSettings
from lightning_dadpo.sampling.stage import sample
from lightning_dadpo.sampling.transformers_sampler import TransformersSampler

SETTINGS = SamplerSettings(temperature=0.8, max_new_tokens=8, seed=3)


def write_prompts(path: Path, names: list[str]) -> PromptFile:
    rows = [{"prompt_id": name, "messages": [{"role": "user", "content": f"about {name}"}]} for name in names]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return PromptFile(str(path))


@pytest.fixture
def prompts(tmp_path: Path) -> dict[str, PromptFile]:
    return {
        "train": write_prompts(tmp_path / "train.jsonl", [f"train{'x' * n}" for n in range(5)]),
        "heldout": write_prompts(tmp_path / "heldout.jsonl", ["held", "out"]),
    }


def run(model: Path, prompts: dict[str, PromptFile], out: Path, size: int = 3, settings: Any = SETTINGS) -> list[Any]:
    folder = sample(ModelSpec(str(model)), prompts, str(out), settings, batch_size=size, precision="32-true")
    return list(read_rows(folder / "rows.jsonl", ResponseRow))


def test_one_row_a_prompt_with_the_ids_that_the_model_read(
    tiny_folder: Path, prompts: dict[str, PromptFile], tmp_path: Path
) -> None:
    rows = run(tiny_folder, prompts, tmp_path / "out")
    assert sorted((row.split, row.prompt_id) for row in rows) == sorted(
        [("train", f"train{'x' * n}") for n in range(5)] + [("heldout", "held"), ("heldout", "out")]
    )
    tokenizer = load_tokenizer(ModelSpec(str(tiny_folder)))
    for row in rows:
        assert row.prompt_token_ids == render_prompt(tokenizer, row.messages)
        assert row.text == tokenizer.decode(row.token_ids, skip_special_tokens=True)
        assert 1 <= len(row.token_ids) <= 8
    manifest = read_manifest(tmp_path / "out", "responses")
    assert manifest.counts == {
        "responses": 7,
        "stopped": sum(row.finish_reason == "stop" for row in rows),
        "tokens": sum(len(row.token_ids) for row in rows),
    }
    assert manifest.made_from["sampler"] == {"temperature": 0.8, "top_p": 1.0, "max_new_tokens": 8, "seed": 3}


def test_a_run_killed_in_the_middle_goes_on_with_the_same_rows(
    tiny_folder: Path, prompts: dict[str, PromptFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "BATCHES_IN_WINDOW", 1)
    whole = run(tiny_folder, prompts, tmp_path / "whole")
    real, calls = TransformersSampler.sample, []

    def dies_in_the_second_window(self: Any, ids: list[list[int]], keys: list[str], advance: Any) -> Any:
        calls.append(keys)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, ids, keys, advance)

    with monkeypatch.context() as patch:
        patch.setattr(TransformersSampler, "sample", dies_in_the_second_window)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_folder, prompts, tmp_path / "killed")
    assert not (tmp_path / "killed").exists()
    rows = tmp_path / "killed.partial" / "shards" / "0.jsonl"
    lines = rows.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    rows.write_bytes(b"".join(lines[:2]) + lines[2][:17])  # the kill also tore a line, inside a window
    drawn: list[list[str]] = []
    monkeypatch.setattr(
        TransformersSampler,
        "sample",
        lambda self, ids, keys, *rest: (drawn.append(keys), real(self, ids, keys, *rest))[1],
    )
    assert run(tiny_folder, prompts, tmp_path / "killed") == whole
    assert drawn[0] == calls[0]
    assert [len(keys) for keys in drawn] == [3, 3, 1]


def test_progress_counts_every_response_once_also_after_a_kill_inside_a_window(
    tiny_folder: Path, prompts: dict[str, PromptFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []

    @contextmanager
    def counting(what: str, total: int, done: int = 0) -> Iterator[Any]:
        counted[:] = [total, done]
        yield SimpleNamespace(advance=counted.append)

    monkeypatch.setattr(shards, "progress", counting)
    monkeypatch.setattr(stage, "BATCHES_IN_WINDOW", 1)
    run(tiny_folder, prompts, tmp_path / "out")
    assert counted[:2] == [7, 0]
    assert sum(counted[2:]) == 7
    (tmp_path / "out").rename(tmp_path / "out.partial")
    manifest = json.loads((tmp_path / "out.partial" / "manifest.json").read_text("utf-8"))
    (tmp_path / "out.partial" / "begun.json").write_text(json.dumps(manifest["made_from"]), "utf-8")
    rows = tmp_path / "out.partial" / "rows.jsonl"
    rows.write_bytes(b"".join(rows.read_bytes().splitlines(keepends=True)[:4]))
    run(tiny_folder, prompts, tmp_path / "out")
    assert counted[:2] == [7, 3]
    assert sum(counted[2:]) == 4


def test_a_finished_stage_does_nothing_and_other_settings_are_refused(
    tiny_folder: Path, prompts: dict[str, PromptFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tiny_folder, prompts, tmp_path / "out")
    stamp = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    monkeypatch.setattr(TransformersSampler, "sample", lambda *_: pytest.fail("sampled again"))
    assert run(tiny_folder, prompts, tmp_path / "out") == first
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == stamp
    with pytest.raises(ArtifactError, match=r"'seed': 3.*'seed': 4"):
        run(tiny_folder, prompts, tmp_path / "out", settings=SamplerSettings(0.8, 1.0, 8, 4))


def test_E1_a_heldout_prompt_that_stands_among_the_training_prompts_is_refused(
    tiny_folder: Path, prompts: dict[str, PromptFile], tmp_path: Path
) -> None:
    row = {"prompt_id": "new name", "messages": [{"role": "user", "content": "About  TRAINx"}]}
    (tmp_path / "heldout.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    with pytest.raises(DataError, match=r"heldout.jsonl:1: this conversation of split 'heldout'.*train.jsonl:2"):
        run(tiny_folder, prompts, tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


def test_the_batch_size_changes_no_text(tiny_folder: Path, prompts: dict[str, PromptFile], tmp_path: Path) -> None:
    three = {row.prompt_id: row.token_ids for row in run(tiny_folder, prompts, tmp_path / "three", size=3)}
    one = {row.prompt_id: row.token_ids for row in run(tiny_folder, prompts, tmp_path / "one", size=1)}
    assert one == three


@pytest.mark.parametrize("key", ["batch_size", "responses_per_prompt"])
def test_a_number_below_one_is_refused(
    key: str, tiny_folder: Path, prompts: dict[str, PromptFile], tmp_path: Path
) -> None:
    numbers: dict[str, Any] = {key: 0}
    with pytest.raises(ConfigError, match=f"{key} 0: expected at least 1"):
        sample(ModelSpec(str(tiny_folder)), prompts, str(tmp_path / "out"), **numbers)


def candidates(model: Path, prompts: dict[str, PromptFile], out: Path, number: int, size: int = 3) -> list[ResponseRow]:
    spec, precision = ModelSpec(str(model)), "32-true"
    folder = sample(spec, prompts, str(out), SETTINGS, size, precision, responses_per_prompt=number)
    return list(read_rows(folder / "rows.jsonl", ResponseRow))


def test_the_first_candidate_is_the_single_response_and_the_others_are_other_draws(
    tiny_folder: Path, prompts: dict[str, PromptFile], tmp_path: Path
) -> None:
    alone = {row.prompt_id: row for row in run(tiny_folder, prompts, tmp_path / "alone")}
    rows = candidates(tiny_folder, prompts, tmp_path / "three", 3)
    assert read_manifest(tmp_path / "three").made_from["responses_per_prompt"] == 3
    assert "responses_per_prompt" not in read_manifest(tmp_path / "alone").made_from
    assert [row.candidate for row in rows] == [0, 1, 2] * 7
    for row in rows:
        one = alone[row.prompt_id]
        assert (row.prompt_token_ids, row.split) == (one.prompt_token_ids, one.split)
        assert (row.token_ids == one.token_ids) == (row.candidate == 0)
        if row.candidate == 0:
            assert row.log_prob == pytest.approx(one.log_prob, rel=1e-5)
    assert len({(row.prompt_id, tuple(row.token_ids)) for row in rows}) == 21


def test_fewer_candidates_are_the_first_of_more(
    tiny_folder: Path, prompts: dict[str, PromptFile], tmp_path: Path
) -> None:
    two, four = (candidates(tiny_folder, prompts, tmp_path / str(number), number) for number in (2, 4))
    texts = {(row.prompt_id, row.candidate): row.token_ids for row in four}
    assert all(texts[row.prompt_id, row.candidate] == row.token_ids for row in two)


def test_C2_candidates_of_prompts_with_confusing_names_stay_apart(tiny_folder: Path, tmp_path: Path) -> None:
    names = ["a", "1 a", "0 a", "1 1 a"]
    rows = candidates(tiny_folder, {"train": write_prompts(tmp_path / "p.jsonl", names)}, tmp_path / "out", 2)
    assert sorted((row.prompt_id, row.candidate) for row in rows) == sorted(
        (name, number) for name in names for number in (0, 1)
    )


def test_candidates_of_a_killed_run_are_drawn_again_with_their_window_and_come_out_the_same(
    tiny_folder: Path, prompts: dict[str, PromptFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "BATCHES_IN_WINDOW", 1)
    whole = candidates(tiny_folder, prompts, tmp_path / "out", 2)
    (tmp_path / "out").rename(tmp_path / "out.partial")
    manifest = json.loads((tmp_path / "out.partial" / "manifest.json").read_text("utf-8"))
    (tmp_path / "out.partial" / "begun.json").write_text(json.dumps(manifest["made_from"]), "utf-8")
    rows = tmp_path / "out.partial" / "rows.jsonl"
    lines = rows.read_bytes().splitlines(keepends=True)
    rows.write_bytes(b"".join(lines[:4]) + lines[4][:9])  # a prompt's first candidate, not its second
    assert candidates(tiny_folder, prompts, tmp_path / "out", 2) == whole
