"""Transient faults are tried again, bad input is not; a dead run is noticed."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import dagster as dg
import pytest

from entropylong_assets.automation.faults import is_transient, plain_errors
from entropylong_assets.automation.launcher import is_alive
from entropylong_assets.corpus.errors import CorpusError


class HfHubHTTPError(Exception):
    """Named as the class of the hub's library."""


FAULTS = {
    "connection reset": (ConnectionResetError("peer"), True),
    "timeout": (TimeoutError("slow"), True),
    "device full": (OSError(28, "No space left on device"), True),
    "hub unavailable": (HfHubHTTPError("503"), True),
    "lost race of writers": (RuntimeError("lance error: Commit conflict for version 7"), True),
    "no such file": (FileNotFoundError("x.jsonl"), False),
    "no permission": (PermissionError("x.jsonl"), False),
    "fault in the code": (TypeError("unsupported operand"), False),
    "wrong value": (ValueError("bad"), False),
    "bad input": (CorpusError("x.jsonl, row 3: not JSON; mend the line"), False),
}


@pytest.mark.parametrize("name", FAULTS)
def test_only_transient_faults_are_tried_again(name: str) -> None:
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
    elif not again:
        assert type(fault).__name__ in str(shown)


def test_a_step_that_recovers_succeeds() -> None:
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


def test_the_process_of_a_run_is_known_dead_or_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert is_alive(child.pid, time.time())
    finally:
        child.kill()
        child.wait()
    assert not is_alive(child.pid, time.time())
    assert is_alive(os.getpid(), time.time())


@pytest.mark.skipif(not os.path.exists("/proc/uptime"), reason="start times need /proc")
def test_another_process_under_the_same_number_is_not_the_run() -> None:
    """After a restart of the machine numbers are given anew."""
    assert not is_alive(os.getpid(), time.time() - 86_400)
