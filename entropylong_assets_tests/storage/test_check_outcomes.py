"""Outcomes of checks are valid only for the manifest that they were recorded for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from entropylong_assets.stages.embeddings.tables import EMBEDDING_INDEX
from entropylong_assets.storage.manifest import CheckOutcome, TableError
from entropylong_assets.storage.tables import CHECKS, MANIFEST, WHOLE, TableStore
from entropylong_assets_tests.forkserver import PROCESSES

PASSED = CheckOutcome(passed=True, blocking=True, faulty_rows=0)
FAILED = CheckOutcome(passed=False, blocking=False, faulty_rows=3)


def write(store: TableStore, version: str, fingerprint: str = "f", shard: str = WHOLE) -> None:
    row = {"shard": "s-0", "position": 0, "data_version": version, "n_chunks": 1}
    with store.write(EMBEDDING_INDEX, shard, fingerprint=fingerprint) as writer:
        writer.append("shards", [row])


def record(store: TableStore, shard: str = WHOLE, **outcomes: CheckOutcome) -> None:
    store.record_checks(EMBEDDING_INDEX, shard, outcomes)


def read(store: TableStore, shard: str = WHOLE) -> dict[str, CheckOutcome]:
    """Outcomes as another process reads them."""
    again = TableStore(store.uri, store.corpus, store.dataset)
    return again.check_outcomes(EMBEDDING_INDEX, shard)


def test_outcomes_are_read_back_whole(store: TableStore) -> None:
    write(store, "v1")
    assert read(store) == {}
    record(store, a=PASSED, b=FAILED)
    assert read(store) == {"a": PASSED, "b": FAILED}


def test_outcomes_recorded_one_by_one_are_merged_and_the_last_of_a_name_wins(
    store: TableStore,
) -> None:
    write(store, "v1")
    record(store, b=FAILED)
    record(store, a=PASSED)
    record(store, c=PASSED)
    record(store, b=PASSED)
    assert read(store) == {"a": PASSED, "b": PASSED, "c": PASSED}


@pytest.mark.parametrize(
    ("version", "fingerprint", "stays"),
    [("v2", "f", False), ("v1", "f2", False), ("v2", "f2", False), ("v1", "f", True)],
    ids=["other content", "other determinants", "both", "the same again"],
)
def test_outcomes_are_invalid_once_the_partition_differs(
    store: TableStore, version: str, fingerprint: str, stays: bool
) -> None:
    """The failure: a partition that no check has seen counts as checked."""
    write(store, "v1")
    record(store, a=PASSED, b=FAILED)
    write(store, version, fingerprint)
    assert read(store) == ({"a": PASSED, "b": FAILED} if stays else {})
    record(store, c=PASSED)
    assert set(read(store)) == ({"a", "b", "c"} if stays else {"c"}), "an old outcome is back"


def test_outcomes_belong_to_one_shard(store: TableStore) -> None:
    for shard in ("s-0", "s-1"):
        write(store, "v1", shard=shard)
    record(store, "s-0", a=PASSED)
    assert read(store, "s-0") == {"a": PASSED}
    assert read(store, "s-1") == {}


def test_outcomes_of_an_unpublished_partition_are_refused(store: TableStore) -> None:
    """A run that ended before it published leaves a folder without a manifest."""
    assert read(store) == {}
    store.fs.makedirs(store.folder(EMBEDDING_INDEX), exist_ok=True)
    with pytest.raises(TableError, match="not materialized yet"):
        record(store, a=PASSED)
    assert read(store) == {}


def test_outcomes_are_invalid_without_their_manifest(store: TableStore) -> None:
    write(store, "v1")
    record(store, a=PASSED)
    store.fs.rm(f"{store.folder(EMBEDDING_INDEX)}/{MANIFEST}")
    assert read(store) == {}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"outcomes": {}}', b'{"fingerprint": 1}']
)
def test_a_damaged_record_counts_as_none_and_is_replaced(store: TableStore, content: bytes) -> None:
    write(store, "v1")
    record(store, a=PASSED)
    store.fs.pipe_file(f"{store.folder(EMBEDDING_INDEX)}/{CHECKS}", content)
    assert read(store) == {}
    record(store, b=FAILED)
    assert read(store) == {"b": FAILED}


def test_recording_changes_neither_the_tables_nor_the_manifest(store: TableStore) -> None:
    write(store, "v1")
    folder = store.folder(EMBEDDING_INDEX)
    before = {path: store.fs.cat_file(path) for path in store.fs.find(folder)}
    record(store, a=PASSED)
    after = {path: store.fs.cat_file(path) for path in store.fs.find(folder)}
    (added,) = after.keys() - before.keys()
    assert added.endswith(f"/{CHECKS}")
    assert before.items() <= after.items()


def _record_many(uri: str, prefix: str, count: int) -> None:
    store = TableStore(uri)
    for number in range(count):
        record(store, **{f"{prefix}{number:02}": PASSED})


def test_concurrent_recording_loses_no_outcome_on_a_local_disk(tmp_path: Path) -> None:
    """Dagster runs the checks of a partition in several processes at once."""
    store = TableStore(str(tmp_path))
    write(store, "v1")
    writers = [
        PROCESSES.Process(target=_record_many, args=(store.uri, prefix, 40)) for prefix in "abcd"
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert set(read(store)) == {f"{prefix}{number:02}" for prefix in "abcd" for number in range(40)}
    folder = Path(store.folder(EMBEDDING_INDEX))
    assert json.loads((folder / CHECKS).read_text())["fingerprint"] == "f"
    assert not list(folder.glob(".put-*"))
