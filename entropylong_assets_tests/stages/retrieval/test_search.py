"""Candidates are the K most similar chunks of other documents, ranked, with ties by id."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from entropylong_assets.stages.embeddings.vector_table import FOUND_BY_TEXT
from entropylong_assets.stages.retrieval.search import (
    COLUMNS,
    TEXT_COLUMNS,
    SearchTable,
    nominate,
    nominate_by_text,
)


class Brute:
    """Exact search over vectors in memory that records its calls; ties in the order of the rows."""

    def __init__(self, vectors_NE: NDArray[np.float32], docs: list[str], ids: list[str]) -> None:
        self.vectors_NE, self.docs, self.ids = vectors_NE, docs, ids
        self.limits: list[int] = []
        self.n_queries: list[int] = []

    def __call__(self, vectors_QE: NDArray[np.float32], limit: int) -> pl.DataFrame:
        self.limits.append(limit)
        self.n_queries.append(len(vectors_QE))
        parts = []
        for query, vector in enumerate(vectors_QE):
            similarity = self.vectors_NE @ vector
            best = np.argsort(-similarity, kind="stable")[:limit]
            parts.append(
                pl.DataFrame(
                    {
                        "query": [query] * len(best),
                        "chunk_id": [self.ids[i] for i in best],
                        "doc_id": [self.docs[i] for i in best],
                        "shard": ["s"] * len(best),
                        "similarity": similarity[best].astype(np.float32),
                    }
                )
            )
        return pl.concat(parts)


def expected(
    brute: Brute, query: NDArray[np.float32], root: str, k: int
) -> list[tuple[int, str, str, float]]:
    """All chunks sorted by (similarity, id), without the root's own."""
    similarity = brute.vectors_NE @ query
    rows = sorted(zip(-similarity, brute.ids, brute.docs, strict=True))
    rows = [row for row in rows if row[2] != root][:k]
    return [(n, c, d, float(-s)) for n, (s, c, d) in enumerate(rows, 1)]


def world(seed: int, n: int, n_docs: int, few_values: bool) -> Brute:
    """With few values many similarities are equal, also at the limit of a search."""
    draw = np.random.default_rng(seed)
    vectors = draw.integers(0, 2, (n, 3)) if few_values else draw.normal(size=(n, 3))
    numbers = draw.permutation(n)
    docs = [f"d{i % n_docs}" for i in numbers]
    return Brute(vectors.astype(np.float32), docs, [f"c{i:04d}" for i in numbers])


