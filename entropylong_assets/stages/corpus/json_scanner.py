"""Cuts JSON into its rows by its brackets, in bounded memory, without parsing them.

`feed` takes the bytes of a file in pieces of any size. It yields the elements of the list in the
file, or its objects if it contains no list; `finish` yields the rest. Brackets that don't match may
join several rows. Each `}` that is followed by `{`, with or without a comma between them, is then
taken for the border of two rows, so that every row is yielded, with a problem.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from entropylong_assets.stages.corpus.errors import Problem
from entropylong_assets.stages.corpus.streams import MAX_ROW_BYTES

_STRUCTURE = re.compile(rb'[\[\]{}",]')
# A string can't contain a line end, so a quote that is never closed ends at it.
_IN_STRING = re.compile(rb'["\\\n]')


class Element(NamedTuple):
    """One row as it is written; `problem` if it could not be read whole."""

    content: bytes
    problem: Problem | None = None


class JsonScanner:
    """See the module."""

    def __init__(self) -> None:
        self.is_list: bool | None = None
        """None before the first character."""
        self._is_after_list = self._is_after_comma = False
        self._in_string = self._is_escaped = False
        self._depth = 0
        self._last = b""  # the structure read last: a bracket, or one with a comma after it
        # Of the element that is being read:
        self._pieces: list[bytes] = []
        self._size = 0
        self._borders = 0

    @property
    def is_inside(self) -> bool:
        """Whether an element has begun and not ended."""
        return self._size > 0

    def _add(self, piece: bytes) -> None:
        piece = piece if self._size else piece.lstrip()
        self._size += len(piece)
        if self._size > MAX_ROW_BYTES:
            self._pieces = []
        elif piece:
            self._pieces.append(piece)

    def _take(self) -> Iterator[Element]:
        """Yield the element that has been read, if there is one, and begin the next."""
        content, size = b"".join(self._pieces), self._size
        self._pieces, self._size, self._borders, self._last = [], 0, 0, b""
        if size > MAX_ROW_BYTES:
            message = f"the row has more than {MAX_ROW_BYTES} bytes"
            yield Element(b"", Problem("row_too_large", message))
        elif content:
            yield Element(content)

    def feed(self, chunk: bytes) -> Iterator[Element]:
        at = 0
        if self.is_list is None:
            chunk = chunk.lstrip()
            if not chunk:
                return
            self.is_list = chunk.startswith(b"[")
            at = self._depth = int(self.is_list)
        begin = at  # of what is not yet in the element
        while at < len(chunk):
            if self._is_escaped:
                self._is_escaped, at = False, at + 1
                continue
            token = (_IN_STRING if self._in_string else _STRUCTURE).search(chunk, at)
            if token is None:
                break
            at, mark = token.end(), token[0]
            if mark == b"\\":
                self._is_escaped = True
            elif mark == b'"':
                self._in_string = not self._in_string
            elif mark == b"\n":
                self._in_string = False
            elif mark == b"{" and not self._depth and not self.is_list:
                # Characters between two objects are no part of the next one.
                self._add(chunk[begin : at - 1])
                yield from self._take()
                begin, self._depth = at - 1, 1
            elif self._is_border(mark):
                self._add(chunk[begin : at - self.is_list])
                yield from self._end_of_element(mark)
                begin = at
        self._add(chunk[begin:])

    def _is_border(self, mark: bytes) -> bool:
        """Take a bracket or comma into account; return whether it ends an element."""
        if mark == b",":
            self._last = b"}," if self._last == b"}" else mark
            return bool(self.is_list) and not self._is_after_list and self._depth == 1
        if mark in b"[{":
            self._depth += 1
            self._borders += mark == b"{" and self._last in (b"}", b"},")
        else:
            self._depth = max(0, self._depth - 1)
        self._last = mark
        return self._depth == 0 and mark in b"]}" and not self._is_after_list

    def _end_of_element(self, mark: bytes) -> Iterator[Element]:
        elements = list(self._take())
        if not self.is_list:
            yield from elements
            return
        self._is_after_list = mark != b","
        if not elements and (self._is_after_comma or mark == b","):
            message = "an element is missing before or after a comma"
            elements = [Element(b"", Problem("broken_json", message))]
        self._is_after_comma = True
        yield from elements

    def finish(self) -> Iterator[Element]:
        """Yield the last elements at the end of the file."""
        borders, is_whole = self._borders, self._depth == int(bool(self.is_list))
        left = list(self._take())
        if self._is_after_list:
            message = "there is more after the end of the list" if left else ""
        elif self.is_list:
            message = "the file ends without the closing bracket of its list"
            if is_whole:
                yield from left
        else:
            message = "" if is_whole else "the file ends in the middle of an object"
            if is_whole:
                yield from left
        if message:
            yield Element(b"", Problem("broken_json", message))
            swallowed = Problem(
                "swallowed_json", f"the row can't be separated from others: {message}"
            )
            for _ in range(borders):
                yield Element(b"", swallowed)
