"""Two datasets side by side: what differs in settings, counts, acceptance and accepted pairs.

DuckDB counts in each dataset's own tables. The accepted pairs and the roots of both are written to
temporary Parquet files and joined, so that memory stays bounded and the datasets may be in
different stores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np

from entropylong_assets.report.distributions import open_tables, rows
from entropylong_assets.report.recorded_settings import as_text
from entropylong_assets.report.run import RunSource
from entropylong_assets.stages.training_data.manifest import without_secrets
from entropylong_assets.stages.verification.false_acceptance import (
    Rate,
    clustered_rate,
    pooled_false_acceptance,
)
from entropylong_assets.storage import duck
from entropylong_assets.storage.folders import own_folder, temporary_folder


@dataclass(frozen=True)
class Overlap:
    """Distinct items that two datasets have in common, and those that only one of them has."""

    both: int
    only_a: int
    only_b: int

    @property
    def jaccard(self) -> float | None:
        """Number of items in both divided by the number in either; None if neither has any."""
        total = self.both + self.only_a + self.only_b
        return self.both / total if total else None


@dataclass(frozen=True)
class DatasetCounts:
    """Counts of one dataset of a comparison."""

    roots: int
    anchors: int
    resolved_anchors: int
    """Anchors with at least one accepted context."""
    acceptance: Rate
    """Share of scored pairs that the rule in force accepted."""
    false_acceptance: Rate | None
    """Share of held-out controls that the rule in force accepts; None without controls."""
    samples: int
    dependencies: int
    """Dependencies in samples."""
    tokens_by_role: Mapping[str, int]


@dataclass(frozen=True)
class Comparison:
    """Result of `compare_datasets`. A pair is a distinct (root_id, anchor, chunk_id)."""

    names: tuple[str, str]
    a: DatasetCounts
    b: DatasetCounts
    settings: Sequence[tuple[str, str, str]]
    """Recorded settings that differ: dotted path, value of A, value of B."""
    roots: Overlap
    pairs: Overlap
    """Pairs accepted by the rule of their dataset."""
    rejected_by_b: int
    """Pairs accepted only in A that B scored and rejected. B did not score the others."""
    rejected_by_a: int
    """Pairs accepted only in B that A scored and rejected."""

    def rows(self) -> list[tuple[str, str, str]]:
        """Return (name, value of A, value of B) as text: settings that differ, then counts."""
        roles = sorted({*self.a.tokens_by_role, *self.b.tokens_by_role})
        counts = [
            (name, text(self.a), text(self.b))
            for name, text in (*_SHOWN.items(), *((f"tokens: {r}", _tokens_of(r)) for r in roles))
        ]
        return [*self.settings, *counts]

    def overlap_lines(self) -> list[str]:
        """Return sentences on the roots and accepted pairs that the datasets have in common."""
        a, b = self.names if self.names[0] != self.names[1] else ("A", "B")
        jaccard = "–" if self.pairs.jaccard is None else f"{self.pairs.jaccard:.4f}"
        return [
            f"roots: {self.roots.both:,} in both, {self.roots.only_a:,} only in {a}, "
            f"{self.roots.only_b:,} only in {b}",
            f"accepted pairs: {self.pairs.both:,} in both, {self.pairs.only_a:,} only in {a} "
            f"({self.rejected_by_b:,} of them scored and rejected in {b}), {self.pairs.only_b:,} "
            f"only in {b} ({self.rejected_by_a:,} of them scored and rejected in {a}); "
            f"Jaccard index {jaccard}",
        ]


def _share(rate: Rate | None) -> str:
    if rate is None or not rate.total:
        return "–"
    return f"{rate.passed:,}: {rate.as_text()}"


def _tokens_of(role: str) -> Callable[[DatasetCounts], str]:
    def text(counts: DatasetCounts) -> str:
        total, own = sum(counts.tokens_by_role.values()), counts.tokens_by_role.get(role, 0)
        return f"{own:,} ({own / total:.2%})" if total else "0"

    return text


_SHOWN: Mapping[str, Callable[[DatasetCounts], str]] = {
    "roots": lambda counts: f"{counts.roots:,}",
    "anchors": lambda counts: f"{counts.anchors:,}",
    "anchors resolved": lambda counts: f"{counts.resolved_anchors:,}",
    "pairs scored": lambda counts: f"{counts.acceptance.total:,}",
    "pairs accepted": lambda counts: _share(counts.acceptance),
    "random contexts accepted": lambda counts: _share(counts.false_acceptance),
    "samples": lambda counts: f"{counts.samples:,}",
    "dependencies in samples": lambda counts: f"{counts.dependencies:,}",
}


def compare_datasets(a: RunSource, b: RunSource) -> Comparison:
    """Compare two datasets, over one corpus or two, in one store or two.

    Raises TableError if a table is missing or damaged, ConnectionError if a store does not answer.
    """
    with own_folder(temporary_folder(), "comparison-") as folder:
        counts_a, counts_b = _count(a, folder / "a"), _count(b, folder / "b")
        with duck.connect(a.store, {}) as session:
            pairs = _overlap(session, *(folder / side / "pairs.parquet" for side in "ab"))
            roots = _overlap(session, *(folder / side / "roots.parquet" for side in "ab"))
        return Comparison(
            names=(a.name, b.name),
            a=counts_a,
            b=counts_b,
            settings=differing_settings(a, b),
            roots=roots,
            pairs=pairs,
            rejected_by_b=_count_rejected(b, folder / "a" / "pairs.parquet"),
            rejected_by_a=_count_rejected(a, folder / "b" / "pairs.parquet"),
        )


def differing_settings(a: RunSource, b: RunSource) -> list[tuple[str, str, str]]:
    """Return (dotted path, value of A, value of B) of every recorded setting that differs."""
    paths = list(dict.fromkeys([*a.recorded, *b.recorded]))

    def text(source: RunSource, path: str) -> str:
        values = source.recorded.get(path)
        return "not recorded" if values is None else as_text(without_secrets(values))

    differing = []
    if (a.store.uri, a.store.corpus) != (b.store.uri, b.store.corpus):
        differing.append(("corpus", a.store.corpus, b.store.corpus))
    return differing + [
        (path, text(a, path), text(b, path))
        for path in paths
        if a.recorded.get(path) != b.recorded.get(path)
    ]


_COUNTS = """
SELECT
  (SELECT count(*) FROM roots) AS roots,
  (SELECT coalesce(sum(len(anchors)), 0)::BIGINT FROM roots) AS anchors,
  (SELECT count(*) FROM (SELECT DISTINCT root_id, anchor FROM pairs WHERE accepted))
    AS resolved_anchors,
  (SELECT count(*) FROM samples) AS samples,
  (SELECT count(*) FROM dependencies) AS dependencies
