"""Reading the rows of source files of any format, lazily and in bounded memory.

A format yields `Row` and `BadRow` items in the order of the file. Damage that ends a file, such as
a truncated gzip stream, is a `BadRow` at the first row that is lost. So `count_rows` includes it.
"""

from __future__ import annotations

from collections.abc import Iterator

from entropylong_assets.stages.corpus.errors import CorpusError
from entropylong_assets.stages.corpus.registry import source_format
from entropylong_assets.stages.corpus.rows import Item, NotSelected
from entropylong_assets.stages.corpus.settings import SourceSettings


def read_rows(
    file: str, kind: str, source: SourceSettings, start: int = 0, stop: int | None = None
) -> Iterator[Item]:
    """Yield rows `start` to `stop` (not included) of one file.

    kind: name of its format. An empty file, such as a Parquet file of zero rows or a CSV file of
    only a header, yields nothing. Raises CorpusError if the file is missing or may not be read,
    and network errors unchanged.
    """
    format_ = source_format(kind)
    if not format_.has_fields and (source.where is not None or source.metadata_fields):
        raise CorpusError(
            f"source '{source.name}': where and metadata_fields need a format with fields, which "
            f"'{kind}' is not; remove them"
        )
    for item in format_.read_rows(file, source, start):
        if stop is not None and item.row >= stop:
            break
        if isinstance(item, NotSelected) and stop is not None:
            item = item._replace(n_rows=min(item.n_rows, stop - item.row))
        yield item


def count_rows(file: str, kind: str) -> int:
    """Return one past the last row number that `read_rows` yields: 0 if the file is empty."""
    return source_format(kind).count_rows(file)
