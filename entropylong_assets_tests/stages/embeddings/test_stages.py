"""`chunk_embeddings` and `embedding_index` over a tiny corpus, with a tiny random embedder."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from entropylong_assets.project import make_project, open_store
from entropylong_assets.stages.checks import run_checks
from entropylong_assets.stages.corpus.shards import ShardPlan, load_plan, plan_shards, save_plan
from entropylong_assets.stages.corpus.stage import CORPUS_DOCUMENTS_STAGE
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.embeddings import index, index_stages, segments
from entropylong_assets.stages.embeddings.chunk_stage import CHUNK_EMBEDDINGS_STAGE
from entropylong_assets.stages.embeddings.chunks import ShardEmbedding
from entropylong_assets.stages.embeddings.cutting import Cutter, Workers
from entropylong_assets.stages.embeddings.embedder import (
    Embedder,
    VectorError,
    document_identity,
    load_embedder,
)
from entropylong_assets.stages.embeddings.index_stages import (
    EMBEDDING_INDEX_STAGE,
    INDEX_SEGMENTS_STAGE,
)
from entropylong_assets.stages.embeddings.table import load_table, open_table
from entropylong_assets.stages.embeddings.tables import (
    CHUNK_EMBEDDINGS,
    EMBEDDING_INDEX,
    INDEX_SEGMENTS,
)
from entropylong_assets.stages.execution import Materialization, materialize
from entropylong_assets.stages.near_duplicates.stages import (
    DOCUMENT_SIGNATURES_STAGE,
    NEAR_DUPLICATES_STAGE,
)
from entropylong_assets.stages.stage import Partition, Stage
from entropylong_assets.stages.versioning import is_up_to_date, stale_reason
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.tables import WHOLE
from entropylong_assets_tests.stages.embeddings.tiny_embedders import write_prompted, write_static
from entropylong_assets_tests.tiny_world import tiny_project

SHARDS = ("tiny-00000", "tiny-00001")


class Corpus:
    """A corpus of two shards in a folder, and its stages."""

    def __init__(self, source: Path, data: Path, models: tuple[str, str], **over: Any) -> None:
        self.settings = tiny_project(source, data, models, **over).corpus
        self.store = open_store(self.settings)

    def partition(self, shard: str = WHOLE) -> Partition:
        return Partition(self.settings, self.store, shard)

    def plan(self) -> None:
        save_plan(self.store, plan_shards(self.settings, load_plan(self.store).shards))

    def run(self, stage: Stage, shard: str = WHOLE, checked: bool = True) -> Materialization:
        if stage is EMBEDDING_INDEX_STAGE:
            self.find_near_duplicates()
        made = materialize(stage, self.partition(shard))
        if checked:
            assert all(result.passed for result in run_checks(stage, self.partition(shard)))
        return made

    def embed(self, shard: str) -> None:
        self.run(CORPUS_DOCUMENTS_STAGE, shard)
        self.run(CHUNK_EMBEDDINGS_STAGE, shard)
        self.run(DOCUMENT_SIGNATURES_STAGE, shard)

    def find_near_duplicates(self) -> None:
        for shard in self.store.shards(CORPUS_DOCUMENTS):
            if not is_up_to_date(DOCUMENT_SIGNATURES_STAGE, self.partition(shard)):
                self.run(DOCUMENT_SIGNATURES_STAGE, shard)
        if not is_up_to_date(NEAR_DUPLICATES_STAGE, self.partition()):
            self.run(NEAR_DUPLICATES_STAGE)


@pytest.fixture(scope="module")
def embedded_data(
    tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path, tiny_models: tuple[str, str]
) -> Path:
    data = tmp_path_factory.mktemp("embedded")
    corpus = Corpus(tiny_corpus, data, tiny_models)
    corpus.plan()
    for shard in SHARDS:
        corpus.embed(shard)
    corpus.find_near_duplicates()
    return data


@pytest.fixture
def data(embedded_data: Path, tmp_path: Path) -> Path:
    """Both shards embedded, in a folder of the test's own."""
    return Path(shutil.copytree(embedded_data, tmp_path / "data"))


