"""One run of the command line at a time per job and shard.

Two runs of one shard are safe, since each publishes its partition whole, but the work is done
twice. The second one waits, and then finds the shard up to date.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from entropylong_assets.orchestration.launcher import end_dead_runs
from entropylong_assets.orchestration.shard_batches import shards_of_run

POLL_SECONDS = 0.5
_ACTIVE = [
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


@contextmanager
def working_alone(
    instance: dg.DagsterInstance, job: dg.JobDefinition, shard: str, on_wait: Callable[[str], None]
) -> Iterator[bool]:
    """Hold the lock of a job on a shard, and yield whether another run had to be waited for.

    on_wait: gets one line that names the other run. The lock is a file in the folder of the
    instance, which the system releases when its process ends. Runs that Dagster started hold no
    lock: they are found in the instance.
    """
    path = Path(instance.root_directory) / "entropylong-locks" / f"{job.name}-{shard}"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, waited = _lock(path, lambda other: on_wait(_line(job, shard, f"process {other}")))
    try:
        while (run := _active_run(instance, job, shard)) is not None:
            if not waited:
                on_wait(_line(job, shard, f"run {run[:8]}"))
            waited = True
            time.sleep(POLL_SECONDS)
            end_dead_runs(instance)
        yield waited
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _line(job: dg.JobDefinition, shard: str, other: str) -> str:
    return f"{shard}: waiting for {other}, which runs {job.name} on it"


def _lock(path: Path, on_wait: Callable[[str], None]) -> tuple[int, bool]:
    """Lock a file that may be removed by its last holder. Returns its handle, and whether it was
    locked by another process."""
    waited = False
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.fstat(handle).st_ino == path.stat().st_ino:
                os.truncate(handle, 0)
                os.write(handle, str(os.getpid()).encode())
                return handle, waited
        except BlockingIOError:
            if not waited:
                on_wait(os.pread(handle, 20, 0).decode() or "another process")
            waited = True
            time.sleep(POLL_SECONDS)
        except FileNotFoundError:  # removed since it was opened
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _active_run(instance: dg.DagsterInstance, job: dg.JobDefinition, shard: str) -> str | None:
    """Id of a run in progress of the same job, or of one of its assets, on the same shard."""
    assets = set(job.asset_layer.executable_asset_keys)
    partitions = getattr(job.partitions_def, "name", None) or ""
    for run in instance.get_runs(dg.RunsFilter(statuses=_ACTIVE)):
        same_shard = shard in shards_of_run(run, partitions, instance)
        if same_shard and (run.job_name == job.name or assets & (run.asset_selection or set())):
            return run.run_id
    return None
