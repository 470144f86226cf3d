"""Settings of the verification of candidates."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from entropylong_assets.settings.section import Section


class VerificationSettings(Section):
    """`verified_dependencies`: which candidates do lower the entropy (paper, section 3.3)."""

    rule: Literal["plain", "calibrated"] = "calibrated"
    """`plain`: ΔI > ε, as published. `calibrated`: ΔI* > ε, against control contexts."""
    epsilon: float = Field(0.4, allow_inf_nan=False, lt=1)
    """Least gain of an accepted context, as a share of the anchor's entropy. The paper: 0.4."""
    controls: int = Field(2, ge=0, le=32)
    """Control contexts a root: random chunks of other documents, one forward pass each."""
    require_surprisal_drop: bool = True
    """Also refuse a context behind which the true token became less likely (`calibrated` only)."""
    max_false_acceptance: float = Field(0.02, ge=0, le=1)
    """A shard warns when more than this share of (anchor, control) pairs passes the rule."""

    max_contexts_per_root: int | None = Field(None, ge=1)
    """A root that has so many accepted contexts tries no further candidates; none: it tries all.
    Candidates come by the number of anchors that nominate them, then similarity, then rank."""
    max_forward_tokens_per_root: int | None = Field(None, ge=1)
    """Most tokens that a root's candidates and controls may take in forward passes; none: as
    many as there are. Later candidates are not tried."""
    screen: Literal["off", "bfloat16", "fp8"] = "off"
    """Approximate: score all contexts in this cheaper arithmetic, and exactly only a sample and
    those whose verdict could turn. `fp8` needs a CUDA device of compute capability 8.9 or later."""

    @model_validator(mode="after")
    def _has_controls(self) -> VerificationSettings:
        if self.rule == "calibrated" and self.controls < 2:
            raise ValueError(
                "controls must be at least 2 with rule 'calibrated' (one is held out in turn)"
            )
        return self
