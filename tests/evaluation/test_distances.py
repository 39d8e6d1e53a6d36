from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dadpo.evaluation import distances
from lightning_dadpo.evaluation.distances import (
    MAX_POSITIONS,
    BothAnswers,
    DistanceSums,
    distance_sums,
    read,
    read_both,
)
from lightning_dadpo.models.loading import load_frozen
from lightning_dadpo.models.spec import ModelSpec, Precision
from tests.tiny import END_OF_TURN, VOCABULARY, tiny_model

# very different lengths, so that most rows of a batch are padded; ids 0 (the padding id) and 2 stand inside; the two
# responses share nothing, a beginning, everything but the end, or everything
ANSWERS = [
    BothAnswers([1, 40, 41], [50, END_OF_TURN], [51, 52, 53]),
    BothAnswers(
        [1, 60, 61, 62, 63, 64, 65, 66], [70, 0, 0, 71, 72, 73, 74, 75, 76, 77, 0], [70, 0, 0, 78, END_OF_TURN]
    ),
    BothAnswers([1, 80], [0], [0]),
    BothAnswers([1, 90, 91, 92], [100, 101, 102, END_OF_TURN, 103, 104], [100, 101, 102, END_OF_TURN]),
    BothAnswers([1, 30], [31, 32, 33], [31, 32, 34]),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.mktemp("models")
    paths = tiny_model(folder / "teacher", layers=2, seed=1), tiny_model(folder / "student", layers=2, seed=2)
    teacher, student = (load_frozen(ModelSpec(str(path)), "32-true") for path in paths)
    return teacher, student


def oracle(p: Any, q: Any, prompt: list[int], response: list[int]) -> tuple[float, float]:
    """KL(p || q) and log q of one response alone, unpadded, in float64, token by token and id by id."""
    ids = torch.tensor([prompt + response])
    with torch.no_grad():
        p_logits, q_logits = (model.double()(input_ids=ids).logits[0].tolist() for model in (p, q))
    p.float(), q.float()
    kl = log_prob = 0.0
    for at, token in enumerate(response):
        place = len(prompt) + at - 1

        def normalised(logits: list[float]) -> list[float]:
            total = math.log(math.fsum(math.exp(value) for value in logits))
            return [value - total for value in logits]

        p_log, q_log = normalised(p_logits[place][:VOCABULARY]), normalised(q_logits[place][:VOCABULARY])
        kl += math.fsum(math.exp(one) * (one - other) for one, other in zip(p_log, q_log, strict=True))
        log_prob += normalised(q_logits[place])[token]
    return kl, log_prob


def sums_of(
    teacher: Any, student: Any, answers: list[BothAnswers], precision: Precision, max_positions: int = MAX_POSITIONS
) -> DistanceSums:
    """As the stage and the callback: both models read, and what they made of it is compared."""
    teachers = read_both(teacher, answers, precision, max_positions)
    students = teachers if student is teacher else read_both(student, answers, precision, max_positions)
    return distance_sums(teachers, students, answers, precision, max_positions)


def expected_of(teacher: Any, student: Any) -> DistanceSums:
    forward = [oracle(teacher, student, one.prompt_token_ids, one.by_teacher)[0] for one in ANSWERS]
    reverse = [oracle(student, teacher, one.prompt_token_ids, one.by_student) for one in ANSWERS]
    return DistanceSums(
        forward_kl=torch.tensor(forward),
        reverse_kl=torch.tensor([kl for kl, _ in reverse]),
        teacher_log_prob=torch.tensor([log_prob for _, log_prob in reverse]),
        teacher_tokens=torch.tensor([2, 11, 1, 6, 3]),
        student_tokens=torch.tensor([3, 5, 1, 4, 3]),
    )


def assert_same(found: DistanceSums, expected: DistanceSums, rel: float = 1e-4) -> None:
    for field in fields(DistanceSums):
        values, wanted = (getattr(sums, field.name).tolist() for sums in (found, expected))
        assert values == pytest.approx(wanted, rel=rel), field.name


def one_of(sums: DistanceSums, row: int) -> DistanceSums:
    return DistanceSums(*(getattr(sums, field.name)[row : row + 1] for field in fields(DistanceSums)))


@pytest.mark.parametrize("max_positions", [1, 3, 20, 512])
def test_equals_a_float64_loop_over_single_responses(models: tuple[Any, Any], max_positions: int) -> None:
    """What both responses begin with in common counts in both sums; a position at a time or all at once."""
    found = sums_of(*models, ANSWERS, "32-true", max_positions)
    assert found.forward_kl.dtype == found.reverse_kl.dtype == found.teacher_log_prob.dtype == torch.float64
    assert_same(found, expected_of(*models))


def test_the_two_directions_differ(models: tuple[Any, Any]) -> None:
    """On the very same responses, and with the models' places exchanged each is the other."""
    teacher, student = models
    same = [replace(one, by_student=one.by_teacher) for one in ANSWERS]
    one, other = sums_of(teacher, student, same, "32-true"), sums_of(student, teacher, same, "32-true")
    assert (one.forward_kl - one.reverse_kl).abs().max() > 1.0
    assert one.forward_kl.tolist() == pytest.approx(other.reverse_kl.tolist(), rel=1e-4)
    assert one.reverse_kl.tolist() == pytest.approx(other.forward_kl.tolist(), rel=1e-4)
    assert one.teacher_log_prob.tolist() != pytest.approx(other.teacher_log_prob.tolist(), rel=1e-2)


def test_a_model_is_at_distance_zero_from_itself(models: tuple[Any, Any], tmp_path: Path) -> None:
    teacher, _ = models
    itself = sums_of(teacher, teacher, ANSWERS, "32-true")
    assert itself.forward_kl.tolist() == itself.reverse_kl.tolist() == [0.0] * len(ANSWERS)
    log_probs = [oracle(teacher, teacher, one.prompt_token_ids, one.by_student)[1] for one in ANSWERS]
    assert itself.teacher_log_prob.tolist() == pytest.approx(log_probs, rel=1e-4)
    copy = load_frozen(ModelSpec(str(tiny_model(tmp_path / "copy", layers=2, seed=1))), "32-true")
    nearly = sums_of(teacher, copy, ANSWERS, "32-true")
    for kl in (nearly.forward_kl, nearly.reverse_kl):
        assert (kl >= 0).all()
        assert kl.max() < 1e-5


def test_A5_A7_exactly_the_response_positions_count(models: tuple[Any, Any]) -> None:
    """The first response token counts, prompt tokens do not, and the end of turn counts when it is there."""
    prompt, whole = ANSWERS[3].prompt_token_ids, ANSWERS[3].by_student
    cut = whole[:3]
    parts = sums_of(*models, [BothAnswers(prompt, ids, ids) for ids in (cut[:1], cut, whole)], "32-true")
    assert parts.teacher_tokens.tolist() == parts.student_tokens.tolist() == [1, 3, 4]
    only_end = sums_of(*models, [BothAnswers(prompt + cut, whole[3:], whole[3:])], "32-true")
    for name in ("forward_kl", "reverse_kl"):
        kl, of_end = getattr(parts, name), getattr(only_end, name)
        assert (kl[2] - kl[1]).item() == pytest.approx(of_end.item(), rel=1e-4)
        assert of_end.item() > 0


def test_company_and_padding_do_not_change_a_row(models: tuple[Any, Any]) -> None:
    together = sums_of(*models, ANSWERS, "32-true")
    for row, answers in enumerate(ANSWERS):
        assert_same(sums_of(*models, [answers], "32-true"), one_of(together, row))


def test_never_more_positions_in_memory_than_asked(models: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """And each model reads each prompt once."""
    held, passes = [], []
    logits, plain = distances._logits, distances.predictor

    def counted(*given: Any) -> torch.Tensor:
        held.append(len(found := logits(*given)))
        return found

    def watched(model: Any, batch: Any) -> Any:
        passes.append((models.index(model), len(batch.shapes)))
        return plain(model, batch)

    monkeypatch.setattr(distances, "_logits", counted)
    monkeypatch.setattr(distances, "predictor", watched)
    sums_of(*models, ANSWERS, "32-true", max_positions=12)
    # responses of 2 + 3, 11 + 5, 1 + 1, 6 + 4 and 3 + 3 tokens: those of the second prompt are not read together
    assert passes == [(model, trees) for model in (0, 1) for trees in (1, 1, 1, 2, 1)]
    assert held == [
        number for number in (12, 11, 12, 4) for _ in models
    ]  # 23 of the teacher's tokens, 16 of the other's


def test_responses_are_read_together_in_every_grouping(models: tuple[Any, Any]) -> None:
    """Three to a prompt: the same states, whether a pass holds all of them, some of them or one."""
    prompts = [one.prompt_token_ids for one in ANSWERS]
    responses = [[one.by_student, one.by_teacher, [5, 6, 7]] for one in ANSWERS]
    whole = read(models[0], prompts, responses, "32-true")
    assert [len(one.states) for one in whole] == [16, 23, 15]
    for max_positions in (1, 4, 9, 30):
        parts = read(models[0], prompts, responses, "32-true", max_positions)
        for one, other in zip(whole, parts, strict=True):
            assert torch.allclose(one.states, other.states, rtol=1e-4, atol=1e-5)


def test_a_padded_vocabulary_is_cut_to_the_common_one(models: tuple[Any, Any], tmp_path: Path) -> None:
    teacher, _ = models
    wide = load_frozen(ModelSpec(str(tiny_model(tmp_path / "wide", layers=2, seed=2))), "32-true")
    wide.resize_token_embeddings(VOCABULARY + 5, mean_resizing=False)
    for pair in ((teacher, wide), (wide, teacher)):
        assert_same(sums_of(*pair, ANSWERS, "32-true"), expected_of(*pair))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_B2_bfloat16_models_have_float32_softmaxes(
    models: tuple[Any, Any], tmp_path: Path, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = tiny_model(tmp_path / "p", layers=2, seed=1), tiny_model(tmp_path / "q", layers=2, seed=2)
    pair = [load_frozen(ModelSpec(str(path)), precision) for path in paths]
    seen = []
    plain = distances.kl_divergence
    monkeypatch.setattr(distances, "kl_divergence", lambda *logits: seen.append((logits, kl := plain(*logits))) or kl)
    found = sums_of(*pair, ANSWERS, precision)
    ((p_logits, q_logits), kl) = seen[0]
    assert p_logits.dtype == torch.bfloat16
    assert kl.dtype == torch.float32
    assert torch.allclose(kl.double(), plain(p_logits.double(), q_logits.double()), rtol=1e-5, atol=1e-5)
    exact = sums_of(*models, ANSWERS, "32-true")
    assert found.forward_kl.tolist() == pytest.approx(exact.forward_kl.tolist(), rel=0.1)
    assert found.reverse_kl.tolist() == pytest.approx(exact.reverse_kl.tolist(), rel=0.1)
