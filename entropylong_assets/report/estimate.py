"""What a run over the sources takes, estimated from a sample of documents, with intervals.

Documents are sampled from the whole range of the shards, and a trial runs every stage on them as
far as the candidates (`trial.py`). Passes are planned as a run plans them, a few are scored, and
all of it is extrapolated to the corpus (`replicates.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from entropylong_assets.report.document_sample import (
    SampledDocument,
    SourceSample,
    hash_of,
    sample_documents,
)
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
    candidates_per_anchor,
    read_trial,
    root_costs,
    sharing_trend,
)
from entropylong_assets.report.trial import open_trial
from entropylong_assets.report.verified_sample import VerifiedSample, verify_sample
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.shards import ShardPlan
from entropylong_assets.stages.embeddings.stages import CHUNK_EMBEDDINGS_STAGE
from entropylong_assets.stages.embeddings.tables import CHUNK_EMBEDDINGS
from entropylong_assets.stages.entropy.model import load_scoring_model
from entropylong_assets.stages.entropy.roots import drawn_share, is_drawn, root_hash
from entropylong_assets.stages.entropy.stage import ENTROPY_SCORES_STAGE
from entropylong_assets.stages.retrieval.stage import CANDIDATE_CONTEXTS_STAGE


@dataclass(frozen=True)
class Effort:
    """How much an estimate reads and scores."""

    rows: int = 1024
    """Rows chosen from the sources; their texts are tokenized."""
    pool_chars: int = 1_000_000
    """Characters of the documents that are embedded and searched."""
    roots: int = 24
    """Roots measured, at most."""
    root_tokens: int = 24_000
    """Tokens of the measured roots, at most, but at least 6 roots."""
    verified_tokens: int = 40_000
    """Tokens of the passes that are scored to see how many candidates are accepted."""
    replicates: int = 400
    seed: int = 0
    """Of the choice of rows."""


MIN_ROOTS = 6


@dataclass(frozen=True)
class Sample:
    """What was sampled, and what a trial measured on it."""

    sources: tuple[SourceSample, ...]
    settings: Settings
    corpus_shards: int
    rows: tuple[Rows, ...]
    measured: Measured
    accepted: Accepted
    verified: VerifiedSample
    pool_documents: int
    pool_share: float
    """Share of the corpus' chunks that the trial searched."""
    chunks_per_char: float
    dimension: int
    rates: dict[str, float]
    """Units per second here: `chunks`, `anchors`, `tokens`."""
    model: str

    @property
    def n_roots(self) -> int:
        return len(self.measured.tokens)

    @property
    def drawn_in_sample(self) -> int:
        return int(sum(rows.is_drawn.sum() for rows in self.rows))

    def point(self) -> Totals:
        return point(self.rows, self.measured, self.accepted)

    def replicates(self, effort: Effort) -> list[Totals]:
        return replicates(
            self.rows, self.measured, self.accepted, effort.replicates, effort.seed + 1
        )

    @property
    def evidence_tokens_per_dependency(self) -> float:
        """Tokens of further passes per accepted pair, to find its evidence span."""
        accepted = self.verified.total("accepted")
        if accepted:
            return self.verified.evidence_tokens / accepted
        # Nothing was accepted, so nothing was measured: a few passes of mean length are assumed.
        length = self.measured.context_tokens + float(np.mean(self.measured.tokens or [0]))
        return 4 * length if self.settings.verification.evidence else 0.0


