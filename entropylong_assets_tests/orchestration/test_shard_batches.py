"""Runs over several shards: what they make, report and leave out."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from entropylong_assets.orchestration import assets
from entropylong_assets.orchestration.build import build_definitions
from entropylong_assets.orchestration.local_run import register_shards
from entropylong_assets.orchestration.naming import asset_key
from entropylong_assets.orchestration.scanning import busy_shards
from entropylong_assets.project import Project, make_project, open_store
from entropylong_assets.stages.stage import Partition, Stage
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.stage_names import BY_NAME
from entropylong_assets_tests.tiny_world import document, tiny_values

DOCUMENTS, CHUNKS = BY_NAME["corpus_documents"], BY_NAME["chunk_embeddings"]
SHARDS = ("a", "b", "c")


@dataclass(frozen=True)
class Batch:
    """A project of three shards, and the instance of its runs."""

    project: Project
    instance: dg.DagsterInstance
    shards: list[str]
    values: dict[str, Any]

    def spoil(self, name: str) -> None:
        """Make half of the rows of a file unreadable."""
        path = Path(str(self.project.corpus.sources[0].uri)).parent / f"{name}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines()
        lines[::2] = [line[:-9] for line in lines[::2]]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        register_shards(self.project.corpus, self.instance, accept_changes=True)

    def with_settings(self, **corpus: Any) -> Batch:
        """The same shards under other settings of the corpus."""
        values = {**self.values, "corpus": {**self.values["corpus"], **corpus}}
        return replace(self, project=make_project(values))

    def run(self, job: str, stages: Sequence[Stage] = ()) -> dg.ExecuteInProcessResult:
        """One run of a job, or of some stages of it, over all shards, as a backfill makes it."""
        repository = build_definitions(self.project).get_repository_def()
        return repository.get_job(job).execute_in_process(
            instance=self.instance,
            tags={
                "dagster/asset_partition_range_start": self.shards[0],
                "dagster/asset_partition_range_end": self.shards[-1],
            },
            asset_selection=[asset_key(self.project.dataset, s) for s in stages] or None,
            raise_on_error=False,
        )


def store_shards(batch: Batch, stage: Stage) -> list[str]:
    return sorted(open_store(batch.project.corpus).shards(stage.tables))


@pytest.fixture
def batch(tmp_path: Path, tiny_models: tuple[str, str]) -> Iterator[Batch]:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number, name in enumerate(SHARDS):
        rows = [{"text": document(1_000 * number + i), "id": f"{name}{i}"} for i in range(6)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    values = tiny_values(folder, tmp_path / "data", tiny_models)
    values |= {"cluster": {"shards_per_run": 16}}
    project = make_project(values)
    with dg.DagsterInstance.ephemeral() as instance:
        plan = register_shards(project.corpus, instance)
        yield Batch(project, instance, [shard.key for shard in plan.shards], values)


def materializations(batch: Batch, stage: Stage) -> dict[str, list[dg.AssetMaterialization]]:
    """All that Dagster knows of a stage, by shard."""
    key = asset_key(batch.project.dataset, stage)
    events: dict[str, list[dg.AssetMaterialization]] = {}
    for record in batch.instance.fetch_materializations(key, limit=100).records:
        assert record.asset_materialization is not None
        events.setdefault(str(record.partition_key), []).append(record.asset_materialization)
    return events


def checks(batch: Batch, stage: Stage) -> dict[tuple[str, str], str]:
    """The latest status of the checks of a stage, by name and shard."""
    key = asset_key(batch.project.dataset, stage)
    keys = [dg.AssetCheckKey(key, check.name) for check in stage.checks]
    return {
        (info.check_key.name, str(info.partition_key)): info.latest_execution_status.value
        for info in batch.instance.event_log_storage.get_asset_check_partition_info(keys)
    }


def failures_of(result: dg.ExecuteInProcessResult) -> dict[str, str]:
    """Messages of the failed steps, in their order."""
    failures = {}
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data.user_failure_data
            assert data is not None
            failures[str(event.step_key)] = str(data.description)
    return failures


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    [(step, message)] = failures_of(result).items()
    return f"{step}: {message}"


def test_each_shard_is_reported_once_with_its_own_version(batch: Batch) -> None:
    """The failure: Dagster gives all partitions of a run one data version, so that a later run of
    one shard seems to change nothing, or everything."""
    assert batch.run("corpus__ingest").success
    store = open_store(batch.project.corpus)
    versions = {}
    for stage in (DOCUMENTS, CHUNKS):
        events = materializations(batch, stage)
        assert sorted(events) == batch.shards
        for shard, (event,) in events.items():  # one per shard
            manifest = store.require(stage.tables, shard)
            tags = event.tags or {}
            versions[stage.name, shard] = tags["dagster/data_version"]
            assert tags["dagster/data_version"] == manifest.data_version
            assert (
                event.metadata["dagster/row_count"].value == manifest.tables[stage.tables.main].rows
            )
            if stage is CHUNKS:
                read = tags["dagster/input_data_version/corpus/corpus_documents"]
                assert read == versions[DOCUMENTS.name, shard]
        assert set(checks(batch, stage).values()) == {"SUCCEEDED"}
        assert set(checks(batch, stage)) == {
            (c.name, s) for c in stage.checks for s in batch.shards
        }
    assert len(set(versions.values())) == 6


def test_a_shard_that_fails_does_not_stop_the_others(batch: Batch) -> None:
    batch.spoil("b")
    result = batch.run("corpus__ingest")
    assert not result.success
    first, bad, last = batch.shards
    for stage in (DOCUMENTS, CHUNKS):
        assert sorted(materializations(batch, stage)) == [first, last]
        passed = {shard for (_, shard), s in checks(batch, stage).items() if s == "SUCCEEDED"}
        assert passed == {first, last}
    # Every last step of the run names the shard: one per branch of the graph.
    failures = failures_of(result)
    assert list(failures) == [
        "corpus__chunk_embeddings_checks",
        "corpus__document_signatures_checks",
    ]
    for message in failures.values():
        assert f"1 of 3 shards failed: {bad}. {bad}: corpus_documents failed" in message
    assert store_shards(batch, CHUNKS) == [first, last]


def test_a_blocking_check_stops_its_shard_alone(batch: Batch) -> None:
    """The failure: Dagster ends the step, so that one damaged file stops all shards of the run."""
    batch.spoil("b")
    result = batch.with_settings(on_bad_row="skip").run("corpus__ingest")
    assert not result.success
    first, bad, last = batch.shards
    assert sorted(materializations(batch, DOCUMENTS)) == batch.shards
    assert sorted(materializations(batch, CHUNKS)) == [first, last]
    status = checks(batch, DOCUMENTS)
    assert {shard: status["few_bad_rows", shard] for shard in batch.shards} == {
        first: "SUCCEEDED",
        bad: "FAILED",
        last: "SUCCEEDED",
    }


def test_shards_that_all_fail_fail_the_first_step(batch: Batch) -> None:
    for name in SHARDS:
        batch.spoil(name)
    message = failure_of(batch.run("corpus__ingest"))
    assert message.startswith("corpus__corpus_documents: 3 of 3 shards failed: ")
    assert "a.jsonl" in message
    assert materializations(batch, DOCUMENTS) == {}


def test_a_retry_makes_only_what_is_missing(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure: a lost connection at the last of many shards makes all of them again."""
    quick = dg.RetryPolicy(max_retries=3, delay=0)
    monkeypatch.setattr(assets, "RETRIES", quick)
    tried: list[str] = []
    make = assets.materialize

    def lose_connection_once(stage: Stage, partition: Partition, **options: Any) -> Any:
        tried.append(partition.shard)
        if tried == batch.shards[:2]:
            raise ConnectionError("connection reset")
        return make(stage, partition, **options)

    monkeypatch.setattr(assets, "materialize", lose_connection_once)
    assert batch.run("corpus__ingest", [DOCUMENTS]).success
    first, second, third = batch.shards
    assert tried == [first, second, third, second]
    assert {shard: len(e) for shard, e in materializations(batch, DOCUMENTS).items()} == {
        first: 1,
        second: 1,
        third: 1,
    }


