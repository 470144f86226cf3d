"""docs/evidence.md: what the audits found, whatever it is, with settings and date."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from entropylong_assets.audits.ablation import PAPER, ablate
from entropylong_assets.audits.audit_tables import RECIPE_ORDER, Audited, as_row, number, table
from entropylong_assets.audits.evidence_pairs import (
    null_table,
    null_words,
    planted_table,
    second_words,
    shortfall_words,
)
from entropylong_assets.audits.movement import movement_table
from entropylong_assets.audits.null_calibration import rates
from entropylong_assets.audits.root_sample import Mean, clustered_mean

_PAGE = """# Evidence

Written by `entropylong evidence` on {date}, under the settings at the end. The last call took
{minutes}; stages that an earlier call had finished are not made again. Intervals are 95%. Trials of
one root count as one cluster; where none of them passed they count as independent, and the
interval is too narrow.

## Recipes, on the same roots, index and budget of tokens

Each root's anchors behind the contexts that the recipe chose, against random passages of the same
length in their place.

{recipes}
`calibrated` against each rival, on the anchors' surprisal drop over random, anchor by anchor:

{verdicts}

{selection}

{overlap}

{pieces}

The verified recipes chose their contexts by the same model's scores of the same anchors, one
context at a time: what they gain here is partly choice. The second model and the planted truth
had no part in it.

Anchors that a verified context was chosen for (the context worth most of each root), surprisal
drop in nats:

{served}
The same for `calibrated`, by distance:

{distances}
## Chance

{null}
{null_words}

`shuffled` contexts say the same in another order of sentences: that many still pass is no fault of
the rule, but tells how little of the gain hangs on order.

## The paper's tables, on this corpus

Anchors a root by α, verified dependencies a root by ε. The paper: Llama-3-8B, roots of FineWeb-Edu
and Cosmopedia, which are longer.

{shape}
## What moves acceptance and chance

Share of pairs that pass, at the settings below where nothing else is said. `controls` 0: the
calibrated rule against the root alone.

{movement}
## Another model

{second}
## Planted truth

Invented facts, each stated in one document and needed in another, among decoys of the same form.
Pairs at other anchors are neither true nor false: the facts share their wording.

{planted}
{shortfall}

## Settings

{settings}"""


def recipe_table(audited: Audited) -> str:
    rows, chance = audited.recipe_rows(), {}
    for row in rates(audited.trials, audited.pairs):
        if row["kind"] == "random":
            chance[row["rule"]] = number(row, "{:.2%}")
    rule = audited.settings.verification.rule
    by_recipe = {
        "entropylong": chance.get("plain", "–"),
        "calibrated": chance.get("calibrated", "–"),
        "policylong": chance.get(rule, "–"),
    }
    lines = []
    for recipe in RECIPE_ORDER:
        if (recipe, "context_tokens") not in rows:
            continue

        def cell(measure: str, form: str = "{:.3f}", recipe: str = recipe) -> str:
            return number(rows.get((recipe, measure)), form)

        lines.append(
            [
                recipe,
                str(rows[recipe, "context_tokens"]["roots"]),
                f"{rows[recipe, 'context_tokens']['value']:.0f}",
                cell("entropy_drop_over_random"),
                cell("surprisal_drop_over_random"),
                by_recipe.get(recipe, "no rule: all"),
                cell("key_token_density", "{:.2%}"),
                cell("dependency_score"),
            ]
        )
    head = (
        "recipe",
        "roots",
        "context tokens a root",
        "anchors' entropy drop over random (nats)",
        "anchors' surprisal drop over random (nats)",
        "random contexts its rule accepts",
        "key tokens",
        "dependency score",
    )
    return table(head, lines)


def served_table(audited: Audited) -> str:
    rows, lines = audited.recipe_rows(), []
    for recipe in ("calibrated", "entropylong", "policylong"):
        if (recipe, "served_surprisal_drop_near") in rows:
            names = ("near", "in_place", "over_replaced")
            cells = [number(rows[recipe, f"served_surprisal_drop_{n}"]) for n in names]
            lines.append(
                [recipe, str(rows[recipe, "served_surprisal_drop_near"]["trials"]), *cells]
            )
    head = (
        "recipe",
        "dependencies",
        "directly before the root",
        "in its place",
        "over a random one",
    )
    return table(head, lines)


def verdict_lines(audited: Audited) -> list[str]:
    """Whether `calibrated` beats each rival on the anchors' surprisal drop, in words."""
    lines = []
    known = set(audited.anchors["recipe"].unique().to_list())
    for rival in RECIPE_ORDER[1:]:
        if rival not in known or "calibrated" not in known:
            continue
        mean, entropy = (
            audited.difference("calibrated", rival, score) for score in ("surprisal", "entropy")
        )
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
                more = f" At this spread about {needed:,} roots would show it as often as not."
        lines.append(
            f"- `calibrated` {word} `{rival}`: {number(as_row(mean), '{:+.3f}')} nats of surprisal "
            f"an anchor ({number(as_row(entropy), '{:+.3f}')} of entropy).{more}"
        )
    return lines


