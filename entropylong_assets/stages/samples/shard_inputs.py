"""What samples are made of, read for a few roots at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import duckdb
import polars as pl

from entropylong_assets.stages.samples.groups import SampleError
from entropylong_assets.storage import duck
from entropylong_assets.storage.tables import TableStore

_PAIRS = "SELECT pairs.* FROM pairs SEMI JOIN wanted USING (root_id)"
_CONTEXTS = f"""
WITH mine AS (SELECT DISTINCT chunk_id FROM ({_PAIRS}))
SELECT chunk_id, doc_id, source, token_ids FROM contexts SEMI JOIN mine USING (chunk_id)
"""


class ShardTables:
    """Roots, pairs and contexts of one shard, over views of these names."""

    def __init__(self, session: duckdb.DuckDBPyConnection) -> None:
        self._session = session

    def _rows(self, query: str, **frames: pl.DataFrame) -> pl.DataFrame:
        for name, frame in frames.items():
            self._session.register(name, frame.to_arrow())
        found = pl.from_arrow(self._session.sql(query).to_arrow_table())
        assert isinstance(found, pl.DataFrame)
        return found

    def root_ids(self) -> list[str]:
        """All roots, sorted. Raises SampleError where a pair has none."""
        orphans = self._rows("SELECT root_id FROM pairs ANTI JOIN roots USING (root_id) LIMIT 1")
        for (root_id,) in orphans.iter_rows():
            raise SampleError(
                f"root {root_id}: scored pairs, but no row in entropy_scores.roots; materialise "
                "verified_dependencies again"
            )
        return self._rows("SELECT DISTINCT root_id FROM roots ORDER BY root_id")[
            "root_id"
        ].to_list()

    def of(self, root_ids: Sequence[str]) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        """roots (root_id, token_ids), pairs and contexts of these roots, in any order."""
        wanted = pl.DataFrame({"root_id": root_ids}, schema={"root_id": pl.String})
        roots = self._rows(
            "SELECT root_id, token_ids FROM roots SEMI JOIN wanted USING (root_id)", wanted=wanted
        )
        return roots, self._rows(_PAIRS), self._rows(_CONTEXTS)

    def among_contexts(self, chunk_ids: Sequence[str]) -> set[str]:
        """Those of these chunks that were scored for any root."""
        asked = pl.DataFrame({"chunk_id": chunk_ids}, schema={"chunk_id": pl.String})
        query = "SELECT DISTINCT chunk_id FROM contexts SEMI JOIN asked USING (chunk_id)"
        return set(self._rows(query, asked=asked)["chunk_id"])

    def count(self, condition: str) -> int:
        """Pairs for which a condition on their columns holds; of the code's own, not a user's."""
        return int(self._rows(f"SELECT count(*) AS n FROM pairs WHERE {condition}")["n"][0])


@contextmanager
def open_tables(store: TableStore, views: Mapping[str, Any]) -> Iterator[ShardTables]:
    """views: where `roots`, `pairs` and `contexts` are to be had. Raises as `duck.querying`."""
    with duck.querying(store, views) as session:
        yield ShardTables(session)


def stored(shard: str) -> dict[str, duck.View]:
    """The views of a shard that was scored and verified."""
    return {
        "roots": ("entropy_scores", [shard], "roots"),
        "pairs": ("verified_dependencies", [shard], "pairs"),
        "contexts": ("verified_dependencies", [shard], "contexts"),
    }
