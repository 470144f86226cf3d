"""The open files of formats that write separate files per source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class _Writer(Protocol):
    def close(self) -> None: ...


W = TypeVar("W", bound=_Writer)


class SourceWriters(Generic[W]):
    """The open writers of one group of samples, such as those of a source, by split.

    Samples are ordered by group. The writers of a group are closed when the next group begins, so
    that memory does not grow with the number of groups.
    """

    def __init__(self, open_writer: Callable[[str, str], W]) -> None:
        """open_writer: makes the writer of a split and a group."""
        self._open = open_writer
        self._group: str | None = None
        self._writers: dict[str, W] = {}

    def get(self, split: str, group: str = "") -> W:
        """The writer of a split and a group; without groups, of the split."""
        if group != self._group:
            self.close()
            self._group = group
        if split not in self._writers:
            self._writers[split] = self._open(split, group)
        return self._writers[split]

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
