"""Samples as the writers of all formats take them: one at a time, in a fixed order.

Legend: T tokens of a sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from entropylong_assets.storage.tables import TableError, TableStore

ASSET = "long_context_samples"
READ_ROWS = 16
"""Samples read at once (8 MiB of tokens at 131,072)."""


@dataclass(frozen=True, eq=False)
class Sample:
    """token_ids_T: uint32. segments, dependencies: columns of these tables, rows in order."""

    sample_id: str
    shard: str
    token_ids_T: NDArray[np.uint32]
    segments: dict[str, list[Any]]
    dependencies: dict[str, list[Any]]

    @property
    def domain(self) -> str:
        """The source of its roots: a shard's key is `<source>-<nnnnn>`."""
        return domain_of(self.shard)

    @property
    def loss_mask(self) -> NDArray[np.uint8]:
        """1 where a token is learnt, 0 at padding."""
        mask_T = np.ones(len(self.token_ids_T), np.uint8)
        columns = (self.segments[name] for name in ("role", "start", "end"))
        for role, start, end in zip(*columns, strict=True):
            if role == "padding":
                mask_T[start:end] = 0
        return mask_T

    def weights(self, anchor_weight: float) -> NDArray[np.float32]:
        """`anchor_weight` at positions that a context resolves, 0 at padding, else 1."""
        weights_T = self.loss_mask.astype(np.float32)
        weights_T[self.dependencies["anchor_position"]] = anchor_weight
        return weights_T


def domain_of(shard: str) -> str:
    return shard.rpartition("-")[0] or shard


def export_order(shards: Sequence[str]) -> list[str]:
    """Shards by source, then number, so that one source's files are written together."""
    return sorted(set(shards), key=lambda shard: (domain_of(shard), shard))


def _details(store: TableStore, shard: str, ids: pl.DataFrame) -> pl.DataFrame:
    """Segments and dependencies of each sample as columns of lists, in the order of `ids`."""
    for table, order in (
        ("segments", ["segment"]),
        ("dependencies", ["context_start", "anchor_position"]),
    ):
        rows = store.read(ASSET, shard, table).sort("sample_id", *order)
        floats = pl.selectors.float().cast(pl.Float64).round(6)  # as short text in JSON
        columns = pl.struct(pl.all().exclude("sample_id")).alias(table)
        grouped = rows.with_columns(floats).group_by("sample_id").agg(columns)
        ids = ids.join(grouped, on="sample_id", how="left", maintain_order="left")
    return ids


def _columns(rows: pl.Series | None) -> dict[str, list[Any]]:
    return {} if rows is None else rows.struct.unnest().to_dict(as_series=False)


def iterate_samples(store: TableStore, shards: Sequence[str]) -> Iterator[Sample]:
    """All samples of these shards, by source, shard and id, in bounded memory.

    Raises TableError where a sample's tokens and segments don't match.
    """
    for shard in export_order(shards):
        ids = store.read(ASSET, shard, "samples", ["sample_id"])
        if not ids["sample_id"].is_sorted():
            raise TableError(f"{ASSET}, {shard}: samples are not in order; materialise it again")
        details = _details(store, shard, ids)
        at = 0
        for batch in store.batches(
            ASSET, shard, "samples", ["sample_id", "input_ids"], rows=READ_ROWS
        ):
            tokens = batch["input_ids"].explode(empty_as_null=False).to_numpy()
            ends = batch["input_ids"].list.len().cast(pl.Int64).cum_sum().to_list()
            start = 0
            for sample_id, end in zip(batch["sample_id"], ends, strict=True):
                segments = details["segments"][at]
                if segments is None or segments.struct.field("end").max() != end - start:
                    raise TableError(
                        f"{ASSET}, {shard}: segments of {sample_id} don't cover its tokens; "
                        "materialise it again"
                    )
                yield Sample(
                    sample_id=sample_id,
                    shard=shard,
                    token_ids_T=tokens[start:end],
                    segments=_columns(segments),
                    dependencies=_columns(details["dependencies"][at]),
                )
                start, at = end, at + 1
