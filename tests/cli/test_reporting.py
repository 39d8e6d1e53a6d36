"""What the report is made from, found by the stages that an experiment lists; and how near its student comes."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lightning_dadpo.cli.nearness import nearness
from lightning_dadpo.cli.reporting import report
from lightning_dadpo.data.artifacts import draft
from lightning_dadpo.data.rows import RowWriter
from lightning_dadpo.errors import DataError
from lightning_dadpo.evaluation.evaluate import EvaluationRow
from tests.reports import example

TEACHER = {"path": "package:small", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}


def write_experiment(root: Path, configuration: dict[str, Any], *more: tuple[str, str, Path]) -> None:
    """A finished experiment of one objective, made by hand, and what `dadpo run` writes beside it."""
    stages = [
        ("sample-teacher", "sample", example.responses(root / "sample-teacher-1f", "teacher")),
        ("model-dadpo", "export", _model(root / "model-dadpo-1f")),
        ("sample-heldout-dadpo", "sample", example.responses(root / "sample-heldout-dadpo-1f", "dadpo")),
        *more,
        ("evaluation", "evaluate", example.evaluation(root / "evaluation-1f", ("pruned", "dadpo"))),
    ]
    index = {
        "name": "demo", "command": "dadpo run demo.yaml", "notes": [], "configuration": yaml.safe_dump(configuration),
        "stages": [{"name": name, "command": command, "folder": str(folder)} for name, command, folder in stages],
    }  # fmt: skip
    (root / "experiment.json").write_text(json.dumps(index))
    rows = [row for row in example.summary() if row["model"] in ("pruned", "dadpo", "teacher")]
    (root / "summary.json").write_text(json.dumps(rows))


def _model(folder: Path) -> Path:
    with draft(folder, "model", {}) as work:
        example.model(work.path, 1000)
    return folder


def _pruned(folder: Path) -> Path:
    with draft(folder, "model", {}) as work:
        work.results |= {"layers_removed": [4, 5], "layers_before": 12}
    return folder


def test_the_stages_of_judging_are_found_by_their_commands(tmp_path: Path) -> None:
    write_experiment(
        tmp_path,
        {"teacher": TEACHER},
        ("pruned", "prune", _pruned(tmp_path / "pruned-1f")),
        ("judge-validation", "validate-judge", example.validation(tmp_path / "judge-validation-1f")),
        ("verdicts", "judge", example.verdicts(tmp_path / "verdicts-1f", tmp_path / "sample-teacher-1f")),
        ("ifeval", "ifeval", example.ifeval(tmp_path / "ifeval-1f")),
    )
    text = report(str(tmp_path)).read_text("utf-8").split("Behind page one", 1)[0]
    assert "The judge prefers the answers of the teacher" in text
    assert "prompts that a program can check (IFEval)" in text
    assert "a copy of itself without 2 of its 12 layers" in text
    assert "<h1>SmolLM2-135M-Instruct.Q4_1, made smaller</h1>" in text
    assert "kB (32-bit)" in text
    assert "does not show that training brought the student nearer" in text  # the example's two are equally far
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*-1f/*")}
    report(str(tmp_path))
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*-1f/*")}


def test_a_smaller_model_of_its_own_and_no_judge(tmp_path: Path) -> None:
    write_experiment(
        tmp_path, {"teacher": {"path": "Qwen/Qwen2.5-7B-Instruct"}, "student": {"path": "Qwen/Qwen2.5-1.5B"}}
    )
    text = report(str(tmp_path)).read_text("utf-8")
    assert "<h1>Qwen2.5-1.5B, taught by Qwen2.5-7B-Instruct</h1>" in text
    assert "was distilled into the smaller model Qwen2.5-1.5B" in text
    assert "no judge compared the answers" in text


def test_a_teacher_in_a_gguf_file_is_measured_as_that_file(tmp_path: Path) -> None:
    """Named after the file of 4-bit numbers, and sized by it, not by the 32-bit export that the stages run on."""
    file = example.gguf_model(tmp_path / "given" / "Small.Q4_1.gguf", 2000)
    export = tmp_path / "teacher-1f"
    with draft(export, "model", {}) as work:
        example.model(work.path, 1000)
    write_experiment(
        tmp_path, {"teacher": {"path": str(file.parent), "gguf_file": file.name}}, ("teacher", "export", export)
    )
    text = report(str(tmp_path)).read_text("utf-8").split("Behind page one", 1)[0]
    row = " ".join(re.sub(r"<[^>]*>", " ", text.split("Files on disk", 1)[1].split("</tr>", 1)[0]).split())
    size = f"{file.stat().st_size / 1e3:.3g}"
    assert row.startswith(f"Teacher {size} kB (4-bit and 8-bit GGUF) Student ")
    assert "kB (32-bit)" in row
    assert "Files differ in format; in one format the student's would be 79" in html.unescape(text)
    file.unlink()
    row = report(str(tmp_path)).read_text("utf-8").split("Files on disk", 1)[1].split("</tr>", 1)[0]
    assert "GGUF" not in row
    assert "not known" in row


def test_a_broken_evaluation_becomes_a_sentence(tmp_path: Path) -> None:
    write_experiment(tmp_path, {"teacher": TEACHER})
    _rewrite(tmp_path / "evaluation-1f", [_row("dadpo", "a", 1.0, 10), _row("pruned", "b", 1.0, 10)])
    assert "were measured on different prompts" in report(str(tmp_path)).read_text("utf-8")


def _row(model: str, prompt: str, forward_kl: float, teacher_tokens: int) -> EvaluationRow:
    return EvaluationRow(model, prompt, True, 10, 0, 7, -9.0, 1.0, forward_kl, teacher_tokens)


def _rewrite(folder: Path, rows: list[EvaluationRow]) -> Path:
    (folder / "rows.jsonl").unlink(missing_ok=True)
    with RowWriter(folder / "rows.jsonl") as writer:
        writer.write(*rows)
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"files": {}}))
    return folder


def test_nearness_equals_a_loop_over_draws(tmp_path: Path) -> None:
    """Difference and share as plain sums, their intervals from the very draws, in a loop over prompts."""
    noise = np.random.default_rng(7)
    prompts = [f"p{at}" for at in range(9)]
    tokens = {prompt: int(noise.integers(5, 60)) for prompt in prompts}
    mine, theirs = ({prompt: float(noise.uniform(1, 40)) for prompt in prompts} for _ in range(2))
    rows = [_row("dadpo", prompt, mine[prompt], tokens[prompt]) for prompt in prompts]
    rows += [_row("pruned", prompt, theirs[prompt], tokens[prompt]) for prompt in reversed(prompts)]
    rows += [_row("teacher", prompt, 0.0, tokens[prompt]) for prompt in prompts]
    (found,) = nearness(_rewrite(example.evaluation(tmp_path / "evaluation"), rows))
    assert (found.model, found.other) == ("dadpo", "pruned")
    total = sum(tokens.values())
    assert found.difference == pytest.approx(sum(mine.values()) / total - sum(theirs.values()) / total)
    assert found.share == pytest.approx(sum(mine.values()) / sum(theirs.values()))
    differences, shares = [], []
    for draw in np.random.default_rng(0).integers(0, 9, size=(2000, 9)):
        drawn = [prompts[at] for at in draw]
        own, other = sum(mine[one] for one in drawn), sum(theirs[one] for one in drawn)
        differences.append((own - other) / sum(tokens[one] for one in drawn))
        shares.append(own / other)
    assert [found.difference_low, found.difference_high] == pytest.approx(np.quantile(differences, [0.025, 0.975]))
    assert [found.share_low, found.share_high] == pytest.approx(np.quantile(shares, [0.025, 0.975]))


def test_nearness_needs_the_same_prompts(tmp_path: Path) -> None:
    folder = example.evaluation(tmp_path / "evaluation")
    with pytest.raises(DataError, match="different prompts"):
        nearness(_rewrite(folder, [_row("pruned", "a", 1.0, 5), _row("dadpo", "b", 1.0, 5)]))
    assert nearness(_rewrite(folder, [_row("teacher", "a", 0.0, 5)])) == []
