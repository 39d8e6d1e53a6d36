"""Curves survive a kill: what the second attempt did again replaces what the first one wrote."""

from __future__ import annotations

import csv
from pathlib import Path

from lightning_dadpo.cli.curves import join_curves


def test_a_resumed_attempt_replaces_the_steps_that_it_did_again(tmp_path: Path) -> None:
    first, second, out = (tmp_path / name for name in ("first.csv", "second.csv", "out.csv"))
    first.write_text("step,train/loss\n0,0.7\n1,0.6\n2,0.5\n")
    second.write_text("step,train/loss,val/loss\n2,0.4,\n3,0.3,0.9\n")
    join_curves([first, second], out)
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [(row["step"], row["train/loss"], row["val/loss"]) for row in rows] == [
        ("0", "0.7", ""),
        ("1", "0.6", ""),
        ("2", "0.4", ""),
        ("3", "0.3", "0.9"),
    ]


def test_one_attempt_without_rows_gives_a_file_without_rows(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    join_curves([tmp_path / "empty.csv"], tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().strip() == ""
