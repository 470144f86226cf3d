"""Where the steps of a run are executed, and what each step asks for."""

from __future__ import annotations

from typing import Literal

from pydantic import ByteSize, Field, field_validator

from entropylong_assets.settings.section import Section, refuse_credentials


class StepResources(Section):
    """What one step asks of a cluster node, for its exclusive use."""

    num_cpus: float = Field(1.0, gt=0, allow_inf_nan=False)
    """CPU cores; the models use as many threads."""
    num_gpus: float = Field(0.0, ge=0, allow_inf_nan=False)
    """GPUs; on Ray a fraction of one too, for steps that share it. With 0 a step sees none."""
    memory: ByteSize | None = None
    """Main memory, e.g. `16GiB`; none: whatever the node has."""

    @field_validator("num_gpus")
    @classmethod
    def _whole_or_part(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError("must be a part of one GPU or a whole number of them")
        return value


CPU_STEP = StepResources()
GPU_STEP = StepResources(num_gpus=1.0)


class ClusterSettings(Section):
    """Where the steps of a run are executed. What they produce does not depend on it.

    The field `resources` has one entry per stage and follows from the list of stages.
    """

    engine: Literal["local", "ray", "kubernetes"] = "local"
    """`local`: in the process of the run. `ray`: each step is a job of a Ray cluster (extra
    `ray`). `kubernetes`: each step is a Kubernetes job (extra `k8s`). docs/cluster.md."""
    address: str = ""
    """Address of Ray's job server, e.g. `http://head:8265`; empty: the run launcher's, else the
    one in RAY_ADDRESS."""

    _address_without_credentials = field_validator("address")(refuse_credentials)
