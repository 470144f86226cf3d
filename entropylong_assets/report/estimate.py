"""What a run over the sources costs, estimated from a sample of documents and timings here."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from entropylong_assets.report.capacity import DISTINCT, verification_tokens
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.documents import canonical_texts
from entropylong_assets.stages.corpus.rows import NotSelected, Row
from entropylong_assets.stages.corpus.shards import Shard, ShardPlan, read_shard, source_of
from entropylong_assets.stages.embeddings.chunking import chunk_document
from entropylong_assets.stages.embeddings.embedder import Embedder, load_embedder
from entropylong_assets.stages.entropy.anchors import score_roots
from entropylong_assets.stages.entropy.engine import load_scorer
from entropylong_assets.stages.entropy.model import (
    ScoringModel,
    Tokenizer,
    load_scoring_model,
)

SAMPLED_SHARDS, SAMPLED_DOCUMENTS, SAMPLED_ROOTS = 8, 64, 6
"""Shards per corpus, but at least one per source; documents per shard; roots that are scored."""

T = TypeVar("T")


@dataclass(frozen=True)
class Estimate:
    """Expected counts of a run, and the rates measured on this machine."""

    rows: int
    documents: int
    chunks: int
    roots: int
    anchors: int
    pairs: int
    forward_passes: int
    forward_tokens: int
    chunks_per_second: float
    tokens_per_second: float
    sampled_documents: int
    sampled_roots: int

    @property
    def embedding_hours(self) -> float:
        return self.chunks / max(self.chunks_per_second, 1e-9) / 3600

    @property
    def scoring_hours(self) -> float:
        return self.forward_tokens / max(self.tokens_per_second, 1e-9) / 3600


@dataclass(frozen=True)
class _SourceSample:
    """Documents sampled from one source. rows: of the whole source."""

    rows: int
    read: int
    texts: list[str]
    candidates: list[list[int]]
    """Token ids of sampled documents that are long and short enough to be roots."""
    fraction: float
    """Share of them that are drawn as roots."""

    @property
    def scale(self) -> float:
        """Rows of the source per sampled row."""
        return self.rows / max(self.read, 1)

    @property
    def documents(self) -> float:
        return len(self.texts) * self.scale

    @property
    def roots(self) -> float:
        return len(self.candidates) * self.fraction * self.scale


def spread(items: Sequence[T], limit: int) -> list[T]:
    """Return all items, or `limit` of them at even distances, in their order."""
    n = len(items)
    return [items[i * n // limit] for i in range(limit)] if n > limit else list(items)


def _sample_source(
    settings: Settings, shards: Sequence[Shard], n_shards: int, tokenizer: Tokenizer
) -> _SourceSample:
    """Sample the documents of one source. shards: all of its shards."""
    corpus, roots = settings.corpus, settings.roots
    source = source_of(shards[0], corpus)
    read, texts, candidates = 0, list[str](), list[list[int]]()
    for shard in spread(shards, n_shards):
        items = list(itertools.islice(read_shard(shard, source), SAMPLED_DOCUMENTS))
        read += sum(item.n_rows if isinstance(item, NotSelected) else 1 for item in items)
        canonical = canonical_texts([item.text for item in items if isinstance(item, Row)])
        kept = [text for text in canonical if corpus.min_chars <= len(text) <= corpus.max_chars]
        texts += kept
        candidates += [
            ids
            for ids in tokenizer.encode(kept)
            if roots.min_tokens <= len(ids) <= roots.max_tokens
        ]
    return _SourceSample(
        rows=sum(shard.n_rows for shard in shards),
        read=read,
        texts=texts,
        candidates=candidates,
        fraction=roots.fraction_by_source.get(source.name, roots.fraction),
    )


def _sample_sources(
    settings: Settings, plan: ShardPlan, tokenizer: Tokenizer
) -> list[_SourceSample]:
    by_source: dict[str, list[Shard]] = {}
    for shard in plan.shards:
        by_source.setdefault(shard.source, []).append(shard)
    return [
        _sample_source(
            settings,
            shards,
            max(1, round(SAMPLED_SHARDS * len(shards) / len(plan.shards))),
            tokenizer,
        )
        for shards in by_source.values()
    ]


def _measure_anchors(
    settings: Settings, model: ScoringModel, roots: Sequence[list[int]]
) -> tuple[float, float]:
    """Score roots. Returns the mean number of anchors per root, and tokens per second."""
    scorer = load_scorer(model, settings.scoring.pack_tokens)
    start = time.monotonic()
    named = [(str(number), ids) for number, ids in enumerate(roots)]
    scored = list(score_roots(named, scorer, model.tokenizer.bos_ids, settings.entropy))
    seconds = time.monotonic() - start
    anchors = statistics.fmean(len(row["anchors"]) for row in scored) if scored else 0.0
    return anchors, sum(len(ids) for ids in roots) / max(seconds, 1e-9)


def _cut(settings: Settings, embedder: Embedder, texts: Sequence[str]) -> list[str]:
    """Chunks of these texts."""
    shortest = settings.corpus.embedding.min_chunk_chars
    return [
        chunk.text
        for text in texts
        for chunk in chunk_document(text, embedder.window_tokens, shortest, embedder.count_tokens)
    ]


def estimate(settings: Settings, plan: ShardPlan) -> Estimate:
    """Sample documents of every source, score a few roots, and scale both up.

    plan: shards of the dataset's corpus. Raises what loading the models and reading sources raise.
    """
    model, embedder = load_scoring_model(settings.scoring), load_embedder(settings.corpus.embedding)
    samples = _sample_sources(settings, plan, model.tokenizer)
    candidates = [ids for sample in samples if sample.fraction for ids in sample.candidates]
    roots = spread(candidates, SAMPLED_ROOTS)
    anchors, tokens_per_second = _measure_anchors(settings, model, roots)
    root_tokens = statistics.fmean(len(ids) for ids in roots) if roots else 0.0

    n_chunks, chunks = 0.0, list[str]()
    for sample in samples:
        cut = spread(sample.texts, SAMPLED_DOCUMENTS)
        of_source = _cut(settings, embedder, cut)
        n_chunks += sample.documents * len(of_source) / max(len(cut), 1)
        chunks += of_source
    timed = spread(chunks, SAMPLED_DOCUMENTS)
    start = time.monotonic()
    embedder.embed_documents(timed)
    chunks_per_second = len(timed) / max(time.monotonic() - start, 1e-9)
    context_tokens = statistics.fmean(model.tokenizer.count(chunks)) if chunks else 0.0

    n_roots = sum(sample.roots for sample in samples)
    per_anchor = settings.retrieval.top_k + settings.retrieval.text_candidates
    pairs = n_roots * anchors * per_anchor
    controls = settings.verification.controls
    of_candidates, rest = verification_tokens(
        n_roots, pairs, DISTINCT.value, context_tokens, root_tokens, controls
    )
    return Estimate(
        rows=sum(sample.rows for sample in samples),
        documents=round(sum(sample.documents for sample in samples)),
        chunks=round(n_chunks),
        roots=round(n_roots),
        anchors=round(n_roots * anchors),
        pairs=round(pairs),
        forward_passes=round(pairs * DISTINCT.value + n_roots * (controls + 1)),
        forward_tokens=round(of_candidates + rest),
        chunks_per_second=chunks_per_second,
        tokens_per_second=tokens_per_second,
        sampled_documents=sum(sample.read for sample in samples),
        sampled_roots=len(roots),
    )
