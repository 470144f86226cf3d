"""The stage over all shards: which shards it exports, what it reports, and its checks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from entropylong_assets.project import make_project, open_store
from entropylong_assets.settings.loading import merge
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.checks import CheckResult, run_checks
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.embeddings.tables import EMBEDDING_INDEX
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.execution import Materialization, materialize
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.samples.stage import LONG_CONTEXT_SAMPLES_STAGE
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.training_data.destination import export_uri
from entropylong_assets.stages.training_data.manifest import ExportError, encode_manifest
from entropylong_assets.stages.training_data.stage import TRAINING_DATASET_STAGE
from entropylong_assets.stages.training_data.tables import TRAINING_DATASET
from entropylong_assets.stages.training_data.verify import read_manifest, verify_export
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.stages.versioning import Eligibility, eligible_shards, stale_reason
from entropylong_assets.storage.manifest import CheckOutcome
from entropylong_assets.storage.schemas import TableSet
from entropylong_assets.storage.tables import WHOLE, TableStore
from entropylong_assets_tests.stages.training_data.shards import export_partition, make_shards
from entropylong_assets_tests.stages.training_data.stores import rewrite_manifest
from entropylong_assets_tests.tiny_world import tiny_values

SHARDS = ["tiny-00000", "tiny-00001"]
FORMATS = ["mds", "parquet", "megatron"]


@dataclass(frozen=True)
class Tiny:
    """A dataset whose two shards are made and checked, but not exported."""

    values: dict[str, Any]

    def settings(self, data_uri: Path | None = None, **over: Any) -> Settings:
        """Its settings with other values, for a copy of the data under `data_uri`."""
        moved = {"data_uri": str(data_uri)} if data_uri else {}
        return make_project(merge(self.values, moved | over)).dataset


@pytest.fixture(scope="module")
def tiny(
    tmp_path_factory: pytest.TempPathFactory, tiny_models: tuple[str, str], tiny_corpus: Path
) -> Tiny:
    data = tmp_path_factory.mktemp("data")
    export = {"formats": FORMATS, "validation_fraction": 0.5}
    dataset = Tiny(tiny_values(tiny_corpus, data, tiny_models, export=export))
    assert make_shards(dataset.settings()) == SHARDS
    return dataset


@pytest.fixture
def copy(tmp_path: Path, tiny: Tiny) -> Callable[..., Settings]:
    """Settings for a copy of the data, to be damaged."""
    shutil.copytree(tiny.settings().data_uri, tmp_path / "data")
    return lambda **over: tiny.settings(tmp_path / "data", **over)


def eligibility(settings: Settings) -> Eligibility:
    return eligible_shards(TRAINING_DATASET_STAGE, export_partition(settings))


def export(settings: Settings) -> Materialization:
    return materialize(TRAINING_DATASET_STAGE, export_partition(settings))


def check_all(settings: Settings) -> dict[str, CheckResult]:
    results = run_checks(TRAINING_DATASET_STAGE, export_partition(settings))
    return {result.check.name: result for result in results}


def left_out(settings: Settings) -> dict[str, str]:
    rows = open_store(settings).read(TRAINING_DATASET, WHOLE, "left_out")
    return dict(rows.select("shard", "reason").iter_rows())


def change_data(store: TableStore, tables: TableSet, shard: str) -> None:
    """Give a partition another data version."""
    before = store.require(tables, shard)
    files = {name: file.model_dump() for name, file in before.tables.items()}
    next(iter(files.values()))["sha256"] = "0" * 64
    rewrite_manifest(store, tables, shard, tables=files)
    assert store.require(tables, shard).data_version != before.data_version


def fail_check(store: TableStore, shard: str) -> None:
    outcome = CheckOutcome(passed=False, blocking=True, faulty_rows=1)
    store.record_checks(LONG_CONTEXT_SAMPLES, shard, {"exact_length": outcome})


# Which shards are exported


def test_whole_shards_are_eligible(tiny: Tiny) -> None:
    assert eligibility(tiny.settings()) == Eligibility(tuple(SHARDS), {})


def test_chain_names_every_table_that_an_export_reads(tiny: Tiny) -> None:
    from entropylong_assets.stages.training_data.export import _INPUTS

    assert {stage.tables for stage in TRAINING_DATASET_STAGE.chain()} == set(_INPUTS)
    assert "exact_length" in LONG_CONTEXT_SAMPLES_STAGE.blocking_checks


def test_a_shard_with_a_failed_check_is_left_out(copy: Callable[..., Settings]) -> None:
    settings = copy()
    fail_check(open_store(settings), SHARDS[0])
    eligible = eligibility(settings)
    assert list(eligible.shards) == SHARDS[1:]
    assert eligible.left_out == {SHARDS[0]: "check exact_length of long_context_samples failed"}


def test_a_shard_remade_after_its_checks_is_left_out(copy: Callable[..., Settings]) -> None:
    settings = copy()
    rewrite_manifest(open_store(settings), LONG_CONTEXT_SAMPLES, SHARDS[1], fingerprint="other")
    assert eligibility(settings).left_out[SHARDS[1]].endswith("has not run on the present data")


@pytest.mark.parametrize(
    ("redone", "stale"),
    [
        (CORPUS_DOCUMENTS, ENTROPY_SCORES),
        (ENTROPY_SCORES, CANDIDATE_CONTEXTS),
        (CANDIDATE_CONTEXTS, VERIFIED_DEPENDENCIES),
        (VERIFIED_DEPENDENCIES, LONG_CONTEXT_SAMPLES),
    ],
    ids=lambda tables: tables.name,
)
def test_a_shard_whose_upstream_was_redone_is_left_out(
    copy: Callable[..., Settings], redone: TableSet, stale: TableSet
) -> None:
    """Samples must not be exported with tables of another run as their provenance.

    The checks of the redone table count as passed, so that the versions alone decide.
    """
    settings = copy()
    store = open_store(settings)
    outcomes = store.check_outcomes(redone, SHARDS[0])
    change_data(store, redone, SHARDS[0])
    store.record_checks(redone, SHARDS[0], outcomes)
    eligible = eligibility(settings)
    assert list(eligible.shards) == SHARDS[1:]
    assert eligible.left_out[SHARDS[0]].startswith(
        f"{stale.name} was made from an older {redone.name}"
    )


def test_a_new_index_leaves_old_shards_eligible(copy: Callable[..., Settings]) -> None:
    """A new shard changes the index; without this every old shard would be left out."""
    settings = copy()
    change_data(open_store(settings), EMBEDDING_INDEX, WHOLE)
    assert list(eligibility(settings).shards) == SHARDS


def test_shards_made_under_other_settings_are_left_out(copy: Callable[..., Settings]) -> None:
    """The manifest of an export names one ε: no shard made under another may be in it."""
    eligible = eligibility(copy(verification={"epsilon": 0.2}))
    assert eligible.shards == ()
    fault = "verified_dependencies is stale (setting verification.epsilon has changed)"
    assert all(reason.startswith(fault) for reason in eligible.left_out.values())
    assert len(eligible.left_out) == 2


# What is exported and reported


def test_summary_and_tables_are_those_of_the_export(copy: Callable[..., Settings]) -> None:
    settings = copy()
    materialization = export(settings)
    store = open_store(settings)
    summary = store.summary(TRAINING_DATASET)
    uri = export_uri(settings, summary.version)
    assert materialization.metadata["uri"] == uri
    assert Path(uri).parent == Path(store.dataset_uri) / "exports"
    manifest = read_manifest(uri)
    assert summary.samples == manifest["figures"]["samples"] > 0
    assert summary.mean_gain == manifest["figures"]["mean_gain"]
    assert summary.splits == manifest["splits"]
    assert summary.left_out_of_splits == manifest["left_out"]
    assert summary.files == len(manifest["files"])
    assert summary.bytes == sum(file["bytes"] for file in manifest["files"])
    assert (summary.shards, summary.shards_left_out, summary.reused) == (2, 0, False)
    assert materialization.metadata["formats"] == "mds, megatron, parquet"
    assert materialization.unit == "samples"
    rows = store.read(TRAINING_DATASET, WHOLE, "shards").to_dicts()
    assert [row["shard"] for row in rows] == SHARDS
    for row in rows:
        samples = store.require(LONG_CONTEXT_SAMPLES, row["shard"])
        assert row["data_version"] == samples.data_version
        assert row["n_samples"] == samples.tables["samples"].rows
        assert row["export"] == summary.version
    assert sum(row["n_samples"] for row in rows) == summary.samples
    assert {name: r.passed for name, r in check_all(settings).items()} == {
        "files_as_written": True,
        "every_sample_exported": True,
        "no_document_in_both_splits": True,
        "all_shards_exported": True,
    }


def test_a_second_export_is_the_same_one(copy: Callable[..., Settings]) -> None:
    settings = copy()
    first = export(settings).manifest
    assert stale_reason(TRAINING_DATASET_STAGE, export_partition(settings)) is None
    again = export(settings).manifest
    assert again.summary["reused"] is True
    assert again.summary["version"] == first.summary["version"]
    assert again.data_version == first.data_version


@pytest.mark.parametrize(
    ("over", "setting"),
    [
        ({"export": {"formats": ["mds"]}}, "export"),
        ({"export": {"destination": "/elsewhere"}}, "export"),
        ({"seed": 7}, "seed"),
    ],
)
def test_a_changed_setting_makes_the_export_stale(
    copy: Callable[..., Settings], over: dict[str, Any], setting: str
) -> None:
    settings = copy()
    export(settings)
    changed = export_partition(copy(**over))
    assert stale_reason(TRAINING_DATASET_STAGE, changed) == f"setting {setting} has changed"


def test_another_format_has_another_data_version(copy: Callable[..., Settings]) -> None:
    """The report and other readers of the export become stale, although the shards are the same."""
    first = export(copy()).manifest
    second = export(copy(export={"formats": ["mds"]})).manifest
    assert first.data_version != second.data_version


def test_settings_that_no_sample_shows_are_no_part_of_an_export(
    copy: Callable[..., Settings],
) -> None:
    """Guards against a new folder after a change of an audit or of a device setting."""
    first = export(copy()).manifest
    again = export(copy(audit={"roots": 7}, scoring={"trust_remote_code": True})).manifest
    assert again.summary["version"] == first.summary["version"]
    assert again.summary["reused"] is True


def test_another_destination_gets_the_same_export(
    copy: Callable[..., Settings], tmp_path: Path
) -> None:
    first = export(copy())
    second = export(copy(export={"destination": str(tmp_path / "shelf")}))
    version = first.manifest.summary["version"]
    assert second.manifest.summary["version"] == version
    assert second.metadata["uri"] == str(tmp_path / "shelf" / version)
    assert verify_export(second.metadata["uri"]).faults == ()


def test_shards_that_are_left_out_are_named(copy: Callable[..., Settings]) -> None:
    settings = copy()
    store = open_store(settings)
    fail_check(store, SHARDS[0])
    materialization = export(settings)
    assert store.summary(TRAINING_DATASET).shards == 1
    assert left_out(settings) == {SHARDS[0]: "check exact_length of long_context_samples failed"}
    assert materialization.metadata["left out"] == left_out(settings)
    assert read_manifest(materialization.metadata["uri"])["figures"]["documents"] > 0
    result = check_all(settings)["all_shards_exported"]
    assert not result.passed
    assert result.check.warns
    assert not result.check.blocking
    assert result.examples["shard"].to_list() == [SHARDS[0]]

    fail_check(store, SHARDS[1])
    with pytest.raises(
        ExportError, match=r"none of 2 shards can be exported; tiny-00000: check exact_length"
    ):
        export(settings)


def test_a_planned_shard_without_samples_is_named(copy: Callable[..., Settings]) -> None:
    settings = copy()
    store = open_store(settings)
    store.fs.rm(f"{store.folder(LONG_CONTEXT_SAMPLES, SHARDS[1])}/manifest.json")
    export(settings)
    assert left_out(settings) == {SHARDS[1]: "long_context_samples is not materialized"}
    assert store.summary(TRAINING_DATASET).shards_left_out == 1


def test_nothing_to_export_is_one_clear_line(tmp_path: Path, tiny: Tiny) -> None:
    with pytest.raises(ExportError, match="no shard yet; run `entropylong run`, or"):
        export(tiny.settings(tmp_path / "empty"))


def test_a_copied_data_folder_is_exported_by_itself(
    copy: Callable[..., Settings], tmp_path: Path, tiny: Tiny
) -> None:
    """No Dagster instance knows the copy: its manifests and check outcomes suffice."""
    here = copy()
    first = export(here).manifest
    shutil.copytree(here.data_uri, tmp_path / "moved")
    shutil.rmtree(here.data_uri)
    moved = tiny.settings(tmp_path / "moved")
    assert stale_reason(TRAINING_DATASET_STAGE, export_partition(moved)) is None
    version = open_store(moved).summary(TRAINING_DATASET).version
    assert verify_export(export_uri(moved, version)).faults == ()
    assert all(result.passed for result in check_all(moved).values())

    shutil.rmtree(tmp_path / "moved" / moved.name / "exports")
    again = export(moved)
    assert again.manifest.summary["version"] == first.summary["version"]
    assert again.manifest.data_version == first.data_version
    assert again.metadata["uri"].startswith(str(tmp_path / "moved"))
    assert read_manifest(again.metadata["uri"])["figures"]["samples"] > 0


# The checks


def test_a_flipped_byte_fails_the_check(copy: Callable[..., Settings]) -> None:
    settings = copy()
    folder = Path(export(settings).metadata["uri"])
    path = next(folder.rglob("*.mds"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    results = check_all(settings)
    fault = f"{path.relative_to(folder)}: its bytes have changed"
    assert results["files_as_written"].examples["fault"].to_list() == [fault]
    assert results["files_as_written"].check.blocking
    assert [name for name, result in results.items() if not result.passed] == ["files_as_written"]


def test_samples_missing_from_one_format_fail_the_check(copy: Callable[..., Settings]) -> None:
    settings = copy()
    folder = Path(export(settings).metadata["uri"])
    path = next(folder.glob("mds/*/*/index.json"))
    index = json.loads(path.read_text())
    index["shards"][-1]["samples"] -= 1
    path.write_text(json.dumps(index))
    result = check_all(settings)["every_sample_exported"]
    assert result.examples.select("format", "split").rows() == [("mds", path.parts[-3])]


def test_samples_missing_from_the_splits_fail_the_check(copy: Callable[..., Settings]) -> None:
    """Every sample of the tables must be in a split or counted as left out."""
    settings = copy()
    export(settings)
    store = open_store(settings)
    with store.write(LONG_CONTEXT_SAMPLES, SHARDS[0], fingerprint="t") as writer:
        writer.append(
            "samples", open_store(settings).read(LONG_CONTEXT_SAMPLES, SHARDS[1], "samples")
        )
        writer.append("samples", store.read(LONG_CONTEXT_SAMPLES, SHARDS[0], "samples"))
    result = check_all(settings)["every_sample_exported"]
    assert result.examples["format"].to_list() == ["tables"]


def test_a_document_in_both_splits_fails_the_check(copy: Callable[..., Settings]) -> None:
    """The two samples share documents, so the export has no validation split: it is simulated."""
    settings = copy()
    folder = Path(export(settings).metadata["uri"])
    manifest = read_manifest(str(folder))
    (train,) = [f for f in manifest["files"] if f["path"].startswith("parquet/")]
    forged = train | {"path": train["path"].replace("train", "validation")}
    shutil.copy(folder / train["path"], folder / forged["path"])
    manifest["files"].append(forged)
    (folder / "manifest.json").write_bytes(encode_manifest(manifest))
    result = check_all(settings)["no_document_in_both_splits"]
    assert result.faulty_rows > 0
    assert result.examples["splits"].unique().to_list() == [2]
