"""A sample of a corpus, and the measurements of a trial on it.

Documents are sampled from the whole range of the shards. A trial runs all stages on them up to the
candidates (`trial.py`). Forward passes are planned as in a run, a few are executed, and the results
are extrapolated to the corpus (`replicates.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from entropylong_assets.report.document_sample import SourceSample, sample_documents
from entropylong_assets.report.replicates import (
    QUANTITIES,
    Accepted,
    Measured,
    Rows,
    Totals,
    point,
    replicates,
)
from entropylong_assets.report.root_costs import (
    Passes,
    RootCost,
    TrialRoots,
    candidates_per_anchor,
    read_trial,
    root_costs,
    sharing_trend,
)
from entropylong_assets.report.sample_arrays import Lengths, choose_pool, choose_roots, make_rows
from entropylong_assets.report.trial import TrialError, open_trial
from entropylong_assets.report.verified_sample import FEW, Budget, VerifiedSample, verify_sample
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.shards import ShardPlan
from entropylong_assets.stages.embeddings.chunk_stage import CHUNK_EMBEDDINGS_STAGE
from entropylong_assets.stages.embeddings.tables import CHUNK_EMBEDDINGS
from entropylong_assets.stages.entropy.engine import load_scorer
from entropylong_assets.stages.entropy.model import ScoringModel, load_scoring_model
from entropylong_assets.stages.entropy.stage import ENTROPY_SCORES_STAGE
from entropylong_assets.stages.retrieval.stage import CANDIDATE_CONTEXTS_STAGE


@dataclass(frozen=True)
class Effort:
    """Limits on what an estimate reads and scores."""

    rows: int = 1024
    """Rows chosen from the sources; their texts are tokenized."""
    pool_chars: int = 1_000_000
    """Characters of the documents that are embedded and searched."""
    roots: int = 24
    """Maximum number of measured roots."""
    root_tokens: int = 24_000
    """Maximum number of tokens of the measured roots; at least 6 roots are measured."""
    verified: Budget = FEW
    """Candidates that are verified."""
    seed: int = 0
    """Seed of the choice of rows."""


@dataclass(frozen=True)
class Sample:
    """The sampled documents, and the measurements of a trial on them."""

    sources: tuple[SourceSample, ...]
    settings: Settings
    shard_rows: tuple[int, ...]
    """Rows of every shard of the corpus."""
    rows: tuple[Rows, ...]
    measured: Measured
    trial: TrialRoots
    verified: VerifiedSample
    lengths: Lengths
    pool_documents: int
    pool_share: float
    """Share of the corpus' chunks that the trial searched."""
    chunks_per_char: float
    dimension: int
    rates: dict[str, float]
    """Units per second here: `chunks`, `anchors`, `tokens`."""
    device: str
    """Identity of the scoring model."""

    def point(self) -> Totals:
        return point(self.rows, self.measured, _accepted(self.verified))

    def replicates(self, n: int, seed: int = 1) -> list[Totals]:
        return replicates(self.rows, self.measured, _accepted(self.verified), n, seed)

    @property
    def chosen_rows(self) -> int:
        return sum(source.chosen_rows for source in self.sources)

    @property
    def evidence_tokens_per_dependency(self) -> float:
        """Tokens of further passes per accepted pair, to find its evidence span."""
        if accepted := self.verified.accepted:
            return self.verified.evidence_tokens / accepted
        # If nothing was accepted, nothing was measured: assume a few passes of mean length.
        length = self.measured.context_tokens + float(
            self.measured.tokens.mean() if len(self.measured.tokens) else 0
        )
        return 4 * length if self.settings.verification.evidence else 0.0


