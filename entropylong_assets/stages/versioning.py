"""What determines a partition's content, whether it is up to date, and which shards may be used.

A partition is determined by the code version of its stage, the settings that the stage declares,
the data versions of its inputs, and what the stage identifies besides (models, source files). The
manifest records all of it, so every question is answered from the data alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from pydantic import BaseModel

from entropylong_assets.settings.section import Settings, fingerprint
from entropylong_assets.stages.stage import Partition, Stage
from entropylong_assets.storage.manifest import Manifest, TableError
from entropylong_assets.storage.tables import WHOLE

THREADS = 16
"""Number of manifests read in parallel."""


def determining_settings(stage: Stage, settings: Settings) -> dict[str, Any]:
    """The settings that determine the stage's content, by dotted path, as JSON values."""

    paths = sorted(stage.determined_by(settings))
    return _as_json({path: setting_at(settings, path) for path in paths})


def setting_at(settings: Settings, path: str) -> Any:
    """The value at a dotted path; a section as a mapping of JSON values, also inside another."""

    def plain(item: Any) -> Any:
        return item.model_dump(mode="json") if isinstance(item, BaseModel) else item

    value = reduce(getattr, path.split("."), settings)
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return plain(value)


def code_version(stage: Stage, settings: Settings) -> str:
    """Version that changes with the stage's code or one of its determining settings."""
    return fingerprint(stage.code_version, determining_settings(stage, settings))


def determinants(stage: Stage, partition: Partition) -> dict[str, Any]:
    """All that determines a partition, as JSON values: code, settings, inputs, models, files.

    Raises TableError if an input is missing, or over all shards and made before a removal.
    """
    return _as_json(
        {
            "code": stage.code_version,
            "settings": determining_settings(stage, partition.settings),
            "inputs": _input_versions(stage, partition),
            **stage.identify(partition),
            **stage.removals(partition),
        }
    )


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values as they are read from a manifest: tuples become lists."""
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def _input_versions(stage: Stage, partition: Partition) -> dict[str, Any]:
    """Data version of each input by name; of the eligible shards, for a stage over all of them."""
    versions: dict[str, Any] = {}
    for source in stage.inputs:
        if source.partitioned and not stage.partitioned:
            shards = eligible_shards(stage, partition).shards
            versions[source.name] = shard_versions(source, partition, shards)
        else:
            shard = partition.shard if source.partitioned else WHOLE
            versions[source.name] = partition.store.require(source.tables, shard).data_version
            fault = None if source.partitioned else removal_fault(source, partition)
            if fault:
                raise TableError(fault)
    return versions


def shard_versions(stage: Stage, partition: Partition, shards: tuple[str, ...]) -> dict[str, str]:
    """Data version of each of these shards."""
    with ThreadPoolExecutor(THREADS) as pool:
        manifests = pool.map(lambda shard: partition.store.require(stage.tables, shard), shards)
        return {m.shard: m.data_version for m in manifests}


def stale_reason(stage: Stage, partition: Partition) -> str | None:
    """Why the partition is not up to date, or None if making it again would change nothing.

    The reason names what differs: a setting, an input, the code, a model or a source file.
    """
    manifest = partition.store.manifest(stage.tables, partition.shard)
    if manifest is None:
        return "not materialized"
    if manifest.format_version != stage.tables.format_version:
        return f"written in format {manifest.format_version}"
    try:
        wanted = determinants(stage, partition)
    except TableError as error:  # an input has been removed, or is new
        return f"an input can't be read: {error}"
    return _difference(manifest.determinants, wanted)


def removal_fault(stage: Stage, partition: Partition) -> str | None:
    """Why a partition may contain what was removed from the corpus, or None.

    For a stage over all shards, its only partition is examined. Also None if the partition is not
    materialized.
    """
    shard = partition.shard if stage.partitioned else WHOLE
    here = Partition(_settings_of(stage, partition), partition.store, shard)
    wanted = _as_json(dict(stage.removals(here)))
    manifest = partition.store.manifest(stage.tables, shard) if wanted else None
    if manifest is None or all(manifest.determinants.get(n) == v for n, v in wanted.items()):
        return None
    what = "documents were taken down" if "taken_down" in wanted else "something was removed"
    return (
        f"{stage.name} was made before {what} from the corpus; materialize it again "
        "(`entropylong retire --list` shows what)"
    )


def is_up_to_date(stage: Stage, partition: Partition) -> bool:
    return stale_reason(stage, partition) is None


def _difference(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    if recorded.get("code") != wanted["code"]:
        return "made by other code"
    for kind, what in (("settings", "setting"), ("inputs", "input")):
        before, now = recorded.get(kind, {}), wanted[kind]
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                return f"{what} {name} has changed"
    for name in sorted(wanted.keys() - {"code", "settings", "inputs"}):
        if recorded.get(name) != wanted[name]:
            return f"{name} has changed"
    return None


def settings_difference(stage: Stage, manifest: Manifest, settings: Settings) -> str | None:
    """The first difference between a partition's settings or code and the present ones, or None."""
    recorded = manifest.determinants
    wanted = {
        **recorded,
        "code": stage.code_version,
        "settings": determining_settings(stage, settings),
    }
    return _difference(recorded, wanted)


