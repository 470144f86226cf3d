"""The stage `corpus_documents`: what it publishes, what makes it stale, what its checks find."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from entropylong_assets.project import make_project, open_store
from entropylong_assets.stages.checks import run_checks
from entropylong_assets.stages.corpus.errors import CorpusError
from entropylong_assets.stages.corpus.shards import load_plan, plan_shards, save_plan
from entropylong_assets.stages.corpus.stage import CORPUS_DOCUMENTS_STAGE
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.versioning import is_up_to_date, stale_reason
from entropylong_assets_tests.stages.corpus.files_for_tests import write_rows

STAGE = CORPUS_DOCUMENTS_STAGE


def values_for(folder: Path, **corpus: Any) -> dict[str, Any]:
    source = {"name": "s", "uri": str(folder / "in/*.jsonl"), "id_field": "id"}
    return {
        "data_uri": str(folder / "data"),
        "corpus": {"sources": [source], "min_chars": 4, **corpus},
    }


def partition_of(values: dict[str, Any], shard: str = "s-00000") -> Partition:
    settings = make_project(values).corpus
    return Partition(settings, open_store(settings), shard)


def register(partition: Partition) -> None:
    plan = plan_shards(partition.settings, load_plan(partition.store).shards)
    save_plan(partition.store, plan)


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    rows = [{"id": f"r{i}", "text": text} for i, text in enumerate(["first", "second", "first"])]
    write_rows(tmp_path / "in/a.jsonl", [*rows, {"id": "r3", "text": "abc"}])
    values = values_for(tmp_path)
    register(partition_of(values))
    return values


def test_a_shard_is_published_with_its_summary(values: dict[str, Any]) -> None:
    partition, progress = partition_of(values), []
    materialization = materialize(
        STAGE,
        partition,
        observer=lambda state: progress.append((state.unit, state.done, state.total)),
    )
    summary = partition.store.summary(CORPUS_DOCUMENTS, "s-00000")
    assert summary.model_dump() == {
        "rows_read": 4,
        "documents": 2,
        "chars": 11,
        "dropped": {"duplicate_in_shard": 1, "too_short": 1},
        "files_without_rows": 0,
        "not_selected": 0,
        "evaluation_sets": (),
    }
    assert set(progress) == {("rows", 0, None), ("rows", 4, 4)}  # before it begins, and after
    assert materialization.metadata["share of duplicates"] == 0.25
    assert [Path(file).name for file in materialization.metadata["files"]] == ["a.jsonl"]  # type: ignore[union-attr]
    preview = materialization.metadata["preview"]
    assert isinstance(preview, pl.DataFrame)
    assert preview["text"].to_list() == ["first", "second"]
    outcomes = {result.check.name: result.passed for result in run_checks(STAGE, partition)}
    assert outcomes == {check.name: True for check in STAGE.checks}


def test_the_corpus_does_not_depend_on_a_dataset(values: dict[str, Any]) -> None:
    partition = partition_of(values)
    materialize(STAGE, partition)
    other = {
        **values,
        "seed": 99,
        "scoring": {"model": "another"},
        "roots": {"fraction": 0.5, "min_tokens": 2, "max_tokens": 9},
    }
    assert is_up_to_date(STAGE, partition_of(other))
    columns = partition.store.read(CORPUS_DOCUMENTS, "s-00000", "documents").columns
    assert not {"n_tokens", "is_root"} & set(columns)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"min_chars": 3}, "setting min_chars has changed"),
        ({"max_chars": 10}, "setting max_chars has changed"),
        ({"on_bad_row": "skip", "max_bad_share": 0.9}, None),
        ({"shard_rows": 7}, None),
    ],
)
def test_settings_that_change_documents_make_them_stale(
    tmp_path: Path, values: dict[str, Any], changes: dict[str, Any], reason: str | None
) -> None:
    materialize(STAGE, partition_of(values))
    assert stale_reason(STAGE, partition_of(values_for(tmp_path, **changes))) == reason


def test_a_changed_source_or_file_makes_its_shard_stale_and_no_other(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    partition = partition_of(values)
    materialize(STAGE, partition)
    (source,) = values["corpus"]["sources"]
    more = {"name": "t", "uri": str(tmp_path / "in/*.jsonl")}
    values["corpus"]["sources"] = [source, more]
    assert is_up_to_date(STAGE, partition_of(values))
    values["corpus"]["sources"] = [{**source, "license": "mit"}, more]
    assert stale_reason(STAGE, partition_of(values)) == "source has changed"
    file = tmp_path / "in/a.jsonl"
    os.utime(file, (1_700_000_000, 1_700_000_000))
    assert stale_reason(STAGE, partition) == "shard has changed"
    materialize(STAGE, partition)
    assert is_up_to_date(STAGE, partition)


def test_a_shard_outside_the_plan_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(CorpusError, match="shard s-00009: no shard of the corpus has this name"):
        materialize(STAGE, partition_of(values, "s-00009"))


def test_bad_rows_warn_and_too_many_hold_the_shard_back(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text('{"text": "good", "id": 1}\n{broken\n{"text": 5}\n')
    for share, held_back in ((0.7, False), (0.5, True)):
        partition = partition_of(values_for(tmp_path, on_bad_row="skip", max_bad_share=share))
        register(partition)
        materialize(STAGE, partition)
        failed = {r.check.name: r.faulty_rows for r in run_checks(STAGE, partition)}
        assert failed.pop("bad_rows") == 2
        assert failed.pop("few_bad_rows") == (2 if held_back else 0)
        assert not any(failed.values())


DAMAGES = {
    "unique_documents": lambda rows: pl.concat([rows, rows.head(1)]),
    "no_empty_text": lambda rows: rows.with_columns(n_chars=pl.lit(5)),
    "rows_reconcile": lambda rows: rows.head(1),
}


@pytest.mark.parametrize("check", DAMAGES)
def test_checks_find_what_they_are_for(values: dict[str, Any], check: str) -> None:
    """A table is written again with one fault; the manifest's summary is unchanged."""
    partition = partition_of(values)
    store, shard = partition.store, partition.shard
    materialize(STAGE, partition)
    documents = store.read(CORPUS_DOCUMENTS, shard, "documents")
    dropped = store.read(CORPUS_DOCUMENTS, shard, "dropped")
    summary = store.require(CORPUS_DOCUMENTS, shard).summary
    with store.write(CORPUS_DOCUMENTS, shard, fingerprint="f") as writer:
        writer.append("documents", DAMAGES[check](documents))
        writer.append("dropped", dropped)
        writer.summary = summary
    failed = {r.check.name for r in run_checks(STAGE, partition) if not r.passed}
    assert check in failed
    assert failed <= {check, "rows_reconcile"}
