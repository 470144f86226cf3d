"""Progress of a computation: units done, share, rate and time left."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class ProgressState:
    """How far a computation is."""

    unit: str
    done: int
    """Units finished since the start of this computation."""
    total: int | None
    """All units, if their number is known."""
    rate: float
    """Units per second since the start."""
    items: tuple[str, float, int] | None = None
    """Items with a known number, if the number of units is not known beforehand: name, finished,
    total. The number of tokens, for example, is known only root by root. `finished` may count
    parts of the items that are being computed."""
    seconds_left: float | None = None

    @property
    def share(self) -> float | None:
        """Finished share of the whole, from 0 to 1, or None if that is not known."""
        if self.items:
            _, done, total = self.items
            return min(done / total, 1.0) if total else 1.0
        return min(self.done / self.total, 1.0) if self.total else None

    def line(self, with_rate: bool = True) -> str:
        """One line for people: done of total, share, rate and time left, as far as known."""
        parts = [f"{self.done:,}{f' of {self.total:,}' if self.total else ''} {self.unit}"]
        if self.items:
            name, done, total = self.items
            parts = [f"{int(done):,} of {total:,} {name}"]
        if self.share is not None:
            parts[0] += f" ({self.share:.0%})"
        if with_rate:
            parts.append(f"{self.rate:,.0f} {self.unit}/s")
        if self.seconds_left is not None:
            parts.append(f"{duration(self.seconds_left)} left")
        return ", ".join(parts)


Observer = Callable[[ProgressState], None]


_listeners: list[Callable[[str], None]] = []


@contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """Call the listener with what this process announces."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def announce(line: str) -> None:
    """Say that something begins that takes seconds and reports no progress, e.g. loading a model.

    Loaders are called from many places and keep what they have loaded: only they know when
    something is loaded.
    """
    for listener in tuple(_listeners):
        listener(line)


def duration(seconds: float) -> str:
    """A time span for people: `42 s`, `3 min 5 s`, `2 h 14 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def disable_progress_bars() -> None:
    """Keep libraries from drawing bars among our lines. Call it before they are imported."""
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")


class Progress:
    """Counts units of work, and logs rate and time left every `every` seconds.

    A computation sets `total` as soon as it knows it, and calls the object with the number of units
    that it has just finished. If it can't know the number of units, it calls `reach` with the
    number of items (roots, documents) that it has finished.
    """

    def __init__(
        self,
        unit: str,
        log: Callable[[str], None],
        observer: Observer | None = None,
        every: float = 10,
    ) -> None:
        self.unit = unit
        self.total: int | None = None
        self._log, self._observer, self._every = log, observer, every
        self._start = self._last = time.monotonic()
        self._items: tuple[str, float, int] | None = None
        self._first: tuple[float, float] | None = None
        """Time and share at the first report. A resumed computation begins with a share."""
        self.done = 0

    def __call__(self, done: int) -> None:
        """Count `done` more finished units."""
        self.done += done
        self._report()

    def reach(self, items: str, done: float, total: int) -> None:
        """Report that `done` of `total` items are finished, or an estimate of it."""
        self._items = items, done, total
        self._report()

    def restart(self) -> None:
        """Derive the time left from what follows: the items of the next report took no time."""
        self._first = None

    def _report(self) -> None:
        now = time.monotonic()
        state = self.state(now)
        if self._first is None and state.share is not None:
            self._first = now, state.share
        if self._observer:
            self._observer(state)
        if now - self._last >= self._every:
            self._last = now
            self._log(state.line())

    def state(self, now: float) -> ProgressState:
        """State at a time of the monotonic clock (seconds)."""
        state = ProgressState(self.unit, self.done, self.total, self.rate, self._items)
        if self._first is None or state.share is None or state.share <= self._first[1]:
            return state
        began, share = self._first
        left = (now - began) * (1 - state.share) / (state.share - share)
        return ProgressState(self.unit, self.done, self.total, self.rate, self._items, left)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return self.done / max(self.seconds, 1e-9)
