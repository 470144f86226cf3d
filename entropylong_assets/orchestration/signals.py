"""Requests to stop: SIGINT (Ctrl-C, or a run terminated in the UI) and SIGTERM.

Python runs a signal handler between two bytecodes of the main thread. An exception raised there can
be swallowed by the code that it interrupts, and during a long call into a library nothing is raised
at all. So each signal is also written to a pipe (`signal.set_wakeup_fd`), which a thread reads: it
remembers the request, and ends the process if that has not stopped after `GRACE_SECONDS`.

Imports nothing but the standard library, so that the command line can watch from its first moment.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

GRACE_SECONDS = 6.0
"""Time that a process has to stop by itself. A stopped run must end within 10 seconds."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class StopActions:
    """What to do about a request to stop."""

    on_stop: Callable[[], None] = lambda: None
    """Called when a step gives up its work, before the run ends."""
    on_overdue: Callable[[], None] = lambda: None
    """Called in another thread right before the process is ended by force."""


_actions: list[StopActions] = []
_received: list[signal.Signals] = []


def stop_signal() -> signal.Signals | None:
    """Return the first signal by which this process was asked to stop, or None."""
    return _received[0] if _received else None


def stop_if_asked() -> None:
    """Raise KeyboardInterrupt if this process was asked to stop."""
    if _received:
        raise KeyboardInterrupt


def announce_stop() -> None:
    """Call `on_stop` of everything that watches."""
    for actions in reversed(_actions):
        actions.on_stop()


@contextmanager
def watch_signals(
    actions: StopActions = StopActions(), *, raises: bool = True, until_exit: bool = False
) -> Iterator[None]:
    """Note the first stop signal of this process, and end the process if it does not stop.

    May be nested; the outermost one watches. Does nothing in other threads, because only the main
    thread receives signals. raises: raise KeyboardInterrupt in the main thread as well; otherwise
    the present handlers stay. until_exit: count the time until the process has exited, not only
    until it has left this context.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    _actions.append(actions)
    watch = _Watch() if len(_actions) == 1 else None
    try:
        if raises:
            for number in STOP_SIGNALS:
                signal.signal(number, _interrupt)
        yield
    finally:
        _actions.pop()
        if not (until_exit and _received):
            if raises:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
            if watch:
                watch.end()
                _received.clear()


def _interrupt(number: int, _: FrameType | None) -> None:
    """Raise once: a second signal would interrupt the clean-up after the first one."""
    if not _raised.is_set():
        _received.append(signal.Signals(number))
        _raised.set()
        raise KeyboardInterrupt


_raised = threading.Event()


class _Watch:
    """A thread that reads the signals of this process from a pipe."""

    def __init__(self) -> None:
        _raised.clear()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._ended = threading.Event()
        self._before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._read, name="stop-signals", daemon=True)
        self._thread.start()

    def end(self) -> None:
        signal.set_wakeup_fd(self._before)
        self._ended.set()
        os.close(self._writer)  # the thread reads the end of the pipe
        self._thread.join()  # a signal that it notes later would stop the next run

    def _read(self) -> None:
        with os.fdopen(self._reader, "rb", buffering=0) as pipe:
            while written := pipe.read(64):
                stops = [n for n in written if n in STOP_SIGNALS]
                if stops:
                    _received.append(signal.Signals(stops[0]))
                    if not self._ended.wait(GRACE_SECONDS):
                        _end_process()
                    return


def _skip_finalization() -> None:
    """Exit a stopped process before Python frees its modules and models.

    That takes seconds of computation, and no other thread can end the process meanwhile.
    """
    if _received:
        _exit()


atexit.register(_skip_finalization)


def _end_process() -> None:
    ended = threading.Thread(target=_act_overdue, args=(tuple(_actions),), daemon=True)
    ended.start()
    ended.join(2.0)  # a database may be locked by the very call that does not return
    _exit()


def _exit() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(128 + _received[0])


def _act_overdue(actions: tuple[StopActions, ...]) -> None:
    for each in reversed(actions):
        with suppress(Exception):
            each.on_overdue()
