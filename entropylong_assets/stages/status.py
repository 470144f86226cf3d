"""The state of each partition: up to date, stale, failed, missing, skipped or by hand, and why.

It is read from the manifests and check outcomes that are stored with the data, so it does not
depend on the Dagster instance that made the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.stage import Partition, Stage
from entropylong_assets.stages.versioning import (
    THREADS,
    failed_check,
    settings_difference,
    stale_reason,
)
from entropylong_assets.storage.tables import WHOLE

State = Literal["up_to_date", "stale", "failed", "running", "missing", "skipped", "by_hand"]
"""`by_hand`: it does not exist, and nothing needs it; it is made if someone starts its stage."""
STATES: tuple[State, ...] = get_args(State)

SETTINGS_CHECK = "made_under_present_settings"
"""Name of the asset check of every stage that warns of partitions made under other settings."""


@dataclass(frozen=True)
class PartitionState:
    """The state of one partition, and its reason; an up-to-date one has none."""

    state: State
    reason: str = ""


@dataclass
class StageStatus:
    """The states of all partitions of one stage of a corpus or dataset."""

    owner: Settings
    stage: Stage
    states: dict[str, PartitionState] = field(default_factory=dict)
    """By shard, sorted; the one partition of a stage over all shards is named `all`."""

    def count(self, state: State) -> int:
        """Number of partitions in this state."""
        return sum(partition_state.state == state for partition_state in self.states.values())

    def reasons(self) -> dict[PartitionState, list[str]]:
        """Shards by state and reason, in the order of `STATES`, without those up to date."""
        groups: dict[PartitionState, list[str]] = {}
        for shard, partition_state in self.states.items():
            if partition_state.state != "up_to_date":
                groups.setdefault(partition_state, []).append(shard)
        return dict(sorted(groups.items(), key=lambda g: (STATES.index(g[0].state), g[0].reason)))


def settings_fault(stage: Stage, partition: Partition) -> str | None:
    """Why a partition was not made under these settings and this code, or None.

    Also None if the partition does not exist.
    """
    manifest = partition.store.manifest(stage.tables, partition.shard)
    return None if manifest is None else settings_difference(stage, manifest, partition.settings)


def partition_state(stage: Stage, partition: Partition) -> PartitionState:
    """The state of one partition, without regard to whether its inputs are up to date."""
    if partition.store.manifest(stage.tables, partition.shard) is None:
        if stage.automation == "by_hand":
            return PartitionState("by_hand", "made by hand only")
        skipped = stage.skip_reason(partition)
        if skipped:
            return PartitionState("skipped", skipped)
        return PartitionState("missing", "not materialized")
    # Settings are compared first: they also explain why a stage over all shards leaves shards out.
    stale = settings_fault(stage, partition) or stale_reason(stage, partition)
    if stale:
        return PartitionState("stale", stale)
    failed = failed_check(stage, partition)
    return PartitionState("failed", failed) if failed else PartitionState("up_to_date")


def status_of(
    partition: Partition,
    stages: Sequence[Stage],
    shards: Iterable[str],
    before: Sequence[StageStatus] = (),
) -> list[StageStatus]:
    """The status of the stages of one corpus or dataset, in the order of the data.

    partition: its settings and tables. shards: those of the corpus' plan; shards that only the
    tables contain are added. before: for a dataset, the status of its corpus, so that a partition
    with a stale input counts as stale. Reads a few small files per partition.
    """
    planned, statuses = set(shards), list(before)
    for stage in stages:
        keys = [WHOLE]
        if stage.partitioned:
            keys = sorted(planned | set(partition.store.shards(stage.tables)))
        with ThreadPoolExecutor(THREADS) as pool:
            states = list(
                pool.map(
                    lambda shard, stage=stage: partition_state(
                        stage, replace(partition, shard=shard)
                    ),
                    keys,
                )
            )
        status = StageStatus(partition.settings, stage, dict(zip(keys, states, strict=True)))
        _follow_inputs(status, {s.stage: s for s in statuses})
        statuses.append(status)
    return statuses[len(before) :]


def _follow_inputs(status: StageStatus, known: dict[Stage, StageStatus]) -> None:
    """Mark up-to-date partitions as stale if one of their inputs is."""
    for shard, partition_state in status.states.items():
        if partition_state.state != "up_to_date":
            continue
        for source in status.stage.inputs:
            inputs = known[source].states if source in known else {}
            of_shard = [inputs.get(shard if source.partitioned else WHOLE)]
            if source.partitioned and not status.stage.partitioned:
                of_shard = list(inputs.values())
            if any(state is not None and state.state == "stale" for state in of_shard):
                status.states[shard] = PartitionState("stale", f"its input {source.name} is stale")
                break
