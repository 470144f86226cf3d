"""Items of rows that are written as JSON."""

from __future__ import annotations

import decimal
import json
from typing import Any

from entropylong_assets.stages.corpus.encodings import decode_text
from entropylong_assets.stages.corpus.errors import Problem, one_line
from entropylong_assets.stages.corpus.fields import DoubledKeys, value_of
from entropylong_assets.stages.corpus.rows import (
    BadRow,
    Item,
    external_id_of,
    make_record_item,
    other_fields,
    where_fields,
)
from entropylong_assets.stages.corpus.settings import SourceSettings


def make_json_item(file: str, row: int, content: bytes, source: SourceSettings) -> Item:
    """Make a row of an object in JSON, or a bad row of anything else."""
    text = decode_text(content)
    if isinstance(text, Problem):
        return BadRow(file, row, None, *text)
    try:
        record = _parse(text)
    except (ValueError, RecursionError) as error:
        detail = f"not JSON: {one_line(error, 120)}"
        if text.lstrip().startswith("[") and not row:
            detail += "; if the file holds a list, set the source's kind to 'json'"
        return BadRow(file, row, None, "broken_json", detail)
    if not isinstance(record, dict):
        detail = "the row is JSON, but not an object"
        return BadRow(file, row, None, "broken_json", detail)
    external_id = value_of(record, source.id_field) if source.id_field else None
    if isinstance(external_id, Problem):
        external_id = None
    value = value_of(record, source.text_field)
    if isinstance(value, Problem):
        return BadRow(file, row, external_id_of(external_id), *value)
    others = {name: value_of(record, name) for name in other_fields(source)}
    for name, other in others.items():
        if isinstance(other, Problem):
            if name in where_fields(source):
                return BadRow(file, row, external_id_of(external_id), *other)
            others[name] = None
    return make_record_item((file, row), value, external_id, others, source)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object that records which of its keys occur twice, since it keeps one value each."""
    record = dict(pairs)
    if len(record) == len(pairs):
        return record
    keys = [key for key, _ in pairs]
    doubled = DoubledKeys(record)
    doubled.doubled = frozenset(key for key in record if keys.count(key) > 1)
    return doubled


def _parse(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python refuses to convert integers of more than 4,300 digits
        return json.loads(text, object_pairs_hook=_object, parse_int=decimal.Decimal)
