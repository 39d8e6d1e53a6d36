# ruff: noqa: RUF001 (minus signs are meant)
"""Page one: each number against one worked by hand, and no claim without what supports it."""

from __future__ import annotations

import html
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_dadpo.data.analysis import Analysis
from lightning_dadpo.data.artifacts import Manifest
from lightning_dadpo.data.rows import Message, ResponseRow
from lightning_dadpo.errors import DataError
from lightning_dadpo.reports import ReportInputs, write_report
from lightning_dadpo.reports.costs import Speed, cost_section, duration
from lightning_dadpo.reports.in_short import beside, made, near
from lightning_dadpo.reports.inputs import Nearness
from lightning_dadpo.reports.instructions import HEAD as INSTRUCTION_HEAD
from lightning_dadpo.reports.instructions import NOT_RUN, instruction_section
from lightning_dadpo.reports.picked import Pick, picks, read_own_distances, short, shown
from lightning_dadpo.reports.preference import NO_CLAIM, PreferenceSection, preference_section
from lightning_dadpo.reports.risks import Evidence, risks
from lightning_dadpo.reports.strips import strip_table
from lightning_dadpo.reports.table import main_student, plain_name
from tests.reports import example


def sized(**changes: Any) -> ReportInputs:
    """A teacher of 2.5 billion parameters in 32 bits, a student of 500 million in 16."""
    rows = [{"model": "dadpo", "parameters": 500_000_000}, {"model": "teacher", "parameters": 2_500_000_000}]
    return replace(ReportInputs(title="t", experiment="e", summary=rows), **changes)


def test_costs_by_hand(tmp_path: Path) -> None:
    """2 bytes and 2 operations a parameter: 5 GB and 1 GB, 5 and 1 billion; each a fifth."""
    section = cost_section(sized(), "dadpo")
    said = [(row.label, row.teacher, row.student, row.share, row.how) for row in section.rows]
    assert said == [
        ("Parameters", "2,500 million", "500.0 million", "20\u00a0%", "counted"),
        ("Files on disk", "not known", "not known", "not known", "measured"),
        ("Memory, weights alone", "5.00\u00a0GB", "1.00\u00a0GB", "20\u00a0%", "computed"),
        ("Work per token", "5.00\u00a0billion steps", "1.00\u00a0billion steps", "20\u00a0%", "computed"),
    ]


def test_the_share_on_disk_is_of_bytes_not_of_parameters(tmp_path: Path) -> None:
    models = {name: example.model(tmp_path / name, 8, form) for name, form in (("teacher", "F32"), ("dadpo", "BF16"))}
    for name, size in (("teacher", 4_000_000), ("dadpo", 1_000_000)):
        with (models[name] / "model.safetensors").open("r+b") as file:
            file.truncate(size)
    section = cost_section(sized(models=models), "dadpo")
    row = section.rows[1]
    assert section.files == ("Files differ in format; in one format the student's would be 20\u00a0% of the teacher's.")
    assert cost_section(sized(models=dict.fromkeys(models, models["dadpo"])), "dadpo").files == ""
    assert (row.teacher, row.student, row.share) == ("4\u00a0MB (32-bit)", "1\u00a0MB (16-bit)", "25\u00a0%")


def test_speeds_are_compared_on_equal_terms_alone() -> None:
    one = Speed(600, 12.0, 32, "transformers sdpa 32-true", 32)
    assert one.rate == 50.0
    assert one.on_equal_terms(replace(one, tokens=900, seconds=4.0))
    for other in (replace(one, responses=160), replace(one, backend="vllm"), replace(one, batch_size=8)):
        assert not one.on_equal_terms(other)
    assert math.isnan(replace(one, seconds=0.0).rate)


def test_unequal_samplings_give_no_speed_on_page_one(tmp_path: Path) -> None:
    responses = {name: example.responses(tmp_path / name, name) for name in ("teacher", "dadpo")}
    manifest = responses["teacher"] / "manifest.json"
    assert "teacher 50, student 50 tokens a second" in cost_section(sized(responses=responses), "dadpo").speed
    said = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(said | {"resumed": True}))  # 12.3 seconds made only some of its tokens
    section = cost_section(sized(responses=responses), "dadpo")
    assert "tokens a second" not in section.speed
    assert [row[3:5] for row in section.samplings] == [["more than 12.3 s", "not known"], ["12.3 s", "50.0"]]
    said["counts"]["responses"] = 160
    manifest.write_text(json.dumps(said))
    assert "not timed on equal terms" in cost_section(sized(responses=responses), "dadpo").speed


