# ruff: noqa: RUF001 (minus signs are meant)
from __future__ import annotations

import html
import json
from pathlib import Path

import pytest

from lightning_dadpo.reports import ReportInputs, write_report
from lightning_dadpo.reports.agreement import agreement_section
from lightning_dadpo.reports.curves import curve_section
from lightning_dadpo.reports.rounds import HEAD, round_section
from lightning_dadpo.reports.sources import Series
from tests.reports import example
from tests.reports.test_page import Outline


def test_what_the_section_says(tmp_path: Path) -> None:
    found = agreement_section(example.analysis(tmp_path / "analysis.json"), [])
    assert found.lead == [
        "The teacher too prefers the chosen response in 62\u00a0% [51\u00a0%, 73\u00a0%] of 96 pairs, 2 tied and "
        "counted as half. Of the 35 that it disputes, the chosen response is the longer one in 32.",
        "A sum of log-probs falls with every token, so read the lengths beside.",
    ]
    assert found.problems == ["2 of 98 pairs lack the score of an anchor; they are in no number here."]
    share = "62\u00a0% [51\u00a0%, 73\u00a0%]"
    assert found.agreement == [
        ["teacher", "all", "96", share, "10.0 / 27.0 / 40.0", "0.03704"],
        ["teacher", "train", "96", share, "-9.0 / -1.0 / 2.0", "none"],
        ["reference", "all", "96", share, "\u2013", "\u2013"],
    ]
    assert found.splits == ["all", "train"]
    assert found.saturated == [
        ["dDPO", "reference 0.1", "0\u00a0%", "0\u00a0%"],
        ["daDPO", "reference 0.05, teacher 0.1", "75\u00a0%", "50\u00a0%"],
    ]
    assert found.warnings == [
        "daDPO: 75\u00a0% of the pairs start with a weight above 0.9, so they all pull equally hard and the "
        "differences between them are lost. A weight of 0.03704 for the teacher would leave them."
    ]


def test_several_sets_of_pairs_are_named(tmp_path: Path) -> None:
    path = example.analysis(tmp_path / "analysis.json")
    said = json.loads(path.read_text())
    said["sets"].append({**said["sets"][0], "name": "pairs-round2"})
    path.write_text(json.dumps(said))
    found = agreement_section(path, [])
    assert "of 96 pairs (pairs-round2), 2 tied" in found.lead[1]
    assert [row[0] for row in found.agreement[::3]] == ["pairs: teacher", "pairs-round2: teacher"]
    assert found.disputes[-1].place == "pairs-round2: p3, train"


def test_a_disputed_pair_shows_prompt_texts_lengths_and_gaps(tmp_path: Path) -> None:
    first = agreement_section(example.analysis(tmp_path / "analysis.json"), []).disputes[0]
    assert first.place == "p0, train"
    assert first.gaps == "D, nats: teacher −20.2; reference +3.5"
    (chosen, opening, rest, length), (rejected, words, nothing, short) = first.sides
    assert (chosen, rejected, length, short) == ("Chosen", "Rejected", "184 tokens", "2 tokens")
    assert f"{opening} {rest}".split() == (example.ANSWER * 4).split()
    assert (words, nothing) == (example.ANSWER[:7], "")


def test_the_page_lists_the_worst_openly_and_folds_the_others(tmp_path: Path) -> None:
    inputs = ReportInputs(title="t", experiment="e", analysis=example.analysis(tmp_path / "analysis.json"))
    text = write_report(inputs, tmp_path / "report.html").read_text("utf-8")
    assert text.count('aria-label="Disputed pair') == 4
    assert "1 more disputed pair</summary>" in text
    assert text.index("p2, train") < text.index("1 more disputed pair") < text.index("p3, train")


