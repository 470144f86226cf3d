"""Source files that change back, are empty, deleted or renamed: runs continue, and report it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from typer.testing import CliRunner, Result

from entropylong_assets.cli.main import app
from entropylong_assets.orchestration.build import build_definitions
from entropylong_assets.orchestration.doctor_checks import sources
from entropylong_assets.orchestration.local_run import (
    open_instance,
    register_shards,
    run_project,
)
from entropylong_assets.orchestration.runner import run_job
from entropylong_assets.orchestration.scanning import scan
from entropylong_assets.project import Project, make_project, open_store
from entropylong_assets.stages.corpus.errors import CorpusError, MissingSourceError
from entropylong_assets.stages.corpus.stage import CORPUS_DOCUMENTS_STAGE
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.versioning import stale_reason
from entropylong_assets_tests.orchestration.test_sensors import instance as instance
from entropylong_assets_tests.orchestration.test_sensors import tick, tick_schedule
from entropylong_assets_tests.tiny_world import document, tiny_values

A, B = "some words", "other text"


def write(path: Path, text: str, time: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"text": f"{text}. " * 30}) + "\n")
    if time is not None:
        os.utime(path, (time, time))
    return path


def project_of(tmp_path: Path, *names: str, **corpus: Any) -> Project:
    """A corpus with a source per name, each over the folder of its name."""
    given = [{"name": name, "uri": str(tmp_path / name)} for name in names or ("in",)]
    return make_project(
        {"data_uri": str(tmp_path / "data"), "corpus": {"sources": given, "name": "web", **corpus}}
    )


def partition_of(project: Project, shard: str = "in-00000") -> Partition:
    return Partition(project.corpus, open_store(project.corpus), shard)


# ------------------------------------------------------------------------------- A → B → A


def test_a_file_that_changes_back_is_asked_for_each_time(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    """Dagster never starts a second run for the same run key."""
    file, project = tmp_path / "in/a.jsonl", project_of(tmp_path)
    keys = []
    for text, time in ((A, 1), (B, 2), (A, 1), (B, 2), (A, 1)):
        write(file, text, time)
        (request,) = tick(project, instance, "web__new_files").run_requests
        assert request.partition_key == "in-00000"
        keys.append(request.run_key)
        for _ in range(2):  # unchanged: nothing is asked for
            assert not tick(project, instance, "web__new_files").run_requests
    assert len(set(keys)) == 5


def test_a_text_file_that_changes_back_is_asked_for_each_time(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    project, keys = project_of(tmp_path), []
    for name in ("a.txt", "b.txt"):
        write(tmp_path / "in" / name, A, 1)
    for text, time in ((A, 1), (B, 2), (A, 1)):
        write(tmp_path / "in/a.txt", text, time)
        (request,) = tick(project, instance, "web__new_files").run_requests
        keys.append(request.run_key)
    assert len(set(keys)) == 3


def test_fill_gaps_asks_again_for_what_was_made_since(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    file, project = write(tmp_path / "in/a.jsonl", A, 1), project_of(tmp_path)
    tick(project, instance, "web__new_files")
    job = build_definitions(project).get_repository_def().get_job("web__ingest")
    key = dg.AssetKey(["web", CORPUS_DOCUMENTS.name])
    keys = []
    for text, time in ((A, 1), (B, 2), (A, 1), (B, 2)):
        write(file, text, time)
        requests = [tick_schedule(project, instance, "web__fill_gaps").run_requests for _ in "12"]
        assert [r.asset_selection for (r,) in requests] == [[key], [key]]
        assert requests[0][0].run_key == requests[1][0].run_key  # once per gap
        keys.append(requests[0][0].run_key)
        run_job(job, "in-00000", instance, [key])
    assert len(set(keys)) == 4


def test_the_data_follow_a_file_that_changes_back(tmp_path: Path) -> None:
    file, project = write(tmp_path / "in/a.jsonl", A, 1), project_of(tmp_path)
    partition = partition_of(project)
    with dg.DagsterInstance.ephemeral() as instance:
        for text, time in ((A, 1), (B, 2), (A, 1)):
            write(file, text, time)
            register_shards(project.corpus, instance, accept_changes=True)
            assert stale_reason(CORPUS_DOCUMENTS_STAGE, partition) is not None
            materialize(CORPUS_DOCUMENTS_STAGE, partition)
            assert stale_reason(CORPUS_DOCUMENTS_STAGE, partition) is None
            (stored,) = partition.store.read(CORPUS_DOCUMENTS, "in-00000", "documents")["text"]
            assert stored.startswith(text)


# ------------------------------------------------------------------------------ missing files


def test_a_shard_keeps_its_data_when_its_file_is_missing(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    for name in "ab":
        write(tmp_path / f"in/{name}.jsonl", name * 9)
    project = project_of(tmp_path)
    register_shards(project.corpus, instance)
    partition = partition_of(project)
    manifest = materialize(CORPUS_DOCUMENTS_STAGE, partition).manifest
    (tmp_path / "in/a.jsonl").unlink()
    plan = register_shards(project.corpus, instance, accept_changes=True)
    assert plan.missing == (str(tmp_path / "in/a.jsonl"),)
    assert plan.missing_shards == ("in-00000",)
    assert stale_reason(CORPUS_DOCUMENTS_STAGE, partition) is None
    # Asked for by hand, it is refused in a line, and the data stay.
    with pytest.raises(MissingSourceError, match=r"^shard in-00000: .*a.jsonl does not exist; put"):
        materialize(CORPUS_DOCUMENTS_STAGE, partition)
    assert partition.store.require(CORPUS_DOCUMENTS, "in-00000") == manifest
    answer = tick(project, instance, "web__new_files")
    assert "missing files (their shards keep their data): " in answer.skip_message
    # Under other settings it is stale; nothing else makes it so.
    stricter = partition_of(project_of(tmp_path, min_chars=7))
    assert stale_reason(CORPUS_DOCUMENTS_STAGE, stricter) == "setting min_chars has changed"
    write(tmp_path / "in/a.jsonl", "a" * 9)
    assert stale_reason(CORPUS_DOCUMENTS_STAGE, partition) == "shard has changed"
    materialize(CORPUS_DOCUMENTS_STAGE, partition)


def test_a_shard_of_text_files_keeps_its_data_when_one_is_missing(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    for name in "abc":
        write(tmp_path / f"in/{name}.txt", name * 9)
    project = project_of(tmp_path)
    partition = partition_of(project)
    tick(project, instance, "web__new_files")
    manifest = materialize(CORPUS_DOCUMENTS_STAGE, partition).manifest
    (tmp_path / "in/b.txt").unlink()
    assert not tick(project, instance, "web__new_files").run_requests
    assert stale_reason(CORPUS_DOCUMENTS_STAGE, partition) is None
    with pytest.raises(MissingSourceError, match=r"b.txt does not exist; .* up to date but for"):
        materialize(CORPUS_DOCUMENTS_STAGE, partition)
    assert partition.store.require(CORPUS_DOCUMENTS, "in-00000") == manifest
    # Under other settings it can be made without the file; then the file comes back.
    other = partition_of(project_of(tmp_path, min_chars=7))
    materialize(CORPUS_DOCUMENTS_STAGE, other)
    assert stale_reason(CORPUS_DOCUMENTS_STAGE, other) is None
    assert other.store.summary(CORPUS_DOCUMENTS, "in-00000").documents == 2
    write(tmp_path / "in/b.txt", "b" * 9)
    assert stale_reason(CORPUS_DOCUMENTS_STAGE, other) == "shard has changed"
    # A change of another file reads the shard again, without the missing one.
    (tmp_path / "in/b.txt").unlink()
    write(tmp_path / "in/c.txt", "changed")
    (request,) = tick(project, instance, "web__new_files").run_requests
    assert request.partition_key == "in-00000"
    materialize(CORPUS_DOCUMENTS_STAGE, partition)
    assert partition.store.summary(CORPUS_DOCUMENTS, "in-00000").documents == 2


def test_a_shard_that_never_had_data_waits_for_its_file(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    file, project = write(tmp_path / "in/a.jsonl", A, 5), project_of(tmp_path)
    write(tmp_path / "in/b.jsonl", B)
    scan(project.corpus, instance)  # the tick dies before it registers anything
    file.unlink()
    (request,) = tick(project, instance, "web__new_files").run_requests
    assert request.partition_key == "in-00001"
    assert instance.get_dynamic_partitions("web_shards") == ["in-00001"]
    write(file, A, 5)
    (request,) = tick(project, instance, "web__new_files").run_requests
    assert request.partition_key == "in-00000"


def test_a_source_that_leaves_the_settings_keeps_its_shards(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    for name in ("in", "more"):
        write(tmp_path / name / "a.jsonl", name * 9)
    both = project_of(tmp_path, "in", "more")
    register_shards(both.corpus, instance)
    materialize(CORPUS_DOCUMENTS_STAGE, partition_of(both))
    without = project_of(tmp_path, "more")
    plan = register_shards(without.corpus, instance)
    assert plan.missing_shards == ("in-00000",)
    partition = partition_of(without)
    assert stale_reason(CORPUS_DOCUMENTS_STAGE, partition) is None
    with pytest.raises(MissingSourceError, match="the settings have no source 'in'; put it back"):
        materialize(CORPUS_DOCUMENTS_STAGE, partition)
    # The instance does not know that the shard was made, but a run could not read its files.
    requests = tick_schedule(without, instance, "web__fill_gaps").run_requests
    assert [(r.partition_key, r.asset_selection[0].path[-1]) for r in requests] == [
        ("more-00000", "corpus_documents"),
    ]
    # The data outlive a change of the source's other settings, too.
    changed = make_project(
        {
            "data_uri": str(tmp_path / "data"),
            "corpus": {
                "name": "web",
                "sources": [{"name": "more", "uri": str(tmp_path / "more"), "license": "mit"}],
            },
        }
    )
    assert stale_reason(CORPUS_DOCUMENTS_STAGE, partition_of(changed)) is None


def test_doctor_warns_of_missing_files_and_goes_on(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    file, project = write(tmp_path / "in/a.jsonl", A), project_of(tmp_path)
    write(tmp_path / "in/b.jsonl", B)
    register_shards(project.corpus, instance)
    file.unlink()
    finding = sources(project.corpus)
    assert finding.verdict == "warning"
    assert f"missing: {file}; put them back, or take" in finding.message
    (tmp_path / "in/b.jsonl").unlink()
    with pytest.raises(CorpusError, match="no file at"):
        sources(project.corpus)


# --------------------------------------------------------------------------- files without rows


def test_files_without_rows_are_opened_once_and_starve_no_other(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    for i in range(12):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / f"in/{i:02}.jsonl").touch()
    write(tmp_path / "in/z.jsonl", A)
    project = project_of(tmp_path)
    answers = [tick(project, instance, "web__new_files") for _ in range(4)]
    assert [len(answer.run_requests or ()) for answer in answers] == [0, 0, 1, 0]
    assert "passed over: files without rows: 12 (" in answers[-1].skip_message
    # Once it has rows it is a new file.
    write(tmp_path / "in/03.jsonl", B)
    (request,) = tick(project, instance, "web__new_files").run_requests
    assert request.partition_key == "in-00001"


def test_a_corpus_of_empty_files_is_told_plainly(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").touch()
    (tmp_path / "in/b.csv").write_text("text\n")
    project = project_of(tmp_path)
    plan = register_shards(project.corpus, instance)
    assert (plan.shards, set(plan.empty)) == ((), {str(tmp_path / f"in/{n}") for n in PLAIN})
    assert "nothing new in 0 shards" in tick(project, instance, "web__new_files").skip_message
    with pytest.raises(CorpusError, match=r"^corpus web: its sources have no file with rows; put "):
        run_project(project, instance, datasets=None)


PLAIN = ("a.jsonl", "b.csv")


# ------------------------------------------------------------------------- the command line


class Home:
    """A project of a user: settings file, source folder, instance."""

    def __init__(self, folder: Path, models: tuple[str, str], patch: pytest.MonkeyPatch) -> None:
        self.folder, self.corpus = folder, folder / "in"
        values = tiny_values(self.corpus, folder / "data", models)
        self.with_dataset = values
        self.source = values["corpus"]["sources"][0]
        self.embedding = values["embedding"]
        patch.setenv("DAGSTER_HOME", str(folder / "instance"))

    def write(self, name: str, seeds: range) -> None:
        self.corpus.mkdir(exist_ok=True)
        lines = [json.dumps({"text": document(s), "id": str(s)}) for s in seeds]
        (self.corpus / name).write_text("\n".join(lines) + "\n")

    def call(self, *command: str, **corpus: Any) -> Result:
        """Call the command line on a settings file with a corpus alone."""
        own = {"sources": [self.source], "min_chars": 20, "embedding": self.embedding, **corpus}
        return self.call_with(
            {"data_uri": str(self.folder / "data"), "corpora": {"corpus": own}}, *command
        )

    def call_with(self, values: dict[str, Any], *command: str) -> Result:
        settings = self.folder / "settings.yaml"
        settings.write_text(yaml.safe_dump(values))
        result = CliRunner().invoke(app, [*command, "--settings", str(settings)])
        assert "Traceback" not in result.output
        return result


@pytest.fixture
def home(tmp_path: Path, tiny_models: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Home:
    return Home(tmp_path, tiny_models, monkeypatch)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_dry_run_sees_a_wrong_text_field_as_a_scan_does(home: Home, name: str) -> None:
    """The failure: `27 runs expected`, and then every one of them fails."""
    home.corpus.mkdir()
    content = {
        "a.jsonl": '{"body": "Some words.", "id": "1"}\n',
        "a.csv": "body,id\nSome words.,1\n",
    }
    (home.corpus / name).write_text(content[name])
    home.source["uri"] = str(home.corpus / name)
    home.source["kind"] = "auto"
    scanned, expected = home.call("scan"), home.call("run", "--dry-run")
    assert "text_field" in scanned.output
    assert (expected.exit_code, expected.output) == (2, scanned.output)


def test_run_goes_on_without_its_source_files(home: Home) -> None:
    home.write("a.jsonl", range(300, 306))
    home.write("b.jsonl", range(310, 316))
    home.write("_tmp.jsonl", range(320, 321))
    (home.corpus / "empty.jsonl").touch()
    first = home.call("run")
    assert first.exit_code == 0, first.output
    (home.corpus / "a.jsonl").unlink()
    again = home.call("run")
    assert again.exit_code == 0, again.output
    assert f"missing: {home.corpus}/a.jsonl; shards keep their data" in again.output
    assert "no run was needed." in again.output
    # A renamed file is a new one; the old shard stays.
    (home.corpus / "b.jsonl").rename(home.corpus / "c.jsonl")
    renamed = home.call("run")
    assert renamed.exit_code == 0, renamed.output
    assert "3 shards, 1 of them new" in renamed.output
    # What is stale and can't be read again is named, and the others are made again.
    stale = home.call("run", min_chars=30)
    assert stale.exit_code == 0, stale.output
    assert "not made again, data kept: shard tiny-00000: " in stale.output
    assert "(and 1 more)" in stale.output
    # A source that is removed from the settings does not stop the run either.
    other = home.call("run", sources=[{**home.source, "name": "other"}])
    assert other.exit_code == 0, other.output
    assert "4 shards, 1 of them new" in other.output
    assert "read by several sources: 1 files" in other.output
    shown = home.call("scan")
    assert shown.exit_code == 0
    lines = " ".join(shown.output.split())
    assert f"missing: {home.corpus}/a.jsonl, {home.corpus}/b.jsonl" in lines
    assert f"passed over, names that begin with . or _: 1 ({home.corpus}/_tmp.jsonl)" in lines
    assert f"passed over, files without rows: 1 ({home.corpus}/empty.jsonl)" in lines


def test_run_reads_all_rows_of_a_file_that_has_grown(home: Home) -> None:
    """Rows for which the old shards have no room get new ones, also without a sensor."""
    home.write("a.jsonl", range(300, 304))
    assert home.call("run", shard_rows=4).exit_code == 0
    home.write("a.jsonl", range(300, 310))
    result = home.call("run", shard_rows=4)
    assert result.exit_code == 0, result.output
    table = " ".join(result.output.replace("│", " ").split())
    assert "corpus_documents: documents 10" in table


def test_no_stage_stops_at_a_shard_without_files_or_rows(home: Home) -> None:
    """After a scan, one file vanishes and another becomes empty."""
    for name, seeds in (("a", range(300, 303)), ("b", range(310, 316)), ("c", range(320, 326))):
        home.write(f"{name}.jsonl", seeds)
    assert home.call_with(home.with_dataset, "scan").exit_code == 0
    (home.corpus / "a.jsonl").unlink()
    (home.corpus / "b.jsonl").write_text("\n \n")
    result = home.call_with(home.with_dataset, "run")
    assert result.exit_code == 0, result.output
    assert "not made again, data kept: shard tiny-00000: " in result.output
    with open_instance() as instance:
        materialized = instance.get_materialized_partitions(
            dg.AssetKey(["corpus", "corpus_documents"])
        )
    assert materialized == {"tiny-00001", "tiny-00002"}
    assert "left out: tiny-00000: " in " ".join(result.output.split())
