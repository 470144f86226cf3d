"""A run that is asked to stop ends within seconds: canceled, not retried, its pool slot freed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from entropylong_assets.orchestration import launcher, signals
from entropylong_assets.orchestration.errors import RETRIES, step_errors
from entropylong_assets.orchestration.runner import run_job
from entropylong_assets.orchestration.signals import stop_if_asked, stop_signal, watch_signals
from entropylong_assets.storage.tables import WHOLE
from entropylong_assets_tests.forkserver import PROCESSES

SECONDS = 10.0
"""A stopped run ends within this time, also on a busy machine."""


def loop(mark: Path) -> None:
    """Batches in Python."""
    mark.touch()
    while True:
        time.sleep(0.01)


def swallow(mark: Path) -> None:
    """A library that catches the exception. The next progress report raises it again."""
    mark.touch()
    for _ in range(10_000):
        with contextlib.suppress(BaseException):
            time.sleep(0.01)
        stop_if_asked()


def turn_into_transient_fault(mark: Path) -> None:
    """A library that reports an interruption as an error of its network, which is retried."""
    mark.touch()
    try:
        time.sleep(60)
    except BaseException as error:
        raise ConnectionResetError("interrupted system call") from error


def compute_in_c(mark: Path) -> None:
    """One call that runs for minutes without returning to Python."""
    mark.touch()
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 500_000_000)


WORK = {work.__name__: work for work in (loop, swallow, turn_into_transient_fault, compute_in_c)}


def job_of(work: Callable[[Path], None], folder: Path) -> dg.JobDefinition:
    @dg.asset(retry_policy=RETRIES, pool="gpu")
    def thing() -> None:
        with (folder / "attempts").open("a") as file:
            file.write("attempt\n")
        with step_errors():
            work(folder / "started")
        (folder / "published").touch()

    @dg.asset(deps=[thing])
    def next_thing() -> None:
        (folder / "next").touch()

    definitions = dg.Definitions(
        assets=[thing, next_thing],
        jobs=[dg.define_asset_job("make", executor_def=launcher.in_process_executor)],
    )
    return definitions.resolve_job_def("make")


def run_in_child(work: str, folder: str) -> None:
    """Target of a process: a run as the command line makes it."""
    sys.stdout = sys.stderr = open(f"{folder}/output", "w")  # noqa: SIM115
    job = job_of(WORK[work], Path(folder))
    with (
        dg.DagsterInstance.local_temp(f"{folder}/home", overrides=POOLS) as instance,
        watch_signals(until_exit=True),
    ):
        try:
            run_job(job, WHOLE, instance)
        except KeyboardInterrupt:
            number = stop_signal()
            assert number is not None
            os._exit(128 + number)


POOLS = {"concurrency": {"pools": {"default_limit": 1, "granularity": "op"}}}


def wait_for(path: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not appear"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("work", "number"),
    [("loop", signal.SIGINT), *((work, signal.SIGTERM) for work in WORK)],
)
def test_a_signal_cancels_the_run_of_a_command(
    work: str, number: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    process = PROCESSES.Process(target=run_in_child, args=(work, str(tmp_path)))
    process.start()
    wait_for(tmp_path / "started")
    time.sleep(0.1)  # into the work
    began = time.monotonic()
    os.kill(process.pid or -1, number)
    process.join(60)
    assert time.monotonic() - began < SECONDS, (tmp_path / "output").read_text()
    assert process.exitcode == 128 + number, (tmp_path / "output").read_text()
    assert (tmp_path / "attempts").read_text() == "attempt\n", "it was tried again"
    assert not (tmp_path / "published").exists()
    assert not (tmp_path / "next").exists(), "the run went on with another step"
    with dg.DagsterInstance.local_temp(str(tmp_path / "home"), overrides=POOLS) as instance:
        (run,) = instance.get_runs()
        assert run.status == dg.DagsterRunStatus.CANCELED
        events = {e.dagster_event_type for e in instance.all_logs(run.run_id)}
        assert dg.DagsterEventType.STEP_UP_FOR_RETRY not in events
        info = instance.event_log_storage.get_concurrency_info("gpu")
        assert info.active_slot_count == 0
        assert info.pending_step_count == 0


SLOW_TO_FREE = """
import sys, time
from entropylong_assets.orchestration.signals import watch_signals

