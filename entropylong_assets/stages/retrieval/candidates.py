"""Candidates of all anchors of a shard: query, search and leak check, in batches of roots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import polars as pl

from entropylong_assets.stages.embeddings.embedder import Embedder
from entropylong_assets.stages.embeddings.vector_table import VectorTable
from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.retrieval.anchor_text import (
    AnchorText,
    count_documents,
    describe_anchor,
    words_of,
)
from entropylong_assets.stages.retrieval.leak_check import NEAR_DUPLICATE, PASSED
from entropylong_assets.stages.retrieval.merging import (
    BY_TEXT,
    CANDIDATES,
    add_similarity,
    merge_candidates,
)
from entropylong_assets.stages.retrieval.queries import anchor_query, fitting_queries
from entropylong_assets.stages.retrieval.registry import make_leak_check
from entropylong_assets.stages.retrieval.search import (
    COLUMNS,
    SearchTable,
    SearchText,
    nominate,
    nominate_by_text,
)
from entropylong_assets.stages.retrieval.settings import RetrievalSettings
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.storage.partition_writer import PartitionWriter

OTHER_SHARD, NO_CANDIDATES = "owned_by_another_shard", "no_candidates"
NEAR_DUPLICATE_ROOT = "near_duplicate_of_document"
"""Reasons to drop anchors."""

ROOTS_PER_BATCH = 16
"""Roots whose chunks are in memory at once."""

QUERIES = pl.Schema(CANDIDATE_CONTEXTS.schemas["queries"])

_CHUNK_COLUMNS = ["chunk_id", "doc_id", "source", "start", "end", "text"]


@dataclass(frozen=True, eq=False)
class Retriever:
    """Finds the candidates of anchors.

    search: searches `table`, which has `n_rows` indexed rows.
    """

    tokenizer: Tokenizer
    embedder: Embedder
    table: VectorTable
    search: SearchTable
    n_rows: int
    phrases: pl.DataFrame
    """Documents of the corpus by phrase."""
    settings: RetrievalSettings
    search_text: SearchText | None = None
    """Searches the words of `table`, if `text_candidates` asks for that."""

    def queries(self, roots: pl.DataFrame) -> tuple[pl.DataFrame, int]:
        """Return the rows of `queries`, one per anchor, and the number of shortened queries."""
        columns: dict[str, list[Any]] = {"root_id": [], "anchor": [], "query": []}
        columns["text_query"] = []
        texts: list[AnchorText] = []
        shortened = 0
        for root_id, token_ids, anchors in roots.select(
            "root_id", "token_ids", "anchors"
        ).iter_rows():
            queries, n = fitting_queries(
                partial(anchor_query, self.tokenizer, token_ids),
                anchors,
                self.settings.half_window,
                self.embedder.fits_window,
            )
            columns["root_id"] += [root_id] * len(anchors)
            columns["anchor"] += anchors
            columns["query"] += queries
            columns["text_query"] += [self._text_query(token_ids, t) for t in anchors]
            shortened += n
            texts += [describe_anchor(self.tokenizer.decode, token_ids, t) for t in anchors]
        counted = count_documents(
            self.phrases, [phrase for text in texts for phrase in (text.phrase, text.pair)]
        )
        columns["word"] = [text.word for text in texts]
        columns["kind"] = [text.kind for text in texts]
        # A phrase that is not listed occurs in no document besides this one.
        rare = 1 if len(self.phrases) else None
        columns["phrase_documents"] = [counted.get(text.phrase or "", rare) for text in texts]
        columns["pair_documents"] = [counted.get(text.pair or "", rare) for text in texts]
        return pl.DataFrame(columns, schema=QUERIES), shortened

    def _text_query(self, token_ids: Sequence[int], anchor: int) -> str | None:
        if not self.settings.text_candidates:
            return None
        return anchor_query(self.tokenizer, token_ids, anchor, self.settings.text_half_window)

    def nominate(self, queries: pl.DataFrame) -> pl.DataFrame:
        """Return the candidates of each anchor: the K nearest chunks, and those found by words.

        Equal queries are embedded once.
        """
        texts = queries["query"].unique(maintain_order=True)
        anchors = queries.select(pl.int_range(pl.len()).alias("query"), "root_id", "anchor")
        if not len(texts):
            return pl.DataFrame(schema=CANDIDATES).join(anchors, on="query")
        vectors = self.embedder.embed_queries(texts.to_list())
        position = {text: i for i, text in enumerate(texts)}
        vectors_QE = vectors[[position[text] for text in queries["query"]]]
        root_ids = anchors["root_id"].to_list()
        by_vector = nominate(self.search, vectors_QE, root_ids, self.settings.top_k, self.n_rows)
        by_text = pl.DataFrame(schema=COLUMNS)
        if self.search_text is not None:
            by_text = nominate_by_text(
                self.search_text,
                queries["text_query"].to_list(),
                root_ids,
                self.settings.text_candidates,
                self.n_rows,
            )
            by_text = add_similarity(by_text, vectors_QE, self.table)
        nominated = merge_candidates(by_vector, by_text)
        return nominated.join(anchors, on="query", maintain_order="left")

    def fetch(self, chunk_ids: pl.Series) -> pl.DataFrame:
        """Return place and text of these chunks, each once."""
        return self.table.fetch(chunk_ids.unique().sort().to_list(), _CHUNK_COLUMNS)

    def look_up_words(
        self, nominated: pl.DataFrame, queries: pl.DataFrame, chunks: pl.DataFrame
    ) -> pl.DataFrame:
        """Add has_word: whether the chunk contains the word of the anchor; null without a word."""
        words = {chunk_id: words_of(text) for chunk_id, text in _texts(chunks)}
        pairs = nominated.join(
            queries.select("root_id", "anchor", "word"),
            on=["root_id", "anchor"],
            how="left",
            maintain_order="left",
        )
        has_word = [
            None if word is None else word.casefold() in words[chunk_id]
            for chunk_id, word in pairs.select("chunk_id", "word").iter_rows()
        ]
        return nominated.with_columns(pl.Series("has_word", has_word, dtype=pl.Boolean))

    def check_leaks(
        self, nominated: pl.DataFrame, roots: pl.DataFrame, chunks: pl.DataFrame
    ) -> pl.DataFrame:
        """Add containment and leak_check. Each (root, chunk) is compared once."""
        checks = {
            root_id: make_leak_check(self.settings, self.tokenizer.decode(token_ids))
            for root_id, token_ids in roots.select("root_id", "token_ids").iter_rows()
        }
        text = dict(_texts(chunks))
        pairs = nominated.select("root_id", "chunk_id").unique(maintain_order=True)
        shares = [checks[root].containment(text[chunk]) for root, chunk in pairs.iter_rows()]
        pairs = pairs.with_columns(pl.Series("containment", shares, dtype=pl.Float32))
        # In float32, as it is stored, so that the SQL check decides alike.
        leaks = pl.col("containment") >= pl.lit(self.settings.max_containment, pl.Float32)
        result = pl.when(leaks).then(pl.lit(NEAR_DUPLICATE)).otherwise(pl.lit(PASSED))
        return nominated.join(
            pairs, on=["root_id", "chunk_id"], maintain_order="left"
        ).with_columns(leak_check=result)


def _texts(chunks: pl.DataFrame) -> Iterator[tuple[str, str]]:
    yield from chunks.select("chunk_id", "text").iter_rows()


@dataclass
class WrittenCandidates:
    """Counts of what was written for one shard."""

    roots: int = 0
    anchors: int = 0
    candidates: int = 0
    near_duplicate: int = 0
    found_by_text: int = 0
    chunks: int = 0
    shortened_queries: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Anchors by reason."""