def test_texts_of_pairs_are_no_markup(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    inputs = ReportInputs(title="t", experiment="e", analysis=example.analysis(tmp_path / "a.json", bad, bad))
    text = write_report(inputs, tmp_path / "report.html").read_text("utf-8")
    assert not {"script", "img"} & set(Outline(text).tags)
    assert bad in html.unescape(text)


@pytest.mark.parametrize(
    ("written", "said"),
    [("{", "Invalid JSON"), ('{"sets": [{"name": "x"}]}', "`sets.0.pairs`: "), ('{"sets": 3}', "`sets`: ")],
)
def test_a_file_that_is_none_becomes_a_sentence(tmp_path: Path, written: str, said: str) -> None:
    path = tmp_path / "analysis.json"
    path.write_text(written)
    (problem,) = agreement_section(path, []).problems
    assert problem.startswith(f"analysis: {path}: ")
    assert said in problem


def test_what_kept_the_analysis_from_being_made_is_said(tmp_path: Path) -> None:
    inputs = ReportInputs(title="t", experiment="e", analysis_problems=["x/scores: changed"])
    text = write_report(inputs, tmp_path / "report.html").read_text("utf-8")
    assert "Nothing is known of whether the teacher agrees" in text
    assert "x/scores: changed" in text


def test_what_each_round_did(tmp_path: Path) -> None:
    found = round_section(example.rounds(tmp_path / "rounds.json"))
    assert [dict(zip(HEAD, row, strict=True)) for row in found.rows] == [
        {
            "Round": "daDPO, round 1",
            "Rejected from": "dSFT",
            "Responses": "128, 96\u00a0% ended by themselves, 20.76 tokens on average",
            "Pairs": "112; dropped: 16 chosen cut",
            "Scores": "224 new, 0 kept, reference: dSFT",
            "Mean margin": "+0.2500",
            "Student": "model-dadpo-1f",
        },
        {
            "Round": "daDPO, round 2",
            "Rejected from": "daDPO",
            "Responses": "128, 96\u00a0% ended by themselves, 20.76 tokens on average",
            "Pairs": "112; dropped: 16 chosen cut",
            "Scores": "100 new, 112 kept, reference: dSFT",
            "Mean margin": "\u2013",
            "Student": "model-dadpo-1f",
        },
    ]


def test_who_drew_the_chosen_responses_is_said_where_it_is_not_the_teacher(tmp_path: Path) -> None:
    path = tmp_path / "rounds.json"
    path.write_text('[{"rejected_from": "dadpo-round2", "chosen_from": "dsft"}]')
    assert round_section(path).rows[0][1] == "daDPO, round 2; chosen from dSFT"


def test_pairs_of_earlier_rounds_are_counted_apart(tmp_path: Path) -> None:
    path = tmp_path / "rounds.json"
    path.write_text(json.dumps([{"round": 2, "pairs": 100, "trained_on": 150, "repeated_pairs": 50}]))
    (row,) = round_section(path).rows
    assert row[HEAD.index("Pairs")] == "100; trained on 150, 50 of them of earlier rounds"


def test_rounds_that_say_little_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rounds.json"
    path.write_text('[{"round": 1}]')
    assert round_section(path).rows == [["\u2013, round 1", *["\u2013"] * 6]]
    path.write_text('{"round": 1}')
    assert round_section(path).problems == [f"rounds: {path}: expected a list with an object a round"]
    path.write_text("[")
    assert "not JSON" in round_section(path).problems[0]
    assert round_section(None).rows == []
    text = write_report(ReportInputs(title="t", experiment="e"), tmp_path / "report.html").read_text("utf-8")
    assert "What each round did" not in text


def test_losses_of_three_kinds_share_no_drawing() -> None:
    line = Series([0.0, 1.0], [0.7, 0.6])
    runs = {
        "dsft": {"train/loss": line},
        "forward_kl": {"train/loss": line, "train/nll_per_token": line},
        "dadpo": {"train/loss": line, "train/margin": line},
    }
    titles = [chart.title for chart in curve_section(runs, list(runs)).main]
    kinds = ("supervised", "token by token", "preference")
    assert titles[:3] == [f"Training loss, {kind}" for kind in kinds]


def test_the_parts_of_a_sum_are_drawn_together_a_run_and_split() -> None:
    line = Series([0.0, 1.0], [0.7, 0.6])
    names = ("train/loss", "train/part/preference", "train/part/sft", "val/part/preference", "val/part/sft")
    runs = {"dadpo_sft": dict.fromkeys(names, line), "dadpo": {"train/loss": line, "train/part/preference": line}}
    found = curve_section(runs, list(runs))
    assert [chart.title for chart in found.parts] == ["dadpo_sft, training", "dadpo_sft, validation"]
    assert "preference: 0.7 at step 0, 0.6 at step 1; sft: 0.7 at step 0" in found.parts[0].svg
    assert not curve_section({"dadpo": {"train/loss": line}}, ["dadpo"]).parts
