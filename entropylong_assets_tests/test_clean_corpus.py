"""A corpus with near-duplicates, evaluation texts and metadata, from its files to the export."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import pytest

from entropylong_assets.cli.output import count_checks
from entropylong_assets.orchestration.local_run import register_shards, run_project
from entropylong_assets.project import Project, make_project, open_store
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.embeddings.table import open_table
from entropylong_assets.stages.embeddings.tables import EMBEDDING_INDEX
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.near_duplicates.tables import NEAR_DUPLICATES
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.tables import WHOLE
from entropylong_assets_tests.tiny_world import document, tiny_values


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_models: tuple[str, str]) -> Project:
    """Two files of 10 documents; the second ends with near-copies, and quotes an evaluation."""
    folder = tmp_path_factory.mktemp("clean")
    first = [document(seed) for seed in range(100, 110)]
    copies = [f"Edited. {text}" for text in first[:5]]
    question = document(999)
    quoting = [f"{document(300 + i, 3)} {question.upper()}" for i in range(2)]
    second = [*(document(seed) for seed in range(200, 205)), *copies, *quoting]
    (folder / "eval.jsonl").write_text(json.dumps({"question": question}))
    (folder / "in").mkdir()
    for name, texts in (("a", first), ("b", second)):
        rows = [{"text": text, "url": f"https://{name}/{i}"} for i, text in enumerate(texts)]
        (folder / "in" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    evaluation = {"name": "quiz", "uri": str(folder / "eval.jsonl"), "fields": ["question"]}
    source = {"name": "tiny", "uri": f"{folder}/in/*.jsonl", "metadata_fields": ["url"]}
    values = tiny_values(folder / "in", folder / "data", tiny_models)
    values["corpus"] |= {"sources": [source], "decontaminate": [evaluation]}
    values["near_duplicates"] = {"threshold": 0.7}
    values["roots"]["fraction"] = 1.0
    project = make_project(values)
    with dg.DagsterInstance.ephemeral() as instance:
        register_shards(project.corpus, instance)
        run_project(project, instance)
        for settings in (project.corpus, project.dataset):
            passed, ran = count_checks(project, settings)
            assert passed == ran > 0
    return project


def test_members_are_neither_indexed_nor_roots(project: Project) -> None:
    store = open_store(project.dataset)
    members = set(store.read(NEAR_DUPLICATES, WHOLE, "members")["doc_id"])
    assert len(members) == 5
    table = open_table(store, store.summary(EMBEDDING_INDEX).tag)
    indexed = {doc for batch in table.scan(["doc_id"]) for doc in batch["doc_id"]}
    shards = store.shards(CORPUS_DOCUMENTS)
    documents = set(store.read_all(CORPUS_DOCUMENTS, shards, "documents")["doc_id"])
    assert indexed == documents - members
    scored = set(store.read_all(ENTROPY_SCORES, shards, "roots")["root_id"])
    assert members <= scored
    dropped = store.read_all(CANDIDATE_CONTEXTS, shards, "dropped")
    reasons = dict(dropped.filter(dropped["anchor"].is_null()).select("root_id", "reason").rows())
    assert reasons == dict.fromkeys(members, "near_duplicate_of_document")
    roots = store.read_all(VERIFIED_DEPENDENCIES, shards, "pairs")
    assert not members & set(roots["root_id"])
    segments = store.read_all(LONG_CONTEXT_SAMPLES, shards, "segments")
    assert not members & set(segments["doc_id"].drop_nulls())


def test_the_export_says_what_it_was_cleaned_of(project: Project) -> None:
    store = open_store(project.dataset)
    (export,) = (Path(project.data_uri) / "dataset" / "exports").iterdir()
    card = (export / "README.md").read_text()
    assert "5 in 5 clusters repeat another one" in card
    assert "Decontaminated against `quiz`" in card
    assert "2 documents that quote it were dropped" in card
    lines = [json.loads(line) for line in (export / "documents.jsonl").read_text().splitlines()]
    shards = store.shards(LONG_CONTEXT_SAMPLES)
    used = store.read_all(LONG_CONTEXT_SAMPLES, shards, "segments")["doc_id"].drop_nulls()
    assert [line["doc_id"] for line in lines] == sorted(set(used))
    documents = store.read_all(CORPUS_DOCUMENTS, shards, "documents")
    rows = {doc: (file, row) for doc, file, row in documents.select("doc_id", "file", "row").rows()}
    for line in lines:
        file, row = rows[line["doc_id"]]
        assert line["metadata"] == {"url": f"https://{Path(file).stem}/{row}"}
