"""Transient errors are retried, bad input is not; runs of dead processes are ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._core.storage.tags import TagType, get_tag_type

from entropylong_assets.orchestration.errors import is_transient, plain_errors
from entropylong_assets.orchestration.launcher import (
    PROCESS_TAG,
    LocalRunLauncher,
    end_dead_runs,
    is_alive,
    is_marked_alive,
    process_mark,
    process_tags,
)
from entropylong_assets.stages.corpus.errors import CorpusError


class HfHubHTTPError(Exception):
    """Named like the class of the hub's library."""


class FlexibleChecksumError(Exception):
    """Named like the class of botocore."""


LANCE_503 = (
    "lance error: LanceError(IO): Generic S3 error: Error performing PUT http://…/1.manifest in "
    "2.5s, after 8 retries - Server returned non-2xx status code: 503 Service Unavailable"
)

FAULTS = {
    "connection reset": (ConnectionResetError("peer"), True),
    "timeout": (TimeoutError("slow"), True),
    "device full": (OSError(28, "No space left on device"), True),
    "hub unavailable": (HfHubHTTPError("503"), True),
    "lost race of writers": (RuntimeError("lance error: Commit conflict for version 7"), True),
    "a body cut short": (FlexibleChecksumError("did not match"), True),
    "store unavailable, under LanceDB": (RuntimeError(LANCE_503), True),
    "the same, as LanceDB opens": (
        ValueError(f"Failed to connect to namespace: {LANCE_503}"),
        True,
    ),
    "no such file": (FileNotFoundError("x.jsonl"), False),
    "no permission": (PermissionError("x.jsonl"), False),
    "fault in the code": (TypeError("unsupported operand"), False),
    "wrong value": (ValueError("bad"), False),
    "bad input": (CorpusError("x.jsonl, row 3: not JSON; correct the line"), False),
}


@pytest.mark.parametrize("name", FAULTS)
def test_only_transient_errors_are_retried(name: str) -> None:
    fault, again = FAULTS[name]
    tries = []

    @dg.op(retry_policy=dg.RetryPolicy(max_retries=2, delay=0))
    def step() -> None:
        tries.append(1)
        with plain_errors():
            raise fault

    @dg.job
    def one() -> None:
        step()

    result = one.execute_in_process(raise_on_error=False)
    assert not result.success
    assert len(tries) == (3 if again else 1)
    assert is_transient(fault) == again
    failure = next(e for e in result.all_events if e.is_step_failure).step_failure_data
    shown = failure.user_failure_data.description if failure.user_failure_data else None
    if isinstance(fault, CorpusError):
        assert shown == str(fault)
    else:
        start = {"device full": "no space left on the disk"}.get(name, type(fault).__name__)
        assert str(shown).startswith(f"{start}: ")
        assert "\n" not in str(shown)


@pytest.mark.parametrize("in_the_cause_alone", [False, True])
def test_credentials_of_the_environment_are_not_repeated(
    monkeypatch: pytest.MonkeyPatch, in_the_cause_alone: bool
) -> None:
    """A store that refuses a signature answers with the key, and libraries print the answer."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA-shown-by-the-store")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "and-the-secret")
    answer = "<AWSAccessKeyId>AKIA-shown-by-the-store</AWSAccessKeyId> and-the-secret"
    shown = "" if in_the_cause_alone else f": {answer}"

    @dg.op
    def step() -> None:
        with plain_errors():
            try:
                raise KeyError(f"first: {answer}")
            except KeyError as error:
                raise RuntimeError(f"403 Forbidden{shown}") from error

    @dg.job
    def one() -> None:
        step()

    with dg.DagsterInstance.ephemeral() as instance:
        result = one.execute_in_process(raise_on_error=False, instance=instance)
        assert not result.success
        events = "".join(dg.serialize_value(entry) for entry in instance.all_logs(result.run_id))
    assert "403 Forbidden" in events
    assert "AKIA-shown" not in events
    assert "and-the-secret" not in events


def test_step_that_recovers_succeeds() -> None:
    tries = []

    @dg.op(retry_policy=dg.RetryPolicy(max_retries=2, delay=0))
    def step() -> None:
        tries.append(1)
        with plain_errors():
            if len(tries) == 1:
                raise ConnectionResetError("peer")

    @dg.job
    def one() -> None:
        step()

    assert one.execute_in_process().success
    assert len(tries) == 2


def test_process_of_a_run_is_known_dead_or_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert is_alive(child.pid, time.time())
    finally:
        child.kill()
        child.wait()
    assert not is_alive(child.pid, time.time())
    assert is_alive(os.getpid(), time.time())


def test_mark_of_a_process_is_hidden_in_the_ui() -> None:
    """It stood as a long pill on every run of a job's page."""
    assert get_tag_type(PROCESS_TAG) is TagType.HIDDEN


