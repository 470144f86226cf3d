"""The stage that writes the report: what it writes, when it is stale, and its check."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from entropylong_assets.project import open_store
from entropylong_assets.report.page import save_report
from entropylong_assets.report.stage import REPORT_STAGE
from entropylong_assets.report.tables import REPORT
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.checks import run_checks
from entropylong_assets.stages.entropy import model
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.training_data.tables import (
    TRAINING_DATASET,
    TrainingDatasetSummary,
)
from entropylong_assets.stages.versioning import stale_reason
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.tables import WHOLE, TableStore
from entropylong_assets_tests.report.runs import (
    SHARDS,
    byte_tokenizer,
    run_settings,
    write_audits,
    write_run,
)


def write_export(store: TableStore, shards: tuple[str, ...], version: str) -> None:
    """Tables of an export of these shards, without its files."""
    versions = {s: store.require(LONG_CONTEXT_SAMPLES, s).data_version for s in shards}
    determinants = {"inputs": {LONG_CONTEXT_SAMPLES.name: versions}}
    none = dict.fromkeys(TrainingDatasetSummary.model_fields, 0)
    empty = {
        name: {}
        for name in (
            "splits",
            "dependencies_by_kind",
            "dependencies_per_root",
            "distance_tokens",
            "share_by_role",
            "tokens_by_source",
            "licenses",
            "false_acceptance",
            "diversity",
        )
    }
    tokenizer = store.summary(LONG_CONTEXT_SAMPLES, shards[0]).tokenizer
    texts = {"version": version, "model": "bytes@1", "formats": ["mds"], "tokenizer": tokenizer}
    summary = TrainingDatasetSummary.model_validate(none | empty | texts)
    with store.write(TRAINING_DATASET, WHOLE, fingerprint="t", determinants=determinants) as writer:
        writer.append(
            "shards",
            [
                {"shard": s, "data_version": v, "n_samples": 1, "export": version}
                for s, v in versions.items()
            ],
        )
        writer.summary = summary.model_dump(mode="json")


@pytest.fixture
def partition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Partition:
    """The report of an export of one of two shards."""
    monkeypatch.setattr(model, "load_tokenizer", byte_tokenizer)
    settings = run_settings(tmp_path)
    store = write_run(settings)
    write_export(store, SHARDS[:1], "a1b2")
    return Partition(settings, open_store(settings))


def page_of(settings: Settings, version: str) -> Path:
    return Path(settings.data_uri) / settings.name / "reports" / f"{version}.html"


def test_report_is_written_beside_the_export_and_covers_its_shards(partition: Partition) -> None:
    materialization = materialize(REPORT_STAGE, partition)
    page = page_of(partition.settings, "a1b2")
    html = page.read_bytes()
    assert materialization.metadata["report"] == str(page)
    assert (
        materialization.metadata["report_url"] == "http://127.0.0.1:3080/dataset/reports/a1b2.html"
    )
    assert "entropylong serve" in str(materialization.metadata["open_with"])
    summary = partition.store.summary(REPORT)
    assert (summary.path, summary.bytes, summary.shards) == (
        "reports/a1b2.html",
        len(html),
        1,
    )
    assert partition.store.read(REPORT, WHOLE, "pages").to_dicts() == [
        {
            "path": "reports/a1b2.html",
            "bytes": len(html),
            "sha256": hashlib.sha256(html).hexdigest(),
        }
    ]
    text = html.decode()
    assert SHARDS[0] in text
    assert SHARDS[1] not in text


def test_report_is_repeatable_and_stale_after_an_export_or_an_audit(partition: Partition) -> None:
    first = materialize(REPORT_STAGE, partition).manifest
    assert stale_reason(REPORT_STAGE, partition) is None
    assert materialize(REPORT_STAGE, partition).manifest == first
    write_audits(partition.store, SHARDS[1])
    assert stale_reason(REPORT_STAGE, partition) is None, "an audit of a shard not exported"
    write_audits(partition.store, SHARDS[0])
    assert stale_reason(REPORT_STAGE, partition) == "audits has changed"
    assert materialize(REPORT_STAGE, partition).manifest.data_version != first.data_version
    write_export(partition.store, SHARDS, "c3d4")
    assert stale_reason(REPORT_STAGE, partition) == f"input {TRAINING_DATASET.name} has changed"
    materialize(REPORT_STAGE, partition)
    assert page_of(partition.settings, "c3d4").exists()
    assert page_of(partition.settings, "a1b2").exists(), "the report of an older export stays"


def test_report_depends_on_no_setting_but_the_wished_rate(
    partition: Partition, tmp_path: Path
) -> None:
    """What the tables were made with is read from their manifests."""
    write_audits(partition.store, SHARDS[0])
    first = materialize(REPORT_STAGE, partition).manifest.data_version

    def version_with(**over: object) -> str:
        other = Partition(run_settings(tmp_path, **over), partition.store)
        return materialize(REPORT_STAGE, other).manifest.data_version

    assert version_with(verification={"epsilon": 0.01}, entropy={"alpha": 9}, seed=5) == first
    assert version_with(audit={"wished_false_acceptance": 0.5}) != first


def test_page_as_written_finds_a_changed_and_a_missing_page(partition: Partition) -> None:
    materialize(REPORT_STAGE, partition)
    (intact,) = run_checks(REPORT_STAGE, partition)
    assert intact.passed
    page = page_of(partition.settings, "a1b2")
    page.write_bytes(page.read_bytes().replace(b"EntropyLong report", b"EntropyLong Report"))
    (changed,) = run_checks(REPORT_STAGE, partition)
    assert changed.faulty_rows == 1
    assert changed.examples["sha256_found"][0] == hashlib.sha256(page.read_bytes()).hexdigest()
    page.unlink()
    (missing,) = run_checks(REPORT_STAGE, partition)
    assert (missing.faulty_rows, missing.examples["sha256_found"][0]) == (1, None)
    outcomes = partition.store.check_outcomes(REPORT)
    assert not outcomes["page_as_written"].passed


def test_report_without_an_export_names_what_is_missing(tmp_path: Path) -> None:
    settings = run_settings(tmp_path)
    store = write_run(settings)
    with pytest.raises(TableError, match=f"{TRAINING_DATASET.name}, all: not materialized"):
        materialize(REPORT_STAGE, Partition(settings, store))


def test_save_report_compares_with_a_dataset_of_another_folder(tmp_path: Path) -> None:
    settings, other = run_settings(tmp_path / "a"), run_settings(tmp_path / "b", seed=9)
    write_run(settings)
    write_run(other, seed=2)
    file = save_report(settings, str(tmp_path / "two.html"), other, tokenizer_for=byte_tokenizer)
    html = Path(file).read_text(encoding="utf-8")
    assert '"label":"dataset A"' in html
    assert '"label":"dataset B"' in html
    assert "accepted pairs: 0 in both" in html
    in_dataset = save_report(settings, tokenizer_for=byte_tokenizer)
    assert in_dataset == f"{tmp_path}/a/dataset/report.html"
    assert Path(in_dataset).exists()
