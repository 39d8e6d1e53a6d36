from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_dadpo.data.analysis import Analysis, TokenMapRow
from lightning_dadpo.data.rows import read_rows
from lightning_dadpo.tracking import analysis as tracking
from lightning_dadpo.tracking.analysis import DISPUTED, TOKENS, disputed_pairs, record_analysis, summary, token_map
from lightning_dadpo.tracking.connection import end_service
from tests.reports import example

BAD = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield
    if "wandb" in sys.modules:
        end_service()


def sources(tmp_path: Path) -> tuple[Path, Path]:
    analysis = example.analysis(tmp_path / "analysis.json", text=BAD)
    return analysis, example.evaluation(tmp_path / "evaluation", text=BAD) / "token_maps.jsonl"


def test_a_run_that_can_be_read_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    started: list[Any] = []
    plain = tracking.start_run
    monkeypatch.setattr(tracking, "start_run", lambda *a, **k: (started.append(plain(*a, **k)), started[-1])[1])
    analysis, maps = sources(tmp_path)
    record_analysis("trial", analysis, maps, tmp_path / "runs")
    assert capsys.readouterr().out == ""
    (run,) = started
    assert (run.group, run.name, run.job_type) == ("trial", "analysis", "analysis")
    assert run._is_finished
    sys.modules["wandb"].teardown()  # its service may still be writing
    (folder,) = (tmp_path / "runs" / "wandb").glob(f"offline-run-*-{run.id}")
    tables = {
        path.name.split("_0_")[0]: json.loads(path.read_text("utf-8"))
        for path in (folder / "files" / "media" / "table").glob("*.table.json")
    }
    assert {name: table["columns"] for name, table in tables.items()} == {
        "disputed_pairs": list(DISPUTED),
        "token_map": list(TOKENS),
    }
    first = dict(zip(DISPUTED, tables["disputed_pairs"]["data"][0], strict=True))
    assert (first["D_anchor"], first["D_reference"], first["chosen"]) == (-20.25, 3.5, BAD * 4)
    said = tables["token_map"]["data"]
    assert said == [list(row) for row in token_map(list(read_rows(maps, TokenMapRow)))]
    assert any(row[TOKENS.index("text")] == BAD for row in said)
    stored = (folder / f"run-{run.id}.wandb").read_bytes()
    assert b"agreement/teacher/all" in stored
    assert not list(folder.rglob("*.html"))


def test_the_numbers_of_the_summary(tmp_path: Path) -> None:
    found = Analysis.read(example.analysis(tmp_path / "analysis.json"))
    assert summary(found) == {
        **{f"agreement/{name}{end}": value for name in ("teacher/all", "teacher/train", "reference/all")
           for end, value in (("", 0.625), ("_low", 0.51), ("_high", 0.73))},
        "spread/teacher/all": 27.0, "spread/teacher/train": -1.0, "advised_beta/teacher/all": 1 / 27,
        "saturated/ddpo/all": 0.0, "saturated/ddpo/train": 0.0,
        "saturated/dadpo/all": 0.75, "saturated/dadpo/train": 0.5,
    }  # fmt: skip
    twice = Analysis([found.sets[0], found.sets[0]])
    assert set(summary(twice)) == {f"pairs/{key}" for key in summary(found)}


def test_the_token_table_by_hand() -> None:
    """Three tokens of one character are one row with their sums; the difference is the teacher's less the student's."""
    rows = [dict(zip(TOKENS, row, strict=True)) for row in token_map([example.token_map("p0", "dadpo", ["dadpo"])])]
    assert [row["position"] for row in rows] == [0, 1, 2, 5, 6, 7, 8, 9, 10]
    assert rows[2] == {
        "student": "dadpo", "sampled_by": "dadpo", "prompt_id": "p0", "position": 2, "text": " €", "tokens": 3,
        "teacher": -2.75, "reference": -3.0, "student_log_prob": -1.5, "difference": -1.25,
    }  # fmt: skip
    assert rows[0]["difference"] == 2.5


def test_the_teacher_s_answer_stands_beside_every_student() -> None:
    rows = list(token_map([example.token_map("p0", "teacher", ["dsft", "dadpo"])]))
    assert list(dict.fromkeys((row[0], row[1]) for row in rows)) == [("dsft", "teacher"), ("dadpo", "teacher")]


def test_disputed_pairs_name_their_anchor_and_prompt(tmp_path: Path) -> None:
    found = Analysis.read(example.analysis(tmp_path / "analysis.json"))
    first = dict(zip(DISPUTED, next(disputed_pairs(found)), strict=True))
    assert (first["pairs"], first["anchor"], first["split"], first["prompt_id"]) == ("pairs", "teacher", "train", "p0")
    assert first["prompt"].startswith("user: Start with")


def test_a_long_table_is_cut_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}

    class Run:
        def __init__(self) -> None:
            self.summary = told

        def log(self, row: dict[str, Any]) -> None:
            told.update({name: len(table.data) for name, table in row.items()})

        def finish(self) -> None:
            pass

    monkeypatch.setattr(tracking, "MOST_ROWS", 3)
    monkeypatch.setattr(tracking, "start_run", lambda *_, **__: Run())
    analysis, _ = sources(tmp_path)
    record_analysis("trial", analysis, tmp_path / "nowhere", tmp_path / "runs")
    assert (told["disputed_pairs"], told["disputed_pairs_left_out"]) == (3, 1)
    assert "token_map" not in told


def test_nothing_is_started_where_there_is_nothing_or_nobody_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr(tracking, "start_run", lambda *given, **_: started.append(given))
    record_analysis("trial", tmp_path / "a", tmp_path / "b", tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    record_analysis("trial", *sources(tmp_path), tmp_path)
    assert started == []


def test_trouble_is_one_line_and_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "analysis.json").write_text("{")
    record_analysis("trial", tmp_path / "analysis.json", tmp_path / "b", tmp_path)
    said = capsys.readouterr().out
    assert said.startswith(f"wandb: the analysis was not recorded ({tmp_path / 'analysis.json'}: Invalid JSON")
    assert said.count("\n") == 1
