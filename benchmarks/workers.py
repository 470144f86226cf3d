"""Time to score the same shards on one and on two workers of a Ray cluster.

    OMP_NUM_THREADS=1 python -m benchmarks.workers [--shards 4] [--workers 2 1] [--rows 14]

Runs the job `score` (`entropy_scores` and its checks) over shards of real text with the demo's
model, through dagster-ray's executor on the cluster of deploy/local-ray, whose nodes have one CPU
each. Every step is a process that loads the model. The time is measured from the first submission
to the last success, with the cluster running. Target: two workers are at least 1.8 times as fast,
if the machine has two idle cores. Needs the extras `ray` and `test`.
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
from typing import Any

import dagster as dg
import yaml
from dagster._core.definitions.reconstruct import ReconstructableRepository

from entropylong_assets.orchestration.build import build_definitions
from entropylong_assets.orchestration.local_run import register_shards
from entropylong_assets.orchestration.naming import asset_key, prefixed
from entropylong_assets.orchestration.runner import run_job
from entropylong_assets.project import load_project, make_project, open_store
from entropylong_assets.stages.corpus.formats import python_docs
from entropylong_assets.stages.corpus.stage import CORPUS_DOCUMENTS_STAGE
from entropylong_assets.stages.entropy.stage import ENTROPY_SCORES_STAGE
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets_tests.e2e.local_ray import LocalRay

PACKAGES = ("sklearn.linear_model", "sklearn.ensemble", "sklearn.metrics", "sklearn.svm")
SILENT = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
TARGET = 1.8


def values_for(folder: Path) -> dict[str, Any]:
    """Return a settings file with the demo's model; every document of enough length is a root."""
    return {
        "profile": "quickstart",
        "data_uri": str(folder / "data"),
        "corpus": {
            "sources": [{"name": "docs", "uri": f"{folder}/corpus/*.jsonl"}],
            "shard_rows": 10_000,
        },
        "roots": {"fraction": 1.0},
        "scoring": {"device": "cpu"},
        "cluster": {
            "engine": "ray",
            "resources": {ENTROPY_SCORES.name: {"num_gpus": 0}},
        },
    }


def write_corpus(folder: Path, shards: int, rows: int) -> None:
    """Write documentation of scikit-learn, distributed by length so that shards are equal."""
    docs = [doc.text for package in PACKAGES for doc in python_docs.read(package)]
    longest = sorted((text for text in docs if len(text) < 2_000), key=len, reverse=True)
    folder.mkdir()
    for shard in range(shards):
        lines = [json.dumps({"text": text}) + "\n" for text in longest[shard::shards][:rows]]
        (folder / f"{shard}.jsonl").write_text("".join(lines), encoding="utf-8")


def definitions() -> dg.Definitions:
    """Return the definitions that the processes of a run load."""
    return build_definitions(load_project())


def warm(_: str) -> None:
    """Import everything beforehand; slow enough that each process gets one call."""
    definitions()
    time.sleep(2)


def score(shard: str) -> bool:
    """Run the job on one shard, from a process of its own; return whether it succeeded."""
    repository = ReconstructableRepository.for_module("benchmarks.workers", "definitions")
    job = repository.get_reconstructable_job(
        prefixed(load_project().dataset, ENTROPY_SCORES_STAGE.job.name)
    )
    tags = {"dagster/partition": shard}
    with (
        dg.DagsterInstance.get() as instance,
        dg.execute_job(job, instance, run_config=SILENT, tags=tags) as result,
    ):
        return result.success


def seconds_on(workers: int, shards: list[str], folder: Path) -> float:
    """Return the seconds for all shards on this many nodes of one CPU each."""
    # Uses one folder, and so one token, each time: a process keeps the first token that it reads.
    with LocalRay(folder / "ray", workers=workers - 1, gpus=0) as cluster:
        os.environ |= cluster.client | {"RAY_ADDRESS": cluster.url}
        cluster.wait_for_nodes(workers)
        # Processes, like the daemon's runs: in threads of one process, Dagster's locks of its log
        # and of SQLite can deadlock.
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
    parser.add_argument("--rows", type=int, default=14, help="documents per shard")
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
        values = values_for(folder)
        (folder / "settings.yaml").write_text(yaml.safe_dump(values))
        project = make_project(values)
        store = open_store(project.dataset)
        with dg.DagsterInstance.get() as instance:
            shards = [shard.key for shard in register_shards(project.corpus, instance).shards]
            job = prefixed(project.corpus, CORPUS_DOCUMENTS_STAGE.job.name)
            ingest = build_definitions(project).get_repository_def().get_job(job)
            for shard in shards:
                key = asset_key(project.corpus, CORPUS_DOCUMENTS_STAGE)
                run_job(ingest, shard, instance, [key])
        seconds, versions = {}, set()
        for workers in chosen.workers:
            seconds[workers] = seconds_on(workers, shards, folder)
            manifests = [store.require(ENTROPY_SCORES, shard) for shard in shards]
            versions.add(tuple(manifest.data_version for manifest in manifests))
            tokens = sum(store.summary(ENTROPY_SCORES, shard).forward_tokens for shard in shards)
            print(f"{workers} workers: {seconds[workers]:.1f} s, {tokens:,} tokens", flush=True)
        assert len(versions) == 1, "the workers wrote different tables"
        if {1, 2} <= seconds.keys():
            ratio = seconds[1] / seconds[2]
            print(f"2 workers are {ratio:.2f} times as fast as 1; target: {TARGET}")


if __name__ == "__main__":
    main()
