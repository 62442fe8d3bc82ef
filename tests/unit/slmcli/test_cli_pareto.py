# SPDX-License-Identifier: Apache-2.0
"""The picture of quality against size."""

import math
from typing import Literal
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from slmcli.render.pareto import ParetoRow, find_frontier, render_pareto

SVG = "{http://www.w3.org/2000/svg}"
ACCEPTED: tuple[Literal["yes", "no", "unknown"], ...] = ("yes", "no", "unknown")
ROWS = st.lists(
    st.builds(
        ParetoRow,
        name=st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12),
        size_bytes=st.integers(1, 10**10),
        quality=st.floats(-1, 1).map(lambda value: round(value, 2)),
        tokens_per_second=st.none() | st.floats(0, 1e5),
        accepted=st.sampled_from(ACCEPTED),
    ),
    max_size=8,
)


@given(ROWS)
def test_the_frontier_is_what_nothing_beats(rows: list[ParetoRow]) -> None:
    frontier = find_frontier(rows)
    for row in rows:
        beaten = any(
            other.size_bytes <= row.size_bytes
            and other.quality >= row.quality
            and (other.size_bytes, other.quality) != (row.size_bytes, row.quality)
            for other in rows
        )
        places = {(one.size_bytes, one.quality) for one in frontier}
        assert ((row.size_bytes, row.quality) in places) != beaten
    assert [one.quality for one in frontier] == sorted({one.quality for one in frontier})


@given(ROWS)
def test_every_row_is_a_bubble_inside_the_picture(rows: list[ParetoRow]) -> None:
    tree = ElementTree.fromstring(render_pareto("a < b", rows))  # noqa: S314
    _, _, width, height = (float(text) for text in tree.attrib["viewBox"].split())
    bubbles = [circle for circle in tree.iter(f"{SVG}circle") if circle.find(f"{SVG}title") is not None]
    assert len(bubbles) == len(rows)
    for bubble in bubbles:
        assert 0 <= float(bubble.attrib["cx"]) <= width
        assert 0 <= float(bubble.attrib["cy"]) <= height


def test_names_are_escaped_and_the_faster_bubble_is_the_larger() -> None:
    fast = ParetoRow(name="<fast>", size_bytes=100, quality=0.9, tokens_per_second=400.0, accepted="yes")
    slow = ParetoRow(name="slow", size_bytes=200, quality=0.95, tokens_per_second=100.0, accepted="no")
    unknown = ParetoRow(name="lost", size_bytes=300, quality=math.nan)
    text = render_pareto("title", [fast, slow, unknown])
    assert "&lt;fast&gt;" in text
    assert "lost" not in text
    tree = ElementTree.fromstring(text)  # noqa: S314
    radii = {
        title.text.partition(":")[0]: float(circle.attrib["r"])
        for circle in tree.iter(f"{SVG}circle")
        if (title := circle.find(f"{SVG}title")) is not None and title.text
    }
    assert radii["<fast>"] == 2 * radii["slow"]


def test_nothing_measured() -> None:
    assert "nothing is measured yet" in render_pareto("title", [])
