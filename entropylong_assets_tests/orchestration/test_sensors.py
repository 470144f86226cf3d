"""Sensors and schedules of several corpora, evaluated as a code server evaluates them."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._grpc.impl import get_external_schedule_execution, get_external_sensor_execution

from entropylong_assets.orchestration.build import build_definitions
from entropylong_assets.orchestration.runner import run_job
from entropylong_assets.project import Project, make_project
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Two corpora of one file each, and a dataset over each."""
    corpora = {}
    for name in ("web", "books"):
        (tmp_path / name).mkdir()
        write_document(tmp_path / name / "a.jsonl", "words")
        uri = f"{tmp_path / name}/*.jsonl"
        corpora[name] = {"sources": [{"name": f"s_{name}", "uri": uri}]}
    return make_project(
        {
            "data_uri": str(tmp_path / "data"),
            "corpora": corpora,
            "datasets": {"ours": {"corpus": "web"}, "tales": {"corpus": "books"}},
        }
    )


def write_document(path: Path, word: str) -> None:
    path.write_text(json.dumps({"text": f"Some {word}. " * 30}) + "\n")


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "instance").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "instance")) as local:
        yield local


def evaluate(function: Any, project: Project, instance: dg.DagsterInstance, **given: Any) -> Any:
    """The answer of a code server to the daemon; fails if it is an error."""
    known: dict[str, Any] = dict.fromkeys(inspect.signature(function).parameters)
    repository = build_definitions(project).get_repository_def()
    answer = function(
        **known | {"repo_def": repository, "instance_ref": instance.get_ref()} | given
    )
    assert not hasattr(answer, "error"), answer
    return answer


def tick(project: Project, instance: dg.DagsterInstance, sensor: str) -> Any:
    answer = evaluate(get_external_sensor_execution, project, instance, sensor_name=sensor)
    for request in answer.dynamic_partitions_requests or ():
        instance.add_dynamic_partitions(request.partitions_def_name, request.partition_keys)
    return answer


def tick_schedule(project: Project, instance: dg.DagsterInstance, schedule: str) -> Any:
    return evaluate(
        get_external_schedule_execution,
        project,
        instance,
        schedule_name=schedule,
        scheduled_execution_timestamp=time.time(),
        scheduled_execution_timezone="UTC",
    )


def test_new_files_registers_the_shards_of_its_own_corpus(
    project: Project, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    answer = tick(project, instance, "web__new_files")
    assert [request.partition_key for request in answer.run_requests] == ["s_web-00000"]
    assert instance.get_dynamic_partitions("web_shards") == ["s_web-00000"]
    assert instance.get_dynamic_partitions("books_shards") == []
    assert tick(project, instance, "web__new_files").skip_message == "nothing new in 1 shards"
    write_document(tmp_path / "web" / "b.jsonl", "more")
    answer = tick(project, instance, "web__new_files")
    assert [request.partition_key for request in answer.run_requests] == ["s_web-00001"]


def test_changed_file_is_requested_again(
    project: Project, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    (first,) = tick(project, instance, "web__new_files").run_requests
    write_document(tmp_path / "web" / "a.jsonl", "other words")
    (again,) = tick(project, instance, "web__new_files").run_requests
    assert again.partition_key == first.partition_key
    assert again.run_key != first.run_key


def test_daily_scan_registers_and_requests(project: Project, instance: dg.DagsterInstance) -> None:
    answer = tick_schedule(project, instance, "books__daily_scan")
    assert [request.partition_key for request in answer.run_requests] == ["s_books-00000"]
    assert instance.get_dynamic_partitions("books_shards") == ["s_books-00000"]
    assert instance.get_dynamic_partitions("web_shards") == []


def test_fill_gaps_requests_the_first_missing_stage_of_its_owner(
    project: Project, instance: dg.DagsterInstance
) -> None:
    for corpus in ("web", "books"):
        tick(project, instance, f"{corpus}__new_files")
    key = dg.AssetKey(["web", CORPUS_DOCUMENTS.name])
    (request,) = tick_schedule(project, instance, "web__fill_gaps").run_requests
    assert (request.partition_key, request.asset_selection) == ("s_web-00000", [key])
    assert "no shard has a gap" in tick_schedule(project, instance, "ours__fill_gaps").skip_message

    job = build_definitions(project).get_repository_def().get_job("web__ingest")
    run_job(job, "s_web-00000", instance, [key])
    (corpus_gap,) = tick_schedule(project, instance, "web__fill_gaps").run_requests
    (dataset_gap,) = tick_schedule(project, instance, "ours__fill_gaps").run_requests
    owners = [request.asset_selection[0].path[0] for request in (corpus_gap, dataset_gap)]
    assert owners == ["web", "ours"]
    assert corpus_gap.asset_selection != [key]
    # The other corpus has not been read: its dataset has nothing to start from.
    assert not tick_schedule(project, instance, "tales__fill_gaps").run_requests


def test_index_is_refreshed_only_for_eligible_shards(
    project: Project, instance: dg.DagsterInstance
) -> None:
    assert tick_schedule(project, instance, "web__refresh_index").skip_message is not None
