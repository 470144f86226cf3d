"""Fields of a row by name, also within other fields.

The whole name is looked up first, since a key may contain dots. If there is no such key, its dots
lead into objects: `meta.text` is the key `text` of the object `meta`. Longer keys are tried first:
for `a.b.c`, the key `a.b.c`, then `c` in `a.b`, then `b.c` in `a`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from entropylong_assets.stages.corpus.errors import Problem, one_line


class DoubledKeys(dict[str, Any]):
    """An object of JSON in which these keys occur more than once, each with its last value."""

    doubled: frozenset[str] = frozenset()


def missing_field(names: Sequence[str], field: str, within: str = "") -> Problem:
    """Describe the problem of a row or file that does not have this field exactly once.

    within: name of the object that has these fields, if it is not the row.
    """
    shown = ", ".join(one_line(name, 60) for name in names[:20]) or "none"
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    what = "there are two fields" if field in names else "there is no field"
    where = f" in '{within}'" if within else ""
    return Problem("missing_field", f"{what} '{field}'{where} (the fields: {shown}{more})")


def _readings(name: str) -> Iterator[tuple[str, str]]:
    """Yield the keys that a name can begin with, longest first, each with the rest of the name."""
    yield name, ""
    end = len(name)
    while (end := name.rfind(".", 0, end)) >= 0:
        yield name[:end], name[end + 1 :]


def value_of(record: Mapping[str, Any], name: str, within: str = "") -> Any | Problem:
    """Return the value of a field of an object, or the problem if the field does not exist.

    The value is None if an object that should contain the field is null.
    """
    problem = None
    for key, rest in _readings(name):
        if key not in record:
            continue
        if key in getattr(record, "doubled", ()):
            return missing_field([*record], key, within)
        value = record[key]
        if not rest or value is None:
            return value
        path = f"{within}.{key}" if within else key
        if isinstance(value, Mapping):
            inner = value_of(value, rest, path)
            if not isinstance(inner, Problem):
                return inner
            problem = problem or inner
        else:
            kind = {list: "a list", str: "a string", bool: "true or false"}.get(type(value))
            message = f"field '{path}' is {kind or 'a number'}, so that it has no field '{rest}'"
            problem = problem or Problem("missing_field", message)
    return problem or missing_field([*record], name, within)


def path_of(schema: pa.Schema | pa.StructType, name: str, within: str = "") -> list[str] | Problem:
    """Return the names of the columns that lead to a field of a table, outermost first."""
    fields = [schema.field(i) for i in range(len(schema.names))]
    names, problem = [field.name for field in fields], None
    for key, rest in _readings(name):
        if key not in names:
            continue
        if names.count(key) > 1:
            return missing_field(names, key, within)
        if not rest:
            return [key]
        kind = fields[names.index(key)].type
        path = f"{within}.{key}" if within else key
        if pa.types.is_struct(kind):
            inner = path_of(kind, rest, path)
            if not isinstance(inner, Problem):
                return [key, *inner]
            problem = problem or inner
        else:
            message = f"field '{path}' is {one_line(kind, 120)}, so that it has no field '{rest}'"
            problem = problem or Problem("missing_field", message)
    return problem or missing_field(names, name, within)
