from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_dadpo.data.artifacts import draft, file_digest, read_manifest
from lightning_dadpo.tracking.connection import end_service
from lightning_dadpo.tracking.lineage import Node, made, record_inputs, record_output, trained, used
from lightning_dadpo.tracking.runs import record_stage
from tests.wandb_records import Kept, artifacts_of

MODEL = {"path": "Qwen/Qwen2.5-7B-Instruct", "gguf_file": None, "revision": "v1"}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield
    if "wandb" in sys.modules:
        end_service()


def artefact(folder: Path, kind: str, **results: Any) -> Path:
    with draft(folder, kind, {"of": folder.name}) as work:
        (work.path / "rows.jsonl").write_text("{}\n")
        work.results = results
    return folder


def named(nodes: list[Node]) -> list[tuple[str, str]]:
    return [(node.kind, node.name) for node in nodes]


def test_what_settings_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Artefacts, files in them, files of rows and models from outside; each once; nothing else."""
    monkeypatch.chdir(tmp_path)
    for name, kind in (("pairs-1", "pairs"), ("scores-2", "scores"), ("dsft-3", "fit"), ("model-4", "model")):
        artefact(tmp_path / "runs" / name, kind)
    (tmp_path / "runs" / "dsft-3" / "checkpoints").mkdir()
    (tmp_path / "runs" / "dsft-3" / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "train.jsonl").write_text("{}\n")
    settings = {
        "model": {"path": "runs/model-4", "gguf_file": None, "revision": None},
        "teacher": MODEL,
        "again": [MODEL, "runs/pairs-1/rows.jsonl"],
        "prompts": {"train": {"path": "train.jsonl", "limit": 5}, "heldout": {"path": "nowhere.jsonl"}},
        "data": {"train": {"folder": str(tmp_path / "runs" / "pairs-1")}},
        "anchors": {"teacher": {"scores": ["runs/scores-2"]}},
        "checkpoint": "runs/dsft-3/checkpoints/last.ckpt",
        "out": "runs",
        "here": ".",
        "text": "~nobody/ \0 " + "long " * 2000,
        "number": 3,
        "nothing": None,
    }
    assert named(used(settings)) == [
        ("model", "model-4"),
        ("model", "Qwen2.5-7B-Instruct"),
        ("pairs", "pairs-1"),
        ("data", "train.jsonl"),
        ("scores", "scores-2"),
        ("fit", "dsft-3"),
    ]


def test_a_judge_s_stages_name_its_model_and_what_people_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an experiment's YAML has them. Planted: of whole specs and JSONL alone, neither is an input of them."""
    monkeypatch.chdir(tmp_path)
    for name in ("pandalm.json", "natural.json"):
        (tmp_path / name).write_text("[]")
    judge = {"class_path": "RewardModelJudge", "init_args": {"model": {"path": "own/reward", "revision": "v2"}}}
    people = {"pandalm": "pandalm.json", "llmbar": ["natural.json", "nowhere.json"]}
    nodes = used({"judge": judge, "people": people})
    assert named(nodes) == [("model", "reward"), ("data", "pandalm.json"), ("data", "natural.json")]
    assert nodes[0].reference == "dadpo:model/own/reward@v2"
    assert used({"prompts": {"heldout": {"path": "nowhere.jsonl"}}, "model": {"class_path": "X"}}) == []


def test_a_node_is_what_it_is_made_of(tmp_path: Path) -> None:
    folder = artefact(tmp_path / "pairs-1", "pairs")
    node = made(folder)
    assert (node.name, node.kind, node.reference) == ("pairs-1", "pairs", (folder / "manifest.json").as_uri())
    assert node.metadata == {
        "folder": str(folder),
        "digest": file_digest(folder / "manifest.json"),
        "kind": "pairs",
        "manifest": (folder / "manifest.json").read_text(),
    }
    assert made(artefact(tmp_path / "dsft-1", "fit")) == trained("dsft-1")


def test_an_offline_stage_names_inputs_and_output_and_they_meet(tmp_path: Path) -> None:
    """Two stages, one after the other: what the first one made and the second one used is the same version."""
    (tmp_path / "train.jsonl").write_text("{}\n")
    responses = artefact(tmp_path / "responses-1", "responses")
    pairs = artefact(tmp_path / "pairs-2", "pairs", said="<script>" * 9000)  # over several blocks of the log
    first = recorded(tmp_path, responses, {"model": MODEL, "prompts": {"train": {"path": f"{tmp_path}/train.jsonl"}}})
    second = recorded(tmp_path, pairs, {"chosen": str(responses), "rejected": str(responses)})
    assert [(one.used, one.kind, one.name) for one in first + second] == [
        (True, "model", "Qwen2.5-7B-Instruct"),
        (True, "data", "train.jsonl"),
        (False, "responses", "responses-1"),
        (True, "responses", "responses-1"),
        (False, "pairs", "pairs-2"),
    ]
    assert second[0].digest == first[-1].digest
    assert len({one.digest for one in first + second}) == 4
    assert json.loads(json.loads(second[-1].metadata)["manifest"])["kind"] == "pairs"
    assert [one.uploads for one in first + second] == [()] * 5
    assert first[0].references == ("dadpo:model/Qwen/Qwen2.5-7B-Instruct@v1",)


def recorded(tmp_path: Path, folder: Path, settings: dict[str, Any]) -> list[Kept]:
    manifest = read_manifest(folder)
    record_stage("trial", folder.name, folder.name, folder, manifest, tmp_path / "runs", settings)
    sys.modules["wandb"].teardown()  # its service may still be writing
    (kept,) = (tmp_path / "runs" / "wandb").glob(f"offline-run-*/run-{folder.name}.wandb")
    return artifacts_of(kept)


class Refusing:
    """A run of a wandb that has changed."""

    name, disabled = "pairs", False

    def log_artifact(self, artifact: Any) -> None:
        raise RuntimeError("no room\nand a long story")


def test_trouble_is_one_line_and_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record_inputs(Refusing(), {"folder": str(artefact(tmp_path / "a", "pairs"))})
    record_output(Refusing(), trained("dsft-1"))
    assert capsys.readouterr().out == (
        "wandb: pairs: its lineage was not recorded ('Refusing' object has no attribute '_log_artifact')\n"
        "wandb: pairs: its lineage was not recorded (no room)\n"
    )


def test_a_disabled_run_is_told_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Disabled(Refusing):
        disabled = True

    record_inputs(Disabled(), {"folder": str(artefact(tmp_path / "a", "pairs"))})
    assert capsys.readouterr().out == ""  # a run that was told something would have refused, in a printed line
