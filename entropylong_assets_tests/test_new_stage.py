"""A stage of another package, declared in one folder, appears everywhere like the built-in ones.

The example stage `similar_candidates` is between retrieval and verification. It keeps the
candidates whose similarity reaches a setting.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from entropylong_assets.orchestration import doctor_checks
from entropylong_assets.orchestration.build import build_definitions
from entropylong_assets.orchestration.cluster import resources_by_step
from entropylong_assets.orchestration.local_run import register_shards, run_project
from entropylong_assets.orchestration.runner import RunError
from entropylong_assets.pipeline import STAGES
from entropylong_assets.project import Project, make_project, open_store
from entropylong_assets.settings.section import SettingsError
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.stage import Stage
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.stages.versioning import code_version
from entropylong_assets.storage.schemas import TableSet
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.tiny_world import tiny_values

NAME = "similar_candidates"
KEY = dg.AssetKey(["dataset", NAME])

FILES = {
    "__init__.py": "",
    "settings.py": '''
from pydantic import Field

from entropylong_assets.settings.section import Section


class SimilaritySettings(Section):
    """`similar_candidates`."""

    min_similarity: float = Field(-1.0, ge=-1, le=1)
    """Candidates of a lower similarity are dropped."""
    note: str = ""
    """Has no effect."""
''',
    "tables.py": """
import pyarrow as pa

from entropylong_assets.storage.schemas import ANCHOR, CHUNK_ID, ROOT_ID, Summary, TableSet


class SimilarCandidatesSummary(Summary):
    candidates: int
    kept: int


SIMILAR_CANDIDATES = TableSet(
    name="similar_candidates",
    scope="dataset",
    main="kept",
    summary=SimilarCandidatesSummary,
    schemas={"kept": pa.schema([ROOT_ID, ANCHOR, CHUNK_ID])},
)
""",
    "stage.py": """
from pathlib import Path

import polars as pl

from entropylong_assets.settings.cluster import StepResources
from entropylong_assets.stages.retrieval.stage import CANDIDATE_CONTEXTS_STAGE
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.stage import Check, Result, Stage
from toy_stages.similarity.settings import SimilaritySettings
from toy_stages.similarity.tables import SIMILAR_CANDIDATES, SimilarCandidatesSummary


def _compute(step):
    candidates = step.store.read(CANDIDATE_CONTEXTS, step.shard, "candidates")
    step.progress.total = len(candidates)
    kept = candidates.filter(pl.col("similarity") >= step.settings.similarity.min_similarity)
    step.writer.append("kept", kept.select("root_id", "anchor", "chunk_id"))
    step.progress(len(candidates))
    summary = SimilarCandidatesSummary(candidates=len(candidates), kept=len(kept))
    return Result(summary, {"preview": kept.head(3)})


SIMILAR_CANDIDATES_STAGE = Stage(
    tables=SIMILAR_CANDIDATES,
    description="Candidates that are similar enough.",
    compute=_compute,
    inputs=(CANDIDATE_CONTEXTS_STAGE,),
    sections={"similarity": SimilaritySettings},
    determined_by=lambda _: ("similarity.min_similarity",),
    code_version=1,
    check_folder=Path(__file__).parent / "checks",
    checks=(
        Check("kept_are_candidates", "What is kept is a candidate."),
        Check("much_is_kept", "Half of the candidates are kept.", blocking=False, warns=True),
    ),
    views=lambda p: {
        "kept": (SIMILAR_CANDIDATES, [p.shard], "kept"),
        "candidates": (CANDIDATE_CONTEXTS, [p.shard], "candidates"),
    },
    check_parameters=lambda p: p.settings.similarity.model_dump(),
    job=CANDIDATE_CONTEXTS_STAGE.job,
    automation="per_shard",
    resources=StepResources(num_cpus=3),
    unit="candidates",
)
""",
    "checks/kept_are_candidates.sql": """
SELECT root_id, anchor, chunk_id FROM kept
ANTI JOIN (SELECT * FROM candidates WHERE similarity >= $min_similarity)
USING (root_id, anchor, chunk_id)
""",
    "checks/much_is_kept.sql": """
