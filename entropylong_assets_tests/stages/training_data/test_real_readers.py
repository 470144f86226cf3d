"""The libraries that trainers use load our exports unchanged (`make test-exports`)."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from entropylong_assets.stages.training_data.export import export_training_data
from entropylong_assets_tests.stages.training_data.stores import (
    CODE,
    SHARDS,
    TOKENS,
    export_settings,
    fill_store,
    table,
)

PYTHON = os.environ.get("ENTROPYLONG_READERS_PYTHON")
READER = Path(__file__).parent / "readers" / "read_export.py"

pytestmark = pytest.mark.skipif(
    not PYTHON, reason="the real readers have an environment of their own: make test-exports"
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    choice = {
        "formats": ["mds", "parquet", "megatron"],
        "file_bytes": 4096,
        "validation_fraction": 0.3,
        "position_weighted": True,
    }
    settings = export_settings(tmp_path_factory.mktemp("data"), choice)
    store = fill_store(settings)
    export = export_training_data(store, SHARDS, settings, code_version=CODE)
    assert min(export.manifest["splits"].values()) > 0
    return store, export


def read(form: str, export, tmp_path) -> list[dict]:
    command = [str(PYTHON), str(READER), form, export.uri, str(tmp_path)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def ids_of_the_table(store) -> dict[str, str]:
    return {
        row["sample_id"]: hashlib.sha256(np.array(row["input_ids"], np.int64).tobytes()).hexdigest()
        for row in table(store, "samples")
    }


def test_streaming_dataset_reads_mds(exported, tmp_path):
    store, export = exported
    rows = read("mds", export, tmp_path)
    expected = ids_of_the_table(store)
    assert len(rows) == 2 * len(expected), "in place and fetched"
    padding = {row["sample_id"]: row["n_padding"] for row in table(store, "samples")}
    dependencies = 0
    for row in rows:
        assert row["ids"] == expected[row["sample_id"]]
        assert row["types"] == {
            "input_ids": "uint32",
            "indices": "int64",
            "mask": "uint8",
            "position_weighted": "float32",
        }
        assert row["indices"] == [[0, TOKENS]]
        assert row["length"] == TOKENS
        assert row["domain"] == row["sample_id"].rsplit("-", 2)[0]
        assert row["learnt"] == TOKENS - 1 - padding[row["sample_id"]]
        assert row["in_one_span"] == row["dependencies"]
        dependencies += row["dependencies"]
    assert dependencies == 2 * len(table(store, "dependencies")) > 20
    assert {row["split"] for row in rows} == {"train", "validation"}


def test_datasets_loads_folder_and_card(exported, tmp_path):
    store, export = exported
    rows = read("parquet", export, tmp_path)
    assert {row["sample_id"]: row["ids"] for row in rows} == ids_of_the_table(store)
    splits = [row["split"] for row in rows]
    assert {split: splits.count(split) for split in set(splits)} == export.manifest["splits"]
    assert sum(row["segments"] for row in rows) == len(table(store, "segments"))
    assert sum(row["dependencies"] for row in rows) == len(table(store, "dependencies"))
    padding = sum(row["n_padding"] for row in table(store, "samples"))
    assert sum(row["learnt"] for row in rows) == len(rows) * TOKENS - padding


def test_megatron_reads_its_index(exported, tmp_path):
    store, export = exported
    rows = read("megatron", export, tmp_path)
    assert sorted(row["ids"] for row in rows) == sorted(ids_of_the_table(store).values())
    splits = [row["split"] for row in rows]
    assert {split: splits.count(split) for split in set(splits)} == export.manifest["splits"]
