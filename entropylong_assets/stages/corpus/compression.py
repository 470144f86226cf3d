"""Decompressing a file by the suffix of its name; content that contradicts the name is an error."""

from __future__ import annotations

import bz2
import itertools
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import IO, Any, NamedTuple

import zstandard

from entropylong_assets.stages.corpus.errors import Problem, one_line

CHUNK = 2**20
"""Number of bytes that are read from a file at once."""

MAX_WINDOW = 2**31
"""Largest window of a zstd frame (`zstd --long=31`), and about the largest dictionary of an xz
stream (bytes)."""


class DamagedFileError(Exception):
    """A file is truncated, or not what its name says. `problem`: of the first row that is lost."""

    def __init__(self, detail: str, reason: str = "unreadable") -> None:
        super().__init__(detail)
        self.problem = Problem(reason, detail)


class _Codec(NamedTuple):
    name: str
    magic: tuple[bytes, ...]
    """First bytes of a compressed file."""
    open: Callable[[], Any]
    """Makes a decompressor of one member (gzip), frame (zstd) or stream (bzip2, xz)."""
    # 4 bytes of zstd may decompress to 128 KiB, a byte of gzip to 1 KiB: small pieces bound what a
    # decompression bomb can yield at once (to 16 and 4 MiB), and are as fast as larger ones.
    piece: int = 512
    """Number of compressed bytes that are decompressed at once."""
    padding: bytes = b""
    """Byte that may be repeated between two members."""


def _zstd() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj()


def _xz() -> Any:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_WINDOW + 2**24)


_SKIPPABLE = tuple(bytes([0x50 + i]) + b"\x2a\x4d\x18" for i in range(16))
_CODECS = {
    ".gz": _Codec("gzip", (b"\x1f\x8b",), lambda: zlib.decompressobj(31), 2**12, b"\0"),
    ".zst": _Codec("zstd", (b"\x28\xb5\x2f\xfd", *_SKIPPABLE), _zstd),
    ".bz2": _Codec("bzip2", (b"BZh",), bz2.BZ2Decompressor),
    ".xz": _Codec("xz", (b"\xfd7zXZ\0",), _xz, padding=b"\0"),
}
# First bytes of formats that are no text.
_BINARY = {
    b"\x1f\x8b\x08": "gzip (.gz)",
    b"\x28\xb5\x2f\xfd": "zstd (.zst)",
    b"\xfd7zXZ\0": "xz (.xz)",
    b"BZh91AY&SY": "bzip2 (.bz2)",
    b"PK\x03\x04": "a ZIP archive (.zip)",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive (.7z)",
    b"\x04\x22\x4d\x18": "LZ4 (.lz4)",
    b"\xff\x06\0\0sNaPpY": "Snappy (.snappy)",
    b"\x1f\x9d": "Unix compress (.Z)",
    b"PAR1\x15": "Parquet (.parquet)",
    b"ARROW1\0\0": "Arrow (.arrow)",
    b"Obj\x01": "Avro (.avro)",
}
_ERRORS = (zlib.error, lzma.LZMAError, OSError, zstandard.ZstdError)
HEAD = 16
"""Number of bytes that suffice to tell these formats (at least)."""


def content_of(head: bytes) -> str | None:
    """Name the format of a file by its first bytes if it is a known one that is no text."""
    return next((name for magic, name in _BINARY.items() if head.startswith(magic)), None)


def suffix_of(name: str) -> str | None:
    """Return the suffix of a compressed file, which is a key of the codecs, or None."""
    return next((suffix for suffix in _CODECS if name.lower().endswith(suffix)), None)


def decompress(file: IO[bytes], name: str) -> Iterator[bytes]:
    """Yield the bytes of a file in pieces, decompressed by the suffix of its name.

    Consecutive members, frames or streams are one file; an empty file has no bytes. Raises
    DamagedFileError after the last good bytes, and the errors of the file system unchanged.
    """
    suffix = suffix_of(name)
    blocks = iter(lambda: file.read(CHUNK), b"")
    if suffix is None:
        yield from blocks
        return
    codec = _CODECS[suffix]
    first = next(blocks, b"")
    if first and not first.startswith(codec.magic):
        content = content_of(first) or f"not {codec.name}"
        raise DamagedFileError(
            f"the name ends in {suffix}, but the content is {content}", "misnamed"
        )
    yield from _decompress(codec, itertools.chain([first], blocks))


def _decompress(codec: _Codec, blocks: Iterable[bytes]) -> Iterator[bytes]:
    stream: Any = None
    n_ended = 0
    for block in blocks:
        view = memoryview(block)
        while view:
            piece, view = view[: codec.piece], view[codec.piece :]
            while piece:
                if stream is None:
                    piece = memoryview(bytes(piece).lstrip(codec.padding)) if n_ended else piece
                    if not piece:
                        break
                    stream = codec.open()
                before = stream.copy() if hasattr(stream, "copy") else None
                try:
                    chunk = stream.decompress(piece)
                except _ERRORS as error:
                    yield from _good_bytes(before, piece)
                    raise DamagedFileError(_damage(codec, error, n_ended)) from None
                if chunk:
                    yield chunk
                piece = memoryview(b"")
                if stream.eof:
                    piece, stream, n_ended = memoryview(stream.unused_data), None, n_ended + 1
    if stream is not None:
        raise DamagedFileError(
            f"the file is damaged here: it ends in the middle of its {codec.name} data"
        )


def _good_bytes(stream: Any, piece: memoryview) -> Iterator[bytes]:
    """Yield what a decompressor returns for a piece up to the byte at which it fails.

    Otherwise a wrong checksum at the end of a piece would cost good rows. Only gzip's decompressor
    can be copied, which this needs.
    """
    with suppress(*_ERRORS):
        for at in range(len(piece) if stream else 0):
            yield stream.decompress(piece[at : at + 1])


def _damage(codec: _Codec, error: Exception, n_ended: int) -> str:
    """Say what is wrong with compressed bytes. n_ended: number of members that were whole."""
    message = str(error)
    if "too much memory" in message or "Memory usage limit" in message:
        return (
            f"its {codec.name} data needs a window of more than {MAX_WINDOW // 2**30} GiB to be "
            "read; compress it again with a window of at most 31 bits"
        )
    if "ictionary" in message:
        return f"its {codec.name} data needs a dictionary; compress it again without one"
    if "incorrect data check" in message or "incorrect length check" in message:
        message = "CRC check failed"
    after = f", after {n_ended} whole parts" if n_ended else ""
    return f"the file is damaged here{after}: not {codec.name} data ({one_line(message, 120)})"
