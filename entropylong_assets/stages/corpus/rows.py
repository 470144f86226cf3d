"""Rows as source formats yield them: good rows, and bad rows with reason, place and remedy."""

from __future__ import annotations

import decimal
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from entropylong_assets.stages.corpus.encodings import decode_text
from entropylong_assets.stages.corpus.errors import CorpusError, Problem, one_line
from entropylong_assets.stages.corpus.settings import SourceSettings
from entropylong_assets.stages.corpus.where import WhereError, parse_where

REMEDIES: Mapping[str, str] = {
    "broken_json": "correct or delete the line",
    "broken_csv": "correct the record or the source's delimiter, quote or escape",
    "swallowed_row": "correct the quotes, or set the source's quote to '' if they are plain text",
    "swallowed_json": "correct the quotes and brackets before it",
    "missing_field": "add the field, or correct the source's text_field or id_field",
    "null_text": "fill in the text or delete the row",
    "not_text": "write the text as a string, or name another text_field",
    "invalid_utf8": "save the file as UTF-8",
    "row_too_large": "split the document",
    "unreadable": "download or write the file again",
    "not_comparable": "correct the value, or the source's where",
    "misnamed": "rename the file by its content, or convert it",
}
"""What a user can do about a bad row, by reason."""

_MAX_ID_CHARS = 1024


class Row(NamedTuple):
    """One text as it is in its source."""

    file: str
    row: int
    external_id: str | None
    text: str
    metadata: str | None = None
    """The source's `metadata_fields`, as JSON."""


class NotSelected(NamedTuple):
    """Adjacent rows that do not meet the source's `where`."""

    file: str
    row: int
    """The first."""
    n_rows: int


class BadRow(NamedTuple):
    """A row without a usable text.

    reason: a key of REMEDIES, or a name that a format of another package has for its own kind of
    damage.
    """

    file: str
    row: int
    external_id: str | None
    reason: str
    detail: str

    def error(self) -> CorpusError:
        """The row as an error of one line: file, row, what is wrong, what to do."""
        return CorpusError(
            f"{one_line(self.file)}, row {self.row}: {self.detail}; "
            f"{REMEDIES.get(self.reason, 'correct the row')}, or set corpus.on_bad_row to 'skip'"
        )


Item = Row | BadRow | NotSelected


def external_id_of(value: Any) -> str | None:
    """The source's own id as one line of text that can be stored anywhere."""
    if value is None:
        return None
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    elif isinstance(value, dict | list):
        try:
            value = json.dumps(value, default=str)
        except RecursionError:
            value = "(nested too deeply)"
    return one_line(value, _MAX_ID_CHARS)


def make_item(file: str, row: int, value: Any, external_id: Any) -> Item:
    """Make a row from the value of its text field; bytes must be UTF-8."""
    name = external_id_of(external_id)
    if isinstance(value, str):
        return Row(file, row, name, value)
    if isinstance(value, bytes):
        text = decode_text(value)
        if isinstance(text, Problem):
            return BadRow(file, row, name, *text)
        return Row(file, row, name, text)
    if value is None:
        return BadRow(file, row, name, "null_text", "the text is null")
    kinds = {dict: "an object", list: "a list", bool: "true or false"}
    kinds |= dict.fromkeys((int, float, decimal.Decimal), "a number")
    kind = kinds.get(type(value), type(value).__name__)
    return BadRow(file, row, name, "not_text", f"the text is {kind}, not a string")


def make_record_item(
    place: tuple[str, int],
    value: Any,
    external_id: Any,
    others: Mapping[str, Any],
    source: SourceSettings,
) -> Item:
    """Make an item of a row that has further fields.

    place: file and row number. others: values of `other_fields`, in their order.
    """
    file, row = place
    if source.where is not None:
        try:
            if not parse_where(source.where).matches(others):
                return NotSelected(file, row, 1)
        except WhereError as error:
            return BadRow(file, row, external_id_of(external_id), "not_comparable", str(error))
    item = make_item(file, row, value, external_id)
    if not source.metadata_fields or not isinstance(item, Row):
        return item
    kept = {name: others.get(name) for name in source.metadata_fields}
    return item._replace(metadata=json.dumps(kept, ensure_ascii=False, default=str))


def where_fields(source: SourceSettings) -> tuple[str, ...]:
    """Names of the fields that the source's `where` reads."""
    return () if source.where is None else parse_where(source.where).fields


def other_fields(source: SourceSettings) -> list[str]:
    """Names of the fields to read besides those of `fields_of`."""
    return list(dict.fromkeys((*where_fields(source), *source.metadata_fields)))


def fields_of(source: SourceSettings) -> list[str]:
    """Names of the fields to read: that of the text, then that of the id if there is one."""
    return [source.text_field] + ([source.id_field] if source.id_field else [])
