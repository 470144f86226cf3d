"""The local Ray cluster of `deploy/local-ray`, on ports and in a folder of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from entropylong_assets_tests.e2e.server import PROJECT, free_port

DEPLOY = PROJECT / "deploy" / "local-ray"


@dataclass(frozen=True)
class StepProcess:
    """A step that a node executes now."""

    step: str
    run_id: str
    process: psutil.Process


class LocalRay:
    """A head and worker nodes; each has one CPU and `gpus` GPUs in Ray's accounts."""

    def __init__(self, folder: Path, workers: int = 1, gpus: int = 1) -> None:
        self.folder, self.nodes = folder, ["head", *(f"worker-{i + 1}" for i in range(workers))]
        self.port, self.dashboard = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.dashboard}"
        self.dagster_yaml = (
            (DEPLOY / "dagster.yaml").read_text().replace("http://127.0.0.1:8265", self.url)
        )
        self.client = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
        self._environment = os.environ | {
            "PORT": str(self.port),
            "DASHBOARD_PORT": str(self.dashboard),
            "WORKERS": str(workers),
            "GPUS": str(gpus),
            "FOLDER": str(folder),
            "RAY": str(Path(sys.executable).with_name("ray")),
            "PYTHONPATH": str(PROJECT),
            # A dead node is noticed in 3 seconds instead of about 20.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
        }

    def __enter__(self) -> LocalRay:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._log = (self.folder / "cluster.log").open("wb")
        self._script = subprocess.Popen(
            [DEPLOY / "cluster.sh"], env=self._environment, stdout=self._log, stderr=self._log
        )
        return self

    def __exit__(self, *_: object) -> None:
        trees = [process for node in self.nodes for process in self.processes(node)]
        self._script.send_signal(signal.SIGTERM)
        # Ray ends its processes gently; on a loaded machine that takes longer than we wait.
        with suppress(subprocess.TimeoutExpired):
            self._script.wait(20)
        for process in trees:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        try:
            self._script.wait(30)  # it ends with its nodes
        finally:
            self._log.close()

    def wait_for_nodes(self, count: int, seconds: float = 90) -> None:
        """Until so many nodes, or more, are alive to Ray."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self._script.poll() is None, (self.folder / "cluster.log").read_text()
            try:
                nodes = self.get("/nodes?view=summary")["data"]["summary"]
            except OSError:
                nodes = []
            if sum(node["raylet"].get("state") == "ALIVE" for node in nodes) >= count:
                return
            time.sleep(0.3)
        raise AssertionError(f"not {count} nodes after {seconds} s: {list(self.folder.iterdir())}")

    def get(self, path: str, *, token: bool = True) -> Any:
        request = urllib.request.Request(self.url + path)
        if token:
            secret = (self.folder / "token").read_text().strip()
            request.add_header("Authorization", f"Bearer {secret}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def jobs(self) -> dict[str, Any]:
        """Ray's jobs by submission id: Dagster's runs and steps."""
        return {job["submission_id"]: job for job in self.get("/api/jobs/")}

    def processes(self, node: str) -> list[psutil.Process]:
        """All processes of a node, and no other's."""
        try:
            first = psutil.Process(int((self.folder / f"{node}.pid").read_text()))
            return [first, *first.children(recursive=True)]
        except (FileNotFoundError, psutil.NoSuchProcess):
            return []

    def steps(self, node: str) -> list[StepProcess]:
        found = []
        for process in self.processes(node):
            try:
                command = process.cmdline()
                if "execute_step" in command:
                    known = process.environ()
                    run_id = json.loads(known["RAY_JOB_CONFIG_JSON_ENV_VAR"])["metadata"][
                        "dagster/run-id"
                    ]
                    found.append(StepProcess(known["DAGSTER_RUN_STEP_KEY"], run_id, process))
            except psutil.Error:
                continue
        return found

    def run_process(self, run_id: str) -> psutil.Process | None:
        """The process of a run, which starts its steps and watches them; it is on the head node."""
        for process in self.processes("head"):
            try:
                command = process.cmdline()
            except psutil.Error:
                continue
            if "execute_run" in command and run_id in command[-1]:
                return process
        return None

    def kill_worker(self) -> int:
        """SIGKILL to every process of the worker node; returns how many there were."""
        processes = self.processes("worker-1")
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        return len(processes)