@dataclass(frozen=True)
class Eligibility:
    """Shards that a stage over all shards uses, and why each of the others is left out."""

    shards: tuple[str, ...]
    left_out: dict[str, str]


def eligible_shards(stage: Stage, partition: Partition) -> Eligibility:
    """Divide the shards of the stage's inputs into eligible ones and ones that are left out.

    A shard is eligible if each of its partitioned inputs is materialized, was made from the present
    data of its own inputs, and has passed its blocking checks; with `requires_up_to_date_inputs`,
    each must also have been made under the present settings and code. Inputs over all shards must
    contain the present data of the shard.
    """
    shards = sorted({s for i in stage.inputs if i.partitioned for s in _shards(i, partition)})
    with ThreadPoolExecutor(THREADS) as pool:
        faults = list(pool.map(lambda s: _fault(stage, replace(partition, shard=s)), shards))
    return Eligibility(
        shards=tuple(s for s, fault in zip(shards, faults, strict=True) if fault is None),
        left_out={s: fault for s, fault in zip(shards, faults, strict=True) if fault is not None},
    )


def _fault(stage: Stage, partition: Partition) -> str | None:
    fault = shard_fault(stage, partition)
    for source in stage.inputs if fault is None else ():
        if not source.partitioned:
            fault = fault or _containment_fault(source, partition)
    return fault


def _containment_fault(whole: Stage, partition: Partition) -> str | None:
    """Why a stage over all shards does not contain the present data of a shard, or None."""
    partitioned = [source for source in whole.inputs if source.partitioned]
    if not partitioned:
        return None
    fault = shard_fault(whole, partition)
    if fault is not None:
        return fault
    manifest = partition.store.manifest(whole.tables, WHOLE)
    recorded = manifest.determinants.get("inputs", {}) if manifest else {}
    for source in partitioned:
        version = partition.store.require(source.tables, partition.shard).data_version
        if recorded.get(source.name, {}).get(partition.shard) != version:
            return f"{whole.name} does not contain its present data; materialize {whole.name} again"
    return None


def _shards(stage: Stage, partition: Partition) -> list[str]:
    return partition.store.shards(stage.tables)


def shard_fault(stage: Stage, partition: Partition) -> str | None:
    """Why a shard may not be used by a stage over all shards, or None."""
    store, shard = partition.store, partition.shard
    versions: dict[str, str] = {}
    for source in stage.chain():
        manifest = store.manifest(source.tables, shard)
        if manifest is None:
            return f"{source.name} is not materialized"
        if manifest.format_version != source.tables.format_version:
            return f"{source.name} was written in format {manifest.format_version}"
        recorded = manifest.determinants
        for name in (i.name for i in source.inputs if i.partitioned):
            if recorded.get("inputs", {}).get(name) != versions[name]:
                return f"{source.name} was made from an older {name}; materialize it again"
        if stage.requires_up_to_date_inputs:
            what = settings_difference(source, manifest, _settings_of(source, partition))
            if what:
                return f"{source.name} is stale ({what}); materialize it again"
        removed = removal_fault(source, partition)
        if removed:
            return removed
        versions[source.name] = manifest.data_version
        fault = failed_check(source, partition)
        if fault:
            return fault
    return None


def failed_check(stage: Stage, partition: Partition) -> str | None:
    """The first blocking check that the present data of the partition has not passed, or None."""
    outcomes = partition.store.check_outcomes(stage.tables, partition.shard)
    for name in stage.blocking_checks:
        outcome = outcomes.get(name)
        if outcome is None:
            return f"check {name} of {stage.name} has not run on the present data"
        if not outcome.passed:
            return f"check {name} of {stage.name} failed"
    return None


def _settings_of(stage: Stage, partition: Partition) -> Settings:
    """Settings that a stage reads: those of the corpus for a corpus stage."""
    return partition.corpus if stage.scope == "corpus" else partition.settings
