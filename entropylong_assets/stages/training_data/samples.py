"""Samples as all export formats receive them: one at a time, in a fixed order.

Legend: T tokens of a sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.training_data.settings import ExportSettings
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.tables import TableStore

if TYPE_CHECKING:
    from entropylong_assets.stages.training_data.segment_texts import SegmentText

NOT_LEARNT = -100
"""The label that PyTorch's cross-entropy ignores by default."""

READ_ROWS = 16
"""Samples read at once (8 MiB of token ids at 131,072)."""

_Item = TypeVar("_Item")

_ORDER = {"segments": ("segment",), "dependencies": ("context_start", "anchor_position")}


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample and its provenance."""

    sample_id: str
    shard: str
    token_ids_T: NDArray[np.int32]
    details: pl.DataFrame
    """One row: `segments` and `dependencies`, each a struct of lists, whose fields are the columns
    of these tables without sample_id; `anchors`, a list of positions."""
    provenance: str | None
    """sample_id, shard and the details as JSON; None if no format needs it."""
    padding: Sequence[tuple[int, int]]
    """Spans of padding, at the end of the sample."""
    anchors: Sequence[int]
    """Positions of all anchors in ascending order, with or without a dependency."""
    dependency_anchors: Sequence[int]
    """Position of the anchor of each dependency, in the order of `details`."""
    dependency_distances: Sequence[int]
    """Tokens from the end of each dependency's context to its anchor."""
    masked: Sequence[tuple[int, int]] = ()
    """Spans of other tokens that are not learnt."""
    texts: Sequence[SegmentText] | None = None
    """Text of each segment except BOS and padding; None if no format needs it."""

    @property
    def domain(self) -> str:
        """The source of its roots: a shard's key is `<source>-<nnnnn>`."""
        return domain_of(self.shard)

    @property
    def real_tokens(self) -> int:
        """Number of tokens before the padding."""
        return min((start for start, _ in self.padding), default=len(self.token_ids_T))

    @property
    def is_real(self) -> NDArray[np.bool_]:
        """[T], false at padding."""
        return np.arange(len(self.token_ids_T)) < self.real_tokens

    @property
    def learnt(self) -> NDArray[np.bool_]:
        """[T], whether a token is learnt: all but padding and what is masked."""
        learnt_T = self.is_real
        for start, end in self.masked:
            learnt_T[start:end] = False
        return learnt_T

    @property
    def labels(self) -> NDArray[np.int32]:
        """[T], the token ids, and NOT_LEARNT where a token is not learnt. Not shifted."""
        return np.where(self.learnt, self.token_ids_T, np.int32(NOT_LEARNT))

    def weights(self, export: ExportSettings) -> NDArray[np.float32]:
        """[T], the weight of each token's own loss, as `export.loss_weights` says.

        1 where it says nothing, 0 where a token is not learnt.
        """
        weights_T = self.learnt.astype(np.float32)
        if export.loss_weights == "uniform" or not len(self.dependency_anchors):
            return weights_T
        lift = np.full(len(self.dependency_anchors), export.anchor_weight)
        if export.loss_weights == "distance":
            distance = np.asarray(self.dependency_distances, np.float64)
            share = np.log2(1 + distance) / np.log2(1 + len(weights_T))
            lift = 1 + (export.anchor_weight - 1) * share
        order = np.argsort(self.dependency_distances, kind="stable")  # the farthest is set last
        weights_T[np.asarray(self.dependency_anchors)[order]] = lift[order]
        return weights_T


def mask_fillers(sample: Sample) -> Sample:
    """The same sample, whose fillers are not learnt."""
    segments = sample.details["segments"][0]
    columns = zip(segments["role"], segments["start"], segments["end"], strict=True)
    return replace(sample, masked=[(a, b) for role, a, b in columns if role == "filler"])


def domain_of(shard: str) -> str:
    return shard.rpartition("-")[0] or shard


def export_order(shards: Sequence[str]) -> list[str]:
    """Shards by source, then by name, so that the files of one source are written together."""
    return sorted(set(shards), key=lambda shard: (domain_of(shard), shard))


