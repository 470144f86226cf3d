"""What could be made now: stages over all shards that are outdated, and gaps in single shards.

Answered from the tables and their check outcomes, for automation conditions, schedules and the
command line alike.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from entropylong_assets.settings.section import fingerprint
from entropylong_assets.stages.corpus.errors import MissingSourceError
from entropylong_assets.stages.corpus.shards import current_shard, load_plan
from entropylong_assets.stages.stage import Partition, Stage
from entropylong_assets.stages.versioning import (
    THREADS,
    eligible_shards,
    failed_check,
    removal_fault,
    shard_versions,
)
from entropylong_assets.storage.tables import WHOLE


def outdated_shards(stage: Stage, partition: Partition) -> list[str]:
    """Shards that a stage over all shards would take in, renew or leave out if it were made now.

    Shards that are only stale under the present settings don't count: a changed setting alone
    starts nothing.
    """
    whole = replace(partition, shard=WHOLE)
    manifest = partition.store.manifest(stage.tables, WHOLE)
    recorded = manifest.determinants.get("inputs", {}) if manifest else {}
    eligible = eligible_shards(stage, whole).shards
    outdated: set[str] = set()
    for source in stage.inputs:
        if not source.partitioned:
            continue
        wanted = shard_versions(source, whole, eligible)
        contained = recorded.get(source.name, {})
        outdated |= {s for s in wanted if contained.get(s) != wanted[s]}
        left_out = contained.keys() - wanted.keys()
        if stage.requires_up_to_date_inputs:
            left_out -= set(partition.store.shards(source.tables))  # all but retired ones
        outdated |= left_out
    return sorted(outdated)


def is_outdated(stage: Stage, partition: Partition) -> bool:
    """Whether a stage over all shards would have other content if it were made now."""
    if stage.skip_reason(partition) is not None:
        return False
    if outdated_shards(stage, partition) or removal_fault(stage, partition):
        return True
    whole = [source for source in stage.inputs if not source.partitioned]
    manifest = partition.store.manifest(stage.tables, WHOLE)
    recorded = manifest.determinants.get("inputs", {}) if manifest else {}
    current = [(s.name, partition.store.manifest(s.tables, WHOLE)) for s in whole]
    return any(m is not None and recorded.get(name) != m.data_version for name, m in current)


def shards_contained(stage: Stage, partition: Partition, shards: Iterable[str]) -> set[str]:
    """Those of the shards whose present data all inputs over all shards contain."""
    found = set(shards)
    for source in stage.inputs:
        if source.partitioned or not found:
            continue
        if removal_fault(source, partition):
            return set()
        manifest = partition.store.manifest(source.tables, WHOLE)
        recorded = manifest.determinants.get("inputs", {}) if manifest else {}
        for contained in source.inputs:
            if contained.partitioned:
                versions = recorded.get(contained.name, {})
                found = {
                    s
                    for s in found & versions.keys()
                    if _version(contained, partition, s) == versions[s]
                }
    return found


def _version(stage: Stage, partition: Partition, shard: str) -> str | None:
    manifest = partition.store.manifest(stage.tables, shard)
    return manifest.data_version if manifest else None


def has_files(partition: Partition) -> bool:
    """Whether a shard's source and a file of it still exist. If not, the scan reports it, and the
    shard keeps its data."""
    try:
        current_shard(partition.settings, load_plan(partition.store), partition.shard)
    except MissingSourceError:
        return False
    return True


@dataclass(frozen=True)
class Gap:
    """The first stage of a shard that is missing or older than its inputs."""

    shard: str
    stage: Stage
    basis: str
    """Fingerprint of the inputs that it would read now and of its last materialization: each gap is
    requested once, and again if the shard has been made since."""


def automated_shard_stages(stages: Sequence[Stage]) -> list[Stage]:
    """Stages with one partition per shard that automations may start."""
    return [stage for stage in stages if stage.partitioned and stage.automation != "by_hand"]


def find_gaps(
    stages: Sequence[Stage],
    partition: Partition,
    shards: Collection[str],
    known: Mapping[tuple[str, str], int],
) -> list[Gap]:
    """The first gap of each of these shards that can be filled now.

    The inputs must have passed their blocking checks, and must not have a gap themselves: one that
    waits for the next index would make the stage twice. stages: of one corpus or dataset. known:
    the last materialization that the Dagster instance knows, by stage name and shard. Reads a few
    small manifests per shard.
    """
    follows = automated_shard_stages(stages)

    def gap(shard: str) -> Gap | None:
        here = replace(partition, shard=shard)
        held_back: set[str] = set()
        for stage in follows:
            sources = [source for source in stage.inputs if source.partitioned]
            versions = {source.name: _version(source, here, shard) for source in sources}
            if (
                held_back & versions.keys()
                or None in versions.values()
                or any(failed_check(source, here) for source in sources)
            ):
                held_back.add(stage.name)
                continue
            manifest = here.store.manifest(stage.tables, shard)
            try:
                files = stage.identify(here) if stage.automation == "by_scan" else {}
                files = {**files, **stage.removals(here)}
            except ValueError:  # it can't be read, e.g. for lack of permission
                continue
            if manifest is not None and (stage.name, shard) in known:
                made = manifest.determinants
                inputs = made.get("inputs", {})
                if all(inputs.get(n) == v for n, v in versions.items()) and all(
                    made.get(name) == value for name, value in files.items()
                ):
                    continue
            if stage.automation == "by_scan" and not has_files(here):
                continue
            if shards_contained(stage, here, [shard]):
                last = known.get((stage.name, shard))
                return Gap(shard, stage, fingerprint(versions, files, last))
            held_back.add(stage.name)
        return None

    with ThreadPoolExecutor(THREADS) as pool:
        return [found for found in pool.map(gap, sorted(shards)) if found]