def selection_words(audited: Audited) -> str:
    """Which roots the recipes are compared on, and what that favours."""
    compared, all_roots = (f["root_id"].n_unique() for f in (audited.windows, audited.trials))
    words = (
        f"{compared} of the {all_roots} audited roots are compared: those for which the rule in "
        "force verified something, as what it verified is every recipe's budget."
    )
    if audited.settings.verification.require_surprisal_drop:
        words += (
            " The calibrated rule asks that the true token become likelier, which is the very "
            "thing measured here; the paper's rule does not. Part of the difference between these "
            "two is therefore by construction. Entropy, which both ask for, stands beside it."
        )
    return words


def roots_needed(mean: Mean) -> float:
    """Roots at which an interval of this spread would leave out zero, by the root of their number;
    infinite where the mean is zero."""
    if mean.low is None or mean.high is None or not mean.value:
        return float("inf")
    half = (mean.high - mean.low) / 2
    return math.ceil(mean.clusters * (half / mean.value) ** 2)


def overlap_words(pairs: pl.DataFrame) -> str:
    """How far the plain and the calibrated rule accept the same contexts of the same roots."""
    plain, calibrated = (
        set(pairs.filter(f"accepted_{rule}").select("root_id", "chunk_id").iter_rows())
        for rule in ("plain", "calibrated")
    )
    return (
        f"The plain rule accepts {len(plain)} contexts of these roots, the calibrated one "
        f"{len(calibrated)}; {len(plain & calibrated)} are the same. The recipes share a "
        "budget, the tokens that the rule in force verified: within it they choose much the same "
        "contexts, so that the difference between these two recipes is small by construction."
    )


def pieces_words(audited: Audited) -> str:
    """What the layout of `nextlong` alone does to its figures."""
    length = audited.settings.samples.meta_chunk_tokens
    anchors = audited.anchors.select("root_id", "anchor").unique()
    first = int((anchors["anchor"] < length).sum()) / max(1, len(anchors))
    return (
        "`nextlong` puts its contexts behind the piece of the root that retrieved them, as its "
        f"paper does: {first:.0%} of the anchors lie in the first {length} tokens of their root "
        "and have none before them, whatever was chosen."
    )


_SHAPE = {"alpha": ("2", "anchors_per_root"), "epsilon": ("0.4", "dependencies_per_root")}
"""The value that the paper settles on, by knob, and what it moves."""


def shape_table(audited: Audited) -> str:
    """Anchors by α and dependencies by ε beside the paper's, and as shares of its own default's."""
    rows = ablate(audited.scores, audited.settings).iter_rows(named=True)
    found = {(row["knob"], row["value"], row["rule"]): row for row in rows}
    lines = []
    for knob, value in PAPER:
        default, moved = _SHAPE[knob]
        cells = []
        for rule, column in (("plain", moved), ("calibrated", moved), ("plain", "paper")):
            here, there = (found[knob, at, rule][column] for at in (value, default))
            cells.append(f"{here:.4g} ({here / there:.0%})" if here and there else "–")
        lines.append([f"{knob} {value}", *cells])
    return table(("setting", "plain rule", "calibrated rule", "paper, plain rule"), lines)


def distance_table(audited: Audited) -> str:
    """Verified contexts by the distance to their anchors."""
    ours = audited.dependencies.filter(recipe="calibrated").with_columns(
        bin=pl.col("distance").cut([128, 256, 512], labels=["0", "128", "256", "512"])
    )
    lines = []
    for edge in ("0", "128", "256", "512"):
        part = ours.filter(pl.col("bin").cast(pl.String) == edge)
        if not len(part):
            continue
        cells = []
        for a, b in (("", "near"), ("", "in_place"), ("replaced", "in_place")):
            before = part[f"surprisal_{a}" if a else "surprisal"]
            fall = (before - part[f"surprisal_{b}"]).cast(pl.Float64).to_list()
            cells.append(number(as_row(clustered_mean(fall, part["root_id"].to_list()))))
        lines.append([f"from {edge}", str(len(part)), *cells])
    head = ("distance (tokens)", "dependencies", "near", "in place", "over a random one")
    return table(head, lines)


def write_evidence(
    audited: Audited,
    *,
    date: str,
    description: Sequence[tuple[str, str]],
    second_model: str,
    planted: Sequence[Mapping[str, Any]],
    shortfall: float | None,
    seconds: float,
) -> str:
    """The page. Figures and the words that follow from them; nothing is left out."""
    settings = table(("setting", "value"), [[n, str(v).replace("|", "/")] for n, v in description])
    minutes = f"{seconds / 60:.0f} minutes"
    return _PAGE.format(
        date=date,
        minutes=minutes,
        recipes=recipe_table(audited),
        verdicts="\n".join(verdict_lines(audited)),
        selection=selection_words(audited),
        overlap=overlap_words(audited.pairs),
        pieces=pieces_words(audited),
        served=served_table(audited),
        distances=distance_table(audited),
        null=null_table(audited),
        null_words="\n".join(null_words(audited)),
        shape=shape_table(audited),
        movement=movement_table(audited),
        second=second_words(audited, second_model),
        planted=planted_table(planted),
        shortfall=shortfall_words(shortfall, audited.settings.entropy.alpha),
        settings=settings,
    )
