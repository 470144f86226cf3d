"""One search covers the anchors of many roots, which does not change the written tables."""

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

from entropylong_assets.stages.embeddings.embedder import load_embedder
from entropylong_assets.stages.embeddings.settings import EmbeddingSettings
from entropylong_assets.stages.embeddings.table import ChunkTable
from entropylong_assets.stages.embeddings.vector_table import FOUND
from entropylong_assets.stages.entropy.model import Tokenizer, load_tokenizer
from entropylong_assets.stages.entropy.settings import ScoringModelSettings
from entropylong_assets.stages.retrieval import candidates as module
from entropylong_assets.stages.retrieval.candidates import (
    Retriever,
    WrittenCandidates,
    find_candidates,
    gather_roots,
)
from entropylong_assets.stages.retrieval.queries import anchor_query
from entropylong_assets.stages.retrieval.settings import RetrievalSettings
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.stages.embeddings.test_table import filled
from entropylong_assets_tests.stages.embeddings.tiny_embedders import write_prompted
from entropylong_assets_tests.tiny_world import document

SETTINGS = RetrievalSettings(top_k=3, half_window=4)
FOREIGN = {"r07": "owned_by_another_shard", "r20": "near_duplicate_of_document"}
PHRASES = pl.DataFrame(
    {"phrase": ["river stone", "no such phrase"], "documents": [7, 9]},
    schema_overrides={"documents": pl.Int32},
)


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
    """Embed each text as a different direction."""
    seeds = [int.from_bytes(hashlib.sha256(t.encode()).digest()[:4], "big") for t in texts]
    vectors = np.array([np.random.default_rng(seed).normal(size=8) for seed in seeds])
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_gather_roots_gives_frames_of_enough_anchors() -> None:
    frame = pl.DataFrame(
        {"root_id": list("abcdefg"), "anchors": [[1], [], [1, 2], [3], [], [], [9]]}
    )
    for size in (1, 2, 7):
        parts = list(gather_roots(frame.iter_slices(size), 2))
        assert pl.concat(parts).equals(frame)
        assert all(part["anchors"].list.len().sum() >= 2 for part in parts[:-1])
    assert [len(part) for part in gather_roots(frame.iter_slices(1), 2)] == [3, 4]
    assert list(gather_roots(iter([]), 2)) == []


