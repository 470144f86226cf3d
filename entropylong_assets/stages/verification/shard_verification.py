"""Verification of one shard: reads roots and candidates, and writes pairs, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import polars as pl

from entropylong_assets.settings.section import Settings, fingerprint
from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.entropy.scoring import Scorer
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.retrieval.chunk_universe import ChunkUniverse
from entropylong_assets.stages.retrieval.registry import make_leak_check
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.verification.batch_progress import (
    EVIDENCE_PER_TOKEN,
    BatchProgress,
)
from entropylong_assets.stages.verification.controls import (
    Control,
    ControlSource,
    FetchChunks,
    draw_controls,
)
from entropylong_assets.stages.verification.evidence import EVIDENCE, EvidenceFinder
from entropylong_assets.stages.verification.evidence_kinds import classify
from entropylong_assets.stages.verification.gain import possible_pairs
from entropylong_assets.stages.verification.registry import Estimator
from entropylong_assets.stages.verification.root_verification import (
    RootCandidates,
    RootPlan,
    plan_root,
    verify_roots,
)
from entropylong_assets.stages.verification.rules import is_common, is_excluded
from entropylong_assets.stages.verification.screening import BatchScreen, make_screening
from entropylong_assets.stages.verification.shard_counts import ShardCounts
from entropylong_assets.stages.verification.stored_scores import (
    NOTHING_KNOWN,
    KnownScores,
    StoredScores,
    rows_by_root,
)
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.checkpoints import Batch, Checkpoints
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.partition_writer import PartitionWriter
from entropylong_assets.storage.spool import TokenSpool
from entropylong_assets.storage.tables import TableStore

PAIRS = pl.Schema(VERIFIED_DEPENDENCIES.schemas["pairs"])
CONTROL_CONTEXTS = pl.Schema(VERIFIED_DEPENDENCIES.schemas["control_contexts"])

_ANCHOR_COLUMNS = ["anchor", "word", "kind", "phrase_documents", "pair_documents"]

LEARNED = "learned"
"""Table of a batch's checkpoint, not of the partition: what later batches need to know."""

ROOTS_PER_BATCH = 8
"""An interrupted run loses at most this many roots."""


def checkpoints_key(determinants: Mapping[str, Any], settings: Settings, device: str) -> str:
    """Return the key of checkpoints: what determines the partition, and how it is computed.

    Scores differ in their last bits with the device and with what shares a forward pass.
    """
    return fingerprint(determinants, settings.scoring, device, ROOTS_PER_BATCH)


