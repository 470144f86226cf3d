"""Counts behind the report's charts, taken by DuckDB so that memory does not grow with the pairs.

Histograms come as rows with the lower and upper edge of each bin; entropies and surprisals in
nats, distances in tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import duckdb
import numpy as np

from entropylong_assets.stages.verification.false_acceptance import clustered_rate
from entropylong_assets.storage.duck import View, querying
from entropylong_assets.storage.tables import TableStore

Rows = list[dict[str, Any]]

TABLES: dict[str, tuple[str, str]] = {
    "documents": ("corpus_documents", "documents"),
    "documents_dropped": ("corpus_documents", "dropped"),
    "roots": ("entropy_scores", "roots"),
    "roots_dropped": ("entropy_scores", "dropped"),
    "candidates": ("candidate_contexts", "candidates"),
    "passages": ("candidate_contexts", "chunks"),
    "anchors_dropped": ("candidate_contexts", "dropped"),
    "pairs": ("verified_dependencies", "pairs"),
    "controls": ("verified_dependencies", "controls"),
    "segments": ("long_context_samples", "segments"),
    "dependencies": ("long_context_samples", "dependencies"),
    "samples_dropped": ("long_context_samples", "dropped"),
}

_ENTROPIES = """
SELECT bin * 0.1 AS low, bin * 0.1 + 0.1 AS high,
       count(*) FILTER (above) AS above, count(*) FILTER (NOT above) AS below
FROM (
    SELECT floor(h / 0.1)::INT AS bin, h > threshold AS above
    FROM (SELECT unnest(entropies) AS h, threshold FROM roots) WHERE h IS NOT NULL
)
GROUP BY bin ORDER BY bin
"""

_THRESHOLDS = """
SELECT quantile_cont(threshold, 0.1) AS low, avg(threshold) AS mean,
       quantile_cont(threshold, 0.9) AS high
FROM roots
"""

# Gains below -1 stand in the first bin. A control's gain is a random text's ΔI.
_GAINS = """
WITH gains AS (
    SELECT 'retrieved, ΔI' AS series, gain FROM pairs
    UNION ALL SELECT 'retrieved, ΔI*', calibrated_gain FROM pairs
    UNION ALL SELECT 'random, ΔI', (p.entropy::DOUBLE - c.entropy) / p.entropy
    FROM controls AS c
    JOIN pairs AS p ON p.root_id = c.root_id AND p.anchor = c.anchor AND p.rank = 1
    WHERE p.entropy > 0
),
binned AS (
    SELECT series, floor(round(least(greatest(gain, -1), 0.9999) / 0.05, 9))::INT AS bin
    FROM gains WHERE gain IS NOT NULL
)
SELECT series, bin * 0.05 AS low, bin * 0.05 + 0.05 AS high, count(*) AS pairs,
       count(*) / sum(count(*)) OVER (PARTITION BY series) AS share
FROM binned GROUP BY series, bin ORDER BY series, bin
"""

_DISTANCES = """
SELECT 2 ** bin AS low, 2 ** (bin + 1) AS high, count(*) AS dependencies
FROM (SELECT floor(log2(greatest(distance, 1)))::INT AS bin FROM dependencies)
GROUP BY bin ORDER BY bin
"""

_RATES = {
    "rank": "SELECT rank AS low, rank + 1 AS high, root_id, accepted FROM pairs "
    "WHERE entropy_context IS NOT NULL",
    "similarity": "SELECT bin * 0.05 AS low, bin * 0.05 + 0.05 AS high, root_id, accepted FROM "
    "(SELECT *, floor(round(similarity / 0.05, 4))::INT AS bin FROM pairs) "
    "WHERE entropy_context IS NOT NULL",
}

# What lies beyond the edges stands in the bins at the edges.
_CHANGES = """
SELECT entropy_bin * 0.5 AS entropy_low, entropy_bin * 0.5 + 0.5 AS entropy_high,
       surprisal_bin::DOUBLE AS surprisal_low, surprisal_bin + 1.0 AS surprisal_high,
       accepted, count(*) AS pairs
FROM (
    SELECT greatest(-16, least(11, floor((entropy_context - entropy) / 0.5)))::INT AS entropy_bin,
           greatest(-12, least(11, floor(surprisal_context - surprisal)))::INT AS surprisal_bin,
           accepted
    FROM pairs WHERE entropy_context IS NOT NULL
)
GROUP BY ALL ORDER BY ALL
"""


@contextmanager
def open_tables(store: TableStore, shards: Sequence[str]) -> Iterator[duckdb.DuckDBPyConnection]:
    """A session with a view for each of `TABLES`, over all these shards. Raises as `querying`."""
    views: dict[str, View] = {name: (a, list(shards), t) for name, (a, t) in TABLES.items()}
    with querying(store, views) as session:
        session.execute("SET threads = 1")  # sums of floats in one order: the same figures again
        yield session


def rows(session: duckdb.DuckDBPyConnection, query: str, *values: Any) -> Rows:
    """The rows of a query as dictionaries."""
    result = session.execute(query, list(values))
    names = [column[0] for column in result.description]
    return [
        {n: float(v) if isinstance(v, Decimal) else v for n, v in zip(names, row, strict=True)}
        for row in result.fetchall()
    ]


def acceptance(session: duckdb.DuckDBPyConnection, query: str) -> Rows:
    """Share of accepted pairs in each bin, with its 95% interval, roots being the clusters.

    query: rows of (low, high, root_id, accepted).
    """
    counted = rows(
        session,
        "SELECT low, high, count(*) FILTER (accepted) AS passed, count(*) AS total "
        f"FROM ({query}) GROUP BY low, high, root_id ORDER BY low, root_id",
    )
    bins: dict[tuple[float, float], list[tuple[int, int]]] = {}
    for row in counted:
        bins.setdefault((row["low"], row["high"]), []).append((row["passed"], row["total"]))
    result = []
    for (low, high), clusters in bins.items():
        passed_C, total_C = np.array(clusters, np.int64).T
        rate = clustered_rate(passed_C, total_C)
        share = {"share": rate.value, "share_low": rate.low, "share_high": rate.high}
        counts = {"accepted": rate.passed, "scored": rate.total}
        result.append({"low": low, "high": high} | counts | share)
    return result


def distributions(session: duckdb.DuckDBPyConnection) -> dict[str, Rows]:
    """Rows of every chart, by the chart's name."""
    return {
        "entropies": rows(session, _ENTROPIES),
        "thresholds": rows(session, _THRESHOLDS),
        "gains": rows(session, _GAINS),
        "distances": rows(session, _DISTANCES),
        **{name: acceptance(session, query) for name, query in _RATES.items()},
        "changes": rows(session, _CHANGES),
    }
