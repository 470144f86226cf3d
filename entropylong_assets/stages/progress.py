"""Progress of a computation: units done, rate and time left."""

from __future__ import annotations

import time
from collections.abc import Callable

Observer = Callable[[str, int, "int | None", float], None]
"""(unit, done so far, total or None, units per second)."""


class Progress:
    """Counts units of work, and logs rate and time left every `every` seconds.

    A computation sets `total` as soon as it knows it, and calls the object with the number of units
    that it has just finished.
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
        self.done = 0

    def __call__(self, done: int) -> None:
        """Count `done` more finished units."""
        self.done += done
        if self._observer:
            self._observer(self.unit, self.done, self.total, self.rate)
        now = time.monotonic()
        if now - self._last < self._every:
            return
        self._last = now
        left = ""
        if self.total:
            seconds = (self.total - self.done) / self.rate if self.done else 0
            left = f" of {self.total:,}, {seconds:.0f} s left"
        self._log(f"{self.done:,} {self.unit}{left} ({self.rate:,.0f} {self.unit}/s)")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return self.done / max(self.seconds, 1e-9)
