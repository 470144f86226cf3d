"""Records of a CSV file, and the lines that are lost because their quotes are wrong.

By RFC 4180, a quoted field may contain line ends. So a quote that is plain text but stands at the
start of a field swallows all rows up to the next quote: `csv` and other readers join these rows
silently. Here a record of several lines is accepted unless something contradicts it:

1. it cannot be parsed: text after the closing quote, or no closing quote before the end of the
   file;
2. it has more or fewer fields than the header;
3. read without quotes, most of the lines in it are rows (`swallowed_rows` of `quoting.py`).

Otherwise each of its lines that is not blank is a bad row, since it may have been a row. Reading
continues with the next line, which may be in the middle of a text. So the records after it are bad
rows as well until one resembles the rows before the broken record, or until 100 records do not:
then the rows of the file have changed.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from entropylong_assets.stages.corpus.encodings import TWO_BYTES
from entropylong_assets.stages.corpus.errors import Problem, one_line
from entropylong_assets.stages.corpus.quoting import Evidence, has_plain_quotes
from entropylong_assets.stages.corpus.streams import MAX_ROW_BYTES, Line


class Dialect(NamedTuple):
    """How a CSV file is written; see the settings of the same names."""

    delimiter: str = ","
    quote: str | None = '"'
    escape: str | None = None
    newlines_in_values: bool | None = None

    def reader(self, lines: Iterator[str]) -> Any:
        """A reader of Python's `csv` that raises an error for text after a closing quote."""
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quotechar=self.quote,
            escapechar=self.escape,
            quoting=csv.QUOTE_MINIMAL if self.quote else csv.QUOTE_NONE,
            strict=True,
        )


class Record(NamedTuple):
    """A record; line: number of its first line, from 0."""

    line: int
    values: list[str]


class LostLine(NamedTuple):
    """A line that can't be read, alone or as part of a record."""

    line: int
    problem: Problem


class _Lines:
    """Feeds a reader with lines, and knows those of the record that is being read."""

    def __init__(self, lines: Iterator[Line], dialect: Dialect) -> None:
        self._lines, self._dialect = lines, dialect
        self.begin()

    def begin(self) -> None:
        """Begin a new record."""
        self.pending: list[tuple[int, str]] = []
        self.lost: list[LostLine] = []
        self._size = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self.pending and self._dialect.newlines_in_values is False:
            raise StopIteration
        for line in self._lines:
            if line.problem:
                self.lost.append(LostLine(line.number, line.problem))
                if self.pending:
                    raise csv.Error("a line of the record is lost")
                continue
            # Bytes that are not UTF-8 become surrogates, to be reported in their own record.
            text = line.content.decode("utf-8", "surrogateescape")
            if not self.pending and not text.strip() and self._dialect.delimiter not in text:
                continue
            self.pending.append((line.number, text))
            self._size += len(line.content)
            if self._size > MAX_ROW_BYTES:
                raise csv.Error(f"the record has more than {MAX_ROW_BYTES} bytes")
            return text + "\n"
        raise StopIteration

    def lose(self, reason: str, detail: str) -> Iterator[LostLine]:
        """Yield the lines of the record as lost: the first for this reason, others as swallowed."""
        if not self.pending:
            return
        first, last = self.pending[0][0] + 1, self.pending[-1][0] + 1
        where = f"line {first}" if first == last else f"lines {first} to {last}"
        yield LostLine(first - 1, Problem(reason, f"{where}: {detail}"))
        for number, text in self.pending[1:]:
            if text.strip():
                message = f"line {number + 1}: swallowed by the record that begins on line {first}"
                yield LostLine(number, Problem("swallowed_row", message))


