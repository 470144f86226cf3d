"""Corpora and datasets side by side in one instance: no two share a name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from entropylong_assets.orchestration.build import build_definitions
from entropylong_assets.orchestration.local_run import register_shards, run_project
from entropylong_assets.orchestration.naming import asset_key, partition_set
from entropylong_assets.orchestration.runner import run_job
from entropylong_assets.pipeline import STAGES
from entropylong_assets.project import Project, make_project, open_store
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets_tests.tiny_world import tiny_values

OF = {"ours": "web", "paper_rule": "web", "loose": "web", "tales": "books"}
"""Corpus of each dataset."""
CORPORA = ("web", "books")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(
        {
            "data_uri": str(tmp_path_factory.mktemp("lab")),
            "corpora": {name: {} for name in CORPORA},
            "datasets": {name: {"corpus": corpus} for name, corpus in OF.items()},
        }
    )


@pytest.fixture(scope="module")
def defs(project: Project) -> dg.Definitions:
    return build_definitions(project)


def jobs(defs: dg.Definitions) -> list[dg.JobDefinition]:
    return [job for job in defs.resolve_all_job_defs() if not job.name.startswith("__")]


def test_assets_have_the_name_of_their_owner(defs: dg.Definitions) -> None:
    keys = {tuple(key.path) for key in defs.resolve_asset_graph().get_all_asset_keys()}
    assert keys == {
        (owner, stage.name)
        for stage in STAGES
        for owner in (CORPORA if stage.scope == "corpus" else OF)
    }


def test_assets_depend_on_those_of_their_own_corpus_and_dataset(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    for stage in STAGES:
        for owner in CORPORA if stage.scope == "corpus" else OF:
            parents = {
                (
                    OF.get(owner, owner) if source.scope == "corpus" else owner,
                    source.name,
                )
                for source in (*stage.inputs, *stage.optional_inputs)
            }
            node = graph.get(dg.AssetKey([owner, stage.name]))
            assert {tuple(key.path) for key in node.parent_keys} == parents


def test_partition_sets_are_those_of_the_corpora(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    for stage in STAGES:
        for owner in CORPORA if stage.scope == "corpus" else OF:
            partitions = graph.get(dg.AssetKey([owner, stage.name])).partitions_def
            if not stage.partitioned:
                assert partitions is None
                continue
            assert isinstance(partitions, dg.DynamicPartitionsDefinition)
            assert partitions.name == f"{OF.get(owner, owner)}_shards"


def test_no_two_definitions_share_a_name(defs: dg.Definitions) -> None:
    named = {
        "job": [job.name for job in jobs(defs)],
        "sensor": [sensor.name for sensor in defs.sensors or ()],
        "schedule": [schedule.name for schedule in defs.schedules or ()],
        "step": [op.name for op in _steps(defs)],
        "check": [
            str((key.asset_key.path, key.name))
            for key in defs.resolve_asset_graph().asset_check_keys
        ],
        "resource": list(defs.resources or ()),
    }
    for kind, names in named.items():
        assert names, kind
        assert [name for name, n in Counter(names).items() if n > 1] == [], kind
        if kind != "check":
            owners = [*CORPORA, *OF]
            assert all(
                any(name.startswith((f"{owner}__", f"{owner}_settings")) for owner in owners)
                for name in names
            ), kind
    # Jobs, sensors and schedules share one namespace in the UI's search.
    together = [*named["job"], *named["sensor"], *named["schedule"]]
    assert len(set(together)) == len(together)


def _steps(defs: dg.Definitions) -> list[dg.OpDefinition]:
    by_id: dict[int, dg.OpDefinition] = {}
    for job in jobs(defs):
        for node in job.nodes:
            assert isinstance(node.definition, dg.OpDefinition)
            by_id[id(node.definition)] = node.definition
    # A job holds copies of a step: one definition by name and pool.
    return list({(op.name, op.pool): op for op in by_id.values()}.values())


def test_jobs_are_those_of_each_owner(defs: dg.Definitions) -> None:
    of_corpus = {"ingest", "segments", "index", "scan", "retire", "takedown", "compact"}
    of_dataset = {
        "score", "verify", "assemble", "export", "audit", "build_samples", "everything", "natural",
        "trial",
    }  # fmt: skip
    assert {job.name for job in jobs(defs)} == {
        *(f"{name}__{job}" for name in CORPORA for job in of_corpus),
        *(f"{name}__{job}" for name in OF for job in of_dataset),
    }
    graph = defs.resolve_asset_graph()
    for job in jobs(defs):
        owner = job.name.partition("__")[0]
        selected = {key.path[0] for key in job.asset_layer.executable_asset_keys}
        assert selected <= {owner, OF.get(owner, owner)}, job.name
        for key in job.asset_layer.executable_asset_keys:
            assert graph.get(key) is not None


def test_sensors_and_schedules_are_those_of_each_owner(defs: dg.Definitions) -> None:
    assert {sensor.name for sensor in defs.sensors or ()} == {
        *(f"{name}__carry_new_shards" for name in (*CORPORA, *OF)),
        *(f"{name}__new_files" for name in CORPORA),
        *(f"{name}__settings_changes" for name in (*CORPORA, *OF)),
    }
    assert {schedule.name for schedule in defs.schedules or ()} == {
        *(f"{name}__fill_gaps" for name in (*CORPORA, *OF)),
        *(f"{name}__daily_scan" for name in CORPORA),
        *(f"{name}__refresh_index" for name in CORPORA),
        *(f"{name}__weekly_compact" for name in CORPORA),
    }
    for sensor in defs.sensors or ():
        starts_runs = not sensor.name.endswith("__settings_changes")
        assert (sensor.default_status == dg.DefaultSensorStatus.STOPPED) == starts_runs
    for schedule in defs.schedules or ():
        assert isinstance(schedule, dg.ScheduleDefinition)
        assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED


def test_sensors_target_the_assets_of_their_owner(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    for sensor in defs.sensors or ():
        if isinstance(sensor, dg.AutomationConditionSensorDefinition):
            owner = sensor.name.partition("__")[0]
            assert {key.path[0] for key in sensor.asset_selection.resolve(graph)} == {owner}


def test_pools_are_of_one_corpus_except_gpu(defs: dg.Definitions) -> None:
    pools: dict[str, set[str]] = {}
    for op in _steps(defs):
        if op.pool:
            pools.setdefault(op.pool, set()).add(op.name.partition("__")[0])
    assert pools.keys() == {"gpu", "embedding_index_web", "embedding_index_books"}
    for corpus in CORPORA:
        assert pools[f"embedding_index_{corpus}"] == {corpus}
    assert pools["gpu"] == {*OF, *CORPORA}


def test_code_versions_are_those_of_the_own_settings() -> None:
    values: dict[str, Any] = {
        "corpora": {"web": {}},
        "datasets": {"ours": {}, "loose": {"verification": {"epsilon": 0.2}}},
    }
    graph = build_definitions(make_project(values)).resolve_asset_graph()

    def version(dataset: str, stage: str) -> str | None:
        return graph.get(dg.AssetKey([dataset, stage])).code_version

    for stage in STAGES:
        if stage.scope == "dataset":
            same = version("ours", stage.name) == version("loose", stage.name)
            assert same == ("verification.epsilon" not in stage.determined_by(
                make_project(values).datasets["ours"]
            ))  # fmt: skip


@pytest.mark.parametrize(
    "name", ["io_manager", "index", "count", "class", "self", "gpu", "shards", "exports", "all"]
)
def test_names_that_mean_something_elsewhere_can_be_used(name: str, tmp_path: Path) -> None:
    """The failures: a resource key of Dagster's own, a method of a tuple, a word of Python."""
    source = {"name": "s", "uri": f"{tmp_path}/in/*.jsonl", "kind": "jsonl"}
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "' + "Some words. " * 30 + '"}\n')
    project = make_project(
        {
            "data_uri": str(tmp_path / "data"),
            "corpora": {name: {"sources": [source]}},
            "datasets": {f"{name}_dataset": None},
        }
    )
    with dg.DagsterInstance.ephemeral() as instance:
        (shard,) = register_shards(project.corpus, instance).shards
        job = build_definitions(project).get_repository_def().get_job(f"{name}__ingest")
        run_job(job, shard.key, instance, [dg.AssetKey([name, CORPUS_DOCUMENTS.name])])
    assert open_store(project.corpus).shards(CORPUS_DOCUMENTS) == [shard.key]


