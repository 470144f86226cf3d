"""Waiting times of an operator with 1,000 shards whose stages are all made and checked.

    python -m benchmarks.thousand_shards [--shards 1000] [--folder FOLDER]

Gives every shard its manifests, check outcomes and Dagster events, starts `dagster dev` with its
daemon on a free port, and measures: loading the definitions in a new interpreter, the ticks of all
sensors as the daemon records them, and the time from opening a page until its content is visible in
headless Chromium. Figures are medians; the targets are our own. Needs the extra `test` and
Chromium.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)

from entropylong_assets.orchestration.naming import (
    asset_key,
    corpus_of,
    owner_name,
    partition_set,
    prefixed,
)
from entropylong_assets.orchestration.readiness import is_outdated
from entropylong_assets.orchestration.scanning import scan
from entropylong_assets.project import Project, make_project, open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.stage import Partition, Stage
from entropylong_assets.stages.verification.stage import VERIFIED_DEPENDENCIES_STAGE
from entropylong_assets.stages.versioning import determining_settings
from entropylong_assets.storage.manifest import CheckOutcome, Manifest, TableFile
from entropylong_assets.storage.tables import MANIFEST, WHOLE, TableStore
from entropylong_assets_tests.e2e.server import PROJECT, Server

REPEATS = 5
LOAD = (
    "import time; start = time.perf_counter();"
    "from entropylong_assets.definitions import defs; defs().get_repository_def();"
    "print(time.perf_counter() - start)"
)
NEW_FILES = 50


def write_source(corpus: Path, first: int, count: int) -> None:
    for i in range(first, first + count):
        (corpus / f"{i:05d}.jsonl").write_text(json.dumps({"text": f"document {i}"}) + "\n")


def following(project: Project) -> list[Stage]:
    """Return the stages that run by themselves, in the order in which data flows."""
    return [stage for stage in project.stages if stage.automation != "by_hand"]


def write_manifests(settings: Settings, stage: Stage, store: TableStore, shards: list[str]) -> None:
    """Write manifests and passed checks of a stage's partitions, made from its present inputs."""
    own = settings if stage.scope == "dataset" else corpus_of(settings)
    recorded = determining_settings(stage, own)
    for shard in shards if stage.partitioned else [WHOLE]:
        inputs: dict[str, Any] = {}
        for source in stage.inputs:
            if source.partitioned and not stage.partitioned:
                version = store.require(source.tables, shards[0]).data_version
                inputs[source.name] = dict.fromkeys(shards, version)
            else:
                place = shard if source.partitioned else WHOLE
                inputs[source.name] = store.require(source.tables, place).data_version
        manifest = Manifest(
            asset=stage.name,
            shard=shard,
            format_version=stage.tables.format_version,
            fingerprint="",
            determinants={"code": stage.code_version, "settings": recorded, "inputs": inputs},
            tables={stage.tables.main: TableFile(file="none", rows=1, bytes=1, sha256="")},
            summary={},
        )
        content = manifest.model_dump_json().encode()
        store.put(f"{store.folder(stage.tables, shard)}/{MANIFEST}", content)
        outcomes = {
            check.name: CheckOutcome(passed=True, blocking=check.blocking, faulty_rows=0)
            for check in stage.checks
        }
        store.record_checks(stage.tables, shard, outcomes)


def report_events(
    settings: Settings, stage: Stage, data_version: str, shard: str, instance: dg.DagsterInstance
) -> None:
    """Report the materialization of one partition and the evaluations of its checks."""
    key = asset_key(settings, stage)
    partition = shard if stage.partitioned else None
    instance.report_runless_asset_event(
        dg.AssetMaterialization(
            key,
            partition=partition,
            metadata={"acceptance rate": 0.05},
            tags={"dagster/data_version": data_version},
        )
    )
    [record] = instance.fetch_materializations(key, limit=1).records
    target = AssetCheckEvaluationTargetMaterializationData(
        storage_id=record.storage_id, run_id="", timestamp=record.timestamp
    )
    for check in stage.checks:
        instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                key, check.name, True, {}, target, blocking=check.blocking, partition=partition
            )
        )


def fill(project: Project, instance: dg.DagsterInstance) -> list[str]:
    """Write the manifests of all partitions; return the shards.

    Also report the events of the first shard, and of the stages over all shards.
    """
    settings = project.dataset
    store = open_store(settings)
    shards = [shard.key for shard in scan(project.corpus, instance).plan.shards]
    instance.add_dynamic_partitions(partition_set(settings), shards)
    for stage in following(project):
        write_manifests(settings, stage, store, shards)
        place = shards[0] if stage.partitioned else WHOLE
        version = store.require(stage.tables, place).data_version
        report_events(settings, stage, version, shards[0], instance)
    return shards


