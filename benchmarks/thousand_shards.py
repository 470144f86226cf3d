"""What an operator waits for with 1,000 shards that all have every stage and passed every check.

    python -m benchmarks.thousand_shards [--shards 1000] [--folder /tmp]

Registers the shards, gives each its materialisations, checks and manifests, starts `dagster dev`
with the daemon on a free port, and measures: the load of the definitions in a fresh interpreter,
the ticks of both sensors as the daemon records them, and the time from a click to what a person
reads in headless Chromium. Medians; the targets are ours. Needs the extra `test` and Chromium.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)

from entropylong_assets.definitions import CHECKS
from entropylong_assets.orchestration.health import blocking_checks, unhealthy_shards
from entropylong_assets.orchestration.partitions import PIPELINE, corpus_shard
from entropylong_assets.orchestration.scanning import scan
from entropylong_assets.settings.model import Settings, make_settings
from entropylong_assets.storage.tables import Manifest, TableStore
from entropylong_assets_tests.e2e.server import PROJECT, Server

SHARDWISE = [asset for asset in PIPELINE if asset != "embedding_index"]
REPEATS = 5
LOAD = (
    "import time; start = time.perf_counter();"
    "from entropylong_assets.definitions import defs; defs.get_repository_def();"
    "print(time.perf_counter() - start)"
)


def write_source(corpus: Path, first: int, count: int) -> None:
    for i in range(first, first + count):
        (corpus / f"{i:05d}.jsonl").write_text(json.dumps({"text": f"document {i}"}) + "\n")


def fill(settings: Settings, there: dg.DagsterInstance) -> list[str]:
    """Gives every planned shard its manifests, and the first one its events."""
    store = TableStore(settings.data_uri)
    plan = scan(settings, there).plan
    shards = [shard.key for shard in plan.shards]
    there.add_dynamic_partitions(str(corpus_shard.name), shards)
    gates = blocking_checks(CHECKS)
    for asset in SHARDWISE:
        for shard in shards:
            made = Manifest(
                asset=asset, shard=shard, fingerprint="", determinants={}, tables={}, summary={}
            )
            folder = Path(store.folder(asset, shard))
            folder.mkdir(parents=True)
            (folder / "manifest.json").write_text(made.model_dump_json())
        key = dg.AssetKey(asset)
        there.report_runless_asset_event(
            dg.AssetMaterialization(
                asset,
                partition=shards[0],
                metadata={"acceptance rate": 0.05},
                tags={"dagster/data_version": made.data_version},
            )
        )
        [record] = there.fetch_materializations(key, limit=1).records
        target = AssetCheckEvaluationTargetMaterializationData(
            storage_id=record.storage_id, run_id="", timestamp=record.timestamp
        )
        for check in gates:
            if check.asset_key == key:
                there.report_runless_asset_event(
                    dg.AssetCheckEvaluation(
                        key, check.name, True, {}, target, blocking=True, partition=shards[0]
                    )
                )
    with store.write("embedding_index", "all", fingerprint="") as writer:
        rows = {
            "shard": shards,
            "position": range(len(shards)),
            "data_version": [made.data_version] * len(shards),
            "n_chunks": [1] * len(shards),
        }
        writer.append("shards", pl.DataFrame(rows))
    for asset in ("embedding_index", "training_dataset"):
        there.report_runless_asset_event(dg.AssetMaterialization(asset))
    return shards


def multiply(database: Path, shards: list[str]) -> None:
    """Copies the first shard's events to all others, as Dagster would have written them: its own
    way takes 20 minutes for 36,000."""
    first = shards[0]
    with sqlite3.connect(database) as db:

        def rows(table: str) -> tuple[list[str], list[tuple[Any, ...]]]:
            columns = [row[1] for row in db.execute(f"pragma table_info({table})")][1:]
            return columns, db.execute(f"select id, {', '.join(columns)} from {table}").fetchall()

        columns, events = rows("event_logs")
        events = [row for row in events if f'"{first}"' in row[1 + columns.index("event")]]
        _, tags = rows("asset_event_tags")
        check_columns, checks = rows("asset_check_executions")
        for shard in shards[1:]:
            ids: dict[Any, Any] = {}

            def copied(value: Any, shard: str = shard) -> Any:
                return value.replace(first, shard) if isinstance(value, str) else value

            def insert(table: str, names: list[str], values: list[Any]) -> int | None:
                marks = ", ".join("?" * len(names))
                into = f"insert into {table} ({', '.join(names)}) values ({marks})"
                return db.execute(into, values).lastrowid

            for row in events:
                ids[row[0]] = insert("event_logs", columns, [copied(v) for v in row[1:]])
            for _, event, *rest in tags:
                names = ["event_id", "asset_key", "key", "value", "event_timestamp"]
                if event in ids:
                    insert("asset_event_tags", names, [ids[event], *rest])
            for row in checks:
                values = dict(zip(check_columns, map(copied, row[1:]), strict=True))
                for name in ("evaluation_event_storage_id", "materialization_event_storage_id"):
                    values[name] = ids[values[name]]
                insert("asset_check_executions", check_columns, list(values.values()))


def seconds_of(ticks: list[dict[str, Any]]) -> float:
    return statistics.median(t["endTimestamp"] - t["timestamp"] for t in ticks)


def measure_pages(server: Server, shard: str) -> dict[str, list[float]]:
    """Seconds from a click on a link to the words that a person looks for."""
    from playwright.sync_api import Page, sync_playwright

    pages: dict[str, tuple[str, Callable[[Page], Any]]] = {
        "asset graph": (
            "/asset-groups",
            lambda p: p.locator("svg").get_by_text("7_training_data").first,
        ),
        "partitions of an asset": (
            "/assets/verified_dependencies?view=partitions",
            lambda p: p.get_by_text(shard).first,
        ),
        "checks of an asset": (
            "/assets/verified_dependencies?view=checks",
            lambda p: p.get_by_text("pairs_reconcile").first,
        ),
    }
    found: dict[str, list[float]] = {name: [] for name in pages}
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1500, "height": 950})
        page.goto(f"{server.url}/locations")  # the application itself is loaded once a session
        page.get_by_text("entropylong").first.wait_for(timeout=60_000)
        for _ in range(REPEATS):
            for name, (path, words) in pages.items():
                page.goto("about:blank")
                start = time.perf_counter()
                page.goto(f"{server.url}{path}")
                words(page).wait_for(timeout=60_000)
                found[name].append(time.perf_counter() - start)
        browser.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--folder", default=None, help="where the temporary files go")
    arguments = parser.parse_args()

    def tell(what: str, measured: float, target: float) -> None:
        verdict = "holds" if measured < target else "MISSED"
        print(f"{what:40} {measured:6.2f} s   target {target} s   {verdict}", flush=True)

    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        corpus = folder / "corpus"
        corpus.mkdir()
        write_source(corpus, 0, arguments.shards)
        values = {
            "data_uri": str(folder / "data"),
            "corpus": {"sources": [{"name": "web", "uri": f"{corpus}/*.jsonl"}]},
        }
        server = Server(folder, values)
        shutil.copyfile(PROJECT / "dagster.yaml", server.home / "dagster.yaml")
        start = time.perf_counter()
        with dg.DagsterInstance.from_config(str(server.home)) as there:
            shards = fill(make_settings("calibrated", values), there)
        multiply(server.home / "history" / "runs" / "index.db", shards)
        with dg.DagsterInstance.from_config(str(server.home)) as there:
            keys = {dg.AssetKey(asset) for asset in SHARDWISE}
            gates = [key for key in blocking_checks(CHECKS) if key.asset_key in keys]
            assert not unhealthy_shards(there, gates, shards), "all shards pass all checks"
            made = there.get_materialized_partitions(dg.AssetKey("long_context_samples"))
            assert made == set(shards)
        print(f"{arguments.shards} shards filled in {time.perf_counter() - start:.0f} s")

        loads, inside = [], []
        for _ in range(REPEATS):
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", LOAD],
                env=server.environment,
                cwd=PROJECT,
                check=True,
                capture_output=True,
                text=True,
            )
            loads.append(time.perf_counter() - start)
            inside.append(float(done.stdout))
        tell("definitions load", statistics.median(inside), 2)
        tell("the same with the interpreter's start", statistics.median(loads), 2)

        with server:
            for sensor in ("new_files", "carry_new_shards"):
                server.switch_on(sensor)
                ticks = server.wait(
                    f"{sensor} at rest",
                    lambda sensor=sensor: (
                        (found := server.ended_ticks(sensor)) and len(found) >= REPEATS and found
                    ),
                    300,
                )
                tell(f"tick of {sensor}, nothing new", seconds_of(ticks), 5)
                server.switch_off(sensor)
            for name, seconds in measure_pages(server, "web-00000").items():
                tell(f"page: {name}", statistics.median(seconds), 3)
            write_source(corpus, arguments.shards, 50)
            server.switch_on("new_files")
            tick = server.wait(
                "a tick with new files",
                lambda: [t for t in server.ended_ticks("new_files") if t["runIds"]],
                120,
            )
            tell("tick of new_files, 50 new files there", seconds_of(tick), 5)
            server.switch_off("new_files")


if __name__ == "__main__":
    main()
