"""Time to add chunks to the LanceDB table, and to search it: exactly and by each type of index.

    python -m benchmarks.retrieval [--rows 1000000] [--index ivf_flat ...] [--keep]

The table, its indexes and its searches are those of the pipeline (`stages/embeddings`). Vectors
have 384 dimensions and are clustered (benchmarks/vectors.py); queries are other draws of the same
mixture. Recall@8 is measured on 256 queries that were not used to choose probes and refine factor.

Baseline of every search: LanceDB's own exact search in the same run, in calls of 128 queries, which
is 16 roots with 8 anchors each. Baseline of adding chunks: writing the same vectors as one NumPy
file. `--real` embeds texts with the demo's embedder instead, and searches nothing.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pyarrow as pa

from benchmarks.claims import Claims, median_seconds
from benchmarks.vectors import Mixture
from entropylong_assets.stages.embeddings.connection import chunk_schema
from entropylong_assets.stages.embeddings.exact import nearest
from entropylong_assets.stages.embeddings.index import (
    measure_recall,
    sample_queries,
    steer,
    true_worst,
)
from entropylong_assets.stages.embeddings.index_size import partitions
from entropylong_assets.stages.embeddings.table import ChunkTable
from entropylong_assets.stages.embeddings.vector_table import EXACT

E, K, DEEP, CHUNKS_PER_DOCUMENT, BATCH = 384, 8, 24, 5, 20_000
WORDS = "filler text, repeated until it is about a thousand characters long, as a chunk is. " * 12


def rows(mixture: Mixture, count: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for start in range(0, count, BATCH):
        n = min(BATCH, count - start)
        numbers = np.arange(start, start + n)
        docs = [f"{i // CHUNKS_PER_DOCUMENT * 2654435761 % 2**64:032x}" for i in numbers.tolist()]
        vectors_NE = mixture.draw(n, start)
        yield pa.record_batch(
            [
                [f"{d}-{i % CHUNKS_PER_DOCUMENT:05d}" for d, i in zip(docs, numbers, strict=True)],
                docs,
                ["s-00000"] * n,
                ["s"] * n,
                pa.array([0] * n, pa.int32()),
                pa.array([len(WORDS)] * n, pa.int32()),
                pa.array([f"{number} {WORDS}" for number in numbers], pa.large_string()),
                pa.FixedSizeListArray.from_arrays(pa.array(vectors_NE.reshape(-1)), E),
            ],
            schema=schema,
        )


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def ingest(claims: Claims, folder: Path, mixture: Mixture, count: int) -> ChunkTable:
    batches = list(rows(mixture, count, chunk_schema(E, "synthetic@1")))
    start = time.perf_counter()
    np.save(folder / "plain.npy", np.concatenate([b["vector"].flatten() for b in batches]))
    plain = time.perf_counter() - start
    (folder / "plain.npy").unlink()
    table = ChunkTable(str(folder), E, "synthetic@1")
    start = time.perf_counter()
    table.replace_shard("s-00000", batches)
    added = time.perf_counter() - start
    del batches
    start = time.perf_counter()
    table.index_for_lookup()
    table.optimize()
    claims.note(
        "ingest",
        rows=count,
        chunks_per_second=count / added,
        seconds_over_plain_file=added / plain,
        lookup_index_seconds=time.perf_counter() - start,
        bytes_per_chunk=size_of(folder) / count,
        bytes_of_its_vector=E * 4,
        bytes_of_its_text=len(WORDS) + 8,
    )
    return table


def search_exactly(claims: Claims, table: ChunkTable, queries_QE: np.ndarray, count: int) -> float:
    """Return the baseline's rate (queries per second)."""

    def lancedb_search() -> None:
        query: Any = table._table.search(queries_QE[:128], vector_column_name="vector")
        query = query.distance_type("cosine").limit(DEEP).bypass_vector_index()
        query.select(["chunk_id", "doc_id", "shard", "_distance"]).to_arrow()

    baseline = 128 / median_seconds(lancedb_search, 3 if count <= 200_000 else 1, 0)
    claims.note("lancedb_exact", rows=count, queries_per_call=128, queries_per_second=baseline)
    rate = 0.0
    for queries in sorted({min(n, len(queries_QE)) for n in (128, 1024, len(queries_QE))}):
        start = time.perf_counter()
        table.search(queries_QE[:queries], DEEP, how=EXACT)
        rate = queries / (time.perf_counter() - start)
        claims.note(
            "exact",
            rows=count,
            queries_per_call=queries,
            queries_per_second=rate,
            over_baseline=rate / baseline,
        )
    return baseline


