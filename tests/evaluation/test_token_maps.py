"""Log-probs token by token: whose, of which token, and that they are those of the whole response."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dadpo.data.analysis import TokenMapRow
from lightning_dadpo.data.packing import pack
from lightning_dadpo.data.rows import ResponseRow, read_rows
from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.evaluation import distances, token_maps
from lightning_dadpo.evaluation import evaluate as stage
from lightning_dadpo.evaluation.distances import BothAnswers, Sample, token_log_probs_of
from lightning_dadpo.models.loading import load_frozen, load_model, load_tokenizer
from lightning_dadpo.models.log_probs import model_log_probs
from lightning_dadpo.models.spec import ModelSpec
from tests.evaluation.test_distances import ANSWERS, models, sums_of
from tests.evaluation.test_evaluate import World, world
from tests.tiny import VOCABULARY, tiny_model

__all__ = ["models", "world"]  # fixtures

SAMPLES = [Sample(one.prompt_token_ids, one.by_teacher) for one in ANSWERS]


def oracle(model: Any, sample: Sample) -> list[float]:
    """Of one response alone, unpadded, in float64, token by token."""
    ids = torch.tensor([sample.prompt_token_ids + sample.token_ids])
    with torch.no_grad():
        logits = model.double()(input_ids=ids).logits[0].tolist()
    model.float()
    found = []
    for at, token in enumerate(sample.token_ids):
        place = logits[len(sample.prompt_token_ids) + at - 1]
        found.append(place[token] - math.log(math.fsum(math.exp(value) for value in place)))
    return found


@pytest.mark.parametrize("max_positions", [1, 3, 512])
def test_A5_each_token_has_its_own_number(models: tuple[Any, Any], max_positions: int) -> None:
    """A shift by one token, the classic of trap A5, changes every number."""
    model, _ = models
    found = token_log_probs_of(model, SAMPLES, "32-true", max_positions)
    for sample, values in zip(SAMPLES, found, strict=True):
        expected = oracle(model, sample)
        assert values.dtype == torch.float64
        assert values.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)
        if len(expected) > 1:
            assert values.tolist() != pytest.approx(expected[1:] + expected[:1], abs=0.05)


def test_they_sum_to_what_training_and_scoring_call_the_log_prob(models: tuple[Any, Any]) -> None:
    p, q = models
    both = [BothAnswers(one.prompt_token_ids, one.by_student, one.by_teacher) for one in ANSWERS]
    batch = pack([sample.prompt_token_ids for sample in SAMPLES], [[sample.token_ids] for sample in SAMPLES])
    with torch.no_grad():
        totals = model_log_probs(q, batch).total
    sums = [float(values.sum()) for values in token_log_probs_of(q, SAMPLES, "32-true", 4)]
    assert sums == pytest.approx(totals.tolist(), rel=1e-5)
    assert sums == pytest.approx(sums_of(q, p, both, "32-true").teacher_log_prob.tolist(), rel=1e-5)


@pytest.mark.parametrize("max_positions", [4, 512])
def test_a_prompt_is_read_once_for_all_its_responses(
    models: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, max_positions: int
) -> None:
    """Also where they begin alike or are the same; what each response gets stays its own."""
    read, plain = [], distances.predictor
    monkeypatch.setattr(distances, "predictor", lambda *given: (read.append(given[1]), plain(*given))[1])
    said = [[31, 32, 33], [31, 40], [31, 32, 33], [41]]
    samples = [*(Sample([1, 30], response) for response in said), SAMPLES[0]]
    found = token_log_probs_of(models[0], samples, "32-true", max_positions)
    for sample, values in zip(samples, found, strict=True):
        assert values.tolist() == pytest.approx(oracle(models[0], sample), rel=1e-4, abs=1e-4)
    assert len(read) == (2 if max_positions == 512 else 4)  # 4 | 1 samples, or 1 | 1 | 2 | 1


def test_never_more_positions_in_memory_than_asked(models: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    held, plain = [], torch.nn.functional.linear

    def watched(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if len(weight) == VOCABULARY:
            held.append(len(states))
        return plain(states, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    token_log_probs_of(models[0], SAMPLES, "32-true", max_positions=5)
    assert held == [2, 5, 5, 1, 1, 5, 1, 3]  # responses of 2, 11, 1, 6 and 3 tokens


@pytest.fixture(scope="module")
def maps(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[TokenMapRow]:
    out = tmp_path_factory.mktemp("out") / "evaluation"
    world.evaluate(out, token_maps=3, reference="a")
    return list(read_rows(out / "token_maps.jsonl", TokenMapRow))


def test_who_is_asked_about_what(maps: list[TokenMapRow]) -> None:
    """The teacher and the reference about every response, a student about its own and the teacher's."""
    assert [(row.prompt_id, row.sampled_by) for row in maps] == [
        (f"p{prompt}", model) for prompt in range(3) for model in ("teacher", "a", "b")
    ]
    asked = {row.sampled_by: list(row.log_probs) for row in maps}
    assert asked == {"teacher": ["teacher", "a", "b"], "a": ["teacher", "a"], "b": ["teacher", "a", "b"]}
    assert {row.reference for row in maps} == {"a"}


