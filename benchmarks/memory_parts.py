"""Peak memory of what the stages ask of the table of chunks, and of the largest checks, by size.

    python -m benchmarks.memory_parts [--chunks 30000 300000] [--samples 6 64] [--folder FOLDER]

The parts that grow in `benchmarks/memory.py`, alone and in minutes: each in a process of its own,
which prints the maximum resident memory above that before the part (MiB) and its CPU seconds. The
chunks have clustered vectors of 384 dimensions and an `ivf_flat` index. Checks read tables of
random tokens: 2,000 roots with 45 anchors and K = 8, and samples of 131,072 tokens from 300,000
contexts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.claims import Claims
from benchmarks.memory import DIMENSION, Watch
from benchmarks.vectors import Mixture
from entropylong_assets.stages import retrieval, samples
from entropylong_assets.stages.embeddings.connection import chunk_schema
from entropylong_assets.stages.embeddings.table import ChunkTable
from entropylong_assets.stages.embeddings.vector_table import EXACT, Search
from entropylong_assets.storage import duck
from entropylong_assets.storage.tables import TableStore

QUERIES, BATCHES, NEAREST = 1024, 4, 24
ROWS_PER_WRITE = 5000
CONTEXTS, CONTEXT_TOKENS, SAMPLE_TOKENS = 300_000, 60, 131_072
ROOTS, ANCHORS, TOP_K = 2000, 45, 8
TABLE_PARTS = ("scan of all vectors", "exact search", "search by index", "sample of chunks")
CHECK_PARTS = {"tokens_as_verified": samples, "ranks_without_gap": retrieval}


def mixture() -> Mixture:
    return Mixture(topics=200, groups=20_000, dimension=DIMENSION)


def open_chunks(folder: Path) -> ChunkTable:
    return ChunkTable(str(folder / "data/corpus"), DIMENSION, "synthetic@1")


def write_chunks(folder: Path, count: int) -> None:
    schema, drawn = chunk_schema(DIMENSION, "synthetic@1"), mixture()

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, count, ROWS_PER_WRITE):
            n = min(ROWS_PER_WRITE, count - start)
            vectors = drawn.draw(n, start + 7).astype(np.float32).reshape(-1)
            docs = [f"{start + i:032x}" for i in range(n)]
            columns = {
                "chunk_id": pa.array([f"{doc}-00000" for doc in docs]),
                "doc_id": pa.array(docs),
                "shard": pa.array(["s-00000"] * n),
                "source": pa.array(["s"] * n),
                "start": pa.array([0] * n, pa.int32()),
                "end": pa.array([400] * n, pa.int32()),
                "text": pa.array(["word " * 80] * n, pa.large_string()),
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors), DIMENSION),
            }
            yield pa.record_batch([columns[name] for name in schema.names], schema=schema)

    table = open_chunks(folder)
    table.replace_shard("s-00000", batches())
    table.index_for_lookup()
    table.complete_index("ivf_flat")


def token_lists(ids: np.ndarray) -> pa.Array:
    offsets = np.arange(0, ids.size + 1, ids.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(ids.reshape(-1)))


def name_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()[:32]


def write_samples(folder: Path, count: int) -> None:
    """Write samples of random contexts, with the tables that their check reads."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, 49_152, (CONTEXTS, CONTEXT_TOKENS), dtype=np.uint32)
    keys = [f"{name_of(i)}-00000" for i in range(CONTEXTS)]
    columns = {"chunk_id": pa.array(keys), "token_ids": token_lists(tokens)}
    pq.write_table(pa.table(columns), folder / "contexts.parquet", row_group_size=5000)
    pq.write_table(pa.table(columns).slice(0, 0), folder / "passages.parquet")
    roots = pa.table({"root_id": pa.array(keys[:1]), "token_ids": token_lists(tokens[:1])})
    pq.write_table(roots, folder / "roots.parquet")
    segments, ids, whole = [], [], SAMPLE_TOKENS // CONTEXT_TOKENS
    for sample in range(count):
        chosen = draw.integers(0, CONTEXTS, whole)
        row = np.zeros(SAMPLE_TOKENS, np.uint32)
        row[: whole * CONTEXT_TOKENS] = tokens[chosen].reshape(-1)
        ids.append(row)
        for place, i in enumerate(chosen.tolist()):
            start = place * CONTEXT_TOKENS
            segment = {"sample_id": f"s-{sample:05d}", "start": start, "role": "hard_negative"}
            end = start + CONTEXT_TOKENS
            segments.append({**segment, "end": end, "chunk_id": keys[i], "root_id": keys[0]})
    pq.write_table(pa.Table.from_pylist(segments), folder / "segments.parquet")
    named = pa.array([f"s-{sample:05d}" for sample in range(count)])
    stored = pa.table({"sample_id": named, "input_ids": token_lists(np.stack(ids))})
    pq.write_table(stored, folder / "samples.parquet", row_group_size=16)


