"""A finished experiment made of real artefacts, with hostile text in every place that holds text."""

from __future__ import annotations

import json
import math
import random
import struct
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from lightning_dadpo.data.analysis import (
    Agreement,
    Analysis,
    Disputed,
    PairAnalysis,
    Saturated,
    Spread,
    TokenMapRow,
    Unit,
)
from lightning_dadpo.data.artifacts import draft
from lightning_dadpo.data.rows import Message, PairRow, ResponseRow, RowWriter, ScoreRow
from lightning_dadpo.evaluation.evaluate import EvaluationRow
from lightning_dadpo.reports import ReportInputs
from lightning_dadpo.reports.inputs import Nearness
from tests.reports.judging_example import JUDGE as JUDGE
from tests.reports.judging_example import ifeval as ifeval
from tests.reports.judging_example import validation as validation
from tests.reports.judging_example import verdicts as verdicts

SCRIPT = "<script>alert(1)</script>"
STYLE = "</style></pre><img src=x onerror=alert(2)>"
PROMPTS = (
    "My neighbour keeps borrowing tools and forgets to return them. How do I bring it up kindly?",
    "Explain in two sentences why bread rises.",
    "I have rice, two eggs and a leek. What can I cook in twenty minutes?",
    "Give me a polite way to leave a party early.",
    "What is the difference between weather and climate?",
    "Suggest a name for a small bookshop by the sea.",
    "How do I keep basil alive on a windowsill?",
    "Write one line to thank a colleague who covered my shift.",
    "Is it better to stretch before or after a run?",
    "What should I pack for a rainy weekend in the hills?",
    "Why do cats knead blankets?",
    "How can I learn ten words of a new language a day?",
    "What makes a good question?",
    "Tell me something surprising about snails.",
)
ANSWER = (
    "Start with what you value about the other person, then say plainly what you need and by when. Keep it short, "
    "leave room for their side, and offer an easy next step so that nobody has to guess what happens now. "
)


def row(model: str, parameters: float, base: tuple[float, float, float], width: float = 0.06) -> dict[str, Any]:
    """One row of a summary; `base` holds teacher_nll, forward_kl and reverse_kl."""
    found: dict[str, Any] = {"model": model, "parameters": parameters, "prompts": 48}
    values = {
        "finished": 0.62,
        "mean_tokens": 38.4,
        "repetition": 0.043,
        "distinct_1": 0.71,
        "distinct_2": 0.93,
        **dict(zip(("teacher_nll", "forward_kl", "reverse_kl"), base, strict=True)),
    }
    for key, value in values.items():
        found |= {key: value, f"{key}_low": value * (1 - width), f"{key}_high": value * (1 + width)}
    return found


def summary() -> list[dict[str, Any]]:
    """Numbers of the kind that a short run gives."""
    teacher = row("teacher", 134_515_008, (1.371, 0.0, 0.0))
    return [
        row("pruned", 106_800_000, (2.921, 1.231, 0.789)),
        row("dsft", 106_800_000, (1.944, 0.842, 0.844)),
        row("ddpo", 106_800_000, (1.951, 0.851, 0.812)),
        row("dadpo", 106_800_000, (1.957, 0.838, 0.815)),
        teacher,
    ]


