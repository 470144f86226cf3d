"""An index of segments, built by two workers, against one segment built by one worker.

    python -m benchmarks.index_segments [--rows 1000000] [--shards 8] [--rounds 3]

Vectors are those of `benchmarks/vectors.py`, 384 dimensions. Each worker is a process that is bound
to a core of its own, with one thread in Lance and one in torch. Three builds alternate:

- `former`: LanceDB trains and builds one index, as before there were segments;
- `one`: one worker trains centroids and builds one segment over all rows;
- `two`: two workers train the centroids, and build a segment per shard. Then one process merges the
  segments, as `embedding_index` does; its time is reported apart.

Then the indexes are searched in turn, that of the segments before and after they were merged, with
probes steered to a recall@8 of 0.95 as `embedding_index` does. At last 1% of new rows is indexed.
The CPU seconds show what the builds cost if other processes take part of the machine: the ratio of
seconds needs two idle cores. On a busy machine, compare the CPU seconds of one worker with those of
the longer of two.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from benchmarks.claims import Claims
from benchmarks.vectors import Mixture
from entropylong_assets.stages.embeddings.centroids import load_or_train
from entropylong_assets.stages.embeddings.connection import chunk_schema, open_existing
from entropylong_assets.stages.embeddings.exact import nearest
from entropylong_assets.stages.embeddings.index import measure_recall, steer
from entropylong_assets.stages.embeddings.index_size import partitions
from entropylong_assets.stages.embeddings.segments import SegmentedIndex
from entropylong_assets.stages.embeddings.shard_commits import open_dataset
from entropylong_assets.stages.embeddings.table import ChunkTable, open_table
from entropylong_assets.storage.tables import TableStore

E, K = 384, 8
EMBEDDER = "synthetic@1"
BATCH = 10_000
QUERIES = 512


class Built(NamedTuple):
    seconds: float
    cpu: float
    longest: float
    """CPU seconds of the worker that used most: the time on idle cores."""
    merging_seconds: float = 0.0
    merging_cpu: float = 0.0


def write_shard(table: ChunkTable, mixture: Mixture, shard: str, first: int, rows: int) -> None:
    schema = chunk_schema(E, EMBEDDER)

    def batches() -> Any:
        for start in range(first, first + rows, BATCH):
            n = min(BATCH, first + rows - start)
            numbers = [f"{number:012d}" for number in range(start, start + n)]
            vectors = pa.array(mixture.draw(n, start).reshape(-1))
            columns = [
                pa.array([f"{number}-00000" for number in numbers]),
                pa.array(numbers),
                pa.array([shard] * n),
                pa.array(["s"] * n),
                pa.array([0] * n, pa.int32()),
                pa.array([9] * n, pa.int32()),
                pa.array(numbers, pa.large_string()),
                pa.FixedSizeListArray.from_arrays(vectors, E),
            ]
            yield pa.record_batch(columns, schema=schema)

    table.replace_shard(shard, batches())


def work(uri: str, how: str, core: int, settings: Any, ready: Any, waiting: Any, done: Any) -> None:
    """Target of a worker: build until nothing waits; then put the CPU seconds."""
    import torch

    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[core % len(cores)]})
    torch.set_num_threads(1)
    kind, generation = settings
    index = SegmentedIndex(uri, kind, generation)
    table = open_existing(uri)
    ready.wait()
    before = _cpu_seconds()
    while (shard := waiting.get()) is not None:
        if how == "former":
            _build_formerly(table)
        elif how == "one":
            index.complete()
        else:
            index.index_shard(shard)
    done.put(_cpu_seconds() - before)


def _build_formerly(table: Any) -> None:
    from lancedb.index import IvfFlat

    config = IvfFlat(
        distance_type="cosine",
        num_partitions=partitions(table.count_rows()),
        sample_rate=64,
        max_iterations=20,
    )
    table.create_index("vector", config=config, replace=True)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def build(uri: str, how: str, shards: list[str], kind: str, generation: int) -> Built:
    """Build an index in processes of their own."""
    workers = 2 if how == "two" else 1
    context = get_context("spawn")
    ready, waiting, done = context.Barrier(workers + 1), context.Queue(), context.Queue()
    for item in [*(shards if how == "two" else ["all"]), *[None] * workers]:
        waiting.put(item)
    processes = [
        context.Process(
            target=work, args=(uri, how, core, (kind, generation), ready, waiting, done)
        )
        for core in range(workers)
    ]
    for process in processes:
        process.start()
    ready.wait()
    began = time.perf_counter()
    cpu = [done.get() for _ in processes]
    seconds = time.perf_counter() - began
    for process in processes:
        process.join()
        assert process.exitcode == 0
    built = Built(seconds, sum(cpu), max(cpu))
    if how != "two":
        return built
    index = SegmentedIndex(uri, kind, generation)
    index._drop_others(open_dataset(uri))  # or the search would take the index of before
    open_table(_store(uri)).tag("unmerged")
    began, before = time.perf_counter(), _cpu_seconds()
    index.complete()
    return built._replace(
        merging_seconds=time.perf_counter() - began, merging_cpu=_cpu_seconds() - before
    )


def compare_builds(
    claims: Claims, uri: str, shards: list[str], kind: str, rounds: int
) -> dict[str, list[Built]]:
    """Build in alternation; tag the last index of `one` and of `two`."""
    built: dict[str, list[Built]] = {"former": [], "one": [], "two": []}
    for number in range(rounds):
        for offset, how in enumerate(built):
            generation = 3 * number + offset
            done = build(uri, how, shards, kind, generation)
            built[how].append(done)
            claims.note("build", how=how, **done._asdict())
            table = open_table(_store(uri))
            if how == "former":
                table._table.drop_index("vector_idx")
            else:
                index = SegmentedIndex(uri, kind, generation)
                assert index.unindexed_rows(table.version) == 0
                table.tag(how)
    return built


def compare_searches(claims: Claims, uri: str, kind: str, mixture: Mixture, rounds: int) -> Any:
    """Search the indexes in turn; return the steered search of the segments."""
    steering_QE, other_QE = mixture.draw(128, 10**9), mixture.draw(QUERIES, 2 * 10**9)
    tables = {how: open_table(_store(uri), how) for how in ("one", "unmerged", "two")}
    exact = [nearest(q, tables["one"].vectors(), K)[1][:, -1] for q in (steering_QE, other_QE)]
    count = partitions(tables["one"].rows)
    how_to, recalls = {}, {}
    for how, table in tables.items():
        search, _ = steer(
            lambda s, t=table: measure_recall(t, steering_QE, K, s, exact[0]), kind, 0.95, count
        )
        how_to[how], recalls[how] = search, measure_recall(table, other_QE, K, search, exact[1])
    seconds: dict[str, list[float]] = {how: [] for how in tables}
    cpu: dict[str, list[float]] = {how: [] for how in tables}
    for _ in range(4 * rounds + 1):
        for how, table in tables.items():
            began, before = time.perf_counter(), _cpu_seconds()
            table.search(other_QE, K, how=how_to[how])
            seconds[how].append(time.perf_counter() - began)
            cpu[how].append(_cpu_seconds() - before)
    rates = {how: QUERIES / statistics.median(times[1:]) for how, times in seconds.items()}
    used = {how: statistics.median(times[1:]) / QUERIES for how, times in cpu.items()}
    for how, search in how_to.items():
        claims.note(
            "search",
            how=how,
            nprobes=search.nprobes,
            refine_factor=search.refine_factor,
            recall_of_other_queries=recalls[how],
            queries_per_second=rates[how],
            cpu_seconds_per_query=used[how],
        )
    claims.note(
        "search_ratio",
        cpu_of_one_over_two=used["one"] / used["two"],
        cpu_of_one_over_unmerged=used["one"] / used["unmerged"],
    )
    claims.claim("recall_of_segments", recalls["two"], 0.95, 0)
    claims.claim("queries_per_second_of_segments", rates["two"] / rates["one"], 0.8, 0)
    return how_to["two"]


def add_rows(
    claims: Claims, uri: str, kind: str, generation: int, mixture: Mixture, search: Any
) -> Built:
    """Index 1% of new rows; the recall is measured with the probes of before."""
    table = open_table(_store(uri))
    before = table.rows
    write_shard(table, mixture, "new", before, before // 100)
    done = build(uri, "one", [], kind, generation)
    other_QE = mixture.draw(QUERIES, 3 * 10**9)
    table = open_table(_store(uri))
    assert SegmentedIndex(uri, kind, generation).unindexed_rows(table.version) == 0
    worst_Q = nearest(other_QE, table.vectors(), K)[1][:, -1]
    recall = measure_recall(table, other_QE, K, search, worst_Q)
    claims.note("add", rows=before // 100, **done._asdict())
    claims.claim("recall_after_adding", recall, 0.95, 0)
    return done


def _store(uri: str) -> TableStore:
    data_uri, _, corpus = uri.rpartition("/")
    return TableStore(data_uri, corpus)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", default="ivf_flat")
    parser.add_argument("--folder", help="where the table is written; default: a temporary folder")
    parser.add_argument("--json", help="file for the figures")
    chosen = parser.parse_args()
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "LANCE_CPU_THREADS"), "1")
    claims = Claims("index_segments")
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        uri = str(Path(name) / "corpus")
        table = ChunkTable(uri, E, EMBEDDER)
        mixture = Mixture(max(20, chosen.rows // 1000), max(200, chosen.rows // 10))
        shards = [f"s{number:03d}" for number in range(chosen.shards)]
        rows = chosen.rows // chosen.shards
        for number, shard in enumerate(shards):
            write_shard(table, mixture, shard, number * rows, rows)
        began = _cpu_seconds()
        trained = load_or_train(uri, 10**6, "cpu")
        claims.note("train", partitions=len(trained.vectors_PE), cpu=_cpu_seconds() - began)
        built = compare_builds(claims, uri, shards, chosen.kind, chosen.rounds)
        search = compare_searches(claims, uri, chosen.kind, mixture, chosen.rounds)
        last = 3 * chosen.rounds - 1  # the generation of the segments built last
        added = add_rows(claims, uri, chosen.kind, last, mixture, search)

    def median(how: str, of: int) -> float:
        return statistics.median(run[of] for run in built[how])

    pairs = zip(built["one"], built["two"], strict=True)
    speed_up = statistics.median(one.seconds / two.seconds for one, two in pairs)
    claims.note(
        "ratios",
        former_over_one=median("former", 0) / median("one", 0),
        former_over_two=median("former", 0) / median("two", 0),
        cpu_of_one_over_longest_of_two=median("one", 1) / median("two", 2),
        cpu_of_one_over_longest_of_two_and_merging=median("one", 1)
        / (median("two", 2) + median("two", 4)),
        two_workers_and_merging_over_one=median("one", 0) / (median("two", 0) + median("two", 3)),
        cpu_of_two_over_one=median("two", 1) / median("one", 1),
        cpu_of_one_over_adding=median("one", 1) / added.cpu,
    )
    claims.claim("two_workers_over_one", speed_up, 1.7, 0)
    claims.claim("rebuild_over_adding", median("one", 0) / added.seconds, 20, 0)
    claims.finish(chosen.json)


if __name__ == "__main__":
    main()