def read_records(
    read: Callable[[], Iterator[Line]], dialect: Dialect, text_field: str = ""
) -> Iterator[Record | LostLine]:
    """Yield the header and the records of a CSV file in order, and a LostLine for bad lines.

    read: opens the file; called a second time if it has one column and records of several lines.
    text_field: name of the column of texts, whose values may contain any kind of character. If the
    header itself can't be read, its LostLine is the first item. Blank lines are passed over.
    """
    # Process-wide, so it is only ever raised; the default, 131,072 characters, is a short document.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    feed = _Lines(read(), dialect)
    reader = dialect.reader(feed)
    header: list[str] = []
    text_column: int | None = None

    @functools.cache
    def quotes_are_plain() -> bool:
        if dialect.escape or not dialect.quote:  # single quotes may be escaped ones
            return False
        return has_plain_quotes((line.content for line in read()), dialect.quote)

    evidence = Evidence(0, dialect.delimiter, quotes_are_plain)
    doubts = 0  # number of records that are bad if they are unlike those before
    while True:
        feed.begin()
        try:
            values = next(reader)
        except StopIteration:
            yield from feed.lost
            return
        except csv.Error as error:
            if header and feed.pending and not doubts:
                evidence.learn_before(feed.pending[0][1], dialect.quote)
            doubts = _DOUBTS
            lost = [*feed.lose(*_problem_of(error)), *feed.lost]
            yield from sorted(lost, key=lambda lost: lost.line)
            continue
        yield from feed.lost
        texts = [text for _, text in feed.pending]
        if not header:
            problem = _header_problem(texts, values, dialect)
            evidence = Evidence(len(values), dialect.delimiter, quotes_are_plain)
            header = values
            text_column = header.index(text_field) if text_field in header else None
        else:
            problem = _record_problem(texts, values, header, dialect, evidence)
            if problem:
                doubts = doubts if problem is _SWALLOWED else _DOUBTS
            elif doubts and evidence.is_unlike(values, text_column):
                doubts, problem = doubts - 1, _UNLIKE
        if problem:
            yield from feed.lose(*problem)
            continue
        doubts = 0
        if len(texts) == 1 and values is not header:
            evidence.learn(values)
        yield Record(feed.pending[0][0], values)


def _problem_of(error: csv.Error) -> Problem:
    message = str(error)
    if "field limit" in message or "more than" in message:
        limit = f"the record has more than {MAX_ROW_BYTES} bytes"
        return Problem("row_too_large", f"{limit}; is a quote not closed?")
    if "new-line" in message:
        return Problem("broken_csv", "a carriage return or line feed within an unquoted field")
    if "unexpected end" in message:
        return Problem("broken_csv", "a quote at the start of a field is never closed")
    if "expected after" in message:
        return Problem("broken_csv", "there is text after the closing quote of a field")
    return Problem("broken_csv", one_line(error, 120))


_SWALLOWED = Problem(
    "broken_csv",
    "a quote at the start of a field is closed on another line, and the lines between look like "
    "rows; if they are one text, set the source's newlines_in_values to true",
)
_DOUBTS = 100
_UNLIKE = Problem("broken_csv", "it follows a broken record and is not like the rows before that")


def _header_problem(lines: list[str], names: list[str], dialect: Dialect) -> Problem | None:
    if any("\0" in line for line in lines):
        return Problem("invalid_utf8", f"the header has a byte 0x00: {TWO_BYTES}")
    after = [line.count(dialect.delimiter) + 1 for line in lines[1:]]
    if dialect.newlines_in_values is None and 2 * after.count(len(names)) > len(after) > 0:
        return _SWALLOWED
    return None


def _record_problem(
    lines: list[str], values: list[str], header: list[str], dialect: Dialect, evidence: Evidence
) -> Problem | None:
    if len(values) != len(header):
        message = f"the record has {len(values)} fields, the header {len(header)}"
        return Problem("broken_csv", message)
    if values == header:
        message = "the record is the header again, as if a file was appended to another"
        return Problem("broken_csv", message)
    if len(lines) > 1 and dialect.newlines_in_values is None:
        return _SWALLOWED if evidence.swallowed_rows(lines, values) else None
    return None
