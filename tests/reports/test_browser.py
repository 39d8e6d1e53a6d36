"""The report in a real browser: not blank, and nothing to scroll sideways, at desk and at phone width."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from lightning_dadpo.reports import write_report
from tests.reports import example

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
HEIGHT = 1500
WIDTHS = (1280, 390)
TABLETS = (1190, 1024, 900)
PAPER = 688  # an A4 page less its margins, in CSS pixels
PROBE = """<script>addEventListener("load", () => {
  for (const fold of document.querySelectorAll("details")) fold.open = true;
  const room = (one) => one.closest(".pair > .part")?.getBoundingClientRect().right ?? innerWidth;
  const wide = [...document.body.querySelectorAll("*")].filter((one) => !one.closest("svg, .hidden, .skip, thead")
    && one.getBoundingClientRect().right > Math.min(innerWidth, room(one)) + 1);
  const name = location.pathname.split("/").pop();
  parent.postMessage(`${name} ${innerWidth} ${document.documentElement.scrollWidth} ${wide.length};`, "*");
});</script></body>"""
PLANTED = '<p style="width: 2000px">wider than any screen</p></main>'
LISTENER = """<script>document.body.dataset.found = "";
addEventListener("message", (event) => document.body.dataset.found += event.data)</script>"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on this machine"),
]


def browse(folder: Path, frames: list[tuple[str, int]], *flags: str) -> str:
    """Open pages side by side, each in a frame of its width: browsers refuse windows as narrow as a phone."""
    assert BROWSER is not None
    framed = "".join(
        f'<iframe src="{name}" style="border:0;width:{width}px;height:{HEIGHT}px"></iframe>' for name, width in frames
    )
    body = f'<!DOCTYPE html><body style="margin:0;white-space:nowrap;font-size:0">{LISTENER}{framed}</body>'
    (folder / "frames.html").write_text(body, encoding="utf-8")
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, (folder / "frames.html").as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def probed(folder: Path, page: str, name: str) -> str:
    """A copy of the page that reports its width; the page's own policy would forbid the script."""
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert bare != page
    (folder / name).write_text(bare.replace("</body>", PROBE), encoding="utf-8")
    return name


def test_nothing_scrolls_sideways(tmp_path: Path) -> None:
    plain = write_report(example.experiment(tmp_path / "plain"), tmp_path / "plain.html").read_text("utf-8")
    hostile = write_report(example.hostile(tmp_path / "hostile"), tmp_path / "hostile.html").read_text("utf-8")
    names = [
        probed(tmp_path, plain, "plain.html"),
        probed(tmp_path, hostile, "hostile.html"),
        probed(tmp_path, plain.replace("</main>", PLANTED), "planted.html"),
    ]
    on_paper = plain.replace("@media print", "@media all").replace("@media screen", "@media not all")
    frames = [(name, width) for name in names for width in (*WIDTHS, *TABLETS)]
    frames.append((probed(tmp_path, on_paper, "paper.html"), PAPER))
    printed = browse(tmp_path, frames, "--dump-dom", "--virtual-time-budget=8000")
    found = dict(re.findall(r"([a-z]+\.html \d+) (\d+ \d+);", printed))
    assert found[f"paper.html {PAPER}"] == f"{PAPER} 0"
    for width in (*WIDTHS, *TABLETS):
        assert found[f"plain.html {width}"] == f"{width} 0"
        assert found[f"hostile.html {width}"] == f"{width} 0"
        assert int(found[f"planted.html {width}"].split()[0]) > width, "the probe would not see a wide element"


def test_the_screenshot_is_not_blank(tmp_path: Path) -> None:
    write_report(example.experiment(tmp_path), tmp_path / "report.html")
    frames = [("report.html", width) for width in WIDTHS]
    picture = tmp_path / "report.png"
    browse(tmp_path, frames, f"--window-size={sum(WIDTHS)},{HEIGHT}", f"--screenshot={picture}")
    pixels = (imread(picture)[:, :, :3] * 255).astype(int)
    for shown in np.split(pixels, [WIDTHS[0]], axis=1):
        for third in np.array_split(shown, 3, axis=0):
            assert len(np.unique(third.reshape(-1, 3), axis=0)) > 20
