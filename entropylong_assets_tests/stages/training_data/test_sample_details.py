"""Details of samples, read in small parts, are the rows of the tables."""

from __future__ import annotations

import pytest

from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.training_data import sample_details
from entropylong_assets.stages.training_data.sample_details import read_details
from entropylong_assets.storage.manifest import TableError
from entropylong_assets_tests.stages.training_data.stores import (
    SHARDS,
    export_settings,
    fill_store,
    table,
)

SHARD = SHARDS[0]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return fill_store(export_settings(tmp_path_factory.mktemp("data"), tokens=80))


@pytest.mark.parametrize(("rows", "at_once", "read_rows"), [(1, 1, 3), (2, 5, 7), (3, 64, 8192)])
def test_parts_of_any_size_hold_the_rows_of_their_samples(
    store, monkeypatch, rows, at_once, read_rows
) -> None:
    """A sample's rows may lie in several parts of a file, and a part may hold many samples."""
    monkeypatch.setattr(sample_details, "_SAMPLES_AT_ONCE", at_once)
    monkeypatch.setattr(sample_details, "_READ_ROWS", read_rows)
    parts = list(read_details(store, SHARD, rows))
    samples = table(store, "samples", [SHARD])
    assert len(samples) > 6
    assert {len(part) for part in parts[:-1]} == {rows}
    all_rows = [row for part in parts for row in part.iter_rows(named=True)]
    assert [row["sample_id"] for row in all_rows] == [row["sample_id"] for row in samples]
    compared = 0
    for name in ("segments", "dependencies"):
        expected = table(store, name, [SHARD])
        for row in all_rows:
            mine = [r for r in expected if r["sample_id"] == row["sample_id"]]
            for column in ("role", "start", "end", "chunk_id", "anchor_position", "distance"):
                if column in row[name]:
                    assert sorted(map(str, row[name][column])) == sorted(
                        str(r[column]) for r in mine
                    )
                    compared += len(mine)
    assert compared > 100


def test_samples_out_of_order_are_an_error(tmp_path) -> None:
    store = fill_store(export_settings(tmp_path, tokens=80))
    tables = {
        name: store.read(LONG_CONTEXT_SAMPLES, SHARD, name)
        for name in ("samples", "segments", "dependencies")
    }
    summary = store.summary(LONG_CONTEXT_SAMPLES, SHARD).model_dump()
    for wrong in ("samples", "segments"):
        with store.write(LONG_CONTEXT_SAMPLES, SHARD, fingerprint="t") as writer:
            for name, rows in tables.items():
                writer.append(name, rows.reverse() if name == wrong else rows)
            writer.summary = summary
        with pytest.raises(TableError, match=r"books-00000: samples are not in order"):
            list(read_details(store, SHARD, 16))
