"""JSON Lines: one object per line. Blank lines are no rows, but count in the row numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator

from entropylong_assets.stages.corpus.errors import one_line
from entropylong_assets.stages.corpus.registry import SOURCE_FORMATS, SourceFormat
from entropylong_assets.stages.corpus.rows import (
    BadRow,
    Item,
    external_id_of,
    make_item,
    missing_field,
    not_utf8,
)
from entropylong_assets.stages.corpus.settings import SourceSettings
from entropylong_assets.stages.corpus.streams import BOM, count_lines, read_lines


@SOURCE_FORMATS.register("jsonl")
class JsonLines(SourceFormat):
    """Row numbers are line numbers, from 0."""

    suffixes = (".jsonl", ".ndjson")
    accepted_suffixes = (".json",)

    def count_rows(self, file: str, /) -> int:
        return count_lines(file)

    def read_rows(self, file: str, source: SourceSettings, start: int, /) -> Iterator[Item]:
        for number, content, problem in read_lines(file, start):
            if problem:
                yield BadRow(file, number, None, *problem)
                continue
            if number == 0:
                content = content.removeprefix(BOM)
            if content.strip():
                yield _json_item(file, number, content, source)


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
        problem = missing_field(list(record), source.text_field)
        return BadRow(file, row, external_id_of(external_id), *problem)
    return make_item(file, row, record[source.text_field], external_id)
