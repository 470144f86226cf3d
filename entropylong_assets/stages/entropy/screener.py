"""The cheaper scorer of an approximate screen, made from a loaded model."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from entropylong_assets.stages.entropy.engine import PackedScorer, cpu_has_bfloat16
from entropylong_assets.stages.entropy.model import ScoringModel, Tokenizer
from entropylong_assets.stages.model_files import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REMEDY = "set verification.screen to 'none'"

Kind = Literal["bfloat16", "fp8"]


def load_screener(model: ScoringModel, kind: Kind, pack_tokens: int | None = None) -> PackedScorer:
    """Call `make_screener`; return the same scorer for the same arguments in one process."""
    return _screener(
        model.hf_model,
        model.tokenizer,
        model.identity,
        model.max_forward_tokens,
        kind,
        pack_tokens,
    )


@lru_cache(maxsize=1)
def _screener(
    hf_model: PreTrainedModel,
    tokenizer: Tokenizer,
    identity: str,
    longest: int,
    kind: Kind,
    pack_tokens: int | None,
) -> PackedScorer:
    return make_screener(ScoringModel(hf_model, tokenizer, identity, longest), kind, pack_tokens)


def make_screener(model: ScoringModel, kind: Kind, pack_tokens: int | None = None) -> PackedScorer:
    """Make an engine in cheaper arithmetic.

    Raises ModelError if it would not be cheaper than the exact pass, or is not available here.
    """
    import torch

    hf_model = model.hf_model
    device = hf_model.device
    if kind == "bfloat16":
        if hf_model.dtype != torch.float32:
            raise ModelError(
                f"verification.screen is 'bfloat16', but so is the exact pass; {REMEDY}"
            )
        if device.type == "cpu" and not cpu_has_bfloat16():
            raise ModelError(
                f"verification.screen is 'bfloat16', but this CPU only emulates it, slower than "
                f"the exact pass; {REMEDY}"
            )
        half = replace(model, hf_model=copy.deepcopy(hf_model).bfloat16())
        return PackedScorer(half, pack_tokens=pack_tokens)
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise ModelError(
            f"verification.screen needs FP8, but scoring runs on {device}, which does not multiply "
            f"8-bit floats (CUDA devices of compute capability 8.9 or later do); {REMEDY}"
        )
    if hf_model.dtype != torch.bfloat16:
        raise ModelError(
            f"verification.screen needs FP8, but scoring.dtype is not bfloat16; set it, or {REMEDY}"
        )
    scorer = PackedScorer(model, pack_tokens=pack_tokens, float8=True)
    if scorer.mode != "packed":
        raise ModelError(
            f"verification.screen needs FP8, but this model can't be scored in it; {REMEDY}"
        )
    return scorer
