"""The LanceDB table, a real one on disk, held against plain NumPy."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from entropylong_assets.project import make_project
from entropylong_assets.stages.embeddings.connection import chunk_schema
from entropylong_assets.stages.embeddings.index import (
    index_shards,
    measure_recall,
    sample_queries,
    steer,
    true_worst,
)
from entropylong_assets.stages.embeddings.index_size import searched_by_index
from entropylong_assets.stages.embeddings.removal import find_duplicates
from entropylong_assets.stages.embeddings.settings import EmbeddingSettings
from entropylong_assets.stages.embeddings.table import ChunkTable, load_table, open_table
from entropylong_assets.stages.embeddings.tables import (
    CHUNK_EMBEDDINGS,
    EMBEDDING_INDEX,
    EmbeddingIndexSummary,
)
from entropylong_assets.stages.embeddings.vector_table import (
    EXACT,
    Search,
    WritableVectorTable,
    search_of,
)
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.tables import WHOLE, TableStore

E = 8
EMBEDDER = "test-embedder@1"


def unit_vectors(n: int, seed: int, dimension: int = E) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(n, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def batch(
    shard: str,
    docs: list[str],
    vectors_NE: NDArray[np.float32],
    mark: str = "",
    chunks_per_doc: int = 1,
) -> pa.RecordBatch:
    ids = [f"{doc}-{i:05d}" for doc in docs for i in range(chunks_per_doc)]
    n, dimension = vectors_NE.shape
    assert n == len(ids)
    rows = {
        "chunk_id": ids,
        "doc_id": [i.rpartition("-")[0] for i in ids],
        "shard": [shard] * n,
        "source": ["s"] * n,
        "start": [0] * n,
        "end": [9] * n,
        "text": [f"{mark}{i}" for i in ids],
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors_NE.reshape(-1)), dimension),
    }
    schema = chunk_schema(dimension, EMBEDDER)
    return pa.table(rows, schema=schema).combine_chunks().to_batches()[0]


def docs_of(shard: str, n: int) -> list[str]:
    return [f"{shard}{i}" for i in range(n)]


def store_in(folder: Path) -> TableStore:
    return TableStore(str(folder))


def new_table(folder: Path, dimension: int = E) -> ChunkTable:
    return ChunkTable(store_in(folder).corpus_uri, dimension, EMBEDDER)


def filled(folder: Path, sizes: dict[str, int], dimension: int = E) -> ChunkTable:
    table = new_table(folder, dimension)
    for number, (shard, n) in enumerate(sizes.items()):
        rows = batch(shard, docs_of(shard, n), unit_vectors(n, number, dimension))
        table.replace_shard(shard, [rows])
    return table


def everything(table: ChunkTable) -> dict[str, tuple[str, str]]:
    rows = pl.concat(list(table.scan(["chunk_id", "shard", "text"])))
    assert rows["chunk_id"].n_unique() == len(rows)
    return {c: (s, t) for c, s, t in rows.select("chunk_id", "shard", "text").iter_rows()}


def vectors_of(table: ChunkTable) -> tuple[list[str], NDArray[np.float32]]:
    rows = pl.concat(list(table.scan(["chunk_id", "vector"])))
    return rows["chunk_id"].to_list(), np.asarray(rows["vector"].to_list(), np.float32)


@pytest.mark.parametrize("n_queries", [1, 7])
def test_search_without_an_index_is_exact(tmp_path: Path, n_queries: int) -> None:
    table = filled(tmp_path, {"a": 60, "b": 40})
    ids, vectors = vectors_of(table)
    queries = unit_vectors(n_queries, 99)
    found = table.search(queries, 10)
    cosines = queries.astype(np.float64) @ vectors.astype(np.float64).T
    for query in range(n_queries):
        best = np.argsort(-cosines[query])[:10]
        rows = found.filter(pl.col("query") == query).sort("similarity", descending=True)
        assert rows["chunk_id"].to_list() == [ids[i] for i in best]
        np.testing.assert_allclose(rows["similarity"], cosines[query][best], atol=1e-6)


def test_a_search_leaves_out_shards_and_ends_with_the_table(tmp_path: Path) -> None:
    table = filled(tmp_path, {"a": 5, "it's": 3})
    queries = unit_vectors(2, 99)
    assert set(table.search(queries, 50, ["it's"])["shard"]) == {"a"}
    assert table.search(queries, 50)["query"].value_counts().sort("query")["count"].to_list() == [
        8,
        8,
    ]
    assert len(table.search(queries, 50, ["a", "it's"])) == 0


def test_a_shard_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    table = filled(tmp_path, {"a": 6, "b": 5})
    before = everything(table)
    new = batch("a", ["a1", "a2", "x9"], unit_vectors(3, 50), mark="new ")
    table.replace_shard("a", [new])
    others = {c: row for c, row in before.items() if row[0] == "b"}
    assert len(others) == 5
    wanted = {f"{d}-00000": ("a", f"new {d}-00000") for d in ("a1", "a2", "x9")}
    assert everything(table) == others | wanted
    assert table.rows_by_shard() == {"a": 3, "b": 5}
    table.replace_shard("a", [])
    assert everything(table) == others


def test_a_shard_without_chunks_is_an_empty_shard(tmp_path: Path) -> None:
    table = new_table(tmp_path)
    table.replace_shard("a", [])
    assert table.rows_by_shard() == {}
    assert len(table.search(unit_vectors(1, 0), 5)) == 0


def test_copies_in_two_shards_are_rows_of_their_own(tmp_path: Path) -> None:
    table = new_table(tmp_path)
    for shard in ("b", "a"):
        table.replace_shard(shard, [batch(shard, ["d"], unit_vectors(1, 3), mark=f"{shard} ")])
    assert table.rows_by_shard() == {"a": 1, "b": 1}
    assert table.fetch(["d-00000"], ["chunk_id", "text"])["text"].to_list() == ["a d-00000"]
    table.replace_shard("b", [batch("b", ["d"], unit_vectors(1, 3), mark="again ")])
    assert table.rows_by_shard() == {"a": 1, "b": 1}
    table.delete_documents("a", ["d"])
    assert table.fetch(["d-00000"], ["chunk_id", "text"])["text"].to_list() == ["again d-00000"]


def test_an_error_while_rows_come_leaves_the_old_shard(tmp_path: Path) -> None:
    table = filled(tmp_path, {"a": 6})
    before = everything(table)

    def rows() -> Any:
        yield batch("a", ["n1"], unit_vectors(1, 1))
        raise RuntimeError("the embedder broke")

    with pytest.raises(RuntimeError, match=r"\Athe embedder broke\Z"):
        table.replace_shard("a", rows())
    assert everything(open_table(store_in(tmp_path))) == before


def _ingest(folder: Path, shard: str, n: int) -> None:
    for _ in range(3):
        table = new_table(folder)
        table.replace_shard(shard, [batch(shard, docs_of(shard, n), unit_vectors(n, 1))])


def test_processes_that_write_different_shards_lose_nothing(tmp_path: Path) -> None:
    new_table(tmp_path)
    processes = multiprocessing.get_context("spawn")
    sizes = {"a": 200, "b": 300}
    writers = [processes.Process(target=_ingest, args=(tmp_path, s, n))
               for s, n in sizes.items()]  # fmt: skip
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(300)
        assert writer.exitcode == 0
    table = open_table(store_in(tmp_path))
    assert table.rows_by_shard() == sizes
    assert len(everything(table)) == 500


def _ingest_at_once(folder: Path, shard: str, n: int, go: Any) -> None:
    table = new_table(folder)
    go.wait(60)
    table.replace_shard(shard, [batch(shard, docs_of(shard, n), unit_vectors(n, 1))])


def test_processes_that_write_one_shard_at_once_write_it_once(tmp_path: Path) -> None:
    """Each finds it empty and adds it: every chunk would be there twice."""
    new_table(tmp_path)
    processes = multiprocessing.get_context("spawn")
    go = processes.Barrier(3)
    writers = [
        processes.Process(target=_ingest_at_once, args=(tmp_path, shard, 200, go))
        for shard in ("a", "a", "b")
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(300)
        assert writer.exitcode == 0
    assert open_table(store_in(tmp_path)).rows_by_shard() == {"a": 200, "b": 200}


def test_a_shard_that_another_writes_while_rows_come_holds_the_later_rows(tmp_path: Path) -> None:
    rows = batch("a", docs_of("a", 6), unit_vectors(6, 1))
    table, other = (new_table(tmp_path) for _ in range(2))

    def while_the_other_writes() -> Any:
        other.replace_shard("a", [batch("a", docs_of("b", 9), unit_vectors(9, 1))])
        yield rows

    table.replace_shard("a", while_the_other_writes())
    assert everything(table).keys() == set(rows["chunk_id"].to_pylist())


def test_a_tagged_version_stays_as_it_was_while_a_writer_goes_on(tmp_path: Path) -> None:
    table = filled(tmp_path, {"a": 20})
    table.tag("index-1")
    reader = open_table(store_in(tmp_path), "index-1")
    before, queries = everything(reader), unit_vectors(3, 7)
    found = reader.search(queries, 5)
    table.replace_shard("a", [batch("a", docs_of("n", 4), unit_vectors(4, 8))])
    table.replace_shard("b", [batch("b", docs_of("b", 9), unit_vectors(9, 9))])
    table.optimize()
    assert everything(reader) == before == everything(open_table(store_in(tmp_path), "index-1"))
    assert reader.search(queries, 5).equals(found)
    assert open_table(store_in(tmp_path)).rows_by_shard() == {"a": 4, "b": 9}
    table.tag("index-1")
    assert open_table(store_in(tmp_path), "index-1").rows_by_shard() == {"a": 4, "b": 9}


def test_an_unknown_tag_and_a_missing_table_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"it does not exist; materialize chunk_embeddings$"):
        open_table(store_in(tmp_path / "none"))
    table = filled(tmp_path, {"a": 1})
    with pytest.raises(TableError, match=r"no version is tagged index-9; materialize"):
        table.checkout("index-9")


@pytest.mark.parametrize(("dimension", "embedder"), [(E + 1, EMBEDDER), (E, "other@2")])
def test_another_embedder_is_refused_in_one_line(
    tmp_path: Path, dimension: int, embedder: str
) -> None:
    filled(tmp_path, {"a": 3})
    store, other = store_in(tmp_path), SimpleNamespace(dimension=dimension, identity=embedder)
    for open_it in (
        lambda: ChunkTable(store.corpus_uri, dimension, embedder),
        lambda: load_table(store, other),  # type: ignore[arg-type]
    ):
        with pytest.raises(TableError) as caught:
            open_it()
        message = str(caught.value)
        assert f"{E}-dimensional vectors of {EMBEDDER}" in message
        assert f"{dimension}-dimensional vectors of {embedder}" in message
        assert "embedding.model" in message
        assert "\n" not in message
    assert open_table(store_in(tmp_path)).rows_by_shard() == {"a": 3}


# The index


class World:
    """Shards in the table and in the store, as chunk_embeddings leaves them."""

    def __init__(self, folder: Path, **embedding: Any) -> None:
        values = {"data_uri": str(folder), "embedding": {"recall_k": 5, **embedding}}
        self.settings = make_project(values).corpus
        self.store = store_in(folder)
        self.table: WritableVectorTable = new_table(folder)

    def embed(self, shard: str, docs: list[str], seed: int, chunks_per_doc: int = 1) -> None:
        vectors = unit_vectors(len(docs) * chunks_per_doc, seed)
        rows = batch(shard, docs, vectors, chunks_per_doc=chunks_per_doc)
        self.table.replace_shard(shard, [rows])
        with self.store.write(CHUNK_EMBEDDINGS, shard, fingerprint="f") as writer:
            frame = pl.from_arrow(rows).with_columns(  # type: ignore[union-attr]
                chunk_number=pl.lit(0), n_embedder_tokens=pl.lit(3)
            )
            writer.append("chunks", frame)

    def index(self, positions: dict[str, int]) -> EmbeddingIndexSummary:
        versions = {s: self.store.require(CHUNK_EMBEDDINGS, s).data_version for s in positions}
        with self.store.write(EMBEDDING_INDEX, WHOLE, fingerprint="f") as writer:
            summary = index_shards(
                self.store, self.settings, self.table, positions, versions, "t", writer
            )
            writer.summary = summary.model_dump(mode="json")
        return self.store.summary(EMBEDDING_INDEX)


@pytest.mark.parametrize("ingest", [("a", "b", "c"), ("c", "a", "b")])
def test_the_owner_of_a_copy_goes_by_the_plan_whatever_was_ingested_first(
    tmp_path: Path, ingest: tuple[str, ...]
) -> None:
    docs = {"a": ["d1", "d2"], "b": ["d2", "d3", "d4"], "c": ["d4", "d1", "d5"]}
    positions = {"b": 0, "a": 1, "c": 2}
    world = World(tmp_path)
    for shard in ingest:
        world.embed(shard, docs[shard], seed=ord(shard), chunks_per_doc=2)
    duplicates = find_duplicates(world.store, positions)
    assert duplicates.to_dicts() == [
        {"doc_id": "d1", "shard": "c", "owner": "a", "n_chunks": 2},
        {"doc_id": "d2", "shard": "a", "owner": "b", "n_chunks": 2},
        {"doc_id": "d4", "shard": "c", "owner": "b", "n_chunks": 2},
    ]
    summary = world.index(positions)
    assert (summary.n_rows, summary.duplicate_documents) == (10, 3)
    assert (summary.search, summary.recall_queries) == ("exact", 0)
    assert summary.recall == 1.0
    assert open_table(store_in(tmp_path), "t").rows_by_shard() == {"a": 2, "b": 6, "c": 2}
    again = world.index(positions)
    assert again.model_copy(update={"table_version": summary.table_version}) == summary


def test_shards_outside_the_plan_are_named_and_lost_rows_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.embed("a", ["d1", "d2"], 1)
    world.embed("old", ["d1"], 2)
    summary = world.index({"a": 0})
    assert summary.excluded_shards == ["old"]
    assert summary.n_rows == 2
    world.table.replace_shard("a", [batch("a", ["d1"], unit_vectors(1, 1))])
    with pytest.raises(TableError, match=r"1 rows of shard a, but 2 were written; materialize"):
        world.index({"a": 0})


def test_an_empty_corpus_has_an_empty_index(tmp_path: Path) -> None:
    world = World(tmp_path)
    summary = world.index({})
    assert (summary.n_rows, summary.n_shards, summary.recall) == (0, 0, 1.0)


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_sq", "ivf_rq"])
def test_a_large_table_gets_an_index_that_reaches_its_recall(tmp_path: Path, kind: str) -> None:
    """2,000 random vectors, the hardest case for an inverted file: no clusters to find."""
    world = World(tmp_path, ann_min_rows=1000, target_recall=0.9, recall_queries=40, index=kind)
    world.embed("a", docs_of("a", 1200), 1)
    world.embed("b", docs_of("b", 800), 2)
    summary = world.index({"a": 0, "b": 1})
    how = search_of(summary)
    assert how.search == kind
    assert (how.refine_factor is not None) == (kind == "ivf_rq")
    table = open_table(store_in(tmp_path), "t")
    assert table.has_index()
    # Measured once more, by brute force in float64 over other queries.
    ids, vectors = vectors_of(table)
    queries = unit_vectors(60, 1234)
    cosines = queries.astype(np.float64) @ vectors.astype(np.float64).T
    found = table.search(queries, 5, how=how)
    hits = sum(
        len(
            {ids[i] for i in np.argsort(-cosines[q])[:5]}
            & set(found.filter(pl.col("query") == q)["chunk_id"])
        )
        for q in range(60)
    )
    assert hits / 300 >= 0.8
    # Whatever the index keeps of a vector, the similarity is the whole one's.
    at = {chunk_id: i for i, chunk_id in enumerate(ids)}
    for query, chunk_id, similarity in found.select("query", "chunk_id", "similarity").iter_rows():
        assert similarity == pytest.approx(cosines[query][at[chunk_id]], abs=1e-6)
    few = table.search(queries, 5, how=how._replace(nprobes=1))
    assert not few.equals(found), "one probe already finds all: the case tests nothing"
    assert table.search(queries, 5).height == 300
    assert summary.recall >= 0.9
    asked, chosen = sample_queries(table, 40, world.settings.seed)
    assert summary.recall == pytest.approx(recall_of_others(table, asked, chosen, 5, how))
    worst = true_worst(table, chosen, 6, "cpu")

    def measured(search: Search) -> float:
        return measure_recall(table, chosen, 5, search, worst, asked)

    assert measured(how) == pytest.approx(summary.recall)
    assert measured(how._replace(nprobes=1)) < summary.recall
    assert measured(EXACT) == 1.0


def recall_of_others(
    table: ChunkTable, asked: list[str], chosen: NDArray[np.float32], k: int, how: Search
) -> float:
    """By brute force in float64: of each row's k nearest other rows, the share that is found."""
    ids, vectors = vectors_of(table)
    cosines = chosen.astype(np.float64) @ vectors.astype(np.float64).T
    found = table.search(chosen, k + 1, how=how)
    hits = 0
    for query, own in enumerate(asked):
        cosines[query, ids.index(own)] = -1
        nearest = {ids[i] for i in np.argsort(-cosines[query])[:k]}
        given = found.filter(pl.col("query") == query, pl.col("chunk_id") != own)
        hits += len(nearest & set(given["chunk_id"]))
    return hits / (len(asked) * k)


