"""Each judge, named in a YAML by its short name, held against people by the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_dadpo.cli.main import main
from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.evaluation.judges import ChatJudge, Comparison, Judge, LikelihoodJudge, RewardModelJudge
from lightning_dadpo.models.server_spec import ChatServerSpec
from lightning_dadpo.models.spec import ModelSpec
from tests.evaluation.judges.talks import talk
from tests.reward import tiny_reward_model
from tests.servers.fake_chat import FakeChatServer
from tests.tiny import END_OF_TURN

PEOPLE = [
    {"instruction": "Name a river.", "input": "", "response1": "The Danube.", "response2": "No."},
    {"instruction": "Add.", "input": "2 + 3", "response1": "5", "response2": "It is seven."},
    {"instruction": "Say hello.", "input": "", "response1": "Hello", "response2": "Hello"},
]


def validated(tmp_path: Path, judge: dict[str, Any]) -> tuple[int, Path]:
    people = tmp_path / "people.json"
    labels = {"annotator1": 1, "annotator2": 1, "annotator3": 2}
    people.write_text(json.dumps([row | labels for row in PEOPLE]))
    out, config = tmp_path / "validation", tmp_path / "judge.yaml"
    config.write_text(
        yaml.safe_dump({"judge": judge, "people": {"pandalm": str(people)}, "out": str(out), "resamples": 50})
    )
    return main(["validate-judge", "-c", str(config)]), out


def hold_to(judge: Judge, out: Path) -> None:
    """The verdicts are those that the judge gives when it is asked directly."""
    validation = json.loads((out / "validation.json").read_text())
    assert validation["judge"] == {"name": judge.name, "identity": judge.identity()}
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    comparisons = [
        Comparison(str(number), talk("\n\n".join(filter(None, (row["instruction"], row["input"])))), first, second)
        for number, row in enumerate(PEOPLE)
        for first, second in [(row["response1"], row["response2"])]
    ]
    assert [row["as_is"] for row in rows] == judge.prefer(comparisons)
    assert [row["as_is"] for row in rows][2] == "tie"


def test_a_likelihood_judge(tmp_path: Path, tiny_folder: Path) -> None:
    status, out = validated(
        tmp_path, {"class_path": "LikelihoodJudge", "init_args": {"model": {"path": str(tiny_folder)}}}
    )
    assert status == 0
    hold_to(LikelihoodJudge(ModelSpec(str(tiny_folder))), out)


def test_a_reward_model(tmp_path: Path) -> None:
    folder = str(tiny_reward_model(tmp_path / "reward", END_OF_TURN))
    status, out = validated(tmp_path, {"class_path": "RewardModelJudge", "init_args": {"model": {"path": folder}}})
    assert status == 0
    hold_to(RewardModelJudge(ModelSpec(folder)), out)


def test_a_chat_endpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments: dict[str, Any] = {"cache": str(tmp_path / "cache"), "input_price": 1.0, "output_price": 2.0}
    with FakeChatServer(lambda request: "FIRST") as server:
        arguments["server"] = {"url": server.url, "model": "judge-1"}
        asked = {"class_path": "ChatJudge", "init_args": arguments}
        refused = {**asked, "init_args": {**arguments, "max_calls": 3}}
        assert validated(tmp_path, refused)[0] == 2
        assert "judge.max_calls 3: 4 more calls needed, 0 made" in capsys.readouterr().err
        assert server.asked == []
        status, out = validated(tmp_path, asked)
        said = capsys.readouterr().out
        hold_to(ChatJudge(ChatServerSpec(server.url, "judge-1"), str(tmp_path / "cache")), out)
        assert len(server.asked) == 4  # two pairs in both orders; the third is twice the same text
    assert status == 0
    assert "judge-1: 4 calls, about " in said
    assert " at the prices given; replies that cannot be read" in said
    counts = read_manifest(out, "judge-validation").counts
    assert (counts["calls"], counts["tokens_in"], counts["tokens_out"]) == (4, 400, 8)


def test_a_judge_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        validated(tmp_path, {"class_path": "ChatJudge", "init_args": {"cache": "x"}})
    assert "error: the following arguments are required: server.url, server.model" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no such folder"):
        LikelihoodJudge(ModelSpec("nowhere")).cost([Comparison("x", talk("x"), "a", "b")])
