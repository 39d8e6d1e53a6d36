"""The columns that stand beside every result."""

from __future__ import annotations

from lightning_dadpo.reports.table import COLUMNS, columns, format_estimate


def test_E4_lengths_stand_beside_the_distances_and_every_estimate_has_its_interval() -> None:
    keys = [column.key for column in COLUMNS]
    assert {"mean_tokens", "finished", "forward_kl", "reverse_kl", "teacher_nll"} <= set(keys)
    for column in COLUMNS:
        if column.key in ("model", "parameters", "prompts"):
            continue
        row = {column.key: 0.5, f"{column.key}_low": 0.25, f"{column.key}_high": 0.75}
        shown = format_estimate(row, column)
        assert shown.count("[") == 1
        assert shown.count(",") == 1


def test_distinct_shares_are_shown_where_they_were_measured() -> None:
    keys = [column.key for column in columns([{"model": "dadpo"}, {"model": "teacher", "distinct_2": 0.5}])]
    assert keys[keys.index("repetition") :] == ["repetition", "distinct_2", "teacher_nll", "forward_kl", "reverse_kl"]
    assert columns([{"model": "dadpo"}]) == COLUMNS
