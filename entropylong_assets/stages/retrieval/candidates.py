"""Candidates of all anchors of a shard: query, search, leak guard, in batches of roots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import polars as pl

from entropylong_assets.settings.model import RetrievalSettings
from entropylong_assets.stages.embeddings.embedder import Embedder
from entropylong_assets.stages.embeddings.table import ChunkTable
from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.retrieval.leak_check import RootGuard
from entropylong_assets.stages.retrieval.queries import anchor_query
from entropylong_assets.stages.retrieval.search import COLUMNS, SearchTable, nominate
from entropylong_assets.storage.tables import PartitionWriter

PASSED, NEAR_DUPLICATE = "passed", "near_duplicate"

ROOTS_A_BATCH = 16
"""Roots whose passages are held in memory at once."""

_CHUNK_COLUMNS = ["chunk_id", "doc_id", "source", "start", "end", "text"]


def find_candidates(
    root_batches: Iterable[pl.DataFrame],
    foreign_roots: frozenset[str],
    tokenizer: Tokenizer,
    embedder: Embedder,
    table: ChunkTable,
    search: SearchTable,
    n_rows: int,
    settings: RetrievalSettings,
    writer: PartitionWriter,
    on_progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Writes queries, candidates and their chunks; returns the counts.

    root_batches: root_id, token_ids, anchors; the anchors of each are searched for together.
    foreign_roots: roots whose document another shard owns; their anchors are dropped here, with
    the reason. `on_progress` gets finished anchors.
    """
    known = pl.Series("chunk_id", [], pl.String)
    counts: Counter[str] = Counter()
    for roots in root_batches:
        dropped = _dropped_roots(roots, foreign_roots)
        writer.append("dropped", dropped)
        counts["dropped_owned_by_another_shard"] += sum(row["n_anchors"] for row in dropped)
        own = roots.filter(~pl.col("root_id").is_in(list(foreign_roots)))
        queries = _queries(own, tokenizer, settings.half_window)
        found = _searched(queries, embedder, search, n_rows, settings.top_k)
        for part in own.iter_slices(ROOTS_A_BATCH):
            mine = pl.col("root_id").is_in(part["root_id"].to_list())
            asked, nominated = queries.filter(mine), found.filter(mine)
            known = _write(
                asked, nominated, part, known, table, tokenizer, settings, writer, counts
            )
            on_progress(len(asked))
    counts["chunks"] = len(known)
    return {name: n for name, n in counts.items() if n or not name.startswith("dropped_")}


def gathered(batches: Iterable[pl.DataFrame], queries: int) -> Iterator[pl.DataFrame]:
    """The same roots in batches of at least so many anchors (the last one: what is left)."""
    pending: list[pl.DataFrame] = []
    anchors = 0
    for batch in batches:
        pending.append(batch)
        anchors += int(batch["anchors"].list.len().sum())
        if anchors >= queries:
            yield pl.concat(pending)
            pending, anchors = [], 0
    if pending:
        yield pl.concat(pending)


def _searched(
    queries: pl.DataFrame, embedder: Embedder, search: SearchTable, n_rows: int, top_k: int
) -> pl.DataFrame:
    """The K nearest chunks of each anchor, equal queries embedded once."""
    texts = queries["query"].unique(maintain_order=True)
    asked = queries.select(pl.int_range(pl.len()).alias("query"), "root_id", "anchor")
    if not len(texts):
        return pl.DataFrame(schema=COLUMNS).join(asked, on="query")
    vectors = embedder.embed(texts.to_list())
    position = {text: i for i, text in enumerate(texts)}
    rows = [position[text] for text in queries["query"]]
    found = nominate(search, vectors[rows], asked["root_id"].to_list(), top_k, n_rows)
    return found.join(asked, on="query", maintain_order="left")


def _write(
    queries: pl.DataFrame,
    found: pl.DataFrame,
    roots: pl.DataFrame,
    known: pl.Series,
    table: ChunkTable,
    tokenizer: Tokenizer,
    settings: RetrievalSettings,
    writer: PartitionWriter,
    counts: Counter[str],
) -> pl.Series:
    """Guards and writes what was found for a few roots; returns the chunks written so far."""
    if len(found):
        chunks = table.fetch(found["chunk_id"].unique().sort().to_list(), _CHUNK_COLUMNS)
        candidates = _guarded(found, roots, chunks, tokenizer, settings)
        writer.append("candidates", candidates)
        new = chunks.join(known.to_frame(), on="chunk_id", how="anti").sort("chunk_id")
        writer.append("chunks", new)
        known = pl.concat([known, new["chunk_id"]])
        counts["candidates"] += len(candidates)
        counts["near_duplicate"] += len(candidates.filter(pl.col("guard") == NEAR_DUPLICATE))
    without = queries.join(found.select("root_id", "anchor"), on=["root_id", "anchor"], how="anti")
    writer.append("queries", queries)
    writer.append(
        "dropped",
        [
            {"root_id": r, "anchor": a, "reason": "no_candidates", "n_anchors": 1}
            for r, a in without.select("root_id", "anchor").iter_rows()
        ],
    )
    counts["roots"] += len(roots)
    counts["anchors"] += len(queries)
    counts["dropped_no_candidates"] += len(without)
    return known


def _dropped_roots(roots: pl.DataFrame, foreign: frozenset[str]) -> list[dict[str, Any]]:
    rows = roots.filter(pl.col("root_id").is_in(list(foreign)))
    return [
        {"root_id": r, "anchor": None, "reason": "owned_by_another_shard", "n_anchors": len(a)}
        for r, a in rows.select("root_id", "anchors").iter_rows()
    ]


def _queries(roots: pl.DataFrame, tokenizer: Tokenizer, half_window: int) -> pl.DataFrame:
    rows = [
        {"root_id": r, "anchor": t, "query": anchor_query(tokenizer, ids, t, half_window)}
        for r, ids, anchors in roots.select("root_id", "token_ids", "anchors").iter_rows()
        for t in anchors
    ]
    return pl.DataFrame(rows, schema={"root_id": pl.String, "anchor": pl.Int32, "query": pl.String})


def _guarded(
    found: pl.DataFrame,
    roots: pl.DataFrame,
    chunks: pl.DataFrame,
    tokenizer: Tokenizer,
    settings: RetrievalSettings,
) -> pl.DataFrame:
    """Adds containment and guard; each (root, chunk) is compared once."""
    guards = {
        r: RootGuard(tokenizer.decode(ids), settings.leak_ngram_words)
        for r, ids in roots.select("root_id", "token_ids").iter_rows()
    }
    text = dict(chunks.select("chunk_id", "text").iter_rows())
    compared = found.select("root_id", "chunk_id").unique(maintain_order=True)
    shares = [guards[r].containment(text[c]) for r, c in compared.iter_rows()]
    compared = compared.with_columns(pl.Series("containment", shares, dtype=pl.Float32))
    copied = pl.col("containment") >= pl.lit(settings.max_containment, pl.Float32)
    guard = pl.when(copied).then(pl.lit(NEAR_DUPLICATE)).otherwise(pl.lit(PASSED))
    return found.join(compared, on=["root_id", "chunk_id"], maintain_order="left").with_columns(
        guard.alias("guard")
    )
