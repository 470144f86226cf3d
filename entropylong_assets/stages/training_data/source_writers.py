"""The open files of formats that write separate files per source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class _Writer(Protocol):
    def close(self) -> None: ...


W = TypeVar("W", bound=_Writer)


class SourceWriters(Generic[W]):
    """The open writers of one source, by split.

    Samples are ordered by source. The writers of a source are closed when the next source begins,
    so that memory does not grow with the number of sources.
    """

    def __init__(self, open_writer: Callable[[str, str], W]) -> None:
        """open_writer: makes the writer of a split and a source."""
        self._open = open_writer
        self._source: str | None = None
        self._writers: dict[str, W] = {}

    def get(self, split: str, source: str = "") -> W:
        """The writer of a split and a source; a format that joins all sources names none."""
        if source != self._source:
            self.close()
            self._source = source
        if split not in self._writers:
            self._writers[split] = self._open(split, source)
        return self._writers[split]

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
