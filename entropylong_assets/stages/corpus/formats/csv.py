"""CSV and TSV with a header."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator

from entropylong_assets.stages.corpus.errors import one_line
from entropylong_assets.stages.corpus.files import plain_name, without_compression
from entropylong_assets.stages.corpus.registry import SOURCE_FORMATS, SourceFormat
from entropylong_assets.stages.corpus.rows import (
    BadRow,
    Item,
    Problem,
    fields_of,
    make_item,
    missing_field,
)
from entropylong_assets.stages.corpus.settings import SourceSettings
from entropylong_assets.stages.corpus.streams import BOM, MAX_ROW_BYTES, read_lines


@SOURCE_FORMATS.register("csv")
class Csv(SourceFormat):
    """Row numbers are those of the records after the header, from 0."""

    suffixes = (".csv", ".tsv")

    def count_rows(self, file: str, /) -> int:
        # Records have to be parsed: a quoted line end is no end of a record.
        return sum(1 for _ in _csv_records(file)) - 1

    def read_rows(self, file: str, source: SourceSettings, start: int, /) -> Iterator[Item]:
        records = _csv_records(file)
        header = next(records, None)
        if header is None:
            return
        if isinstance(header, Problem):
            yield BadRow(file, start, None, *header)
            return
        for name in fields_of(source):
            if header.count(name) != 1:
                yield BadRow(file, start, None, *missing_field(header, name))
                return
        column, *id_columns = map(header.index, fields_of(source))
        for row, record in enumerate(itertools.islice(records, start, None), start):
            if isinstance(record, Problem):
                yield BadRow(file, row, None, *record)
            elif len(record) != len(header):
                detail = f"the record has {len(record)} fields, the header {len(header)}"
                yield BadRow(file, row, None, "broken_csv", detail)
            else:
                text = record[column].encode("utf-8", "surrogateescape")
                yield make_item(file, row, text, record[id_columns[0]] if id_columns else None)


def _csv_records(file: str) -> Iterator[list[str] | Problem]:
    """Yield header and records of a CSV file; bad ones as problems. Quoted line ends are text."""
    problems: list[Problem] = []  # of the lines since the last record
    delivered = 0  # lines of the record that is being read

    def lines() -> Iterator[str]:
        nonlocal delivered
        for line in read_lines(file):
            if line.problem:
                problems.append(line.problem)
                if delivered:  # in the middle of a record: end it, since it is lost
                    raise csv.Error("a line of the record is lost")
                continue
            delivered += 1
            content = line.content if line.number else line.content.removeprefix(BOM)
            # Bytes that are not UTF-8 become surrogates, to be reported in their own record.
            yield content.decode("utf-8", "surrogateescape") + "\n"

    # Process-wide, so it is only ever raised; the default, 131,072 characters, is a short document.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    delimiter = "\t" if without_compression(plain_name(file)).endswith(".tsv") else ","
    # Strict: otherwise a quote that is never closed would swallow the rest of the file silently.
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
