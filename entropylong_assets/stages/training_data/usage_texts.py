"""The parts of the dataset card that say how trainers load a format: `usage/*.md`, filled in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources import files
from string import Template
from typing import Any


def usage_text(name: str, **values: Any) -> str:
    """The text `usage/<name>.md` with `$key` replaced. Raises KeyError if a value is missing."""
    path = files(__package__).joinpath("usage", f"{name}.md")
    return Template(path.read_text(encoding="utf-8")).substitute(values)


def paths_of(folder: str, sources: Iterable[str]) -> list[str]:
    """One path per source, below a folder of this export."""
    return [f"<folder>/{folder}{source}" for source in sources]


def weight_text(weight: float) -> str:
    """A sampling weight in decimals, as every trainer reads it."""
    return f"{weight:.9f}".rstrip("0")


def weight_list(weights: Iterable[float]) -> str:
    """Sampling weights as a list of Python and of YAML."""
    return f"[{', '.join(map(weight_text, weights))}]"


def weight_items(weights: Mapping[str, float]) -> str:
    """Sampling weights by name as the items of a dict of Python, one per line."""
    return "".join(f'    "{name}": {weight_text(w)},\n' for name, w in weights.items())
