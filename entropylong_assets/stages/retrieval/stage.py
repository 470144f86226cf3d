"""The stage `candidate_contexts`: retrieve candidates for every anchor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.removals import removed_from_corpus
from entropylong_assets.stages.embeddings.index_stages import EMBEDDING_INDEX_STAGE
from entropylong_assets.stages.embeddings.settings import QUERY_SETTINGS
from entropylong_assets.stages.embeddings.tables import EMBEDDING_INDEX
from entropylong_assets.stages.embeddings.vector_table import EXACT, search_of
from entropylong_assets.stages.entropy.stage import ENTROPY_SCORES_STAGE
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.retrieval.settings import RetrievalSettings
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS, CandidateContextsSummary
from entropylong_assets.stages.stage import Check, Job, Partition, Result, Stage, Step
from entropylong_assets.storage import duck
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.tables import WHOLE

VERIFY = Job("verify", "Retrieve candidates and verify them with the scoring model.", hours=48)

ANCHORS_PER_EXACT_SEARCH = 32_768
"""Minimum number of anchors searched for together. An exact search reads the whole table each
time; an index is as fast per query with 1,024 as with more (benchmarks/RESULTS.md)."""
ANCHORS_PER_INDEX_SEARCH = 1024


def _compute(step: Step) -> Result:
    from entropylong_assets.stages.embeddings.embedder import load_embedder
    from entropylong_assets.stages.embeddings.table import load_table
    from entropylong_assets.stages.entropy.model import load_tokenizer
    from entropylong_assets.stages.retrieval.candidates import (
        ROOTS_PER_BATCH,
        Retriever,
        find_candidates,
        gather_roots,
    )

    store, shard, settings = step.store, step.shard, step.settings
    embedding = settings.corpus.embedding
    index = store.summary(EMBEDDING_INDEX)
    embedder = load_embedder(embedding)
    table, how = load_table(store, embedder, index.tag), search_of(index)
    if settings.retrieval.text_candidates and not index.text_index:
        raise TableError(
            f"{EMBEDDING_INDEX.name}: it has no index of words, which retrieval.text_candidates "
            f"needs; set embedding.text_index: true and materialize {EMBEDDING_INDEX.name} again"
        )
    step.progress.total = sum(
        int(batch["anchors"].list.len().sum())
        for batch in store.batches(ENTROPY_SCORES, shard, "roots", ["anchors"])
    )
    columns = ["root_id", "token_ids", "anchors"]
    roots = store.batches(ENTROPY_SCORES, shard, "roots", columns, ROOTS_PER_BATCH)
    is_exact = how.search == EXACT.search

    def search_text(texts: Sequence[str], limit: int) -> pl.DataFrame:
        return table.search_text(texts, limit, index.excluded_shards)

    written = find_candidates(
        gather_roots(roots, ANCHORS_PER_EXACT_SEARCH if is_exact else ANCHORS_PER_INDEX_SEARCH),
        removed_documents(step),
        Retriever(
            load_tokenizer(settings.scoring),
            embedder,
            table,
            lambda vectors_QE, limit: table.search(
                vectors_QE, limit, index.excluded_shards, how, embedding.device
            ),
            index.n_rows,
            store.read(EMBEDDING_INDEX, WHOLE, "phrases"),
            settings.retrieval,
            search_text if settings.retrieval.text_candidates else None,
        ),
        step.writer,
        step.progress,
    )
    return Result(
        CandidateContextsSummary(
            roots=written.roots,
            anchors=written.anchors,
            candidates=written.candidates,
            near_duplicate=written.near_duplicate,
            chunks=written.chunks,
            phrase_documents=index.phrase_documents,
            found_by_text=written.found_by_text,
            shortened_queries=written.shortened_queries,
            query_prompt=embedder.query.prompt,
            dropped={reason: n for reason, n in sorted(written.dropped.items()) if n},
            index=index.tag,
            excluded_shards=index.excluded_shards,
            search=how.search,
            nprobes=how.nprobes,
            refine_factor=how.refine_factor,
        ),
        {"preview": step.writer.preview("candidates")},
    )


def removed_documents(step: Step) -> dict[str, str]:
    """Documents of this shard that the index does not contain, with the reasons."""
    from entropylong_assets.stages.retrieval.candidates import NEAR_DUPLICATE_ROOT, OTHER_SHARD

    removed: dict[str, str] = {}
    for table, reason in (("near_copies", NEAR_DUPLICATE_ROOT), ("duplicates", OTHER_SHARD)):
        rows = step.store.read(EMBEDDING_INDEX, WHOLE, table, ["doc_id", "shard"])
        removed |= dict.fromkeys(rows.filter(shard=step.shard)["doc_id"], reason)
    return removed


def _identify(partition: Partition) -> Mapping[str, Any]:
    from entropylong_assets.stages.embeddings.embedder import query_identity

    return {
        **query_identity(partition.corpus.embedding),
        # The number of probes of a search changes the tag, but not the tables of the index.
        "index": partition.store.summary(EMBEDDING_INDEX).tag,
    }


def _validate(settings: Settings) -> None:
    """Refuse a full-text search without an index of words."""
    n, embedding = settings.retrieval.text_candidates, settings.corpus.embedding
    if n and not embedding.text_index:
        raise ValueError(
            f"retrieval.text_candidates is {n}, but embedding.text_index of corpus "
            f"'{settings.corpus.name}' is false; set it to true"
        )


def _views(partition: Partition) -> Mapping[str, duck.View]:
    own = {
        name: (CANDIDATE_CONTEXTS, [partition.shard], name)
        for name in ("queries", "candidates", "chunks", "dropped")
    }
    return {"roots": (ENTROPY_SCORES, [partition.shard], "roots"), **own}


CANDIDATE_CONTEXTS_STAGE = Stage(
    tables=CANDIDATE_CONTEXTS,
    description="""The K chunks most similar to the text around each anchor (paper, section 3.2).

With `retrieval.text_candidates`, a full-text search (BM25) with the words around the anchor
nominates further chunks. Verification decides later which candidates are accepted. Chunks of the
root itself are left out. The leak check rejects near-duplicates of the root's text; they are stored
with its result. A root that the index does not contain, because it is a copy or a near-duplicate of
another document, is dropped with the reason.""",
    compute=_compute,
    inputs=(ENTROPY_SCORES_STAGE, EMBEDDING_INDEX_STAGE),
    sections={"retrieval": RetrievalSettings},
    determined_by=lambda _: ("retrieval", "scoring.model", *QUERY_SETTINGS),
    identify=_identify,
    removals=removed_from_corpus,
    code_version=8,
    check_folder=Path(__file__).parent / "checks",
    checks=(
        Check("anchors_reconcile", "Anchors = anchors with candidates + dropped anchors."),
        Check(
            "ranks_without_gap",
            "Ranks are 1, 2, 3, … without gaps or repeats.",
        ),
        Check("no_own_chunk", "No candidate is a chunk of the root itself."),
        Check(
            "leak_check_consistent",
            "Exactly the candidates with a containment of `max_containment` or more are rejected.",
        ),
        Check("similarities_ordered", "Similarities are cosines and do not rise with the rank."),
    ),
    views=_views,
    check_parameters=lambda partition: partition.settings.retrieval.model_dump(),
    validate=_validate,
    job=VERIFY,
    automation="per_shard",
    unit="anchors",
    kinds=frozenset({"lancedb", "huggingface"}),
)
