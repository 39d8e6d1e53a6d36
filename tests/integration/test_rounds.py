"""Two rounds of two objectives through `dadpo run`: what was drawn, scored and trained on, and what a kill changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.rows import PairRow, ResponseRow, ScoreRow, read_rows
from lightning_dadpo.models.loading import model_digest
from lightning_dadpo.models.spec import ModelSpec
from tests.commands import python_module

TEACHERS = ("score-teacher", "teacher-scores-dadpo-round2")
REFERENCES = ("score-reference", "reference-scores-ddpo-round2", "reference-scores-dadpo-round2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rounds")
    done = python_module("tests.integration.rounds", str(folder), WANDB_MODE="disabled")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def stages(kept: Path) -> dict[str, Path]:
    index = json.loads((kept / "experiment.json").read_text())
    return {stage["name"]: Path(stage["folder"]) for stage in index["stages"]}


@pytest.fixture(scope="module")
def made(folder: Path) -> dict[str, Path]:
    return stages(folder / "fixed")


def pairs(folder: Path, split: str | None = None) -> dict[str, PairRow]:
    rows = read_rows(folder / "rows.jsonl", PairRow)
    return {row.pair_id: row for row in rows if split in (None, row.split)}


def asked(kept: Path) -> dict[str, list[str]]:
    """Pairs that a model was asked about, by scores artefact."""
    found: dict[str, list[str]] = {}
    for line in (kept / "asked").read_text().splitlines():
        artefact, pair_id = line.split()
        found.setdefault(artefact, []).append(pair_id)
    return found


def rounds(kept: Path) -> dict[tuple[int, str], dict[str, Any]]:
    rows = json.loads((kept / "rounds.json").read_text())
    return {(row["round"], row["objective"]): row for row in rows}


@pytest.mark.parametrize("artefacts", [TEACHERS, REFERENCES])
def test_no_anchor_scores_a_pair_twice_over_rounds_and_objectives(
    folder: Path, made: dict[str, Path], artefacts: tuple[str, ...]
) -> None:
    seen = asked(folder / "fixed")
    everything = [pair_id for artefact in artefacts for pair_id in seen.get(artefact, [])]
    assert len(everything) == len(set(everything))
    wanted = {pair_id for artefact in artefacts for pair_id in scores(made[artefact])}
    assert set(everything) == wanted


def scores(folder: Path) -> dict[str, ScoreRow]:
    return {row.pair_id: row for row in read_rows(folder / "rows.jsonl", ScoreRow)}


def test_every_pair_that_is_trained_on_has_its_scores_and_old_ones_are_the_old_numbers(made: dict[str, Path]) -> None:
    for anchor in ("teacher", "reference"):
        first, second = scores(made[f"score-{anchor}"]), scores(made[f"{anchor}-scores-dadpo-round2"])
        assert set(second) == set(pairs(made["mix-dadpo-round2"]))
        shared = first.keys() & second.keys()
        assert shared
        assert all(first[pair_id] == second[pair_id] for pair_id in shared)


@pytest.mark.parametrize("objective", ["ddpo", "dadpo"])
def test_the_second_round_trains_on_its_own_pairs_and_half_of_the_first(made: dict[str, Path], objective: str) -> None:
    latest, first = pairs(made[f"pairs-{objective}-round2"]), pairs(made["pairs"], "train")
    mixed = made[f"mix-{objective}-round2"]
    training = pairs(mixed, "train")
    old = set(training) - set(latest)
    assert set(training) >= {pair_id for pair_id, pair in latest.items() if pair.split == "train"}
    assert old <= set(first)
    repeated = read_manifest(mixed).counts["repeated"]
    assert len(old) + repeated == round(0.5 * len(first))
    assert set(pairs(mixed, "validation")) == {i for i, pair in latest.items() if pair.split == "validation"}


def test_new_rejected_responses_are_the_current_students_and_the_teachers_answers_stay(made: dict[str, Path]) -> None:
    drawn = made["sample-rejected-dadpo-round2"]
    assert read_manifest(drawn).made_from["model"] == model_digest(ModelSpec(str(made["model-dadpo"])))
    new = {row.prompt_id: row.token_ids for row in read_rows(drawn / "rows.jsonl", ResponseRow)}
    answers = {row.prompt_id: row.token_ids for row in read_rows(made["sample-teacher"] / "rows.jsonl", ResponseRow)}
    old = {pair.prompt_id: pair.rejected_token_ids for pair in pairs(made["pairs"]).values()}
    latest = pairs(made["pairs-dadpo-round2"]).values()
    assert all(pair.rejected_token_ids == new[pair.prompt_id] for pair in latest)
    assert all(pair.chosen_token_ids == answers[pair.prompt_id] for pair in latest)
    assert any(pair.rejected_token_ids != old.get(pair.prompt_id) for pair in latest)


def test_training_goes_on_from_the_first_rounds_student(made: dict[str, Path]) -> None:
    import torch
    from safetensors.torch import load_file

    starts = json.loads((made["dadpo-round2"] / "manifest.json").read_text())["made_from"]["settings"]
    assert starts["model"]["init_args"]["student"]["path"] == str(made["model-dadpo"])
    one, two, dsft = (
        load_file(made[name] / "model.safetensors") for name in ("model-dadpo", "model-dadpo-round2", "model-dsft")
    )
    assert any(not torch.equal(one[key], two[key]) for key in one)
    far = sum(float((two[key] - dsft[key]).abs().sum()) for key in one)
    assert far > sum(float((two[key] - one[key]).abs().sum()) for key in one)


def test_what_each_round_did_is_written_down(folder: Path, made: dict[str, Path]) -> None:
    found, seen = rounds(folder / "fixed"), asked(folder / "fixed")
    assert list(found) == [(1, "ddpo"), (1, "dadpo"), (2, "ddpo"), (2, "dadpo")]
    row = found[2, "dadpo"]
    counts = read_manifest(made["pairs-dadpo-round2"]).counts
    assert row["pairs"] == counts["pairs"] == len(pairs(made["pairs-dadpo-round2"]))
    assert row["pairs"] + sum(row["dropped"].values()) == row["responses"] == 11
    assert (row["rejected_from"], row["start"], row["reference"], row["seed"]) == ("dadpo", "dadpo", "dsft", 3)
    assert row["trained_on"] == len(pairs(made["mix-dadpo-round2"]))
    for anchor, said in row["scores"].items():
        new = len(seen.get(f"{anchor}-scores-dadpo-round2", []))
        assert said == {"scored": new, "reused": row["trained_on"] - new}
    assert set(row["scores"]) == {"teacher", "reference"}
    assert set(found[2, "ddpo"]["scores"]) == {"reference"}
    assert row["reused"] == sum(said["reused"] for said in row["scores"].values()) > 0
    assert found[1, "dadpo"]["reused"] == 0
    rows = list(read_rows(made["sample-rejected-dadpo-round2"] / "rows.jsonl", ResponseRow))
    assert row["finished"] == pytest.approx(sum(one.finish_reason == "stop" for one in rows) / 11)
    assert row["mean_tokens"] == pytest.approx(sum(len(one.token_ids) for one in rows) / 11)
    lines = (made["dadpo-round2"] / "validation_pairs.jsonl").read_text().splitlines()
    assert row["margin"] == pytest.approx(sum(json.loads(line)["margin"] for line in lines) / len(lines))
    assert row["student_folder"] == made["model-dadpo-round2"].name


def test_every_rounds_student_is_measured(folder: Path) -> None:
    summary = json.loads((folder / "fixed" / "summary.json").read_text())
    assert [row["model"] for row in summary] == [
        "pruned", "dsft", "ddpo", "dadpo", "ddpo-round2", "dadpo-round2", "teacher",
    ]  # fmt: skip


def test_a_second_run_does_nothing(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    assert report["again"] == 0
    assert report["untouched"]
    assert "[1/" not in report["said_again"]


def test_it_was_killed_in_four_stages_of_the_second_round(folder: Path) -> None:
    """The numbers of all other tests here are those of a run that went on each time."""
    report = json.loads((folder / "report.json").read_text())
    assert len(report["statuses"]) == 5
    assert 0 not in report["statuses"][:-1]


def test_a_reference_that_moves_is_scored_anew_and_is_what_the_round_starts_from(
    folder: Path, made: dict[str, Path]
) -> None:
    report, moved = json.loads((folder / "report.json").read_text()), stages(folder / "moved")
    assert report["moved"] == 0
    assert report["said_moved"].count("step-0 oracle: student = reference on") == 1
    seen = asked(folder / "moved")
    assert set(seen) == {"reference-scores-dadpo-round2"}
    assert set(seen["reference-scores-dadpo-round2"]) == set(pairs(made["mix-dadpo-round2"]))
    scored = read_manifest(moved["reference-scores-dadpo-round2"]).made_from
    assert scored["model"] == model_digest(ModelSpec(str(made["model-dadpo"])))
    assert moved["teacher-scores-dadpo-round2"] == made["teacher-scores-dadpo-round2"]
    row = rounds(folder / "moved")[2, "dadpo"]
    assert (row["reference"], row["scores"]["reference"]["reused"]) == ("dadpo", 0)
