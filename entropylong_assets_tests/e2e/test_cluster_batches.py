"""Runs over several shards on Ray and Kubernetes: one job of the cluster per step.

Dagster's own executors run, and every step is a process. Only the cluster is replaced: what is
submitted to it starts on this machine.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
import yaml

from entropylong_assets.orchestration.build import build_definitions
from entropylong_assets.orchestration.local_run import register_shards
from entropylong_assets.orchestration.naming import asset_key
from entropylong_assets.project import make_project
from entropylong_assets_tests.stage_names import BY_NAME
from entropylong_assets_tests.tiny_world import document, tiny_values

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.long

STAGES = [BY_NAME["corpus_documents"], BY_NAME["chunk_embeddings"]]


class Jobs:
    """What was submitted to the cluster; each is a process of this machine."""

    def __init__(self) -> None:
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.steps: list[str] = []

    def start(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        assert name not in self._processes
        self.steps.append(environment["DAGSTER_RUN_STEP_KEY"])
        assert command[0] == "dagster"
        self._processes[name] = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
            stdout=subprocess.DEVNULL,
        )

    def has_failed(self, name: str) -> bool:
        return self._processes[name].poll() not in (None, 0)

    def end(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()


class RayClient:
    """As much of `ray.job_submission.JobSubmissionClient` as the executor uses."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def submit_job(
        self, *, entrypoint: str, submission_id: str, runtime_env: dict[str, Any], **_: Any
    ) -> None:
        self._jobs.start(submission_id, shlex.split(entrypoint), runtime_env["env_vars"])

    def get_job_status(self, submission_id: str) -> Any:
        from ray.job_submission import JobStatus

        return JobStatus.FAILED if self._jobs.has_failed(submission_id) else JobStatus.RUNNING

    def get_job_info(self, submission_id: str) -> Any:
        return SimpleNamespace(error_type=None, message=f"{submission_id} has failed")


class KubernetesClient:
    """As much of `dagster_k8s.client.DagsterKubernetesClient` as the executor uses."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def create_namespaced_job_with_retries(self, body: Any, namespace: str) -> None:
        assert namespace
        (container,) = body.spec.template.spec.containers
        given = {e.name: e.value for e in container.env if e.value is not None}
        self._jobs.start(body.metadata.name, container.args, given)

    def get_job_status(self, namespace: str, job_name: str) -> Any:
        assert namespace
        return SimpleNamespace(failed=self._jobs.has_failed(job_name))


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    made = Jobs()
    yield made
    made.end()


def replace_cluster(engine: str, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Let the executor of an engine submit to these jobs. Returns settings of the instance."""
    if engine == "ray":
        import ray.job_submission

        client = RayClient(jobs)
        monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", lambda *_, **__: client)
        return {}
    import kubernetes
    from dagster_k8s.client import DagsterKubernetesClient

    monkeypatch.setattr(kubernetes.config, "load_incluster_config", lambda: None)
    monkeypatch.setattr(
        DagsterKubernetesClient, "production_client", lambda *_, **__: KubernetesClient(jobs)
    )
    path = REPOSITORY / "deploy" / "kubernetes" / "dagster.yaml"
    launcher = yaml.safe_load(path.read_text())["run_launcher"]
    launcher["config"] |= {"job_image": "entropylong:1", "env_config_maps": [], "env_secrets": []}
    return {"run_launcher": launcher}


def ingest_job(values: str) -> dg.JobDefinition:
    """The job from which every step's process loads its own."""
    repository = build_definitions(make_project(json.loads(values))).get_repository_def()
    return repository.get_job("corpus__ingest")


@pytest.mark.parametrize("engine", ["ray", "kubernetes"])
def test_a_step_over_several_shards_is_one_job_of_the_cluster(
    engine: str,
    jobs: Jobs,
    tiny_models: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The failures: a job per shard, which loads the model as often; a later step in a process of
    its own that does not know which shards the earlier one has made; a shard that stops others."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number, name in enumerate("abc"):
        rows = [{"text": document(1_000 * number + i), "id": f"{name}{i}"} for i in range(6)]
        lines = [json.dumps(row) for row in rows]
        if name == "b":
            lines[2] = lines[2][:-9]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    values = tiny_values(folder, tmp_path / "data", tiny_models)
    values["cluster"] = {"engine": engine, "shards_per_run": 16}
    project = make_project(values)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("DAGSTER_STEP_DELEGATING_EXECUTOR_SLEEP_SECONDS", "0.2")
    settings = replace_cluster(engine, jobs, monkeypatch)
    with dg.DagsterInstance.local_temp(str(home), overrides=settings) as instance:
        shards = [shard.key for shard in register_shards(project.corpus, instance).shards]
        keys = [asset_key(project.dataset, stage) for stage in STAGES]
        result = dg.execute_job(
            dg.build_reconstructable_job(__name__, "ingest_job", (json.dumps(values),)),
            instance,
            tags={
                "dagster/asset_partition_range_start": shards[0],
                "dagster/asset_partition_range_end": shards[-1],
            },
            asset_selection=keys,
        )
        steps = ["corpus__corpus_documents", "corpus__chunk_embeddings"]
        assert jobs.steps == [name for step in steps for name in (step, f"{step}_checks")]
        made = {
            key: sorted(
                str(record.partition_key)
                for record in instance.fetch_materializations(key, limit=9).records
            )
            for key in keys
        }
        (failed,) = [event for event in result.all_events if event.is_step_failure]
    assert made == {key: [shards[0], shards[2]] for key in keys}
    assert failed.step_key == "corpus__chunk_embeddings_checks"
    cause = failed.step_failure_data.user_failure_data
    assert cause is not None
    assert f"1 of 3 shards failed: {shards[1]}" in str(cause.description)
