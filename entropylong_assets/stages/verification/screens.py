"""The built-in screens: the scoring model in cheaper arithmetic, and on fewer tokens."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from entropylong_assets.stages.verification.registry import SCREENS

if TYPE_CHECKING:
    from entropylong_assets.stages.entropy.engine import PackedScorer
    from entropylong_assets.stages.entropy.model import ScoringModel
    from entropylong_assets.stages.entropy.scoring import Scorer
    from entropylong_assets.stages.verification.registry import Estimator


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


@SCREENS.register("splice")
def load_splice(model: ScoringModel, pack_tokens: int | None) -> Estimator:
    """Windows before the anchors, given keys and values that are computed once."""
    from entropylong_assets.stages.entropy.engine import load_scorer

    return _spliced("splice", load_scorer(model, pack_tokens), is_exact=True)


@SCREENS.register("splice_fp8")
def load_splice_fp8(model: ScoringModel, pack_tokens: int | None) -> Estimator:
    """The same in 8-bit floats; needs CUDA, compute capability 8.9 or later."""
    from entropylong_assets.stages.entropy.screener import load_screener

    scorer = load_screener(model, "fp8", pack_tokens)
    return _spliced("splice_fp8", scorer, is_exact=False)


@lru_cache(maxsize=1)
def _spliced(name: str, scorer: PackedScorer, *, is_exact: bool) -> Estimator:
    from entropylong_assets.stages.entropy.screener import REMEDY
    from entropylong_assets.stages.entropy.splice_support import splice_fault
    from entropylong_assets.stages.model_files import ModelError
    from entropylong_assets.stages.verification.spliced import SplicedEstimator

    if fault := splice_fault(scorer):
        raise ModelError(
            f"verification.screen is '{name}', but keys and values of this model can't be used "
            f"given other contexts: {fault}; {REMEDY}"
        )
    return SplicedEstimator(scorer, is_exact=is_exact)
