"""Charts for the metadata of a partition, drawn by matplotlib and returned as Markdown."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from entropylong_assets.stages.entropy.histogram import Histogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#bbbbbb", "#ddaa33", "#cc3311", "#4477aa", "#228833", "#aa3377")


_LEAST_SPAN = 0.01
"""Minimum range of an axis of intervals: values near 0 would be drawn on an axis up to 1e-77."""
_LABEL_CHARS = 40


def _label(name: Any) -> str:
    text = str(name)
    return text if len(text) <= _LABEL_CHARS else text[: _LABEL_CHARS - 1] + "…"


def _figure() -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(6, 2.8), layout="constrained")


def as_markdown(figure: Figure, description: str) -> str:
    """Return a Markdown text that contains the chart itself, so that it needs no other file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Characters that the font lacks are drawn as boxes. Users can't change that.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        figure.savefig(buffer, format="png", dpi=110)
    return f"![{description}](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})"


def _count_axis(axes: Axes, most: int) -> None:
    """Make the y axis one of counts: linear to 1, then logarithmic, with plain numbers."""
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, 2 * max(most, 1))
    axes.yaxis.set_major_formatter(lambda count, _: f"{count:,.0f}")


def entropy_histogram(entropies: Histogram, mean_threshold: float | None) -> str:
    """Draw the entropies of all tokens of the roots (nats), and the mean of the roots' τ."""
    figure = _figure()
    axes = figure.subplots()
    axes.stairs(entropies.counts, entropies.edges, fill=True, color="#4477aa")
    _count_axis(axes, int(entropies.counts.max()))
    if mean_threshold is not None:
        axes.axvline(mean_threshold, color="#cc3311", linestyle="--")
        axes.text(0.98, 0.92, "- - mean τ", color="#cc3311", ha="right", transform=axes.transAxes)
    axes.set_xlabel("entropy (nats)")
    axes.set_ylabel("tokens")
    return as_markdown(figure, "histogram of entropies with the mean threshold")


def gain_histogram(gains: Mapping[str, Histogram], limit: tuple[str, float] | None) -> str:
    """Draw the gains of all scored pairs, and the limit of the rule in force.

    limit: its name and value. gains: `gain` for ΔI and `calibrated_gain` for ΔI*.
    """
    figure = _figure()
    axes = figure.subplots()
    for column, label, colour in (
        ("gain", "ΔI", "#bbbbbb"),
        ("calibrated_gain", "ΔI*", "#4477aa"),
    ):
        histogram = gains[column]
        if histogram.counts.any():
            axes.stairs(
                histogram.counts,
                histogram.edges,
                fill=True,
                color=colour,
                alpha=0.8,
                label=label,
            )
    if limit is not None:
        name, value = limit
        axes.axvline(value, color="#cc3311", linestyle="--", label=f"{name} = {value:g}")
    _count_axis(axes, max(int(histogram.counts.max()) for histogram in gains.values()))
    axes.set_xlim(-1.05, 1.05)
    axes.set_xlabel("gain (below -1 shown at -1)")
    axes.set_ylabel("(anchor, chunk) pairs")
    axes.legend(frameon=False)
    return as_markdown(figure, "histogram of information gains with their limit")


def intervals(rows: Sequence[Mapping[str, Any]], label: str) -> str:
    """Draw points with their 95% intervals, one line each; rough intervals are dashed.

    rows: name, value, low, high, is_rough if known.
    """
    figure = _figure()
    axes = figure.subplots()
    shown = [row for row in rows if row["value"] is not None][::-1]
    if not shown:
        axes.text(0.5, 0.5, "nothing measured", ha="center", transform=axes.transAxes)
    for place, row in enumerate(shown):
        if row["low"] is not None and row["high"] is not None:
            style: Literal["--", "-"] = "--" if row.get("is_rough") else "-"
            axes.hlines(place, row["low"], row["high"], color="#4477aa", linestyles=style)
        axes.plot(row["value"], place, "o", color="#4477aa")
    axes.axvline(0, color="#bbbbbb", linestyle="--")
    axes.margins(y=0.1)
    ends = [row[name] for row in shown for name in ("value", "low", "high")]
    low, high = min([0.0, *filter(None, ends)]), max([_LEAST_SPAN, *filter(None, ends)])
    axes.set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axes.set_yticks(range(len(shown)), [_label(row["name"]) for row in shown])
    axes.set_xlabel(label)
    rough = "; dashed: rough, of few roots" if any(row.get("is_rough") for row in shown) else ""
    return as_markdown(figure, f"{label}, with 95% intervals{rough}")


def both_gains(groups: Mapping[str, pl.DataFrame], epsilon: float) -> str:
    """Draw the gain of each pair in the scoring model and in a second one, and ε.

    groups: rows with gain and second_gain by the label of their group, the topmost last. Rows
    without one of the gains are left out.
    """
    figure = _figure()
    axes = figure.subplots()
    for number, (label, pairs) in enumerate(groups.items()):
        points = pairs.drop_nulls(["gain", "second_gain"])
        if points.is_empty():
            continue
        x, y = (points[name].clip(-1, 1).to_numpy() for name in ("gain", "second_gain"))
        axes.scatter(x, y, s=12, color=_COLOURS[number % len(_COLOURS)], label=label)
    axes.set_xlim(-1.05, 1.05)
    axes.set_ylim(-1.05, 1.05)
    axes.axhline(epsilon, color="#4477aa", linestyle="--", label=f"ε = {epsilon:g}")
    axes.set_xlabel("gain (below -1 shown at -1)")
    axes.set_ylabel("second model's gain")
    axes.legend(frameon=False, fontsize="small")
    return as_markdown(figure, "gains of both models, pair by pair")
