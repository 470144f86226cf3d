"""Time to embed the same shards with one worker and with two, into one LanceDB table.

    OMP_NUM_THREADS=1 python -m benchmarks.ingestion [--shards 8] [--rows 12] [--rounds 3]

Each worker is a process with the demo's embedder on one torch thread. It materializes
`chunk_embeddings`, as a step of a run does, for the next shard that no worker has taken. Runs with
one worker and with two alternate; each begins with an empty table. The time is measured from the
moment when all workers have loaded the embedder, to the last commit. The CPU seconds per shard say
whether two workers do more work than one; if they do not, the rest of a ratio below 2 is time that
other processes of the machine took. Target: two workers are at least 1.8 times as fast, if the
machine has two idle cores. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from entropylong_assets.project import make_project, open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.formats import python_docs
from entropylong_assets.stages.corpus.shards import plan_shards, save_plan
from entropylong_assets.stages.corpus.stage import CORPUS_DOCUMENTS_STAGE
from entropylong_assets.stages.embeddings.chunk_stage import CHUNK_EMBEDDINGS_STAGE
from entropylong_assets.stages.embeddings.tables import CHUNK_EMBEDDINGS
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.stage import Partition

PACKAGES = ("torch.nn", "torch.optim", "torch.distributions", "sklearn", "scipy.stats")
TARGET = 1.8


def settings_for(folder: Path, shard_rows: int = 10_000, **embedding: Any) -> Settings:
    """Settings of a corpus of JSON Lines in this folder; embedding: by default on a CPU."""
    values = {
        "profile": "quickstart",
        "data_uri": str(folder / "data"),
        "corpus": {
            "sources": [{"name": "docs", "uri": f"{folder}/corpus/*.jsonl"}],
            "shard_rows": shard_rows,
        },
        "embedding": {"device": "cpu"} | embedding,
    }
    return make_project(values).corpus


def write_corpus(folder: Path, shards: int, rows: int) -> None:
    """Write package documentation, distributed by length so that shards are equal."""
    docs = {doc.text for package in PACKAGES for doc in python_docs.read(package)}
    chosen = sorted(sorted(text for text in docs if len(text) < 6_000), key=len, reverse=True)
    assert len(chosen) >= shards * rows, f"only {len(chosen)} documents"
    folder.mkdir(parents=True)
    for shard in range(shards):
        lines = [json.dumps({"text": text}) + "\n" for text in chosen[shard::shards][:rows]]
        (folder / f"{shard}.jsonl").write_text("".join(lines), encoding="utf-8")


def embed_shards(folder: Path, ready: Any, waiting: Any, done: Any) -> None:
    """Target of a worker: embed shards until none waits; then put the CPU seconds."""
    import torch

    from entropylong_assets.stages.embeddings.embedder import load_embedder

    torch.set_num_threads(1)
    settings = settings_for(folder)
    load_embedder(settings.embedding)
    store = open_store(settings)
    ready.wait()
    before = _cpu_seconds()
    while (shard := waiting.get()) is not None:
        materialize(CHUNK_EMBEDDINGS_STAGE, Partition(settings, store, shard))
    done.put(_cpu_seconds() - before)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(folder: Path, shards: list[str], workers: int) -> tuple[float, float, list[str]]:
    """Return seconds, CPU seconds, and the versions of the shards that were made."""
    context = get_context("spawn")
    ready, waiting, done = context.Barrier(workers + 1), context.Queue(), context.Queue()
    for shard in [*shards, *[None] * workers]:
        waiting.put(shard)
    target = (folder, ready, waiting, done)
    processes = [context.Process(target=embed_shards, args=target) for _ in range(workers)]
    for process in processes:
        process.start()
    ready.wait()
    began = time.perf_counter()
    cpu = sum(done.get() for _ in processes)
    seconds = time.perf_counter() - began
    for process in processes:
        process.join()
        assert process.exitcode == 0
    store = open_store(settings_for(folder))
    return seconds, cpu, [store.require(CHUNK_EMBEDDINGS, s).data_version for s in shards]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--rows", type=int, default=12, help="documents per shard")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "corpus", chosen.shards, chosen.rows)
        settings = settings_for(folder)
        store = open_store(settings)
        plan = plan_shards(settings)
        save_plan(store, plan)
        shards = [shard.key for shard in plan.shards]
        for shard in shards:
            materialize(CORPUS_DOCUMENTS_STAGE, Partition(settings, store, shard))
        ratios, versions = [], set()
        for number in range(chosen.rounds):
            seconds = {}
            for workers in (1, 2):
                for made in (f"corpus/{CHUNK_EMBEDDINGS.name}", "corpus/lancedb"):
                    shutil.rmtree(folder / "data" / made, ignore_errors=True)
                seconds[workers], cpu, made_versions = measure(folder, shards, workers)
                versions.add(tuple(made_versions))
                chunks = sum(store.summary(CHUNK_EMBEDDINGS, shard).chunks for shard in shards)
                print(
                    f"round {number + 1}, {workers} workers: {chunks:,} chunks in "
                    f"{seconds[workers]:.1f} s, {cpu / len(shards):.2f} CPU seconds per shard, "
                    f"{cpu / seconds[workers]:.2f} cores in use",
                    flush=True,
                )
            ratios.append(seconds[1] / seconds[2])
        assert len(versions) == 1, "the workers wrote different tables"
        print(
            f"2 workers are {statistics.median(ratios):.2f} times as fast as 1 (median of "
            f"{', '.join(f'{ratio:.2f}' for ratio in ratios)}); target: {TARGET}"
        )


if __name__ == "__main__":
    main()