SELECT count(*) AS candidates FROM candidates
HAVING count(*) > 2 * (SELECT count(*) FROM kept)
""",
}


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Stage, ...]:
    """The built-in stages with the toy stage between retrieval and verification."""
    folder = tmp_path / "packages" / "toy_stages" / "similarity"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (folder.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    for name in [name for name in sys.modules if name.startswith("toy_stages")]:
        monkeypatch.delitem(sys.modules, name)
    toy: Stage = importlib.import_module("toy_stages.similarity.stage").SIMILAR_CANDIDATES_STAGE
    by_name: dict[str, Stage] = {}
    for stage in STAGES:
        inputs = tuple(by_name[source.name] for source in stage.inputs)
        if stage.tables is VERIFIED_DEPENDENCIES:
            inputs += (by_name[NAME],)
        by_name[stage.name] = replace(stage, inputs=inputs)
        if stage.tables is CANDIDATE_CONTEXTS:
            by_name[NAME] = replace(toy, inputs=(by_name[stage.name],))
    return tuple(by_name.values())


@pytest.fixture
def values(world: World, tiny_models: tuple[str, str], tmp_path: Path) -> dict[str, Any]:
    """A settings file over a copy of the world's data."""
    shutil.copytree(world.project.data_uri, tmp_path / "data")
    return tiny_values(world.corpus, tmp_path / "data", tiny_models)


def toy_of(project: Project) -> Stage:
    return next(stage for stage in project.stages if stage.name == NAME)


def test_new_stage_has_its_settings(stages: tuple[Stage, ...], values: dict[str, Any]) -> None:
    project = make_project(values, stages=stages)
    assert project.dataset.similarity.min_similarity == -1
    chosen = make_project(values | {"similarity": {"min_similarity": 0.5}}, stages=stages)
    assert chosen.dataset.similarity.min_similarity == 0.5
    with pytest.raises(SettingsError, match=r"^similarity\.min_similarity: Input should be less"):
        make_project(values | {"similarity": {"min_similarity": 2}}, stages=stages)
    with pytest.raises(SettingsError, match=r"^similarity: no such setting"):
        make_project(values | {"similarity": {}})


def test_new_stage_is_in_all_definitions(stages: tuple[Stage, ...], values: dict[str, Any]) -> None:
    project = make_project(values, stages=stages)
    defs = build_definitions(project)
    graph = defs.resolve_asset_graph()
    node = graph.get(KEY)
    assert {key.path[-1] for key in node.parent_keys} == {CANDIDATE_CONTEXTS.name}
    assert KEY in graph.get(dg.AssetKey(["dataset", VERIFIED_DEPENDENCIES.name])).parent_keys
    assert node.code_version == code_version(toy_of(project), project.dataset)
    assert node.automation_condition is not None
    assert node.description == "Candidates that are similar enough."
    columns = [column.name for column in node.metadata["dagster/column_schema"].columns]
    assert columns == ["root_id", "anchor", "chunk_id"]
    checks = {key.name for key in graph.asset_check_keys if key.asset_key == KEY}
    assert checks == {"kept_are_candidates", "much_is_kept", "made_under_present_settings"}
    assert graph.get(dg.AssetCheckKey(KEY, "kept_are_candidates")).blocking
    jobs = {
        job.name
        for job in defs.resolve_all_job_defs()
        if KEY in job.asset_layer.executable_asset_keys and not job.name.startswith("__")
    }
    assert {"dataset__verify", "dataset__build_samples", "dataset__everything"} <= jobs
    assert "dataset__export" not in jobs


def test_new_stage_determines_its_version_and_no_other(
    stages: tuple[Stage, ...], values: dict[str, Any]
) -> None:
    def versions(similarity: dict[str, Any]) -> dict[str, str]:
        project = make_project(values | {"similarity": similarity}, stages=stages)
        of = project.stages_of(project.dataset)
        return {stage.name: code_version(stage, project.dataset) for stage in of}

    before = versions({})
    after = versions({"min_similarity": 0.5})
    assert {name for name in before if before[name] != after[name]} == {NAME}
    assert versions({"note": "other"}) == before


def test_new_stage_has_resources_on_a_cluster(
    stages: tuple[Stage, ...], values: dict[str, Any]
) -> None:
    project = make_project(values, stages=stages)
    assert resources_by_step(project)[f"dataset__{NAME}"].num_cpus == 3
    assert f"dataset__{NAME}_checks" in resources_by_step(project)
    cluster = {"engine": "ray", "resources": {NAME: {"memory": "2GiB"}}}
    project = make_project(values | {"cluster": cluster}, stages=stages)
    asked = project.resources(toy_of(project))
    assert (asked.num_cpus, asked.memory) == (3, 2 << 30)
    job = build_definitions(project).get_repository_def().get_job("dataset__verify")
    step = next(node for node in job.nodes if node.name == f"dataset__{NAME}")
    config = json.loads(step.definition.tags["dagster-ray/config"])
    assert (config["num_cpus"], config["memory"]) == (3, 2 << 30)
    with pytest.raises(SettingsError, match=rf"cluster\.resources\.{NAME}: no such setting"):
        make_project(values | {"cluster": cluster})


