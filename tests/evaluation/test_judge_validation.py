from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lightning_dadpo.cli.main import main
from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.errors import ArtifactError, ConfigError
from lightning_dadpo.evaluation import agreement_with_people, judge_validation
from lightning_dadpo.evaluation.agreement_with_people import (
    PUBLISHED_PAIRS,
    ValidationRow,
    agreements,
    shortcomings,
    wilson_low,
)
from lightning_dadpo.evaluation.judge_validation import validate_judge
from lightning_dadpo.evaluation.judges import Comparison, Preference
from lightning_dadpo.evaluation.judging import judge
from lightning_dadpo.evaluation.people import LLMBAR, PANDALM
from lightning_dadpo.evaluation.people_files import PeopleFiles
from tests.evaluation.fake_judges import FakeJudge, FirstJudge, LongerJudge, RandomJudge
from tests.evaluation.test_judging import OPPONENT, SHORT, save
from tests.evaluation.test_judging import rows as responses

FULL: dict[str, Preference] = {"f": "first", "s": "second", "t": "tie"}


def rows(people: str, said: str, longer: str, prompts: str | None = None) -> list[ValidationRow]:
    """One row a letter: f(irst), s(econd) or t(ie); the judge says the same in both orders."""
    other = {"f": "s", "s": "f", "t": "t"}
    return [
        ValidationRow(
            kind=PANDALM, part="panda", pair_id=str(at), prompt=prompts[at] if prompts else str(at), people=FULL[one],
            as_is=FULL[two], swapped=FULL[other[two]], judge=FULL[two], longer=FULL[three],
        )
        for at, (one, two, three) in enumerate(zip(people, said, longer, strict=True))
    ]  # fmt: skip


def test_worked_by_hand() -> None:
    # people f f s s t; the judge f t f s t: 1, 1/2, 0, 1 on the four untied pairs: 2.5 / 4
    # longer f f f t f: 1, 1, 0, 1/2: also 2.5 / 4
    found = agreements(rows("ffsst", "ftfst", "ffftf"), 50)
    assert (found["pairs"], found["untied"], found["questions"]) == (5, 4, 4)
    assert (found["agreement"], found["longer_wins"], found["difference"]) == (0.625, 0.625, 0.0)
    # all pairs, a tie must be called one: f-f, s-s, t-t of five
    assert found["agreement_all"] == pytest.approx(3 / 5)
    # shares of the judge 2/5 f, 1/5 s, 2/5 t; of people 2/5, 2/5, 1/5
    assert found["chance_all"] == pytest.approx((2 * 2 + 1 * 2 + 2 * 1) / 25)
    assert (found["chance"], found["ties"], found["consistent"]) == (0.5, 2 / 5, 1.0)
    assert found["first"] == 0.5


def test_a_tie_is_not_an_agreement() -> None:
    # the planted defect, a tie counted as a win, would call this judge right everywhere
    found = agreements(rows("ffffss", "tttttt", "ffffff"), 50)
    assert (found["agreement"], found["agreement_low"], found["agreement_high"]) == (0.5, 0.5, 0.5)
    assert found["first"] is None


def test_intervals_draw_questions_whole_and_the_difference_is_paired() -> None:
    people = "ffsfssftsf"
    said, longer, prompts = "ffffsstftf", "fssfssfftt", "aaabbcddde"
    found = agreements(rows(people, said, longer, prompts), 400)
    kept = [at for at in range(10) if people[at] != "t"]

    def right(what: str, at: int) -> float:
        return 0.5 if what[at] == "t" else float(what[at] == people[at])

    names = list(dict.fromkeys(prompts[at] for at in kept))
    draws = np.random.default_rng(0).integers(0, len(names), size=(400, len(names)))
    loops: dict[str, list[float]] = {"agreement": [], "longer_wins": [], "difference": []}
    for draw in draws:
        pairs = [at for question in draw for at in kept if prompts[at] == names[question]]
        mine, theirs = (sum(right(what, at) for at in pairs) / len(pairs) for what in (said, longer))
        for name, value in zip(loops, (mine, theirs, mine - theirs), strict=True):
            loops[name].append(value)
    for name, values in loops.items():
        low, high = np.quantile(values, [0.025, 0.975])
        assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx((low, high), abs=1e-12)
    # the planted defect, pairs drawn one by one, gives another interval
    alone = agreements(rows(people, said, longer), 400)
    assert (alone["agreement_low"], alone["agreement_high"]) != (found["agreement_low"], found["agreement_high"])