def find_candidates(
    root_batches: Iterable[pl.DataFrame],
    removed_roots: Mapping[str, str],
    retriever: Retriever,
    writer: PartitionWriter,
    on_progress: Callable[[int], None] = lambda _: None,
) -> WrittenCandidates:
    """Write queries, candidates, their chunks and dropped anchors; return their counts.

    root_batches: frames with root_id, token_ids and anchors; one search covers all anchors of a
    frame. removed_roots: roots that the index does not contain, with the reasons; their anchors are
    dropped. on_progress: called with the number of anchors just finished.
    """
    output = _Output(retriever, writer)
    for roots in root_batches:
        is_removed = pl.col("root_id").is_in(list(removed_roots))
        output.drop_roots(roots.filter(is_removed), removed_roots)
        own = roots.filter(~is_removed)
        queries, shortened = retriever.queries(own)
        output.written.shortened_queries += shortened
        nominated = retriever.nominate(queries)
        for part in own.iter_slices(ROOTS_PER_BATCH):
            is_of_part = pl.col("root_id").is_in(part["root_id"].to_list())
            part_queries = queries.filter(is_of_part)
            output.write(part, part_queries, nominated.filter(is_of_part))
            on_progress(len(part_queries))
    return output.written


def gather_roots(batches: Iterable[pl.DataFrame], min_anchors: int) -> Iterator[pl.DataFrame]:
    """Yield the same roots in frames of at least `min_anchors` anchors; the last may have fewer."""
    pending: list[pl.DataFrame] = []
    anchors = 0
    for batch in batches:
        pending.append(batch)
        anchors += int(batch["anchors"].list.len().sum())
        if anchors >= min_anchors:
            yield pl.concat(pending)
            pending, anchors = [], 0
    if pending:
        yield pl.concat(pending)


