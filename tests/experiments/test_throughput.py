"""The benchmark's arithmetic by hand, and a tiny run of it from end to end."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.throughput import report, run
from experiments.throughput.flops import STUDENT, TEACHER, Cost, Shape, floor_flops, padded_tokens
from experiments.throughput.gate import GateError
from experiments.throughput.ladder import predictions
from experiments.throughput.measure import Ratio, best_of, composed, geometric_mean, interleaved, ratio_of
from experiments.throughput.ours import separate_trees, step_batches
from experiments.throughput.run import parts_for, wanted_rows
from experiments.throughput.sampled import response_tokens
from experiments.throughput.scaling import stretched
from experiments.throughput.workload import LONG, SHORT, Pair, behind_long_prompts, evenly, pair_rows, read_workload
from tests.trees import history, sequences_of

ROOT = Path(__file__).parents[2]
TWO_BY_THREE = Shape(hidden=4, intermediate=6, layers=3, heads=2, key_value_heads=1, vocabulary=10)
PAIRS = [Pair([1, 2, 3], [4, 5], [6]), Pair([1], [2], [3, 4, 5])]


def test_shapes_are_smollm2s() -> None:
    # 135M: 30 x (2 x 576^2 + 2 x 576 x 192 + 3 x 576 x 1536); 360M: 32 x (2 x 960^2 + 2 x 960 x 320 + 3 x 960 x 2560)
    assert STUDENT.trunk == 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536) == 106_168_320
    assert STUDENT.head == 576 * 49_152
    assert TEACHER.trunk == 32 * (2 * 960 * 960 + 2 * 960 * 320 + 3 * 960 * 2560) == 314_572_800


def test_the_floor_counts_prompts_once_and_the_head_on_responses_alone() -> None:
    trunk = 3 * (4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 6)
    assert TWO_BY_THREE.trunk == trunk
    tokens, responses = (3 + 2 + 1) + (1 + 1 + 3), (2 + 1) + (1 + 3)
    assert floor_flops(TWO_BY_THREE, PAIRS) == 6 * (trunk * tokens + 40 * responses)


def test_the_floor_of_performance_s_example() -> None:
    pair = Pair([0] * 128, [0] * 128, [0] * 128)
    # 6 x 106.2M x 384 + 6 x 28.3M x 256, without attention scores
    assert floor_flops(STUDENT, [pair]) / 1e9 == pytest.approx(288.1, abs=0.1)
    assert Cost(512, 512).flops(STUDENT) / 1e9 == pytest.approx(413.1, abs=0.1)


def test_padding_is_counted_by_micro_batch() -> None:
    assert padded_tokens(PAIRS, 1) == 2 * 5 + 2 * 4
    assert padded_tokens(PAIRS, 2) == 4 * 5


def test_predictions_fall_from_rung_to_rung() -> None:
    counted = list(predictions(STUDENT, TEACHER, read_workload(STUDENT.vocabulary)[SHORT][:8], 2).values())
    assert counted == sorted(counted, reverse=True)
    wide = padded_tokens(PAIRS, 2)
    online = predictions(TWO_BY_THREE, TWO_BY_THREE, PAIRS, 2)["online"]
    assert online == (6 + 2 + 2) * wide * (TWO_BY_THREE.trunk + 40)


def test_separate_trees_share_nothing_and_hold_the_same_sequences() -> None:
    rows = pair_rows([Pair([1, 2, 3], [4, 5], [6]), Pair([1, 2, 7], [2], [3, 4, 5])])
    separate, shared = separate_trees(rows), step_batches(rows, 10**9)[0].sequences
    assert separate.num_tokens == len(separate.token_ids) == (3 + 1) + (3 + 0) + (3 + 0) + (3 + 2)
    assert shared.num_tokens == 2 + (1 + 1) + (1 + 2)
    assert sequences_of(separate) == sequences_of(shared)
    for batch in (separate, shared):
        for index, position in enumerate(batch.position_ids.tolist()):
            assert position == len(history(batch, index)) - 1


def test_ratios_are_medians_of_blocks_with_their_range() -> None:
    times = {"slow": [4.0, 9.0, 8.0], "fast": [2.0, 3.0, 2.0]}
    assert ratio_of(times, "slow", "fast") == Ratio(3.0, 2.0, 4.0)
    assert composed([[1.0, 2.0], [3.0, 5.0, 9.0]], lambda left, right: right / left) == Ratio(2.75, 2.5, 3.0)
    assert geometric_mean([Ratio(2, 1, 4), Ratio(8, 4, 9)]) == Ratio(
        pytest.approx(4), pytest.approx(2), pytest.approx(6)
    )


def test_sides_take_turns_and_the_warm_up_is_not_counted() -> None:
    called: list[str] = []
    sides = {name: (lambda name=name: called.append(name)) for name in ("a", "b")}
    times = interleaved(sides, 2, say=lambda text: None)
    assert called == ["a", "b"] * 3
    assert [len(values) for values in times.values()] == [2, 2]


def test_the_search_for_a_size_ends_where_it_gets_worse() -> None:
    taken = {1: 5.0, 2: 3.0, 4: 3.1, 8: 4.0, 16: 0.1}
    assert best_of([1, 2, 4, 8, 16], taken.__getitem__) == (2, {1: 5.0, 2: 3.0, 4: 3.1, 8: 4.0})


def test_long_prompts_end_in_the_pair_s_own_prompt_and_are_made_of_other_turns() -> None:
    made = behind_long_prompts(PAIRS, 5)
    assert made[0] == Pair([1, 2, 1, 2, 3], [4, 5], [6])
    assert made[1] == Pair([2, 3, 4, 5, 1], [2], [3, 4, 5])


def test_the_workload_is_what_the_definition_asks_for() -> None:
    sets = read_workload(STUDENT.vocabulary)
    assert {len(pairs) for pairs in sets.values()} == {256}
    lengths = sorted(len(pair.prompt) for pair in sets[SHORT])
    assert 40 <= lengths[128] <= 60
    assert {len(pair.prompt) for pair in sets[LONG]} == {512}
    for short, long in zip(sets[SHORT], sets[LONG], strict=True):
        assert (short.chosen, short.rejected) == (long.chosen, long.rejected)
        assert long.prompt[-len(short.prompt) :] == short.prompt


def test_a_subset_keeps_the_spread_of_lengths() -> None:
    pairs = [Pair([0] * length, [1], [2]) for length in range(1, 101)]
    few = evenly(pairs, 4)
    assert sorted(len(pair.prompt) for pair in few) == [13, 38, 63, 88]
    assert evenly(pairs, 4) == few


def test_responses_can_be_stretched_and_counted() -> None:
    assert stretched([PAIRS[0]], 5) == [Pair([1, 2, 3], [4, 5, 4, 5, 4], [6] * 5)]
    assert response_tokens([7, 8, 2, 2, 2], (2,)) == 3
    assert response_tokens([7, 8], (2,)) == 2


def test_rows_name_the_parts_they_need() -> None:
    assert wanted_rows("E") == {"E1", "E3"}
    assert parts_for({"E1", "E3"}) == ["train short", "train long", "score short", "score long", "epochs"]
    assert parts_for({"F"}) == ["train short", "train long", "hardware"]
    with pytest.raises(SystemExit, match="no such row"):
        wanted_rows("Z")


def example(ratio: float) -> dict[str, Any]:
    row = {"device": "cpu", "low": ratio, "high": 2.0, "versions": {}}
    return {
        "rows": [
            row | {"name": "C short", "set": "short", "ratio": 1.8, "target": None},
            row | {"name": "C both", "set": "both", "ratio": ratio, "target": 1.5},
            row | {"name": "H both", "set": "both", "ratio": 0.7, "target": 0.6},
        ],
        "versions": {"torch": "2"}, "command": "run me", "hardware": "one core", "precision": "32-true", "threads": 1,
        "minutes": 3.0, "gate": {"packed_error": 1e-7, "plain_error": 1e-7, "worst_relative_error": 1e-6,
                                 "gradient_cosine": 1.0},
    }  # fmt: skip


def test_the_table_says_whether_a_target_is_met() -> None:
    lines = report.tables(example(1.6))["throughput"].splitlines()
    assert "**1.60** [1.60, 2.00] | at least 1.50 | met | short 1.80" in lines[2]
    assert "at most 0.60 | missed" in lines[3]
    assert "at least 1.50 | missed" in report.tables(example(1.4))["throughput"]


def test_every_row_of_the_definition_has_a_title() -> None:
    from experiments.throughput.rows import PARTS, TARGETS

    assert set(report.TITLES) == set(TARGETS)
    assert set(TARGETS) <= {row for needed_by, *_ in PARTS.values() for row in needed_by.split()}


def test_a_failed_gate_writes_nothing_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(setting: object) -> None:
        raise GateError("log-probs: off")

    monkeypatch.setattr(run, "check_accuracy", fails)
    out = tmp_path / "results.json"
    assert run.main(["--quick", "--rows", "K", "--out", str(out)]) == 1
    assert not out.exists()
    assert "gate failed, nothing was written: log-probs: off" in capsys.readouterr().err


def test_a_missing_chat_model_is_said_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results.json"
    arguments = ["--quick", "--rows", "L", "--chat-model", str(tmp_path / "none"), "--out", str(out)]
    assert run.main(arguments) == 1
    assert "no such folder" in capsys.readouterr().err


def test_a_tiny_run_from_end_to_end(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    out = tmp_path / "results.json"
    command = [sys.executable, str(ROOT / "experiments/throughput/benchmark.py"), "--quick", "--out", str(out)]
    done = subprocess.run([*command, "--rows", "C,F,J,K"], capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(out.read_text("utf-8"))
    assert {re.split(" ", row["name"])[0] for row in results["rows"]} == {"C", "F", "J", "K"}
    for row in results["rows"]:
        assert row["low"] <= row["ratio"] <= row["high"]
        assert row["device"] == results["device"]
    assert next(row for row in results["rows"] if row["name"] == "K both")["ratio"] == 1
    for checked in results["same_loss"].values():
        assert checked["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert results["gate"]["gradient_cosine"] > 0.9999
    assert "| C |" in report.tables(results)["throughput"]
