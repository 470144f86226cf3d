"""Samples as all export formats receive them: one at a time, in a fixed order.

Legend: T tokens of a sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.training_data.mixture import group_of
from entropylong_assets.stages.training_data.sample_details import DETAILS, read_details
from entropylong_assets.stages.training_data.settings import ExportSettings
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.tables import TableStore

if TYPE_CHECKING:
    from entropylong_assets.stages.training_data.segment_texts import SegmentText

NOT_LEARNT = -100
"""The label that PyTorch's cross-entropy ignores by default."""

READ_ROWS = 16
"""Number of samples read at once (8 MiB of token ids at 131,072)."""

_Item = TypeVar("_Item")


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
    kind: str | None = None
    """Its part in a mixture: `constructed`, `natural` or `short`; None without a mixture."""
    texts: Sequence[SegmentText] | None = None
    """Text of each segment except BOS and padding; None if no format needs it."""

    @property
    def domain(self) -> str:
        """The source of its roots: a shard's key is `<source>-<nnnnn>`."""
        return domain_of(self.shard)

    @property
    def group(self) -> str:
        """The name of the files it is written to: its source, after its part in a mixture."""
        return group_of(self.domain, self.kind)

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

        The weight is 1 unless set otherwise, and 0 for tokens that are not learnt.
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


def make_samples(
    details: pl.DataFrame | None, batch: pl.DataFrame, shard: str, provenance: bool
) -> list[Sample]:
    """The samples of one batch of tokens, and of the rows of `details` that belong to it.

    details: as from `join_details`. batch: sample_id and input_ids (uint32). Raises TableError if
    tokens and segments don't match.
    """
    assert details is not None, "more tokens than samples"
    segments, dependencies = (pl.col(table).struct for table in DETAILS)
    is_padding = segments.field("role").list.eval(pl.element() == "padding")
    names = pl.struct("sample_id", pl.lit(shard).alias("shard"), *DETAILS)
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
    rows = details.select(*DETAILS, "anchors")
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
        details = read_details(store, shard, READ_ROWS)
        columns = ["sample_id", "input_ids"]
        batches = store.batches(LONG_CONTEXT_SAMPLES, shard, "samples", columns, rows=READ_ROWS)
        for batch in _prefetch(batches):
            yield make_samples(next(details, None), batch, shard, provenance)


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