def test_find_candidates_writes_the_same_rows_in_fewer_searches(
    tmp_path: Path, tokenizer: Tokenizer, table: ChunkTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, calls, fetched = roots(tokenizer), [0], [0]
    n_anchors = int(given["anchors"].list.len().sum())

    def search(vectors_QE: NDArray[np.float32], limit: int) -> pl.DataFrame:
        calls[0] += 1
        return table.search(vectors_QE, limit)

    def counting(fetch: Callable[..., pl.DataFrame]) -> Callable[..., pl.DataFrame]:
        def inner(ids: list[str], columns: list[str]) -> pl.DataFrame:
            fetched[0] = max(fetched[0], len(ids))
            return fetch(ids, columns)

        return inner

    watched: Any = SimpleNamespace(fetch=counting(table.fetch))
    embedder: Any = SimpleNamespace(
        embed_queries=embed, fits_window=lambda texts: [True] * len(texts)
    )
    retriever = Retriever(tokenizer, embedder, watched, search, 100, PHRASES, SETTINGS)

    def run(
        name: str, min_anchors: int, per_batch: int
    ) -> tuple[WrittenCandidates, dict[str, pl.DataFrame]]:
        monkeypatch.setattr(module, "ROOTS_PER_BATCH", per_batch)
        calls[0] = fetched[0] = 0
        store = TableStore(str(tmp_path / name))
        with store.write(CANDIDATE_CONTEXTS, "s", fingerprint="f") as writer:
            batches = gather_roots(given.iter_slices(per_batch), min_anchors)
            written = find_candidates(batches, FOREIGN, retriever, writer)
        tables = CANDIDATE_CONTEXTS.schemas
        return written, {t: store.read(CANDIDATE_CONTEXTS, "s", t) for t in tables}

    written, rows = run("all", 10**6, 16)
    assert calls[0] == 1, "one search for the whole shard"
    dropped = int(given.filter(pl.col("root_id").is_in(list(FOREIGN)))["anchors"].list.len().sum())
    assert written.roots == 30 - len(FOREIGN)
    assert written.anchors == n_anchors - dropped == len(rows["queries"]) > 30
    assert written.candidates == len(rows["candidates"]) == 3 * written.anchors
    assert set(written.dropped) == set(FOREIGN.values())
    assert sum(written.dropped.values()) == dropped > 0
    assert dict(rows["dropped"].select("root_id", "reason").iter_rows()) == FOREIGN
    assert rows["dropped"]["root_id"].to_list() == sorted(FOREIGN)
    assert written.chunks == rows["chunks"]["chunk_id"].n_unique() == len(rows["chunks"])
    word_of = {
        (root_id, anchor): word
        for root_id, anchor, word in rows["queries"].select("root_id", "anchor", "word").iter_rows()
    }
    text_of = dict(rows["chunks"].select("chunk_id", "text").iter_rows())
    found = [
        (has_word, word_of[root_id, anchor] in text_of[chunk_id].lower().split())
        for root_id, anchor, chunk_id, has_word in rows["candidates"]
        .select("root_id", "anchor", "chunk_id", "has_word")
        .iter_rows()
        if word_of[root_id, anchor] is not None
    ]
    assert all(has_word == expected for has_word, expected in found)
    for name, min_anchors, per_batch in (("few", 10, 4), ("one", 1, 1)):
        again, others = run(name, min_anchors, per_batch)
        assert again.dropped == written.dropped
        assert (again.roots, again.anchors, again.candidates, again.chunks) == (
            written.roots,
            written.anchors,
            written.candidates,
            written.chunks,
        )
        assert calls[0] > 3
        assert fetched[0] <= 3 * 3 * max(per_batch, 4)
        for table_name, frame in others.items():
            key = frame.columns[:3]
            assert frame.sort(key).equals(rows[table_name].sort(key)), table_name


def test_word_of_an_anchor_is_looked_up_in_its_chunks(tokenizer: Tokenizer) -> None:
    unused: Any = None
    retriever = Retriever(tokenizer, unused, unused, unused, 0, PHRASES, SETTINGS)
    pairs = [("r", 1, "c"), ("r", 2, "c"), ("r", 1, "d"), ("r", 3, "c")]
    nominated = pl.DataFrame(pairs, schema=["root_id", "anchor", "chunk_id"], orient="row")
    words = {"root_id": ["r"] * 3, "anchor": [1, 2, 3], "word": ["Stone", "lamp", None]}
    chunks = pl.DataFrame({"chunk_id": ["c", "d"], "text": ["A stone's throw", "milestone"]})
    looked_up = retriever.look_up_words(nominated, pl.DataFrame(words), chunks)
    assert looked_up["has_word"].to_list() == [True, False, False, None]


def test_phrases_of_an_anchor_are_counted(tokenizer: Tokenizer) -> None:
    embedder: Any = SimpleNamespace(fits_window=lambda texts: [True] * len(texts))
    unused: Any = None
    retriever = Retriever(tokenizer, embedder, unused, unused, 0, PHRASES, SETTINGS)
    (ids,) = tokenizer.encode(["winter river stone thread river stone"])
    at = len(tokenizer.encode(["winter river"])[0]) - 1
    given = pl.DataFrame({"root_id": ["r"], "token_ids": [ids], "anchors": [[at]]})
    queries, _ = retriever.queries(given)
    assert queries.row(0, named=True) | {"query": ""} == {
        "root_id": "r",
        "anchor": at,
        "query": "",
        "text_query": None,
        "word": "river",
        "kind": None,
        "phrase_documents": 1,
        "pair_documents": 7,
    }


def test_queries_are_embedded_whole_with_the_prompt_of_the_model(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """A window too short for some queries: they are cut on both sides of their anchor."""
    prompt = "river stone lamp: "
    model = write_prompted(tmp_path, window=24, prompts={"query": prompt})
    embedder = load_embedder(EmbeddingSettings(model=str(model), device="cpu"))
    asked: list[NDArray[np.float32]] = []

    def search(vectors_QE: NDArray[np.float32], limit: int) -> pl.DataFrame:
        asked.append(vectors_QE)
        return pl.DataFrame(schema=FOUND)

    table: Any = None
    settings = RetrievalSettings(top_k=3, half_window=12)
    given = roots(tokenizer).head(8)
    retriever = Retriever(tokenizer, embedder, table, search, 100, PHRASES, settings)
    queries, shortened = retriever.queries(given)
    count = embedder.model.tokenizer
    lengths = [len(ids) for ids in count([prompt + q for q in queries["query"]])["input_ids"]]
    assert max(lengths) <= 24
    ids_of = dict(given.select("root_id", "token_ids").iter_rows())
    whole = [
        anchor_query(tokenizer, ids_of[root_id], anchor, 12)
        for root_id, anchor in queries.select("root_id", "anchor").iter_rows()
    ]
    longer = [len(ids) > 24 for ids in count([prompt + q for q in whole])["input_ids"]]
    assert 0 < shortened == sum(longer)
    assert [q != w for q, w in zip(queries["query"], whole, strict=True)] == longer
    for query, (root_id, anchor) in zip(
        queries["query"], queries.select("root_id", "anchor").iter_rows(), strict=True
    ):
        assert tokenizer.decode([ids_of[root_id][anchor]]).strip() in query
    retriever.nominate(queries)
    texts = queries["query"].unique(maintain_order=True).to_list()
    theirs = embedder.model.encode_query(texts, normalize_embeddings=True)
    vectors = dict(zip(texts, theirs, strict=True))
    expected = np.array([vectors[q] for q in queries["query"]])
    np.testing.assert_allclose(asked[0], expected, atol=1e-5)
