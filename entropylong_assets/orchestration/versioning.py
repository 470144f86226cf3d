"""What determines each asset's content: code, settings, models and what is upstream.

From these come the code version (known when definitions load, so that the UI shows what a changed
setting makes stale) and the fingerprint of a partition (known when it is made, upstream data
versions included).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from entropylong_assets.settings.model import Settings, fingerprint
from entropylong_assets.stages.corpus.shards import current_shard, load_plan, source_of
from entropylong_assets.stages.embeddings.embedder import embedder_identity
from entropylong_assets.stages.entropy.model import model_identity
from entropylong_assets.storage.tables import WHOLE, TableStore

# Raise an asset's number when a change to its code changes its content.
_CODE = {
    "corpus_documents": 1,
    "chunk_embeddings": 3,
    "embedding_index": 3,
    "entropy_scores": 1,
    "candidate_contexts": 3,
    "verified_dependencies": 4,
    "long_context_samples": 1,
    "training_dataset": 1,
    "null_calibration": 2,
    "cross_model_audit": 2,
    "long_range_audit": 2,
}

_ALONE = {"model", "bos"}
_TOKENS = _ALONE | {"separator"}
_BUDGET = {"max_contexts_per_root", "max_forward_tokens_per_root", "screen"}


def _corpus(s: Settings) -> dict[str, Any]:
    # A new source makes no old shard stale; the shard's own source counts when it is made.
    return {
        "corpus": s.corpus.model_dump(
            mode="json", exclude={"sources", "on_bad_row", "max_bad_share"}
        ),
        "tokenizer": s.scoring.model,
        "seed": s.seed,
    }


def _scoring(s: Settings, tokens: set[str]) -> dict[str, Any]:
    return s.scoring.model_dump(mode="json", include=tokens | {"dtype", "max_forward_tokens"})


def _samples(s: Settings) -> dict[str, Any]:
    # Without a recipe as before there were any: old samples stay current.
    unused = set() if s.samples.recipe == "nextlong" else {"meta_chunk_tokens"}
    return s.samples.model_dump(mode="json", exclude=unused, exclude_none=True)


_SETTINGS: Mapping[str, Callable[[Settings], dict[str, Any]]] = {
    "corpus_documents": _corpus,
    "chunk_embeddings": lambda s: {
        "embedding": s.embedding.model_dump(include={"model", "chunk_tokens", "min_chunk_chars"})
    },
    "embedding_index": lambda s: {
        "embedding": s.embedding.model_dump(
            include={"model", "search", "index", "ann_min_rows", "target_recall", "recall_queries"}
        ),
        "top_k": s.retrieval.top_k,
        "seed": s.seed,  # chooses the queries by which the probes are steered
    },
    "entropy_scores": lambda s: {
        "scoring": _scoring(s, _ALONE),
        "entropy": s.entropy.model_dump(mode="json"),
    },
    "candidate_contexts": lambda s: {
        "retrieval": s.retrieval.model_dump(mode="json"),
        "embedding": s.embedding.model,
        "tokenizer": s.scoring.model,
    },
    "verified_dependencies": lambda s: {
        "scoring": _scoring(s, _TOKENS | _BUDGET),
        "verification": s.verification.model_dump(mode="json", exclude={"max_false_acceptance"}),
        "guard": s.retrieval.model_dump(include={"leak_ngram_words", "max_containment"}),
        "seed": s.seed,
    },
    "long_context_samples": lambda s: {
        "samples": _samples(s),
        "rule": s.verification.rule,
        "scoring": s.scoring.model_dump(include=_TOKENS),
        "seed": s.seed,
    },
    "null_calibration": lambda s: {
        "audit": s.audit.model_dump(include={"roots", "controls", "wished_false_acceptance"}),
        "verification": s.verification.model_dump(mode="json"),
        "top_k": s.retrieval.top_k,
        "seed": s.seed,
    },
    "cross_model_audit": lambda s: {
        "audit": s.audit.model_dump(include={"roots", "pairs", "model"}),
        "epsilon": s.verification.epsilon,
        "separator": s.scoring.separator,
        "seed": s.seed,
    },
    "long_range_audit": lambda s: {
        "audit": s.audit.model_dump(
            mode="json",
            include={"roots", "recipes", "short_tokens", "segment_tokens", "segment_pairs"},
        ),
        "order": s.samples.order,
        "meta_chunk_tokens": s.samples.meta_chunk_tokens,
        "rule": s.verification.rule,
        "seed": s.seed,
    },
    "training_dataset": lambda s: {"export": s.export.model_dump(mode="json"), "seed": s.seed},
}


def relevant_settings(asset: str, settings: Settings) -> dict[str, Any]:
    """The settings that change this asset's content, and no others."""
    return _SETTINGS[asset](settings) if asset in _SETTINGS else {}


