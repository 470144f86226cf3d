"""SIGINT and SIGTERM to `entropylong run`, and a run terminated in the UI, during a stage."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import dagster as dg
import pytest

from entropylong_assets_tests.e2e.server import PROJECT, Server
from entropylong_assets_tests.faults import witness
from entropylong_assets_tests.faults.reference import STAGES, Reference
from entropylong_assets_tests.faults.summary import FaultRecord

SECONDS = 10.0
RESUMES = "run the same command again"


def staging(data: Path, table: str) -> list[Path]:
    return list(data.glob(f"*/{table}/*/.staging-*"))


@pytest.mark.long
def test_a_stopped_command_resumes_where_it_was(
    reference: Reference, tmp_path: Path, record: FaultRecord
) -> None:
    """Five stops in five stages, then a complete run: it gives the tables of an undisturbed run."""
    reference.make(STAGES[-1])
    data, home = tmp_path / "data", tmp_path / "home"
    command, environment = reference.command(tmp_path)
    tables = ("chunk_embeddings", "embedding_index", "entropy_scores", "verified_dependencies")
    for number, table in enumerate(("corpus_documents", *tables)):
        asked = (signal.SIGINT, signal.SIGTERM)[number % 2]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        while not staging(data, table):
            assert process.poll() is None, table
        began = time.monotonic()
        process.send_signal(asked)
        _, written = process.communicate(timeout=60)
        assert time.monotonic() - began < SECONDS, table
        assert process.returncode == 128 + asked, (table, written.decode())
        (line,) = written.decode().strip().splitlines()
        assert RESUMES in line
        assert staging(data, table) == []
        with dg.DagsterInstance.from_config(str(home)) as instance:
            (run,) = instance.get_runs(limit=1)
            assert run.status == dg.DagsterRunStatus.CANCELED, table
            tried = {e.dagster_event_type for e in instance.all_logs(run.run_id)}
            assert dg.DagsterEventType.STEP_UP_FOR_RETRY not in tried
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = witness.tree_of(data, reference.folder / "data"), reference.tree("report")
    names = ours.keys() | theirs.keys()
    record.differences = sorted(n for n in names if ours.get(n) != theirs.get(n))
    record.differences += witness.leftovers(data)
    assert record.differences == []
    record.recoveries += 1


@pytest.mark.long
def test_a_run_terminated_in_the_ui_stops(reference: Reference, tmp_path: Path) -> None:
    """The failure: Dagster retried the step after 15 s, and the run succeeded."""
    reference.make(STAGES[-1])
    data, home = tmp_path / "data", tmp_path / "dagster"
    reference.copy("verified_dependencies", data, home)
    config = (PROJECT / "entropylong_assets" / "dagster.yaml").read_text(encoding="utf-8")
    with Server(tmp_path, reference.values(data), config) as server:
        run = server.launch("dataset__verify", "tiny-00001")
        server.wait("the stage", lambda: staging(data, "verified_dependencies"), 120)
        began = time.monotonic()
        answer = server.query(
            "mutation($r: String!) { terminateRun(runId: $r) { __typename } }", r=run
        )
        assert answer["terminateRun"]["__typename"] == "TerminateRunSuccess"
        assert server.wait_for_run(run, 60) == "CANCELED"
        assert time.monotonic() - began < SECONDS
        process = server.process_of(run)
        while Path(f"/proc/{process}").exists():
            assert time.monotonic() - began < 2 * SECONDS
            time.sleep(0.1)
    manifest = data / "dataset" / "verified_dependencies" / "tiny-00001" / "manifest.json"
    assert not manifest.exists()
    assert staging(data, "verified_dependencies") == []
