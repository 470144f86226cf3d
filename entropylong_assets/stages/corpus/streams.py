"""Decompressed bytes and lines of a file, in bounded memory."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple

import zstandard

from entropylong_assets.stages.corpus.errors import one_line
from entropylong_assets.stages.corpus.files import open_file, plain_name
from entropylong_assets.stages.corpus.rows import Problem

MAX_ROW_BYTES = 128 * 2**20
"""A larger row (a line, a text file) is not held in memory but reported."""

_CHUNK = 2**20
# A zstd block of 4 bytes may stand for 128 KiB: small pieces bound what a bomb can unfold at
# once (to 16 MiB), and are as fast as larger ones.
_ZSTD_CHUNK = 512


class DamagedFileError(Exception):
    """A compressed file is cut short or is not what its name says."""


class Line(NamedTuple):
    """One line, without its line feed; `problem` where it could not be read whole."""

    number: int
    content: bytes
    problem: Problem | None = None


def _gunzip(file: IO[bytes]) -> Iterator[bytes]:
    # read1, because a read that runs into the fault would lose the good bytes before it.
    with gzip.GzipFile(fileobj=file) as stream:
        while chunk := stream.read1(_CHUNK):
            yield chunk


def _unzstd(file: IO[bytes]) -> Iterator[bytes]:
    """zstandard's own stream reader ends a truncated frame without an error; this one raises."""
    frame = None
    while block := file.read(_CHUNK):
        view = memoryview(block)
        while view:
            piece, view = view[:_ZSTD_CHUNK], view[_ZSTD_CHUNK:]
            while piece:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                if chunk := frame.decompress(piece):
                    yield chunk
                piece = memoryview(frame.unused_data)
                if frame.eof:
                    frame = None
    if frame is not None:
        raise EOFError("it ends in the middle of a frame")


def read_chunks(uri: str) -> Iterator[bytes]:
    """Bytes of a file in pieces, decompressed by its name (`.gz`, `.zst`).

    Raises DamagedFileError behind the last good bytes; faults of the file system come as they are.
    """
    member = plain_name(uri).lower()
    with open_file(uri) as file:
        try:
            if member.endswith(".gz"):
                yield from _gunzip(file)
            elif member.endswith(".zst"):
                yield from _unzstd(file)
            else:
                while chunk := file.read(_CHUNK):
                    yield chunk
        except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
            raise DamagedFileError(one_line(error)) from None


def read_lines(uri: str, start: int = 0) -> Iterator[Line]:
    """Lines of a file from number `start` (from 0).

    A line over MAX_ROW_BYTES comes without its content. Where the file is damaged, the last item
    is the number of the first line that could not be read whole, with the problem.
    """
    # Of the line that is being gathered:
    number, size = 0, 0
    pieces: list[bytes] = []

    def line() -> Line:
        if size > MAX_ROW_BYTES:
            found = f"the row has more than {MAX_ROW_BYTES} bytes"
            return Line(number, b"", Problem("row_too_large", found))
        return Line(number, b"".join(pieces))

    try:
        for chunk in read_chunks(uri):
            if number < start:
                ends = chunk.count(b"\n")
                if number + ends < start:
                    number += ends
                    continue
                parts = chunk.split(b"\n")[start - number :]
                number = start
            else:
                parts = chunk.split(b"\n")
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
        yield Line(number, b"", Problem("unreadable", f"the file is damaged here: {damage}"))


def count_lines(uri: str) -> int:
    """How many items `read_lines` gives, without building them."""
    ends, last = 0, b"\n"
    try:
        for chunk in read_chunks(uri):
            ends += chunk.count(b"\n")
            last = chunk[-1:]
    except DamagedFileError:
        return ends + 1
    return ends + (last != b"\n")
