from __future__ import annotations

import pytest
import torch

from lightning_dadpo.losses import response_nll, response_nll_per_token
from lightning_dadpo.types import SequenceLogProbs

RESPONSES = SequenceLogProbs(torch.tensor([-12.0, -3.0, -0.5]), torch.tensor([4, 3, 1]))


def test_nll_is_a_sum_and_not_a_mean() -> None:
    assert response_nll(RESPONSES).tolist() == [12.0, 3.0, 0.5]


def test_nll_per_token_divides_each_response_by_its_own_tokens() -> None:
    assert response_nll_per_token(RESPONSES).tolist() == [3.0, 1.0, 0.5]


def test_gradients_are_minus_one_and_minus_one_over_the_tokens() -> None:
    for loss, expected in ((response_nll, [-1.0, -1.0, -1.0]), (response_nll_per_token, [-1 / 4, -1 / 3, -1.0])):
        total = RESPONSES.total.clone().requires_grad_()
        loss(SequenceLogProbs(total, RESPONSES.num_tokens)).sum().backward()  # type: ignore[no-untyped-call]
        assert total.grad is not None
        assert total.grad.tolist() == pytest.approx(expected)
