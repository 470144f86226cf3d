"""The asset over all shards, through real Dagster runs: what it takes, leaves out and reports."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import dagster as dg
import pytest

from entropylong_assets.orchestration.local_run import (
    RunError,
    export_is_current,
    register_shards,
    run_export,
    run_pipeline,
)
from entropylong_assets.settings.model import Settings, make_settings
from entropylong_assets.stages.training_data.eligibility import find_healthy
from entropylong_assets.stages.training_data.verify import read_manifest
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.tiny_world import tiny_settings

SHARDS = ["tiny-00000", "tiny-00001"]


@pytest.fixture
def made(
    tmp_path: Path, tiny_models: tuple[str, str], tiny_corpus: Path, world: Any
) -> tuple[Settings, TableStore]:
    """A copy of the tables of the pipeline that ran whole, to be damaged."""
    data = tmp_path / "data"
    shutil.copytree(world.settings.data_uri, data)
    settings = tiny_settings(tiny_corpus, data, tiny_models)
    return settings, TableStore(settings.data_uri)


def rewrite(store: TableStore, asset: str, shard: str, **changes: Any) -> None:
    """Changes top-level keys of a partition's manifest."""
    path = f"{store.folder(asset, shard)}/manifest.json"
    manifest = json.loads(store.fs.cat_file(path))
    store.put(path, json.dumps(manifest | changes).encode())


def test_whole_shards_are_healthy(made: tuple[Settings, TableStore]) -> None:
    settings, store = made
    health = find_healthy(store, settings, {})
    assert list(health.healthy) == SHARDS
    assert health.left_out == {}


def test_a_shard_with_a_failed_check_is_left_out(made: tuple[Settings, TableStore]) -> None:
    settings, store = made
    health = find_healthy(store, settings, {SHARDS[0]: "check x of y failed"})
    assert list(health.healthy) == SHARDS[1:]
    assert health.left_out == {SHARDS[0]: "check x of y failed"}


def test_a_shard_without_samples_is_left_out(made: tuple[Settings, TableStore]) -> None:
    settings, store = made
    store.fs.rm(f"{store.folder('long_context_samples', SHARDS[1])}/manifest.json")
    health = find_healthy(store, settings, {})
    assert health.left_out == {SHARDS[1]: "long_context_samples is not materialised"}


@pytest.mark.parametrize(
    ("redone", "stale"),
    [
        ("corpus_documents", "entropy_scores"),
        ("entropy_scores", "candidate_contexts"),
        ("candidate_contexts", "verified_dependencies"),
        ("verified_dependencies", "long_context_samples"),
    ],
)
def test_a_shard_whose_upstream_was_redone_is_left_out(
    made: tuple[Settings, TableStore], redone: str, stale: str
) -> None:
    """Guards against samples exported with the tables of another run behind them."""
    settings, store = made
    manifest = store.require(redone, SHARDS[0])
    tables = {name: file.model_dump() for name, file in manifest.tables.items()}
    next(iter(tables.values()))["sha256"] = "0" * 64
    rewrite(store, redone, SHARDS[0], tables=tables)
    health = find_healthy(store, settings, {})
    assert list(health.healthy) == SHARDS[1:]
    assert health.left_out[SHARDS[0]].startswith(f"{stale} was made from an older {redone}")


def test_a_new_index_leaves_old_shards_healthy(made: tuple[Settings, TableStore]) -> None:
    """A new shard changes the index; without this every old shard would fall out."""
    settings, store = made
    tables = {n: f.model_dump() for n, f in store.require("embedding_index").tables.items()}
    next(iter(tables.values()))["sha256"] = "0" * 64
    before = store.require("embedding_index").data_version
    rewrite(store, "embedding_index", "all", tables=tables)
    assert store.require("embedding_index").data_version != before
    assert list(find_healthy(store, settings, {}).healthy) == SHARDS


