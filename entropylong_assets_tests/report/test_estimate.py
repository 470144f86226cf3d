"""The estimate before a run: what it samples stands for all sources, not for the first."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from entropylong_assets.report import estimate as module
from entropylong_assets.settings.model import make_settings
from entropylong_assets.stages.corpus.shards import plan_shards

SHARDS, DOCUMENTS = 8, 64


def words(texts: Sequence[str]) -> list[list[int]]:
    return [[1] * len(text.split()) for text in texts]


def test_chunks_are_counted_over_all_sampled_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first shard's 64 documents alone were cut: a first source of short documents made 512
    chunks of these 4,096, and its length was that of every context."""
    lines = [1] + [9] * (SHARDS - 1)  # a line is a chunk
    for shard, n in enumerate(lines):
        line = " ".join([f"shard{shard}"] * 40)
        texts = [f"{line} document{i}\n" * n for i in range(DOCUMENTS)]
        file = tmp_path / f"{shard}.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = make_settings(
        overrides={
            "data_uri": str(tmp_path / "out"),
            "corpus": {
                "sources": [{"name": "s", "uri": f"{tmp_path}/*.jsonl"}],
                "min_chars": 10,
                "root_min_tokens": 10,
                "root_fraction": 1.0,
            },
            "embedding": {"min_chunk_chars": 10},
        }
    )
    embedded: list[str] = []
    scored: list[int] = []

    def embed(texts: list[str]) -> Any:
        embedded.extend(texts)
        return np.zeros((len(texts), 2), np.float32)

    def score_roots(roots: Any, *_: Any) -> list[dict[str, Any]]:
        scored.extend(len(ids) for _, ids in roots)
        return [{"anchors": [1]} for _ in roots]

    tokenizer = SimpleNamespace(
        encode=words, count=lambda texts: [len(ids) for ids in words(texts)], bos_ids=[]
    )
    embedder = SimpleNamespace(
        window_tokens=45, count_tokens=lambda texts: [len(t.split()) for t in texts], embed=embed
    )
    monkeypatch.setattr(
        module, "load_scoring_model", lambda _: SimpleNamespace(tokenizer=tokenizer)
    )
    monkeypatch.setattr(module, "load_embedder", lambda _: embedder)
    monkeypatch.setattr(module, "load_scorer", lambda _: None)
    monkeypatch.setattr(module, "score_roots", score_roots)
    plan = plan_shards(settings.corpus)
    assert [shard.n_rows for shard in plan.shards] == [DOCUMENTS] * SHARDS
    expected = module.estimate(settings, plan)
    assert expected.documents == expected.roots == SHARDS * DOCUMENTS
    assert expected.chunks == sum(DOCUMENTS * n for n in lines) == 4096
    assert len(embedded) == 64
    assert {text.split()[0] for text in embedded} == {f"shard{i}" for i in range(SHARDS)}
    assert len(scored) == 6
    assert len(set(scored)) == 2, "all roots are of shards that are alike"


@pytest.mark.parametrize(("n", "most"), [(0, 4), (3, 4), (4, 4), (7, 4), (100, 64), (512, 64)])
def test_a_sample_reaches_from_the_first_to_the_last(n: int, most: int) -> None:
    """With a whole step, 64 of 100 were the first 64."""
    sample = module.spread(list(range(n)), most)
    assert len(sample) == min(n, most)
    assert sample == sorted(set(sample))
    edges = [-1, *sample, n]
    gaps = [b - a for a, b in itertools.pairwise(edges)]
    assert max(gaps) <= max(1, -(-n // most))
