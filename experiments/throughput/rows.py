"""What each row of the benchmark runs, and what it says of it. Every function is given the results so far and adds."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch

from experiments.throughput.flops import floor_flops
from experiments.throughput.gate import check_same_loss
from experiments.throughput.ladder import climb
from experiments.throughput.loop import compare_loops
from experiments.throughput.matmul import training_rate
from experiments.throughput.measure import Ratio, best_of, composed, geometric_mean, interleaved, ratio_of, seconds
from experiments.throughput.memory import in_own_process
from experiments.throughput.ours import Ours, Scoring, epoch_batches, step_batches
from experiments.throughput.rivals import Online, Trl
from experiments.throughput.sampled import compare_samplers
from experiments.throughput.setting import MICRO_BATCHES, Setting
from experiments.throughput.workload import LONG, SHORT, Pair, pair_rows
from lightning_dadpo.models.numerics import inference_precision

__all__ = ["PARTS", "TARGETS", "Results", "targets_of"]

Results = dict[str, Any]
BOTH = "both"
TARGETS: dict[str, tuple[float, float]] = {
    "A": (3.0, 4.0), "B": (2.3, 3.0), "C": (1.5, 1.8), "E1": (1.0, 1.0), "E3": (1.5, 1.5), "F": (0.65, 0.70),
    "H": (0.6, 0.4), "I": (1.5, 2.0), "J": (1.03, 1.03), "K": (0.98, 0.98), "L": (1.5, 1.5),
}  # fmt: skip
"""On a CPU and on a GPU."""
RIVALS = {"A": "online daDPO", "B": "TRL, defaults", "C": "TRL at its best"}


def targets_of(setting: Setting) -> dict[str, float]:
    """The column of this device."""
    return {name: both[setting.device.type == "cuda"] for name, both in TARGETS.items()}


def _say(text: str) -> None:
    print(f"    {text}", flush=True)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def add(setting: Setting, results: Results, name: str, by_set: dict[str, Ratio], **more: Any) -> None:
    """A row for each set and, where there are both, one for their geometric mean, which the target holds for."""
    target = targets_of(setting)[name]
    sets = dict(by_set)
    if len(sets) > 1:
        sets[BOTH] = geometric_mean(list(by_set.values()))
    results["rows"] = [row for row in results["rows"] if row["name"].split(" ")[0] != name]
    for which, ratio in sets.items():
        counted = which == BOTH or len(sets) == 1
        row = {"name": f"{name} {which}", "device": results["device"], "set": which}
        row |= {"ratio": ratio.ratio, "low": ratio.low, "high": ratio.high, "target": target if counted else None}
        row |= more.get(which, {})
        results["rows"].append(row | {"versions": results["versions"]})
    shown = ", ".join(f"{which} {ratio.ratio:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]" for which, ratio in sets.items())
    _say(f"{name}: {shown}")


def _micro_batch(setting: Setting, results: Results, rival: Any, label: str, name: str, pairs: Sequence[Pair]) -> int:
    """The rival's best micro-batch, found by timing steps of it; what was tried is kept."""
    limit, unit = len(pairs), setting.sizes.sweep[name]

    def seconds_a_pair(size: int) -> float:
        rival.micro_batch = size
        number = min(limit, max(unit, size))
        return seconds(lambda: rival.step(pairs[:number])) / number

    rival.micro_batch = 1
    rival.step(pairs[:1])  # warm-up
    best, tried = best_of([size for size in MICRO_BATCHES if size <= limit], seconds_a_pair)
    rest = [entry for entry in results["sweep"] if (entry["rival"], entry["set"]) != (label, name)]
    results["sweep"] = [*rest, {"rival": label, "set": name, "best": best, "tried": tried}]
    _say(f"{label}, {name}: micro-batch {best} of { ({size: round(taken, 2) for size, taken in tried.items()}) }")
    rival.micro_batch = best
    return best


def train(name: str, setting: Setting, results: Results, wanted: set[str]) -> None:
    """Whole optimizer steps of every wanted side over the same pairs of one set, interleaved."""
    pairs = setting.pairs(name, setting.sizes.step[name])
    ours = Ours(setting, pairs)
    sides: dict[str, Any] = {}
    if wanted & {"A", "E1", "E3"}:
        sides["A"] = Online(setting, 1)
    if "B" in wanted:
        sides["B"] = Trl(setting, pairs, 2, defaults=True)
    if "C" in wanted:
        sides["C"] = Trl(setting, pairs, 2, defaults=False)
    for key in ("B", "C"):
        if key in sides:
            checked = check_same_loss(ours, sides[key], pairs)
            results["same_loss"][f"{name}, {RIVALS[key]}"] = checked
    if not {"B", "C"} & set(sides):
        results["same_loss"].setdefault(name, check_same_loss(ours, None, pairs))
    for key, side in sides.items():
        _micro_batch(setting, results, side, RIVALS[key], name, pairs)
    actions: dict[str, Callable[[], object]] = {"ours": partial(ours.step, pairs)}
    actions |= {key: partial(side.step, pairs) for key, side in sides.items()}
    ours.step(pairs)  # the rivals have warmed up in their search
    times = interleaved(actions, setting.sizes.blocks, _say, warmup=False)
    results["step_seconds"].setdefault(name, {}).update(times | {"pairs": len(pairs)})
    results["step_seconds"][name]["batches"] = [
        [batch.sequences.num_tokens, len(batch.sequences.targets)]
        for batch in step_batches(pair_rows(pairs), setting.budget)
    ]


