"""Verification of a few candidates of a trial: how many the rule accepts, and at what speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from entropylong_assets.report.document_sample import hash_of
from entropylong_assets.report.root_costs import TrialRoots, up_to_rank
from entropylong_assets.report.trial import Trial
from entropylong_assets.stages.embeddings.table import open_table
from entropylong_assets.stages.entropy.engine import load_scorer
from entropylong_assets.stages.entropy.model import ScoringModel
from entropylong_assets.stages.progress import Progress
from entropylong_assets.stages.retrieval.chunk_universe import chunk_universe
from entropylong_assets.stages.retrieval.leak_check import PASSED
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.verification.gain import possible_pairs
from entropylong_assets.stages.verification.root_verification import RootCandidates
from entropylong_assets.stages.verification.shard_verification import Verifier
from entropylong_assets.storage.checkpoints import Batch


@dataclass(frozen=True)
class Budget:
    """Limits on the number of verified candidates."""

    tokens: int = 40_000
    """Maximum number of tokens of all passes; at least two roots are verified."""
    contexts_per_root: int | None = 4
    """Maximum number of contexts per root: roots differ more than the contexts of a root, so a few
    suffice. None: as many as the root's part of `tokens` allows."""


FEW = Budget()
MIN_VERIFIED = 2
"""Roots that are verified whatever their tokens and time."""


@dataclass(frozen=True)
class VerifiedRoot:
    """Counts of one root of which some candidates were verified, for candidates up to a rank."""

    contexts: int
    """Distinct contexts scored."""
    pairs: int
    contexts_accepted: int
    accepted: int
    """Pairs that the rule in force accepts."""
    context_tokens: int
    """Tokens of the accepted contexts."""


@dataclass(frozen=True)
class VerifiedSample:
    """A sample of the candidates, verified under the rule in force."""

    roots: list[VerifiedRoot]
    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    """Rows as in the tables `pairs`, `evidence` and `controls` of `verified_dependencies`."""
    forward_tokens: int = 0
    evidence_tokens: int = 0
    seconds: float = 0.0
    chosen: int = 0
    """Roots chosen for verification; fewer are verified if the time is over."""

    def total(self, name: str) -> int:
        return sum(getattr(root, name) for root in self.roots)

    @property
    def verified_roots(self) -> int:
        """Roots of which a candidate was scored."""
        if not self.tables:
            return 0
        scored = self.tables["pairs"].filter(pl.col("entropy_context").is_not_null())
        return scored["root_id"].n_unique()

    @property
    def accepted(self) -> int:
        """All accepted pairs, of any rank."""
        return int(self.tables["pairs"]["accepted"].sum()) if self.tables else 0