@dataclass(frozen=True)
class Verifier:
    """Settings, scorers and chunks with which the roots of a shard are verified."""

    settings: Settings
    tokenizer: Tokenizer
    max_positions: int
    """Tokens per sequence that the scoring model can take."""
    scorer: Scorer
    universe: ChunkUniverse
    fetch: FetchChunks
    screener: Scorer | Estimator | None = None
    """What `verification.screen` names."""

    def verify(
        self,
        roots: Sequence[RootCandidates],
        context_ids: Mapping[str, Sequence[int]],
        on_progress: Callable[[int, float], None] = lambda *_: None,
        known: KnownScores = NOTHING_KNOWN,
        screen: BatchScreen | None = None,
        evidence_per_token: float = EVIDENCE_PER_TOKEN,
    ) -> Batch:
        """Return the rows of a batch of roots, and `forward_tokens`, `evidence_tokens` and `screen`
        as its figures.

        What the screen has learned is in the table `LEARNED`. context_ids: token ids of every
        candidate. on_progress: gets the tokens of each forward pass, also of those that known
        scores make unnecessary, and an estimate of the finished share of the batch.
        evidence_per_token: expected tokens of the search for evidence spans per token of the
        scoring, for that estimate.
        """
        settings = self.settings.verification
        possible = possible_pairs(settings)
        plans = [
            plan_root(
                root,
                context_ids,
                self.tokenizer.bos_ids,
                self.max_positions,
                self._draw_controls,
                settings.max_forward_tokens_per_root,
                possible,
            )
            for root in roots
        ]
        progress = BatchProgress(
            on_progress,
            planned=sum(plan.forward_tokens for plan in plans),
            known=sum(plan.known_tokens(known) for plan in plans),
            evidence_per_token=evidence_per_token if settings.evidence else 0.0,
        )
        pairs, controls = verify_roots(
            plans, self.scorer, settings, progress.count, screen=screen, known=known
        )
        pairs = pairs.select(PAIRS.names())
        tables = {
            "pairs": pairs,
            "evidence": self._find_evidence(roots, pairs, progress.count_evidence),
            "controls": controls,
            "control_contexts": pl.DataFrame(_control_contexts(plans), schema=CONTROL_CONTEXTS),
        }
        if screen and screen.learned:
            tables[LEARNED] = pl.concat(screen.learned)
        figures = {
            "forward_tokens": progress.tokens,
            "evidence_tokens": progress.evidence_tokens,
            "screen": vars(screen.figures) if screen else {},
        }
        return Batch(tables, figures)

    def _find_evidence(
        self,
        roots: Sequence[RootCandidates],
        pairs: pl.DataFrame,
        on_progress: Callable[[int, float], None],
    ) -> pl.DataFrame:
        """Return the rows of `evidence` of the accepted pairs."""
        settings = self.settings.verification
        if not settings.evidence:
            return pl.DataFrame(schema=EVIDENCE)
        is_boilerplate = is_common(settings) | is_excluded(settings)
        accepted = pairs.filter("accepted").with_columns(is_boilerplate.alias("is_boilerplate"))
        chunks = self.fetch(accepted["chunk_id"].unique().sort().to_list())
        found = EvidenceFinder(self.tokenizer, self.max_positions, self.scorer).find(
            accepted,
            {root.root_id: root.token_ids for root in roots},
            dict(chunks.select("chunk_id", "text").iter_rows()),
            on_progress,
        )
        key = ["root_id", "anchor", "chunk_id"]
        facts = accepted.select(*key, "word", "is_boilerplate")
        spans = facts.join(found, on=key, maintain_order="left")
        texts = spans.select("word", "text", "is_boilerplate")
        kinds = pl.Series("kind", [classify(*row) for row in texts.iter_rows()], dtype=pl.String)
        return spans.with_columns(kinds).select(EVIDENCE.names())

    def _draw_controls(self, root: RootCandidates, length: int) -> list[Control]:
        settings = self.settings
        if not settings.verification.controls:
            return []
        source = ControlSource(
            self.universe,
            self.fetch,
            self.tokenizer,
            settings.seed,
        )
        check = make_leak_check(settings.retrieval, self.tokenizer.decode(root.token_ids))
        return draw_controls(
            source,
            root.root_id,
            frozenset(root.candidates["chunk_id"]),
            lambda text: check.containment(text) >= settings.retrieval.max_containment,
            length,
            settings.verification.controls,
        )


@dataclass
class VerifiedShard:
    """Statistics of a verified shard."""

    counts: ShardCounts
    forward_tokens: int = 0
    evidence_tokens: int = 0
    resumed_batches: int = 0
    """Batches taken from the checkpoints of an interrupted run."""
    screen: dict[str, float] | None = None
    """Figures of the screen; None without one."""

    @property
    def evidence_per_token(self) -> float:
        """Tokens of the search for evidence spans per token of the scoring, so far."""
        if not self.forward_tokens:
            return EVIDENCE_PER_TOKEN
        return self.evidence_tokens / self.forward_tokens