class _Output:
    """Writes the tables of one shard, each chunk once, and counts."""

    def __init__(self, retriever: Retriever, writer: PartitionWriter) -> None:
        self.written = WrittenCandidates()
        self._retriever = retriever
        self._writer = writer
        self._chunk_ids = pl.Series("chunk_id", [], pl.String)

    def drop_roots(self, roots: pl.DataFrame, reasons: Mapping[str, str]) -> None:
        rows = [
            {"root_id": root, "anchor": None, "reason": reasons[root], "n_anchors": len(anchors)}
            for root, anchors in roots.select("root_id", "anchors").iter_rows()
        ]
        self._drop(rows)

    def write(self, roots: pl.DataFrame, queries: pl.DataFrame, nominated: pl.DataFrame) -> None:
        """Write the candidates of the anchors of these roots."""
        if len(nominated):
            self._write_candidates(roots, queries, nominated)
        key = ["root_id", "anchor"]
        without = queries.join(nominated.select(key), on=key, how="anti")
        self._writer.append("queries", queries)
        self._drop(
            [
                {"root_id": root_id, "anchor": anchor, "reason": NO_CANDIDATES, "n_anchors": 1}
                for root_id, anchor in without.select(key).iter_rows()
            ]
        )
        self.written.roots += len(roots)
        self.written.anchors += len(queries)

    def _write_candidates(
        self, roots: pl.DataFrame, queries: pl.DataFrame, nominated: pl.DataFrame
    ) -> None:
        chunks = self._retriever.fetch(nominated["chunk_id"])
        candidates = self._retriever.check_leaks(nominated, roots, chunks)
        candidates = self._retriever.look_up_words(candidates, queries, chunks)
        self._writer.append("candidates", candidates)
        new = chunks.join(self._chunk_ids.to_frame(), on="chunk_id", how="anti").sort("chunk_id")
        self._writer.append("chunks", new)
        self._chunk_ids = pl.concat([self._chunk_ids, new["chunk_id"]])
        self.written.candidates += len(candidates)
        self.written.found_by_text += len(candidates.filter(found_by=BY_TEXT))
        self.written.near_duplicate += len(candidates.filter(leak_check=NEAR_DUPLICATE))
        self.written.chunks = len(self._chunk_ids)

    def _drop(self, rows: list[dict[str, Any]]) -> None:
        self._writer.append("dropped", rows)
        for row in rows:
            self.written.dropped[row["reason"]] += row["n_anchors"]
