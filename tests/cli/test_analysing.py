"""Which pairs, scores and weights belong together, from an experiment's folders alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_dadpo.cli.analysing import write_analysis
from lightning_dadpo.cli.reporting import report
from lightning_dadpo.data.analysis import Analysis
from lightning_dadpo.data.artifacts import draft, read_manifest
from lightning_dadpo.data.rows import Message, PairRow, RowWriter, ScoreRow
from lightning_dadpo.errors import DataError


class Folder:
    """An experiment's folder, and the stages that `experiment.json` lists."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True)
        self.root = root
        self.stages: list[dict[str, str]] = []

    def add(
        self, name: str, command: str, kind: str, made_from: dict[str, Any], *rows: Any, results: Any = None
    ) -> Path:
        folder = self.root / f"{name}-1f"
        with draft(folder, kind, made_from) as work:
            work.results |= results or {}
            if rows:
                with RowWriter(work.path / "rows.jsonl") as writer:
                    writer.write(*rows)
        self.stages.append({"name": name, "command": command, "folder": str(folder)})
        return folder

    def pairs(self, name: str, command: str, *ids: str) -> Path:
        rows = [
            PairRow(one, one, "train", [Message("user", "?")], [1], [2], "c", "stop", [3], "r", "stop") for one in ids
        ]
        return self.add(name, command, "pairs", {"name": name}, *rows)

    def scores(self, name: str, anchor: str, pairs: Path, **gaps: float) -> Path:
        made_from = {"anchor": anchor, "pairs": read_manifest(pairs).files["rows.jsonl"]}
        rows = [ScoreRow(one, gap, 1, 0.0, 1) for one, gap in gaps.items()]
        return self.add(name, "score", "scores", made_from, *rows)

    def fit(self, name: str, objective: str | None, betas: dict[str, float], **anchors: Path) -> None:
        sources = {anchor: {"scores": str(folder)} for anchor, folder in anchors.items()}
        data = "SupervisedData" if objective is None else "PreferenceData"
        settings = {"model": {"init_args": {"anchors": sources} if sources else {}}, "data": {"class_path": data}}
        self.add(name, "fit", "fit", {"settings": settings})
        said = {} if objective is None else {"objective": {"name": objective, "betas": betas}}
        self.add(f"model-{name}", "export", "model", {}, results={"card": said})

    def analyse(self) -> Analysis | None:
        path = write_analysis(self.root, {"stages": self.stages})
        return None if path is None else Analysis.read(path)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path / "run")
    first = made.pairs("pairs", "pair", "a", "b")
    teacher = made.scores("score-teacher", "teacher", first, a=40.0, b=-2.0)
    reference = made.scores("score-reference", "reference", first, a=0.0, b=0.0)
    made.fit("dsft", None, {})
    made.fit("ddpo", "DPO", {"reference": 0.1}, reference=reference, teacher=teacher)
    made.fit("dadpo", "DaDPO", {"reference": 0.1, "teacher": 0.1}, reference=reference, teacher=teacher)
    made.fit("ipo", "IPO", {"reference": 0.1, "teacher": 0.1}, reference=reference, teacher=teacher)
    return made


def test_one_set_of_pairs_with_its_scores_and_objectives(folder: Folder) -> None:
    found = folder.analyse()
    assert found is not None
    (one,) = found.sets
    assert one.name == "pairs"
    assert one.agreement["teacher"]["all"].share == 0.5
    assert [pair.pair_id for pair in one.disputed["teacher"]] == ["b"]
    # an IPO pair does not pull with sigmoid(-margin): it has no weight that could saturate
    assert {name: (start.betas, start.shares) for name, start in one.saturated.items()} == {
        "ddpo": ({"reference": 0.1}, {"all": 0.0}),
        "dadpo": ({"reference": 0.1, "teacher": 0.1}, {"all": 0.5}),
    }


def test_each_round_s_pairs_go_with_their_own_scores(folder: Folder) -> None:
    """The same pair has another reference in the second round: scores are matched by what they were made from."""
    folder.pairs("pairs-dadpo-round2", "pair", "c")
    mixed = folder.pairs("mix-dadpo-round2", "mix", "a", "c")
    teacher = folder.scores("teacher-scores-dadpo-round2", "teacher", mixed, a=40.0, c=3.0)
    moved = folder.scores("reference-scores-dadpo-round2", "reference", mixed, a=39.0, c=1.0)
    folder.fit("dadpo-round2", "DaDPO", {"reference": 0.1, "teacher": 0.1}, reference=moved, teacher=teacher)
    found = folder.analyse()
    assert found is not None
    assert [one.name for one in found.sets] == ["pairs", "mix-dadpo-round2"]  # unscored pairs have nothing to say
    later = found.sets[1]
    assert list(later.saturated) == ["dadpo-round2"]
    assert later.spread["teacher"]["all"].quartiles == (1.25, 1.5, 1.75)
    assert later.agreement["teacher"]["all"].share == 1.0


def test_no_scored_pairs_no_file(tmp_path: Path) -> None:
    made = Folder(tmp_path / "run")
    made.pairs("pairs", "pair", "a")
    made.fit("simpo", "SimPO", {})
    assert made.analyse() is None
    assert not (made.root / "analysis.json").exists()


def experiment(folder: Folder) -> Path:
    for name in ("sample-teacher", "evaluation"):
        folder.add(name, "x", "responses" if name == "sample-teacher" else "evaluation", {})
    (folder.root / "summary.json").write_text("[]")
    index = {"name": "t", "command": "dadpo run t", "notes": [], "configuration": "", "stages": folder.stages}
    (folder.root / "experiment.json").write_text(json.dumps(index))
    return report(str(folder.root))


def test_the_command_writes_both_files(folder: Folder) -> None:
    text = experiment(folder).read_text("utf-8")
    assert "The teacher too prefers the chosen response in 50\u00a0%" in text
    assert "this evaluation was made without one" in text
    assert "dadpo-1f/validation_pairs.jsonl: no such file" in text
    assert "dsft-1f/validation_pairs.jsonl" not in text  # it was trained on responses
    assert Analysis.read(folder.root / "analysis.json").sets[0].pairs == 2


def test_rows_of_another_version_do_not_stop_the_report(folder: Folder) -> None:
    pairs = read_manifest(folder.root / "pairs-1f").files["rows.jsonl"]
    later = folder.root / "score-later-1f"
    with draft(later, "scores", {"anchor": "later", "pairs": pairs}) as work:
        (work.path / "rows.jsonl").write_text('{"pair_id": "a", "nats": 1.0}\n')
    folder.stages.append({"name": "score-later", "command": "score", "folder": str(later)})
    with pytest.raises(DataError, match=r"score-later-1f/rows.jsonl:1: `chosen_log_prob`"):
        folder.analyse()
    text = experiment(folder).read_text("utf-8")
    assert "Nothing is known of whether the teacher agrees" in text
    assert "rows.jsonl:1: `chosen_log_prob`" in text
    assert not (folder.root / "analysis.json").exists()