def test_durations() -> None:
    said = [duration(seconds) for seconds in (0.04, 59.2, 61, 3600 * 26 + 59, None, math.nan)]
    assert said == ["0.0 s", "59.2 s", "1 min 01 s", "26 h 00 min", "not recorded", "not recorded"]


def test_five_prompts_at_fixed_places_of_the_order() -> None:
    """Of 0.0, 0.1, ... 0.8 in any order: the ends, the quarters and the middle; by rank, not by value."""
    distances = {f"p{place}": place / 10 for place in (3, 8, 0, 5, 1, 7, 2, 6, 4)} | {"lost": math.nan}
    assert [(one.prompt_id, one.place) for one in picks(distances)] == [
        ("p0", "nearest"), ("p2", "quarter"), ("p4", "middle"), ("p6", "three quarters"), ("p8", "farthest"),
    ]  # fmt: skip
    assert [one.prompt_id for one in picks({"b": 1.0, "a": 1.0})] == ["a", "b"]
    assert picks({}) == []


def test_the_order_is_that_of_nats_a_token_on_its_own_answer(tmp_path: Path) -> None:
    """The example's student is farther on each later prompt, but for the last, on which it is nearest."""
    found = read_own_distances(example.evaluation(tmp_path / "evaluation"))["dadpo"]
    assert found["p0"] == pytest.approx(0.2)
    assert [one.prompt_id for one in picks(found)][::4] == ["p13", "p12"]
    path = tmp_path / "evaluation" / "rows.jsonl"
    path.write_text('{"model": "dadpo", "prompt_id": "a", "reverse_kl": 1.0, "tokens": 0}\n')
    manifest = tmp_path / "evaluation" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"files": {}}))
    with pytest.raises(DataError, match=r"rows\.jsonl:1: expected"):
        read_own_distances(tmp_path / "evaluation")


def test_what_is_shown_of_a_conversation() -> None:
    turns = [
        Message("system", "Be brief."),
        Message("user", "a"),
        Message("assistant", "b"),
        Message("user", "c\n\x00d"),
    ]
    row = ResponseRow("p", "heldout", turns, [1], [2], "said\nso", "length", None)
    (one,) = shown([Pick("p", "middle", 1.0), Pick("gone", "farthest", 2.0)], {"teacher": {"p": row}, "dadpo": {
        "p": replace(row, text="", finish_reason="stop")}}, "dadpo", {"p": "lose", "q": "win"})  # fmt: skip
    assert one.judged == "judge for the teacher"
    assert (one.prompt, one.before) == ("c d", "with instructions, after 2 earlier messages")
    assert (one.teacher, one.student) == ("said so [cut]", "(nothing)")


@pytest.mark.parametrize(("reason", "words", "end"), [("length", 26, " … [cut]"), ("stop", 28, " …")])
def test_a_capped_answer_is_marked_also_where_the_page_shortens_it(reason: Any, words: int, end: str) -> None:
    """28 words and their spaces fit into 140 letters; 26 where the mark takes six of them."""
    row = ResponseRow("p", "heldout", [Message("user", "a")], [1], [2], "word " * 60, reason, None)
    (one,) = shown([Pick("p", "middle", 1.0)], {"teacher": {"p": row}, "dadpo": {"p": row}}, "dadpo", {})
    assert one.judged == ""
    assert one.teacher == one.student == " ".join(["word"] * words) + end


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three", "one two …"),
        ("abcdefgh", "abcdefgh"),
        ("abcdefghijk", "abcdefghij …"),
        ("漢" * 6, "漢" * 5 + " …"),
    ],
)
def test_text_is_cut_by_its_width(text: str, expected: str) -> None:
    assert short(text, 10) == expected


def test_where_dots_and_whiskers_lie() -> None:
    """The scale ends 4 % beyond the farthest bound, 2.0 here: 1.04 lies in its middle."""
    rows = [
        {"model": "pruned", "forward_kl": 1.04, "forward_kl_low": 0.52, "forward_kl_high": 2.0, "reverse_kl": math.nan},
        {"model": "dadpo", "forward_kl": 1.0, "reverse_kl": 0.5, "finished": 0.5},
        {"model": "teacher", "finished": 0.75, "mean_tokens": 30.4, "forward_kl": 0.0},
    ]
    found = strip_table(rows, "dadpo")
    assert found is not None
    start, ours = found.rows
    assert (start.strips[0].dot, start.strips[0].low, start.strips[0].high) == (50.0, 25.0, 96.15)
    assert (start.strips[1].dot, start.strips[1].value) == (None, "nan")
    assert (ours.strips[0].interval, ours.strips[0].low) == ("no interval", None)
    assert (start.shape, ours.shape, found.teacher_finished, found.teacher_length) == ("start", "main", "75", "30")


