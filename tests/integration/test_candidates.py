"""Several candidates through the commands themselves: drawn, judged by the teacher, and paired by its opinion."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_dadpo.cli.main import main
from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.pairing import read_pairs
from lightning_dadpo.data.rows import PairRow, ResponseRow, read_rows
from lightning_dadpo.models.loading import load_frozen
from lightning_dadpo.models.spec import ModelSpec
from tests import oracles
from tests.integration.experiment import write_prompts
from tests.tiny import tiny_model

SETTINGS = {"temperature": 1.0, "max_new_tokens": 12, "seed": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three candidates of a teacher and of a student to every prompt, and the teacher's scores of the student's."""
    folder = tmp_path_factory.mktemp("candidates")
    prompts = {"train": write_prompts(folder)["train"]}
    for seed, who in ((1, "teacher"), (2, "student")):
        model = tiny_model(folder / who, layers=2, seed=seed)
        said = {"model": {"path": str(model)}, "prompts": prompts, "settings": SETTINGS | {"seed": seed}}
        said |= {"batch_size": 8, "responses_per_prompt": 3, "precision": "32-true"}
        (folder / f"{who}.yaml").write_text(yaml.safe_dump(said), "utf-8")
        assert main(["sample", "-c", str(folder / f"{who}.yaml"), "--out", str(folder / f"of-{who}")]) == 0
    judged = ["--responses", str(folder / "of-student"), "--out", str(folder / "judged"), "--precision", "32-true"]
    assert main(["score-responses", "--model.path", str(folder / "teacher"), *judged]) == 0
    return folder


def paired(folder: Path, chosen: str, rejected: str, out: str, *scores: str) -> dict[str, PairRow]:
    sides = ["--chosen", str(folder / chosen), "--rejected", str(folder / rejected), "--keep_cut_chosen", "true"]
    assert main(["pair", *sides, "--out", str(folder / out), "--rule", "best_and_worst", *scores]) == 0
    return {pair.prompt_id: pair for pair in read_pairs(folder / out)}


def opinions(folder: Path, responses: str) -> dict[str, dict[tuple[int, ...], float]]:
    """The teacher's nats per token of each response, row by row, in float64."""
    teacher: Any = load_frozen(ModelSpec(str(folder / "teacher")), "32-true")
    found: dict[str, dict[tuple[int, ...], float]] = defaultdict(dict)
    for row in read_rows(folder / responses / "rows.jsonl", ResponseRow):
        ids = row.prompt_token_ids + row.token_ids
        with torch.no_grad():
            logits = teacher(torch.tensor([ids])).logits[0].double().tolist()
        total, count = oracles.sequence_log_prob(logits, ids, len(row.prompt_token_ids), len(ids))
        found[row.prompt_id][tuple(row.token_ids)] = total / count
    return found


def extreme(scores: dict[tuple[int, ...], float], which: Any) -> list[int]:
    return list(which(scores, key=lambda ids: scores[ids]))


def test_the_best_of_the_teacher_against_the_worst_of_the_student(folder: Path) -> None:
    found = paired(folder, "of-teacher", "of-student", "two", "--rejected_scores", str(folder / "judged"))
    chosen, rejected = opinions(folder, "of-teacher"), opinions(folder, "of-student")
    assert len(found) == 8
    for prompt_id, pair in found.items():
        assert len(chosen[prompt_id]) == len(rejected[prompt_id]) == 3
        assert pair.chosen_token_ids == extreme(chosen[prompt_id], max)
        assert pair.rejected_token_ids == extreme(rejected[prompt_id], min)
    assert read_manifest(folder / "two").made_from["rule"] == "best_and_worst"


def test_best_and_worst_of_the_student_alone(folder: Path) -> None:
    found = paired(folder, "of-student", "of-student", "one", "--chosen_scores", str(folder / "judged"))
    scores = opinions(folder, "of-student")
    for prompt_id, pair in found.items():
        ends = extreme(scores[prompt_id], max), extreme(scores[prompt_id], min)
        assert (pair.chosen_token_ids, pair.rejected_token_ids) == ends


def test_two_judges_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = ["--chosen", str(folder / "of-teacher"), "--rejected", str(folder / "of-student")]
    assert main(["pair", *sides, "--out", str(folder / "none"), "--rule", "best_and_worst"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "expected one teacher: give --chosen_scores or --rejected_scores" in error
    assert not (folder / "none").exists()