@pytest.mark.parametrize("few_values", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize(("n", "n_docs", "k"), [(400, 40, 4), (400, 3, 8), (12, 4, 5), (3, 3, 8)])
def test_nominate_equals_a_full_sort(n: int, n_docs: int, k: int, few_values: bool) -> None:
    brute = world(n + k, n, n_docs, few_values)
    draw = np.random.default_rng(1)
    queries = draw.integers(0, 2, (9, 3)) if few_values else draw.normal(size=(9, 3))
    queries = queries.astype(np.float32)
    roots = [f"d{i % (n_docs + 1)}" for i in range(9)]
    nominated = nominate(brute, queries, roots, k, n)
    assert nominated.schema == COLUMNS
    for query, root in enumerate(roots):
        rows = nominated.filter(pl.col("query") == query).drop("query").rows()
        assert rows == expected(brute, queries[query], root, k)
        assert len(rows) <= k
    assert len(nominated) > 0


def test_nominate_does_not_depend_on_the_order_of_rows() -> None:
    brute = world(3, 300, 30, few_values=True)
    back = Brute(brute.vectors_NE[::-1], brute.docs[::-1], brute.ids[::-1])
    queries = np.eye(3, dtype=np.float32)
    one, other = (nominate(b, queries, ["d1", "d2", "x"], 6, 300) for b in (brute, back))
    assert one.equals(other)
    assert max(brute.limits) > min(brute.limits), "no tie at the limit of a search"


def test_nominate_searches_deeper_for_a_root_of_many_chunks() -> None:
    """The nearest 500 chunks are the root's own."""
    n, own = 520, 500
    vectors = np.zeros((n, 3), np.float32)
    vectors[:own, 0], vectors[own:, 0] = 1, np.linspace(0.5, 0.1, n - own)
    brute = Brute(vectors, ["root"] * own + ["other"] * (n - own), [f"c{i:04d}" for i in range(n)])
    nominated = nominate(brute, np.eye(3, dtype=np.float32)[:1], ["root"], 4, n)
    assert nominated["chunk_id"].to_list() == [f"c{i:04d}" for i in range(own, own + 4)]
    assert nominated["rank"].to_list() == [1, 2, 3, 4]
    assert brute.limits[-1] == n


def test_nominate_limits_the_rows_per_search() -> None:
    """Anchors whose text occurs in thousands of documents have ties, so each is searched to the end
    of the table. All of them at once would take many GB."""
    brute = world(7, 400, 40, few_values=True)
    queries = np.random.default_rng(2).integers(0, 2, (60, 3)).astype(np.float32)
    queries[~queries.any(axis=1)] = 1e-30  # all rows are tied, within the rounding
    roots = [f"d{i % 41}" for i in range(60)]
    nominated = nominate(brute, queries, roots, 4, 400, max_rows=900)
    for query, root in enumerate(roots):
        rows = nominated.filter(pl.col("query") == query).drop("query").rows()
        assert rows == expected(brute, queries[query], root, 4)
    assert max(n * limit for n, limit in zip(brute.n_queries, brute.limits, strict=True)) <= 900
    assert brute.limits[-1] == 400
    assert brute.n_queries.count(2) > 3, "the deepest searches were not split"
    # If one query alone needs more than max_rows, queries are searched one at a time.
    alone = world(7, 400, 40, few_values=True)
    assert nominate(alone, queries, roots, 4, 400, max_rows=10).equals(nominated)
    assert set(alone.n_queries) == {1}


def test_nominate_leaves_out_queries_without_a_vector() -> None:
    brute = world(7, 50, 10, few_values=False)
    queries = np.eye(4, 3, dtype=np.float32)
    assert not queries[3].any()
    nominated = nominate(brute, queries[[3, 0, 3, 1]], ["r"] * 4, 2, 50)
    assert nominated["query"].to_list() == [1, 1, 3, 3]
    assert len(nominate(brute, queries[3:], ["r"], 2, 50)) == 0


def test_nominate_stops_if_a_search_returns_fewer_rows_than_the_limit() -> None:
    """An index returns rows of the probed partitions only, however many rows the table has."""
    n = 40
    vectors = np.zeros((n, 3), np.float32)
    vectors[:, 0] = np.linspace(1, 0.5, n)
    docs = ["root"] * (n - 3) + ["other"] * 3
    brute = Brute(vectors, docs, [f"c{i:02d}" for i in range(n)])

    def probed(vectors_QE: NDArray[np.float32], limit: int) -> pl.DataFrame:
        # The partitions probed for the third query are empty.
        return brute(vectors_QE, limit).filter(pl.lit(vectors_QE[:, 0]).gather("query") > 0)

    queries = np.asarray([[1, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    nominated = nominate(probed, queries, ["root", "other", "root"], 8, 10**9)
    assert nominated.filter(query=0)["chunk_id"].to_list() == ["c37", "c38", "c39"]
    assert nominated.filter(query=1)["chunk_id"].to_list() == [f"c{i:02d}" for i in range(8)]
    assert nominated.filter(query=2).is_empty()
    assert brute.limits == [24, 96]


def test_nominate_returns_all_others_if_there_are_fewer_than_k() -> None:
    brute = Brute(np.eye(3, dtype=np.float32), ["a", "a", "b"], ["c1", "c2", "c3"])
    queries = np.eye(3, dtype=np.float32)
    nominated = nominate(brute, queries, ["a", "b", "z"], 8, 3)
    assert nominated["query"].value_counts().sort("query").rows() == [(0, 1), (1, 2), (2, 3)]
    alone = Brute(np.eye(3, dtype=np.float32), ["a"] * 3, ["c1", "c2", "c3"])
    assert nominate(alone, queries, ["a"] * 3, 8, 3).rows() == []


@pytest.mark.parametrize("n_rows", [0, 5])
def test_nominate_returns_an_empty_frame_without_queries_or_rows(n_rows: int) -> None:
    def never(vectors_QE: NDArray[np.float32], limit: int) -> pl.DataFrame:
        raise AssertionError("nothing to search")

    search: SearchTable = never
    n_queries = 0 if n_rows else 2
    queries = np.zeros((n_queries, 3), np.float32)
    nominated = nominate(search, queries, ["r"] * n_queries, 4, n_rows)
    assert nominated.schema == COLUMNS
    assert nominated.is_empty()


@pytest.mark.parametrize("reverse", [False, True])
def test_nominate_by_text_equals_a_full_sort_whatever_the_order_of_rows(reverse: bool) -> None:
    """Many scores are equal, also at the limit of a search; most rows are the root's own."""
    draw = np.random.default_rng(5)
    documents = [f"d{0 if i < 60 else i % 9}" for i in range(200)]
    scored = {
        text: [(f"c{i:03d}", doc, float(draw.integers(1, 4))) for i, doc in enumerate(documents)]
        for text in ("one", "two")
    }
    scored["none"] = []
    limits: list[int] = []

    def search(texts: Sequence[str], limit: int) -> pl.DataFrame:
        limits.append(limit)
        rows = []
        for query, text in enumerate(texts):
            in_order = sorted(scored[text][:: -1 if reverse else 1], key=lambda row: -row[2])
            rows += [(query, c, d, "s", s) for c, d, s in in_order[:limit]]
        return pl.DataFrame(rows, schema=FOUND_BY_TEXT, orient="row")

    texts, roots = ["two", "none", "", "one"], ["d0", "d0", "d0", "d4"]
    nominated = nominate_by_text(search, texts, roots, 6, 200)
    assert nominated.schema == TEXT_COLUMNS
    for query in (0, 3):
        others = [row for row in scored[texts[query]] if row[1] != roots[query]]
        best = sorted(others, key=lambda row: (-row[2], row[0]))[:6]
        rows = nominated.filter(pl.col("query") == query)
        assert rows["rank"].to_list() == [1, 2, 3, 4, 5, 6]
        assert rows.select("chunk_id", "doc_id", "score").rows() == best
    assert set(nominated["query"]) == {0, 3}
    assert max(limits) > min(limits), "no tie at the limit of a search"