def test_a_query_that_finds_itself_adds_nothing_to_the_recall() -> None:
    """Queries are rows of the table, each at distance 0 from itself: counted as a hit, 0.95 of
    eight was 0.943 of the seven others, and an index that found nothing had a recall of 1/8."""
    k, vectors, worst = 4, unit_vectors(3, 1), np.asarray([0.5, 0.5, 0.5], np.float32)

    def recall(*similarities: list[tuple[str, float]]) -> float:
        rows = [(q, c, s) for q, row in enumerate(similarities) for c, s in row]
        schema = {"query": pl.Int64, "chunk_id": pl.String, "similarity": pl.Float32}
        found = pl.DataFrame(rows, schema=schema, orient="row")

        def search(_: Any, limit: int, how: Search) -> pl.DataFrame:
            assert (limit, how) == (k + 1, Search("ivf_flat", 1))
            return found

        table: Any = SimpleNamespace(search=search)
        return measure_recall(table, vectors, k, Search("ivf_flat", 1), worst, ["a", "b", "c"])

    own = [[("a", 1.0)], [("b", 1.0)], [("c", 1.0)]]
    others = [(f"x{i}", 0.5 + i / 10) for i in range(5)]
    far = [("y", 0.4)]
    assert recall(*own) == 0.0
    assert recall([], own[1], own[2] + far) == 0.0
    assert recall(*(mine + others[:k] for mine in own)) == 1.0
    assert recall(own[0] + others[:3] + far, own[1] + others[:1], own[2]) == 4 / 12
    # Five as near as the fourth, where the query itself was not found: a recall is at most 1.
    assert recall(others, others, others) == 1.0


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_sq"])
def test_probes_and_refine_factor_are_raised_until_the_target_is_reached(kind: str) -> None:
    """Oracle: a recall that is a known function of both, and of the contribution of each."""

    def recall(search: Search) -> float:
        factor = search.refine_factor or (6 if kind == "ivf_flat" else 1)
        refined = min(1.0, 0.4 + 0.1 * factor)
        return refined * min(1.0, 0.25 * (search.nprobes or 0))

    search, reached = steer(recall, kind, 0.95, partitions=100)
    assert reached == 1.0
    assert search == (Search(kind, 4, None) if kind == "ivf_flat" else Search(kind, 4, 8))
    hopeless, best = steer(lambda how: 0.5 * recall(how), kind, 0.95, partitions=9)
    assert best == 0.5
    assert hopeless == (Search(kind, 9, None) if kind == "ivf_flat" else Search(kind, 9, 64))
    assert steer(lambda _: 1.0, kind, 0.95, 9)[0].nprobes == 1