@pytest.fixture
def corpus(data: Path, tiny_corpus: Path, tiny_models: tuple[str, str]) -> Corpus:
    return Corpus(tiny_corpus, data, tiny_models)


def test_chunks_and_vectors_of_a_shard_are_published(corpus: Corpus) -> None:
    store, embedder = corpus.store, load_embedder(corpus.settings.embedding)
    chunks = store.read(CHUNK_EMBEDDINGS, SHARDS[0], "chunks")
    documents = store.read(CORPUS_DOCUMENTS, SHARDS[0], "documents")
    assert store.summary(CHUNK_EMBEDDINGS, SHARDS[0]).model_dump() == {
        "documents": len(documents),
        "chunks": len(chunks),
        "embedder_tokens": chunks["n_embedder_tokens"].sum(),
        "dimension": 32,
        "window_tokens": 40,
        **document_identity(corpus.settings.embedding),
    }
    table = load_table(store, embedder)
    rows = pl.concat(table.scan(["chunk_id", "start", "end", "text", "vector"], SHARDS[0]))
    texts = dict(documents.select("doc_id", "text").iter_rows())
    cut = {
        chunk_id: texts[doc_id][start:end]
        for chunk_id, doc_id, start, end in chunks.select(
            "chunk_id", "doc_id", "start", "end"
        ).iter_rows()
    }
    assert dict(rows.select("chunk_id", "text").iter_rows()) == cut
    vectors = np.asarray(rows["vector"].to_list(), np.float32)
    np.testing.assert_allclose(vectors, embedder.embed_documents(rows["text"].to_list()), atol=1e-5)


def test_a_shard_that_is_embedded_again_is_the_same(corpus: Corpus) -> None:
    before = corpus.store.require(CHUNK_EMBEDDINGS, SHARDS[0])
    made = corpus.run(CHUNK_EMBEDDINGS_STAGE, SHARDS[0])
    assert made.manifest == before
    assert (made.unit, made.rate > 0) == ("chunks", True)
    preview = made.metadata["preview"]
    assert isinstance(preview, pl.DataFrame)
    assert preview.equals(corpus.store.head(CHUNK_EMBEDDINGS, SHARDS[0], "chunks"))


@pytest.mark.parametrize("workers", [Workers(1), Workers(3), Workers(2, are_processes=True)])
def test_rows_are_the_same_with_any_number_of_workers(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, workers: Workers
) -> None:
    """Threads or processes cut the batches ahead of the device: order and ids must stay."""
    embedder = load_embedder(corpus.settings.embedding)

    def rows_with(workers: Workers) -> pa.Table:
        monkeypatch.setattr(Embedder, "cutting", workers)
        documents = corpus.store.batches(
            CORPUS_DOCUMENTS, SHARDS[0], "documents", ["doc_id", "source", "text"], 2
        )
        embedding = ShardEmbedding(SHARDS[0], embedder, 20)
        rows = pa.Table.from_batches(embedding.rows(documents), embedding.schema)
        assert (embedding.chunks, embedding.documents) == (len(rows), len(set(rows["doc_id"])))
        return rows

    alone = rows_with(Workers(0))
    assert len(alone) > 6
    assert rows_with(workers).equals(alone)


def test_a_fault_in_a_cutting_thread_ends_the_rows(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Embedder, "cutting", Workers(2))

    def fail(*_: Any) -> Any:
        raise ValueError("no tokenizer")

    monkeypatch.setattr(Cutter, "cut", fail)
    documents = corpus.store.batches(
        CORPUS_DOCUMENTS, SHARDS[0], "documents", ["doc_id", "source", "text"], 2
    )
    embedding = ShardEmbedding(SHARDS[0], load_embedder(corpus.settings.embedding), 20)
    with pytest.raises(ValueError, match=r"\Ano tokenizer\Z"):
        list(embedding.rows(documents))


