"""All anchors of many roots go into one search; what is written does not depend on how many."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from entropylong_assets.settings.model import ScoringModelSettings, make_settings
from entropylong_assets.stages.embeddings.table import ChunkTable
from entropylong_assets.stages.entropy.model import Tokenizer, load_tokenizer
from entropylong_assets.stages.retrieval import candidates as module
from entropylong_assets.stages.retrieval.candidates import find_candidates, gathered
from entropylong_assets.storage.schemas import TABLES
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.stages.embeddings.test_table import filled
from entropylong_assets_tests.tiny_world import document

SETTINGS = make_settings(overrides={"retrieval": {"top_k": 3, "half_window": 4}})
FOREIGN = frozenset({"r07", "r20"})


@pytest.fixture(scope="module")
def tokenizer(tiny_models: tuple[str, str]) -> Tokenizer:
    return load_tokenizer(ScoringModelSettings(model=tiny_models[0]))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ChunkTable:
    return filled(tmp_path_factory.mktemp("table"), {"a": 60, "b": 40})


def roots(tokenizer: Tokenizer) -> pl.DataFrame:
    ids = tokenizer.encode([document(seed) for seed in range(30)])
    rows = [
        {"root_id": f"r{i:02d}", "token_ids": tokens, "anchors": list(range(9, 9 + 5 * (i % 4), 5))}
        for i, tokens in enumerate(ids)
    ]
    schema = {"token_ids": pl.List(pl.UInt32), "anchors": pl.List(pl.Int32)}
    return pl.DataFrame(rows, schema_overrides=schema)


def embed(texts: list[str]) -> NDArray[np.float32]:
    """A direction of its own for each text."""
    seeds = [int.from_bytes(hashlib.sha256(t.encode()).digest()[:4], "big") for t in texts]
    vectors = np.array([np.random.default_rng(seed).normal(size=8) for seed in seeds])
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_roots_are_gathered_until_there_are_anchors_enough() -> None:
    frame = pl.DataFrame(
        {"root_id": list("abcdefg"), "anchors": [[1], [], [1, 2], [3], [], [], [9]]}
    )
    for size in (1, 2, 7):
        parts = list(gathered(frame.iter_slices(size), 2))
        assert pl.concat(parts).equals(frame)
        assert all(part["anchors"].list.len().sum() >= 2 for part in parts[:-1])
    assert [len(part) for part in gathered(frame.iter_slices(1), 2)] == [3, 4]
    assert list(gathered(iter([]), 2)) == []


def test_few_searches_and_the_same_rows(
    tmp_path: Path, tokenizer: Tokenizer, table: ChunkTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, calls, fetched = roots(tokenizer), [0], [0]
    n_anchors = int(given["anchors"].list.len().sum())

    def search(vectors_QE: NDArray[np.float32], limit: int) -> pl.DataFrame:
        calls[0] += 1
        return table.search(vectors_QE, limit)

    def counted(fetch: Callable[..., pl.DataFrame]) -> Callable[..., pl.DataFrame]:
        def inner(ids: list[str], columns: list[str]) -> pl.DataFrame:
            fetched[0] = max(fetched[0], len(ids))
            return fetch(ids, columns)

        return inner

    watched: Any = SimpleNamespace(fetch=counted(table.fetch))
    embedder: Any = SimpleNamespace(embed=embed)

    def made(name: str, queries: int, together: int) -> tuple[dict[str, Any], dict[str, Any]]:
        monkeypatch.setattr(module, "ROOTS_A_BATCH", together)
        calls[0] = fetched[0] = 0
        store = TableStore(str(tmp_path / name))
        with store.write("candidate_contexts", "s", fingerprint="f") as writer:
            counts = find_candidates(
                gathered(given.iter_slices(together), queries),
                FOREIGN,
                tokenizer,
                embedder,
                watched,
                search,
                100,
                SETTINGS.retrieval,
                writer,
            )
        tables = TABLES["candidate_contexts"]
        return counts, {t: store.read("candidate_contexts", "s", t) for t in tables}

    counts, rows = made("all", 10**6, 16)
    assert calls[0] == 1, "one search for the whole shard"
    lost = int(given.filter(pl.col("root_id").is_in(list(FOREIGN)))["anchors"].list.len().sum())
    assert counts["anchors"] == n_anchors - lost == len(rows["queries"]) > 30
    assert counts["candidates"] == 3 * counts["anchors"]
    assert counts["dropped_owned_by_another_shard"] == lost > 0
    assert rows["dropped"]["root_id"].to_list() == sorted(FOREIGN)
    assert counts["chunks"] == rows["chunks"]["chunk_id"].n_unique() == len(rows["chunks"])
    for name, queries, together in (("few", 10, 4), ("one", 1, 1)):
        again, others = made(name, queries, together)
        assert again == counts
        assert calls[0] > 3
        assert fetched[0] <= 3 * 3 * max(together, 4)
        for table_name, frame in others.items():
            key = frame.columns[:3]
            assert frame.sort(key).equals(rows[table_name].sort(key)), table_name
