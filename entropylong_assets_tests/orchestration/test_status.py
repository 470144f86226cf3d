"""A changed setting, a launchpad with other settings, failed checks and missing shards are seen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from typer.testing import CliRunner

from entropylong_assets.cli.main import app
from entropylong_assets.orchestration import settings_check
from entropylong_assets.orchestration.build import build_definitions
from entropylong_assets.orchestration.doctor import examine
from entropylong_assets.orchestration.local_run import register_shards, run_project
from entropylong_assets.orchestration.naming import asset_key
from entropylong_assets.orchestration.settings_check import evaluate_again
from entropylong_assets.orchestration.status import as_json, project_status
from entropylong_assets.project import Project, make_project, open_store
from entropylong_assets.stages.status import SETTINGS_CHECK
from entropylong_assets.storage.manifest import CheckOutcome
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.stage_names import BY_NAME
from entropylong_assets_tests.tiny_world import tiny_values

VERIFY = BY_NAME["verified_dependencies"]


@pytest.fixture
def values(world: World, tiny_models: tuple[str, str], tmp_path: Path) -> dict[str, Any]:
    """Settings over a copy of the world's data."""
    shutil.copytree(world.project.data_uri, tmp_path / "data")
    return tiny_values(world.corpus, tmp_path / "data", tiny_models)


def with_epsilon(values: dict[str, Any], epsilon: float) -> Project:
    return make_project({**values, "verification": {**values["verification"], "epsilon": epsilon}})


def reasons(project: Project, instance: dg.DagsterInstance | None = None) -> dict[str, Any]:
    """By stage: the groups of shards that are not up to date; stages made by hand only aside."""
    return {
        entry["stage"]: [(r["state"], r["reason"], r["count"]) for r in entry["reasons"]]
        for entry in as_json(project_status(project, instance))
        if entry["reasons"] and BY_NAME[entry["stage"]].automation != "by_hand"
    }


def check_state(instance: dg.DagsterInstance, project: Project) -> dict[str | None, str]:
    """Status of the settings check of verification by shard, as Dagster shows it."""
    key = dg.AssetCheckKey(asset_key(project.dataset, VERIFY), SETTINGS_CHECK)
    infos = instance.event_log_storage.get_asset_check_partition_info([key])
    return {info.partition_key: info.latest_execution_status.value for info in infos}


def test_a_changed_setting_is_named_with_all_that_follows(values: dict[str, Any]) -> None:
    assert reasons(make_project(values)) == {}
    assert reasons(with_epsilon(values, 0.2)) == {
        "verified_dependencies": [("stale", "setting verification.epsilon has changed", 2)],
        "long_context_samples": [("stale", "its input verified_dependencies is stale", 2)],
        "training_dataset": [("stale", "setting verification.epsilon has changed", 1)],
        "report": [("stale", "its input training_dataset is stale", 1)],
    }


def test_failed_missing_and_running_shards_are_named(values: dict[str, Any], world: World) -> None:
    project = make_project(values)
    store, (first, second) = open_store(project.dataset), world.shards
    check = VERIFY.blocking_checks[0]
    failed = CheckOutcome(passed=False, blocking=True, faulty_rows=3)
    store.record_checks(VERIFY.tables, first, {check: failed})
    shutil.rmtree(store.folder(VERIFY.tables, second))
    groups = reasons(project)["verified_dependencies"]
    assert groups == [
        ("failed", f"check {check} of verified_dependencies failed", 1),
        ("missing", "not materialized", 1),
    ]
    with dg.DagsterInstance.ephemeral() as instance:
        repository = build_definitions(project).get_repository_def()
        job = repository.get_job(f"dataset__{VERIFY.job.name}")
        run = instance.create_run_for_job(
            job,
            tags={"dagster/partition": second},
            status=dg.DagsterRunStatus.STARTED,
            asset_selection=frozenset({asset_key(project.dataset, VERIFY)}),
        )
        groups = reasons(project, instance)["verified_dependencies"]
        assert groups[1] == ("running", f"run {run.run_id[:8]} is started", 1)


