"""The funnel from rows of the sources to dependencies in samples, with every reason of loss."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import duckdb

from entropylong_assets.report.distributions import rows


@dataclass(frozen=True)
class Step:
    """`came` in, `stayed`, and what was lost under each reason. `unit`: of these counts."""

    name: str
    unit: str
    came: int
    stayed: int
    lost: dict[str, int]

    @property
    def unexplained(self) -> int:
        """0, unless something disappeared without a reason."""
        return self.came - self.stayed - sum(self.lost.values())

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"unexplained": self.unexplained}


_COUNTS = """
SELECT
  (SELECT count(*) FROM documents) AS documents,
  (SELECT count(*) FROM documents WHERE is_root) AS chosen,
  (SELECT count(*) FROM roots) AS scored,
  (SELECT coalesce(sum(len(anchors)), 0)::BIGINT FROM roots) AS anchors,
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
    "refused": "SELECT verdict AS reason, count(*) AS n FROM pairs "
    "WHERE entropy_context IS NULL GROUP BY verdict",
    "failed": "SELECT verdict AS reason, count(*) AS n FROM pairs "
    "WHERE entropy_context IS NOT NULL AND NOT accepted GROUP BY verdict",
    "packing": "SELECT reason, count(*) AS n FROM samples_dropped "
    "WHERE chunk_id IS NULL GROUP BY reason",
    "dependencies": "SELECT reason, sum(n_dependencies)::BIGINT AS n FROM samples_dropped "
    "WHERE n_dependencies > 0 GROUP BY reason",
}


def funnel(session: duckdb.DuckDBPyConnection) -> list[Step]:
    """All steps in the order in which data flows. session: of `distributions.open_tables`."""
    n = rows(session, _COUNTS)[0] | rows(session, _POSITIONS)[0]
    lost = {
        name: {row["reason"]: row["n"] for row in rows(session, f"{query} ORDER BY reason")}
        for name, query in _REASONS.items()
    }

    def left(reason: str, count: int) -> dict[str, int]:
        return {reason: count} if count else {}

    read = n["documents"] + sum(lost["documents"].values())
    return [
        Step("read", "rows", read, n["documents"], lost["documents"]),
        Step(
            "chosen as roots",
            "documents",
            n["documents"],
            n["chosen"],
            left("in the pool of contexts only", n["documents"] - n["chosen"]),
        ),
        Step("scored", "roots", n["chosen"], n["scored"], lost["roots"]),
        Step(
            "anchors",
            "positions",
            n["positions"],
            n["anchors"],
            left("entropy not above τ", n["positions"] - n["above"])
            | left("above τ, but at the cold start", n["above"] - n["anchors"]),
        ),
        Step("with candidates", "anchors", n["anchors"], n["anchors_nominated"], lost["anchors"]),
        Step("scored", "pairs", n["pairs"], n["pairs_scored"], lost["refused"]),
        Step("accepted", "pairs", n["pairs_scored"], n["accepted"], lost["failed"]),
        Step(
            "resolved",
            "anchors",
            n["anchors_nominated"],
            n["anchors_resolved"],
            left("no candidate accepted", n["anchors_nominated"] - n["anchors_resolved"]),
        ),
        Step("packed", "roots", n["scored"], n["roots_packed"], lost["packing"]),
        Step("packed", "dependencies", n["accepted"], n["packed"], lost["dependencies"]),
    ]
