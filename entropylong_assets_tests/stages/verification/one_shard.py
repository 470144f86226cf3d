"""Verification of one shard of a finished pipeline into another store.

As a program it stops in the middle, to be killed there:

    python -m entropylong_assets_tests.stages.verification.one_shard SETTINGS SHARD INTO N
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from entropylong_assets.pipeline import STAGES
from entropylong_assets.project import dataset_model, open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.embeddings.table import open_table
from entropylong_assets.stages.entropy.engine import PackedScorer
from entropylong_assets.stages.entropy.model import load_scoring_model
from entropylong_assets.stages.retrieval.chunk_universe import chunk_universe
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.verification.registry import NO_SCREEN, SCREENS
from entropylong_assets.stages.verification.shard_verification import (
    VerifiedShard,
    Verifier,
    verify_shard,
)
from entropylong_assets.stages.verification.stored_scores import StoredScores
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.checkpoints import Checkpoints, remove_checkpoints
from entropylong_assets.storage.tables import TableStore

if TYPE_CHECKING:
    from entropylong_assets_tests.conftest import World


class Outcome(NamedTuple):
    """The written pairs, and what `verify_shard` returns."""

    pairs: pl.DataFrame
    verified: VerifiedShard


def verify(
    settings: Settings,
    shard: str,
    into: TableStore,
    *,
    key: str | None = None,
    on_root: Callable[[int], None] = lambda _: None,
    on_progress: Callable[[int, float], None] = lambda *_: None,
    screener: Any = None,
    stored: StoredScores | None = None,
    scorer: Any = None,
) -> Outcome:
    """Verify a shard with two roots per batch; with checkpoints if there is a key for them.

    scorer: instead of the engine. screener: instead of the one that the settings name.
    """
    store = open_store(settings)
    candidates = store.summary(CANDIDATE_CONTEXTS, shard)
    table = open_table(store, candidates.index)
    model = load_scoring_model(settings.scoring)
    screen = settings.verification.screen
    if screener is None and screen != NO_SCREEN:
        screener = SCREENS[screen](model, settings.scoring.pack_tokens)
    verifier = Verifier(
        settings,
        model.tokenizer,
        model.max_positions,
        scorer or PackedScorer(model),
        chunk_universe(table, candidates.excluded_shards),
        lambda ids: table.fetch(ids, ["chunk_id", "doc_id", "text"]).drop("shard"),
        screener,
    )
    with into.write(VERIFIED_DEPENDENCIES, shard, fingerprint="test") as writer:
        verified = verify_shard(
            verifier,
            Partition(settings, store, shard),
            writer,
            Checkpoints(into, VERIFIED_DEPENDENCIES, shard, key) if key else None,
            stored=stored,
            roots_per_batch=2,
            on_root=on_root,
            on_progress=on_progress,
        )
    remove_checkpoints(into, VERIFIED_DEPENDENCIES, shard)
    return Outcome(into.read(VERIFIED_DEPENDENCIES, shard, "pairs"), verified)


def with_verification(settings: Settings, **changes: Any) -> Settings:
    """Settings of a dataset with other settings of the verification."""
    section = settings.verification.model_copy(update=changes)
    return settings.model_copy(update={"verification": section})


def copy_of(world: World, folder: Path) -> Settings:
    """Copy the data of a world. Return the settings of its dataset over the copy."""
    shutil.copytree(world.settings.data_uri, folder)
    corpus = world.settings.corpus.model_copy(update={"data_uri": str(folder)})
    return world.settings.model_copy(update={"data_uri": str(folder), "corpus": corpus})


def main() -> None:
    settings = dataset_model(STAGES).model_validate_json(Path(sys.argv[1]).read_text())
    remaining = int(sys.argv[4])

    def stop_here(_: int) -> None:
        nonlocal remaining
        remaining -= 1
        if remaining == 0:
            print("in the middle", flush=True)
            time.sleep(600)

    verify(settings, sys.argv[2], TableStore(sys.argv[3]), key="k", on_root=stop_here)


if __name__ == "__main__":
    main()
