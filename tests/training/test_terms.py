"""Weighted terms beside a preference loss: SFT and token-level distances, against plain full forwards."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_dadpo.data.batching import collate_pairs
from lightning_dadpo.data.pairing import read_pairs
from lightning_dadpo.data.rows import PairRow
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.losses import DPO, ForwardKL, ResponseNLL, ReverseKL
from lightning_dadpo.models.loading import load_model
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.training.preference import AnchorSource, PairTerm
from tests import oracles
from tests.scoring.example import Setup, make_setup, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*")  # live anchors are

STILL = partial(torch.optim.SGD, lr=0.0)
DISTANCES = {
    "towards": PairTerm(0.5, ForwardKL()),
    "back": PairTerm(0.25, ReverseKL(), response="rejected"),
    "sft": PairTerm(0.125, ResponseNLL()),
}


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return make_setup(tmp_path_factory.mktemp("terms"))


def anchors(setup: Setup, teacher_live: bool = True) -> dict[str, AnchorSource]:
    teacher = AnchorSource(model=ModelSpec(str(setup.teacher)))
    cached = AnchorSource(scores=str(setup.teacher_scores))
    return {
        "reference": AnchorSource(scores=str(setup.reference_scores)),
        "teacher": teacher if teacher_live else cached,
    }


def rows_of_logits(model: Any, prompt: list[int], response: list[int]) -> Tensor:
    """Logits that predict the response, from the model's own forward of this one sequence."""
    ids = torch.tensor([prompt + response])
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits[len(prompt) - 1 : -1]


def plain_kl(setup: Setup, pairs: list[PairRow], side: str, reverse: bool) -> list[float]:
    """Mean over positions, by float64 loops over the two models' own logits."""
    student, teacher = (load_model(ModelSpec(str(path))) for path in (setup.student, setup.teacher))
    found = []
    for pair in pairs:
        response = getattr(pair, f"{side}_token_ids")
        with torch.no_grad():
            own, others = (rows_of_logits(m, pair.prompt_token_ids, response).tolist() for m in (student, teacher))
        order = (own, others) if reverse else (others, own)
        values = [oracles.kl_divergence(p, q) for p, q in zip(*order, strict=True)]
        found.append(sum(values) / len(values))
    return found


@pytest.mark.parametrize("budget", [1, 1000])
def test_every_part_equals_the_oracle_and_the_loss_is_their_weighted_sum(
    setup: Setup, tmp_path: Path, budget: int
) -> None:
    pairs = list(read_pairs(setup.pairs, "validation"))
    module = setup.module(anchors=anchors(setup), terms=DISTANCES)
    (found,) = trainer(tmp_path).validate(module, datamodule=setup.data(tokens_per_batch=budget))
    forward, reverse = plain_kl(setup, pairs, "chosen", False), plain_kl(setup, pairs, "rejected", True)
    assert found["val/part/towards"] == pytest.approx(sum(forward) / len(forward), rel=1e-4)
    assert found["val/part/back"] == pytest.approx(sum(reverse) / len(reverse), rel=1e-4)
    assert found["val/part/sft"] == pytest.approx(found["val/chosen_nll_per_token"], rel=1e-6)
    parts = {name: found[f"val/part/{name}"] for name in ("preference", "towards", "back", "sft")}
    expected = parts["preference"] + 0.5 * parts["towards"] + 0.25 * parts["back"] + 0.125 * parts["sft"]
    assert found["val/loss"] == pytest.approx(expected, rel=1e-5)


def test_the_objective_itself_and_the_anchors_stay_as_without_terms(setup: Setup, tmp_path: Path) -> None:
    (plain,) = trainer(tmp_path).validate(setup.module(), datamodule=setup.data())
    module = setup.module(anchors=anchors(setup), terms=DISTANCES)
    (found,) = trainer(tmp_path).validate(module, datamodule=setup.data())
    assert found["val/part/preference"] == pytest.approx(plain["val/loss"], rel=1e-5)
    for name in set(plain) - {"val/loss"}:
        assert found[name] == pytest.approx(plain[name], rel=1e-4, abs=1e-5), name
    assert not any("part/" in name for name in plain)


