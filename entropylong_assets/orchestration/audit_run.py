"""Audits from the command line: those that are not current, shard by shard."""

from __future__ import annotations

import json
from collections.abc import Callable

import dagster as dg

from entropylong_assets.audits.cross_model import second_settings
from entropylong_assets.definitions import build_definitions
from entropylong_assets.orchestration.jobs import AUDITS
from entropylong_assets.orchestration.local_run import run_job
from entropylong_assets.orchestration.partitions import corpus_shard
from entropylong_assets.orchestration.versioning import determinants
from entropylong_assets.settings.model import Settings
from entropylong_assets.stages.entropy.model import model_identity
from entropylong_assets.storage.tables import TableStore


def audit_is_current(asset: str, shard: str, settings: Settings, store: TableStore) -> bool:
    """Whether the audit is there and a rerun would have the same determinants."""
    manifest = store.manifest(asset, shard)
    verified = store.manifest("verified_dependencies", shard)
    if manifest is None or verified is None:
        return False
    inputs = {"verified_dependencies": verified.data_version}
    model = second_settings(settings) if asset == "cross_model_audit" else settings.scoring
    identity = model_identity(model) if model else None
    wanted = determinants(asset, settings, inputs, model=identity)
    return bool(manifest.determinants == json.loads(json.dumps(wanted)))


def run_audits(
    settings: Settings,
    there: dg.DagsterInstance,
    on_end: Callable[[str, bool], None] = lambda *_: None,
) -> int:
    """Audits every verified shard; returns the number of runs. `on_end` gets the shard and
    whether anything was run. Raises RunError."""
    store = TableStore(settings.data_uri)
    repository = build_definitions(settings).get_repository_def()
    runs = 0
    shards = store.shards("verified_dependencies")
    there.add_dynamic_partitions(str(corpus_shard.name), shards)
    for shard in shards:
        stale = [a for a in AUDITS if not audit_is_current(a, shard, settings, store)]
        if stale:
            run_job(repository.get_job("audit"), shard, there, stale)
            runs += 1
        on_end(shard, bool(stale))
    return runs
