"""Parquet files that Hugging Face `datasets` loads, with borders, loss mask and provenance.

One row a sample. Positions are 0 .. T-1 and one attention span covers the sample, so neither
needs a column; `segments` holds the borders of documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from entropylong_assets.stages.training_data.publication import Publication
from entropylong_assets.stages.training_data.samples import Sample
from entropylong_assets.storage.schemas import TABLES

ROW_GROUP = 16
"""Samples in a row group (8 MiB of token ids at 131,072)."""


def _plain(table: str) -> pa.DataType:
    """A list of rows of one of the sample tables, floats as rounded for provenance."""
    fields = [f for f in TABLES["long_context_samples"][table] if f.name != "sample_id"]
    return pa.list_(pa.struct([pa.field(f.name, f.type) for f in fields]))


SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("shard", pa.string()),
        ("domain", pa.string()),
        ("input_ids", pa.list_(pa.uint32())),
        ("loss_mask", pa.list_(pa.uint8())),
        ("segments", _plain("segments")),
        ("dependencies", _plain("dependencies")),
    ]
)


def _rows(kind: pa.ListType, columns: pl.Series) -> pa.ListArray:
    """A list array of structs from a series of structs of lists."""
    arrow = columns.struct.unnest().to_arrow()
    lists = [arrow.column(field.name).combine_chunks() for field in kind.value_type]
    values = [
        part.flatten().cast(field.type) for part, field in zip(lists, kind.value_type, strict=True)
    ]
    flat = pa.StructArray.from_arrays(values, fields=list(kind.value_type))
    lengths = pc.list_value_length(lists[0]).to_numpy()
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *lengths]), pa.int32()), flat)


def _lists(arrays: Sequence[np.ndarray]) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, arrays)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(np.concatenate(arrays)))


class ParquetWriter:
    """Writes `<prefix>-<nnnnn>.parquet`, each of at most `file_bytes` of token ids."""

    def __init__(self, publication: Publication, prefix: str, file_bytes: int) -> None:
        self._publication, self._prefix, self._file_bytes = publication, prefix, file_bytes
        self._stack = ExitStack()
        self._writer: pq.ParquetWriter | None = None
        self._files = 0
        self._bytes = 0
        self._waiting: list[Sample] = []

    def write(self, sample: Sample) -> None:
        size = sample.token_ids_T.nbytes
        if self._bytes and self._bytes + size > self._file_bytes:
            self._end_file()
        self._waiting.append(sample)
        self._bytes += size
        if len(self._waiting) == ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        if self._writer is None:
            path = f"{self._prefix}-{self._files:05d}.parquet"
            file = self._stack.enter_context(self._publication.file(path))
            self._writer = pq.ParquetWriter(
                file,
                SCHEMA,
                compression="zstd",
                use_dictionary=["shard", "domain", "loss_mask.list.element"],
                column_encoding={"input_ids.list.element": "BYTE_STREAM_SPLIT"},
            )
            self._files += 1
        samples, self._waiting = self._waiting, []
        details = pl.concat([s.details for s in samples])
        columns = [
            pa.array([s.sample_id for s in samples]),
            pa.array([s.shard for s in samples]),
            pa.array([s.domain for s in samples]),
            _lists([s.token_ids_T for s in samples]),
            _lists([s.loss_mask for s in samples]),
            *[_rows(SCHEMA.field(name).type, details[name]) for name in details.columns],
        ]
        self._writer.write_table(pa.table(columns, schema=SCHEMA))

    def _end_file(self) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._stack.close()
        self._bytes = 0

    def close(self) -> None:
        self._end_file()
