"""Steps on a cluster: Ray through dagster-ray, Kubernetes through dagster-k8s.

Which engine, and what a step of each asset asks for, are settings (`cluster`). The libraries of
an engine are imported when it is chosen and not before.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from entropylong_assets.settings.model import ClusterSettings, SettingsError, StepResources

_NEEDS = {"ray": ("dagster_ray", "ray"), "kubernetes": ("dagster_k8s", "kubernetes")}
_EXTRA = {"ray": "ray", "kubernetes": "k8s"}

# What Ray's processes are told of a run's environment. No secrets: Ray shows it with the job.
_PASSED_ON = ("ENTROPYLONG_SETTINGS", "ENTROPYLONG_PROFILE", "ENTROPYLONG_CACHE", "HF_HUB_OFFLINE")


def executor(cluster: ClusterSettings) -> dg.ExecutorDefinition:
    """What executes the steps of all runs. Raises SettingsError where the extra is missing."""
    if cluster.engine == "local":
        # Runs are spread over processes, a run's steps are not: they share the loaded models.
        return dg.in_process_executor
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

    steps = {step: kubernetes_config(asked) for step, asked in _by_step(cluster).items()}
    return k8s_job_executor.configured({"per_step_k8s_config": steps}, name="kubernetes")


def on_cluster(asset: dg.AssetsDefinition, cluster: ClusterSettings) -> dg.AssetsDefinition:
    """The same assets or checks, whose step asks Ray for what the settings say.

    On other engines unchanged: Kubernetes gets it from the executor.
    """
    if cluster.engine != "ray":
        return asset
    op = asset.op
    tagged = dg.OpDefinition(
        compute_fn=op.compute_fn,
        name=op.name,
        ins={ins.name: dg.In.from_definition(ins) for ins in op.input_defs},
        outs={out.name: dg.Out.from_definition(out) for out in op.output_defs},
        description=op.description,
        config_schema=op.config_schema,
        required_resource_keys=set(op.required_resource_keys),
        tags={**op.tags, "dagster-ray/config": json.dumps(ray_config(_asked(cluster, op.name)))},
        code_version=op.version,
        retry_policy=op.retry_policy,
        pool=op.pool,
    )
    return type(asset).dagster_internal_init(**{**asset.get_attributes_dict(), "node_def": tagged})


def ray_config(asked: StepResources) -> Mapping[str, Any]:
    """The tag `dagster-ray/config` of a step; memory in bytes."""
    config: dict[str, Any] = {"num_cpus": asked.num_cpus, "num_gpus": asked.num_gpus}
    if asked.memory is not None:
        config["memory"] = int(asked.memory)
    if not asked.num_gpus:
        # Ray would leave all of the node's GPUs visible, and `device: auto` would take one.
        config["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
    return config


def kubernetes_config(asked: StepResources) -> Mapping[str, Any]:
    """A step's entry of `per_step_k8s_config`; GPUs as NVIDIA's device plugin names them.

    Raises SettingsError for a part of a GPU.
    """
    if asked.num_gpus != int(asked.num_gpus):
        raise SettingsError(
            f"cluster.resources: Kubernetes gives whole GPUs, not {asked.num_gpus}; see num_gpus"
        )
    requests: dict[str, str] = {"cpu": f"{asked.num_cpus:g}"}
    limits: dict[str, str] = {}
    if asked.memory is not None:
        requests["memory"] = limits["memory"] = str(int(asked.memory))
    if asked.num_gpus:
        limits["nvidia.com/gpu"] = str(int(asked.num_gpus))
    threads = str(max(1, int(asked.num_cpus)))
    return {
        "container_config": {
            "resources": {"requests": requests, "limits": limits},
            "env": [{"name": "OMP_NUM_THREADS", "value": threads}],
        }
    }


def _asked(cluster: ClusterSettings, step: str) -> StepResources:
    """What the step asks for; steps of checks are named `<asset>_checks`."""
    resources: StepResources = getattr(cluster.resources, step, cluster.resources.checks)
    return resources


def _by_step(cluster: ClusterSettings) -> dict[str, StepResources]:
    assets = [name for name in type(cluster.resources).model_fields if name != "checks"]
    steps = {name: _asked(cluster, name) for name in assets}
    return steps | {f"{name}_checks": cluster.resources.checks for name in assets}


def ray_nodes(address: str | None) -> list[Mapping[str, float]]:
    """What each living node of a Ray cluster has, by Ray's names: `CPU`, `GPU`, `memory` (bytes).

    Raises what Ray raises where there is no cluster at the address, or the token is another.
    """
    from ray.util.state import list_nodes

    nodes = list_nodes(address, [("state", "=", "ALIVE")], limit=10_000, timeout=10, detail=True)
    return [dict(node.resources_total) for node in nodes]


def without_a_node(cluster: ClusterSettings, nodes: Sequence[Mapping[str, float]]) -> list[str]:
    """Steps that ask for more than any of these nodes has, and so would never start."""

    def fits(asked: StepResources, node: Mapping[str, float]) -> bool:
        return (
            asked.num_cpus <= node.get("CPU", 0)
            and asked.num_gpus <= node.get("GPU", 0)
            and (asked.memory or 0) <= node.get("memory", 0)
        )

    steps = _by_step(cluster).items()
    return [step for step, asked in steps if not any(fits(asked, node) for node in nodes)]
