"""One shard's verification: from the tables before it to its own, root batch by root batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from entropylong_assets.entropy.model import Tokenizer
from entropylong_assets.entropy.scoring import Scorer
from entropylong_assets.retrieval.leak_guard import RootGuard
from entropylong_assets.settings import Settings, fingerprint
from entropylong_assets.storage.kept_batches import Batch, KeptBatches
from entropylong_assets.storage.schemas import TABLES
from entropylong_assets.storage.tables import PartitionWriter, TableStore
from entropylong_assets.verification.controls import ChunkUniverse, Control, draw_controls
from entropylong_assets.verification.dependencies import (
    RootCandidates,
    RootPlan,
    plan_root,
    verify_roots,
)
from entropylong_assets.verification.screen import Screen, ScreenFigures

if TYPE_CHECKING:
    from entropylong_assets.embeddings.table import ChunkTable

PAIRS = pl.Schema(TABLES["verified_dependencies"]["pairs"])
CONTROLS = pl.Schema(TABLES["verified_dependencies"]["controls"])
CONTROL_CONTEXTS = pl.Schema(TABLES["verified_dependencies"]["control_contexts"])

ROOTS_A_BATCH = 8
"""What a killed run may lose."""

FetchChunks = Callable[[Sequence[str]], pl.DataFrame]
"""Chunk ids to chunk_id, doc_id and text of those that are indexed."""


def chunk_universe(table: ChunkTable, excluded_shards: Collection[str]) -> ChunkUniverse:
    """All chunks of the table at the version that it is checked out at.

    In the order of their names, which no run changes: the rows' own order is that in which shards
    were written. `excluded_shards` are in the table but not in its index.
    """
    sizes = sorted(
        (shard, n) for shard, n in table.rows_by_shard().items() if shard not in excluded_shards
    )

    @lru_cache(maxsize=64)
    def ids(shard: str) -> list[str]:
        return pl.concat(table.scan(["chunk_id"], shard))["chunk_id"].sort().to_list()

    return ChunkUniverse(sizes, ids)


def batches_key(determinants: Mapping[str, Any], settings: Settings, device: str) -> str:
    """Of kept batches: what determines the partition, and how it is computed, to the last bit."""
    return fingerprint(determinants, settings.scoring, device, ROOTS_A_BATCH)


class VerifiedShard(NamedTuple):
    """What was written of one shard, and what it took."""

    pairs: pl.DataFrame
    controls: pl.DataFrame
    forward_tokens: int
    batches_taken_up: int
    """Batches that an earlier, killed run had finished."""
    screen: ScreenFigures


def verify_shard(
    store: TableStore,
    shard: str,
    settings: Settings,
    tokenizer: Tokenizer,
    max_positions: int,
    scorer: Scorer,
    universe: ChunkUniverse,
    fetch: FetchChunks,
    writer: PartitionWriter,
    roots_a_batch: int = ROOTS_A_BATCH,
    on_root: Callable[[int], None] = lambda _: None,
    on_progress: Callable[[int], None] = lambda _: None,
    *,
    kept: KeptBatches | None = None,
    screener: Scorer | None = None,
) -> VerifiedShard:
    """Writes pairs, contexts, controls and control_contexts of one shard.

    `on_root` gets finished roots, `on_progress` the tokens of each forward pass. Batches in `kept`
    are not scored again, and new ones are put there. `screener`: the cheaper scorer of a screen.
    """
    chunks = store.read("candidate_contexts", shard, "chunks")
    encoded = tokenizer.encode(chunks["text"].to_list())
    context_ids = {
        chunk_id: (*ids, *tokenizer.separator_ids)
        for chunk_id, ids in zip(chunks["chunk_id"], encoded, strict=True)
    }
    writer.append(
        "contexts",
        chunks.drop("text").with_columns(
            pl.Series("token_ids", list(context_ids.values()), dtype=pl.List(pl.UInt32))
        ),
    )

    def draw(root: RootCandidates, length: int) -> list[Control]:
        guard = RootGuard(tokenizer.decode(root.token_ids), settings.retrieval.leak_ngram_words)
        return draw_controls(
            universe,
            fetch,
            tokenizer.encode,
            lambda text: guard.containment(text) >= settings.retrieval.max_containment,
            root.root_id,
            frozenset(root.candidates["chunk_id"]),
            length,
            settings.verification.controls,
            settings.seed,
            tokenizer.separator_ids,
        )

    def verified(roots: Sequence[RootCandidates]) -> Batch:
        budget, tokens = settings.scoring, 0

        def count(done: int) -> None:
            nonlocal tokens
            tokens += done
            on_progress(done)

        plans = [
            plan_root(
                root,
                context_ids,
                tokenizer.bos_ids,
                max_positions,
                draw,
                budget.max_forward_tokens_per_root,
            )
            for root in roots
        ]
        screen = Screen(screener, settings.verification) if screener else None
        pairs, controls = verify_roots(
            plans,
            scorer,
            settings.verification,
            count,
            max_contexts=budget.max_contexts_per_root,
            screen=screen,
        )
        tables = {
            "pairs": pairs.select(PAIRS.names()),
            "controls": controls,
            "control_contexts": pl.DataFrame(_control_contexts(plans), schema=CONTROL_CONTEXTS),
        }
        figures = {"forward_tokens": tokens, "screen": vars(screen.figures) if screen else {}}
        return Batch(tables, figures)

    forward_tokens = taken_up = 0
    screened = ScreenFigures()
    all_pairs, all_controls = [PAIRS.to_frame()], [CONTROLS.to_frame()]
    for number, roots in enumerate(_batched(_roots(store, shard), roots_a_batch)):
        batch = kept.load(number) if kept else None
        if batch is not None:
            taken_up += 1
        else:
            batch = verified(roots)
            if kept:
                kept.keep(number, batch)
        for table, rows in batch.tables.items():
            writer.append(table, rows)
        all_pairs.append(batch.tables["pairs"])
        all_controls.append(batch.tables["controls"])
        forward_tokens += batch.figures["forward_tokens"]
        screened.add(ScreenFigures(**batch.figures["screen"]))
        on_root(len(roots))
    # In one piece each: sums of floats go by pieces, and those of batches taken up are others.
    return VerifiedShard(
        pl.concat(all_pairs, rechunk=True),
        pl.concat(all_controls, rechunk=True),
        forward_tokens,
        taken_up,
        screened,
    )


def _batched(roots: Iterator[RootCandidates], size: int) -> Iterator[list[RootCandidates]]:
    while batch := list(islice(roots, size)):
        yield batch


def _roots(store: TableStore, shard: str) -> Iterator[RootCandidates]:
    """Roots that have candidates, in the order of `entropy_scores`."""
    candidates = {
        root_id: rows
        for (root_id,), rows in store.read("candidate_contexts", shard, "candidates")
        .sort("root_id", "anchor", "rank")
        .partition_by("root_id", as_dict=True)
        .items()
    }
    columns = ["root_id", "token_ids", "entropies", "surprisals"]
    for batch in store.batches("entropy_scores", shard, "roots", columns):
        for root_id, token_ids, entropies, surprisals in batch.iter_rows():
            if root_id in candidates:
                yield RootCandidates(root_id, token_ids, entropies, surprisals, candidates[root_id])


def _control_contexts(plans: Sequence[RootPlan]) -> list[dict[str, Any]]:
    return [
        {
            "root_id": plan.root.root_id,
            "control": control.number,
            "chunk_ids": list(control.chunk_ids),
            "token_ids": list(control.token_ids),
        }
        for plan in plans
        for control in plan.controls
    ]
