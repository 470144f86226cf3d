"""Samples as all export formats receive them: one at a time, in a fixed order.

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

from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.tables import TableStore

READ_ROWS = 16
"""Samples read at once (8 MiB of token ids at 131,072)."""

_Item = TypeVar("_Item")

_ORDER = {"segments": ("segment",), "dependencies": ("context_start", "anchor_position")}


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample and its provenance."""

    sample_id: str
    shard: str
    token_ids_T: NDArray[np.uint32]
    details: pl.DataFrame
    """One row: `segments` and `dependencies`, each a struct of lists, whose fields are the columns
    of these tables without sample_id."""
    provenance: str | None
    """sample_id, shard and the details as JSON; None if no format needs it."""
    padding: Sequence[tuple[int, int]]
    """Spans excluded from the loss."""
    anchors: Sequence[int]
    """Positions of the sample with a verified dependency."""

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
        """[T], `anchor_weight` at anchors, 0 at padding, 1 elsewhere."""
        weights_T = self.loss_mask.astype(np.float32)
        weights_T[self.anchors] = anchor_weight
        return weights_T


def domain_of(shard: str) -> str:
    return shard.rpartition("-")[0] or shard


def export_order(shards: Sequence[str]) -> list[str]:
    """Shards by source, then by name, so that the files of one source are written together."""
    return sorted(set(shards), key=lambda shard: (domain_of(shard), shard))


def _details(store: TableStore, shard: str) -> pl.DataFrame:
    """One row per sample, in the order of the samples: sample_id, segments, dependencies."""
    ids = details = store.read(LONG_CONTEXT_SAMPLES, shard, "samples", ["sample_id"])
    if not ids["sample_id"].is_sorted():
        raise TableError(
            f"{LONG_CONTEXT_SAMPLES.name}, {shard}: samples are not in order; materialize it again"
        )
    for table, order in _ORDER.items():
        rows = store.read(LONG_CONTEXT_SAMPLES, shard, table).sort("sample_id", *order)
        names = rows.columns[1:]
        assert rows.columns[0] == "sample_id"
        # Six decimals keep the JSON short and suffice for float32 values of this size.
        rows = rows.with_columns(pl.selectors.float().cast(pl.Float64).round(6))
        joined = ids.join(rows, on="sample_id", how="left", maintain_order="left_right")
        has_rows = pl.col(order[0]).is_not_null()  # false only for a sample without such rows
        grouped = joined.group_by("sample_id", maintain_order=True).agg(
            pl.col(names).filter(has_rows)
        )
        details = details.with_columns(grouped.select(pl.struct(names)).to_series().alias(table))
    return details


def _batch(
    details: pl.DataFrame, batch: pl.DataFrame, shard: str, provenance: bool
) -> list[Sample]:
    """The samples of one batch of tokens, and of the rows of `details` that belong to it."""
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
            f"{LONG_CONTEXT_SAMPLES.name}, {shard}: segments don't cover the samples' tokens; "
            "materialize it again"
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
        batches = store.batches(LONG_CONTEXT_SAMPLES, shard, "samples", columns, rows=READ_ROWS)
        for batch in _prefetch(batches):
            yield _batch(details[at : at + len(batch)], batch, shard, provenance)
            at += len(batch)


def _prefetch(items: Iterator[_Item]) -> Iterator[_Item]:
    """The same items; a thread makes the next one while this one is used."""
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = thread.submit(next, items, None)
            yield item


def iterate_samples(
    store: TableStore, shards: Sequence[str], *, provenance: bool = True
) -> Iterator[Sample]:
    """All samples of these shards, ordered by source, shard and id, in bounded memory.

    One thread reads tokens and another makes samples, each one batch ahead of the caller. Raises
    TableError if the tokens and segments of a sample don't match.
    """
    for samples in _prefetch(_batches(store, shards, provenance)):
        yield from samples
