"""The stage `candidate_contexts` on a tiny corpus, against a search by brute force."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from entropylong_assets.project import open_store
from entropylong_assets.settings.section import Settings, SettingsError
from entropylong_assets.stages.checks import run_checks
from entropylong_assets.stages.corpus.shards import plan_shards, save_plan
from entropylong_assets.stages.embeddings.embedder import load_embedder
from entropylong_assets.stages.embeddings.table import open_table
from entropylong_assets.stages.embeddings.tables import EMBEDDING_INDEX
from entropylong_assets.stages.entropy.model import load_tokenizer
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.retrieval.search import nominate
from entropylong_assets.stages.retrieval.searched_index import open_searched_index
from entropylong_assets.stages.retrieval.stage import CANDIDATE_CONTEXTS_STAGE
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.versioning import is_up_to_date, stale_reason
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.tables import WHOLE
from entropylong_assets_tests.bm25 import bm25
from entropylong_assets_tests.stages.retrieval.naive_containment import naive_containment
from entropylong_assets_tests.tiny_world import tiny_settings

SHARDS = ["tiny-00000", "tiny-00001"]
K, HALF_WINDOW, NGRAM, LIMIT = 4, 8, 8, 0.2
BY_TEXT = {"text_candidates": 3, "text_half_window": 12}


@pytest.fixture(scope="module")
def settings(
    tiny_corpus: Path, tiny_models: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    data = tmp_path_factory.mktemp("data")
    return tiny_settings(tiny_corpus, data, tiny_models, roots={"fraction": 1.0})


def materialized(settings: Settings) -> dict[str, Partition]:
    """Materialize everything up to the candidates; return the partitions by shard."""
    save_plan(open_store(settings.corpus), plan_shards(settings.corpus))
    for stage in [*CANDIDATE_CONTEXTS_STAGE.upstream(), CANDIDATE_CONTEXTS_STAGE]:
        owner = settings.corpus if stage.scope == "corpus" else settings
        for shard in SHARDS if stage.partitioned else [WHOLE]:
            partition = Partition(owner, open_store(owner), shard)
            materialize(stage, partition)
            if stage is not CANDIDATE_CONTEXTS_STAGE:
                assert all(result.passed for result in run_checks(stage, partition)), stage.name
    return {shard: Partition(settings, open_store(settings), shard) for shard in SHARDS}


@pytest.fixture(scope="module")
def partitions(settings: Settings) -> dict[str, Partition]:
    return materialized(settings)


def read(partition: Partition, table: str) -> pl.DataFrame:
    return partition.store.read(CANDIDATE_CONTEXTS, partition.shard, table)


@pytest.mark.parametrize("shard", SHARDS)
def test_candidates_are_the_nearest_chunks_of_other_documents(
    partitions: dict[str, Partition], shard: str
) -> None:
    partition = partitions[shard]
    tag = partition.store.summary(EMBEDDING_INDEX).tag
    columns = ["chunk_id", "doc_id", "text", "vector"]
    chunks = pl.concat(list(open_table(partition.store, tag).scan(columns)))
    vectors = np.asarray(chunks["vector"].to_list(), np.float64)
    embedder = load_embedder(partition.corpus.embedding)
    candidates, queries = read(partition, "candidates"), read(partition, "queries")
    assert len(queries) > 20
    text = dict(chunks.select("chunk_id", "text").iter_rows())
    near_duplicates = 0
    for root_id, anchor, query in queries.select("root_id", "anchor", "query").iter_rows():
        similarity = vectors @ embedder.embed_queries([query])[0].astype(np.float64)
        others = (chunks["doc_id"] != root_id).to_numpy()
        best = np.sort(similarity[others])[::-1][:K]
        rows = candidates.filter(root_id=root_id, anchor=anchor).sort("rank")
        assert rows["rank"].to_list() == list(range(1, K + 1))
        np.testing.assert_allclose(rows["similarity"], best, atol=1e-5)
        for chunk_id, share, result in rows.select(
            "chunk_id", "containment", "leak_check"
        ).iter_rows():
            expected = naive_containment(text[chunk_id], root_text(partition, root_id), NGRAM)
            assert share == pytest.approx(expected, abs=1e-6)
            assert result == ("near_duplicate" if expected >= LIMIT else "passed")
            near_duplicates += result == "near_duplicate"
    assert partition.store.summary(CANDIDATE_CONTEXTS, shard).near_duplicate == near_duplicates
    assert near_duplicates > 0, "shard a and shard b contain nearly the same document"


def root_text(partition: Partition, root_id: str) -> str:
    roots = partition.store.read(ENTROPY_SCORES, partition.shard, "roots")
    tokenizer = load_tokenizer(partition.settings.scoring)
    return tokenizer.decode(roots.filter(root_id=root_id)["token_ids"].item().to_list())


def test_queries_are_the_text_around_the_anchors(partitions: dict[str, Partition]) -> None:
    partition = partitions[SHARDS[0]]
    roots = partition.store.read(ENTROPY_SCORES, SHARDS[0], "roots")
    tokenizer = load_tokenizer(partition.settings.scoring)
    expected = [
        (root_id, t, tokenizer.decode(ids[max(0, t - HALF_WINDOW) : t + HALF_WINDOW + 1]).strip())
        for root_id, ids, anchors in roots.select("root_id", "token_ids", "anchors").iter_rows()
        for t in anchors
    ]
    assert read(partition, "queries").select("root_id", "anchor", "query").rows() == expected


def test_summary_counts_reconcile(partitions: dict[str, Partition]) -> None:
    """One document of the second shard is also in the first, which owns it in the index."""
    for shard, partition in partitions.items():
        summary = partition.store.summary(CANDIDATE_CONTEXTS, shard)
        scores = partition.store.summary(ENTROPY_SCORES, shard)
        assert summary.anchors + sum(summary.dropped.values()) == scores.anchors
        assert summary.candidates == K * summary.anchors == len(read(partition, "candidates"))
        chunks = read(partition, "chunks")["chunk_id"]
        candidates = read(partition, "candidates")["chunk_id"]
        assert sorted(chunks) == sorted(set(candidates))
        assert summary.chunks == len(chunks)
        index = partition.store.summary(EMBEDDING_INDEX)
        assert (summary.index, summary.search) == (index.tag, "exact")
    first, second = (p.store.summary(CANDIDATE_CONTEXTS, s) for s, p in partitions.items())
    assert first.dropped == {}
    assert list(second.dropped) == ["owned_by_another_shard"]
    scores = partitions[SHARDS[1]].store.summary(ENTROPY_SCORES, SHARDS[1])
    assert second.roots == scores.roots - 1


@pytest.mark.parametrize("shard", SHARDS)
def test_checks_pass(partitions: dict[str, Partition], shard: str) -> None:
    results = list(run_checks(CANDIDATE_CONTEXTS_STAGE, partitions[shard]))
    assert [r.check.name for r in results if not r.passed] == []
    assert len(results) == len(CANDIDATE_CONTEXTS_STAGE.checks) == 5


def test_partition_is_stale_under_other_settings_or_another_index(
    partitions: dict[str, Partition], tiny_corpus: Path, tiny_models: tuple[str, str]
) -> None:
    partition = partitions[SHARDS[0]]
    assert is_up_to_date(CANDIDATE_CONTEXTS_STAGE, partition)

    def reason(**over: dict[str, object]) -> str | None:
        data = Path(partition.settings.data_uri)
        other = tiny_settings(
            tiny_corpus, data, tiny_models, **{"roots": {"fraction": 1.0}, **over}
        )
        return stale_reason(
            CANDIDATE_CONTEXTS_STAGE, Partition(other, partition.store, partition.shard)
        )

    assert reason(retrieval={"top_k": 3}) == "setting retrieval has changed"
    assert reason(scoring={"separator": "\n"}, verification={"epsilon": 0.3}) is None
    assert reason(entropy={"alpha": 3.0}) is None, "entropy_scores is stale then"


def test_searched_index_finds_the_candidates_again(partitions: dict[str, Partition]) -> None:
    partition = partitions[SHARDS[1]]
    index = open_searched_index(partition)
    queries = read(partition, "queries").head(30)
    vectors = index.embedder.embed_queries(queries["query"].to_list())
    again = nominate(index.search, vectors, queries["root_id"].to_list(), K, index.universe.total)
    candidates = queries.with_row_index("query_number").join(
        read(partition, "candidates"), on=["root_id", "anchor"], maintain_order="left"
    )
    assert again["chunk_id"].to_list() == candidates["chunk_id"].to_list()
    drawn = {index.universe.draw(1, "root", 0, attempt) for attempt in range(50)}
    assert len(drawn) > 5
    assert len(index.table.fetch(sorted(drawn), ["chunk_id", "text"])) == len(drawn)
    shards = partition.store.read(EMBEDDING_INDEX, WHOLE, "shards")
    assert index.universe.total == shards["n_chunks"].sum()


def test_words_nominate_beside_the_vectors(
    tiny_corpus: Path,
    tiny_models: tuple[str, str],
    tmp_path: Path,
    partitions: dict[str, Partition],
) -> None:
    """The oracle is the formula of BM25 over all chunks. Candidates by vector do not change."""
    settings = tiny_settings(
        tiny_corpus,
        tmp_path,
        tiny_models,
        roots={"fraction": 1.0},
        embedding={"text_index": True},
        retrieval=BY_TEXT,
    )
    partition = materialized(settings)[SHARDS[1]]
    tag = partition.store.summary(EMBEDDING_INDEX).tag
    chunks = pl.concat(list(open_table(partition.store, tag).scan(["chunk_id", "text", "vector"])))
    words = {c: split(text) for c, text in chunks.select("chunk_id", "text").iter_rows()}
    vectors = dict(chunks.select("chunk_id", "vector").iter_rows())
    embedder = load_embedder(partition.corpus.embedding)
    tokenizer = load_tokenizer(settings.scoring)
    roots = partition.store.read(ENTROPY_SCORES, SHARDS[1], "roots")
    ids_of = dict(roots.select("root_id", "token_ids").iter_rows())
    candidates, queries = read(partition, "candidates"), read(partition, "queries")
    key = ["root_id", "anchor", "rank", "chunk_id", "similarity"]
    by_vector = candidates.filter(pl.col("found_by") != "text")
    assert by_vector.select(key).equals(read(partitions[SHARDS[1]], "candidates").select(key))
    for row in queries.iter_rows(named=True):
        t = row["anchor"]
        window = ids_of[row["root_id"]][max(0, t - 12) : t + 13]
        assert row["text_query"] == tokenizer.decode(window).strip("\ufffd").strip()
        scores = bm25(split(row["text_query"]), words)
        others = {c: s for c, s in scores.items() if not c.startswith(row["root_id"])}
        mine = candidates.filter(root_id=row["root_id"], anchor=t).sort("rank")
        by_words = mine.filter(pl.col("found_by") != "vector")["chunk_id"].to_list()
        best = sorted(others.values(), reverse=True)[:3]
        assert sorted((others[c] for c in by_words), reverse=True) == pytest.approx(best, abs=2e-3)
        query = embedder.embed_queries([row["query"]])[0]
        cosines = [float(query @ np.asarray(vectors[c])) for c in mine["chunk_id"]]
        assert mine["similarity"].to_list() == pytest.approx(cosines, abs=1e-5)
    n_found = candidates["found_by"].value_counts()
    assert set(n_found["found_by"]) == {"vector", "text", "both"}
    summary = partition.store.summary(CANDIDATE_CONTEXTS, SHARDS[1])
    assert summary.found_by_text == len(candidates.filter(found_by="text"))
    assert all(r.passed for r in run_checks(CANDIDATE_CONTEXTS_STAGE, partition))
    before = read(partition, "candidates")
    materialize(CANDIDATE_CONTEXTS_STAGE, partition)
    assert read(partition, "candidates").equals(before)


def split(text: str) -> list[str]:
    return re.findall("[a-z]+", text.lower())


def test_an_index_without_words_is_named(
    partitions: dict[str, Partition], tiny_corpus: Path, tiny_models: tuple[str, str]
) -> None:
    partition = partitions[SHARDS[0]]
    data = Path(partition.settings.data_uri)
    with pytest.raises(SettingsError, match=r"embedding\.text_index of corpus .* is false"):
        tiny_settings(tiny_corpus, data, tiny_models, retrieval=BY_TEXT)
    wanted = tiny_settings(
        tiny_corpus, data, tiny_models, embedding={"text_index": True}, retrieval=BY_TEXT
    )
    with pytest.raises(TableError) as caught:
        materialize(CANDIDATE_CONTEXTS_STAGE, Partition(wanted, partition.store, SHARDS[0]))
    message = str(caught.value)
    assert "set embedding.text_index: true and materialize embedding_index again" in message
    assert "\n" not in message