def verify_sample(
    trial: Trial,
    roots: TrialRoots,
    model: ScoringModel,
    rank: int,
    budget: Budget,
    seconds_left: Callable[[], float | None] = lambda: None,
) -> VerifiedSample:
    """Verify candidates of a trial, chosen by hash.

    rank: only candidates up to this rank are counted. If `contexts_per_root` is None, candidates of
    higher ranks are verified too. seconds_left: returns None if there is no limit of time. Within a
    limit, roots are verified one by one, at least two, as long as the next one can be expected to
    fit.
    """
    chosen: list[RootCandidates] = []
    tokens = 0
    controls = trial.settings.verification.controls
    possible = possible_pairs(trial.settings.verification)
    of_root = budget.tokens // max(len(roots.candidates), 1)
    for root in roots.candidates:
        is_limited = budget.contexts_per_root is not None
        part = _choose(
            up_to_rank(root, max(1, rank)) if is_limited else root,
            trial.settings.seed,
            possible,
            budget.contexts_per_root,
            None if is_limited else (of_root, controls, roots.context_ids),
        )
        if not len(part.candidates):
            continue
        tokens += _tokens(part, roots.context_ids, controls)
        if is_limited and tokens > budget.tokens and len(chosen) >= MIN_VERIFIED:
            break
        chosen.append(part)
    if not chosen:
        return VerifiedSample([])
    candidates = trial.store.summary(CANDIDATE_CONTEXTS, trial.shards[0])
    table = open_table(trial.store, candidates.index)
    verifier = Verifier(
        trial.settings,
        model.tokenizer,
        model.max_positions,
        load_scorer(model, trial.settings.scoring.pack_tokens),
        chunk_universe(table, candidates.excluded_shards),
        lambda ids: table.fetch(ids, ["chunk_id", "doc_id", "text"]).drop("shard"),
    )
    sizes = [_tokens(part, roots.context_ids, controls) for part in chosen]
    progress = Progress("tokens", lambda _: None, trial.observer)
    batches: list[Batch] = []
    verified = 0
    while verified < len(chosen):
        left = seconds_left()
        size = len(chosen) if left is None else 1
        if left is not None and verified >= MIN_VERIFIED:
            speed = sum(sizes[:verified]) / progress.seconds
            if sizes[verified] / speed > left:
                break
        these = chosen[verified : verified + size]

        def report(tokens: int, share: float, before: int = verified, n: int = len(these)) -> None:
            progress(tokens)
            progress.reach("roots", before + share * n, len(chosen))

        batches.append(verifier.verify(these, roots.context_ids, report))
        verified += len(these)
    tables = {name: pl.concat([b.tables[name] for b in batches]) for name in batches[0].tables}
    counted = tables["pairs"].filter(pl.col("rank") <= max(1, rank))
    return VerifiedSample(
        [_counts(rows, roots.context_ids) for _, rows in counted.group_by("root_id")],
        tables,
        sum(b.figures["forward_tokens"] for b in batches),
        sum(b.figures["evidence_tokens"] for b in batches),
        progress.seconds,
        len(chosen),
    )


def _choose(
    root: RootCandidates,
    seed: int,
    possible: pl.Expr | None,
    contexts: int | None,
    room: tuple[int, int, Mapping[str, Sequence[int]]] | None,
) -> RootCandidates:
    """Return the root with some of the candidates that are to be scored, chosen by hash.

    possible: of `possible_pairs`. contexts: maximum number of candidates. room: maximum number of
    tokens of their passes, number of controls, and the token ids of each chunk.
    """
    passed = root.candidates.filter(leak_check=PASSED)
    if possible is not None:
        passed = passed.filter(possible.any().over("chunk_id"))
    ids = sorted(
        passed["chunk_id"].unique(), key=lambda chunk_id: hash_of(seed, root.root_id, chunk_id)
    )[:contexts]
    if room is not None and ids:
        tokens, controls, context_ids = room
        last = dict(passed.group_by("chunk_id").agg(pl.col("anchor").max()).iter_rows())
        sizes = [len(context_ids[chunk_id]) + last[chunk_id] for chunk_id in ids]
        spent = np.cumsum(sizes) + controls * np.maximum.accumulate(sizes)
        ids = ids[: max(1, int((spent <= tokens).sum()))]
    candidates = passed.filter(pl.col("chunk_id").is_in(ids))
    return RootCandidates(root.root_id, root.token_ids, root.entropies, root.surprisals, candidates)


def _tokens(root: RootCandidates, context_ids: Mapping[str, Sequence[int]], controls: int) -> int:
    """Number of tokens of the passes of a root, including those of its controls."""
    last = dict(root.candidates.group_by("chunk_id").agg(pl.col("anchor").max()).iter_rows())
    sizes = [len(context_ids[chunk_id]) + anchor for chunk_id, anchor in last.items()]
    return sum(sizes) + controls * max(sizes, default=0)


def _counts(pairs: pl.DataFrame, context_ids: Mapping[str, Sequence[int]]) -> VerifiedRoot:
    scored = pairs.filter(pl.col("entropy_context").is_not_null())
    accepted = scored.filter("accepted")
    contexts = accepted["chunk_id"].unique().to_list()
    return VerifiedRoot(
        contexts=scored["chunk_id"].n_unique(),
        pairs=len(scored),
        contexts_accepted=len(contexts),
        accepted=len(accepted),
        context_tokens=sum(len(context_ids[chunk_id]) for chunk_id in contexts),
    )
