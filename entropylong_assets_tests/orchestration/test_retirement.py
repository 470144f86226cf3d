"""Retiring shards and sources, and taking documents down, on a finished corpus with a dataset."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner

from entropylong_assets.cli.main import app
from entropylong_assets.orchestration.build import build_definitions
from entropylong_assets.orchestration.doctor_checks import sources
from entropylong_assets.orchestration.local_run import register_shards, run_export, run_project
from entropylong_assets.orchestration.readiness import find_gaps, is_outdated
from entropylong_assets.orchestration.retirement import (
    DELETED,
    bring_back,
    retire,
    take_down,
)
from entropylong_assets.orchestration.run_selection import Selection
from entropylong_assets.orchestration.runner import RunError, RunFailuresError, run_job
from entropylong_assets.orchestration.scanning import scan
from entropylong_assets.project import Project, make_project, open_store
from entropylong_assets.report.holdings import find_exports
from entropylong_assets.stages.corpus.errors import CorpusError
from entropylong_assets.stages.corpus.stage import CORPUS_DOCUMENTS_STAGE as D
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.embeddings.connection import chunk_schema
from entropylong_assets.stages.embeddings.shard_commits import ShardCommit
from entropylong_assets.stages.embeddings.table import open_table
from entropylong_assets.stages.embeddings.tables import CHUNK_EMBEDDINGS, EMBEDDING_INDEX
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.retrieval.stage import CANDIDATE_CONTEXTS_STAGE as R
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.training_data.destination import export_uri
from entropylong_assets.stages.training_data.tables import TRAINING_DATASET
from entropylong_assets.stages.versioning import stale_reason
from entropylong_assets.storage.removals import read_removals
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.stage_names import BY_NAME
from entropylong_assets_tests.tiny_world import document, tiny_values

A, B, C = "tiny-00000", "tiny-00001", "tiny-00002"


@dataclass(frozen=True)
class Place:
    """A finished corpus of three files, its dataset, and the instance that made it."""

    project: Project
    instance: dg.DagsterInstance
    corpus: Path

    @property
    def store(self) -> TableStore:
        return open_store(self.project.dataset)

    def run(self) -> int:
        register_shards(self.project.corpus, self.instance, accept_changes=True)
        return run_project(self.project, self.instance)

    def documents(self, shard: str) -> set[str]:
        return set(self.store.read(CORPUS_DOCUMENTS, shard, "documents", ["doc_id"])["doc_id"])

    def contexts(self, shard: str) -> set[str]:
        """Documents that the candidates of a shard were cut from."""
        return set(self.store.read(CANDIDATE_CONTEXTS, shard, "chunks", ["doc_id"])["doc_id"])

    def in_samples(self, shard: str) -> set[str]:
        segments = self.store.read(LONG_CONTEXT_SAMPLES, shard, "segments", ["doc_id"])
        return set(segments["doc_id"].drop_nulls())

    def exported(self) -> str:
        """All text of the present export's JSON Lines."""
        version = self.store.summary(TRAINING_DATASET).version
        folder = Path(export_uri(self.project.dataset, version))
        return "".join(path.read_text() for path in sorted(folder.rglob("*.jsonl")))


