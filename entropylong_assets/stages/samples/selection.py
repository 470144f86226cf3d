"""Choosing the contexts of each root, by the rule in force or by a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import polars as pl

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.retrieval.leak_check import NEAR_DUPLICATE
from entropylong_assets.stages.samples.groups import (
    Context,
    Group,
    SampleError,
    build_groups,
    unverified,
)
from entropylong_assets.stages.samples.packing import NO_DEPENDENCY, Dropped
from entropylong_assets.stages.samples.registry import (
    IN_FORCE,
    RECIPES,
    DeclaredSettings,
    Material,
    Pool,
    Recipe,
)
from entropylong_assets.stages.verification.registry import RULES, evaluated_rules

OVER_BUDGET = "over_budget"


def recipe_of(settings: Settings) -> type[Recipe] | None:
    """The recipe that the settings name; None if the rule in force chooses the contexts."""
    name = settings.samples.recipe
    return None if name is None else RECIPES[name]


def needs_pool(settings: Settings) -> bool:
    """Return whether samples contain passages of the whole corpus: by their recipe or as fill."""
    recipe = recipe_of(settings)
    return settings.samples.fill == "corpus" or (recipe is not None and recipe.needs_pool)


def has_verdicts(rule: str | None, settings: Settings) -> bool:
    """Return whether the verdicts that a recipe needs are stored. rule: `Recipe.rule`."""
    return rule in (None, IN_FORCE, *evaluated_rules(settings.verification))


def verifying_rule(settings: Settings) -> str | None:
    """The rule whose dependencies the samples contain: its name, IN_FORCE, or None for no rule.

    Raises SampleError if the verdicts of that rule are not stored.
    """
    recipe = recipe_of(settings)
    rule = IN_FORCE if recipe is None else recipe.rule
    if rule in (None, IN_FORCE):
        return rule
    if rule == settings.verification.rule:
        return IN_FORCE
    if not has_verdicts(rule, settings):
        raise SampleError(
            f"samples.recipe '{settings.samples.recipe}' verifies by the rule '{rule}', whose "
            "verdicts are not stored; add it to verification.compared_rules"
        )
    return rule


def accepted_by(rule: str) -> pl.Expr:
    """Whether a rule, or the one in force, accepts a pair: an expression over `pairs`."""
    return pl.col("accepted") if rule == IN_FORCE else pl.col("accepted_by").list.contains(rule)


def gain_column(rule: str, settings: Settings) -> str:
    """The column of `pairs` with the gain that a rule, or the one in force, measures."""
    return RULES[settings.verification.rule if rule == IN_FORCE else rule].gain


def required_gain(settings: Settings) -> str | None:
    """The column of `pairs` that the recipe's rule needs: the gain over the controls.

    None if the rule does not compare with controls.
    """
    recipe = recipe_of(settings)
    if recipe is None or recipe.rule is None or recipe.rule == IN_FORCE:
        return None
    rule = RULES[recipe.rule]
    return rule.gain if rule.needs_controls else None


def require_controls(settings: Settings, pairs: int, with_gain: int) -> None:
    """Check that the recipe's rule could judge.

    pairs: number of pairs. with_gain: pairs whose `required_gain` is defined. Raises SampleError if
    there are pairs, but none of them was scored given controls.
    """
    if required_gain(settings) is not None and pairs and not with_gain:
        raise SampleError(
            f"samples.recipe is '{settings.samples.recipe}', but nothing was scored given controls;"
            " set verification.controls to at least 2 and materialize the verification again"
        )


def choose_groups(
    roots: pl.DataFrame,
    pairs: pl.DataFrame,
    contexts: pl.DataFrame,
    settings: Settings,
    pool: Pool | None = None,
    *,
    whole: bool = True,
) -> tuple[list[Group], list[Dropped]]:
    """Choose the contexts of each root; return the groups and what the recipe dropped.

    roots: root_id, token_ids. pairs, contexts: tables of `verified_dependencies`, of a whole shard
    or (`whole=False`) of some of its roots. pool: the indexed corpus, for recipes that need it.
    Raises SampleError if the tables contradict each other, or lack what the recipe needs.
    """
    reference = build_groups(roots, pairs, contexts, gain=gain_column(IN_FORCE, settings))
    recipe = recipe_of(settings)
    if recipe is None:
        return reference, []
    column = required_gain(settings)
    if whole and column is not None:
        require_controls(settings, len(pairs), pairs[column].count())
    rule = verifying_rule(settings)
    own = reference
    if rule not in (None, IN_FORCE):
        judged = pairs.with_columns(accepted=accepted_by(rule))
        own = build_groups(roots, judged, contexts, gain=gain_column(rule, settings))
    chooser = _Chooser(recipe, rule is not None, _retrieved(pairs, contexts), settings, pool)
    if pool is not None and recipe.needs_pool:
        pool.announce([group for group in reference if group.chosen])
    groups: list[Group] = []
    dropped: list[Dropped] = []
    for first, group in zip(reference, own, strict=True):
        budget = sum(len(context.token_ids) for context in first.chosen)
        chosen, given_up = chooser.choose(group, budget)
        groups += chosen
        dropped += given_up
    return groups, dropped


@dataclass(frozen=True)
class _Chooser:
    """Applies a recipe to one root after the other."""

    recipe: type[Recipe]
    verifies: bool
    retrieved: Mapping[str, tuple[Context, ...]]
    settings: Settings
    pool: Pool | None

    def choose(self, group: Group, budget: int) -> tuple[list[Group], list[Dropped]]:
        """The group with its chosen contexts, or none; and the contexts or the root dropped."""
        own = group.chosen if self.verifies else ()
        nothing = [
            Dropped(
                root_id=group.root_id,
                chunk_id=None,
                reason=NO_DEPENDENCY,
                n_dependencies=sum(len(context.dependencies) for context in own),
            )
        ]
        if not budget or (self.verifies and not own):
            return [], nothing
        picked = self.recipe().choose(
            Material(
                group=group,
                retrieved=self.retrieved.get(group.root_id, ()),
                budget=budget,
                settings=DeclaredSettings(self.settings, self.recipe.reads),
                open_pool=self.pool if self.recipe.needs_pool else None,
            )
        )
        if not picked.chosen:
            return [], nothing
        kept = {context.chunk_id for context in picked.chosen}
        over_budget = [
            Dropped(
                root_id=group.root_id,
                chunk_id=context.chunk_id,
                reason=OVER_BUDGET,
                n_dependencies=len(context.dependencies),
            )
            for context in own
            if context.chunk_id not in kept
        ]
        negatives = tuple(c for c in picked.negatives if c.chunk_id not in kept)
        return [replace(picked, negatives=negatives)], over_budget


def _retrieved(pairs: pl.DataFrame, contexts: pl.DataFrame) -> dict[str, tuple[Context, ...]]:
    """Every context that passed the leak check, scored or not, as unverified contexts by root.

    `first_anchor` and `first_rank` are of the anchor that it is most similar to.
    """
    rows = (
        pairs.filter(pl.col("verdict") != NEAR_DUPLICATE)
        .sort(
            "root_id",
            "chunk_id",
            "similarity",
            "rank",
            "anchor",
            descending=[False, False, True, False, False],
        )
        .unique(["root_id", "chunk_id"], keep="first", maintain_order=True)
        .select("root_id", "chunk_id", "similarity", "anchor", "rank")
        .join(contexts.select("chunk_id", "doc_id", "source", "token_ids"), on="chunk_id")
        .sort("root_id", "chunk_id")
    )
    by_root: dict[str, list[Context]] = {}
    for row in rows.iter_rows(named=True):
        by_root.setdefault(row["root_id"], []).append(unverified(**row))
    return {root_id: tuple(passages) for root_id, passages in by_root.items()}
