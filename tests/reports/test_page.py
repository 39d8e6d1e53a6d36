from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from lightning_dadpo.reports import ReportInputs, write_report
from tests.reports import example

VOID = {"meta", "img", "br", "hr", "input", "link"}


class Outline(HTMLParser):
    """Tags, ids, headings and text of a page; a tag closed in the wrong order is an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.attributes: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("href", "xlink:href", "src")]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    return write_report(example.experiment(folder), folder / "deep" / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("hostile")
    return write_report(example.hostile(folder), folder / "report.html").read_text("utf-8")


def empty() -> ReportInputs:
    return ReportInputs(title="Nothing yet", experiment="empty")


def test_the_page_stands_alone(page: str) -> None:
    outline = Outline(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(outline.tags)
    assert outline.tags.count("style") == 1
    assert all(link.startswith("#") for link in outline.links)
    assert all(link[1:] in outline.ids for link in outline.links)
    assert "@import" not in page
    assert set(re.findall(r"url\((.)", page)) <= {"#"}


def test_ids_do_not_clash_between_drawings(page: str) -> None:
    outline = Outline(page)
    assert outline.tags.count("svg") >= 12
    assert len(outline.ids) == len(set(outline.ids))


def test_headings_tables_and_drawings_are_named(page: str) -> None:
    outline = Outline(page)
    levels = [int(tag[1]) for tag in outline.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    assert outline.tags.count("caption") == outline.tags.count("table")
    drawings = re.findall(r"<svg[^>]*>", page)
    assert len(drawings) == outline.tags.count("svg") == page.count("</desc>")
    assert all('role="img"' in drawing and "aria-labelledby=" in drawing for drawing in drawings)
    assert not re.search(r"<th(?![^>]*scope=)[ >]", page)


def test_every_drawing_follows_the_theme(page: str) -> None:
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        assert not re.search(r"(?:fill|stroke): #[0-9a-f]{6}", drawing)
        assert "<style" not in drawing


def test_what_the_page_says(page: str) -> None:
    text = " ".join(" ".join(Outline(page).words).split())
    assert "The student has 79 % of the teacher's parameters: 106.8 million instead of 134.5 million." in text
    assert "This run does not tell daDPO and dDPO apart" in text
    assert "The first 12 of 14 held-out prompts" in text
    assert "TRAINING" not in text
    assert "Rejected responses were sampled from: dsft." in text
    assert "margin above 0 in" in text
    assert "1 min 14 s" in text
    assert "make demo" in text


def test_the_page_names_the_split_that_was_used(page: str, tmp_path: Path) -> None:
    """Students that were compared on validation prompts were tested on nothing, and nothing was held out."""
    told = re.compile(r"held.out|test prompt", re.IGNORECASE)
    assert len(told.findall(page)) >= 8
    inputs = replace(example.experiment(tmp_path), curves={}, scores={}, predictions={}, split="validation")
    text = write_report(inputs, tmp_path / "report.html").read_text("utf-8")
    assert told.findall(text) == []
    assert "Every model on the same validation prompts" in text
    assert "Few validation prompts: 48." in text
    assert "no response to a validation prompt was found" in text  # the example's are all held out


def test_the_same_inputs_give_the_same_page(page: str, tmp_path: Path) -> None:
    again = write_report(example.experiment(tmp_path), tmp_path / "report.html").read_text("utf-8")
    assert again == page


def test_no_text_becomes_markup(hostile_page: str, page: str) -> None:
    outline = Outline(hostile_page)
    assert not {"script", "img"} & set(outline.tags)
    assert outline.tags.count("style") == 1
    assert not [name for name in outline.attributes if name.startswith("on")]
    assert "<script>" not in hostile_page
    assert hostile_page.count("</style>") == 1
    assert "".join(outline.words).count(example.SCRIPT) > 20
    assert len(outline.ids) == len(set(outline.ids))
    assert page.count("</style>") == 1


def test_an_empty_report_names_everything_that_is_missing(tmp_path: Path) -> None:
    text = write_report(empty(), tmp_path / "report.html").read_text("utf-8")
    for sentence in (
        "There is no result table", "There are no conversations", "There are no curves", "no scores artefact was given",
        "no predictions file was given", "No stage was recorded", "No pairs artefact", "configuration was not recorded",
    ):  # fmt: skip
        assert sentence in text, sentence
    assert "<svg" not in text


def test_broken_sources_are_named_with_their_place(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/loss\n0,0.5\n1,high\n")
    (tmp_path / "rows.jsonl").write_text('{"pair_id": "a", "margin": 1.0, "chosen_reward": 1.0}\n')
    (tmp_path / "half.partial").mkdir()
    inputs = replace(
        empty(),
        curves={"dsft": tmp_path / "metrics.csv", "ddpo": tmp_path / "nowhere.csv"},
        predictions={"ddpo": tmp_path / "rows.jsonl"},
        scores={"teacher": tmp_path / "half"},
        responses={"teacher": tmp_path},
    )
    text = "".join(Outline(write_report(inputs, tmp_path / "report.html").read_text("utf-8")).words)
    assert f"dsft: {tmp_path / 'metrics.csv'}:3: `train/loss`: expected a number, found 'high'" in text
    assert f"ddpo: {tmp_path / 'nowhere.csv'}: no such file" in text
    assert f"{tmp_path / 'rows.jsonl'}:1: `rejected_reward`: expected a number, found None" in text
    assert "was begun but never finished" in text
    assert "is not an artefact" in text


def test_numbers_that_are_not_finite_are_shown_and_counted(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/loss,train/margin\n0,0.5,nan\n1,inf,nan\n2,0.4,nan\n")
    line = '{{"pair_id": "{}", "margin": {}, "chosen_reward": {}, "rejected_reward": 0.5}}\n'
    rows = [line.format("a", "NaN", "NaN"), line.format("b", 0, 1.0), line.format("c", 2.0, 2.0)]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    broken = example.row("dadpo", 1e6, (float("nan"), float("inf"), 1.0))
    inputs = replace(
        empty(),
        summary=[broken, {"model": "ddpo"}],
        curves={"dadpo": tmp_path / "metrics.csv"},
        predictions={"dadpo": tmp_path / "rows.jsonl"},
    )
    text = "".join(Outline(write_report(inputs, tmp_path / "report.html").read_text("utf-8")).words)
    assert "daDPO: 1 of 3 values are not finite and not drawn (inf at step 1)." in text
    assert "daDPO: 3 of 3 values are not finite and not drawn (nan at step 0, nan at step 1, nan at step 2)." in text
    assert "daDPO, chosen: 1 of 3 values are not finite" in text
    assert "daDPO: Teacher NLL is nan, so there is nothing to draw." in text
    assert "ddpo" not in text
    assert "dDPO: Forward KL is not measured, so there is nothing to draw." in text
    assert "margin above 0 in 75 % of 2 pairs, 1 tied and counted as half" in text
    assert "Margins that are not finite and not counted: 1." in text


def test_C2_scores_are_joined_by_pair_not_by_place(tmp_path: Path) -> None:
    """In each order the difference is 10 nats for every pair; joined by place it would be 9 or 11 at the quartiles."""
    reference = {"a": 0.0, "b": 1.0, "c": 2.0, "d": 3.0}
    teacher = {pair: reference[pair] + 10 for pair in "dbca"}
    inputs = replace(
        empty(),
        scores={
            "teacher": example.scores(tmp_path / "teacher", teacher),
            "reference": example.scores(tmp_path / "reference", reference),
        },
    )
    text = write_report(inputs, tmp_path / "report.html").read_text("utf-8")
    assert "by 10.0 nats at the median (quartiles 10.0 and 10.0)" in text


def test_pairs_that_only_one_anchor_scored_are_counted(tmp_path: Path) -> None:
    inputs = replace(
        empty(),
        pairs=example.pairs(tmp_path / "pairs", 3),
        scores={
            "teacher": example.scores(tmp_path / "teacher", {"a0": 1.0, "a1": 2.0}),
            "reference": example.scores(tmp_path / "reference", {"a1": 1.0, "a2": 1.0}),
        },
    )
    text = write_report(inputs, tmp_path / "report.html").read_text("utf-8")
    assert "2 pairs are scored by only one of teacher and reference" in text
    assert "The teacher has no score for 1 of them." in text


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "report.html"
    out.write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(empty(), out)
    assert out.read_text() == "old"


def test_half_a_surrogate_pair_does_not_stop_the_report(tmp_path: Path) -> None:
    text = write_report(replace(empty(), notes=["odd \ud800 text"]), tmp_path / "report.html").read_text("utf-8")
    assert "odd ? text" in text