@pytest.fixture(scope="module")
def finished(
    world: World, tiny_models: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """Settings and source folder of a corpus with all stages materialized. Read only."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(world.corpus, folder / "in")
    texts = [document(seed) for seed in range(500, 512)]
    lines = [json.dumps({"text": text, "id": f"c{i}"}) for i, text in enumerate(texts)]
    (folder / "in/c.jsonl").write_text("\n".join(lines) + "\n")
    values = tiny_values(folder / "in", folder / "data", tiny_models, export={"formats": ["jsonl"]})
    project = make_project(values)
    with dg.DagsterInstance.ephemeral() as instance:
        register_shards(project.corpus, instance)
        run_project(project, instance)
    return values, folder


@pytest.fixture
def place(finished: tuple[dict[str, Any], Path], tmp_path: Path) -> Iterator[Place]:
    values, folder = finished
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copy2)
    text = json.dumps(values).replace(str(folder), str(tmp_path / "copy"))
    data = tmp_path / "copy/data/corpus"
    for file in (data / "shards.json", *data.glob("corpus_documents/*/manifest.json")):
        file.write_text(file.read_text().replace(str(folder), str(tmp_path / "copy")))
    # The files have moved, so the export is another one.
    shutil.rmtree(tmp_path / "copy/data/dataset/exports")
    with dg.DagsterInstance.ephemeral() as instance:
        yield Place(make_project(json.loads(text)), instance, tmp_path / "copy/in")


def test_the_world_has_contexts_of_the_third_shard(place: Place) -> None:
    """Otherwise the tests below would prove nothing."""
    assert place.contexts(A) & place.documents(C)
    assert place.in_samples(A) & place.documents(C)


# ----------------------------------------------------------------------------- retired shards


def test_a_retired_shard_leaves_index_candidates_samples_and_exports(place: Place) -> None:
    project, instance = place.project, place.instance
    place.run()
    first, texts = place.store.summary(TRAINING_DATASET).version, place.exported()
    parts = [document(seed)[40:100].replace("\n", "\\n") for seed in range(500, 512)]
    assert any(part in texts for part in parts)
    retire(project.corpus, C, instance, "licence withdrawn", "ana")
    assert instance.get_dynamic_partitions("corpus_shards") == [A, B]
    holdings = find_exports(place.store, [project.dataset], [C])
    assert holdings.exports == (export_uri(project.dataset, first),)
    # An export made now, before the others have new candidates, would hold its contexts.
    with pytest.raises(RunFailuresError, match="candidate_contexts was made before something was"):
        run_export(project, project.dataset, instance)
    assert is_outdated(BY_NAME["embedding_index"], Partition(project.corpus, place.store))
    runs = place.run()
    assert runs > 0
    assert instance.get_dynamic_partitions("corpus_shards") == [A, B]
    retired_text = place.documents(C) - place.documents(A) - place.documents(B)
    for shard in (A, B):
        assert not retired_text & place.contexts(shard)
        assert not retired_text & place.in_samples(shard)
    assert set(open_table(place.store).rows_by_shard()) == {A, B}
    assert not any(part in place.exported() for part in parts)
    assert place.run() == 0  # the shard stays retired
    # When it is brought back, it is embedded again, and the earlier data is restored.
    assert bring_back(project.corpus, C, instance) == [C]
    assert instance.get_dynamic_partitions("corpus_shards") == [A, B, C]
    assert place.run() > 0
    assert place.store.summary(TRAINING_DATASET).version == first
    assert place.exported() == texts


def test_a_kill_while_rows_are_deleted_is_completed(place: Place) -> None:
    retire(place.project.corpus, C, place.instance, "test")
    (Path(place.project.data_uri) / "corpus" / CHUNK_EMBEDDINGS.name / C / "manifest.json").unlink()
    place.run()
    assert set(open_table(place.store).rows_by_shard()) == {A, B}
    bring_back(place.project.corpus, C, place.instance)
    place.run()
    assert set(open_table(place.store).rows_by_shard()) == {A, B, C}


def test_a_retired_source_that_is_no_longer_in_the_settings(place: Place) -> None:
    """A renamed source: its old shards can be retired, and the run goes on with the new ones."""
    project = place.project
    source = project.corpus.sources[0].model_copy(update={"name": "renamed"})
    corpus = project.corpus.model_copy(update={"sources": (source,)})
    dataset = project.dataset.model_copy(update={"corpus": corpus})
    renamed = project.model_copy(
        update={"corpora": {"corpus": corpus}, "datasets": {"dataset": dataset}}
    )
    moved = Place(renamed, place.instance, place.corpus)
    moved.run()
    retire(corpus, "tiny", place.instance, "renamed")
    moved.run()
    assert moved.store.shards(LONG_CONTEXT_SAMPLES) == [f"renamed-0000{i}" for i in range(3)]
    exported = moved.store.read(TRAINING_DATASET, "all", "shards", ["shard"])["shard"].to_list()
    assert exported == moved.store.shards(LONG_CONTEXT_SAMPLES)
    assert set(open_table(moved.store).rows_by_shard()) == set(exported)
    with pytest.raises(CorpusError, match="its source is retired; bring that back with"):
        bring_back(corpus, A, place.instance)


# ------------------------------------------------------------------------ documents taken down


def test_a_document_taken_down_leaves_every_shard_sample_and_export(place: Place) -> None:
    """The first document of the first file is in the second one too."""
    place.run()
    project, store = place.project, place.store
    first = store.summary(TRAINING_DATASET).version
    (doc_id,) = place.documents(A) & place.documents(B)
    (text,) = (
        store.read(CORPUS_DOCUMENTS, A, "documents", ["doc_id", "text"])
        .filter(doc_id=doc_id)["text"]
        .to_list()
    )
    assert json.dumps(text[:100])[1:-1] in place.exported()
    (taken,) = take_down(project.corpus, [project.dataset], "a0", "asked for", "ana")
    assert taken.removal.name == doc_id
    assert taken.held.shards == (A, B)
    expected = {
        ("dataset", sample)
        for shard in (A, B, C)
        for sample, doc in store.read(
            LONG_CONTEXT_SAMPLES, shard, "segments", ["sample_id", "doc_id"]
        ).iter_rows()
        if doc == doc_id
    }
    assert set(taken.held.samples) == expected != set()
    assert taken.held.exports == (export_uri(project.dataset, first),)
    reasons = {s: stale_reason(D, Partition(project.corpus, store, s)) for s in (A, B, C)}
    assert reasons == {A: "taken_down has changed", B: "taken_down has changed", C: None}
    with pytest.raises(RunFailuresError, match="corpus_documents was made before documents were"):
        run_export(project, project.dataset, place.instance)
    place.run()
    for shard in (A, B, C):
        assert doc_id not in place.documents(shard) | place.contexts(shard)
        assert doc_id not in place.in_samples(shard)
    assert json.dumps(text[:100])[1:-1] not in place.exported()
    assert place.run() == 0
    # Read again from another file, it is refused, and other documents of the file are not.
    lines = [json.dumps({"text": t, "id": str(i)}) for i, t in enumerate((text, document(9_000)))]
    (place.corpus / "d.jsonl").write_text("\n".join(lines) + "\n")
    place.run()
    dropped = store.read(CORPUS_DOCUMENTS, "tiny-00003", "dropped", ["reason", "detail"])
    assert dropped.rows() == [("taken_down", f"document {doc_id} was taken down")]
    assert len(place.documents("tiny-00003")) == 1
    assert place.run() == 0
    # A second takedown keeps the record, and finds no sample with the document.
    (again,) = take_down(project.corpus, [project.dataset], doc_id, "again")
    assert again.removal == taken.removal
    assert (again.held.shards, again.held.samples) == ((), ())
    assert again.held.exports == taken.held.exports


def test_an_unknown_id_is_refused_and_an_unknown_hash_is_kept_for_later(place: Place) -> None:
    place.run()
    with pytest.raises(CorpusError, match="no document has the id 'nobody'; give the doc_id"):
        take_down(place.project.corpus, [], "nobody", "x")
    (taken,) = take_down(place.project.corpus, [], "0" * 32, "x")
    expected = "no shard, sample or export holds it; it will be refused if it is read"
    assert taken.lines()[-1] == expected
    assert place.run() == 0  # nothing held it, so nothing is stale


# ------------------------------------------------------------------------- partitions and jobs


def test_a_partition_deleted_in_the_ui_is_retired_at_the_next_scan(place: Place) -> None:
    corpus, instance = place.project.corpus, place.instance
    register_shards(corpus, instance)
    instance.delete_dynamic_partition("corpus_shards", B)
    result = scan(corpus, instance)
    assert result.retired == (B,)
    assert B in result.message
    assert result.requests == []
    register_shards(corpus, instance)
    assert instance.get_dynamic_partitions("corpus_shards") == [A, C]
    (record,) = read_removals(place.store)
    assert (record.kind, record.name, record.reason) == ("shard", B, DELETED)
    assert bring_back(corpus, B, instance) == [B]
    register_shards(corpus, instance)
    assert set(instance.get_dynamic_partitions("corpus_shards")) == {A, B, C}


def test_a_new_instance_retires_nothing(place: Place) -> None:
    register_shards(place.project.corpus, place.instance)
    with dg.DagsterInstance.ephemeral() as other:
        register_shards(place.project.corpus, other)
        assert other.get_dynamic_partitions("corpus_shards") == [A, B, C]
        # What one instance retires leaves the other with its next scan.
        retire(place.project.corpus, B, other, "x")
    register_shards(place.project.corpus, place.instance)
    assert place.instance.get_dynamic_partitions("corpus_shards") == [A, C]


def run_job_of(place: Place, name: str, config: dict[str, Any] | None = None) -> Any:
    job = build_definitions(place.project).get_repository_def().get_job(f"corpus__{name}")
    ops = {f"corpus__{name}_step": {"config": config}} if config else {}
    return job.execute_in_process(
        instance=place.instance, run_config={"ops": ops}, raise_on_error=False
    )


def test_the_hourly_schedule_asks_for_what_holds_removed_documents(place: Place) -> None:
    """Automation does not start runs for changed settings; for removals it does."""
    place.run()
    corpus = Partition(place.project.corpus, place.store)
    dataset = Partition(place.project.dataset, place.store)
    of_corpus, of_dataset = (
        place.project.stages_of(settings)
        for settings in (place.project.corpus, place.project.dataset)
    )

    def gaps() -> list[tuple[str, str]]:
        known = {(s.name, shard): 1 for s in (*of_corpus, *of_dataset) for shard in (A, B, C)}
        found = [
            *find_gaps(of_corpus, corpus, [A, B, C], known),
            *find_gaps(of_dataset, dataset, [A, B, C], known),
        ]
        return [(gap.shard, gap.stage.name) for gap in found]

    assert gaps() == []
    take_down(place.project.corpus, [], "a3", "asked for")
    # The candidates wait for an index without the document.
    assert gaps() == [(A, D.name)]
    materialize(D, replace(corpus, shard=A))
    run_project(place.project, place.instance, selection=Selection(last="embedding_index"))
    assert gaps() == [(A, "entropy_scores"), (B, R.name), (C, R.name)]


def test_the_table_is_compacted_by_a_job_and_by_a_command(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both remove what a killed writer left, and keep the tagged version."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    settings = tmp_path / "settings.yaml"
    corpus = place.project.corpus
    sources = [corpus.sources[0].model_dump(mode="json")]
    chosen = {"sources": sources, "embedding": corpus.embedding.model_dump(mode="json")}
    values = {"data_uri": corpus.data_uri, "corpora": {"corpus": chosen}}
    settings.write_text(yaml.safe_dump(values), encoding="utf-8")
    data = Path(place.store.corpus_uri) / "lancedb/chunks.lance/data"
    tag = place.store.summary(EMBEDDING_INDEX).tag
    before = open_table(place.store, tag).rows_by_shard()
    rows = pa.Table.from_batches(open_table(place.store).reader(chunk_schema(1, "").names, A))

    def call(*command: str) -> Any:
        return CliRunner().invoke(app, [*command, "--settings", str(settings)])

    def compact_by_command() -> bool:
        result = call("compact", "corpus", "--keep-days", "0")
        assert result.exit_code == 0, result.output
        return True

    for compacted in (
        lambda: run_job_of(place, "compact", {"keep_days": 0}).success,
        compact_by_command,
    ):
        files = set(data.iterdir())
        ShardCommit(place.store.corpus_uri, A).write(rows.to_batches())
        (left,) = set(data.iterdir()) - files
        assert compacted()
        assert not left.exists()
        assert open_table(place.store, tag).rows_by_shard() == before
    assert open_table(place.store).rows_by_shard().keys() == {A, B, C}
    shutil.rmtree(data.parent)
    failed = call("compact")
    assert failed.exit_code == 2
    assert "it does not exist; materialize chunk_embeddings" in " ".join(failed.output.split())


def test_jobs_scan_retire_and_take_down(place: Place) -> None:
    assert run_job_of(place, "scan").success
    assert place.instance.get_dynamic_partitions("corpus_shards") == [A, B, C]
    assert run_job_of(place, "retire", {"name": B, "reason": "old"}).success
    assert place.instance.get_dynamic_partitions("corpus_shards") == [A, C]
    assert run_job_of(place, "retire", {"name": B, "undo": True}).success
    assert run_job_of(place, "takedown", {"document": "a3", "reason": "asked"}).success
    (record,) = read_removals(place.store)
    assert record.kind == "document"
    assert record.by.startswith("run ")
    failed = run_job_of(place, "retire", {"name": "tiny-9"})
    (failure,) = [event for event in failed.all_events if event.is_step_failure]
    message = failure.step_failure_data.user_failure_data.description
    assert message == "corpus corpus has no shard or source 'tiny-9'; its sources are tiny"


def test_a_partition_added_by_hand_fails_with_a_line_that_says_what_to_do(place: Place) -> None:
    place.instance.add_dynamic_partitions("corpus_shards", ["my-shard"])
    job = build_definitions(place.project).get_repository_def().get_job("corpus__ingest")
    with pytest.raises(RunError) as caught:
        run_job(job, "my-shard", place.instance)
    assert str(caught.value) == (
        "corpus__corpus_documents, my-shard: shard my-shard: no shard of the corpus has this name; "
        "delete the partition, and register new files with `entropylong scan` or the job `scan` of "
        "the corpus"
    )


def test_files_without_a_shard_are_a_finding(place: Place) -> None:
    register_shards(place.project.corpus, place.instance)
    assert sources(place.project.corpus).verdict == "ok"
    new = place.corpus / "new.jsonl"
    new.write_text(json.dumps({"text": document(1), "id": "n"}) + "\n")
    finding = sources(place.project.corpus)
    assert finding.verdict == "warning"
    assert f"in no shard yet: {new}; register them with `entropylong scan` or the job " in (
        finding.message
    )
    assert "`corpus__scan`" in finding.message
    retire(place.project.corpus, A, place.instance, "x")  # its file is not new again
    new.unlink()
    assert sources(place.project.corpus).verdict == "ok"


# ---------------------------------------------------------------------------- the command line


def test_commands_retire_list_undo_and_take_down(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    settings = tmp_path / "settings.yaml"
    corpus = place.project.corpus
    values = {
        "data_uri": corpus.data_uri,
        "corpora": {"corpus": {"sources": [corpus.sources[0].model_dump(mode="json")]}},
    }
    settings.write_text(yaml.safe_dump(values))

    def call(*command: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, [*command, "--settings", str(settings)])
        assert "Traceback" not in result.output
        return result.exit_code, " ".join(result.output.split())

    assert call("retire", "--list") == (0, "corpus: nothing is retired or taken down")
    code, output = call("retire", B, "--reason", "licence")
    assert (code, output.partition(". ")[0]) == (0, f"corpus: shard {B} is retired, 1 shards")
    code, output = call("retire", "--list")
    assert code == 0
    assert f"corpus: shard {B}, 20" in output
    assert output.endswith(": licence")
    assert call("scan")[1].startswith("corpus: 2 shards, new: none")
    code, output = call("retire", B, "--undo")
    assert (code, output.partition(". ")[0]) == (0, f"corpus: brought back: {B}")
    assert call("scan")[1].startswith("corpus: 3 shards, new: none")
    code, output = call("takedown", "a3", "--reason", "asked for")
    assert code == 0
    assert f"shard {A}: stale; materialize it again" in output
    assert call("retire", "other")[0] == 2
    assert call("retire", A, "--undo")[0] == 2
