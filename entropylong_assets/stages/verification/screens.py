"""The built-in screens: the scoring model in cheaper arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from entropylong_assets.stages.verification.registry import SCREENS

if TYPE_CHECKING:
    from entropylong_assets.stages.entropy.model import ScoringModel
    from entropylong_assets.stages.entropy.scoring import Scorer


@SCREENS.register("bfloat16")
def load_bfloat16(model: ScoringModel, pack_tokens: int | None) -> Scorer:
    """Bfloat16 as a screen of float32."""
    from entropylong_assets.stages.entropy.screener import load_screener

    return load_screener(model, "bfloat16", pack_tokens)


@SCREENS.register("fp8")
def load_fp8(model: ScoringModel, pack_tokens: int | None) -> Scorer:
    """8-bit floats as a screen of bfloat16; needs CUDA, compute capability 8.9 or later."""
    from entropylong_assets.stages.entropy.screener import load_screener

    return load_screener(model, "fp8", pack_tokens)