def test_the_gradient_is_that_of_the_plain_sum(setup: Setup, tmp_path: Path) -> None:
    pairs = read_pairs(setup.pairs, "train")[:3]
    module = setup.module(anchors=anchors(setup), terms=DISTANCES)
    module.trainer = trainer(tmp_path)  # type: ignore[assignment]
    module.configure_model()
    outcome, _ = module._evaluate(collate_pairs(pairs))
    outcome.loss.sum().backward()  # type: ignore[no-untyped-call]
    found = torch.cat([p.grad.flatten() for p in module.student.parameters()])
    student, teacher = (load_model(ModelSpec(str(path))) for path in (setup.student, setup.teacher))
    with torch.no_grad():
        anchored = module.anchor_log_probs(collate_pairs(pairs))
    total = torch.zeros(())
    for number, pair in enumerate(pairs):
        sums, divergences = {}, {}
        for side, response in (("chosen", pair.chosen_token_ids), ("rejected", pair.rejected_token_ids)):
            own = rows_of_logits(student, pair.prompt_token_ids, response).log_softmax(-1)
            with torch.no_grad():
                others = rows_of_logits(teacher, pair.prompt_token_ids, response).log_softmax(-1)
            sums[side] = own.gather(-1, torch.tensor(response)[:, None]).sum()
            p, q = (others, own) if side == "chosen" else (own, others)
            divergences[side] = (p.exp() * (p - q)).sum(-1).mean()
        margin = torch.zeros(())
        for name, beta in (("reference", 0.1), ("teacher", 0.05)):
            gap = anchored[name].gap[number]
            margin = margin + beta * (sums["chosen"] - sums["rejected"] - gap)
        total = total - torch.nn.functional.logsigmoid(margin)
        total = total + 0.5 * divergences["chosen"] + 0.25 * divergences["rejected"]
        total = total - 0.125 * sums["chosen"] / len(pair.chosen_token_ids)
    total.backward()  # type: ignore[no-untyped-call]
    wanted = torch.cat([p.grad.flatten() for p in student.parameters()])
    assert torch.allclose(found, wanted, rtol=2e-3, atol=2e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_D1_a_sum_is_averaged_over_the_pairs_of_the_step(setup: Setup, tmp_path: Path, accumulate: int) -> None:
    module = setup.module(anchors=anchors(setup), terms=DISTANCES, optimizer=STILL)
    loop = trainer(tmp_path, accumulate_grad_batches=accumulate, log_every_n_steps=3)
    loop.fit(module, datamodule=setup.data(pairs_per_step=6))
    pairs = list(read_pairs(setup.pairs, "train"))
    forward = plain_kl(setup, pairs, "chosen", False)
    assert float(loop.callback_metrics["train/part/towards"]) == pytest.approx(sum(forward) / len(forward), rel=1e-4)


def test_a_term_alone_brings_the_teacher_in_where_the_objective_has_none(setup: Setup, tmp_path: Path) -> None:
    module = setup.module(anchors=anchors(setup), loss=DPO(0.1), terms={"kl": PairTerm(1.0, ReverseKL())})
    (found,) = trainer(tmp_path).validate(module, datamodule=setup.data())
    assert found["val/part/kl"] > 0
    assert "val/teacher_agreement" in found
    assert module.describe()["objective"]["terms"] == {"kl": {"weight": 1.0, "response": "chosen", "name": "ReverseKL"}}


def test_what_a_term_needs_is_asked_for_at_construction(setup: Setup) -> None:
    term = {"kl": PairTerm(1.0, ForwardKL())}
    said = r"model.terms.kl: ForwardKL needs the teacher's logits.*anchors: {teacher: {model: {path: FOLDER}}}"
    with pytest.raises(ConfigError, match=said):
        setup.module(anchors=anchors(setup, teacher_live=False), terms=term)
    only_reference = {"reference": AnchorSource(scores=str(setup.reference_scores))}
    with pytest.raises(ConfigError, match=said):
        setup.module(anchors=only_reference, loss=DPO(0.1), terms=term)
    with pytest.raises(ConfigError, match=r"model.terms.preference: that is what the objective itself is called"):
        setup.module(terms={"preference": PairTerm(1.0, ResponseNLL())})
