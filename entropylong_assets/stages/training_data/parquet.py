"""Parquet files that Hugging Face `datasets` loads, with borders, loss mask and provenance.

One row per sample. Positions are 0 .. T-1 and one attention span covers the sample, so neither
needs a column; `segments` contains the borders of documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.training_data.registry import (
    EXPORT_FORMATS,
    ExportFacts,
    ExportFormat,
    FormatFiles,
    FormatFolder,
)
from entropylong_assets.stages.training_data.samples import Sample

ROW_GROUP = 16
"""Samples per row group (8 MiB of token ids at 131,072)."""


def _plain(table: str) -> pa.DataType:
    """A list of rows of one of the sample tables; floats are rounded as for provenance."""
    fields = [f for f in LONG_CONTEXT_SAMPLES.schemas[table] if f.name != "sample_id"]
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
    """Writes `<prefix>-<nnnnn>.parquet`, each with at most `file_bytes` of token ids."""

    def __init__(self, folder: FormatFolder, prefix: str, file_bytes: int) -> None:
        self._folder, self._prefix, self._file_bytes = folder, prefix, file_bytes
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
            file = self._stack.enter_context(self._folder.file(path))
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


@EXPORT_FORMATS.register("parquet")
class ParquetFormat(ExportFormat):
    """One table per split: `<split>-<nnnnn>.parquet`."""

    description: ClassVar[str] = (
        "Parquet files for Hugging Face datasets, with loss mask, borders and dependencies"
    )

    def __init__(self, folder: FormatFolder, settings: Settings, facts: ExportFacts) -> None:
        super().__init__(folder, settings, facts)
        self._writers: dict[str, ParquetWriter] = {}

    def write(self, sample: Sample, split: str) -> None:
        if split not in self._writers:
            file_bytes = self.settings.export.file_bytes
            self._writers[split] = ParquetWriter(self.folder, split, file_bytes)
        self._writers[split].write(sample)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    @classmethod
    def count_samples(cls, files: FormatFiles) -> Iterator[tuple[str, int]]:
        for path in files.paths:
            with files.open(path) as stream:
                yield _split_of(path), pq.ParquetFile(stream).metadata.num_rows

    @classmethod
    def read_documents(cls, files: FormatFiles) -> Iterator[tuple[str, pl.Series]]:
        for path in files.paths:
            with files.open(path) as stream:
                column = pq.read_table(stream, columns=["segments"])["segments"]
            doc_ids = pl.Series("doc_id", column).list.eval(pl.element().struct.field("doc_id"))
            yield _split_of(path), doc_ids.explode()

    @classmethod
    def usage(cls, facts: ExportFacts) -> str:
        del facts
        return """**Hugging Face datasets** (`parquet/`): `load_dataset("<this folder>")`. Columns:
`input_ids`, `loss_mask` (0 at padding), `segments` (role, span, documents), `dependencies` (anchor
position, context span, distance in tokens, gains). Positions run from 0 over the whole sample.
"""

    @classmethod
    def front_matter(cls, facts: ExportFacts) -> Mapping[str, Any]:
        files = [
            {"split": split, "path": f"parquet/{split}-*.parquet"}
            for split, samples in facts.splits.items()
            if samples
        ]
        return {"configs": [{"config_name": "default", "data_files": files}]}


def _split_of(path: str) -> str:
    """Of `<split>-<nnnnn>.parquet`."""
    return path.partition("-")[0]
