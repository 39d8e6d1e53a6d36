from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from lightning_dadpo.data.artifacts import draft, read_manifest
from lightning_dadpo.data.rows import Message, ResponseRow, RowWriter, read_rows
from lightning_dadpo.errors import ArtifactError, ConfigError, DadpoError, DataError
from lightning_dadpo.evaluation import evaluate as stage
from lightning_dadpo.evaluation.evaluate import Candidate, EvaluationRow, evaluate
from lightning_dadpo.evaluation.subjects import read_subject
from lightning_dadpo.models.loading import load_model, model_digest
from lightning_dadpo.models.spec import ModelSpec
from tests.tiny import END_OF_TURN, VOCABULARY, tiny_model

ESTIMATES = (
    "finished", "mean_tokens", "repetition", "distinct_1", "distinct_2", "teacher_nll", "forward_kl", "reverse_kl"
)  # fmt: skip
SAMPLER = {"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 12, "seed": 0}
PROMPTS = 5


def responses(seed: int) -> list[ResponseRow]:
    """Five held-out answers of very different lengths, and one training answer that must not count."""
    random, rows = np.random.default_rng(seed), []
    for number in range(PROMPTS + 1):
        stopped = bool(random.integers(2))
        token_ids = random.integers(5, 10, size=1 + 2 * number + seed % 3).tolist()  # few, so that they come back
        rows.append(
            ResponseRow(
                prompt_id=f"p{number}",
                split="heldout" if number < PROMPTS else "train",
                messages=[Message("user", f"what is {number}")],
                prompt_token_ids=[1, *range(10, 14 + number)],
                token_ids=[*token_ids, END_OF_TURN] if stopped else token_ids,
                text="",
                finish_reason="stop" if stopped else "length",
                log_prob=-1.0,
            )
        )
    return rows


def save(folder: Path, model: Path, rows: list[ResponseRow], **sampler: Any) -> str:
    made_from = {"model": model_digest(ModelSpec(str(model))), "sampler": SAMPLER | sampler}
    with draft(folder, "responses", made_from) as work, RowWriter(work.path / "rows.jsonl") as writer:
        writer.write(*rows)
    return str(folder)


class World:
    """A teacher, two students, what each of them answered, and the stage called on all of it."""

    def __init__(self, folder: Path) -> None:
        self.teacher = tiny_model(folder / "teacher", layers=2, seed=1)
        self.students = {name: tiny_model(folder / name, layers=1, seed=at) for at, name in enumerate(("a", "b"), 2)}
        self.teacher_rows = responses(1)
        self.rows = {"a": responses(2), "b": responses(3)}
        self.teacher_responses = save(folder / "of-teacher", self.teacher, self.teacher_rows)
        self.responses = {name: save(folder / f"of-{name}", self.students[name], self.rows[name]) for name in self.rows}

    def evaluate(self, out: Path, batch_size: int = 2, **replaced: Any) -> list[dict[str, Any]]:
        candidates = {name: Candidate(ModelSpec(str(self.students[name])), self.responses[name]) for name in self.rows}
        arguments = {"candidates": candidates, "teacher_responses": self.teacher_responses, "precision": "32-true"}
        folder = evaluate(
            teacher=ModelSpec(str(self.teacher)),
            out=str(out),
            batch_size=batch_size,
            resamples=200,
            **(arguments | replaced),
        )
        summary: list[dict[str, Any]] = json.loads((folder / "summary.json").read_text())
        return summary


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def summary(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return world.evaluate(tmp_path_factory.mktemp("out") / "evaluation")


def log_probs(model: Any, row: ResponseRow) -> torch.Tensor:
    """[response tokens, vocabulary] of one response alone, in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.prompt_token_ids + row.token_ids])).logits[0]
    return logits[len(row.prompt_token_ids) - 1 : -1].log_softmax(dim=-1)


def kl(p: torch.Tensor, q: torch.Tensor) -> float:
    return float((p.exp() * (p - q)).sum())


def test_rows_have_exactly_the_promised_keys(summary: list[dict[str, Any]]) -> None:
    keys = {"model", "parameters", "prompts"} | {
        f"{name}{bound}" for name in ESTIMATES for bound in ("", "_low", "_high")
    }
    assert [row["model"] for row in summary] == ["a", "b", "teacher"]
    assert all(row.keys() == keys and row["prompts"] == PROMPTS for row in summary)
    assert all(row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] for row in summary for name in ESTIMATES)


def test_E3_estimates_are_ratios_of_sums_over_prompts(world: World, summary: list[dict[str, Any]]) -> None:
    teacher = load_model(ModelSpec(str(world.teacher))).double()
    for name, row in zip("ab", summary, strict=False):
        model = load_model(ModelSpec(str(world.students[name]))).double()
        own, of_teacher = world.rows[name][:PROMPTS], world.teacher_rows[:PROMPTS]
        reverse = [kl(log_probs(model, one), log_probs(teacher, one)) for one in own]
        forward = [kl(log_probs(teacher, one), log_probs(model, one)) for one in of_teacher]
        nll = [
            -float(log_probs(teacher, one).gather(1, torch.tensor(one.token_ids)[:, None]).sum().item()) for one in own
        ]
        lengths, teacher_lengths = ([len(one.token_ids) for one in rows] for rows in (own, of_teacher))
        assert row["reverse_kl"] == pytest.approx(sum(reverse) / sum(lengths), rel=1e-4)
        assert row["forward_kl"] == pytest.approx(sum(forward) / sum(teacher_lengths), rel=1e-4)
        assert row["teacher_nll"] == pytest.approx(sum(nll) / sum(lengths), rel=1e-4)
        # the planted defect, a mean of ratios, is far outside that tolerance
        per_prompt = [total / length for total, length in zip(reverse, lengths, strict=True)]
        assert row["reverse_kl"] != pytest.approx(sum(per_prompt) / PROMPTS, rel=1e-3)
        assert row["mean_tokens"] == sum(lengths) / PROMPTS
        assert row["finished"] == sum(one.finish_reason == "stop" for one in own) / PROMPTS
        for order in (1, 2):
            grams = [list(zip(*(one.token_ids[at:] for at in range(order)), strict=False)) for one in own]
            new = sum(sum(gram not in seen[:at] for at, gram in enumerate(seen)) for seen in grams)
            assert row[f"distinct_{order}"] == new / sum(map(len, grams)) < 1
        assert row["parameters"] == sum({one.data_ptr(): one.numel() for one in model.parameters()}.values())


def test_E3_the_batch_size_does_not_change_the_estimates(
    world: World, summary: list[dict[str, Any]], tmp_path: Path
) -> None:
    for batch_size in (1, 5):
        again = world.evaluate(tmp_path / str(batch_size), batch_size)
        for row, other in zip(summary, again, strict=True):
            assert {key: value for key, value in other.items() if key != "model"} == pytest.approx(
                {key: value for key, value in row.items() if key != "model"}, rel=1e-4
            )


def test_the_teacher_is_the_yardstick(world: World, summary: list[dict[str, Any]]) -> None:
    row = summary[-1]
    for name in ("forward_kl", "reverse_kl"):
        assert [row[name], row[f"{name}_low"], row[f"{name}_high"]] == [0.0, 0.0, 0.0]
    teacher = load_model(ModelSpec(str(world.teacher))).double()
    own = world.teacher_rows[:PROMPTS]
    nll = -sum(float(log_probs(teacher, one).gather(1, torch.tensor(one.token_ids)[:, None]).sum()) for one in own)
    assert row["teacher_nll"] == pytest.approx(nll / sum(len(one.token_ids) for one in own), rel=1e-4)


def test_an_artefact_that_says_how_it_was_made(world: World, tmp_path: Path) -> None:
    world.evaluate(tmp_path / "out")
    manifest = read_manifest(tmp_path / "out", "evaluation")
    assert manifest.results == {
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "precision": "32-true",
        "sampler": SAMPLER,
        "teacher_sampler": SAMPLER,
    }
    assert manifest.counts == {"models": 3, "prompts": PROMPTS}
    keys = {(row.model, row.prompt_id) for row in read_rows(tmp_path / "out" / "rows.jsonl", EvaluationRow)}
    assert keys == {(model, f"p{number}") for model in ("a", "b", "teacher") for number in range(PROMPTS)}


def test_a_second_run_loads_nothing(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = world.evaluate(tmp_path / "out")
    monkeypatch.setattr(stage, "load_frozen", lambda *_: pytest.fail("a finished stage must not load a model"))
    assert world.evaluate(tmp_path / "out") == first


@pytest.mark.parametrize("calls", [0, 1, 3, 5, 7])  # of 3 a model
def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    world: World, summary: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    plain, made = stage.distance_sums, []

    def killed(*arguments: Any) -> Any:
        if len(made) == calls:
            raise KeyboardInterrupt
        made.append(1)
        return plain(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "distance_sums", killed)
        with pytest.raises(KeyboardInterrupt):
            world.evaluate(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    partial = tmp_path / "out.partial" / "rows.jsonl"
    kept = partial.read_text().splitlines() if partial.exists() else []
    if kept:  # killed in the middle of a batch's rows and of a line
        partial.write_text("".join(f"{line}\n" for line in kept[:-1]) + kept[-1][:20])
    again = world.evaluate(tmp_path / "out")
    assert json.dumps(again) == json.dumps(summary)
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert [json.dumps(row) for row in rows][: max(0, len(kept) - 1)] == kept[:-1]
    assert len(rows) == 3 * PROMPTS


def test_a_run_begun_from_something_else_is_refused(world: World, tmp_path: Path) -> None:
    world.evaluate(tmp_path / "out")
    with pytest.raises(ArtifactError, match="batch_size: 2 there, 3 now"):
        world.evaluate(tmp_path / "out", batch_size=3)


def refused(world: World, tmp_path: Path, error: type[DadpoError], rows: list[ResponseRow], **sampler: Any) -> str:
    """The one line that evaluate ends with when student b answers like this; nothing may be left behind."""
    folder = save(tmp_path / "of-b", world.students["b"], rows, **sampler)
    spec = ModelSpec(str(world.students["b"]))
    candidates = {"a": Candidate(ModelSpec(str(world.students["a"])), world.responses["a"])}
    with pytest.raises(error) as caught:
        world.evaluate(tmp_path / "out", candidates=candidates | {"b": Candidate(spec, folder)})
    assert not (tmp_path / "out").exists()
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(tmp_path), "").replace(str(world.teacher.parent), "")


def test_refuses_other_prompts(world: World, tmp_path: Path) -> None:
    said = refused(world, tmp_path, DataError, world.rows["b"][1:])
    assert said == ("/of-b: b answered other prompts than the teacher (1 differ; 'p0' is in /of-teacher, not in /of-b)")


def test_refuses_prompts_that_the_teacher_lacks(world: World, tmp_path: Path) -> None:
    said = refused(world, tmp_path, DataError, [*world.rows["b"], replace(world.rows["b"][0], prompt_id="q")])
    assert said == "/of-b: b answered other prompts than the teacher (1 differ; 'q' is in /of-b, not in /of-teacher)"


def test_A10_refuses_prompts_rendered_otherwise(world: World, tmp_path: Path) -> None:
    rows = [replace(world.rows["b"][0], prompt_token_ids=[1, 1, 10, 11, 12, 13]), *world.rows["b"][1:]]
    said = refused(world, tmp_path, DataError, rows)
    assert said.startswith("/of-b: prompt 'p0' has other token ids than in /of-teacher")


def test_C2_refuses_a_prompt_answered_twice(world: World, tmp_path: Path) -> None:
    said = refused(world, tmp_path, DataError, [*world.rows["b"], world.rows["b"][2]])
    assert said == "/of-b/rows.jsonl: prompt 'p2' is answered twice in split 'heldout'"


def test_further_candidates_are_not_measured(world: World, tmp_path: Path) -> None:
    rows = [row for one in world.rows["a"] for row in (one, replace(one, token_ids=[7, END_OF_TURN], candidate=1))]
    folder = save(tmp_path / "responses", world.students["a"], rows)
    found = read_subject("a", ModelSpec(str(world.students["a"])), folder, "heldout").rows
    assert list(found.values()) == world.rows["a"][:PROMPTS]


def test_D5_refuses_an_empty_response(world: World, tmp_path: Path) -> None:
    rows = [replace(world.rows["b"][0], token_ids=[]), *world.rows["b"][1:]]
    assert "the response to prompt 'p0' is empty" in refused(world, tmp_path, DataError, rows)


def test_E1_prompts_that_were_trained_on_are_left_out(
    world: World, summary: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The numbers are those of the other prompts alone, and the manifest says which were left out and why."""
    rows = [replace(row, prompt_id=f"t{at}", split="train") for at, row in enumerate(world.teacher_rows[1:4:2])]
    trained_on = [save(tmp_path / "trained", world.teacher, rows)]
    found = world.evaluate(tmp_path / "out", trained_on=trained_on)
    assert "left out 2 of 5 prompts of split 'heldout'" in capsys.readouterr().out
    results = read_manifest(tmp_path / "out", "evaluation").results
    assert results["left_out"] == {"p1": "the same words as t0", "p3": "the same words as t1"}
    measured = {(row.model, row.prompt_id) for row in read_rows(tmp_path / "out" / "rows.jsonl", EvaluationRow)}
    assert measured == {(model, prompt) for model in ("a", "b", "teacher") for prompt in ("p0", "p2", "p4")}
    lengths = [len(world.rows["a"][at].token_ids) for at in (0, 2, 4)]
    assert (found[0]["prompts"], found[0]["mean_tokens"]) == (3, sum(lengths) / 3)
    assert found[0]["mean_tokens"] != summary[0]["mean_tokens"]
    assert world.evaluate(tmp_path / "out", trained_on=trained_on) == found
    with pytest.raises(ArtifactError, match=r"trained_on: .* there, None now"):
        world.evaluate(tmp_path / "out")


def test_E1_nothing_left_is_refused_before_anything_is_written(world: World, tmp_path: Path) -> None:
    rows = [replace(row, split="train") for row in world.teacher_rows]
    with pytest.raises(DataError, match="all 5 prompts of split 'heldout' stand there too"):
        world.evaluate(tmp_path / "out", trained_on=[save(tmp_path / "trained", world.teacher, rows)])
    assert not (tmp_path / "out.partial").exists()


def test_A9_refuses_another_sampler(world: World, tmp_path: Path) -> None:
    said = refused(world, tmp_path, DataError, world.rows["b"], temperature=1.0)
    assert said == "/of-b: sampler setting temperature is 1.0 for b but 0.7 for a; expected the same"


def test_students_that_drew_under_other_seeds_are_compared(
    world: World, summary: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = save(tmp_path / "of-b", world.students["b"], world.rows["b"], seed=99)
    specs = {name: ModelSpec(str(path)) for name, path in world.students.items()}
    candidates = {"a": Candidate(specs["a"], world.responses["a"]), "b": Candidate(specs["b"], folder)}
    assert world.evaluate(tmp_path / "out", candidates=candidates) == summary


def test_refuses_token_ids_beyond_the_vocabulary(world: World, tmp_path: Path) -> None:
    rows = [replace(world.rows["b"][0], token_ids=[VOCABULARY]), *world.rows["b"][1:]]
    said = refused(world, tmp_path, DataError, rows)
    assert said == f"/of-b: prompt 'p0' holds token id {VOCABULARY}, but teacher knows ids below {VOCABULARY}"


def test_refuses_a_split_without_rows(world: World, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no response of split 'validation'"):
        world.evaluate(tmp_path / "out", split="validation")


def test_A10_refuses_responses_of_another_model(world: World, tmp_path: Path) -> None:
    digests = [model_digest(ModelSpec(str(world.students[name]))) for name in "ab"]
    swapped = {"a": Candidate(ModelSpec(str(world.students["a"])), world.responses["b"])}
    with pytest.raises(ArtifactError, match=f"was sampled by model {digests[1]}, but a is .* digest {digests[0]}"):
        world.evaluate(tmp_path / "out", candidates=swapped)


def test_names_the_weight_that_is_not_finite(world: World, tmp_path: Path) -> None:
    broken = tiny_model(tmp_path / "broken", layers=1, seed=9)
    weights = safetensors.torch.load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    safetensors.torch.save_file(weights, broken / "model.safetensors", {"format": "pt"})
    candidate = Candidate(ModelSpec(str(broken)), save(tmp_path / "of-broken", broken, world.rows["b"]))
    with pytest.raises(DataError, match=r"model 'broken' \(.*\): weight model.norm.weight holds NaN"):
        world.evaluate(tmp_path / "out", candidates={"broken": candidate})
    assert not (tmp_path / "out").exists()


def test_names_the_row_that_is_not_finite(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = stage.distance_sums

    def overflowing(*arguments: Any) -> Any:
        sums = plain(*arguments)
        sums.reverse_kl[0] = math.inf
        return sums

    monkeypatch.setattr(stage, "distance_sums", overflowing)
    with pytest.raises(DataError, match="model 'a', prompt 'p0': reverse_kl is inf, expected a finite number"):
        world.evaluate(tmp_path / "out")
    assert (tmp_path / "out.partial" / "rows.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        ({"candidates": {}}, "candidates: none given"),
        ({"candidates": {"teacher": Candidate(ModelSpec("x"), "y")}}, "'teacher' is kept"),
        ({"batch_size": 0}, "batch_size 0"),
    ],
)
def test_refuses_wrong_arguments(world: World, tmp_path: Path, replaced: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        world.evaluate(tmp_path / "out", **replaced)
