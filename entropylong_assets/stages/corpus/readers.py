"""Rows of source files of any format: lazily, in bounded memory, bad ones with reason and place.

A format yields `Row` and `BadRow` items in the order of the file. Damage that ends a file, such as
a truncated gzip stream, is an item too, at the first row that is lost. So `count_rows` tells how
many items there are to read, damaged or not.
"""

from __future__ import annotations

from collections.abc import Iterator

from entropylong_assets.stages.corpus.registry import source_format
from entropylong_assets.stages.corpus.rows import BadRow, Item
from entropylong_assets.stages.corpus.settings import SourceSettings


def read_rows(
    file: str, kind: str, source: SourceSettings, start: int = 0, stop: int | None = None
) -> Iterator[Item]:
    """Yield rows `start` to `stop` (not included) of one file.

    kind: name of its format. A file without any row yields the BadRow `empty_file`. Raises
    CorpusError if the file is missing or must not be read; faults of a network pass as they are.
    """
    is_empty = True
    for item in source_format(kind).read_rows(file, source, start):
        is_empty = False
        if stop is not None and item.row >= stop:
            break
        yield item
    if is_empty and start == 0:
        yield BadRow(file, 0, None, "empty_file", "the file holds no rows")


def count_rows(file: str, kind: str) -> int:
    """Return one past the last row number that `read_rows` yields, but at least 1."""
    return max(1, source_format(kind).count_rows(file))
