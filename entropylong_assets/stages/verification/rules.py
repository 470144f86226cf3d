"""The built-in rules: the published one, one that compares with control contexts, and one that also
reads the text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from entropylong_assets.stages.verification.registry import RULES, GainColumn

if TYPE_CHECKING:
    from entropylong_assets.stages.verification.settings import VerificationSettings

GAIN_TOO_SMALL = "gain_too_small"
SURPRISAL_ROSE = "surprisal_rose"
NO_CONTROL = "no_control"
SURPRISAL_GAIN_TOO_SMALL = "surprisal_gain_too_small"
NO_WORD = "no_word"
EXCLUDED_ANCHOR = "excluded_anchor"
WORD_NOT_IN_CONTEXT = "word_not_in_context"
COMMON_PHRASE = "common_phrase"
_BY_TEXT = (NO_WORD, EXCLUDED_ANCHOR, WORD_NOT_IN_CONTEXT, COMMON_PHRASE)
"""Reasons that need no score."""

COUNTED_DOCUMENTS = 8000
"""Counted documents up to which limits on the documents of a phrase hold as they are set."""


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
        reason = (
            pl.when(_lacks_control()).then(pl.lit(NO_CONTROL)).otherwise(pl.lit(GAIN_TOO_SMALL))
        )
        if not settings.require_surprisal_drop:
            return reason
        gained = (gain > settings.epsilon) & gain.is_not_nan() & _surprisal_rose()
        return pl.when(gained).then(pl.lit(SURPRISAL_ROSE)).otherwise(reason)


class Genuine:
    """The context lowers entropy and surprisal, and its text tells the anchor's word.

    Accepted is a pair with ΔI* > `min_calibrated_gain` and (I - I') / I > `min_surprisal_gain`,
    where I is the lower of the surprisals alone and given the controls, whose context contains the
    anchor's word, unless the wording around that word is boilerplate: in more documents of the
    corpus than `max_phrase_documents` and `max_pair_documents` allow, or of an excluded kind.

    The thresholds were chosen on one half of 640 pairs that were read and labelled, and measured on
    the other (docs/genuine.md).
    """

    needs_controls = True
    gain: GainColumn = "calibrated_gain"
    settings: tuple[str, ...] = (
        "min_calibrated_gain",
        "min_surprisal_gain",
        "max_phrase_documents",
        "max_pair_documents",
        "excluded_anchors",
    )

    def accepts(self, settings: VerificationSettings) -> pl.Expr:
        return ~pl.any_horizontal(_refusals(settings).values())

    def possible(self, settings: VerificationSettings) -> pl.Expr:
        """Return whether the text allows a pair: none of the conditions on words is violated."""
        refusals = _refusals(settings)
        return ~pl.any_horizontal(refusals[name] for name in _BY_TEXT)

    def reason(self, settings: VerificationSettings) -> pl.Expr:
        """Return the first reason of `_refusals` that holds."""
        return pl.coalesce(
            pl.when(holds).then(pl.lit(name)) for name, holds in _refusals(settings).items()
        )


def is_common(settings: VerificationSettings) -> pl.Expr:
    """Whether many documents of the corpus share the wording at the anchor."""
    larger = pl.max_horizontal(pl.lit(1.0), pl.col("counted_documents") / COUNTED_DOCUMENTS)

    def exceeds(column: str, limit: int) -> pl.Expr:
        return (pl.col(column) > limit * larger).fill_null(False)

    phrase = exceeds("phrase_documents", settings.max_phrase_documents)
    return phrase | exceeds("pair_documents", settings.max_pair_documents)


def is_excluded(settings: VerificationSettings) -> pl.Expr:
    """Whether the anchor is of a kind that `excluded_anchors` names."""
    return pl.col("anchor_kind").is_in(list(settings.excluded_anchors)).fill_null(False)


def _refusals(settings: VerificationSettings) -> dict[str, pl.Expr]:
    """Return why rule `genuine` rejects a pair: reasons in order, each a Boolean without nulls."""
    reference = pl.min_horizontal("surprisal", "surprisal_control").cast(pl.Float64)
    surprisal_gain = (reference - pl.col("surprisal_context")) / reference
    return {
        NO_CONTROL: _lacks_control(),
        NO_WORD: pl.col("word").is_null(),
        EXCLUDED_ANCHOR: is_excluded(settings),
        GAIN_TOO_SMALL: _not_above("calibrated_gain", settings.min_calibrated_gain),
        SURPRISAL_GAIN_TOO_SMALL: _not_above(surprisal_gain, settings.min_surprisal_gain),
        WORD_NOT_IN_CONTEXT: ~pl.col("has_word").fill_null(False),
        COMMON_PHRASE: is_common(settings),
    }


def _lacks_control() -> pl.Expr:
    return pl.col("entropy_control").is_null() | pl.col("entropy_control").is_nan()


def _not_above(gain: str | pl.Expr, least: float) -> pl.Expr:
    """Whether a gain is undefined or at most `least`. To Polars, not-a-number is the largest."""
    value = pl.col(gain) if isinstance(gain, str) else gain
    return (value.is_nan() | (value <= least)).fill_null(True)


def _surprisal_rose() -> pl.Expr:
    """Whether the true token is no likelier given the context than alone or given the controls."""
    reference = pl.min_horizontal("surprisal", "surprisal_control")
    return ~(pl.col("surprisal_context") < reference)


RULES.register("plain")(Plain())
RULES.register("calibrated")(Calibrated())
RULES.register("genuine")(Genuine())
