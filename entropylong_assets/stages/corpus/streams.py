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
"""A larger row (a line, a text file) is reported and not held in memory."""

BOM = b"\xef\xbb\xbf"
"""Byte order mark that some programs put at the beginning of a UTF-8 file."""

_CHUNK = 2**20
# A zstd block of 4 bytes may decompress to 128 KiB: small pieces bound what a decompression bomb
# can yield at once (to 16 MiB), and are as fast as larger ones.
_ZSTD_CHUNK = 512


class DamagedFileError(Exception):
    """A compressed file is truncated, or not of the format that its name says."""


class Line(NamedTuple):
    """One line without its line feed; `problem` if it could not be read whole."""

    number: int
    content: bytes
    problem: Problem | None = None


def _gunzip(file: IO[bytes]) -> Iterator[bytes]:
    # read1, because a read that meets the damage would lose the good bytes before it.
    with gzip.GzipFile(fileobj=file) as stream:
        while chunk := stream.read1(_CHUNK):
            yield chunk


def _unzstd(file: IO[bytes]) -> Iterator[bytes]:
    """Decompress zstd. zstandard's own stream reader ends a truncated frame without an error."""
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
    """Yield the bytes of a file in pieces, decompressed by its name (`.gz`, `.zst`).

    Raises DamagedFileError after the last good bytes; faults of the file system pass as they are.
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
    """Yield the lines of a file from number `start` (from 0).

    A line over MAX_ROW_BYTES has no content, but a problem. If the file is damaged, the last item
    is the first line that could not be read whole, with the problem.
    """
    # Of the line that is being read:
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
    """Count the items that `read_lines` yields, without building them."""
    ends, last = 0, b"\n"
    try:
        for chunk in read_chunks(uri):
            ends += chunk.count(b"\n")
            last = chunk[-1:]
    except DamagedFileError:
        return ends + 1
    return ends + (last != b"\n")
