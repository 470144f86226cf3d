"""Charts in the metadata of a partition: readable axes and no warnings, with much data or none."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import polars as pl
import pytest

from entropylong_assets.stages import charts
from entropylong_assets.stages.entropy.histogram import Histogram

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """The figures drawn by a test, in which no warning may be raised."""
    figures: list[Figure] = []
    write = charts.as_markdown

    def watched(figure: Figure, description: str) -> str:
        figures.append(figure)
        return write(figure, description)

    monkeypatch.setattr(charts, "as_markdown", watched)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield figures


def filled(values: list[float], low: float, high: float, bins: int) -> Histogram:
    histogram = Histogram(low, high, bins)
    histogram.add(pl.Series(values, dtype=pl.Float64))
    return histogram


def labels(figure: Figure, axis: str) -> list[str]:
    (axes,) = figure.axes
    ticks = axes.get_xticklabels() if axis == "x" else axes.get_yticklabels()
    return [tick.get_text() for tick in ticks]


@pytest.mark.parametrize("values", [[], [0.3], [0.3] * 5000 + [0.8]])
def test_counts_have_plain_ticks(drawn: list[Figure], values: list[float]) -> None:
    """The failures: a warning about an empty logarithmic axis, and ticks of a tenth of a token."""
    charts.entropy_histogram(filled(values, 0, 10, 100), 5.0 if values else None)
    gains = {name: filled(values, -1, 1, 80) for name in ("gain", "calibrated_gain")}
    charts.gain_histogram(gains, ("ε", 0.4))
    for figure in drawn:
        shown = [label for label in labels(figure, "y") if label]
        assert shown
        assert all(re.fullmatch(r"\d{1,3}(,\d{3})*", label) for label in shown), shown
    assert len(drawn) == 2


def test_intervals_of_tiny_shares_have_an_axis_to_read(drawn: list[Figure]) -> None:
    """The failure: an axis from 0 to 1e-77."""
    rows = [
        {"name": "random, genuine", "value": 0.0, "low": 0.0, "high": 1.2e-77},
        {"name": "a name of many words " * 8, "value": 3e-9, "low": None, "high": None},
    ]
    charts.intervals(rows, "share that passes the rule")
    (axes,) = drawn[0].axes
    assert axes.get_xlim()[1] >= 0.01
    assert axes.xaxis.get_offset_text().get_text() == ""
    assert max(map(len, labels(drawn[0], "y"))) <= 40


def test_pictures_of_nothing_say_so(drawn: list[Figure]) -> None:
    charts.intervals([{"name": "a", "value": None, "low": None, "high": None}], "x")
    none = pl.DataFrame({"gain": [], "second_gain": []}, schema=dict.fromkeys(
        ("gain", "second_gain"), pl.Float64))  # fmt: skip
    charts.both_gains({"随机": none}, 0.4)
    assert drawn[0].axes[0].texts[0].get_text() == "nothing measured"
    assert drawn[1].axes[0].get_xlim() == drawn[1].axes[0].get_ylim() == (-1.05, 1.05)
