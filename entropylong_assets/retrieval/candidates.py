"""Candidates of all anchors of a shard: query, search, leak guard, in batches of roots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import polars as pl

from entropylong_assets.embeddings.embedder import Embedder
from entropylong_assets.embeddings.table import ChunkTable
from entropylong_assets.entropy.model import Tokenizer
from entropylong_assets.retrieval.leak_guard import RootGuard
from entropylong_assets.retrieval.queries import anchor_query
from entropylong_assets.retrieval.search import SearchTable, nominate
from entropylong_assets.settings import RetrievalSettings
from entropylong_assets.storage.tables import PartitionWriter

PASSED, NEAR_DUPLICATE = "passed", "near_duplicate"

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

    root_batches: root_id, token_ids, anchors. foreign_roots: roots whose document another shard
    owns; their anchors are dropped here, with the reason. `on_progress` gets finished anchors.
    """
    known_chunks: set[str] = set()
    counts: Counter[str] = Counter()
    for roots in root_batches:
        own = roots.filter(~pl.col("root_id").is_in(list(foreign_roots)))
        dropped = _dropped_roots(roots, foreign_roots)
        queries = _queries(own, tokenizer, settings.half_window)
        texts = queries["query"].unique(maintain_order=True)
        vectors = embedder.embed(texts.to_list()) if len(texts) else None
        position = {text: i for i, text in enumerate(texts)}
        found = pl.DataFrame()
        if vectors is not None:
            rows = [position[text] for text in queries["query"]]
            asked = queries.select(pl.int_range(pl.len()).alias("query"), "root_id", "anchor")
            found = nominate(
                search, vectors[rows], asked["root_id"].to_list(), settings.top_k, n_rows
            ).join(asked, on="query", maintain_order="left")
        if len(found):
            chunks = table.fetch(found["chunk_id"].unique().sort().to_list(), _CHUNK_COLUMNS)
            candidates = _guarded(found, own, chunks, tokenizer, settings)
            writer.append("candidates", candidates)
            new = chunks.filter(~pl.col("chunk_id").is_in(list(known_chunks))).sort("chunk_id")
            writer.append("chunks", new)
            known_chunks.update(new["chunk_id"])
            counts["candidates"] += len(candidates)
            refused = candidates.filter(pl.col("guard") == NEAR_DUPLICATE)
            counts["near_duplicate"] += len(refused)
            found_anchors = found.select("root_id", "anchor").unique()
        else:
            found_anchors = queries.select("root_id", "anchor").clear()
        without = queries.join(found_anchors, on=["root_id", "anchor"], how="anti")
        dropped += [
            {"root_id": r, "anchor": a, "reason": "no_candidates", "n_anchors": 1}
            for r, a in without.select("root_id", "anchor").iter_rows()
        ]
        writer.append("queries", queries)
        writer.append("dropped", dropped)
        counts["roots"] += len(own)
        counts["anchors"] += len(queries)
        for row in dropped:
            counts[f"dropped_{row['reason']}"] += row["n_anchors"]
        on_progress(len(queries))
    counts["chunks"] = len(known_chunks)
    return dict(counts)


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
