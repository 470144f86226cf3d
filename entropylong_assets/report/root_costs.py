"""Costs of each root of a trial in a run over the whole corpus: passes, tokens and pairs.

A trial searches a sample of the corpus, in which anchors share their nearest chunks more often than
in the whole corpus. A sample with the share f of the corpus contains about K·f of an anchor's K
nearest chunks, and these are its K·f nearest chunks in the sample. So candidates of rank up to K·f
in the trial represent all K, each of them 1/f candidates. If K·f is below 1, two anchors with the
same nearest chunk in the sample may share none or all of their K chunks in the whole corpus:
`unshared` is the upper limit of the cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from entropylong_assets.report.trial import Trial
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.verification.gain import possible_pairs
from entropylong_assets.stages.verification.root_verification import RootCandidates, plan_root
from entropylong_assets.stages.verification.shard_verification import read_roots


@dataclass(frozen=True)
class Passes:
    """Forward passes of the candidates of one root."""

    passes: float
    """Distinct contexts that are scored."""
    tokens: float
    pairs: float
    """(anchor, context) pairs that are scored."""

    def scaled(self, factor: float) -> Passes:
        return Passes(self.passes * factor, self.tokens * factor, self.pairs * factor)

    def towards(self, other: Passes, share: float) -> Passes:
        """Interpolate linearly: self at share 0, the other at share 1."""
        return Passes(
            self.passes + share * (other.passes - self.passes),
            self.tokens + share * (other.tokens - self.tokens),
            self.pairs + share * (other.pairs - self.pairs),
        )


@dataclass(frozen=True)
class RootCost:
    """One root of a trial. Numbers of candidates are those of the whole corpus."""

    root_id: str
    tokens: int
    anchors: int
    shared: Passes
    """If anchors share contexts as they do in the trial."""
    unshared: Passes
    """If no two anchors share a context; the same as `shared` if K·f is at least 1."""
    control_tokens: float
    """Tokens of the passes given the controls."""


@dataclass(frozen=True)
class TrialRoots:
    """The roots of a trial with their candidates, and the token ids of all candidates."""

    candidates: list[RootCandidates]
    without: list[tuple[str, int, int]]
    """Id, number of tokens and number of anchors of the roots without any candidate."""
    context_ids: dict[str, list[int]]
    """Token ids of each candidate, the separator's included, by chunk."""
    table: pl.DataFrame
    """Rows of the table `roots` of `entropy_scores`."""
    candidate_rows: int
    """(anchor, chunk) pairs retrieved."""
    refused_candidates: int
    """Retrieved pairs that the leak check refused."""


def read_trial(trial: Trial, tokenizer: Tokenizer) -> TrialRoots:
    """Read all roots of a trial."""
    roots: list[RootCandidates] = []
    without: list[tuple[str, int, int]] = []
    context_ids: dict[str, list[int]] = {}
    for shard in trial.shards:
        counted = trial.store.summary(CANDIDATE_CONTEXTS, shard).phrase_documents
        of_shard = list(read_roots(trial.store, shard, counted))
        roots += of_shard
        having = {root.root_id for root in of_shard}
        scored = trial.store.read(
            ENTROPY_SCORES, shard, "roots", ["root_id", "token_ids", "anchors"]
        )
        without += [
            (root_id, len(token_ids), len(anchors))
            for root_id, token_ids, anchors in scored.iter_rows()
            if root_id not in having
        ]
        chunks = trial.store.read(CANDIDATE_CONTEXTS, shard, "chunks", ["chunk_id", "text"])
        new = chunks.filter(~pl.col("chunk_id").is_in(list(context_ids)))
        encoded = tokenizer.encode(new["text"].to_list())
        for chunk_id, ids in zip(new["chunk_id"], encoded, strict=True):
            context_ids[chunk_id] = [*ids, *tokenizer.separator_ids]
    summaries = [trial.store.summary(CANDIDATE_CONTEXTS, shard) for shard in trial.shards]
    return TrialRoots(
        roots,
        without,
        context_ids,
        trial.store.read_all(ENTROPY_SCORES, trial.shards, "roots"),
        sum(summary.candidates for summary in summaries),
        sum(summary.near_duplicate for summary in summaries),
    )


def candidates_per_anchor(settings: Settings) -> int:
    """Maximum number of candidates per anchor, of both searches."""
    retrieval = settings.retrieval
    return int(retrieval.top_k + retrieval.text_candidates)