def verify_shard(
    verifier: Verifier,
    partition: Partition,
    writer: PartitionWriter,
    checkpoints: Checkpoints | None = None,
    *,
    stored: StoredScores | None = None,
    roots_per_batch: int = ROOTS_PER_BATCH,
    on_root: Callable[[int], None] = lambda _: None,
    on_progress: Callable[[int, float], None] = lambda *_: None,
) -> VerifiedShard:
    """Write pairs, evidence, contexts, controls and control_contexts of one shard.

    partition: where roots and candidates are read. checkpoints: batches in it are not scored again,
    and new ones are saved to it. stored: scores that need no forward pass. on_root: gets the number
    of roots just written. on_progress: gets the tokens of each forward pass, and an estimate of how
    many roots of the present batch are finished.
    """
    store, shard = partition.store, partition.shard
    verified = VerifiedShard(ShardCounts(verifier.settings.verification))
    candidates = store.summary(CANDIDATE_CONTEXTS, shard)
    screening = make_screening(verifier.screener, verifier.settings.verification, candidates.roots)
    with TokenSpool() as spool:
        _encode_contexts(partition, verifier.tokenizer, writer, spool)
        for number, roots in enumerate(
            _batched(read_roots(store, shard, candidates.phrase_documents), roots_per_batch)
        ):
            known = stored.take([root.root_id for root in roots]) if stored else NOTHING_KNOWN
            batch = checkpoints.load(number) if checkpoints else None
            if batch is not None:
                verified.resumed_batches += 1
            else:
                chunk_ids = [c for root in roots for c in root.candidates["chunk_id"]]
                screen = screening.of_batch() if screening else None

                def count(tokens: int, share: float, n_roots: int = len(roots)) -> None:
                    on_progress(tokens, share * n_roots)

                batch = verifier.verify(
                    roots, spool.take(chunk_ids), count, known, screen, verified.evidence_per_token
                )
                if checkpoints:
                    checkpoints.save(number, batch)
            for table, rows in batch.tables.items():
                if table != LEARNED:
                    writer.append(table, rows)
            verified.counts.add(batch.tables["pairs"], batch.tables["controls"])
            verified.counts.add_evidence(batch.tables["evidence"])
            verified.forward_tokens += batch.figures["forward_tokens"]
            verified.evidence_tokens += batch.figures["evidence_tokens"]
            if screening:
                learned = batch.tables.get(LEARNED, pl.DataFrame())
                screening.add(learned, batch.figures["screen"], len(roots))
            on_root(len(roots))
    verified.screen = screening.metadata() if screening else None
    return verified


def _encode_contexts(
    partition: Partition, tokenizer: Tokenizer, writer: PartitionWriter, spool: TokenSpool
) -> None:
    """Write the token ids of all candidates, including the separator's, to `contexts` and spool."""
    for chunks in partition.store.batches(CANDIDATE_CONTEXTS, partition.shard, "chunks"):
        encoded = tokenizer.encode(chunks["text"].to_list())
        token_ids = [[*ids, *tokenizer.separator_ids] for ids in encoded]
        column = pl.Series("token_ids", token_ids, dtype=pl.List(pl.UInt32))
        writer.append("contexts", chunks.drop("text").with_columns(column))
        spool.add(chunks["chunk_id"].to_list(), token_ids)


def _batched(roots: Iterator[RootCandidates], size: int) -> Iterator[list[RootCandidates]]:
    while batch := list(islice(roots, size)):
        yield batch


def read_roots(store: TableStore, shard: str, counted_documents: int) -> Iterator[RootCandidates]:
    """Yield the roots that have candidates, in the order of both tables.

    Raises TableError if the tables have different orders.
    """
    texts = store.read(CANDIDATE_CONTEXTS, shard, "queries", ["root_id", *_ANCHOR_COLUMNS])
    texts = texts.rename({"kind": "anchor_kind"}).with_columns(
        counted_documents=pl.lit(counted_documents, pl.Int32)
    )
    candidates_of = rows_by_root(
        batch.join(texts, on=["root_id", "anchor"], how="left", maintain_order="left")
        for batch in store.batches(CANDIDATE_CONTEXTS, shard, "candidates", rows=8192)
    )
    columns = ["root_id", "token_ids", "entropies", "surprisals"]
    following = next(candidates_of, None)
    for batch in store.batches(ENTROPY_SCORES, shard, "roots", columns, rows=32):
        for root_id, token_ids, entropies, surprisals in batch.iter_rows():
            if following is not None and root_id == following[0]:
                candidates = following[1].sort("anchor", "rank")
                yield RootCandidates(root_id, token_ids, entropies, surprisals, candidates)
                following = next(candidates_of, None)
    if following is not None:
        raise TableError(
            f"{CANDIDATE_CONTEXTS.name}, {shard}: root {following[0]} is not in the order of "
            f"{ENTROPY_SCORES.name}; materialize {CANDIDATE_CONTEXTS.name} for {shard} again"
        )


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
