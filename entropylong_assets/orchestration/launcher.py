"""A run launcher for this machine that notices when the process of a run has died.

Dagster's own launcher can't tell whether the process of a run is alive once the code server that
started it has ended (a crash, a reboot): such a run would stay "started" until its time limit. A
run of the command line has no launcher at all. Both are marked with their process in a tag.

This module and `run_origin.py` alone import from `dagster._core`: a launcher reports the health of
its runs with `CheckRunHealthResult` and `WorkerStatus`, which Dagster 1.13 does not export.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus

from entropylong_assets.orchestration.signals import StopActions, watch_signals

PROCESS_TAG = ".dagster/entropylong_process"
"""The UI shows no tag with this prefix."""

# Seconds by which a process may seem younger than the event that names it.
_CLOCK_SLACK = 60.0


class LocalRunLauncher(dg.DefaultRunLauncher):
    """Named in dagster.yaml under `run_launcher`; the daemon must run on the runs' machine."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        mark = _mark_of(run)
        if mark is None:
            started = self._process(run.run_id)
            if started is None:
                return CheckRunHealthResult(WorkerStatus.RUNNING)
            if is_alive(*started):
                # Later calls compare the mark, which does not depend on the clock.
                self._instance.add_run_tags(run.run_id, process_tags(run.run_id, started[0]))
                return CheckRunHealthResult(WorkerStatus.RUNNING)
            mark = f"//{started[0]}/"
        elif is_marked_alive(mark):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, death_of(mark))

    def _process(self, run_id: str) -> tuple[int, float] | None:
        """Process id of a run and when it was reported, in seconds since the epoch."""
        events = self._instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
        for entry in events:
            event = entry.dagster_event
            pid = event.engine_event_data.metadata.get("pid") if event else None
            if pid is not None:
                return int(str(pid.value)), entry.timestamp
        return None


def death_of(mark: str) -> str:
    return f"its process {mark.split('/')[2]} has ended (killed, out of memory, or a restart)"


def is_alive(pid: int, seen: float) -> bool:
    """Whether the process that had the id `pid` at the time `seen` still runs.

    seen: seconds since the epoch.
    """
    try:
        if Path("/proc/uptime").exists():
            ticks = _start_ticks(pid)
            if ticks is None:
                return False
            boot = time.time() - float(Path("/proc/uptime").read_text().split()[0])
            return boot + ticks / os.sysconf("SC_CLK_TCK") <= seen + _CLOCK_SLACK
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def process_tags(run_id: str, pid: int) -> dict[str, str]:
    """Tags that name the process of a run."""
    return {PROCESS_TAG: f"{run_id}/{process_mark(pid)}"}


def _mark_of(run: dg.DagsterRun) -> str | None:
    """The mark of the run's process, or None. A re-executed run has its parent's tags as well."""
    owner, _, mark = run.tags.get(PROCESS_TAG, "").partition("/")
    return mark if owner == run.run_id else None


def process_mark(pid: int) -> str:
    """Machine, boot, process id and start of a process: no other process ever has the same."""
    return f"{_machine()}/{_boot()}/{pid}/{_start_ticks(pid) or ''}"


def is_marked_alive(mark: str) -> bool:
    """Whether a marked process still runs; True if it is on another machine."""
    host, boot, pid, ticks = mark.split("/")
    if host != _machine():
        return True
    if boot != _boot():
        return False
    if ticks:
        return _start_ticks(int(pid)) == int(ticks)
    return is_alive(int(pid), time.time())


def _machine() -> str:
    """Name of the host and, on Linux, namespace of its process ids.

    Containers of the same host name differ in the namespace.
    """
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{socket.gethostname()}{namespace.removeprefix('pid:')}"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError:
        return ""


def _start_ticks(pid: int) -> int | None:
    """Ticks from boot to the start of a process; None if it has ended, or there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


def death_of_run(run: dg.DagsterRun) -> str | None:
    """How the marked process of an unfinished run ended; None if it has none or is alive."""
    mark = _mark_of(run)
    return None if mark is None or is_marked_alive(mark) else death_of(mark)


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Fail runs whose marked process is dead, and free the pool slots of ended runs.

    The daemon does the same. Without a daemon, a new run would wait for such a slot forever.
    Returns the ids of the failed runs.
    """
    ended = []
    alive = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
    for run in instance.get_runs(alive):
        if death := death_of_run(run):
            instance.report_run_failed(run, death)
            ended.append(run.run_id)
    storage = instance.event_log_storage
    if storage.supports_global_concurrency_limits:
        for run_id in storage.get_concurrency_run_ids():
            holder = instance.get_run_by_id(run_id)
            if holder is None or holder.is_finished:
                storage.free_concurrency_slots_for_run(run_id)
    return ended


def end_stopped_run(instance: dg.DagsterInstance, run_id: str, *, canceled: bool = False) -> None:
    """End a run whose process is about to be ended by force, and free its pool slots.

    canceled: a user asked for it here. Otherwise the run is canceled if Dagster was asked to
    terminate it, and failed if only its process was asked to stop.
    """
    run = instance.get_run_by_id(run_id)
    if run is not None and not run.is_finished:
        message = "Stopped while a step could not be interrupted: its process was ended."
        if canceled or run.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, message)
        else:
            instance.report_run_failed(run, message)
    storage = instance.event_log_storage
    if storage.supports_global_concurrency_limits:
        storage.free_concurrency_slots_for_run(run_id)


class StoppableExecutor(dg.Executor):
    """An executor whose process ends within seconds once it was asked to stop.

    The in-process executor does not look for such requests while it waits for a slot of a pool or
    for the next attempt of a step, nor can it interrupt a long call into a library.
    """

    def __init__(self, executor: dg.Executor) -> None:
        self._executor = executor

    @property
    def retries(self) -> Any:
        return self._executor.retries

    @property
    def step_dependency_config(self) -> Any:
        return self._executor.step_dependency_config

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[Any]:
        instance, run_id = plan_context.instance, plan_context.run_id
        end = StopActions(on_overdue=lambda: end_stopped_run(instance, run_id))
        with watch_signals(end, raises=False, until_exit=True):
            yield from self._executor.execute(plan_context, execution_plan)


def _stoppable(context: dg.InitExecutorContext) -> dg.Executor:
    create = dg.in_process_executor.executor_creation_fn
    assert create is not None
    return StoppableExecutor(create(context))


in_process_executor = dg.ExecutorDefinition(
    name=dg.in_process_executor.name,
    config_schema=dg.in_process_executor.config_schema,  # type: ignore[arg-type]
    executor_creation_fn=_stoppable,
    description="Runs all steps of a run in one process, which can be stopped at any time.",
)
