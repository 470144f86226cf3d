"""Run time of all stages by the number of shards of equal size, in one process.

    python -m benchmarks.shards [--documents 400] [--shards 1 2 4 8] [--folder FOLDER]

Models are tiny and random, so the platform's own work is measured. Each number of shards has a
folder and a Dagster instance of its own. Seconds are those of the runs alone, after a warm-up run
in the same process; `start` is the time that a new process takes to load the definitions. CPU
seconds are more reliable if others use the machine. Target: the time per shard grows by at most 10%
from the smallest number of shards to the largest.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.claims import Claims


def write_sources(folder: Path, shards: int, documents: int) -> None:
    from entropylong_assets_tests.tiny_world import document

    folder.mkdir(parents=True)
    for shard in range(shards):
        texts = [document(shard * documents + i + 1_000) for i in range(documents)]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{shard:03d}.jsonl").write_text(lines)


def run(folder: Path, shards: int, documents: int, models: tuple[str, str]) -> dict[str, float]:
    """Return the seconds of each job, summed over all shards."""
    from entropylong_assets.orchestration.local_run import (
        open_instance,
        register_shards,
        run_export,
        run_project,
    )
    from entropylong_assets.orchestration.runner import Watcher
    from entropylong_assets.settings.section import Settings
    from entropylong_assets.stages.stage import Job
    from entropylong_assets_tests.tiny_world import tiny_project

    shutil.rmtree(folder, ignore_errors=True)
    write_sources(folder / "corpus", shards, documents)
    project = tiny_project(folder / "corpus", folder / "data", models, roots={"fraction": 0.1})
    os.environ["DAGSTER_HOME"] = str(folder / "dagster")
    seconds: dict[str, float] = {}
    started: dict[tuple[str, str], float] = {}

    def on_start(_: Settings, job: Job, shard: str) -> None:
        started[job.name, shard] = time.perf_counter()

    def on_end(_: Settings, job: Job, shard: str, _was_run: bool) -> None:
        elapsed = time.perf_counter() - started[job.name, shard]
        seconds[job.name] = seconds.get(job.name, 0.0) + elapsed

    with open_instance() as instance:
        register_shards(project.corpus, instance)
        run_project(project, instance, watcher=Watcher(on_start, on_end), with_export=False)
        begin = time.perf_counter()
        run_export(project, project.dataset, instance)
        seconds["export"] = time.perf_counter() - begin
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=400)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--out")
    args = parser.parse_args()
    from entropylong_assets_tests.tiny_world import write_models

    folder = Path(args.folder) / "entropylong-shards"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "models").mkdir(parents=True)
    models = write_models(folder / "models")
    claims = Claims("shards")
    code = "from entropylong_assets.definitions import defs; defs().get_repository_def()"
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    claims.note("start", seconds=time.perf_counter() - begin)
    run(folder / "warm-up", 1, args.documents, models)
    per_shard: dict[int, float] = {}
    for shards in args.shards:
        before = time.process_time()
        seconds = run(folder / str(shards), shards, args.documents, models)
        computed = time.process_time() - before
        total = sum(seconds.values())
        per_shard[shards] = total / shards
        claims.note(
            "shards",
            shards=shards,
            seconds=total,
            seconds_per_shard=per_shard[shards],
            cpu_seconds_per_shard=computed / shards,
            **seconds,
        )
    first, last = per_shard[args.shards[0]], per_shard[args.shards[-1]]
    claims.claim("seconds_per_shard_grow", last / first, 1.1, 0, at_most=True)
    claims.finish(args.out)


if __name__ == "__main__":
    main()
