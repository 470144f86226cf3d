"""Recipes compared: means over the scored windows, with intervals over roots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from entropylong_assets.audits.root_sample import clustered_mean

Rows = Sequence[dict[str, Any]]
Values = list[tuple[str, float]]


def measures(anchors: Rows, windows: Rows, dependencies: Rows) -> list[dict[str, Any]]:
    """Rows of `recipes`: means with 95% intervals over roots, of one shard or of several.

    Only roots that every recipe has are counted: a window that is too long for the model is missing
    under its recipe alone.
    """
    recipes = sorted({window["recipe"] for window in windows})
    roots = [{w["root_id"] for w in windows if w["recipe"] == recipe} for recipe in recipes]
    shared = set.intersection(*roots) if roots else set()
    rows = []
    for recipe in recipes:
        own = [
            [row for row in table if row["recipe"] == recipe and row["root_id"] in shared]
            for table in (anchors, windows, dependencies)
        ]
        for measure, values in _values(*own):
            mean = clustered_mean([value for _, value in values], [root for root, _ in values])
            rows.append(
                {
                    "recipe": recipe,
                    "measure": measure,
                    "value": mean.value,
                    "low": mean.low,
                    "high": mean.high,
                    "trials": mean.trials,
                    "roots": mean.clusters,
                }
            )
    return rows


def _values(anchors: Rows, windows: Rows, dependencies: Rows) -> Iterator[tuple[str, Values]]:
    """Each measure with its values (root_id, value), from the rows of one recipe."""
    for score in ("entropy", "surprisal"):
        yield f"{score}_drop_over_random", _drops(anchors, f"{score}_random", f"{score}_in_place")
    density = [(w["root_id"], w["key_tokens"] / w["root_tokens"]) for w in windows]
    yield "key_token_density", density
    scored = [w for w in windows if w["dependency_score"] is not None]
    yield "dependency_score", [(w["root_id"], w["dependency_score"]) for w in scored]
    yield "context_tokens", [(w["root_id"], float(w["context_tokens"])) for w in windows]
    for place in ("near", "in_place"):
        drops = _drops(dependencies, "surprisal", f"surprisal_{place}")
        yield f"served_surprisal_drop_{place}", drops
    drops = _drops(dependencies, "surprisal_replaced", "surprisal_in_place")
    yield "served_surprisal_drop_over_replaced", drops


def _drops(rows: Rows, before: str, after: str) -> Values:
    return [(row["root_id"], row[before] - row[after]) for row in rows]
