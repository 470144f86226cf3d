"""A sample of a corpus, and the measurements of a trial on it.

Documents are sampled from the whole range of the shards. A trial runs all stages on them up to the
candidates (`trial.py`). Forward passes are planned as in a run, a few are executed, and the results
are extrapolated to the corpus (`replicates.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from entropylong_assets.report.document_sample import (
    SampledDocument,
    SourceSample,
    sample_documents,
)
from entropylong_assets.report.effort import (
    DEFAULT_EFFORT,
    Clock,
    Effort,
    describe_cut,
    fit_effort,
    measure_speed,
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
    TrialRoots,
    candidates_per_anchor,
    read_trial,
    root_costs,
    sharing_trend,
)
from entropylong_assets.report.sample_arrays import Lengths, choose_pool, choose_roots, make_rows
from entropylong_assets.report.trial import Trial, TrialError, embedded_store, open_trial
from entropylong_assets.report.verified_sample import VerifiedSample, verify_sample
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.shards import ShardPlan
from entropylong_assets.stages.embeddings.chunk_stage import CHUNK_EMBEDDINGS_STAGE
from entropylong_assets.stages.embeddings.tables import CHUNK_EMBEDDINGS
from entropylong_assets.stages.entropy.engine import load_scorer
from entropylong_assets.stages.entropy.model import ScoringModel, load_scoring_model
from entropylong_assets.stages.entropy.stage import ENTROPY_SCORES_STAGE
from entropylong_assets.stages.progress import Observer
from entropylong_assets.stages.retrieval.stage import CANDIDATE_CONTEXTS_STAGE
from entropylong_assets.storage.tables import TableStore


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
    cut: str | None = None
    """What a limit of time left out; None if nothing."""

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
    effort: Effort = DEFAULT_EFFORT,
    on_stage: Callable[[str], None] = lambda _: None,
    documents: float | None = None,
    observer: Observer | None = None,
) -> Sample:
    """Sample the sources of a dataset's corpus and run a trial on the sample.

    plan: shards of the corpus, registered or not. on_stage: called before each part with a line for
    users. documents: number of documents of the corpus to estimate for; None: as many as it has.
    observer: gets the progress of each part. If the corpus is embedded already, all of it is
    searched, and nothing is embedded but a few texts, to measure the speed. Raises CorpusError if a
    source lacks its text field, TrialError if no row of the sample becomes a document, and the
    errors of loading the models.
    """
    clock = Clock(effort.minutes)
    on_stage("a sample of the sources")
    sources = sample_documents(settings.corpus, plan, effort.rows, effort.seed)
    embedded = embedded_store(settings, [shard.key for shard in plan.shards])
    model = load_scoring_model(settings.scoring)
    lengths = _lengths(settings, plan, sources, model)
    texts = [d.text for source in sources for d in source.all_documents()]
    if not texts:
        rows = sum(source.chosen_rows for source in sources)
        raise TrialError(
            f"corpus {settings.corpus.name}: none of {rows:,} rows looked at becomes a document; "
            "look at corpus.sources, min_chars and max_chars"
        )
    fitted, speed = effort, None
    if embedded or clock.left is not None:
        on_stage("timing of both models")
        speed = measure_speed(settings, model, texts)
    if speed and clock.left is not None:
        fitted = fit_effort(effort, clock.left, speed, embedded is not None)
    wished = choose_roots(settings, sources, lengths, (effort.roots, effort.root_tokens))
    chosen = choose_roots(settings, sources, lengths, (fitted.roots, fitted.root_tokens))
    pool = choose_pool(
        sources, {d.doc_id for d in chosen}, 0 if embedded else fitted.pool_chars
    ) or choose_pool(sources, set(), max(map(len, texts)))
    on_corpus = _of_corpus(sources, documents)
    with open_trial(
        settings, pool, [d.doc_id for d in chosen], on_stage, observer, embedded
    ) as trial:
        searched = _searched(trial, embedded, pool, on_corpus)
        roots = read_trial(trial, model.tokenizer)
        tokens = [len(ids) for ids in roots.context_ids.values()]
        measured, order = _measure(settings, roots, model, searched.share)
        on_stage("verification of a few candidates")
        rank = int(np.ceil(candidates_per_anchor(settings) * searched.share))
        verified = verify_sample(trial, roots, model, rank, fitted.verified, lambda: clock.left)
        of_stages = dict(trial.rates)
        if speed:
            of_stages.setdefault(CHUNK_EMBEDDINGS_STAGE.name, speed.chunks)
        return Sample(
            sources=tuple(sources),
            settings=settings,
            shard_rows=tuple(shard.n_rows for shard in plan.shards),
            rows=make_rows(settings, sources, lengths, order),
            measured=replace(measured, context_tokens=float(np.mean(tokens)) if tokens else 0.0),
            trial=roots,
            verified=verified,
            lengths=lengths,
            pool_documents=searched.documents,
            pool_share=searched.share,
            chunks_per_char=searched.chunks_per_char,
            dimension=searched.dimension,
            rates=_rates(of_stages, verified),
            device=str(load_scorer(model, settings.scoring.pack_tokens).device),
            cut=describe_cut(
                effort,
                {
                    "roots": (len(chosen), len(wished)),
                    "roots verified": (verified.verified_roots, verified.chosen),
                    "characters searched": (
                        searched.share * on_corpus[0],
                        min(effort.pool_chars, sum(map(len, texts))),
                    ),
                },
            ),
        )


def _of_corpus(sources: Sequence[SourceSample], documents: float | None) -> tuple[float, float]:
    """Return the characters and documents of the corpus, or of one with so many documents."""
    have = sum(s.weight * sum(1 for _ in s.all_documents()) for s in sources)
    chars = sum(s.weight * sum(len(d.text) for d in s.all_documents()) for s in sources)
    wanted = documents or have
    return chars * wanted / max(have, 1), wanted


@dataclass(frozen=True)
class _Searched:
    """What a trial searched."""

    documents: int
    share: float
    """Of the corpus' chunks."""
    chunks_per_char: float
    dimension: int


def _searched(
    trial: Trial,
    embedded: TableStore | None,
    pool: Sequence[SampledDocument],
    of_corpus: tuple[float, float],
) -> _Searched:
    """of_corpus: characters and documents of the corpus to estimate for."""
    store, shards = trial.store, trial.shards
    if embedded:
        shards = tuple(embedded.shards(CHUNK_EMBEDDINGS))
    summaries = [store.summary(CHUNK_EMBEDDINGS, shard) for shard in shards]
    chunks, documents = sum(s.chunks for s in summaries), sum(s.documents for s in summaries)
    chars = sum(len(d.text) for d in pool)
    if embedded:
        chars = int(of_corpus[0] * min(1.0, documents / max(of_corpus[1], 1)))
    share = min(1.0, chars / max(of_corpus[0], 1))
    if embedded and documents >= of_corpus[1]:
        share = 1.0
    return _Searched(documents, share, chunks / max(chars, 1), summaries[0].dimension)


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
