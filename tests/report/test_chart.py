"""A chart lies within its page, whatever its values, and each round can be read."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from fedsa_lora.exchange.measure import CLASSES
from fedsa_lora.report.bands import MOST, edges, kept
from fedsa_lora.report.chart import BOTH, Line, chart

ACCURACY, LOSS = CLASSES[:2]
POINTS = {
    "one round": [(3, 0.5)],
    "equal values": [(1, 0.0), (2, 0.0)],
    "a long run": [(n, 1 / n) for n in range(1, 501)],
    "a steep fall": [(1, 1e12), (2, 1e-12)],
    "below zero": [(1, -3.0), (4, -1.0)],
}


@pytest.mark.parametrize("points", POINTS.values(), ids=POINTS)
def test_everything_drawn_is_within_the_page(points):
    for size, drawn in zip(BOTH, chart("Loss", [Line("mean", points, "alone")], LOSS), strict=True):
        root = ElementTree.fromstring(drawn)
        places = [(element.get("x"), element.get("y")) for element in root.iter("text")]
        places += [(element.get("cx"), element.get("cy")) for element in root.iter("circle")]
        for path in root.iter("path"):
            if path.get("class") != "grid":
                places += re.findall(r"[ML](\S+) ([^L]+)", path.get("d"))
        assert all(0 <= float(x) <= size.width for x, _ in places)
        assert all(0 <= float(y) <= size.height for _, y in places)


def test_a_round_has_the_values_of_all_its_lines():
    lines = [Line("mean", [(1, 0.25), (2, 0.5)], "personalised"), Line("<b>", [(2, 0.75)], "alone", "4 3")]
    for drawn in chart("Accuracy", lines, ACCURACY):
        titles = [title.text for title in ElementTree.fromstring(drawn).iter("title")]
        assert titles == ["round 1: mean 25.0%", "round 2: mean 50.0%, <b> 75.0%"]


def test_a_line_without_points_is_left_out():
    lines = [Line("known", [(1, 1.0)], "personalised"), Line("unknown", [], "alone")]
    assert "unknown" not in chart("Loss", lines, LOSS)[0]
    assert chart("Loss", [Line("unknown", [(1, math.nan), (2, math.inf)], "alone")], LOSS) == []


def test_bands_of_a_long_run_are_thinned_and_leave_no_gap():
    places = kept(range(1, 1001))
    assert len(places) <= MOST
    stretches = edges(places, 0, 1001)
    assert (stretches[0][0], stretches[-1][1]) == (0, 1001)
    assert all(one[1] == other[0] for one, other in pairwise(stretches))
    assert all(low <= place <= high for place, (low, high) in zip(places, stretches, strict=True))
