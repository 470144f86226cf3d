"""The inputs of a shard's samples, read for a few roots at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import duckdb
import polars as pl

from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.samples.groups import no_such_root
from entropylong_assets.stages.samples.registry import IN_FORCE
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage import duck
from entropylong_assets.storage.tables import TableStore

_PAIRS = "SELECT pairs.* FROM pairs SEMI JOIN wanted USING (root_id)"
_WITH_EVIDENCE = f"""
SELECT p.*, kind, token_start, token_end FROM ({_PAIRS}) AS p
LEFT JOIN evidence USING (root_id, anchor, chunk_id)
"""
_CONTEXTS = f"""
WITH mine AS (SELECT DISTINCT chunk_id FROM ({_PAIRS}))
SELECT chunk_id, doc_id, source, token_ids FROM contexts SEMI JOIN mine USING (chunk_id)
"""


_NO_EVIDENCE = pl.DataFrame(schema=pl.Schema(VERIFIED_DEPENDENCIES.schemas["evidence"]))


class ShardTables:
    """Roots, pairs and contexts of one shard, over views of these names."""

    def __init__(self, session: duckdb.DuckDBPyConnection) -> None:
        self._session = session

    def _rows(
        self, query: str, params: dict[str, Any] | None = None, **frames: pl.DataFrame
    ) -> pl.DataFrame:
        for name, frame in frames.items():
            self._session.register(name, frame.to_arrow())
        rows = pl.from_arrow(self._session.sql(query, params=params).to_arrow_table())
        assert isinstance(rows, pl.DataFrame)
        return rows

    def root_ids(self) -> list[str]:
        """Return all root_ids, sorted. Raises SampleError if a pair has no root."""
        orphans = self._rows("SELECT root_id FROM pairs ANTI JOIN roots USING (root_id) LIMIT 1")
        for (root_id,) in orphans.iter_rows():
            raise no_such_root(root_id)
        return self._rows("SELECT DISTINCT root_id FROM roots ORDER BY root_id")[
            "root_id"
        ].to_list()

    def of(self, root_ids: Sequence[str]) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        """Return roots (root_id, token_ids), pairs and contexts of these roots, in any order.

        Pairs have the columns of `groups.EVIDENCE`, null without an evidence span.
        """
        wanted = pl.DataFrame({"root_id": root_ids}, schema={"root_id": pl.String})
        roots = self._rows(
            "SELECT root_id, token_ids FROM roots SEMI JOIN wanted USING (root_id)", wanted=wanted
        )
        return roots, self._rows(_WITH_EVIDENCE), self._rows(_CONTEXTS)

    def among_contexts(self, chunk_ids: Sequence[str]) -> set[str]:
        """Return those of these chunks that were scored for any root."""
        given = pl.DataFrame({"chunk_id": chunk_ids}, schema={"chunk_id": pl.String})
        query = "SELECT DISTINCT chunk_id FROM contexts SEMI JOIN given USING (chunk_id)"
        return set(self._rows(query, given=given)["chunk_id"])

    def count_pairs(self, with_value: str | None = None) -> int:
        """Count all pairs, or those in which a column has a value."""
        counted = "*" if with_value is None else f'"{with_value}"'
        return int(self._rows(f"SELECT count({counted}) AS n FROM pairs")["n"][0])

    def count_accepted(self, rule: str) -> int:
        """Count the pairs that a rule accepts, or the rule in force."""
        if rule == IN_FORCE:
            rows = self._rows("SELECT count(*) AS n FROM pairs WHERE accepted")
        else:
            query = "SELECT count(*) AS n FROM pairs WHERE list_contains(accepted_by, $rule)"
            rows = self._rows(query, {"rule": rule})
        return int(rows["n"][0])


@contextmanager
def open_tables(store: TableStore, views: duck.Views) -> Iterator[ShardTables]:
    """Open the tables. views: of `roots`, `pairs`, `contexts` and, if there are any, `evidence`.

    Raises as `duck.querying`.
    """
    with duck.querying(store, {"evidence": _NO_EVIDENCE, **views}) as session:
        yield ShardTables(session)


def stored(shard: str) -> dict[str, duck.View]:
    """The views of a shard that was scored and verified."""
    return {
        "roots": (ENTROPY_SCORES, [shard], "roots"),
        "pairs": (VERIFIED_DEPENDENCIES, [shard], "pairs"),
        "contexts": (VERIFIED_DEPENDENCIES, [shard], "contexts"),
        "evidence": (VERIFIED_DEPENDENCIES, [shard], "evidence"),
    }
