"""The condition `where` of a source: which of its rows are read, by their other fields.

Conditions compare fields with values, in the notation of Python:

    score >= 3
    language == "en" and not (url is None or dump in ["CC-MAIN-2013-20", "CC-MAIN-2013-48"])
    meta.score > 0.5

A comparison with a field that is null is false, except `is None`. Text compares with text and
numbers with numbers; anything else is a fault of the row.
"""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda value, values: value in values,
    ast.NotIn: lambda value, values: value not in values,
}

Bounds = tuple[Any, Any]
"""Smallest and largest value of a field in a part of a file."""


class WhereError(ValueError):
    """A value can't be compared. The message is one line."""


class Where:
    """A parsed condition."""

    def __init__(self, text: str) -> None:
        """Raise ValueError, which says what is allowed, if the text is no condition."""
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ValueError(
                'not a condition; write e.g. score >= 3, or language == "en" and score > 2'
            ) from None
        self._tree = tree
        self.fields = tuple(dict.fromkeys(_fields(tree)))
        """Names of the fields that it reads."""

    def matches(self, values: Mapping[str, Any]) -> bool:
        """Return whether a row with these values is read. Raises WhereError."""
        return _matches(self._tree, values)

    def may_match(self, bounds: Mapping[str, Bounds]) -> bool:
        """Return False if no row within these bounds can match. Fields may be left out."""
        return _may_match(self._tree, bounds)


@functools.lru_cache(64)
def parse_where(text: str) -> Where:
    """Parse a condition. Raises ValueError."""
    return Where(text)


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    raise ValueError("the left side of a comparison must be a field")


def _value(node: ast.expr) -> Any:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        raise ValueError("the right side of a comparison must be a value or a list") from None
    items = value if isinstance(value, list | tuple) else [value]
    if not all(item is None or isinstance(item, str | int | float) for item in items):
        raise ValueError("values must be texts, numbers, True, False or None")
    return value


def _comparison(node: ast.Compare) -> tuple[str, ast.cmpop, Any]:
    if len(node.ops) != 1:
        raise ValueError("write a chain of comparisons with `and`")
    name, op, value = _name(node.left), node.ops[0], _value(node.comparators[0])
    if isinstance(op, ast.Is | ast.IsNot):
        if value is not None:
            raise ValueError("`is` compares with None only; write ==")
    elif value is None:
        raise ValueError("write `is None` or `is not None`")
    elif isinstance(op, ast.In | ast.NotIn) != isinstance(value, list | tuple):
        raise ValueError("`in` needs a list, and other comparisons a single value")
    return name, op, value


def _fields(node: ast.expr) -> list[str]:
    if isinstance(node, ast.BoolOp):
        return [name for value in node.values for name in _fields(value)]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return _fields(node.operand)
    if isinstance(node, ast.Compare):
        return [_comparison(node)[0]]
    raise ValueError("only comparisons joined by `and`, `or` and `not` are allowed")


def _comparable(value: Any, other: Any) -> bool:
    if isinstance(other, list | tuple):
        return all(_comparable(value, item) for item in other)
    return isinstance(value, str) == isinstance(other, str) and isinstance(value, str | int | float)


def _matches(node: ast.expr, values: Mapping[str, Any]) -> bool:
    if isinstance(node, ast.BoolOp):
        combine = all if isinstance(node.op, ast.And) else any
        return combine(_matches(value, values) for value in node.values)
    if isinstance(node, ast.UnaryOp):
        return not _matches(node.operand, values)
    assert isinstance(node, ast.Compare)
    name, op, wanted = _comparison(node)
    value = values[name]
    if isinstance(op, ast.Is | ast.IsNot):
        return (value is None) == isinstance(op, ast.Is)
    if value is None:
        return False
    if not _comparable(value, wanted):
        raise WhereError(
            f"field '{name}' is {_kind(value)}, which `where` compares with {_kind(wanted)}"
        )
    return _COMPARE[type(op)](value, wanted)


def _kind(value: Any) -> str:
    if isinstance(value, list | tuple) and value:
        return _kind(value[0])
    if isinstance(value, str):
        return "text"
    return "a number" if isinstance(value, int | float) else f"a {type(value).__name__}"


def _may_match(node: ast.expr, bounds: Mapping[str, Bounds]) -> bool:
    if isinstance(node, ast.BoolOp):
        combine = all if isinstance(node.op, ast.And) else any
        return combine(_may_match(value, bounds) for value in node.values)
    if not isinstance(node, ast.Compare):
        return True
    name, op, wanted = _comparison(node)
    if name not in bounds or isinstance(op, ast.Is | ast.IsNot | ast.NotIn):
        return True
    low, high = bounds[name]
    if not (_comparable(low, wanted) and _comparable(high, wanted)):
        return True
    if isinstance(op, ast.In):
        return any(low <= item <= high for item in wanted)
    if isinstance(op, ast.Eq):
        return bool(low <= wanted <= high)
    if isinstance(op, ast.Lt | ast.LtE):
        return _COMPARE[type(op)](low, wanted)
    if isinstance(op, ast.Gt | ast.GtE):
        return _COMPARE[type(op)](high, wanted)
    return not low == high == wanted