def test_many_students_leave_room_for_the_first_and_the_one_in_question() -> None:
    rows = [{"model": f"m{at}", "forward_kl": 1.0} for at in range(12)]
    found = strip_table(rows, "m11")
    assert found is not None
    assert [row.name for row in found.rows] == ["m0", *(f"m{at}" for at in range(1, 6)), "m11"]
    assert found.left_out == 5
    assert strip_table([], None) is None


def nearness(other: str, share: tuple[float, float, float], difference: tuple[float, float, float]) -> Nearness:
    return Nearness("dadpo", other, *difference, *share)


def test_how_near_in_words() -> None:
    rows = [{"model": "pruned", "forward_kl": 2.0}, {"model": "dadpo", "forward_kl": 1.5}, {"model": "teacher"}]
    away, apart = (0.75, 0.7, 0.8), (-0.5, -0.6, -0.4)
    assert near([nearness("pruned", away, apart)], rows) == (
        "Training took away 25\u00a0% [20, 30] of the distance to the teacher (2.00 before, 1.50 after, on the "
        "teacher's answers)."
    )
    assert "farther from the teacher" in near([nearness("pruned", (1.2, 1.1, 1.3), (0.4, 0.2, 0.6))], rows)
    assert "does not show" in near([nearness("pruned", (0.9, 0.7, 1.1), (-0.2, -0.6, 0.2))], rows)
    assert near([], rows).endswith("was not measured.")


def test_beside_the_other_trainings() -> None:
    rows = [{"model": "pruned"}, {"model": "dadpo"}]
    found = [
        nearness("pruned", (0.5, 0.4, 0.6), (-0.5, -0.6, -0.4)),
        nearness("dsft", (0.99, 0.985, 0.995), (-0.02, -0.03, -0.01)),
        nearness("kd", (1.1, 1.05, 1.2), (0.1, 0.05, 0.2)),
        nearness("ddpo", (0.99, 0.9, 1.1), (-0.01, -0.1, 0.1)),
    ]
    assert beside(found, rows) == (
        "The student is nearer to the teacher than the one trained on the teacher's answers (dSFT) (by 1.0\u00a0% "
        "[0.5, 1.5] of that distance); farther from the teacher than “kd”; not told apart by this run from the one "
        "trained on preferences (dDPO)."
    )
    assert beside(found[:1], rows) == ""


def test_what_was_made(tmp_path: Path) -> None:
    inputs = replace(sized(), teacher_name="Big", student_origin="the smaller model Small")
    costs = cost_section(inputs, "dadpo").rows
    assert made(inputs, "dadpo", costs, 105) == (
        "Big, the teacher, was distilled into the smaller model Small, trained on 105 pairs of answers. The student "
        "has 20\u00a0% of the teacher's parameters: 500.0 million instead of 2,500 million."
    )
    assert ", trained on 105 pairs of answers in round 1 of 3. " in made(inputs, "dadpo-round3", costs, 105)
    assert ", trained on 105 pairs of answers. " in made(inputs, "7", costs, 105)  # a name, no round
    assert made(inputs, None, [], None) == "No student was measured yet."


def test_names_of_students() -> None:
    assert main_student(["pruned", "dadpo", "dadpo-round2", "kd", "teacher"]) == "dadpo-round2"
    assert main_student(["pruned", "kd", "teacher"]) == "kd"
    assert main_student(["teacher"]) is None
    assert plain_name("dsft-round2") == "Trained on the teacher's answers, round 2"


# preferences


def judged(tmp_path: Path, passes: bool | None = True, rate: float = -0.25, judge: Any = None) -> PreferenceSection:
    teacher = example.responses(tmp_path / "said", "0123456789abcdef")
    found = example.verdicts(tmp_path / "verdicts", teacher, judge, rate=rate)
    validations = [] if passes is None else [example.validation(tmp_path / "people", passes, judge)]
    return preference_section(found, validations, "dadpo", {"teacher": teacher}, {})


