"""Which shards may be used by an asset that reads all of them.

Dagster's blocking checks hold back what follows within a run and under declarative automation,
but neither an asset over all partitions nor a run started by hand. Such an asset asks here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import dagster as dg
from dagster._core.storage.asset_check_execution_record import (
    AssetCheckExecutionRecordStatus as Status,
)


def blocking_checks(definitions: Iterable[dg.AssetChecksDefinition]) -> list[dg.AssetCheckKey]:
    """Keys of the blocking checks among these definitions."""
    return [spec.key for checks in definitions for spec in checks.check_specs if spec.blocking]


def unhealthy_shards(
    instance: dg.DagsterInstance,
    checks: Sequence[dg.AssetCheckKey],
    shards: Iterable[str],
) -> Mapping[str, str]:
    """Shards that have not passed all of `checks` on their latest materialisation, and why.

    The reason names the first check at fault, e.g. `check unique_documents of corpus_documents
    failed`.
    """
    state = {
        (info.check_key, info.partition_key): info
        for info in instance.event_log_storage.get_asset_check_partition_info(list(checks))
    }
    reasons = {}
    for shard in shards:
        for key in checks:
            info = state.get((key, shard))
            if info and info.is_current and info.latest_execution_status == Status.SUCCEEDED:
                continue
            failed = info and info.is_current and info.latest_execution_status == Status.FAILED
            what = "failed" if failed else "has not run on the latest materialisation"
            reasons[shard] = f"check {key.name} of {key.asset_key.to_user_string()} {what}"
            break
    return reasons
