"""CSV and TSV with a header."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from entropylong_assets.stages.corpus.csv_records import Dialect, LostLine, Record, read_records
from entropylong_assets.stages.corpus.fields import missing_field
from entropylong_assets.stages.corpus.files import plain_name, without_compression
from entropylong_assets.stages.corpus.registry import SOURCE_FORMATS, SourceFormat
from entropylong_assets.stages.corpus.rows import (
    BadRow,
    Item,
    fields_of,
    make_record_item,
    other_fields,
)
from entropylong_assets.stages.corpus.settings import SourceSettings
from entropylong_assets.stages.corpus.streams import count_lines, read_lines


@SOURCE_FORMATS.register("csv")
class Csv(SourceFormat):
    """The number of a row is that of its first line, where line 2 of the file is number 0.

    Line ends inside quotes count as well, so that the numbers do not depend on how quotes are read.
    """

    suffixes = (".csv", ".tsv")
    edition = 2
    has_fields = True

    def count_rows(self, file: str, /) -> int:
        lines = count_lines(file, old_mac=True)
        if lines == 1:  # a header alone is no row, but its problems have to be reported
            header = next(read_records(lambda: read_lines(file), Dialect()), None)
            return int(isinstance(header, LostLine))
        return max(0, lines - 1)

    def read_rows(self, file: str, source: SourceSettings, start: int, /) -> Iterator[Item]:
        records = read_records(
            lambda: read_lines(file, old_mac=True), _dialect(file, source), source.text_field
        )
        header = next(records, None)
        if isinstance(header, LostLine):
            yield BadRow(file, start, None, *header.problem)
            return
        first = next(records, None)
        if header is None or first is None:
            return
        for name in (*fields_of(source), *other_fields(source)):
            if header.values.count(name) != 1:
                yield BadRow(file, start, None, *missing_field(header.values, name))
                return
        column, *id_columns = map(header.values.index, fields_of(source))
        others = {name: header.values.index(name) for name in other_fields(source)}
        for record in itertools.chain([first], records):
            row = record.line - 1
            if row < start:
                continue
            if isinstance(record, Record):
                text = record.values[column].encode("utf-8", "surrogateescape")
                external_id = record.values[id_columns[0]] if id_columns else None
                values = {name: record.values[at] for name, at in others.items()}
                yield make_record_item((file, row), text, external_id, values, source)
            else:
                yield BadRow(file, row, None, *record.problem)


def _dialect(file: str, source: SourceSettings) -> Dialect:
    is_tsv = without_compression(plain_name(file)).endswith(".tsv")
    delimiter = source.delimiter or ("\t" if is_tsv else ",")
    return Dialect(delimiter, source.quote, source.escape, source.newlines_in_values)
