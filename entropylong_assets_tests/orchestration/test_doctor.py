"""The doctor names each fault in one line that says what to do. The tests cause each fault."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import lancedb
import pytest
import yaml
from dagster._daemon.types import DaemonHeartbeat
from dagster._utils.error import SerializableErrorInfo
from typer.testing import CliRunner

from entropylong_assets.cli.main import app
from entropylong_assets.orchestration import doctor_checks
from entropylong_assets.orchestration.doctor import _answers, examine
from entropylong_assets.orchestration.doctor_checks import Finding, embedding_model
from entropylong_assets.project import Project, make_project, open_store
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.embeddings.tables import CHUNK_EMBEDDINGS, EMBEDDING_INDEX
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.storage.schemas import TableSet
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.stages.embeddings.test_embedder import REFUSED, above_positions
from entropylong_assets_tests.stages.embeddings.tiny_embedders import write_adapters, write_prompted
from entropylong_assets_tests.tiny_world import tiny_values

REPOSITORY = Path(__file__).parents[2]
SUBJECTS = [
    "instance",
    "daemon",
    "pools",
    "corpus partitions",
    "dataset partitions",
    "disk",
    "corpus embedding model",
    "corpus sources",
    "corpus LanceDB table",
    "dataset device",
    "dataset scoring model",
    "corpus tables",
    "dataset tables",
    "corpus up to date",
    "dataset up to date",
]


class Installation:
    """A project without a fault: all its data, an instance, and a daemon's heartbeat."""

    def __init__(self, folder: Path, world: World, models: tuple[str, str]) -> None:
        self.home, self.data, self.sources = folder / "home", folder / "data", folder / "corpus"
        shutil.copytree(world.project.data_uri, self.data)
        shutil.copytree(world.corpus, self.sources)
        plan = self.data / "corpus" / "shards.json"
        plan.write_text(plan.read_text().replace(str(world.corpus), str(self.sources)))
        self.values = tiny_values(self.sources, self.data, models)
        self.home.mkdir()
        shutil.copyfile(
            REPOSITORY / "entropylong_assets" / "dagster.yaml", self.home / "dagster.yaml"
        )
        with self.instance() as instance:
            instance.add_dynamic_partitions("corpus_shards", list(world.shards))
            for shard in world.shards:
                instance.report_runless_asset_event(
                    dg.AssetMaterialization(["corpus", CORPUS_DOCUMENTS.name], partition=shard)
                )
                instance.report_runless_asset_event(
                    dg.AssetMaterialization(["dataset", ENTROPY_SCORES.name], partition=shard)
                )
        self.report_heartbeat()

    @property
    def project(self) -> Project:
        return make_project(self.values)

    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(str(self.home))

    def report_heartbeat(self, seconds_ago: float = 0, error: str = "") -> None:
        errors = [SerializableErrorInfo(error, [], None)] if error else []
        with self.instance() as instance:
            for daemon in instance.get_required_daemon_types():
                instance.add_daemon_heartbeat(
                    DaemonHeartbeat(time.time() - seconds_ago, daemon, "here", errors)
                )

    def findings(self) -> dict[str, Finding]:
        return {finding.subject: finding for finding in examine(self.project)}

    def manifest(self, tables: TableSet) -> Path:
        return next((self.data / tables.scope / tables.name).glob("*/manifest.json"))


