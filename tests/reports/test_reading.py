from __future__ import annotations

import math

import pytest
from rich.console import Console

from lightning_dadpo.reports.inputs import Nearness
from lightning_dadpo.reports.reading import compare, comparisons, headlines
from lightning_dadpo.reports.table import COLUMNS, format_estimate, terminal_table
from tests.reports.example import row, summary

COLUMN = {column.key: column for column in COLUMNS}


def bounds(low: float, value: float, high: float) -> dict[str, float]:
    return {"forward_kl": value, "forward_kl_low": low, "forward_kl_high": high}


@pytest.mark.parametrize(
    ("mine", "theirs", "state"),
    [
        ((0.7, 0.8, 0.9), (1.0, 1.1, 1.2), "better"),
        ((1.0, 1.1, 1.2), (0.7, 0.8, 0.9), "worse"),
        ((0.7, 0.8, 1.0), (1.0, 1.1, 1.2), "overlap"),  # they touch
        ((0.1, 0.2, 9.0), (1.0, 1.1, 1.2), "overlap"),
        ((0.7, 0.8, math.nan), (1.0, 1.1, 1.2), "unknown"),
        ((math.inf, 0.8, 0.9), (1.0, 1.1, 1.2), "unknown"),
        ((0.9, 0.8, 0.7), (1.0, 1.1, 1.2), "unknown"),  # bounds in the wrong order
        ((0.1, 0.5, 0.2), (1.0, 1.1, 1.2), "unknown"),  # a value outside its own interval
    ],
)
def test_a_difference_needs_intervals_apart(
    mine: tuple[float, float, float], theirs: tuple[float, float, float], state: str
) -> None:
    assert compare(bounds(*mine), bounds(*theirs), COLUMN["forward_kl"]).state == state


def test_higher_is_better_where_the_column_says_so() -> None:
    more = {"finished": 0.9, "finished_low": 0.8, "finished_high": 0.95}
    less = {"finished": 0.3, "finished_low": 0.2, "finished_high": 0.4}
    assert compare(more, less, COLUMN["finished"]).state == "better"


def test_a_missing_interval_supports_no_claim() -> None:
    assert compare({"forward_kl": 0.1}, bounds(1, 2, 3), COLUMN["forward_kl"]).state == "unknown"


def test_overlap_is_never_a_win() -> None:
    said = headlines(comparisons(summary()))
    assert said[0] == (
        "This run does not tell daDPO and dDPO apart, nor daDPO and dSFT, nor dDPO and dSFT: "
        "the 95\u00a0% intervals of Teacher NLL, Forward KL and Reverse KL overlap."
    )
    assert said[1].startswith("dSFT is better than pruned on Teacher NLL and Forward KL, with")
    assert said[1].endswith("Not decided: the 95\u00a0% intervals of Reverse KL overlap.")
    assert len(said) == 2


def test_losses_are_named_as_plainly_as_wins() -> None:
    rows = [row("ddpo", 1e6, (1.0, 1.0, 1.0)), row("dadpo", 1e6, (2.0, 0.5, 1.0))]
    (said,) = headlines(comparisons(rows))
    assert said.startswith("daDPO is better than dDPO on Forward KL and worse on Teacher NLL, with")


def test_numbers_as_text() -> None:
    found = {"teacher_nll": 1.23, "teacher_nll_low": 1.1, "teacher_nll_high": 1.37}
    assert format_estimate(found, COLUMN["teacher_nll"]) == "1.230 [1.100, 1.370]"
    assert format_estimate({"finished": 0.5}, COLUMN["finished"]) == "50"
    assert format_estimate({"parameters": 134_515_008}, COLUMN["parameters"]) == "134.5"
    assert format_estimate({}, COLUMN["forward_kl"]) == "not measured"
    assert format_estimate({"forward_kl": math.nan}, COLUMN["forward_kl"]) == "nan"
    assert format_estimate({"forward_kl": True}, COLUMN["forward_kl"]) == "not measured"


def test_the_terminal_shows_markup_as_text() -> None:
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(terminal_table([*summary(), row("[red]x[/red]", 1e6, (1.0, math.nan, 1.0))]))
        text = console.export_text()
    assert "[red]x[/red]" in text
    assert "[1.157, 1.305]" in text
    assert "nan" in text


@pytest.mark.parametrize(
    ("difference", "state"),
    [((-0.03, -0.02, -0.01), "better"), ((0.01, 0.02, 0.03), "worse"), ((-0.01, 0.0, 0.02), "overlap")],
)
def test_prompt_by_prompt_sees_what_two_intervals_do_not(difference: tuple[float, float, float], state: str) -> None:
    low, value, high = difference
    paired = Nearness("dadpo", "dsft", value, low, high, 1.0, 0.9, 1.1)
    rows = [row("dsft", 1e6, (1.0, 1.0, 1.0)), row("dadpo", 1e6, (1.0, 1.0, 1.0))]
    (found,) = comparisons(rows, [paired, Nearness("dsft", "dadpo", 9.0, 8.0, 10.0, 1.0, 0.9, 1.1)])
    assert [verdict.state for verdict in found.verdicts] == ["overlap", state, "overlap"]
    apart = compare(bounds(0.7, 0.8, 0.9), bounds(1.0, 1.1, 1.2), COLUMN["forward_kl"], paired)
    assert (apart.state, apart.paired) == ("better", False)
    (said,) = headlines([found])
    assert ("Forward KL (prompt by prompt), with 0 outside the 95\u00a0% interval of the difference." in said) == (
        state != "overlap"
    )
