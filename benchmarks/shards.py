"""Time against the number of shards of equal size, through every stage, in one process.

    python -m benchmarks.shards [--documents 400] [--shards 1 2 4 8] [--folder /tmp]

Models are tiny and random, vectors real ones of the tiny embedder: what is measured is the
platform's own work. Each number of shards has a folder and an instance of its own; the seconds are
of the runs alone, after a warm-up run in the same process. `start` is what a fresh process takes
until its first run begins. CPU seconds tell more where others use the machine. Linear: seconds a
shard are the same within 10% of those of one shard.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
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
    """Seconds of every job over all shards."""
    from entropylong_assets.orchestration.local_run import (
        instance,
        register_shards,
        run_export,
        run_pipeline,
    )
    from entropylong_assets_tests.tiny_world import tiny_settings

    shutil.rmtree(folder, ignore_errors=True)
    write_sources(folder / "corpus", shards, documents)
    settings = tiny_settings(folder / "corpus", folder / "data", models)
    few = settings.corpus.model_copy(update={"root_fraction": 0.1})
    settings = settings.model_copy(update={"corpus": few})
    os.environ["DAGSTER_HOME"] = str(folder / "dagster")
    seconds: dict[str, float] = {}
    began: dict[str, float] = {}

    def start(job: str, shard: str) -> None:
        began[f"{job} {shard}"] = time.perf_counter()

    def end(job: str, shard: str, _: bool) -> None:
        took = time.perf_counter() - began[f"{job} {shard}"]
        seconds[job] = seconds.get(job, 0.0) + took

    with instance() as there:
        plan = register_shards(settings, there)
        run_pipeline(settings, plan, there, start, end)
        begin = time.perf_counter()
        run_export(settings, there)
        seconds["export"] = time.perf_counter() - begin
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=400)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--folder", default="/tmp")
    parser.add_argument("--out")
    args = parser.parse_args()
    from entropylong_assets_tests.tiny_world import write_models

    folder = Path(args.folder) / "entropylong-shards"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "models").mkdir(parents=True)
    models = write_models(folder / "models")
    claims = Claims("shards")
    code = "import time; from entropylong_assets.definitions import defs; defs.get_repository_def()"
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    claims.note("start", seconds=time.perf_counter() - begin)
    run(folder / "warm-up", 1, args.documents, models)
    each: dict[int, float] = {}
    for shards in args.shards:
        before = time.process_time()
        seconds = run(folder / str(shards), shards, args.documents, models)
        computed = time.process_time() - before
        total = sum(seconds.values())
        each[shards] = total / shards
        claims.note(
            "shards",
            shards=shards,
            seconds=total,
            a_shard=each[shards],
            cpu_seconds_a_shard=computed / shards,
            **seconds,
        )
    first, last = each[args.shards[0]], each[args.shards[-1]]
    claims.claim("seconds_a_shard_grow", last / first, 1.1, 0, at_most=True)
    claims.finish(args.out)


if __name__ == "__main__":
    main()
