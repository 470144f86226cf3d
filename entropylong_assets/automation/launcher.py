"""Runs on this machine whose death is noticed.

Dagster's own launcher can't tell whether the process of a run still lives once the code server
that started it is gone (a crash, a reboot): such a run would stay "started" until its time limit.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus

# Seconds by which a process may seem younger than the event that names it.
_CLOCK_SLACK = 60.0


class LocalRunLauncher(DefaultRunLauncher):
    """Named in dagster.yaml under `run_launcher`; the daemon must run on the runs' machine."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        started = self._process(run.run_id)
        if started is None or is_alive(*started):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(
            WorkerStatus.NOT_FOUND,
            f"its process {started[0]} is gone (killed, out of memory, or the machine restarted)",
        )

    def _process(self, run_id: str) -> tuple[int, float] | None:
        """Process id of a run and when it was reported, in seconds since the epoch."""
        events = self._instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
        for entry in events:
            event = entry.dagster_event
            pid = event.engine_event_data.metadata.get("pid") if event else None
            if pid is not None:
                return int(str(pid.value)), entry.timestamp
        return None


def is_alive(pid: int, seen: float) -> bool:
    """Whether the process `pid` that was there at the time `seen` is still the same one."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        if Path("/proc/uptime").exists():
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[0] == "Z":
                return False
            boot = time.time() - float(Path("/proc/uptime").read_text().split()[0])
            began = boot + int(fields[19]) / os.sysconf("SC_CLK_TCK")
            return began <= seen + _CLOCK_SLACK
        os.kill(pid, 0)
    except (FileNotFoundError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True