def test_two_datasets_over_one_corpus_run_side_by_side(
    tmp_path: Path, tiny_models: tuple[str, str], tiny_corpus: Path
) -> None:
    values = tiny_values(tiny_corpus, tmp_path, tiny_models)
    of_dataset = {
        name: values[name]
        for name in ("roots", "scoring", "entropy", "retrieval", "verification", "samples")
    }
    project = make_project(
        {
            "data_uri": str(tmp_path),
            "corpora": {"web": values["corpus"] | {"embedding": values["embedding"]}},
            "datasets": {
                "ours": of_dataset,
                "sparse": of_dataset | {"entropy": {"alpha": 1.8, "min_anchor_position": 4}},
            },
        }
    )
    with dg.DagsterInstance.ephemeral() as instance:
        register_shards(project.corpus, instance)
        alone = run_project(project, instance, datasets=["ours"], with_export=False)
        more = run_project(project, instance, with_export=False)
        assert (alone, more) == (11, 8)  # the corpus is made once
        assert run_project(project, instance, with_export=False) == 0
        shards = instance.get_dynamic_partitions(partition_set(project.corpus))
        for dataset in project.datasets.values():
            stage = next(s for s in STAGES if s.tables is ENTROPY_SCORES)
            key = asset_key(dataset, stage)
            assert set(shards) == instance.get_materialized_partitions(key)
    anchors = {}
    for dataset in project.datasets.values():
        store = open_store(dataset)
        roots = store.read_all(ENTROPY_SCORES, shards, "roots", ["anchors"])
        anchors[dataset.name] = int(roots["anchors"].list.len().sum())
    assert 0 < anchors["sparse"] < anchors["ours"]
