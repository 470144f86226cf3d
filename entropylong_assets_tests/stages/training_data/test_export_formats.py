"""Formats in their registry: those of this package, and one of another."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import EntryPoint
from pathlib import Path

import polars as pl
import pytest

from entropylong_assets.settings.section import SettingsError
from entropylong_assets.stages.training_data.check_views import (
    count_samples,
    documents_by_split,
)
from entropylong_assets.stages.training_data.export import export_training_data
from entropylong_assets.stages.training_data.registry import EXPORT_FORMATS
from entropylong_assets_tests.extensions import installed
from entropylong_assets_tests.stages.training_data.stores import (
    CODE,
    SHARDS,
    export_settings,
    fill_store,
    table,
)

BUILT_IN = ["mds", "megatron", "nanotron", "olmo", "parquet"]
"""Those that need no text: these shards have none. test_jsonl.py has the other one."""


@pytest.fixture
def json_lines():
    """The format `json_lines`, as another package's entry point names it."""
    point = EntryPoint(
        "json_lines",
        "entropylong_assets_tests.stages.training_data.json_lines:JsonLines",
        "entropylong_assets.export_formats",
    )
    with installed(point):
        yield


def samples_by_split(counted: pl.DataFrame) -> dict[str, int]:
    return dict(counted.group_by("split").agg(pl.col("samples").sum()).iter_rows())


def test_format_of_another_package_is_exported_counted_and_described(json_lines, tmp_path):
    choice = {"formats": ["json_lines", "parquet"], "validation_fraction": 0.3}
    settings = export_settings(tmp_path, choice)
    store = fill_store(settings)
    export = export_training_data(store, SHARDS, settings, code_version=CODE)
    ids = {
        row["id"]: row["input_ids"]
        for path in Path(export.uri).glob("json_lines/*.jsonl")
        for row in map(json.loads, path.read_text().splitlines())
    }
    assert ids == {row["sample_id"]: row["input_ids"] for row in table(store, "samples")}
    counted = count_samples(export.uri, export.manifest)
    by_format = {name: samples_by_split(counted.filter(format=name)) for name in choice["formats"]}
    assert by_format == dict.fromkeys(choice["formats"], export.manifest["splits"])
    assert min(export.manifest["splits"].values()) > 0
    assert "### JSON Lines, one object with ids per sample" in (
        Path(export.uri) / "README.md"
    ).read_text(encoding="utf-8")


def test_unknown_format_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(
        SettingsError, match=r"no export format 'tfrecord'; there are jsonl, mds, meg"
    ):
        export_settings(tmp_path, {"formats": ["tfrecord"]})
    with pytest.raises(SettingsError, match="each once"):
        export_settings(tmp_path, {"formats": ["mds", "mds"]})


def test_every_built_in_format_describes_itself_and_counts_its_samples(tmp_path):
    assert [name for name in EXPORT_FORMATS.names() if name in BUILT_IN] == BUILT_IN
    settings = export_settings(tmp_path, {"formats": BUILT_IN, "validation_fraction": 0.3})
    export = export_training_data(fill_store(settings), SHARDS, settings, code_version=CODE)
    counted = count_samples(export.uri, export.manifest)
    for name in BUILT_IN:
        assert samples_by_split(counted.filter(format=name)) == export.manifest["splits"]
        assert 10 < len(EXPORT_FORMATS[name].description) < 100


def test_counts_are_those_of_the_files(tmp_path):
    """Not those of the manifest: a file with other samples in it must be noticed."""
    settings = export_settings(tmp_path, {"formats": BUILT_IN, "validation_fraction": 0.3})
    export = export_training_data(fill_store(settings), SHARDS, settings, code_version=CODE)
    folder = Path(export.uri)
    for name, file in (("parquet", "{}-00000.parquet"), ("megatron", "{}-books.idx")):
        shutil.copy(folder / name / file.format("train"), folder / name / file.format("validation"))
    counted = count_samples(export.uri, export.manifest)
    for name in ("parquet", "megatron"):
        count = counted.filter(format=name, split="validation")["samples"].sum()
        assert count != export.manifest["splits"]["validation"]


def test_documents_are_read_from_the_parquet_form(tmp_path):
    settings = export_settings(tmp_path, {"formats": BUILT_IN, "validation_fraction": 0.3})
    store = fill_store(settings)
    export = export_training_data(store, SHARDS, settings, code_version=CODE)
    documents = documents_by_split(export.uri, export.manifest).drop_nulls()
    assert set(documents["doc_id"]) == {
        s["doc_id"] for s in table(store, "segments") if s["doc_id"]
    }
    assert set(documents["split"]) == {"train", "validation"}
