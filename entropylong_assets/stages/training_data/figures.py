"""Figures of the datasheet, from the tables of the exported shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from entropylong_assets.settings.model import Settings
from entropylong_assets.stages.verification.false_acceptance import (
    clustered_rate,
    held_out_controls,
)
from entropylong_assets.stages.verification.gain import judge
from entropylong_assets.storage.duck import View, querying
from entropylong_assets.storage.tables import TableStore

_TABLES = {
    "documents": ("corpus_documents", "documents"),
    "roots": ("entropy_scores", "roots"),
    "candidates": ("candidate_contexts", "candidates"),
    "pairs": ("verified_dependencies", "pairs"),
    "samples": ("long_context_samples", "samples"),
    "segments": ("long_context_samples", "segments"),
    "dependencies": ("long_context_samples", "dependencies"),
}

_COUNTS = """
SELECT
  (SELECT count(*) FROM documents) AS documents,
  (SELECT count(*) FROM documents WHERE is_root) AS roots,
  (SELECT count(*) FROM roots) AS roots_scored,
  (SELECT coalesce(sum(len(anchors)), 0)::BIGINT FROM roots) AS anchors,
  (SELECT count(*) FROM candidates) AS candidates,
  (SELECT count(*) FROM candidates WHERE guard = 'near_duplicate') AS near_duplicates_refused,
  (SELECT count(*) FROM samples) AS samples,
  (SELECT count(*) FROM dependencies) AS dependencies
"""

# Of pairs that were scored; gains and surprisals are of those accepted by the rule in force.
_PAIRS = """
SELECT
  count(*) AS pairs_scored,
  count(*) FILTER (accepted) AS pairs_accepted,
  count(*) FILTER (accepted_plain) AS pairs_accepted_plain,
  count(*) FILTER (accepted_calibrated) AS pairs_accepted_calibrated,
  count(*) FILTER (accepted) / nullif(count(*), 0) AS acceptance_rate,
  avg(gain::DOUBLE) FILTER (accepted) AS mean_gain,
  avg(calibrated_gain::DOUBLE) FILTER (accepted) AS mean_calibrated_gain,
  avg(surprisal::DOUBLE - surprisal_context) FILTER (accepted) AS mean_surprisal_drop_nats,
  count(*) FILTER (accepted AND surprisal_context > surprisal)
    / nullif(count(*) FILTER (accepted), 0) AS accepted_with_surprisal_rise
FROM pairs WHERE entropy_context IS NOT NULL
"""

_PER_ROOT = """
SELECT avg(n) AS mean, median(n) AS median, max(n) AS max
FROM (SELECT count(*) AS n FROM dependencies GROUP BY root_id)
"""

_DISTANCES = """
SELECT
  quantile_cont(distance, 0.5) AS median,
  quantile_cont(distance, 0.9) AS p90,
  max(distance) AS max,
  count(*) FILTER (distance > 32768) / nullif(count(*), 0) AS share_beyond_32k,
  count(*) FILTER (distance > 65536) / nullif(count(*), 0) AS share_beyond_64k
FROM dependencies
"""

_ROLES = (
    'SELECT role, sum("end" - start)::BIGINT AS tokens FROM segments GROUP BY role ORDER BY role'
)

_SOURCES = """
SELECT source, sum("end" - start)::BIGINT AS tokens FROM segments
WHERE source IS NOT NULL GROUP BY source ORDER BY source
"""

_LICENSES = """
SELECT source, license, count(*) AS documents FROM documents
GROUP BY source, license ORDER BY source, license
"""


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


def chance_rates(store: TableStore, shards: Sequence[str], settings: Settings) -> dict[str, Any]:
    """Share of held-out controls that pass each rule over all shards, with its 95% interval."""
    passed: dict[str, list[np.ndarray]] = {"plain": [], "calibrated": []}
    totals: list[np.ndarray] = []
    for shard in shards:
        columns = ["root_id", "anchor", "entropy", "surprisal"]
        anchors = store.read("verified_dependencies", shard, "pairs", columns).unique()
        controls = store.read("verified_dependencies", shard, "controls")
        judged = judge(held_out_controls(anchors, controls), settings.verification)
        groups = judged.select("root_id", "accepted_plain", "accepted_calibrated").sort("root_id")
        by_root = groups.group_by("root_id", maintain_order=True)
        counts = by_root.sum().join(by_root.len("total"), on="root_id", maintain_order="left")
        totals.append(counts["total"].to_numpy().astype(np.int64))
        for rule, parts in passed.items():
            parts.append(counts[f"accepted_{rule}"].to_numpy().astype(np.int64))
    rates = {}
    for rule, parts in passed.items():
        rate = clustered_rate(np.concatenate(parts), np.concatenate(totals))
        if rate.total:
            values = {"rate": rate.value, "low": rate.low, "high": rate.high}
            rates[rule] = {name: round(value, 6) for name, value in values.items()}
            rates[rule]["trials"] = rate.total
    return rates


def dataset_figures(store: TableStore, shards: Sequence[str], settings: Settings) -> dict[str, Any]:
    """All figures, as JSON values: shares from 0 to 1, gains and distances as in the tables,
    entropies and surprisals in nats, distances in tokens.

    Raises TableError where a table of a shard is not there or damaged, ConnectionError where the
    store gives no answer.
    """
    views: dict[str, View] = {name: (a, shards, t) for name, (a, t) in _TABLES.items()}
    with querying(store, views) as session:
        session.execute("SET threads = 1")  # sums of floats in one order: the same figures again

        def rows(query: str) -> list[dict[str, Any]]:
            result = session.execute(query)
            names = [column[0] for column in result.description]
            return [
                {n: _rounded(v) for n, v in zip(names, row, strict=True)}
                for row in result.fetchall()
            ]

        figures = rows(_COUNTS)[0] | rows(_PAIRS)[0]
        figures["dependencies_per_root"] = rows(_PER_ROOT)[0]
        figures["distance_tokens"] = rows(_DISTANCES)[0]
        tokens = {row["role"]: row["tokens"] for row in rows(_ROLES)}
        sources = {row["source"]: row["tokens"] for row in rows(_SOURCES)}
        licenses: dict[str, dict[str, int]] = {}
        for row in rows(_LICENSES):
            licenses.setdefault(row["source"], {})[row["license"]] = row["documents"]
    # A context may come from a source of which no shard is exported.
    for source in settings.corpus.sources:
        if source.name in sources:
            licenses.setdefault(source.name, {source.license: 0})
    total = sum(tokens.values())
    return figures | {
        "tokens": total,
        "tokens_by_role": tokens,
        "share_by_role": {role: round(n / total, 6) for role, n in tokens.items()},
        "tokens_by_source": sources,
        "licenses": licenses,
        "false_acceptance": chance_rates(store, shards, settings),
    }