def test_a_launchpad_with_another_epsilon_is_stale_and_warned_of(
    values: dict[str, Any], world: World
) -> None:
    project, shard = make_project(values), world.shards[0]
    job = build_definitions(project).get_repository_def().get_job(f"dataset__{VERIFY.job.name}")
    with dg.DagsterInstance.ephemeral() as instance:
        register_shards(project.corpus, instance)
        run_project(project, instance)
        assert set(check_state(instance, project).values()) == {"SUCCEEDED"}
        config = {"dataset_settings__verification": {"config": {"epsilon": 0.2}}}
        result = job.execute_in_process(
            instance=instance,
            partition_key=shard,
            asset_selection=[asset_key(project.dataset, VERIFY)],
            run_config={"resources": config},
        )
        assert result.success
        (evaluation,) = (
            e for e in result.get_asset_check_evaluations() if e.check_name == SETTINGS_CHECK
        )
        assert not evaluation.passed
        assert not evaluation.blocking
        assert evaluation.severity == dg.AssetCheckSeverity.WARN
        assert evaluation.description == "setting verification.epsilon has changed"
        groups = reasons(project)
        assert groups["verified_dependencies"] == [
            ("stale", "setting verification.epsilon has changed", 1)
        ]


def test_a_reloaded_setting_shows_a_warning_without_a_run(
    values: dict[str, Any], world: World
) -> None:
    before, after = make_project(values), with_epsilon(values, 0.2)
    stages = before.stages_of(before.dataset)
    with dg.DagsterInstance.ephemeral() as instance:
        cursor, reported = evaluate_again(before.dataset, stages, None, instance)
        assert set(check_state(instance, before).values()) == {"SUCCEEDED"}
        assert reported > 0
        assert evaluate_again(before.dataset, stages, cursor, instance) == (cursor, 0)
        changed, reported = evaluate_again(after.dataset, stages, cursor, instance)
        assert check_state(instance, after) == dict.fromkeys(world.shards, "FAILED")
        assert reported == 3  # of verification, and of the export
        reverted, reported = evaluate_again(before.dataset, stages, changed, instance)
        assert (reverted, reported) == (cursor, 3)
        assert check_state(instance, before) == dict.fromkeys(world.shards, "SUCCEEDED")
        assert instance.get_runs() == []


def test_a_tick_looks_at_some_partitions_and_the_next_at_the_others(
    values: dict[str, Any], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = with_epsilon(values, 0.2)
    stages = project.stages_of(project.dataset)
    partitions = sum(len(open_store(project.dataset).shards(s.tables)) for s in stages)
    monkeypatch.setattr(settings_check, "PARTITIONS_PER_TICK", 1)
    with dg.DagsterInstance.ephemeral() as instance:
        cursor, counts = None, []
        for _ in range(partitions + 1):
            cursor, reported = evaluate_again(project.dataset, stages, cursor, instance)
            counts.append(reported)
        assert counts == [1] * partitions + [0]
        assert check_state(instance, project) == dict.fromkeys(world.shards, "FAILED")


def test_the_command_and_the_doctor_name_stale_stages(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    settings = tmp_path / "settings.yaml"
    project = with_epsilon(values, 0.2)
    content = {**values, "verification": {**values["verification"], "epsilon": 0.2}}
    settings.write_text(json.dumps(content))
    result = CliRunner().invoke(app, ["status", "-s", str(settings)])
    assert result.exit_code == 0, result.output
    assert "setting verification.epsilon has changed" in result.output
    result = CliRunner().invoke(app, ["status", "-s", str(settings), "--json", "-d", "dataset"])
    (entry,) = (e for e in json.loads(result.stdout) if e["stage"] == VERIFY.name)
    assert entry["counts"]["stale"] == 2
    (finding,) = (f for f in examine(project) if f.subject == "dataset up to date")
    assert finding.verdict == "warning"
    assert "verified_dependencies (2): setting verification.epsilon has changed" in finding.message


def test_stages_by_hand_are_neither_missing_nor_skipped(
    values: dict[str, Any], world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failures: audits that nobody wants are `missing`, and `index_segments`, which only large
    corpora need, has a line per shard. The names are those of docs/concepts.md."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    settings = tmp_path / "settings.yaml"
    settings.write_text(json.dumps(values))
    call = ["status", "-s", str(settings)]
    lines = CliRunner().invoke(app, call).output.splitlines()
    audits = ["null_calibration", "cross_model_audit", "long_range_audit", "training_trial"]
    assert f"made by hand only: {', '.join(audits)}" in lines
    assert "made by hand only: index_segments" in lines
    assert not [line for line in lines if "missing" in line or "skipped" in line]
    # One that was made for some shards is in the table.
    store, audit = open_store(make_project(values).dataset), BY_NAME["null_calibration"]
    with store.write(audit.tables, world.shards[0], fingerprint="other") as writer:
        writer.append(audit.tables.main, [])
    lines = CliRunner().invoke(app, call).output.splitlines()
    assert f"made by hand only: {', '.join(audits[1:])}" in lines
    (row,) = (line.split() for line in lines if line.split()[:1] == [audit.name])
    assert row == [audit.name, "1", "1"]
    assert "missing" not in "".join(lines)
