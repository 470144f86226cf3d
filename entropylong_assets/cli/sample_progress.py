"""Progress of `estimate` and `pilot`: lines on standard error."""

from __future__ import annotations

import time
from contextlib import ExitStack

from rich.console import Console
from rich.markup import escape

from entropylong_assets.cli.progress_lines import SECONDS_BETWEEN_LINES, repeating
from entropylong_assets.stages.progress import ProgressState, duration, listening


class SampleProgress:
    """Prints a line as each part begins, and one every 10 seconds within it."""

    def __init__(self, minutes: float | None, every: float = SECONDS_BETWEEN_LINES) -> None:
        self._limit = None if minutes is None else 60 * minutes
        self._every = every
        self._part = ""
        self._state: ProgressState | None = None
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._stack = ExitStack()

    def __enter__(self) -> SampleProgress:
        self._start = time.monotonic()
        self._stack.enter_context(listening(self._print))
        self._stack.enter_context(
            repeating(lambda: self._print(self.line(time.monotonic())), self._every)
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def begin(self, part: str) -> None:
        """Say which part begins."""
        self._part, self._state = part, None
        self._print(f"{part} …")

    def observe(self, state: ProgressState) -> None:
        """Keep the progress of the present part for the next line."""
        self._state = state

    def line(self, now: float) -> str:
        """The present part, its progress, and what is left of the limit of time.

        now: time of the monotonic clock (seconds).
        """
        parts = [f"{self._part}: {self._state.line()}" if self._state else f"{self._part} …"]
        if self._limit is not None:
            left = max(0.0, self._start + self._limit - now)
            parts.append(f"at most about {duration(left)} left in all")
        return " | ".join(parts)

    def _print(self, line: str) -> None:
        self._console.print(escape(f"{time.strftime('%H:%M:%S')} {line}"))
