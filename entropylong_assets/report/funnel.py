"""The funnel from rows of the sources to dependencies in samples, with the reason of every drop."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import duckdb

from entropylong_assets.report.distributions import rows


@dataclass(frozen=True)
class Step:
    """One step of the funnel: how many units entered, were kept, and were dropped by reason."""

    name: str
    unit: str
    """What is counted, e.g. `pairs`."""
    entered: int
    kept: int
    dropped: dict[str, int]

    @property
    def unexplained(self) -> int:
        """Units that disappeared without a reason; 0 if the tables are sound."""
        return self.entered - self.kept - sum(self.dropped.values())

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"unexplained": self.unexplained}


_COUNTS = """
SELECT
  (SELECT count(*) FROM documents) AS documents,
  (SELECT sum(drawn)::BIGINT FROM draws) AS drawn,
  (SELECT sum(not_drawn)::BIGINT FROM draws) AS not_drawn,
  (SELECT count(*) FROM roots) AS scored,
  (SELECT coalesce(sum(len(anchors)), 0)::BIGINT FROM roots) AS anchors,
  (SELECT coalesce(sum(len(by_surprisal)), 0)::BIGINT FROM roots) AS by_surprisal,
  (SELECT count(*) FROM (SELECT DISTINCT root_id, anchor FROM pairs)) AS anchors_nominated,
  (SELECT count(*) FROM (SELECT DISTINCT root_id, anchor FROM pairs WHERE accepted))
    AS anchors_resolved,
  (SELECT count(*) FROM pairs) AS pairs,
  (SELECT count(*) FROM pairs WHERE entropy_context IS NOT NULL) AS pairs_scored,
  (SELECT count(*) FROM pairs WHERE accepted) AS accepted,
  (SELECT count(DISTINCT root_id) FROM segments WHERE role = 'root') AS roots_packed,
  (SELECT count(*) FROM dependencies) AS packed
"""

_POSITIONS = """
SELECT count(h) AS positions, count(*) FILTER (h > threshold) AS above
FROM (SELECT unnest(entropies) AS h, threshold FROM roots)
"""

_REASONS = {
    "documents": "SELECT reason, count(*) AS n FROM documents_dropped GROUP BY reason",
    "roots": "SELECT reason, count(*) AS n FROM roots_dropped GROUP BY reason",
    "anchors": "SELECT reason, sum(n_anchors)::BIGINT AS n FROM anchors_dropped GROUP BY reason",
    "not_scored": "SELECT verdict AS reason, count(*) AS n FROM pairs "
    "WHERE entropy_context IS NULL GROUP BY verdict",
    "rejected": "SELECT verdict AS reason, count(*) AS n FROM pairs "
    "WHERE entropy_context IS NOT NULL AND NOT accepted GROUP BY verdict",
    "packing": "SELECT reason, count(*) AS n FROM samples_dropped "
    "WHERE chunk_id IS NULL GROUP BY reason",
    "dependencies": "SELECT reason, sum(n_dependencies)::BIGINT AS n FROM samples_dropped "
    "WHERE n_dependencies > 0 GROUP BY reason",
}


def funnel(session: duckdb.DuckDBPyConnection) -> list[Step]:
    """Return all steps in the order in which data flows.

    session: opened by `distributions.open_tables`.
    """
    n = rows(session, _COUNTS)[0] | rows(session, _POSITIONS)[0]
    dropped = {
        name: {row["reason"]: row["n"] for row in rows(session, f"{query} ORDER BY reason")}
        for name, query in _REASONS.items()
    }

    def if_any(reason: str, count: int) -> dict[str, int]:
        return {reason: count} if count else {}

    read = n["documents"] + sum(dropped["documents"].values())
    return [
        Step("read", "rows", read, n["documents"], dropped["documents"]),
        Step(
            "drawn as roots",
            "documents",
            n["documents"],
            n["drawn"],
            if_any("not drawn; can be contexts", n["not_drawn"]),
        ),
        Step("scored", "roots", n["drawn"], n["scored"], dropped["roots"]),
        Step(
            "anchors",
            "positions",
            n["positions"],
            n["anchors"],
            if_any("entropy not above τ", n["positions"] - n["above"] - n["by_surprisal"])
            | if_any(
                "above τ, but at the cold start", n["above"] + n["by_surprisal"] - n["anchors"]
            ),
        ),
        Step(
            "with candidates", "anchors", n["anchors"], n["anchors_nominated"], dropped["anchors"]
        ),
        Step("scored", "pairs", n["pairs"], n["pairs_scored"], dropped["not_scored"]),
        Step("accepted", "pairs", n["pairs_scored"], n["accepted"], dropped["rejected"]),
        Step(
            "resolved",
            "anchors",
            n["anchors_nominated"],
            n["anchors_resolved"],
            if_any("no candidate accepted", n["anchors_nominated"] - n["anchors_resolved"]),
        ),
        Step("packed", "roots", n["scored"], n["roots_packed"], dropped["packing"]),
        Step("packed", "dependencies", n["accepted"], n["packed"], dropped["dependencies"]),
    ]