@pytest.mark.skipif(not os.path.exists("/proc/uptime"), reason="start times need /proc")
def test_another_process_with_the_same_id_is_not_the_run() -> None:
    """After a restart of the machine process ids are used again."""
    assert not is_alive(os.getpid(), time.time() - 86_400)


def test_mark_shows_whether_the_process_lives_whatever_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mark = process_mark(process.pid)
    for shift in (0.0, 86_400.0, -86_400.0):
        now = time.time() + shift
        with monkeypatch.context() as patch:
            patch.setattr("time.time", lambda now=now: now)
            assert is_marked_alive(mark)
    process.kill()
    process.wait()
    assert not is_marked_alive(mark)
    host, boot, pid, ticks = process_mark(os.getpid()).split("/")
    assert is_marked_alive("/".join((host, boot, pid, ticks)))
    assert not is_marked_alive("/".join((host, boot, pid, str(int(ticks) + 1)))), "another process"
    assert not is_marked_alive("/".join((host, "another-boot", pid, ticks)))
    assert is_marked_alive("/".join(("another-host", boot, "1", ticks))), (
        "unknown from this machine"
    )


@dg.op(pool="writer")
def use_the_pool() -> None: ...


@dg.job
def uses_the_pool() -> None:
    use_the_pool()


def test_run_of_a_killed_command_is_failed_and_its_slot_freed(tmp_path: Path) -> None:
    """Otherwise the next command would wait for the slot forever: no daemon frees it."""
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    ids = {"dead": str(uuid.uuid4()), "alive": str(uuid.uuid4())}
    tags = {
        "dead": process_tags(ids["dead"], dead.pid),
        "alive": process_tags(ids["alive"], os.getpid()),
    }
    dead.wait()
    with dg.DagsterInstance.local_temp(
        str(tmp_path),
        overrides={"concurrency": {"pools": {"default_limit": 1, "granularity": "op"}}},
    ) as instance:
        storage = instance.event_log_storage
        storage.initialize_concurrency_limit_to_default("writer")
        runs = {
            name: instance.create_run_for_job(
                uses_the_pool,
                run_id=ids[name],
                tags=tags[name],
                status=dg.DagsterRunStatus.STARTED,
            )
            for name in ids
        }
        storage.claim_concurrency_slot("writer", runs["dead"].run_id, "use_the_pool")
        assert storage.get_concurrency_info("writer").active_slot_count == 1
        assert end_dead_runs(instance) == [runs["dead"].run_id]
        statuses = {name: instance.get_run_by_id(run.run_id) for name, run in runs.items()}
        assert {n: run.status.value for n, run in statuses.items() if run} == {
            "dead": "FAILURE",
            "alive": "STARTED",
        }
        assert storage.get_concurrency_info("writer").active_slot_count == 0
        assert uses_the_pool.execute_in_process(instance=instance).success
        assert end_dead_runs(instance) == []


def test_launcher_uses_the_mark_once_it_has_seen_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock is set forwards by an hour: a living run must not be taken for dead."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        launcher = LocalRunLauncher()
        launcher.register_instance(instance)
        run = instance.create_run_for_job(uses_the_pool, status=dg.DagsterRunStatus.STARTED)
        pid = {"pid": dg.MetadataValue.text(str(process.pid))}
        instance.report_engine_event("started", run, EngineEventData(pid))

        def health() -> str:
            seen = instance.get_run_by_id(run.run_id)
            assert seen is not None
            return launcher.check_run_worker_health(seen).status.name

        assert health() == "RUNNING"
        now = time.time() + 3600
        monkeypatch.setattr("time.time", lambda: now)
        assert health() == "RUNNING"
        process.kill()
        process.wait()
        assert health() == "NOT_FOUND"


def test_re_executed_run_is_not_taken_for_its_dead_parent(tmp_path: Path) -> None:
    """Dagster gives it the parent's tags: with the parent's mark it would be failed at once."""
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    parent = str(uuid.uuid4())
    inherited = process_tags(parent, dead.pid)
    dead.wait()
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        launcher = LocalRunLauncher()
        launcher.register_instance(instance)
        run = instance.create_run_for_job(
            uses_the_pool, tags=inherited, status=dg.DagsterRunStatus.STARTED
        )
        assert launcher.check_run_worker_health(run).status.name == "RUNNING"
        assert end_dead_runs(instance) == []
        own = {"pid": dg.MetadataValue.text(str(dead.pid))}
        instance.report_engine_event("started", run, EngineEventData(own))
        assert launcher.check_run_worker_health(run).status.name == "NOT_FOUND"
