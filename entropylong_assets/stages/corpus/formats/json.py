"""JSON: a list of objects, one object, several objects after each other, or JSON Lines.

The first character decides: `[` begins a list, whose elements are the rows. Everything else is read
as objects. If one of the first lines is a whole object, each line is a row, as in JSON Lines, which
Spark and `datasets` write under `.json`; otherwise objects may span lines.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from entropylong_assets.stages.corpus.compression import DamagedFileError
from entropylong_assets.stages.corpus.formats.jsonl import JsonLines
from entropylong_assets.stages.corpus.json_items import make_json_item
from entropylong_assets.stages.corpus.json_scanner import Element, JsonScanner
from entropylong_assets.stages.corpus.registry import SOURCE_FORMATS, SourceFormat
from entropylong_assets.stages.corpus.rows import BadRow, Item
from entropylong_assets.stages.corpus.settings import SourceSettings
from entropylong_assets.stages.corpus.streams import read_lines, read_utf8

# Number of lines that are searched for a whole object, since the first may be broken.
_N_LINES = 100


@SOURCE_FORMATS.register("json")
class Json(SourceFormat):
    """Row numbers are those of the list or of the objects, from 0; line numbers in JSON Lines."""

    suffixes = (".json",)
    has_fields = True

    def count_rows(self, file: str, /) -> int:
        if _is_lines(file):
            return JsonLines().count_rows(file)
        return sum(1 for _ in _read_elements(file))

    def read_rows(self, file: str, source: SourceSettings, start: int, /) -> Iterator[Item]:
        if _is_lines(file):
            yield from JsonLines().read_rows(file, source, start)
            return
        elements = itertools.islice(enumerate(_read_elements(file)), start, None)
        for row, (content, problem) in elements:
            if problem:
                yield BadRow(file, row, None, *problem)
            else:
                yield make_json_item(file, row, content, source)


def _read_elements(file: str) -> Iterator[Element]:
    scanner = JsonScanner()
    try:
        for chunk in read_utf8(file):
            yield from scanner.feed(chunk)
    except DamagedFileError as damage:
        yield Element(b"", damage.problem)
        return
    yield from scanner.finish()


def _is_lines(file: str) -> bool:
    """Whether one of the first lines is a whole object, not indented."""
    try:
        first = next((chunk for chunk in read_utf8(file) if chunk.strip()), b"")
    except DamagedFileError:
        return False
    if first.lstrip().startswith(b"["):  # perhaps a single line of gigabytes
        return False
    filled = (line for line in read_lines(file) if line.problem or line.content.strip())
    return any(
        line.content.startswith(b"{") and _is_object(line.content)
        for line in itertools.islice(filled, _N_LINES)
    )


def _is_object(line: bytes) -> bool:
    """Whether the brackets of a line, which begins with `{`, are closed at its very end."""
    scanner = JsonScanner()
    objects = list(scanner.feed(line.strip()))
    return len(objects) == 1 and not scanner.is_inside