def test_the_index_covers_every_document_once(corpus: Corpus) -> None:
    made = corpus.run(EMBEDDING_INDEX_STAGE)
    store, summary = corpus.store, corpus.store.summary(EMBEDDING_INDEX)
    rows = [store.read(CHUNK_EMBEDDINGS, shard, "chunks") for shard in SHARDS]
    copied = set(rows[0]["doc_id"]) & set(rows[1]["doc_id"])
    assert len(copied) == summary.duplicate_documents == 1  # `write_corpus` has one copy
    duplicates = store.read(EMBEDDING_INDEX, WHOLE, "duplicates").to_dicts()
    assert [(d["doc_id"], d["shard"], d["owner"]) for d in duplicates] == [
        (copied.pop(), SHARDS[1], SHARDS[0])
    ]
    assert summary.n_rows == sum(map(len, rows)) - duplicates[0]["n_chunks"]
    assert (summary.n_shards, summary.excluded_shards, summary.search) == (2, [], "exact")
    assert made.metadata["shards left out"] == 0
    table = open_table(store, summary.tag)
    assert table.version == summary.table_version
    sample = table.chunk_sample([])
    assert sample.total == summary.n_rows
    assert sample.chunks.equals(table.sample_chunks([])), "what is stored is that of this version"
    assert set(sample.chunks["chunk_id"]) == {c for r in rows for c in r["chunk_id"]}
    assert is_up_to_date(EMBEDDING_INDEX_STAGE, corpus.partition())
    again = corpus.run(EMBEDDING_INDEX_STAGE)
    assert again.manifest.fingerprint == made.manifest.fingerprint
    assert again.manifest.data_version == made.manifest.data_version


def near_copies(corpus: Corpus) -> dict[str, str]:
    """Shard by member."""
    members = corpus.store.read(EMBEDDING_INDEX, WHOLE, "near_copies")
    return dict(members.select("doc_id", "shard").iter_rows())


def indexed(corpus: Corpus) -> set[str]:
    table = open_table(corpus.store, corpus.store.summary(EMBEDDING_INDEX).tag)
    return {doc for batch in table.scan(["doc_id"]) for doc in batch["doc_id"]}


def test_near_duplicates_are_not_indexed_and_come_back(
    corpus: Corpus, tiny_corpus: Path, tiny_models: tuple[str, str]
) -> None:
    """`write_corpus` has one near-copy. The failure: a higher threshold asks for a new corpus."""
    corpus.run(EMBEDDING_INDEX_STAGE)
    before = indexed(corpus)
    rows = open_table(corpus.store, corpus.store.summary(EMBEDDING_INDEX).tag).rows_by_shard()
    assert near_copies(corpus) == {}
    for threshold, members in ((0.7, 1), (1.0, 0)):
        over = {"near_duplicates": {"threshold": threshold}}
        compared = Corpus(tiny_corpus, Path(corpus.store.uri), tiny_models, **over)
        compared.run(EMBEDDING_INDEX_STAGE)
        removed = near_copies(compared)
        assert len(removed) == members
        assert indexed(compared) == before - removed.keys()
        for shard in SHARDS:
            results = run_checks(CHUNK_EMBEDDINGS_STAGE, compared.partition(shard))
            assert all(result.passed for result in results)
    summary = corpus.store.summary(EMBEDDING_INDEX)
    assert summary.restored_documents == 1
    assert open_table(corpus.store, summary.tag).rows_by_shard() == rows


