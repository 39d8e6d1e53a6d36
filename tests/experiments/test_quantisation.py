"""What rounding a teacher's weights costs: the arithmetic by hand, and the warning that cites it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.quantisation.measure import Scored, compare
from lightning_dadpo.models.quantization import NF4_NOISE

RESULTS = Path(__file__).parents[2] / "experiments" / "quantisation" / "results.json"


def test_what_is_compared_is_D_and_nats_per_token_as_by_hand() -> None:
    whole = Scored(chosen=[-10.0, -20.0], rejected=[-14.0, -18.0], tokens=[10, 30])  # D: 4 and -2
    held = Scored(chosen=[-11.0, -17.0], rejected=[-12.0, -19.0], tokens=[10, 30])  # D: 1 and 2
    found = compare(held, whole)
    assert found["noise"]["value"] == pytest.approx(((3**2 + 4**2) / 2) ** 0.5)
    assert found["noise"]["low"] == pytest.approx(3.0)
    assert found["noise"]["high"] == pytest.approx(4.0)
    assert found["spread"] == pytest.approx(3.0)
    assert found["turned"]["value"] == 0.5
    assert found["per_token"]["value"] == pytest.approx((1 + 2) / 40)


def test_the_warning_of_4_bits_says_what_was_measured() -> None:
    rows = {(row["held"], row["against"]): row["noise"] for row in json.loads(RESULTS.read_text("utf-8"))["rows"]}
    nf4, int8 = rows["nf4", "bfloat16"], rows["int8", "bfloat16"]
    said = f"{nf4['value']:.2f} nats [{nf4['low']:.2f}, {nf4['high']:.2f}], int8 by {int8['value']:.2f}"
    assert said == NF4_NOISE
