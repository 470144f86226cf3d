"""Phrases: how many documents of the corpus have the same two or three words in a row.

Wording that many documents share is boilerplate, whatever a context does for it. A phrase is two or
three adjacent words, joined by spaces. A word is a run of letters and digits, one letter of a
script that is written without spaces, or one other sign; white space makes no difference:

    text                  words                  phrases of three
    "Returns\\n--\\nout_x"  Returns - - out _ x    Returns - -, - - out, - out _, out _ x
    "今天下雨"             今 天 下 雨              今 天 下, 天 下 雨

Documents are counted, not occurrences. Counting is exact up to `max_documents` documents. Of a
larger corpus it takes those with the lowest ids: ids are hashes of the content, so these are a
random sample that does not depend on shards, and the share s of documents with a phrase has the
standard error sqrt(s (1 - s) / max_documents).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl
import regex

from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.storage.duck import querying
from entropylong_assets.storage.tables import TableStore

MAX_CHARS = 200_000
"""Characters of a document that are read; what follows adds no phrase."""

# The same patterns for DuckDB, whose engine is RE2, and for Python.
_ALONE = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}])"
_WORD = r"[\p{L}\p{M}\p{N}]+|[^\p{L}\p{M}\p{N}\p{Z}\p{C}]"
_IS_ALONE, _IS_WORD = regex.compile(_ALONE), regex.compile(_WORD)

_COUNT = f"""
WITH documents_once AS (
    SELECT doc_id, any_value(left(text, {MAX_CHARS})) AS text FROM documents
    WHERE doc_id <= $last GROUP BY doc_id
),
split AS (
    SELECT regexp_extract_all(
        regexp_replace(text, '{_ALONE}', ' \\1 ', 'g'), '{_WORD}'
    ) AS words
    FROM documents_once
),
phrases AS (
    SELECT unnest(list_distinct(list_transform(
        range(1, greatest(1, len(words))), lambda i: words[i] || ' ' || words[i + 1]
    ))) AS phrase
    FROM split
    UNION ALL
    SELECT unnest(list_distinct(list_transform(
        range(1, greatest(1, len(words) - 1)),
        lambda i: words[i] || ' ' || words[i + 1] || ' ' || words[i + 2]
    ))) AS phrase
    FROM split
)
SELECT phrase, count(*)::INTEGER AS documents
FROM phrases GROUP BY phrase HAVING count(*) > 1
"""

_LAST = """
SELECT max(doc_id), count(*) FROM (
    SELECT DISTINCT doc_id FROM documents ORDER BY doc_id LIMIT $max_documents
)
"""


def split_words(text: str) -> list[str]:
    """Return the words of a text, in order."""
    return _IS_WORD.findall(_IS_ALONE.sub(r" \1 ", text))


class Word(NamedTuple):
    """A word of a text: text[start:end]."""

    start: int
    end: int


def find_words(text: str) -> list[Word]:
    """Return where the words of a text are, in order."""
    words: list[Word] = []
    for match in _IS_WORD.finditer(text):
        start = match.start()
        for alone in _IS_ALONE.finditer(text, match.start(), match.end()):
            if start < alone.start():
                words.append(Word(start, alone.start()))
            words.append(Word(*alone.span()))
            start = alone.end()
        if start < match.end():
            words.append(Word(start, match.end()))
    return words


def count_phrases(
    store: TableStore, shards: Sequence[str], max_documents: int
) -> tuple[pl.DataFrame, int]:
    """Count the documents of these shards that have each phrase.

    Returns the phrases of at least two documents (columns: phrase, documents), sorted, and the
    number of documents read. DuckDB counts on disk what does not fit into its memory. Raises
    TableError if a table is missing or damaged, ConnectionError if the store does not answer.
    """
    empty = pl.DataFrame(schema={"phrase": pl.String, "documents": pl.Int32})
    if not shards or not max_documents:
        return empty, 0
    views = {"documents": (CORPUS_DOCUMENTS, list(shards), "documents")}
    with querying(store, views) as session:
        chosen = session.execute(_LAST, {"max_documents": max_documents}).fetchone()
        assert chosen is not None
        last, n_documents = chosen
        if not n_documents:
            return empty, 0
        session.execute(f"CREATE TEMP TABLE counted AS {_COUNT}", {"last": last})
        counted = pl.from_arrow(session.sql("FROM counted ORDER BY phrase").to_arrow_table())
    assert isinstance(counted, pl.DataFrame)
    return counted, n_documents