def test_A10_every_number_is_that_model_s_on_that_response(world: World, maps: list[TokenMapRow]) -> None:
    """Models exchanged, or a student's response read with the teacher's numbers, would show here."""
    folders = {"teacher": world.teacher, **world.students}
    loaded = {name: load_model(ModelSpec(str(folder))) for name, folder in folders.items()}
    rows = {"teacher": world.teacher_rows, **world.rows}
    for row in maps:
        (response,) = (one for one in rows[row.sampled_by] if one.prompt_id == row.prompt_id)
        assert row.token_ids == response.token_ids
        for name, values in row.log_probs.items():
            expected = oracle(loaded[name], Sample(response.prompt_token_ids, response.token_ids))
            assert values == pytest.approx(expected, rel=1e-4, abs=1e-4), (row.prompt_id, row.sampled_by, name)


def test_the_text_is_that_of_the_tokens(world: World, maps: list[TokenMapRow]) -> None:
    tokenizer = load_tokenizer(ModelSpec(str(world.teacher)))
    for row in maps:
        at = 0
        for unit in row.units:
            if unit.kind != "broken":
                assert tokenizer.decode(row.token_ids[at : at + unit.tokens]) == unit.text
            at += unit.tokens
    assert any(unit.text == "<|im_end|>" and unit.kind == "special" for row in maps for unit in row.units)


def test_no_map_when_none_is_asked_for(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_maps, "load_tokenizer", lambda *_: pytest.fail("no tokenizer is needed"))
    world.evaluate(tmp_path / "out", token_maps=0)
    assert (tmp_path / "out" / "token_maps.jsonl").read_text() == ""


def test_a_killed_run_makes_the_same_maps(
    world: World, maps: list[TokenMapRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = stage.write_atomically

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            world.evaluate(tmp_path / "out", token_maps=3, reference="a")
    assert plain is stage.write_atomically
    assert (tmp_path / "out.partial" / "token_maps.jsonl").exists()
    world.evaluate(tmp_path / "out", token_maps=3, reference="a")
    assert list(read_rows(tmp_path / "out" / "token_maps.jsonl", TokenMapRow)) == maps


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        ({"token_maps": -1}, "token_maps -1: expected at least 0"),
        ({"reference": "c"}, r"reference 'c': expected one of the candidates \['a', 'b'\]"),
    ],
)
def test_refuses_wrong_arguments(world: World, tmp_path: Path, replaced: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        world.evaluate(tmp_path / "out", **replaced)
    assert not list(tmp_path.iterdir())


def test_names_the_prompt_whose_number_is_not_finite(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = token_maps.token_log_probs_of

    def overflowing(*arguments: Any) -> Any:
        found = plain(*arguments)
        found[1][0] = -math.inf
        return found

    monkeypatch.setattr(token_maps, "token_log_probs_of", overflowing)
    with pytest.raises(DataError, match="model 'teacher', prompt 'p0': the log-prob of a token is not finite"):
        world.evaluate(tmp_path / "out")


def test_a_reference_with_fewer_ids_is_not_asked_about_what_it_cannot_read(tmp_path: Path) -> None:
    from lightning_dadpo.evaluation.subjects import Subject

    small = load_frozen(ModelSpec(str(tiny_model(tmp_path / "small", layers=1))), "32-true")
    small.resize_token_embeddings(100, mean_resizing=False)
    row = ResponseRow("p", "heldout", [], [1, 5], [150], "", "length", -1.0)
    subjects = [Subject(name, ModelSpec("x"), "", tmp_path, "", {}, {"p": row}) for name in ("teacher", "small", "b")]
    maps = token_maps.TokenMaps(subjects[0], subjects[1:], "small", 1)
    maps.ask("small", small, "32-true")
    assert all(said == {} for said in maps.log_probs.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [({"token_ids": [1, 2, 3]}, "units of 2 tokens, expected 3"), ({"log_probs": {"b": [0.0]}}, "log_probs of b: 1")],
)
def test_rows_whose_parts_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    row = {
        "prompt_id": "p", "messages": [], "sampled_by": "b", "finish_reason": "stop", "reference": None,
        "token_ids": [1, 2], "units": [{"text": "é", "tokens": 2, "kind": "text"}], "log_probs": {"b": [-1.0, -2.0]},
    }  # fmt: skip
    path = tmp_path / "token_maps.jsonl"
    path.write_text(json.dumps(row))
    assert len(list(read_rows(path, TokenMapRow))) == 1
    path.write_text(json.dumps(row | change))
    with pytest.raises(DataError, match=rf"token_maps.jsonl:1: .*{said}"):
        list(read_rows(path, TokenMapRow))