def metrics(path: Path, seed: int, preference: bool) -> Path:
    """A sparse CSVLogger file: training rows at every step, validation rows at every eighth."""
    noise = random.Random(seed)
    columns = ["epoch", "step", "train/loss", "train/learning_rate", "val/loss", "val/reverse_kl"]
    columns += ["train/part/preference", "train/part/sft"] if preference else []
    columns += ["train/margin", "val/margin", "val/accuracy", "val/chosen_log_prob/policy"] if preference else []
    lines = [",".join(columns)]
    for step in range(32):
        fall = math.exp(-step / 20)
        cells = {"epoch": step // 16, "step": step, "train/loss": 0.7 * fall + noise.gauss(0, 0.02)}
        cells["train/learning_rate"] = 5e-6 * min(1.0, (step + 1) / 4)
        if preference:
            cells["train/margin"] = 1 - fall + noise.gauss(0, 0.05)
            cells |= {"train/part/preference": 0.6 * fall, "train/part/sft": 1.5 - 0.1 * fall}
        lines.append(",".join(str(cells.get(column, "")) for column in columns))
        if step % 8 == 7:
            cells = {"epoch": step // 16, "step": step, "val/loss": 0.72 * fall, "val/reverse_kl": 0.8 + 0.05 * fall}
            cells |= {"val/margin": 0.9 - fall, "val/accuracy": 0.9 - 0.4 * fall, "val/chosen_log_prob/policy": -60.0}
            lines.append(",".join(str(cells.get(column, "")) for column in columns))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _at(folder: Path, seconds: float) -> Path:
    """The artefact as if it had taken so long: what was measured would differ from run to run."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"seconds": seconds}), encoding="utf-8")
    return folder


def model(folder: Path, numbers: int, form: str = "F32") -> Path:
    """A model's folder whose only file says that it holds so many numbers, and holds none of them."""
    folder.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"__metadata__": {}, "head.weight": {"dtype": form, "shape": [2, numbers // 2]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return folder


def gguf_model(path: Path, blocks: int) -> Path:
    """A GGUF file of so many blocks of 32 numbers in 4 bits, 20 bytes each, and as many numbers in 8 bits."""
    from gguf import GGMLQuantizationType, GGUFWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, "llama")
    for name, kind, size in (("body", GGMLQuantizationType.Q4_1, 20), ("head", GGMLQuantizationType.Q8_0, 34)):
        writer.add_tensor(name, np.zeros((blocks, size), np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def responses(folder: Path, model: str, text: str | None = None) -> Path:
    """A responses artefact with held-out prompts and one training prompt, which must not be shown."""
    with draft(folder, "responses", {"model": model}) as work, RowWriter(work.path / "rows.jsonl") as rows:
        rows.write(_response("train-0", "train", "TRAINING PROMPT", "TRAINING ANSWER", "stop"))
        for index, prompt in enumerate(PROMPTS):
            said = text or f"({model}) {ANSWER * (1 + 3 * (index == 2))}"
            rows.write(_response(f"p{index}", "heldout", prompt, said, "length" if index % 3 == 2 else "stop"))
        work.counts |= {"responses": 15, "stopped": 10, "tokens": 615}
        work.made_from |= {"backend": "transformers sdpa 32-true", "batch_size": 32}
    return _at(folder, 12.3)


def _response(prompt_id: str, split: str, prompt: str, text: str, reason: Any) -> ResponseRow:
    return ResponseRow(prompt_id, split, [Message("user", prompt)], [1, 2], [3] * 41, text, reason, -40.0)


def scores(folder: Path, gaps: dict[str, float]) -> Path:
    """A scores artefact whose D of each pair is the given one."""
    with draft(folder, "scores", {"anchor": folder.name}) as work, RowWriter(work.path / "rows.jsonl") as rows:
        rows.write(*(ScoreRow(pair, -60.0 + gap, 40, -60.0, 38) for pair, gap in gaps.items()))
    return folder


def pairs(folder: Path, count: int) -> Path:
    """A pairs artefact of `count` pairs named a0, a1, ..."""
    with draft(folder, "pairs", {"rejected_from": "dsft"}) as work, RowWriter(work.path / "rows.jsonl") as rows:
        work.counts.update({"kept": count, "dropped": {"identical": 2, "chosen cut": 5}})
        for index in range(count):
            message = [Message("user", "hello")]
            rows.write(PairRow(f"a{index}", "p", "train", message, [1], [2, 3], "yes", "stop", [4], "no", "length"))
    return folder


def analysis(path: Path, objective: str = "dadpo", text: str = ANSWER) -> Path:
    """An `analysis.json` with one teacher, one saturated objective and four disputed pairs."""
    whole = Agreement(96, 90, 2, 0.625, 0.51, 0.73, 35, 32)
    disputes = [
        Disputed(
            f"a{at}", f"p{at}", "train", [Message("user", f"{text[:60]}?")], text * 4, text[:7], 184, 2,
            {"teacher": -20.25 + at, "reference": 3.5},
        )
        for at in range(4)
    ]  # fmt: skip
    found = PairAnalysis(
        name="pairs",
        pairs=98,
        unscored=2,
        agreement={"teacher": {"all": whole, "train": whole}, "reference": {"all": whole}},
        disputed={"teacher": disputes},
        spread={"teacher": {"all": Spread((10.0, 27.0, 40.0), 1 / 27), "train": Spread((-9.0, -1.0, 2.0), None)}},
        saturated={
            "ddpo": Saturated({"reference": 0.1}, {"all": 0.0, "train": 0.0}),
            objective: Saturated({"reference": 0.05, "teacher": 0.1}, {"all": 0.75, "train": 0.5}),
        },
    )
    path.write_text(json.dumps(asdict(Analysis([found]))), encoding="utf-8")
    return path


# token by token: text, tokens, teacher and student log-probs of each token, reference the student's less 0.5
SPELT = (
    ("Start", [-1.0], [-3.5]), (" with", [-0.1], [-0.2]), (" €", [-2.0, -0.5, -0.25], [-1.0, -0.25, -0.25]),
    ("\n\n", [-4.0], [-3.0]), ("<b>", [-6.0], [-1.5]), ("", [-0.1], [-0.1]), ("\u202e", [-0.1], [-0.7]),
)  # fmt: skip


def token_map(prompt_id: str, sampled_by: str, models: list[str], text: str = "", repeat: int = 1) -> TokenMapRow:
    """One response in words of `SPELT`, `text`, a broken byte and a special token."""
    spelt = [*SPELT * repeat, *([(text, [-9.0], [-0.5])] if text else []), ("\ufffd", [-1.0], [-1.0])]
    units = [Unit(words, len(te), "broken" if words == "\ufffd" else "text") for words, te, _ in spelt]
    units.append(Unit("<|im_end|>", 1, "special"))
    teacher = [value for _, te, _ in spelt for value in te] + [-0.5]
    student = [value for _, _, st in spelt for value in st] + [-1.5]
    said = {"teacher": teacher, "dsft": [value - 0.5 for value in student], **dict.fromkeys(models, student)}
    message = [Message("user", PROMPTS[int(prompt_id[1:])])]
    ids = list(range(len(teacher)))
    return TokenMapRow(prompt_id, message, sampled_by, "stop", "dsft", ids, units, said)


def evaluation(
    folder: Path,
    students: tuple[str, ...] = ("dsft", "ddpo", "dadpo"),
    text: str = "",
    left_out: dict[str, str] | None = None,
) -> Path:
    """An evaluation artefact with the maps of two prompts; `left_out` as the stage notes it when it looked."""
    rows = [
        token_map(prompt, name, list(students) if name == "teacher" else [name], text, 1 + 5 * (prompt == "p1"))
        for prompt in ("p0", "p1")
        for name in ("teacher", *students)
    ]
    with draft(folder, "evaluation", {}) as work:
        with RowWriter(work.path / "token_maps.jsonl") as writer:
            writer.write(*rows)
        with RowWriter(work.path / "rows.jsonl") as writer:
            writer.write(*(_measured(name, index) for name in (*students, "teacher") for index in range(len(PROMPTS))))
        work.results |= {"sampler": {"max_new_tokens": 48}} | ({} if left_out is None else {"left_out": left_out})
    return folder


def _measured(model: str, index: int) -> EvaluationRow:
    """One prompt of an evaluation; the farther down, the farther from the teacher, p13 first of all."""
    return EvaluationRow(model, f"p{index}", True, 40, 1, 37, -60.0, 40 * (0.1 + 0.1 * ((index + 1) % 14)), 30.0, 30)


# the intervals are as made up as the numbers
NEAR = Nearness("dadpo", "pruned", -0.393, -0.41, -0.37, 0.681, 0.65, 0.71)
SAME = Nearness("dadpo", "ddpo", -0.013, -0.03, 0.01, 0.985, 0.96, 1.01)
NEARER = Nearness("dadpo", "dsft", -0.004, -0.006, -0.002, 0.995, 0.993, 0.998)


def rounds(path: Path, name: str = "dadpo") -> Path:
    """Two rounds of one objective."""
    said = {"round": 1, "objective": name, "rejected_from": "dsft", "responses": 128, "finished": 0.9609375,
            "mean_tokens": 20.757, "pairs": 112, "dropped": {"chosen_cut": 16, "identical": 0}, "scored": 224,
            "reused": 0, "reference": "dsft", "margin": 0.25, "trained_on": 112, "repeated_pairs": 0,
            "student_folder": "model-dadpo-1f"}  # fmt: skip
    later = {**said, "round": 2, "rejected_from": name, "scored": 100, "reused": 112, "margin": None}
    path.write_text(json.dumps([said, later]), encoding="utf-8")
    return path


def predictions(path: Path, seed: int, count: int) -> Path:
    """One row a pair, with a margin of chosen less rejected."""
    noise = random.Random(seed)
    rows = []
    for index in range(count):
        chosen, rejected = noise.gauss(0.6, 0.5), noise.gauss(-0.1, 0.6)
        margin = chosen - rejected
        rows.append({"pair_id": f"a{index}", "margin": margin, "chosen_reward": chosen, "rejected_reward": rejected})
    path.write_text("".join(json.dumps(found) + "\n" for found in rows), encoding="utf-8")
    return path


def experiment(folder: Path, count: int = 96) -> ReportInputs:
    """A whole experiment, hostile in no place."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = random.Random(3)
    reference = {f"a{index}": noise.gauss(8, 14) for index in range(count)}
    # another order than the reference's, as a second process would write it
    teacher = {pair: gap + 27 + noise.gauss(0, 10) for pair, gap in reversed(reference.items())}
    stages = [
        {
            "name": name,
            "folder": f"runs/demo/{name}",
            "seconds": seconds,
            "counts": {"rows": count, "dropped": {"over-long": 1}},
            "results": {"finished": 0.6412345},
            "versions": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0"},
        }
        for name, seconds in (("prune", 21.4), ("sample-teacher", 74.2), ("dsft", 130.8), ("dadpo", 98.1))
    ]
    return ReportInputs(
        title="SmolLM2-135M-Instruct, pruned by a fifth",
        teacher_name="SmolLM2-135M-Instruct",
        student_origin="a copy of itself without 6 of its 30 layers",
        models={
            "teacher": model(folder / "model-teacher", 134_515_008),
            "dadpo": model(folder / "model-dadpo", 106_800_000, "BF16"),
        },
        nearness=[NEAR, NEARER, SAME],
        verdicts=verdicts(folder / "verdicts", folder / "said-teacher"),
        judge_validations=[validation(folder / "validation")],
        ifeval=ifeval(folder / "ifeval"),
        experiment="demo",
        summary=summary(),
        curves={
            name: metrics(folder / f"{name}.csv", seed, name != "dsft")
            for seed, name in enumerate(("dsft", "ddpo", "dadpo"))
        },
        scores={
            "teacher": scores(folder / "teacher", teacher),
            "reference": scores(folder / "reference", reference),
        },
        pairs=pairs(folder / "pairs", count),
        analysis=analysis(folder / "analysis.json"),
        evaluation=evaluation(folder / "evaluation"),
        rounds=rounds(folder / "rounds.json"),
        predictions={name: predictions(folder / f"{name}.jsonl", 7, count) for name in ("ddpo", "dadpo")},
        responses={
            name: responses(folder / f"said-{name}", name) for name in ("pruned", "dsft", "ddpo", "dadpo", "teacher")
        },
        configuration="loss:\n  anchors:\n    reference: 0.05\n    teacher: 0.05\nseed: 1\n",
        stages=stages,
        notes=["A short run on two cores shows that the pipeline works, not that daDPO wins."],
        command="make demo",
    )


BAD_JUDGE = {"name": f"{SCRIPT}{STYLE}", "identity": {}}


def hostile(folder: Path) -> ReportInputs:
    """The same with markup wherever a person, a model or a file can put text."""
    inputs, bad = experiment(folder), f"{SCRIPT}{STYLE}"
    stage = dict(inputs.stages[0], name=bad, folder=bad, counts={bad: bad}, results={bad: 1}, versions={bad: bad})
    return replace(
        inputs,
        title=bad,
        experiment=bad,
        teacher_name=bad,
        student_origin=bad,
        nearness=[*inputs.nearness, replace(SAME, other=bad)],
        verdicts=verdicts(folder / "bad-verdicts", folder / "said-bad", BAD_JUDGE, ("dadpo", bad)),
        judge_validations=[validation(folder / "bad-validation", judge=BAD_JUDGE)],
        ifeval=ifeval(folder / "bad-ifeval", (bad, "dadpo")),
        models={bad: folder / "nowhere"},
        summary=[*inputs.summary, row(bad, 1e6, (1.0, 1.0, 1.0))],
        curves={bad: _with_column(inputs.curves["dadpo"], bad)},
        scores={**inputs.scores, bad: inputs.scores["teacher"], f"missing {bad}": folder / "nowhere"},
        analysis=analysis(folder / "bad.json", bad, f"{bad}\x00\x1b[31m"),
        evaluation=evaluation(folder / "bad", ("dsft", "dadpo", bad), f"{bad}\x00"),
        rounds=rounds(folder / "bad-rounds.json", bad),
        predictions={bad: inputs.predictions["dadpo"]},
        responses={
            **inputs.responses,
            "dadpo": responses(folder / "said-ours", "dadpo", f"\u202e{'漢' * 300}{bad}"),
            "teacher": responses(folder / "said-theirs", "teacher", f"{bad}\x00\x1b[31m {'W' * 300}"),
            bad: responses(folder / "said-bad", "bad", f"{bad}\x00\x1b[31m $x$ é 漢 \u202e"),
        },
        configuration=bad,
        stages=[stage],
        notes=[bad],
        command=bad,
    )


def _with_column(path: Path, name: str) -> Path:
    lines = path.read_text("utf-8").splitlines()
    more = path.with_name("hostile.csv")
    more.write_text("\n".join([f"{lines[0]},{name}", *(f"{line},1.5" for line in lines[1:])]), encoding="utf-8")
    return more
