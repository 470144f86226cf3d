"""The scope of a table set decides whether its folder belongs to the corpus or to the dataset."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from entropylong_assets.pipeline import STAGES
from entropylong_assets.project import make_project, open_store
from entropylong_assets.storage import duck
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.schemas import INT, Scope, Summary, TableSet, column
from entropylong_assets.storage.tables import MANIFEST, TableStore


class NumbersSummary(Summary):
    total: int


def numbers(scope: Scope, name: str = "numbers") -> TableSet[NumbersSummary]:
    schema = pa.schema([column("number", INT, "a number")])
    return TableSet(
        name=name, scope=scope, schemas={"rows": schema}, main="rows", summary=NumbersSummary
    )


OF_CORPUS, OF_DATASET = numbers("corpus"), numbers("dataset")


def write(store: TableStore, tables: TableSet[Any], number: int) -> None:
    with store.write(tables, "s-0", fingerprint="f") as writer:
        writer.append("rows", [{"number": number}])
        writer.summary = {"total": number}


def number_of(store: TableStore, tables: TableSet[NumbersSummary]) -> int:
    """The one number in a partition; the table, its summary and SQL agree."""
    (number,) = store.read(tables, "s-0", "rows")["number"]
    assert store.summary(tables, "s-0").total == number
    with duck.querying(store, {"rows": (tables, ["s-0"], "rows")}) as session:
        assert session.sql("SELECT number FROM rows").fetchall() == [(number,)]
    return int(number)


def test_tables_lie_in_the_folder_of_their_scope(store: TableStore) -> None:
    store = TableStore(store.uri, "web", "ours")
    write(store, OF_CORPUS, 1)
    write(store, OF_DATASET, 2)
    root = store.root
    assert store.home(OF_CORPUS) == f"{root}/web"
    assert store.home(OF_DATASET) == f"{root}/ours"
    assert store.fs.exists(f"{root}/web/numbers/s-0/{MANIFEST}")
    assert store.fs.exists(f"{root}/ours/numbers/s-0/{MANIFEST}")
    assert (store.corpus_uri, store.dataset_uri) == (f"{store.uri}/web", f"{store.uri}/ours")
    assert (number_of(store, OF_CORPUS), number_of(store, OF_DATASET)) == (1, 2)


def test_datasets_share_the_tables_of_their_corpus_only(store: TableStore) -> None:
    first, second = (TableStore(store.uri, "web", name) for name in ("ours", "theirs"))
    write(first, OF_CORPUS, 1)
    write(first, OF_DATASET, 2)
    assert number_of(second, OF_CORPUS) == 1
    assert second.manifest(OF_DATASET, "s-0") is None
    assert second.shards(OF_DATASET) == []
    write(second, OF_DATASET, 3)
    assert (number_of(first, OF_DATASET), number_of(second, OF_DATASET)) == (2, 3)


def test_a_dataset_over_another_corpus_does_not_see_its_tables(store: TableStore) -> None:
    write(TableStore(store.uri, "web", "ours"), OF_CORPUS, 1)
    other = TableStore(store.uri, "books", "ours")
    assert other.shards(OF_CORPUS) == []
    with pytest.raises(TableError, match="numbers, s-0: not materialized yet"):
        other.summary(OF_CORPUS, "s-0")


def test_the_manifest_names_its_stage_and_format(store: TableStore) -> None:
    write(store, OF_CORPUS, 1)
    content = store.fs.cat_file(f"{store.folder(OF_CORPUS, 's-0')}/{MANIFEST}")
    manifest = json.loads(content)
    assert (manifest["asset"], manifest["shard"]) == ("numbers", "s-0")
    assert manifest["format_version"] == OF_CORPUS.format_version


def test_every_stage_of_a_project_lies_under_its_corpus_or_dataset() -> None:
    project = make_project(
        {
            "data_uri": "/data/lab",
            "corpora": {"web": {}, "books": {}},
            "datasets": {"ours": {"corpus": "web"}},
        }
    )
    store = open_store(project.dataset)
    assert (store.corpus, store.dataset) == ("web", "ours")
    folders = [store.folder(stage.tables, "s-0") for stage in STAGES]
    assert len(set(folders)) == len(STAGES)
    for stage, folder in zip(STAGES, folders, strict=True):
        owner = "web" if stage.scope == "corpus" else "ours"
        assert folder == f"/data/lab/{owner}/{stage.name}/s-0"
    of_corpus = open_store(project.find_corpus("books"))
    assert {of_corpus.home(s.tables) for s in STAGES if s.scope == "corpus"} == {"/data/lab/books"}