def test_a_shard_is_indexed_only_after_it_was_compared(corpus: Corpus) -> None:
    """The failure: its near-duplicates are indexed, and nothing tells."""
    corpus.run(CORPUS_DOCUMENTS_STAGE, SHARDS[1])  # its checks pass
    path = Path(corpus.store.folder(NEAR_DUPLICATES_STAGE.tables)) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["determinants"]["inputs"]["document_signatures"][SHARDS[1]] = "older"
    path.write_text(json.dumps(manifest))
    made = materialize(EMBEDDING_INDEX_STAGE, corpus.partition())
    assert made.left_out == {
        SHARDS[1]: "near_duplicates does not contain its present data; materialize "
        "near_duplicates again"
    }


def test_a_shard_without_the_outcome_of_a_check_is_left_out(corpus: Corpus) -> None:
    (Path(corpus.store.folder(CHUNK_EMBEDDINGS, SHARDS[1])) / "checks.json").unlink()
    warnings: list[str] = []
    made = materialize(EMBEDDING_INDEX_STAGE, corpus.partition(), warn=warnings.append)
    reason = "check one_vector_per_chunk of chunk_embeddings has not run on the present data"
    assert made.metadata["left out"] == {SHARDS[1]: reason}
    assert warnings == [f"shard {SHARDS[1]} is left out: {reason}"]
    summary = corpus.store.summary(EMBEDDING_INDEX)
    assert (summary.n_shards, summary.excluded_shards) == (1, [SHARDS[1]])
    for result in run_checks(EMBEDDING_INDEX_STAGE, corpus.partition()):
        assert result.passed, result.check.name


def test_without_a_usable_shard_the_first_and_its_reason_are_named(corpus: Corpus) -> None:
    for shard in SHARDS:
        (Path(corpus.store.folder(CORPUS_DOCUMENTS, shard)) / "checks.json").unlink()
    with pytest.raises(TableError) as caught:
        materialize(EMBEDDING_INDEX_STAGE, corpus.partition())
    assert str(caught.value) == (
        f"embedding_index: none of 2 embedded shards can be used. The first, {SHARDS[0]}: check "
        "unique_documents of corpus_documents has not run on the present data. Correct that, then "
        "materialize embedding_index again"
    )


def test_a_corpus_without_shards_has_an_empty_index(
    tmp_path: Path, tiny_corpus: Path, tiny_models: tuple[str, str]
) -> None:
    corpus = Corpus(tiny_corpus, tmp_path, tiny_models)
    corpus.run(EMBEDDING_INDEX_STAGE)
    assert corpus.store.summary(EMBEDDING_INDEX).n_rows == 0


def test_shards_outside_the_plan_are_left_out_and_logged(corpus: Corpus) -> None:
    first = load_plan(corpus.store).shards[:1]
    (Path(corpus.store.root) / corpus.store.corpus / "shards.json").unlink()
    save_plan(corpus.store, ShardPlan(shards=first))
    warnings: list[str] = []
    made = materialize(EMBEDDING_INDEX_STAGE, corpus.partition(), warn=warnings.append)
    reason = "it is no longer in the plan of shards"
    assert made.metadata["left out"] == {SHARDS[1]: reason}
    assert warnings == [f"shard {SHARDS[1]} is left out: {reason}"]
    assert corpus.store.summary(EMBEDDING_INDEX).excluded_shards == [SHARDS[1]]


