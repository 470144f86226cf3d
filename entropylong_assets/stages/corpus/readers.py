"""Rows of source files: lazily, in bounded memory, the bad ones with reason and place.

A reader yields `Row` and `BadRow` items in the order of the file. A fault that ends a file, such
as a gzip stream that is cut short, is an item too: it stands at the first row that is lost, so
that counting items (`count_rows`) tells how many there are to read, damaged or not.

Row numbers count from 0: lines of JSONL (blank lines, which yield nothing, included), records of
CSV behind its header, rows of Parquet, rows of a package's documentation; a text file is row 0.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from entropylong_assets.settings.model import SourceSettings
from entropylong_assets.stages.corpus import python_docs
from entropylong_assets.stages.corpus.errors import one_line
from entropylong_assets.stages.corpus.files import open_file, plain_name, without_compression
from entropylong_assets.stages.corpus.rows import (
    BadRow,
    Item,
    Problem,
    Row,
    external_id_of,
    make_item,
    not_utf8,
)
from entropylong_assets.stages.corpus.streams import (
    MAX_ROW_BYTES,
    DamagedFileError,
    count_lines,
    read_chunks,
    read_lines,
)

# Rows of a Parquet file decoded at once: few, as a row may be large.
_PARQUET_BATCH = 128
_BOM = b"\xef\xbb\xbf"


def _fields(source: SourceSettings) -> list[str]:
    return [source.text_field] + ([source.id_field] if source.id_field else [])


def _missing(names: list[str], field: str) -> str:
    shown = ", ".join(one_line(name, 60) for name in names[:20]) or "none"
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    problem = "there are two fields" if field in names else "there is no field"
    return f"{problem} '{field}' (the fields: {shown}{more})"


# ------------------------------------------------------------------------------------ JSON lines


def _json_item(file: str, row: int, content: bytes, source: SourceSettings) -> Item:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        return BadRow(file, row, None, *not_utf8(error))
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        return BadRow(file, row, None, "broken_json", f"not JSON: {one_line(error, 120)}")
    if not isinstance(record, dict):
        detail = "the line is JSON, but not an object"
        return BadRow(file, row, None, "broken_json", detail)
    external_id = record.get(source.id_field) if source.id_field else None
    if source.text_field not in record:
        name, detail = external_id_of(external_id), _missing(list(record), source.text_field)
        return BadRow(file, row, name, "missing_field", detail)
    return make_item(file, row, record[source.text_field], external_id)


def _read_jsonl(file: str, source: SourceSettings, start: int) -> Iterator[Item]:
    for number, content, problem in read_lines(file, start):
        if problem:
            yield BadRow(file, number, None, *problem)
            continue
        if number == 0:
            content = content.removeprefix(_BOM)
        if content.strip():
            yield _json_item(file, number, content, source)


# ------------------------------------------------------------------------------------------- CSV


def _csv_records(file: str) -> Iterator[list[str] | Problem]:
    """Header and records of a CSV file, quoted line ends included; bad ones as problems."""
    problems: list[Problem] = []  # met in the lines since the last record
    delivered = 0  # lines of the record that is being read

    def lines() -> Iterator[str]:
        nonlocal delivered
        for line in read_lines(file):
            if line.problem:
                problems.append(line.problem)
                if delivered:  # in the middle of a record: close it, as it is lost anyway
                    raise csv.Error("a line of the record is lost")
                continue
            delivered += 1
            content = line.content if line.number else line.content.removeprefix(_BOM)
            # Bytes that are not UTF-8 survive as surrogates, to be found in their own record.
            yield content.decode("utf-8", "surrogateescape") + "\n"

    # Process-wide, and only ever raised; the default of 131,072 characters is a short document.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    delimiter = "\t" if without_compression(plain_name(file)).endswith(".tsv") else ","
    # Strict: a quote that is never closed would else swallow the rest of the file without a word.
    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    while True:
        first, delivered, record = reader.line_num + 1, 0, None
        try:
            record = next(reader, None)
        except csv.Error as error:
            if not problems:
                problems.append(Problem("broken_csv", f"from line {first}: {one_line(error, 120)}"))
            record = []
        yield from problems
        problems.clear()
        if record is None:
            return
        if record:
            yield record


def _read_csv(file: str, source: SourceSettings, start: int) -> Iterator[Item]:
    records = _csv_records(file)
    header = next(records, None)
    if header is None:
        return
    if isinstance(header, Problem):
        yield BadRow(file, start, None, *header)
        return
    for name in _fields(source):
        if header.count(name) != 1:
            yield BadRow(file, start, None, "missing_field", _missing(header, name))
            return
    column, *id_columns = map(header.index, _fields(source))
    for row, record in enumerate(itertools.islice(records, start, None), start):
        if isinstance(record, Problem):
            yield BadRow(file, row, None, *record)
        elif len(record) != len(header):
            detail = f"the record has {len(record)} fields, the header {len(header)}"
            yield BadRow(file, row, None, "broken_csv", detail)
        else:
            text = record[column].encode("utf-8", "surrogateescape")
            yield make_item(file, row, text, record[id_columns[0]] if id_columns else None)


# --------------------------------------------------------------------------------------- Parquet

_DAMAGE = (pa.ArrowException, EOFError)


def _is_damage(error: Exception) -> bool:
    """Whether a fault lies in the file's bytes: Arrow says so by a bare OSError, too."""
    return isinstance(error, _DAMAGE) or (type(error) is OSError and error.errno is None)


