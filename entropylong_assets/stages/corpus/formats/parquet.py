"""Parquet files, read row group by row group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from entropylong_assets.stages.corpus.errors import one_line
from entropylong_assets.stages.corpus.files import open_file
from entropylong_assets.stages.corpus.registry import SOURCE_FORMATS, SourceFormat
from entropylong_assets.stages.corpus.rows import (
    BadRow,
    Item,
    fields_of,
    make_item,
    missing_field,
)
from entropylong_assets.stages.corpus.settings import SourceSettings

# Rows decoded at once: few, as a row may be large.
_BATCH_ROWS = 128


@SOURCE_FORMATS.register("parquet")
class Parquet(SourceFormat):
    """Row numbers are those of the file, from 0."""

    suffixes = (".parquet", ".pq")
    compressions = ()

    def count_rows(self, file: str, /) -> int:
        with open_file(file) as stream:
            try:
                return int(pq.ParquetFile(stream).metadata.num_rows)
            except Exception as error:
                if not _is_damage(error):
                    raise
                return 1

    def read_rows(self, file: str, source: SourceSettings, start: int, /) -> Iterator[Item]:
        with open_file(file) as stream:
            try:
                parquet = pq.ParquetFile(stream, buffer_size=2**20, page_checksum_verification=True)
                schema = parquet.schema_arrow
            except Exception as error:
                if not _is_damage(error):
                    raise
                detail = f"not a whole Parquet file: {one_line(error, 200)}"
                yield BadRow(file, start, None, "unreadable", detail)
                return
            if start >= parquet.metadata.num_rows:
                return
            fields = fields_of(source)
            for name in fields:
                if schema.names.count(name) != 1:
                    yield BadRow(file, start, None, *missing_field(schema.names, name))
                    return
            if not _is_text(kind := schema.field(source.text_field).type):
                detail = f"field '{source.text_field}' is {one_line(kind, 120)}, not text"
                yield BadRow(file, start, None, "not_text", detail)
                return
            first = 0  # row of the file at which the row group begins
            for group in range(parquet.num_row_groups):
                n_rows = parquet.metadata.row_group(group).num_rows
                if first + n_rows > start:
                    yield from _row_group(parquet, group, first, start, file, fields)
                first += n_rows


_DAMAGE = (pa.ArrowException, EOFError)


def _is_damage(error: Exception) -> bool:
    """Whether the bytes of the file are at fault: Arrow raises a bare OSError for that, too."""
    return isinstance(error, _DAMAGE) or (type(error) is OSError and error.errno is None)


def _values(column: pa.Array) -> list[Any]:
    """Values of a column; text as bytes, since Arrow does not check that it is UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_text(column.type):
        return column.cast(pa.large_binary()).to_pylist()
    if not pa.types.is_nested(column.type):  # dates and numbers as Arrow writes them
        return column.cast(pa.string()).to_pylist()
    return column.to_pylist()


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    tests = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    return any(getattr(pa.types, f"is_{test}")(kind) for test in tests)


def _row_group(
    parquet: Any, group: int, first: int, start: int, file: str, fields: list[str]
) -> Iterator[Item]:
    row, end = first, first + parquet.metadata.row_group(group).num_rows
    try:
        for batch in parquet.iter_batches(
            _BATCH_ROWS, row_groups=[group], columns=fields, use_threads=False
        ):
            skipped = min(max(0, start - row), len(batch))
            kept, row = batch.slice(skipped), row + skipped
            texts = _values(kept.column(fields[0]))
            ids = _values(kept.column(fields[-1])) if len(fields) > 1 else [None] * len(kept)
            for text, external_id in zip(texts, ids, strict=True):
                yield make_item(file, row, text, external_id)
                row += 1
    except Exception as error:
        if not _is_damage(error):
            raise
        detail = f"rows {max(row, start)} to {end - 1} cannot be read: {one_line(error, 200)}"
        yield BadRow(file, max(row, start), None, "unreadable", detail)