def test_shards_made_under_other_settings_are_left_out(made: tuple[Settings, TableStore]) -> None:
    """The manifest of an export tells one ε: no shard made under another may be in it."""
    settings, store = made
    plain = settings.model_dump(mode="json")
    plain["verification"]["epsilon"] = 0.2
    other = make_settings("calibrated", plain)
    health = find_healthy(store, other, {})
    assert health.healthy == ()
    fault = "verified_dependencies was made under other settings or by other code"
    assert all(why.startswith(fault) for why in health.left_out.values())


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, tiny_models: tuple[str, str], tiny_corpus: Path
) -> Iterator[tuple[Settings, dg.DagsterInstance, dict[str, Any]]]:
    """A pipeline of its own, run whole and exported."""
    settings = tiny_settings(
        tiny_corpus,
        tmp_path_factory.mktemp("exported"),
        tiny_models,
        export={"formats": ["mds", "parquet", "megatron"], "validation_fraction": 0.5},
    )
    with dg.DagsterInstance.ephemeral() as instance:
        run_pipeline(settings, register_shards(settings, instance), instance)
        yield settings, instance, run_export(settings, instance)


def latest_checks(instance: dg.DagsterInstance) -> dict[str, str]:
    names = (
        "files_as_written",
        "every_sample_exported",
        "no_document_in_both_splits",
        "all_shards_exported",
    )
    keys = [dg.AssetCheckKey(dg.AssetKey("training_dataset"), name) for name in names]
    found = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    return {key.name: record.status.value for key, record in found.items()}


def test_the_ui_shows_figures_and_a_link_to_the_report(
    exported: tuple[Settings, dg.DagsterInstance, dict[str, Any]],
) -> None:
    settings, instance, metadata = exported
    manifest = read_manifest(metadata["uri"])
    assert metadata["dagster/row_count"] == manifest["figures"]["samples"] > 0
    assert metadata["mean_gain"] == manifest["figures"]["mean_gain"]
    assert metadata["shards exported"] == 2
    assert metadata["formats"] == "mds, parquet, megatron"
    report = Path(unquote(urlparse(metadata["report"]).path))
    assert report.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not report.is_relative_to(metadata["uri"]), "it is no file of the export"
    assert set(latest_checks(instance).values()) == {"SUCCEEDED"}
    assert len(latest_checks(instance)) == 4
    assert settings.data_uri in metadata["uri"]


def test_a_second_export_is_the_same_one(
    exported: tuple[Settings, dg.DagsterInstance, dict[str, Any]],
) -> None:
    settings, instance, metadata = exported
    assert export_is_current(settings, instance)
    export = settings.export.model_copy(update={"formats": ("mds",)})
    assert not export_is_current(settings.model_copy(update={"export": export}), instance)
    again = run_export(settings, instance)
    assert again["kept as it was"] is True
    assert again["uri"] == metadata["uri"]


def test_a_shard_whose_check_did_not_pass_falls_out(
    exported: tuple[Settings, dg.DagsterInstance, dict[str, Any]],
) -> None:
    """Through Dagster's own records: a failed check now, whatever it said before."""
    settings, instance, _ = exported
    samples = dg.AssetKey("long_context_samples")
    failed = dg.AssetCheckEvaluation(
        asset_key=samples,
        check_name="exact_length",
        passed=False,
        metadata={},
        blocking=True,
        partition=SHARDS[0],
    )
    instance.report_runless_asset_event(failed)
    made = run_export(settings, instance)
    assert made["shards exported"] == 1
    assert set(made["why left out"]) == {SHARDS[0]}
    assert made["why left out"][SHARDS[0]].startswith("check exact_length of long_context_samples")
    assert read_manifest(made["uri"])["figures"]["documents"] > 0
    assert latest_checks(instance)["all_shards_exported"] == "FAILED"

    # A table made after its checks were run is as good as unchecked.
    redone = dg.AssetMaterialization(samples, partition=SHARDS[1])
    instance.report_runless_asset_event(redone)
    assert not export_is_current(settings, instance)
    with pytest.raises(RunError, match=r"none of 2 shards is healthy; tiny-00000: check "):
        run_export(settings, instance)


def test_a_flipped_byte_fails_the_check(
    tmp_path: Path, exported: tuple[Settings, dg.DagsterInstance, dict[str, Any]]
) -> None:
    from entropylong_assets.stages.training_data.verify import verify_export

    _, _, metadata = exported
    copy = tmp_path / "copy"
    shutil.copytree(metadata["uri"], copy)
    assert verify_export(str(copy)).faults == ()
    path = next(copy.rglob("*.mds"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert verify_export(str(copy)).faults == (f"{path.relative_to(copy)}: its bytes have changed",)
