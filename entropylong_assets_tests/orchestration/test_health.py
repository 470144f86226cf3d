"""The health of a shard follows from check results of its data, never from plans of checks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from entropylong_assets.orchestration.build import build_definitions
from entropylong_assets.orchestration.local_run import (
    open_instance,
    register_shards,
    run_export,
    run_project,
)
from entropylong_assets.orchestration.naming import asset_key
from entropylong_assets.project import Project, make_project, open_store
from entropylong_assets.stages.training_data.tables import TRAINING_DATASET
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.faults.processes import Stage as Process
from entropylong_assets_tests.stage_names import BY_NAME
from entropylong_assets_tests.tiny_world import tiny_values

VERIFY = BY_NAME["verified_dependencies"]
SAMPLES = BY_NAME["long_context_samples"]


class Place:
    """A copy of the world's data with a Dagster instance of its own."""

    def __init__(self, world: World, models: tuple[str, str], folder: Path) -> None:
        self.home, self.data = folder / "home", folder / "data"
        self.home.mkdir()
        shutil.copytree(world.project.data_uri, self.data)
        self.shard = world.shards[0]
        self._corpus, self._models = world.corpus, models

    def values(self, **over: Any) -> dict[str, Any]:
        return tiny_values(self._corpus, self.data, self._models, **over)

    def project(self, **over: Any) -> Project:
        return make_project(self.values(**over))

    def kill_verification(self) -> None:
        """kill -9 of a run under another ε, right after its first act on the data folder."""
        values = self.values(verification={"epsilon": 0.2})
        killed = Process(values, self.home, VERIFY.name, self.shard, die_at=2)
        assert killed.killed()


@pytest.fixture
def place(
    world: World, tiny_models: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Place:
    copied = Place(world, tiny_models, tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(copied.home))
    with open_instance() as instance:  # takes over the data
        project = copied.project()
        register_shards(project.corpus, instance)
        assert run_project(project, instance) == 0
    return copied


def statuses(instance: dg.DagsterInstance, project: Project, shard: str) -> set[str]:
    """Status of each check of the verified shard, as Dagster shows it."""
    key = asset_key(project.dataset, VERIFY)
    keys = [dg.AssetCheckKey(key, check.name) for check in VERIFY.checks]
    infos = instance.event_log_storage.get_asset_check_partition_info(keys, partition_keys=[shard])
    assert len(infos) == len(keys)
    return {info.latest_execution_status.value for info in infos}


def test_a_killed_run_takes_no_shard_out_of_the_export(place: Place) -> None:
    """The settings are reverted after the kill, so nothing is run again: the good results stand."""
    place.kill_verification()
    with open_instance() as instance:
        project = place.project()
        assert statuses(instance, project, place.shard) == {"PLANNED"}  # hides the good results
        assert run_project(project, instance) == 0
        assert statuses(instance, project, place.shard) == {"SUCCEEDED"}
        run_export(project, project.dataset, instance)
        store = open_store(project.dataset)
        assert store.summary(TRAINING_DATASET).shards_left_out == 0
        assert place.shard in store.read(TRAINING_DATASET, "all", "shards")["shard"].to_list()


def test_a_rerun_after_a_kill_is_exported(place: Place) -> None:
    place.kill_verification()
    with open_instance() as instance:
        project = place.project(verification={"epsilon": 0.2})
        # Both shards verified and packed again under the new ε, and one export.
        assert run_project(project, instance) == 2 + 2 + 1
        assert statuses(instance, project, place.shard) == {"SUCCEEDED"}
        assert open_store(project.dataset).summary(TRAINING_DATASET).shards_left_out == 0


def test_of_two_runs_the_killed_one_does_not_spoil_the_other(place: Place) -> None:
    """The other run evaluates the checks before the killed one would have."""
    values = place.values(verification={"epsilon": 0.2})
    other = Process(values, place.home, VERIFY.name, place.shard)
    place.kill_verification()
    other.finish()
    with open_instance() as instance:
        project = place.project(verification={"epsilon": 0.2})
        run_project(project, instance)
        assert statuses(instance, project, place.shard) == {"SUCCEEDED"}
        assert open_store(project.dataset).summary(TRAINING_DATASET).shards_left_out == 0


def test_automation_follows_results_beside_the_data(place: Place) -> None:
    """The samples of a shard are requested, although a killed run had planned its checks again."""
    shutil.rmtree(place.data / "dataset" / SAMPLES.name / place.shard)
    place.kill_verification()
    with open_instance() as instance:
        project = place.project()
        key = asset_key(project.dataset, SAMPLES)
        instance.wipe_assets([key])
        for shard in open_store(project.dataset).shards(SAMPLES.tables):
            instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=shard))
        definitions = build_definitions(project)
        result = dg.evaluate_automation_conditions(
            defs=definitions, instance=instance, asset_selection=dg.AssetSelection.assets(key)
        )
        assert result.get_requested_partitions(key) == {place.shard}
        # A shard whose checks have not run on its present data is not healthy.
        folder = place.data / "dataset" / VERIFY.name / place.shard
        (folder / "checks.json").unlink()
        result = dg.evaluate_automation_conditions(
            defs=definitions, instance=instance, asset_selection=dg.AssetSelection.assets(key)
        )
        assert result.get_requested_partitions(key) == set()
