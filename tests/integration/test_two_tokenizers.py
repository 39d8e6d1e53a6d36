"""A teacher with another tokenizer, by hand: sample, reread, pair, score its text, train."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from lightning_dadpo.cli.main import main
from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.pairing import read_pairs
from lightning_dadpo.data.rows import ResponseRow, ScoreRow, read_rows
from lightning_dadpo.errors import ArtifactError, ConfigError, DataError
from lightning_dadpo.evaluation.subjects import read_subject
from lightning_dadpo.losses import DaDPO
from lightning_dadpo.models.loading import load_tokenizer
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.training.checks import CheckScores
from lightning_dadpo.training.datamodule import PreferenceData, SupervisedData
from lightning_dadpo.training.preference import AnchorSource, PreferenceModule
from lightning_dadpo.training.sources import PairSource, ResponseSource
from lightning_dadpo.training.supervised import SupervisedModule
from tests.other import other_model, speak_plainly
from tests.scoring.example import trainer, write_artifact
from tests.scoring.test_two_tokenizers import broken, check_by_hand
from tests.tiny import tiny_model


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def sample(model: Path, prompts: Path, out: Path, seed: int) -> None:
    settings = ["--settings.max_new_tokens", 12, "--settings.seed", seed, "--precision", "32-true"]
    run(
        "sample",
        "--model.path",
        model,
        "--prompts",
        json.dumps({"train": {"path": str(prompts)}}),
        "--out",
        out,
        *settings,
    )


def score(model: Path, student: Path, work: Path, anchor: str) -> None:
    asked = ["--pairs", work / "pairs", "--tokenizer.path", student, "--precision", "32-true"]
    run("score", "--model.path", model, "--anchor", anchor, "--out", work / anchor, *asked)


def test_a_teacher_with_another_tokenizer_teaches_by_its_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = speak_plainly(tiny_model(tmp_path / "student", layers=2, seed=1))
    teacher = speak_plainly(other_model(tmp_path / "model-teacher"))
    prompts = tmp_path / "prompts.jsonl"
    questions = [{"prompt_id": f"p{n}", "messages": [{"role": "user", "content": f"question {n}?"}]} for n in range(16)]
    # a mention of the teacher's first token: ordinary text, but a system prompt is what its template refuses
    questions[3]["messages"] = [{"role": "user", "content": "Say <s> twice"}]
    prompts.write_text("\n".join(map(json.dumps, questions)), "utf-8")

    sample(teacher, prompts, tmp_path / "answers", 0)
    sample(student, prompts, tmp_path / "rejected", 1)
    run("reread", "--responses", tmp_path / "answers", "--tokenizer.path", student, "--out", tmp_path / "reread")
    assert "responses in the ids of" in capsys.readouterr().out
    run("pair", "--chosen", tmp_path / "reread", "--rejected", tmp_path / "rejected", "--keep_cut_chosen", "true",
        "--out", tmp_path / "joined")  # fmt: skip
    pairs = list(read_pairs(tmp_path / "joined"))
    answers = {row.prompt_id: row for row in read_rows(tmp_path / "answers" / "rows.jsonl", ResponseRow)}
    assert len(pairs) >= 12
    assert {pair.chosen_finish_reason for pair in pairs} == {"stop", "length"}
    assert all(pair.chosen_text == answers[pair.prompt_id].text and pair.chosen_log_prob is None for pair in pairs)
    assert all(pair.rejected_log_prob is not None for pair in pairs)

    torn = broken(pairs[0], load_tokenizer(ModelSpec(str(student))))
    write_artifact(tmp_path / "pairs", "pairs", [*pairs, torn], read_manifest(tmp_path / "joined").made_from)
    score(teacher, student, tmp_path, "teacher")
    score(student, student, tmp_path, "reference")
    made = read_manifest(tmp_path / "teacher", "scores")
    assert made.made_from["read"] == "text"
    assert made.results["left_out"] == {torn.pair_id: "broken UTF-8 in the response"}
    found = {row.pair_id: row for row in read_rows(tmp_path / "teacher" / "rows.jsonl", ScoreRow)}
    check_by_hand(found, [pair for pair in pairs if "<s>" not in pair.messages[0].content], teacher)
    reference = read_manifest(tmp_path / "reference", "scores")
    assert reference.made_from["read"] == "ids"
    assert reference.results["audit"]["samples"] == len(pairs) + 1, "the student's own samples, in the ids it drew"

    with pytest.raises(ArtifactError, match=r"holds what teacher said in another tokenizer's ids"):
        read_subject("teacher", ModelSpec(str(teacher)), str(tmp_path / "reread"), "train")

    def module(**anchors: AnchorSource) -> PreferenceModule:
        sources = {name: AnchorSource(scores=str(tmp_path / name)) for name in ("teacher", "reference")} | anchors
        step = partial(torch.optim.AdamW, lr=1e-3)
        return PreferenceModule(ModelSpec(str(student)), DaDPO(0.1, 0.05), sources, step)

    with pytest.raises(ConfigError, match=r"^model.anchors.teacher: .* has another tokenizer than .*`scores: FOLDER`"):
        module(teacher=AnchorSource(model=ModelSpec(str(teacher)))).configure_model()

    def fit(scored_by: list[str]) -> str:
        data = PreferenceData(PairSource(str(tmp_path / "pairs"), scored_by=scored_by), pairs_per_step=4)
        check = CheckScores(teacher=ModelSpec(str(teacher)), chosen_from_teacher=False)
        capsys.readouterr()
        trainer(tmp_path, [check], limit_val_batches=0).fit(module(), data)
        return capsys.readouterr().out

    said = fit([str(tmp_path / "teacher"), str(tmp_path / "reference")])
    assert f"{len(pairs)} pairs of split train; left out 1 that have no scores (broken UTF-8 in the" in said
    assert "step-0 oracle: student = reference on 8 pairs" in said
    assert "audit of the teacher: 8 pairs scored again, 0 samples compared" in said
    with pytest.raises(ArtifactError, match=rf"pair {torn.pair_id} was left out .*add `scored_by: \["):
        fit([])


def test_a_student_is_not_trained_on_another_tokenizers_ids(tmp_path: Path) -> None:
    """Every id is in its vocabulary, so the loss would be finite: dSFT on a teacher's answers that nobody reread."""
    student = speak_plainly(tiny_model(tmp_path / "student", layers=1, seed=1))
    teacher = speak_plainly(other_model(tmp_path / "model-teacher", layers=1))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt_id": "p", "messages": [{"role": "user", "content": "?"}]}), "utf-8")
    sample(teacher, prompts, tmp_path / "answers", 0)
    run("reread", "--responses", tmp_path / "answers", "--tokenizer.path", student, "--out", tmp_path / "reread")
    for folder, spec in (("answers", student), ("reread", teacher)):
        data = SupervisedData(ResponseSource(str(tmp_path / folder), keep_cut=True), responses_per_step=1)
        with pytest.raises(
            DataError, match=r"^data.train: to .* the ids of the response to prompt 'p' are other words"
        ):
            trainer(tmp_path, limit_val_batches=0).fit(SupervisedModule(ModelSpec(str(spec))), data)
    data = SupervisedData(ResponseSource(str(tmp_path / "reread"), keep_cut=True), responses_per_step=1)
    trainer(tmp_path, limit_val_batches=0).fit(SupervisedModule(ModelSpec(str(student))), data)
