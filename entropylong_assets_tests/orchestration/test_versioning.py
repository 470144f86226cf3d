"""A knob makes stale what it determines, and nothing else.

The table below is written by hand from the stages' meaning, not from the code: for each knob the
assets whose own content it enters. (What follows them goes stale through their data versions.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from entropylong_assets.orchestration.versioning import (
    UPSTREAM,
    code_version,
    determinants,
    stays_current,
)
from entropylong_assets.settings.model import Settings, make_settings
from entropylong_assets.storage.tables import TableStore

D, C, X, E = "corpus_documents", "chunk_embeddings", "embedding_index", "entropy_scores"
R, V, S = "candidate_contexts", "verified_dependencies", "long_context_samples"
ASSETS = {D, C, X, E, R, V, S}

KNOBS: dict[str, tuple[Any, set[str]]] = {
    "data_uri": ("elsewhere", set()),
    "seed": (1, {D, X, V, S}),
    "corpus.sources": ([{"name": "a", "uri": "b"}], set()),
    "corpus.shard_rows": (7, {D}),
    "corpus.on_bad_row": ("skip", set()),
    "corpus.max_bad_share": (0.5, set()),
    "corpus.min_chars": (201, {D}),
    "corpus.max_chars": (2001, {D}),
    "corpus.root_fraction": (0.5, {D}),
    "corpus.root_min_tokens": (255, {D}),
    "corpus.root_max_tokens": (4095, {D}),
    "embedding.model": ("m", {C, X, R}),
    "embedding.trust_remote_code": (True, set()),
    "embedding.chunk_tokens": (100, {C}),
    "embedding.min_chunk_chars": (65, {C}),
    "embedding.batch_size": (1, set()),
    "embedding.device": ("cpu", set()),
    "embedding.ann_min_rows": (256, {X}),
    "embedding.search": ("exact", {X}),
    "embedding.index": ("ivf_sq", {X}),
    "embedding.target_recall": (0.9, {X}),
    "embedding.recall_queries": (10, {X}),
    "scoring.model": ("m", {D, E, R, V, S}),
    "scoring.trust_remote_code": (True, set()),
    "scoring.device": ("cpu", set()),
    "scoring.dtype": ("bfloat16", {E, V}),
    "scoring.bos": ("never", {E, V, S}),
    "scoring.separator": ("\n", {V, S}),
    "scoring.max_forward_tokens": (4000, {E, V}),
    "scoring.pack_tokens": (512, set()),  # how fast, not what
    "scoring.max_contexts_per_root": (46, {V}),
    "scoring.max_forward_tokens_per_root": (100_000, {V}),
    "scoring.screen": ("bfloat16", {V}),
    "entropy.alpha": (1.5, {E}),
    "entropy.min_anchor_position": (0, {E}),
    "retrieval.half_window": (8, {R}),
    "retrieval.top_k": (4, {X, R}),
    "retrieval.leak_ngram_words": (5, {R, V}),
    "retrieval.max_containment": (0.5, {R, V}),
    "verification.rule": ("plain", {V, S}),
    "verification.epsilon": (0.2, {V}),
    "verification.controls": (3, {V}),
    "verification.require_surprisal_drop": (False, {V}),
    "verification.max_false_acceptance": (0.5, set()),
    "samples.tokens": (8192, {S}),
    "samples.order": ("sequence", {S}),
    "samples.layout": ("interleaved", {S}),
    "samples.fill": ("verified_only", {S}),
    "samples.recipe": ("random", {S}),
    "samples.meta_chunk_tokens": (128, set()),  # of recipe nextlong alone
}


def leaves(settings: BaseModel, prefix: str = "") -> set[str]:
    names = set()
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        inner = f"{prefix}{name}."
        names |= leaves(value, inner) if isinstance(value, BaseModel) else {prefix + name}
    return names


@pytest.mark.parametrize("knob", KNOBS)
def test_a_knob_changes_the_versions_of_what_it_determines(knob: str) -> None:
    value, stale = KNOBS[knob]
    group, _, name = knob.rpartition(".")
    changed = make_settings(overrides={group: {name: value}} if group else {name: value})
    before = make_settings()
    assert changed != before
    assert {a for a in ASSETS if code_version(a, before) != code_version(a, changed)} == stale


def test_the_table_names_every_knob() -> None:
    """A new setting must say here what it determines."""
    apart = ("export.", "audit.", "cluster.")
    there = {name for name in leaves(Settings()) if not name.startswith(apart)}
    assert there - {"profile"} == set(KNOBS)


def test_where_a_step_runs_changes_no_version() -> None:
    """Tables made on a laptop would else be stale on the cluster."""
    before = make_settings(overrides={"data_uri": "/data"})
    resources = {name: {"num_cpus": 3, "memory": "2GiB"} for name in ASSETS}
    cluster = {"engine": "ray", "address": "http://head:8265", "resources": resources}
    after = make_settings(overrides={"data_uri": "/data", "cluster": cluster})
    for asset in ASSETS:
        assert code_version(asset, before) == code_version(asset, after)


def test_no_two_assets_share_a_version() -> None:
    assert len({code_version(asset, make_settings()) for asset in ASSETS}) == len(ASSETS)


def test_another_index_over_the_same_shards_makes_what_searched_it_stale(tmp_path: Path) -> None:
    """Fewer probes leave the tables of the index as they are, and its tag is another."""
    settings, store = (
        make_settings(overrides={"data_uri": str(tmp_path)}),
        TableStore(str(tmp_path)),
    )

    def put(asset: str, shard: str, summary: dict[str, Any], **more: Any) -> None:
        inputs = {
            name: store.require(name, "all" if name == X else shard).data_version
            for name in UPSTREAM.get(asset, ())
        }
        basis = determinants(asset, settings, inputs, **more)
        with store.write(asset, shard, fingerprint="f", determinants=basis) as writer:
            writer.summary |= summary

    put(D, "s-0", {})
    put(E, "s-0", {})
    put(X, "all", {"tag": "index-1"})
    version = store.require(X).data_version
    put(R, "s-0", {"index": "index-1"}, index="index-1")
    put(V, "s-0", {}, index="index-1")
    assert stays_current(R, "s-0", settings, store)
    assert stays_current(V, "s-0", settings, store)
    put(X, "all", {"tag": "index-2"})
    assert store.require(X).data_version == version
    assert not stays_current(R, "s-0", settings, store)
    put(R, "s-0", {"index": "index-2"}, index="index-2")
    assert stays_current(R, "s-0", settings, store)
    assert not stays_current(V, "s-0", settings, store)
