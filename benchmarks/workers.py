"""Time of the same shards on one and on two workers of a Ray cluster, one CPU and one thread each.

    OMP_NUM_THREADS=1 python -m benchmarks.workers [--shards 4] [--workers 2 1] [--rows 14]

Scores (`entropy_scores` and its checks) shards of real text with the demo's real model, through
dagster-ray's executor on the cluster of deploy/local-ray, whose nodes have one CPU each. Every
step is a process that loads the model anew. The clock runs from the first submission to the last
success, with the cluster up. Wanted: two workers at least 1.8 times as fast, where the machine has
two cores free. Needs the extras `ray` and `test`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import dagster as dg
import yaml
from dagster._core.definitions.reconstruct import ReconstructableRepository

from entropylong_assets.definitions import build_definitions
from entropylong_assets.orchestration.local_run import register_shards
from entropylong_assets.settings.model import Settings, load_settings, make_settings
from entropylong_assets.stages.corpus import python_docs
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.e2e.local_ray import LocalRay

PACKAGES = ("sklearn.linear_model", "sklearn.ensemble", "sklearn.metrics", "sklearn.svm")
SILENT = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
WANTED = 1.8


def settings_for(folder: Path) -> Settings:
    """The demo's model over the corpus in `folder`; every document long enough is a root."""
    return make_settings(
        "quickstart",
        {
            "data_uri": str(folder / "data"),
            "corpus": {
                "sources": [{"name": "docs", "uri": f"{folder}/corpus/*.jsonl"}],
                "shard_rows": 10_000,
                "root_fraction": 1.0,
            },
            "scoring": {"device": "cpu"},
            "cluster": {
                "engine": "ray",
                "resources": {"entropy_scores": {"num_gpus": 0}},
            },
        },
    )


def write_corpus(folder: Path, shards: int, rows: int) -> None:
    """Documentation of scikit-learn, dealt out by length, so that all shards are alike."""
    docs = [doc.text for package in PACKAGES for doc in python_docs.read(package)]
    longest = sorted((text for text in docs if len(text) < 2_000), key=len, reverse=True)
    folder.mkdir()
    for shard in range(shards):
        lines = [json.dumps({"text": text}) + "\n" for text in longest[shard::shards][:rows]]
        (folder / f"{shard}.jsonl").write_text("".join(lines), encoding="utf-8")


def definitions() -> dg.Definitions:
    return build_definitions(load_settings())


def warm(_: str) -> None:
    """Takes the imports out of the clock; long enough that every process gets one."""
    definitions()
    time.sleep(2)


def score(shard: str) -> bool:
    """One run of `score`, driven from a process of its own; whether it succeeded."""
    repository = ReconstructableRepository.for_module("benchmarks.workers", "definitions")
    job = repository.get_reconstructable_job("score")
    tags = {"dagster/partition": shard}
    with (
        dg.DagsterInstance.get() as instance,
        dg.execute_job(job, instance, run_config=SILENT, tags=tags) as result,
    ):
        return result.success


def seconds_on(workers: int, shards: list[str], folder: Path) -> float:
    """Time of all shards on so many nodes, each of one CPU (seconds)."""
    # The same folder and so the same token each time: a process keeps the first one it has read.
    with LocalRay(folder / "ray", workers=workers - 1, gpus=0) as cluster:
        os.environ |= cluster.client | {"RAY_ADDRESS": cluster.url}
        cluster.wait_for_nodes(workers)
        # Processes, as the daemon's runs are: in threads of one, Dagster's locks of its log and of
        # SQLite can wait for each other.
        with ProcessPoolExecutor(len(shards), get_context("spawn")) as pool:
            list(pool.map(warm, shards))
            start = time.perf_counter()
            succeeded = list(pool.map(score, shards))
            seconds = time.perf_counter() - start
    assert all(succeeded)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--rows", type=int, default=14, help="documents of a shard")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 1])
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {
            "DAGSTER_HOME": str(folder / "dagster"),
            "ENTROPYLONG_SETTINGS": str(folder / "settings.yaml"),
        }
        write_corpus(folder / "corpus", chosen.shards, chosen.rows)
        (folder / "dagster").mkdir()
        (folder / "dagster" / "dagster.yaml").write_text(
            "telemetry: {enabled: false}\n"
            f"concurrency: {{pools: {{default_limit: {chosen.shards}, granularity: op}}}}\n"
        )
        settings = settings_for(folder)
        (folder / "settings.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
        store = TableStore(settings.data_uri)
        with dg.DagsterInstance.get() as instance:
            plan = register_shards(settings, instance)
            shards = [shard.key for shard in plan.shards]
            ingest = build_definitions(settings).get_repository_def().get_job("ingest")
            for shard in shards:
                ingest.execute_in_process(
                    instance=instance,
                    partition_key=shard,
                    asset_selection=[dg.AssetKey("corpus_documents")],
                    run_config=SILENT,
                )
        taken, made = {}, set()
        for workers in chosen.workers:
            taken[workers] = seconds_on(workers, shards, folder)
            manifests = [store.require("entropy_scores", shard) for shard in shards]
            made.add(tuple(manifest.data_version for manifest in manifests))
            tokens = sum(manifest.summary["forward_tokens"] for manifest in manifests)
            print(f"{workers} workers: {taken[workers]:.1f} s, {tokens:,} tokens", flush=True)
        assert len(made) == 1, "the workers made different tables"
        if {1, 2} <= taken.keys():
            ratio = taken[1] / taken[2]
            print(f"2 workers are {ratio:.2f} times as fast as 1; wanted: {WANTED}")


if __name__ == "__main__":
    main()
