"""Settings of where the steps of a run are executed, and of the resources of each step."""

from __future__ import annotations

from typing import Literal

from pydantic import ByteSize, Field, field_validator

from entropylong_assets.settings.section import Section, refuse_credentials


class StepResources(Section):
    """What one step requests of a cluster node, for its exclusive use."""

    num_cpus: float = Field(1.0, gt=0, allow_inf_nan=False)
    """CPU cores; models use as many threads."""
    num_gpus: float = Field(0.0, ge=0, allow_inf_nan=False)
    """GPUs. On Ray, a fraction lets several steps share one GPU. With 0, a step sees no GPU."""
    memory: ByteSize | None = None
    """Main memory, e.g. `16GiB`. `null`: no limit."""

    @field_validator("num_gpus")
    @classmethod
    def _whole_or_part(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError("must be a fraction of one GPU or a whole number of GPUs")
        return value


CPU_STEP = StepResources()
GPU_STEP = StepResources(num_gpus=1.0)


class ClusterSettings(Section):
    """Where the steps of a run are executed. Their output does not depend on it.

    The field `resources`, with one entry per stage, is added from the list of stages.
    """

    engine: Literal["local", "ray", "kubernetes"] = "local"
    """`local`: in the process of the run. `ray`: each step is a job of a Ray cluster (extra
    `ray`). `kubernetes`: each step is a Kubernetes job (extra `k8s`). See docs/cluster.md."""
    address: str = ""
    """Address of Ray's job server, e.g. `http://head:8265`. If empty: the address of the run
    launcher, or else the environment variable RAY_ADDRESS."""

    shards_per_run: int = Field(1, ge=1, le=1000)
    """Maximum number of shards per run of a backfill. Above 1, the steps of such a run work on its
    shards one after the other and load their models once. See docs/cluster.md."""

    _address_without_credentials = field_validator("address")(refuse_credentials)
