"""Small pictures for the metadata of a partition, drawn by matplotlib."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _figure() -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(6, 2.8), layout="constrained")


def as_markdown(figure: Figure, description: str) -> str:
    """The picture inside a Markdown text, so that it needs no file beside it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f"![{description}](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})"


def entropy_histogram(roots: pl.DataFrame) -> str:
    """Entropies of all tokens of the roots, each root's own τ averaged as a line."""
    figure = _figure()
    axes = figure.subplots()
    entropies = roots["entropies"].explode().drop_nulls()
    axes.hist(entropies.to_numpy(), bins=60, color="#4477aa")
    if len(roots):
        axes.axvline(float(roots["threshold"].to_numpy().mean()), color="#cc3311", linestyle="--")
        axes.text(0.98, 0.92, "- - mean τ", color="#cc3311", ha="right", transform=axes.transAxes)
    axes.set_yscale("log")
    axes.set_xlabel("entropy (nats)")
    axes.set_ylabel("tokens")
    return as_markdown(figure, "histogram of entropies with the mean threshold")


def gain_histogram(pairs: pl.DataFrame, epsilon: float) -> str:
    """Plain and calibrated gains of all scored pairs, ε as a line."""
    figure = _figure()
    axes = figure.subplots()
    for column, label, colour in (
        ("gain", "ΔI", "#bbbbbb"),
        ("calibrated_gain", "ΔI*", "#4477aa"),
    ):
        gains = pairs[column].drop_nulls()
        if len(gains):
            axes.hist(gains.clip(-1, 1).to_numpy(), bins=80, color=colour, alpha=0.8, label=label)
    axes.axvline(epsilon, color="#cc3311", linestyle="--", label=f"ε = {epsilon:g}")
    axes.set_yscale("log")
    axes.set_xlabel("gain (below -1 shown at -1)")
    axes.set_ylabel("(anchor, chunk) pairs")
    axes.legend(frameon=False)
    return as_markdown(figure, "histogram of information gains with epsilon")
