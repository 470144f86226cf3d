"""Histograms that are filled batch by batch, so that no whole column is in memory for a chart."""

from __future__ import annotations

import numpy as np
import polars as pl


class Histogram:
    """Counts of values in `bins` equal bins from `low` to `high`.

    Values outside the range are counted in the first or last bin.
    """

    def __init__(self, low: float, high: float, bins: int) -> None:
        self.edges = np.linspace(low, high, bins + 1)
        self.counts = np.zeros(bins, np.int64)

    def add(self, values: pl.Series) -> None:
        """Count these values, without nulls."""
        present = values.drop_nulls().cast(pl.Float64).clip(self.edges[0], self.edges[-1])
        self.counts += np.histogram(present.to_numpy(), self.edges)[0]