def criterion(bar: dict[str, float] | None = None, **panda: float) -> list[str]:
    """What is held against a judge that passes but for what is changed."""
    whole = {"pairs": 999, "untied": 894, "agreement": 0.74}
    rows = [
        {"set": PANDALM, "agreement_low": 0.70, "longer_wins": 0.67, "difference_low": 0.01} | whole | panda,
        {"set": LLMBAR, "agreement_low": 0.51} | whole | {"pairs": 419, "untied": 419} | (bar or {}),
    ]
    return shortcomings(rows)


def test_a_judge_passes_when_it_beats_length_by_both_readings_and_chance() -> None:
    assert criterion() == []
    assert criterion(agreement_low=0.67) == ['PandaLM: its lower bound 67.0% is not above "longer wins", 67.0%']
    assert len(criterion(difference_low=0.0)) == 1
    assert criterion({"agreement_low": 0.5}) == ["LLMBar: its lower bound 50.0% is not above chance, 50%"]
    assert shortcomings([{"set": "all"}]) == ["no PandaLM file was given", "no LLMBar file was given"]


def test_a_judge_passes_on_the_whole_sets_alone() -> None:
    assert criterion(pairs=998) == ["PandaLM: only 998 of 999 pairs were given"]
    assert criterion({"pairs": 234}) == ["LLMBar: only 234 of 419 pairs were given"]
    # one pair each, on which judge and people agree and length does not: no draw differs from another
    sets = [{"set": name, **agreements(rows("f", "f", "s"), 50)} for name in (PANDALM, LLMBAR)]
    assert [row["agreement_low"] for row in sets] == [1.0, 1.0]
    assert shortcomings(sets) == [
        "PandaLM: only 1 of 999 pairs were given",
        "LLMBar: only 1 of 419 pairs were given",
        "LLMBar: its lower bound 20.7% is not above chance, 50%",
    ]


def test_a_bound_has_width_where_all_pairs_are_alike() -> None:
    assert wilson_low(1.0, 1) == pytest.approx(1 / (1 + 1.959964**2))
    assert wilson_low(0.0, 9) == pytest.approx(0.0, abs=1e-12)
    for share, number in ((0.74, 894), (0.5, 3), (0.9, 419)):
        low = wilson_low(share, number)
        # the share lies 1.96 standard errors above it, by the error that a true share of `low` has
        assert share - low == pytest.approx(1.959964 * (low * (1 - low) / number) ** 0.5)
    # all of LLMBar right, but only three of them untied: the bootstrap alone would say 100 %
    assert criterion({"agreement": 1.0, "agreement_low": 1.0, "untied": 3}) == [
        "LLMBar: its lower bound 43.9% is not above chance, 50%"
    ]
    # where the bootstrap is the wider one, it counts
    assert criterion(agreement=0.74, agreement_low=0.66) == [
        'PandaLM: its lower bound 66.0% is not above "longer wins", 67.0%'
    ]


class KnowsJudge(FakeJudge):
    """Prefers the answer that says so."""

    name = "knows"

    def preference(self, comparison: Comparison) -> Preference:
        return "first" if "right" in comparison.first else "second"


@pytest.fixture
def people(tmp_path: Path) -> PeopleFiles:
    """Twelve pairs a set; the right one is now longer and now shorter, now first and now second."""
    panda, bar = [], []
    for at in range(12):
        answers = ["right", "wrong!!!" if at % 3 == 0 else "no"]
        order = [answers, answers[::-1]][at % 2]
        label = 1 + at % 2
        panda.append(
            {
                "instruction": f"q{at // 2}", "input": "", "response1": order[0], "response2": order[1],
                "annotator1": label, "annotator2": label, "annotator3": 0 if at % 5 else label,
            }
        )  # fmt: skip
        bar.append({"input": f"q{at}", "output_1": order[0], "output_2": order[1], "label": label})
    panda[-1] |= {"annotator1": 0, "annotator2": 0, "annotator3": 0}
    for name, rows_ in (("panda", panda), ("Natural", bar[:6]), ("Adversarial", bar[6:])):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows_))
    return PeopleFiles(
        pandalm=str(tmp_path / "panda.json"), llmbar=[str(tmp_path / f"{n}.json") for n in ("Natural", "Adversarial")]
    )


def validated(people: PeopleFiles, out: Path, judge_: FakeJudge) -> dict[str, Any]:
    folder = validate_judge(judge_, people, str(out), resamples=300)
    found: dict[str, Any] = json.loads((folder / "validation.json").read_text())
    return found


