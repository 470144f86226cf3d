"""Starting, killing and ending the processes of the suite, each in its own process group."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from entropylong_assets_tests.faults import stage as child
from entropylong_assets_tests.faults import witness
from entropylong_assets_tests.forkserver import PROCESSES

PATIENCE = 180.0
"""Seconds after which a process counts as hanging."""


class Stage:
    """One stage of one shard, running in its own process as soon as the object is made."""

    def __init__(
        self,
        values: Mapping[str, Any],
        home: Path,
        asset: str,
        shard: str,
        die_at: int | None = None,
        **options: Any,
    ) -> None:
        """options: further arguments of `run_stage`."""
        self.name, self.home = f"{asset}, {shard}", home
        self._pipe, theirs = PROCESSES.Pipe()
        self._process = PROCESSES.Process(
            target=child.run_stage,
            args=(dict(values), str(home), asset, shard, theirs, die_at),
            kwargs=options,
        )
        self._process.start()
        theirs.close()
        assert self._pipe.poll(PATIENCE), f"{self.name}: its process did not start"
        assert self._pipe.recv() == "started"
        self.began, self.ended = time.monotonic(), 0.0

    def kill_after(self, seconds: float) -> bool:
        """Send SIGKILL `seconds` after its start. Returns whether the process was still running."""
        self._process.join(max(0.0, self.began + seconds - time.monotonic()))
        return self.kill()

    def kill_when(self, met: Callable[[], bool]) -> bool:
        """Send SIGKILL as soon as `met()`. Returns whether the process was still running."""
        while self._process.is_alive() and not met():
            pass
        return self.kill()

    def kill(self) -> bool:
        """Send SIGKILL to its process group. Returns whether the process was still running."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid or -1, signal.SIGKILL)
        return self.killed()

    def killed(self) -> bool:
        """Wait for the end of the process. Returns whether it was ended by SIGKILL."""
        self._process.join(PATIENCE)
        assert self._process.exitcode is not None, f"{self.name}: the process hangs"
        if self._process.exitcode != -signal.SIGKILL:
            assert self._process.exitcode == 0, self.outcome()
        self._pipe.close()
        return self._process.exitcode == -signal.SIGKILL

    def outcome(self) -> tuple[str, Any]:
        """Wait for the result: ("done", number of file operations) or ("failed", message)."""
        assert self._pipe.poll(PATIENCE), f"{self.name}: the process hangs\n{self._output()}"
        try:
            return self._pipe.recv()
        except EOFError:
            return "failed", f"the process died without a message\n{self._output()}"

    def finish(self) -> int:
        """Wait until the stage has succeeded; return its number of file operations."""
        state, message = self.outcome()
        assert state == "done", f"{self.name}: {message}"
        self.ended = time.monotonic()
        self._process.join(PATIENCE)
        assert self._process.exitcode == 0
        return int(message)

    def fail(self) -> str:
        """Wait until the stage has failed; return its message."""
        state, message = self.outcome()
        assert state == "failed", f"{self.name}: it did not fail"
        self._process.join(PATIENCE)
        return str(message)

    def _output(self) -> str:
        return (self.home / "output.txt").read_text(errors="replace")[-2000:]


@contextmanager
def witnessed(
    data: Path, whole: Mapping[str, str], rows: Mapping[str, list[str]]
) -> Iterator[witness.Seen]:
    """Let a reader read the data while the context runs.

    What it observed is in the yielded dictionary after the context has ended.
    """
    pipe, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=witness.watch, args=(str(data), whole, rows, theirs))
    process.start()
    theirs.close()
    seen: witness.Seen = {}
    try:
        assert pipe.poll(PATIENCE)
        assert pipe.recv() == "watching"
        yield seen
        pipe.send("end")
        assert pipe.poll(PATIENCE), "the reader hangs"
        seen |= pipe.recv()
    finally:
        process.kill()
        process.join()


def forkserver_threads() -> int:
    """Number of threads of the forkserver."""
    pipe, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=child.threads_of_forkserver, args=(theirs,))
    process.start()
    threads = int(pipe.recv())
    process.join()
    return threads