@pytest.fixture
def installation(
    tmp_path: Path,
    world: World,
    tiny_models: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> Installation:
    sound = Installation(tmp_path, world, tiny_models)
    monkeypatch.setenv("DAGSTER_HOME", str(sound.home))
    return sound


def test_no_fault_is_found_where_there_is_none(installation: Installation) -> None:
    findings = list(examine(installation.project))
    assert [f.subject for f in findings] == SUBJECTS
    # The data were made from other files than these copies, and the doctor says so.
    stale = {f.subject for f in findings if f.verdict != "ok"}
    assert stale == {"corpus up to date", "dataset up to date"}
    assert not (installation.data / ".doctor").exists()


def no_daemon(p: Installation) -> None:
    with p.instance() as instance:
        instance.wipe_daemon_heartbeats()


def no_daemon_for_queued_runs(p: Installation) -> None:
    no_daemon(p)
    with p.instance() as instance:
        instance.add_run(dg.DagsterRun(job_name="corpus__ingest"))
        with instance.run_storage.connect() as database:
            database.exec_driver_sql("UPDATE runs SET status = 'QUEUED'")


def silent_daemon(p: Installation) -> None:
    p.report_heartbeat(seconds_ago=7200)


def daemon_with_error(p: Installation) -> None:
    p.report_heartbeat(error="ZeroDivisionError: in a tick")


def broken_yaml(p: Installation) -> None:
    (p.home / "dagster.yaml").write_text("run_launcher: [", encoding="utf-8")


def other_launcher(p: Installation) -> None:
    (p.home / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")


def old_storage(p: Installation) -> None:
    with sqlite3.connect(p.home / "history" / "runs.db") as db:
        assert db.execute("update alembic_version set version_num = '1ebdd7a9686f'").rowcount == 1


def many_writers(p: Installation) -> None:
    with p.instance() as instance:
        instance.event_log_storage.set_concurrency_slots("embedding_index_corpus", 4)


def data_missing(p: Installation) -> None:
    shutil.rmtree(p.manifest(CORPUS_DOCUMENTS).parent)


def not_registered(p: Installation) -> None:
    with p.instance() as instance:
        instance.delete_dynamic_partition("corpus_shards", "tiny-00001")


def foreign_partition(p: Installation) -> None:
    with p.instance() as instance:
        instance.add_dynamic_partitions("corpus_shards", ["other-00000"])


def data_of_a_dataset_missing(p: Installation) -> None:
    shutil.rmtree(p.manifest(ENTROPY_SCORES).parent)


def pool_without_limit(p: Installation) -> None:
    with p.instance() as instance:  # the limit of the other pool is another finding
        instance.event_log_storage.set_concurrency_slots("embedding_index_corpus", 1)
    config = p.home / "dagster.yaml"
    content = yaml.safe_load(config.read_text())
    del content["concurrency"]
    config.write_text(yaml.safe_dump(content))


def data_under_a_file(p: Installation) -> None:
    (p.data.parent / "file").write_text("x")
    p.values["data_uri"] = str(p.data.parent / "file" / "data")


def no_gpu(p: Installation) -> None:
    p.values["scoring"]["device"] = "cuda:0"


def no_model(p: Installation) -> None:
    p.values["scoring"]["model"] = str(p.data.parent / "nowhere")


def no_weights(p: Installation) -> None:
    copy = p.data.parent / "weightless"
    shutil.copytree(p.values["scoring"]["model"], copy)
    for weights in copy.glob("*.safetensors"):
        weights.unlink()
    p.values["scoring"]["model"] = str(copy)


def short_window(p: Installation) -> None:
    p.values["roots"]["max_tokens"] = 1024
    p.values["samples"]["tokens"] = 8192


def embedder_too_short(p: Installation) -> None:
    p.values["embedding"]["chunk_tokens"] = 128


def no_source(p: Installation) -> None:
    p.values["corpus"]["sources"] = []


def no_file(p: Installation) -> None:
    p.values["corpus"]["sources"][0]["uri"] = f"{p.sources}/*.parquet"


def wrong_field(p: Installation) -> None:
    p.values["corpus"]["sources"][0]["text_field"] = "content"


def changed_file(p: Installation) -> None:
    with (p.sources / "b.jsonl").open("a") as file:
        file.write(json.dumps({"text": "More of it. " * 30, "id": "new"}) + "\n")


def file_missing(p: Installation) -> None:
    (p.sources / "b.jsonl").unlink()


def damaged_manifest(p: Installation) -> None:
    p.manifest(ENTROPY_SCORES).write_text("{}")


def damaged_chunks(p: Installation) -> None:
    p.manifest(CHUNK_EMBEDDINGS).write_text("{}")


def old_format(p: Installation) -> None:
    path = p.manifest(ENTROPY_SCORES)
    content = json.loads(path.read_text())
    content["format_version"] = 0
    path.write_text(json.dumps(content))


def table_file_missing(p: Installation) -> None:
    next(p.manifest(LONG_CONTEXT_SAMPLES).parent.glob("samples-*.parquet")).unlink()


def no_lancedb(p: Installation) -> None:
    shutil.rmtree(p.data / "corpus" / "lancedb")


def no_tag(p: Installation) -> None:
    tag = open_store(p.project.corpus).summary(EMBEDDING_INDEX).tag
    lancedb.connect(p.data / "corpus" / "lancedb").open_table("chunks").tags.delete(tag)


def other_embedder(p: Installation) -> None:
    copy = p.data.parent / "bert2"
    shutil.copytree(p.values["embedding"]["model"], copy)
    (copy / "more.txt").write_text("another model")
    p.values["embedding"]["model"] = str(copy)


Break = Callable[[Installation], None]
FAULTS: list[tuple[Break, str, str, str]] = [
    (no_daemon, "daemon", "warning", "never run here"),
    (no_daemon_for_queued_runs, "daemon", "fault", "1 runs are queued; run `make ui`"),
    (silent_daemon, "daemon", "fault", "no heartbeat for 7,2"),
    (daemon_with_error, "daemon", "fault", "ZeroDivisionError: in a tick"),
    (broken_yaml, "instance", "fault", "correct its dagster.yaml"),
    (other_launcher, "instance", "warning", "copy `run_launcher`"),
    (old_storage, "instance", "fault", "`dagster instance migrate`"),
    (many_writers, "pools", "fault", "`dagster instance concurrency set embedding_index_corpus 1`"),
    (pool_without_limit, "pools", "warning", "`dagster instance concurrency set gpu 1`"),
    (data_missing, "corpus partitions", "fault", "Dagster knows corpus_documents of tiny-0000"),
    (
        data_of_a_dataset_missing,
        "dataset partitions",
        "fault",
        "Dagster knows entropy_scores of tiny-0000",
    ),
    (not_registered, "corpus partitions", "warning", "tiny-00001 planned but not registered"),
    (foreign_partition, "corpus partitions", "warning", "other-00000 registered but in no plan"),
    (data_under_a_file, "disk", "fault", "can't be written to"),
    (no_gpu, "dataset device", "fault", "torch finds no CUDA device; use 'auto'"),
    (no_model, "dataset scoring model", "fault", "nowhere does not exist; check the setting"),
    (no_weights, "dataset scoring model", "fault", "holds no weights"),
    (short_window, "dataset scoring model", "fault", "lower roots.max_tokens"),
    (embedder_too_short, "corpus embedding model", "fault", "set it to 64 or less"),
    (no_source, "corpus sources", "fault", "add one to its `sources`"),
    (no_file, "corpus sources", "fault", "put files there or correct"),
    (
        wrong_field,
        "corpus sources",
        "fault",
        "there is no field 'content' (the fields: text, id)",
    ),
    (changed_file, "corpus sources", "warning", "b.jsonl; switch on the sensor `new_files`"),
    (file_missing, "corpus sources", "warning", "b.jsonl; put them back"),
    (
        damaged_manifest,
        "dataset tables",
        "fault",
        "is damaged or of another version; materialize it",
    ),
    (old_format, "dataset tables", "fault", "written in format 0"),
    (table_file_missing, "dataset tables", "fault", "is missing; materialize it again"),
    (damaged_chunks, "corpus tables", "fault", "is damaged or of another version"),
    (no_lancedb, "corpus LanceDB table", "fault", "materialize chunk_embeddings"),
    (no_tag, "corpus LanceDB table", "fault", "materialize embedding_index again"),
    (other_embedder, "corpus LanceDB table", "fault", "another name"),
]


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case[0].__name__)
def test_each_fault_is_named_with_its_remedy(
    installation: Installation, case: tuple[Break, str, str, str]
) -> None:
    damage, subject, verdict, words = case
    if damage is no_gpu and doctor_checks.device(installation.project.dataset).message.endswith(
        "free"
    ):
        pytest.skip("this machine has the device")
    damage(installation)
    findings = installation.findings()
    assert findings[subject].verdict == verdict
    assert words in findings[subject].message
    assert "\n" not in findings[subject].message
    # The other checks run all the same.
    of_instance = {"daemon", "pools", "corpus partitions", "dataset partitions"}
    assert set(SUBJECTS) - set(findings) <= of_instance


def test_a_full_disk_is_named(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks, "MIN_FREE_BYTES", 1 << 60)
    finding = installation.findings()["disk"]
    assert finding.verdict == "fault"
    assert "GiB free at" in finding.message


def test_the_command_prints_a_line_each_and_ends_with_1_on_a_fault(
    installation: Installation, tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(json.dumps(installation.values), encoding="utf-8")  # JSON is YAML
    without_fault = CliRunner().invoke(app, ["doctor", "--settings", str(file)])
    assert without_fault.exit_code == 0, without_fault.output
    assert len(without_fault.output.strip().splitlines()) == len(SUBJECTS)
    silent_daemon(installation)
    with_fault = CliRunner().invoke(app, ["doctor", "--settings", str(file)])
    assert with_fault.exit_code == 1
    [line] = [line for line in with_fault.output.splitlines() if line.startswith("fault")]
    assert "run `make ui`" in line


# The embedder, by the doctor's check alone


def embedder_finding(folder: Path, **embedding: Any) -> Finding:
    values = {"embedding": {"model": str(folder), "device": "cpu", **embedding}}
    corpus = make_project(values).corpus
    (finding,) = _answers(iter([("corpus embedding model", partial(embedding_model, corpus))]))
    assert finding.message.isprintable()
    return finding


def test_the_embedder_s_prompts_are_shown(tmp_path: Path) -> None:
    folder = write_prompted(tmp_path, prompts={"query": "river: "})
    finding = embedder_finding(folder, document_prompt="stone\n")
    assert finding.verdict == "ok"
    assert finding.message == (
        f"{folder}, 32 dimensions, windows of 64 tokens, query prompt 'river: ', document prompt "
        "'stone\\\\n'"
    )


def test_the_embedder_s_tasks_are_shown(tmp_path: Path) -> None:
    folder = write_adapters(tmp_path, ["retrieval", "code"])
    finding = embedder_finding(folder, trust_remote_code=True)
    assert (
        "no query prompt (task retrieval), no document prompt (task retrieval)" in finding.message
    )


@pytest.mark.parametrize("write", REFUSED, ids=lambda write: write.__name__)
def test_a_model_that_is_no_embedder_is_a_fault(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    finding = embedder_finding(write(tmp_path))
    assert finding.verdict == "fault"
    assert REFUSED[write] in finding.message
    assert len(finding.message) < 500


def test_a_model_that_fails_in_the_middle_of_its_window_is_a_fault(tmp_path: Path) -> None:
    folder = write_adapters(tmp_path, ["retrieval"])
    code, line = folder / "adapter_code.py", "        tasks = self.config.lora_adaptations\n"
    assert line in code.read_text()
    fails = (
        '        if features["input_ids"].shape[1] > 40:\n            raise IndexError("table")\n'
    )
    code.write_text(code.read_text().replace(line, fails + line))
    finding = embedder_finding(folder, trust_remote_code=True)
    assert finding.verdict == "fault"
    assert "can't embed a text of 48 tokens (IndexError: table)" in finding.message


@pytest.mark.parametrize(
    ("name", "embedding", "note"),
    [
        ("e5-base-v2", {}, "set embedding.query_prompt: 'query: ' and embedding.document_prompt"),
        ("plain", {"dimensions": 8}, "its files don't declare Matryoshka training"),
    ],
)
def test_doubts_about_the_embedder_are_warnings(
    tmp_path: Path, name: str, embedding: dict[str, Any], note: str
) -> None:
    finding = embedder_finding(write_prompted(tmp_path / name), **embedding)
    assert (finding.verdict, note in finding.message) == ("warning", True)


def test_a_window_above_the_positions_is_a_warning(tmp_path: Path) -> None:
    finding = embedder_finding(above_positions(tmp_path))
    assert finding.verdict == "warning"
    assert "windows of 64 tokens" in finding.message
    assert "declare windows of 128 tokens" in finding.message
