"""Settings of the audits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field

from entropylong_assets.settings.section import Section, model_beside
from entropylong_assets.stages.samples.registry import RECIPES
from entropylong_assets.stages.samples.settings import BUILT_IN_RECIPES


class AuditSettings(Section):
    """`null_calibration`, `cross_model_audit` and `long_range_audit`: proof on a sample."""

    roots: int = Field(16, ge=1)
    """Maximum number of roots per shard that are audited, chosen by hash."""
    controls: int = Field(2, ge=1, le=32)
    """Held-out controls of each kind per root."""
    wished_false_acceptance: float = Field(0.05, ge=0, lt=1)
    """Wished false-acceptance rate: `null_calibration` reports the smallest ε at which the rule
    accepts at most this share of random contexts."""
    pairs: int = Field(64, ge=1)
    """Maximum number of pairs per shard that `cross_model_audit` scores for each combination of
    compared rules that accepts pairs (with the default rules: both, one, none)."""
    model: str = ""
    """Second scoring model, of another family, for `cross_model_audit`. Empty: no such audit."""
    recipes: Annotated[tuple[str, ...], AfterValidator(RECIPES.check_all)] = BUILT_IN_RECIPES
    """Recipes that `long_range_audit` compares."""
    short_tokens: int = Field(4096, ge=16)
    """Length of the short window for LongPPL's key tokens (tokens). It contains at least the
    root."""
    segment_tokens: int = Field(64, ge=2)
    """Length of the segments of the dependency score (tokens)."""
    segment_pairs: int = Field(4, ge=0)
    """Number of pairs of segments per window for the dependency score."""

    def located(self, folder: Path) -> Self:
        return self.with_located(folder, model=model_beside(folder, self.model))