def write_candidates(folder: Path, roots: int) -> None:
    folder.mkdir(parents=True)
    draw = np.random.default_rng(1)
    pairs = ANCHORS * TOP_K
    parts = []
    for root in range(roots):
        chunks = [f"{name_of(int(i))}-00000" for i in draw.integers(0, 10**9, pairs)]
        columns = {
            "root_id": pa.array([name_of(-root - 1)] * pairs),
            "anchor": pa.array(np.repeat(np.arange(ANCHORS, dtype=np.int32), TOP_K)),
            "rank": pa.array(np.tile(np.arange(1, TOP_K + 1, dtype=np.int32), ANCHORS)),
            "chunk_id": pa.array(chunks),
            "found_by": pa.array(["vector"] * pairs),
        }
        parts.append(pa.table(columns))
    pq.write_table(pa.concat_tables(parts), folder / "candidates.parquet", row_group_size=5000)


def work(folder: Path, part: str) -> None:
    if part in CHECK_PARTS:
        path = Path(CHECK_PARTS[part].__file__).parent / "checks" / f"{part}.sql"
        sql, store = path.read_text(encoding="utf-8"), TableStore(str(folder))
        values = {"separator_ids": [0], "sample_tokens": SAMPLE_TOKENS}
        values |= {"top_k": TOP_K, "text_candidates": 0}
        with duck.connect(store, {}) as session:
            for file in folder.glob("*.parquet"):
                session.execute(f"CREATE VIEW {file.stem} AS FROM read_parquet('{file}')")
            used = {name: value for name, value in values.items() if f"${name}" in sql}
            assert len(session.execute(sql, used).fetchall()) == 0
        return
    table = open_chunks(folder)
    if part == "sample of chunks":
        table.sample_chunks([])
    elif part == "scan of all vectors":
        for _ in table.vectors():
            pass
    else:
        how = EXACT if part == "exact search" else Search("ivf_flat", 4)
        for batch in range(1 if how is EXACT else BATCHES):
            vectors_QE = mixture().draw(QUERIES, 999 + batch).astype(np.float32)
            table.search(vectors_QE, NEAREST, how=how, device="cpu")


def measure(folder: Path, part: str) -> None:
    """Run one part and print its figures; for a process of its own."""
    if part not in CHECK_PARTS:
        open_chunks(folder)
        mixture().draw(QUERIES, 0)
    before, watch, start = psutil.Process().memory_info().rss, Watch(), time.process_time()
    watch.start()
    work(folder, part)
    peak = watch.stop()
    seconds = time.process_time() - start
    print(json.dumps({"mib_above": (peak - before) / 2**20, "cpu_s": seconds}), flush=True)


def run(folder: Path, part: str) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory_parts"]
    done = subprocess.run(
        [*command, "--part", part, "--folder", str(folder)], stdout=subprocess.PIPE, check=True
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, nargs="*", default=[30_000, 300_000])
    parser.add_argument("--samples", type=int, nargs="*", default=[6, 64])
    parser.add_argument("--roots", type=int, nargs="*", default=[200, 2000])
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.part:
        measure(Path(args.folder), args.part)
        return
    claims = Claims("memory_parts")
    home = Path(args.folder) / "entropylong-memory-parts"
    shutil.rmtree(home, ignore_errors=True)
    for count in args.chunks:
        write_chunks(home / f"chunks-{count}", count)
        for part in TABLE_PARTS:
            claims.note(part, chunks=count, **run(home / f"chunks-{count}", part))
    for count in args.samples:
        write_samples(home / f"samples-{count}", count)
        figures = run(home / f"samples-{count}", "tokens_as_verified")
        claims.note("tokens_as_verified", samples=count, **figures)
    for count in args.roots:
        write_candidates(home / f"roots-{count}", count)
        figures = run(home / f"roots-{count}", "ranks_without_gap")
        claims.note("ranks_without_gap", pairs=count * ANCHORS * TOP_K, **figures)
    claims.finish(args.out)


if __name__ == "__main__":
    main()
