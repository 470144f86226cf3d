"""The doctor names each fault, in one line, with what to do about it: every one is made here."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import lancedb
import pytest
from dagster._daemon.types import DaemonHeartbeat
from dagster._utils.error import SerializableErrorInfo
from typer.testing import CliRunner

from entropylong_assets.cli.main import app
from entropylong_assets.orchestration import examinations
from entropylong_assets.orchestration.doctor import examine
from entropylong_assets.orchestration.doctor_checks import Finding
from entropylong_assets.settings.model import Settings, make_settings
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.conftest import World

PROJECT = Path(__file__).parents[2]
SUBJECTS = [
    "instance",
    "daemon",
    "pools",
    "partitions",
    "disk",
    "device",
    "scoring model",
    "embedding model",
    "sources",
    "tables",
    "LanceDB table",
]


class Patient:
    """A pipeline that ran whole, with an instance and a daemon of its own: all is well."""

    def __init__(self, folder: Path, world: World) -> None:
        self.home, self.data, self.corpus = folder / "home", folder / "data", folder / "corpus"
        self.values = world.settings.model_dump(mode="json")
        shutil.copytree(world.settings.data_uri, self.data)
        shutil.copytree(world.corpus, self.corpus)
        plan = self.data / "shards.json"
        plan.write_text(plan.read_text().replace(str(world.corpus), str(self.corpus)))
        self.values["data_uri"] = str(self.data)
        self.values["corpus"]["sources"][0]["uri"] = f"{self.corpus}/*.jsonl"
        self.home.mkdir()
        shutil.copyfile(PROJECT / "dagster.yaml", self.home / "dagster.yaml")
        with self.instance() as there:
            there.add_dynamic_partitions("corpus_shard", list(world.shards))
            for shard in world.shards:
                there.report_runless_asset_event(
                    dg.AssetMaterialization("corpus_documents", partition=shard)
                )
        self.heard()

    @property
    def settings(self) -> Settings:
        return make_settings("calibrated", {k: v for k, v in self.values.items() if k != "profile"})

    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(str(self.home))

    def heard(self, seconds_ago: float = 0, error: str = "") -> None:
        errors = [SerializableErrorInfo(error, [], None)] if error else []
        with self.instance() as there:
            for daemon in there.get_required_daemon_types():
                there.add_daemon_heartbeat(
                    DaemonHeartbeat(time.time() - seconds_ago, daemon, "here", errors)
                )

    def findings(self) -> dict[str, Finding]:
        return {found.subject: found for found in examine(self.settings)}

    def manifest(self, asset: str) -> Path:
        return next((self.data / asset).glob("*/manifest.json"))


@pytest.fixture
def patient(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> Patient:
    made = Patient(tmp_path, world)
    monkeypatch.setenv("DAGSTER_HOME", str(made.home))
    return made


def test_all_is_well(patient: Patient) -> None:
    found = list(examine(patient.settings))
    assert [f.subject for f in found] == SUBJECTS
    assert [f for f in found if f.verdict != "ok"] == []
    assert not (patient.data / ".doctor").exists()


def no_daemon(p: Patient) -> None:
    with p.instance() as there:
        there.wipe_daemon_heartbeats()


def silent_daemon(p: Patient) -> None:
    p.heard(seconds_ago=7200)


def daemon_with_error(p: Patient) -> None:
    p.heard(error="ZeroDivisionError: in a tick")


def broken_yaml(p: Patient) -> None:
    (p.home / "dagster.yaml").write_text("run_launcher: [", encoding="utf-8")


def other_launcher(p: Patient) -> None:
    (p.home / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")


def old_storage(p: Patient) -> None:
    with sqlite3.connect(p.home / "history" / "runs.db") as db:
        assert db.execute("update alembic_version set version_num = '1ebdd7a9686f'").rowcount == 1


def many_writers(p: Patient) -> None:
    with p.instance() as there:
        there.event_log_storage.set_concurrency_slots("lancedb_writer", 4)


def data_gone(p: Patient) -> None:
    shutil.rmtree(p.manifest("corpus_documents").parent)


def not_registered(p: Patient) -> None:
    with p.instance() as there:
        there.delete_dynamic_partition("corpus_shard", "tiny-00001")


def foreign_partition(p: Patient) -> None:
    with p.instance() as there:
        there.add_dynamic_partitions("corpus_shard", ["other-00000"])


def data_behind_a_file(p: Patient) -> None:
    (p.data.parent / "file").write_text("x")
    p.values["data_uri"] = str(p.data.parent / "file" / "data")


def no_gpu(p: Patient) -> None:
    p.values["scoring"]["device"] = "cuda:0"


def no_model(p: Patient) -> None:
    p.values["scoring"]["model"] = str(p.data.parent / "nowhere")


def no_weights(p: Patient) -> None:
    copy = p.data.parent / "weightless"
    shutil.copytree(p.values["scoring"]["model"], copy)
    for weights in copy.glob("*.safetensors"):
        weights.unlink()
    p.values["scoring"]["model"] = str(copy)


def short_window(p: Patient) -> None:
    p.values["corpus"]["root_max_tokens"] = 1024
    p.values["samples"]["tokens"] = 8192


def embedder_too_short(p: Patient) -> None:
    p.values["embedding"]["chunk_tokens"] = 128


def no_source(p: Patient) -> None:
    p.values["corpus"]["sources"] = []


def no_file(p: Patient) -> None:
    p.values["corpus"]["sources"][0]["uri"] = f"{p.corpus}/*.parquet"


def wrong_field(p: Patient) -> None:
    p.values["corpus"]["sources"][0]["text_field"] = "content"


def changed_file(p: Patient) -> None:
    with (p.corpus / "b.jsonl").open("a") as file:
        file.write(json.dumps({"text": "More of it. " * 30, "id": "new"}) + "\n")


def file_gone(p: Patient) -> None:
    (p.corpus / "b.jsonl").unlink()


def damaged_manifest(p: Patient) -> None:
    p.manifest("entropy_scores").write_text("{}")


def old_format(p: Patient) -> None:
    path = p.manifest("entropy_scores")
    content = json.loads(path.read_text())
    content["format_version"] = 0
    path.write_text(json.dumps(content))


def table_file_gone(p: Patient) -> None:
    next(p.manifest("long_context_samples").parent.glob("samples-*.parquet")).unlink()


def no_lancedb(p: Patient) -> None:
    shutil.rmtree(p.data / "lancedb")


def no_tag(p: Patient) -> None:
    tag = TableStore(str(p.data)).require("embedding_index").summary["tag"]
    lancedb.connect(p.data / "lancedb").open_table("chunks").tags.delete(tag)


def other_embedder(p: Patient) -> None:
    copy = p.data.parent / "bert2"
    shutil.copytree(p.values["embedding"]["model"], copy)
    (copy / "more.txt").write_text("another model")
    p.values["embedding"]["model"] = str(copy)


Break = Callable[[Patient], None]
FAULTS: list[tuple[Break, str, str, str]] = [
    (no_daemon, "daemon", "fault", "never run here"),
    (silent_daemon, "daemon", "fault", "no sign of life for 7,2"),
    (daemon_with_error, "daemon", "fault", "ZeroDivisionError: in a tick"),
    (broken_yaml, "instance", "fault", "mend its dagster.yaml"),
    (other_launcher, "instance", "warning", "copy `run_launcher`"),
    (old_storage, "instance", "fault", "`dagster instance migrate`"),
    (many_writers, "pools", "fault", "`dagster instance concurrency set lancedb_writer 1`"),
    (data_gone, "partitions", "fault", "Dagster knows corpus_documents of tiny-0000"),
    (not_registered, "partitions", "warning", "tiny-00001 planned but not registered"),
    (foreign_partition, "partitions", "warning", "other-00000 registered but in no plan"),
    (data_behind_a_file, "disk", "fault", "can't be written to"),
    (no_gpu, "device", "fault", "torch sees no CUDA device; use 'auto'"),
    (no_model, "scoring model", "fault", "nowhere does not exist; check the setting"),
    (no_weights, "scoring model", "fault", "holds no weights"),
    (short_window, "scoring model", "fault", "lower corpus.root_max_tokens"),
    (embedder_too_short, "embedding model", "fault", "set it to 64 or less"),
    (no_source, "sources", "fault", "name one in the settings file"),
    (no_file, "sources", "fault", "put files there or correct"),
    (wrong_field, "sources", "fault", "there is no field 'content' (the fields: text, id)"),
    (changed_file, "sources", "warning", "b.jsonl; switch on the sensor `new_files`"),
    (file_gone, "sources", "warning", "b.jsonl; put them back"),
    (damaged_manifest, "tables", "fault", "is damaged or of another version; materialise it"),
    (old_format, "tables", "fault", "written in format 0"),
    (table_file_gone, "tables", "fault", "is gone; materialise it again"),
    (no_lancedb, "LanceDB table", "fault", "it is not there; materialise chunk_embeddings"),
    (no_tag, "LanceDB table", "fault", "materialise embedding_index again"),
    (other_embedder, "LanceDB table", "fault", "name another data_uri"),
]


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case[0].__name__)
def test_each_fault_is_named_with_its_remedy(
    patient: Patient, case: tuple[Break, str, str, str]
) -> None:
    damage, subject, verdict, told = case
    if damage is no_gpu and examinations.device(patient.settings).told.endswith("free"):
        pytest.skip("this machine has the device")
    damage(patient)
    found = patient.findings()
    assert found[subject].verdict == verdict
    assert told in found[subject].told
    assert "\n" not in found[subject].told
    # The others are examined all the same.
    assert set(SUBJECTS) - set(found) <= {"daemon", "pools", "partitions"}


def test_a_full_disk_is_named(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examinations, "LEAST_FREE_BYTES", 1 << 60)
    found = patient.findings()["disk"]
    assert found.verdict == "fault"
    assert "GiB free at" in found.told


def test_the_command_prints_a_line_each_and_ends_with_1_on_a_fault(
    patient: Patient, tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(json.dumps(patient.values), encoding="utf-8")  # JSON is YAML
    well = CliRunner().invoke(app, ["doctor", "--settings", str(file)])
    assert well.exit_code == 0, well.output
    assert len(well.output.strip().splitlines()) == len(SUBJECTS)
    no_daemon(patient)
    ill = CliRunner().invoke(app, ["doctor", "--settings", str(file)])
    assert ill.exit_code == 1
    [line] = [line for line in ill.output.splitlines() if line.startswith("fault")]
    assert "run `make ui`" in line
