"""A forgotten, foreign or relative DAGSTER_HOME, and data_uri: nothing is made again silently."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from typer.testing import CliRunner

from entropylong_assets.cli.main import app
from entropylong_assets.orchestration.build import build_definitions
from entropylong_assets.orchestration.instance_data import InstanceError, bind_data
from entropylong_assets.orchestration.launcher import PROCESS_TAG, process_mark
from entropylong_assets.orchestration.local_run import dagster_home, open_instance
from entropylong_assets.orchestration.naming import asset_key
from entropylong_assets.orchestration.runner import RunError, run_job
from entropylong_assets.project import load_project, make_project, open_store
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.stage_names import BY_NAME
from entropylong_assets_tests.tiny_world import tiny_values


class Place:
    """A folder with a settings file, whose data are a copy of the world's beside it."""

    def __init__(self, world: World, models: tuple[str, str], folder: Path) -> None:
        self.folder, self.settings = folder, folder / "settings.yaml"
        folder.mkdir()
        shutil.copytree(world.project.data_uri, folder / "lab")
        self.values: dict[str, Any] = tiny_values(world.corpus, folder / "lab", models)
        self.values["data_uri"] = "lab"
        self.settings.write_text(json.dumps(self.values))

    def run(self) -> Any:
        return CliRunner().invoke(app, ["run", "-s", str(self.settings)])


@pytest.fixture
def place(world: World, tiny_models: tuple[str, str], tmp_path: Path) -> Place:
    return Place(world, tiny_models, tmp_path / "first")


@pytest.fixture
def other(world: World, tiny_models: tuple[str, str], tmp_path: Path) -> Place:
    return Place(world, tiny_models, tmp_path / "second")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder is another than that of the settings file; no DAGSTER_HOME is set."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DAGSTER_HOME", "")  # restored afterwards: the package sets it
    return folder


def test_a_new_instance_takes_over_finished_data_from_any_folder(
    place: Place, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure: 18 runs on a finished data folder, because DAGSTER_HOME had been forgotten."""
    for home in ("", "instances/new", str(elsewhere / "full")):
        monkeypatch.setenv("DAGSTER_HOME", home)
        result = place.run()
        assert result.exit_code == 0, result.output
        assert "Everything is up to date: no run was needed." in result.output
    assert (place.folder / ".dagster" / "dagster.yaml").exists()
    assert (place.folder / "instances" / "new" / "dagster.yaml").exists()
    assert sorted(path.name for path in elsewhere.iterdir()) == ["full"]


def test_a_relative_data_uri_is_beside_the_settings_file(place: Place, elsewhere: Path) -> None:
    project = load_project(place.settings)
    assert project.data_uri == str(place.folder / "lab")
    assert {project.corpus.data_uri, project.dataset.data_uri} == {project.data_uri}
    place.settings.write_text(json.dumps({**place.values, "data_uri": "s3://bucket/lab"}))
    assert load_project(place.settings).data_uri == "s3://bucket/lab"
    # Named by a relative path, as most often.
    place.settings.write_text(json.dumps(place.values))
    os.chdir(place.folder)
    assert load_project("settings.yaml").data_uri == str(place.folder / "lab")


def test_an_instance_of_other_data_is_refused_in_one_line(
    place: Place, other: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(place.folder / "home"))
    assert place.run().exit_code == 0
    refused = other.run()
    assert refused.exit_code == 2
    line = " ".join(refused.output.split())
    assert f"shows corpus 'corpus' of {place.folder / 'lab'}" in line
    assert f"data_uri is {other.folder / 'lab'}; set data_uri to the first" in line
    assert "Traceback" not in refused.output
    with open_instance() as instance:
        assert instance.get_runs() == []
    assert CliRunner().invoke(app, ["status", "-s", str(other.settings)]).exit_code == 2
    doctor = CliRunner().invoke(app, ["doctor", "-s", str(other.settings)])
    assert doctor.exit_code == 1
    assert "shows corpus 'corpus' of" in doctor.output
    assert place.run().exit_code == 0


def test_a_run_of_the_ui_is_refused_too(place: Place, other: Place, world: World) -> None:
    first, second = load_project(place.settings), load_project(other.settings)
    with dg.DagsterInstance.ephemeral() as instance:
        bind_data([first.dataset], instance)
        instance.add_dynamic_partitions("corpus_shards", list(world.shards))
        job = build_definitions(second).get_repository_def().get_job("dataset__verify")
        with pytest.raises(RunError, match="shows dataset 'dataset' of"):
            run_job(job, world.shards[0], instance)


def test_moved_data_are_taken_over(place: Place) -> None:
    """The old place has no data any more, so nothing can be mixed up."""
    with dg.DagsterInstance.ephemeral() as instance:
        bind_data([load_project(place.settings).corpus], instance)
        (place.folder / "lab").rename(place.folder / "moved")
        moved = make_project({**place.values, "data_uri": str(place.folder / "moved")})
        bind_data([moved.corpus], instance)
        shutil.copytree(place.folder / "moved", place.folder / "lab")
        with pytest.raises(InstanceError):  # now it belongs to the new place
            bind_data([load_project(place.settings).corpus], instance)


def test_a_relative_dagster_home_without_settings_is_in_the_working_folder(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "here")
    assert dagster_home() == elsewhere / "here"
    assert dagster_home(elsewhere / "not used any more") == elsewhere / "here"


READING = [
    ["settings"],
    ["doctor"],
    ["status"],
    ["run", "--dry-run"],
    ["retire", "--list"],
    ["compare", "dataset", "dataset"],
    ["show", "tiny-00000-00000"],
    ["estimate", "--rows", "16", "--roots", "2"],
]


def contents(folder: Path) -> dict[str, bytes | None]:
    """All files with their bytes, and all folders. Locks are empty files that readers take too."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.suffix != ".lock"
    }