def search_by_index(
    claims: Claims, table: ChunkTable, folder: Path, queries_QE: np.ndarray, count: int, kind: str
) -> None:
    before, start = size_of(folder), time.perf_counter()
    table.complete_index(kind)
    built = time.perf_counter() - start
    size = size_of(folder) - before
    chosen, chosen_QE = sample_queries(table, 100, 0)
    start = time.perf_counter()
    worst_Q = true_worst(table, chosen_QE, K + 1, "cpu")
    how, recall = steer(
        lambda search: measure_recall(table, chosen_QE, K, search, worst_Q, chosen),
        kind,
        0.95,
        partitions(count),
    )
    steered = time.perf_counter() - start
    other_QE = queries_QE[:256]
    worst_Q = nearest(other_QE, table.vectors(), K)[1][:, -1]
    claims.note(
        "index",
        rows=count,
        kind=kind,
        build_seconds=built,
        bytes_per_chunk=size / count,
        nprobes=how.nprobes,
        refine_factor=how.refine_factor,
        steering_seconds=steered,
        recall_steered=recall,
        recall_of_other_queries=measure_recall(table, other_QE, K, how, worst_Q),
        rss_mib=psutil.Process().memory_info().rss / 2**20,
    )
    for queries in sorted({min(n, len(queries_QE)) for n in (16, 128, 1024, len(queries_QE))}):

        def search(n: int = queries) -> pl.DataFrame:
            return table.search(queries_QE[:n], DEEP, how=how)

        seconds = median_seconds(search, 1 if queries > 1024 else 3)
        claims.note(
            "by_index",
            rows=count,
            kind=kind,
            queries_per_call=queries,
            queries_per_second=queries / seconds,
        )


def embed_real(claims: Claims) -> None:
    from entropylong_assets.project import make_project
    from entropylong_assets.stages.embeddings.chunking import chunk_document
    from entropylong_assets.stages.embeddings.embedder import load_embedder

    embedder = load_embedder(make_project(profile="quickstart").corpus.embedding)
    from pydoc_data.topics import topics

    start = time.perf_counter()
    chunks = [
        chunk.text
        for text in list(topics.values())
        for chunk in chunk_document(text, embedder.window_tokens, 64, embedder.count_tokens)
    ]
    chunking = time.perf_counter() - start
    chosen = chunks[:: len(chunks) // 256][:256]
    seconds = median_seconds(lambda: embedder.embed_documents(chosen), 3)
    claims.note(
        "real_embedder",
        chunks_cut_per_second=len(chunks) / chunking,
        chunks_embedded_per_second=len(chosen) / seconds,
        tokens_per_chunk=float(np.mean(embedder.count_tokens(chosen))),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=8192)
    parser.add_argument("--index", nargs="*", default=["ivf_flat", "ivf_sq", "ivf_rq"])
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--keep", action="store_true", help="search the table of an earlier run")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--out")
    args = parser.parse_args()
    claims = Claims("retrieval")
    if args.real:
        embed_real(claims)
        claims.finish(args.out)
        return
    folder = Path(args.folder) / f"entropylong-retrieval-{args.rows}"
    mixture = Mixture(topics=max(50, args.rows // 2000), groups=args.rows // 25, dimension=E)
    queries_QE = mixture.draw(args.queries, 10**9 + 7)
    if args.keep:
        table = ChunkTable(str(folder), E, "synthetic@1")
    else:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        table = ingest(claims, folder, mixture, args.rows)
        search_exactly(claims, table, queries_QE, args.rows)
    for kind in args.index:
        search_by_index(claims, table, folder, queries_QE, args.rows, kind)
    claims.finish(args.out)


if __name__ == "__main__":
    main()