def take_sample(
    settings: Settings,
    plan: ShardPlan,
    effort: Effort = Effort(),
    on_stage: Callable[[str], None] = lambda _: None,
) -> Sample:
    """Sample the sources of a dataset's corpus and run a trial on the sample.

    plan: shards of the corpus, registered or not. on_stage: gets a line for people before each
    part. Raises CorpusError if a source lacks its text field, TrialError if no document can be a
    root, and what loading the models raises.
    """
    on_stage("reading a sample of the sources")
    sources = sample_documents(settings.corpus, plan, effort.rows, effort.seed)
    model = load_scoring_model(settings.scoring)
    max_tokens = model.max_positions - len(model.tokenizer.bos_ids)
    rows_of_plan = {shard.key: plan.corpus_rows(shard.key) for shard in plan.shards}
    tokens: dict[str, int] = {}
    for source in sources:
        documents = list(source.all_documents())
        counts = model.tokenizer.count([d.text for d in documents])
        tokens |= {d.doc_id: n for d, n in zip(documents, counts, strict=True)}
    longest = min(settings.roots.max_tokens, max_tokens)
    eligible = {d for d, n in tokens.items() if settings.roots.min_tokens <= n <= longest}

    chosen = _choose_roots(settings, sources, tokens, eligible, rows_of_plan, effort)
    pool = _choose_pool(sources, {d.doc_id for d in chosen}, effort)
    if not pool:
        return _without_trial(settings, plan, sources, tokens, eligible, model.identity)
    with open_trial(settings, pool, [d.doc_id for d in chosen], on_stage) as trial:
        made = [trial.store.summary(CHUNK_EMBEDDINGS, shard) for shard in trial.shards]
        pool_chars = sum(len(d.text) for d in pool)
        chunks_per_char = sum(s.chunks for s in made) / max(pool_chars, 1)
        chars = sum(s.weight * sum(len(d.text) for d in s.all_documents()) for s in sources)
        pool_share = min(1.0, pool_chars / max(chars, 1))
        on_stage("planning the passes")
        roots = read_trial(trial, model.tokenizer)
        bos, positions = model.tokenizer.bos_ids, model.max_positions
        costs = root_costs(roots, settings, bos, positions, pool_share)
        trend = sharing_trend(roots, settings, bos, positions, pool_share)
        on_stage("verifying a few candidates")
        wanted = candidates_per_anchor(settings)
        rank = int(np.ceil(wanted * pool_share))
        verified = verify_sample(trial, roots, model, rank, effort.verified_tokens)
        lengths = [len(ids) for ids in roots.context_ids.values()]
        rates = _rates(trial.rates, verified)
        dimension = made[0].dimension
    order = {cost.root_id: number for number, cost in enumerate(costs)}
    measured = _measured(
        settings,
        costs,
        float(np.mean(lengths)) if lengths else 0.0,
        trend,
        wanted * pool_share >= 1 or pool_share >= 1,
    )
    return Sample(
        sources=tuple(sources),
        settings=settings,
        corpus_shards=len(plan.shards),
        rows=_rows(settings, sources, tokens, eligible, rows_of_plan, order),
        measured=measured,
        accepted=_accepted(verified),
        verified=verified,
        pool_documents=len(pool),
        pool_share=pool_share,
        chunks_per_char=chunks_per_char,
        dimension=dimension,
        rates=rates,
        model=model.identity,
    )


def _without_trial(
    settings: Settings,
    plan: ShardPlan,
    sources: Sequence[SourceSample],
    tokens: dict[str, int],
    eligible: set[str],
    model: str,
) -> Sample:
    """A sample without any document: everything is zero."""
    nothing = VerifiedSample([], 0, 0, 0.0)
    rows_of_plan = {shard.key: plan.corpus_rows(shard.key) for shard in plan.shards}
    return Sample(
        sources=tuple(sources),
        settings=settings,
        corpus_shards=len(plan.shards),
        rows=_rows(settings, sources, tokens, eligible, rows_of_plan, {}),
        measured=_measured(settings, [], 0.0, 0.0, True),
        accepted=_accepted(nothing),
        verified=nothing,
        pool_documents=0,
        pool_share=1.0,
        chunks_per_char=0.0,
        dimension=0,
        rates={},
        model=model,
    )


def _share(settings: Settings, source: SourceSample, rows_of_plan: dict[str, int]) -> float:
    """Share of a source's documents that are drawn; shards of later scans have a lower one."""
    shares = [
        n * drawn_share(settings.roots, source.source, rows_of_plan[shard])
        for shard, n in source.chosen.items()
    ]
    return sum(shares) / max(source.chosen_rows, 1)


def _choose_roots(
    settings: Settings,
    sources: Sequence[SourceSample],
    tokens: dict[str, int],
    eligible: set[str],
    rows_of_plan: dict[str, int],
    effort: Effort,
) -> list[SampledDocument]:
    """Return the roots to measure: of each source in proportion to its roots, by their hash, so
    that those are among them that a run draws."""
    ordered: list[tuple[float, SampledDocument]] = []
    for source in sources:
        share = _share(settings, source, rows_of_plan) * source.weight
        if share:
            ordered += [
                (root_hash(d.doc_id, settings.seed) / share, d)
                for d in source.all_documents()
                if d.doc_id in eligible
            ]
    ordered.sort(key=lambda pair: (pair[0], pair[1].doc_id))
    chosen: list[SampledDocument] = []
    total = 0
    for _, document in ordered[: effort.roots]:
        total += tokens[document.doc_id]
        if total > effort.root_tokens and len(chosen) >= MIN_ROOTS:
            break
        chosen.append(document)
    return chosen