"""

_ACCEPTED_BY_ROOT = """
SELECT count(*) FILTER (accepted) AS passed, count(*) AS total
FROM pairs WHERE entropy_context IS NOT NULL GROUP BY root_id ORDER BY root_id
"""

_ROLES = (
    'SELECT role, sum("end" - start)::BIGINT AS tokens FROM segments GROUP BY role ORDER BY role'
)

_COMPARED_ON = {
    "pairs": "SELECT DISTINCT root_id, anchor, chunk_id FROM pairs WHERE accepted",
    "roots": "SELECT DISTINCT root_id FROM roots",
}


def _count(source: RunSource, folder: Path) -> DatasetCounts:
    """Count one dataset, and write its accepted pairs and roots to files in a new folder."""
    folder.mkdir()
    with open_tables(source.store, source.shards) as session:
        counts = rows(session, _COUNTS)[0]
        passed_C, total_C = session.execute(_ACCEPTED_BY_ROOT).fetchnumpy().values()
        roles = {row["role"]: row["tokens"] for row in rows(session, _ROLES)}
        for name, query in _COMPARED_ON.items():
            session.execute(f"COPY ({query}) TO '{_quoted(folder / f'{name}.parquet')}'")
    by_rule = pooled_false_acceptance(source.store, source.shards, source.settings.verification)
    return DatasetCounts(
        **counts,
        acceptance=clustered_rate(passed_C.astype(np.int64), total_C.astype(np.int64)),
        false_acceptance=by_rule.get(source.settings.verification.rule),
        tokens_by_role=roles,
    )


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _overlap(session: duckdb.DuckDBPyConnection, a: Path, b: Path) -> Overlap:
    """Compare two files of distinct rows with the same columns."""
    read_a, read_b = (f"read_parquet('{_quoted(path)}')" for path in (a, b))

    def count(query: str) -> int:
        return int(rows(session, query)[0]["n"])

    n_a, n_b = (count(f"SELECT count(*) AS n FROM {read}") for read in (read_a, read_b))
    both = count(f"SELECT count(*) AS n FROM {read_a} NATURAL JOIN {read_b}")
    return Overlap(both, n_a - both, n_b - both)


def _count_rejected(source: RunSource, accepted: Path) -> int:
    """Count pairs, accepted elsewhere, that this dataset scored and does not accept anywhere."""
    query = f"""
    SELECT count(*) AS n
    FROM (
        SELECT root_id, anchor, chunk_id
        FROM pairs SEMI JOIN read_parquet('{_quoted(accepted)}') USING (root_id, anchor, chunk_id)
        WHERE entropy_context IS NOT NULL
        GROUP BY ALL HAVING NOT bool_or(accepted)
    )
    """
    with open_tables(source.store, source.shards) as session:
        return int(rows(session, query)[0]["n"])
