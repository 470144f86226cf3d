"""Reading the rows of a table that satisfy a condition, without keeping the others in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from entropylong_assets.storage.schemas import TableSet
from entropylong_assets.storage.tables import TableStore

_ROWS_PER_BATCH = 50_000


def read_rows(
    store: TableStore, tables: TableSet[Any], shards: Sequence[str], table: str, condition: pl.Expr
) -> pl.DataFrame:
    """Return the rows of these shards for which `condition` is true, in their order.

    Raises TableError if a table is missing or damaged.
    """
    empty = pl.DataFrame(schema=pl.Schema(tables.schemas[table]))
    batches = (
        batch.filter(condition)
        for shard in shards
        for batch in store.batches(tables, shard, table, rows=_ROWS_PER_BATCH)
    )
    return pl.concat([empty, *batches])