def test_a_judge_that_knows_passes_and_one_that_counts_letters_does_not(
    people: PeopleFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    part = validated(people, tmp_path / "part", KnowsJudge())
    assert part["reasons"] == [f"{name}: only 12 of {all_} pairs were given" for name, all_ in PUBLISHED_PAIRS.items()]
    monkeypatch.setattr(agreement_with_people, "PUBLISHED_PAIRS", {PANDALM: 12, LLMBAR: 12})
    found = validated(people, tmp_path / "knows", KnowsJudge())
    assert [row["set"] for row in found["sets"]] == [PANDALM, LLMBAR, "Natural", "Adversarial", "all"]
    assert [(row["pairs"], row["untied"]) for row in found["sets"]] == [(12, 11), (12, 12), (6, 6), (6, 6), (24, 23)]
    panda, bar = found["sets"][:2]
    assert panda["questions"] == 6
    assert (panda["agreement"], bar["agreement"], panda["consistent"]) == (1.0, 1.0, 1.0)
    # 4 of 12 right answers are the shorter ones, the tied pair is not among them
    assert (panda["longer_wins"], bar["longer_wins"]) == pytest.approx((7 / 11, 8 / 12))
    assert (found["passes"], found["reasons"]) == (True, [])
    assert "judge knows: passes" in capsys.readouterr().out
    letters = validated(people, tmp_path / "letters", LongerJudge())
    assert not letters["passes"]
    assert letters["sets"][0]["agreement"] == letters["sets"][0]["longer_wins"]
    assert letters["sets"][0]["difference_high"] == 0.0
    assert read_manifest(tmp_path / "letters", "judge-validation").results["passes"] is False


def test_E2_a_position_biased_judge_is_a_coin(people: PeopleFiles, tmp_path: Path) -> None:
    found = validated(people, tmp_path / "out", FirstJudge())
    for row in found["sets"]:
        assert (row["agreement"], row["consistent"], row["ties"], row["first"]) == (0.5, 0.0, 1.0, 1.0)
    assert not found["passes"]


def test_a_killed_run_asks_only_what_is_missing(
    people: PeopleFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge_validation, "PAIRS_AT_A_TIME", 8)
    expected = validated(people, tmp_path / "whole", RandomJudge())

    class Killed(RandomJudge):
        def prefer(self, comparisons: Sequence[Comparison]) -> list[Preference]:
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().prefer(comparisons)

    Killed.__name__ = "RandomJudge"
    with pytest.raises(KeyboardInterrupt):
        validated(people, tmp_path / "out", Killed())
    again = RandomJudge()
    assert validated(people, tmp_path / "out", again) == expected
    assert [len(call) for call in again.calls] == [16]
    assert (tmp_path / "out" / "rows.jsonl").read_bytes() == (tmp_path / "whole" / "rows.jsonl").read_bytes()


def test_verdicts_say_what_the_validation_of_this_very_judge_found(
    people: PeopleFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = validated(people, tmp_path / "validation", LongerJudge())
    mine, theirs = (save(tmp_path / name, responses(texts)) for name, texts in (("a", SHORT), ("b", OPPONENT)))
    arguments: dict[str, Any] = {"candidates": {"a": mine}, "opponent": theirs, "resamples": 50}
    validations = [str(tmp_path / "validation")]
    with pytest.raises(ArtifactError, match=r"validates the judge .*LongerJudge.*validate this one"):
        judge(judge=FirstJudge(), out=str(tmp_path / "other"), validations=validations, **arguments)
    folder = judge(judge=LongerJudge(), out=str(tmp_path / "verdicts"), validations=validations, **arguments)
    (said,) = json.loads((folder / "preference.json").read_text())["judge"]["validations"]
    assert said == {name: found[name] for name in ("criterion", "passes", "reasons", "sets")}
    assert "does not pass" in capsys.readouterr().out


def test_runs_from_a_yaml_with_a_class_path(
    people: PeopleFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "validate.yaml"
    built = {"class_path": "tests.evaluation.fake_judges.RandomJudge", "init_args": {"seed": 5}}
    files = {"pandalm": people.pandalm, "llmbar": people.llmbar}
    config.write_text(yaml.safe_dump({"people": files, "judge": built, "resamples": 50}))
    assert main(["validate-judge", "-c", str(config), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "random: 48 comparisons, free of charge" in shown
    assert "does not pass" in shown
    assert shown.splitlines()[-1] == str(tmp_path / "out")


def test_no_resamples_are_refused_before_anything_is_asked(people: PeopleFiles, tmp_path: Path) -> None:
    asked = LongerJudge()
    with pytest.raises(ConfigError, match="resamples 0: expected at least 1"):
        validate_judge(asked, people, str(tmp_path / "out"), resamples=0)
    assert asked.calls == []
    assert not list(tmp_path.glob("out*"))
