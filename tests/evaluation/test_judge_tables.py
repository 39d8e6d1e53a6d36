from __future__ import annotations

from typing import Any

import pytest

from lightning_dadpo.evaluation.judge_tables import say_preferences, say_validation, validation_line


def estimate(name: str, value: float, low: float, high: float) -> dict[str, float]:
    return {name: value, f"{name}_low": low, f"{name}_high": high}


VALIDATION: dict[str, Any] = {
    "judge": {"name": "j"},
    "criterion": "What it must do.",
    "passes": False,
    "reasons": ["PandaLM: not enough"],
    "sets": [
        {
            "set": name, "pairs": 999, "untied": 894, "consistent": 0.9, "ties": 0.1,
            **estimate("agreement", 0.7004, 0.65, 0.75), **estimate("longer_wins", 0.674, 0.62, 0.73),
            **estimate("difference", 0.0264, -0.004, 0.06),
        }
        for name in ("PandaLM", "LLMBar", "LLMBar__Adversarial__Neighbor")
    ],
}  # fmt: skip
PREFERENCE: dict[str, Any] = {
    "judge": {"name": "j", "validations": []},
    "opponent": "runs/teacher",
    "rows": [
        {
            "model": "[b]dadpo", "prompts": 64, "win": 0.2, "tie": 0.5, "lose": 0.3, "consistent": 0.75,
            "mean_tokens": 28.94, "opponent_mean_tokens": 30.55,
            **estimate("preference_rate", -0.1, -0.251, 0.049), **estimate("length_controlled", -0.034, -0.2, 0.1),
            **estimate("longer_wins", -0.062, -0.3, 0.2),
        }
    ],
    "differences": [{"model": "dadpo", "other": "ddpo", **estimate("difference", 0.031, -0.02, 0.08)}],
}  # fmt: skip


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    return [" ".join(line.split()) for line in lines]


def test_rates_are_points_of_100_with_their_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    say_preferences(PREFERENCE)
    lines = shown(capsys)
    assert "[b]dadpo 20/50/30 -10.0 -3.4 -6.2 75 28.9" in lines
    assert "[-25, +5] [-20, +10] [-30, +20] (30.6)" in lines
    assert "dadpo less ddpo: +3.1 [-2, +8] points, prompt by prompt" in lines
    text = " ".join(lines)
    assert "judge j, against runs/teacher (its tokens in brackets), 64 prompts" in text
    assert "this judge was not held against people" in text


def test_agreement_stands_beside_longer_wins(capsys: pytest.CaptureFixture[str]) -> None:
    say_validation(VALIDATION)
    lines = shown(capsys)
    assert "PandaLM 999 70.0 67.4 +2.6 90.0 10.0" in lines
    assert "(894) [65.0, 75.0] [62.0, 73.0] [-0.4, +6.0]" in lines
    assert any(line.startswith("Adversarial Neighbor") for line in lines)
    assert lines[-2:] == ["judge j: does not pass", "PandaLM: not enough"]


def test_what_is_believed_is_said_in_one_line() -> None:
    failed = "agreement with people, untied pairs: PandaLM 70.0 [65.0, 75.0], LLMBar 70.0 [65.0, 75.0] %; "
    assert validation_line([VALIDATION]) == f"{failed}does not pass (PandaLM: not enough)"
    assert validation_line([VALIDATION | {"passes": True}]) == f"{failed}passes"