@pytest.mark.parametrize(
    ("changes", "stale"),
    [
        ({"min_chunk_chars": 65}, {CHUNK_EMBEDDINGS_STAGE: "embedding.min_chunk_chars"}),
        ({"chunk_tokens": 41}, {CHUNK_EMBEDDINGS_STAGE: "embedding.chunk_tokens"}),
        ({"recall_k": 5}, {EMBEDDING_INDEX_STAGE: "embedding.recall_k"}),
        ({"recall_queries": 11}, {EMBEDDING_INDEX_STAGE: "embedding.recall_queries"}),
        ({"target_recall": 0.5}, {EMBEDDING_INDEX_STAGE: "embedding.target_recall"}),
        ({"search": "exact"}, {EMBEDDING_INDEX_STAGE: "embedding.search"}),
        ({"ann_min_rows": 300}, {EMBEDDING_INDEX_STAGE: "embedding.ann_min_rows"}),
        ({"index": "ivf_sq"}, {EMBEDDING_INDEX_STAGE: "embedding.index"}),
        ({"index_generation": 1}, {EMBEDDING_INDEX_STAGE: "embedding.index_generation"}),
        ({"batch_size": 3, "device": "cpu"}, {}),
        ({"query_prompt": "river: "}, {}),
        (
            {"document_prompt": "river: "},
            {
                CHUNK_EMBEDDINGS_STAGE: "embedding.document_prompt",
                EMBEDDING_INDEX_STAGE: "embedding.document_prompt",
            },
        ),
    ],
)
def test_each_stage_is_stale_after_changes_of_its_own_settings(
    corpus: Corpus,
    tiny_corpus: Path,
    tiny_models: tuple[str, str],
    changes: dict[str, Any],
    stale: dict[Stage, str],
) -> None:
    corpus.run(EMBEDDING_INDEX_STAGE, checked=False)
    changed = Corpus(tiny_corpus, Path(corpus.store.uri), tiny_models, embedding=changes)
    for stage in (CHUNK_EMBEDDINGS_STAGE, EMBEDDING_INDEX_STAGE):
        partition = changed.partition(SHARDS[0] if stage.partitioned else WHOLE)
        wanted = f"setting {stale[stage]} has changed" if stage in stale else None
        assert stale_reason(stage, partition) == wanted


@pytest.fixture
def prompted(data: Path, tiny_corpus: Path, tiny_models: tuple[str, str]) -> Corpus:
    """The same corpus under another document prompt: both shards are stale."""
    over = {"document_prompt": "stone: ", "chunk_tokens": 44}
    return Corpus(tiny_corpus, data, tiny_models, embedding=over)


def test_shards_of_another_document_prompt_are_not_searched(
    corpus: Corpus, prompted: Corpus
) -> None:
    corpus.run(EMBEDDING_INDEX_STAGE)
    for shard in SHARDS:
        assert not is_up_to_date(CHUNK_EMBEDDINGS_STAGE, prompted.partition(shard))
    prompted.run(CHUNK_EMBEDDINGS_STAGE, SHARDS[1])
    prompted.run(EMBEDDING_INDEX_STAGE)
    summary = prompted.store.summary(EMBEDDING_INDEX)
    assert (summary.n_shards, summary.excluded_shards) == (1, [SHARDS[0]])
    manifest = prompted.store.require(EMBEDDING_INDEX, WHOLE)
    assert manifest.determinants["shards_embedded_otherwise"] == [SHARDS[0]]
    before = prompted.store.require(CHUNK_EMBEDDINGS, SHARDS[0])
    made = prompted.run(CHUNK_EMBEDDINGS_STAGE, SHARDS[0])
    assert stale_reason(EMBEDDING_INDEX_STAGE, prompted.partition()) is not None
    assert made.manifest.determinants["document_prompt"] == "stone: "
    assert made.manifest.summary["document_prompt"] == "stone: "
    prompted.run(EMBEDDING_INDEX_STAGE)
    assert prompted.store.summary(EMBEDDING_INDEX).n_shards == 2
    assert made.manifest.determinants["embedder"] == before.determinants["embedder"]


