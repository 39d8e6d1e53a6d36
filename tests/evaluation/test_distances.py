from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dadpo.evaluation import distances
from lightning_dadpo.evaluation.distances import Sample, sample_sums
from lightning_dadpo.models.loading import load_frozen
from lightning_dadpo.models.spec import ModelSpec
from tests.tiny import END_OF_TURN, VOCABULARY, tiny_model

# very different lengths, so that most rows of a batch are padded; ids 0 (the padding id) and 2 stand inside
SAMPLES = [
    Sample([1, 40, 41], [50, END_OF_TURN]),
    Sample([1, 60, 61, 62, 63, 64, 65, 66], [70, 0, 0, 71, 72, 73, 74, 75, 76, 77, 0]),
    Sample([1, 80], [0]),
    Sample([1, 90, 91, 92], [100, 101, 102, END_OF_TURN, 103, 104]),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.mktemp("models")
    paths = tiny_model(folder / "p", layers=2, seed=1), tiny_model(folder / "q", layers=2, seed=2)
    first, second = (load_frozen(ModelSpec(str(path)), "32-true") for path in paths)
    return first, second


def oracle(p: Any, q: Any, sample: Sample, common: int = VOCABULARY) -> tuple[float, float]:
    """KL(p || q) and log q of one response alone, unpadded, in float64, token by token and id by id."""
    ids = torch.tensor([sample.prompt_token_ids + sample.token_ids])
    with torch.no_grad():
        p_logits, q_logits = (model.double()(input_ids=ids).logits[0].tolist() for model in (p, q))
    p.float(), q.float()
    kl = log_prob = 0.0
    for at, token in enumerate(sample.token_ids):
        place = len(sample.prompt_token_ids) + at - 1

        def normalised(logits: list[float]) -> list[float]:
            total = math.log(math.fsum(math.exp(value) for value in logits))
            return [value - total for value in logits]

        p_log, q_log = normalised(p_logits[place][:common]), normalised(q_logits[place][:common])
        kl += math.fsum(math.exp(one) * (one - other) for one, other in zip(p_log, q_log, strict=True))
        log_prob += normalised(q_logits[place])[token]
    return kl, log_prob


@pytest.mark.parametrize("max_positions", [1, 3, 512])
def test_equals_a_float64_loop_over_single_responses(models: tuple[Any, Any], max_positions: int) -> None:
    p, q = models
    sums = sample_sums(p, q, SAMPLES, "32-true", max_positions)
    expected = [oracle(p, q, sample) for sample in SAMPLES]
    assert sums.kl.dtype == torch.float64
    assert sums.kl.tolist() == pytest.approx([kl for kl, _ in expected], rel=1e-4)
    assert sums.other_log_prob.tolist() == pytest.approx([log_prob for _, log_prob in expected], rel=1e-4)
    assert sums.num_tokens.tolist() == [2, 11, 1, 6]


def test_the_two_directions_differ(models: tuple[Any, Any]) -> None:
    p, q = models
    forward, reverse = (sample_sums(*pair, SAMPLES, "32-true").kl for pair in ((p, q), (q, p)))
    assert (forward - reverse).abs().max() > 1.0


def test_a_model_is_at_distance_zero_from_itself(models: tuple[Any, Any], tmp_path: Path) -> None:
    p, _ = models
    assert sample_sums(p, p, SAMPLES, "32-true").kl.tolist() == [0.0] * 4
    copy = load_frozen(ModelSpec(str(tiny_model(tmp_path / "copy", layers=2, seed=1))), "32-true")
    nearly = sample_sums(p, copy, SAMPLES, "32-true").kl
    assert (nearly >= 0).all()
    assert nearly.max() < 1e-5


def test_A5_A7_exactly_the_response_positions_count(models: tuple[Any, Any]) -> None:
    """The first response token counts, prompt tokens do not, and the end of turn counts when it is there."""
    p, q = models
    cut, whole = SAMPLES[3].token_ids[:3], SAMPLES[3].token_ids[:4]
    parts = sample_sums(p, q, [Sample(SAMPLES[3].prompt_token_ids, ids) for ids in (cut[:1], cut, whole)], "32-true")
    assert parts.num_tokens.tolist() == [1, 3, 4]
    only_end = sample_sums(p, q, [Sample(SAMPLES[3].prompt_token_ids + cut, whole[3:])], "32-true")
    assert (parts.kl[2] - parts.kl[1]).item() == pytest.approx(only_end.kl.item(), rel=1e-4)
    assert only_end.kl.item() > 0


def test_company_and_padding_do_not_change_a_row(models: tuple[Any, Any]) -> None:
    p, q = models
    together = sample_sums(p, q, SAMPLES, "32-true")
    for at, sample in enumerate(SAMPLES):
        alone = sample_sums(p, q, [sample], "32-true")
        assert alone.kl.item() == pytest.approx(together.kl[at].item(), rel=1e-4)
        assert alone.other_log_prob.item() == pytest.approx(together.other_log_prob[at].item(), rel=1e-4)


def test_never_more_positions_in_memory_than_asked(models: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    p, q = models
    held, plain = [], distances.response_logits

    def watched(model: Any, batch: Any) -> torch.Tensor:
        logits = plain(model, batch)
        held.append(logits.shape[0])
        return logits

    monkeypatch.setattr(distances, "response_logits", watched)
    sample_sums(p, q, SAMPLES, "32-true", max_positions=5)
    # responses of 2, 11, 1 and 6 tokens: 2 | 5 | 5 | 1 + 1 | 5 | 1, once for each model
    assert held == [2, 2, 5, 5, 5, 5, 2, 2, 5, 5, 1, 1]


def test_a_padded_vocabulary_is_cut_to_the_common_one(models: tuple[Any, Any], tmp_path: Path) -> None:
    p, _ = models
    wide = load_frozen(ModelSpec(str(tiny_model(tmp_path / "wide", layers=2, seed=2))), "32-true")
    wide.resize_token_embeddings(VOCABULARY + 5, mean_resizing=False)
    for pair in ((p, wide), (wide, p)):
        sums = sample_sums(*pair, SAMPLES, "32-true")
        expected = [oracle(*pair, sample) for sample in SAMPLES]
        assert sums.kl.tolist() == pytest.approx([kl for kl, _ in expected], rel=1e-4)
        assert sums.other_log_prob.tolist() == pytest.approx([log_prob for _, log_prob in expected], rel=1e-4)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_B2_bfloat16_models_have_float32_softmaxes(
    models: tuple[Any, Any], tmp_path: Path, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = tiny_model(tmp_path / "p", layers=2, seed=1), tiny_model(tmp_path / "q", layers=2, seed=2)
    p, q = (load_frozen(ModelSpec(str(path)), precision) for path in paths)
    seen = []
    plain = distances.kl_divergence
    monkeypatch.setattr(distances, "kl_divergence", lambda *logits: seen.append((logits, kl := plain(*logits))) or kl)
    sums = sample_sums(p, q, SAMPLES, precision)
    ((p_logits, q_logits), kl) = seen[0]
    assert p_logits.dtype == torch.bfloat16
    assert kl.dtype == torch.float32
    assert torch.allclose(kl.double(), plain(p_logits.double(), q_logits.double()), rtol=1e-5, atol=1e-5)
    exact = sample_sums(*models, SAMPLES, "32-true")
    assert sums.kl.tolist() == pytest.approx(exact.kl.tolist(), rel=0.1)
