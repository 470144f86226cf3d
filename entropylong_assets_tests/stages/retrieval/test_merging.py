"""Candidates of both searches: once each, ranked by their true cosines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from entropylong_assets.stages.retrieval import merging
from entropylong_assets.stages.retrieval.merging import (
    CANDIDATES,
    add_similarity,
    merge_candidates,
)
from entropylong_assets_tests.stages.embeddings.test_table import filled, unit_vectors

FOUND = {"query": pl.Int64, "chunk_id": pl.String, "doc_id": pl.String, "similarity": pl.Float32}


def found(*rows: tuple[int, str, float]) -> pl.DataFrame:
    full = [(query, chunk, chunk[0], similarity) for query, chunk, similarity in rows]
    return pl.DataFrame(full, schema=FOUND, orient="row")


def test_merge_candidates_gives_each_chunk_once_by_similarity() -> None:
    by_vector = found((0, "a-1", 0.9), (0, "b-1", 0.5), (1, "a-1", 0.75))
    by_text = found((0, "d-1", 0.5), (0, "b-1", 0.5), (0, "c-1", -0.25), (2, "a-1", 0.1))
    merged = merge_candidates(by_vector, by_text)
    assert merged.schema == CANDIDATES
    assert merged.select("query", "rank", "chunk_id", "doc_id", "found_by").rows() == [
        (0, 1, "a-1", "a", "vector"),
        (0, 2, "b-1", "b", "both"),
        (0, 3, "d-1", "d", "text"),
        (0, 4, "c-1", "c", "text"),
        (1, 1, "a-1", "a", "vector"),
        (2, 1, "a-1", "a", "text"),
    ]
    assert merged["similarity"].to_list() == pytest.approx([0.9, 0.5, 0.5, -0.25, 0.75, 0.1])


def test_merge_candidates_of_one_search_keeps_its_ranks() -> None:
    by_vector = found((0, "b-1", 0.5), (0, "c-1", 0.5), (0, "a-1", 0.25))
    merged = merge_candidates(by_vector, found())
    assert merged["chunk_id"].to_list() == ["b-1", "c-1", "a-1"]
    assert merged["rank"].to_list() == [1, 2, 3]
    assert set(merged["found_by"]) == {"vector"}
    assert merge_candidates(found(), found()).schema == CANDIDATES


def test_add_similarity_is_the_cosine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "_PAIRS_AT_ONCE", 7)
    table = filled(tmp_path, {"a": 20})
    stored = {
        c: np.array(v, np.float64)
        for batch in table.scan(["chunk_id", "vector"])
        for c, v in batch.select("chunk_id", "vector").iter_rows()
    }
    vectors_QE = 3 * unit_vectors(4, 9)
    vectors_QE[2] = 0
    pairs = [(q, chunk) for q in (3, 0, 2, 1) for chunk in sorted(stored)[q : 15 + q : 2]]
    frame = pl.DataFrame(pairs, schema={"query": pl.Int64, "chunk_id": pl.String}, orient="row")
    measured = add_similarity(frame, vectors_QE, table)
    assert measured.select("query", "chunk_id").rows() == pairs
    expected = [float(vectors_QE[q].astype(np.float64) @ stored[c]) / 3 for q, c in pairs]
    assert measured["similarity"].to_list() == pytest.approx(expected, abs=1e-6)
    assert add_similarity(frame.clear(), vectors_QE, table)["similarity"].dtype == pl.Float32
