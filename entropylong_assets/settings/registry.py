"""Registries: implementations of an extension point by name, from this and other packages.

Another package adds one through an entry point, e.g. in its pyproject.toml:

    [project.entry-points."entropylong_assets.recipes"]
    my_recipe = "my_package.recipes:MyRecipe"

In tests, `entropylong_assets_tests.extensions.installed` adds entry points temporarily.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

T = TypeVar("T")


class ExtensionError(ValueError):
    """An extension of another package can't be loaded. The message is one line: which one, why."""


@functools.cache
def installed_entry_points(group: str) -> tuple[EntryPoint, ...]:
    """Return the entry points of all installed packages in a group.

    They are looked up once per group. Call `installed_entry_points.cache_clear()` after a change
    of the installed packages or of `sys.path`.
    """
    return tuple(entry_points(group=group))


class Registry(Generic[T]):
    """Implementations of one extension point by name."""

    def __init__(self, kind: str, group: str, built_in: str) -> None:
        """Args:
        kind: what one entry is, for messages, e.g. `recipe`.
        group: name of the group of entry points.
        built_in: module that registers the entries of this package. It is imported on first use.
        """
        self._kind, self._group, self._built_in = kind, group, built_in
        self._registered: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Add an implementation of this package under a name (decorator)."""

        def add(entry: T) -> T:
            assert name not in self._registered, f"two entries named {name}"
            self._registered[name] = entry
            return entry

        return add

    def names(self) -> tuple[str, ...]:
        """Return all names: built-in ones in the order of registration, then others, sorted."""
        return (*self._own(), *sorted(self._external()))

    def __contains__(self, name: object) -> bool:
        return name in self._own() or name in self._external()

    def __getitem__(self, name: str) -> T:
        """Return an implementation. Raises ExtensionError if it is unknown or can't be imported."""
        if name in self._own():
            return self._own()[name]
        if name not in self._external():
            raise ExtensionError(self._unknown(name))
        point = self._external()[name]
        try:
            entry: T = point.load()
        except Exception as error:  # the import of another package may raise anything
            raise ExtensionError(
                f"{self._kind} '{name}' of {point.value} can't be imported "
                f"({type(error).__name__}: {' '.join(str(error).split())}); repair or uninstall "
                "its package"
            ) from error
        return entry

    def check(self, name: str) -> str:
        """Return the name. Raises ValueError if it is not registered. For validators."""
        if name not in self:
            raise ValueError(self._unknown(name))
        return name

    def check_all(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the names. Raises ValueError if one is not registered."""
        return tuple(self.check(name) for name in names)

    def in_order(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the distinct names in the order of `names()`, whatever order they are given in.

        For validators of settings whose order means nothing, so that it changes nothing either.
        Raises ValueError if a name is not registered.
        """
        given = set(self.check_all(names))
        return tuple(name for name in self.names() if name in given)

    def _own(self) -> dict[str, T]:
        importlib.import_module(self._built_in)
        return self._registered

    def _external(self) -> dict[str, EntryPoint]:
        external: dict[str, EntryPoint] = {}
        for point in installed_entry_points(self._group):
            if point.name in self._own() or point.name in external:
                raise ExtensionError(
                    f"{self._kind} '{point.name}' of {point.value}: the name is already in use; "
                    f"rename the entry point in group {self._group}"
                )
            external[point.name] = point
        return external

    def _unknown(self, name: str) -> str:
        return f"no {self._kind} '{name}'; there are {', '.join(self.names())}"
