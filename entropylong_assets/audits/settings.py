"""Settings of the audits."""

from __future__ import annotations

from pydantic import Field

from entropylong_assets.settings.section import Section


class AuditSettings(Section):
    """`null_calibration`, `cross_model_audit` and `long_range_audit`: proof on a sample."""

    roots: int = Field(16, ge=1)
    """Most roots of a shard that are audited, chosen by hash."""
    controls: int = Field(2, ge=1, le=32)
    """Held-out controls of each kind a root."""
    wished_false_acceptance: float = Field(0.05, ge=0, lt=1)
    """Rate of random contexts for which `null_calibration` gives the ε that holds it."""
    pairs: int = Field(64, ge=1)
    """Most pairs of a shard that `cross_model_audit` scores of each kind: accepted by both rules,
    by the plain one alone, by neither."""
    model: str = ""
    """Second scoring model, of another family, of `cross_model_audit`; empty: no such audit."""
    recipes: tuple[str, ...] = BUILT_IN_RECIPES
    """Recipes that `long_range_audit` compares."""
    short_tokens: int = Field(4096, ge=16)
    """Short window of LongPPL's key tokens, never less than the root (tokens)."""
    segment_tokens: int = Field(64, ge=2)
    """Length of the segments of the dependency score (tokens)."""
    segment_pairs: int = Field(4, ge=0)
    """Pairs of segments a window for the dependency score."""
