"""Verification of a few candidates of a trial: how many the rule accepts, and at what speed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from entropylong_assets.report.document_sample import hash_of
from entropylong_assets.report.root_costs import TrialRoots, up_to_rank
from entropylong_assets.report.trial import Trial
from entropylong_assets.stages.embeddings.table import open_table
from entropylong_assets.stages.entropy.engine import load_scorer
from entropylong_assets.stages.entropy.model import ScoringModel
from entropylong_assets.stages.retrieval.chunk_universe import chunk_universe
from entropylong_assets.stages.retrieval.leak_check import PASSED
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.verification.root_verification import RootCandidates
from entropylong_assets.stages.verification.shard_verification import Verifier

CONTEXTS_PER_ROOT = 4
"""Contexts verified per root: roots differ more than the contexts of a root."""


@dataclass(frozen=True)
class VerifiedRoot:
    """Counts of one root whose candidates were verified in part."""

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
    forward_tokens: int
    evidence_tokens: int
    seconds: float

    def total(self, name: str) -> int:
        return sum(getattr(root, name) for root in self.roots)


def verify_sample(
    trial: Trial, roots: TrialRoots, model: ScoringModel, rank: int, max_tokens: int
) -> VerifiedSample:
    """Verify a few candidates of as many roots as `max_tokens` tokens of passes allow.

    rank: candidates up to this rank are chosen from. At least two roots are verified.
    """
    chosen: list[RootCandidates] = []
    tokens = 0
    controls = trial.settings.verification.controls
    for root in roots.candidates:
        part = _choose(up_to_rank(root, max(1, rank)), trial.settings.seed)
        if not len(part.candidates):
            continue
        tokens += _tokens(part, roots.context_ids, controls)
        if tokens > max_tokens and len(chosen) >= 2:
            break
        chosen.append(part)
    if not chosen:
        return VerifiedSample([], 0, 0, 0.0)
    shard = trial.shards[0]
    candidates = trial.store.summary(CANDIDATE_CONTEXTS, shard)
    table = open_table(trial.store, candidates.index)
    verifier = Verifier(
        trial.settings,
        model.tokenizer,
        model.max_positions,
        load_scorer(model, trial.settings.scoring.pack_tokens),
        chunk_universe(table, candidates.excluded_shards),
        lambda ids: table.fetch(ids, ["chunk_id", "doc_id", "text"]).drop("shard"),
    )
    start = time.monotonic()
    batch = verifier.verify(chosen, roots.context_ids, lambda _: None)
    seconds = time.monotonic() - start
    return VerifiedSample(
        [_counts(rows, roots.context_ids) for _, rows in batch.tables["pairs"].group_by("root_id")],
        batch.figures["forward_tokens"],
        batch.figures["evidence_tokens"],
        seconds,
    )


def _choose(root: RootCandidates, seed: int) -> RootCandidates:
    """Return the root with a few of its candidates, chosen by hash."""
    passed = root.candidates.filter(leak_check=PASSED)
    ids = sorted(
        passed["chunk_id"].unique(), key=lambda chunk_id: hash_of(seed, root.root_id, chunk_id)
    )
    candidates = passed.filter(pl.col("chunk_id").is_in(ids[:CONTEXTS_PER_ROOT]))
    return RootCandidates(root.root_id, root.token_ids, root.entropies, root.surprisals, candidates)


def _tokens(root: RootCandidates, context_ids: Mapping[str, Sequence[int]], controls: int) -> int:
    """Tokens of the passes of a root, the controls' included."""
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
