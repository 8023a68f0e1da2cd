import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from zs_nemo.observability.charts import (
    Interval,
    IntervalRow,
    Series,
    bar_chart,
    interval_chart,
    line_chart,
    stacked_chart,
    ticks,
)


def heights(chart: Markup) -> list[float]:
    return [float(circle.attrib["cy"]) for circle in ElementTree.fromstring(chart).iter("circle")]


@pytest.mark.parametrize(("low", "high"), [(0, 0.83), (0, 1e-5), (-0.3, 0.4), (0, 31.7), (0, 1234), (0, 0), (-2, -2)])
def test_ticks_are_round_and_enclose_the_values(low: float, high: float) -> None:
    values = ticks(low, high)
    assert values[0] <= low + 1e-12 and values[-1] >= high - 1e-12
    assert 2 <= len(values) <= 7
    steps = [b - a for a, b in pairwise(values)]
    assert max(steps) == pytest.approx(min(steps))
    assert round(steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9), 6) in (1, 2, 2.5, 5)


def test_points_stand_at_heights_in_proportion_to_their_values() -> None:
    zero, half, one = heights(line_chart([Series(label="r", points=[(0, 0.0), (1, 0.5), (2, 1.0)])], unit="F1"))
    assert zero > half > one
    assert half == pytest.approx((zero + one) / 2, abs=0.1)


def test_a_value_that_is_not_a_number_leaves_a_gap() -> None:
    points = [(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.0), (4, 2.0)]
    chart = line_chart([Series(label="kl", points=points)], unit="nats")
    assert len(heights(chart)) == 4
    assert len(list(ElementTree.fromstring(chart).iter("polyline"))) == 2
    assert "nan" not in chart


def test_nothing_logged_is_said_and_not_drawn() -> None:
    assert "Nothing was logged" in line_chart([Series(label="kl", points=[(0, math.nan)])], unit="nats")
    assert "Nothing was logged" in stacked_chart([], [], [], "share")


def test_stacked_shares_fill_the_whole_height() -> None:
    chart = stacked_chart([(0, [0.25, 0.75]), (1, [1.0, 0.0])], ["a", "b"], [1, 2], "share")
    bars = [float(bar.attrib["height"]) for bar in ElementTree.fromstring(chart).iter("rect")]
    assert len(bars) == 3
    assert bars[0] + bars[1] == pytest.approx(bars[2], abs=0.2)
    assert bars[1] == pytest.approx(3 * bars[0], abs=0.3)


def test_an_interval_is_drawn_from_its_low_to_its_high_end() -> None:
    row = IntervalRow(label="BM25", before=None, after=Interval(value=0.5, low=0.25, high=0.75))
    root = ElementTree.fromstring(interval_chart([row], unit="F1"))
    (mark,) = root.iter("g")
    axis = {text.text: float(text.attrib["x"]) for text in root.iter("text") if text.attrib["class"] == "tick"}
    line, dot = mark.find("line"), mark.find("circle")
    assert line is not None and dot is not None
    assert float(line.attrib["x1"]) == pytest.approx(axis["0.25"], abs=0.1)
    assert float(line.attrib["x2"]) == pytest.approx(axis["0.75"], abs=0.1)
    assert float(dot.attrib["cx"]) == pytest.approx(axis["0.5"], abs=0.1)


def test_text_in_charts_is_escaped() -> None:
    charts = (
        bar_chart([("<b>", 1.0, "&")]),
        line_chart([Series(label="<i>", points=[(0, 1.0)])], unit="<u>"),
        interval_chart([IntervalRow(label="<s>", before=None, after=None)], unit="F1"),
    )
    for chart in charts:
        assert not re.search(r"<[bius]>", chart)
        ElementTree.fromstring(chart)
