"""Full-text search over the chunks of the LanceDB table: BM25 over words.

A word is what Unicode's segmentation (ICU) finds, cut at punctuation as well: `np.linalg.norm` and
`snake_case` are several. In scripts written without spaces ICU finds words by its dictionaries.
Case and accents make no difference. No word is left out as too common, and none is stemmed: that
would need the language of every chunk.

The index is built again over all rows with every `embedding_index`. Then scores depend on the rows
alone, and not on the order in which shards were written. Rows of shards that the index excludes are
never found, but count in how rare a word is.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import polars as pl
from lancedb.index import FTS
from lancedb.query import MatchQuery

from entropylong_assets.stages.embeddings.connection import quoted
from entropylong_assets.stages.embeddings.vector_table import FOUND_BY_TEXT, SCORE_DIGITS

COLUMN = "text"

_QUERIES_AT_ONCE = 4


def build_text_index(table: Any) -> None:
    """Index the words of all rows of a LanceDB table."""
    words = FTS(base_tokenizer="icu/split", stem=False, remove_stop_words=False)
    table.create_index(COLUMN, config=words, replace=True)


def drop_text_index(table: Any) -> None:
    """Drop the index of the present version, if there is one; tagged versions keep theirs."""
    for index in table.list_indices():
        if index.columns == [COLUMN]:
            table.drop_index(index.name)


def search_words(
    table: Any, texts: Sequence[str], limit: int, excluded_shards: Sequence[str] = ()
) -> pl.DataFrame:
    """Return the `limit` chunks per text with the highest BM25 score, in no order.

    A chunk is found if it has at least one word of the text. Columns as `FOUND_BY_TEXT`.
    """
    where = f"shard NOT IN {quoted(excluded_shards)}" if excluded_shards else None

    def search(text: str) -> pl.DataFrame:
        words: Any = MatchQuery  # its options have defaults that the type checker can't see
        query = table.search(words(text, COLUMN), query_type="fts").limit(limit)
        query = query.select(["chunk_id", "doc_id", "shard", "_score"])
        if where:
            query = query.where(where, prefilter=True)
        found = pl.from_arrow(query.to_arrow())
        assert isinstance(found, pl.DataFrame)
        return found

    with ThreadPoolExecutor(_QUERIES_AT_ONCE) as pool:
        parts = [
            rows.with_columns(pl.lit(number).alias("query"), pl.col("_score").alias("score"))
            for number, rows in enumerate(pool.map(search, texts))
        ]
    if not parts:
        return pl.DataFrame(schema=FOUND_BY_TEXT)
    found = pl.concat(part.select(FOUND_BY_TEXT.names()) for part in parts)
    return found.with_columns(pl.col("score").round(SCORE_DIGITS)).cast(FOUND_BY_TEXT)
