"""Contextual information gain and the verdict on a candidate (paper, section 3.3).

Entropies and surprisals come in as stored, float32 nats; gains are taken in float64, so that SQL
over the stored columns finds the same gain and the same verdict.
"""

from __future__ import annotations

import polars as pl

from entropylong_assets.settings.model import VerificationSettings

ACCEPTED = "accepted"
GAIN_TOO_SMALL = "gain_too_small"
SURPRISAL_ROSE = "surprisal_rose"
NEAR_DUPLICATE = "near_duplicate"
TOO_LONG = "too_long_for_model"
NOT_TRIED = "not_tried"
NO_CONTROL = "no_control"


def judge(pairs: pl.DataFrame, settings: VerificationSettings) -> pl.DataFrame:
    """Adds gain, calibrated_gain, accepted_plain, accepted_calibrated, accepted and verdict.

    `pairs` has entropy, entropy_context, entropy_control, surprisal, surprisal_context,
    surprisal_control, and `refusal`: why the pair was not scored, else null (then its
    entropy_context is there). Without controls the calibrated gain is null and its rule accepts
    nothing: the verdict then says so.

    ΔI = (H - H') / H; ΔI* = (min(H, H^c) - H') / H. The calibrated rule measures against
    whichever is harder to beat, the root alone or the root behind an unrelated text; the same
    holds for the surprisal of the true token.
    """
    before, behind, control = (
        pl.col(name).cast(pl.Float64) for name in ("entropy", "entropy_context", "entropy_control")
    )
    # A position that is certain already has nothing to gain.
    uncertain = pl.when(before > 0)
    gain = uncertain.then((before - behind) / before)
    calibrated = uncertain.then((pl.min_horizontal(before, control) - behind) / before)
    has_control = pl.col("entropy_control").is_not_null() & ~control.is_nan()
    believes = pl.col("surprisal_context") < pl.min_horizontal("surprisal", "surprisal_control")
    surprisal_rose = ~believes if settings.require_surprisal_drop else pl.lit(False)

    def passes(column: str) -> pl.Expr:
        # To Polars not-a-number is larger than any number: a broken score must accept nothing.
        gained = (pl.col(column) > settings.epsilon) & ~pl.col(column).is_nan()
        return gained.fill_null(False)

    rule = settings.rule
    rose = surprisal_rose if rule == "calibrated" else pl.lit(False)
    return (
        pairs.with_columns(
            gain.alias("gain"),
            pl.when(has_control).then(calibrated).alias("calibrated_gain"),
        )
        .with_columns(
            passes("gain").alias("accepted_plain"),
            (passes("calibrated_gain") & ~surprisal_rose)
            .fill_null(False)
            .alias("accepted_calibrated"),
        )
        .with_columns(pl.col(f"accepted_{rule}").alias("accepted"))
        .with_columns(
            pl.when(pl.col("refusal").is_not_null())
            .then(pl.col("refusal"))
            .when(pl.col("accepted"))
            .then(pl.lit(ACCEPTED))
            .when(passes("gain" if rule == "plain" else "calibrated_gain") & rose)
            .then(pl.lit(SURPRISAL_ROSE))
            .when(pl.lit(rule == "calibrated") & ~has_control)
            .then(pl.lit(NO_CONTROL))
            .otherwise(pl.lit(GAIN_TOO_SMALL))
            .alias("verdict")
        )
    )
