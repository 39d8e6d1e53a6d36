"""The experiments' tables and figures, from results alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.beta_plane import report as plane_report
from experiments.more_data import report as data_report
from experiments.restore_pruned import report as restored_report
from experiments.teacher_confidence import report as confidence_report
from lightning_dadpo.evaluation.agreement_with_people import ValidationRow, agreements


def estimate(key: str, value: float) -> dict[str, float]:
    return {key: value, f"{key}_low": value - 0.1, f"{key}_high": value + 0.1}


SAMPLER = {"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 128}
ABOUT = {
    "command": "python x.py", "commit": "abc1234", "hardware": "two cores", "precision": "32-true", "prompts": 64,
    "seeds": [10, 20], "sampler": SAMPLER, "versions": {"torch": "1", "transformers": "2", "lightning": "3"},
}  # fmt: skip
KEYS = (
    "finished", "mean_tokens", "repetition", "cut_tokens", "teacher_nll", "forward_kl", "reverse_kl", "reverse_kl_each",
)  # fmt: skip


def estimated(value: float, **more: Any) -> dict[str, Any]:
    return {key: number for name in KEYS for key, number in estimate(name, value).items()} | more


JUDGED = [
    ValidationRow(kind, "p", f"{n}", f"q{n}", "first", "first", "second", "first", "second")
    for n, kind in enumerate(["PandaLM", "LLMBar"])
]
JUDGES = [{"name": "a judge", "passes": False, "sets": [{"set": "PandaLM", **agreements(JUDGED, 10)}]}]
CHANGES = {f"{key}_{kind}": value for kind in ("change", "gain") for key, value in estimated(0.25).items()}
POINTS = [{"beta_reference": 0.1, "beta_teacher": teacher} for teacher in (0.0, 0.1)]
SEEDS = {f"{key}_seeds": [0.51, 0.49] for key in ("forward_kl", "reverse_kl", "reverse_kl_each")}
RANKS = {
    "forward_kl": {
        "value": 0.5, "low": 0.25, "high": 0.75, "partial": 0.125, "partial_low": -0.5, "partial_high": 0.25,
    },
}  # fmt: skip
TENTHS = [estimated(0.5, part=1, answers=20, margin=0.25)]
RESULTS = {
    restored_report: ABOUT | {
        "pairs": [{"pairs": 250}, {"pairs": 251}], "thread_hours": 12.3, "selected_by": "reverse_kl",
        "judges": JUDGES, "preference": None, "ifeval": None,
        "rows": [estimated(0.5, method="dadpo", rate=2e-5) | SEEDS],
        "differences": [estimated(-0.25, method="dadpo", other="ddpo") | SEEDS],
        "tuning": [estimated(0.75, model="dadpo-2e-05")],
    },
    plane_report: ABOUT | {
        "seed": 10, "rate": 2e-5, "thread_hours": 1.25, "dsft": estimated(0.5),
        "rows": [estimated(0.5) | point | CHANGES for point in POINTS],
        "differences": [estimated(-0.25) | {"point": POINTS[1], "other": POINTS[0]}],
        "saturation": {
            "quartiles": [8.5, 18.0, 38.75], "agreement": estimate("share", 0.625),
            "rows": [point | {"saturated": 0.25} for point in POINTS],
        },
    },
    data_report: ABOUT | {
        "seed": 10, "thread_hours": 1.25,
        "rows": [
            estimated(0.5, method="dadpo", prompts=prompts, pairs=60, rounds=1) | CHANGES
            | {"chosen_tokens": 30.0, "rejected_tokens": 45.0}
            for prompts in (64, 128)
        ],
        "differences": [estimated(-0.25, prompts=264, rounds=2)],
    },
    confidence_report: ABOUT | {
        "answers": 20, "rows": {"per_token": TENTHS, "whole": TENTHS},
        "correlations": {"per_token": RANKS, "whole": RANKS},
    },
}  # fmt: skip
SAID = {
    restored_report: "dadpo less ddpo | -0.250 [-0.350, -0.150] | -0.250 [-0.350, -0.150] | -0.250 [-0.350, -0.150] | "
    "+0.510, +0.490 |",
    plane_report: "| 0.1 | 0.500 (+0.250 [+0.150, +0.350]) | 0.500 (+0.250 [+0.150, +0.350]) |",
    data_report: "| 128 | 60 | 1 | dadpo | 0.500 [0.400, 0.600] | +0.250 [+0.150, +0.350] |",
    confidence_report: "| 1 | 20 | +0.25 | +0.500 [+0.400, +0.600] | +0.500 [+0.400, +0.600] |",
}


def restored(**changes: Any) -> dict[str, str]:
    return restored_report.tables(RESULTS[restored_report] | changes)


def test_a_judge_that_does_not_pass_stands_in_the_table_with_what_people_say() -> None:
    table = restored()["restore_pruned judges"]
    assert "| a judge | PandaLM | 2 | 100.0% [100.0%, 100.0%] | 0.0% [0.0%, 0.0%] | no |" in table


def test_rates_are_shown_of_a_judge_that_passes_alone() -> None:
    """Fixed before the first run: without one, no preference result."""
    rate = {**estimate("preference_rate", -0.25), **estimate("longer_wins", 0.5)}
    found = {
        "judge": "a judge",
        "passes": True,
        "rows": [{"method": "dadpo", **rate}],
        "differences": [{"method": "dadpo", "other": "ddpo", **estimate("preference_rate", 0.25)}],
    }
    said = restored(preference=found)["restore_pruned preference"]
    assert "| dadpo | -25.0% [-35.0%, -15.0%] | +50.0% [+40.0%, +60.0%] |" in said
    assert "| dadpo less ddpo | +25.0% [+15.0%, +35.0%] |" in said
    failed = restored(preference={"judge": "a judge", "passes": False})["restore_pruned preference"]
    assert failed == "The judge a judge does not pass, so no preference result is claimed."


def test_the_other_tables_say_what_stands_behind_them() -> None:
    plane = plane_report.tables(RESULTS[plane_report])
    assert "| 0.1, 0.1 | 0.1, 0 | -0.250 [-0.350, -0.150] | -0.250 [-0.350, -0.150] |" in plane["beta_plane strength"]
    assert "quartiles 8.5, 18.0 and 38.8 nats" in plane["beta_plane saturation"]
    assert "| 0.1, 0.1 | 25% |" in plane["beta_plane saturation"]
    assert "comes to a product of 3 at a teacher's weight of 0.17." in plane["beta_plane saturation"]
    lighter = {"beta_reference": 0.03, "beta_teacher": 0.1}
    rows = [
        estimated(value) | point | CHANGES for value, point in zip((0.5, 0.4, 0.65), [*POINTS, lighter], strict=True)
    ]
    line = plane_report.tables(RESULTS[plane_report] | {"rows": rows})["beta_plane"]
    assert "at most 0.250 nats/token apart in forward KL and 0.250 in reverse KL" in line
    assert "Beside a reference of 0.1, a teacher of 0.1 takes 20.0% off the forward KL." in line
    data = data_report.tables(RESULTS[data_report])
    assert all("had not made took 1.2 hours" in text for text in (plane["beta_plane"], data["more_data"]))
    assert "| 264 | 2 | -0.250 [-0.350, -0.150] | -0.250 [-0.350, -0.150] |" in data["more_data differences"]
    assert "| 128 | 1 | dadpo | 0.5 [0.4, 0.6] | 50% [40%, 60%] | 30.0, 45.0 tokens |" in data["more_data answers"]
    said = restored()["restore_pruned"]
    assert "Answers of up to 128 tokens at temperature 0.7, top_p 1. `python x.py` at abc1234 on two cores" in said
    assert "250, 251 pairs" in said
    keys = ("prompt_strict", "instruction_strict", "finished")
    row = {"model": "dadpo", "prompts": 64, "mean_tokens": 90.0}
    row |= {key: value for name in keys for key, value in estimate(name, 0.25).items()}
    table = restored(ifeval={"rows": [row], "repeating_the_prompt": row})["restore_pruned ifeval"]
    assert "| dadpo | 25.0% [15.0%, 35.0%] | 25.0% [15.0%, 35.0%] | 25.0% [15.0%, 35.0%] | 90 |" in table
    assert "| repeating the prompt | 25.0% [15.0%, 35.0%] | 25.0% [15.0%, 35.0%] |  |  |" in table


@pytest.mark.parametrize("report", list(RESULTS), ids=lambda module: str(module.__name__.split(".")[1]))
def test_tables_and_figures_come_from_the_results_alone(report: Any, tmp_path: Path) -> None:
    tables = report.tables(RESULTS[report])
    assert any(SAID[report] in text for text in tables.values())
    readme = (Path(report.__file__).parent / "README.md").read_text("utf-8")
    assert all(f"<!-- results: {marker} -->" in readme for marker in tables)
    written = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        report.figures(RESULTS[report], folder)
        written.append([path.read_bytes() for path in folder.iterdir()])
    assert written[0] == written[1]
    assert len(written[0]) == 1
    assert written[0][0].startswith(b"<?xml")
