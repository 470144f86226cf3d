"""Real runs on a real two-node Ray cluster, one node of which is killed in the middle of a step.

The cluster is that of `deploy/local-ray`, the Dagster server and its daemon are those of
`make ray-ui`: runs are jobs of Ray, and each of their steps is one too.
"""

from __future__ import annotations

import os
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest

from entropylong_assets.orchestration.doctor import examine
from entropylong_assets.orchestration.local_run import register_shards
from entropylong_assets.project import make_project, open_store
from entropylong_assets.stages.embeddings.tables import CHUNK_EMBEDDINGS
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.e2e.local_ray import LocalRay, StepProcess
from entropylong_assets_tests.e2e.server import REPOSITORY, Server, free_port
from entropylong_assets_tests.stage_names import path_of
from entropylong_assets_tests.test_pipeline import versions
from entropylong_assets_tests.tiny_world import tiny_values

AFTER_INDEX = [
    "entropy_scores",
    "candidate_contexts",
    "verified_dependencies",
    "long_context_samples",
]
GPU_STEPS = {
    "corpus__chunk_embeddings",
    "dataset__entropy_scores",
    "dataset__verified_dependencies",
}


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRay]:
    with LocalRay(tmp_path_factory.mktemp("ray") / "nodes") as cluster:
        yield cluster


def launch(server: Server, assets: list[str], shard: str) -> str:
    """A run of these assets alone, without their checks: half as many steps."""
    data = server.query(
        "mutation($p: ExecutionParams!) { launchPipelineExecution(executionParams: $p) "
        "{ __typename ... on LaunchRunSuccess { run { runId } } "
        "... on PythonError { message } } }",
        p={
            "selector": {
                **REPOSITORY,
                "jobName": "__ASSET_JOB",
                "assetSelection": [{"path": path_of(asset)} for asset in assets],
                "assetCheckSelection": [],
            },
            "runConfigData": {},
            "mode": "default",
            "executionMetadata": {"tags": [{"key": "dagster/partition", "value": shard}]},
        },
    )["launchPipelineExecution"]
    assert data["__typename"] == "LaunchRunSuccess", data
    return str(data["run"]["runId"])


def wait_for(server: Server, runs: list[str], seconds: float) -> None:
    def ended() -> bool:
        states = [server.run_status(run) for run in runs]
        assert "FAILURE" not in states, server.state()
        return set(states) == {"SUCCESS"}

    server.wait(f"success of {len(runs)} runs", ended, seconds)


def events(instance: dg.DagsterInstance, run: str, step: str, kind: str) -> list[float]:
    """When events of this kind happened to a step of a run, in seconds since the epoch."""
    entries = instance.all_logs(run, of_type=dg.DagsterEventType(kind))
    return [e.timestamp for e in entries if e.dagster_event and e.dagster_event.step_key == step]


def a_step_in_its_middle(
    ray: LocalRay, instance: dg.DagsterInstance, runs: list[str]
) -> StepProcess | None:
    """A step on the worker node whose body has begun and not ended."""
    for found in ray.steps("worker-1"):
        begun = events(instance, found.run_id, found.step, "STEP_START")
        ended = events(instance, found.run_id, found.step, "STEP_SUCCESS")
        if found.run_id in runs and begun and not ended:
            return found
    return None


