"""Documentation of Ansible's modules and plugins as plain text, one document per module."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks.reference_run.packages import read_files

_PLUGINS = r"^(ansible_collections/\w+/\w+/plugins|ansible/(modules|plugins))/.*\.py$"
_SKIPPED = re.compile(r"/(module_utils|doc_fragments|plugin_utils|tests?)/|/__init__\.py$")
_NAMES = ("DOCUMENTATION", "EXAMPLES", "RETURN")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Ansible's markup: I(italic), C(code), L(text, address), R(text, label), O(option), ...
_LINK = re.compile(r"\b[LR]\(([^,()]+),\s*([^()]+)\)")
_MARKUP = re.compile(r"\b(?:RV|[IBCMOVEPU])\(((?:[^()\\]|\\.)+)\)")


class Module(NamedTuple):
    """Rendered documentation of one module: collection, name, path in the archive and text."""

    collection: str
    name: str
    path: str
    text: str


def read_modules(archive: Path) -> Iterator[Module]:
    """Yield the modules and plugins of the `ansible` wheel that document themselves."""
    for path, content in read_files(archive, _PLUGINS):
        if _SKIPPED.search(path) or b"DOCUMENTATION" not in content:
            continue
        parts = path.split("/")
        collection = (
            ".".join(parts[1:3]) if parts[0] == "ansible_collections" else "ansible.builtin"
        )
        try:
            text = render(f"{collection}.{Path(path).stem}", literals(content))
        except (SyntaxError, ValueError, yaml.YAMLError):
            continue  # a template, or documentation that Ansible itself can't show
        if text:
            yield Module(collection, Path(path).stem, path, text)


def literals(content: bytes) -> dict[str, str]:
    """Return the documentation strings that a module assigns, by name. Raises SyntaxError."""
    strings = {}
    for node in ast.parse(content).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Constant):
            continue
        names = [t.id for t in node.targets if isinstance(t, ast.Name) and t.id in _NAMES]
        if isinstance(node.value.value, str):
            strings.update(dict.fromkeys(names, node.value.value))
    return strings


def render(name: str, strings: Mapping[str, str]) -> str:
    """Return a module's documentation as plain text, or '' if it has none. Raises YAMLError."""
    docs = yaml.load(strings.get("DOCUMENTATION", ""), _LOADER)
    if not isinstance(docs, dict):
        return ""
    lines = [f"{name}: {_plain(docs.get('short_description', ''))}", ""]
    lines += [*_paragraphs(docs.get("description")), ""]
    if docs.get("requirements"):
        lines += ["Requirements:", *_bullets(docs["requirements"]), ""]
    if isinstance(docs.get("options"), dict):
        lines += ["Options:", "", *_entries(docs["options"], "suboptions"), ""]
    if docs.get("notes"):
        lines += ["Notes:", *_bullets(docs["notes"]), ""]
    if strings.get("EXAMPLES", "").strip():
        lines += ["Examples:", "", strings["EXAMPLES"].strip("\n"), ""]
    returned = _load(strings.get("RETURN", ""))
    if isinstance(returned, dict):
        lines += ["Return values:", "", *_entries(returned, "contains")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _load(text: str) -> Any:
    try:
        return yaml.load(text, _LOADER)
    except yaml.YAMLError:
        return None


def _plain(value: Any) -> str:
    text = _LINK.sub(r"\1 (\2)", " ".join(str(value).split()))
    text = _MARKUP.sub(r"\1", text).replace("HORIZONTALLINE", "")
    return text.replace("\\)", ")").replace("\\,", ",")


def _paragraphs(value: Any) -> list[str]:
    items = value if isinstance(value, list) else [value] if value else []
    return [_plain(item) for item in items]


def _bullets(value: Any) -> list[str]:
    return [f"- {item}" for item in _paragraphs(value)]


def _entries(entries: Mapping[str, Any], inner: str, depth: int = 0) -> Iterator[str]:
    """Yield the lines of options or returned values, nested ones indented below their parent."""
    for name, entry in entries.items():
        if not isinstance(entry, dict):
            continue
        facts = [str(entry.get("type", "str"))]
        facts += ["required"] if entry.get("required") is True else []
        facts += [f"default: {entry['default']}"] if entry.get("default") is not None else []
        facts += [f"returned: {_plain(entry['returned'])}"] if entry.get("returned") else []
        if isinstance(entry.get("choices"), list):
            facts.append("choices: " + ", ".join(map(str, entry["choices"])))
        block = [f"{name} ({'; '.join(facts)})"]
        block += [f"    {line}" for line in _paragraphs(entry.get("description"))]
        if isinstance(entry.get("sample"), str | int | float):
            block.append(f"    Sample: {entry['sample']}")
        yield from textwrap.indent("\n".join(block), "    " * depth).split("\n")
        if isinstance(entry.get(inner), dict):
            yield from _entries(entry[inner], inner, depth + 1)
