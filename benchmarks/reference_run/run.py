"""Runs the stages of a dataset up to its verified dependencies, shards side by side in processes.

    python -m benchmarks.reference_run.run --workers 14 [--settings FILE] [--times times.jsonl]

Stages and shards that are up to date are skipped, so that the same command resumes a killed run.
Workers use the GPUs of the machine by turns. Every check of a stage runs after it. Prints the wall
time of each group of stages; `--times` gets one JSON line per partition.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

from entropylong_assets.project import load_project, open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.checks import run_checks
from entropylong_assets.stages.corpus.shards import load_plan, replan, save_plan
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.stage import Partition, Stage
from entropylong_assets.stages.versioning import stale_reason
from entropylong_assets.storage.tables import WHOLE

SETTINGS = Path(__file__).with_name("settings.yaml")
LAST = "verified_dependencies"


def groups_of(project_stages: Sequence[Stage]) -> Iterator[tuple[bool, list[Stage]]]:
    """The stages up to `LAST` in the order of the data, in runs that are or are not by shard.

    Stages that are only started by hand are left out.
    """
    last = next(n for n, stage in enumerate(project_stages) if stage.name == LAST)
    needed = [s for s in project_stages[: last + 1] if s.automation != "by_hand"]
    for partitioned, stages in groupby(needed, lambda s: s.partitioned):
        yield partitioned, list(stages)


def make(file: str, names: Sequence[str], shard: str) -> list[dict[str, Any]]:
    """Make stages of one shard, one after the other, unless they are up to date.

    Returns stage, shard, seconds, seconds of the checks and names of failed ones.
    """
    project = load_project(file)
    rows = []
    for stage in (stage for stage in project.stages if stage.name in names):
        settings: Settings = project.corpus if stage.scope == "corpus" else project.dataset
        partition = Partition(settings, open_store(settings), shard)
        if stale_reason(stage, partition) is None:
            continue
        started = time.perf_counter()
        made = materialize(stage, partition)
        checked = time.perf_counter()
        failed = [r.check.name for r in run_checks(stage, partition) if not r.passed]
        rows.append(
            {
                "stage": stage.name,
                "shard": shard,
                "seconds": checked - started,
                "check_seconds": time.perf_counter() - checked,
                "failed_checks": failed,
                "scoring": made.metadata.get("scoring"),
            }
        )
    return rows


def _choose_gpu(counter: Any, gpus: int) -> None:
    """Give each worker a GPU, before it opens one."""
    import torch

    torch.set_num_threads(1)
    with counter.get_lock():
        counter.value += 1
        os.environ["CUDA_VISIBLE_DEVICES"] = str(counter.value % gpus)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--settings", default=str(SETTINGS))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=1, help="GPUs that the workers share")
    parser.add_argument("--times", type=Path, help="file for a JSON line per partition")
    options = parser.parse_args()

    project = load_project(options.settings)
    store = open_store(project.corpus)
    plan = replan(project.corpus, load_plan(store), accept_changes=True)
    save_plan(store, plan)
    shards = [shard.key for shard in plan.shards]

    # Not fork: a worker that inherits an open GPU or the threads of Lance can hang.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(
        options.workers, context, _choose_gpu, (context.Value("i", 0), options.gpus)
    ) as pool:
        for partitioned, stages in groups_of(project.stages):
            started = time.perf_counter()
            names = [stage.name for stage in stages]
            keys = shards if partitioned else [WHOLE]
            jobs = [pool.submit(make, options.settings, names, key) for key in keys]
            rows = [row for job in jobs for row in job.result()]
            seconds = time.perf_counter() - started
            failed = sorted({name for row in rows for name in row["failed_checks"]})
            print(f"{seconds:7.1f} s  {', '.join(names)}; failed checks: {failed or 'none'}")
            if options.times:
                with options.times.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(row, default=str) + "\n" for row in rows)


if __name__ == "__main__":
    main()