def test_a_node_killed_in_a_step_changes_nothing(
    ray: LocalRay,
    world: World,
    tiny_models: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The named failures: a partition that depends on where it was made, a step that is lost
    with its node, a half-made table that is read."""
    # Stages with a model ask for a GPU, as by default.
    ray_engine = {"engine": "ray"}
    values = tiny_values(world.corpus, tmp_path / "data", tiny_models, cluster=ray_engine)
    project = make_project(values)
    server = Server(tmp_path, values, ray.dagster_yaml)
    server.environment |= ray.client | {"DAGSTER_STEP_DELEGATING_EXECUTOR_SLEEP_SECONDS": "0.2"}
    for name, value in (ray.client | {"DAGSTER_HOME": str(server.home)}).items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.get() as instance:
        shards = [shard.key for shard in register_shards(project.corpus, instance).shards]
        assert shards == list(world.shards)
        instance.event_log_storage.set_concurrency_slots("gpu", 2)
        with server:
            ray.wait_for_nodes(2)
            findings = {f.subject: f for f in examine(project)}
            assert findings["ray"].verdict == "ok"
            assert "2 nodes, 2 CPUs, 2 GPUs" in findings["ray"].message
            wait_for(server, [server.launch("corpus__ingest", shard) for shard in shards], 240)
            wait_for(server, [server.launch("corpus__index")], 120)
            runs = [launch(server, AFTER_INDEX, shard) for shard in shards]
            hit = server.wait(
                "a step on the worker node",
                lambda: a_step_in_its_middle(ray, instance, runs),
                120,
            )
            asked = hit.process.environ().get("CUDA_VISIBLE_DEVICES")
            assert hit.process.is_running()
            assert hit.process.status() != psutil.STATUS_ZOMBIE
            killed, when = ray.kill_worker(), time.time()
            assert killed > 5  # raylet, its agents, the step and its supervisor
            wait_for(server, runs, 300)

        # The kill hit a running step: it began again later, and ended once.
        kinds = ("STEP_START", "STEP_UP_FOR_RETRY", "STEP_RESTARTED", "STEP_SUCCESS")
        ((begun,), (lost,), (again,), (ended,)) = (
            events(instance, hit.run_id, hit.step, kind) for kind in kinds
        )
        assert begun < when < lost < again < ended
        assert asked == ("0" if hit.step in GPU_STEPS else "")

    jobs = ray.jobs()
    steps = {name: job for name, job in jobs.items() if name.startswith("dagster-step-")}
    nodes = {job["driver_node_id"] for job in steps.values() if job["status"] == "SUCCEEDED"}
    assert len(nodes) == 2  # both nodes did some of the work
    (dead,) = [job for job in steps.values() if job["status"] == "FAILED"]
    assert dead["metadata"]["dagster/op"] == hit.step
    assert "died" in dead["message"]

    store = open_store(project.dataset)
    assert versions(store) == versions(world.store)
    for shard in shards:
        for table in ("samples", "segments", "dependencies"):
            made = store.read(LONG_CONTEXT_SAMPLES, shard, table)
            assert made.equals(world.store.read(LONG_CONTEXT_SAMPLES, shard, table))
            assert len(made) > 0


@pytest.mark.long
def test_a_run_whose_own_process_is_killed_is_resumed(
    ray: LocalRay,
    world: World,
    tiny_models: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The named failure: a run that stays "started" forever, or starts again from the beginning."""
    values = tiny_values(world.corpus, tmp_path / "data", tiny_models, cluster={"engine": "ray"})
    project = make_project(values)
    server = Server(tmp_path, values, ray.dagster_yaml)
    server.environment |= ray.client
    monkeypatch.setenv("DAGSTER_HOME", str(server.home))
    first, step = "corpus_documents", "corpus__corpus_documents"
    with dg.DagsterInstance.get() as instance:
        shard = register_shards(project.corpus, instance).shards[0].key
        with server:
            ray.wait_for_nodes(1)
            run = launch(server, [first, "chunk_embeddings"], shard)
            server.wait("a step", lambda: events(instance, run, step, "STEP_START"), 120)
            process = ray.run_process(run)
            assert process is not None
            process.kill()
            wait_for(server, [run], 240)
        # The step that was going on was neither lost nor made twice.
        assert len(events(instance, run, step, "STEP_START")) == 1
        assert len(events(instance, run, step, "STEP_SUCCESS")) == 1
        assert instance.count_resume_run_attempts(run) == 1
    made, wanted = (
        store.require(CHUNK_EMBEDDINGS, shard).data_version
        for store in (open_store(project.dataset), world.store)
    )
    assert made == wanted


def test_without_its_token_the_cluster_takes_no_jobs(ray: LocalRay) -> None:
    """Most of Ray's ports listen on every interface of the machine."""
    ray.wait_for_nodes(1)
    assert os.stat(ray.folder / "token").st_mode & 0o077 == 0
    with pytest.raises(urllib.error.HTTPError) as refused:
        ray.get("/api/jobs/", token=False)
    assert refused.value.code in (401, 403)
    known: Any = ray.get("/api/jobs/")
    assert isinstance(known, list)


def test_the_doctor_says_what_to_do_where_no_cluster_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    nowhere = f"http://127.0.0.1:{free_port()}"
    project = make_project(
        {"data_uri": str(tmp_path), "cluster": {"engine": "ray", "address": nowhere}},
        "quickstart",
    )
    (found,) = [f for f in examine(project) if f.subject == "ray"]
    assert found.verdict == "fault"
    assert found.message.startswith(f"{nowhere}: ServerUnavailable: ")
    assert "start the cluster" in found.message
