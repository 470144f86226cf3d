"""Exact search by blocks, held against a full sort in float64 and against LanceDB's own search."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path

import lancedb
import numpy as np
import polars as pl
import pytest
import torch

from entropylong_assets.stages.embeddings import exact
from entropylong_assets.stages.embeddings import table as table_module
from entropylong_assets.stages.embeddings.exact import (
    Block,
    cosines,
    device_of,
    devices_of,
    in_blocks,
    nearest,
)
from entropylong_assets.stages.embeddings.table import ChunkTable
from entropylong_assets.stages.retrieval.search import nominate
from entropylong_assets_tests.stages.embeddings.test_table import (
    batch,
    docs_of,
    filled,
    store_in,
    unit_vectors,
)


def blocks(vectors: np.ndarray, size: int) -> Iterator[Block]:
    for start in range(0, len(vectors), size):
        part = vectors[start : start + size]
        yield 1000 + np.arange(start, start + len(part)), part


@pytest.mark.parametrize("devices", [1, 2, 5])
@pytest.mark.parametrize("tile", [1, 300, 2**24])
@pytest.mark.parametrize(("size", "limit"), [(1, 3), (7, 10), (64, 10), (500, 200), (500, 1)])
def test_neighbours_are_those_of_a_full_sort(
    monkeypatch: pytest.MonkeyPatch, devices: int, tile: int, size: int, limit: int
) -> None:
    """Borders: a block smaller than what is wanted, tiles of one query, all in one block, devices
    without a block."""
    monkeypatch.setitem(exact._TILE, "cpu", tile)
    vectors, queries = unit_vectors(150, 1), unit_vectors(33, 2)
    rows, similarity = nearest(queries, blocks(vectors, size), limit, ["cpu"] * devices)
    kept = min(limit, 150)
    truth = queries.astype(np.float64) @ vectors.astype(np.float64).T
    wanted = np.argsort(-truth, axis=1)[:, :kept]
    assert rows.shape == similarity.shape == (33, kept)
    assert (rows == wanted + 1000).all()
    np.testing.assert_allclose(similarity, np.take_along_axis(truth, wanted, 1), atol=1e-6)


def test_nothing_to_search_and_nothing_asked() -> None:
    queries, vectors = unit_vectors(3, 1), unit_vectors(9, 2)
    assert nearest(queries, [], 5)[0].shape == (3, 0)
    assert nearest(queries[:0], blocks(vectors, 4), 5)[0].shape[0] == 0


def test_no_more_than_the_present_and_the_coming_block_are_alive() -> None:
    """A list of all blocks, or a matrix of all similarities, would be the whole table."""
    alive = most = 0

    def released() -> None:
        nonlocal alive
        alive -= 1

    def watched() -> Iterator[Block]:
        nonlocal alive, most
        for number in range(40):
            vectors = unit_vectors(50, number)
            weakref.finalize(vectors, released)
            alive += 1
            most = max(most, alive)
            yield np.arange(50) + 50 * number, vectors
            del vectors

    rows, _ = nearest(unit_vectors(4, 77), watched(), 5)
    assert rows.shape == (4, 5)
    assert most <= 3


def test_pieces_of_any_length_become_blocks_without_loss() -> None:
    vectors = unit_vectors(100, 1)
    pieces = [1, 0, 40, 3, 56]
    ends = np.cumsum(pieces)
    given = [
        (np.arange(end - n, end), vectors[end - n : end])
        for n, end in zip(pieces, ends, strict=True)
    ]
    made = list(in_blocks(iter(given), 41))
    assert [len(numbers) for numbers, _ in made] == [41, 41, 18]
    assert (np.concatenate([numbers for numbers, _ in made]) == np.arange(100)).all()
    assert (np.concatenate([found for _, found in made]) == vectors).all()


def test_a_cosine_is_the_same_to_the_last_bit_in_any_company() -> None:
    one, other = unit_vectors(1500, 1, 384), unit_vectors(1500, 2, 384)
    together = cosines(one, other)
    alone = [cosines(one[i : i + 1], other[i : i + 1])[0] for i in range(1500)]
    assert together.tolist() == alone
    assert together[:100].tolist() == cosines(one[:100].copy(), other[:100].copy()).tolist()
    truth = (one.astype(np.float64) * other).sum(1)
    np.testing.assert_allclose(together, truth, atol=1e-7)


def test_the_device_is_the_one_named() -> None:
    assert device_of("cpu") == "cpu"
    assert device_of("cuda:1") == "cuda:1"
    assert device_of("auto") in ("cpu", "cuda")
    assert devices_of("cuda:1") == ["cuda:1"]


def test_all_visible_gpus_search_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices_of("auto") == ["cuda:0", "cuda:1"]
    assert devices_of("cuda") == ["cuda"]
    assert devices_of("cpu") == ["cpu"]


def test_the_table_gives_what_lancedb_finds_without_an_index(tmp_path: Path) -> None:
    table = filled(tmp_path, {"a": 700, "b": 500, "c": 300}, dimension=32)
    queries = unit_vectors(50, 99, 32)
    theirs = lancedb.connect(f"{store_in(tmp_path).corpus_uri}/lancedb").open_table("chunks")
    query = theirs.search(queries, vector_column_name="vector").distance_type("cosine").limit(10)
    query = query.where("shard NOT IN ('b')", prefilter=True).bypass_vector_index()
    truth = pl.from_arrow(query.select(["chunk_id", "_distance"]).to_arrow())
    assert isinstance(truth, pl.DataFrame)
    found = table.search(queries, 10, ["b"])
    assert set(found["shard"]) == {"a", "c"}
    for number in range(50):
        mine = found.filter(pl.col("query") == number)
        wanted = truth.filter(pl.col("query_index") == number).sort("_distance")
        assert mine["chunk_id"].to_list() == wanted["chunk_id"].to_list()
        np.testing.assert_allclose(mine["similarity"], 1 - wanted["_distance"], atol=1e-6)


def test_equal_and_nearly_equal_vectors_are_ranked_alike_whatever_the_order_of_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rounding of a product depends on where in a block a row stands; no rank may."""
    base = unit_vectors(6, 3, 64)
    copies = np.repeat(base, 10, axis=0)
    copies[::2] += 1e-7  # apart by less than a product in float32 can tell
    copies /= np.linalg.norm(copies, axis=1, keepdims=True)
    shards = {f"s{i}": copies[i::3].astype(np.float32) for i in range(3)}
    queries = unit_vectors(20, 4, 64)
    results = []
    for order in (("s0", "s1", "s2"), ("s2", "s0", "s1")):
        table = ChunkTable(str(tmp_path / order[0]), 64, "test-embedder@1")
        for shard in order:
            table.replace_shard(shard, [batch(shard, docs_of(shard, 20), shards[shard])])
        results.append(nominate(table.search, queries, ["root"] * 20, 4, 60))
    monkeypatch.setattr(exact, "_BLOCK_ROWS", 7)
    monkeypatch.setattr(table_module, "devices_of", lambda _: ["cpu"] * 3)
    results.append(nominate(table.search, queries, ["root"] * 20, 4, 60))
    assert results[0].equals(results[1])
    assert results[0].equals(results[2]), "with three devices"
    assert results[0].height == 80
    assert results[0].group_by("query").agg(pl.col("similarity").n_unique())["similarity"].max() < 4