OTHER = {"name": "other", "identity": {"model": "fedcba9876543210"}}


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (-0.25, "prefers the answers of the teacher to the student's: wins less losses come to −25 points [−31, −19]"),
        (0.25, "prefers the student's answers to those of the teacher: wins less losses come to +25 points [+19, +31]"),
        (0.05, "sees no clear difference between the answers of the student and of the teacher: wins less losses come "
               "to +5 points [−1, +11]"),
    ],
)  # fmt: skip
def test_a_judge_that_passed_is_believed(tmp_path: Path, rate: float, said: str) -> None:
    found = judged(tmp_path, rate=rate, judge=OTHER)
    assert found.believed
    assert found.claim == f"The judge {said} of 100; 0 is a draw."
    assert found.bar is not None
    assert found.bar.widths == pytest.approx((20.0, 35.0, 20 - 100 * rate))
    assert (
        "in 80\u00a0% [74, 86] of everyday comparisons (PandaLM), where taking the longer one (in characters) "
        "agrees in 68" in (found.trust)
    )
    points = f"{100 * (rate + 0.05):+.0f} points".replace("-", "−")
    assert found.rate.startswith(f"At equal length in characters it would be {points} [")
    assert "always taking the longer comes to −40 points" in found.rate
    assert found.rate.endswith("Mean tokens: 38 against 41.")
    assert found.rows[0][:2] == ["pruned", "48"]
    assert found.differences[0] == ["pruned", "dSFT", "−10 points [−16, −4]", "lower"]
    assert [found.verdicts[f"p{number}"] for number in range(4)] == ["lose", "tie", "win", "lose"]


def test_no_preference_without_a_judge_that_passed(tmp_path: Path) -> None:
    """A judge is not believed unasked, unproven, after it failed, for another's proof, or of its own pupil."""
    assert preference_section(None, [], "dadpo", {}, {}).claim == f"{NO_CLAIM}: no judge compared the answers."
    cases = {
        "was not held against people's judgements": judged(tmp_path / "a", None, judge=OTHER),
        "did not pass": judged(tmp_path / "b", False, judge=OTHER),
        "is a model that the student was trained after": judged(tmp_path / "c"),
    }
    proof = example.validation(tmp_path / "another", judge=example.JUDGE)
    cases["was not held against"] = preference_section(tmp_path / "a" / "verdicts", [proof], "dadpo", {}, {})
    assert cases["was not held against"].problems == ["another: validates another judge than the one that was asked."]
    cases["did not compare this student"] = preference_section(
        tmp_path / "b" / "verdicts", [example.validation(tmp_path / "fine", judge=OTHER)], "kd", {}, {}
    )
    for reason, found in cases.items():
        assert not found.believed
        assert not found.verdicts
        assert found.bar is None
        assert found.claim.startswith(NO_CLAIM)
        assert reason in found.claim
    assert cases["did not pass"].reasons[0].startswith("PandaLM: its lower bound")
    both = [example.validation(tmp_path / f"v{passes}", passes, OTHER) for passes in (True, False)]
    assert not preference_section(tmp_path / "a" / "verdicts", both, "dadpo", {}, {}).believed


def test_single_verdicts_are_the_teachers_comparisons_or_none(tmp_path: Path) -> None:
    teacher = example.responses(tmp_path / "said", "0123456789abcdef")
    folder = example.verdicts(tmp_path / "verdicts", teacher, OTHER)
    proof = [example.validation(tmp_path / "people", judge=OTHER)]
    other = preference_section(folder, proof, "dadpo", {"ddpo": teacher}, {})
    assert other.believed
    assert not other.verdicts
    (folder / "rows.jsonl").write_text('{"model": "dadpo", "prompt_id": "p1", "verdict": "win"}\n{"model": "dadpo"}\n')
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"files": {}}))
    torn = preference_section(folder, proof, "dadpo", {"teacher": teacher}, {})
    assert (torn.believed, torn.verdicts) == (True, {"p1": "win"})
    assert torn.problems == [f"verdicts: {folder / 'rows.jsonl'}:2: expected `model`, `prompt_id` and `verdict`"]


def test_verdicts_that_cannot_be_read_claim_nothing(tmp_path: Path) -> None:
    folder = example.verdicts(tmp_path / "verdicts", tmp_path / "said-teacher", OTHER)
    for text, said in (
        ("{", "not JSON"),
        ("[]", "`judge`: expected a dict"),
        ('{"judge": {}, "opponent": 1}', "`opponent`"),
    ):
        (folder / "preference.json").write_text(text)
        found = preference_section(folder, [], "dadpo", {}, {})
        assert said in found.problems[0]
        assert found.claim == f"{NO_CLAIM}: the judge's verdicts cannot be read."
    assert "no preference" not in preference_section(tmp_path / "nowhere", [], "dadpo", {}, {}).problems[0]


