"""Errors of the corpus, and a function that shows any text in one line of a message."""

from __future__ import annotations

from typing import NamedTuple


class CorpusError(ValueError):
    """A source, a file or a row is wrong. The message is one line and says what to do."""


class MissingSourceError(CorpusError):
    """The file or the source of a shard no longer exists. Its tables are kept unchanged."""


class Problem(NamedTuple):
    """Why a row is bad: a key of `rows.REMEDIES`, and the details."""

    reason: str
    detail: str


def one_line(value: object, limit: int = 400) -> str:
    """Return `value` as one printable line of at most `limit` characters.

    Unprintable characters, including line ends, direction marks and lone surrogates, are escaped,
    so that no text of a corpus can forge a line of a log.
    """
    text = str(value)
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )
