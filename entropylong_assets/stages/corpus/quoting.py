r"""Evidence that a quote in a CSV file is a plain character and does not quote a field.

A record of several lines has two readings. Either its quoted field is a text of several lines, or
each line is a row and the quote is a plain character:

    id,text
    1,"To be
    2,or not
    3,to be"

The delimiters *inside* the quoted field decide. In a text they are anywhere; in rows, each line has
one fewer than the table has columns. So the lines of the record with delimiters inside the field
are examined: the first line unless the field is the last column, the last line unless the field is
the first column, and all lines between them. A line *looks like a row* if

- it has exactly the fields of a row (the comma in `1,000` is a thousands separator, no delimiter);
- each field consists of kinds of characters that other values of its column have (letters, spaces,
  punctuation; digits may be new anywhere, and letters within the first rows), and is not much
  longer: `Dear John` is no value of a column of numbers, and an empty value is none of a column
  that is always filled;
- no field begins with a space, unless others of its column do, or it is a text and the delimiter is
  not a comma: prose has a space after each comma.

If more than half of these lines look like rows, the field has swallowed rows. The other values of a
column are those of the first 1,000 records of one line, and those outside the quoted field. In a
record of two lines, one such line is enough. A text that contains tables is read correctly if these
have other columns, or fill less than half of it. If a text is still taken for rows, set
`newlines_in_values: true`.

A file with one column has no delimiters. If one of its records has several lines, all lines of the
file are examined once. No program that follows the rules of quoting writes a single quote inside a
line, as neither its first nor its last character: the quotes of such a file are plain characters.

`benchmarks/csv_quotes.py` measures the errors: 7 of 216,000 texts of several lines are taken for
rows, and all of 7,680 quotes that join rows are noticed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

_N_RECORDS = 1000
_FEW = 5
_N_CHARS = 64

# Kinds of characters and of values.
_LETTER, _SPACE, _OTHER, _EMPTY, _INDENTED = 1, 2, 4, 8, 16
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}[^\d,])")


def _kinds(value: str) -> int:
    if not value:
        return _EMPTY
    kinds = _INDENTED if value[0].isspace() else 0
    for char in value[:_N_CHARS]:
        if char.isalpha():
            kinds |= _LETTER
        elif char.isspace():
            kinds |= _SPACE
        elif not char.isdigit() and char not in ".-_":
            kinds |= _OTHER
    return kinds


class Evidence:
    """What is known about the columns of a file so far, to judge its records of several lines."""

    def __init__(
        self, n_columns: int, delimiter: str, has_plain_quotes: Callable[[], bool]
    ) -> None:
        """has_plain_quotes: returns whether the lines of the file contain plain quotes."""
        self._n_columns, self._delimiter = n_columns, delimiter
        self._has_plain_quotes = has_plain_quotes
        self._kinds, self._lengths = [0] * n_columns, [-1] * n_columns
        self._n_learnt = 0

    def learn(self, values: Sequence[str]) -> None:
        """Take a record of one line into account."""
        if self._n_learnt < _N_RECORDS:
            self._n_learnt += 1
            self._add(0, values)

    def learn_before(self, line: str, quote: str | None) -> None:
        """Take the fields before the first quote of a broken record into account."""
        values = line.split(self._delimiter)
        quoted = [i for i, value in enumerate(values) if quote and value.startswith(quote)]
        self._add(0, values[: min([*quoted, self._n_columns])])

    def _add(self, first: int, values: Sequence[str]) -> None:
        for column, value in enumerate(values, first):
            self._kinds[column] |= _kinds(value)
            self._lengths[column] = max(self._lengths[column], len(value))

    def is_unlike(self, values: Sequence[str], free: int | None) -> bool:
        """Whether a value has kinds of characters that its column never had.

        free: the column of texts, whose values may be of any kind.
        """
        return any(
            column != free and length >= 0 and _kinds(value) & ~kinds
            for column, (kinds, length, value) in enumerate(
                zip(self._kinds, self._lengths, values, strict=True)
            )
        )

    def swallowed_rows(self, lines: Sequence[str], values: Sequence[str]) -> bool:
        """Whether a record of several lines and of the right number of fields is several rows."""
        if self._n_columns == 1:
            return self._has_plain_quotes()
        broken = [column for column, value in enumerate(values) if "\n" in value]
        if not broken:
            return False
        first, last = broken[0], broken[-1]
        self._add(0, values[:first])
        self._add(last + 1, values[last + 1 :])
        free = range(first, last + 1)
        verdicts = [self._looks_like_row(line, 0, free) for line in lines[1:-1] if line.strip()]
        if first < self._n_columns - 1:
            tail = values[first].partition("\n")[0]
            verdicts.append(self._looks_like_row(tail, first, free))
        if last > 0:
            head = values[last].rpartition("\n")[2]
            verdicts.append(self._looks_like_row(head, 0, free, last + 1))
        return sum(verdicts) * 2 > len(verdicts)

    def _looks_like_row(self, line: str, start: int, free: range, stop: int | None = None) -> bool:
        """Whether a line consists of the values of columns `start` to `stop` (not included).

        free: columns whose values may be of any length and kind.
        """
        line = line.removesuffix("\r")
        if self._delimiter == ",":
            line = _THOUSANDS.sub("", line)
        values = line.split(self._delimiter)
        columns = range(start, self._n_columns if stop is None else stop)
        if len(values) != len(columns):
            return False
        for column, value in zip(columns, values, strict=True):
            unseen = _kinds(value) & ~self._kinds[column]
            if self._n_learnt < _FEW:  # an id may be `07` before one is `3f`
                unseen &= ~_LETTER
            if column in free:
                unseen &= _EMPTY | _INDENTED if self._delimiter == "," else _EMPTY
            elif len(value) > 3 * self._lengths[column] + 10:
                return False
            if unseen:
                return False
        return True


def has_plain_quotes(lines: Iterable[bytes], quote: str) -> bool:
    """Whether a single quote stands within one of these lines of a file with one column."""
    mark = re.escape(quote.encode())
    single = re.compile(rb"(?<!%b)(?<!^)%b(?:%b%b)*(?!%b|\r?$)" % ((mark,) * 5))
    return any(single.search(line) for line in lines)