class Model:
    def __del__(self):
        time.sleep(60)

model = Model()
try:
    with watch_signals(until_exit=True):
        print("started", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    print("stopped")
    sys.exit(143)
"""


def test_a_stopped_process_does_not_wait_until_its_objects_are_freed() -> None:
    """It stayed for 24 s on a busy machine after its message: no thread runs in finalization."""
    with subprocess.Popen(
        [sys.executable, "-c", SLOW_TO_FREE], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        began = time.monotonic()
        process.terminate()
        output, _ = process.communicate(timeout=100)
    assert time.monotonic() - began < SECONDS
    assert process.returncode == 128 + signal.SIGTERM
    assert output == "stopped\n"


def execute_in_child(folder: str, status: str) -> None:
    """Target of a process: a run as the UI starts it, whose pool is occupied."""
    sys.stdout = sys.stderr = open(f"{folder}/output", "w")  # noqa: SIM115
    job = job_of(loop, Path(folder))
    with dg.DagsterInstance.local_temp(f"{folder}/home", overrides=POOLS) as instance:
        storage = instance.event_log_storage
        storage.initialize_concurrency_limit_to_default("gpu")
        other = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
        storage.claim_concurrency_slot("gpu", other.run_id, "thing")
        run = instance.create_run_for_job(job, status=dg.DagsterRunStatus[status])
        Path(folder, "run").write_text(run.run_id)
        executor = launcher.StoppableExecutor(Waits())
        context = type("Context", (), {"instance": instance, "run_id": run.run_id})()
        (Path(folder) / "started").touch()
        list(executor.execute(context, None))


class Waits(dg.Executor):
    """Waits like the in-process executor for a pool slot: without looking for signals."""

    retries = None  # type: ignore[assignment]

    def execute(self, plan_context: object, execution_plan: object) -> object:  # type: ignore[override]
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        while True:
            time.sleep(0.1)
            yield


@pytest.mark.parametrize(("status", "end"), [("CANCELING", "CANCELED"), ("STARTED", "FAILURE")])
def test_a_run_that_waits_for_a_pool_ends_too(status: str, end: str, tmp_path: Path) -> None:
    """The failure: Dagster's executor waited for the slot before it stopped.

    A run that nobody canceled (its machine is shut down) fails, so that users see it and repeat it.
    """
    (tmp_path / "home").mkdir()
    process = PROCESSES.Process(target=execute_in_child, args=(str(tmp_path), status))
    process.start()
    wait_for(tmp_path / "started")
    time.sleep(0.5)
    began = time.monotonic()
    os.kill(process.pid or -1, signal.SIGINT)
    process.join(60)
    assert time.monotonic() - began < SECONDS
    assert process.exitcode == 128 + signal.SIGINT, (tmp_path / "output").read_text()
    with dg.DagsterInstance.local_temp(str(tmp_path / "home"), overrides=POOLS) as instance:
        run = instance.get_run_by_id((tmp_path / "run").read_text())
        assert run is not None
        assert run.status.value == end


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


def test_signals_are_watched_only_inside_the_context() -> None:
    before = {number: signal.getsignal(number) for number in signals.STOP_SIGNALS}
    with watch_signals():
        with watch_signals():
            with pytest.raises(KeyboardInterrupt):
                _terminate()
            assert stop_signal() == signal.SIGTERM
            os.kill(os.getpid(), signal.SIGINT)  # raises no second time
        assert stop_signal() == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            stop_if_asked()
    assert stop_signal() is None
    assert {number: signal.getsignal(number) for number in signals.STOP_SIGNALS} == before
    stop_if_asked()


def test_a_signal_right_before_the_end_of_a_run_does_not_stop_the_next() -> None:
    """The thread that reads signals noted it after the end of the run: 295 of 300 times."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        for _ in range(50):
            with watch_signals(raises=False):
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.002)
            assert stop_signal() is None
    finally:
        signal.signal(signal.SIGTERM, before)
