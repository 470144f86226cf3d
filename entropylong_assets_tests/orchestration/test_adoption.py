"""Data of another Dagster instance is shown in the UI, and nothing is computed again."""

from __future__ import annotations

import shutil
from pathlib import Path

import dagster as dg
import pytest

from entropylong_assets.orchestration.local_run import register_shards, run_project
from entropylong_assets.orchestration.naming import asset_key
from entropylong_assets.project import Project, open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.stage import Stage
from entropylong_assets.storage.tables import WHOLE
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.tiny_world import tiny_project


@pytest.fixture
def moved(world: World, tiny_models: tuple[str, str], tmp_path: Path) -> Project:
    """The project with its data copied to another place."""
    shutil.copytree(world.project.data_uri, tmp_path / "moved")
    return tiny_project(world.corpus, tmp_path / "moved", tiny_models)


def made(project: Project) -> list[tuple[Settings, Stage, str]]:
    """Every partition of the project that exists."""
    return [
        (settings, stage, shard)
        for settings in (project.corpus, project.dataset)
        for stage in project.stages_of(settings)
        for shard in open_store(settings).shards(stage.tables)
    ]


def test_copied_data_need_no_run_and_are_shown(moved: Project, world: World) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        register_shards(moved.corpus, instance)
        assert run_project(moved, instance) == 0
        assert instance.get_runs() == []
        partitions = made(moved)
        assert len(partitions) == 2 * 8 + 4
        for settings, stage, shard in partitions:
            assert_known(instance, settings, stage, shard)
        # It is reported only once.
        assert run_project(moved, instance) == 0
        for settings, stage, shard in partitions:
            records = instance.fetch_materializations(
                dg.AssetRecordsFilter(
                    asset_key(settings, stage),
                    asset_partitions=None if shard == WHOLE else [shard],
                ),
                limit=10,
            ).records
            assert len(records) == 1, (stage.name, shard)


def assert_known(
    instance: dg.DagsterInstance, settings: Settings, stage: Stage, shard: str
) -> None:
    """The instance knows the partition with its data version, and its checks with outcomes."""
    key = asset_key(settings, stage)
    partitions = None if shard == WHOLE else [shard]
    (record,) = instance.fetch_materializations(
        dg.AssetRecordsFilter(key, asset_partitions=partitions), limit=1
    ).records
    event = record.asset_materialization
    assert event is not None
    manifest = open_store(settings).require(stage.tables, shard)
    assert event.tags is not None
    assert event.tags["dagster/data_version"] == manifest.data_version
    rows = manifest.tables[stage.tables.main].rows
    assert event.metadata["dagster/row_count"].value == rows
    evaluated: dict[str, bool] = {}
    for check in stage.checks:
        history = instance.event_log_storage.get_asset_check_execution_history(
            dg.AssetCheckKey(key, check.name), limit=100
        )
        latest = next(r for r in history if r.partition == (None if shard == WHOLE else shard))
        assert latest.evaluation is not None
        evaluated[check.name] = latest.evaluation.passed
    outcomes = open_store(settings).check_outcomes(stage.tables, shard)
    assert evaluated == {name: outcome.passed for name, outcome in outcomes.items()}


def test_what_failed_its_checks_is_run_again(moved: Project, world: World) -> None:
    """Outcomes travel with the data: without them the partition counts as unchecked."""
    stage = next(s for s in moved.stages if s.scope == "dataset" and s.partitioned)
    folder = Path(open_store(moved.dataset).folder(stage.tables, world.shards[0]))
    (folder / "checks.json").unlink()
    with dg.DagsterInstance.ephemeral() as instance:
        register_shards(moved.corpus, instance)
        assert run_project(moved, instance) == 1
        (run,) = instance.get_runs()
        assert run.job_name == f"dataset__{stage.job.name}"
        assert_known(instance, moved.dataset, stage, world.shards[0])


def test_adopted_partitions_are_known_to_an_instance_with_newer_data(
    moved: Project, world: World
) -> None:
    """An instance that knows older data of a partition is given the present ones."""
    stage = next(s for s in moved.stages if s.scope == "corpus" and s.automation == "by_scan")
    key = asset_key(moved.corpus, stage)
    with dg.DagsterInstance.ephemeral() as instance:
        register_shards(moved.corpus, instance)
        instance.report_runless_asset_event(
            dg.AssetMaterialization(
                key, partition=world.shards[0], tags={"dagster/data_version": "0" * 16}
            )
        )
        assert run_project(moved, instance) == 0
        assert_known(instance, moved.corpus, stage, world.shards[0])


def test_an_instance_adopts_newer_data_again_and_again(moved: Project, world: World) -> None:
    """Dagster keeps only one evaluation of a check and partition that belongs to no run."""
    stage = next(s for s in moved.stages if s.scope == "corpus" and s.automation == "by_scan")
    key = asset_key(moved.corpus, stage)
    with dg.DagsterInstance.ephemeral() as instance:
        register_shards(moved.corpus, instance)
        for version in ("0" * 16, "1" * 16):
            assert run_project(moved, instance) == 0
            assert_known(instance, moved.corpus, stage, world.shards[0])
            # As if another instance had made it again, and the data was reverted since.
            instance.report_runless_asset_event(
                dg.AssetMaterialization(
                    key, partition=world.shards[0], tags={"dagster/data_version": version}
                )
            )
        assert run_project(moved, instance) == 0
        assert_known(instance, moved.corpus, stage, world.shards[0])