def speed(setting: Setting, results: Results, wanted: set[str]) -> None:
    """Rows A, B and C."""
    for row in ("A", "B", "C"):
        if row in wanted:
            by_set = {name: ratio_of(results["step_seconds"][name], row, "ours") for name in (SHORT, LONG)}
            add(setting, results, row, by_set)


def hardware(setting: Setting, results: Results, wanted: set[str]) -> None:
    """Row F: the floor's operations by what the hardware multiplies in our measured time."""
    dtype = torch.float32 if setting.precision == "32-true" else torch.bfloat16
    by_set, more = {}, {}
    for name in (SHORT, LONG):
        measured = results["step_seconds"][name]
        tokens, predictions = (
            round(sum(column) / len(measured["batches"])) for column in zip(*measured["batches"], strict=True)
        )
        rates = [
            training_rate(setting.sizes.student, tokens, predictions, dtype, setting.device)
            for _ in range(setting.sizes.blocks)
        ]
        floor = floor_flops(setting.sizes.student, setting.pairs(name, measured["pairs"]))
        rate = median(rates)
        by_set[name] = Ratio.of([floor / (taken * rate) for taken in measured["ours"]])
        more[name] = {"matmul_gflop_per_second": rate / 1e9, "floor_gflop": floor / 1e9, "tokens_at_a_time": tokens}
    add(setting, results, "F", by_set, **more)


def score(name: str, setting: Setting, results: Results, wanted: set[str]) -> None:
    """Seconds of scoring, ours and TRL's, of the reference's and the teacher's shape, on one set."""
    pairs = setting.pairs(name, setting.sizes.scored[name])
    times: dict[str, list[float]] = {}
    for anchor, spec in {"reference": setting.student, "teacher": setting.teacher}.items():
        precision = setting.precision if anchor == "reference" else inference_precision(setting.device)
        ours = Scoring(setting, spec, precision)
        trl = Trl(setting, pairs, 2, defaults=False, frozen=(spec, precision))

        def theirs(size: int, trl: Trl = trl) -> float:
            trl.micro_batch = size
            return seconds(lambda: trl.log_probs(len(pairs)))

        trl.micro_batch = 1
        trl.log_probs(1)
        best, tried = best_of([size for size in MICRO_BATCHES if size <= len(pairs)], theirs)
        trl.micro_batch = best
        label = f"TRL scoring the {anchor}"
        rest = [entry for entry in results["sweep"] if (entry["rival"], entry["set"]) != (label, name)]
        tried = {size: taken / len(pairs) for size, taken in tried.items()}
        results["sweep"] = [*rest, {"rival": label, "set": name, "best": best, "tried": tried}]
        ours.score(pairs)
        sides: dict[str, Callable[[], object]] = {
            "ours": partial(ours.score, pairs),
            "trl": partial(trl.log_probs, len(pairs)),
        }
        for side, taken in interleaved(sides, setting.sizes.blocks, _say, warmup=False).items():
            times[f"{anchor} {side}"] = taken
        del ours, trl
        _free()
    results["score_seconds"][name] = times | {"pairs": len(pairs)}


def scoring(setting: Setting, results: Results, wanted: set[str]) -> None:
    """Row I: both frozen models together; each alone stands beside it."""
    by_set, more = {}, {}
    for name in (SHORT, LONG):
        times = results["score_seconds"][name]
        both = {
            side: [sum(pair) for pair in zip(times[f"reference {side}"], times[f"teacher {side}"], strict=True)]
            for side in ("ours", "trl")
        }
        by_set[name] = ratio_of(both, "trl", "ours")
        more[name] = {
            anchor: ratio_of(times, f"{anchor} trl", f"{anchor} ours").ratio for anchor in ("reference", "teacher")
        }
    add(setting, results, "I", by_set, **more)


def epochs(setting: Setting, results: Results, wanted: set[str]) -> None:
    """Rows E1 and E3, composed of the times a pair that were measured in this run."""

    def formula(number: int) -> Callable[[float, float, float, float], float]:
        return lambda online, ours, reference, teacher: number * online / (number * ours + reference + teacher)

    for row, number in {"E1": 1, "E3": 3}.items():
        by_set = {}
        for name in (SHORT, LONG):
            steps, scores = results["step_seconds"][name], results["score_seconds"][name]
            parts = [[taken / steps["pairs"] for taken in steps[side]] for side in ("A", "ours")]
            parts += [
                [taken / scores["pairs"] for taken in scores[f"{anchor} ours"]] for anchor in ("reference", "teacher")
            ]
            by_set[name] = composed(parts, formula(number))
        add(setting, results, row, by_set)


