"""Which windows of a shard are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence

import polars as pl

from entropylong_assets.stages.natural_documents.settings import NaturalSettings

TOO_REPETITIVE, TOO_DENSE, LOW_GAIN = "too_repetitive", "too_dense", "low_gain"


def keep_windows(
    windows: Sequence[tuple[str, float, float]], settings: NaturalSettings
) -> list[str | None]:
    """For each window, None if it is kept, else the reason.

    windows: window_id, information gain, gzip ratio. The share `natural.keep` is taken per shard,
    rounded up, so that no shard depends on another and no gain has to be known beforehand: gains
    differ by model, corpus and length of the windows. Equal gains are ordered by id.
    """
    reasons: list[str | None] = [
        TOO_REPETITIVE
        if ratio < settings.min_gzip_ratio
        else TOO_DENSE
        if ratio > settings.max_gzip_ratio
        else LOW_GAIN
        for _, _, ratio in windows
    ]
    within = [i for i, reason in enumerate(reasons) if reason == LOW_GAIN]
    ranked = sorted(within, key=lambda i: (-windows[i][1], windows[i][0]))
    for i in ranked[: count_kept(len(ranked), settings.keep)]:
        reasons[i] = None
    return reasons


def count_kept(n_windows: int, keep: float) -> int:
    """The share `keep` of these windows, rounded up."""
    return math.ceil(round(n_windows * keep, 6))


def count_reasons(reasons: Sequence[str | None]) -> dict[str, int]:
    """Windows that are not kept, by reason."""
    counts = pl.Series(reasons, dtype=pl.String).drop_nulls().value_counts(sort=True)
    return dict(sorted(counts.iter_rows()))
