"""Text and Markdown files: a file is one row."""

from __future__ import annotations

from collections.abc import Iterator

from entropylong_assets.stages.corpus.compression import DamagedFileError
from entropylong_assets.stages.corpus.registry import SOURCE_FORMATS, SourceFormat
from entropylong_assets.stages.corpus.rows import BadRow, Item, make_item
from entropylong_assets.stages.corpus.settings import SourceSettings
from entropylong_assets.stages.corpus.streams import MAX_ROW_BYTES, read_utf8


@SOURCE_FORMATS.register("text")
class Text(SourceFormat):
    """The file is row 0."""

    suffixes = (".txt", ".text", ".md", ".markdown", ".rst")
    one_row_per_file = True

    def count_rows(self, _file: str, /) -> int:
        return 1

    def read_rows(self, file: str, _source: SourceSettings, start: int, /) -> Iterator[Item]:
        if start:
            return
        pieces, size = [], 0
        try:
            for chunk in read_utf8(file):
                pieces.append(chunk)
                size += len(chunk)
                if size > MAX_ROW_BYTES:
                    detail = f"the file has more than {MAX_ROW_BYTES} bytes"
                    yield BadRow(file, 0, None, "row_too_large", detail)
                    return
        except DamagedFileError as damage:
            yield BadRow(file, 0, None, *damage.problem)
            return
        if size:
            yield make_item(file, 0, b"".join(pieces), None)