def test_the_index_is_stale_after_vectors_alone_have_changed(
    corpus: Corpus, tiny_corpus: Path, tiny_models: tuple[str, str]
) -> None:
    """Two prompts of as many tokens give the same chunks, so the same data version."""

    def under(prompt: str) -> Corpus:
        over = {"document_prompt": prompt}
        return Corpus(tiny_corpus, Path(corpus.store.uri), tiny_models, embedding=over)

    first, second = under("stone "), under("river ")
    first.run(CHUNK_EMBEDDINGS_STAGE, SHARDS[0])
    before = first.store.require(CHUNK_EMBEDDINGS, SHARDS[0])
    second.run(CHUNK_EMBEDDINGS_STAGE, SHARDS[1])
    second.run(EMBEDDING_INDEX_STAGE)
    assert second.store.summary(EMBEDDING_INDEX).n_shards == 1
    after = second.run(CHUNK_EMBEDDINGS_STAGE, SHARDS[0]).manifest
    assert after.data_version == before.data_version, "else this tests nothing"
    assert after.fingerprint != before.fingerprint
    reason = stale_reason(EMBEDDING_INDEX_STAGE, second.partition())
    assert reason == "shards_embedded_otherwise has changed"


def test_chunks_are_embedded_with_their_prompt_and_dimensions(
    tmp_path: Path, tiny_corpus: Path, tiny_models: tuple[str, str]
) -> None:
    model = write_prompted(tmp_path / "model", prompts={"document": "stone copper: "})
    over = {"model": str(model), "chunk_tokens": None, "dimensions": 8, "device": "cpu"}
    corpus = Corpus(tiny_corpus, tmp_path / "data", tiny_models, embedding=over)
    corpus.plan()
    corpus.embed(SHARDS[0])
    summary = corpus.store.summary(CHUNK_EMBEDDINGS, SHARDS[0])
    assert (summary.dimension, summary.document_prompt) == (8, "stone copper: ")
    rows = pl.concat(open_table(corpus.store).scan(["chunk_id", "text", "vector"]))
    texts = rows["text"].to_list()
    embedder = load_embedder(corpus.settings.embedding)
    theirs = embedder.model.encode_document(texts)[:, :8]
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    vectors = np.asarray(rows["vector"].to_list(), np.float32)
    np.testing.assert_allclose(vectors, theirs, atol=1e-5)
    tokens = dict(
        corpus.store.read(CHUNK_EMBEDDINGS, SHARDS[0], "chunks")
        .select("chunk_id", "n_embedder_tokens")
        .iter_rows()
    )
    ids = embedder.model.tokenizer(["stone copper: " + text for text in texts])["input_ids"]
    assert [len(i) for i in ids] == [tokens[chunk_id] for chunk_id in rows["chunk_id"]]
    assert 56 < max(map(len, ids)) <= 64 == summary.window_tokens


