"""Contextual information gain, and the verdict on a candidate (paper, section 3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa

from entropylong_assets.stages.verification.registry import Rule, evaluated_rules
from entropylong_assets.stages.verification.tables import TEXT_FIELDS

if TYPE_CHECKING:
    from entropylong_assets.stages.verification.settings import VerificationSettings

ACCEPTED = "accepted"
NEAR_DUPLICATE = "near_duplicate"
TOO_LONG = "too_long_for_model"
NOT_TRIED = "not_tried"
SCREENED_OUT = "screened_out"
EXCLUDED_BY_TEXT = "excluded_by_text"


TEXT_COLUMNS = pl.Schema(pa.schema(TEXT_FIELDS))
ANCHOR_COLUMNS = tuple(name for name in TEXT_COLUMNS if name != "has_word")


def possible_pairs(settings: VerificationSettings) -> pl.Expr | None:
    """Return which pairs an evaluated rule may accept, by their text alone; None: all of them."""
    conditions: list[pl.Expr] = []
    for rule in evaluated_rules(settings).values():
        possible = getattr(rule, "possible", None)
        if possible is None:
            return None
        conditions.append(possible(settings))
    return pl.any_horizontal(conditions)


def judge(pairs: pl.DataFrame, settings: VerificationSettings) -> pl.DataFrame:
    """Add the gains of each pair, and the verdicts of the evaluated rules.

    `pairs` has the columns entropy, entropy_context, entropy_control, surprisal, surprisal_context,
    surprisal_control (float32, nats), and `refusal`: why the pair was not scored, or null. Those of
    `TEXT_COLUMNS` that it lacks are null.

    Added columns:

    - gain: ΔI = (H - H') / H;
    - calibrated_gain: ΔI* = (min(H, H^c) - H') / H, against whichever is harder to beat, the root
      alone or the root given an unrelated text; null without controls;
    - accepted_by: names of the evaluated rules that accept the pair;
    - accepted: whether the rule in force accepts it;
    - verdict: `accepted`, or why the pair was not scored, or the reason of the rule in force.

    Gains are float64, so that SQL over the stored columns finds the same gains and verdicts.
    """
    alone, given, control = (
        pl.col(name).cast(pl.Float64) for name in ("entropy", "entropy_context", "entropy_control")
    )
    # The entropy of a certain position can't be lowered.
    uncertain = pl.when(alone > 0)
    has_control = pl.col("entropy_control").is_not_null() & ~control.is_nan()
    calibrated_gain = uncertain.then((pl.min_horizontal(alone, control) - given) / alone)
    rules = evaluated_rules(settings)
    unknown = [pl.lit(None, t).alias(n) for n, t in TEXT_COLUMNS.items() if n not in pairs.columns]
    return (
        pairs.with_columns(*unknown)
        .with_columns(
            uncertain.then((alone - given) / alone).alias("gain"),
            pl.when(has_control).then(calibrated_gain).alias("calibrated_gain"),
        )
        .with_columns(
            pl.concat_list(
                pl.when(_accepts(rule, settings)).then(pl.lit(name)) for name, rule in rules.items()
            )
            .list.drop_nulls()
            .alias("accepted_by")
        )
        .with_columns(accepted_by(settings.rule).alias("accepted"))
        .with_columns(
            pl.when(pl.col("refusal").is_not_null())
            .then(pl.col("refusal"))
            .when("accepted")
            .then(pl.lit(ACCEPTED))
            .otherwise(rules[settings.rule].reason(settings))
            .alias("verdict")
        )
    )


def accepted_by(rule: str) -> pl.Expr:
    """Whether a rule accepts a pair, from the column `accepted_by`."""
    return pl.col("accepted_by").list.contains(rule)


def _accepts(rule: Rule, settings: VerificationSettings) -> pl.Expr:
    # To Polars, not-a-number is larger than any number: a broken score must accept nothing.
    is_defined = pl.col(rule.gain).is_not_nan()
    return (rule.accepts(settings) & is_defined).fill_null(False)
