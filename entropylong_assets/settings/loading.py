"""Reading a settings file: from YAML to nested mappings, with one-line errors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from entropylong_assets.settings.section import SettingsError, printable


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that occurs twice in one mapping. PyYAML would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key != "<<" and key in seen:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"the key '{printable(str(key), 60)}' occurs twice",
                    key_node.start_mark,
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over`; mappings under the same key are merged alike."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        both_maps = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(old, value) if both_maps else value  # type: ignore[arg-type]
    return merged


def read_settings_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a YAML file of settings.

    Raises SettingsError if the file can't be read, is not YAML, contains a key twice, or is not a
    mapping.
    """
    try:
        loaded = yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeys) or {}  # noqa: S506  # a SafeLoader
    except OSError as error:
        raise SettingsError(f"settings file {path}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        # PyYAML quotes the line of the error, which may contain a secret: leave it out.
        where = error.problem_mark or error.context_mark
        place = f" in line {where.line + 1}, column {where.column + 1}" if where else ""
        reason = printable(" ".join(str(error.problem or error.context).split()))
        raise SettingsError(f"settings file {path} is not YAML: {reason}{place}") from None
    except Exception as error:  # PyYAML raises other errors for some values and nesting depths
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SettingsError(f"settings file {path} is not YAML: {printable(reason)}") from None
    if not isinstance(loaded, dict):
        raise SettingsError(f"settings file {path}: expected keys and values at the top level")
    return loaded
