"""A real `dagster dev` with its daemon on a free port, and the GraphQL calls that the UI makes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from entropylong_assets_tests.stage_names import BY_NAME, FOLLOWING, path_of

PROJECT = Path(__file__).parents[2]
REPOSITORY = {
    "repositoryLocationName": "entropylong",
    "repositoryName": "__repository__",
}
T = TypeVar("T")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """`dagster dev` in a folder of its own, whose settings file can be changed meanwhile."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], dagster_yaml: str = "") -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.home = folder / "dagster"
        self.home.mkdir(parents=True, exist_ok=True)
        self.settings_file = folder / "settings.yaml"
        self.write_settings(settings)
        config = (PROJECT / "entropylong_assets" / "dagster.yaml").read_text(encoding="utf-8")
        if dagster_yaml or not (self.home / "dagster.yaml").exists():
            (self.home / "dagster.yaml").write_text(dagster_yaml or config, encoding="utf-8")
        self.environment = os.environ | {
            "DAGSTER_HOME": str(self.home),
            "PYTHONPATH": str(PROJECT),
            "ENTROPYLONG_SETTINGS": str(self.settings_file),
            "ENTROPYLONG_CACHE": str(folder / "cache"),
            "ENTROPYLONG_TICK_SECONDS": "3",
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        self.settings_file.write_text(yaml.safe_dump(dict(settings)), encoding="utf-8")

    def __enter__(self) -> Server:
        command = [sys.executable, "-m", "dagster", "dev", "--workspace"]
        command += [str(PROJECT / "workspace.yaml"), "--host", "127.0.0.1"]
        self._log = (self.folder / "dagster-dev.log").open("ab")
        self._process = subprocess.Popen(
            [*command, "--port", str(self.port)],
            cwd=self.folder,
            env=self.environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            self.wait("the code location", self._loaded, 120)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        group = self._process.pid
        self._process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        # The group is this server's own: code servers and runs that outlived it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def kill(self) -> None:
        """As a power cut does: no process is notified, nothing is cleaned up."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def log(self) -> str:
        return (self.folder / "dagster-dev.log").read_text(errors="replace")

    def query(self, text: str, **variables: Any) -> Any:
        body = json.dumps({"query": text, "variables": variables}).encode()
        request = urllib.request.Request(
            f"{self.url}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            result = json.load(answer)
        assert "errors" not in result, result["errors"]
        return result["data"]

    def wait(self, what: str, met: Callable[[], T | None], seconds: float) -> T:
        """The first true answer of `met`; fails with the server's last words after `seconds`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self._process is None or self._process.poll() is None, self.log()[-3000:]
            found = met()
            if found:
                return found
            time.sleep(0.5)
        state = "" if what == "the code location" else f"\n{self.state()}"
        raise AssertionError(f"{what}: not after {seconds} s{state}\n{self.log()[-3000:]}")

    def _loaded(self) -> bool:
        try:
            data = self.query(
                "{ workspaceOrError { ... on Workspace { locationEntries { loadStatus "
                "locationOrLoadError { __typename ... on PythonError { message } } } } } }"
            )
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
        entries = data["workspaceOrError"]["locationEntries"]
        for entry in entries:
            found = entry["locationOrLoadError"] or {}
            assert found.get("__typename") != "PythonError", found
        return bool(entries) and all(entry["loadStatus"] == "LOADED" for entry in entries)

    def state(self) -> str:
        """Runs and their failures, for a message."""
        data = self.query(
            "{ runsOrError(limit: 30) { ... on Runs { results { runId jobName status "
            "assetSelection { path } tags { key value } } } } }"
        )
        lines = []
        for run in data["runsOrError"]["results"]:
            tags = {tag["key"]: tag["value"] for tag in run["tags"]}
            assets = [a["path"][-1] for a in run["assetSelection"] or []]
            shard = tags.get("dagster/partition")
            lines.append(f"{run['jobName']} {assets} {shard} {run['status']}")
        return "\n".join(lines)

    # What a person does in the UI.

    def reload(self) -> None:
        data = self.query(
            "mutation($l: String!) { reloadRepositoryLocation(repositoryLocationName: $l) "
            "{ __typename } }",
            l="entropylong",
        )
        assert data["reloadRepositoryLocation"]["__typename"] == "WorkspaceLocationEntry", data

    def switch_on(self, sensor: str) -> None:
        data = self.query(
            "mutation($s: SensorSelector!) { startSensor(sensorSelector: $s) "
            "{ __typename ... on PythonError { message } } }",
            s={**REPOSITORY, "sensorName": sensor},
        )
        assert data["startSensor"]["__typename"] == "Sensor", data

    def switch_off(self, sensor: str) -> None:
        state = self.query(
            "query($s: SensorSelector!) { sensorOrError(sensorSelector: $s) "
            "{ ... on Sensor { sensorState { id } } } }",
            s={**REPOSITORY, "sensorName": sensor},
        )["sensorOrError"]["sensorState"]["id"]
        data = self.query("mutation($i: String!) { stopSensor(id: $i) { __typename } }", i=state)
        assert data["stopSensor"]["__typename"] == "StopSensorMutationResult", data

    def ended_ticks(self, sensor: str) -> list[dict[str, Any]]:
        """The latest ticks that have ended, newest first."""
        state = self.query(
            "query($s: SensorSelector!) { sensorOrError(sensorSelector: $s) { ... on Sensor "
            "{ sensorState { ticks(limit: 25) { status skipReason timestamp endTimestamp runIds "
            "error { message } } } } } }",
            s={**REPOSITORY, "sensorName": sensor},
        )["sensorOrError"]["sensorState"]
        ticks = [tick for tick in state["ticks"] if tick["status"] != "STARTED"]
        failed = [tick["error"]["message"] for tick in ticks if tick["status"] == "FAILURE"]
        assert not failed, failed[0]
        return ticks

    def backfill(self, assets: list[str], shards: list[str]) -> str:
        """A backfill of stages of the project with the default names."""
        return self.backfill_of([path_of(asset) for asset in assets], shards)

    def backfill_of(self, paths: list[list[str]], shards: list[str]) -> str:
        """The mutation of the dialog "Launch backfill" on the asset graph. paths: asset keys."""
        data = self.query(
            "mutation LaunchPartitionBackfill($p: LaunchBackfillParams!) "
            "{ launchPartitionBackfill(backfillParams: $p) { __typename "
            "... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }",
            p={
                "assetSelection": [{"path": path} for path in paths],
                "partitionNames": shards,
                "fromFailure": False,
                "tags": [],
            },
        )["launchPartitionBackfill"]
        assert data["__typename"] == "LaunchBackfillSuccess", data
        return str(data["backfillId"])

    def runs_of(self, backfill: str) -> list[str]:
        """Ids of the runs that a backfill has launched."""
        data = self.query(
            "query($f: RunsFilter!) { runsOrError(filter: $f) { ... on Runs "
            "{ results { runId } } } }",
            f={"tags": [{"key": "dagster/backfill", "value": backfill}]},
        )
        return [run["runId"] for run in data["runsOrError"]["results"]]

    def backfill_status(self, backfill: str) -> str:
        data = self.query(
            "query($b: String!) { partitionBackfillOrError(backfillId: $b) "
            "{ ... on PartitionBackfill { status } } }",
            b=backfill,
        )
        return str(data["partitionBackfillOrError"]["status"])

    def launch(self, job: str, shard: str | None = None) -> str:
        """The button of a job's launchpad."""
        tags = [] if shard is None else [{"key": "dagster/partition", "value": shard}]
        data = self.query(
            "mutation($p: ExecutionParams!) { launchPipelineExecution(executionParams: $p) "
            "{ __typename ... on LaunchRunSuccess { run { runId } } "
            "... on PythonError { message } } }",
            p={
                "selector": {**REPOSITORY, "jobName": job},
                "runConfigData": {},
                "mode": "default",
                "executionMetadata": {"tags": tags},
            },
        )["launchPipelineExecution"]
        assert data["__typename"] == "LaunchRunSuccess", data
        return str(data["run"]["runId"])

    def reexecute(self, run: str) -> str:
        """The button "Re-execute all" of a run's page."""
        data = self.query(
            "mutation LaunchPipelineReexecution($p: ReexecutionParams) "
            "{ launchPipelineReexecution(reexecutionParams: $p) { __typename "
            "... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }",
            p={"parentRunId": run, "strategy": "ALL_STEPS"},
        )["launchPipelineReexecution"]
        assert data["__typename"] == "LaunchRunSuccess", data
        return str(data["run"]["runId"])

    def retry_backfill(self, backfill: str) -> str:
        """The menu "Re-execute from failure" of a backfill's page."""
        data = self.query(
            "mutation Reexecute($p: ReexecutionParams) "
            "{ reexecutePartitionBackfill(reexecutionParams: $p) { __typename "
            "... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }",
            p={"parentRunId": backfill, "strategy": "FROM_FAILURE"},
        )["reexecutePartitionBackfill"]
        assert data["__typename"] == "LaunchBackfillSuccess", data
        return str(data["backfillId"])

    # What a person sees in the UI.

    def failed_runs(self, shard: str) -> list[str]:
        """Runs of a shard that failed, newest first."""
        data = self.query(
            "query($f: RunsFilter!) { runsOrError(filter: $f) { ... on Runs "
            "{ results { runId } } } }",
            f={"statuses": ["FAILURE"], "tags": [{"key": "dagster/partition", "value": shard}]},
        )
        return [run["runId"] for run in data["runsOrError"]["results"]]

    def run_status(self, run: str) -> str:
        data = self.query(
            "query($r: ID!) { runOrError(runId: $r) { ... on Run { status } } }", r=run
        )
        return str(data["runOrError"]["status"])

    def process_of(self, run: str) -> int | None:
        """Process of a run that has begun its work."""
        data = self.query(
            "query($r: ID!) { logsForRun(runId: $r) { ... on EventConnection { events "
            "{ __typename ... on EngineEvent { metadataEntries { label "
            "... on IntMetadataEntry { intValue } ... on TextMetadataEntry { text } } } } } } }",
            r=run,
        )
        events = data["logsForRun"]["events"]
        if not any(event["__typename"] == "ExecutionStepStartEvent" for event in events):
            return None
        for event in events:
            for entry in event.get("metadataEntries", []):
                if entry["label"] == "pid":
                    return int(entry.get("intValue") or entry["text"])
        return None

    def settled(self) -> bool:
        """Whether no run is queued or going on."""
        data = self.query(
            "query($f: RunsFilter!) { runsOrError(filter: $f) { ... on Runs "
            "{ results { runId } } } }",
            f={"statuses": ["QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING"]},
        )
        return not data["runsOrError"]["results"]

    def materializations(self, asset: str) -> dict[str, list[float]]:
        """The same of a stage of the project with the default names."""
        return self.materializations_of(path_of(asset))

    def materializations_of(self, path: list[str]) -> dict[str, list[float]]:
        """Times of the materializations of each partition of an asset key, newest first."""
        nodes = self.query(
            "query($k: AssetKeyInput!) { assetOrError(assetKey: $k) { ... on Asset "
            "{ assetMaterializations(limit: 500) { partition timestamp } } } }",
            k={"path": path},
        )["assetOrError"].get("assetMaterializations", [])
        times: dict[str, list[float]] = {}
        for node in nodes:
            times.setdefault(node["partition"] or "all", []).append(float(node["timestamp"]))
        return times

    def failed_checks(self) -> dict[tuple[str, str], str]:
        """Description of the latest evaluation of every check that fails now, by check, shard."""
        failed: dict[tuple[str, str], str] = {}
        for asset in FOLLOWING:
            node = self.query(
                "query($k: AssetKeyInput!) { assetNodeOrError(assetKey: $k) { ... on AssetNode "
                "{ assetChecksOrError { ... on AssetChecks { checks { name } } } } } }",
                k={"path": path_of(asset)},
            )["assetNodeOrError"]
            for check in node["assetChecksOrError"]["checks"]:
                seen: set[str] = set()
                for execution in self.executions(asset, check["name"]):
                    evaluation = execution["evaluation"]
                    if evaluation is None or evaluation["partition"] in seen:
                        continue
                    seen.add(evaluation["partition"])
                    if not evaluation["success"]:
                        key = check["name"], evaluation["partition"]
                        failed[key] = evaluation["description"]
        return failed

    def executions(self, asset: str, check: str) -> list[dict[str, Any]]:
        return list(
            self.query(
                "query($k: AssetKeyInput!, $c: String!) { assetCheckExecutions(assetKey: $k, "
                "checkName: $c, limit: 200) { status evaluation { success partition description "
                "metadataEntries { label __typename ... on IntMetadataEntry { intValue } "
                "... on MarkdownMetadataEntry { mdStr } } } } }",
                k={"path": path_of(asset)},
                c=check,
            )["assetCheckExecutions"]
        )

    def stale(self) -> dict[str, dict[str, list[str]]]:
        """By asset and partition, why the UI marks it out of date; only what is marked."""
        result: dict[str, dict[str, list[str]]] = {}
        for asset in FOLLOWING:
            shards: list[str | None] = [None]
            if BY_NAME[asset].partitioned:
                shards = list(self.partitions())
            for shard in shards:
                node = self.query(
                    "query($k: AssetKeyInput!, $p: String) { assetNodeOrError(assetKey: $k) "
                    "{ ... on AssetNode { staleStatus(partition: $p) "
                    "staleCauses(partition: $p) { reason } } } }",
                    k={"path": path_of(asset)},
                    p=shard,
                )["assetNodeOrError"]
                if node["staleStatus"] == "STALE":
                    causes = [cause["reason"] for cause in node["staleCauses"]]
                    result.setdefault(asset, {})[shard or "all"] = causes
        return result

    def is_stale(self, path: list[str], shard: str) -> bool:
        """Whether the UI marks a partition of an asset key out of date."""
        node = self.query(
            "query($k: AssetKeyInput!, $p: String) { assetNodeOrError(assetKey: $k) "
            "{ ... on AssetNode { staleStatus(partition: $p) } } }",
            k={"path": path},
            p=shard,
        )["assetNodeOrError"]
        return bool(node["staleStatus"] == "STALE")

    def wait_for_run(self, run: str, seconds: float) -> str:
        ends = ("SUCCESS", "FAILURE", "CANCELED")
        return self.wait(f"run {run}", lambda: (s := self.run_status(run)) in ends and s, seconds)

    def partitions(self) -> list[str]:
        node = self.query(
            "query($k: AssetKeyInput!) { assetNodeOrError(assetKey: $k) { ... on AssetNode "
            "{ partitionKeys } } }",
            k={"path": path_of("corpus_documents")},
        )["assetNodeOrError"]
        return list(node["partitionKeys"])
