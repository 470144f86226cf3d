"""The built-in rules: the published one, and the one that compares with control contexts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from entropylong_assets.stages.verification.registry import RULES, GainColumn

if TYPE_CHECKING:
    from entropylong_assets.stages.verification.settings import VerificationSettings

GAIN_TOO_SMALL = "gain_too_small"
SURPRISAL_ROSE = "surprisal_rose"
NO_CONTROL = "no_control"


class Plain:
    """ΔI > ε, as published."""

    needs_controls = False
    gain: GainColumn = "gain"
    settings: tuple[str, ...] = ("epsilon",)

    def accepts(self, settings: VerificationSettings) -> pl.Expr:
        return pl.col("gain") > settings.epsilon

    def reason(self, _: VerificationSettings) -> pl.Expr:
        return pl.lit(GAIN_TOO_SMALL)


class Calibrated:
    """ΔI* > ε, and the true token became likelier than alone and than given the controls.

    The second condition is `require_surprisal_drop`.
    """

    needs_controls = True
    gain: GainColumn = "calibrated_gain"
    settings: tuple[str, ...] = ("epsilon", "require_surprisal_drop")

    def accepts(self, settings: VerificationSettings) -> pl.Expr:
        gained = pl.col("calibrated_gain") > settings.epsilon
        return gained & ~_surprisal_rose() if settings.require_surprisal_drop else gained

    def reason(self, settings: VerificationSettings) -> pl.Expr:
        gain = pl.col("calibrated_gain")
        no_control = pl.col("entropy_control").is_null() | pl.col("entropy_control").is_nan()
        reason = pl.when(no_control).then(pl.lit(NO_CONTROL)).otherwise(pl.lit(GAIN_TOO_SMALL))
        if not settings.require_surprisal_drop:
            return reason
        gained = (gain > settings.epsilon) & gain.is_not_nan() & _surprisal_rose()
        return pl.when(gained).then(pl.lit(SURPRISAL_ROSE)).otherwise(reason)


def _surprisal_rose() -> pl.Expr:
    """Whether the true token is no likelier given the context than alone or given the controls."""
    reference = pl.min_horizontal("surprisal", "surprisal_control")
    return ~(pl.col("surprisal_context") < reference)


RULES.register("plain")(Plain())
RULES.register("calibrated")(Calibrated())
