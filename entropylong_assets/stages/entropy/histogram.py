"""Histograms that are filled batch by batch, so that no column is held for a picture."""

from __future__ import annotations

import numpy as np
import polars as pl


class Histogram:
    """Counts of values in `bins` equal bins from `low` to `high`; what lies beyond goes to the
    first or last one."""

    def __init__(self, low: float, high: float, bins: int) -> None:
        self.edges = np.linspace(low, high, bins + 1)
        self.counts = np.zeros(bins, np.int64)

    def add(self, values: pl.Series) -> None:
        """Nulls are left out."""
        there = values.drop_nulls().cast(pl.Float64).clip(self.edges[0], self.edges[-1])
        self.counts += np.histogram(there.to_numpy(), self.edges)[0]
