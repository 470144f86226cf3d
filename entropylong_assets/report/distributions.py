"""Counts for the report's charts, computed by DuckDB so that memory does not grow with the pairs.

A histogram is a list of rows with the lower and upper edge of each bin. Entropies and surprisals
are in nats, distances in tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import duckdb
import numpy as np
import polars as pl

from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.verification.false_acceptance import clustered_rate
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.duck import View, querying
from entropylong_assets.storage.schemas import TableSet
from entropylong_assets.storage.tables import TableStore

Rows = list[dict[str, Any]]

VIEWS: dict[str, tuple[TableSet[Any], str]] = {
    "documents": (CORPUS_DOCUMENTS, "documents"),
    "documents_dropped": (CORPUS_DOCUMENTS, "dropped"),
    "roots": (ENTROPY_SCORES, "roots"),
    "roots_dropped": (ENTROPY_SCORES, "dropped"),
    "candidates": (CANDIDATE_CONTEXTS, "candidates"),
    "passages": (CANDIDATE_CONTEXTS, "chunks"),
    "anchors_dropped": (CANDIDATE_CONTEXTS, "dropped"),
    "pairs": (VERIFIED_DEPENDENCIES, "pairs"),
    "controls": (VERIFIED_DEPENDENCIES, "controls"),
    "samples": (LONG_CONTEXT_SAMPLES, "samples"),
    "segments": (LONG_CONTEXT_SAMPLES, "segments"),
    "dependencies": (LONG_CONTEXT_SAMPLES, "dependencies"),
    "samples_dropped": (LONG_CONTEXT_SAMPLES, "dropped"),
}
"""Tables that the report queries, by the name of their view."""

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

# Gains below -1 are counted in the first bin. The gain of a control is the ΔI of a random text.
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

# Values beyond the edges are counted in the bins at the edges.
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


_DRAWS = ("documents", "drawn", "not_drawn")


def _draws(store: TableStore, shards: Sequence[str]) -> pl.DataFrame:
    """Documents per shard, and how many of them were drawn as roots; one row per shard."""
    rows = [
        {name: getattr(store.summary(ENTROPY_SCORES, shard), name) for name in _DRAWS}
        for shard in shards
    ]
    return pl.DataFrame(rows, schema=dict.fromkeys(_DRAWS, pl.Int64))


@contextmanager
def open_tables(store: TableStore, shards: Sequence[str]) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a session with the views of `VIEWS` over these shards.

    The view `draws` has the documents of each shard and how many of them the draw of roots
    selected. Raises the errors of `querying`.
    """
    views: dict[str, View] = {name: (t, list(shards), table) for name, (t, table) in VIEWS.items()}
    with querying(store, views | {"draws": _draws(store, shards)}) as session:
        session.execute("SET threads = 1")  # floats are summed in one order: repeatable figures
        yield session


def rows(session: duckdb.DuckDBPyConnection, query: str, *values: Any) -> Rows:
    """Return the rows of a query as dictionaries."""
    result = session.execute(query, list(values))
    names = [column[0] for column in result.description]
    return [
        {n: float(v) if isinstance(v, Decimal) else v for n, v in zip(names, row, strict=True)}
        for row in result.fetchall()
    ]


def acceptance(session: duckdb.DuckDBPyConnection, query: str) -> Rows:
    """Return the share of accepted pairs in each bin, with its 95% interval clustered by root.

    query: selects (low, high, root_id, accepted).
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
    """Return the rows of each chart by its name."""
    return {
        "entropies": rows(session, _ENTROPIES),
        "thresholds": rows(session, _THRESHOLDS),
        "gains": rows(session, _GAINS),
        "distances": rows(session, _DISTANCES),
        **{name: acceptance(session, query) for name, query in _RATES.items()},
        "changes": rows(session, _CHANGES),
    }