def test_a_chunk_without_a_vector_is_named(
    tmp_path: Path, tiny_corpus: Path, tiny_models: tuple[str, str]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    texts = ["river stone lamp " * 3, "?!" * 20, "copper north engine " * 3]
    rows = [json.dumps({"text": text, "id": str(i)}) for i, text in enumerate(texts)]
    (source / "a.jsonl").write_text("\n".join(rows))
    model = str(write_static(tmp_path / "model", unknown=False))
    over = {"model": model, "chunk_tokens": None}
    corpus = Corpus(source, tmp_path / "data", tiny_models, embedding=over)
    corpus.plan()
    shard = load_plan(corpus.store).shards[0].key
    corpus.run(CORPUS_DOCUMENTS_STAGE, shard)
    with pytest.raises(VectorError) as caught:
        materialize(CHUNK_EMBEDDINGS_STAGE, corpus.partition(shard))
    documents = corpus.store.read(CORPUS_DOCUMENTS, shard, "documents")
    doc_id = documents.filter(text="?!" * 20)["doc_id"].item()
    assert str(caught.value).startswith(
        f"chunk {doc_id}-00000 (source tiny, characters 0 to 40 of document {doc_id}): "
    )
    assert open_table(corpus.store).rows_by_shard() == {}


def test_the_index_is_stale_after_a_new_or_rewritten_shard(corpus: Corpus) -> None:
    corpus.run(EMBEDDING_INDEX_STAGE)
    partition = corpus.partition()
    plan = load_plan(corpus.store)
    new = plan.shards[0].model_copy(update={"key": "tiny-00002", "position": 2})
    save_plan(corpus.store, ShardPlan(shards=(*plan.shards, new)))
    assert stale_reason(EMBEDDING_INDEX_STAGE, partition) == "plan has changed"
    outcomes = corpus.store.check_outcomes(CHUNK_EMBEDDINGS, SHARDS[1])
    failed = {
        name: outcome.model_copy(update={"passed": False}) for name, outcome in outcomes.items()
    }
    corpus.store.record_checks(CHUNK_EMBEDDINGS, SHARDS[1], failed)
    assert stale_reason(EMBEDDING_INDEX_STAGE, partition) == "input chunk_embeddings has changed"


def test_the_tag_changes_with_whatever_determines_the_index(
    corpus: Corpus, tiny_corpus: Path, tiny_models: tuple[str, str]
) -> None:
    corpus.run(EMBEDDING_INDEX_STAGE)
    tags = {corpus.store.summary(EMBEDDING_INDEX).tag}
    changed = Corpus(tiny_corpus, Path(corpus.store.uri), tiny_models, embedding={"recall_k": 5})
    changed.run(EMBEDDING_INDEX_STAGE)
    tags.add(corpus.store.summary(EMBEDDING_INDEX).tag)
    assert len(tags) == 2
    for tag in tags:
        assert open_table(corpus.store, tag).rows_by_shard()


def spoil_vectors(corpus: Corpus) -> None:
    """A shard's rows in the vector table: one twice as long, one missing."""
    table = open_table(corpus.store)
    rows = table.reader(table._table.schema.names, SHARDS[0]).read_all()
    vectors = np.asarray(rows["vector"].combine_chunks().flatten()).reshape(len(rows), -1).copy()
    vectors[1] *= 2
    at = rows.schema.get_field_index("vector")
    field = rows.schema.field("vector")
    rows = rows.set_column(at, field, pa.array(vectors.tolist(), field.type))
    table.replace_shard(SHARDS[0], rows.slice(1).cast(table._table.schema).to_batches())


def test_checks_find_missing_and_spoilt_vectors(corpus: Corpus) -> None:
    spoil_vectors(corpus)
    results = run_checks(CHUNK_EMBEDDINGS_STAGE, corpus.partition(SHARDS[0]))
    faulty = {result.check.name: result.faulty_rows for result in results}
    assert faulty == {
        "one_vector_per_chunk": 1,
        "vectors_unit_length": 1,
        "chunks_within_documents": 0,
    }


def test_checks_of_a_shard_allow_for_duplicates_that_the_index_removed(corpus: Corpus) -> None:
    corpus.run(EMBEDDING_INDEX_STAGE)
    results = run_checks(CHUNK_EMBEDDINGS_STAGE, corpus.partition(SHARDS[1]))
    assert all(result.passed for result in results)


def test_recall_is_measured_with_the_corpus_own_k(
    data: Path, tiny_corpus: Path, tiny_models: tuple[str, str]
) -> None:
    """Not with the top_k of a dataset. A small table is searched exactly: its recall is 1."""
    corpus = Corpus(tiny_corpus, data, tiny_models, retrieval={"top_k": 2})
    corpus.run(EMBEDDING_INDEX_STAGE)
    summary = corpus.store.summary(EMBEDDING_INDEX)
    assert (summary.recall_k, summary.recall) == (4, 1.0)
    low = replace(EMBEDDING_INDEX_STAGE, check_parameters=lambda _: {"target_recall": 1.1})
    failed = [r for r in run_checks(low, corpus.partition()) if not r.passed]
    assert [(r.check.name, r.check.blocking, r.check.warns) for r in failed] == [
        ("recall_reached", False, True)
    ]


# Segments


def test_a_table_that_is_searched_exactly_gets_no_segment(corpus: Corpus) -> None:
    for shard in SHARDS:
        corpus.run(INDEX_SEGMENTS_STAGE, shard)
        summary = corpus.store.summary(INDEX_SEGMENTS, shard)
        assert (summary.rows_added, summary.partitions) == (0, 0)
    corpus.run(EMBEDDING_INDEX_STAGE)
    assert corpus.store.summary(EMBEDDING_INDEX).segments == 0
    database = Path(corpus.store.corpus_uri, "lancedb")
    assert [path.name for path in database.iterdir()] == ["chunks.lance"]


@pytest.fixture
def large(
    data: Path,
    tiny_corpus: Path,
    tiny_models: tuple[str, str],
    corpus: Corpus,
    monkeypatch: pytest.MonkeyPatch,
) -> Corpus:
    """The same corpus, as if its hundred chunks were enough for an index of segments."""
    monkeypatch.setattr(segments, "MIN_ROWS_PER_PARTITION", 2)
    for module in (index, index_stages):
        monkeypatch.setattr(module, "searched_by_index", lambda *_: True)
    return Corpus(tiny_corpus, data, tiny_models)


def test_the_index_uses_the_segments_of_shards_and_makes_the_others(large: Corpus) -> None:
    store = large.store
    large.run(INDEX_SEGMENTS_STAGE, SHARDS[0])
    rows = store.summary(INDEX_SEGMENTS, SHARDS[0]).rows_added
    assert rows == store.summary(CHUNK_EMBEDDINGS, SHARDS[0]).chunks
    (stored,) = store.read(INDEX_SEGMENTS, SHARDS[0], "segments").to_dicts()
    assert (stored["shard"], stored["n_rows"]) == (SHARDS[0], rows)
    large.run(EMBEDDING_INDEX_STAGE)
    summary = store.summary(EMBEDDING_INDEX)
    assert summary.centroids == store.summary(INDEX_SEGMENTS, SHARDS[0]).centroids
    assert (summary.segments, summary.rows_added) == (1, summary.n_rows - rows), "not merged"
    assert is_up_to_date(INDEX_SEGMENTS_STAGE, large.partition(SHARDS[0]))
    large.run(INDEX_SEGMENTS_STAGE, SHARDS[0])
    assert store.summary(INDEX_SEGMENTS, SHARDS[0]).rows_added == 0
    large.run(EMBEDDING_INDEX_STAGE)
    assert store.summary(EMBEDDING_INDEX).rows_added == 0


@pytest.mark.parametrize(
    ("over", "chunks", "reason"),
    [
        ({"search": "exact"}, 10**9, "embedding.search is exact"),
        ({}, 10_111, "its 10,111 chunks are too few for a segment"),  # 32 × 316
        ({}, 10_112, None),
        ({"search": "index"}, 511, "its 511 chunks are too few"),  # 32 × 16
        ({"search": "index"}, 512, None),
        ({"search": "index"}, None, None),  # not embedded yet: nothing is known of its chunks
    ],
)
def test_a_shard_that_can_never_have_a_segment_is_skipped(
    tmp_path: Path, over: dict[str, Any], chunks: int | None, reason: str | None
) -> None:
    settings = make_project({"data_uri": str(tmp_path), "embedding": over}).corpus
    partition = Partition(settings, open_store(settings), "s")
    if chunks is not None:
        with partition.store.write(CHUNK_EMBEDDINGS, "s", fingerprint="f") as writer:
            writer.summary = {"chunks": chunks}
    found = INDEX_SEGMENTS_STAGE.skip_reason(partition)
    assert found == reason or (reason and found and found.startswith(reason))


def test_a_shard_whose_segment_was_lost_fails_its_check(large: Corpus) -> None:
    large.run(INDEX_SEGMENTS_STAGE, SHARDS[0])
    large.run(CHUNK_EMBEDDINGS_STAGE, SHARDS[0])  # its rows are in new fragments
    results = run_checks(INDEX_SEGMENTS_STAGE, large.partition(SHARDS[0]))
    assert [(r.check.name, r.passed) for r in results] == [("shard_has_segment", False)]