def ladder(setting: Setting, results: Results, wanted: set[str]) -> None:
    """The ablation ladder of both sets."""
    for name in (SHORT, LONG):
        pairs = setting.pairs(name, setting.sizes.ladder[name])
        best = [entry["best"] for entry in results["sweep"] if entry["set"] == name and entry["rival"] == RIVALS["A"]]
        results["ladder"][name] = climb(setting, pairs, min([*best, 2][0], len(pairs)), setting.sizes.ladder_blocks)
        _free()


def _beyond_base(measured: dict[str, int]) -> int:
    """Bytes that a process took beyond what it held after its imports."""
    return measured["peak"] - measured["base"]


def memory(setting: Setting, results: Results, wanted: set[str]) -> None:
    """Row H, each side in a process of its own."""
    by_set, more = {}, {}
    quick = int(setting.quick)
    for name in (SHORT, LONG):
        best = [e["best"] for e in results["sweep"] if e["set"] == name and e["rival"] == RIVALS["C"]]
        size = [*best, 2][0]
        common = {"set": name, "folder": setting.folder, "quick": quick}
        ours = in_own_process("memory", side="ours", size=0, **common)
        trl = in_own_process("memory", side="trl", size=size, **common)
        alone = _beyond_base(ours) / _beyond_base(trl)
        by_set[name] = Ratio(alone, alone, alone)
        rows = pair_rows(setting.pairs(name, setting.sizes.step[name]))
        at_a_time = max(len(batch) for batch in step_batches(rows, setting.budget))
        like = trl if at_a_time == size else in_own_process("memory", side="trl", size=at_a_time, **common)
        more[name] = {
            "same_pairs_at_a_time": _beyond_base(ours) / _beyond_base(like),
            "pairs_at_a_time": at_a_time,
            "whole_process": ours["peak"] / trl["peak"], "ours_bytes": ours, "trl_bytes": trl, "trl_micro_batch": size,
        }  # fmt: skip
    add(setting, results, "H", by_set, **more)


def padding(setting: Setting, results: Results, wanted: set[str]) -> None:
    """Row K, counted from the batches of an epoch over each whole set."""
    by_set, more = {}, {}
    for name in (SHORT, LONG):
        rows = pair_rows(setting.sets[name])
        trees = [batch.sequences for batch in epoch_batches(rows, setting.sizes.step[name], setting.budget)]
        computed = sum(len(batch.token_ids) for batch in trees)
        real = sum(batch.num_tokens for batch in trees)
        slots = sum(batch.num_slots for batch in trees)
        by_set[name] = Ratio(real / computed, real / computed, real / computed)
        more[name] = {"attention_slots": real / slots}
    add(setting, results, "K", by_set, **more)


def loops(setting: Setting, results: Results, wanted: set[str]) -> None:
    """Row J."""
    ratio, more = compare_loops(setting)
    add(setting, results, "J", {SHORT: ratio}, **{SHORT: more})


def sampling(setting: Setting, results: Results, wanted: set[str]) -> None:
    """Row L."""
    assert setting.chat_model is not None
    ratio, more = compare_samplers(setting, setting.chat_model)
    add(setting, results, "L", {SHORT: ratio}, **{SHORT: more})


def scaling(setting: Setting, results: Results, wanted: set[str]) -> None:
    """Time and memory at 1x, 4x and 16x."""
    quick = int(setting.quick)
    results["scaling"] = [
        {
            "work": work,
            "kind": kind,
            "points": in_own_process("scaling", kind=kind, work=work, folder=setting.folder / "scaling", quick=quick),
        }
        for work in ("training", "scoring")
        for kind in ("pairs", "tokens")
    ]


PARTS: dict[str, tuple[str, Callable[[Setting, Results, set[str]], None], str]] = {
    "train short": ("A B C E1 E3 F", partial(train, SHORT), "whole steps, ours against the rivals, short prompts"),
    "train long": ("A B C E1 E3 F", partial(train, LONG), "the same, 512-token prompts"),
    "speed": ("A B C", speed, "their ratios"),
    "hardware": ("F", hardware, "matmul rate at the model's shapes"),
    "padding": ("K", padding, "padding of an epoch's batches"),
    "score short": ("I E1 E3", partial(score, SHORT), "scoring, ours against TRL's precompute, short prompts"),
    "score long": ("I E1 E3", partial(score, LONG), "the same, 512-token prompts"),
    "scoring": ("I", scoring, "their ratios"),
    "epochs": ("E1 E3", epochs, "one and three epochs with the scoring bill"),
    "memory": ("H", memory, "peak memory, a process a side"),
    "loops": ("J", loops, "Lightning's loop against the bare one"),
    "ladder": ("ladder", ladder, "the ablation ladder"),
    "scaling": ("scaling", scaling, "1x, 4x, 16x pairs and tokens"),
    "sampling": ("L", sampling, "sampling against plain generate"),
}
"""In the order in which they run: the rows that need a part, the part, and what it is."""