def _choose_pool(
    sources: Sequence[SourceSample], root_ids: set[str], effort: Effort
) -> list[SampledDocument]:
    """Return the documents of the trial: the roots, and others by hash as far as they fit."""
    documents = [(source.weight, d) for source in sources for d in source.all_documents()]
    roots = [d for _, d in documents if d.doc_id in root_ids]
    room = effort.pool_chars - sum(len(d.text) for d in roots)
    others = sorted(
        (
            (hash_of("pool", d.doc_id) / weight, d)
            for weight, d in documents
            if d.doc_id not in root_ids
        ),
        key=lambda pair: (pair[0], pair[1].doc_id),
    )
    pool = roots
    for _, document in others:
        room -= len(document.text)
        if room < 0:
            break
        pool.append(document)
    return pool


def _rows(
    settings: Settings,
    sources: Sequence[SourceSample],
    tokens: dict[str, int],
    eligible: set[str],
    rows_of_plan: dict[str, int],
    measured: dict[str, int],
) -> tuple[Rows, ...]:
    """The chosen rows as arrays. measured: place of each measured root."""
    result = []
    for source in sources:
        share = _share(settings, source, rows_of_plan)
        shards, documents = [], list[SampledDocument | None]()
        for number, (shard, n) in enumerate(source.chosen.items()):
            of_shard = source.documents.get(shard, [])
            documents += [*of_shard, *[None] * (n - len(of_shard))]
            shards += [number] * max(n, len(of_shard))
        result.append(
            Rows(
                source_rows=source.rows,
                source_shards=source.shards,
                is_complete=source.is_complete,
                share=share,
                shard=np.array(shards, np.int64),
                is_document=np.array([float(d is not None) for d in documents]),
                chars=np.array([float(len(d.text)) if d else 0.0 for d in documents]),
                tokens=np.array(
                    [
                        float(tokens[d.doc_id]) if d and d.doc_id in eligible and share else 0.0
                        for d in documents
                    ]
                ),
                is_drawn=np.array(
                    [
                        d is not None
                        and is_drawn(
                            d.doc_id,
                            settings.seed,
                            drawn_share(settings.roots, source.source, rows_of_plan[d.shard]),
                        )
                        for d in documents
                    ],
                    np.bool_,
                ),
                measured=np.array(
                    [measured.get(d.doc_id, -1) if d else -1 for d in documents], np.int64
                ),
            )
        )
    return tuple(result)


def _measured(
    settings: Settings,
    costs: Sequence[RootCost],
    context_tokens: float,
    trend: float,
    is_certain: bool,
) -> Measured:
    def values(cost: RootCost, passes: Passes) -> list[float]:
        return [cost.anchors, passes.passes, passes.tokens, passes.pairs, cost.control_tokens]

    shape = (len(costs), len(QUANTITIES))
    return Measured(
        tokens=np.array([float(cost.tokens) for cost in costs]),
        shared=np.array([values(c, c.shared) for c in costs], np.float64).reshape(shape),
        unshared=np.array([values(c, c.unshared) for c in costs], np.float64).reshape(shape),
        trend=trend,
        is_certain=is_certain,
        context_tokens=context_tokens,
        max_contexts=settings.verification.max_contexts_per_root,
        max_tokens=settings.verification.max_forward_tokens_per_root,
    )


def _accepted(verified: VerifiedSample) -> Accepted:
    def column(name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.array([float(getattr(root, name)) for root in verified.roots])

    return Accepted(column("contexts"), column("contexts_accepted"), column("accepted"))


def _rates(of_stages: dict[str, float], verified: VerifiedSample) -> dict[str, float]:
    """Units per second: the rate of scoring is that of the passes given contexts, if there are."""
    tokens = verified.forward_tokens + verified.evidence_tokens
    scoring = tokens / verified.seconds if tokens else of_stages[ENTROPY_SCORES_STAGE.name]
    return {
        "chunks": of_stages[CHUNK_EMBEDDINGS_STAGE.name],
        "anchors": of_stages[CANDIDATE_CONTEXTS_STAGE.name],
        "tokens": scoring,
    }