def test_new_stage_runs_with_its_checks_where_it_is_needed(
    stages: tuple[Stage, ...], values: dict[str, Any], world: World
) -> None:
    project = make_project(values, stages=stages)
    toy, store = toy_of(project), open_store(project.dataset)
    with dg.DagsterInstance.ephemeral() as instance:
        register_shards(project.corpus, instance)
        # Each shard is verified again, since that now depends on the toy stage; with the same
        # result, so nothing after it runs.
        assert run_project(project, instance) == len(world.shards)
        assert run_project(project, instance) == 0
        assert instance.get_materialized_partitions(KEY) == set(world.shards)
        for shard in world.shards:
            assert_kept(store, toy.tables, shard, -1.0)
            outcomes = store.check_outcomes(toy.tables, shard)
            assert {name: outcome.passed for name, outcome in outcomes.items()} == {
                "kept_are_candidates": True,
                "much_is_kept": True,
            }
            (record,) = instance.fetch_materializations(
                dg.AssetRecordsFilter(KEY, asset_partitions=[shard]), limit=1
            ).records
            event = record.asset_materialization
            assert event is not None
            rows = store.require(toy.tables, shard).tables["kept"].rows
            assert event.metadata["dagster/row_count"].value == rows
            assert event.metadata["kept"].value == rows
            assert "candidates_per_second" in event.metadata
            assert "preview" in event.metadata

        before = store.require(VERIFIED_DEPENDENCIES, world.shards[0])
        assert before.determinants["inputs"][NAME]
        changed = make_project(values | {"similarity": {"min_similarity": 0.97}}, stages=stages)
        assert run_project(changed, instance, with_export=False) == len(world.shards)
        for shard in world.shards:
            assert_kept(store, toy.tables, shard, 0.97)
            outcomes = store.check_outcomes(toy.tables, shard)
            assert outcomes["kept_are_candidates"].passed
        after = store.require(VERIFIED_DEPENDENCIES, world.shards[0])
        assert after.determinants["inputs"][NAME] != before.determinants["inputs"][NAME]


def assert_kept(store: Any, tables: TableSet, shard: str, limit: float) -> None:
    """The stage kept the candidates of at least this similarity, and counted them."""
    candidates = store.read(CANDIDATE_CONTEXTS, shard, "candidates")
    expected = [
        (row["root_id"], row["anchor"], row["chunk_id"])
        for row in candidates.iter_rows(named=True)
        if row["similarity"] >= limit
    ]
    kept: pl.DataFrame = store.read(tables, shard, "kept")
    assert list(kept.iter_rows()) == expected
    summary = store.summary(tables, shard)
    assert (summary.candidates, summary.kept) == (len(candidates), len(expected))


def test_failed_check_of_a_new_stage_holds_back_what_follows(
    stages: tuple[Stage, ...], values: dict[str, Any], tmp_path: Path, world: World
) -> None:
    sql = tmp_path / "packages" / "toy_stages" / "similarity" / "checks" / "kept_are_candidates.sql"
    sql.write_text("SELECT * FROM kept")
    project = make_project(values, stages=stages)
    before = open_store(project.dataset).require(VERIFIED_DEPENDENCIES, world.shards[0])
    with dg.DagsterInstance.ephemeral() as instance:
        register_shards(project.corpus, instance)
        with pytest.raises(RunError, match=f"dataset/{NAME}, .*: check kept_are_candidates failed"):
            run_project(project, instance)
    store = open_store(project.dataset)
    assert store.require(VERIFIED_DEPENDENCIES, world.shards[0]) == before
    outcome = store.check_outcomes(toy_of(project).tables, world.shards[0])["kept_are_candidates"]
    assert not outcome.passed
    assert outcome.faulty_rows > 0
    assert store.shards(LONG_CONTEXT_SAMPLES) == list(world.shards)


def test_doctor_examines_the_tables_of_a_new_stage(
    stages: tuple[Stage, ...], values: dict[str, Any]
) -> None:
    project = make_project(values, stages=stages)
    of_dataset = project.stages_of(project.dataset)
    toy, store = toy_of(project), open_store(project.dataset)
    before = doctor_checks.tables(project.dataset, of_dataset)
    assert before.verdict == "ok"
    with store.write(toy.tables, "s", fingerprint="f", determinants={}) as writer:
        writer.append("kept", [])
    after = doctor_checks.tables(project.dataset, of_dataset)
    assert after.verdict == "ok"
    assert int(after.message.split()[0]) == int(before.message.split()[0]) + 1
    manifest = Path(store.folder(toy.tables, "s")) / "manifest.json"
    manifest.write_text("{}")
    finding = doctor_checks.tables(project.dataset, of_dataset)
    assert finding.verdict == "fault"
    assert NAME in finding.message
