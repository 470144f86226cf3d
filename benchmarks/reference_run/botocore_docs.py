"""Operations of the services that botocore describes as plain text, one document each."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.reference_run.packages import read_files
from benchmarks.reference_run.text import strip_html

_MODELS = r"^botocore/data/[^/]+/[^/]+/service-2\.json(\.gz)?$"
_DEPTH = 2
"""Levels of nested structures that are described below a member."""


class Operation(NamedTuple):
    """Rendered description of one operation: service, name, path in the archive and text."""

    service: str
    name: str
    path: str
    text: str


def read_operations(archive: Path) -> Iterator[Operation]:
    """Yield the operations of the newest model of each service in the `botocore` wheel."""
    newest: dict[str, tuple[str, bytes]] = {}
    for path, content in read_files(archive, _MODELS):  # sorted, so the newest version comes last
        newest[path.split("/")[2]] = (path, content)
    for service, (path, content) in newest.items():
        model = json.loads(gzip.decompress(content) if path.endswith(".gz") else content)
        for name in sorted(model["operations"]):
            yield Operation(service, name, path, render(name, model))


def render(name: str, model: Mapping[str, Any]) -> str:
    """Return one operation of a service's model as plain text."""
    operation, shapes = model["operations"][name], model["shapes"]
    service = model["metadata"].get("serviceFullName", "")
    lines = [f"{service}: {name}", "", strip_html(operation.get("documentation", "")), ""]
    for title, key in (("Request members:", "input"), ("Response members:", "output")):
        if (shape := operation.get(key, {}).get("shape")) and shapes[shape].get("members"):
            lines += [title, "", *_members(shape, shapes, set(), 0), ""]
    errors = [
        shapes[error["shape"]] | {"name": error["shape"]} for error in operation.get("errors", [])
    ]
    if errors:
        lines.append("Errors:")
        lines += [
            f"- {e['name']}: {strip_html(e.get('documentation', ''))}".rstrip(": ") for e in errors
        ]
    return "\n".join(lines).replace("\n\n\n", "\n\n").strip() + "\n"


def _members(shape: str, shapes: Mapping[str, Any], seen: set[str], depth: int) -> Iterator[str]:
    """Yield the lines of a structure's members; each nested structure is described once."""
    seen.add(shape)
    required = set(shapes[shape].get("required", []))
    indent = "    " * depth
    for name, member in shapes[shape]["members"].items():
        target = shapes[member["shape"]]
        facts = f"{target['type']}, required" if name in required else target["type"]
        documentation = member.get("documentation") or target.get("documentation", "")
        yield f"{indent}{name} ({facts})"
        yield from (f"{indent}    {line}" for line in strip_html(documentation).split("\n") if line)
        if "enum" in target:
            yield f"{indent}    Values: {', '.join(target['enum'][:40])}"
        inner = _structure(member["shape"], shapes)
        if inner and inner not in seen and depth + 1 < _DEPTH:
            yield from _members(inner, shapes, seen, depth + 1)


def _structure(shape: str, shapes: Mapping[str, Any]) -> str | None:
    """Return the structure that a shape is, or that its items or values are, or None."""
    while shapes[shape]["type"] in {"list", "map"}:
        shape = (shapes[shape].get("member") or shapes[shape]["value"])["shape"]
    return shape if shapes[shape].get("members") else None
