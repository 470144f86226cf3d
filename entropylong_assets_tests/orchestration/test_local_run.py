"""Runs of the command line: what they run, leave out, skip and wait for."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from rich.console import Console

from entropylong_assets.audits.tables import CROSS_MODEL_AUDIT, NULL_CALIBRATION
from entropylong_assets.cli.output import print_audits
from entropylong_assets.orchestration.build import build_definitions
from entropylong_assets.orchestration.errors import EQUAL_FAILURES
from entropylong_assets.orchestration.launcher import process_tags
from entropylong_assets.orchestration.local_run import (
    compact_table,
    register_shards,
    run_audits,
    run_project,
)
from entropylong_assets.orchestration.naming import asset_key
from entropylong_assets.orchestration.readiness import is_outdated
from entropylong_assets.orchestration.run_locks import working_alone
from entropylong_assets.orchestration.run_selection import Selection, expected_jobs
from entropylong_assets.orchestration.runner import (
    Failure,
    RunFailuresError,
    Watcher,
)
from entropylong_assets.project import Project, make_project, open_store
from entropylong_assets.settings.section import SettingsError
from entropylong_assets.stages.corpus.shards import load_plan
from entropylong_assets.stages.stage import Partition
from entropylong_assets.storage.tables import WHOLE
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.stage_names import BY_NAME
from entropylong_assets_tests.tiny_world import tiny_project, tiny_values

EXPORT, REPORT = BY_NAME["training_dataset"], BY_NAME["report"]


@dataclass
class Recorder:
    """Records every call of a run to its watcher."""

    jobs: list[tuple[str, list[str], int]] = field(default_factory=list)
    ran: list[tuple[str, str]] = field(default_factory=list)
    skipped: dict[tuple[str, str], str] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def watcher(self) -> Watcher:
        def on_job(_: Any, job: Any, shards: Sequence[str], skipped: int) -> None:
            self.jobs.append((job.name, list(shards), skipped))

        def on_end(_: Any, job: Any, shard: str, was_run: bool) -> None:
            if was_run:
                self.ran.append((job.name, shard))

        def on_skip(_: Any, stage: Any, shard: str, reason: str) -> None:
            self.skipped[stage.name, shard] = reason

        return Watcher(
            on_job=on_job, on_end=on_end, on_skip=on_skip, on_failure=self.failures.append
        )


@pytest.fixture
def values(world: World, tiny_models: tuple[str, str], tmp_path: Path) -> dict[str, Any]:
    """Settings over a copy of the world's data."""
    shutil.copytree(world.project.data_uri, tmp_path / "data")
    return tiny_values(world.corpus, tmp_path / "data", tiny_models)


def with_verification(values: dict[str, Any], **changes: Any) -> Project:
    return make_project({**values, "verification": {**values["verification"], **changes}})


def plans_of(project: Project) -> dict[str, Any]:
    return {name: load_plan(open_store(c)) for name, c in project.corpora.items()}


def test_a_run_names_what_it_would_run_and_why(values: dict[str, Any], world: World) -> None:
    project = with_verification(values, epsilon=0.2)
    jobs = list(expected_jobs(project, plans_of(project), Selection()))
    reasons = {
        stage.name: set(shards.values()) for job in jobs for stage, shards in job.reasons.items()
    }
    assert reasons == {
        "verified_dependencies": {"setting verification.epsilon has changed"},
        "long_context_samples": {"verified_dependencies runs"},
        "training_dataset": {"long_context_samples runs"},
        "report": {"training_dataset runs"},
    }
    expected = [(job.job.name, shard) for job in jobs for shard in job.shards]
    recorded = Recorder()
    with dg.DagsterInstance.ephemeral() as instance:
        register_shards(project.corpus, instance)
        run_project(project, instance, watcher=recorded.watcher())
    assert recorded.ran == expected
    assert len(expected) == 2 * len(world.shards) + 1


