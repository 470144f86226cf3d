"""What a run over the sources would cost, from a sample of them and a short measurement here."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from entropylong_assets.report.capacity import DISTINCT, verification_tokens
from entropylong_assets.settings.model import Settings
from entropylong_assets.stages.corpus.documents import canonical_texts
from entropylong_assets.stages.corpus.rows import Row
from entropylong_assets.stages.corpus.shards import ShardPlan, read_shard, source_of
from entropylong_assets.stages.embeddings.chunking import chunk_document
from entropylong_assets.stages.embeddings.embedder import load_embedder
from entropylong_assets.stages.entropy.anchors import score_roots
from entropylong_assets.stages.entropy.engine import load_scorer
from entropylong_assets.stages.entropy.model import load_scoring_model

SAMPLED_SHARDS, SAMPLED_DOCUMENTS, SAMPLED_ROOTS = 8, 64, 6

T = TypeVar("T")


@dataclass(frozen=True)
class Estimate:
    """Expected counts of a run, and hours at the rates measured on this machine."""

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


def spread(items: Sequence[T], most: int) -> list[T]:
    """All of them, or `most` of them at even distances, in their order."""
    n = len(items)
    return [items[i * n // most] for i in range(most)] if n > most else list(items)


def estimate(settings: Settings, plan: ShardPlan) -> Estimate:
    """Samples documents over the shards, scores a few roots, and scales both up."""
    corpus = settings.corpus
    model = load_scoring_model(settings.scoring)
    embedder = load_embedder(settings.embedding)
    rows = sum(shard.n_rows for shard in plan.shards)
    read, texts, wanted_roots, candidates = 0, list[str](), 0.0, list[list[int]]()
    for shard in spread(plan.shards, SAMPLED_SHARDS):
        source = source_of(shard, corpus)
        fraction = corpus.root_fraction if source.root_fraction is None else source.root_fraction
        items = list(itertools.islice(read_shard(shard, source), SAMPLED_DOCUMENTS))
        read += len(items)
        raw = [item.text for item in items if isinstance(item, Row)]
        kept = [t for t in canonical_texts(raw) if corpus.min_chars <= len(t) <= corpus.max_chars]
        texts += kept
        for ids in model.tokenizer.encode(kept):
            if corpus.root_min_tokens <= len(ids) <= corpus.root_max_tokens:
                wanted_roots += fraction
                candidates.append(ids)
    scale = rows / max(read, 1)
    roots = [(str(i), ids) for i, ids in enumerate(spread(candidates, SAMPLED_ROOTS))]

    scorer = load_scorer(model)
    start = time.monotonic()
    scored = list(score_roots(roots, scorer, model.tokenizer.bos_ids, settings.entropy))
    seconds = time.monotonic() - start
    tokens_per_second = sum(len(ids) for _, ids in roots) / max(seconds, 1e-9)
    anchors = statistics.fmean(len(r["anchors"]) for r in scored) if scored else 0.0
    root_tokens = statistics.fmean(len(ids) for _, ids in roots) if roots else 0.0

    window, short = embedder.window_tokens, settings.embedding.min_chunk_chars
    cut = spread(texts, SAMPLED_DOCUMENTS)
    chunks = [
        chunk.text
        for text in cut
        for chunk in chunk_document(text, window, short, embedder.count_tokens)
    ]
    timed = spread(chunks, SAMPLED_DOCUMENTS)
    start = time.monotonic()
    embedder.embed(timed)
    chunks_per_second = len(timed) / max(time.monotonic() - start, 1e-9)
    context_tokens = statistics.fmean(model.tokenizer.count(chunks)) if chunks else 0.0

    n_roots = wanted_roots * scale
    pairs = n_roots * anchors * settings.retrieval.top_k
    controls = settings.verification.controls
    passes = pairs * DISTINCT.value + n_roots * (controls + 1)
    behind, rest = verification_tokens(
        n_roots, pairs, DISTINCT.value, context_tokens, root_tokens, controls
    )
    documents = len(texts) * scale
    return Estimate(
        rows=rows,
        documents=round(documents),
        chunks=round(documents * len(chunks) / max(len(cut), 1)),
        roots=round(n_roots),
        anchors=round(n_roots * anchors),
        pairs=round(pairs),
        forward_passes=round(passes),
        forward_tokens=round(behind + rest),
        chunks_per_second=chunks_per_second,
        tokens_per_second=tokens_per_second,
        sampled_documents=read,
        sampled_roots=len(roots),
    )
