"""Verification of one shard of a finished pipeline into another store.

As a program it stops in the middle, to be killed there:

    python -m entropylong_assets_tests.stages.verification.one_shard SETTINGS SHARD INTO N
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from entropylong_assets.settings.model import Settings
from entropylong_assets.stages.embeddings.embedder import load_embedder
from entropylong_assets.stages.embeddings.table import ChunkTable
from entropylong_assets.stages.entropy.engine import PackedScorer
from entropylong_assets.stages.entropy.model import load_scoring_model
from entropylong_assets.stages.verification.shard_verification import (
    VerifiedShard,
    chunk_universe,
    verify_shard,
)
from entropylong_assets.storage.checkpoints import KeptBatches
from entropylong_assets.storage.tables import TableStore

ASSET = "verified_dependencies"


class Outcome(NamedTuple):
    """What was written, and what `verify_shard` says of it."""

    pairs: pl.DataFrame
    done: VerifiedShard


def verify(
    settings: Settings,
    shard: str,
    into: TableStore,
    *,
    key: str | None = None,
    on_root: Callable[[int], None] = lambda _: None,
    screener: Any = None,
) -> Outcome:
    """Two roots a batch; kept under `key` where there is one."""
    store = TableStore(settings.data_uri)
    candidates = store.require("candidate_contexts", shard)
    embedder = load_embedder(settings.embedding)
    table = ChunkTable(settings.data_uri, embedder.dimension, embedder.identity)
    table.checkout(candidates.summary["index"])
    model = load_scoring_model(settings.scoring)
    kept = KeptBatches(into, ASSET, shard, key) if key else None
    with into.write(ASSET, shard, fingerprint="test") as writer:
        done = verify_shard(
            store,
            shard,
            settings,
            model.tokenizer,
            model.max_positions,
            PackedScorer(model),
            chunk_universe(table, candidates.summary["excluded_shards"]),
            lambda ids: table.fetch(ids, ["chunk_id", "doc_id", "text"]).drop("shard"),
            writer,
            roots_a_batch=2,
            on_root=on_root,
            kept=kept,
            screener=screener,
        )
    if kept:
        kept.remove_all()
    return Outcome(into.read(ASSET, shard, "pairs"), done)


def main() -> None:
    settings = Settings.model_validate_json(Path(sys.argv[1]).read_text())
    left = int(sys.argv[4])

    def stop_here(_: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            print("in the middle", flush=True)
            time.sleep(600)

    verify(settings, sys.argv[2], TableStore(sys.argv[3]), key="k", on_root=stop_here)


if __name__ == "__main__":
    main()
