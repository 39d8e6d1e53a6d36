from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_dadpo.cli.main import main
from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.evaluation.benchmarks import harness
from lightning_dadpo.evaluation.benchmarks.harness import _rows, lm_eval
from lightning_dadpo.evaluation.benchmarks.harness_documents import not_trained_on
from lightning_dadpo.models.spec import ModelSpec

QUESTIONS = [("One and one is", [" two", " three"], 0), ("The sky is", [" green", " blue"], 1), ("a", ["b", "c"], 1)]
TASK = """\
task: tiny_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata: {{version: 3.0}}
"""


def test_a_library_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_package(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(harness.importlib, "import_module", no_package)
    with pytest.raises(ConfigError, match=r"lm-eval: cannot import it .*; pip install 'lightning-dadpo\[lm-eval\]'"):
        lm_eval(ModelSpec("."), ["arc_easy"], str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="limit 0: expected at least 1"):
        lm_eval(ModelSpec("."), ["arc_easy"], str(tmp_path / "out"), limit=0)
    assert not list(tmp_path.glob("out*"))


def test_the_librarys_table_is_read_whole() -> None:
    """As lm-eval 0.4.13 gives it: two metrics, one of them without a standard error, and a group."""
    results = {
        "results": {
            "tiny": {"alias": "tiny", "acc,none": 0.5, "acc_stderr,none": 0.25, "bleu,b": 3, "bleu_stderr,b": "N/A"},
            "group": {"alias": "group", "acc,none": 0.5, "acc_stderr,none": 0.1},
        },
        "n-samples": {"tiny": {"original": 9, "effective": 4}},
        "n-shot": {"tiny": 2},
        "versions": {"tiny": 1.0},
    }  # fmt: skip
    shared = {"task": "tiny", "documents": 4, "shots": 2, "version": 1.0}
    assert _rows(results) == [
        {**shared, "metric": "acc", "filter": "none", "value": 0.5, "standard_error": 0.25},
        {**shared, "metric": "bleu", "filter": "b", "value": 3.0, "standard_error": None},
        {"task": "group", "metric": "acc", "filter": "none", "value": 0.5, "standard_error": 0.1}
        | {"documents": None, "shots": None, "version": None},
    ]
    with pytest.raises(DataError, match="task tiny: acc is nan, expected a finite number"):
        _rows({"results": {"tiny": {"acc,none": math.nan}}})
    with pytest.raises(DataError, match="gave no number for tiny"):
        _rows({"results": {"tiny": {"alias": "tiny"}}})


@pytest.fixture
def task_folder(tmp_path: Path) -> Path:
    pytest.importorskip("lm_eval", reason="needs the package lm-eval (extra lm-eval)")
    folder = tmp_path / "tasks"
    folder.mkdir()
    lines = [dict(zip(("question", "choices", "answer"), one, strict=True)) for one in QUESTIONS]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    (folder / "tiny_choices.yaml").write_text(TASK.format(data=folder / "data.jsonl"), "utf-8")
    return folder


@torch.no_grad()
def _chosen(folder: Path, question: str, choices: list[str]) -> int:
    """The choice with the larger log-prob behind the question, token by token in float64."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    sums = []
    for choice in choices:
        prompt, answer = (tokenizer.encode(text, add_special_tokens=False) for text in (question, choice))
        log_probs = model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
        sums.append(sum(float(log_probs[len(prompt) + at - 1, token]) for at, token in enumerate(answer)))
    return sums.index(max(sums))


@pytest.mark.filterwarnings("default")
def test_a_local_task_runs_without_the_hub(tiny_folder: Path, task_folder: Path, tmp_path: Path) -> None:
    command = ["lm-eval", "--model.path", str(tiny_folder), "--tasks", "[tiny_choices]", "--include", str(task_folder)]
    assert main([*command, "--out", str(tmp_path / "out"), "--precision", "32-true", "--batch_size", "2"]) == 0
    (row,) = json.loads((tmp_path / "out" / "lm_eval.json").read_text("utf-8"))["rows"]
    right = [_chosen(tiny_folder, question, choices) == answer for question, choices, answer in QUESTIONS]
    share = sum(right) / 3
    assert (row["task"], row["metric"], row["documents"], row["version"]) == ("tiny_choices", "acc", 3, 3.0)
    assert row["value"] == pytest.approx(share)
    assert row["standard_error"] == pytest.approx(math.sqrt(share * (1 - share) / 2))  # of a mean: n - 1 below
    assert read_manifest(tmp_path / "out", "lm-eval").made_from["tasks"] == ["tiny_choices"]
    (task_folder / "tiny_choices.yaml").write_text("task: x\n", "utf-8")
    assert main([*command, "--out", str(tmp_path / "out")]) == 2


class FakeTask:
    """As much of lm-eval's `Task` as is asked for."""

    def __init__(self, documents: list[dict[str, Any]], known_by: Any = None, text: Any = None) -> None:
        self.eval_docs, self.config = documents, SimpleNamespace(doc_to_decontamination_query=known_by)
        self.doc_to_text = lambda document: document["question"] if text is None else text

    @staticmethod
    def resolve_field(document: dict[str, Any], name: str) -> Any:
        return document[name]


def trained_on(folder: Path, *asked: str) -> list[str]:
    file = folder / "train.jsonl"
    rows = [{"prompt_id": f"t{at}", "messages": [{"role": "user", "content": one}]} for at, one in enumerate(asked)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return [str(file)]


def test_E1_documents_that_were_trained_on_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = FakeTask([{"question": "Hello"}, {"question": "The sky is"}, {"question": "Why?"}])
    long = FakeTask([{"question": "a", "stem": "THE SKY IS!"}, {"question": "the sky is", "stem": "b"}], "stem")
    chosen = not_trained_on({"short": short, "long": long}, None, trained_on(tmp_path, "the sky is", "why"))
    assert chosen.asked == {"short": [0], "long": [1]}
    assert chosen.left_out == {
        "short 1": "the same words as t0", "short 2": "the same words as t1", "long 0": "the same words as t0"
    }  # fmt: skip
    assert "left out 3 of 5 documents of short, long that stand" in capsys.readouterr().out
    assert not_trained_on({"short": short}, 2, trained_on(tmp_path, "why")).asked == {"short": [0, 1]}


def test_E1_a_task_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    tasks = {"one": FakeTask([{"question": "Hello"}]), "other": FakeTask([{"question": "Why?"}])}
    with pytest.raises(DataError, match="task one: all of its documents stand in the training data"):
        not_trained_on(tasks, None, trained_on(tmp_path, "hello"))
    with pytest.raises(DataError, match="task odd: a document asks int, expected one text"):
        not_trained_on({"odd": FakeTask([{}], text=1)}, None, trained_on(tmp_path, "hello"))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("known_by", ["question", "{{question}}"])
def test_E1_the_library_asks_what_is_left(tiny_folder: Path, task_folder: Path, tmp_path: Path, known_by: str) -> None:
    with (task_folder / "tiny_choices.yaml").open("a", encoding="utf-8") as file:
        file.write(f'should_decontaminate: true\ndoc_to_decontamination_query: "{known_by}"\n')
    command = ["lm-eval", "--model.path", str(tiny_folder), "--tasks", "[tiny_choices]", "--include", str(task_folder)]
    command += ["--trained_on", json.dumps(trained_on(tmp_path, "The sky is")), "--precision", "32-true"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    (row,) = json.loads((tmp_path / "out" / "lm_eval.json").read_text("utf-8"))["rows"]
    asked = [QUESTIONS[0], QUESTIONS[2]]
    right = [_chosen(tiny_folder, question, choices) == answer for question, choices, answer in asked]
    assert (row["documents"], row["value"]) == (2, pytest.approx(sum(right) / 2))
    assert read_manifest(tmp_path / "out", "lm-eval").results["left_out"] == {"tiny_choices 1": "the same words as t0"}


@pytest.mark.filterwarnings("default")
def test_tasks_that_cannot_be_run_are_said(tiny_folder: Path, task_folder: Path, tmp_path: Path) -> None:
    spec, out = ModelSpec(str(tiny_folder)), str(tmp_path / "out")
    with pytest.raises(ConfigError, match="lm-eval has no 'tiny_choice'; did you mean tiny_choices"):
        lm_eval(spec, ["tiny_choice"], out, include=str(task_folder))
    with pytest.raises(ConfigError, match=r"include .*none: no such folder"):
        lm_eval(spec, ["tiny_choices"], out, include=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="tasks: none given"):
        lm_eval(spec, [], out)
    (task_folder / "data.jsonl").unlink()
    with pytest.raises(DataError, match=r"lm-eval, tasks tiny_choices: .*data\.jsonl.* --include"):
        lm_eval(spec, ["tiny_choices"], out, include=str(task_folder))
