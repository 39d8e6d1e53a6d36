"""Page one on paper, by a real browser: one sheet of A4 and one of Letter, however much there is to say."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_dadpo.reports import ReportInputs, write_report
from lightning_dadpo.reports.inputs import Nearness
from tests.reports import example
from tests.reports.test_browser import BROWSER, FLAGS

SIZES = ("A4", "Letter")
OTHERS = ("forward_kd", "reverse_kd", "ipo", "skew_kd")
PLANTED = '<p style="height: 60mm">what does not fit any more</p></section>'

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on this machine"),
]


def full(folder: Path) -> ReportInputs:
    """As much as page one ever says: many students, every risk, long notes."""
    inputs = example.experiment(folder)
    rows = [*inputs.summary[:-1], *(example.row(name, 1e8, (1.9, 0.8, 0.8)) for name in OTHERS), inputs.summary[-1]]
    for row in rows:
        if row["model"] == "dadpo":
            row |= {"repetition": 0.2, "repetition_low": 0.1, "repetition_high": 0.3, "mean_tokens": 90.0}
    farther = [Nearness("dadpo", name, 0.02, 0.01, 0.03, 1.02, 1.01, 1.03) for name in OTHERS]
    evaluation = example.evaluation(folder / "left-out", left_out={"p20": "exactly", "p21": "nearly"})
    notes = ["A sentence of the kind that people write about what a run can show and what it cannot. " * 3] * 3
    inputs.models["teacher"] = example.gguf_model(folder / "small.gguf", 2_000_000)
    return replace(inputs, summary=rows, nearness=[*inputs.nearness, *farther], evaluation=evaluation, notes=notes)


def sheets(folder: Path, inputs: dict[str, ReportInputs]) -> tuple[str, list[str]]:
    """The pages' style, and page one of each."""
    bare = {name: replace(one, curves={}, scores={}, predictions={}) for name, one in inputs.items()}  # no drawings
    pages = [write_report(one, folder / f"{name}.html").read_text("utf-8") for name, one in bare.items()]
    found = [re.search(r'<section id="decision".*?\n<header class="behind">', page, re.DOTALL) for page in pages]
    assert all(found)
    style = re.search(r"<style>.*?</style>", pages[0], re.DOTALL)
    assert style is not None
    return style[0], [one[0].removesuffix('<header class="behind">') for one in found if one]


def printed_pages(folder: Path, style: str, parts: list[str]) -> int:
    """How many sheets all the parts take, each printed on A4 and on Letter with the report's own margins."""
    assert BROWSER is not None
    margin = re.search(r"@page decision \{ (margin: [^;]*;)", style)
    assert margin is not None
    rules = "".join(
        f"@page {size} {{ size: {size}; {margin[1]} }} .{size} .sheet {{ page: {size}; }}" for size in SIZES
    )
    body = "".join(f'<main class="{size}">{part}</main>' for part in parts for size in SIZES)
    (folder / "sheets.html").write_text(f"<!DOCTYPE html>{style}<style>{rules}</style><body>{body}</body>", "utf-8")
    out = folder / "sheets.pdf"
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--no-pdf-header-footer"]
    command += [f"--print-to-pdf={out}", (folder / "sheets.html").as_uri()]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    return len(re.findall(rb"/Type\s*/Page\b(?!s)", out.read_bytes()))


def test_page_one_is_one_sheet_of_either_paper(tmp_path: Path) -> None:
    inputs = {
        "plain": example.experiment(tmp_path / "plain-inputs"),
        "hostile": example.hostile(tmp_path / "hostile-inputs"),
        "full": full(tmp_path / "full-inputs"),
        "empty": ReportInputs(title="Nothing yet", experiment="empty"),
    }
    style, parts = sheets(tmp_path, inputs)
    planted = parts[0].replace("</section>", PLANTED, 1)  # takes two sheets, so that a sheet too many is seen
    assert printed_pages(tmp_path, style, [*parts, planted]) == len(SIZES) * (len(parts) + 2)
