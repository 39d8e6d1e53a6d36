"""From finished walks to results.json: the artefacts are made as the stages make them, the numbers by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from experiments import finished, tables, walking
from experiments.beta_plane import collect as plane
from experiments.beta_plane import run as beta_plane
from experiments.more_data import collect as more_data
from experiments.restore_pruned import collect as restored
from experiments.restore_pruned import preferences
from experiments.teacher_confidence import collect as confidence
from lightning_dadpo.data.artifacts import draft
from lightning_dadpo.data.pairing import make_pairs, read_pairs
from lightning_dadpo.evaluation.evaluate import EvaluationRow
from lightning_dadpo.evaluation.verdicts import VerdictRow
from tests.scoring.example import make_response, score_row, write_artifact

RATES = {"dadpo": 2e-5, "ddpo": 2e-5, "teacher_only": 2e-5, "dadpo_sft": 2e-5, "forward_kl": 8e-5, "reverse_kl": 8e-5}
NAMES = [walking.named(method, rate) for method, rate in RATES.items()]
SAMPLER = {"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 128, "seed": 11}
PROMPTS = ("heldout-1", "heldout-2")


class Walks:
    """Makes what walks leave behind."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def kept(
        self, name: str, models: Iterable[str], distance: Callable[[str, str], float], split: str = "heldout"
    ) -> dict[str, str]:
        """A walk whose models are `distance(model, prompt)` nats from the teacher on each own answer of four tokens."""
        folder, models = self.root / name, list(models)
        rows = [_row(model, prompt, distance(model, prompt)) for model in models for prompt in PROMPTS]
        with draft(folder / "evaluation", "evaluation", {}) as work:
            lines = "".join(f"{json.dumps(asdict(row))}\n" for row in rows)
            (work.path / "rows.jsonl").write_text(lines, "utf-8")
            work.counts, work.results = {"prompts": len(PROMPTS)}, {"precision": "32-true"}
        stages = {"evaluation": folder / "evaluation", "pairs": self._pairs(folder)}
        stages[f"sample-{split}-dsft"] = write_artifact(folder / "said", "responses", [], {"sampler": SAMPLER})
        rows_of_pairs = list(read_pairs(stages["pairs"]))
        for anchor, gap in (("teacher", 30.0), ("reference", 5.0)):
            scores = [score_row(pair, gap, 0.0) for pair in rows_of_pairs]
            stages[f"score-{anchor}"] = write_artifact(folder / anchor, "scores", scores, {"anchor": anchor})
        named = {stage: str(place) for stage, place in stages.items()}
        self.say(name, named, [{"model": model} for model in models])
        return named

    def say(self, name: str, stages: dict[str, str], rows: list[dict[str, Any]], **more: Any) -> None:
        path = self.root / "summaries" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"commit": "abc1234", "hardware": "h", "stages": stages, "rows": rows} | more))

    def took(self, seconds: dict[str, float]) -> None:
        (self.root / "seed10").mkdir(exist_ok=True)
        times = [{"folder": folder, "seconds": taken} for folder, taken in seconds.items()]
        (self.root / "seed10" / "times.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in times))

    def go_on(self, name: str, stages: dict[str, str]) -> None:
        """A walk made one stage of its own in an hour, behind restore_pruned's."""
        self.kept("seed10", ["dsft"], lambda model, _: 0.0)
        self.kept("tuning", ["dsft"], lambda model, _: 0.0, "validation")
        self.say(name, stages | {"own": "seed10/own-ab"}, [])
        self.took({"own-ab": 3600.0, "evaluation": 7200.0})

    @staticmethod
    def _pairs(folder: Path) -> Path:
        """By the stage itself: two pairs to train on, one to validate."""
        sides = []
        for side, length in (("chosen", 5), ("rejected", 7)):
            rows = [make_response(n, "train" if n < 2 else "validation", length=length) for n in range(3)]
            sides.append(str(write_artifact(folder / side, "responses", rows, {"model": side})))
        return make_pairs(*sides, str(folder / "pairs"))


def _row(model: str, prompt: str, nats: float) -> EvaluationRow:
    return EvaluationRow(model, prompt, True, 4, 0, 2, -8.0 - nats, nats, 2 * nats, 5)


@pytest.fixture
def walks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Walks:
    """Every script looks and writes below `tmp_path`."""
    for module in (walking, finished, restored):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    for module in (restored, plane, more_data, confidence):
        monkeypatch.setattr(module, "__file__", str(tmp_path / module.__name__.split(".")[1] / "collect.py"))
        (tmp_path / module.__name__.split(".")[1]).mkdir()
    (tmp_path / "chosen.json").write_text(json.dumps({"by": "reverse_kl", "rates": RATES}))
    return Walks(tmp_path)


def results(walks: Walks, module: Any) -> dict[str, Any]:
    """What a collector writes; the report has a table for it."""
    module.main()
    path = Path(module.__file__).with_name("results.json")
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    assert tables.tables(found["kind"], found)
    assert (found["commit"], found["sampler"]) == ("abc1234", {"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 128})
    return found


def three_seeds(walks: Walks) -> list[dict[str, str]]:
    """daDPO lies 1 nat an answer before dDPO with the first seed, 2 with the second, 3 with the third."""
    walks.kept("tuning", NAMES, lambda model, prompt: 1.0, "validation")
    write_artifact(walks.root / "student", "model", [])

    def distance(seed: int, model: str) -> float:
        return {"teacher": 0.0, NAMES[0]: 8.0 - seed / 10}.get(model, 8.0)

    return [
        walks.kept(
            f"seed{seed}", ["initial", "dsft", *NAMES, "teacher"], lambda model, _, seed=seed: distance(seed, model)
        )
        for seed in walking.SEEDS
    ]


def test_restore_pruned_pools_its_seeds(walks: Walks) -> None:
    stages = three_seeds(walks)
    walks.took({Path(stages[0]["evaluation"]).name: 7200.0, "other": 9.0})
    found = results(walks, restored)
    rows = {row["method"]: row for row in found["rows"]}
    assert rows["dadpo"]["reverse_kl"] == pytest.approx((7 + 6 + 5) / 12)
    assert rows["dadpo"]["reverse_kl_seeds"] == pytest.approx([7 / 4, 6 / 4, 5 / 4])
    assert rows["teacher"]["reverse_kl"] == 0
    difference = next(row for row in found["differences"] if (row["method"], row["other"]) == ("dadpo", "ddpo"))
    assert difference["reverse_kl"] == pytest.approx(-6 / 12)
    assert difference["reverse_kl_seeds"] == pytest.approx([-1 / 4, -2 / 4, -3 / 4])
    assert {row["other"] for row in found["differences"]} == {"ddpo", "dsft"}
    assert [counts["pairs"] for counts in found["pairs"]] == [3, 3, 3]
    assert found["thread_hours"] == 2.0
    assert (found["preference"], found["ifeval"], found["judges"]) == (None, None, [])
    said = {"rows": [{"model": "dadpo"}], "repeating_the_prompt": {"prompt_strict": 0.25}}
    (walks.root / "asked").mkdir()
    (walks.root / "asked" / "ifeval.json").write_text(json.dumps(said | {"families": []}))
    assert restored.instructions({"stages": {"ifeval": str(walks.root / "asked")}}) == said


def test_a_walk_on_other_prompts_or_an_unfinished_one_is_refused(walks: Walks) -> None:
    three_seeds(walks)
    path = walks.root / "summaries" / "seed20.json"
    path.write_bytes((walks.root / "summaries" / "tuning.json").read_bytes())
    with pytest.raises(SystemExit, match=r"seed20\.json: compares on other prompts than heldout"):
        restored.main()
    path.unlink()
    with pytest.raises(SystemExit, match=r"seed20\.json: no such file; the walk is not finished"):
        confidence.main()


@pytest.mark.parametrize("passes", [True, False])
def test_what_a_judge_said_is_pooled_over_seeds_where_it_passes(walks: Walks, passes: bool) -> None:
    """daDPO wins both prompts, dDPO ties both, everybody else loses, with every seed."""
    points: dict[str, Any] = {NAMES[0]: "win", NAMES[1]: "tie"}
    for stages in three_seeds(walks):
        seed = Path(stages["evaluation"]).parent.name
        rows = [
            VerdictRow(
                model, prompt, "first", "second", points.get(model, "lose"), 9, 3 if model == NAMES[0] else 30, 4, 4
            )
            for model in ["dsft", *NAMES]
            for prompt in PROMPTS
        ]
        verdicts = str(write_artifact(walks.root / f"{seed}-verdicts", "verdicts", rows))
        judge = {"name": "a judge", "validations": [{"passes": passes}]}
        walks.say(seed, stages | {"verdicts": verdicts}, [], preference={"judge": judge, "rows": [], "differences": []})
    found = preferences.preferences([finished.kept(f"seed{seed}") for seed in walking.SEEDS])
    assert found is not None
    assert found["passes"] is passes
    assert ("rows" in found) is passes
    if passes:
        rates = {row["method"]: (row["preference_rate"], row["longer_wins"]) for row in found["rows"]}
        assert (rates["dadpo"], rates["ddpo"], rates["dsft"]) == ((1.0, 1.0), (0.0, -1.0), (-1.0, -1.0))
        differences = {(row["method"], row["other"]): row["preference_rate"] for row in found["differences"]}
        assert differences["dadpo", "ddpo"] == 1.0
        assert differences["ddpo", "dsft"] == 1.0


def test_the_plane_is_compared_with_dpo_and_at_equal_strength(walks: Walks) -> None:
    """Each point lies as far as it has weight, the teacher's counted twice."""
    weights = {beta_plane.point(*one): one[0] + 2 * one[1] for one in beta_plane.POINTS}
    walks.go_on(
        "beta_plane", walks.kept("beta_plane", ["dsft", *weights], lambda model, _: 10 * weights.get(model, 1.0))
    )
    found = results(walks, plane)
    assert found["thread_hours"] == 1.0
    assert len(found["rows"]) == 11
    row = next(row for row in found["rows"] if (row["beta_reference"], row["beta_teacher"]) == (0.03, 0.1))
    assert row["reverse_kl"] == pytest.approx(2.3 / 4)
    assert row["reverse_kl_change"] == pytest.approx((2.3 - 1.0) / 4)
    equal = {tuple(tuple(row[key].values()) for key in ("point", "other")) for row in found["differences"]}
    assert equal == {((0.0, 0.1), (0.1, 0.0)), ((0.0, 0.03), (0.03, 0.0)), ((0.03, 0.1), (0.1, 0.03))}
    assert all(row["reverse_kl"] > 0 for row in found["differences"])
    # D of the teacher is 30 and of the reference 5: beta 0.1 to the teacher alone begins with a margin of -0.1 x 25
    saturated = {(row["beta_reference"], row["beta_teacher"]): row["saturated"] for row in found["saturation"]["rows"]}
    assert found["saturation"]["quartiles"] == [25.0, 25.0, 25.0]
    assert (saturated[0.0, 0.1], saturated[0.0, 0.03], saturated[0.1, 0.0]) == (1.0, 0.0, 0.0)


def test_more_data_is_compared_with_less_and_a_round_with_the_one_before(walks: Walks) -> None:
    nats = {64: 6.0, 128: 5.0, 264: 4.0}
    for prompts, value in nats.items():
        walks.kept(f"prompts{prompts}", ["dsft", "dadpo", "ddpo"], lambda model, _, v=value: v + (model == "dsft"))
    second = {"ddpo-round2": 3.5, "dadpo-round2": 3.0}
    stages = walks.kept("rounds2", ["dsft", "dadpo", *second], lambda model, _: second.get(model, 3.5))
    stages |= {f"pairs-{method}-round2": stages["pairs"] for method in ("dadpo", "ddpo")}
    walks.go_on("rounds2", stages)
    collected = results(walks, more_data)
    assert collected["thread_hours"] == 1.0
    found = {(row["prompts"], row["rounds"], row["method"]): row for row in collected["rows"]}
    assert len(found) == 11
    differences = [(row["prompts"], row["rounds"], row["reverse_kl"]) for row in collected["differences"]]
    assert differences == [(64, 1, 0.0), (128, 1, 0.0), (264, 1, 0.0), (264, 2, pytest.approx(-0.5 / 4))]
    assert found[128, 1, "dadpo"]["reverse_kl_change"] == pytest.approx(-1 / 4)
    assert found[128, 1, "dadpo"]["reverse_kl_gain"] == pytest.approx(-1 / 4)
    assert found[264, 2, "ddpo"]["reverse_kl_gain"] == pytest.approx(-0.5 / 4)
    assert [found[264, 2, "ddpo"][key] for key in ("pairs", "chosen_tokens", "rejected_tokens")] == [3, 5.0, 7.0]
    assert "reverse_kl_gain" not in found[64, 1, "dsft"]
    assert "reverse_kl_change" not in found[264, 1, "dsft"]


def test_the_teachers_margins_are_of_its_own_answer_and_dsfts(walks: Walks) -> None:
    three_seeds(walks)
    rows = confidence.answers({seed: finished.kept(f"seed{seed}") for seed in walking.SEEDS})
    assert len(rows) == 6
    assert all(row["whole"] == pytest.approx(8.0) for row in rows)  # -8 less (-8 - 8)
    assert all(row["per_token"] == pytest.approx(2.0) for row in rows)
    assert [row["reverse_kl_gain"] for row in rows] == pytest.approx([1 / 4, 1 / 4, 2 / 4, 2 / 4, 3 / 4, 3 / 4])
    assert [row["forward_kl_gain"] for row in rows] == pytest.approx([2 / 5, 2 / 5, 4 / 5, 4 / 5, 6 / 5, 6 / 5])