def _values(column: pa.Array) -> list[Any]:
    """Values of a column; text as bytes, because Arrow does not check that it is UTF-8."""
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


def _read_parquet(file: str, source: SourceSettings, start: int) -> Iterator[Item]:
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
        fields = _fields(source)
        for name in fields:
            if schema.names.count(name) != 1:
                detail = _missing(schema.names, name)
                yield BadRow(file, start, None, "missing_field", detail)
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


def _row_group(
    parquet: Any, group: int, first: int, start: int, file: str, fields: list[str]
) -> Iterator[Item]:
    row, end = first, first + parquet.metadata.row_group(group).num_rows
    try:
        for batch in parquet.iter_batches(
            _PARQUET_BATCH, row_groups=[group], columns=fields, use_threads=False
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


# ------------------------------------------------------------------- text files, documentation


def _read_text(file: str, start: int) -> Iterator[Item]:
    if start:
        return
    pieces, size = [], 0
    try:
        for chunk in read_chunks(file):
            pieces.append(chunk)
            size += len(chunk)
            if size > MAX_ROW_BYTES:
                detail = f"the file has more than {MAX_ROW_BYTES} bytes"
                yield BadRow(file, 0, None, "row_too_large", detail)
                return
    except DamagedFileError as damage:
        yield BadRow(file, 0, None, "unreadable", f"the file is damaged: {damage}")
        return
    if size:
        yield make_item(file, 0, b"".join(pieces).removeprefix(_BOM), None)


def _read_docs(file: str, start: int, stop: int) -> Iterator[Item]:
    docs = python_docs.read(python_docs.package_of(file), start, stop)
    for row, doc in enumerate(docs, start):
        yield Row(file, row, doc.name, doc.text)


# ----------------------------------------------------------------------------------- all formats


def read_rows(
    file: str, kind: str, source: SourceSettings, start: int = 0, stop: int | None = None
) -> Iterator[Item]:
    """Rows `start` to `stop` (not included) of one file.

    A file without any row yields the BadRow `empty_file`. Raises CorpusError where the file is
    gone or forbidden; faults of a network come through as they are.
    """
    if kind == "jsonl":
        items = _read_jsonl(file, source, start)
    elif kind == "csv":
        items = _read_csv(file, source, start)
    elif kind == "parquet":
        items = _read_parquet(file, source, start)
    elif kind == "text":
        items = _read_text(file, start)
    else:
        items = _read_docs(file, start, 2**62 if stop is None else stop)
    nothing = True
    for item in items:
        nothing = False
        if stop is not None and item.row >= stop:
            break
        yield item
    if nothing and start == 0:
        yield BadRow(file, 0, None, "empty_file", "the file holds no rows")


def count_rows(file: str, kind: str) -> int:
    """One past the last row number that `read_rows` gives, but at least 1.

    Parquet tells it by its footer, JSONL by counting line ends; CSV has to be parsed.
    """
    if kind == "jsonl":
        return max(1, count_lines(file))
    if kind == "csv":
        return max(1, sum(1 for _ in _csv_records(file)) - 1)
    if kind == "parquet":
        with open_file(file) as stream:
            try:
                return max(1, pq.ParquetFile(stream).metadata.num_rows)
            except Exception as error:
                if not _is_damage(error):
                    raise
                return 1
    if kind == "python_docs":
        return max(1, python_docs.count(python_docs.package_of(file))[0])
    return 1
