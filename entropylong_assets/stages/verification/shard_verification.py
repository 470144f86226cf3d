"""One shard's verification: from the tables before it to its own, root batch by root batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from entropylong_assets.settings.model import Settings, fingerprint
from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.entropy.scoring import Scorer
from entropylong_assets.stages.retrieval.leak_check import RootGuard
from entropylong_assets.stages.verification.controls import ChunkUniverse, Control, draw_controls
from entropylong_assets.stages.verification.figures import Figures
from entropylong_assets.stages.verification.root_verification import (
    RootCandidates,
    RootPlan,
    plan_root,
    verify_roots,
)
from entropylong_assets.stages.verification.screen import Screen, ScreenFigures
from entropylong_assets.storage.checkpoints import Batch, KeptBatches
from entropylong_assets.storage.schemas import TABLES
from entropylong_assets.storage.spool import TokenSpool
from entropylong_assets.storage.tables import PartitionWriter, TableError, TableStore

if TYPE_CHECKING:
    from entropylong_assets.stages.embeddings.table import ChunkTable

PAIRS = pl.Schema(TABLES["verified_dependencies"]["pairs"])
CONTROL_CONTEXTS = pl.Schema(TABLES["verified_dependencies"]["control_contexts"])

ROOTS_A_BATCH = 8
"""What a killed run may lose."""

MOST_IDS = 4_000_000
"""Names of chunks kept to draw controls from (some 220 MB)."""

FetchChunks = Callable[[Sequence[str]], pl.DataFrame]
"""Chunk ids to chunk_id, doc_id and text of those that are indexed."""


def chunk_universe(
    table: ChunkTable, excluded_shards: Collection[str], most_ids: int = MOST_IDS
) -> ChunkUniverse:
    """All chunks of the table at the version that it is checked out at.

    In the order of their names, which no run changes: the rows' own order is that in which shards
    were written. `excluded_shards` are in the table but not in its index. Names of the shards
    last drawn from are kept, `most_ids` of them unless one shard has more.
    """
    sizes = sorted(
        (shard, n) for shard, n in table.indexed_rows().items() if shard not in excluded_shards
    )

    kept: dict[str, pl.Series] = {}

    def ids(shard: str) -> pl.Series:
        if shard in kept:
            kept[shard] = kept.pop(shard)  # the latest used stand last
        else:
            parts = [batch["chunk_id"] for batch in table.scan(["chunk_id"], shard)]
            kept[shard] = pl.concat(parts).sort()
        while len(kept) > 1 and sum(map(len, kept.values())) > most_ids:
            kept.pop(next(iter(kept)))
        return kept[shard]

    return ChunkUniverse(sizes, ids)


def batches_key(determinants: Mapping[str, Any], settings: Settings, device: str) -> str:
    """Of kept batches: what determines the partition, and how it is computed, to the last bit."""
    return fingerprint(determinants, settings.scoring, device, ROOTS_A_BATCH)


class VerifiedShard(NamedTuple):
    """What was written of one shard, and what it took."""

    figures: Figures
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

    def verified(roots: Sequence[RootCandidates], spool: TokenSpool) -> Batch:
        budget, tokens = settings.scoring, 0
        context_ids = spool.take([c for root in roots for c in root.candidates["chunk_id"]])

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
    figures = Figures(settings.verification)
    with TokenSpool() as spool:
        _encode_contexts(store, shard, tokenizer, writer, spool)
        for number, roots in enumerate(_batched(_roots(store, shard), roots_a_batch)):
            batch = kept.load(number) if kept else None
            if batch is not None:
                taken_up += 1
            else:
                batch = verified(roots, spool)
                if kept:
                    kept.keep(number, batch)
            for table, rows in batch.tables.items():
                writer.append(table, rows)
            figures.add(batch.tables["pairs"], batch.tables["controls"])
            forward_tokens += batch.figures["forward_tokens"]
            screened.add(ScreenFigures(**batch.figures["screen"]))
            on_root(len(roots))
    return VerifiedShard(figures, forward_tokens, taken_up, screened)


def _encode_contexts(
    store: TableStore,
    shard: str,
    tokenizer: Tokenizer,
    writer: PartitionWriter,
    spool: TokenSpool,
) -> None:
    """Token ids of all nominated chunks, the separator's included, to `contexts` and the spool."""
    for chunks in store.batches("candidate_contexts", shard, "chunks"):
        encoded = tokenizer.encode(chunks["text"].to_list())
        token_ids = [[*ids, *tokenizer.separator_ids] for ids in encoded]
        column = pl.Series("token_ids", token_ids, dtype=pl.List(pl.UInt32))
        writer.append("contexts", chunks.drop("text").with_columns(column))
        spool.add(chunks["chunk_id"].to_list(), token_ids)


def _batched(roots: Iterator[RootCandidates], size: int) -> Iterator[list[RootCandidates]]:
    while batch := list(islice(roots, size)):
        yield batch


def _roots(store: TableStore, shard: str) -> Iterator[RootCandidates]:
    """Roots that have candidates, in the order of `entropy_scores`, which is that of the
    candidates too. Raises TableError where it is not."""
    nominated = _by_root(store.batches("candidate_contexts", shard, "candidates", rows=8192))
    columns = ["root_id", "token_ids", "entropies", "surprisals"]
    coming = next(nominated, None)
    for batch in store.batches("entropy_scores", shard, "roots", columns, rows=32):
        for root_id, token_ids, entropies, surprisals in batch.iter_rows():
            if coming is not None and root_id == coming[0]:
                candidates = coming[1].sort("anchor", "rank")
                yield RootCandidates(root_id, token_ids, entropies, surprisals, candidates)
                coming = next(nominated, None)
    if coming is not None:
        raise TableError(
            f"candidate_contexts, {shard}: root {coming[0]} is not where entropy_scores has it; "
            f"materialise candidate_contexts for {shard} again"
        )


def _by_root(batches: Iterable[pl.DataFrame]) -> Iterator[tuple[str, pl.DataFrame]]:
    """Each root's rows, which stand together but may go over the end of a batch."""
    pending: list[pl.DataFrame] = []
    for batch in batches:
        for part in batch.partition_by("root_id", maintain_order=True):
            if pending and pending[0]["root_id"][0] != part["root_id"][0]:
                yield pending[0]["root_id"][0], pl.concat(pending)
                pending = []
            pending.append(part)
    if pending:
        yield pending[0]["root_id"][0], pl.concat(pending)


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
