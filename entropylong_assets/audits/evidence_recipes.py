"""The part of the evidence page that compares recipes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import polars as pl

from entropylong_assets.audits.audit_tables import OURS, AuditTables, as_row, number, table
from entropylong_assets.audits.null_calibration import rates
from entropylong_assets.audits.root_sample import Mean, clustered_mean
from entropylong_assets.stages.samples.registry import IN_FORCE, RECIPES
from entropylong_assets.stages.verification.gain import accepted_by

DISTANCES = (128, 256, 512)


def recipe_table(audited: AuditTables) -> str:
    """The measures of every recipe, and the share of random contexts that its rule accepts."""
    rows = audited.recipe_rows()
    random = {
        row["rule"]: number(row, "{:.2%}")
        for row in rates(audited.trials, audited.pairs, audited.rules)
        if row["kind"] == "random"
    }
    random[IN_FORCE] = random[audited.settings.verification.rule]
    lines = []
    for recipe in audited.recipes:
        rule, size = RECIPES[recipe].rule, rows[recipe, "context_tokens"]

        def cell(measure: str, form: str = "{:.3f}", recipe: str = recipe) -> str:
            return number(rows.get((recipe, measure)), form)

        lines.append(
            [
                recipe,
                str(size["roots"]),
                "–" if size["value"] is None else f"{size['value']:.0f}",
                cell("entropy_drop_over_random"),
                cell("surprisal_drop_over_random"),
                "no rule: all" if rule is None else random.get(rule, "–"),
                cell("key_token_density", "{:.2%}"),
                cell("dependency_score"),
            ]
        )
    head = (
        "recipe",
        "roots",
        "context tokens per root",
        "anchors' entropy drop over random (nats)",
        "anchors' surprisal drop over random (nats)",
        "random contexts that its rule accepts",
        "key tokens",
        "dependency score",
    )
    return table(head, lines)


def served_table(audited: AuditTables) -> str:
    """Surprisal drop of the anchors of verified contexts, by the place of the context."""
    rows, lines = audited.recipe_rows(), []
    names = ("near", "in_place", "over_replaced")
    for recipe in audited.recipes:
        measures = [rows.get((recipe, f"served_surprisal_drop_{name}")) for name in names]
        if measures[0] and RECIPES[recipe].rule is not None:
            lines.append([recipe, str(measures[0]["trials"]), *(number(m) for m in measures)])
    head = (
        "recipe",
        "dependencies",
        "directly before the root",
        "in its place",
        "over a random one",
    )
    return table(head, lines)


def verdict_lines(audited: AuditTables) -> list[str]:
    """Sentences on whether our recipe beats each rival on the anchors' surprisal drop."""
    if OURS not in audited.recipes:
        return []
    lines = []
    for rival in audited.recipes:
        if rival == OURS:
            continue
        mean, entropy = (audited.difference(OURS, rival, s) for s in ("surprisal", "entropy"))
        if mean.value is None:
            continue
        more = ""
        if mean.low is not None and mean.low > 0:
            word = "beats"
        elif mean.high is not None and mean.high < 0:
            word = "**is worse than**"
        else:
            word = "**is not shown to beat**"
            if (needed := roots_needed(mean)) < float("inf"):
                more = (
                    f" With this spread, about {needed:,} roots would show a difference half of "
                    "the time."
                )
        lines.append(
            f"- `{OURS}` {word} `{rival}`: {number(as_row(mean), '{:+.3f}')} nats of surprisal "
            f"per anchor ({number(as_row(entropy), '{:+.3f}')} of entropy).{more}"
        )
    return lines


def selection_words(audited: AuditTables) -> str:
    """Sentences on which roots the recipes are compared on, and which recipes that favours."""
    compared, sampled = (f["root_id"].n_unique() for f in (audited.windows, audited.trials))
    words = (
        f"{compared} of the {sampled} audited roots are compared: those for which the rule in "
        "force verified something, since every recipe's budget is what it verified."
    )
    if audited.settings.verification.require_surprisal_drop:
        words += (
            " The calibrated rule requires that the true token becomes likelier, which is what is "
            "measured here; the paper's rule does not. Part of the difference between these two is "
            "therefore by construction. Entropy, which both require to drop, stands beside it."
        )
    return words


def roots_needed(mean: Mean) -> float:
    """Number of roots at which the interval would exclude zero; infinite for a mean of zero.

    Assumes that the interval shrinks with the square root of the number of roots.
    """
    if mean.low is None or mean.high is None or not mean.value:
        return float("inf")
    half = (mean.high - mean.low) / 2
    return math.ceil(mean.clusters * (half / mean.value) ** 2)


def overlap_words(pairs: pl.DataFrame, rules: Iterable[str]) -> str:
    """Sentences on how many contexts of the same roots two rules both accept, per pair of rules."""
    accepted = {
        rule: set(pairs.filter(accepted_by(rule)).select("root_id", "chunk_id").iter_rows())
        for rule in rules
    }
    counts = " ".join(
        f"Rule `{a}` accepts {len(accepted[a])} contexts of these roots, rule `{b}` "
        f"{len(accepted[b])}; {len(accepted[a] & accepted[b])} are the same."
        for a, b in itertools.combinations(accepted, 2)
    )
    return (
        f"{counts} The recipes share a budget, the tokens that the rule in force verified: within "
        "it they choose much the same contexts, so that the difference between the recipes of "
        "these rules is small by construction."
    )


def pieces_words(audited: AuditTables) -> str:
    """A sentence on how the layout of recipe `nextlong` affects its figures."""
    length = audited.settings.samples.meta_chunk_tokens
    anchors = audited.anchors.select("root_id", "anchor").unique()
    first = int((anchors["anchor"] < length).sum()) / max(1, len(anchors))
    return (
        "`nextlong` puts its contexts after the piece of the root that retrieved them, as its "
        f"paper does: {first:.0%} of the anchors lie in the first {length} tokens of their root "
        "and have no context before them, whatever was chosen."
    )


def distance_table(audited: AuditTables) -> str:
    """Verified contexts of our recipe by the distance to their anchors."""
    labels = ["0", *map(str, DISTANCES)]
    ours = audited.dependencies.filter(recipe=OURS).with_columns(
        bin=pl.col("distance").cut(list(DISTANCES), labels=labels)
    )
    lines = []
    for label in labels:
        part = ours.filter(pl.col("bin").cast(pl.String) == label)
        if not len(part):
            continue
        cells = []
        for before, after in (
            ("surprisal", "surprisal_near"),
            ("surprisal", "surprisal_in_place"),
            ("surprisal_replaced", "surprisal_in_place"),
        ):
            drop = (part[before] - part[after]).cast(pl.Float64).to_list()
            cells.append(number(as_row(clustered_mean(drop, part["root_id"].to_list()))))
        lines.append([f"from {label}", str(len(part)), *cells])
    head = ("distance (tokens)", "dependencies", "near", "in place", "over a random one")
    return table(head, lines)
