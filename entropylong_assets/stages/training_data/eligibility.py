"""Which shards may be exported: whole, made from what stands there now, under these settings.

An asset over all shards is not held back by the failed check of one shard, nor by a shard that
is being redone: it has to look itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from entropylong_assets.orchestration.versioning import UPSTREAM, code_version, determinants
from entropylong_assets.settings.model import Settings, fingerprint
from entropylong_assets.stages.corpus.shards import load_plan
from entropylong_assets.storage.tables import FORMAT_VERSION, TableStore

CHAIN = (
    "corpus_documents",
    "entropy_scores",
    "candidate_contexts",
    "verified_dependencies",
    "long_context_samples",
)
"""The assets of a shard that its samples are made of."""

# A new shard changes the index. Old shards keep the one they were made with (it is recorded) and
# are redone only by a backfill.
_MAY_MOVE_ON = "embedding_index"


@dataclass(frozen=True)
class Health:
    """Shards that are exported, and why each of the others is not."""

    healthy: tuple[str, ...]
    left_out: dict[str, str]


def chain_version(settings: Settings) -> str:
    """Changes with the code or the settings of any asset that samples are made of."""
    return fingerprint([code_version(asset, settings) for asset in CHAIN])


def table_fault(shard: str, settings: Settings, store: TableStore) -> str | None:
    """Why the shard's tables may not be exported as they are, or None."""
    manifests = {asset: store.manifest(asset, shard) for asset in CHAIN}
    for asset, manifest in manifests.items():
        if manifest is None:
            return f"{asset} is not materialised"
        if manifest.format_version != FORMAT_VERSION:
            return f"{asset} was written in format {manifest.format_version}; materialise it again"
        inputs = {}
        for name in UPSTREAM[asset]:
            upstream = manifests.get(name)
            if upstream is not None:
                inputs[name] = upstream.data_version
        wanted = json.loads(json.dumps(determinants(asset, settings, inputs)))
        made = manifest.determinants
        for name, version in made.get("inputs", {}).items():
            if name != _MAY_MOVE_ON and wanted["inputs"].get(name) != version:
                return f"{asset} was made from an older {name}; materialise it again"
        if set(wanted["inputs"]) - set(made.get("inputs", {})):
            return f"{asset} does not tell what it was made from; materialise it again"
        if made.get("code") != wanted["code"] or made.get("settings") != wanted["settings"]:
            return f"{asset} was made under other settings or by other code; materialise it again"
    return None


def known_shards(store: TableStore) -> list[str]:
    """Shards of the plan, and any other that has samples."""
    planned = {shard.key for shard in load_plan(store).shards}
    return sorted(planned | set(store.shards("long_context_samples")))


def find_healthy(store: TableStore, settings: Settings, unchecked: Mapping[str, str]) -> Health:
    """Looks at every shard's tables. unchecked: shards whose blocking checks did
    not all pass, and why."""
    healthy, left_out = [], {}
    for shard in known_shards(store):
        fault = table_fault(shard, settings, store)
        if fault is None:
            fault = unchecked.get(shard)
        if fault is None:
            healthy.append(shard)
        else:
            left_out[shard] = fault
    return Health(tuple(healthy), left_out)