def up_to_rank(root: RootCandidates, rank: int) -> RootCandidates:
    """Return the root with its candidates up to a rank."""
    candidates = root.candidates.filter(pl.col("rank") <= rank)
    return RootCandidates(root.root_id, root.token_ids, root.entropies, root.surprisals, candidates)


def root_costs(
    roots: TrialRoots,
    settings: Settings,
    bos_ids: Sequence[int],
    max_positions: int,
    pool_share: float,
) -> list[RootCost]:
    """Return the cost of each root. pool_share: share of the corpus' chunks that the trial has."""
    wanted, possible = candidates_per_anchor(settings), possible_pairs(settings.verification)
    rank = min(float(wanted), max(wanted * min(1.0, pool_share), 1e-9))
    costs = [
        RootCost(root_id, tokens, anchors, Passes(0, 0, 0), Passes(0, 0, 0), 0.0)
        for root_id, tokens, anchors in roots.without
    ]
    for root in roots.candidates:
        low, high = max(1, int(rank)), max(1, int(np.ceil(rank)))
        plans = {
            r: _passes(up_to_rank(root, r), roots.context_ids, bos_ids, max_positions, possible)
            for r in {low, high}
        }
        at = {r: passes.scaled(wanted / r) for r, (passes, _, _) in plans.items()}
        shared = at[low].towards(at[high], max(0.0, rank - low))
        unshared = shared if rank >= 1 else plans[1][1].scaled(wanted)
        controls = settings.verification.controls
        costs.append(
            RootCost(
                root_id=root.root_id,
                tokens=len(root.token_ids),
                anchors=root.candidates["anchor"].n_unique(),
                shared=shared,
                unshared=unshared,
                control_tokens=controls * plans[high][2],
            )
        )
    return costs


def _passes(
    root: RootCandidates,
    context_ids: Mapping[str, Sequence[int]],
    bos_ids: Sequence[int],
    max_positions: int,
    possible: pl.Expr | None,
) -> tuple[Passes, Passes, float]:
    """Return the passes of a root's candidates, those without sharing, and a control's tokens."""
    plan = plan_root(root, context_ids, bos_ids, max_positions, lambda *_: [], possible=possible)
    before = {c: len(bos_ids) + len(context_ids[c]) for c in plan.contexts}
    tokens = sum(before[c] + anchors[-1] for c, anchors in plan.contexts.items())
    pairs = sum(len(anchors) for anchors in plan.contexts.values())
    unshared = sum(before[c] * len(a) + sum(a) for c, a in plan.contexts.items())
    control = 0.0
    if plan.contexts:
        last = plan.control_anchors[-1]
        room = max_positions - last - 1
        control = min(max(before.values()), room) + last
    return (
        Passes(len(plan.contexts), tokens, pairs),
        Passes(pairs, unshared, pairs),
        control,
    )


def sharing_trend(
    roots: TrialRoots,
    settings: Settings,
    bos_ids: Sequence[int],
    max_positions: int,
    pool_share: float,
) -> float:
    """Return the value between `shared` (0) and `unshared` (1) that the passes have at K·f below 1.

    The share of distinct contexts among the pairs grows as fewer neighbours are considered. Its
    growth per logarithm of the rank is extrapolated to K·f. Returns 0 if K·f is at least 1.
    """
    wanted, possible = candidates_per_anchor(settings), possible_pairs(settings.verification)
    rank = wanted * pool_share
    if rank >= 1 or not roots.candidates:
        return 0.0
    ranks = sorted({1, 2, 4, wanted} & set(range(1, wanted + 1)))
    distinct = []
    for r in ranks:
        passes = [
            _passes(up_to_rank(root, r), roots.context_ids, bos_ids, max_positions, possible)[0]
            for root in roots.candidates
        ]
        pairs = sum(p.pairs for p in passes)
        distinct.append(sum(p.passes for p in passes) / max(pairs, 1))
    if distinct[0] >= 1:
        return 0.0
    slope = float(np.polyfit(np.log(ranks), distinct, 1)[0]) if len(ranks) > 1 else 0.0
    at_rank = min(1.0, max(distinct[0], distinct[0] + slope * np.log(rank)))
    return float((at_rank - distinct[0]) / (1 - distinct[0]))
