"""Rows as readers give them: usable ones, and bad ones with reason, place and remedy."""

from __future__ import annotations

import decimal
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from entropylong_assets.stages.corpus.errors import CorpusError, one_line

REMEDIES: Mapping[str, str] = {
    "broken_json": "mend or delete the line",
    "broken_csv": "mend the quotes and commas of the record",
    "missing_field": "add the field, or correct the source's text_field or id_field",
    "null_text": "fill in the text or delete the row",
    "not_text": "write the text as a string, or name another text_field",
    "invalid_utf8": "save the file as UTF-8",
    "row_too_large": "split the document",
    "unreadable": "fetch or write the file anew",
    "empty_file": "fill the file or delete it",
}
"""What a person does about a bad row, by reason."""

_MAX_ID_CHARS = 1024


class Problem(NamedTuple):
    """Why a row is bad: a key of REMEDIES, and what was found."""

    reason: str
    detail: str


class Row(NamedTuple):
    """One text as its source has it."""

    file: str
    row: int
    external_id: str | None
    text: str


class BadRow(NamedTuple):
    """A row without a usable text; `reason` is a key of REMEDIES."""

    file: str
    row: int
    external_id: str | None
    reason: str
    detail: str

    def error(self) -> CorpusError:
        """The row as a one-line error: file, row, what is wrong, what to do."""
        return CorpusError(
            f"{one_line(self.file)}, row {self.row}: {self.detail}; "
            f"{REMEDIES[self.reason]}, or set corpus.on_bad_row to 'skip'"
        )


Item = Row | BadRow


def external_id_of(value: Any) -> str | None:
    """The source's own id as one line of text that every store takes."""
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
    """A row from the value of its text field: bytes, which must be UTF-8, or a str."""
    name = external_id_of(external_id)
    if isinstance(value, str):
        return Row(file, row, name, value)
    if isinstance(value, bytes):
        try:
            return Row(file, row, name, value.decode())
        except UnicodeDecodeError as error:
            return BadRow(file, row, name, *not_utf8(error))
    if value is None:
        return BadRow(file, row, name, "null_text", "the text is null")
    kinds = {dict: "an object", list: "a list", bool: "true or false"}
    kinds |= dict.fromkeys((int, float, decimal.Decimal), "a number")
    found = kinds.get(type(value), type(value).__name__)
    return BadRow(file, row, name, "not_text", f"the text is {found}, not a string")


def not_utf8(error: UnicodeDecodeError) -> Problem:
    byte = error.object[error.start]
    return Problem("invalid_utf8", f"byte {error.start} (0x{byte:02x}) is not UTF-8")
