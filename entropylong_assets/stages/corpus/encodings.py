"""Encodings of text files: what is recognized, what is refused.

A file is UTF-8, with or without a byte order mark, or UTF-16 or UTF-32 with one. Nothing is
guessed. Other encodings are found row by row, by what no UTF-8 text contains:

- bytes that are not UTF-8 (Latin-1, Windows code pages, Shift-JIS, GB18030);
- the byte 0x00 (UTF-16 and UTF-32 without a byte order mark, and binary data);
- control characters, if they are more than a tenth of the bytes: UTF-16 of Cyrillic, Greek or
  Hebrew letters without a byte order mark consists of bytes below 0x80, and is valid UTF-8;
- ESC $, with which ISO-2022 (Japanese, Korean, Chinese e-mail) switches to two-byte characters.

Not recognized: encodings that write other characters as ASCII (UTF-7, HZ), and UTF-16 text of a few
letters without any space or line end.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from entropylong_assets.stages.corpus.compression import DamagedFileError
from entropylong_assets.stages.corpus.errors import Problem

# Longest first: the mark of UTF-32 LE begins with that of UTF-16 LE.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_CONTROLS = bytes({*range(0x20), 0x7F} - set(b"\t\n\v\f\r\x1b"))

TWO_BYTES = "UTF-16 or UTF-32 without a byte order mark, or no text"
"""What a text with zero bytes or many control characters may be."""


def decode_text(content: bytes) -> str | Problem:
    """Decode a text that should be UTF-8, or say what it is instead."""
    if (at := content.find(0)) >= 0:
        return Problem("invalid_utf8", f"byte {at} is 0x00: {TWO_BYTES}")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        message = f"byte {error.start} (0x{content[error.start]:02x}) is not UTF-8"
        return Problem("invalid_utf8", message)
    n_controls = len(content) - len(content.translate(None, _CONTROLS))
    if n_controls * 10 > len(content):
        share = f"{n_controls} of {len(content)} bytes are control characters"
        return Problem("invalid_utf8", f"{share}: {TWO_BYTES}")
    if b"\x1b$" in content:
        return Problem("invalid_utf8", f"byte {content.index(0x1B)} is ESC: ISO-2022, not UTF-8")
    return text


def to_utf8(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield a text in UTF-8, decoded by its byte order mark, which is removed.

    Unpaired surrogates of UTF-16 become bytes that are not UTF-8, so that only their row is bad.
    Raises DamagedFileError at the first place that can't be decoded.
    """
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= 4:
            break
    mark = next((mark for mark in _MARKS if head.startswith(mark)), b"")
    encoding = _MARKS.get(mark, "utf-8")
    head = head[len(mark) :]
    if encoding == "utf-8":
        if head:
            yield head
        yield from chunks
        return
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    try:
        yield decoder.decode(head).encode("utf-8", "surrogatepass")
        for chunk in chunks:
            yield decoder.decode(chunk).encode("utf-8", "surrogatepass")
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        name = encoding[:6].upper()
        raise DamagedFileError(f"the file is damaged here: not {name} ({error.reason})") from None
