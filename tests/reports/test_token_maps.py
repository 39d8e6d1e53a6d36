# ruff: noqa: RUF001 (minus signs are meant)
"""The token map on the page: the right number, with the right sign, on the right letters, and no text as markup."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_dadpo.data.analysis import TokenMapRow, Unit
from lightning_dadpo.data.artifacts import draft
from lightning_dadpo.data.rows import RowWriter
from lightning_dadpo.errors import ArtifactError, DataError
from lightning_dadpo.reports import ReportInputs, write_report
from lightning_dadpo.reports.token_maps import MOST_UNITS, StudentMaps, parts, read_maps, signed, step_of, students
from tests.reports import example
from tests.reports.test_page import Outline


def page(tmp_path: Path, rows: list[TokenMapRow]) -> str:
    with (
        draft(tmp_path / "evaluation", "evaluation", {}) as work,
        RowWriter(work.path / "token_maps.jsonl") as writer,
    ):
        writer.write(*rows)
    inputs = ReportInputs(title="t", experiment="e", evaluation=tmp_path / "evaluation")
    return write_report(inputs, tmp_path / "report.html").read_text("utf-8")


def row(**changes: object) -> TokenMapRow:
    return replace(example.token_map("p0", "dadpo", ["dadpo"]), **changes)  # type: ignore[arg-type]


def shown(text: str) -> list[tuple[str, str, str]]:
    """(classes, title, letters) of every token on the page; the legend has no titles."""
    found = re.findall(r'<span class="token ([^"]*)" title="([^"]*)">(.*?)</span>', text, re.DOTALL)
    return [(style, html.unescape(title), html.unescape(re.sub("<[^>]*>", "", inner))) for style, title, inner in found]


@pytest.mark.parametrize(
    ("difference", "style"),
    [(0.49, ""), (-0.49, ""), (0.5, "t1"), (-0.5, "s1"), (1.0, "t2"), (-1.99, "s2"), (2.0, "t3"), (-4.0, "s4"),
     (99.0, "t4"), (0.0, "")],
)  # fmt: skip
def test_the_sign_of_the_difference(difference: float, style: str) -> None:
    assert step_of(difference) == style


def test_every_token_has_its_number_sign_and_letters(tmp_path: Path) -> None:
    """By hand: teacher less student. A map whose sign is turned, or that is shifted by one, fails here."""
    found = shown(page(tmp_path, [row()]))
    assert [(style, letters) for style, _, letters in found] == [
        ("t3", "Start"),  # -1 - -3.5 = +2.5
        ("", " with"),  # +0.1
        ("s2", " €"),  # three tokens, -2.75 - -1.5 = -1.25
        ("s2", "↵\n↵\n"),  # -1
        ("s4", "<b>"),  # -4.5
        ("", "∅"),
        ("t1", "U+202E"),  # +0.6
        ("broken", "\ufffd"),
        ("t2 special", "<|im_end|>"),  # +1
    ]
    titles = [title for _, title, _ in found]
    assert titles[0] == "+2.50 nats: teacher −1.00; dSFT (reference) −4.00; daDPO −3.50"
    assert titles[2] == (
        "−1.25 nats: teacher −2.75; dSFT (reference) −3.00; daDPO −1.50 (3 tokens: −1.00, −0.25, 0.00)"
    )
    assert titles[7].endswith("(bytes that are no whole character)")


def test_the_sums_are_those_of_the_whole_response(tmp_path: Path) -> None:
    one = row()
    text = html.unescape(page(tmp_path, [one]))
    teacher, student = (sum(one.log_probs[name]) for name in ("teacher", "dadpo"))
    assert (round(teacher, 2), round(student, 2)) == (-15.55, -13.0)
    assert (
        "11 tokens. Log-probability of all of it, nats: teacher −15.55, dSFT (reference) −18.50, daDPO −13.00." in text
    )
    assert "The differences sum to −2.55, −0.23 a token." in text


def test_the_strongest_stand_in_a_table_in_the_order_of_the_text() -> None:
    maps = students([row()]).main
    assert maps is not None
    (one,) = maps.prompts[0].maps
    assert one.head == [("Token", ""), ("teacher", ""), ("dSFT", "reference"), ("daDPO", ""), ("Difference", "")]
    assert one.strongest == [
        ["Start", "−1.00", "−4.00", "−3.50", "+2.50"],
        ["€", "−2.75", "−3.00", "−1.50", "−1.25"],
        ["↵\n↵", "−4.00", "−3.50", "−3.00", "−1.00"],
        ["<b>", "−6.00", "−2.00", "−1.50", "−4.50"],
        ["U+202E", "−0.10", "−1.20", "−0.70", "+0.60"],
        ["<|im_end|>", "−0.50", "−2.00", "−1.50", "+1.00"],
    ]


def test_no_text_of_a_model_is_markup(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>\"' onmouseover=x"
    text = page(tmp_path, [row(units=[Unit(bad, 11, "special")], prompt_id=bad)])
    outline = Outline(text)
    assert not {"script", "img"} & set(outline.tags)
    assert not [name for name in outline.attributes if name.startswith("on")]
    assert "<script>" not in text
    assert bad in "".join(outline.words)
    assert shown(text)[0][2] == bad


def test_a_student_is_shown_its_own_answer_and_the_teacher_s(tmp_path: Path) -> None:
    found = students(read_maps(example.evaluation(tmp_path / "evaluation")))
    assert found.main is not None
    assert (found.main.model, [one.model for one in found.others]) == ("daDPO", ["dSFT", "dDPO"])
    for student in (found.main, *found.others):
        titles = [one.title for prompt in student.prompts for one in prompt.maps]
        assert titles == [f"The answer of {student.model}", "The teacher's answer"] * 2
    first = example.PROMPTS[0]
    assert [message.content for message in found.main.prompts[0].messages] == [first]


def test_the_last_round_comes_first(tmp_path: Path) -> None:
    names = ("dsft", "dadpo", "ddpo", "dadpo-round2", "ddpo-round2")
    found = students(read_maps(example.evaluation(tmp_path / "evaluation", names)))
    assert found.main is not None
    assert found.main.model == "daDPO, round 2"


def test_without_dadpo_the_last_student_comes_first(tmp_path: Path) -> None:
    found = students(read_maps(example.evaluation(tmp_path / "evaluation", ("dsft", "ipo"))))
    assert found.main == StudentMaps("ipo", found.main.prompts if found.main else [])


def test_a_long_response_is_drawn_in_part_and_summed_whole() -> None:
    one = example.token_map("p0", "dadpo", ["dadpo"], repeat=60)
    maps = students([one]).main
    assert maps is not None
    (drawn,) = maps.prompts[0].maps
    assert (len(drawn.tokens), drawn.left_out) == (MOST_UNITS, len(one.units) - MOST_UNITS)
    assert drawn.facts.startswith(f"{len(one.token_ids)} tokens. ")


def test_an_evaluation_from_before_there_were_maps(tmp_path: Path) -> None:
    with draft(tmp_path / "old", "evaluation", {}):
        pass
    assert read_maps(tmp_path / "old") == []
    inputs = ReportInputs(title="t", experiment="e", evaluation=tmp_path / "old")
    text = write_report(inputs, tmp_path / "report.html").read_text("utf-8")
    assert "There is no token map: this evaluation was made without one." in text


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    broken = row(log_probs={"dadpo": [-1.0] * 11})
    text = html.unescape(page(tmp_path, [broken]))
    assert "token_maps.jsonl:1: log_probs: nothing of teacher" in text
    with pytest.raises(DataError, match="nothing of teacher"):
        read_maps(tmp_path / "evaluation")
    with pytest.raises(ArtifactError, match="is not an artefact"):
        read_maps(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", [("plain", False)]),
        ("a\nb", [("a", False), ("↵", True), ("\nb", False)]),
        ("\t", [("⇥", True), ("\t", False)]),
        ("\x00x\x1b", [("U+0000", True), ("x", False), ("U+001B", True)]),
        ("\u202eabc", [("U+202E", True), ("abc", False)]),
        ("👩\u200d💻", [("👩\u200d💻", False)]),
        ("\u200d", [("U+200D", True)]),
        ("", [("∅", True)]),
    ],
)
def test_what_cannot_be_seen_has_a_mark(text: str, expected: list[tuple[str, bool]]) -> None:
    assert parts(Unit(text, 1, "text")) == expected


def test_numbers_as_they_are_printed() -> None:
    assert [signed(value) for value in (1.0, -1.005, 0.004, -0.004)] == ["+1.00", "−1.00", "0.00", "0.00"]
    assert signed(-3.14159, plus=False) == "−3.14"


def test_marks_do_not_need_colour() -> None:
    """Solid below what the teacher finds more probable, dotted below the other, thicker the more; kept on paper."""
    css = (Path(__file__).parents[2] / "lightning_dadpo" / "reports" / "report.css").read_text()
    assert ".t1, .t2, .t3, .t4 { text-decoration: underline solid; }" in css
    assert ".s1, .s2, .s3, .s4 { text-decoration: underline dotted; }" in css
    assert re.findall(r"\.s(\d) \{ text-decoration-thickness: (\d)px", css) == [(step, step) for step in "1234"]
    assert "print-color-adjust: exact" in css


def _luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_can_be_read_on_every_tint_in_both_themes() -> None:
    """WCAG 2's contrast of 4.5 to 1, and each step darker (lighter) than the one before on paper (at night)."""
    css = (Path(__file__).parents[2] / "lightning_dadpo" / "reports" / "report.css").read_text()
    light, dark = css.split("}", 1)[0], css.split("prefers-color-scheme: dark", 1)[1].split("}", 1)[0]
    for at, theme in enumerate((light, dark)):
        colours = dict(re.findall(r"--(ink|[ts]\d): (#[0-9a-f]{6})", theme))
        ink = _luminance(colours.pop("ink"))
        assert len(colours) == 8
        for tint in colours.values():
            high, low = sorted((ink, _luminance(tint)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, tint
        for side in "ts":
            steps = [_luminance(colours[f"{side}{step}"]) for step in range(1, 5)]
            assert steps == sorted(steps, reverse=at == 0)