def test_a_stopped_run_keeps_what_is_made(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    make, tried = assets.materialize, []

    def stop_at_second(stage: Stage, partition: Partition, **options: Any) -> Any:
        tried.append(partition.shard)
        if len(tried) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return make(stage, partition, **options)

    monkeypatch.setattr(assets, "materialize", stop_at_second)
    result = batch.run("corpus__ingest", [DOCUMENTS])
    run = batch.instance.get_run_by_id(result.run_id)
    assert run is not None
    assert not run.is_success
    assert tried == batch.shards[:2]
    assert sorted(materializations(batch, DOCUMENTS)) == batch.shards[:1]
    assert store_shards(batch, DOCUMENTS) == batch.shards[:1]


def test_a_run_over_several_shards_keeps_each_of_them_busy(batch: Batch) -> None:
    """The failure: `fill_gaps` starts a second run of a shard that a backfill is making."""
    job = build_definitions(batch.project).get_repository_def().get_job("corpus__ingest")
    first, second, _ = batch.shards
    batch.instance.create_run_for_job(
        job,
        tags={
            "dagster/asset_partition_range_start": first,
            "dagster/asset_partition_range_end": second,
        },
        status=dg.DagsterRunStatus.STARTED,
    )
    assert busy_shards(batch.project.corpus, batch.instance) == {first, second}


def test_runs_are_over_one_shard_unless_the_settings_say_more(world: World, batch: Batch) -> None:
    def policies(project: Project) -> set[Any]:
        graph = build_definitions(project).get_repository_def().asset_graph
        keys = [k for k in graph.materializable_asset_keys if graph.get(k).is_partitioned]
        assert len(keys) > 5
        return {graph.get(key).backfill_policy for key in keys}

    assert policies(world.project) == {None}
    assert policies(batch.project) == {dg.BackfillPolicy.multi_run(16)}