def take_sample(
    settings: Settings,
    plan: ShardPlan,
    effort: Effort = Effort(),
    on_stage: Callable[[str], None] = lambda _: None,
    documents: float | None = None,
) -> Sample:
    """Sample the sources of a dataset's corpus and run a trial on the sample.

    plan: shards of the corpus, registered or not. on_stage: called before each part with a line for
    users. documents: number of documents of the corpus to estimate for; None: as many as it has.
    Raises CorpusError if a source lacks its text field, TrialError if no row of the sample becomes
    a document, and the errors of loading the models.
    """
    on_stage("a sample of the sources")
    sources = sample_documents(settings.corpus, plan, effort.rows, effort.seed)
    model = load_scoring_model(settings.scoring)
    lengths = _lengths(settings, plan, sources, model)
    chosen = choose_roots(settings, sources, lengths, (effort.roots, effort.root_tokens))
    pool = choose_pool(sources, {d.doc_id for d in chosen}, effort.pool_chars)
    if not pool:
        rows = sum(source.chosen_rows for source in sources)
        raise TrialError(
            f"corpus {settings.corpus.name}: none of {rows:,} rows looked at becomes a document; "
            "look at corpus.sources, min_chars and max_chars"
        )
    with open_trial(settings, pool, [d.doc_id for d in chosen], on_stage) as trial:
        summaries = [trial.store.summary(CHUNK_EMBEDDINGS, shard) for shard in trial.shards]
        pool_chars = sum(len(d.text) for d in pool)
        chars = sum(s.weight * sum(len(d.text) for d in s.all_documents()) for s in sources)
        have = sum(s.weight * sum(1 for _ in s.all_documents()) for s in sources)
        chars *= documents / have if documents else 1.0
        pool_share = min(1.0, pool_chars / max(chars, 1))
        roots = read_trial(trial, model.tokenizer)
        tokens = [len(ids) for ids in roots.context_ids.values()]
        measured, order = _measure(settings, roots, model, pool_share)
        on_stage("verification of a few candidates")
        rank = int(np.ceil(candidates_per_anchor(settings) * pool_share))
        verified = verify_sample(trial, roots, model, rank, effort.verified)
        return Sample(
            sources=tuple(sources),
            settings=settings,
            shard_rows=tuple(shard.n_rows for shard in plan.shards),
            rows=make_rows(settings, sources, lengths, order),
            measured=replace(measured, context_tokens=float(np.mean(tokens)) if tokens else 0.0),
            trial=roots,
            verified=verified,
            lengths=lengths,
            pool_documents=len(pool),
            pool_share=pool_share,
            chunks_per_char=sum(s.chunks for s in summaries) / pool_chars,
            dimension=summaries[0].dimension,
            rates=_rates(trial.rates, verified),
            device=str(load_scorer(model, settings.scoring.pack_tokens).device),
        )


def _lengths(
    settings: Settings, plan: ShardPlan, sources: Sequence[SourceSample], model: ScoringModel
) -> Lengths:
    tokens: dict[str, int] = {}
    for source in sources:
        documents = list(source.all_documents())
        counts = model.tokenizer.count([d.text for d in documents])
        tokens |= {d.doc_id: n for d, n in zip(documents, counts, strict=True)}
    longest = min(settings.roots.max_tokens, model.max_positions - len(model.tokenizer.bos_ids))
    shortest = settings.roots.min_tokens
    return Lengths(
        tokens,
        frozenset(d for d, n in tokens.items() if shortest <= n <= longest),
        {shard.key: plan.corpus_rows(shard.key) for shard in plan.shards},
    )


def _measure(
    settings: Settings, roots: TrialRoots, model: ScoringModel, pool_share: float
) -> tuple[Measured, dict[str, int]]:
    """Return the measured roots, and the row of each root in them, by its id."""
    bos, positions = model.tokenizer.bos_ids, model.max_positions
    costs = root_costs(roots, settings, bos, positions, pool_share)

    def values(cost: RootCost, passes: Passes) -> list[float]:
        return [cost.anchors, passes.passes, passes.tokens, passes.pairs, cost.control_tokens]

    shape = (len(costs), len(QUANTITIES))
    measured = Measured(
        tokens=np.array([float(cost.tokens) for cost in costs]),
        shared=np.array([values(c, c.shared) for c in costs], np.float64).reshape(shape),
        unshared=np.array([values(c, c.unshared) for c in costs], np.float64).reshape(shape),
        trend=sharing_trend(roots, settings, bos, positions, pool_share),
        is_certain=candidates_per_anchor(settings) * pool_share >= 1,
        context_tokens=0.0,
        pool_share=pool_share,
        max_contexts=settings.verification.max_contexts_per_root,
        max_tokens=settings.verification.max_forward_tokens_per_root,
    )
    return measured, {cost.root_id: number for number, cost in enumerate(costs)}


def _accepted(verified: VerifiedSample) -> Accepted:
    def column(name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.array([float(getattr(root, name)) for root in verified.roots])

    return Accepted(column("contexts"), column("contexts_accepted"), column("accepted"))


def _rates(of_stages: dict[str, float], verified: VerifiedSample) -> dict[str, float]:
    """Units per second. The rate of scoring is that of the passes given contexts, if any ran."""
    tokens = verified.forward_tokens + verified.evidence_tokens
    scoring = tokens / verified.seconds if tokens else of_stages[ENTROPY_SCORES_STAGE.name]
    return {
        "chunks": of_stages[CHUNK_EMBEDDINGS_STAGE.name],
        "anchors": of_stages[CANDIDATE_CONTEXTS_STAGE.name],
        "tokens": scoring,
    }
