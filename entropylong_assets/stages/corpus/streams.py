"""Decompressed bytes and lines of a file, in bounded memory."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

from entropylong_assets.stages.corpus.compression import (
    CHUNK,
    HEAD,
    DamagedFileError,
    content_of,
    decompress,
)
from entropylong_assets.stages.corpus.encodings import to_utf8
from entropylong_assets.stages.corpus.errors import Problem
from entropylong_assets.stages.corpus.files import open_file, plain_name

MAX_ROW_BYTES = 128 * 2**20
"""A larger row (a line, a text file) is reported and not held in memory."""

_LINE_END = re.compile(rb"\r\n?|\n")


class Line(NamedTuple):
    """One line without its line end; `problem` if it could not be read whole."""

    number: int
    content: bytes
    problem: Problem | None = None


def read_chunks(uri: str) -> Iterator[bytes]:
    """Yield the bytes of a file in pieces, decompressed by its name (`.gz`, `.zst`, `.bz2`, `.xz`).

    Raises DamagedFileError after the last good bytes, and the errors of the file system unchanged.
    """
    with open_file(uri) as file:
        yield from decompress(file, plain_name(uri))


def read_utf8(uri: str) -> Iterator[bytes]:
    """Yield a text file in pieces: decompressed, in UTF-8, without a byte order mark.

    UTF-16 and UTF-32 are recognized by their byte order mark. Raises DamagedFileError as
    `read_chunks`, and if the content is that of another format, such as gzip without `.gz`.
    """
    chunks = read_chunks(uri)
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= HEAD:
            break
    if content := content_of(head):
        raise DamagedFileError(f"the content is {content}, not text", "misnamed")
    yield from to_utf8(itertools.chain([head] if head else [], chunks))


def _first_line_end(chunks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """Return the first line end of a file, and all its chunks.

    It is a line feed unless the first line ends with a carriage return alone.
    """
    head = b""
    damage: DamagedFileError | None = None
    end: re.Match[bytes] | None = None
    try:
        for chunk in chunks:
            head += chunk
            end = _LINE_END.search(head)
            if end.end() < len(head) if end else len(head) > CHUNK:
                break
    except DamagedFileError as error:
        damage = error

    heads = [head] if head else []

    def everything() -> Iterator[bytes]:
        while heads:  # frees these chunks before the rest is read
            yield heads.pop()
        if damage:
            raise damage
        yield from chunks

    return (b"\r" if end and end[0] == b"\r" else b"\n"), everything()


def read_lines(uri: str, start: int = 0, *, old_mac: bool = False) -> Iterator[Line]:
    """Yield the lines of a text file from number `start` (from 0), in UTF-8.

    old_mac: lines end with a carriage return if the first one does. A line over MAX_ROW_BYTES has
    no content, but a problem. If the file is damaged, the last item is the first line that could
    not be read whole, with the problem.
    """
    # Of the line that is being read:
    number, size = 0, 0
    pieces: list[bytes] = []

    def line() -> Line:
        if size > MAX_ROW_BYTES:
            message = f"the row has more than {MAX_ROW_BYTES} bytes"
            return Line(number, b"", Problem("row_too_large", message))
        return Line(number, b"".join(pieces))

    try:
        chunks = read_utf8(uri)
        end = b"\n"
        if old_mac:
            end, chunks = _first_line_end(chunks)
        for chunk in chunks:
            if number < start:
                ends = chunk.count(end)
                if number + ends < start:
                    number += ends
                    continue
                parts = chunk.split(end)[start - number :]
                number = start
            else:
                parts = chunk.split(end)
            for i, part in enumerate(parts):
                if i:
                    yield line()
                    number, pieces, size = number + 1, [], 0
                size += len(part)
                if size > MAX_ROW_BYTES:
                    pieces = []
                elif part:
                    pieces.append(part)
        if size and number >= start:
            yield line()
    except DamagedFileError as damage:
        yield Line(number, b"", damage.problem)


def count_lines(uri: str, *, old_mac: bool = False) -> int:
    """Return one past the number of the last line of a file that is not empty.

    Damage counts as a line, as in `read_lines`; a file of white space has no lines.
    """
    ends, last, is_blank = 0, 0, True
    try:
        chunks = read_utf8(uri)
        end = b"\n"
        if old_mac:
            end, chunks = _first_line_end(chunks)
        for chunk in chunks:
            is_blank = is_blank and not chunk.strip()
            if body := chunk.rstrip(b"\r\n"):
                last = ends + body.count(end) + 1
            ends += chunk.count(end)
    except DamagedFileError:
        return ends + 1
    return 0 if is_blank else last