def refuse_incomplete(
    project: Project, shards: Sequence[str], instance: dg.DagsterInstance
) -> None:
    """Assert that by tables and instance, everything is materialized and checked."""
    settings = project.dataset
    partition = Partition(settings, open_store(settings))
    for stage in following(project):
        if stage.partitioned:
            materialized = instance.get_materialized_partitions(asset_key(settings, stage))
            assert materialized == set(shards), stage.name
        else:
            assert not is_outdated(stage, partition), stage.name


def multiply(database: Path, shards: list[str]) -> None:
    """Copy the first shard's events to all others in the database, as Dagster would write them.

    Reporting 36,000 events through Dagster takes 20 minutes.
    """
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
                if values["evaluation_event_storage_id"] not in ids:  # of a stage over all shards
                    continue
                for name in ("evaluation_event_storage_id", "materialization_event_storage_id"):
                    values[name] = ids[values[name]]
                insert("asset_check_executions", check_columns, list(values.values()))


def seconds_of(ticks: list[dict[str, Any]]) -> float:
    return statistics.median(t["endTimestamp"] - t["timestamp"] for t in ticks)


def measure_pages(server: Server, settings: Settings, shard: str) -> dict[str, list[float]]:
    """Return, by page, the seconds from opening it until the text that a user needs is visible."""
    from playwright.sync_api import Page, sync_playwright

    stage = VERIFIED_DEPENDENCIES_STAGE
    asset = f"/assets/{owner_name(settings, stage)}/{stage.name}"
    pages: dict[str, tuple[str, Callable[[Page], Any]]] = {
        "asset graph": (
            "/asset-groups",
            lambda p: p.locator("svg").get_by_text(f"{settings.name}_audits").first,
        ),
        "partitions of an asset": (
            f"{asset}?view=partitions",
            lambda p: p.get_by_text(shard).first,
        ),
        "checks of an asset": (
            f"{asset}?view=checks",
            lambda p: p.get_by_text(stage.checks[0].name).first,
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in pages}
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1500, "height": 950})
        page.goto(f"{server.url}/locations")  # the application itself is loaded once per session
        page.get_by_text("entropylong").first.wait_for(timeout=60_000)
        for _ in range(REPEATS):
            for name, (path, words) in pages.items():
                page.goto("about:blank")
                start = time.perf_counter()
                page.goto(f"{server.url}{path}")
                words(page).wait_for(timeout=60_000)
                seconds[name].append(time.perf_counter() - start)
        browser.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--folder", default=None, help="where the temporary files go")
    arguments = parser.parse_args()

    def report(what: str, measured: float, target: float) -> None:
        verdict = "met" if measured < target else "MISSED"
        print(f"{what:50} {measured:6.2f} s   target {target} s   {verdict}", flush=True)

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
        shutil.copyfile(
            PROJECT / "entropylong_assets" / "dagster.yaml", server.home / "dagster.yaml"
        )
        start = time.perf_counter()
        project = make_project(values)
        with dg.DagsterInstance.from_config(str(server.home)) as instance:
            shards = fill(project, instance)
        multiply(server.home / "history" / "runs" / "index.db", shards)
        with dg.DagsterInstance.from_config(str(server.home)) as instance:
            refuse_incomplete(project, shards, instance)
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
        report("definitions load", statistics.median(inside), 2)
        report("the same with the interpreter's start", statistics.median(loads), 2)

        with server:
            new_files = prefixed(project.corpus, "new_files")
            carriers = [
                prefixed(settings, "carry_new_shards")
                for settings in (project.corpus, project.dataset)
            ]
            for sensor in (new_files, *carriers):
                server.switch_on(sensor)
                ticks = server.wait(
                    f"{REPEATS} ticks of {sensor}",
                    lambda sensor=sensor: (
                        (ended := server.ended_ticks(sensor)) and len(ended) >= REPEATS and ended
                    ),
                    300,
                )
                server.switch_off(sensor)
                assert not any(tick["runIds"] for tick in ticks), f"{sensor} started runs"
                report(f"tick of {sensor}, nothing new", seconds_of(ticks), 5)
            for name, seconds in measure_pages(server, project.dataset, shards[0]).items():
                report(f"page: {name}", statistics.median(seconds), 3)
            write_source(corpus, arguments.shards, NEW_FILES)
            server.switch_on(new_files)
            ticks = server.wait(
                "a tick with new files",
                lambda: [t for t in server.ended_ticks(new_files) if t["runIds"]],
                120,
            )
            server.switch_off(new_files)
            report(f"tick of {new_files}, {NEW_FILES} new files", seconds_of(ticks), 5)


if __name__ == "__main__":
    main()
