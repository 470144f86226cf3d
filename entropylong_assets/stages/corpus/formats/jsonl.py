"""JSON Lines: one object per line. Blank lines are no rows, but count in the row numbers."""

from __future__ import annotations

from collections.abc import Iterator

from entropylong_assets.stages.corpus.json_items import make_json_item
from entropylong_assets.stages.corpus.registry import SOURCE_FORMATS, SourceFormat
from entropylong_assets.stages.corpus.rows import BadRow, Item
from entropylong_assets.stages.corpus.settings import SourceSettings
from entropylong_assets.stages.corpus.streams import count_lines, read_lines

_BOM = "\ufeff".encode()


@SOURCE_FORMATS.register("jsonl")
class JsonLines(SourceFormat):
    """Row numbers are line numbers, from 0."""

    suffixes = (".jsonl", ".ndjson")
    accepted_suffixes = (".json",)
    has_fields = True

    def count_rows(self, file: str, /) -> int:
        return count_lines(file)

    def read_rows(self, file: str, source: SourceSettings, start: int, /) -> Iterator[Item]:
        for number, content, problem in read_lines(file, start):
            if problem:
                yield BadRow(file, number, None, *problem)
            elif content := content.strip().removeprefix(_BOM):  # of a file appended to another
                yield make_json_item(file, number, content, source)