def test_shards_and_stages_limit_a_run(values: dict[str, Any], world: World) -> None:
    project = with_verification(values, epsilon=0.2)
    first, second = world.shards
    recorded = Recorder()
    with dg.DagsterInstance.ephemeral() as instance:
        register_shards(project.corpus, instance)
        limits = Selection(
            shards=(second,), first="candidate_contexts", last="verified_dependencies"
        )
        assert run_project(project, instance, watcher=recorded.watcher(), selection=limits) == 1
    assert recorded.ran == [("verify", second)]
    jobs = list(expected_jobs(project, plans_of(project), Selection(last="verified_dependencies")))
    assert [shard for job in jobs for shard in job.shards] == [first]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Selection(shards=("tiny-0001",)), "no shard 'tiny-0001'; did you mean tiny-00001"),
        (Selection(first="verified_dependency"), "did you mean verified_dependencies"),
        (Selection(last="everything"), "no stage 'everything'; there are corpus_documents"),
        (Selection(first="report", last="entropy_scores"), "report comes after entropy_scores"),
        (Selection(datasets=("other",)), "no dataset 'other'"),
    ],
)
def test_an_unknown_limit_is_refused(world: World, limits: Selection, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        run_project(world.project, world.instance, selection=limits)


def test_a_bad_shard_does_not_stop_the_others(
    world: World, tiny_models: tuple[str, str], tmp_path: Path
) -> None:
    """The first of two files has a bad line: the second one becomes samples and is exported."""
    corpus = tmp_path / "corpus"
    shutil.copytree(world.corpus, corpus)
    lines = (corpus / "a.jsonl").read_text().splitlines()
    (corpus / "a.jsonl").write_text("\n".join([*lines[:3], '{"text": "cut', *lines[4:]]))
    project = tiny_project(corpus, tmp_path / "data", tiny_models)
    recorded = Recorder()
    with dg.DagsterInstance.ephemeral() as instance:
        register_shards(project.corpus, instance)
        with pytest.raises(RunFailuresError, match=r"a\.jsonl") as raised:
            run_project(project, instance, watcher=recorded.watcher())
    assert [(f.job.name, f.shard) for f in raised.value.failures] == [("ingest", "tiny-00000")]
    assert recorded.failures == list(raised.value.failures)
    assert ("assemble", "tiny-00001") in recorded.ran
    assert ("score", "tiny-00000") not in recorded.ran
    store = open_store(project.dataset)
    assert store.read(EXPORT.tables, WHOLE, "shards")["shard"].to_list() == ["tiny-00001"]
    assert "tiny-00000" in store.read(EXPORT.tables, WHOLE, "left_out")["shard"].to_list()


def test_a_job_that_fails_alike_on_every_shard_is_given_up(
    tiny_models: tuple[str, str], tmp_path: Path
) -> None:
    """A missing model or a full disk would fail thousands of shards one after the other."""
    (tmp_path / "corpus").mkdir()
    for number in range(EQUAL_FAILURES + 2):
        line = json.dumps({"text": f"file {number} " * 10, "id": str(number)})
        (tmp_path / "corpus" / f"{number}.jsonl").write_text(line + "\n")
    models = tiny_models[0], str(tmp_path / "no-such-model")
    project = tiny_project(tmp_path / "corpus", tmp_path / "data", models)
    recorded = Recorder()
    with dg.DagsterInstance.ephemeral() as instance:
        register_shards(project.corpus, instance)
        with pytest.raises(RunFailuresError, match="and 2 more failures"):
            run_project(project, instance, watcher=recorded.watcher())
    assert len(recorded.failures) == EQUAL_FAILURES
    reason = "it was not run, because its input failed"
    assert recorded.skipped["near_duplicates", WHOLE] == reason


def test_no_samples_is_skipped_and_not_failed(values: dict[str, Any], world: World) -> None:
    """A first shard without verified dependencies is no error: there is nothing to export yet."""
    for name in (EXPORT.name, REPORT.name):
        shutil.rmtree(Path(values["data_uri"]) / "dataset" / name)
    project = make_project({**values, "verification": {**values["verification"], "epsilon": 0.999}})
    recorded = Recorder()
    with dg.DagsterInstance.ephemeral() as instance:
        register_shards(project.corpus, instance)
        run_project(project, instance, watcher=recorded.watcher())
        assert recorded.failures == []
        reason = recorded.skipped[EXPORT.name, WHOLE]
        assert "no verified dependencies" in reason
        assert world.shards[0] in reason
        assert recorded.skipped[REPORT.name, WHOLE] == f"{EXPORT.name} is not materialized"
        partition = Partition(project.dataset, open_store(project.dataset))
        assert not is_outdated(EXPORT, partition), "the automation would ask for it at every tick"
        # The same in the UI: a run that succeeds, with a warning and without a materialization.
        job = build_definitions(project).get_repository_def().get_job("dataset__export")
        result = job.execute_in_process(instance=instance)
        assert result.success
        assert result.get_asset_materialization_events() == []
        skipped = {event.step_key for event in result.all_events if event.is_step_skipped}
        assert f"dataset__{REPORT.name}" in {key.split(".")[0] for key in skipped}
        warnings = [e.user_message for e in instance.all_logs(result.run_id) if e.level == 30]
        assert any("training_dataset is skipped" in warning for warning in warnings), warnings


def test_an_audit_without_a_second_model_is_skipped(values: dict[str, Any], world: World) -> None:
    values["audit"] = {"roots": 1, "pairs": 1, "recipes": ["random"], "short_tokens": 64}
    project = make_project(values)
    recorded = Recorder()
    with dg.DagsterInstance.ephemeral() as instance:
        run_audits(project, project.dataset, instance, recorded.watcher())
        key = asset_key(project.dataset, BY_NAME["cross_model_audit"])
        assert instance.get_materialized_partitions(key) == set()
    assert recorded.failures == []
    assert {shard for name, shard in recorded.skipped if name == "cross_model_audit"} == set(
        world.shards
    )
    assert all("audit.model" in reason for reason in recorded.skipped.values())
    assert open_store(project.dataset).shards(CROSS_MODEL_AUDIT) == []
    text = io.StringIO()
    print_audits(Console(file=text, width=120), project.dataset)
    shown = dict(re.findall(r"^│ (.+?) +│ (.+?) +│$", text.getvalue(), re.MULTILINE))
    n = len(world.shards)
    assert shown["null calibration"] == f"{n} of {n} shards"
    assert shown["cross model audit"] == f"0 of {n} shards; needs a second model in audit.model"
    trials = open_store(project.dataset).read_all(NULL_CALIBRATION, world.shards, "trials")
    n_random = (trials["kind"] == "random").sum()
    assert shown["random contexts accepted by plain"].endswith(f" of {n_random}")


def test_compaction_waits_while_the_index_is_made(values: dict[str, Any], tmp_path: Path) -> None:
    """Both commit to one table: the command took no lock, unlike the job."""
    project = make_project(values)
    job = build_definitions(project).get_repository_def().get_job("corpus__index")
    lines: list[str] = []
    messages: list[str] = []
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:

        def run() -> None:
            messages.append(compact_table(project, project.corpus, instance, 7, lines.append))

        thread = threading.Thread(target=run)
        with working_alone(instance, job, WHOLE, lines.append):
            thread.start()
            while not lines:
                time.sleep(0.01)
            assert lines == [f"all: waiting for process {os.getpid()}, which runs {job.name} on it"]
            assert messages == []
        thread.join(60)
        assert "fragments before" in messages[0]


def test_a_second_run_of_a_shard_waits_for_the_first(tmp_path: Path) -> None:
    lines: list[str] = []
    entered: list[bool] = []
    asset = dg.asset(name="thing")(lambda: None)
    definitions = dg.Definitions([asset], jobs=[dg.define_asset_job("make")])
    job = definitions.resolve_job_def("make")
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:

        def second(shard: str) -> None:
            with working_alone(instance, job, shard, lines.append) as waited:
                entered.append(waited)

        with working_alone(instance, job, "s-0", lines.append) as waited:
            assert not waited
            second("s-1")  # another shard does not wait
            assert entered == [False]
            assert lines == []
            thread = threading.Thread(target=second, args=("s-0",))
            thread.start()
            while not lines:
                time.sleep(0.01)
            assert lines == [f"s-0: waiting for process {os.getpid()}, which runs make on it"]
            assert entered == [False]
        thread.join(30)
        assert entered == [False, True]
        assert list((tmp_path / "entropylong-locks").iterdir()) == []


def test_a_run_waits_for_one_that_dagster_started(tmp_path: Path) -> None:
    asset = dg.asset(name="thing", partitions_def=dg.StaticPartitionsDefinition(["s-0"]))
    definitions = dg.Definitions([asset(lambda: None)], jobs=[dg.define_asset_job("make")])
    job = definitions.resolve_job_def("make")
    lines: list[str] = []
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        run = instance.create_run_for_job(
            job,
            run_id="0f2b5c3e-0000-4000-8000-000000000000",
            tags={
                "dagster/partition": "s-0",
                **process_tags("0f2b5c3e-0000-4000-8000-000000000000", os.getpid()),
            },
            status=dg.DagsterRunStatus.STARTED,
        )

        def on_wait(line: str) -> None:
            lines.append(line)
            instance.report_run_canceled(run)

        with working_alone(instance, job, "s-1", on_wait) as waited:
            assert not waited
        with working_alone(instance, job, "s-0", on_wait) as waited:
            assert waited
    assert lines == ["s-0: waiting for run 0f2b5c3e, which runs make on it"]
