"""Samples as the writers of all formats take them: one at a time, in a fixed order.

Legend: T tokens of a sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from entropylong_assets.storage.tables import TableError, TableStore

ASSET = "long_context_samples"
READ_ROWS = 16
"""Samples read at once (8 MiB of tokens at 131,072)."""

_Item = TypeVar("_Item")

_ORDER = {"segments": ("segment",), "dependencies": ("context_start", "anchor_position")}


@dataclass(frozen=True, eq=False)
class Sample:
    """token_ids_T: uint32. details: one row, `segments` and `dependencies`, each a struct of
    lists (the columns of these tables without sample_id). provenance: the same with sample_id and
    shard as JSON, where it was asked for. padding: spans kept from the loss. anchors: positions
    that a context resolves.
    """

    sample_id: str
    shard: str
    token_ids_T: NDArray[np.uint32]
    details: pl.DataFrame
    provenance: str | None
    padding: Sequence[tuple[int, int]]
    anchors: Sequence[int]

    @property
    def domain(self) -> str:
        """The source of its roots: a shard's key is `<source>-<nnnnn>`."""
        return domain_of(self.shard)

    @property
    def loss_mask(self) -> NDArray[np.uint8]:
        """[T], 1 where a token is learnt, 0 at padding."""
        mask_T = np.ones(len(self.token_ids_T), np.uint8)
        for start, end in self.padding:
            mask_T[start:end] = 0
        return mask_T

    def weights(self, anchor_weight: float) -> NDArray[np.float32]:
        """[T], `anchor_weight` at anchors, 0 at padding, else 1."""
        weights_T = self.loss_mask.astype(np.float32)
        weights_T[self.anchors] = anchor_weight
        return weights_T


def domain_of(shard: str) -> str:
    return shard.rpartition("-")[0] or shard


def export_order(shards: Sequence[str]) -> list[str]:
    """Shards by source, then number, so that one source's files are written together."""
    return sorted(set(shards), key=lambda shard: (domain_of(shard), shard))


def _details(store: TableStore, shard: str) -> pl.DataFrame:
    """One row a sample, in the order of the samples: sample_id, segments, dependencies."""
    ids = details = store.read(ASSET, shard, "samples", ["sample_id"])
    if not ids["sample_id"].is_sorted():
        raise TableError(f"{ASSET}, {shard}: samples are not in order; materialise it again")
    for table, order in _ORDER.items():
        rows = store.read(ASSET, shard, table).sort("sample_id", *order)
        names = rows.columns[1:]
        assert rows.columns[0] == "sample_id"
        # Six decimals are short in JSON and as exact as float32 needs here.
        rows = rows.with_columns(pl.selectors.float().cast(pl.Float64).round(6))
        joined = ids.join(rows, on="sample_id", how="left", maintain_order="left_right")
        there = pl.col(order[0]).is_not_null()  # false only for a sample without such rows
        grouped = joined.group_by("sample_id", maintain_order=True).agg(pl.col(names).filter(there))
        details = details.with_columns(grouped.select(pl.struct(names)).to_series().alias(table))
    return details


def _batch(
    details: pl.DataFrame, batch: pl.DataFrame, shard: str, provenance: bool
) -> list[Sample]:
    """Samples of one batch of tokens and the rows of `details` that belong to it."""
    segments, dependencies = (pl.col(table).struct for table in _ORDER)
    is_padding = segments.field("role").list.eval(pl.element() == "padding")
    names = pl.struct("sample_id", pl.lit(shard).alias("shard"), *_ORDER)
    columns: dict[str, list[Any]] = details.select(
        segments.field("end").list.max().alias("length"),
        is_padding.alias("is_padding"),
        segments.field("start"),
        segments.field("end"),
        dependencies.field("anchor_position"),
        (names.struct.json_encode() if provenance else pl.lit(None)).alias("provenance"),
    ).to_dict(as_series=False)
    lengths = batch["input_ids"].list.len().cast(pl.Int64)
    if lengths.to_list() != columns["length"] or not batch["sample_id"].equals(
        details["sample_id"]
    ):
        raise TableError(
            f"{ASSET}, {shard}: segments don't cover the samples' tokens; materialise it again"
        )
    rows = details.select(*_ORDER)
    tokens = batch["input_ids"].explode(empty_as_null=False).to_numpy()
    ends = lengths.cum_sum().to_list()
    return [
        Sample(
            sample_id=sample_id,
            shard=shard,
            token_ids_T=tokens[ends[i] - columns["length"][i] : ends[i]],
            details=rows[i],
            provenance=columns["provenance"][i],
            padding=[
                span
                for span, padded in zip(
                    zip(columns["start"][i], columns["end"][i], strict=True),
                    columns["is_padding"][i],
                    strict=True,
                )
                if padded
            ],
            anchors=columns["anchor_position"][i],
        )
        for i, sample_id in enumerate(batch["sample_id"])
    ]


def _batches(store: TableStore, shards: Sequence[str], provenance: bool) -> Iterator[list[Sample]]:
    for shard in export_order(shards):
        details, at = _details(store, shard), 0
        columns = ["sample_id", "input_ids"]
        for batch in _ahead(store.batches(ASSET, shard, "samples", columns, rows=READ_ROWS)):
            yield _batch(details[at : at + len(batch)], batch, shard, provenance)
            at += len(batch)


def _ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """The same items; the next one is made in a thread while this one is used."""
    with ThreadPoolExecutor(1) as maker:
        coming = maker.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = maker.submit(next, items, None)
            yield item


def iterate_samples(
    store: TableStore, shards: Sequence[str], *, provenance: bool = True
) -> Iterator[Sample]:
    """All samples of these shards, by source, shard and id, in bounded memory.

    Tokens are read, samples made of them, and samples used, each a batch ahead of what follows.
    Raises TableError where a sample's tokens and segments don't match.
    """
    for samples in _ahead(_batches(store, shards, provenance)):
        yield from samples
