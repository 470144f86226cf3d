"""Recipes: which contexts a root gets in its sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from entropylong_assets.settings.registry import Registry
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.samples.groups import Context, Group, SampleError
from entropylong_assets.stages.versioning import setting_at

IN_FORCE = "in force"
"""Value of `Recipe.rule` for the rule in force."""


class Fillers(Protocol):
    """Passages that complete samples."""

    def fillers(self, groups: Sequence[Group]) -> Iterator[Context]:
        """Iterate over passages for a sample of these roots, as fillers.

        None belongs to a document of the sample, fails the leak check for one of its roots, or is
        returned twice. The seed and the first root determine the order.
        """
        ...


class Pool(Fillers, Protocol):
    """Passages of the indexed corpus, as unverified contexts for a root, and as fillers.

    No passage belongs to the root's document, fails the leak check, or is returned twice for one
    root.
    """

    def announce(self, groups: Sequence[Group]) -> None:
        """Announce the roots whose passages are asked for next, so that one search and few reads
        serve them all. The passages are the same without it."""
        ...

    def at_random(self, group: Group) -> Iterator[Context]:
        """Iterate over random passages, all equally likely; seed and root determine the order."""
        ...

    def on_keywords(self, group: Group) -> Iterator[Context]:
        """Iterate over the passages most similar to the root's keywords, best first."""
        ...

    def rows(self, chunk_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return the rows of the table `passages` for passages that were returned before."""
        ...


@dataclass(frozen=True)
class DeclaredSettings:
    """The settings that a recipe may read: those that it declares."""

    settings: Settings
    paths: tuple[str, ...]

    def __getitem__(self, path: str) -> Any:
        """Return the value at a dotted path.

        Raises SampleError if the recipe does not declare the setting, since its samples would not
        become stale when the setting changes.
        """
        if path not in self.paths:
            raise SampleError(
                f"samples.recipe '{self.settings.samples.recipe}' reads the setting {path}, which "
                "is not among its `reads`; add it there"
            )
        return setting_at(self.settings, path)


@dataclass(frozen=True, kw_only=True)
class Material:
    """The contexts that a recipe chooses from, for one root."""

    group: Group
    """The root, with all contexts that the recipe's rule accepts as `chosen`, and those that it
    rejected as `negatives`; by the rule in force if the recipe has no rule."""
    retrieved: tuple[Context, ...]
    """Every context that an anchor of the root nominated and the leak check passed, unverified."""
    budget: int
    """Tokens that the chosen contexts may have."""
    settings: DeclaredSettings
    open_pool: Pool | None = None

    @property
    def pool(self) -> Pool:
        """The indexed corpus, for a recipe that declares `needs_pool`."""
        if self.open_pool is None:
            raise SampleError(
                f"samples.recipe '{self.settings.settings.samples.recipe}' needs the indexed "
                "corpus, which is not open; a recipe that draws from it sets `needs_pool`"
            )
        return self.open_pool


class Recipe:
    """Chooses the contexts of a root.

    To write a recipe, derive a class, set the attributes that differ and implement `choose`. In
    this package decorate it with `@RECIPES.register("my_recipe")`, in another package name it in
    an entry point of the group `entropylong_assets.recipes`. It is then available as
    `samples.recipe: my_recipe`, and in `audit.recipes`.

    All recipes share the corpus, the index, the packing and, for each root, the budget of tokens:
    as many as the rule in force verified for it. So the choice of contexts is all that differs. A
    root for which that rule verified nothing is dropped under every recipe, and so is one for which
    the recipe chooses nothing.
    """

    rule: ClassVar[str | None] = None
    """Rule by which it verifies: a name in RULES, or IN_FORCE. Its contexts then count as verified
    and bring their dependencies; the rule must be in force or among `verification.compared_rules`.
    None: it verifies nothing, and must choose unverified contexts."""
    needs_pool: ClassVar[bool] = False
    """Whether it takes passages of the whole corpus. Its samples then depend on the index and on
    the settings of the leak check."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Dotted paths of further settings that it reads through `material.settings`."""
    ignores: ClassVar[tuple[str, ...]] = ()
    """Dotted paths of settings of the samples that have no effect under it."""

    def choose(self, material: Material) -> Group:
        """Return the material's group with the chosen contexts as `chosen`.

        The result must depend on the material alone. Chosen contexts are removed from `negatives`.
        """
        raise NotImplementedError


RECIPES: Registry[type[Recipe]] = Registry(
    "recipe", "entropylong_assets.recipes", "entropylong_assets.stages.samples.recipes"
)
"""Recipes by name."""
