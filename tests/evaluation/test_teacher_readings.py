"""The teacher reads a prompt once for everybody's responses, as far as that is kept, and the numbers stay the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dadpo.data.rows import ResponseRow
from lightning_dadpo.evaluation import distances, teacher_readings
from lightning_dadpo.evaluation import evaluate as stage
from lightning_dadpo.evaluation.evaluate import EvaluationRow
from lightning_dadpo.evaluation.subjects import read_subject
from lightning_dadpo.evaluation.teacher_readings import TeacherReadings
from lightning_dadpo.models.loading import load_frozen
from lightning_dadpo.models.spec import ModelSpec
from tests.evaluation.test_evaluate import PROMPTS, World, responses, summary, world

__all__ = ["summary", "world"]  # fixtures

BATCHES = [["p0", "p1"], ["p2", "p3"], ["p4"]]
STATE = 32 * 4
"""Bytes of a state of the tiny models, float32 of width 32."""
TOKENS = [
    sum(len(responses(seed)[int(prompt[1:])].token_ids) for seed in (1, 2, 3) for prompt in prompts)
    for prompts in BATCHES
]
"""What teacher and both students said in each batch."""
BUDGETS = {"nothing": 0, "the first batch": STATE * TOKENS[0], "all": 1 << 28}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, int]]:
    """Every forward pass that reads responses: which model, and how many of them."""
    found: list[tuple[Any, int]] = []
    plain = distances.predictor

    def watched(model: Any, batch: Any) -> Any:
        found.append((model, len(batch.num_response_tokens)))
        return plain(model, batch)

    monkeypatch.setattr(distances, "predictor", watched)
    return found


@torch.no_grad()
def states_of(model: Any, row: ResponseRow) -> torch.Tensor:
    """At each token of one response, which is read alone."""
    states: torch.Tensor = model.model(torch.tensor([row.prompt_token_ids + row.token_ids])).last_hidden_state[0]
    return states[len(row.prompt_token_ids) - 1 : -1]


@pytest.mark.parametrize(("kept", "passes"), [("nothing", [4, 4, 2] * 2 + [2, 2, 1]), ("all", [6, 6, 3])])
def test_what_the_teacher_reads(
    world: World, read: list[tuple[Any, int]], monkeypatch: pytest.MonkeyPatch, kept: str, passes: list[int]
) -> None:
    """Responses a pass: two a prompt for every student and its own once more, or those of all three at once."""
    monkeypatch.setattr(teacher_readings, "KEPT_BYTES", BUDGETS[kept])
    specs = {"teacher": (world.teacher, world.teacher_responses)}
    specs |= {name: (world.students[name], world.responses[name]) for name in world.students}
    everybody = [
        read_subject(name, ModelSpec(str(model)), folder, "heldout") for name, (model, folder) in specs.items()
    ]
    teacher, *students = everybody
    model = load_frozen(teacher.spec, "32-true")
    readings = TeacherReadings(model, teacher, students, BATCHES, "32-true")
    for student in (*students, teacher):
        for number, prompts in enumerate(BATCHES):
            own, others = readings.of(number, student)
            for found, subject in ((own, teacher), (others, student)):
                expected = torch.cat([states_of(model, subject.rows[prompt]) for prompt in prompts])
                assert torch.allclose(found.states, expected, rtol=1e-4, atol=1e-4)
    assert [responses for _, responses in read] == passes


@pytest.mark.parametrize("kept", ["nothing", "the first batch"])
def test_the_estimates_do_not_depend_on_what_is_kept(
    world: World, summary: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    monkeypatch.setattr(teacher_readings, "KEPT_BYTES", BUDGETS[kept])
    found = world.evaluate(tmp_path / "out")
    for row, other in zip(summary, found, strict=True):
        assert other.pop("model") == row["model"]
        assert other == pytest.approx({key: value for key, value in row.items() if key != "model"}, rel=1e-4)


@pytest.mark.parametrize("kept", ["the first batch", "all"])
def test_a_run_that_was_killed_anywhere_gives_the_same_bytes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    """Also where the teacher has not read for the first student what it reads for the second."""
    monkeypatch.setattr(teacher_readings, "KEPT_BYTES", BUDGETS[kept])
    world.evaluate(tmp_path / "whole")
    whole = (tmp_path / "whole" / "rows.jsonl").read_text().splitlines()
    assert len(whole) == 3 * PROMPTS
    plain = stage.distance_sums
    for calls in (2, 4, 7):
        left = iter(range(calls))

        def killed(*arguments: Any, left: Any = left) -> Any:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return plain(*arguments)

        out = tmp_path / f"killed-{calls}"
        with monkeypatch.context() as patch:
            patch.setattr(stage, "distance_sums", killed)
            with pytest.raises(KeyboardInterrupt):
                world.evaluate(out)
        world.evaluate(out)
        rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
        assert [EvaluationRow(**row) for row in rows] == [EvaluationRow(**json.loads(line)) for line in whole]
