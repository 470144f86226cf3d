"""Segments, dependencies and anchors of samples, read for a few samples at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import polars as pl

from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.tables import TableStore

DETAILS = {"segments": ("segment",), "dependencies": ("context_start", "anchor_position")}
"""Tables with rows of a sample, and the order of these rows in an export."""

_READ_ROWS = 8192
_SAMPLES_AT_ONCE = 64
"""Number of samples whose rows are joined at once: smaller numbers take longer per sample."""


class _Rows:
    """The rows of one table, taken in the order of the samples."""

    def __init__(self, store: TableStore, shard: str, table: str) -> None:
        self._shard = shard
        self._batches = store.batches(LONG_CONTEXT_SAMPLES, shard, table, rows=_READ_ROWS)
        self._waiting = pl.DataFrame(schema=pl.Schema(LONG_CONTEXT_SAMPLES.schemas[table]))

    def up_to(self, sample_id: str) -> pl.DataFrame:
        """All rows not taken yet of samples up to this one. Raises TableError."""
        parts = [self._waiting]
        while parts[-1].is_empty() or parts[-1]["sample_id"][-1] <= sample_id:
            batch = next(self._batches, None)
            if batch is None:
                break
            parts.append(batch)
        rows = pl.concat(parts)
        if not rows["sample_id"].is_sorted():
            raise _not_in_order(self._shard)
        n = int(rows["sample_id"].search_sorted(sample_id, side="right"))
        self._waiting = rows[n:]
        return rows[:n]


def _not_in_order(shard: str) -> TableError:
    return TableError(
        f"{LONG_CONTEXT_SAMPLES.name}, {shard}: samples are not in order; materialize it again"
    )


def read_details(store: TableStore, shard: str, rows: int) -> Iterator[pl.DataFrame]:
    """Details of the samples of a shard in ascending order, `rows` samples at a time.

    Columns: sample_id; segments and dependencies, structs of lists; anchors, a list of positions in
    the sample. Memory does not grow with the number of samples. Raises TableError if the samples
    are not in order.
    """
    ids = store.read(LONG_CONTEXT_SAMPLES, shard, "samples", ["sample_id"])
    if not ids["sample_id"].is_sorted():
        raise _not_in_order(shard)
    tables = {table: _Rows(store, shard, table) for table in DETAILS}
    roots = store.read(ENTROPY_SCORES, shard, "roots", ["root_id", "anchors"])
    at_once = rows * max(1, _SAMPLES_AT_ONCE // rows)
    for start in range(0, len(ids), at_once):
        details = _details(ids[start : start + at_once], tables, roots)
        for at in range(0, len(details), rows):
            yield details[at : at + rows]


def _details(ids: pl.DataFrame, tables: Mapping[str, _Rows], roots: pl.DataFrame) -> pl.DataFrame:
    """The details of these samples, which follow those of the last call."""
    last = str(ids["sample_id"][-1])
    return join_details(ids, {name: each.up_to(last) for name, each in tables.items()}, roots)


def join_details(
    ids: pl.DataFrame, tables: Mapping[str, pl.DataFrame], roots: pl.DataFrame
) -> pl.DataFrame:
    """The details of these samples, with columns as from `read_details`.

    ids: sample_id, ascending. tables: their rows of `segments` and `dependencies`, as in the tables
    of samples. roots: root_id and anchors, token positions in the root.
    """
    columns = [_grouped(ids, tables[table], table) for table in DETAILS]
    anchors = _anchor_positions(tables["segments"], roots)
    return (
        ids.with_columns(columns)
        .join(anchors, "sample_id", how="left", maintain_order="left")
        .with_columns(pl.col("anchors").fill_null([]))
    )


def _grouped(ids: pl.DataFrame, rows: pl.DataFrame, table: str) -> pl.Series:
    """The rows of each sample as a struct of lists, in the order of the samples."""
    order = DETAILS[table]
    names = rows.columns[1:]
    assert rows.columns[0] == "sample_id"
    # Six decimals keep the JSON short and suffice for float32 values of this size.
    rows = rows.with_columns(pl.selectors.float().cast(pl.Float64).round(6))
    rows = rows.sort("sample_id", *order)
    joined = ids.join(rows, on="sample_id", how="left", maintain_order="left_right")
    has_rows = pl.col(order[0]).is_not_null()  # false only for a sample without such rows
    grouped = joined.group_by("sample_id", maintain_order=True).agg(pl.col(names).filter(has_rows))
    return grouped.select(pl.struct(names)).to_series().alias(table)


def _anchor_positions(segments: pl.DataFrame, roots: pl.DataFrame) -> pl.DataFrame:
    """sample_id and anchors: the positions in the sample of all anchors of its roots, ascending.

    A root can be cut into pieces; its segments follow each other. roots: root_id and anchors.
    """
    pieces = (
        segments.filter(role="root")
        .sort("sample_id", "root_id", "start")
        .with_columns((pl.col("end") - pl.col("start")).alias("length"))
        .with_columns(
            (pl.col("length").cum_sum() - pl.col("length"))
            .over("sample_id", "root_id")
            .alias("offset")
        )
    )
    in_piece = pl.col("anchors") - pl.col("offset")
    return (
        pieces.join(roots, on="root_id")
        .explode("anchors", empty_as_null=False)
        .filter(in_piece.is_between(0, pl.col("length"), closed="left"))
        .select("sample_id", (pl.col("start") + in_piece).cast(pl.Int32).alias("anchors"))
        .sort("sample_id", "anchors")
        .group_by("sample_id", maintain_order=True)
        .agg("anchors")
    )
