"""SIGKILL to run workers of a real server with its daemon: the run is marked as failed, its pool
slots are freed, and the next run of the same job gives the tables of an undisturbed run."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from entropylong_assets.storage.tables import WHOLE
from entropylong_assets_tests.e2e.server import PROJECT, Server
from entropylong_assets_tests.faults import witness
from entropylong_assets_tests.faults.comparing import differences
from entropylong_assets_tests.faults.processes import witnessed
from entropylong_assets_tests.faults.reference import STAGES, Reference, shard_of
from entropylong_assets_tests.faults.summary import SEED, FaultRecord

JOBS = {
    "corpus__index": ("embedding_index", "embedding_index"),
    "dataset__score": ("entropy_scores", "entropy_scores"),
    "dataset__assemble": ("long_context_samples", "long_context_samples"),
    "dataset__export": ("training_dataset", "report"),
}
"""First and last stage of each job."""
KILLS = 3


def end_of(server: Server, run: str) -> str:
    ends = ("SUCCESS", "FAILURE", "CANCELED")
    return server.wait(f"run {run}", lambda: (s := server.run_status(run)) in ends and s, 180)


def kill_worker(server: Server, job: str, shard: str | None, after: float) -> bool:
    """Launch the job and kill its process. Returns whether the run failed because of that."""
    run = server.launch(job, shard)
    process = server.wait(f"the process of {run}", lambda: server.process_of(run), 120)
    time.sleep(after)
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return end_of(server, run) == "FAILURE"


@pytest.mark.long
def test_killed_run_workers(reference: Reference, tmp_path: Path, record: FaultRecord) -> None:
    reference.make(STAGES[-1])
    data, home = tmp_path / "data", tmp_path / "dagster"
    reference.copy("training_dataset", data, home)
    config = yaml.safe_load(
        (PROJECT / "entropylong_assets" / "dagster.yaml").read_text(encoding="utf-8")
    )
    config["run_monitoring"] |= {"poll_interval_seconds": 2, "free_slots_after_run_end_seconds": 1}
    values = reference.values(data)
    with Server(tmp_path, values, yaml.safe_dump(config)) as server:
        for job, (first, last) in JOBS.items():
            draw = random.Random(f"{SEED}:worker:{job}")
            shutil.rmtree(data)
            shutil.copytree(reference.folder / first / "data-before", data)
            shard = None if shard_of(first) == WHOLE else shard_of(first)
            with witnessed(data, reference.versions(last), reference.rows(first)) as seen:
                kills = 0
                for _ in range(4 * KILLS):
                    if kills < KILLS:
                        kills += kill_worker(
                            server, job, shard, draw.uniform(0, reference.seconds[first] / 3)
                        )
                record.kills["Dagster run worker"] += kills
                assert kills == KILLS
                assert end_of(server, server.launch(job, shard)) == "SUCCESS"
            record.differences += differences(reference, last, data)
            record.differences += [f"seen: {fault}" for fault in seen["faults"]]
            record.looks += seen["looks"]
            record.whole_seen += seen.get("whole", 0)
            assert record.differences == []
            record.recoveries += 1


@pytest.mark.long
def test_a_killed_command_does_not_hold_up_the_next(
    reference: Reference, tmp_path: Path, record: FaultRecord
) -> None:
    """Otherwise its run would keep its pool slot, because no daemon frees it."""
    reference.make(STAGES[-1])
    data = tmp_path / "data"
    command, environment = reference.command(tmp_path)
    for table in ("chunk_embeddings", "entropy_scores"):
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        while not list(data.glob(f"*/{table}/*/.staging-*")):
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        record.kills["the command line"] += 1
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = (
        witness.tree_of(data, reference.folder / "data"),
        reference.tree("report"),
    )
    # Index and candidates were made after all shards, as in the undisturbed run.
    record.differences = sorted(
        n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n)
    )
    record.differences += witness.leftovers(data)
    assert record.differences == []
    record.recoveries += 1