def test_the_setting_says_when_a_table_gets_an_index() -> None:
    def by_index(search: str, n_rows: int) -> bool:
        embedding = {"search": search, "ann_min_rows": 1000}
        return searched_by_index(EmbeddingSettings.model_validate(embedding), n_rows)

    assert [by_index("auto", n) for n in (0, 999, 1000)] == [False, False, True]
    assert [by_index("exact", n) for n in (0, 999, 10**9)] == [False] * 3
    assert [by_index("index", n) for n in (0, 255, 256)] == [False, False, True]


def test_rows_are_found_by_id_whether_they_came_before_the_lookup_index_or_after(
    tmp_path: Path,
) -> None:
    table = filled(tmp_path, {"a": 30, "b": 20})
    wanted = ["a3-00000", "b7-00000"]
    before = table.fetch(wanted, ["chunk_id", "text"])
    table.index_for_lookup()
    assert table.indexed_columns() == {"chunk_id", "shard"}
    assert table.fetch(wanted, ["chunk_id", "text"]).equals(before)
    table.replace_shard("c", [batch("c", ["c0"], unit_vectors(1, 5))])
    table.replace_shard("a", [batch("a", ["a3"], unit_vectors(1, 6), mark="new ")])
    for _ in range(2):
        found = table.fetch([*wanted, "c0-00000", "a4-00000"], ["chunk_id", "text"])
        assert found["text"].to_list() == ["new a3-00000", "b7-00000", "c0-00000"]
        assert table.rows_by_shard() == {"a": 1, "b": 20, "c": 1}
        table.optimize()


def test_queries_for_recall_are_chosen_by_hash_and_not_by_place(tmp_path: Path) -> None:
    one, other = filled(tmp_path / "1", {"a": 30, "b": 30}), filled(tmp_path / "2", {"a": 30})
    other.replace_shard("b", [batch("b", docs_of("b", 30)[::-1], unit_vectors(30, 1)[::-1])])
    chosen = sample_queries(one, 9, seed=4)[0]
    assert len(set(chosen)) == 9
    assert chosen == sample_queries(other, 9, seed=4)[0]
    assert chosen != sample_queries(one, 9, seed=5)[0]
    assert len(sample_queries(one, 500, seed=4)[0]) == 60