def _details(store: TableStore, shard: str) -> pl.DataFrame:
    """One row per sample, in the order of the samples: sample_id, segments, dependencies."""
    ids = store.read(LONG_CONTEXT_SAMPLES, shard, "samples", ["sample_id"])
    if not ids["sample_id"].is_sorted():
        raise TableError(
            f"{LONG_CONTEXT_SAMPLES.name}, {shard}: samples are not in order; materialize it again"
        )
    tables = {table: store.read(LONG_CONTEXT_SAMPLES, shard, table) for table in _ORDER}
    return join_details(ids, tables, _anchor_positions(store, shard))


def join_details(
    ids: pl.DataFrame, tables: Mapping[str, pl.DataFrame], anchors: pl.DataFrame
) -> pl.DataFrame:
    """One row per sample, in the order of `ids`: sample_id, segments, dependencies, anchors.

    ids: sample_id, ascending. tables: `segments` and `dependencies`, as in the tables of samples.
    anchors: sample_id and a list of positions.
    """
    details = ids
    for table, order in _ORDER.items():
        rows = tables[table].sort("sample_id", *order)
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
    return details.join(anchors, on="sample_id", how="left", maintain_order="left").with_columns(
        pl.col("anchors").fill_null([])
    )


def _anchor_positions(store: TableStore, shard: str) -> pl.DataFrame:
    """sample_id and anchors: the positions in the sample of all anchors of its roots, ascending.

    A root can be cut into pieces; its segments follow each other.
    """
    columns = ["sample_id", "root_id", "role", "start", "end"]
    roots = (
        store.read(LONG_CONTEXT_SAMPLES, shard, "segments", columns)
        .filter(role="root")
        .sort("sample_id", "root_id", "start")
        .with_columns((pl.col("end") - pl.col("start")).alias("length"))
        .with_columns(
            (pl.col("length").cum_sum() - pl.col("length"))
            .over("sample_id", "root_id")
            .alias("offset")
        )
    )
    anchors = store.read(ENTROPY_SCORES, shard, "roots", ["root_id", "anchors"])
    in_root = pl.col("anchors") - pl.col("offset")
    return (
        roots.join(anchors.explode("anchors", empty_as_null=False), on="root_id")
        .filter(in_root.is_between(0, pl.col("length"), closed="left"))
        .select("sample_id", (pl.col("start") + in_root).cast(pl.Int32).alias("anchors"))
        .sort("sample_id", "anchors")
        .group_by("sample_id", maintain_order=True)
        .agg("anchors")
    )


def make_samples(
    details: pl.DataFrame, batch: pl.DataFrame, shard: str, provenance: bool
) -> list[Sample]:
    """The samples of one batch of tokens, and of the rows of `details` that belong to it.

    details: as from `join_details`. batch: sample_id and input_ids (uint32). Raises TableError if
    tokens and segments don't match.
    """
    segments, dependencies = (pl.col(table).struct for table in _ORDER)
    is_padding = segments.field("role").list.eval(pl.element() == "padding")
    names = pl.struct("sample_id", pl.lit(shard).alias("shard"), *_ORDER)
    columns: dict[str, list[Any]] = details.select(
        segments.field("end").list.max().alias("length"),
        is_padding.alias("is_padding"),
        segments.field("start"),
        segments.field("end"),
        "anchors",
        dependencies.field("anchor_position"),
        dependencies.field("distance"),
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
    rows = details.select(*_ORDER, "anchors")
    # Ids are below 2^31: the same bytes.
    tokens = batch["input_ids"].explode(empty_as_null=False).to_numpy().view(np.int32)
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
            anchors=columns["anchors"][i],
            dependency_anchors=columns["anchor_position"][i],
            dependency_distances=columns["distance"][i],
        )
        for i, sample_id in enumerate(batch["sample_id"])
    ]


def _batches(store: TableStore, shards: Sequence[str], provenance: bool) -> Iterator[list[Sample]]:
    for shard in export_order(shards):
        details, at = _details(store, shard), 0
        columns = ["sample_id", "input_ids"]
        batches = store.batches(LONG_CONTEXT_SAMPLES, shard, "samples", columns, rows=READ_ROWS)
        for batch in _prefetch(batches):
            yield make_samples(details[at : at + len(batch)], batch, shard, provenance)
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