@pytest.mark.parametrize("command", READING, ids=lambda command: command[0])
@pytest.mark.parametrize("state", ["finished data", "nothing"])
def test_commands_that_read_write_nothing(
    command: list[str], state: str, place: Place, elsewhere: Path
) -> None:
    """The failure: `doctor` and `status` left an instance, and `doctor` a data folder."""
    if state == "nothing":
        shutil.rmtree(place.folder / "lab")
    before = contents(place.folder)
    done = CliRunner().invoke(app, [*command, "-s", str(place.settings)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    assert state == "nothing" or command == ["doctor"] or done.exit_code == 0, done.output
    assert contents(place.folder) == before
    assert list(elsewhere.iterdir()) == []


def test_status_leaves_an_instance_as_it_is(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failures: it bound a data folder to an instance, and ended the run of a killed process.

    Such a run does not count as running.
    """
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    project, report = load_project(place.settings), BY_NAME["report"]
    shutil.rmtree(open_store(project.dataset).folder(report.tables, "all"))
    key = asset_key(project.dataset, report)
    with open_instance() as instance:
        dead = dg.DagsterRun(
            job_name="dataset__export",
            status=dg.DagsterRunStatus.STARTED,
            asset_selection=frozenset({key}),
        )
        instance.add_run(dead.with_tags({PROCESS_TAG: f"{dead.run_id}/{ended_process()}"}))
    done = CliRunner().invoke(app, ["status", "-s", str(place.settings)])
    assert done.exit_code == 0, done.output
    assert "missing: report" in done.output
    with dg.DagsterInstance.get() as instance:
        (run,) = instance.get_runs()
        assert run.status == dg.DagsterRunStatus.STARTED
        keys = {"entropylong/data_uri/corpus", "entropylong/data_uri/dataset"}
        assert instance.daemon_cursor_storage.get_cursor_values(keys) == {}


def ended_process() -> str:
    """The mark of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mark = process_mark(child.pid)
    child.communicate(b"\n")
    return mark


def test_retire_takes_the_instance_beside_the_settings(
    place: Place, elsewhere: Path, world: World
) -> None:
    """The failure: it deleted the partitions in an instance of its own, in the working folder."""
    assert place.run().exit_code == 0
    done = CliRunner().invoke(app, ["retire", world.shards[0], "-s", str(place.settings)])
    assert done.exit_code == 0, done.output
    assert list(elsewhere.iterdir()) == []
    with dg.DagsterInstance.from_config(str(place.folder / ".dagster")) as instance:
        assert instance.get_dynamic_partitions("corpus_shards") == list(world.shards[1:])
