from __future__ import annotations

from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from lightning_dadpo.reports.charts import _counts, _edges, curve_chart, histogram_chart, quantile, reward_chart
from lightning_dadpo.reports.drawing import label
from lightning_dadpo.reports.sources import Rewards, Series

MARKUP = "<b>&\"'x</b> $y$"


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_quantile_equals_numpy(share: float) -> None:
    values = np.random.default_rng(0).normal(size=17)
    assert quantile(values.tolist(), share) == pytest.approx(float(np.quantile(values, share)), rel=1e-12)


def test_bins_equal_numpy_and_lose_no_pair() -> None:
    values = np.random.default_rng(1).normal(size=200)
    edges = _edges(values.tolist())
    assert _counts(values.tolist(), edges) == np.histogram(values, edges)[0].tolist()
    assert sum(_counts([2.0] * 5, _edges([2.0] * 5))) == 5


def test_a_drawing_is_the_same_each_time_and_well_formed() -> None:
    runs = {MARKUP: Series([0, 1, 2], [1.0, float("nan"), 0.5])}
    first, second = (curve_chart(MARKUP, MARKUP, MARKUP, runs, [MARKUP]) for _ in range(2))
    assert first.svg == second.svg
    root = ElementTree.fromstring(first.svg)
    assert label(MARKUP) in "".join(root.itertext())
    assert not [element for element in root.iter() if element.tag.endswith(("}b", "}script", "}style"))]


def test_drawings_of_the_same_data_share_no_id() -> None:
    drawings = [histogram_chart("t", "u", name, [1.0, 2.0]).svg for name in ("one", "two")]
    ids = [{element.get("id") for element in ElementTree.fromstring(drawing).iter()} for drawing in drawings]
    assert ids[0] & ids[1] == {None}


def test_settings_of_the_caller_are_left_alone() -> None:
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 31, "svg.fonttype": "path"}):
        one = histogram_chart("t", "u", "n", [1.0, 2.0]).svg
        assert matplotlib.rcParams["font.size"] == 31
    assert dict(matplotlib.rcParams) == before
    assert one == histogram_chart("t", "u", "n", [1.0, 2.0]).svg


def test_nothing_finite_means_no_drawing_and_a_sentence() -> None:
    nan = float("nan")
    for chart in (histogram_chart("D", "nats", "d", [nan]), reward_chart("run", Rewards([nan], [nan], [nan]), [])):
        assert chart.svg == ""
        assert "no finite" in chart.notes[-1]


def test_labels_are_one_short_printable_line() -> None:
    assert label("a\x00b\nc\u202e") == "a b c"
    assert label("") == "(no name)"
    assert len(label("x" * 99)) == 22
