"""Steps on a cluster: Ray through dagster-ray, Kubernetes through dagster-k8s.

The engine, and the resources that a step of each stage asks for, are settings (`cluster`). The
libraries of an engine are imported only if it is chosen.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from entropylong_assets.orchestration.launcher import in_process_executor
from entropylong_assets.orchestration.naming import prefixed
from entropylong_assets.project import Project
from entropylong_assets.settings.cluster import ClusterSettings, StepResources
from entropylong_assets.settings.section import SettingsError

_NEEDS = {"ray": ("dagster_ray", "ray"), "kubernetes": ("dagster_k8s", "kubernetes")}
_EXTRA = {"ray": "ray", "kubernetes": "k8s"}

# Environment variables passed on to Ray's processes. No secrets: Ray shows them with the job.
_PASSED_ON = ("ENTROPYLONG_SETTINGS", "ENTROPYLONG_PROFILE", "ENTROPYLONG_CACHE", "HF_HUB_OFFLINE")


def executor(project: Project) -> dg.ExecutorDefinition:
    """The executor of all runs. Raises SettingsError if the extra of its engine is missing."""
    cluster = project.cluster
    if cluster.engine == "local":
        # Each run has a process of its own; its steps share that process and the loaded models.
        return in_process_executor
    missing = [name for name in _NEEDS[cluster.engine] if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"cluster.engine: '{cluster.engine}' needs the package {missing[0].replace('_', '-')}; "
            f"pip install -c constraints.txt -e '.[{_EXTRA[cluster.engine]}]'"
        )
    if cluster.engine == "ray":
        from dagster_ray import ray_executor

        config: dict[str, Any] = {"env_vars": list(_PASSED_ON)}
        if cluster.address:
            config |= {
                "address": cluster.address,
                "inherit_job_submission_client_from_ray_run_launcher": False,
            }
        return ray_executor.configured({"ray": config}, name="ray")
    from dagster_k8s import k8s_job_executor

    steps = {name: kubernetes_config(asks) for name, asks in resources_by_step(project).items()}
    return k8s_job_executor.configured({"per_step_k8s_config": steps}, name="kubernetes")


def step_tags(cluster: ClusterSettings, resources: StepResources) -> dict[str, str]:
    """Op tags with which a step requests its resources from Ray.

    Empty on other engines: Kubernetes gets the resources from the executor.
    """
    if cluster.engine != "ray":
        return {}
    return {"dagster-ray/config": json.dumps(ray_config(resources))}


def ray_config(resources: StepResources) -> Mapping[str, Any]:
    """The tag `dagster-ray/config` of a step; memory in bytes."""
    config: dict[str, Any] = {"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus}
    if resources.memory is not None:
        config["memory"] = int(resources.memory)
    if not resources.num_gpus:
        # Otherwise Ray leaves all GPUs of the node visible, and `device: auto` would use one.
        config["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
    return config


def kubernetes_config(resources: StepResources) -> Mapping[str, Any]:
    """A step's entry of `per_step_k8s_config`; GPUs as NVIDIA's device plugin names them.

    Raises SettingsError for a part of a GPU.
    """
    if resources.num_gpus != int(resources.num_gpus):
        raise SettingsError(
            f"cluster.resources: Kubernetes gives whole GPUs, not {resources.num_gpus}: set "
            "num_gpus to a whole number"
        )
    requests: dict[str, str] = {"cpu": f"{resources.num_cpus:g}"}
    limits: dict[str, str] = {}
    if resources.memory is not None:
        requests["memory"] = limits["memory"] = str(int(resources.memory))
    if resources.num_gpus:
        limits["nvidia.com/gpu"] = str(int(resources.num_gpus))
    threads = str(max(1, int(resources.num_cpus)))
    return {
        "container_config": {
            "resources": {"requests": requests, "limits": limits},
            "env": [{"name": "OMP_NUM_THREADS", "value": threads}],
        }
    }


def resources_by_step(project: Project) -> dict[str, StepResources]:
    """Resources that each step of each corpus and dataset requests, by the step's name."""
    steps: dict[str, StepResources] = {}
    for settings in (*project.corpora.values(), *project.datasets.values()):
        for stage in project.stages_of(settings):
            name = prefixed(settings, stage.name)
            steps[name] = project.resources(stage)
            steps[f"{name}_checks"] = project.cluster.resources.checks  # type: ignore[attr-defined]
    return steps


def ray_nodes(address: str | None) -> list[Mapping[str, float]]:
    """Resources of each live node of a Ray cluster: `CPU`, `GPU`, `memory` (bytes).

    Raises an error of Ray if no cluster answers at the address, or if it refuses the token.
    """
    from ray.util.state import list_nodes

    nodes = list_nodes(address, [("state", "=", "ALIVE")], limit=10_000, timeout=10, detail=True)
    return [dict(node.resources_total) for node in nodes]


def unplaceable_steps(project: Project, nodes: Sequence[Mapping[str, float]]) -> list[str]:
    """Names of steps that request more than any of these nodes has, and so would never start."""

    def fits(resources: StepResources, node: Mapping[str, float]) -> bool:
        return (
            resources.num_cpus <= node.get("CPU", 0)
            and resources.num_gpus <= node.get("GPU", 0)
            and (resources.memory or 0) <= node.get("memory", 0)
        )

    steps = resources_by_step(project).items()
    return [step for step, asks in steps if not any(fits(asks, node) for node in nodes)]
