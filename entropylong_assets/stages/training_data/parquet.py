"""Parquet files that Hugging Face `datasets` loads, with labels and provenance.

One row per sample. Columns:

    input_ids       int32    [T]
    labels          int32    [T], the ids, and -100 at padding. Not shifted: trainers shift them
    attention_mask  int8     [T], 0 at padding. Positions are 0 .. T-1
    loss_weights    float32  [T], weight of each token's own loss; with `export.loss_weights`
    sample_id, shard, domain
    anchors         int32    positions of all anchors, with or without a dependency
    segments        the borders of documents and their roles
    dependencies    anchor position, context span, distance, gains, kind and evidence span

Trainers fail on columns that they don't know, or try to collate them. So the front matter of the
card names configurations that read some columns of the same files: `default` has the first three.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.training_data.mixture import part_of, part_weights
from entropylong_assets.stages.training_data.registry import (
    EXPORT_FORMATS,
    ExportFacts,
    ExportFormat,
    FormatFiles,
    FormatFolder,
)
from entropylong_assets.stages.training_data.samples import Sample
from entropylong_assets.stages.training_data.settings import ExportSettings
from entropylong_assets.stages.training_data.source_writers import SourceWriters
from entropylong_assets.stages.training_data.split import split_of
from entropylong_assets.stages.training_data.usage_texts import (
    usage_text,
    weight_list,
    weight_text,
)

ROW_GROUP = 16
"""Samples per row group (8 MiB of token ids at 131,072)."""

_NAMES = ["sample_id", "shard", "domain"]
"""Columns with dictionaries and statistics. In the others these cost time and are of no use."""
_ENCODINGS = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in ("input_ids", "labels")}


def _plain(table: str) -> pa.DataType:
    """A list of rows of one of the sample tables; floats are rounded as for provenance."""
    fields = [f for f in LONG_CONTEXT_SAMPLES.schemas[table] if f.name != "sample_id"]
    return pa.list_(pa.struct([pa.field(f.name, f.type) for f in fields]))


TRAINED = ("input_ids", "labels", "attention_mask")
"""Columns that a causal language model is called with."""

_WEIGHTS = pa.field("loss_weights", pa.list_(pa.float32()))
_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("attention_mask", pa.list_(pa.int8())),
        ("sample_id", pa.string()),
        ("shard", pa.string()),
        ("domain", pa.string()),
        ("anchors", pa.list_(pa.int32())),
        ("segments", _plain("segments")),
        ("dependencies", _plain("dependencies")),
    ]
)


def schema(*, weights: bool, kinds: bool = False) -> pa.Schema:
    """The columns of a file. weights: whether loss weights are written. kinds: whether the part of
    a mixture is."""
    columns = _SCHEMA.append(pa.field("kind", pa.string())) if kinds else _SCHEMA
    return columns.insert(len(TRAINED), _WEIGHTS) if weights else columns


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


def _lists(arrays: Sequence[NDArray[Any]]) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, arrays)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(np.concatenate(arrays)))


def _columns(samples: Sequence[Sample], export: ExportSettings) -> dict[str, Any]:
    """The values of all columns, by name."""
    details = pl.concat([s.details for s in samples])
    columns = {
        "input_ids": _lists([s.token_ids_T for s in samples]),
        "labels": _lists([s.labels for s in samples]),
        "attention_mask": _lists([s.is_real.astype(np.int8) for s in samples]),
        "sample_id": [s.sample_id for s in samples],
        "shard": [s.shard for s in samples],
        "domain": [s.domain for s in samples],
        "anchors": details["anchors"].to_arrow().cast(_SCHEMA.field("anchors").type),
        "segments": _rows(_SCHEMA.field("segments").type, details["segments"]),
        "dependencies": _rows(_SCHEMA.field("dependencies").type, details["dependencies"]),
    }
    if export.mixture is not None:
        columns["kind"] = [s.kind for s in samples]
    if export.loss_weights != "uniform":
        columns["loss_weights"] = _lists([s.weights(export) for s in samples])
    return columns


class ParquetWriter:
    """Writes `<prefix>-<nnnnn>.parquet`, each with at most `file_bytes` of token ids.

    A thread encodes one row group while the next is collected.
    """

    def __init__(self, folder: FormatFolder, prefix: str, export: ExportSettings) -> None:
        self._folder, self._prefix, self._export = folder, prefix, export
        self._schema = schema(
            weights=export.loss_weights != "uniform", kinds=export.mixture is not None
        )
        self._stack = ExitStack()
        self._writer: pq.ParquetWriter | None = None
        self._files = 0
        self._bytes = 0
        self._waiting: list[Sample] = []
        self._thread = ThreadPoolExecutor(1)
        self._encoding: Future[None] | None = None

    def write(self, sample: Sample) -> None:
        size = sample.token_ids_T.nbytes
        if self._bytes and self._bytes + size > self._export.file_bytes:
            self._end_file()
        self._waiting.append(sample)
        self._bytes += size
        if len(self._waiting) == ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        samples, self._waiting = self._waiting, []
        table = pa.table(_columns(samples, self._export), schema=self._schema)
        self._wait()
        if self._writer is None:
            path = f"{self._prefix}-{self._files:05d}.parquet"
            file = self._stack.enter_context(self._folder.file(path))
            self._writer = pq.ParquetWriter(
                file,
                self._schema,
                compression="zstd",
                use_dictionary=_NAMES,
                write_statistics=_NAMES,
                column_encoding=_ENCODINGS,
            )
            self._files += 1
        self._encoding = self._thread.submit(self._writer.write_table, table)

    def _wait(self) -> None:
        """Wait until the last row group is written, and raise what its thread raised."""
        encoding, self._encoding = self._encoding, None
        if encoding is not None:
            encoding.result()

    def _end_file(self) -> None:
        self._flush()
        self._wait()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._stack.close()
        self._bytes = 0

    def close(self) -> None:
        self._end_file()
        self._thread.shutdown()


@EXPORT_FORMATS.register("parquet")
class ParquetFormat(ExportFormat):
    """One table per split: `<split>-<nnnnn>.parquet`, or `<split>-<part>-<nnnnn>.parquet` for each
    part of a mixture."""

    description: ClassVar[str] = (
        "Parquet files for Hugging Face datasets, with labels, borders and dependencies"
    )

    def __init__(self, folder: FormatFolder, settings: Settings, facts: ExportFacts) -> None:
        super().__init__(folder, settings, facts)
        self._writers = SourceWriters(
            lambda split, part: ParquetWriter(folder, _prefix(split, part), settings.export)
        )

    def write(self, sample: Sample, split: str) -> None:
        self._writers.get(split, sample.kind or "").write(sample)

    def close(self) -> None:
        self._writers.close()

    @classmethod
    def count_samples(cls, files: FormatFiles) -> Iterator[tuple[str, int]]:
        for path in files.paths:
            with files.open(path) as stream:
                yield split_of(path), pq.ParquetFile(stream).metadata.num_rows

    @classmethod
    def read_documents(cls, files: FormatFiles) -> Iterator[tuple[str, pl.Series]]:
        for path in files.paths:
            with files.open(path) as stream:
                column = pq.read_table(stream, columns=["segments"])["segments"]
            doc_ids = pl.Series("doc_id", column).list.eval(pl.element().struct.field("doc_id"))
            yield split_of(path), doc_ids.explode()

    @classmethod
    def usage(cls, facts: ExportFacts) -> str:
        text = usage_text("parquet", sample_tokens=facts.tokenizer.sample_tokens)
        if facts.sampling_weights is not None:
            text += "\n" + _mixture_text(part_weights(facts.sampling_weights))
        if facts.loss_weights == "uniform":
            return text
        return text + "\n" + usage_text("weights", loss_weights=facts.loss_weights)

    @classmethod
    def front_matter(cls, facts: ExportFacts) -> Mapping[str, Any]:
        files = [
            {"split": split, "path": f"parquet/{split}-*.parquet"}
            for split, samples in facts.splits.items()
            if samples
        ]
        columns = {"default": list(TRAINED), "provenance": None}
        if facts.loss_weights != "uniform":
            columns["weighted"] = [*TRAINED, _WEIGHTS.name]
        configs = [
            {"config_name": name, "data_files": files} | ({"columns": chosen} if chosen else {})
            for name, chosen in columns.items()
        ]
        for part in part_weights(facts.sampling_weights or {}):
            of_part = [
                {"split": split, "path": f"parquet/{_prefix(split, part)}-*.parquet"}
                for split, groups in facts.sources.items()
                if any(part_of(group) == part for group in groups)
            ]
            configs.append({"config_name": part, "data_files": of_part, "columns": list(TRAINED)})
        return {"configs": configs}


def _prefix(split: str, part: str) -> str:
    """How the names of the files of a split begin, or of its samples of a part."""
    return f"{split}-{part}" if part else split


def _mixture_text(weights: Mapping[str, float]) -> str:
    """How to draw from the parts with these weights."""
    return usage_text(
        "parquet_mixture",
        fractions="".join(
            f"  - {{path: <folder>, name: {part}, fraction: {weight_text(weight)}}}\n"
            for part, weight in weights.items()
        ),
        parts=", ".join(f'"{part}"' for part in weights),
        probabilities=weight_list(weights.values()),
    )
