"""Registries: implementations found by name, ours and those of other packages.

Another package adds one through an entry point, e.g. in its pyproject.toml:

    [project.entry-points."entropylong_assets.recipes"]
    my_recipe = "my_package.recipes:MyRecipe"
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

T = TypeVar("T")


class ExtensionError(ValueError):
    """An extension of another package can't be loaded. One line that says which and why."""


class Registry(Generic[T]):
    """Implementations of one extension point by name."""

    def __init__(self, kind: str, group: str, built_in: str) -> None:
        """kind: what one entry is, for messages, e.g. `recipe`. group: of the entry points.
        built_in: module that registers our own entries; imported when they are first asked for.
        """
        self._kind, self._group, self._built_in = kind, group, built_in
        self._registered: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Add an implementation of this package under a name (a decorator)."""

        def add(entry: T) -> T:
            assert name not in self._registered, f"two entries named {name}"
            self._registered[name] = entry
            return entry

        return add

    @property
    def _own(self) -> dict[str, T]:
        importlib.import_module(self._built_in)
        return self._registered

    @functools.cached_property
    def _external(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=self._group):
            if point.name in self._own or point.name in found:
                raise ExtensionError(
                    f"{self._kind} '{point.name}' of {point.value}: the name is taken; rename the "
                    f"entry point in group {self._group}"
                )
            found[point.name] = point
        return found

    def names(self) -> tuple[str, ...]:
        """All names: ours in the order of their registration, then those of other packages."""
        return (*self._own, *sorted(self._external))

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._external

    def __getitem__(self, name: str) -> T:
        """Return an implementation. Raises ExtensionError if it is unknown or can't be loaded."""
        if name in self._own:
            return self._own[name]
        if name not in self._external:
            raise ExtensionError(self._unknown(name))
        point = self._external[name]
        try:
            entry: T = point.load()
        except Exception as error:  # whatever the other package raises
            raise ExtensionError(
                f"{self._kind} '{name}' of {point.value} can't be imported "
                f"({type(error).__name__}: {' '.join(str(error).split())}); mend or uninstall it"
            ) from error
        return entry

    def check(self, name: str) -> str:
        """Return the name. Raises ValueError if nothing is registered under it: for validators."""
        if name not in self:
            raise ValueError(self._unknown(name))
        return name

    def check_all(self, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(self.check(name) for name in names)

    def _unknown(self, name: str) -> str:
        return f"no {self._kind} '{name}'; there are {', '.join(self.names())}"
