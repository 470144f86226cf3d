"""Parquet files, read row group by row group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from entropylong_assets.stages.corpus.compression import HEAD, content_of
from entropylong_assets.stages.corpus.errors import Problem, one_line
from entropylong_assets.stages.corpus.fields import path_of
from entropylong_assets.stages.corpus.files import open_file
from entropylong_assets.stages.corpus.registry import SOURCE_FORMATS, SourceFormat
from entropylong_assets.stages.corpus.rows import (
    BadRow,
    Item,
    NotSelected,
    fields_of,
    make_record_item,
    other_fields,
)
from entropylong_assets.stages.corpus.settings import SourceSettings
from entropylong_assets.stages.corpus.where import Bounds, parse_where

# Rows decoded at once: few, as a row may be large.
_BATCH_ROWS = 128


@SOURCE_FORMATS.register("parquet")
class Parquet(SourceFormat):
    """Row numbers are those of the file, from 0."""

    suffixes = (".parquet", ".pq")
    compressions = ()
    has_fields = True

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
                yield BadRow(file, start, None, *_damage(stream, error))
                return
            if start >= parquet.metadata.num_rows:
                return
            paths = []
            for name in (*fields_of(source), *other_fields(source)):
                path = path_of(schema, name)
                if isinstance(path, Problem):
                    yield BadRow(file, start, None, *path)
                    return
                paths.append(path)
            if not _may_be_text(kind := _type_of(schema, paths[0])):
                detail = f"field '{source.text_field}' is {one_line(kind, 120)}, not text"
                yield BadRow(file, start, None, "not_text", detail)
                return
            first = 0  # row of the file at which the row group begins
            for group in range(parquet.num_row_groups):
                n_rows = parquet.metadata.row_group(group).num_rows
                if first + n_rows > start:
                    if _may_match(parquet.metadata.row_group(group), source):
                        rows = _row_group(parquet, group, first, start, file, paths)
                        yield from _items(rows, file, source)
                    else:
                        begin = max(first, start)
                        yield NotSelected(file, begin, first + n_rows - begin)
                first += n_rows


_DAMAGE = (pa.ArrowException, EOFError)


def _is_damage(error: Exception) -> bool:
    """Whether the file's content caused the error. Arrow raises a plain OSError in that case."""
    return isinstance(error, _DAMAGE) or (type(error) is OSError and error.errno is None)


_ENCRYPTED = "the Parquet file is encrypted; write it without encryption"


def _damage(stream: IO[bytes], error: Exception) -> Problem:
    """Say why a file can't be read as Parquet: another format, damaged or encrypted."""
    stream.seek(0)
    head = stream.read(4)
    if head == b"PARE" or "crypt" in str(error):
        return Problem("unreadable", _ENCRYPTED)
    if head not in (b"", b"PAR1") and (content := content_of(head + stream.read(HEAD))):
        return Problem("misnamed", f"the content is {content}, not Parquet")
    return Problem("unreadable", f"not a whole Parquet file: {one_line(error, 200)}")


def _type_of(schema: pa.Schema, path: list[str]) -> pa.DataType:
    kind = schema.field(path[0]).type
    for name in path[1:]:
        kind = kind.field(name).type
    return kind


def _column(batch: pa.RecordBatch, path: list[str]) -> pa.Array:
    """Return a column, also within a struct: null where the struct is."""
    column = batch.column(path[0])
    return pc.struct_field(column, path[1:]) if len(path) > 1 else column


def _values(column: pa.Array) -> list[Any]:
    """Values of a column. Text that is not UTF-8 is returned as bytes: Arrow does not check it."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_text(column.type):
        values = column.cast(pa.large_binary()).to_pylist()
        return values if _is_binary(column.type) else [_decoded(value) for value in values]
    if not pa.types.is_nested(column.type):  # dates and numbers as Arrow writes them
        return column.cast(pa.string()).to_pylist()
    return column.to_pylist()


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value


def _is_one_of(kind: pa.DataType, *names: str) -> bool:
    return any(getattr(pa.types, f"is_{name}")(kind) for name in names)


def _is_binary(kind: pa.DataType) -> bool:
    return _is_one_of(kind, "binary", "large_binary", "binary_view")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return _is_one_of(kind, "string", "large_string", "string_view") or _is_binary(kind)


def _may_be_text(kind: pa.DataType) -> bool:
    """Whether the column can contain text. A column of only nulls has the type null."""
    return _is_text(kind) or pa.types.is_null(kind)


def _native(column: pa.Array) -> list[Any]:
    """Values of a column as JSON has them: numbers stay numbers."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    is_number = _is_one_of(column.type, "integer", "floating", "boolean")
    return column.to_pylist() if is_number else _values(column)


def _may_match(group: Any, source: SourceSettings) -> bool:
    """Whether a row group can contain a row that meets the source's `where`, by its statistics."""
    if source.where is None:
        return True
    bounds: dict[str, Bounds] = {}
    for i in range(group.num_columns):
        column = group.column(i)
        statistics = column.statistics if column.is_stats_set else None
        if statistics is not None and statistics.has_min_max:
            bounds[column.path_in_schema] = (statistics.min, statistics.max)
    return parse_where(source.where).may_match(bounds)


def _items(
    rows: Iterator[tuple[int, list[Any]] | BadRow], file: str, source: SourceSettings
) -> Iterator[Item]:
    has_id, names = source.id_field is not None, other_fields(source)
    for row_values in rows:
        if isinstance(row_values, BadRow):
            yield row_values
            continue
        row, (text, *rest) = row_values
        external_id = rest[0] if has_id else None
        others = dict(zip(names, rest[has_id:], strict=True))
        yield make_record_item((file, row), text, external_id, others, source)


def _row_group(
    parquet: Any, group: int, first: int, start: int, file: str, paths: list[list[str]]
) -> Iterator[tuple[int, list[Any]] | BadRow]:
    """Yield the number of each row, and its values at the paths: the text, then the others."""
    columns = [".".join(path) for path in paths]
    row, end = first, first + parquet.metadata.row_group(group).num_rows
    try:
        for batch in parquet.iter_batches(
            _BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False
        ):
            skipped = min(max(0, start - row), len(batch))
            kept, row = batch.slice(skipped), row + skipped
            text, *others = (_column(kept, path) for path in paths)
            for values in zip(_values(text), *map(_native, others), strict=True):
                yield row, [*values]
                row += 1
    except Exception as error:
        if not _is_damage(error):
            raise
        detail = f"rows {max(row, start)} to {end - 1} cannot be read: {one_line(error, 200)}"
        if "crypt" in str(error):
            detail = _ENCRYPTED
        yield BadRow(file, max(row, start), None, "unreadable", detail)
