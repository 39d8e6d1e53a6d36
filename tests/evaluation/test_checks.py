from __future__ import annotations

import math
from typing import Any

import pytest

from lightning_dadpo.evaluation.checks import check_summary


def row(model: str, forward_kl: float, half_width: float = 0.1, **other: Any) -> dict[str, Any]:
    bounds = {"forward_kl_low": forward_kl - half_width, "forward_kl_high": forward_kl + half_width}
    return {"model": model, "parameters": 1000, "prompts": 32, "forward_kl": forward_kl} | bounds | other


def good() -> list[dict[str, Any]]:
    return [row("pruned", 3.0), row("dsft", 1.0), row("ddpo", 0.9), row("dadpo", 0.8), row("teacher", 0.0, 0.0)]


def test_a_good_table_has_no_failures() -> None:
    assert check_summary(good()) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_names_the_value_that_is_not_finite(value: float | None) -> None:
    summary = good()
    summary[3]["reverse_kl"] = value
    assert check_summary(summary) == [f"dadpo: reverse_kl is {value}, expected a finite number"]


def test_touching_intervals_are_not_apart() -> None:
    summary = [row("pruned", 1.5, 0.25), row("dsft", 1.0, 0.25), *good()[2:]]
    (failure,) = check_summary(summary)
    assert "pruned 1.5000 [1.2500, 1.7500]" in failure
    assert "dsft 1.0000 [0.7500, 1.2500]" in failure


def test_a_worse_student_fails() -> None:
    summary = [row("pruned", 1.0), row("dsft", 3.0), *good()[2:]]
    assert len(check_summary(summary)) == 1


def test_a_distance_that_is_no_number_fails_the_improvement_too() -> None:
    summary = good()
    summary[1] |= {"forward_kl_high": math.nan}
    assert [failure.split(":")[0] for failure in check_summary(summary)] == [
        "dsft",
        "forward_kl does not improve from pruned 3.0000 [2.9000, 3.1000] to dsft 1.0000 [0.9000, nan]",
    ]


def test_equal_rows_betray_one_model_measured_twice() -> None:
    summary = good()
    summary[3] = summary[2] | {"model": "dadpo"}
    (failure,) = check_summary(summary)
    assert "ddpo and dadpo are equal (forward_kl 0.9" in failure
    summary[3]["repetition"] = 0.01
    assert check_summary(summary) == []


def test_names_missing_models() -> None:
    assert check_summary([row("pruned", 3.0), row("ddpo", 1.0)]) == [
        "no row for model 'dsft'",
        "no row for model 'dadpo'",
    ]