def code_version(asset: str, settings: Settings) -> str:
    """Changes when the asset's code or one of its settings does."""
    return fingerprint(_CODE.get(asset, 0), relevant_settings(asset, settings))


def determinants(
    asset: str, settings: Settings, inputs: Mapping[str, str], **more: Any
) -> dict[str, Any]:
    """All that determines a partition: `inputs` are upstream data versions by asset."""
    return {
        "code": _CODE.get(asset, 0),
        "settings": relevant_settings(asset, settings),
        "inputs": dict(sorted(inputs.items())),
        **more,
    }


UPSTREAM: Mapping[str, tuple[str, ...]] = {
    "corpus_documents": (),
    "chunk_embeddings": ("corpus_documents",),
    "entropy_scores": ("corpus_documents",),
    "candidate_contexts": ("entropy_scores", "embedding_index"),
    "verified_dependencies": ("candidate_contexts", "entropy_scores"),
    "long_context_samples": ("verified_dependencies", "entropy_scores"),
}
"""What each partitioned asset reads; `embedding_index` reads all shards of chunk_embeddings."""


def shard_basis(settings: Settings, store: TableStore, shard_key: str) -> dict[str, Any]:
    """What a shard is read from: its files as they are now, and its source's settings."""
    shard = current_shard(settings.corpus, load_plan(store), shard_key)
    return {
        "shard": shard.model_dump(mode="json", exclude={"position"}),
        "source": source_of(shard, settings.corpus).model_dump(mode="json"),
    }


def stays_current(asset: str, shard: str, settings: Settings, store: TableStore) -> bool:
    """Whether a partition is there and a rerun would have the same determinants."""
    manifest = store.manifest(asset, shard)
    if manifest is None:
        return False
    wanted = determinants(asset, settings, _inputs(asset, shard, store))
    if asset == "corpus_documents":
        wanted |= shard_basis(settings, store, shard)
    if "model" in manifest.determinants:
        wanted["model"] = model_identity(settings.scoring)
    if "embedder" in manifest.determinants:
        wanted["embedder"] = embedder_identity(settings.embedding)
    if "index" in manifest.determinants:
        wanted["index"] = _index_tag(asset, shard, store)
    # As JSON: tuples come back from the manifest as lists.
    wanted = json.loads(json.dumps(wanted))
    return all(manifest.determinants.get(name) == value for name, value in wanted.items())


def _index_tag(asset: str, shard: str, store: TableStore) -> str:
    """Version of the LanceDB table that the asset would search or draw controls from now.

    It changes where the content of `embedding_index` does not: with the probes of a search.
    """
    if asset == "candidate_contexts":
        index = store.manifest("embedding_index")
        return str(index.summary["tag"]) if index else ""
    candidates = store.manifest("candidate_contexts", shard)
    return str(candidates.summary["index"]) if candidates else ""


def _inputs(asset: str, shard: str, store: TableStore) -> dict[str, str]:
    """Data versions that the asset would read now."""
    if asset == "embedding_index":
        upstream = {
            s: store.manifest("chunk_embeddings", s) for s in store.shards("chunk_embeddings")
        }
    else:
        upstream = {
            a: store.manifest(a, WHOLE if a == "embedding_index" else shard)
            for a in UPSTREAM[asset]
        }
    return {name: m.data_version if m else "" for name, m in upstream.items()}