def test_the_page_says_plainly_that_nothing_is_claimed(tmp_path: Path) -> None:
    inputs = replace(example.experiment(tmp_path / "inputs"), curves={}, scores={}, predictions={})
    inputs = replace(inputs, judge_validations=[example.validation(tmp_path / "failed", False)])
    text = html.unescape(write_report(inputs, tmp_path / "report.html").read_text("utf-8"))
    first = text.split("Behind page one", 1)[0]
    assert f"{NO_CLAIM}: held against people's judgements, the judge did not pass." in first
    assert "points" not in first
    assert "student better" not in first
    assert "support no claim" in text


def test_instructions_followed(tmp_path: Path) -> None:
    found = instruction_section(example.ifeval(tmp_path / "ifeval"), "dadpo")
    assert found.lead == (
        "The student does all that is asked in 20\u00a0% [14, 26] of 541 prompts that a program can check (IFEval), "
        "the teacher in 20\u00a0% [14, 26]."
    )
    shares = [f"{value}\u00a0% [{value - 6}, {value + 6}]" for value in (20, 30, 25, 35, 70)]
    assert found.rows[1] == ["teacher", "541", *shares, "−10 points [−16, −4]"]
    assert INSTRUCTION_HEAD[-1] == "The first less this one"  # the student, named first, less the teacher
    assert found.left_out == 1
    assert instruction_section(None, "dadpo").lead == NOT_RUN
    (tmp_path / "ifeval" / "ifeval.json").write_text("{}")
    assert "`rows`: expected a list" in instruction_section(tmp_path / "ifeval", "dadpo").problems[0]


# risks


def evidence(results: dict[str, Any] | None = None, **own: float) -> Evidence:
    rows = [
        {"model": "dadpo", "prompts": 500, "finished": 1.0, "repetition": 0.01, "mean_tokens": 30.0, **own},
        {"model": "teacher", "finished": 0.5, "repetition": 0.02, "mean_tokens": 30.0},
    ]
    return Evidence(
        "dadpo", rows, 3, Manifest("evaluation", {}, results={"left_out": {}} if results is None else results)
    )


def test_a_run_without_faults_has_none(tmp_path: Path) -> None:
    found = risks(evidence())
    assert found.seen == []
    assert [sentence.split(":")[0] for sentence in found.unchecked] == ["Licence", "Truth and safety", "Other uses"]


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"prompts": 99}, "Few test prompts: 99."),
        ({"finished": 0.94},
         "Cut answers: 6\u00a0% of the student's answers (the teacher's: 50\u00a0%) hit the length limit."),
        ({"repetition": 0.2, "repetition_low": 0.1, "repetition_high": 0.3},
         "Repetition: 20\u00a0% [10, 30] of what the student writes it has written before in the same answer "
         "(the teacher: 2\u00a0%)."),
        ({"mean_tokens": 24.0}, "Length: the student's answers are shorter than the teacher's (24 against 30 tokens"),
        ({"mean_tokens": 60.0}, "Length: the student's answers are longer than the teacher's (60 against 30 tokens"),
    ],
)  # fmt: skip
def test_each_fault_is_said_with_its_number(tmp_path: Path, own: dict[str, float], said: str) -> None:
    (found,) = risks(evidence(**own)).seen
    assert found.startswith(said)


def test_overlap_is_counted_where_it_was_looked_for_and_named_where_not(tmp_path: Path) -> None:
    (found,) = risks(evidence({"left_out": {"a": "x", "b": "y"}})).seen
    assert found.startswith("Left out: 2 test prompts also stood in the training data")
    assert any("was not checked" in sentence for sentence in risks(evidence({})).unchecked)
    assert risks(replace(evidence(), trainings=1)).seen[0].startswith("One training run")


def test_saturation_counts_for_the_student_in_question_alone(tmp_path: Path) -> None:
    """The example's daDPO starts with 75 % of its pairs at full strength, its dDPO with none."""
    analysis = Analysis.read(example.analysis(tmp_path / "analysis.json"))
    (found,) = risks(replace(evidence(), analysis=analysis)).seen
    assert "75\u00a0% of the training pairs" in found
    rows = [{"model": "ddpo", "prompts": 500}]
    assert risks(Evidence("ddpo", rows, 3, None, analysis)).seen == []
